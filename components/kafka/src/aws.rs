//! Tokens for Amazon MSK: a presigned URL, made here from credentials of AWS.
//!
//! Credentials are those of the document, else of the environment's variables, else of the web identity that they name
//! (as Kubernetes clusters of AWS give to pods). A role is taken with them where the document names one.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::header::ACCEPT;
use jiff::Timestamp;
use mecha_components_api::{ConfigErrors, Error, ErrorKind, Metadata, Result, Secret};

use crate::http::{self, is_url};
use crate::producer::blocking;
use crate::sigv4::{Credentials, Get, empty, encode, presign};
use crate::tokens::Token;

/// Life of a token, in seconds.
const LIFE: u32 = 900;
/// Life of a request to take a role, in seconds.
const REQUEST_LIFE: u32 = 300;
const SESSION: &str = "DaprDefaultSession";
/// Principal that librdkafka wants to be told; the brokers read the token.
const PRINCIPAL: &str = "awsiam";

/// Where credentials come from, and what they are for.
pub(crate) struct Aws {
    region: String,
    origin: String,
    basis: Basis,
    role: Option<Role>,
    sts: String,
    tls: rustls::ClientConfig,
}

enum Basis {
    Keys(Credentials),
    /// The file with the token of who we are, and the role it lets us take.
    WebIdentity {
        file: String,
        role: Role,
    },
}

#[derive(Clone)]
struct Role {
    arn: String,
    session: String,
}

/// Credentials, and when they end.
type Lent = (Credentials, Option<Timestamp>);

impl Aws {
    /// Reads the keys of `authType: awsiam`; `env` is the environment.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let text = |now: &str, old: &str| md.get_non_empty(now).or_else(|| md.get_non_empty(old)).map(str::to_owned);
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let region = text("region", "awsRegion").or_else(|| env("AWS_REGION")).or_else(|| env("AWS_DEFAULT_REGION"));
        let region = region.unwrap_or_default();
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            errors.push("awsRegion", "'awsRegion' must name the region of the cluster, such as eu-central-1");
            return None;
        }
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let sts = env("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| format!("https://sts.{region}.{domain}"));
        if !is_url(&sts) {
            errors.push("awsRegion", "the variable AWS_ENDPOINT_URL_STS is no URL");
            return None;
        }
        let session = text("sessionName", "awsStsSessionName").unwrap_or_else(|| SESSION.to_owned());
        let role = text("assumeRoleArn", "awsIamRoleArn").map(|arn| Role { arn, session });
        let tls = http::trust(None, false).map_err(|e| errors.push("authType", e)).ok()?;
        Some(Self {
            origin: format!("https://kafka.{region}.amazonaws.com"),
            sts: sts.trim_end_matches('/').to_owned(),
            basis: basis(text, env, errors)?,
            region,
            role,
            tls,
        })
    }

    pub(crate) fn host(&self) -> &str {
        self.origin.strip_prefix("https://").unwrap_or(&self.origin)
    }

    /// Makes a token.
    pub(crate) async fn fetch(&self) -> Result<Token> {
        let lent = match &self.basis {
            Basis::Keys(keys) => (keys.clone(), None),
            Basis::WebIdentity { file, role } => self.web_identity(file, role).await?,
        };
        let (who, ends) = match &self.role {
            Some(role) => self.assume(&lent.0, role).await?,
            None => lent,
        };
        let fetched = SystemTime::now();
        let text = self.token(&who, Timestamp::now());
        let ends = ends.map(SystemTime::from).unwrap_or(fetched + Duration::from_secs(LIFE.into()));
        let ends = ends.min(fetched + Duration::from_secs(LIFE.into()));
        Ok(Token { text: Secret::new(text), client: PRINCIPAL.to_owned(), fetched, ends })
    }

    fn token(&self, who: &Credentials, now: Timestamp) -> String {
        let get = Get {
            origin: &self.origin,
            path: "/",
            params: &[("Action", "kafka-cluster:Connect")],
            payload: &empty(),
            service: "kafka-cluster",
            region: &self.region,
            expires: LIFE,
        };
        // Not a part of what is signed.
        let agent = encode(concat!("mechad/", env!("CARGO_PKG_VERSION")));
        URL_SAFE_NO_PAD.encode(format!("{}&User-Agent={agent}", presign(&get, who, now)))
    }

    async fn assume(&self, who: &Credentials, role: &Role) -> Result<Lent> {
        let get = Get {
            origin: &self.sts,
            path: "/",
            params: &[
                ("Action", "AssumeRole"),
                ("Version", "2011-06-15"),
                ("RoleArn", &role.arn),
                ("RoleSessionName", &role.session),
            ],
            payload: &empty(),
            service: "sts",
            region: &self.region,
            expires: REQUEST_LIFE,
        };
        self.ask("AssumeRole", presign(&get, who, Timestamp::now())).await
    }

    async fn web_identity(&self, file: &str, role: &Role) -> Result<Lent> {
        let path = file.to_owned();
        let token = blocking(move || {
            std::fs::read_to_string(&path).map_err(|e| {
                Error::new(ErrorKind::FailedPrecondition, format!("AWS_WEB_IDENTITY_TOKEN_FILE: {path}: {e}"))
            })
        });
        let token = Secret::new(token.await?.trim());
        let url = format!(
            "{}/?Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={}&RoleSessionName={}&WebIdentityToken={}",
            self.sts,
            encode(&role.arn),
            encode(&role.session),
            encode(token.expose())
        );
        self.ask("AssumeRoleWithWebIdentity", url).await
    }

    async fn ask(&self, action: &str, url: String) -> Result<Lent> {
        let unavailable = |e: String| Error::unavailable(format!("{action} at {}: {e}", self.sts));
        let request = Request::get(url).header(ACCEPT, "text/xml").body(Full::new(Bytes::new()));
        // What cannot be sent is not shown: it holds credentials.
        let request = request.map_err(|_| unavailable("no request can be made".to_owned()))?;
        let (status, body) = http::send(&http::client(self.tls.clone()), request).await.map_err(unavailable)?;
        let body = String::from_utf8_lossy(&body);
        if !status.is_success() {
            let why = [element(&body, "Code"), element(&body, "Message")].map(Option::unwrap_or_default).join(": ");
            let kind = if status.is_client_error() { ErrorKind::Unauthenticated } else { ErrorKind::Unavailable };
            return Err(Error::new(kind, format!("{action} at {}: {status} {why}", self.sts)));
        }
        let part = |name: &str| element(&body, name).ok_or_else(|| unavailable(format!("the answer has no {name}")));
        let who = Credentials {
            key: part("AccessKeyId")?.to_owned(),
            secret: Secret::new(part("SecretAccessKey")?),
            session: Some(Secret::new(part("SessionToken")?)),
        };
        Ok((who, part("Expiration")?.parse().ok()))
    }
}

fn basis(
    text: impl Fn(&str, &str) -> Option<String>,
    env: impl Fn(&str) -> Option<String>,
    errors: &mut ConfigErrors,
) -> Option<Basis> {
    let keys = |key, secret: String, session: Option<String>| {
        Basis::Keys(Credentials { key, secret: Secret::new(secret), session: session.map(Secret::new) })
    };
    match (text("accessKey", "awsAccessKey"), text("secretKey", "awsSecretKey")) {
        (Some(key), Some(secret)) => return Some(keys(key, secret, text("sessionToken", "awsSessionToken"))),
        (None, None) => {}
        _ => {
            errors.push("awsAccessKey", "'awsAccessKey' and 'awsSecretKey' need each other");
            return None;
        }
    }
    if let (Some(key), Some(secret)) = (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
        return Some(keys(key, secret, env("AWS_SESSION_TOKEN")));
    }
    if let (Some(file), Some(arn)) = (env("AWS_WEB_IDENTITY_TOKEN_FILE"), env("AWS_ROLE_ARN")) {
        let session = env("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| SESSION.to_owned());
        return Some(Basis::WebIdentity { file, role: Role { arn, session } });
    }
    errors.push(
        "awsAccessKey",
        "authType awsiam has no credentials: set 'awsAccessKey' and 'awsSecretKey', or the variables AWS_ACCESS_KEY_ID \
         and AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN; profiles and the metadata of an \
         instance are not read",
    );
    None
}

/// The text of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

#[cfg(test)]
#[path = "aws_tests.rs"]
mod tests;
