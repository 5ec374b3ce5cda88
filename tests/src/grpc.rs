use std::collections::BTreeMap;

use hyper_util::rt::TokioIo;
use mecha_proto::Any;
use mecha_proto::runtime::dapr_client::DaprClient;
use prost::Message;
use serde_json::{Value, json};
use std::path::Path;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The daemon's gRPC API as a client of the published protocol sees it.
pub type Grpc = DaprClient<Channel>;

/// Larger than the daemon's own limit, so that the daemon's is the one that speaks.
const CLIENT_LIMIT: usize = 256 << 20;

/// A channel to `127.0.0.1:port`, connected.
pub(crate) async fn channel(port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.connect().await.unwrap_or_else(|e| panic!("gRPC port {port}: {e:?}"))
}

/// A channel to a unix socket, connected.
pub(crate) async fn unix_channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = UnixConnector(path);
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

pub(crate) fn client(channel: Channel) -> Grpc {
    DaprClient::new(channel).max_decoding_message_size(CLIENT_LIMIT).max_encoding_message_size(CLIENT_LIMIT)
}

#[derive(Clone)]
struct UnixConnector(std::path::PathBuf);

impl tower_service::Service<Uri> for UnixConnector {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceInfo {
    #[prost(string, tag = "1")]
    resource_type: String,
    #[prost(string, tag = "2")]
    resource_name: String,
    #[prost(string, tag = "3")]
    owner: String,
    #[prost(string, tag = "4")]
    description: String,
}

#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[derive(Clone, PartialEq, Message)]
struct Help {
    #[prost(message, repeated, tag = "1")]
    links: Vec<Link>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(string, tag = "2")]
    url: String,
}

/// The details of a status in the form that the HTTP API gives them.
#[must_use]
pub fn status_details(status: &tonic::Status) -> Vec<Value> {
    if status.details().is_empty() {
        return Vec::new();
    }
    let whole = RpcStatus::decode(status.details()).unwrap();
    assert_eq!(whole.code, status.code() as i32, "the code in the details is that of the call");
    assert_eq!(whole.message, status.message(), "the message in the details is that of the call");
    whole.details.iter().map(detail).collect()
}

fn detail(any: &Any) -> Value {
    let bytes = any.value.as_ref();
    let mut value = match any.type_url.rsplit('/').next().unwrap_or_default() {
        "google.rpc.ErrorInfo" => {
            let info = ErrorInfo::decode(bytes).unwrap();
            json!({"reason": info.reason, "domain": info.domain, "metadata": info.metadata})
        }
        "google.rpc.ResourceInfo" => {
            let info = ResourceInfo::decode(bytes).unwrap();
            json!({
                "resource_type": info.resource_type, "resource_name": info.resource_name,
                "owner": info.owner, "description": info.description,
            })
        }
        "google.rpc.BadRequest" => {
            let bad = BadRequest::decode(bytes).unwrap();
            let fields = bad.field_violations.iter();
            json!({"field_violations": fields
                .map(|v| json!({"field": v.field, "description": v.description}))
                .collect::<Vec<_>>()})
        }
        "google.rpc.Help" => {
            let help = Help::decode(bytes).unwrap();
            let links = help.links.iter();
            json!({"links": links
                .map(|l| json!({"url": l.url, "description": l.description}))
                .collect::<Vec<_>>()})
        }
        _ => json!({"bytes": bytes.len()}),
    };
    value["@type"] = Value::from(any.type_url.clone());
    value
}
