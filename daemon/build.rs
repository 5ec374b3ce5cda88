//! Lays a release binary out, that of the sidecar and that of the control part: what runs at every start lies together
//! at the front of the code.
//!
//! A kernel maps code in windows around what is touched. Scattered, the 2 MB that a start and an idle
//! sidecar need pull in 10 MB of the file; together they pull in 2. `link/start.ld` of the package names these
//! functions; `bash bench/layout.sh` writes it anew. Names it does not know any more cost nothing.

use std::env;

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
    }
}
