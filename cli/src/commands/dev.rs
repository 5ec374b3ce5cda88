//! `mecha dev`: decides by the kinds of a folder, feeds the sidecars of this machine, and follows edits.

use super::plan::now_ms;
use crate::error::{CliError, OK, Result};
use crate::home::Home;
use crate::kinds::deliver::Folder;
use crate::kinds::{self, show};
use crate::output;
use crate::style;
use clap::{Args, ValueHint};
use mecha_decide::{Choice, Consent, Evaluation, Hysteresis, Memory, Plan, World};
use mecha_resources::kinds::CapabilityBindingSpec;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// Decide by the documents of a folder and feed the sidecars of its environments; follow edits.
///
/// Reads Environments, EnvironmentClasses, CapabilityBackends and CapabilityClaims as the control part of a cluster
/// does, and writes what it decides where `mecha run --environment NAME` looks. It starts no app. When it ends,
/// sidecars keep what they have.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mecha dev platform\n  \
    mecha run --environment team-a-dev --app-id orders -- python3 app.py     (in another terminal)\n\n\
    Now edit a backendSelector in platform: the broker under the running app changes.")]
pub(crate) struct DevArgs {
    /// Folder with the documents
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Name of this machine among the MemberClusters of the folder [default: local, else the only one]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Agree to moves that wait for approval: the digest of their plan, or `all`
    #[arg(long, value_name = "DIGEST|all")]
    approve: Option<String>,
    /// Stores may begin empty at their new backend
    #[arg(long)]
    empty_ok: bool,
    /// Decide once and end
    #[arg(long)]
    once: bool,
}

/// Time between looks at the folder. An edit counts when two looks find the same: an editor may be half way.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn run(args: &DevArgs) -> Result<u8> {
    let home = Home::locate()?;
    home.prepare()?;
    let wrong = |error: std::io::Error| CliError::new("signals", error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut feeder = Feeder { home, args, folders: BTreeMap::new(), memory: Memory::default(), due: None };
    let mut seen = fingerprint(&args.dir);
    let mut last = seen.clone();
    match feeder.turn() {
        Ok(()) if args.once => return Ok(OK),
        Ok(()) => {}
        Err(error) if args.once => return Err(error),
        Err(error) => error.report(),
    }
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(OK),
            _ = terminate.recv() => return Ok(OK),
            _ = look.tick() => {
                let now = fingerprint(&args.dir);
                let edited = now == last && now != seen;
                last = now;
                if edited || feeder.due.is_some_and(|due| now_ms() >= due) {
                    seen.clone_from(&last);
                    if let Err(error) = feeder.turn() {
                        error.report();
                        eprintln!("everything stays as it was");
                    }
                }
            }
        }
    }
}

/// Names, sizes and times of the files of a folder: an edit changes one of them.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (u64, Option<SystemTime>)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok());
    entries
        .filter_map(|entry| {
            let meta = std::fs::metadata(entry.path()).ok()?;
            Some((entry.path(), (meta.len(), meta.modified().ok())))
        })
        .collect()
}

struct Feeder<'a> {
    home: Home,
    args: &'a DevArgs,
    /// By the environment's key.
    folders: BTreeMap<String, Folder>,
    memory: Memory,
    /// When a better backend will have been better for long enough.
    due: Option<u64>,
}

impl Feeder<'_> {
    /// Reads, decides, delivers and remembers.
    fn turn(&mut self) -> Result<()> {
        self.due = None;
        let documents = kinds::read(&self.args.dir)?;
        let world = kinds::world(&documents);
        self.take_folders(&world)?;
        // The folder is the whole truth here: a claim that is no longer in it was deleted by its owner.
        let gone = self.memory.claims.keys().filter(|key| !world.claims().any(|(claim, _)| claim == key.as_str()));
        self.memory.released = gone.cloned().collect();
        let now_ms = now_ms();
        let evaluation = self.decide(&world, now_ms);
        let mut lines = Vec::new();
        for (environment, why) in &evaluation.unresolved {
            lines.push(format!("{environment}: {why}"));
        }
        for outcome in &evaluation.claims {
            lines.push(show::headline(outcome));
            if matches!(outcome.decision.as_ref().map(|d| &d.choice), Some(Choice::Move { .. })) {
                lines.extend(show::explanation(outcome).lines().skip(1).map(str::to_owned));
            }
        }
        for released in &self.memory.released {
            lines.push(format!("{released}: released, its document is gone; data stays where it is"));
        }
        let mut delivered = 0;
        for (key, folder) in &self.folders {
            let Some(binding) = self.here(&evaluation, key)? else { continue };
            let changed = folder.deliver(binding, &documents, &world)?;
            delivered += changed.len();
            let name = key.rsplit('/').next().unwrap_or(key);
            lines.push(format!(
                "environment {name}: revision {}, {} documents, {} changed",
                binding.revision,
                binding.entries.len(),
                changed.len()
            ));
        }
        self.memory = evaluation.memory.clone();
        let hold = Hysteresis::default().hold_ms;
        let challengers = self.memory.claims.values().filter_map(|bound| bound.challenger.as_ref());
        self.due = challengers.map(|c| c.since_ms.saturating_add(hold)).filter(|due| *due > now_ms).min();
        for (key, folder) in &self.folders {
            folder.remember(&part_of(&evaluation, key))?;
        }
        let plan = Plan::of(&evaluation);
        if plan.moves.iter().any(|planned| planned.blocked.is_some()) {
            lines.push(format!("to agree: mecha dev {} --approve {}", self.args.dir.display(), plan.digest));
        }
        lines.push(format!("decision {}", evaluation.digest));
        if delivered > 0 && evaluation.claims.iter().any(|c| c.blocked.is_none() && moved(c)) {
            lines.push("receipts: mecha swap --app-id ID".to_owned());
        }
        let paint = style::stdout();
        let text: String = lines.iter().map(|line| format!("{} {line}\n", paint.dim("|"))).collect();
        output::write(text.as_bytes())
    }

    /// Decides, with what the person agreed to by naming the digest of exactly this plan.
    fn decide(&self, world: &World, now_ms: u64) -> Evaluation {
        let mut consent = Consent { empty_ok: self.args.empty_ok, ..Consent::default() };
        consent.all = self.args.approve.as_deref() == Some("all");
        let evaluation = world.evaluate(&self.memory, &consent, now_ms);
        let plan = Plan::of(&evaluation);
        if self.args.approve.as_ref().is_some_and(|digest| *digest == plan.digest.to_string()) {
            consent.moves = plan.approve();
            return world.evaluate(&self.memory, &consent, now_ms);
        }
        evaluation
    }

    /// Takes the folders of environments that are new, and what was bound in them before.
    fn take_folders(&mut self, world: &World) -> Result<()> {
        for environment in world.environments() {
            let key = environment.key();
            if self.folders.contains_key(&key) {
                continue;
            }
            let twin = self.folders.keys().find(|known| known.rsplit('/').next() == Some(environment.name()));
            if let Some(twin) = twin {
                let message = format!("Environments {twin} and {key} have one name; sidecars here know them by name");
                return Err(CliError::new("environment", message));
            }
            let folder = Folder::take(&self.home, environment)?;
            let before = folder.memory()?;
            self.memory.claims.extend(before.claims);
            self.memory.placements.extend(before.placements);
            self.memory.bindings.extend(before.bindings);
            self.folders.insert(key, folder);
        }
        Ok(())
    }

    /// What this machine gets of an environment.
    fn here<'e>(&self, evaluation: &'e Evaluation, key: &str) -> Result<Option<&'e CapabilityBindingSpec>> {
        let mine: Vec<_> = evaluation.bindings.iter().filter(|binding| binding.environment == key).collect();
        let wanted = self.args.cluster.as_deref().unwrap_or("local");
        if let Some(binding) = mine.iter().find(|binding| binding.cluster == wanted) {
            return Ok(Some(binding));
        }
        match (mine.as_slice(), &self.args.cluster) {
            ([], _) => Ok(None),
            ([one], None) => Ok(Some(one)),
            _ => {
                let names: Vec<_> = mine.iter().map(|binding| binding.cluster.as_str()).collect();
                let message = format!("environment {key} is in the clusters {}", names.join(", "));
                Err(CliError::usage("cluster", message).hint("say which of them this machine is: --cluster NAME"))
            }
        }
    }
}

/// What is bound in one environment: another folder of documents may describe the others.
fn part_of(evaluation: &Evaluation, environment: &str) -> Memory {
    let mut part = evaluation.memory.clone();
    let mine = |claim: &str| evaluation.claims.iter().any(|o| o.claim == claim && o.environment == environment);
    part.claims.retain(|claim, _| mine(claim));
    part.bindings.retain(|_, binding| binding.environment == environment);
    part
}

fn moved(outcome: &mecha_decide::ClaimOutcome) -> bool {
    matches!(outcome.decision.as_ref().map(|d| &d.choice), Some(Choice::Move { .. }))
}
