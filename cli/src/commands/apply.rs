//! `mecha apply`: puts documents into a cluster.

use crate::cluster::write::{Change, How, Writer};
use crate::cluster::{ClusterArgs, NamespaceArgs, files};
use crate::error::{CHANGES, OK, Result};
use crate::output::{self, Format};
use clap::{Args, ValueHint};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Put documents into a cluster, by server-side apply.
///
/// What others need goes first. The same documents a second time change nothing, so a pipeline that was killed is
/// simply run again. Fields that somebody else owns are refused, not fought over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha apply platform\n  \
    mecha apply class.yaml --context production --dry-run\n  \
    mecha apply claim.yaml -n team-a-dev-jp7j4\n  \
    mecha plan class.yaml; mecha apply class.yaml && mecha wait class.yaml\n\n\
    Exit status: 0 done, 3 with --dry-run when something would change.")]
pub(crate) struct ApplyArgs {
    /// Files and folders; - is standard input
    #[arg(value_name = "FILE", required = true, value_hint = ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Let the server check everything and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take over fields that somebody else owns
    #[arg(long)]
    force_conflicts: bool,
    /// How long to wait for the namespaces that the control part makes for environments
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::args::duration)]
    timeout: Duration,
    /// Format of the answer
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Serialize)]
struct Done {
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    change: Change,
}

pub(crate) async fn run(args: &ApplyArgs) -> Result<u8> {
    let mut files = files::read(&args.files)?;
    let client = args.cluster.client().await?;
    let namespace = args.namespace.of(&client);
    files.place(&namespace);
    let mut writer = Writer::new(client, namespace);
    let how = How { dry_run: args.dry_run, force: args.force_conflicts, until: Instant::now() + args.timeout };
    let mut done = Vec::with_capacity(files.wanted.len());
    let mut outcome = Ok(());
    for wanted in &files.wanted {
        match writer.put(wanted, how).await {
            Ok(change) => done.push(Done {
                kind: wanted.kind.clone(),
                namespace: wanted.namespace.clone(),
                name: wanted.name.clone(),
                change,
            }),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    // What was done before a failure is told as well.
    output::print(args.output, &done, || {
        let note = if args.dry_run { " (dry run)" } else { "" };
        let line = |one: &Done| {
            let space = if one.namespace.is_empty() { String::new() } else { format!("{}/", one.namespace) };
            format!("{} {space}{} {}{note}\n", one.kind, one.name, one.change.as_str())
        };
        done.iter().map(line).collect()
    })?;
    outcome?;
    let changes = done.iter().any(|one| one.change != Change::Unchanged);
    Ok(if args.dry_run && changes { CHANGES } else { OK })
}
