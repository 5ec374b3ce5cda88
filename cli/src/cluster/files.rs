//! Files with documents for a cluster: checked as our kinds, and as they are written.

use super::write::Wanted;
use crate::error::{CliError, Result};
use mecha_resources::Located;
use mecha_resources::kinds::{API_VERSION, Documents, KindSpec, Object};
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Most bytes of a file.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Most files of a folder.
const MAX_FILES: usize = 1000;
/// Of our kinds, those that others need come first; everything else comes before them.
const ORDER: [&str; 6] =
    ["MemberCluster", "EnvironmentClass", "CapabilityBackend", "Environment", "CapabilityClaim", "AppPlacement"];
/// Of our kinds, those that lie in a namespace.
const NAMESPACED: [&str; 3] = ["Environment", "CapabilityClaim", "AppPlacement"];

/// The documents of files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Of our kinds, checked.
    pub(crate) documents: Documents,
    /// All of them as they are written, in the order in which they are put.
    pub(crate) wanted: Vec<Wanted>,
}

impl Files {
    /// Puts the documents of our kinds that name no namespace into this one.
    pub(crate) fn place(&mut self, namespace: &str) {
        let nowhere = |wanted: &&mut Wanted| {
            wanted.namespace.is_empty()
                && wanted.api_version == API_VERSION
                && NAMESPACED.contains(&wanted.kind.as_str())
        };
        for wanted in self.wanted.iter_mut().filter(nowhere) {
            wanted.namespace = namespace.to_owned();
            place(&mut self.documents.environments, wanted);
            place(&mut self.documents.claims, wanted);
            place(&mut self.documents.placements, wanted);
        }
    }
}

/// The reader has put a document that names no namespace into `default`.
fn place<S: KindSpec>(objects: &mut [Located<Object<S>>], wanted: &Wanted) {
    let fits = |object: &&mut Located<Object<S>>| {
        S::KIND == wanted.kind && object.value.name() == wanted.name && object.value.namespace() == "default"
    };
    if let Some(object) = objects.iter_mut().find(fits) {
        object.value.metadata.namespace.clone_from(&wanted.namespace);
    }
}

/// Reads files, folders (their *.yaml, *.yml and *.json) and - for standard input. The error lists every mistake.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Files> {
    let mut files = Files::default();
    let mut mistakes = Vec::new();
    for path in paths {
        for file in expand(path)? {
            let name = file.display().to_string();
            let text = text(&file).map_err(|e| CliError::usage("file", format!("{name} cannot be read: {e}")))?;
            files.documents.read_text(&name, &text);
            match serde_saphyr::from_multiple::<Value>(&text) {
                Ok(documents) => {
                    for (index, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
                        match wanted(document, format!("{name}, document {}", index + 1)) {
                            Ok(wanted) => files.wanted.push(wanted),
                            Err(mistake) => mistakes.push(mistake),
                        }
                    }
                }
                // The reader of our kinds says it with line and column.
                Err(_) if files.documents.has_errors() => {}
                Err(error) => mistakes.push(format!("{name}: {error}")),
            }
        }
    }
    mistakes.extend(files.documents.diagnostics.iter().map(ToString::to_string));
    if !mistakes.is_empty() {
        let list: String = mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect();
        return Err(CliError::new("documents", format!("these documents cannot be used:{list}")));
    }
    if files.wanted.is_empty() {
        return Err(CliError::usage("documents", "there is no document in what was named"));
    }
    files.wanted.sort_by_key(|wanted| match wanted.api_version == API_VERSION {
        true => ORDER.iter().position(|kind| *kind == wanted.kind).map_or(ORDER.len(), |place| place + 2),
        // A namespace comes before what lies in it.
        false => usize::from(wanted.kind != "Namespace"),
    });
    Ok(files)
}

fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unusable =
        |error: std::io::Error| CliError::usage("folder", format!("{} cannot be read: {error}", path.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unusable)? {
        let file = entry.map_err(unusable)?.path();
        let fits = file.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known));
        if fits && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    match found.len() {
        0 => Err(CliError::usage("folder", format!("{} holds no *.yaml", path.display()))),
        count if count > MAX_FILES => Err(CliError::usage(
            "folder",
            format!("{} holds {count} files, at most {MAX_FILES} are read", path.display()),
        )),
        _ => Ok(found),
    }
}

fn text(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    match file == Path::new("-") {
        true => std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text)?,
        false => std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?,
    };
    match text.len() as u64 > MAX_FILE {
        true => Err(std::io::Error::other(format!("it has more than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

fn wanted(mut document: Value, origin: String) -> std::result::Result<Wanted, String> {
    let field =
        |document: &Value, path: &str| document.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (field(&document, "/apiVersion"), field(&document, "/kind"));
    let (name, namespace) = (field(&document, "/metadata/name"), field(&document, "/metadata/namespace"));
    if api_version.is_empty() || kind.is_empty() || name.is_empty() {
        return Err(format!("{origin}: a document has apiVersion, kind and metadata.name"));
    }
    // What the control part answers is not for files to say.
    if let Some(members) = document.as_object_mut() {
        members.remove("status");
    }
    if let Some(metadata) = document.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for theirs in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"] {
            metadata.remove(theirs);
        }
    }
    Ok(Wanted { api_version, kind, namespace, name, document, origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Files> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        read(&[folder.path().to_owned()])
    }

    #[test]
    fn what_others_need_comes_first_and_nothing_is_added() {
        let mut files = read_text(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {name: c}\nspec: {kind: state}\n\
             ---\napiVersion: mecha.dev/v1alpha1\nkind: MemberCluster\nmetadata: {name: eu, uid: x}\nspec: {region: eu}\nstatus: {clusterId: x}\n\
             ---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n",
        )
        .unwrap();
        files.place("shop");
        assert_eq!(files.documents.claims[0].value.key(), "shop/c");
        let order: Vec<_> = files.wanted.iter().map(Wanted::title).collect();
        assert_eq!(order, ["Namespace shop", "Secret s", "MemberCluster eu", "CapabilityClaim shop/c"]);
        let cluster = serde_json::to_string(&files.wanted[2].document["spec"]).unwrap();
        assert_eq!(cluster, r#"{"region":"eu"}"#, "a field that is not written is not owned");
        assert!(files.wanted[2].document.get("status").is_none());
        assert!(files.wanted[2].document["metadata"].get("uid").is_none());
    }

    #[test]
    fn mistakes_are_told_together_with_their_place() {
        let error = read_text(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {name: c}\nspec: {kind: state, scoeps: []}\n\
             ---\nkind: Secret\nmetadata: {name: s}\n",
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("did you mean 'scopes'?") && error.contains("a.yaml:4"), "{error}");
        assert!(error.contains("document 2: a document has apiVersion"), "{error}");
        assert!(read(&[PathBuf::from("/nowhere.yaml")]).unwrap_err().to_string().contains("/nowhere.yaml"));
    }
}
