//! `mecha components` and `mecha metadata`: what sidecars tell about themselves.

use super::target;
use crate::args::{ComponentsArgs, MetadataArgs, Through};
use crate::client::{Call, Endpoint};
use crate::error::{CliError, FAILURE, OK, Result};
use crate::home::Home;
use crate::output::{self, Table};
use crate::registry;
use http::Method;
use serde::Serialize;
use serde_json::Value;

/// A component as one app sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    app_id: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    version: String,
    capabilities: Vec<String>,
}

pub(crate) async fn components(args: &ComponentsArgs) -> Result<u8> {
    let mut endpoints = Vec::new();
    if args.app_id.is_some() || args.through.dapr_http_port.is_some() {
        endpoints.push(target::endpoint(&args.through, args.app_id.as_deref())?);
    } else {
        for record in registry::list(&Home::locate()?)? {
            endpoints.push(Endpoint::of(&record)?);
        }
    }
    let mut rows = Vec::new();
    let mut status = OK;
    for endpoint in &endpoints {
        match fetch(endpoint, &args.through).await {
            Ok(document) => rows.extend(rows_of(&document)),
            // One sidecar in trouble does not hide the others.
            Err(error) => {
                error.report();
                status = FAILURE;
            }
        }
    }
    rows.retain(|row| args.name.as_ref().is_none_or(|name| *name == row.name));
    output::print(args.output, &rows, || {
        if endpoints.is_empty() {
            return "nothing runs here\n".to_owned();
        }
        let mut table = Table::new(["APP ID", "NAME", "TYPE", "VERSION", "CAPABILITIES"]);
        for row in &rows {
            table.row(vec![
                row.app_id.clone(),
                row.name.clone(),
                row.kind.clone(),
                row.version.clone(),
                row.capabilities.join(","),
            ]);
        }
        table.render()
    })?;
    Ok(status)
}

pub(crate) async fn metadata(args: &MetadataArgs) -> Result<u8> {
    let endpoint = target::endpoint(&args.through, args.app_id.as_deref())?;
    let document = fetch(&endpoint, &args.through).await?;
    output::print(args.output, &document, || overview(&document))?;
    Ok(OK)
}

async fn fetch(endpoint: &Endpoint, through: &Through) -> Result<Value> {
    let answer = Call::new(Method::GET, "/v1.0/metadata").send(endpoint, through.timeout).await?.ok()?;
    serde_json::from_slice(&answer.body)
        .map_err(|error| CliError::new("sidecar-answer", format!("{endpoint} answered with no metadata: {error}")))
}

fn rows_of(document: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = document["components"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |component: &Value| Row {
        app_id: text(&document["id"]),
        name: text(&component["name"]),
        kind: text(&component["type"]),
        version: text(&component["version"]),
        capabilities: component["capabilities"].as_array().into_iter().flatten().map(text).collect(),
    };
    components.iter().map(row).collect()
}

/// One line per member: plain values as they are, lists by what identifies their items.
fn overview(document: &Value) -> String {
    let mut table = Table::new(["MEMBER", "VALUE"]);
    for (key, value) in document.as_object().into_iter().flatten() {
        table.row(vec![key.clone(), short(value)]);
    }
    table.render()
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(short).collect::<Vec<_>>().join(", "),
        Value::Object(members) => match ["name", "topic", "type"].iter().find_map(|key| members.get(*key)) {
            Some(name) => short(name),
            None => members.iter().map(|(key, value)| format!("{key}={}", short(value))).collect::<Vec<_>>().join(" "),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overview_fits_on_lines() {
        let document = serde_json::json!({
            "id": "orders",
            "components": [{ "name": "statestore", "type": "state.sqlite" }, { "name": "pubsub" }],
            "extended": { "a": "1", "b": "2" },
        });
        let text = overview(&document);
        assert!(text.contains("id          orders\n"), "{text}");
        assert!(text.contains("components  statestore, pubsub\n"), "{text}");
        assert!(text.contains("extended    a=1 b=2\n"), "{text}");
    }
}
