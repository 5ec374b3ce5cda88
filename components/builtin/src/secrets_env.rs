use std::collections::BTreeMap;
use std::sync::Arc;

use mecha_components_api::{
    BuildCx, Component, ConfigErrors, Field, FieldType, Metadata, Prepared, Registration, Result, Secret, SecretCaps,
    SecretMap, SecretStore, async_trait,
};

const FIELDS: &[Field] = &[Field::new(
    "prefix",
    FieldType::Text,
    "Put before the name of a secret to get the name of the variable; only variables with it are listed. \
     Upper and lower case differ.",
)];

pub(crate) fn registration() -> Registration<dyn SecretStore> {
    Registration {
        kind: "secretstores.local.env",
        aliases: &[],
        versions: &["v1"],
        summary: "Secrets from the environment of the sidecar",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn SecretStore>>, ConfigErrors> {
    Ok(Box::new(Config { prefix: md.get("prefix").unwrap_or_default().to_owned() }))
}

struct Config {
    prefix: String,
}

#[async_trait]
impl Prepared<dyn SecretStore> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn SecretStore>> {
        Ok(Arc::new(EnvSecrets { name: cx.name.clone(), prefix: self.prefix, read: |v| std::env::var_os(v), all }))
    }
}

type Variable = (std::ffi::OsString, std::ffi::OsString);

fn all() -> Vec<Variable> {
    std::env::vars_os().collect()
}

/// `secretstores.local.env`. A variable that is not set, or hidden, is an empty
/// secret and no error: that is what apps written for the incumbent get.
#[derive(Debug)]
struct EnvSecrets {
    name: Arc<str>,
    prefix: String,
    read: fn(&str) -> Option<std::ffi::OsString>,
    all: fn() -> Vec<Variable>,
}

/// The sidecar's own settings and tokens are nobody's secrets.
fn is_hidden(variable: &str) -> bool {
    variable.eq_ignore_ascii_case("APP_API_TOKEN")
        || variable.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("DAPR_"))
}

fn one(name: &str, value: &str) -> SecretMap {
    BTreeMap::from([(name.to_owned(), Secret::new(value))])
}

impl Component for EnvSecrets {}

#[async_trait]
impl SecretStore for EnvSecrets {
    fn caps(&self) -> SecretCaps {
        SecretCaps::default()
    }

    async fn get(&self, name: &str, _: &Metadata) -> Result<SecretMap> {
        let variable = format!("{}{name}", self.prefix);
        if is_hidden(&variable) {
            tracing::warn!(component = %self.name, secret = name, "this environment variable is not given out");
            return Ok(one(name, ""));
        }
        // The operating system knows no variable with these characters; asking for one may panic.
        let value = if variable.is_empty() || variable.contains(['=', '\0']) { None } else { (self.read)(&variable) };
        Ok(one(name, value.as_deref().and_then(|v| v.to_str()).unwrap_or_default()))
    }

    async fn list(&self, _: &Metadata) -> Result<BTreeMap<String, SecretMap>> {
        let mut found = BTreeMap::new();
        for (variable, value) in (self.all)() {
            // A name or value that is no UTF-8 text cannot travel in JSON.
            let (Some(variable), Some(value)) = (variable.to_str(), value.to_str()) else { continue };
            let Some(name) = variable.strip_prefix(self.prefix.as_str()).filter(|n| !n.is_empty()) else { continue };
            if !is_hidden(variable) {
                found.insert(name.to_owned(), one(name, value));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(prefix: &str) -> EnvSecrets {
        fn variables() -> Vec<Variable> {
            [("APP_DB", "pw"), ("app_db", "lower"), ("DAPR_API_TOKEN", "t"), ("App_Api_Token", "t"), ("EMPTY", "")]
                .map(|(k, v)| (k.into(), v.into()))
                .into()
        }
        EnvSecrets {
            name: "env".into(),
            prefix: prefix.into(),
            read: |want| variables().into_iter().find(|(k, _)| k == want).map(|(_, v)| v),
            all: variables,
        }
    }

    async fn get(prefix: &str, name: &str) -> String {
        store(prefix).get(name, &Metadata::new()).await.unwrap()[name].expose().to_owned()
    }

    #[tokio::test]
    async fn gives_a_variable_under_the_name_that_was_asked_for() {
        assert_eq!(get("", "APP_DB").await, "pw");
        assert_eq!(get("APP_", "DB").await, "pw");
        assert_eq!(get("", "app_db").await, "lower");
    }

    #[tokio::test]
    async fn hides_the_sidecars_own_variables_in_any_case() {
        assert_eq!(get("", "DAPR_API_TOKEN").await, "");
        assert_eq!(get("DAPR_", "API_TOKEN").await, "");
        assert_eq!(get("", "App_Api_Token").await, "");
        let listed = store("").list(&Metadata::new()).await.unwrap();
        assert_eq!(listed.keys().collect::<Vec<_>>(), ["APP_DB", "EMPTY", "app_db"]);
    }

    #[tokio::test]
    async fn an_unset_or_impossible_variable_is_empty() {
        for name in ["NOBODY_SET_THIS", "", "a=b", "a\0b"] {
            assert_eq!(get("", name).await, "", "{name:?}");
        }
    }

    #[tokio::test]
    async fn lists_only_the_prefix_and_strips_it() {
        let listed = store("APP_").list(&Metadata::new()).await.unwrap();
        assert_eq!(listed.keys().collect::<Vec<_>>(), ["DB"]);
        assert_eq!(listed["DB"]["DB"].expose(), "pw");
    }
}
