//! The content types that decide how `data` is carried.

/// Type of an envelope.
pub(super) const CLOUD_EVENT: &str = "application/cloudevents+json";
/// Type of bytes without a meaning.
pub(super) const OCTET_STREAM: &str = "application/octet-stream";
/// Type of data that names none.
pub(super) const TEXT: &str = "text/plain";

/// Whether `data` is a JSON value. Structured suffixes do not count, as with the incumbent.
pub(super) fn is_json(content_type: &str) -> bool {
    base(content_type).eq_ignore_ascii_case("application/json")
}

/// Whether the body already is a CloudEvent.
pub(super) fn is_cloud_event(content_type: &str) -> bool {
    base(content_type).eq_ignore_ascii_case(CLOUD_EVENT)
}

/// Whether `data` is bytes, carried as base64.
pub(super) fn is_binary(content_type: &str) -> bool {
    let base = base(content_type);
    base.eq_ignore_ascii_case(OCTET_STREAM) || base.eq_ignore_ascii_case("application/cloudevents+protobuf")
}

/// The type without its parameters.
fn base(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_matter() {
        assert!(is_json("Application/JSON ; charset=utf-8"));
        assert!(!is_json("application/vnd.shop+json"));
        assert!(is_cloud_event("application/cloudevents+json;charset=utf-8"));
        assert!(is_binary("application/octet-stream") && is_binary("application/cloudevents+protobuf"));
        assert!(!is_binary(TEXT));
    }
}
