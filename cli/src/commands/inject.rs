//! `mecha inject`: adds the sidecar to documents, as the webhook of a cluster would.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use mecha_patch::{Config, inject};
use serde_json::Value;

use crate::error::{CliError, OK, Result};
use crate::output;
use crate::style;

/// Most a document may have: what the API server takes, with room for many in one file.
const LARGEST_INPUT: u64 = 64 * 1024 * 1024;

/// Add the sidecar to pods in documents, as the webhook of a cluster would.
///
/// Reads Kubernetes documents, gives every pod with the annotation dapr.io/enabled (or mecha.dev/enabled) its sidecar,
/// and prints all of them. What is no workload passes through unchanged, and what has its sidecar stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha inject -f deployment.yaml | kubectl apply -f -\n  \
    kubectl get deployment orders -o yaml | mecha inject | kubectl apply -f -\n  \
    mecha inject -f deployment.yaml --config injector.yaml -o json\n\n\
    Nothing is printed when a document cannot be done; every reason is told at once.")]
pub(crate) struct InjectArgs {
    /// File with one or more documents; - is standard input
    #[arg(long, short = 'f', value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Configuration of the injector, as its ConfigMap holds it
    #[arg(long, short = 'c', value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Image of the sidecar; wins over the configuration
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Namespace of documents that name none
    #[arg(long, short = 'n', value_name = "NAME", default_value = "default")]
    namespace: String,
    /// How to print
    #[arg(long, short = 'o', value_enum, default_value_t = Form::Yaml)]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// YAML documents.
    Yaml,
    /// JSON documents, one a line.
    Json,
}

pub(crate) fn run(args: &InjectArgs) -> Result<u8> {
    let mut config: Config = match &args.config {
        Some(path) => serde_saphyr::from_str(&read(path)?).map_err(|e| {
            CliError::new("injector-config", format!("{} cannot be used: {e}", path.display()))
                .hint("Its fields are those of the injector's ConfigMap.")
        })?,
        None => Config::default(),
    };
    if let Some(image) = &args.image {
        config.image.clone_from(image);
    }
    let text = read(&args.file)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|e| {
        CliError::new("no-yaml", format!("{} cannot be read: {e}", args.file.display()))
            .hint("Put --- between documents.")
    })?;
    let mut work = Work { config: &config, namespace: &args.namespace, problems: Vec::new(), warnings: Vec::new() };
    let done: Vec<Value> = documents.into_iter().filter(|d| !d.is_null()).map(|d| work.document(d)).collect();
    for warning in &work.warnings {
        eprintln!("{} {warning}", style::stderr().warning("warning:"));
    }
    if !work.problems.is_empty() {
        return Err(
            CliError::new("not-injectable", work.problems.join("\n  ")).hint("Correct them; nothing was printed.")
        );
    }
    let mut out = String::new();
    for (i, document) in done.iter().enumerate() {
        match args.output {
            Form::Json => out.push_str(&document.to_string()),
            Form::Yaml => {
                if i > 0 {
                    out.push_str("---\n");
                }
                let yaml = serde_saphyr::to_string(document)
                    .map_err(|e| CliError::new("output", format!("cannot write YAML: {e}")))?;
                out.push_str(yaml.trim_end());
            }
        }
        out.push('\n');
    }
    output::write(out.as_bytes())?;
    Ok(OK)
}

/// The text of a file, or of standard input for `-`.
pub(super) fn read(path: &Path) -> Result<String> {
    let fail = |e: std::io::Error| CliError::new("unreadable", format!("{} cannot be read: {e}", path.display()));
    let mut text = String::new();
    let most = LARGEST_INPUT + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_string(&mut text).map_err(fail)?;
    } else {
        std::fs::File::open(path).and_then(|f| f.take(most).read_to_string(&mut text)).map_err(fail)?;
    }
    if text.len() as u64 > LARGEST_INPUT {
        return Err(CliError::new("too-large", format!("{} has more than {LARGEST_INPUT} bytes", path.display())));
    }
    Ok(text)
}

struct Work<'a> {
    config: &'a Config,
    namespace: &'a str,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Work<'_> {
    fn document(&mut self, mut document: Value) -> Value {
        let kind = document["kind"].as_str().unwrap_or_default();
        if kind == "List" || kind.ends_with("List") && document["items"].is_array() {
            if let Some(items) = document["items"].as_array_mut() {
                for item in items {
                    *item = self.document(item.take());
                }
            }
            return document;
        }
        let Some(path) = pod_of(kind) else { return document };
        let title = format!("{kind}/{}", document["metadata"]["name"].as_str().unwrap_or_default());
        let namespace = document["metadata"]["namespace"].as_str().unwrap_or(self.namespace).to_owned();
        let workload = document["metadata"]["name"].clone();
        let Some(pod) = document.pointer_mut(path) else { return document };
        // A template has no name of its own; its pods belong to the workload, which names the app.
        let named = !path.is_empty() && pod["metadata"]["name"].is_null();
        if named {
            if !pod["metadata"].is_object() {
                return document;
            }
            pod["metadata"]["name"] = workload;
        }
        match inject(pod, &namespace, self.config) {
            Ok(injection) => {
                self.warnings.extend(injection.warnings.into_iter().map(|text| format!("{title}: {text}")));
                *pod = injection.pod;
            }
            Err(denied) => self.problems.extend(denied.problems.iter().map(|problem| format!("{title}: {problem}"))),
        }
        if named && let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("name");
        }
        document
    }
}

/// Where a document of this kind has its pod.
fn pod_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(document: &Value) -> (Value, Vec<String>) {
        let config = Config::default();
        let mut work = Work { config: &config, namespace: "shop", problems: Vec::new(), warnings: Vec::new() };
        let done = work.document(document.clone());
        (done, work.problems)
    }

    fn template(annotation: &str) -> Value {
        json!({"metadata": {"annotations": {"dapr.io/enabled": annotation}}, "spec": {"containers": [{"name": "app"}]}})
    }

    #[test]
    fn every_kind_of_workload_gets_its_sidecar_under_its_own_name() {
        for (kind, path) in [
            ("Deployment", "/spec/template"),
            ("StatefulSet", "/spec/template"),
            ("Job", "/spec/template"),
            ("CronJob", "/spec/jobTemplate/spec/template"),
        ] {
            let mut document = json!({"kind": kind, "metadata": {"name": "orders"}, "spec": {
                "template": template("true"), "jobTemplate": {"spec": {"template": template("true")}}}});
            document["spec"].as_object_mut().unwrap().retain(|key, _| path.starts_with(&format!("/spec/{key}")));
            let (done, problems) = work(&document);
            assert_eq!(problems, Vec::<String>::new());
            let pod = done.pointer(path).unwrap();
            assert_eq!(pod["metadata"]["labels"]["dapr.io/app-id"], "orders", "{kind}");
            assert_eq!(pod["metadata"]["name"], Value::Null);
            assert_eq!(work(&done).0, done, "a second time changes nothing");
        }
    }

    #[test]
    fn what_is_no_workload_or_does_not_ask_passes_through() {
        for document in [
            json!({"kind": "ConfigMap", "data": {"a": "b"}}),
            json!({"kind": "Deployment", "metadata": {"name": "x"}, "spec": {"template": template("false")}}),
            json!({"kind": "Deployment", "metadata": {"name": "x"}}),
            json!({"no": "kind"}),
        ] {
            assert_eq!(work(&document).0, document);
        }
    }

    #[test]
    fn lists_are_gone_through_and_mistakes_name_the_workload() {
        let list = json!({"kind": "List", "items": [
            {"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"template": template("true")}},
            {"kind": "Deployment", "metadata": {"name": "b"}, "spec": {"template": template("perhaps")}},
        ]});
        let (done, problems) = work(&list);
        assert_eq!(done["items"][0]["spec"]["template"]["spec"]["initContainers"][0]["name"], "daprd");
        assert!(problems[0].starts_with("Deployment/b: annotation dapr.io/enabled"), "{problems:?}");
    }
}
