//! Documents: what is wrong with one is told, and costs no more than it must.

use std::time::Duration;

use mecha_tests::{HttpApp, Item, Sidecar, component, eventually};
use serde_json::json;

use crate::support::{memory_pubsub, memory_store, series, sqlite_store};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_components_of_one_name_end_the_start() {
    let documents = [memory_store("same"), memory_pubsub("same"), memory_store("other"), memory_pubsub("other")];
    let lines = [
        "failed to load components: ",
        "duplicate definition of Component name same (pubsub.in-memory/v1) with existing same (state.in-memory/v1)",
        "duplicate definition of Component name other (pubsub.in-memory/v1) with existing other (state.in-memory/v1)",
    ];
    let builder = || documents.iter().fold(Sidecar::builder(), |builder, document| builder.component(document));
    let ended = builder().spawn().ended(SOON).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    // Strict mode degrades: the first one of each name runs.
    let strict = builder().switch("mecha-strict").start().await;
    for line in lines {
        assert!(ended.log.contains(line), "{line:?} in\n{}", ended.log);
        assert!(strict.log().contains(line), "{line:?} in\n{}", strict.log());
    }
    let [api, _] = strict.apis().await;
    api.save("same", &[Item::new("k", "1")]).await.unwrap();
    api.publish("same", "t", "", "x", &[]).await.unwrap_err();
}

#[tokio::test]
async fn broken_yaml_is_told_with_file_and_line_and_the_rest_runs() {
    let broken = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: broken\nspec:\n  type: [unclosed\n";
    let misspelt = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: misspelt\nspec:\n  tpye: \
                    state.in-memory\n  version: v1\n";
    let sidecar = Sidecar::builder()
        .document("broken.yaml", broken)
        .document("misspelt.yaml", misspelt)
        .component(memory_store("good"))
        .start()
        .await;
    let log = sidecar.log();
    let line = |file: &str| {
        let found = log.lines().find(|line| line.contains(file) && !line.contains("level=info"));
        found.unwrap_or_else(|| panic!("a line about {file} in\n{log}")).to_owned()
    };
    assert!(line("broken.yaml").contains(":6") || line("broken.yaml").contains("line 6"), "{}", line("broken.yaml"));
    assert!(line("misspelt.yaml").contains("type"), "{}", line("misspelt.yaml"));
    let [api, _] = sidecar.apis().await;
    api.save("good", &[Item::new("k", "1")]).await.unwrap();
}

#[tokio::test]
async fn other_documents_are_left_alone() {
    let sidecar = Sidecar::builder()
        .document("config-map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\ndata:\n  a: b\n")
        .document("plain.yaml", "just: text\n")
        .document("notes.txt", "not yaml: [")
        .document("empty.yaml", "")
        .document("several.yml", &format!("---\n{}---\n{}", memory_store("one"), memory_store("two")))
        .document("scoped.yaml", &format!("{}scopes: [other-app]\n", memory_store("scoped")))
        .start()
        .await;
    let names: Vec<String> = sidecar.metadata().await["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|component| component["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["one", "two"]);
}

#[tokio::test]
async fn ignored_errors_cost_the_component_only() {
    let document = component("broken", "state.sqlite", &[]).replace("spec:\n", "spec:\n  ignoreErrors: true\n");
    let sidecar = Sidecar::builder().component(document).component(memory_store("good")).start().await;
    assert!(sidecar.log().contains("Ignoring error processing component: "), "{}", sidecar.log());
    for api in sidecar.apis().await {
        api.save("good", &[Item::new("k", "1")]).await.unwrap();
        let fault = api.save("broken", &[Item::new("k", "1")]).await.unwrap_err();
        assert!(fault.message.contains("broken"), "{fault:?}");
    }
    let failed =
        series(&sidecar.metrics().await, "dapr_runtime_component_init_fail_total", &[("component", "state.sqlite")]);
    assert_eq!(failed, Some(1.0));
}

#[tokio::test]
async fn strict_mode_degrades_and_recovers() {
    let builder = Sidecar::builder().switch("mecha-strict");
    // The folder of the file is not there yet.
    let folder = builder.folder().join("later");
    let file = folder.join("state.db");
    let sidecar = builder.component(sqlite_store("late", &file)).component(memory_store("good")).start().await;
    for api in sidecar.apis().await {
        api.save("good", &[Item::new("k", "1")]).await.unwrap();
    }
    let [http, grpc] = sidecar.apis().await;
    let made = std::fs::create_dir(&folder).is_ok();
    if made {
        // It could not be opened so far, and the caller was told so.
        let before = http.get("late", "k").await;
        assert!(before.is_err() || before.unwrap().is_none());
    }
    eventually("the store to recover", || async { http.save("late", &[Item::new("k", "1")]).await.ok() }).await;
    assert_eq!(grpc.get("late", "k").await.unwrap().unwrap().text(), "1");
}

#[tokio::test]
async fn a_degraded_component_answers_with_its_cause() {
    let sidecar = Sidecar::builder()
        .switch("mecha-strict")
        .component(component("broken", "state.sqlite", &[]))
        .component(memory_store("good"))
        .start()
        .await;
    for api in sidecar.apis().await {
        let fault = api.get("broken", "k").await.unwrap_err();
        assert!(fault.http.is_none_or(|status| status >= 500), "{fault:?}");
        assert!(fault.message.contains("missing connection string"), "the cause: {fault:?}");
        assert!(!fault.code.is_empty(), "{fault:?}");
        api.save("good", &[Item::new("k", "1")]).await.unwrap();
    }
    let failed =
        series(&sidecar.metrics().await, "dapr_runtime_component_init_fail_total", &[("component", "state.sqlite")]);
    assert!(failed.is_some_and(|count| count >= 1.0), "{failed:?}");
    assert!(sidecar.metadata().await.to_string().contains("broken"), "{}", sidecar.metadata().await);
}

#[tokio::test]
async fn unknown_metadata_keys_are_reported_with_the_known_ones() {
    let sidecar = Sidecar::builder()
        .component(component("c", "bindings.http", &[("url", "http://127.0.0.1:1"), ("responseTimout", "1s")]))
        .start()
        .await;
    let log = sidecar.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("responseTimout")).collect();
    assert_eq!(lines.len(), 1, "one warning: {log}");
    assert!(lines[0].contains("level=warning") && lines[0].contains("responseTimeout"), "{}", lines[0]);
}

#[tokio::test]
async fn refused_types_are_not_loaded() {
    let sidecar = Sidecar::builder()
        .configuration("components:\n  deny: [state.in-memory, pubsub.in-memory/v2]\n")
        .component(memory_store("refused").replace("spec:\n", "spec:\n  ignoreErrors: true\n"))
        .component(memory_pubsub("fine"))
        .start()
        .await;
    let names = sidecar.metadata().await["components"].clone();
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
    assert_eq!(names[0]["name"], "fine");
    assert!(
        sidecar.log().contains(
            "component 'refused' cannot be loaded because components of type 'refused (state.in-memory/v1)' are not allowed"
        ),
        "{}",
        sidecar.log()
    );
}

#[tokio::test]
async fn values_are_read_by_the_rules_of_yaml_1_1() {
    let builder = Sidecar::builder();
    let folder = builder.folder();
    std::fs::write(folder.join("secrets.json"), json!({"1.1": "decimal", "511": "octal"}).to_string()).unwrap();
    // A file name and a key are taken as text, whatever YAML makes of them.
    let document = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: vault\nspec:\n  type: \
         secretstores.local.file\n  version: v1\n  metadata:\n    - name: SecretsFile\n      value: {}\n    - name: \
         MULTIVALUED\n      value: off\n",
        folder.join("secrets.json").display()
    );
    let sidecar = builder.component(document).start().await;
    let [api, _] = sidecar.apis().await;
    assert_eq!(api.secret("vault", "511").await.unwrap()["511"], "octal");
}

#[tokio::test]
async fn templates_and_environment_reach_a_component() {
    let builder = Sidecar::builder().app_id("me").env("MY_FOLDER", "by-env").env("NAMESPACE", "space");
    let root = builder.folder().join("{namespace}-{appID}");
    let document = component("files", "bindings.localstorage", &[("rootPath", root.to_str().unwrap())]);
    let from_env = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: from-env\nspec:\n  type: \
                    bindings.localstorage\n  version: v1\n  metadata:\n    - name: rootPath\n      envRef: MY_FOLDER\n";
    let sidecar = builder.component(document).component(from_env).start().await;
    let [api, _] = sidecar.apis().await;
    for name in ["files", "from-env"] {
        api.binding(name, "create", "\"x\"", &[("fileName", "f")]).await.unwrap();
    }
    assert!(
        sidecar.folder().join("space.me-me/f").exists(),
        "{:?}",
        std::fs::read_dir(sidecar.folder()).unwrap().collect::<Vec<_>>()
    );
    assert!(sidecar.folder().join("by-env/f").exists());
}

#[tokio::test]
async fn tokens_of_the_daemon_are_no_environment_for_components() {
    let document = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: web\nspec:\n  type: \
                    bindings.http\n  version: v1\n  metadata:\n    - name: url\n      value: \"http://127.0.0.1:1\"\n    - \
                    name: securityToken\n      envRef: APP_API_TOKEN\n    - name: securityTokenHeader\n      value: X-T\n";
    let there = HttpApp::builder().on("/*", mecha_tests::Answer::text("ok")).start().await;
    let document = document.replace("127.0.0.1:1", &format!("127.0.0.1:{}", there.port()));
    let sidecar = Sidecar::builder().env("APP_API_TOKEN", "canary").component(document).start().await;
    let [api, _] = sidecar.apis().await;
    let _ = api.binding("web", "get", "", &[]).await;
    assert!(there.all_calls().iter().all(|call| !format!("{:?}", call.headers).contains("canary")));
}

#[tokio::test]
async fn several_configurations_merge() {
    let sidecar = Sidecar::builder()
        .configuration("metrics:\n  enabled: false\n")
        .configuration("api:\n  denied:\n    - {name: metadata, version: v1, protocol: http}\n")
        .start()
        .await;
    sidecar.http().get("/v1.0/metadata").send().await.expect(404);
    let metrics = sidecar.metrics().await;
    assert!(!metrics.contains("dapr_"), "{metrics}");
}

#[tokio::test]
async fn variables_in_a_configuration_are_expanded() {
    let sidecar = Sidecar::builder()
        .env("WHICH", "metadata")
        .configuration("api:\n  denied:\n    - {name: \"${WHICH}\", version: v1, protocol: http}\n")
        .start()
        .await;
    sidecar.http().get("/v1.0/metadata").send().await.expect(404);
}
