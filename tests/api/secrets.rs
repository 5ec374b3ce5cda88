//! Secrets: who may read which, over both fronts, and in components.

use std::path::Path;

use mecha_tests::{Expect, Item, Sidecar, SidecarBuilder, component, eventually};
use serde_json::json;
use tonic::Code;

use crate::support::memory_store;

fn file_store(name: &str, folder: &Path, more: &[(&str, &str)]) -> String {
    let file = folder.join("secrets.json");
    let secrets = json!({
        "plain": "value",
        "db": {"user": "me", "password": "canary-4711"},
        "number": 5,
        "flag": true,
    });
    std::fs::write(&file, secrets.to_string()).unwrap();
    let mut metadata = vec![("secretsFile", file.to_str().unwrap())];
    metadata.extend_from_slice(more);
    component(name, "secretstores.local.file", &metadata)
}

fn with_file(more: &[(&str, &str)]) -> SidecarBuilder {
    let builder = Sidecar::builder();
    let document = file_store("vault", &builder.folder(), more);
    builder.component(document)
}

#[tokio::test]
async fn a_file_is_read_flat() {
    let sidecar = with_file(&[]).start().await;
    for api in sidecar.apis().await {
        let secret = api.secret("vault", "db:password").await.unwrap();
        assert_eq!(secret.into_iter().collect::<Vec<_>>(), [("db:password".into(), "canary-4711".into())]);
        assert_eq!(api.secret("vault", "number").await.unwrap()["number"], "5");
        assert_eq!(api.secret("vault", "flag").await.unwrap()["flag"], "true");
        let all = api.secrets("vault").await.unwrap();
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["db:password", "db:user", "flag", "number", "plain"]);
        assert_eq!(all["plain"]["plain"], "value");
    }
}

#[tokio::test]
async fn a_separator_may_be_chosen() {
    let sidecar = with_file(&[("nestedSeparator", ".")]).start().await;
    for api in sidecar.apis().await {
        assert_eq!(api.secret("vault", "db.user").await.unwrap()["db.user"], "me");
    }
}

#[tokio::test]
async fn a_file_may_hold_many_values_per_secret() {
    let sidecar = with_file(&[("multiValued", "true")]).start().await;
    for api in sidecar.apis().await {
        let secret = api.secret("vault", "db").await.unwrap();
        assert_eq!((secret["user"].as_str(), secret["password"].as_str()), ("me", "canary-4711"));
    }
    let components = sidecar.metadata().await["components"].clone();
    assert_eq!(components[0]["capabilities"], json!(["MULTIPLE_KEY_VALUES_PER_SECRET"]));
}

#[tokio::test]
async fn a_changed_file_is_read_again() {
    let sidecar = with_file(&[]).start().await;
    let file = sidecar.folder().join("secrets.json");
    for api in sidecar.apis().await {
        let value = format!("changed for {}", api.name());
        std::fs::write(&file, json!({"plain": value}).to_string()).unwrap();
        eventually("the new secret", || async {
            api.secret("vault", "plain").await.ok().filter(|secret| secret["plain"] == value)
        })
        .await;
    }
}

#[tokio::test]
async fn the_environment_hides_the_daemon_s_own_tokens() {
    let sidecar = Sidecar::builder()
        .env("SHOWN", "seen")
        .env("APP_API_TOKEN", "app-token-canary")
        .env("DAPR_WHATEVER", "dapr-canary")
        .component(component("env", "secretstores.local.env", &[]))
        .start()
        .await;
    for api in sidecar.apis().await {
        assert_eq!(api.secret("env", "SHOWN").await.unwrap()["SHOWN"], "seen");
        for hidden in ["APP_API_TOKEN", "DAPR_WHATEVER", "DAPR_HOST_IP"] {
            let secret = api.secret("env", hidden).await.unwrap();
            assert!(secret.values().all(String::is_empty), "{hidden}: {secret:?}");
        }
        let all = api.secrets("env").await.unwrap();
        assert!(!format!("{all:?}").contains("canary"), "{all:?}");
        assert_eq!(all["SHOWN"]["SHOWN"], "seen");
    }
}

#[tokio::test]
async fn errors_say_what_is_missing() {
    let none = Sidecar::with("app", &[]).await;
    for api in none.apis().await {
        let expected = Expect {
            http: 500,
            grpc: Code::FailedPrecondition,
            code: "ERR_SECRET_STORES_NOT_CONFIGURED",
            reason: "",
            message: "secret store is not configured",
        };
        api.secret("vault", "k").await.unwrap_err().is(&expected);
        api.secrets("vault").await.unwrap_err().is(&expected);
    }
    let sidecar = with_file(&[]).start().await;
    for api in sidecar.apis().await {
        let expected = Expect {
            http: 401,
            grpc: Code::InvalidArgument,
            code: "ERR_SECRET_STORE_NOT_FOUND",
            reason: "",
            message: "failed finding secret store with key other",
        };
        api.secret("other", "k").await.unwrap_err().is(&expected);
        api.secrets("other").await.unwrap_err().is(&expected);
        api.secret("vault", "absent").await.unwrap_err().is(&Expect {
            http: 500,
            grpc: Code::Internal,
            code: "ERR_SECRET_GET",
            reason: "",
            message: "failed getting secret with key absent from secret store vault: …",
        });
    }
}

/// What a scope lets through: `(scope, allowed, denied)`.
const SCOPES: [(&str, &[&str], &[&str]); 4] = [
    ("defaultAccess: deny", &[], &["plain", "db:user"]),
    ("defaultAccess: allow\ndeniedSecrets: [plain]", &["db:user"], &["plain"]),
    ("defaultAccess: deny\nallowedSecrets: [plain]", &["plain"], &["db:user"]),
    // A list of allowed ones decides alone.
    ("defaultAccess: allow\nallowedSecrets: [plain]\ndeniedSecrets: [plain]", &["plain"], &["db:user"]),
];

#[tokio::test]
async fn scopes_hold_on_both_fronts() {
    for (scope, allowed, denied) in SCOPES {
        let scope = mecha_tests::indent(scope, 6);
        let spec = format!("secrets:\n  scopes:\n    - storeName: vault\n{scope}");
        let sidecar = with_file(&[]).configuration(&spec).start().await;
        for api in sidecar.apis().await {
            for key in allowed {
                api.secret("vault", key).await.unwrap();
            }
            for key in denied {
                let message = format!("access denied by policy to get \"{key}\" from \"vault\"");
                api.secret("vault", key).await.unwrap_err().is(&Expect {
                    http: 403,
                    grpc: Code::PermissionDenied,
                    code: "ERR_PERMISSION_DENIED",
                    reason: "",
                    message: message.leak(),
                });
            }
            let all = api.secrets("vault").await.unwrap();
            for key in denied {
                assert!(!all.contains_key(*key), "{scope}: {all:?}");
            }
            for key in allowed {
                assert!(all.contains_key(*key), "{scope}: {all:?}");
            }
        }
    }
}

/// A state store whose connection string is a secret.
fn store_with_secret(key: &str) -> String {
    format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: store\nspec:\n  type: state.sqlite\n  \
         version: v1\n  metadata:\n    - name: connectionString\n      secretKeyRef:\n        name: {key}\n\
         auth:\n  secretStore: vault\n"
    )
}

#[tokio::test]
async fn a_component_may_take_a_secret() {
    let builder = Sidecar::builder();
    let folder = builder.folder();
    let database = folder.join("secret-path.db");
    let file = folder.join("own.json");
    std::fs::write(&file, json!({"path": database.to_str().unwrap()}).to_string()).unwrap();
    // The store comes after the component that needs it, on purpose.
    let sidecar = builder
        .component(store_with_secret("path"))
        .component(component("vault", "secretstores.local.file", &[("secretsFile", file.to_str().unwrap())]))
        .start()
        .await;
    let [api, _] = sidecar.apis().await;
    eventually("the store that waits for its secret", || async {
        api.save("store", &[Item::new("k", "1")]).await.ok()
    })
    .await;
    assert!(database.exists());
    assert!(!sidecar.log().contains("secret-path.db"), "a secret is in the log");
}

#[tokio::test]
async fn a_secret_store_that_is_not_there_is_named() {
    let mut sidecar = Sidecar::builder().component(store_with_secret("path")).component(memory_store("other")).spawn();
    sidecar.outbound_ready().await;
    sidecar.wait_log("Component store references a secret store that isn't loaded: vault").await;
    // Readiness is not held up by a component that waits.
    sidecar.ready().await;
    let [api, _] = sidecar.apis().await;
    api.save("other", &[Item::new("k", "1")]).await.unwrap();
}

#[tokio::test]
async fn no_secret_shows_up_anywhere_else() {
    let builder = with_file(&[]).flag("log-level", "debug").switch("enable-api-logging");
    let sidecar = builder.start().await;
    for api in sidecar.apis().await {
        api.secret("vault", "db:password").await.unwrap();
        api.secrets("vault").await.unwrap();
    }
    let metadata = sidecar.metadata().await.to_string();
    let metrics = sidecar.metrics().await;
    for (place, text) in [("metadata", metadata), ("metrics", metrics), ("log", sidecar.log())] {
        assert!(!text.contains("canary-4711"), "{place}");
    }
}
