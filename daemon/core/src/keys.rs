//! How an app's key becomes the key that a store sees.

use mecha_components_api::Metadata;

/// Separates prefix and key. Neither may contain it, so two (prefix, key) pairs never
/// share a stored key.
pub const SEPARATOR: &str = "||";

/// Key prefix strategy of one component (`keyPrefix`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyScheme {
    /// Prefix with its separator; empty for strategy `none`.
    prefix: String,
}

impl KeyScheme {
    /// Reads `keyPrefix`: `appid` (default), `name`, `namespace`, `none`, or own text. The value is
    /// lower-cased first, own text too, as the incumbent's stored data has it.
    ///
    /// # Errors
    /// The message for the user, when the prefix contains the separator.
    pub fn from_metadata(md: &Metadata, component: &str, app_id: &str, namespace: &str) -> Result<Self, String> {
        let strategy = md.get_non_empty("keyPrefix").unwrap_or("appid").trim().to_lowercase();
        let prefix = match strategy.as_str() {
            "" | "appid" => app_id.to_owned(),
            "name" => component.to_owned(),
            "none" => return Ok(Self { prefix: String::new() }),
            "namespace" if namespace.is_empty() => app_id.to_owned(),
            "namespace" => format!("{namespace}.{app_id}"),
            own => own.to_owned(),
        };
        // A trailing pipe would let `a|` + `b` and `a` + `|b` meet in one stored key.
        if prefix.contains(SEPARATOR) || prefix.ends_with('|') {
            return Err(illegal(&prefix));
        }
        Ok(Self { prefix: prefix + SEPARATOR })
    }

    /// The stored key.
    ///
    /// # Errors
    /// The message for the user, when the key contains the separator.
    pub fn encode(&self, key: &str) -> Result<String, String> {
        if key.contains(SEPARATOR) {
            return Err(illegal(key));
        }
        let mut full = String::with_capacity(self.prefix.len() + key.len());
        full.push_str(&self.prefix);
        full.push_str(key);
        Ok(full)
    }

    /// The app's key of a stored key.
    #[must_use]
    pub fn decode<'a>(&self, stored: &'a str) -> &'a str {
        stored.strip_prefix(self.prefix.as_str()).unwrap_or(stored)
    }

    /// What every stored key of this app begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

fn illegal(text: &str) -> String {
    format!("input key/keyPrefix '{text}' can't contain '{SEPARATOR}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scheme(prefix: &str, ns: &str) -> KeyScheme {
        let md: Metadata = [("keyPrefix", prefix)].into_iter().collect();
        KeyScheme::from_metadata(&md, "store", "App", ns).unwrap()
    }

    #[test]
    fn strategies() {
        assert_eq!(scheme("", "").encode("k").unwrap(), "App||k");
        assert_eq!(scheme("appid", "ns").encode("k").unwrap(), "App||k");
        assert_eq!(scheme("name", "").encode("k").unwrap(), "store||k");
        assert_eq!(scheme("namespace", "ns").encode("k").unwrap(), "ns.App||k");
        assert_eq!(scheme("namespace", "").encode("k").unwrap(), "App||k");
        assert_eq!(scheme("none", "ns").encode("k").unwrap(), "k");
        assert_eq!(scheme("MyApp", "").encode("k").unwrap(), "myapp||k");
    }

    #[test]
    fn separator_is_refused() {
        let md: Metadata = [("keyPrefix", "a||b")].into_iter().collect();
        assert!(KeyScheme::from_metadata(&md, "s", "a", "").is_err());
        assert_eq!(scheme("", "").encode("a||b").unwrap_err(), "input key/keyPrefix 'a||b' can't contain '||'");
    }

    proptest! {
        #[test]
        fn two_keys_never_share_a_stored_key(a in "[a-z|]{1,4}", b in "[a-z|]{1,4}", p in "[a-z]{1,3}", q in "[a-z]{1,3}") {
            if let (Ok(x), Ok(y)) = (scheme(&p, "").encode(&a), scheme(&q, "").encode(&b)) {
                // A key may begin with a single pipe, so the stored forms are told apart by the first separator.
                if (&p, &a) != (&q, &b) { prop_assert_ne!(x, y); }
            }
        }

        #[test]
        fn decode_undoes_encode(k in "[^|]{0,12}", p in "[a-z]{0,4}") {
            let s = scheme(&p, "ns");
            let full = s.encode(&k).unwrap();
            prop_assert_eq!(s.decode(&full), k);
        }
    }
}
