//! `mecha explain`: what an error code means, or why a claim has its backend.

use super::plan::now_ms;
use crate::cluster::ClusterArgs;
use crate::cluster::view::View;
use crate::error::{CliError, OK, Result};
use crate::kinds::{self, show};
use crate::output::{self, Format};
use clap::{Args, ValueHint};
use mecha_decide::{Choice, ClaimOutcome, Consent, Evaluation, Inputs, Memory, Record, World};
use mecha_resources::kinds::{CapabilityKind, Explanation};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Codes and the pages about them.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/error_pages.rs"));

/// Tell what an error code means, or why a claim has its backend and not another one.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha explain ERR_STATE_GET\n  \
    mecha explain claim orders --dir platform\n  \
    mecha explain claim team-a-dev-jp7j4/orders --context production\n  \
    mecha explain claim orders -o json > why.json; mecha explain --replay why.json     (decides again, offline)")]
pub(crate) struct ExplainArgs {
    /// An error code, or the word `claim`
    #[arg(value_name = "CODE|claim", required_unless_present = "replay")]
    subject: Option<String>,
    /// Name of the claim, or namespace/name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Folder with the documents to decide by, instead of a cluster
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "name",
        conflicts_with_all = ["kubeconfig", "context"])]
    dir: Option<PathBuf>,
    /// Decide again by what an answer of -o json says the decision looked at, and compare
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["subject", "dir", "output"])]
    replay: Option<PathBuf>,
    /// Format of the answer about a claim; json and yaml hold all that the decision looked at
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Everything about one claim, for scripts and for `--replay`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    claim: &'a str,
    environment: &'a str,
    kind: CapabilityKind,
    required_features: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    choice: Option<&'a Choice>,
    /// In one line.
    summary: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<&'a Explanation>,
    /// The decision with its inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
}

pub(crate) async fn run(args: &ExplainArgs) -> Result<u8> {
    if let Some(file) = &args.replay {
        output::write(replay(file)?.as_bytes())?;
        return Ok(OK);
    }
    match (args.subject.as_deref().unwrap_or_default(), &args.name, &args.dir) {
        ("claim", Some(name), Some(dir)) => {
            let world = kinds::world(&kinds::read(dir)?);
            claim(args.output, name, &world, &world.memory(), &Consent::default(), 0)?;
        }
        ("claim", Some(name), None) => {
            let view = View::read(&args.cluster.client().await?).await?;
            let world = view.world();
            let (memory, consent) = view.before(&world, false);
            claim(args.output, name, &world, &memory, &consent, now_ms())?;
        }
        ("claim", None, _) => {
            return Err(CliError::usage("explain", "which claim?")
                .hint("mecha explain claim NAME, for a folder with --dir DIR"));
        }
        (code, None, None) => output::write(page(code)?.as_bytes())?,
        (other, ..) => {
            return Err(CliError::usage("explain", format!("{other:?} cannot be explained by documents"))
                .hint("mecha explain claim NAME --dir DIR"));
        }
    }
    Ok(OK)
}

fn page(code: &str) -> Result<String> {
    let wanted = code.to_uppercase();
    let found = PAGES.iter().find(|(known, _)| *known == wanted);
    let Some((_, page)) = found else {
        let close = mecha_resources::did_you_mean(&wanted, PAGES.iter().map(|(code, _)| *code));
        let error = CliError::usage("unknown-code", format!("no error has the code {code}"));
        return Err(match close {
            Some(close) => error.hint(format!("did you mean {close}?")),
            None => error.hint("codes look like ERR_STATE_GET; docs/reference/errors.md lists them"),
        });
    };
    let text = page.lines().filter(|line| !line.starts_with("<!--") && !line.starts_with("[All codes]"));
    let text = text.collect::<Vec<_>>().join("\n");
    Ok(format!("{}\n", text.trim()))
}

fn claim(format: Format, name: &str, world: &World, memory: &Memory, consent: &Consent, now_ms: u64) -> Result<()> {
    let evaluation = world.evaluate(memory, consent, now_ms);
    let found = named(&evaluation, name)?;
    match (format, found.as_slice()) {
        (Format::Table, found) => {
            let text: String = found.iter().map(|outcome| show::explanation(outcome)).collect();
            output::write(text.as_bytes())
        }
        (_, [outcome]) => {
            let answer = Answer {
                claim: &outcome.claim,
                environment: &outcome.environment,
                kind: outcome.kind,
                required_features: &outcome.required,
                backend: outcome.backend.as_deref(),
                choice: outcome.decision.as_ref().map(|decision| &decision.choice),
                summary: show::headline(outcome),
                blocked: outcome.blocked.as_ref().map(ToString::to_string),
                explanation: outcome.decision.as_ref().map(|decision| &decision.explanation),
                record: world.record(&outcome.claim, memory, consent, now_ms),
            };
            output::print(format, &answer, String::new)
        }
        (_, several) => {
            let names: Vec<_> = several.iter().map(|outcome| outcome.claim.as_str()).collect();
            Err(CliError::usage("claim", format!("{name} may be {}", names.join(" or ")))
                .hint("name it as NAMESPACE/NAME"))
        }
    }
}

fn named<'e>(evaluation: &'e Evaluation, name: &str) -> Result<Vec<&'e ClaimOutcome>> {
    let fits = |key: &str| key == name || key.rsplit('/').next() == Some(name);
    let found: Vec<_> = evaluation.claims.iter().filter(|outcome| fits(&outcome.claim)).collect();
    if found.is_empty() {
        let names: Vec<_> = evaluation.claims.iter().map(|outcome| outcome.claim.as_str()).collect();
        let error = CliError::usage("unknown-claim", format!("no CapabilityClaim is called {name}"));
        return Err(match names.as_slice() {
            [] => error.hint("there is none"),
            names => error.hint(format!("there are: {}", names.join(", "))),
        });
    }
    Ok(found)
}

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 256 * 1024 * 1024;

/// Decides again from a record; what both say, where they agree.
fn replay(file: &Path) -> Result<String> {
    let unusable = |why: &dyn std::fmt::Display| {
        CliError::usage("replay", format!("{} cannot be replayed: {why}", file.display()))
            .hint("write one with: mecha explain claim NAME -o json")
    };
    let size = std::fs::metadata(file).map_err(|e| unusable(&e))?.len();
    if size > MAX_RECORD {
        return Err(unusable(&format!("it has more than {MAX_RECORD} bytes")));
    }
    let text = std::fs::read_to_string(file).map_err(|e| unusable(&e))?;
    let mut answer: Value = match serde_json::from_str(&text) {
        Ok(answer) => answer,
        Err(_) => serde_saphyr::from_str(&text).map_err(|e| unusable(&e))?,
    };
    let claim = answer["claim"].as_str().unwrap_or_default().to_owned();
    let record = match answer.get_mut("record").map(Value::take) {
        Some(record) => record,
        None if answer.get("inputs").is_some() => answer,
        None => return Err(unusable(&"nothing was decided in it")),
    };
    let record: Record = serde_json::from_value(record).map_err(|e| unusable(&e))?;
    record.replay().map_err(|mismatch| CliError::new("replay", format!("{}: {mismatch}", file.display())))?;
    let explanation = &record.decision["explanation"];
    let looked_at = match &record.inputs {
        Inputs::Backend { backends, .. } => format!("{} backends", backends.len()),
        Inputs::Clusters { clusters, .. } => format!("{} clusters", clusters.len()),
    };
    let digest = explanation["inputDigest"].as_str().unwrap_or_default();
    let whose = if claim.is_empty() { String::new() } else { format!("{claim}: ") };
    Ok(format!("{whose}the same inputs give the same answer ({looked_at})\n  inputs        {digest}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_page_and_a_typing_mistake_a_hint() {
        let text = page("err_state_get").unwrap();
        assert!(text.starts_with("# ERR_STATE_GET") && text.contains("## Next step"), "{text}");
        assert!(!text.contains("<!--"));
        let error = page("ERR_STATE_GOT").unwrap_err();
        assert!(error.to_string().contains("did you mean ERR_STATE_GET"), "{error}");
    }
}
