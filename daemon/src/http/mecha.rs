//! `/v1.0-mecha/`: what the incumbent does not have.

use http::{Method, StatusCode};
use mecha_core::{ApiError, Core};
use serde_json::json;

use super::respond::{Answer, json_value, text};

pub(super) fn answer(core: &Core, method: &Method, rest: &str) -> Result<Answer, ApiError> {
    match rest {
        "phase" if method == Method::GET => {
            let (degraded, refused) = (core.store.degraded(), core.swaps.refused());
            let mut document = json!({"phase": core.health.phase().as_str(), "degraded": degraded, "refused": refused});
            if let Some(from) = core.metadata.documents() {
                document["documents"] = json!(from);
            }
            Ok(json_value(StatusCode::OK, &document))
        }
        "swaps" if method == Method::GET => {
            let (generation, swaps) = (core.swaps.generation(), core.swaps.list());
            let refused = core.swaps.refused();
            let document = json!({"generation": generation, "swaps": swaps, "refused": refused});
            Ok(json_value(StatusCode::OK, &document))
        }
        _ => Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}
