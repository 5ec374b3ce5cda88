//! Logging in with tokens of an identity provider: OAuth 2.0 client credentials, by secret or by signed assertion.
//!
//! librdkafka asks for a token in a callback where nothing may block, so tokens are fetched ahead: the callback
//! hands out the one at hand and says that it ends earlier than it does, and whenever little is left of it a thread
//! of its own fetches the next. An identity provider that is away for a while is not noticed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mecha_components_api::{ConfigErrors, Error, ErrorKind, Metadata, Result, Secret};
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::producer::apart;

/// Longest wait for one answer of the identity provider.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 256 * 1024;
/// Life of a token whose answer does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);
/// Life of a signed assertion.
const ASSERTION_LIFE: Duration = Duration::from_secs(60);

/// Where tokens come from.
pub(crate) struct Oidc {
    endpoint: String,
    client: String,
    proof: Proof,
    scopes: String,
    resource: Option<String>,
    audience: Option<String>,
    tls: rustls::ClientConfig,
}

/// How the client shows that it is itself.
enum Proof {
    Secret(Secret),
    Assertion { key: Signer, kid: Option<String> },
}

enum Signer {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// A token and its time.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: Secret,
    pub(crate) client: String,
    fetched: SystemTime,
    ends: SystemTime,
}

/// The tokens of one component. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tokens {
    oidc: Arc<Oidc>,
    at_hand: Arc<Mutex<Option<Token>>>,
    fetching: Arc<AtomicBool>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("endpoint", &self.oidc.endpoint).finish_non_exhaustive()
    }
}

impl Token {
    /// When librdkafka shall ask again, in milliseconds since 1970: it does so at four fifths of this, and by then
    /// the next token is at hand.
    pub(crate) fn half_way_ms(&self) -> i64 {
        let left = self.ends.duration_since(SystemTime::now()).unwrap_or_default();
        let until = SystemTime::now() + (left / 2).max(Duration::from_secs(1)).min(left);
        until.duration_since(UNIX_EPOCH).ok().and_then(|t| i64::try_from(t.as_millis()).ok()).unwrap_or(i64::MAX)
    }

    fn holds(&self) -> bool {
        SystemTime::now() < self.ends
    }

    /// Whether the next one should be fetched.
    fn ages(&self) -> bool {
        let life = self.ends.duration_since(self.fetched).unwrap_or_default();
        self.fetched.elapsed().unwrap_or_default() >= life * 2 / 5
    }
}

impl Tokens {
    pub(crate) fn new(oidc: Oidc) -> Self {
        Self { oidc: Arc::new(oidc), at_hand: Arc::default(), fetching: Arc::default() }
    }

    /// Makes sure that a token is at hand.
    ///
    /// # Errors
    /// The identity provider cannot be reached or refuses.
    pub(crate) async fn prime(&self) -> Result<()> {
        if self.at_hand.lock().as_ref().is_some_and(Token::holds) {
            return Ok(());
        }
        let token = self.oidc.fetch().await?;
        *self.at_hand.lock() = Some(token);
        Ok(())
    }

    /// The token at hand, at once; begins to fetch the next one where little is left of it.
    pub(crate) fn now(&self) -> Option<Token> {
        let token = self.at_hand.lock().clone().filter(Token::holds);
        if token.as_ref().is_none_or(Token::ages) && !self.fetching.swap(true, Ordering::SeqCst) {
            let tokens = self.clone();
            apart("kafka-token", move || tokens.refresh());
        }
        token
    }

    fn refresh(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let fetched = match runtime {
            Ok(runtime) => runtime.block_on(self.oidc.fetch()),
            Err(e) => Err(Error::unavailable("no thread can fetch a token").with_source(e)),
        };
        match fetched {
            Ok(token) => *self.at_hand.lock() = Some(token),
            Err(e) => tracing::warn!(endpoint = self.oidc.endpoint, "no new token for Kafka: {e}; it is tried again"),
        }
        self.fetching.store(false, Ordering::SeqCst);
    }
}

impl Oidc {
    /// Reads the keys of `authType: oidc` or, with `assertion`, `oidc_private_key_jwt`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, assertion: bool) -> Option<Self> {
        let endpoint = errors.required(md, "oidcTokenEndpoint");
        let parsed = endpoint.parse::<hyper::Uri>().ok();
        if !endpoint.is_empty() && parsed.is_none_or(|u| u.host().is_none() || u.scheme().is_none()) {
            errors.push("oidcTokenEndpoint", "'oidcTokenEndpoint' must be a URL such as https://id.example/token");
        }
        let client = errors.required(md, "oidcClientID");
        if md.get_non_empty("oidcExtensions").is_some() {
            errors.push("oidcExtensions", "'oidcExtensions': the Kafka client has no SASL extensions; remove it");
        }
        let proof = if assertion {
            let pem = errors.required(md, "oidcClientAssertionKey");
            let kid = md.get_non_empty("oidcKid").map(str::to_owned);
            match Signer::read(&pem) {
                Ok(key) => Some(Proof::Assertion { key, kid }),
                Err(why) => {
                    if !pem.is_empty() {
                        errors.push("oidcClientAssertionKey", format!("'oidcClientAssertionKey' {why}"));
                    }
                    None
                }
            }
        } else {
            Some(Proof::Secret(Secret::new(errors.required(md, "oidcClientSecret"))))
        };
        let scopes = md.get_non_empty("oidcScopes").unwrap_or("openid");
        let scopes = scopes.split([',', ' ']).filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ");
        let insecure = errors.bool(md, "skipVerify", false);
        let tls = match trust(md.get_non_empty("caCert"), insecure) {
            Ok(tls) => Some(tls),
            Err(why) => {
                errors.push("caCert", format!("'caCert' {why}"));
                None
            }
        };
        let text = |key: &str| md.get_non_empty(key).map(str::to_owned);
        let (resource, audience) = (text("oidcResource"), text("oidcAudience"));
        Some(Self { endpoint, client, proof: proof?, scopes, resource, audience, tls: tls? })
    }

    /// Asks for a token.
    async fn fetch(&self) -> Result<Token> {
        let asked = SystemTime::now();
        let (status, answer) = tokio::time::timeout(FETCH_LIMIT, self.ask())
            .await
            .map_err(|_| Error::timeout(format!("{} gave no token within {FETCH_LIMIT:?}", self.endpoint)))??;
        if status != StatusCode::OK {
            // `error` is one of a closed list of RFC 6749; the description is for people. Neither holds secrets.
            let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
            let why = format!("{} answers {status}: {} {}", self.endpoint, text("error"), text("error_description"));
            let kind = match status.as_u16() {
                400 | 401 | 403 => ErrorKind::Unauthenticated,
                _ => ErrorKind::Unavailable,
            };
            return Err(Error::new(kind, why.trim_end().to_owned()));
        }
        let Some(token) = answer["access_token"].as_str().filter(|t| !t.is_empty()) else {
            return Err(Error::unavailable(format!("{} answers without an access_token", self.endpoint)));
        };
        let life = match &answer["expires_in"] {
            Value::Number(n) => n.as_u64(),
            Value::String(s) => s.parse().ok(),
            _ => None,
        };
        let life = life.filter(|s| *s > 0).map_or(DEFAULT_LIFE, Duration::from_secs);
        Ok(Token { text: Secret::new(token), client: self.client.clone(), fetched: asked, ends: asked + life })
    }

    async fn ask(&self) -> Result<(StatusCode, Value)> {
        let unavailable =
            |what: &str, e: &dyn fmt::Display| Error::unavailable(format!("{}: {what}: {e}", self.endpoint));
        let mut form = Form::default();
        form.add("grant_type", "client_credentials");
        form.add("scope", &self.scopes);
        self.resource.iter().for_each(|resource| form.add("resource", resource));
        let mut request = Request::post(&self.endpoint)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json");
        match &self.proof {
            Proof::Secret(secret) => {
                self.audience.iter().for_each(|audience| form.add("audience", audience));
                let login = format!("{}:{}", encoded(&self.client), encoded(secret.expose()));
                request = request.header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(login)));
            }
            Proof::Assertion { key, kid } => {
                form.add("client_id", &self.client);
                form.add("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
                let audience = self.audience.as_deref().unwrap_or(&self.endpoint);
                form.add("client_assertion", &assertion(key, kid.as_deref(), &self.client, audience)?);
            }
        }
        let request = request.body(Full::new(Bytes::from(form.0))).map_err(|e| unavailable("no request", &e))?;
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(self.tls.clone()).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let response = client.request(request).await.map_err(|e| unavailable("cannot be reached", &Chain(&e)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|e| unavailable("the answer broke off", &e))?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

/// An error with its causes, which say what the outermost one leaves out.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        Ok(())
    }
}

/// A form body.
#[derive(Default)]
struct Form(String);

impl Form {
    fn add(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&encoded(value));
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Signer {
    fn read(pem: &str) -> std::result::Result<Self, &'static str> {
        const WANTED: &str = "must be a private key in PEM: RSA of 2048 bits or more, or EC P-256 in PKCS #8";
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| WANTED)?;
        match &key {
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).map(|k| Self::Rsa(Box::new(k))).map_err(|_| WANTED)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
                    return Ok(Self::Rsa(Box::new(key)));
                }
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
                    .map(|k| Self::P256(Box::new(k)))
                    .map_err(|_| WANTED)
            }
            _ => Err(WANTED),
        }
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
        }
    }

    fn sign(&self, text: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).ok()?;
                Some(signature)
            }
            Self::P256(key) => key.sign(&random, text).ok().map(|s| s.as_ref().to_vec()),
        }
    }
}

/// A JSON Web Token by which the client shows who it is (RFC 7523).
fn assertion(key: &Signer, kid: Option<&str>, client: &str, audience: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut header = json!({"alg": key.algorithm(), "typ": "JWT"});
    if let Some(kid) = kid {
        header["kid"] = kid.into();
    }
    let claims = json!({
        "iss": client, "sub": client, "aud": audience, "jti": uuid::Uuid::new_v4().to_string(),
        "iat": now.as_secs(), "nbf": now.as_secs(), "exp": (now + ASSERTION_LIFE).as_secs(),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&header), part(&claims));
    let signature =
        key.sign(text.as_bytes()).ok_or_else(|| Error::internal("the assertion for the token could not be signed"))?;
    Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// Roots that the identity provider's certificate is checked against: the system's, and `caCert`.
fn trust(extra: Option<&str>, insecure: bool) -> std::result::Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    if insecure {
        let verifier = Arc::new(crate::unverified::Unverified::new(&provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(extra.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|e| format!("cannot be read: {e}"))?;
        roots.add(certificate).map_err(|e| format!("holds no certificate of an authority: {e}"))?;
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
