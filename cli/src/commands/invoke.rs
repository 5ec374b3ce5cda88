//! `mecha invoke`.

use super::target;
use crate::args::InvokeArgs;
use crate::client::{self, Call};
use crate::error::{CliError, OK, Result};
use crate::output;
use http::{HeaderName, HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, CONTROLS};
use std::io::IsTerminal as _;

/// What a request line cannot hold; everything else of the method stays as it is written.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'\\')
    .add(b'^')
    .add(b'|')
    .add(b'#');

pub(crate) async fn run(args: &InvokeArgs) -> Result<u8> {
    let endpoint = target::endpoint(&args.through, Some(&args.app_id))?;
    let method = Method::from_bytes(args.verb.to_uppercase().as_bytes())
        .map_err(|_| CliError::usage("verb", format!("{:?} is no HTTP verb", args.verb)))?;
    let body = args.data.read()?;
    let mut call = Call::new(method, path(&args.app_id, &args.method));
    let mut typed = false;
    for line in &args.headers {
        let (name, value) = header(line)?;
        typed |= name == header::CONTENT_TYPE;
        call = call.header(name, value);
    }
    if !body.is_empty() && !typed {
        call = call.header(header::CONTENT_TYPE, HeaderValue::from_static(target::content_type(&body)));
    }
    let response = call.body(body).stream(&endpoint, args.through.timeout).await?;
    let status = response.status();
    let mut body = response.into_body();
    let mut last = None;
    loop {
        let next = tokio::time::timeout(args.through.timeout, body.frame()).await;
        let late = |_| CliError::new("timeout", format!("the answer stopped for {:?}", args.through.timeout));
        let Some(frame) = next.map_err(late)? else { break };
        let frame = frame.map_err(|error| CliError::new("sidecar-answer", format!("the answer broke off: {error}")))?;
        if let Some(data) = frame.data_ref() {
            last = data.last().copied().or(last);
            output::write(data)?;
        }
    }
    if last.is_some_and(|byte| byte != b'\n') && std::io::stdout().is_terminal() {
        output::write(b"\n")?;
    }
    if status.is_client_error() || status.is_server_error() {
        return Err(CliError::new("invoke-failed", format!("{} answered {status}", args.app_id)));
    }
    Ok(OK)
}

fn path(app_id: &str, method: &str) -> String {
    let method = percent_encoding::utf8_percent_encode(method.trim_start_matches('/'), NOT_IN_PATHS);
    format!("/v1.0/invoke/{}/method/{method}", client::segment(app_id))
}

fn header(line: &str) -> Result<(HeaderName, HeaderValue)> {
    let wrong = || CliError::usage("header", format!("{line:?} is no header; write 'name: value'"));
    let (name, value) = line.split_once(':').ok_or_else(wrong)?;
    Ok((name.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_method_keeps_its_path_and_query() {
        assert_eq!(path("orders", "/a/b?x=1&y=%20"), "/v1.0/invoke/orders/method/a/b?x=1&y=%20");
        assert_eq!(path("a/b", "x y"), "/v1.0/invoke/a%2Fb/method/x%20y");
        assert!(path("a", "x\r\nhost: evil").contains("%0D%0A"));
    }

    #[test]
    fn headers_have_a_name_and_a_value() {
        assert_eq!(header("X-Tenant: blue").unwrap(), ("x-tenant".parse().unwrap(), "blue".parse().unwrap()));
        assert!(header("no colon").is_err() && header("a b: c").is_err() && header("a: b\nc").is_err());
    }
}
