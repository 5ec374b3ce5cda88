//! Avro values by a schema registry.
//!
//! The registry is a double that answers as Confluent's REST API is documented, unless `MECHA_SCHEMA_REGISTRY` holds the
//! URL of a real one (such as `http://127.0.0.1:8080/apis/ccompat/v7` of Apicurio), which is then used in its place.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mecha_components_api::{ErrorKind, Invoke, Metadata, PubSub, Publish, Subscribe};
use mecha_testkit::servers::Kafka;
use mecha_testkit::{Inbox, fresh_name};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, Running, attached, input, last_value, output, publish_with, pubsub, until};

const AVRO: [(&str, &str); 1] = [("valueSchemaType", "Avro")];

/// A schema registry.
struct Registry {
    url: String,
    /// Of the double.
    double: Option<Double>,
}

struct Double {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Schema by number, from 1; and the subject it was registered for.
    schemas: Vec<(String, String)>,
    asked: Vec<String>,
    /// Answers 503 to everything.
    away: bool,
}

impl Drop for Double {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    async fn start() -> Self {
        if let Ok(url) = std::env::var("MECHA_SCHEMA_REGISTRY") {
            return Self { url, double: None };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let seen = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen)));
            }
        });
        Self { url, double: Some(Double { state, task }) }
    }

    /// Makes a schema the latest one of a subject; its number.
    async fn register(&self, subject: &str, schema: &Value) -> u32 {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let body = json!({"schema": schema.to_string(), "schemaType": "AVRO"}).to_string();
        let request = Request::post(format!("{}/subjects/{subject}/versions", self.url))
            .header("content-type", "application/vnd.schemaregistry.v1+json")
            .body(Full::new(Bytes::from(body)));
        let answer = client.request(request.unwrap()).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        u32::try_from(answer["id"].as_u64().unwrap_or_else(|| panic!("{answer}"))).unwrap()
    }

    fn state(&self) -> Option<parking_lot::MutexGuard<'_, State>> {
        self.double.as_ref().map(|double| double.state.lock())
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&line);
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let (status, answer) = state.lock().answer(&head, &body);
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all((head + &answer).as_bytes()).await?;
    }
}

impl State {
    fn answer(&mut self, head: &str, body: &[u8]) -> (u16, Value) {
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap().to_owned());
        if self.away {
            return (503, json!({"error_code": 503, "message": "away"}));
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (method, parts.as_slice()) {
            ("POST", ["subjects", subject, "versions"]) => {
                let schema: Value = serde_json::from_slice(body).unwrap();
                self.schemas.push(((*subject).to_owned(), schema["schema"].as_str().unwrap().to_owned()));
                (200, json!({"id": self.schemas.len()}))
            }
            ("GET", ["subjects", subject, "versions", "latest"]) => {
                self.asked.push(head.to_owned());
                let found = self.schemas.iter().enumerate().rfind(|(_, (of, _))| of == subject);
                match found {
                    Some((at, (of, text))) => {
                        (200, json!({"subject": of, "id": at + 1, "version": at + 1, "schema": text}))
                    }
                    None => (404, json!({"error_code": 40401, "message": "Subject not found."})),
                }
            }
            ("GET", ["schemas", "ids", number]) => {
                self.asked.push(head.to_owned());
                let number: usize = number.parse().unwrap();
                match number.checked_sub(1).and_then(|at| self.schemas.get(at)) {
                    Some((_, text)) => (200, json!({"schema": text})),
                    None => (404, json!({"error_code": 40403, "message": "Schema not found"})),
                }
            }
            _ => (404, json!({"error_code": 404, "message": "HTTP 404 Not Found"})),
        }
    }
}

fn order() -> Value {
    json!({"type": "record", "name": "Order", "namespace": "shop", "fields": [
        {"name": "id", "type": "long"},
        {"name": "item", "type": "string"},
        {"name": "note", "type": ["null", "string"], "default": null}]})
}

fn start(broker: &Arc<dyn PubSub>, topic: &str, to: &Arc<Inbox>) -> Running {
    Running::start_with(broker, topic, to.clone(), AVRO.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_becomes_avro_on_its_way_out_and_json_again_on_its_way_in() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    let number = registry.register(&format!("{topic}-value"), &order()).await;
    let settings = [
        ("brokers", address.as_str()),
        ("schemaRegistryURL", registry.url.as_str()),
        ("schemaRegistryAPIKey", "joe"),
        ("schemaRegistryAPISecret", "hunter2"),
    ];
    let broker = pubsub(&topic, &settings).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = start(&broker, &topic, &inbox);
    attached(&inbox, 1).await;
    publish_with(&*broker, &topic, r#"{"id": 7, "item": "hat", "note": "hi"}"#, &AVRO).await.unwrap();
    inbox.wait_for(1, PATIENCE).await.unwrap();
    let got: Value = serde_json::from_str(&inbox.texts()[0]).unwrap();
    assert_eq!(got, json!({"id": 7, "item": "hat", "note": "hi"}));
    // On the wire it is what every client of a registry writes.
    let stored = last_value(&address, &topic).await;
    assert_eq!(stored[..5], [&[0_u8][..], &number.to_be_bytes()].concat());
    assert_eq!(stored[5..], *b"\x0e\x06hat\x02\x04hi");

    // Several at once, of which one does not fit; what has no schema goes as it is; null has no value.
    let (fits, none) = (AVRO.into_iter().collect::<Metadata>(), Metadata::new());
    let one = |data: &'static str, metadata| Publish {
        topic: &topic,
        data: Bytes::from_static(data.as_bytes()),
        content_type: None,
        metadata,
    };
    let batch = vec![
        one(r#"{"id": 8, "item": "cap"}"#, &fits),
        one(r#"{"id": "hunter3", "item": "cap"}"#, &fits),
        one("null", &fits),
    ];
    let failed = broker.bulk().unwrap().publish_many(batch).await.unwrap();
    assert_eq!(failed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1]);
    let text = failed[0].error.to_string();
    assert!(text.contains("at id") && text.contains(&format!("{topic}-value")) && !text.contains("hunter"), "{text}");
    inbox.wait_for(3, PATIENCE).await.unwrap();
    let mut texts: Vec<String> = inbox.texts()[1..].to_vec();
    texts.sort();
    assert_eq!(texts, ["null", r#"{"id":8,"item":"cap","note":null}"#]);
    running.stop().await;
    broker.publish(one("plain", &none)).await.unwrap();
    assert_eq!(last_value(&address, &topic).await, b"plain");

    if let Some(state) = registry.state() {
        let login = format!("Basic {}", STANDARD.encode("joe:hunter2"));
        assert!(state.asked.iter().all(|head| head.contains(&login)), "{:?}", state.asked);
        assert_eq!(state.asked.len(), 2, "the latest one and one by its number, each once: {:?}", state.asked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn avro_json_names_the_types_of_unions_and_nothing_is_kept_where_the_document_says_so() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    registry.register(&format!("{topic}-value"), &order()).await;
    let settings = [
        ("brokers", address.as_str()),
        ("schemaRegistryURL", registry.url.as_str()),
        ("useAvroJSON", "true"),
        ("schemaCachingEnabled", "false"),
    ];
    let broker = pubsub(&topic, &settings).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = start(&broker, &topic, &inbox);
    attached(&inbox, 1).await;
    let text = r#"{"id":7,"item":"hat","note":{"string":"hi"}}"#;
    for _ in 0..2 {
        publish_with(&*broker, &topic, text, &AVRO).await.unwrap();
    }
    inbox.wait_for(2, PATIENCE).await.unwrap();
    assert_eq!(inbox.texts(), [text, text]);
    let plain = publish_with(&*broker, &topic, r#"{"id":7,"item":"hat","note":"hi"}"#, &AVRO).await.unwrap_err();
    assert_eq!(plain.kind(), ErrorKind::InvalidArgument, "{plain}");
    running.stop().await;
    if let Some(state) = registry.state() {
        assert_eq!(state.asked.len(), 5, "each record asks: {:?}", state.asked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_schema_is_asked_for_again_and_stays_in_use_while_the_registry_is_away() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    let subject = format!("{topic}-value");
    registry.register(&subject, &order()).await;
    let settings = [
        ("brokers", address.as_str()),
        ("schemaRegistryURL", registry.url.as_str()),
        ("schemaLatestVersionCacheTTL", "10ms"),
    ];
    let broker = pubsub(&topic, &settings).await.unwrap();
    let old = r#"{"id": 1, "item": "hat"}"#;
    publish_with(&*broker, &topic, old, &AVRO).await.unwrap();
    let mut newer = order();
    newer["fields"].as_array_mut().unwrap().push(json!({"name": "more", "type": "int", "default": 5}));
    let number = registry.register(&subject, &newer).await;
    let newest = async || {
        publish_with(&*broker, &topic, old, &AVRO).await.unwrap();
        last_value(&address, &topic).await[1..5] == number.to_be_bytes()
    };
    until("the new schema is in use", newest).await;
    if registry.state().map(|mut state| state.away = true).is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        publish_with(&*broker, &topic, r#"{"id": 1, "item": "hat", "more": 6}"#, &AVRO).await.unwrap();
        assert!(newest().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_says_where_and_what_to_do() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    let plain = [("brokers", address.as_str())];
    let broker = pubsub(&topic, &plain).await.unwrap();
    let e = publish_with(&*broker, &topic, "{}", &AVRO).await.unwrap_err();
    assert!(e.kind() == ErrorKind::FailedPrecondition && e.message().contains("schemaRegistryURL"), "{e}");
    let e = publish_with(&*broker, &topic, "{}", &[("valueSchemaType", "Protobuf")]).await.unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidArgument && e.message().contains("valueSchemaType"), "{e}");
    publish_with(&*broker, &topic, "{}", &[("valueSchemaType", "none")]).await.unwrap();
    let (sub, stop) = (AVRO.into_iter().collect(), mecha_components_api::CancellationToken::new());
    let sub = Subscribe { topic: topic.clone(), metadata: sub, bulk: None };
    let e = broker.subscribe(sub, Arc::new(Inbox::new()), stop).await.unwrap_err();
    assert!(e.message().contains("schemaRegistryURL"), "{e}");

    let with = |url: &str| [("brokers".to_owned(), address.clone()), ("schemaRegistryURL".to_owned(), url.to_owned())];
    let open = async |url: &str| {
        let pairs = with(url);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        pubsub(&topic, &pairs).await.unwrap()
    };
    let broker = open(&registry.url).await;
    let e = publish_with(&*broker, &topic, "{}", &AVRO).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}");
    assert!(e.message().contains(&format!("{topic}-value")) && e.message().contains(&registry.url), "{e}");
    registry.register(&format!("{topic}-value"), &order()).await;
    let e = publish_with(&*broker, &topic, r#"{"item": "hunter2"}"#, &AVRO).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    assert!(e.message().contains("'id'") && !e.message().contains("hunter2"), "{e}");

    let nobody = format!("http://127.0.0.1:{}", mecha_testkit::servers::free_port());
    let e = publish_with(&*open(&nobody).await, &topic, "{}", &AVRO).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    assert!(e.message().contains(&nobody) && e.message().contains("refused"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_waits_for_its_schema_and_nothing_passes_it() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    // Only a double has numbers that are known beforehand.
    if registry.double.is_none() {
        return;
    }
    let settings =
        [("brokers", address.as_str()), ("schemaRegistryURL", registry.url.as_str()), ("initialOffset", "oldest")];
    let foreign: FutureProducer = ClientConfig::new().set("bootstrap.servers", &address).create().unwrap();
    for (number, text) in [(1_u32, &b"\x06one"[..]), (2, &b"\x06two"[..])] {
        let value = [&[0][..], &number.to_be_bytes(), text].concat();
        foreign.send(FutureRecord::<(), _>::to(&topic).payload(&value), PATIENCE).await.unwrap();
    }
    let broker = pubsub(&topic, &settings).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = start(&broker, &topic, &inbox);
    until("the schema is asked for", async || registry.state().is_some_and(|state| !state.asked.is_empty())).await;
    assert!(inbox.texts().is_empty());
    for _ in 0..2 {
        registry.register("any", &json!("string")).await;
    }
    inbox.wait_for(2, PATIENCE).await.unwrap();
    assert_eq!(inbox.texts(), ["\"one\"", "\"two\""]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_take_schemas_in_both_directions() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic, registry) = (kafka.address(), fresh_name(), Registry::start().await);
    registry.register(&format!("{topic}-value"), &order()).await;
    let common = [("brokers", address.as_str()), ("schemaRegistryURL", registry.url.as_str())];
    let sink = output(&[&common[..], &[("publishTopic", topic.as_str())]].concat()).await.unwrap();
    let md: Metadata = AVRO.into_iter().collect();
    let data = Bytes::from_static(br#"{"id": 3, "item": "hat"}"#);
    sink.invoke(Invoke { operation: "create", data, metadata: &md }).await.unwrap();
    let own = [("topics", topic.as_str()), ("valueSchemaType", "avro"), ("initialOffset", "oldest")];
    let source = input(&topic, &[&common[..], &own].concat()).await.unwrap();
    let (app, stop) = (Arc::new(crate::binding::App::default()), mecha_components_api::CancellationToken::new());
    let reading = tokio::spawn({
        let (source, app, stop) = (Arc::clone(&source), Arc::clone(&app), stop.clone());
        async move { source.read(app, stop).await }
    });
    until("the event arrives", async || !app.seen.lock().is_empty()).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap();
    assert_eq!(app.seen.lock()[0].data, r#"{"id":3,"item":"hat","note":null}"#);
}
