//! `mecha environment`: the environments of a cluster.

use crate::cluster::ClusterArgs;
use crate::cluster::view::View;
use crate::error::{OK, Result};
use crate::output::{self, Format, Table};
use clap::{Args, Subcommand};
use mecha_resources::kinds::{ConditionStatus, Environment, EnvironmentConditionType, condition_status};
use serde::Serialize;

/// Show the environments of a cluster.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mecha environment list\n  mecha environment list -n team-a -o json")]
pub(crate) struct EnvironmentArgs {
    #[command(subcommand)]
    action: EnvironmentAction,
}

#[derive(Debug, Subcommand)]
enum EnvironmentAction {
    /// List them, as kubectl get environments does
    #[command(alias = "ls")]
    List {
        /// Only those of this namespace
        #[arg(long, short = 'n', value_name = "NAME")]
        namespace: Option<String>,
        /// Format of the answer
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// One environment, in the words of its columns.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) connect_to: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) infra: bool,
    pub(super) ready: String,
}

pub(super) fn row(environment: &Environment) -> Row {
    let status = environment.status.clone().unwrap_or_default();
    let ready = condition_status(&status.conditions, EnvironmentConditionType::Ready);
    let ready = match ready {
        Some(ConditionStatus::True) => "True",
        Some(ConditionStatus::False) => "False",
        Some(ConditionStatus::Unknown) | None => "Unknown",
    };
    Row {
        namespace: environment.namespace().to_owned(),
        name: environment.name().to_owned(),
        connect_to: status.connect_to,
        kind: status.kind,
        infra: environment.spec.parameters.get("installInfra").and_then(serde_json::Value::as_bool).unwrap_or_default(),
        ready: ready.to_owned(),
    }
}

pub(super) fn table(rows: &[Row]) -> String {
    let mut table = Table::new(["NAMESPACE", "NAME", "CONNECT-TO", "TYPE", "INFRA", "READY"]);
    for row in rows {
        table.row(vec![
            row.namespace.clone(),
            row.name.clone(),
            row.connect_to.clone(),
            row.kind.clone(),
            row.infra.to_string(),
            row.ready.clone(),
        ]);
    }
    table.render()
}

pub(crate) async fn run(args: &EnvironmentArgs) -> Result<u8> {
    let EnvironmentAction::List { namespace, output, cluster } = &args.action;
    let found = View::environments(&cluster.client().await?).await?;
    let mine = found.iter().filter(|e| namespace.as_ref().is_none_or(|wanted| e.namespace() == wanted));
    let rows: Vec<Row> = mine.map(row).collect();
    output::print(*output, &rows, || table(&rows))?;
    Ok(OK)
}
