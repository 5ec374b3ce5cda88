//! `mecha publish`.

use super::target;
use crate::args::PublishArgs;
use crate::client::{self, Call};
use crate::error::{CliError, OK, Result};
use crate::output;
use http::{HeaderValue, Method, header};
use serde_json::{Map, Value};

pub(crate) async fn run(args: &PublishArgs) -> Result<u8> {
    let endpoint = target::endpoint(&args.through, Some(&args.publish_app_id))?;
    let path = format!(
        "/v1.0/publish/{}/{}{}",
        client::segment(&args.pubsub),
        client::segment(&args.topic),
        query(args.metadata.as_deref())?
    );
    let body = args.data.read()?;
    let content_type = match &args.content_type {
        Some(named) => HeaderValue::try_from(named)
            .map_err(|_| CliError::usage("content-type", format!("{named:?} is no content type")))?,
        None => HeaderValue::from_static(target::content_type(&body)),
    };
    let call = Call::new(Method::POST, path).header(header::CONTENT_TYPE, content_type).body(body);
    call.send(&endpoint, args.through.timeout).await?.ok()?;
    output::write(format!("published to {} of {}\n", args.topic, args.pubsub).as_bytes())?;
    Ok(OK)
}

/// Request metadata travels in the query.
fn query(metadata: Option<&str>) -> Result<String> {
    let Some(text) = metadata else { return Ok(String::new()) };
    let metadata: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
        CliError::usage("metadata", format!("--metadata is no JSON object: {error}"))
            .hint("for example --metadata '{\"ttlInSeconds\":\"60\"}'")
    })?;
    let mut query = String::new();
    for (key, value) in metadata {
        let value = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(&format!("metadata.{}={}", client::segment(&key), client::segment(&value)));
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn metadata_becomes_a_query() {
        assert_eq!(query(None).unwrap(), "");
        assert_eq!(
            query(Some(r#"{"ttlInSeconds": 60, "rawPayload": "a&b"}"#)).unwrap(),
            "?metadata.rawPayload=a%26b&metadata.ttlInSeconds=60"
        );
        assert!(query(Some("[1]")).is_err());
    }
}
