//! Stands in for mechad in the tests of the CLI: serves health, and tells what it was asked, in the simplest way.
//!
//! Behaviour is chosen by `FAKE_SIDECAR`: `crash` (exit 7 before it is ready), `silent` (never ready), `die`
//! (exit 9 a moment after the app asked for `/die`), empty (works).

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--version") {
        println!("1.18.0-fake");
        return;
    }
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let mode = std::env::var("FAKE_SIDECAR").unwrap_or_default();
    println!("time=\"2026-01-01T00:00:00Z\" level=info msg=\"arguments: {}\"", args.join(" "));
    for name in ["MECHA_HOME", "MECHA_NAME_REGISTRY", "DAPR_HOST_IP"] {
        println!("time=\"2026-01-01T00:00:00Z\" level=info msg=\"{name}={}\"", std::env::var(name).unwrap_or_default());
    }
    println!("time=\"2026-01-01T00:00:00Z\" level=warning msg=\"a warning of the sidecar\"");
    if mode == "crash" {
        println!("time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"component X is broken\"");
        std::process::exit(7);
    }
    let port = value("--dapr-http-port").expect("--dapr-http-port");
    let app_id = value("--app-id").expect("--app-id");
    let listener = match TcpListener::bind(format!("127.0.0.1:{port}")) {
        Ok(listener) => listener,
        Err(error) => {
            println!("level=fatal msg=\"{error}\"");
            std::process::exit(1);
        }
    };
    for stream in listener.incoming().flatten() {
        let (mode, app_id) = (mode.clone(), app_id.clone());
        std::thread::spawn(move || answer(stream, &mode, &app_id));
    }
}

fn answer(stream: TcpStream, mode: &str, app_id: &str) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let request = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let (mut length, mut headers) = (0, Vec::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim_end().is_empty() {
            break;
        }
        let header = line.trim_end().to_ascii_lowercase();
        if let Some(text) = header.strip_prefix("content-length: ") {
            length = text.parse().unwrap_or(0);
        }
        headers.push(header);
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    let header = |name: &str| headers.iter().find_map(|header| header.strip_prefix(name)).unwrap_or("").to_owned();
    let (status, extra, answer) = match request.as_str() {
        "GET /v1.0/healthz/outbound" if mode == "silent" => (
            500,
            "",
            r#"{"errorCode":"ERR_OUTBOUND_HEALTH_NOT_READY","message":"dapr outbound is not ready"}"#.to_owned(),
        ),
        "GET /v1.0/healthz/outbound" => (204, "", String::new()),
        "GET /die" => {
            println!("time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"the sidecar dies\"");
            std::process::exit(9);
        }
        "POST /v1.0/shutdown" => {
            println!("time=\"2026-01-01T00:00:00Z\" level=info msg=\"Shutdown requested via API\"");
            std::process::exit(0);
        }
        "GET /v1.0/metadata" => (
            200,
            "",
            format!(
                r#"{{"id":"{app_id}","runtimeVersion":"1.18.0","components":[{{"name":"statestore","type":"state.sqlite","version":"v1","capabilities":["ETAG","TTL"]}}]}}"#
            ),
        ),
        "GET /v1.0/state/statestore/known" => (200, "etag: \"7\"\r\n", r#"{"a":1}"#.to_owned()),
        "GET /v1.0/state/statestore/unknown" => (204, "", String::new()),
        "GET /v1.0/state/nowhere/known" => (
            400,
            "",
            r#"{"errorCode":"ERR_STATE_STORE_NOT_FOUND","message":"state store nowhere is not found"}"#.to_owned(),
        ),
        _ => (
            200,
            "",
            format!(
                "{request} content-type={} dapr-api-token={} if-match={} x-tenant={} body={body}\n",
                header("content-type: "),
                header("dapr-api-token: "),
                header("if-match: "),
                header("x-tenant: ")
            ),
        ),
    };
    let mut stream = stream;
    // A client that has gone needs no answer.
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{extra}\r\n{answer}",
        answer.len()
    );
}
