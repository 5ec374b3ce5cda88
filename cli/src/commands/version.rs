//! `mecha version`.

use crate::args::VersionArgs;
use crate::error::{OK, Result};
use crate::output;
use crate::run::sidecar;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const SIDECAR_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    mecha: &'static str,
    /// None: not found, or it does not tell.
    mechad: Option<String>,
    mechad_path: Option<PathBuf>,
}

pub(crate) async fn run(args: &VersionArgs) -> Result<u8> {
    let path = sidecar::find().ok();
    let mechad = match &path {
        Some(path) => sidecar_version(path).await,
        None => None,
    };
    let versions = Versions { mecha: env!("CARGO_PKG_VERSION"), mechad, mechad_path: path };
    output::print(args.output, &versions, || {
        let mechad = match (&versions.mechad, &versions.mechad_path) {
            (Some(version), Some(path)) => format!("{version} ({})", path.display()),
            (None, Some(path)) => format!("does not tell ({})", path.display()),
            _ => "not found".to_owned(),
        };
        format!("mecha:  {}\nmechad: {mechad}\n", versions.mecha)
    })?;
    Ok(OK)
}

/// What the sidecar's program says of itself, if it says so in time.
pub(super) async fn sidecar_version(path: &Path) -> Option<String> {
    let output = tokio::process::Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(SIDECAR_TIMEOUT, output).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().map(str::trim).unwrap_or_default();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}
