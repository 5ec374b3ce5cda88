//! A gRPC app on the callback service of the SDK. It keeps what it receives.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use dapr::appcallback::{
    BindingEventRequest, BindingEventResponse, InvokeRequest, InvokeResponse, JobEventRequest, JobEventResponse,
    ListInputBindingsResponse, ListTopicSubscriptionsResponse, TopicEventBulkRequest, TopicEventBulkResponse,
    TopicEventRequest, TopicEventResponse, TopicSubscription,
};
use dapr::dapr::proto::runtime::v1::app_callback_server::{AppCallback, AppCallbackServer};
use dapr::dapr::proto::runtime::v1::topic_event_response::TopicEventResponseStatus as Verdict;
use prost_types::Any;
use serde_json::json;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::stage::until;

#[derive(Default)]
pub struct App {
    events: Mutex<HashMap<String, Vec<TopicEventRequest>>>,
    ticks: Mutex<u64>,
}

impl App {
    /// Serves in a thread of its own until the process ends.
    pub fn serve() -> (Arc<Self>, u16) {
        let app = Arc::new(Self::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let service = Callbacks(app.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                listener.set_nonblocking(true).expect("a listener");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tonic::transport::Server::builder()
                    .add_service(AppCallbackServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .expect("the app serves");
            });
        });
        (app, port)
    }

    pub fn ticks(&self) -> u64 {
        *self.ticks.lock().expect("a lock")
    }

    /// Waits until the app has received an event with this text in its data that often; returns the last of them.
    pub async fn received(&self, topic: &str, text: &str, times: usize) -> TopicEventRequest {
        until(&format!("{topic} has {text}"), async || {
            let events = self.events.lock().expect("a lock");
            let found: Vec<_> = events.get(topic)?.iter().filter(|event| contains(&event.data, text)).collect();
            if found.len() < times { None } else { found.last().map(|event| (*event).clone()) }
        })
        .await
    }

    /// Keeps an event; returns how often one with this data has come.
    fn keep(&self, event: TopicEventRequest) -> usize {
        let mut events = self.events.lock().expect("a lock");
        let kept = events.entry(event.topic.clone()).or_default();
        kept.push(event.clone());
        kept.iter().filter(|other| other.data == event.data).count()
    }
}

fn contains(data: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(data).contains(text)
}

struct Callbacks(Arc<App>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AppCallback for Callbacks {
    async fn on_invoke(&self, request: Request<InvokeRequest>) -> Answer<InvokeResponse> {
        let caller = request.metadata().get("dapr-caller-app-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        if request.method != "echo" {
            return Err(Status::already_exists("broken by intent"));
        }
        let body = String::from_utf8_lossy(&request.data.unwrap_or_default().value).into_owned();
        let answer = json!({ "app": "grpc-app", "body": body, "caller": caller });
        Ok(Response::new(InvokeResponse {
            data: Some(Any { value: answer.to_string().into_bytes(), ..Any::default() }),
            content_type: "application/json".to_owned(),
        }))
    }

    async fn list_topic_subscriptions(&self, _: Request<()>) -> Answer<ListTopicSubscriptionsResponse> {
        let subscriptions = ["plain", "raw", "flaky", "poison", "graveyard"]
            .map(|topic| {
                let raw = HashMap::from([("rawPayload".to_owned(), "true".to_owned())]);
                let mut subscription =
                    TopicSubscription::new("pubsub".to_owned(), topic.to_owned(), (topic == "raw").then_some(raw));
                if topic == "poison" {
                    subscription.dead_letter_topic = "graveyard".to_owned();
                }
                subscription
            })
            .to_vec();
        Ok(Response::new(ListTopicSubscriptionsResponse { subscriptions }))
    }

    async fn on_topic_event(&self, request: Request<TopicEventRequest>) -> Answer<TopicEventResponse> {
        let event = request.into_inner();
        let topic = event.topic.clone();
        let seen = self.0.keep(event);
        let status = match topic.as_str() {
            "flaky" if seen == 1 => Verdict::Retry,
            "poison" => Verdict::Drop,
            _ => Verdict::Success,
        };
        Ok(Response::new(TopicEventResponse { status: status.into() }))
    }

    async fn list_input_bindings(&self, _: Request<()>) -> Answer<ListInputBindingsResponse> {
        Ok(Response::new(ListInputBindingsResponse::binding("tick".to_owned())))
    }

    async fn on_binding_event(&self, _: Request<BindingEventRequest>) -> Answer<BindingEventResponse> {
        *self.0.ticks.lock().expect("a lock") += 1;
        Ok(Response::new(BindingEventResponse::default()))
    }

    async fn on_bulk_topic_event(&self, _: Request<TopicEventBulkRequest>) -> Answer<TopicEventBulkResponse> {
        Err(Status::unimplemented("no subscription is a bulk subscription"))
    }

    async fn on_job_event(&self, _: Request<JobEventRequest>) -> Answer<JobEventResponse> {
        Err(Status::unimplemented("no jobs"))
    }
}
