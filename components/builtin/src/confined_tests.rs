use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

fn root() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::open(&dir.path().join("root")).unwrap();
    (dir, root)
}

fn read(root: &Root, name: &str) -> Result<Content> {
    root.read(&parts(name).unwrap(), 1000)
}

#[test]
fn names_are_cut_into_parts_or_refused() {
    assert_eq!(parts("/a//b/./c/"), Ok(vec!["a", "b", "c"]));
    assert_eq!(parts(""), Ok(vec![]));
    for bad in ["..", "a/../b", "a/..", "a\0b", ".mecha-tmp-1", "a/.mecha-tmp-x"] {
        assert!(parts(bad).is_err(), "{bad:?}");
    }
    assert!(parts(&"a".repeat(256)).is_err());
    assert!(parts(&"a/".repeat(65)).is_err());
}

#[test]
fn what_was_written_is_read_listed_and_removed() {
    let (_dir, root) = root();
    root.write(&["b", "c"], b"1").unwrap();
    root.write(&["a"], b"2").unwrap();
    root.write(&["a"], b"").unwrap();
    assert_eq!(read(&root, "a").unwrap(), Content::Whole(vec![]));
    assert_eq!(read(&root, "b/c").unwrap(), Content::Whole(b"1".to_vec()));
    assert_eq!(read(&root, "b").unwrap(), Content::NoFile);
    assert_eq!(root.read(&["b", "c"], 0).unwrap(), Content::TooLarge);
    assert_eq!(root.list(&[], 10).unwrap(), Listing::All(vec!["a".into(), "b/c".into()]));
    assert_eq!(root.list(&["b"], 10).unwrap(), Listing::All(vec!["b/c".into()]));
    assert_eq!(root.list(&[], 1).unwrap(), Listing::TooMany);
    assert_eq!(root.remove(&["b"]), Err(Errno::NOTEMPTY));
    root.remove(&["b", "c"]).unwrap();
    root.remove(&["b"]).unwrap();
    assert_eq!(root.remove(&["b"]), Err(Errno::NOENT));
    assert_eq!(read(&root, "b/c").unwrap_err(), Errno::NOENT);
}

#[test]
fn folders_are_for_their_owner_only() {
    let (dir, root) = root();
    root.write(&["a", "b"], b"x").unwrap();
    for (path, mode) in [("root", 0o700), ("root/a", 0o700), ("root/a/b", 0o600)] {
        let have = std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode();
        assert_eq!(have & 0o777, mode, "{path}");
    }
}

#[test]
fn links_lead_nowhere() {
    let (dir, root) = root();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, dir.path().join("root/folder")).unwrap();
    symlink(outside.join("secret"), dir.path().join("root/file")).unwrap();
    assert!(read(&root, "folder/secret").is_err());
    assert!(read(&root, "file").is_err());
    assert!(root.write(&["folder", "new"], b"x").is_err());
    assert!(root.list(&["folder"], 10).is_err());
    assert!(root.remove(&["folder", "secret"]).is_err());
    assert_eq!(root.list(&[], 10).unwrap(), Listing::All(vec![]));
    // Writing over a link replaces the link and not what it leads to.
    root.write(&["file"], b"mine").unwrap();
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"s");
    assert_eq!(read(&root, "file").unwrap(), Content::Whole(b"mine".to_vec()));
}

#[test]
fn a_named_pipe_does_not_hold_the_reader() {
    let (_dir, root) = root();
    rustix::fs::mknodat(&root.0, "pipe", FileType::Fifo, FILE, 0).unwrap();
    assert_eq!(read(&root, "pipe").unwrap(), Content::NoFile);
    assert_eq!(root.list(&[], 10).unwrap(), Listing::All(vec![]));
}

#[test]
fn leftovers_of_a_killed_writer_are_hidden_and_swept_when_old() {
    let (dir, root) = root();
    let [young, old] = [".mecha-tmp-young", ".mecha-tmp-old"].map(|n| dir.path().join("root").join(n));
    std::fs::write(&young, "").unwrap();
    let file = File::create(&old).unwrap();
    file.set_modified(SystemTime::now() - TEMP_AGE * 2).unwrap();
    assert_eq!(root.list(&[], 10).unwrap(), Listing::All(vec![]));
    assert!(young.exists() && !old.exists());
}

#[test]
fn readers_see_the_old_or_the_new_content_and_never_a_part() {
    let (_dir, root) = root();
    let (root, stop) = (Arc::new(root), Arc::new(AtomicBool::new(false)));
    root.write(&["f"], &[0; 500]).unwrap();
    let writer = std::thread::spawn({
        let (root, stop) = (root.clone(), stop.clone());
        move || {
            for round in 1..50u8 {
                root.write(&["f"], &vec![round; 500 + usize::from(round)]).unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        }
    });
    while !stop.load(Ordering::SeqCst) {
        let Content::Whole(data) = read(&root, "f").unwrap() else { panic!("not a whole file") };
        assert_eq!(data.len(), 500 + usize::from(data[0]));
        assert!(data.iter().all(|b| *b == data[0]));
    }
    writer.join().unwrap();
}

/// A folder is swapped for a link to the outside over and over while files are written below it.
#[test]
fn a_race_with_links_never_leads_outside() {
    let (dir, root) = root();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let (spot, stop) = (dir.path().join("root/spot"), Arc::new(AtomicBool::new(false)));
    let swapper = std::thread::spawn({
        let (spot, outside, stop) = (spot.clone(), outside.clone(), stop.clone());
        move || {
            while !stop.load(Ordering::SeqCst) {
                let _ = std::fs::remove_file(&spot);
                let _ = symlink(&outside, &spot);
                std::thread::yield_now();
                let _ = std::fs::remove_file(&spot);
                let _ = std::fs::create_dir(&spot);
                let _ = std::fs::remove_dir_all(&spot);
            }
        }
    });
    for round in 0..2000 {
        let _ = root.write(&["spot", &format!("f{round}")], b"x");
        let _ = root.list(&["spot"], 10);
    }
    stop.store(true, Ordering::SeqCst);
    swapper.join().unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn paths_are_resolved_also_where_they_do_not_exist_yet() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    symlink("/proc", real.join("link")).unwrap();
    assert_eq!(resolve(&real.join("link/new/x")).unwrap(), Path::new("/proc/new/x"));
    assert_eq!(resolve(&real.join("none/../link")).unwrap(), Path::new("/proc"));
    assert_eq!(resolve(&real.join("a/b")).unwrap(), real.join("a/b"));
}

proptest! {
    #[test]
    fn any_name_is_refused_or_stays_inside(name in "[a-z./\\\\\0~ ]{0,16}") {
        if let Ok(parts) = parts(&name) {
            prop_assert!(parts.iter().all(|p| !p.is_empty() && *p != "." && *p != ".." && !p.contains('/')));
        }
    }
}
