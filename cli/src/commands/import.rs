//! `mecha import`: claims and placements from what other systems' users write.

use super::inject::read;
use crate::error::{CliError, OK, Result};
use crate::output;
use clap::{Args, Subcommand, ValueHint};
use mecha_resources::kinds::{API_VERSION, Documents};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The trait whose properties are a claim, and the one whose properties are a placement; see deploy/oam.
const CAPABILITY: &str = "mecha-capability";
const PLACEMENT: &str = "mecha-placement";

/// Print the claims and placements that documents of another system stand for.
///
/// What is printed has its keys in order, so equal needs give equal bytes.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(subcommand)]
    system: System,
}

#[derive(Debug, Subcommand)]
enum System {
    /// Traits mecha-capability and mecha-placement of Applications of the Open Application Model.
    ///
    /// The result is what KubeVela makes of them by the definitions of `mecha export oam`. Other traits, components and
    /// policies are not looked at.
    #[command(after_help = "Examples:\n  \
        mecha import oam application.yaml | kubectl apply -f -")]
    Oam {
        #[command(flatten)]
        files: FileArgs,
        /// Namespace of Applications that name none
        #[arg(long, short = 'n', value_name = "NAME", default_value = "default")]
        namespace: String,
    },
    /// A request of the Promise that `mecha export kratix` prints.
    #[command(after_help = "Examples:\n  \
        mecha import kratix request.yaml\n  \
        mecha import kratix /kratix/input/object.yaml --to /kratix/output/claim.yaml     (as the Promise does)")]
    Kratix {
        #[command(flatten)]
        files: FileArgs,
    },
}

#[derive(Debug, Args)]
struct FileArgs {
    /// File with the documents; - is standard input
    #[arg(value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    to: Option<PathBuf>,
}

pub(crate) fn run(args: &ImportArgs) -> Result<u8> {
    let (files, text) = match &args.system {
        System::Oam { files, namespace } => (files, oam(&documents(&files.file)?, namespace)?),
        System::Kratix { files } => (files, kratix(&documents(&files.file)?)?),
    };
    match &files.to {
        None => output::write(text.as_bytes())?,
        Some(path) => std::fs::write(path, text)
            .map_err(|e| CliError::new("output", format!("{} cannot be written: {e}", path.display())))?,
    }
    Ok(OK)
}

fn documents(path: &Path) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(&read(path)?).map_err(|e| {
        CliError::new("no-yaml", format!("{} cannot be read: {e}", path.display())).hint("Put --- between documents.")
    })
}

/// Documents of ours, each with where it comes from.
#[derive(Debug, Default)]
struct Made {
    documents: Vec<(String, Value)>,
    problems: Vec<String>,
}

impl Made {
    fn add(&mut self, origin: String, kind: &str, name: &str, namespace: &str, spec: Map<String, Value>) {
        let document = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        });
        let same = |other: &Value| other["kind"] == document["kind"] && other["metadata"] == document["metadata"];
        match self.documents.iter().find(|(_, other)| same(other)) {
            None => self.documents.push((origin, document)),
            Some((_, other)) if *other == document => {}
            Some((first, _)) => self.problems.push(format!(
                "{origin}: {kind} {name} is asked for differently by {first}; ask once, with all app ids in scopes"
            )),
        }
    }

    /// The text of all, when the reader of our kinds finds no mistake in it.
    fn text(mut self) -> Result<String> {
        let mut text = String::new();
        for (origin, document) in &self.documents {
            let yaml = serde_saphyr::to_string(document)
                .map_err(|e| CliError::new("output", format!("cannot write YAML: {e}")))?;
            let mut read = Documents::default();
            read.read_text(origin, &yaml);
            // The line is one of what is made, which nobody has seen.
            self.problems.extend(read.diagnostics.iter().map(|found| {
                let hint = found.suggestion.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                format!("{origin}: {}: {}{hint}", found.path, found.message)
            }));
            if !text.is_empty() {
                text.push_str("---\n");
            }
            text.push_str(yaml.trim_end());
            text.push('\n');
        }
        match self.problems.is_empty() {
            true => Ok(text),
            false => {
                Err(CliError::new("not-importable", self.problems.join("\n  "))
                    .hint("Correct them; nothing was printed."))
            }
        }
    }
}

fn oam(documents: &[Value], namespace: &str) -> Result<String> {
    let mut made = Made::default();
    for application in documents.iter().filter(|document| is(document, "core.oam.dev", "Application")) {
        let title = application["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = application["metadata"]["namespace"].as_str().unwrap_or(namespace);
        for component in application["spec"]["components"].as_array().into_iter().flatten() {
            let name = component["name"].as_str().unwrap_or_default();
            for asked in component["traits"].as_array().into_iter().flatten() {
                let kind = asked["type"].as_str().unwrap_or_default();
                let origin = format!("Application {title}, component {name}, trait {kind}");
                let mut spec = asked["properties"].as_object().cloned().unwrap_or_default();
                match kind {
                    CAPABILITY => {
                        let Some(Value::String(claim)) = spec.remove("name") else {
                            made.problems.push(format!("{origin}: name says what the app's code calls it"));
                            continue;
                        };
                        spec.entry("scopes").or_insert_with(|| json!([name]));
                        made.add(origin, "CapabilityClaim", &claim, namespace, spec);
                    }
                    PLACEMENT => {
                        spec.entry("appId").or_insert_with(|| name.into());
                        made.add(origin, "AppPlacement", name, namespace, spec);
                    }
                    _ => {}
                }
            }
        }
    }
    if made.documents.is_empty() && made.problems.is_empty() {
        let message = format!("there is no Application with a trait {CAPABILITY} or {PLACEMENT}");
        return Err(CliError::usage("documents", message));
    }
    made.text()
}

fn kratix(documents: &[Value]) -> Result<String> {
    let mut made = Made::default();
    for request in documents.iter().filter(|document| is(document, "kratix.mecha.dev", "Capability")) {
        let name = request["metadata"]["name"].as_str().unwrap_or_default();
        let origin = format!("Capability {name}");
        let mut spec = request["spec"].as_object().cloned().unwrap_or_default();
        match spec.remove("namespace") {
            Some(Value::String(namespace)) => made.add(origin, "CapabilityClaim", name, &namespace, spec),
            _ => made.problems.push(format!("{origin}: spec.namespace names the namespace of the environment")),
        }
    }
    if made.documents.is_empty() && made.problems.is_empty() {
        return Err(CliError::usage("documents", "there is no Capability of kratix.mecha.dev"));
    }
    made.text()
}

fn is(document: &Value, group: &str, kind: &str) -> bool {
    let found = document["apiVersion"].as_str().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    found == Some(group) && document["kind"] == kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(components: Value) -> [Value; 1] {
        [json!({
            "apiVersion": "core.oam.dev/v1beta1", "kind": "Application", "metadata": {"name": "shop"},
            "spec": {"components": components},
        })]
    }

    fn asks(name: &str, properties: Value) -> Value {
        json!({"name": name, "type": "webservice", "traits": [{"type": CAPABILITY, "properties": properties}]})
    }

    #[test]
    fn mistakes_are_told_together_with_the_trait_that_has_them() {
        let app = application(json!([
            asks("api", json!({"name": "orders", "kind": "state", "faetures": ["ttl"]})),
            asks("web", json!({"kind": "state"})),
            asks("jobs", json!({"name": "orders", "kind": "state"})),
        ]));
        let refused = oam(&app, "default").unwrap_err().to_string();
        for told in ["component api, trait mecha-capability: spec", "features", "component web", "component jobs"] {
            assert!(refused.contains(told), "{told}: {refused}");
        }
    }

    #[test]
    fn one_need_of_two_components_is_one_claim_when_both_say_the_same() {
        let need = json!({"name": "orders", "kind": "state", "scopes": ["api", "jobs"]});
        let text = oam(&application(json!([asks("api", need.clone()), asks("jobs", need)])), "team-a").unwrap();
        assert_eq!(text.matches("kind: CapabilityClaim").count(), 1, "{text}");
        assert!(text.contains("namespace: team-a"), "{text}");
    }

    #[test]
    fn nothing_of_ours_is_a_mistake() {
        assert!(oam(&application(json!([{"name": "api"}])), "default").is_err());
        assert!(kratix(&application(json!([]))).is_err());
        let request = json!({"apiVersion": "kratix.mecha.dev/v1alpha1", "kind": "Capability",
            "metadata": {"name": "orders"}, "spec": {"kind": "state"}});
        assert!(kratix(&[request]).unwrap_err().to_string().contains("spec.namespace"));
    }
}
