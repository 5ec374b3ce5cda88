use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A server that answers every connection with the same bytes and keeps what it was sent.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(answer: impl Into<Vec<u8>>) -> Server {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let length = loop {
                if socket.read_buf(&mut request).await.unwrap() == 0 {
                    break 0;
                }
                let text = String::from_utf8_lossy(&request);
                if let Some(end) = text.find("\r\n\r\n") {
                    let length = text.to_ascii_lowercase();
                    let length =
                        length.split("content-length: ").nth(1).and_then(|l| l.split("\r\n").next()?.parse().ok());
                    break end + 4 + length.unwrap_or(0);
                }
            };
            while request.len() < length && socket.read_buf(&mut request).await.unwrap() > 0 {}
            log.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
            socket.write_all(&answer).await.unwrap();
            if answer.is_empty() {
                // Says nothing and stays.
                std::future::pending::<()>().await;
            }
        }
    });
    Server { port, seen, task }
}

impl Server {
    fn request(&self) -> String {
        self.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }

    async fn binding(&self, extra: &[(&str, &str)]) -> Arc<dyn OutputBinding> {
        build(&format!("http://127.0.0.1:{}/base?k=v", self.port), extra).await.unwrap()
    }
}

async fn build(url: &str, extra: &[(&str, &str)]) -> Result<Arc<dyn OutputBinding>> {
    let mut md: Metadata = extra.iter().copied().collect();
    md.insert("url", url);
    prepare(&md, "v1").unwrap().build(&BuildCx::for_app("app", "web", "/nowhere")).await
}

async fn call(
    binding: &Arc<dyn OutputBinding>,
    operation: &str,
    data: &'static str,
    md: &[(&str, &str)],
) -> Result<Reply> {
    let metadata: Metadata = md.iter().copied().collect();
    binding.invoke(Invoke { operation, data: Bytes::from_static(data.as_bytes()), metadata: &metadata }).await
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_call_has_the_documented_method_headers_and_answer() {
    let server =
        serve(answer("200 OK", "content-type: text/plain\r\nx-a: 1\r\nx-a: 2\r\nstatus: odd\r\n", "hello")).await;
    let binding = server.binding(&[]).await;
    let md = [
        ("path", "/x"),
        ("X-Custom", "c"),
        ("lower", "no"),
        ("traceparent", "00-1"),
        ("Content-Length", "9"),
        ("Host", "evil"),
    ];
    let reply = call(&binding, "create", "{}", &md).await.unwrap();
    let request = server.request();
    assert!(request.starts_with("POST /base/x?k=v HTTP/1.1\r\n"), "{request}");
    for header in [
        "Content-Type: application/json; charset=utf-8\r\n",
        "Accept: application/json; charset=utf-8\r\n",
        "X-Custom: c\r\n",
        "Traceparent: 00-1\r\n",
        "Content-Length: 2\r\n",
        "User-Agent: mecha/",
    ] {
        assert!(request.contains(header), "{header} is missing in {request}");
    }
    assert!(request.ends_with("\r\n\r\n{}"));
    assert!(!request.contains("evil") && !request.contains("Lower"));
    assert_eq!(reply.data.unwrap(), "hello");
    assert_eq!(reply.content_type.as_deref(), Some("text/plain"));
    for (key, value) in [("statusCode", "200"), ("status", "200 OK"), ("Content-Type", "text/plain"), ("X-A", "1, 2")] {
        assert_eq!(reply.metadata.iter().find(|(k, _)| *k == key), Some((key, value)));
    }
}

#[tokio::test]
async fn reading_operations_send_no_body() {
    let server = serve(answer("200 OK", "", "")).await;
    let binding = server.binding(&[]).await;
    for operation in ["get", "delete", "options", "trace", "head"] {
        let _ = call(&binding, operation, "ignored", &[]).await;
        let request = server.request();
        assert!(request.starts_with(&operation.to_uppercase()), "{request}");
        assert!(!request.contains("ignored") && !request.contains("Content-Type"), "{request}");
    }
}

#[tokio::test]
async fn an_answer_outside_2xx_is_an_error_with_its_metadata() {
    let server = serve(answer("404 Not Found", "x-why: gone\r\n", "body")).await;
    let binding = server.binding(&[]).await;
    let e = call(&binding, "get", "", &[]).await.unwrap_err();
    assert_eq!(e.message(), "received status code 404");
    assert_eq!(e.details()["statusCode"], "404");
    assert_eq!(e.details()["X-Why"], "gone");
    assert_eq!(e.retry(), Retry::Never);
    let reply = call(&binding, "get", "", &[("errorIfNot2XX", "false")]).await.unwrap();
    assert_eq!((reply.metadata.get("statusCode"), reply.data.unwrap()), (Some("404"), Bytes::from("body")));
    let lenient = server.binding(&[("errorIfNot2XX", "false")]).await;
    assert!(call(&lenient, "get", "", &[]).await.is_ok());
    assert!(call(&lenient, "get", "", &[("errorIfNot2XX", "true")]).await.is_err());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = serve(answer("302 Found", "location: http://169.254.169.254/latest\r\n", "")).await;
    let binding = server.binding(&[]).await;
    let e = call(&binding, "get", "", &[]).await.unwrap_err();
    assert_eq!(e.details()["statusCode"], "302");
    assert_eq!(server.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_security_header_belongs_to_the_component() {
    let server = serve(answer("200 OK", "", "")).await;
    let binding = server.binding(&[("securityToken", "t0ken"), ("securityTokenHeader", "X-Auth")]).await;
    call(&binding, "get", "", &[("X-Auth", "forged"), ("X-AUTH", "forged")]).await.unwrap();
    let request = server.request();
    assert!(request.contains("X-Auth: t0ken\r\n") && !request.contains("forged"), "{request}");
    assert!(!format!("{binding:?}").contains("t0ken"));
}

#[tokio::test]
async fn hostile_metadata_never_leaves_the_sidecar() {
    let server = serve(answer("200 OK", "", "")).await;
    let binding = server.binding(&[]).await;
    for md in [
        ("path", "../admin"),
        ("path", "%2e%2e/admin"),
        ("path", "a\r\nX-Evil: 1"),
        ("X-A", "1\r\nX-Evil: 1"),
        ("X-A\r\nX-Evil", "1"),
        ("X A", "1"),
        ("traceparent", "a\nb"),
    ] {
        let e = call(&binding, "get", "", &[md]).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{md:?}");
    }
    assert!(server.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_over_the_limit_is_an_error() {
    let server = serve(answer("200 OK", "", "12345")).await;
    let small = server.binding(&[("maxResponseBodySize", "4")]).await;
    assert_eq!(call(&small, "get", "", &[]).await.unwrap_err().kind(), ErrorKind::TooLarge);
    for enough in ["5", "0"] {
        let binding = server.binding(&[("maxResponseBodySize", enough)]).await;
        assert_eq!(call(&binding, "get", "", &[]).await.unwrap().data.unwrap(), "12345");
    }
}

#[tokio::test]
async fn failures_say_whether_trying_again_can_help() {
    let silent = serve("").await;
    let binding = silent.binding(&[("responseTimeout", "50ms")]).await;
    let e = call(&binding, "post", "x", &[]).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, Retry::IfIdempotent));

    let cut = serve("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let binding = cut.binding(&[("responseTimeout", "5s")]).await;
    let e = call(&binding, "post", "x", &[]).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::IfIdempotent));

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let binding = build(&format!("http://{free}"), &[]).await.unwrap();
    let e = call(&binding, "post", "x", &[]).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Always));
    assert!(e.to_string().to_lowercase().contains("refused"), "{e}");
}

#[test]
fn every_mistake_in_the_component_is_reported_at_once() {
    let md: Metadata = [
        ("url", "ftp://user:hunter2@h"),
        ("responseTimeout", "soon"),
        ("maxResponseBodySize", "-1"),
        ("MTLSClientCert", "x"),
        ("MTLSRenegotiation", "Often"),
        ("securityToken", "a\nb"),
        ("securityTokenHeader", "a b"),
    ]
    .into_iter()
    .collect();
    let e = prepare(&md, "v1").err().unwrap();
    let fields: Vec<&str> = e.list().iter().map(|f| f.field.as_str()).collect();
    let want = [
        "url",
        "responseTimeout",
        "maxResponseBodySize",
        "MTLSClientKey",
        "MTLSRenegotiation",
        "securityTokenHeader",
        "securityToken",
    ];
    assert_eq!(fields, want);
    assert!(!e.to_string().contains("hunter2"), "{e}");
}

#[tokio::test]
async fn unusable_certificates_are_told_by_their_key() {
    for (extra, want) in [
        (vec![("MTLSRootCA", "/no/such/file")], "MTLSRootCA is neither PEM text"),
        (vec![("MTLSRootCA", "-----BEGIN NOTHING-----")], "MTLSRootCA holds no certificate"),
        (vec![("MTLSClientCert", "-----BEGIN X"), ("MTLSClientKey", "-----BEGIN hunter2")], "MTLSClientCert holds no"),
    ] {
        let e = build("https://localhost", &extra).await.unwrap_err();
        assert!(e.to_string().contains(want), "{e}");
        assert!(!e.to_string().contains("hunter2"), "{e}");
    }
}
