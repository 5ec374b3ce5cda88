//! Rust from the .proto files, without a system `protoc`.
//!
//! This package must not depend on `mecha-proto`: broken generated code has to be repairable by running
//! the generator.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

/// Sources, relative to the root. Import paths start below this folder.
const INCLUDE: &str = "proto";
const SOURCES: &[&str] = &["proto/dapr", "proto/mecha"];
const GENERATED: &str = "proto/src/generated";
const DESCRIPTOR: &str = "descriptor.bin";

/// Messages that carry secrets: `mecha-proto` writes their `Debug` by hand, without the values.
const SECRET: &[&str] = &[
    ".dapr.proto.components.v1.GetSecretResponse",
    ".dapr.proto.components.v1.MetadataRequest",
    ".dapr.proto.components.v1.SecretResponse",
    ".dapr.proto.operator.v1.ComponentUpdateEvent",
    ".dapr.proto.operator.v1.GetHTTPEndpointResponse",
    ".dapr.proto.operator.v1.HTTPEndpointUpdateEvent",
    ".dapr.proto.operator.v1.ListComponentResponse",
    ".dapr.proto.operator.v1.ListHTTPEndpointsResponse",
    ".dapr.proto.runtime.v1.GetSecretResponse",
    ".dapr.proto.runtime.v1.SecretResponse",
    ".dapr.proto.runtime.v1.SubtleUnwrapKeyResponse",
    ".dapr.proto.runtime.v1.SubtleWrapKeyRequest",
    ".dapr.proto.sentry.v1.SignCertificateRequest",
    ".dapr.proto.sentry.v1.SignCertificateResponse",
    ".mecha.v1.Document",
    ".mecha.v1.Move",
    ".mecha.v1.SignedSnapshot",
];

type Files = BTreeMap<String, Vec<u8>>;

/// Writes the generated code; returns a line that says what changed.
pub(crate) fn write(root: &Path) -> Result<String, String> {
    let (new, old) = (generate(root)?, committed(root)?);
    let folder = root.join(GENERATED);
    fs::create_dir_all(&folder).map_err(|e| format!("cannot create {GENERATED}: {e}"))?;
    let changed = differences(&old, &new);
    for &(name, _) in &changed {
        let path = folder.join(name);
        match new.get(name) {
            Some(content) => fs::write(&path, content),
            None => fs::remove_file(&path),
        }
        .map_err(|e| format!("cannot write {GENERATED}/{name}: {e}"))?;
    }
    Ok(format!("codegen: {} files in {GENERATED}, {} changed", new.len(), changed.len()))
}

/// Compares the committed code with what [`write`] would write.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let (new, old) = (generate(root)?, committed(root)?);
    let changed = differences(&old, &new);
    if changed.is_empty() {
        return Ok(format!("codegen: {} files in {GENERATED} are up to date", new.len()));
    }
    let list: String = changed.iter().map(|(name, how)| format!("  {GENERATED}/{name}: {how}\n")).collect();
    Err(format!(
        "codegen: the committed code is not what the sources in {INCLUDE} generate:\n{list}\
         next: run `cargo run -p xtask -- codegen` and commit {GENERATED}; \
         generated files are never edited by hand"
    ))
}

fn differences<'a>(old: &'a Files, new: &'a Files) -> Vec<(&'a String, &'static str)> {
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name, "no longer generated"));
    let other = new.iter().filter_map(|(name, content)| match old.get(name) {
        None => Some((name, "missing")),
        Some(found) if found != content => Some((name, "differs")),
        Some(_) => None,
    });
    gone.chain(other).collect()
}

fn generate(root: &Path) -> Result<Files, String> {
    let sources: Vec<_> = SOURCES.iter().map(|folder| root.join(folder)).collect();
    let mut descriptors = compile(&root.join(INCLUDE), &sources)?;
    let scratch = tempfile::tempdir().map_err(|e| format!("cannot create a scratch folder: {e}"))?;
    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]).bytes(["."]).skip_debug(SECRET);
    tonic_prost_build::configure()
        .build_transport(false)
        // `Any` with shared bytes: bodies of invocations travel in it.
        .extern_path(".google.protobuf.Any", "crate::Any")
        .emit_rerun_if_changed(false)
        .out_dir(scratch.path())
        .compile_fds_with_config(descriptors.clone(), config)
        .map_err(|e| format!("code generation failed: {e}"))?;

    let mut files = read_folder(scratch.path())?;
    for file in &mut descriptors.file {
        // Comments are for the generated code only; clients of reflection do not read them.
        file.source_code_info = None;
    }
    files.insert(DESCRIPTOR.to_owned(), descriptors.encode_to_vec());
    Ok(files)
}

/// Every .proto file below `sources` and what it imports, dependencies first.
fn compile(include: &Path, sources: &[PathBuf]) -> Result<FileDescriptorSet, String> {
    let mut paths = Vec::new();
    for folder in sources.iter().filter(|folder| folder.is_dir()) {
        collect(folder, &mut paths)?;
    }
    paths.sort();
    let mut compiler = protox::Compiler::new([include]).map_err(|e| format!("{e:?}"))?;
    compiler.include_source_info(true).include_imports(true);
    // `Debug` of a compile error has the file, the line and the column.
    compiler.open_files(&paths).map_err(|e| format!("{e:?}"))?;
    Ok(compiler.file_descriptor_set())
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("cannot read {}: {e}", folder.display()))?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

fn committed(root: &Path) -> Result<Files, String> {
    let folder = root.join(GENERATED);
    if folder.is_dir() { read_folder(&folder) } else { Ok(Files::new()) }
}

fn read_folder(folder: &Path) -> Result<Files, String> {
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", folder.display());
    let mut files = Files::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).map_err(fail)?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(proto: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proto/dapr");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("a.proto"), proto).unwrap();
        root
    }

    const PROTO: &str = "syntax = \"proto3\";\npackage a.v1;\n// A thing.\nmessage Thing { bytes data = 1; }\n\
                         service Things { rpc Get(Thing) returns (Thing); }\n";

    #[test]
    fn what_was_written_passes_the_check() {
        let root = workspace(PROTO);
        let report = write(root.path()).unwrap();
        assert!(report.contains("2 changed"), "{report}");
        assert!(write(root.path()).unwrap().contains("0 changed"));
        check(root.path()).unwrap();
        let code = fs::read_to_string(root.path().join(GENERATED).join("a.v1.rs")).unwrap();
        assert!(code.contains("pub data: ::prost::bytes::Bytes"), "{code}");
        assert!(code.contains("/// A thing."));
    }

    #[test]
    fn the_check_names_each_file_that_differs_and_the_way_out() {
        let root = workspace(PROTO);
        write(root.path()).unwrap();
        let folder = root.path().join(GENERATED);
        fs::write(folder.join("a.v1.rs"), "edited").unwrap();
        fs::remove_file(folder.join(DESCRIPTOR)).unwrap();
        fs::write(folder.join("old.v1.rs"), "").unwrap();
        let report = check(root.path()).unwrap_err();
        assert!(report.contains("generated/a.v1.rs: differs"), "{report}");
        assert!(report.contains("generated/descriptor.bin: missing"), "{report}");
        assert!(report.contains("generated/old.v1.rs: no longer generated"), "{report}");
        assert!(report.contains("cargo run -p xtask -- codegen"), "{report}");
        write(root.path()).unwrap();
        check(root.path()).unwrap();
        assert!(!folder.join("old.v1.rs").exists());
    }

    #[test]
    fn a_broken_source_is_named_with_its_line() {
        let root = workspace("syntax = \"proto3\";\npackage a.v1;\nmessage Thing { Other x = 1; }\n");
        let report = write(root.path()).unwrap_err();
        assert!(report.contains("a.proto") && report.contains("Other"), "{report}");
        assert!(!root.path().join(GENERATED).exists());
    }
}
