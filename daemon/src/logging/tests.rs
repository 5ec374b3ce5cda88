use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn identity() -> LogIdentity {
    LogIdentity { app_id: "shop".into(), instance: "box".into(), version: "1.18.0" }
}

/// What `run` logs, as lines.
fn logged(level: Level, json: bool, identity: LogIdentity, run: impl FnOnce(&Logging)) -> Vec<String> {
    let kept = Kept::default();
    let (logging, layer) = Logging::to(Box::new(kept.clone()), level, json, identity).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || run(&logging));
    assert!(logging.flush(Duration::from_secs(20)));
    let bytes = kept.0.lock().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

fn after_time(line: &str) -> &str {
    let rest = line.strip_prefix("time=\"").expect("a line starts with its time");
    &rest[rest.find('"').unwrap() + 2..]
}

#[test]
fn the_text_form_is_the_known_one() {
    let lines = logged(Level::Info, false, identity(), |_| {
        tracing::info!(target: "dapr.runtime", "app id: shop");
        tracing::warn!(target: "dapr.runtime.http", zone = "a\nb", component = "statestore (state.redis/v1)", n = 3, "say \"hi\"");
        tracing::error!(target: "dapr.runtime", fatal = true, "done");
        tracing::info!(target: "dapr.runtime", level = "x", "collides");
    });
    assert_eq!(
        lines.iter().map(|line| after_time(line)).collect::<Vec<_>>(),
        [
            r#"level=info msg="app id: shop" app_id=shop instance=box scope=dapr.runtime type=log ver=1.18.0"#,
            r#"level=warning msg="say \"hi\"" app_id=shop component="statestore (state.redis/v1)" instance=box n=3 scope=dapr.runtime.http type=log ver=1.18.0 zone="a\nb""#,
            r#"level=fatal msg=done app_id=shop instance=box scope=dapr.runtime type=log ver=1.18.0"#,
            r#"level=info msg=collides app_id=shop fields.level=x instance=box scope=dapr.runtime type=log ver=1.18.0"#,
        ]
    );
}

#[test]
fn the_json_form_has_the_same_keys() {
    let lines = logged(Level::Debug, true, LogIdentity { app_id: String::new(), ..identity() }, |_| {
        tracing::debug!(target: "dapr.runtime", code = 200, ok = true, path = "a\"\u{1}", "HTTP API Called");
    });
    let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["code", "instance", "level", "msg", "ok", "path", "scope", "time", "type", "ver"]);
    assert_eq!(value["code"], 200);
    assert_eq!(value["ok"], true);
    assert_eq!(value["path"], "a\"\u{1}");
    assert_eq!(value["level"], "debug");
    assert_eq!(value["msg"], "HTTP API Called");
    assert!(lines[0].find("\"code\"").unwrap() < lines[0].find("\"instance\"").unwrap());
}

#[test]
fn the_level_can_change_at_run_time() {
    let lines = logged(Level::Error, false, identity(), |logging| {
        let say = |text: &str| tracing::info!(target: "dapr.runtime", "{text}");
        say("one");
        logging.set_level(Level::Info);
        say("two");
        logging.set_level(Level::Fatal);
        say("three");
        tracing::error!(target: "dapr.runtime", "four");
        tracing::error!(target: "dapr.runtime", fatal = true, "five");
    });
    let messages: Vec<_> = lines.iter().map(|line| after_time(line).split(' ').nth(1).unwrap()).collect();
    assert_eq!(messages, ["msg=two", "msg=five"]);
}

#[test]
fn libraries_are_quieter() {
    let say = || {
        tracing::info!(target: "hyper::proto", "info");
        tracing::warn!(target: "hyper::proto", "warn");
        tracing::debug!(target: "hyper::proto", "debug");
    };
    assert_eq!(logged(Level::Info, false, identity(), |_| say()).len(), 1);
    assert_eq!(logged(Level::Debug, false, identity(), |_| say()).len(), 2);
}

#[test]
fn a_failure_that_repeats_is_limited() {
    let lines = logged(Level::Info, false, identity(), |_| {
        for n in 0..500 {
            tracing::error!(target: "dapr.runtime", component = "a", "attempt {n} failed");
        }
        for n in 0..50 {
            tracing::info!(target: "dapr.runtime", "request {n}");
        }
    });
    let failures = lines.iter().filter(|line| line.contains("level=error")).count();
    // The loop may cross into a second window on a slow machine.
    assert!((10..=40).contains(&failures), "{failures}");
    assert_eq!(lines.iter().filter(|line| line.contains("level=info")).count(), 50);
}

#[test]
fn the_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mechad.log");
    std::fs::write(&path, "before\n").unwrap();
    let options = LogOptions { level: Level::Info, json: false, file: Some(path.clone()) };
    let (logging, layer) = Logging::new(&options, identity()).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!(target: "dapr.runtime", "after");
    });
    assert!(logging.flush(Duration::from_secs(20)));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("before\ntime="));

    let missing = LogOptions { file: Some(dir.path().join("no/such/folder.log")), ..options };
    let error = Logging::new(&missing, identity()).unwrap_err().to_string();
    assert!(error.contains("no/such/folder.log") && error.contains("--log-file"), "{error}");
}

#[test]
fn times_are_rfc_3339() {
    for (seconds, nanos, expected) in [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
        (1_735_689_599, 999_999_999, "2024-12-31T23:59:59.999999999Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
    ] {
        let mut out = String::new();
        format::timestamp(&mut out, UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(out, expected);
    }
}

#[test]
fn a_long_value_is_cut() {
    let lines = logged(Level::Info, false, identity(), |_| {
        tracing::info!(target: "dapr.runtime", "{}", "é".repeat(100_000));
    });
    assert!(lines[0].len() < 20_000 && lines[0].contains('…'));
}

proptest::proptest! {
    #[test]
    fn every_message_is_one_line_and_valid_json(message in "\\PC*|[\\x00-\\x7f]{0,40}") {
        let text = logged(Level::Info, false, identity(), |_| tracing::info!(target: "dapr.runtime", "{message}"));
        proptest::prop_assert_eq!(text.len(), 1);
        let json = logged(Level::Info, true, identity(), |_| tracing::info!(target: "dapr.runtime", "{message}"));
        let value: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        proptest::prop_assert_eq!(value["msg"].as_str(), Some(message.as_str()));
    }
}
