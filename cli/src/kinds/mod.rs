//! The kinds of `mecha.dev` in a folder: read, decided and explained as the control part does it.

pub(crate) mod deliver;
pub(crate) mod show;

use crate::error::{CliError, Result};
use mecha_decide::{Assume, World};
use mecha_resources::kinds::{Documents, read_dir};
use std::path::Path;

/// Reads a folder. The error lists every mistake in it.
pub(crate) fn read(dir: &Path) -> Result<Documents> {
    let documents = read_dir(dir).map_err(|error| CliError::usage("folder", error))?;
    if documents.has_errors() {
        let list: Vec<_> = documents.diagnostics.iter().map(|finding| format!("\n  {finding}")).collect();
        let message = format!("{} has documents that cannot be used:{}", dir.display(), list.concat());
        return Err(CliError::new("documents", message));
    }
    if documents.environments.is_empty() && documents.claims.is_empty() && documents.classes.is_empty() {
        return Err(CliError::new("documents", format!("{} holds no document of mecha.dev/v1alpha1", dir.display()))
            .hint("put an Environment, an EnvironmentClass, CapabilityBackends and CapabilityClaims there"));
    }
    Ok(documents)
}

/// The world that the documents describe. Nothing probes backends here, so what they claim counts.
pub(crate) fn world(documents: &Documents) -> World {
    World::from_documents(documents, Assume::Documents)
}
