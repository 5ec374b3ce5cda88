//! Who a workload is, and how peers prove it to each other.
//!
//! - [`SpiffeId`]: the name, `spiffe://<trust domain>/ns/<namespace>/<app id>`.
//! - [`KeyPair`]: a private key, and the certificate request made with it.
//! - [`CertificateRequest`]: such a request as a certificate authority reads it.
//! - [`Bundle`]: the roots that are trusted.
//! - [`Identity`]: a certificate chain with its key.
//! - [`Live`]: bundle and identity in use. TLS configurations made from it
//!   read them at each handshake, so both are replaced under running traffic; connections
//!   that are open stay as they are.
//!
//! All of it is TLS 1.3 with *ring* as the one provider, and nothing here waits or does
//! input and output. Sessions are never resumed: each handshake checks the peer anew.

mod bundle;
mod identity;
mod keys;
mod live;
mod signature;
mod spiffe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod verify;

pub use bundle::{Bundle, BundleError};
pub use identity::{Identity, IdentityError};
pub use keys::{CertificateRequest, KeyError, KeyKind, KeyPair, RequestError};
pub use live::{Clients, Live};
pub use rustls;
pub use signature::{SignatureError, verify};
pub use spiffe::{SpiffeId, SpiffeIdError};
pub use verify::{Expect, PeerError, explain, explain_io, peer_id};
