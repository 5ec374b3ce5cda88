//! The authority of the control plane: asked for certificates.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mecha_identity::{Expect, Identity, KeyError, KeyKind, KeyPair, Live};
use mecha_proto::sentry::SignCertificateRequest;
use mecha_proto::sentry::ca_client::CaClient;
use mecha_proto::sentry::sign_certificate_request::TokenValidator;
use tokio::time::timeout;
use tonic::Code;

use super::Settings;
use super::control::{Route, Tls};

/// Token that the kubelet projects for the authority.
const PROJECTED: &str = "/var/run/secrets/dapr.io/sentrytoken/token";
/// Token that every pod has, for authorities of old.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Largest token read, in bytes.
const MAX_TOKEN: u64 = 64 * 1024;
/// Largest answer of the authority.
const MAX_ANSWER: usize = 1 << 20;

/// Where the token that proves this workload to the authority lies. The first one that is
/// there is used; it is read anew each time, for kubelets replace it.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `DAPR_SENTRY_TOKEN_FILE`: a JWT that the authority checks against its key set.
    pub file: Option<PathBuf>,
    /// Service account tokens that the authority checks at the API server.
    pub kubernetes: Vec<PathBuf>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { file: None, kubernetes: vec![PROJECTED.into(), POD.into()] }
    }
}

impl Tokens {
    fn read(&self) -> Result<(String, TokenValidator), String> {
        if let Some(path) = &self.file {
            let token = read_token(path).map_err(|e| format!("DAPR_SENTRY_TOKEN_FILE {}: {e}", path.display()))?;
            return Ok((token, TokenValidator::Jwks));
        }
        for path in &self.kubernetes {
            match read_token(path) {
                Ok(token) => return Ok((token, TokenValidator::Kubernetes)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(format!("the token for the authority, {}: {e}", path.display())),
            }
        }
        Ok((String::new(), TokenValidator::Unknown))
    }
}

fn read_token(path: &Path) -> std::io::Result<String> {
    if fs::metadata(path)?.len() > MAX_TOKEN {
        return Err(std::io::Error::other(format!("larger than {MAX_TOKEN} bytes")));
    }
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// A certificate, fresh from the authority.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) identity: Identity,
    pub(super) key: KeyPair,
    /// When it ends, as the authority says; certificates know only whole seconds.
    pub(super) until: SystemTime,
}

/// Why there is no certificate. The text never holds the token or the key.
#[derive(Debug)]
pub(super) enum Failure {
    /// The authority is not there, or cannot answer now.
    Away(String),
    /// It does not want to, or something on this side is wrong.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Away(text) | Self::Refused(text)) = self;
        f.write_str(text)
    }
}

/// The authority at one address.
#[derive(Debug)]
pub(super) struct Sentry {
    route: Route,
    request: SignCertificateRequest,
    tokens: Tokens,
    /// The authority itself.
    authority: Expect,
    /// Who this workload is to be.
    workload: Expect,
    limit: Duration,
}

impl Sentry {
    /// # Errors
    /// The address, or the id of the control plane, is none.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let route = Route::new(&settings.sentry_address, true)
            .map_err(|e| format!("--sentry-address {:?} is no address: {e}", settings.sentry_address))?;
        Ok(Self {
            route,
            request: SignCertificateRequest {
                id: settings.id.clone(),
                namespace: settings.namespace.clone(),
                jwt_audiences: settings.jwt_audiences.clone(),
                ..SignCertificateRequest::default()
            },
            tokens: settings.tokens.clone(),
            authority: settings.control("dapr-sentry")?,
            workload: Expect::Workload { namespace: settings.namespace.clone(), app_id: settings.app_id.clone() },
            limit: settings.pace.limit,
        })
    }

    /// Asks for a certificate for a new key, over TLS that trusts what `live` does.
    ///
    /// # Errors
    /// What went wrong, and where.
    pub(super) async fn sign(&self, live: &Arc<Live>) -> Result<Signed, Failure> {
        timeout(self.limit, self.ask(live)).await.unwrap_or_else(|_| {
            let at = self.route.address();
            Err(Failure::Away(format!("the authority at {at} gave no answer within {:?}", self.limit)))
        })
    }

    /// Who this workload is to be.
    pub(super) fn workload(&self) -> &Expect {
        &self.workload
    }

    async fn ask(&self, live: &Arc<Live>) -> Result<Signed, Failure> {
        let here = |e: KeyError| Failure::Refused(e.to_string());
        let key = KeyPair::generate(KeyKind::P256).map_err(here)?;
        let (token, validator) = self.tokens.read().map_err(Failure::Refused)?;
        let request = SignCertificateRequest {
            token,
            token_validator: validator.into(),
            certificate_signing_request: key.request_pem().map_err(here)?.into(),
            ..self.request.clone()
        };
        let at = self.route.address();
        let tls = Tls { live: live.clone(), expect: self.authority.clone() };
        let channel = self.route.connect(Some(tls)).await;
        let channel = channel.map_err(|e| Failure::Away(format!("no connection to the authority at {at}: {e}")))?;
        let mut client = CaClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let answer = client.sign_certificate(request).await.map_err(|status| {
            let text = format!("{:?}: {}", status.code(), status.message());
            match status.code() {
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::Unknown => {
                    Failure::Away(format!("the authority at {at} did not sign: {text}"))
                }
                _ => Failure::Refused(format!("the authority at {at} refused to sign: {text}")),
            }
        })?;
        let answer = answer.into_inner();
        let unusable =
            |e: String| Failure::Refused(format!("the certificate from the authority at {at} cannot be used: {e}"));
        let chain = std::str::from_utf8(&answer.workload_certificate).map_err(|e| unusable(e.to_string()))?;
        let identity = Identity::from_pem(chain, &key).map_err(|e| unusable(e.to_string()))?;
        if !self.workload.accepts(identity.id()) {
            tracing::warn!(
                target: super::LOG,
                "the authority at {at} says that this is {}, while callers look for {}", identity.id(), self.workload
            );
        }
        let told = answer.valid_until.and_then(|t| SystemTime::try_from(t).ok());
        let until = told.map_or(identity.not_after(), |told| told.min(identity.not_after()));
        Ok(Signed { identity, key, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_that_is_there_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut tokens = Tokens { file: None, kubernetes: vec![at("projected"), at("pod")] };
        let read = |tokens: &Tokens| tokens.read().map(|(token, validator)| (token, validator.as_str_name()));
        assert_eq!(read(&tokens), Ok((String::new(), "UNKNOWN")));
        fs::write(at("pod"), "old").unwrap();
        assert_eq!(read(&tokens), Ok(("old".to_owned(), "KUBERNETES")));
        fs::write(at("projected"), "new\n").unwrap();
        assert_eq!(read(&tokens), Ok(("new".to_owned(), "KUBERNETES")));
        tokens.file = Some(at("jwt"));
        assert!(read(&tokens).unwrap_err().contains("DAPR_SENTRY_TOKEN_FILE"), "one that is named has to be there");
        fs::write(at("jwt"), "signed").unwrap();
        assert_eq!(read(&tokens), Ok(("signed".to_owned(), "JWKS")));
    }
}
