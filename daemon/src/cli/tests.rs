use std::time::Duration;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Env {
    Env::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn try_run(args: &[&str]) -> Result<Options, UsageError> {
    match command(args, env(&[]))? {
        Action::Run(options) => Ok(*options),
        other => panic!("expected to run, got {other:?}"),
    }
}

/// Options of a valid command line; the app id is added.
fn run(args: &[&str]) -> Options {
    run_with(args, &[])
}

fn run_with(args: &[&str], vars: &[(&str, &str)]) -> Options {
    let args: Vec<&str> = ["--app-id", "shop"].iter().chain(args).copied().collect();
    match command(&args, env(vars)) {
        Ok(Action::Run(options)) => *options,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn errors(args: &[&str]) -> Vec<String> {
    let args: Vec<&str> = ["--app-id", "shop"].iter().chain(args).copied().collect();
    try_run(&args).expect_err("must be refused").0
}

#[test]
fn defaults_are_those_of_the_contract() {
    let options = run(&[]);
    assert_eq!((options.mode, options.app_id.as_str()), (Mode::Standalone, "shop"));
    assert_eq!((options.app_port, options.app_protocol), (None, AppProtocol::Http));
    assert_eq!(options.app_channel_address, "127.0.0.1");
    assert_eq!(options.app_max_concurrency, None);
    assert_eq!((options.http_port, options.grpc_port, options.internal_grpc_port), (3500, 50001, None));
    assert_eq!(options.listen_addresses, [""]);
    assert_eq!(options.public_port, None);
    assert!(options.metrics.enabled);
    assert_eq!((options.metrics.port, options.metrics.listen_address.as_str()), (9090, "0.0.0.0"));
    assert!(!options.profiling.enabled);
    assert_eq!(options.profiling.port, 7777);
    assert_eq!((options.max_body_size, options.read_buffer_size), (4_194_304, 4096));
    assert_eq!(options.app_health, None);
    assert_eq!(options.app_binding_options_timeout, Duration::from_secs(3));
    assert_eq!(options.graceful_shutdown, Some(Duration::from_secs(5)));
    assert_eq!(options.block_shutdown, None);
    assert_eq!(options.api_logging, None);
    assert_eq!(options.reconcile_interval, Duration::from_secs(60));
    assert_eq!(options.actors_disseminate_timeout, Duration::from_secs(30));
    assert_eq!(options.scheduler_job_streams, 3);
    assert_eq!(options.allowed_origins, Origins::Off);
    assert_eq!((options.log.level, options.log.json, options.log.file), (Level::Info, false, None));
    assert_eq!(options.control_plane.trust_domain, "localhost");
    assert_eq!(options.control_plane.namespace, "default");
    assert!(!options.control_plane.mtls);
    assert_eq!(options.strict, Strict::default());
    assert!(options.warnings.is_empty());
}

#[test]
fn the_app_id_is_checked() {
    for (args, error) in [
        (&[][..], "parameter app-id cannot be empty"),
        (&["--app-id", "a.b"], "parameter app-id cannot contain dots"),
        (&["--app-id", "a/b"], "parameter app-id cannot contain slashes or control characters"),
    ] {
        assert_eq!(try_run(args).unwrap_err().0, [error]);
    }
    assert_eq!(try_run(&["--mode", "kubernetes"]).unwrap().mode, Mode::Kubernetes);
    assert!(try_run(&["--mode", "kubernetes"]).unwrap().control_plane.mtls);
    assert!(!try_run(&["--mode", "kubernetes", "--enable-mtls=false"]).unwrap().control_plane.mtls);
}

#[test]
fn wrong_values_are_all_reported() {
    let errors = errors(&[
        "--app-port=x",
        "--dapr-http-port=70000",
        "--app-max-concurrency=many",
        "--mode=cloud",
        "--log-level=loud",
        "--app-protocol=smtp",
        "--max-body-size=4MB",
        "--enable-mtls=perhaps",
        "--app-binding-options-timeout=5",
        "--disable-init-endpoints=config,health",
        "--scheduler-job-streams=0",
        "--actors-disseminate-timeout=0s",
        "--mecha-strict=loopback,everything",
    ]);
    for part in [
        "invalid argument \"x\" for \"--app-port\" flag: expected a port number from 0 to 65535",
        "\"70000\" for \"--dapr-http-port\"",
        "\"many\" for \"--app-max-concurrency\" flag: expected a whole number",
        "invalid value for 'mode': cloud",
        "invalid value for 'log-level': loud",
        "invalid value for 'app-protocol': smtp",
        "\"4MB\" for \"--max-body-size\"",
        "\"perhaps\" for \"--enable-mtls\" flag: expected true or false",
        "\"5\" for \"--app-binding-options-timeout\" flag: expected a duration",
        "\"health\" for \"--disable-init-endpoints\"",
        "\"0\" for \"--scheduler-job-streams\"",
        "\"0s\" for \"--actors-disseminate-timeout\" flag: must be greater than 0",
        "\"everything\" for \"--mecha-strict\" flag",
    ] {
        assert!(errors.iter().any(|error| error.contains(part)), "{part}\n{errors:#?}");
    }
    assert_eq!(errors.len(), 13, "{errors:#?}");
}

#[test]
fn the_apps_port_must_be_its_own() {
    assert_eq!(errors(&["--app-port=3500"]), ["the 'dapr-http-port' argument value 3500 conflicts with 'app-port'"]);
    assert_eq!(errors(&["--app-port=1", "--dapr-grpc-port=1", "--dapr-internal-grpc-port=1"]).len(), 2);
    assert_eq!(run(&["--app-port=0"]).app_port, None);
    assert_eq!(run(&["--app-port", ""]).app_port, None);
}

#[test]
fn protocols_and_the_old_ssl_switch() {
    for (args, protocol) in [
        (&["--app-protocol", "h2c"][..], AppProtocol::H2c),
        (&["--app-protocol", "GRPC"], AppProtocol::Grpc),
        (&["--app-protocol", ""], AppProtocol::Http),
        (&["--app-ssl"], AppProtocol::Https),
        (&["--app-ssl", "--app-protocol=grpc"], AppProtocol::Grpcs),
        (&["--app-ssl=false"], AppProtocol::Http),
        (&["--app-ssl", "--app-protocol=h2c"], AppProtocol::H2c),
    ] {
        assert_eq!(run(args).app_protocol, protocol, "{args:?}");
    }
    assert!(run(&["--app-ssl"]).warnings[0].contains("'app-ssl' flag is deprecated"));
}

#[test]
fn new_sizes_win_over_deprecated_ones() {
    for (args, size) in [
        (&["--max-body-size=8Mi"][..], 8 << 20),
        (&["--max-body-size=1k"], 1000),
        (&["--max-body-size=-1"], 4 << 20),
        (&["--dapr-http-max-request-size=16"], 16 << 20),
        (&["--dapr-http-max-request-size=-1"], 4 << 20),
        (&["--dapr-http-max-request-size=16", "--max-body-size=1Mi"], 1 << 20),
    ] {
        assert_eq!(run(args).max_body_size, size, "{args:?}");
    }
    assert_eq!(run(&["--dapr-http-read-buffer-size=16"]).read_buffer_size, 16 << 10);
    assert_eq!(run(&["--read-buffer-size=64Ki"]).read_buffer_size, 64 << 10);
    assert_eq!(errors(&["--max-body-size=0"]).len(), 1);
}

#[test]
fn health_checks_fall_back_to_defaults() {
    let health = |args: &[&str]| {
        let args: Vec<&str> = ["--enable-app-health-check"].iter().chain(args).copied().collect();
        run(&args).app_health.unwrap()
    };
    let default = AppHealthOptions {
        path: "/healthz".into(),
        interval: Duration::from_secs(5),
        timeout: Duration::from_millis(500),
        threshold: 3,
    };
    assert_eq!(health(&[]), default);
    assert_eq!(
        health(&["--app-health-probe-interval=0", "--app-health-probe-timeout=-1", "--app-health-threshold=0"]),
        default
    );
    let custom = health(&["--app-health-check-path=live", "--app-health-probe-interval=1", "--app-health-threshold=1"]);
    assert_eq!((custom.path.as_str(), custom.interval, custom.threshold), ("/live", Duration::from_secs(1), 1));
    assert_eq!(
        errors(&["--app-health-probe-interval=1", "--app-health-probe-timeout=1001"]),
        ["value for 'health-probe-timeout' must be smaller than 'health-probe-interval'"]
    );
}

#[test]
fn durations_and_limits() {
    assert_eq!(run(&["--dapr-graceful-shutdown-seconds=0"]).graceful_shutdown, None);
    assert_eq!(run(&["--dapr-graceful-shutdown-seconds=-1"]).graceful_shutdown, Some(Duration::from_secs(5)));
    assert_eq!(run(&["--dapr-graceful-shutdown-seconds=30"]).graceful_shutdown, Some(Duration::from_secs(30)));
    assert_eq!(run(&["--dapr-block-shutdown-duration=1m30s"]).block_shutdown, Some(Duration::from_secs(90)));
    assert_eq!(run(&["--dapr-block-shutdown-duration="]).block_shutdown, None);
    assert_eq!(run(&["--app-binding-options-timeout=-5s"]).app_binding_options_timeout, Duration::from_secs(3));
    assert_eq!(run(&["--hot-reload-reconcile-interval=0"]).reconcile_interval, Duration::from_secs(60));
    assert_eq!(run(&["--app-max-concurrency=7"]).app_max_concurrency, NonZeroUsize::new(7));
    assert_eq!(run(&["--app-max-concurrency=0"]).app_max_concurrency, None);
}

#[test]
fn api_logging_has_three_states() {
    assert_eq!(run(&["--enable-api-logging"]).api_logging, Some(true));
    assert_eq!(run(&["--enable-api-logging=false"]).api_logging, Some(false));
}

#[test]
fn lists_are_split() {
    let options = run(&[
        "--resources-path=a,b",
        "--components-path",
        "c",
        "--config=x",
        "--config=y",
        "--dapr-listen-addresses=[::1],127.0.0.1",
        "--placement-host-address=p1:1,p2:2",
        "--allowed-origins=https://a, https://b",
        "--disable-init-endpoints=config,subscribe",
    ]);
    assert_eq!(options.resources_paths, [PathBuf::from("a"), PathBuf::from("b"), PathBuf::from("c")]);
    assert_eq!(options.configs, ["x", "y"]);
    assert_eq!(options.listen_addresses, ["::1", "127.0.0.1"]);
    assert_eq!(options.placement_addresses, ["p1:1", "p2:2"]);
    assert_eq!(options.allowed_origins, Origins::List(vec!["https://a".into(), "https://b".into()]));
    assert_eq!(run(&["--allowed-origins=*"]).allowed_origins, Origins::Any);
    assert!(options.skip_app_config && options.skip_app_subscriptions);
}

#[test]
fn the_environment_fills_what_flags_leave_open() {
    let vars = [
        ("DAPR_CONTROLPLANE_NAMESPACE", "system"),
        ("DAPR_CONTROLPLANE_TRUST_DOMAIN", "cluster.local"),
        ("DAPR_SCHEDULER_HOST_ADDRESS_DNS_A", "schedulers:443"),
    ];
    let options = run_with(&["--control-plane-namespace=default"], &vars);
    assert_eq!(options.control_plane.namespace, "default");
    assert_eq!(options.control_plane.trust_domain, "cluster.local");
    assert_eq!(options.scheduler_dns, ["schedulers:443"]);
    let options = run_with(&["--scheduler-host-address=s:1"], &vars);
    assert_eq!((options.scheduler_addresses, options.scheduler_dns), (vec!["s:1".to_owned()], vec![]));
}

#[test]
fn strict_mode_as_a_whole_and_in_parts() {
    assert_eq!(run(&["--mecha-strict"]).strict, Strict::ALL);
    assert_eq!(run(&["--mecha-strict"]).listen_addresses, ["127.0.0.1", "::1"]);
    assert_eq!(run(&["--mecha-strict", "--dapr-listen-addresses=0.0.0.0"]).listen_addresses, ["0.0.0.0"]);
    assert_eq!(run_with(&[], &[("MECHA_STRICT", "true")]).strict, Strict::ALL);
    assert_eq!(run_with(&["--mecha-strict=false"], &[("MECHA_STRICT", "true")]).strict, Strict::default());
    let parts = Strict { degrade: true, sqlite_full: true, ..Strict::default() };
    assert_eq!(run(&["--mecha-strict=degrade,sqlite-full"]).strict, parts);
    assert_eq!(run_with(&[], &[("MECHA_STRICT", "degrade, sqlite-full")]).strict, parts);
}

#[test]
fn actions_need_no_app_id() {
    let action = |args: &[&str]| command(args, env(&[]));
    assert!(matches!(action(&["--version"]), Ok(Action::Version)));
    assert!(matches!(action(&["--build-info"]), Ok(Action::BuildInfo)));
    assert!(matches!(action(&["--help"]), Ok(Action::Help)));
    assert!(matches!(action(&["-h", "--nonsense"]), Ok(Action::Help)));
    assert!(matches!(action(&["--wait", "--dapr-http-port", "3501"]), Ok(Action::Wait { http_port: 3501 })));
    assert!(action(&["--wait", "--dapr-http-port", "x"]).is_err());
    assert!(action(&["--version", "--nonsense"]).is_err());
}

#[test]
fn arguments_of_an_injected_pod_are_taken() {
    let options = run(&[
        "--mode",
        "kubernetes",
        "--dapr-http-port",
        "3500",
        "--dapr-grpc-port",
        "50001",
        "--dapr-internal-grpc-port",
        "50002",
        "--dapr-listen-addresses",
        "[::1],127.0.0.1",
        "--dapr-public-port",
        "3501",
        "--app-id",
        "orders",
        "--app-protocol",
        "http",
        "--log-level",
        "info",
        "--dapr-graceful-shutdown-seconds",
        "-1",
        "--placement-host-address",
        "dapr-placement-server:50005",
        "--sentry-address",
        "dapr-sentry:443",
        "--control-plane-address",
        "dapr-api:443",
        "--app-max-concurrency",
        "-1",
        "--enable-metrics",
        "--metrics-port",
        "9090",
        "--max-body-size",
        "4Mi",
        "--read-buffer-size",
        "4Ki",
        "--app-port",
        "8080",
    ]);
    assert_eq!(
        (options.app_id.as_str(), options.public_port, options.internal_grpc_port),
        ("orders", Some(3501), Some(50002))
    );
    assert!(options.warnings.is_empty());
}

#[test]
fn overlay_variables_name_the_ports() {
    let options = run(&["--app-port=8080"]);
    let vars = overlay(&options, "10.0.0.1", BoundPorts { http: 3500, grpc: 50001, internal: 50002 });
    let expected = [
        ("APP_ID", "shop"),
        ("APP_PORT", "8080"),
        ("DAPR_GRPC_PORT", "50001"),
        ("DAPR_HTTP_PORT", "3500"),
        ("DAPR_METRICS_PORT", "9090"),
        ("DAPR_PORT", "50002"),
        ("DAPR_PROFILE_PORT", "7777"),
        ("HOST_ADDRESS", "10.0.0.1"),
    ];
    let got: Vec<(&str, &str)> = vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(got, expected);
}

proptest::proptest! {
    #[test]
    fn no_command_line_panics(
        args in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::string::string_regex("\\PC{0,12}").unwrap(),
                proptest::sample::select(FLAGS).prop_map(|flag| format!("--{}", flag.name)),
                (proptest::sample::select(FLAGS), "\\PC{0,8}").prop_map(|(flag, value)| format!("--{}={value}", flag.name)),
                proptest::string::string_regex("-?[0-9]{1,20}[a-zA-Z]{0,2}").unwrap(),
            ],
            0..12,
        ),
    ) {
        match command(&args, env(&[])) {
            Ok(_) => {}
            Err(UsageError(errors)) => proptest::prop_assert!(!errors.is_empty()),
        }
    }
}

use proptest::strategy::Strategy as _;
