//! Files as editors, copies and mounts write them, and what else may lie in a folder.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use mecha_tests::{Http, Sidecar, component, wait_until};

use crate::support::{Documents, LIMIT, ended, generation, nothing_refused, refused};

fn store(prefix: &str) -> String {
    component("store", "state.in-memory", &[("keyPrefix", prefix)])
}

/// Does something of which nothing may come, and waits until the sidecar has looked at it: the change that follows
/// is the next one.
async fn no_change(sidecar: &Sidecar, what: &str, act: impl FnOnce(&Path)) {
    let (http, documents) = (sidecar.http(), Documents::of(sidecar));
    let before = generation(&http).await;
    act(&sidecar.resources());
    documents.write("probe.yaml", &component("probe", "state.in-memory", &[("keyPrefix", what)]));
    let receipt = ended(&http, before, "Component", "probe").await;
    assert_eq!(receipt["generation"].as_u64(), Some(before + 1), "{what}: {receipt}");
    nothing_refused(&http).await;
    kept(&http, what).await;
}

/// What is in memory is gone with the component.
async fn kept(http: &Http, what: &str) {
    let reply = http.get("/v1.0/state/store/kept").send().await;
    assert_eq!(reply.status, 200, "{what}");
}

async fn sidecar() -> Sidecar {
    let sidecar = Sidecar::builder().app_id("files").switch("mecha-strict").document("store.yaml", &store("none"));
    let sidecar = sidecar.start().await;
    sidecar.http().post("/v1.0/state/store", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);
    sidecar
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_way_a_file_is_saved_the_same_content_changes_nothing() {
    let sidecar = sidecar().await;
    let text = store("none");
    let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
    let rename = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
    no_change(&sidecar, "written in place", |at| write(&at.join("store.yaml"), &text)).await;
    no_change(&sidecar, "comments and order", |at| {
        let lines = "# Other words\nspec: {metadata: [{value: none, name: keyPrefix}], version: v1, \
                     type: state.in-memory}\nmetadata: {name: store}\nkind: Component\napiVersion: dapr.io/v1alpha1\n";
        write(&at.join("store.yaml"), lines);
    })
    .await;
    no_change(&sidecar, "line ends and mark of Windows", |at| {
        write(&at.join("store.yaml"), &format!("\u{feff}{}", text.replace('\n', "\r\n")));
    })
    .await;
    no_change(&sidecar, "vim", |at| {
        write(&at.join(".store.yaml.swp"), "b0VIM");
        write(&at.join("4913"), "");
        std::fs::remove_file(at.join("4913")).unwrap();
        rename(&at.join("store.yaml"), &at.join("store.yaml~"));
        write(&at.join("store.yaml"), &text);
        std::fs::remove_file(at.join("store.yaml~")).unwrap();
        std::fs::remove_file(at.join(".store.yaml.swp")).unwrap();
    })
    .await;
    no_change(&sidecar, "emacs", |at| {
        symlink("somebody@somewhere.4711:1700000000", at.join(".#store.yaml")).unwrap();
        write(&at.join("#store.yaml#"), "apiVersion: dap");
        rename(&at.join("store.yaml"), &at.join("store.yaml~"));
        write(&at.join("store.yaml"), &text);
        std::fs::remove_file(at.join("#store.yaml#")).unwrap();
    })
    .await;
    std::fs::remove_file(sidecar.resources().join(".#store.yaml")).unwrap();
    no_change(&sidecar, "JetBrains", |at| {
        write(&at.join("store.yaml___jb_tmp___"), &text);
        rename(&at.join("store.yaml"), &at.join("store.yaml___jb_old___"));
        rename(&at.join("store.yaml___jb_tmp___"), &at.join("store.yaml"));
        std::fs::remove_file(at.join("store.yaml___jb_old___")).unwrap();
    })
    .await;
    no_change(&sidecar, "rsync", |at| {
        write(&at.join(".store.yaml.Xy12Zw"), &text);
        rename(&at.join(".store.yaml.Xy12Zw"), &at.join("store.yaml"));
    })
    .await;
    no_change(&sidecar, "git", |at| {
        std::fs::remove_file(at.join("store.yaml")).unwrap();
        write(&at.join("store.yaml"), &text);
    })
    .await;
    no_change(&sidecar, "another name", |at| rename(&at.join("store.yaml"), &at.join("store.yml"))).await;
    no_change(&sidecar, "pipe and folder beside", |at| {
        assert!(Command::new("mkfifo").arg(at.join("pipe.yaml")).status().unwrap().success());
        std::fs::create_dir(at.join("folder.yaml")).unwrap();
        symlink("/dev/zero", at.join("zero.yaml")).unwrap();
    })
    .await;
    assert!(!sidecar.log().contains("level=error"), "{}", sidecar.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_takes_nothing_away_and_holds_nothing_up() {
    let sidecar = sidecar().await;
    let (http, file) = (sidecar.http(), sidecar.resources().join("store.yaml"));
    let back = async || {
        std::fs::write(&file, store("none")).unwrap();
        nothing_refused(&http).await;
    };
    let shown = async |what: &str, part: &str| {
        let reason = refused(&http, "Component", "store").await;
        assert!(reason.contains(part), "{what}: {reason}");
        kept(&http, what).await;
    };
    std::fs::write(&file, b"\xff\xfe\x00").unwrap();
    shown("no UTF-8", "UTF-8").await;
    back().await;
    std::fs::File::create(&file).unwrap().set_len(100 << 20).unwrap();
    shown("100 MB", "larger than").await;
    back().await;
    // A pipe, which nobody writes to, and a folder in its place.
    let beside = sidecar.folder().join("pipe");
    assert!(Command::new("mkfifo").arg(&beside).status().unwrap().success());
    std::fs::rename(&beside, &file).unwrap();
    shown("a pipe", "holds no document any more").await;
    std::fs::remove_file(&file).unwrap();
    back().await;
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    shown("a folder", "holds no document any more").await;
    std::fs::remove_dir(&file).unwrap();
    back().await;
    // More files than are read, all of them before the one that counts.
    for n in 0..3000 {
        std::fs::write(sidecar.resources().join(format!("a{n:04}.yaml")), "kind: Other\n").unwrap();
    }
    shown("many files", "only the first").await;
    for n in 0..3000 {
        std::fs::remove_file(sidecar.resources().join(format!("a{n:04}.yaml"))).unwrap();
    }
    nothing_refused(&http).await;
    kept(&http, "in the end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_that_are_replaced_are_followed() {
    let builder = Sidecar::builder().app_id("folders").switch("mecha-strict");
    let base = builder.folder();
    let release = |name: &str, prefix: &str| {
        let folder = base.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("store.yaml"), store(prefix)).unwrap();
        folder
    };
    release("one", "none");
    symlink("one", base.join("current")).unwrap();
    // A ConfigMap is a folder of links that lead through one more link.
    let mount = base.join("mount");
    let volume = |name: &str, prefix: &str| {
        std::fs::create_dir_all(mount.join(name)).unwrap();
        std::fs::write(
            mount.join(name).join("map.yaml"),
            component("map", "state.in-memory", &[("keyPrefix", prefix)]),
        )
        .unwrap();
        symlink(name, mount.join("..data_tmp")).unwrap();
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    };
    volume("..2026_1", "none");
    symlink("..data/map.yaml", mount.join("map.yaml")).unwrap();
    let sidecar = builder
        .flag("resources-path", base.join("current").to_str().unwrap())
        .switch(&format!("resources-path={}", mount.display()))
        .start()
        .await;
    let (http, base) = (sidecar.http(), sidecar.folder());
    http.post("/v1.0/state/store", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);

    volume("..2026_2", "name");
    let receipt = ended(&http, 0, "Component", "map").await;
    assert_eq!((&receipt["change"], &receipt["generation"]), (&"updated".into(), &1.into()));
    std::fs::remove_dir_all(mount.join("..2026_1")).unwrap();
    // The link leads elsewhere, and what is written there counts.
    let two = release("two", "none");
    symlink("two", base.join("next")).unwrap();
    std::fs::rename(base.join("next"), base.join("current")).unwrap();
    wait_until(LIMIT, "the new folder to be followed", async || {
        let text = component("more", "state.in-memory", &[("keyPrefix", &generation(&http).await.to_string())]);
        std::fs::write(two.join("more.yaml"), text).unwrap();
        generation(&http).await >= 2
    })
    .await;
    kept(&http, "another folder").await;
    // Removed and made again; the same once more with a pause that nobody takes for an end.
    for again in 0..2 {
        std::fs::rename(&two, base.join("away")).unwrap();
        if again == 1 {
            let reason = refused(&http, "Configuration", "disk").await;
            assert!(reason.contains("failed to load resources"), "{reason}");
        }
        std::fs::rename(base.join("away"), &two).unwrap();
        nothing_refused(&http).await;
        kept(&http, "removed and made again").await;
    }
    let before = generation(&http).await;
    std::fs::write(two.join("store.yaml"), store("name")).unwrap();
    assert_eq!(ended(&http, before, "Component", "store").await["change"], "updated");
}
