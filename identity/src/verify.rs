//! Who is at the other end: what certificates must say, and why one was refused.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::bundle::Bundle;
use crate::live::Live;
use crate::spiffe::{SpiffeId, SpiffeIdError};

/// Who a client expects at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Exactly this id: parts of the control plane.
    Id(SpiffeId),
    /// The workload of this namespace and app id, in any trust domain below the roots.
    Workload {
        /// Namespace expected.
        namespace: String,
        /// App id expected.
        app_id: String,
    },
    /// Anybody with a certificate below the roots.
    Any,
}

impl Expect {
    /// Whether `id` is who is expected.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Id(expected) => expected == id,
            Self::Workload { namespace, app_id } => id.namespace() == Some(namespace) && id.app_id() == Some(app_id),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Workload { namespace, app_id } => write!(f, "app {app_id} in namespace {namespace}"),
            Self::Any => f.write_str("anybody"),
        }
    }
}

/// What is wrong with a peer's certificate apart from its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// None was shown.
    #[error("the peer showed no certificate")]
    Missing,
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Certificate,
    /// It names nobody.
    #[error("the certificate has no URI in its subject alternative names, so it names no SPIFFE id")]
    NoId,
    /// It names more than one.
    #[error("the certificate has more than one URI in its subject alternative names")]
    SeveralIds,
    /// The name is no SPIFFE id.
    #[error("the certificate's URI is no SPIFFE id: {0}")]
    Id(#[from] SpiffeIdError),
    /// It is somebody else.
    #[error("the peer is {found}, expected was {expected}")]
    Unexpected {
        /// Who was expected.
        expected: String,
        /// Who is there.
        found: SpiffeId,
    },
    /// The chain breaks another rule.
    #[error("the certificate was refused: {0}")]
    Chain(String),
}

/// The id of a peer whose certificates a handshake has accepted, leaf first: what
/// `peer_certificates()` of a rustls connection gives.
///
/// # Errors
/// There is no certificate, or it names not exactly one SPIFFE id.
pub fn peer_id(certificates: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, PeerError> {
    leaf_id(certificates.and_then(<[_]>::first).ok_or(PeerError::Missing)?)
}

/// The one URI of a leaf.
pub(crate) fn leaf_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Certificate)?;
    if !rest.is_empty() {
        return Err(PeerError::Certificate);
    }
    let mut found = None;
    for extension in certificate.extensions() {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else { continue };
        for name in &names.general_names {
            if let GeneralName::URI(uri) = name
                && found.replace(*uri).is_some()
            {
                return Err(PeerError::SeveralIds);
            }
        }
    }
    Ok(SpiffeId::parse(found.ok_or(PeerError::NoId)?)?)
}

/// What a failed handshake means, in words for a log line or an error.
#[must_use]
pub fn explain(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.to_string(),
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the peer's certificate leads to no root of our trust bundle".to_owned()
        }
        rustls::Error::NoCertificatesPresented => PeerError::Missing.to_string(),
        rustls::Error::AlertReceived(Alert::UnknownCA) => {
            "the peer refused our certificate: it leads to no root of the peer's trust bundle".to_owned()
        }
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            "the peer refused our certificate: it has expired".to_owned()
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "the peer asks for a certificate and we have none".to_owned()
        }
        rustls::Error::InvalidMessage(_) => format!("the peer does not speak TLS: {error}"),
        other => other.to_string(),
    }
}

/// [`explain`] for the error of a TLS stream; other errors as they are.
#[must_use]
pub fn explain_io(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => explain(tls),
        None => error.to_string(),
    }
}

/// Checks the certificate of a server against the roots in force and who is expected.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) live: Arc<Live>,
    pub(crate) expect: Expect,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// Checks the certificate of a client against the roots in force.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) live: Arc<Live>,
    pub(crate) required: bool,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// What both directions say about signatures: those of TLS 1.3 alone, by the algorithms of the verifier.
macro_rules! signatures_of_tls13 {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(old_protocol())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = verify_chain(
            &self.live.bundle(),
            self.algorithms,
            end_entity,
            intermediates,
            now,
            KeyUsage::server_auth(),
        )?;
        if !self.expect.accepts(&found) {
            return Err(refused(PeerError::Unexpected { expected: self.expect.to_string(), found }));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_of_tls13!();
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client has one certificate: no hint is needed, and hints would tell strangers our roots.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify_chain(&self.live.bundle(), self.algorithms, end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_of_tls13!();
}

/// Leads a chain to a root of the bundle, and reads the id of its leaf.
pub(crate) fn verify_chain(
    bundle: &Bundle,
    algorithms: WebPkiSupportedAlgorithms,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<SpiffeId, rustls::Error> {
    let leaf = EndEntityCert::try_from(end_entity).map_err(chain_error)?;
    let anchors = bundle.anchors(now);
    leaf.verify_for_usage(algorithms.all, &anchors, intermediates, now, usage, None, None).map_err(chain_error)?;
    leaf_id(end_entity).map_err(refused)
}

/// Kinds that have an alert of their own keep it; the others tell their reason here.
fn chain_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    let error = match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        // The second: a root of the same name, with another key.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        other => return refused(PeerError::Chain(format!("{other:?}"))),
    };
    rustls::Error::InvalidCertificate(error)
}

fn refused(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

fn old_protocol() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}
