use std::os::unix::fs::symlink;

use super::*;

struct Store {
    dir: tempfile::TempDir,
    binding: Arc<dyn OutputBinding>,
}

async fn open_at(root: &Path) -> Result<Arc<dyn OutputBinding>> {
    let md: Metadata = [("rootPath", root.to_str().unwrap())].into_iter().collect();
    prepare(&md, "v1").unwrap().build(&BuildCx::for_app("app", "files", "/nowhere")).await
}

async fn store() -> Store {
    let dir = tempfile::tempdir().unwrap();
    let binding = open_at(&dir.path().join("made/here")).await.unwrap();
    Store { dir, binding }
}

impl Store {
    async fn call(&self, operation: &str, name: &str, data: &[u8]) -> Result<Reply> {
        let metadata: Metadata = [("fileName", name)].into_iter().collect();
        self.binding.invoke(Invoke { operation, data: Bytes::copy_from_slice(data), metadata: &metadata }).await
    }

    async fn text(&self, operation: &str, name: &str, data: &[u8]) -> String {
        String::from_utf8(self.call(operation, name, data).await.unwrap().data.unwrap().to_vec()).unwrap()
    }
}

#[tokio::test]
async fn files_are_created_read_listed_and_deleted() {
    let store = store().await;
    assert_eq!(store.text("create", "/sub//b.txt", b"two").await, r#"{"fileName":"sub/b.txt"}"#);
    assert_eq!(store.text("create", "a.txt", b"one").await, r#"{"fileName":"a.txt"}"#);
    assert_eq!(store.text("get", "sub/b.txt", b"").await, "two");
    assert_eq!(store.text("list", "", b"").await, r#"["a.txt","sub/b.txt"]"#);
    assert_eq!(store.text("list", "sub", b"").await, r#"["sub/b.txt"]"#);
    store.call("delete", "a.txt", b"").await.unwrap();
    assert_eq!(store.call("get", "a.txt", b"").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.text("list", "", b"").await, r#"["sub/b.txt"]"#);
}

#[tokio::test]
async fn without_a_name_a_new_one_is_made() {
    let store = store().await;
    let reply: serde_json::Value = serde_json::from_str(&store.text("create", "", b"x").await).unwrap();
    let name = reply["fileName"].as_str().unwrap();
    assert!(uuid::Uuid::parse_str(name).is_ok());
    assert_eq!(store.text("get", name, b"").await, "x");
}

#[tokio::test]
async fn bytes_stay_as_they_are_and_json_strings_lose_their_quotes() {
    let store = store().await;
    for (given, kept) in [
        (&b"dGVzdA=="[..], &b"dGVzdA=="[..]),
        (b"\"test\"", b"test"),
        (br#""line\nbreak \u00fc""#, "line\nbreak \u{fc}".as_bytes()),
        (b"\"broken", b"\"broken"),
        (b"\"", b"\""),
        (b"\"a\" \"b\"", b"\"a\" \"b\""),
        (br#"{"a": 1}"#, br#"{"a": 1}"#),
        (b"\xff\x00\xfe", b"\xff\x00\xfe"),
        (b"null", b"null"),
    ] {
        store.call("create", "f", given).await.unwrap();
        assert_eq!(store.call("get", "f", b"").await.unwrap().data.unwrap(), kept);
    }
}

#[tokio::test]
async fn bad_names_are_the_callers_mistake_and_show_no_absolute_path() {
    let store = store().await;
    store.call("create", "file", b"x").await.unwrap();
    for (operation, name, kind) in [
        ("create", "../out", ErrorKind::InvalidArgument),
        ("get", "a/../../etc/passwd", ErrorKind::InvalidArgument),
        ("get", "", ErrorKind::InvalidArgument),
        ("delete", "", ErrorKind::InvalidArgument),
        ("create", "/", ErrorKind::InvalidArgument),
        ("get", "nobody/home", ErrorKind::NotFound),
        ("list", "nobody", ErrorKind::NotFound),
        ("delete", "nobody", ErrorKind::NotFound),
        ("list", "file", ErrorKind::InvalidArgument),
        ("create", "file/below", ErrorKind::InvalidArgument),
        ("erase", "file", ErrorKind::InvalidArgument),
    ] {
        let e = store.call(operation, name, b"x").await.unwrap_err();
        assert_eq!(e.kind(), kind, "{operation} {name}: {e}");
        assert!(!e.to_string().contains(store.dir.path().to_str().unwrap()), "{e}");
    }
    assert!(!store.dir.path().join("made/out").exists());
}

#[tokio::test]
async fn forbidden_roots_are_refused_also_behind_a_link() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/proc/self", dir.path().join("link")).unwrap();
    for root in [Path::new("/proc/x"), Path::new("/sys"), Path::new("/var/run/secrets/k"), &dir.path().join("link/y")] {
        let e = open_at(root).await.unwrap_err();
        assert!(e.to_string().contains("must not lie below"), "{e}");
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(open_at(&dir.path().join("file")).await.is_err());
}

#[test]
fn the_root_is_required() {
    assert_eq!(prepare(&Metadata::new(), "v1").err().unwrap().list()[0].field, "rootPath");
}
