//! Which sidecar a command talks to, and the data it sends.

use crate::args::{Data, Through};
use crate::client::Endpoint;
use crate::error::{CliError, Result};
use crate::home::Home;
use crate::registry;
use bytes::Bytes;
use std::io::Read as _;
use std::path::Path;

/// Largest body that is read from a file or standard input.
const MAX_DATA_BYTES: u64 = 256 * 1024 * 1024;

/// The API to talk to: the one the flags name, else that of the running app.
pub(super) fn endpoint(through: &Through, app_id: Option<&str>) -> Result<Endpoint> {
    match (through.dapr_http_port, &through.unix_domain_socket, app_id) {
        (Some(port), _, _) => Ok(Endpoint::Tcp(port)),
        (None, Some(folder), Some(app_id)) => Ok(Endpoint::socket(folder, app_id)),
        (None, None, Some(app_id)) => Endpoint::of(&registry::find(&Home::locate()?, app_id)?),
        (None, _, None) => Err(CliError::usage("app-id", "name the app").hint("--app-id ID, or --dapr-http-port PORT")),
    }
}

impl Data {
    /// The body; empty when none is given.
    pub(super) fn read(&self) -> Result<Bytes> {
        match (&self.data, &self.data_file) {
            (Some(text), _) => Ok(text.clone().into()),
            (None, Some(path)) => read(path),
            (None, None) => Ok(Bytes::new()),
        }
    }
}

/// The content of a file; `-` is standard input.
pub(super) fn read(path: &Path) -> Result<Bytes> {
    let mut data = Vec::new();
    let result = match path == Path::new("-") {
        true => std::io::stdin().take(MAX_DATA_BYTES + 1).read_to_end(&mut data),
        false => std::fs::File::open(path).and_then(|file| file.take(MAX_DATA_BYTES + 1).read_to_end(&mut data)),
    };
    match result {
        Ok(size) if size as u64 > MAX_DATA_BYTES => {
            Err(CliError::usage("data", format!("{} has more than {MAX_DATA_BYTES} bytes", path.display())))
        }
        Ok(_) => Ok(data.into()),
        Err(error) => Err(CliError::usage("data", format!("cannot read {}: {error}", path.display()))),
    }
}

/// Content type of data nobody described: a CloudEvent, JSON, or text.
pub(super) fn content_type(data: &[u8]) -> &'static str {
    match serde_json::from_slice::<serde_json::Value>(data) {
        Ok(value) if ["specversion", "id", "source", "type"].iter().all(|key| value.get(key).is_some()) => {
            "application/cloudevents+json"
        }
        Ok(_) => "application/json",
        Err(_) if std::str::from_utf8(data).is_ok() => "text/plain",
        Err(_) => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::content_type;

    #[test]
    fn data_tells_its_type() {
        assert_eq!(content_type(b"{\"a\":1}"), "application/json");
        assert_eq!(content_type(b"7"), "application/json");
        assert_eq!(content_type(b"hello"), "text/plain");
        assert_eq!(content_type(b"\xff\xfe"), "application/octet-stream");
        assert_eq!(
            content_type(br#"{"specversion":"1.0","id":"1","source":"x","type":"y","data":1}"#),
            "application/cloudevents+json"
        );
    }
}
