//! `mecha wait`: until objects of a cluster are as they are to be.

use super::plan::now_ms;
use crate::cluster::files::Files;
use crate::cluster::view::{View, approvals};
use crate::cluster::write::{Wanted, Writer};
use crate::cluster::{ClusterArgs, NamespaceArgs, files};
use crate::error::{CliError, OK, Result};
use crate::kinds::show;
use crate::output::{self, Format};
use clap::Args;
use kube::Client;
use mecha_decide::{Choice, Plan, StayWhy};
use mecha_resources::kinds::API_VERSION;
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Wait until objects of a cluster are ready and everything that was decided about them is in force.
///
/// An object is named as KIND/NAME (class, backend, environment, claim, placement, cluster), or by the file it is
/// written in. A class is ready when nothing of it waits for a person, no claim of it is on the move, and none is left at
/// a backend that no longer does.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha wait platform\n  \
    mecha wait environment/team-a-dev -n team-a --timeout 5m\n  \
    mecha wait class/development claim/team-a-dev-jp7j4/orders\n\n\
    Exit status: 0 all are ready, 1 the time is over; what is missing is told with its reason.")]
pub(crate) struct WaitArgs {
    /// KIND/NAME, KIND/NAMESPACE/NAME, a file or a folder
    #[arg(value_name = "OBJECT|FILE", required = true)]
    targets: Vec<String>,
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = crate::args::duration)]
    timeout: Duration,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(300);

/// The words for our kinds, the kind, whether it is in a namespace, and the condition that says it is ready.
const KINDS: [(&str, &str, bool, &str); 6] = [
    ("class", "EnvironmentClass", false, ""),
    ("backend", "CapabilityBackend", false, "Ready"),
    ("cluster", "MemberCluster", false, "Available"),
    ("environment", "Environment", true, "Ready"),
    ("claim", "CapabilityClaim", true, "Ready"),
    ("placement", "AppPlacement", true, "Satisfied"),
];

#[derive(Debug, Serialize)]
struct Ready {
    object: String,
    ready: bool,
    message: String,
}

pub(crate) async fn run(args: &WaitArgs) -> Result<u8> {
    let mut files = targets(args)?;
    let client = args.cluster.client().await?;
    let namespace = args.namespace.of(&client);
    files.place(&namespace);
    let wanted = files.wanted;
    let mut writer = Writer::new(client.clone(), namespace);
    let until = Instant::now() + args.timeout;
    loop {
        let outcome = look(&client, &mut writer, &wanted).await;
        let late = Instant::now() >= until;
        match outcome {
            Ok(state) if late || state.iter().all(|one| one.ready) => {
                output::print(args.output, &state, || {
                    let line = |one: &Ready| {
                        let state = if one.ready { "ready" } else { "not ready" };
                        let why = if one.message.is_empty() { String::new() } else { format!(": {}", one.message) };
                        format!("{} {state}{why}\n", one.object)
                    };
                    state.iter().map(line).collect()
                })?;
                let missing = state.iter().filter(|one| !one.ready).count();
                if missing == 0 {
                    return Ok(OK);
                }
                let message = format!("{missing} of {} are not ready after {:?}", state.len(), args.timeout);
                return Err(CliError::new("not-ready", message)
                    .hint("mecha status tells more; mecha doctor --cluster looks for the cause"));
            }
            Err(error) if late || error.status() == crate::error::USAGE => return Err(error),
            // An API server that restarts is waited for like anything else.
            Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

fn targets(args: &WaitArgs) -> Result<Files> {
    let mut wanted = Vec::new();
    let mut paths = Vec::new();
    for target in &args.targets {
        let kind = target.split('/').next().unwrap_or_default();
        let known = KINDS.iter().find(|(word, ..)| *word == kind);
        let Some((_, kind, namespaced, _)) = known.filter(|_| target.contains('/') && !Path::new(target).exists())
        else {
            if target != "-" && !Path::new(target).exists() {
                let words: Vec<_> = KINDS.iter().map(|(word, ..)| *word).collect();
                let message = format!("'{target}' is no file, and no object of {}", words.join(", "));
                return Err(
                    CliError::usage("wait", message).hint("for example: mecha wait environment/team-a-dev -n team-a")
                );
            }
            paths.push(PathBuf::from(target));
            continue;
        };
        let parts: Vec<&str> = target.split('/').skip(1).collect();
        let (namespace, name) = match (parts.as_slice(), *namespaced) {
            ([name], _) => (String::new(), *name),
            ([namespace, name], true) => ((*namespace).to_owned(), *name),
            _ => return Err(CliError::usage("wait", format!("'{target}' names no object"))),
        };
        wanted.push(Wanted {
            api_version: API_VERSION.to_owned(),
            kind: (*kind).to_owned(),
            namespace,
            name: name.to_owned(),
            document: Value::Null,
            origin: "the command line".to_owned(),
        });
    }
    let mut files = if paths.is_empty() { Files::default() } else { files::read(&paths)? };
    files.wanted.splice(0..0, wanted);
    Ok(files)
}

async fn look(client: &Client, writer: &mut Writer, wanted: &[Wanted]) -> Result<Vec<Ready>> {
    let classes = wanted.iter().any(|one| one.api_version == API_VERSION && one.kind == "EnvironmentClass");
    let view = match classes {
        true => Some(View::read(client).await?),
        false => None,
    };
    let mut state = Vec::with_capacity(wanted.len());
    for one in wanted {
        let found = writer.get(one).await?;
        let problem = match &found {
            None => Some("it is not there".to_owned()),
            Some(_) if one.api_version != API_VERSION => None,
            Some(object) => {
                let generation = object.metadata.generation;
                let kind = KINDS.iter().find(|(_, kind, ..)| *kind == one.kind);
                match (kind, &view) {
                    (Some((_, "EnvironmentClass", ..)), Some(view)) => {
                        of_class(view, &one.name, &object.data, generation)
                    }
                    (Some((.., condition)), _) => missing(&object.data, condition, generation),
                    (None, _) => None,
                }
            }
        };
        state.push(Ready { object: one.title(), ready: problem.is_none(), message: problem.unwrap_or_default() });
    }
    Ok(state)
}

/// Why the condition does not hold for what is wanted now.
fn missing(data: &Value, kind: &str, generation: Option<i64>) -> Option<String> {
    let conditions = data["status"]["conditions"].as_array();
    let Some(condition) = conditions.into_iter().flatten().find(|c| c["type"] == kind) else {
        return Some("the control part has not looked at it yet".to_owned());
    };
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    if condition["status"] != "True" {
        let message = text("message");
        return Some(if message.is_empty() {
            text("reason").to_owned()
        } else {
            format!("{} ({})", message, text("reason"))
        });
    }
    let seen = condition["observedGeneration"].as_i64();
    (seen < generation && seen.is_some()).then(|| "the control part has not looked at the last edit yet".to_owned())
}

/// Why a class is not in force yet.
fn of_class(view: &View, name: &str, data: &Value, generation: Option<i64>) -> Option<String> {
    let status = &data["status"];
    if status["observedGeneration"].as_i64() < generation {
        return Some("the control part has not looked at it yet".to_owned());
    }
    let conditions = status["conditions"].as_array().into_iter().flatten();
    if let Some(waits) = conditions.into_iter().find(|c| c["type"] == "SwapPending" && c["status"] == "True") {
        return Some(waits["message"].as_str().unwrap_or_default().to_owned());
    }
    let world = view.world();
    let of_class = |claim: &str| {
        let namespace = claim.split('/').next().unwrap_or_default();
        let environment = world.environment_of(namespace);
        environment.and_then(|e| world.class_of(e).ok()).is_some_and(|class| class.name() == name)
    };
    if let Some((claim, binding, index)) = view.moves().find(|(claim, ..)| of_class(claim)) {
        let entry = binding.spec.entries.get(index);
        let phase =
            entry.and_then(|e| e.swap.as_ref()).map(|swap| format!("{} -> {}, {}", swap.from, swap.to, swap.phase));
        return Some(format!("{claim} is on the move: {}", phase.unwrap_or_default()));
    }
    let evaluation = view.evaluate(&world, false, now_ms());
    if let Some(approval) = approvals(&world, &evaluation).into_iter().find(|a| a.class == name) {
        return Some(format!("to agree: mecha swap approve {name} --plan {}", approval.digest));
    }
    let stuck = evaluation.claims.iter().find(|outcome| {
        let choice = outcome.decision.as_ref().map(|decision| &decision.choice);
        matches!(choice, Some(Choice::Stay { why: StayWhy::NoCandidate, .. })) && of_class(&outcome.claim)
    });
    if let Some(outcome) = stuck {
        return Some(format!("{}; mecha explain claim {} says why", show::headline(outcome), outcome.claim));
    }
    let plan = Plan::of(&evaluation);
    let next =
        plan.moves.iter().chain(&plan.binds).find(|planned| of_class(&planned.claim) && planned.blocked.is_none());
    next.map(|planned| format!("{} is to go to {}", planned.claim, planned.to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_condition_counts_only_for_what_is_wanted_now() {
        let data = |status: &str, seen: i64| {
            json!({"status": {"conditions": [
                {"type": "Bound", "status": "True"},
                {"type": "Ready", "status": status, "reason": "Pending", "message": "no backend", "observedGeneration": seen},
            ]}})
        };
        assert_eq!(missing(&data("True", 3), "Ready", Some(3)), None);
        assert!(missing(&data("True", 2), "Ready", Some(3)).unwrap().contains("last edit"));
        assert_eq!(missing(&data("False", 3), "Ready", Some(3)).unwrap(), "no backend (Pending)");
        assert!(missing(&json!({}), "Ready", None).unwrap().contains("has not looked"));
    }
}
