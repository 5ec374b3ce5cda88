use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Names another daemon to test, such as a release build.
const VARIABLE: &str = "MECHAD";

/// The daemon under test: as `MECHAD` says, else the one of this checkout, built once per run.
pub fn mechad() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            let path = PathBuf::from(named);
            assert!(path.is_file(), "{VARIABLE} names {}, which is no file", path.display());
            return path;
        }
        build()
    })
}

/// Asks cargo for the binary, so that a test never runs a stale one.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "mechad", "--bin", "mechad"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let release = !cfg!(debug_assertions);
    if release {
        command.arg("--release");
    }
    let status = command.status().unwrap_or_else(|e| panic!("cargo cannot be run to build mechad: {e}"));
    assert!(status.success(), "`cargo build -p mechad` failed; repair it, or name a binary in {VARIABLE}");
    // This test lies in <target>/<profile>/deps.
    let here = std::env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).unwrap();
    let path = profile.join("mechad");
    assert!(path.is_file(), "{} is missing after a build; name the binary in {VARIABLE}", path.display());
    path
}
