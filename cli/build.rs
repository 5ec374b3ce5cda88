//! Puts the pages about error codes into the program, so that `mecha explain` needs no network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    println!("cargo::rerun-if-changed={}", pages.display());
    let entries = std::fs::read_dir(&pages).expect("docs/errors lies beside the crates");
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    let mut table = String::from("&[\n");
    for file in &files {
        let code = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        writeln!(table, "    ({code:?}, include_str!({:?})),", file.display().to_string()).expect("a String takes all");
    }
    table.push_str("]\n");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("error_pages.rs"), table).expect("OUT_DIR can be written");
}
