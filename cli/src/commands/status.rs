//! `mecha status`: how a cluster's environments, claims and moves are, and the control part itself.

use super::environment::{self, Row};
use crate::cluster::ClusterArgs;
use crate::cluster::health::{self, Part};
use crate::cluster::view::View;
use crate::error::{OK, Result};
use crate::output::{self, Format, Table};
use crate::style;
use clap::Args;
use mecha_resources::kinds::{CapabilityClaim, ClaimConditionType, ConditionStatus, condition_status};
use serde::Serialize;

/// Show the environments and claims of a cluster, what is on the move, what waits for a person, and the control part.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mecha status\n  mecha status --context production -o json")]
pub(crate) struct StatusArgs {
    /// Namespace of the control part
    #[arg(long, value_name = "NAME", default_value = health::NAMESPACE)]
    control_namespace: String,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Serialize)]
struct Status {
    environments: Vec<Row>,
    claims: Vec<Claim>,
    swaps: Vec<Swap>,
    waiting: Vec<Waiting>,
    control: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Claim {
    claim: String,
    kind: String,
    phase: String,
    backend: String,
    ready: bool,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Swap {
    claim: String,
    cluster: String,
    from: String,
    to: String,
    strategy: String,
    phase: String,
    progress: String,
    started_at: String,
}

#[derive(Debug, Serialize)]
struct Waiting {
    class: String,
    plan: String,
    moves: u32,
}

pub(crate) async fn run(args: &StatusArgs) -> Result<u8> {
    let client = args.cluster.client().await?;
    let view = View::read(&client).await?;
    for unreadable in &view.unreadable {
        eprintln!("{} left out: {unreadable}", style::stderr().warning("warning:"));
    }
    let status = Status {
        environments: view.documents.environments.iter().map(|e| environment::row(&e.value)).collect(),
        claims: view.documents.claims.iter().map(|c| claim(&c.value)).collect(),
        swaps: swaps(&view),
        waiting: waiting(&view),
        control: health::parts(&client, &args.control_namespace).await?,
    };
    output::print(args.output, &status, || text(&status))?;
    Ok(OK)
}

fn claim(claim: &CapabilityClaim) -> Claim {
    let status = claim.status.clone().unwrap_or_default();
    let ready = condition_status(&status.conditions, ClaimConditionType::Ready) == Some(ConditionStatus::True);
    let why = status.conditions.iter().find(|c| c.kind == ClaimConditionType::Ready);
    Claim {
        claim: claim.key(),
        kind: claim.spec.kind.to_string(),
        phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| phase.to_string()),
        backend: status.backend,
        ready,
        message: why.filter(|_| !ready).map(|c| c.message.clone()).unwrap_or_default(),
    }
}

fn swaps(view: &View) -> Vec<Swap> {
    let one = |(claim, binding, index): (String, &mecha_apiserver::CapabilityBinding, usize)| {
        let entry = binding.spec.entries.get(index)?;
        let swap = entry.swap.as_ref()?;
        let status = binding.status.as_ref().and_then(|s| s.entries.iter().find(|e| e.claim == entry.claim));
        Some(Swap {
            claim,
            cluster: binding.spec.cluster.clone(),
            from: swap.from.clone(),
            to: swap.to.clone(),
            strategy: swap.strategy.to_string(),
            phase: swap.phase.to_string(),
            progress: status.map(|s| s.swap.clone()).unwrap_or_default(),
            started_at: swap.started_at.clone(),
        })
    };
    view.moves().filter_map(one).collect()
}

fn waiting(view: &View) -> Vec<Waiting> {
    let one = |class: &mecha_resources::Located<mecha_resources::kinds::EnvironmentClass>| {
        let status = class.value.status.as_ref().filter(|status| !status.pending_plan.is_empty())?;
        Some(Waiting {
            class: class.value.name().to_owned(),
            plan: status.pending_plan.clone(),
            moves: status.pending_moves.unwrap_or_default(),
        })
    };
    view.documents.classes.iter().filter_map(one).collect()
}

fn text(status: &Status) -> String {
    let mut out = environment::table(&status.environments);
    out.push('\n');
    let mut table = Table::new(["CLAIM", "KIND", "PHASE", "BACKEND", "READY", "MESSAGE"]);
    for claim in &status.claims {
        table.row(vec![
            claim.claim.clone(),
            claim.kind.clone(),
            claim.phase.clone(),
            claim.backend.clone(),
            claim.ready.to_string(),
            claim.message.clone(),
        ]);
    }
    out.push_str(&table.render());
    if !status.swaps.is_empty() {
        let mut table = Table::new(["SWAP", "CLUSTER", "FROM", "TO", "STRATEGY", "PHASE", "PROGRESS", "SINCE"]);
        for swap in &status.swaps {
            table.row(vec![
                swap.claim.clone(),
                swap.cluster.clone(),
                swap.from.clone(),
                swap.to.clone(),
                swap.strategy.clone(),
                swap.phase.clone(),
                swap.progress.clone(),
                swap.started_at.clone(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render());
    }
    for waiting in &status.waiting {
        out.push_str(&format!(
            "\n{} moves wait for a person; to agree: mecha swap approve {} --plan {}\n",
            waiting.moves, waiting.class, waiting.plan
        ));
    }
    let mut table = Table::new(["CONTROL PART", "STATE", "LEADER", "DETAIL"]);
    for part in &status.control {
        table.row(vec![part.role.clone(), part.state.to_string(), part.leader.clone(), part.detail.clone()]);
    }
    out.push('\n');
    out.push_str(&table.render());
    out
}
