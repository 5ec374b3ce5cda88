//! `/v1.0-mecha/`: what the incumbent does not have.

use http::{Method, StatusCode};
use mecha_core::{ApiError, Core};
use serde_json::json;

use super::respond::{Answer, json_value, text};

pub(super) fn answer(core: &Core, method: &Method, rest: &str) -> Result<Answer, ApiError> {
    match rest {
        "phase" if method == Method::GET => {
            Ok(json_value(StatusCode::OK, &json!({"phase": core.health.phase().as_str()})))
        }
        _ => Ok(text(StatusCode::NOT_FOUND, "404 page not found\n")),
    }
}
