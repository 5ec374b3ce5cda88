use tokio_postgres::config::Host;

use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<PgConfig, ConfigErrors> {
    let md: Metadata = pairs.iter().copied().collect();
    let mut errors = ConfigErrors::new();
    let config = PgConfig::read(&md, &mut errors);
    errors.finish(config)
}

fn string(text: &str) -> PgConfig {
    read(&[("connectionString", text)]).unwrap()
}

#[test]
fn parts_are_overridden() {
    let config = read(&[
        ("url", "postgres://me:old@old:1/old"),
        ("host", "new"),
        ("port", "2"),
        ("user", "you"),
        ("password", "s3cr3t"),
        ("database", "db"),
    ])
    .unwrap();
    assert_eq!(config.connect.get_hosts(), [Host::Tcp("new".into())]);
    assert_eq!(config.connect.get_ports(), [2]);
    assert_eq!(config.connect.get_user(), Some("you"));
    assert_eq!(config.connect.get_password(), Some(&b"s3cr3t"[..]));
    assert_eq!(config.connect.get_dbname(), Some("db"));
    assert!(!format!("{config:?}").contains("s3cr3t"), "no password in Debug");
}

#[test]
fn defaults() {
    let config = string("host=db");
    assert_eq!(config.timeout, Duration::from_secs(20));
    assert!(config.max_conns >= 4);
    assert_eq!((config.max_idle, config.max_lifetime), (DEFAULT_IDLE, DEFAULT_LIFETIME));
    assert_eq!(config.mode, Mode::Cached);
    assert_eq!(config.connect.get_keepalives_idle(), KEEPALIVE_IDLE);
    let found = KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES;
    assert!(found <= Duration::from_secs(15), "a silent peer is found after {found:?}");
    assert_eq!(config.connect.get_target_session_attrs(), TargetSessionAttrs::Any);
    assert_eq!(string("host=a,b").connect.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
}

#[test]
fn old_names_and_pool_settings_of_the_string() {
    let config = read(&[
        ("connectionString", "host=db pool_max_conns=7 pool_max_conn_lifetime=5m pool_min_conns=1"),
        ("timeoutInSeconds", "3"),
        ("connMaxIdleTime", "90"),
        ("queryExecMode", "simple_protocol"),
    ])
    .unwrap();
    assert_eq!((config.timeout, config.max_conns), (Duration::from_secs(3), 7));
    assert_eq!((config.max_idle, config.max_lifetime), (Duration::from_secs(90), Duration::from_secs(300)));
    assert_eq!(config.mode, Mode::Simple);
    assert_eq!(string("host=db default_query_exec_mode=exec").mode, Mode::OneShot);
}

#[test]
fn tls_is_verified_unless_told_otherwise() {
    let tls = |text: &str| string(text).tls.map(|t| t.trust);
    let mode = |text: &str| string(text).connect.get_ssl_mode();
    assert_eq!(tls("host=db"), Some(Trust::Full));
    assert_eq!(mode("host=db"), SslMode::Prefer);
    assert_eq!(tls("host=localhost"), Some(Trust::Anybody));
    assert_eq!(tls("host=127.0.0.1 sslrootcert=/ca.pem"), Some(Trust::Full));
    assert_eq!(tls("host=db sslmode=disable"), None);
    assert_eq!(tls("host=/run/postgresql sslmode=require"), None, "a socket needs none");
    for name in ["allow", "prefer"] {
        assert_eq!(tls(&format!("host=db sslmode={name}")), Some(Trust::Anybody));
    }
    for name in ["require", "verify-full"] {
        let text = format!("host=db sslmode={name}");
        assert_eq!((mode(&text), tls(&text)), (SslMode::Require, Some(Trust::Full)));
    }
    assert_eq!(tls("host=db sslmode=verify-ca"), Some(Trust::Chain));
    let skipped = read(&[("url", "host=db sslmode=require"), ("mecha.insecureSkipTLSVerify", "true")]).unwrap();
    assert_eq!(skipped.tls.unwrap().trust, Trust::Anybody);
}

#[test]
fn other_keys_are_parameters_of_the_session() {
    let config = string("host=db search_path='a, b' statement_timeout=5 options='-c x=1'");
    assert_eq!(config.connect.get_options(), Some(r"-c x=1 -c search_path=a,\ b -c statement_timeout=5"));
    assert!(!config.limit_statements);
    assert!(string("host=db").limit_statements);
}

#[test]
fn every_mistake_is_told_at_once() {
    let errors = read(&[("timeout", "10ms"), ("maxConns", "-1"), ("queryExecMode", "fast"), ("useAWSIAM", "true")]);
    let text = errors.unwrap_err().to_string();
    for part in [
        "failed to build connection string",
        "invalid value for 'timeout': must be greater than 1s",
        "'maxConns' must be between",
        "invalid queryExecMode metadata value: fast",
        "'useAWSIAM' is not supported",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    for bad in
        ["host=db port=0", "host=db sslmode=maybe", "host=a,b port=1,2,3", "host=db sslcert=x", "host=db service=x"]
    {
        assert!(read(&[("url", bad)]).is_err(), "{bad}");
    }
}

#[test]
fn names_of_tables() {
    for good in ["state", "my_schema.State2", "\"my table\"", "s.\"T.x\"", "_x"] {
        assert!(is_table(good), "{good}");
    }
    for bad in ["", "a b", "a;drop table b", "a.b.c", "1a", "a.", ".a", "\"a", "\"\"", "a\"b\"", "ü", "a--", "a$1"] {
        assert!(!is_table(bad), "{bad}");
    }
    assert_eq!((bare("s.state"), bare("state"), bare("s.\"My.T\"")), ("state", "state", "My.T"));
}

proptest::proptest! {
    #[test]
    fn any_string_is_read_or_refused(text in "\\PC{0,60}|(host|port|sslmode|options|hostaddr)=[a-z0-9,.:']{0,20}") {
        let _ = read(&[("connectionString", &text)]);
    }
}
