//! The guides do what they say: their files are applied as they stand, to a real API server with the real roles,
//! sidecars and stores, by the steps that the guides give.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mecha_testkit::servers::{Kubernetes, KubernetesOptions, Redis};
use mecha_tests::{Answer, FaultProxy, Http, HttpApp, Signal, wait_until};
use serde_json::{Value, json};

use crate::install::install;
use crate::kubelet::{Kubelet, KubeletOptions};
use crate::leaks::{Audit, stored_with};
use crate::roles::{AGENT, ControlPart, HUB, INJECTOR};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
/// Longest wait for something that takes several roles; a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const SIDECAR: &str = "daprd";
const POD: &str = "orders-api";

/// The files of a guide, by the name in their first line.
fn files(guide: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("{DOCS}/{guide}")).unwrap();
    let blocks = text.split("```yaml\n# ").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.filter_map(|block| block.split_once('\n')).map(|(name, yaml)| (name.to_owned(), yaml.to_owned())).collect()
}

/// Commands of the guides that no test can run as they stand, and why.
const NOT_HERE: &[(&str, &str)] = &[
    ("helm ", "`install.rs` installs and uninstalls with it"),
    ("kubectl apply --server-side -f deploy/manifests/mecha.yaml", "`install` did it before the server had nodes"),
    ("kubectl -n mecha-system rollout status", "the roles run as processes, not as pods"),
    ("kubectl -n \"$CONNECT_TO\" get capabilityclaim orders --watch", "it never ends"),
    ("# finalizers.sh", "`uninstall.rs` runs it"),
];

/// The commands of a guide, in their order. A line that is indented goes on with the one before.
fn commands(guide: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{DOCS}/{guide}")).unwrap();
    let mut commands: Vec<String> = Vec::new();
    for block in text.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()) {
        let script = block.starts_with('#');
        for (number, line) in block.lines().enumerate() {
            match commands.last_mut() {
                Some(before) if number > 0 && (script || line.starts_with(' ')) => *before += &format!("\n{line}"),
                _ => commands.push(line.to_owned()),
            }
        }
    }
    commands.retain(|command| NOT_HERE.iter().all(|(known, _)| !command.starts_with(known)));
    commands
}

/// Runs a command of a guide in a folder with its files, as a person does; what it printed.
#[track_caller]
fn run(command: &str, server: &Kubernetes, folder: &Path, home: &str) -> String {
    let programs = std::env::var("MECHA_KUBERNETES").unwrap();
    let ours = mecha_tests::mecha().parent().unwrap().display().to_string();
    let output = Command::new("bash")
        .args(["-uc", command])
        .current_dir(folder)
        .env("PATH", format!("{programs}:{ours}:{}", std::env::var("PATH").unwrap()))
        .env("KUBECONFIG", server.kubeconfig())
        .env("MECHA_HOME", folder.join("home"))
        .env("CONNECT_TO", home)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // The one of which the guide says that it ends otherwise.
    let status = if command.starts_with("mecha plan ") { 3 } else { 0 };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{command}:\n{said}{complaint}");
    said
}

pub(crate) fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

/// A cluster in which the steps of the platform guide up to the app's pod have been taken.
pub(crate) struct Shop {
    // In the order in which they end.
    pub(crate) node: Kubelet,
    pub(crate) roles: ControlPart,
    /// Between the roles and the API server.
    pub(crate) road: FaultProxy,
    pub(crate) server: Kubernetes,
    audit: Audit,
    pub(crate) blue: Redis,
    green: Redis,
    _app: HttpApp,
    /// The CONNECT-TO namespace.
    pub(crate) home: String,
    /// The files of the guide, with the addresses of these stores.
    files: BTreeMap<String, String>,
}

impl Shop {
    pub(crate) async fn open() -> Option<Self> {
        Self::open_with(Vec::new()).await
    }

    /// The same, with these in the environment of sidecars.
    pub(crate) async fn open_with(variables: Vec<(String, String)>) -> Option<Self> {
        let audit = Audit::new();
        let server = audit.of(KubernetesOptions::new()).start()?;
        let (blue, green) = (Redis::start()?, Redis::start()?);
        install(&server);
        let road = FaultProxy::start(port_of(&server.url())).await;
        let roles = ControlPart::start_on(&server, Some(road.port())).await;
        let app = HttpApp::builder().on("GET /hello", Answer::text("hello")).start().await;
        let node = KubeletOptions::new().served("example/orders-api:1", app.port()).variables(variables).start(&server);
        let mut files = files("platform-guide.md");
        for text in files.values_mut() {
            *text = text
                .replace("redis-blue.databases.svc.cluster.local:6379", &blue.address())
                .replace("redis-green.databases.svc.cluster.local:6379", &green.address());
        }
        for name in ["backends.yaml", "class.yaml", "environment.yaml"] {
            server.apply(&files[name]).unwrap();
        }
        let home = String::new();
        let mut shop = Self { node, roles, road, server, audit, blue, green, _app: app, home, files };
        shop.shows(&["-n", "team-a", "environment", "dev"], ".status.conditions[?(@.type==\"Ready\")].status", "True")
            .await;
        shop.home = shop.field(&["-n", "team-a", "environment", "dev"], ".status.connectTo").unwrap();
        // The controllers of a whole cluster make it.
        shop.server.kubectl(&["-n", &shop.home, "create", "serviceaccount", "default"]);
        shop.apply(&shop.files["claim.yaml"]);
        shop.bound_to("redis-blue").await;
        shop.apply(&shop.files["app.yaml"]);
        let pod = ["-n", &shop.home.clone(), "pod", POD];
        shop.shows(&pod, ".status.conditions[?(@.type==\"Ready\")].status", "True").await;
        Some(shop)
    }

    pub(crate) fn apply(&self, yaml: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        self.server.kubectl(&["-n", &self.home, "apply", "-f", &file.path().to_string_lossy()]);
    }

    pub(crate) fn field(&self, object: &[&str], path: &str) -> Option<String> {
        let format = format!("jsonpath={{{path}}}");
        self.server.kubectl_refused(&[&["get", "-o", &format], object].concat()).ok()
    }

    /// Waits until kubectl shows this.
    pub(crate) async fn shows(&self, object: &[&str], path: &str, text: &str) {
        let what = format!("{path} of {object:?} to be {text}");
        wait_until(PATIENCE, &what, async || self.field(object, path).as_deref() == Some(text)).await;
    }

    pub(crate) async fn bound_to(&self, backend: &str) {
        let claim = ["-n", &self.home, "capabilityclaim", "orders"];
        self.shows(&claim, ".status.backend", backend).await;
        self.shows(&claim, ".status.phase", "Bound").await;
    }

    /// Edits the one line of the class that says which backends are taken.
    pub(crate) fn selects(&self, line: &str) {
        let path = "/spec/capabilities/0/backendSelector/matchLabels/line";
        let edit = json!([{"op": "replace", "path": path, "value": line}]).to_string();
        self.server.kubectl(&["patch", "environmentclass", "development", "--type=json", "-p", &edit]);
    }

    /// Starts the API server and all roles again, after which an edit of the class reaches the sidecar as ever.
    pub(crate) async fn takes_everything_up_again(&mut self) {
        self.server.restart_apiserver();
        for role in [HUB, AGENT, INJECTOR] {
            self.roles.launch(&self.server, role);
        }
        self.roles.ready().await;
        self.selects("green");
        self.bound_to("redis-green").await;
        assert_eq!(self.save("b", "2").await, 204);
        assert!(self.green.command(&["KEYS", "*"]).contains('b'));
    }

    /// Kills the sidecar, and waits until another one is ready.
    pub(crate) async fn kill_sidecar(&self) {
        let before = self.node.pid(&self.home, POD, SIDECAR).unwrap();
        self.node.signal(&self.home, POD, SIDECAR, Signal::Kill);
        wait_until(PATIENCE, "another sidecar that is ready", async || {
            let other = self.node.pid(&self.home, POD, SIDECAR).is_some_and(|pid| pid != before);
            other && self.api().get("/v1.0/healthz").try_send().await.is_ok_and(|reply| reply.status == 204)
        })
        .await;
    }

    /// The sidecar's API.
    pub(crate) fn api(&self) -> Http {
        Http::tcp(self.node.port(&self.home, POD, 3500))
    }

    pub(crate) async fn save(&self, key: &str, value: &str) -> u16 {
        self.api().post_json("/v1.0/state/orders", &json!([{"key": key, "value": value}])).send().await.status
    }

    pub(crate) async fn read(&self, key: &str) -> String {
        self.api().get(format!("/v1.0/state/orders/{key}")).send().await.text()
    }
}

/// Writes and reads until it is told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    failed: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    pub(crate) fn start(api: Http) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), calls.clone());
        let failed = tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let body = json!([{"key": "load", "value": number}]);
                match api.post_json("/v1.0/state/orders", &body).try_send().await {
                    Ok(reply) if reply.status == 204 => {}
                    other => failed.push(format!("call {number}: {other:?}")),
                }
            }
            failed
        });
        Self { stop, calls, failed }
    }

    /// Waits for so many calls more.
    pub(crate) async fn goes_on(&self, more: u64) {
        let until = self.calls.load(Ordering::Relaxed) + more;
        wait_until(PATIENCE, "the load to go on", async || self.calls.load(Ordering::Relaxed) >= until).await;
    }

    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.failed.await.unwrap();
        assert!(failed.is_empty(), "{} calls failed, the first: {}", failed.len(), failed[0]);
        assert!(self.calls.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_guide_from_the_first_environment_to_the_first_swap() {
    let Some(shop) = Shop::open().await else { return };
    let pods = ["-n", &shop.home, "pod", POD];
    assert_eq!(shop.field(&pods, ".spec.initContainers[0].name").as_deref(), Some(SIDECAR), "the webhook was asked");
    assert_eq!(shop.save("a", "1").await, 204);
    assert!(shop.blue.command(&["KEYS", "*"]).contains('a') && shop.green.command(&["KEYS", "*"]).trim().is_empty());
    let log = shop.node.log(&shop.home, POD, SIDECAR);

    // Every command of the page, in its order; what it applies is there by now, and stays as it is.
    let folder = tempfile::tempdir().unwrap();
    for (name, yaml) in &shop.files {
        std::fs::write(folder.path().join(name), yaml).unwrap();
    }
    let load = Load::start(shop.api());
    load.goes_on(20).await;
    let mut ran = 0;
    for command in commands("platform-guide.md") {
        let printed = run(&command, &shop.server, folder.path(), &shop.home);
        let row = |name: &str| -> Vec<String> {
            let row = printed.lines().find(|line| line.starts_with(&format!("{name} ")));
            let row = row.unwrap_or_else(|| panic!("{command} prints no {name}:\n{printed}"));
            row.split_whitespace().map(str::to_owned).collect()
        };
        match command.as_str() {
            "kubectl get memberclusters" => drop(row("local")),
            "kubectl get capabilitybackends" => drop((row("redis-blue"), row("redis-green"))),
            "kubectl -n team-a get environments" => {
                let row = row("dev");
                assert_eq!((row[1].as_str(), row[2].as_str()), (shop.home.as_str(), "development"), "{printed}");
            }
            "kubectl -n \"$CONNECT_TO\" get capabilityclaims" => {
                let row = row("orders");
                assert!(row.contains(&"Bound".to_owned()) && row.contains(&"redis-blue".to_owned()), "{row:?}");
            }
            patch if patch.starts_with("kubectl patch environmentclass development") => {
                shop.bound_to("redis-green").await;
                load.goes_on(20).await;
                assert!(shop.green.command(&["KEYS", "*"]).contains("load"), "what is written now is in the new store");
            }
            // The file says blue still: back again.
            plan if plan.starts_with("mecha plan class.yaml") => {
                assert!(printed.contains("redis-green") && printed.contains("redis-blue"), "{printed}");
            }
            "mecha wait class/development" => shop.bound_to("redis-blue").await,
            explain if explain.starts_with("mecha explain claim") => {
                assert!(
                    printed.contains("selected  redis-blue") && printed.contains("rejected  redis-green"),
                    "{printed}"
                );
            }
            home if home.starts_with("CONNECT_TO=") => {
                let found = run(&format!("{home}; echo \"$CONNECT_TO\""), &shop.server, folder.path(), "");
                assert_eq!(found.trim(), shop.home);
            }
            apply => {
                assert!(apply.contains(" apply -f ") || apply.starts_with("mecha apply "), "{apply} shows nothing")
            }
        }
        ran += 1;
    }
    assert!(ran >= 14, "{ran} commands are the whole page");
    load.goes_on(20).await;
    load.end().await;
    assert_eq!(shop.field(&pods, ".status.initContainerStatuses[0].restartCount").as_deref(), Some("0"), "{log}");

    // What the Secrets hold is nowhere else: not in what people without rights on Secrets can read, not in logs.
    for canary in [shop.blue.address(), shop.green.address()] {
        assert_eq!(stored_with(&shop.server, &canary).await, [""; 0], "keys of etcd that hold a value of a Secret");
        for role in [HUB, AGENT, INJECTOR] {
            assert!(!shop.roles.log(role).contains(&canary), "the log of {role} holds a value of a Secret");
        }
    }
    // Hub and injector have not even asked for one, and the agent for none but those that it has to do with.
    assert_eq!(shop.audit.asked_by("mecha-hub"), []);
    assert_eq!(shop.audit.asked_by("mecha-injector"), []);
    let asked = shop.audit.asked_by("mecha-agent");
    assert!(!asked.is_empty());
    for (verb, namespace, name) in asked {
        let known = match namespace.as_str() {
            "mecha-system" => name == "mecha-trust-root",
            "databases" => ["redis-blue", "redis-green"].contains(&name.as_str()),
            other => other == shop.home && name.starts_with("mecha-"),
        };
        // What is made has no name in the record.
        assert!(known || verb == "create", "the agent asked to {verb} the Secret {namespace}/{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_go_on_and_sidecars_restart_without_control_part_and_api_server() {
    let Some(mut shop) = Shop::open().await else { return };
    assert_eq!(shop.save("a", "1").await, 204);
    let load = Load::start(shop.api());
    for role in [HUB, AGENT, INJECTOR] {
        shop.roles.kill(role);
    }
    shop.server.kill_apiserver();
    load.goes_on(50).await;
    load.end().await;

    shop.kill_sidecar().await;
    assert_eq!(shop.read("a").await, "\"1\"");

    shop.takes_everything_up_again().await;
}

#[test]
fn the_files_of_the_developer_guide_are_taken() {
    let Some(server) = Kubernetes::start() else { return };
    install(&server);
    let files = files("developer-guide.md");
    assert_eq!(files.keys().collect::<Vec<_>>(), ["claim.yaml", "deployment.yaml"]);
    for (name, yaml) in &files {
        server.apply(yaml).unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    let deployment: Value =
        serde_json::from_str(&server.kubectl(&["get", "deployment", "orders-api", "-o", "json"])).unwrap();
    let mut pod = deployment["spec"]["template"].clone();
    pod["metadata"]["name"] = json!("orders-api-1");
    let injection = mecha_patch::inject(&pod, "default", &mecha_patch::Config::default()).unwrap();
    assert!(injection.opted_in && injection.warnings.is_empty());

    let folder = tempfile::tempdir().unwrap();
    for (name, yaml) in &files {
        std::fs::write(folder.path().join(name), yaml).unwrap();
    }
    let run = |command: &str| run(command, &server, folder.path(), "default");
    for command in commands("developer-guide.md") {
        run(&command);
    }
    // What pods will get, offline; the server takes it as it is.
    let shown = "mecha inject -f deployment.yaml";
    assert!(std::fs::read_to_string(format!("{DOCS}/developer-guide.md")).unwrap().contains(shown));
    let injected = run(shown);
    assert!(injected.contains("restartPolicy: Always") && injected.contains("name: daprd"), "{injected}");
    run(&format!("{shown} | kubectl apply --server-side --force-conflicts -f -"));
}

/// Beside the names of files, a cell of the table holds the functions in them.
#[test]
fn the_table_of_systems_names_tests_that_are_there() {
    let text = std::fs::read_to_string(format!("{DOCS}/systems.md")).unwrap();
    let (mut rows, mut tests) = (0, 0);
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| System |")) {
        let (_, shown) = row.trim_end_matches([' ', '|']).rsplit_once(" | ").unwrap();
        let mut source = String::new();
        let before = tests;
        for name in shown.split('`').skip(1).step_by(2) {
            if name.contains('/') {
                source = std::fs::read_to_string(format!("{DOCS}/../{name}"))
                    .unwrap_or_else(|why| panic!("{name}: {why}, named in {row}"));
                continue;
            }
            let test = format!("fn {name}(");
            let at = source.find(&test).unwrap_or_else(|| panic!("no file before it has {name}, named in {row}"));
            let above = source[..at].trim_end().rsplit('\n').take_while(|line| !line.trim().is_empty());
            let marked =
                above.map(str::trim).any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"));
            assert!(marked || source.contains("proptest!"), "{name} is no test, named in {row}");
            tests += 1;
        }
        assert!(tests > before, "no test is named in {row}");
        rows += 1;
    }
    assert!(rows >= 17 && tests >= 40, "{rows} rows, {tests} tests");
}
