//! Content type of answers that state none, as clients of the incumbent know it.

/// Bytes looked at.
const WINDOW: usize = 512;

/// Guesses from the first bytes, by the few rules that matter for answers of apps.
pub(super) fn content_type(data: &[u8]) -> &'static str {
    let data = &data[..data.len().min(WINDOW)];
    let text = data.trim_ascii_start();
    let starts = |prefix: &[u8]| text.len() >= prefix.len() && text[..prefix.len()].eq_ignore_ascii_case(prefix);
    for tag in [&b"<!doctype html"[..], b"<html", b"<head", b"<body", b"<script", b"<!--"] {
        if starts(tag) && text.get(tag.len()).is_none_or(|b| tag == b"<!--" || matches!(b, b' ' | b'>')) {
            return "text/html; charset=utf-8";
        }
    }
    if text.starts_with(b"<?xml") {
        return "text/xml; charset=utf-8";
    }
    for (magic, kind) in [
        (&b"%PDF-"[..], "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
    ] {
        if data.starts_with(magic) {
            return kind;
        }
    }
    let binary = |b: &u8| matches!(b, 0x00..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f);
    if data.iter().any(binary) { "application/octet-stream" } else { "text/plain; charset=utf-8" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (data, kind) in [
            (&b"hello"[..], "text/plain; charset=utf-8"),
            (b"{\"a\":1}", "text/plain; charset=utf-8"),
            ("h\u{e9}".as_bytes(), "text/plain; charset=utf-8"),
            (b" <!DOCTYPE HTML>", "text/html; charset=utf-8"),
            (b"<html>", "text/html; charset=utf-8"),
            (b"<htmlx", "text/plain; charset=utf-8"),
            (b"\x00\x01", "application/octet-stream"),
            (b"\x89PNG\r\n\x1a\n....", "image/png"),
        ] {
            assert_eq!(content_type(data), kind, "{data:?}");
        }
    }
}
