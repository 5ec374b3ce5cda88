//! A gRPC service that no sidecar knows, for proxying.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use http::uri::PathAndQuery;
use hyper::body::Body as HttpBody;
use tonic::codegen::{Service, StdError};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::server::{
    ClientStreamingService, Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Name of the service.
pub const ECHO: &str = "mecha.test.Echo";

/// A text that `Say` refuses.
const FAIL: &str = "fail";

/// The service; its messages are `google.protobuf.StringValue`.
///
/// `Say` echoes, but refuses the text `fail` with `FailedPrecondition`, details and a trailer. `Count` streams
/// the numbers below the one given. `Join` joins the texts. `Chat` echoes each text at once. Answers carry
/// the request's metadata as `echo-<name>`.
#[derive(Clone, Debug)]
pub(crate) struct Echo;

/// A client of the service, wherever it is.
#[derive(Clone, Debug)]
pub struct EchoClient {
    channel: Channel,
    metadata: MetadataMap,
}

type Texts = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

struct Say;
struct Count;
struct Join;
struct Chat;

impl EchoClient {
    /// Calls through `channel`.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { channel, metadata: MetadataMap::new() }
    }

    /// Metadata on every call.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.metadata.append(key, MetadataValue::try_from(value).unwrap());
        self
    }

    /// The unary call.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn say(&self, text: &str) -> Result<Response<String>, Status> {
        self.ready().await?.unary(self.request(text.to_owned()), path("Say"), ProstCodec::default()).await
    }

    /// A unary call of a method the service does not have.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn missing(&self) -> Result<Response<String>, Status> {
        self.ready().await?.unary(self.request(String::new()), path("Missing"), ProstCodec::default()).await
    }

    /// The call that streams an answer.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn count(&self, to: usize) -> Result<Response<Streaming<String>>, Status> {
        let request = self.request(to.to_string());
        self.ready().await?.server_streaming(request, path("Count"), ProstCodec::default()).await
    }

    /// The call that takes a stream.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn join(&self, texts: Vec<String>) -> Result<Response<String>, Status> {
        let request = self.request(stream::iter(texts));
        self.ready().await?.client_streaming(request, path("Join"), ProstCodec::default()).await
    }

    /// The call with both.
    ///
    /// # Errors
    /// The status of the call.
    pub async fn chat(
        &self,
        texts: impl Stream<Item = String> + Send + 'static,
    ) -> Result<Response<Streaming<String>>, Status> {
        let request = self.request(texts);
        self.ready().await?.streaming(request, path("Chat"), ProstCodec::default()).await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    async fn ready(&self) -> Result<tonic::client::Grpc<Channel>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(client)
    }
}

impl NamedService for Echo {
    const NAME: &'static str = ECHO;
}

impl<B> Service<http::Request<B>> for Echo
where
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        async move {
            let mut grpc = Grpc::new(ProstCodec::<String, String>::default());
            Ok(match request.uri().path().rsplit('/').next().unwrap_or_default() {
                "Say" => grpc.unary(Say, request).await,
                "Count" => grpc.server_streaming(Count, request).await,
                "Join" => grpc.client_streaming(Join, request).await,
                "Chat" => grpc.streaming(Chat, request).await,
                _ => Status::unimplemented("no such method of the echo service").into_http(),
            })
        }
        .boxed()
    }
}

impl UnaryService<String> for Say {
    type Response = String;
    type Future = BoxFuture<'static, Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        async move {
            let (metadata, _, text) = request.into_parts();
            if text == FAIL {
                let mut trailers = MetadataMap::new();
                trailers.insert("echo-trailer", MetadataValue::from_static("kept"));
                let details = vec![8, 9, 18, 3, b'n', b'o', b'!'];
                return Err(Status::with_details_and_metadata(
                    Code::FailedPrecondition,
                    "told to: 100 % fail",
                    details.into(),
                    trailers,
                ));
            }
            Ok(answer(&metadata, text))
        }
        .boxed()
    }
}

impl ServerStreamingService<String> for Count {
    type Response = String;
    type ResponseStream = Texts;
    type Future = BoxFuture<'static, Result<Response<Texts>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        async move {
            let (metadata, _, to) = request.into_parts();
            let to: usize = to.parse().map_err(|_| Status::invalid_argument("no number"))?;
            let numbers = stream::iter((0..to).map(|number| Ok(number.to_string())));
            Ok(answer(&metadata, numbers.boxed() as Texts))
        }
        .boxed()
    }
}

impl ClientStreamingService<String> for Join {
    type Response = String;
    type Future = BoxFuture<'static, Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        async move {
            let (metadata, _, mut texts) = request.into_parts();
            let mut joined = String::new();
            while let Some(text) = texts.message().await? {
                joined.push_str(&text);
            }
            Ok(answer(&metadata, joined))
        }
        .boxed()
    }
}

impl StreamingService<String> for Chat {
    type Response = String;
    type ResponseStream = Texts;
    type Future = BoxFuture<'static, Result<Response<Texts>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        async move {
            let (metadata, _, texts) = request.into_parts();
            Ok(answer(&metadata, texts.boxed() as Texts))
        }
        .boxed()
    }
}

fn path(method: &str) -> PathAndQuery {
    PathAndQuery::try_from(format!("/{ECHO}/{method}")).unwrap()
}

fn answer<T>(metadata: &MetadataMap, message: T) -> Response<T> {
    let mut response = Response::new(message);
    for (name, value) in metadata.clone().into_headers().iter() {
        let Ok(value) = value.to_str() else { continue };
        let key = MetadataKey::from_bytes(format!("echo-{name}").as_bytes());
        if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
            response.metadata_mut().append(key, value);
        }
    }
    response
}
