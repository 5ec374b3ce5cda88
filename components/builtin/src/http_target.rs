use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// Characters that a URL must not carry as they are; `%` is left alone.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}').add(b'|').add(b'^');

/// How often a path is decoded while it is searched for dot segments. Servers
/// behind proxies decode twice at times.
const DECODE_ROUNDS: usize = 4;

/// The `url` of an HTTP binding, in parts, so that a request can only add a
/// path below it and can never change host, port or scheme.
#[derive(Clone)]
pub(crate) struct Target {
    scheme: Scheme,
    authority: Authority,
    path: String,
    query: Option<String>,
    /// `Authorization` made of the user and password that the URL held.
    pub(crate) credentials: Option<HeaderValue>,
}

/// User, password and query may be secrets.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl Target {
    /// Reads an absolute `http` or `https` URL. The mistake does not repeat the URL.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let url = url.trim();
        let url = url.split_once('#').map_or(url, |(before, _)| before);
        let (scheme, rest) = url.split_once("://").ok_or("must begin with http:// or https://")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => return Err("must begin with http:// or https://".into()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, rest) = rest.split_at(end);
        let (user, host) = host.rsplit_once('@').map_or((None, host), |(user, host)| (Some(user), host));
        let authority: Authority = host.parse().map_err(|_| "has no valid host".to_owned())?;
        if authority.host().is_empty() {
            return Err("has no host".into());
        }
        let credentials = user.map(basic).transpose()?;
        let (path, query) = split_query(rest);
        let target =
            Self { scheme, authority, path: escape(path)?, query: query.map(escape).transpose()?, credentials };
        target.uri(None)?;
        Ok(target)
    }

    /// Whether the connection is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The address of one request: the URL, with `path` below it.
    pub(crate) fn uri(&self, path: Option<&str>) -> Result<Uri, String> {
        let (mut full, mut query) = (self.path.clone(), self.query.clone());
        if let Some(path) = path.filter(|p| !p.is_empty()) {
            let path = path.split_once('#').map_or(path, |(before, _)| before);
            let (path, added) = split_query(path);
            if climbs(path) {
                return Err("must not hold '.' or '..' segments: it stays below the binding's url".into());
            }
            full.truncate(full.trim_end_matches('/').len());
            full.push('/');
            full.push_str(&escape(path.trim_start_matches('/'))?);
            if let Some(added) = added {
                let added = escape(added)?;
                query = Some(match query {
                    Some(own) if !own.is_empty() => format!("{own}&{added}"),
                    _ => added,
                });
            }
        }
        if full.is_empty() {
            full.push('/');
        }
        if let Some(query) = query {
            full.push('?');
            full.push_str(&query);
        }
        let path_and_query = PathAndQuery::try_from(full).map_err(|_| "is not a valid URL path".to_owned())?;
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path_and_query)
            .build()
            .map_err(|_| "is not a valid URL".to_owned())
    }
}

fn split_query(text: &str) -> (&str, Option<&str>) {
    text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)))
}

fn basic(user: &str) -> Result<HeaderValue, String> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let plain = [&*decode(user), b":", &*decode(password)].concat();
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(plain)))
        .map_err(|_| "has an unusable user or password".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn decode(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

/// Escapes what must be, and refuses control characters and broken escapes.
fn escape(text: &str) -> Result<String, String> {
    if text.bytes().any(|b| b.is_ascii_control()) {
        return Err("must not hold control characters".into());
    }
    let bytes = text.as_bytes();
    let broken = |at: usize| !matches!(bytes.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    if bytes.iter().enumerate().any(|(at, b)| *b == b'%' && broken(at)) {
        return Err("holds a '%' that no two hexadecimal digits follow".into());
    }
    Ok(utf8_percent_encode(text, ESCAPED).to_string())
}

/// Whether some server could read a way upwards in `path`: dot segments, also
/// escaped (more than once), behind a backslash, or with `;` parameters.
fn climbs(path: &str) -> bool {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..DECODE_ROUNDS {
        if bytes.split(|b| matches!(b, b'/' | b'\\')).any(is_dots) {
            return true;
        }
        let decoded: Vec<u8> = percent_encoding::percent_decode(&bytes).collect();
        if decoded == bytes {
            return false;
        }
        bytes = decoded;
    }
    // Escaped deeper than any honest path.
    true
}

fn is_dots(segment: &[u8]) -> bool {
    let name = segment.split(|b| *b == b';').next().unwrap_or_default();
    matches!(name, b"." | b"..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join(url: &str, path: &str) -> Result<String, String> {
        Target::parse(url)?.uri(Some(path)).map(|u| u.to_string())
    }

    #[test]
    fn a_path_is_put_below_the_url() {
        for (url, path, want) in [
            ("http://h", "", "http://h/"),
            ("http://h:8080/a/", "/b", "http://h:8080/a/b"),
            ("http://h/a", "b/c?x=1", "http://h/a/b/c?x=1"),
            ("https://h/a?code=7", "b?x=1", "https://h/a/b?code=7&x=1"),
            ("https://h/a?code=7", "", "https://h/a?code=7"),
            ("HTTP://[::1]:80", "x y/ü#frag", "http://[::1]:80/x%20y/%C3%BC"),
            ("http://h/a", "//evil.example/x", "http://h/a/evil.example/x"),
            ("http://h/a", "@evil.example", "http://h/a/@evil.example"),
            ("http://h/a", "http://evil.example", "http://h/a/http://evil.example"),
            ("http://h/a", "..b/c..", "http://h/a/..b/c.."),
            ("http://h/a#top", "b", "http://h/a/b"),
        ] {
            assert_eq!(join(url, path).as_deref(), Ok(want), "{url} + {path}");
        }
    }

    #[test]
    fn no_path_leads_upwards() {
        for path in [
            "..",
            "../x",
            "a/../../x",
            "/..",
            "a/./b",
            "%2e%2e/x",
            "%2E./x",
            "a%2f..%2fb",
            "..\\x",
            "a\\..\\b",
            "%252e%252e/x",
            "..;/x",
            "%2e%2e%3bx/y",
            "..%5cx",
            "%25252525252e/x",
        ] {
            assert!(join("http://h/base", path).is_err(), "{path}");
        }
    }

    #[test]
    fn broken_text_is_refused() {
        for path in ["a\r\nb", "a\0b", "a%", "a%zz", "a?x=\n"] {
            assert!(join("http://h/base", path).is_err(), "{path:?}");
        }
        for url in ["", "h/a", "ftp://h", "http://", "http:///x", "http://h h/", "http://h/a%", "file:///etc/passwd"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn user_and_password_become_a_header_and_are_never_shown() {
        let target = Target::parse("https://us%40er:p%3Aw@h/x").unwrap();
        let header = target.credentials.clone().unwrap();
        assert_eq!(header, format!("Basic {}", STANDARD.encode("us@er:p:w")).as_str());
        assert!(header.is_sensitive());
        assert_eq!(target.uri(None).unwrap().to_string(), "https://h/x");
        assert!(!format!("{target:?}").contains("p%3Aw"));
    }

    proptest! {
        #[test]
        fn any_path_stays_below_or_is_refused(path in "[a-z./%25e\\\\;?#@: ]{0,24}") {
            if let Ok(url) = join("http://host/base", &path) {
                prop_assert!(url == "http://host/base" || url.starts_with("http://host/base/"), "{}", url);
                let only_path = url.split('?').next().unwrap();
                prop_assert!(!climbs(only_path), "{}", url);
            }
        }

        #[test]
        fn any_url_is_read_or_refused(url in "\\PC{0,40}") {
            let _ = Target::parse(&url);
        }
    }
}
