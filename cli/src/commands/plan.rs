//! `mecha plan`: what documents would change, in a folder or in a cluster, before anything does.

use crate::cluster::view::{Approval, View, approvals};
use crate::cluster::{ClusterArgs, NamespaceArgs, files};
use crate::error::{CHANGES, CliError, OK, Result};
use crate::kinds::{self, show};
use crate::output::{self, Format};
use crate::style;
use clap::{Args, ValueHint};
use mecha_decide::{Consent, Plan};
use serde::Serialize;
use std::path::PathBuf;
use std::time::SystemTime;

/// Show which claims an edit would bind or move, why, and what stands in the way. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha plan class.yaml --context production      (the cluster, with this edit)\n  \
    mecha plan --context production                 (the cluster as it is)\n  \
    mecha plan --dir platform\n  \
    mecha plan --dir platform --from platform.before -o json\n\n\
    In a cluster, what is bound now is read from it. In a folder, it is read from the claims' status, and with --from \
    from what the documents there decide.\n\
    Exit status: 0 nothing would change, 3 something would.")]
pub(crate) struct PlanArgs {
    /// Files and folders with documents that are to be put into the cluster; - is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath, conflicts_with_all = ["dir", "from"])]
    files: Vec<PathBuf>,
    /// Folder with all documents as they are to be; no cluster is asked
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with_all = ["kubeconfig", "context"])]
    dir: Option<PathBuf>,
    /// Folder with the documents as they were
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "dir")]
    from: Option<PathBuf>,
    /// Stores may begin empty at their new backend
    #[arg(long)]
    empty_ok: bool,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A plan for a cluster, with what has to be agreed to.
#[derive(Debug, Serialize)]
struct ClusterPlan {
    #[serde(flatten)]
    plan: Plan,
    approvals: Vec<Approval>,
}

pub(crate) async fn run(args: &PlanArgs) -> Result<u8> {
    match &args.dir {
        Some(dir) => folder(args, dir),
        None => cluster(args).await,
    }
}

fn folder(args: &PlanArgs, dir: &std::path::Path) -> Result<u8> {
    let world = kinds::world(&kinds::read(dir)?);
    let consent = Consent { empty_ok: args.empty_ok, ..Consent::default() };
    let memory = match &args.from {
        None => world.memory(),
        Some(dir) => {
            let before = kinds::world(&kinds::read(dir)?);
            let agreed = Consent { all: true, empty_ok: true, ..Consent::default() };
            before.evaluate(&before.memory(), &agreed, 0).memory
        }
    };
    let plan = Plan::of(&world.evaluate(&memory, &consent, 0));
    output::print(args.output, &plan, || show::plan(&plan))?;
    Ok(if plan.is_empty() { OK } else { CHANGES })
}

async fn cluster(args: &PlanArgs) -> Result<u8> {
    let mut files = match args.files.is_empty() {
        true => None,
        false => Some(files::read(&args.files)?),
    };
    if files.is_none() && !args.cluster.is_named() && std::env::var_os("KUBECONFIG").is_none() {
        return Err(CliError::usage("plan", "a plan of what?")
            .hint("mecha plan --dir DIR for a folder, mecha plan FILE for an edit of the cluster, mecha plan --context NAME for the cluster as it is"));
    }
    let client = args.cluster.client().await?;
    let mut view = View::read(&client).await?;
    if let Some(files) = &mut files {
        files.place(&args.namespace.of(&client));
        view.edit(&files.documents);
    }
    for unreadable in &view.unreadable {
        eprintln!("{} left out: {unreadable}", style::stderr().warning("warning:"));
    }
    let world = view.world();
    let evaluation = view.evaluate(&world, args.empty_ok, now_ms());
    let plan = ClusterPlan { plan: Plan::of(&evaluation), approvals: approvals(&world, &evaluation) };
    output::print(args.output, &plan, || {
        let mut text = show::plan(&plan.plan);
        for approval in &plan.approvals {
            text.push_str(&format!("to agree: mecha swap approve {} --plan {}\n", approval.class, approval.digest));
        }
        text
    })?;
    Ok(if plan.plan.is_empty() { OK } else { CHANGES })
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
