use super::*;
use std::fs;

/// A plain app for tests.
pub(crate) fn spec(id: &str) -> AppSpec {
    AppSpec {
        app_id: id.to_owned(),
        folder: "/".into(),
        command: vec!["true".into()],
        env: BTreeMap::new(),
        app_port: None,
        app_channel_address: None,
        http_port: None,
        grpc_port: None,
        internal_grpc_port: None,
        metrics_port: None,
        profile_port: None,
        unix_domain_socket: None,
        resources: vec!["/resources".into()],
        config: "/config.yaml".into(),
        options: SidecarOptions::default(),
        app_log: Destination::Console,
        sidecar_log: Destination::File,
        log_folder: None,
    }
}

struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for path in ["orders/.dapr/resources", "stock/own", "components"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("config.yaml"), "").unwrap();
        Self { folder }
    }

    fn check(&self, text: &str) -> (Vec<AppSpec>, Vec<Diagnostic>) {
        check("dapr.yaml", text, self.folder.path(), &Home::at(Path::new("/mecha")))
    }

    /// The apps of a good file, with its warnings.
    fn parse(&self, text: &str) -> (Vec<AppSpec>, Vec<String>) {
        let (apps, findings) = self.check(text);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
        (apps, findings.iter().map(Diagnostic::to_string).collect())
    }

    /// What is wrong with a bad file.
    fn errors(&self, text: &str) -> String {
        let (_, findings) = self.check(text);
        assert!(findings.iter().any(|finding| finding.severity == Severity::Error), "{findings:?}");
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(path)
    }
}

#[test]
fn a_file_of_the_incumbent_is_read() {
    let project = Project::new();
    let (apps, warnings) = project.parse(
        r#"
version: 1
name: shop
common:
  resourcesPath: ./components
  configFilePath: config.yaml
  daprdLogDestination: fileAndConsole
  appProtocol: HTTP
  enableApiLogging: true
  logLevel: warn
  env:
    DEBUG: true
    RETRIES: 3
    RATIO: 1.10
    EMPTY:
apps:
  - appID: order-processor
    appDirPath: ./orders/
    appPort: 6001
    daprHTTPPort: 3510
    daprGRPCPort: -1
    command: ["python3", "app.py", 7]
    env:
      DEBUG: "no"
    appLogDestination: console
    appHealthCheckPath: /health
    maxBodySize: 16Mi
  - appDirPath: stock
    appProtocol: grpc
    resourcesPaths: [own, ../components]
    unixDomainSocketPath: /tmp/sockets
    enableApiLogging: false
    appMaxConcurrency: 2
    containerImage: ignored:1
"#,
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    let [orders, stock] = &apps[..] else { panic!("{apps:?}") };
    assert_eq!(orders.app_id, "order-processor");
    assert_eq!(orders.folder, project.path("orders"));
    assert_eq!(orders.app_port, Some(6001));
    assert_eq!((orders.http_port, orders.grpc_port), (Some(3510), None));
    assert_eq!(orders.command, ["python3", "app.py", "7"].map(OsString::from));
    let env: Vec<(&str, &str)> = orders.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(env, [("DEBUG", "no"), ("EMPTY", ""), ("RATIO", "1.10"), ("RETRIES", "3")]);
    assert_eq!(orders.resources, [project.path("orders/.dapr/resources")], "the app's own folder wins over common");
    assert_eq!(orders.config, project.folder.path().join("config.yaml"));
    assert_eq!((orders.app_log, orders.sidecar_log), (Destination::Console, Destination::FileAndConsole));
    assert_eq!(orders.options.app_health_check_path.as_deref(), Some("/health"));
    assert_eq!(orders.options.max_body_size.as_deref(), Some("16Mi"));
    assert_eq!(orders.options.enable_api_logging, Some(true));
    assert_eq!(orders.protocol(), "http");
    assert_eq!(orders.log_folder, Some(project.path("orders/.dapr/logs")));

    assert_eq!(stock.app_id, "stock", "the folder's name");
    assert!(stock.command.is_empty(), "a sidecar without an app");
    assert_eq!(stock.env.get("DEBUG").map(String::as_str), Some("true"), "as written");
    assert_eq!(stock.resources, [project.path("stock/own"), project.path("stock/../components")]);
    assert_eq!(stock.protocol(), "grpc");
    assert_eq!(stock.options.enable_api_logging, Some(false));
    assert_eq!(stock.options.app_max_concurrency, Some(2));
    assert_eq!(stock.options.log_level.as_deref(), Some("warn"));
    assert_eq!(stock.unix_domain_socket, Some("/tmp/sockets".into()));
}

#[test]
fn a_slip_is_named_with_its_line_and_the_likely_key() {
    let errors = Project::new().errors("version: 1\napps:\n  - appDirPath: orders\n    appPrt: 6001\n");
    assert!(errors.contains("dapr.yaml:4:5: apps[0].appPrt"), "{errors}");
    assert!(errors.contains("did you mean 'appPort'?"), "{errors}");
}

#[test]
fn a_key_of_another_version_is_only_a_warning() {
    let (apps, warnings) = Project::new().parse("version: 1\nshiny: true\napps:\n  - appDirPath: orders\n");
    assert_eq!(apps.len(), 1);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("dapr.yaml:2:1: shiny"), "{warnings:?}");
}

#[test]
fn everything_that_is_wrong_is_reported_together() {
    let errors = Project::new().errors(
        "common:\n  appPort: 1\n  resourcesPath: nowhere\napps:\n  - appID: a.b\n    appDirPath: orders\n  \
         - appDirPath: stock\n    appPort: 70000\n    appProtocol: tcp\n    appLogDestination: screen\n  - appID: x\n  \
         - appID: stock\n    appDirPath: orders\n",
    );
    for part in [
        "dapr.yaml: version: it is missing",
        "dapr.yaml:2:12: common.appPort: only an app can have this",
        "dapr.yaml:3:18: common.resourcesPaths: ",
        "dapr.yaml:5:12: apps[0].appID: \"a.b\" cannot be an app id",
        "dapr.yaml:8:14: apps[1].appPort: 70000 is no port",
        "apps[1].appProtocol: \"tcp\" is not one of http, https",
        "apps[1].appLogDestination: \"screen\" is not one of file, console, fileAndConsole",
        "apps[2].appDirPath: it is missing",
        "apps[3].appID: \"stock\" is also the id of apps[1]",
    ] {
        assert!(errors.contains(part), "{part:?} is not in:\n{errors}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_place() {
    let errors = Project::new().errors("version: 1\napps:\n  - appDirPath: orders\n    appPort: many\n");
    assert!(errors.contains("dapr.yaml:4:14"), "{errors}");
    let errors = Project::new().errors("version: 1\napps:\n  - appDirPath: orders\n    command: python3 app.py\n");
    assert!(errors.contains("dapr.yaml:4:") && errors.contains("a list of words"), "{errors}");
}

#[test]
fn broken_yaml_and_empty_files_are_refused() {
    let project = Project::new();
    let errors = project.errors("version: 1\napps: [\n");
    assert!(errors.contains("dapr.yaml:"), "{errors}");
    let errors = project.errors("version: 2\napps: []\n");
    assert!(errors.contains("version: 2 is not supported") && errors.contains("apps: there is none"), "{errors}");
    assert!(!project.errors("").is_empty());
    let errors = project.errors("version: 1\nversion: 1\napps:\n  - appDirPath: orders\n");
    assert!(errors.contains("version"), "a key given twice: {errors}");
}

#[test]
fn a_folder_stands_for_its_dapr_yaml() {
    let project = Project::new();
    assert!(locate(project.folder.path()).unwrap_err().to_string().contains("dapr.yaml"));
    fs::write(project.folder.path().join("dapr.yaml"), "").unwrap();
    assert_eq!(locate(project.folder.path()).unwrap(), Some(project.path("dapr.yaml")));
    assert_eq!(locate(Path::new("-")).unwrap(), None);
}

proptest::proptest! {
    #[test]
    fn no_input_makes_the_reader_panic(text in "[a-zA-Z0-9:\\-\\[\\]{}\"'#&*!|>%@ \n]{0,200}") {
        let _ = check("dapr.yaml", &text, Path::new("/"), &Home::at(Path::new("/mecha")));
    }
}

/// Something of everything, to be damaged.
const WHOLE: &str = r#"version: 1
common: &common
  env: {DEBUG: true, "A B": x}
  resourcesPaths: [./components]
  daprdLogDestination: file
apps:
- appID: a
  appDirPath: ./orders
  appPort: 6001
  command: ["python3", "-c", 'print("x")']
  env: *unknown
- appDirPath: |
    stock
  daprHTTPPort: 0x10
  appLogDestination: console
"#;

proptest::proptest! {
    #[test]
    fn no_damage_to_a_file_makes_the_reader_panic(
        at in 0..WHOLE.len(),
        cut in 0usize..60,
        put in "(\\PC|[\n\t:\\-&*!{}\\[\\]|>'\"#]){0,6}",
        times in 1usize..300,
    ) {
        let end = WHOLE.len().min(at + cut);
        let text = [&WHOLE[..at], &put.repeat(times), &WHOLE[end..]].concat();
        let (_, findings) = check("dapr.yaml", &text, Path::new("/"), &Home::at(Path::new("/mecha")));
        let lines = text.lines().count() + 1;
        for finding in &findings {
            proptest::prop_assert!(finding.line as usize <= lines, "{} of {}: {}", finding.line, lines, finding);
        }
    }
}

#[test]
fn files_made_to_fill_memory_are_refused() {
    let mut laughs = "apps:\n- appDirPath: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        laughs.push_str(&format!("  k{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", ")));
    }
    for text in [laughs, "[".repeat(100_000), "{a: ".repeat(50_000), "- ".repeat(50_000)] {
        let (_, findings) = check("dapr.yaml", &text, Path::new("/"), &Home::at(Path::new("/mecha")));
        assert!(findings.iter().any(|finding| finding.severity == Severity::Error));
        let said: usize = findings.iter().map(|finding| finding.to_string().len()).sum();
        assert!(said < 4_000, "{said} bytes of findings");
    }
}
