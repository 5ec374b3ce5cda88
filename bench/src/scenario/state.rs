//! State get and set against a bare handler that answers the same bytes.

use std::io;
use std::net::SocketAddr;
use std::path::Path as Folder;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use mecha_proto::runtime::GetStateRequest;
use prost::Message as _;

use super::{Contest, Effort, Kind, Path, component, contest, grpc_frame, json_value};
use crate::load::{Pace, Shot, Wire};
use crate::serve::{Helper, start_app};
use crate::sidecar::{Binary, Setup, Sidecar, request};

const VALUE_BYTES: usize = 1024;

/// All state contests, HTTP and gRPC.
///
/// # Errors
/// A binary that does not start, or a path that does not answer.
pub(crate) fn run(binaries: &[Binary], folder: &Folder, effort: Effort) -> io::Result<Vec<Contest>> {
    let documents = [
        ("memory.yaml", component("memory", "state.in-memory", &[])),
        ("sql.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")])),
    ];
    let setup = Setup { app_id: "state", app: None, documents: &documents };
    let sidecars: Vec<Sidecar> = binaries.iter().map(|b| b.start(folder, &setup)).collect::<io::Result<_>>()?;
    let value = json_value(VALUE_BYTES);
    let save = format!("[{{\"key\":\"k\",\"value\":{}}}]", String::from_utf8_lossy(&value));
    for sidecar in &sidecars {
        for store in ["memory", "sql"] {
            let (status, text) = request(sidecar.http, "POST", &format!("/v1.0/state/{store}"), &save)?;
            if status != 204 {
                return Err(io::Error::other(format!("saving the first value: {status} {text}")));
            }
        }
    }
    let bare = start_app(Wire::Http1, VALUE_BYTES)?;
    let grpc = start_app(Wire::Grpc, VALUE_BYTES)?;
    let mut out = Vec::new();
    for (store, shown) in [("memory", "in memory"), ("sql", "SQLite")] {
        let get = |to| get(to, store);
        let set = |to| set(to, store, &save);
        let loads = [(Pace::Rate(1000), 16), (Pace::Saturation, 16), (Pace::Saturation, 256)];
        for (pace, connections) in loads {
            let gets = paths("bare hyper", &bare, get(bare.address), binaries, &sidecars, |s| get(s.http));
            out.push(contest(&format!("state get, {shown}"), Kind::Handler, pace, connections, &gets, effort)?);
            let sets = paths("bare hyper", &bare, set(bare.address), binaries, &sidecars, |s| set(s.http));
            out.push(contest(&format!("state set, {shown}"), Kind::Handler, pace, connections, &sets, effort)?);
        }
    }
    for (pace, streams) in [(Pace::Rate(1000), 16), (Pace::Saturation, 16)] {
        let reference = grpc_echo(grpc.address);
        let paths = paths("bare gRPC echo", &grpc, reference, binaries, &sidecars, |s| grpc_get(s.grpc));
        out.push(contest("state get over gRPC, in memory", Kind::Handler, pace, streams, &paths, effort)?);
    }
    Ok(out)
}

fn paths(
    name: &str,
    bare: &Helper,
    shot: Shot,
    binaries: &[Binary],
    sidecars: &[Sidecar],
    own: impl Fn(&Sidecar) -> Shot,
) -> Vec<Path> {
    let mut out = vec![Path { name: name.to_owned(), shot, pids: vec![bare.pid()] }];
    for (binary, sidecar) in binaries.iter().zip(sidecars) {
        out.push(Path { name: binary.name.clone(), shot: own(sidecar), pids: vec![sidecar.pid()] });
    }
    out
}

pub(super) fn get(to: SocketAddr, store: &str) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::GET,
        path: format!("/v1.0/state/{store}/k"),
        headers: Vec::new(),
        body: Bytes::new(),
        expect: StatusCode::OK,
        least_bytes: VALUE_BYTES,
    }
}

fn set(to: SocketAddr, store: &str, save: &str) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::POST,
        path: format!("/v1.0/state/{store}"),
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: Bytes::from(save.to_owned()),
        expect: StatusCode::NO_CONTENT,
        least_bytes: 0,
    }
}

fn grpc_get(to: SocketAddr) -> Shot {
    let ask = GetStateRequest { store_name: "memory".to_owned(), key: "k".to_owned(), ..Default::default() };
    Shot {
        to,
        wire: Wire::Grpc,
        method: Method::POST,
        path: "/dapr.proto.runtime.v1.Dapr/GetState".to_owned(),
        headers: Vec::new(),
        body: grpc_frame(&ask.encode_to_vec()),
        expect: StatusCode::OK,
        least_bytes: VALUE_BYTES,
    }
}

/// The same number of bytes back, handled by nothing but hyper.
fn grpc_echo(to: SocketAddr) -> Shot {
    let message = json_value(VALUE_BYTES);
    Shot { path: "/bench.Echo/Echo".to_owned(), body: grpc_frame(&message), ..grpc_get(to) }
}
