//! Tables of the daemon, compiled in from its sources.
//!
//! xtask must not link the daemon: the daemon needs the generated protobuf code, and xtask has to work
//! when that does not compile. These files need nothing of the daemon but themselves.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "written for the daemon; the docs read a part of them")]

#[path = "../../../../daemon/src/cli/flags.rs"]
pub(super) mod flags;
#[path = "../../../../daemon/src/http/routes.rs"]
mod routes_source;
#[path = "../../../../daemon/src/wire.rs"]
pub(super) mod wire;

use mecha_core::unbuilt::Unbuilt;

/// The unbuilt API that answers `method path`, if one does.
pub(super) fn unbuilt_at(method: &http::Method, path: &str) -> Option<Unbuilt> {
    match routes_source::find(method, path) {
        routes_source::Match::Known(routes_source::Matched {
            route: routes_source::Route::Unbuilt { what, .. },
            ..
        }) => Some(what),
        _ => None,
    }
}
