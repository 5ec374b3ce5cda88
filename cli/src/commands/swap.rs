//! `mecha swap`: what became of each change of a sidecar's documents, and what people say to moves in a cluster.

use super::target;
use crate::args::Through;
use crate::client::Call;
use crate::cluster::{ClusterArgs, steer};
use crate::error::{CliError, OK, Result};
use crate::output::{self, Format, Table};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

/// Show what became of each change of a sidecar's documents while it ran, or steer moves in a cluster.
///
/// One line per change: what took the place of what, how long until callers met the new one, what was in flight
/// at that moment and how it ended. Documents that are refused at the moment follow with the reason.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  \
    mecha swap --app-id orders\n  \
    mecha swap --app-id orders -o json\n  \
    mecha swap approve production --plan sha256:77aa...\n  \
    mecha swap abort team-a-dev-jp7j4/orders\n\n\
    mecha status shows which moves wait, and mecha plan the digest of their plan."
)]
pub(crate) struct SwapArgs {
    #[command(subcommand)]
    action: Option<SwapAction>,
    /// Id of the app
    #[arg(long, short = 'a', value_name = "ID", required_unless_present = "dapr_http_port")]
    app_id: Option<String>,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    through: Through,
}

#[derive(Debug, Subcommand)]
enum SwapAction {
    /// Agree to the moves of a class that wait for a person
    Approve {
        /// The EnvironmentClass
        class: String,
        /// Digest of the plan; refused when other claims would move by now
        #[arg(long, value_name = "DIGEST")]
        plan: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Go back to the old backend, as long as that is possible
    Abort(Moving),
    /// Go on though the old backend is not empty
    Proceed(Moving),
}

/// A claim on the move.
#[derive(Debug, Args)]
struct Moving {
    /// The claim, as NAMESPACE/NAME; the name alone where it is the only one
    claim: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn run(args: &SwapArgs) -> Result<u8> {
    let said = match &args.action {
        None => return receipts(args).await,
        Some(SwapAction::Approve { class, plan, cluster }) => {
            steer::approve(&cluster.client().await?, class, plan).await?
        }
        Some(SwapAction::Abort(moving)) => {
            steer::wish(&moving.cluster.client().await?, &moving.claim, steer::Wish::Abort).await?
        }
        Some(SwapAction::Proceed(moving)) => {
            steer::wish(&moving.cluster.client().await?, &moving.claim, steer::Wish::Proceed).await?
        }
    };
    output::write(format!("{said}\n").as_bytes())?;
    Ok(OK)
}

async fn receipts(args: &SwapArgs) -> Result<u8> {
    let endpoint = target::endpoint(&args.through, args.app_id.as_deref())?;
    let answer = Call::new(Method::GET, "/v1.0-mecha/swaps").send(&endpoint, args.through.timeout).await?.ok()?;
    let document: Value = serde_json::from_slice(&answer.body)
        .map_err(|error| CliError::new("sidecar-answer", format!("{endpoint} answered with no receipts: {error}")))?;
    output::print(args.output, &document, || table(&document))?;
    Ok(OK)
}

fn table(document: &Value) -> String {
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut out = String::new();
    let swaps = list("swaps");
    if swaps.is_empty() {
        out.push_str("nothing changed since the start\n");
    } else {
        let mut table = Table::new([
            "NO",
            "TIME",
            "KIND",
            "NAME",
            "CHANGE",
            "FROM",
            "TO",
            "OUTCOME",
            "SWITCH MS",
            "TOTAL MS",
            "IN FLIGHT",
            "FINISHED",
            "REDELIVERED",
            "CUT OFF",
            "DATA MOVED",
            "EMPTIED",
            "REASON",
        ]);
        for swap in &swaps {
            let columns = [
                "generation",
                "time",
                "kind",
                "name",
                "change",
                "from",
                "to",
                "outcome",
                "switchMs",
                "durationMs",
                "inFlight",
                "finished",
                "redelivered",
                "failed",
                "dataMoved",
                "emptied",
                "reason",
            ];
            table.row(columns.iter().map(|column| text(&swap[*column])).collect());
        }
        out.push_str(&table.render());
    }
    let refused = list("refused");
    if !refused.is_empty() {
        let mut table = Table::new(["REFUSED", "NAME", "REASON"]);
        for one in &refused {
            table.row(["kind", "name", "reason"].iter().map(|column| text(&one[*column])).collect());
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn a_line_for_each_change_and_each_refusal() {
        let text = table(&serde_json::json!({
            "generation": 1,
            "swaps": [{
                "generation": 1, "time": "2026-01-01T00:00:00Z", "kind": "Component", "name": "store",
                "change": "updated", "from": "state.sqlite/v1", "to": "state.redis/v1", "outcome": "applied",
                "inFlight": 3, "finished": 3, "redelivered": 0, "failed": 0, "switchMs": 12.5, "durationMs": 14.0,
                "dataMoved": false
            }, {
                "generation": 2, "time": "2026-01-01T00:00:01Z", "kind": "Component", "name": "bus",
                "change": "updated", "from": "pubsub.redis/v1", "to": "pubsub.kafka/v1", "outcome": "cutOff",
                "inFlight": 0, "finished": 0, "redelivered": 1, "failed": 0, "switchMs": 20.0, "durationMs": 90000.0,
                "emptied": false, "reason": "the old broker was not read to its end"
            }],
            "refused": [{ "kind": "Resiliency", "name": "policies", "reason": "no such thing" }]
        }));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("state.sqlite/v1") && lines[1].contains("applied"), "{text}");
        assert!(lines[2].contains("false") && lines[2].ends_with("the old broker was not read to its end"), "{text}");
        assert!(lines[5].contains("policies") && lines[5].contains("no such thing"), "{text}");
        assert_eq!(table(&serde_json::json!({ "swaps": [] })), "nothing changed since the start\n");
    }
}
