//! Service invocation through two sidecars, against the direct call and two bare proxies.

use std::io;
use std::net::SocketAddr;
use std::path::Path as Folder;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{Contest, Effort, Kind, Path, component, contest, grpc_frame, json_value};
use crate::load::{Pace, Shot, Wire};
use crate::process::{Memory, memory};
use crate::serve::{start_app, start_proxy};
use crate::sidecar::{Binary, Setup, Sidecar};

/// Bodies of requests and answers.
const SIZES: [(usize, &str); 2] = [(1024, "1 KB"), (64 * 1024, "64 KB")];
/// Paces, and requests under way at most.
const LOADS: [(Pace, usize); 6] = [
    (Pace::Rate(1000), 16),
    (Pace::Rate(5000), 16),
    (Pace::Saturation, 16),
    (Pace::Rate(1000), 256),
    (Pace::Rate(5000), 256),
    (Pace::Saturation, 256),
];

/// Memory of the calling sidecar after the load.
pub(crate) type AfterLoad = (String, Memory);

/// All HTTP contests, and the memory the callers are left with.
///
/// # Errors
/// A binary that does not start, or a path that does not answer.
pub(crate) fn http(binaries: &[Binary], folder: &Folder, effort: Effort) -> io::Result<(Vec<Contest>, Vec<AfterLoad>)> {
    let app = start_app(Wire::Http1, 0)?;
    let far = start_proxy(Wire::Http1, app.address)?;
    let near = start_proxy(Wire::Http1, far.address)?;
    let pairs = pairs(binaries, folder, (app.address, "http"), "http")?;
    let mut out = Vec::new();
    for (bytes, shown) in SIZES {
        let shot = |to: SocketAddr, path: &str| http_shot(to, path, bytes);
        let mut paths = vec![
            Path { name: "direct".to_owned(), shot: shot(app.address, "/echo"), pids: Vec::new() },
            Path {
                name: "two bare proxies".to_owned(),
                shot: shot(near.address, "/echo"),
                pids: vec![near.pid(), far.pid()],
            },
        ];
        for (binary, (caller, callee)) in binaries.iter().zip(&pairs) {
            paths.push(Path {
                name: binary.name.clone(),
                shot: shot(caller.http, "/v1.0/invoke/http-callee/method/echo"),
                pids: vec![caller.pid(), callee.pid()],
            });
        }
        for (pace, connections) in LOADS {
            out.push(contest(&format!("HTTP invoke, {shown}"), Kind::Hops, pace, connections, &paths, effort)?);
        }
    }
    let after = binaries.iter().zip(&pairs).map(|(b, (caller, _))| (b.name.clone(), memory(caller.pid()))).collect();
    Ok((out, after))
}

/// The same over gRPC proxying.
///
/// # Errors
/// A binary that does not start, or a path that does not answer.
pub(crate) fn grpc(binaries: &[Binary], folder: &Folder, effort: Effort) -> io::Result<Vec<Contest>> {
    let app = start_app(Wire::Grpc, 0)?;
    let far = start_proxy(Wire::Grpc, app.address)?;
    let near = start_proxy(Wire::Grpc, far.address)?;
    let pairs = pairs(binaries, folder, (app.address, "grpc"), "grpc")?;
    let mut out = Vec::new();
    for (bytes, shown) in SIZES {
        let shot = |to: SocketAddr| grpc_shot(to, bytes);
        let mut paths = vec![
            Path { name: "direct".to_owned(), shot: shot(app.address), pids: Vec::new() },
            Path { name: "two bare proxies".to_owned(), shot: shot(near.address), pids: vec![near.pid(), far.pid()] },
        ];
        for (binary, (caller, callee)) in binaries.iter().zip(&pairs) {
            let pids = vec![caller.pid(), callee.pid()];
            paths.push(Path { name: binary.name.clone(), shot: shot(caller.grpc), pids });
        }
        for (pace, streams) in LOADS {
            out.push(contest(&format!("gRPC invoke, {shown}"), Kind::Hops, pace, streams, &paths, effort)?);
        }
    }
    Ok(out)
}

/// A caller and a callee of each binary; `prefix` tells their ids from those of other scenarios.
pub(super) fn pairs(
    binaries: &[Binary],
    folder: &Folder,
    app: (SocketAddr, &str),
    prefix: &str,
) -> io::Result<Vec<(Sidecar, Sidecar)>> {
    let documents = [("state.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")]))];
    let each = |binary: &Binary| {
        let start = |role: &str, app| {
            let id = format!("{prefix}-{role}");
            binary.start(folder, &Setup { app_id: &id, app, documents: &documents })
        };
        let callee = start("callee", Some(app))?;
        Ok((start("caller", None)?, callee))
    };
    binaries.iter().map(each).collect()
}

pub(crate) fn http_shot(to: SocketAddr, path: &str, bytes: usize) -> Shot {
    Shot {
        to,
        wire: Wire::Http1,
        method: Method::POST,
        path: path.to_owned(),
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: json_value(bytes),
        commands: Vec::new(),
        expect: StatusCode::OK,
        least_bytes: bytes,
    }
}

pub(crate) fn grpc_shot(to: SocketAddr, bytes: usize) -> Shot {
    Shot {
        to,
        wire: Wire::Grpc,
        method: Method::POST,
        path: "/bench.Echo/Echo".to_owned(),
        headers: vec![(HeaderName::from_static("dapr-app-id"), HeaderValue::from_static("grpc-callee"))],
        body: grpc_frame(&json_value(bytes)),
        commands: Vec::new(),
        expect: StatusCode::OK,
        least_bytes: bytes,
    }
}
