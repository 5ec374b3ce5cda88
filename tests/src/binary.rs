use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The daemon under test: as `MECHAD` says (such as a release build), else the one of this checkout, built once
/// per run.
pub fn mechad() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("MECHAD", "mechad"))
}

/// The program of the control part under test: as `MECHA_CONTROL` says, else the one of this checkout, built once
/// per run.
pub fn mecha_control() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("MECHA_CONTROL", "mecha-control"))
}

/// The command line under test: as `MECHA` says, else the one of this checkout, built once per run.
pub fn mecha() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| find("MECHA", "mecha"))
}

fn find(variable: &str, name: &str) -> PathBuf {
    if let Some(named) = std::env::var_os(variable).filter(|named| !named.is_empty()) {
        let path = PathBuf::from(named);
        assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
        return path;
    }
    build(variable, name)
}

/// Asks cargo for the binary, so that a test never runs a stale one.
fn build(variable: &str, name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", name, "--bin", name]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let release = !cfg!(debug_assertions);
    if release {
        command.arg("--release");
    }
    let status = command.status().unwrap_or_else(|e| panic!("cargo cannot be run to build {name}: {e}"));
    assert!(status.success(), "`cargo build -p {name}` failed; repair it, or name a binary in {variable}");
    // This test lies in <target>/<profile>/deps.
    let here = std::env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).unwrap();
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing after a build; name the binary in {variable}", path.display());
    path
}
