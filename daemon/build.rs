//! Lays a release binary out, that of the sidecar and that of the control part: what runs at every start lies together
//! at the front of the code.
//!
//! A kernel maps code in windows around what is touched. Scattered, the 2 MB that a start and an idle
//! sidecar need pull in 10 MB of the file; together they pull in 2. `link/start.ld` of the package names these
//! functions; `bash bench/layout.sh` writes it anew. Names it does not know any more cost nothing.
//!
//! Addresses that the loader has to fill in are listed in the packed form where the C library can read it: the long
//! list is 1.4 MB that every start would read and every idle sidecar would keep.

use std::env;
use std::process::Command;

/// The first glibc that reads packed relative relocations.
const PACKED_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-env-changed=MECHA_LINK_ORDER");
    let Ok(here) = env::var("CARGO_MANIFEST_DIR") else { return };
    // With its whole path: a checkout that was moved together with its build must not link by the old one.
    println!("cargo::rerun-if-changed={here}/link/start.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|v| v == value);
    // Only where Rust links with its own lld, which takes the script beside its defaults. A linker without
    // SECTIONS (mold) takes MECHA_LINK_ORDER=off.
    let lld = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ARCH", "x86_64");
    if is("PROFILE", "release") && lld && !is("MECHA_LINK_ORDER", "off") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/link/start.ld");
        let native = env::var("HOST").is_ok_and(|host| is("TARGET", &host)) && is("CARGO_CFG_TARGET_ENV", "gnu");
        if native && glibc().is_some_and(|version| version >= PACKED_SINCE) {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
}

/// The C library that programs get which are built and run here.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let (major, minor) = std::str::from_utf8(&told.stdout).ok()?.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
