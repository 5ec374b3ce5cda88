//! API tokens, compared in constant time.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Header and metadata key of both tokens.
pub const TOKEN_HEADER: &str = "dapr-api-token";

/// The token that API callers must send. Only its hash is kept.
#[derive(Clone)]
pub struct ApiToken([u8; 32]);

impl ApiToken {
    /// Reads the configured token; empty means none.
    #[must_use]
    pub fn new(token: &str) -> Option<Self> {
        (!token.is_empty()).then(|| Self(hash(token.as_bytes())))
    }

    /// Compares hashes, so that neither content nor length shows in the time it takes.
    #[must_use]
    pub fn accepts(&self, given: &[u8]) -> bool {
        hash(given).ct_eq(&self.0).into()
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken(***)")
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_text_is_accepted() {
        let token = ApiToken::new("s3cret").unwrap();
        assert!(token.accepts(b"s3cret"));
        for wrong in ["", "s3cre", "s3cret ", "S3cret"] {
            assert!(!token.accepts(wrong.as_bytes()), "{wrong}");
        }
        assert!(ApiToken::new("").is_none());
        assert!(!format!("{token:?}").contains("s3cret"));
    }
}
