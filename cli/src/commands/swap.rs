//! `mecha swap`: what became of each change of the documents.

use super::target;
use crate::args::SwapArgs;
use crate::client::Call;
use crate::error::{CliError, OK, Result};
use crate::output::{self, Table};
use http::Method;
use serde_json::Value;

pub(crate) async fn run(args: &SwapArgs) -> Result<u8> {
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
            }],
            "refused": [{ "kind": "Resiliency", "name": "policies", "reason": "no such thing" }]
        }));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("state.sqlite/v1") && lines[1].contains("applied"), "{text}");
        assert!(lines[4].contains("policies") && lines[4].contains("no such thing"), "{text}");
        assert_eq!(table(&serde_json::json!({ "swaps": [] })), "nothing changed since the start\n");
    }
}
