//! Lays the release binary out: what runs at every start lies together at the front of the code.
//!
//! A kernel maps code in windows around what is touched. Scattered, the 2 MB that a start and an idle
//! sidecar need pull in 10 MB of the file; together they pull in 2. `link/start.ld` names these
//! functions; `bash bench/layout.sh` writes it anew. Names it does not know any more cost nothing.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link/start.ld");
    println!("cargo::rerun-if-env-changed=MECHA_LINK_ORDER");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|v| v == value);
    // A linker without SECTIONS (mold) takes MECHA_LINK_ORDER=off.
    let wanted = is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && !is("MECHA_LINK_ORDER", "off");
    if let (true, Ok(here)) = (wanted, env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/link/start.ld");
    }
}
