//! `Debug` for messages that carry secrets. `xtask codegen` lists them, so a message is either here or
//! prints itself.

use std::collections::BTreeMap;
use std::fmt;

use crate::{components, delivery, operator, runtime, sentry};

/// Stands for a value that must not be shown.
struct Hidden;

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The keys of a map, without its values.
struct Keys<'a, V>(&'a BTreeMap<String, V>);

impl<V> fmt::Debug for Keys<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, Hidden))).finish()
    }
}

/// `redacted!(Type { shown; method => replacement })`: shown fields as they are, others as given.
macro_rules! redacted {
    ($($message:path { $($shown:ident)* ; $($field:ident => $show:expr),* $(,)? })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let name = stringify!($message).rsplit("::").next().unwrap_or_default().trim();
                f.debug_struct(name)
                    $(.field(stringify!($shown).trim_start_matches("r#"), &self.$shown))*
                    $(.field(stringify!($field), &$show(&self.$field)))*
                    .finish()
            }
        }
    )*};
}

fn hidden<T>(_: &T) -> Hidden {
    Hidden
}

redacted! {
    runtime::GetSecretResponse { ; data => Keys }
    runtime::SecretResponse { ; secrets => Keys }
    runtime::SubtleUnwrapKeyResponse { ; plaintext_key => hidden }
    runtime::SubtleWrapKeyRequest {
        component_name algorithm key_name;
        plaintext_key => hidden, nonce => hidden, associated_data => hidden,
    }
    components::GetSecretResponse { ; data => Keys }
    components::SecretResponse { ; secrets => Keys }
    components::MetadataRequest { ; properties => Keys }
    delivery::Document { kind revision r#move unresolved; resource => hidden }
    delivery::Move { from to phase deadline; previous => hidden }
    delivery::SignedSnapshot { ; payload => hidden, signature => hidden, chain => hidden }
    operator::ComponentUpdateEvent { r#type; component => hidden }
    operator::ListComponentResponse { ; components => Vec::len }
    operator::HttpEndpointUpdateEvent { r#type; http_endpoints => hidden }
    operator::GetHttpEndpointResponse { ; http_endpoint => hidden }
    operator::ListHttpEndpointsResponse { ; http_endpoints => Vec::len }
    sentry::SignCertificateRequest {
        id trust_domain namespace token_validator jwt_audiences certificate_signing_request;
        token => hidden,
    }
    sentry::SignCertificateResponse {
        workload_certificate trust_chain_certificates valid_until;
        jwt => hidden, per_audience_jwts => Keys,
    }
}
