//! Tokens of an identity provider: OAuth 2.0 client credentials, by secret or by signed assertion.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Request, StatusCode};
use mecha_components_api::{ConfigErrors, Error, ErrorKind, Metadata, Result, Secret};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::http::{self, is_url, trust};
use crate::tokens::Token;

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

impl Oidc {
    /// Reads the keys of `authType: oidc` or, with `assertion`, `oidc_private_key_jwt`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, assertion: bool) -> Option<Self> {
        let endpoint = errors.required(md, "oidcTokenEndpoint");
        if !endpoint.is_empty() && !is_url(&endpoint) {
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

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Asks for a token.
    pub(crate) async fn fetch(&self) -> Result<Token> {
        let asked = SystemTime::now();
        let (status, answer) = self.ask().await?;
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
        let unavailable = |e: String| Error::unavailable(format!("{}: {e}", self.endpoint));
        let request = request.body(Full::new(Bytes::from(form.0)));
        let request = request.map_err(|e| unavailable(format!("no request: {e}")))?;
        // The runtime may end with this request, so no connection is kept.
        let (status, body) = http::send(&http::client(self.tls.clone()), request).await.map_err(unavailable)?;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
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
