use proptest::prelude::*;

use super::*;

fn flat(json: &str, multi: bool) -> Vec<(String, Vec<(String, String)>)> {
    let members = |m: SecretMap| m.iter().map(|(k, s)| (k.clone(), s.expose().to_owned())).collect();
    parse(json.as_bytes(), ":", multi).unwrap().into_iter().map(|(k, m)| (k, members(m))).collect()
}

fn pair(k: &str, v: &str) -> (String, Vec<(String, String)>) {
    (k.into(), vec![(k.into(), v.into())])
}

#[test]
fn nested_keys_are_joined() {
    let json = r#"{"a": "x", "db": {"user": "u", "ports": [1, 2]}}"#;
    assert_eq!(
        flat(json, false),
        [pair("a", "x"), pair("db:ports:0", "1"), pair("db:ports:1", "2"), pair("db:user", "u")]
    );
}

#[test]
fn numbers_and_booleans_keep_their_text() {
    let json = r#"{"big": 123456789012345678901234567890, "dec": 1.10, "exp": 1E3, "no": false, "nil": null}"#;
    let want =
        [("big", "123456789012345678901234567890"), ("dec", "1.10"), ("exp", "1E3"), ("nil", ""), ("no", "false")];
    assert_eq!(flat(json, false), want.map(|(k, v)| pair(k, v)));
}

#[test]
fn multi_valued_takes_the_first_level_as_secrets() {
    let json = r#"{"plain": "p", "redis": {"user": "u", "tls": {"key": "k"}}}"#;
    let redis = vec![("tls:key".into(), "k".into()), ("user".into(), "u".into())];
    assert_eq!(flat(json, true), [pair("plain", "p"), ("redis".into(), redis)]);
}

#[test]
fn mistakes_say_where_and_never_what() {
    for (json, want) in [
        ("{\n \"hunter2\": hunter2\n}", "line 2"),
        ("[\"hunter2\"]", "must be a JSON object"),
        ("{\"hunter2\": \"hunter2\"", "ends too early"),
        ("\"hunter2\"", "must be a JSON object"),
    ] {
        let e = parse(json.as_bytes(), ":", false).unwrap_err();
        assert!(e.contains(want), "{e}");
        assert!(!e.contains("hunter2"), "{e}");
    }
    let e = parse(b"{\"a:b\": \"hunter2\", \"a\": {\"b\": 1}}", ":", false).unwrap_err();
    assert!(e.contains("'a:b'") && !e.contains("hunter2"), "{e}");
}

#[test]
fn bottomless_nesting_is_refused() {
    let json = format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(parse(json.as_bytes(), ":", false).unwrap_err().contains("deeper"));
}

async fn open(path: &Path) -> Result<Arc<dyn SecretStore>> {
    let md: Metadata = [("secretsFile", path.to_str().unwrap())].into_iter().collect();
    prepare(&md, "v1").unwrap().build(&BuildCx::for_app("app", "files", path.parent().unwrap())).await
}

async fn value(store: &dyn SecretStore, name: &str) -> Result<String> {
    Ok(store.get(name, &Metadata::new()).await?[name].expose().to_owned())
}

#[tokio::test]
async fn follows_the_file_and_survives_a_broken_edit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.json");
    fs::write(&path, r#"{"k": "one"}"#).unwrap();
    let store = open(&path).await.unwrap();
    assert_eq!(value(&*store, "k").await.unwrap(), "one");
    assert_eq!(value(&*store, "absent").await.unwrap_err().kind(), ErrorKind::NotFound);

    fs::write(&path, r#"{"k": "second"}"#).unwrap();
    assert_eq!(value(&*store, "k").await.unwrap(), "second");
    fs::write(&path, r#"{"k": "#).unwrap();
    assert_eq!(value(&*store, "k").await.unwrap(), "second");
    fs::remove_file(&path).unwrap();
    assert_eq!(value(&*store, "k").await.unwrap(), "second");
    fs::write(&path, r#"{"k": "third"}"#).unwrap();
    assert_eq!(value(&*store, "k").await.unwrap(), "third");
    assert_eq!(store.list(&Metadata::new()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_file_is_a_clear_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let e = open(&dir.path().join("none.json")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::FailedPrecondition);
    assert!(e.to_string().contains("none.json"), "{e}");
    assert!(open(dir.path()).await.unwrap_err().to_string().contains("no file"));
}

#[test]
fn the_path_is_required() {
    let e = prepare(&Metadata::new(), "v1").err().unwrap();
    assert_eq!(e.list()[0].field, "secretsFile");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,64}", multi: bool) {
        let _ = parse(text.as_bytes(), ":", multi);
    }

    #[test]
    fn any_string_value_comes_back(value in "\\PC{0,32}", key in "[a-z]{1,8}") {
        let json = serde_json::json!({ key.as_str(): value }).to_string();
        let secrets = parse(json.as_bytes(), ":", false).unwrap();
        prop_assert_eq!(secrets[&key][&key].expose(), value);
    }
}
