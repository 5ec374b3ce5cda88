//! Presigned URLs of AWS: Signature Version 4 in the query.

use jiff::Timestamp;
use mecha_components_api::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Everything but RFC 3986's unreserved characters.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Who signs.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) key: String,
    pub(crate) secret: Secret,
    /// Of credentials that end.
    pub(crate) session: Option<Secret>,
}

/// A GET without a body.
pub(crate) struct Get<'a> {
    /// Of the URL, `https://host[:port]`.
    pub(crate) origin: &'a str,
    pub(crate) path: &'a str,
    pub(crate) params: &'a [(&'a str, &'a str)],
    /// Hash of the body in hexadecimal digits, or what stands for it.
    pub(crate) payload: &'a str,
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    /// Seconds.
    pub(crate) expires: u32,
}

/// The hash of nothing.
pub(crate) fn empty() -> String {
    hex(digest::digest(&digest::SHA256, b"").as_ref())
}

/// The URL with all that shows who asks, as of `now`.
pub(crate) fn presign(get: &Get<'_>, who: &Credentials, now: Timestamp) -> String {
    let at = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &at[..8];
    let scope = format!("{day}/{}/{}/aws4_request", get.region, get.service);
    let (credential, expires) = (format!("{}/{scope}", who.key), get.expires.to_string());
    let mut params: Vec<(&str, &str)> = get.params.to_vec();
    params.extend([
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &at),
        ("X-Amz-Expires", &expires),
        ("X-Amz-SignedHeaders", "host"),
    ]);
    if let Some(session) = &who.session {
        params.push(("X-Amz-Security-Token", session.expose()));
    }
    let mut params: Vec<(String, String)> = params.iter().map(|(k, v)| (encode(k), encode(v))).collect();
    params.sort_unstable();
    let query = params.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&");
    let host = get.origin.split_once("://").map_or(get.origin, |(_, host)| host);
    let request = format!("GET\n{}\n{query}\nhost:{host}\n\nhost\n{}", get.path, get.payload);
    let hash = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
    let text = format!("{ALGORITHM}\n{at}\n{scope}\n{hash}");
    let first = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", who.secret.expose()).as_bytes());
    let key = [day, get.region, get.service, "aws4_request"]
        .iter()
        .fold(first, |key, part| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref()));
    let signature = hex(hmac::sign(&key, text.as_bytes()).as_ref());
    format!("{}{}?{query}&X-Amz-Signature={signature}", get.origin, get.path)
}

/// As it stands in a query.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of "Authenticating Requests: Using Query Parameters" in Amazon's S3 reference.
    #[test]
    fn the_published_example_is_signed_as_published() {
        let get = Get {
            origin: "https://examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            params: &[],
            payload: "UNSIGNED-PAYLOAD",
            service: "s3",
            region: "us-east-1",
            expires: 86_400,
        };
        let who = Credentials {
            key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session: None,
        };
        let url = presign(&get, &who, "2013-05-24T00:00:00Z".parse().unwrap());
        assert_eq!(
            url,
            "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    #[test]
    fn the_hash_of_nothing() {
        assert_eq!(empty(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
