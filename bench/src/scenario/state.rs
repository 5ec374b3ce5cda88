//! State get, set and transactions, per store, beside what answers the same bytes and does nothing
//! else: a bare handler, and for Redis a client that talks to the server itself.

use std::io;
use std::net::SocketAddr;
use std::path::Path as Folder;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use mecha_proto::runtime::GetStateRequest;
use prost::Message as _;

use super::{Contest, Effort, Kind, Path, contest, grpc_frame, json_value};
use crate::backends::Backends;
use crate::load::{Pace, Shot, Wire};
use crate::serve::{HANDLER_KEY, Helper, start_app, start_redis_handler};
use crate::sidecar::{Binary, Setup, Sidecar, request};

pub(super) const VALUE_BYTES: usize = 1024;
/// Key of the direct Redis client; no sidecar writes it.
const DIRECT_KEY: &str = "bench-direct";

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Get,
    Set,
    /// Two writes, all or nothing.
    Transact,
}

/// All state contests, HTTP and gRPC.
///
/// # Errors
/// A binary that does not start, or a path that does not answer.
pub(crate) fn run(
    binaries: &[Binary],
    backends: &Backends,
    folder: &Folder,
    effort: Effort,
) -> io::Result<Vec<Contest>> {
    let documents = backends.stores();
    let setup = Setup { app_id: "state", app: None, documents: &documents };
    let sidecars: Vec<Sidecar> = binaries.iter().map(|b| b.start(folder, &setup)).collect::<io::Result<_>>()?;
    let stores: Vec<&str> = documents.iter().filter_map(|(file, _)| file.strip_suffix(".yaml")).collect();
    for (sidecar, store) in sidecars.iter().flat_map(|s| stores.iter().map(move |store| (s, store))) {
        let (status, text) = request(sidecar.http, "POST", &format!("/v1.0/state/{store}"), &save())?;
        if status != 204 {
            return Err(io::Error::other(format!("saving the first value in {store}: {status} {text}")));
        }
    }
    let bare = start_app(Wire::Http1, VALUE_BYTES)?;
    let redis = backends.redis_address()?;
    let handler = redis.map(start_redis_handler).transpose()?;
    if let Some(redis) = &backends.redis {
        let value = json_value(VALUE_BYTES);
        let value = String::from_utf8_lossy(&value);
        redis.command(&["MSET", DIRECT_KEY, &value, HANDLER_KEY, &value]);
    }
    let mut out = Vec::new();
    for store in stores {
        for work in [Work::Get, Work::Set, Work::Transact] {
            // The first path is the one ratios are made to.
            let mut paths = Vec::new();
            let mut kind = Kind::Handler;
            if let (Some(address), Some(handler), "redis") = (redis, &handler, store) {
                kind = Kind::Client;
                paths.push(Path { name: "direct client".to_owned(), shot: direct(address, work), pids: Vec::new() });
                let shot = shot(handler.address, store, work);
                paths.push(Path { name: "bare hyper + client".to_owned(), shot, pids: vec![handler.pid()] });
            } else {
                let shot = shot(bare.address, store, work);
                paths.push(Path { name: "bare hyper".to_owned(), shot, pids: vec![bare.pid()] });
            }
            let own = |s: &Sidecar| shot(s.http, store, work);
            paths.extend(binaries.iter().zip(&sidecars).map(|(binary, sidecar)| Path {
                name: binary.name.clone(),
                shot: own(sidecar),
                pids: vec![sidecar.pid()],
            }));
            let shown = match work {
                Work::Get => "get",
                Work::Set => "set",
                Work::Transact => "transaction of two",
            };
            for (pace, connections) in loads(store) {
                out.push(contest(&format!("state {shown}, {store}"), kind, pace, connections, &paths, effort)?);
            }
        }
    }
    out.extend(grpc(binaries, &sidecars, effort)?);
    Ok(out)
}

fn loads(store: &str) -> Vec<(Pace, usize)> {
    let mut loads = vec![(Pace::Rate(1000), 16), (Pace::Saturation, 16)];
    if store == "memory" {
        loads.extend([(Pace::Rate(5000), 16), (Pace::Saturation, 256)]);
    }
    loads
}

fn grpc(binaries: &[Binary], sidecars: &[Sidecar], effort: Effort) -> io::Result<Vec<Contest>> {
    let echo: Helper = start_app(Wire::Grpc, VALUE_BYTES)?;
    let mut paths =
        vec![Path { name: "bare gRPC echo".to_owned(), shot: grpc_echo(echo.address), pids: vec![echo.pid()] }];
    for (binary, sidecar) in binaries.iter().zip(sidecars) {
        paths.push(Path { name: binary.name.clone(), shot: grpc_get(sidecar.grpc), pids: vec![sidecar.pid()] });
    }
    let title = "state get over gRPC, memory";
    let loads = [(Pace::Rate(1000), 16), (Pace::Saturation, 16)];
    loads.into_iter().map(|(pace, streams)| contest(title, Kind::Handler, pace, streams, &paths, effort)).collect()
}

/// The request that saves the value.
fn save() -> String {
    format!("[{{\"key\":\"k\",\"value\":{}}}]", String::from_utf8_lossy(&json_value(VALUE_BYTES)))
}

/// Everything that is asked of a store; writes come first.
pub(crate) fn shots(to: SocketAddr, store: &str) -> [Shot; 3] {
    [Work::Set, Work::Transact, Work::Get].map(|work| shot(to, store, work))
}

fn shot(to: SocketAddr, store: &str, work: Work) -> Shot {
    match work {
        Work::Get => get(to, store),
        Work::Set => posted(to, format!("/v1.0/state/{store}"), save()),
        Work::Transact => {
            let value = json_value(VALUE_BYTES);
            let value = String::from_utf8_lossy(&value);
            let write =
                |key| format!("{{\"operation\":\"upsert\",\"request\":{{\"key\":\"{key}\",\"value\":{value}}}}}");
            let body = format!("{{\"operations\":[{},{}]}}", write("k"), write("l"));
            posted(to, format!("/v1.0/state/{store}/transaction"), body)
        }
    }
}

pub(super) fn get(to: SocketAddr, store: &str) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::GET,
        path: format!("/v1.0/state/{store}/k"),
        headers: Vec::new(),
        body: Bytes::new(),
        commands: Vec::new(),
        expect: StatusCode::OK,
        least_bytes: VALUE_BYTES,
    }
}

fn posted(to: SocketAddr, path: String, body: String) -> Shot {
    Shot {
        method: Method::POST,
        path,
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: Bytes::from(body),
        expect: StatusCode::NO_CONTENT,
        least_bytes: 0,
        ..get(to, "")
    }
}

/// The same work as a program that needs no sidecar would have it done.
fn direct(to: SocketAddr, work: Work) -> Shot {
    let value = json_value(VALUE_BYTES);
    let word = |text: &'static str| Bytes::from_static(text.as_bytes());
    let set = |key| vec![word("SET"), word(key), value.clone()];
    let commands = match work {
        Work::Get => vec![vec![word("GET"), word(DIRECT_KEY)]],
        Work::Set => vec![set(DIRECT_KEY)],
        Work::Transact => vec![set(DIRECT_KEY), set("bench-direct-2")],
    };
    let least_bytes = if work == Work::Get { VALUE_BYTES } else { 0 };
    Shot { wire: Wire::Redis, commands, least_bytes, ..get(to, "") }
}

pub(crate) fn grpc_get(to: SocketAddr) -> Shot {
    let ask = GetStateRequest { store_name: "memory".to_owned(), key: "k".to_owned(), ..Default::default() };
    Shot {
        wire: Wire::Grpc,
        method: Method::POST,
        path: "/dapr.proto.runtime.v1.Dapr/GetState".to_owned(),
        body: grpc_frame(&ask.encode_to_vec()),
        ..get(to, "")
    }
}

/// The same number of bytes back, handled by nothing but hyper.
fn grpc_echo(to: SocketAddr) -> Shot {
    let message = json_value(VALUE_BYTES);
    Shot { path: "/bench.Echo/Echo".to_owned(), body: grpc_frame(&message), ..grpc_get(to) }
}
