//! Paths: cleaned once, on the escaped form, so that check and dispatch see the same bytes.

use std::borrow::Cow;

/// Resolves `.`, `..` and empty segments of an escaped path and drops one trailing slash.
/// A path that is clean already is handed back as it is.
#[must_use]
pub(super) fn clean(path: &str) -> Cow<'_, str> {
    let needs_work =
        !path.starts_with('/') || path.contains("//") || path.contains("/.") || (path.len() > 1 && path.ends_with('/'));
    if !needs_work {
        return Cow::Borrowed(path);
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    Cow::Owned(format!("/{}", kept.join("/")))
}

/// Query-unescapes one path parameter: `+` is a space, `%XX` a byte. `None` for a bad
/// escape or bytes that are no UTF-8.
#[must_use]
pub(super) fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|b| b == b'%' || b == b'+') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: Option<u8>| char::from(b?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// Query parameters in order, unescaped; parts with a bad escape are left out, as the
/// incumbent does.
pub(super) fn query(text: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    text.unwrap_or_default().split('&').filter(|p| !p.is_empty()).filter_map(|part| {
        let (k, v) = part.split_once('=').unwrap_or((part, ""));
        Some((unescape(k)?, unescape(v)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clean_paths() {
        for (given, want) in [
            ("/v1.0/state/s/k", "/v1.0/state/s/k"),
            ("/v1.0//state/./s/../s/k/", "/v1.0/state/s/k"),
            ("/../../etc", "/etc"),
            ("/", "/"),
            ("//", "/"),
            ("/a/%2e%2e/b", "/a/%2e%2e/b"),
            ("/a/.hidden", "/a/.hidden"),
        ] {
            assert_eq!(clean(given), want, "{given}");
        }
    }

    #[test]
    fn unescaping() {
        assert_eq!(unescape("a+b%2Fc").as_deref(), Some("a b/c"));
        assert_eq!(unescape("%zz"), None);
        assert_eq!(unescape("%2"), None);
        assert_eq!(unescape("%ff"), None);
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(path in "(/|[a-z.%]){0,20}") {
            let once = clean(&path).into_owned();
            prop_assert_eq!(clean(&once).into_owned(), once.clone());
            prop_assert!(!once.split('/').any(|s| s == ".." || s == "."));
        }

        #[test]
        fn unescape_never_panics(text in "\\PC{0,20}") {
            let _ = unescape(&text);
        }
    }
}
