//! Which functions a start and the common requests need, of a sidecar or of the control part, written as a linker
//! script.
//!
//! A kernel maps a file's pages in windows around the one that is touched, so code that is used but
//! scattered makes most of a binary resident. `daemon/build.rs` hands the script to the linker,
//! which puts these functions together. Names are matched without their hash, so the list outlives
//! new versions of compiler and dependencies; what it misses or no longer finds costs only its place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::backends::Backends;
use crate::control::used;
use crate::load::{self, Load, Pace, Wire};
use crate::scenario::{component, invoke, pubsub, state};
use crate::serve::start_app;
use crate::sidecar::{Binary, Setup, Sidecar, get};

/// What a stop takes under the profiler, at most.
const STOP: Duration = Duration::from_secs(120);
/// What reads the clock by itself does not run under valgrind, so its code is named here: the broker
/// that every sidecar of a laptop has.
const UNSEEN: &str = "_R*Cs*_12mecha_broker*";
/// Every kind of request is sent for this long.
const EACH: Duration = Duration::from_secs(2);

/// A pattern of names is dense when so much of what it stands for runs: crates of two versions have the same name
/// without its hash.
const DENSE: f64 = 0.5;
/// The beginning of a name stands for all that begin so when this much of them runs.
const WHOLE: f64 = 0.8;
/// Lengths of such beginnings.
const STARTS: [usize; 5] = [40, 56, 80, 112, 160];

/// Functions that are to lie together, with what needs them.
type Groups = Vec<(&'static str, BTreeSet<String>)>;

/// Profiles `program`, which must have its symbols, and writes `out`.
///
/// # Errors
/// No valgrind or nm, a program that does not start, or one without symbols.
pub(crate) fn run(program: &Path, control: bool, out: &Path) -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let symbols = symbols(program)?;
    let groups = if control { used(program, folder.path())? } else { of_a_daemon(program, folder.path())? };
    let unseen = (!control).then_some(UNSEEN);
    fs::write(out, script(&symbols, groups, unseen))
}

fn of_a_daemon(daemon: &Path, folder: &Path) -> io::Result<Groups> {
    let backends = Backends::start();
    let defaults = [
        ("sql.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")])),
        ("pubsub.yaml", component("pubsub", "pubsub.in-memory", &[])),
    ];
    Ok(vec![
        ("A start with embedded defaults, and an idle sidecar.", idle(daemon, folder, "defaults", &defaults)?),
        ("The same with every store.", idle(daemon, folder, "stores", &backends.stores())?),
        ("The common requests.", busy(daemon, folder, &backends)?),
    ])
}

fn script(symbols: &BTreeMap<String, u64>, groups: Groups, unseen: Option<&str>) -> String {
    let mut text = String::from(
        "/* Written by `bash bench/layout.sh`; see daemon/build.rs. */\nSECTIONS\n{\n  .text.start :\n  {\n",
    );
    let mut placed = BTreeSet::new();
    for (what, used) in groups {
        let (dense, sparse) = patterns(symbols, &used);
        for (how, mut names) in [("", dense), (" Patterns that stand for much else, too.", sparse)] {
            names.retain(|name| placed.insert(name.clone()));
            println!("{what}{how} {} patterns", names.len());
            let _ = writeln!(text, "    /* {what}{how} */");
            names.iter().for_each(|name| line(&mut text, name));
        }
        if let Some(unseen) = unseen.filter(|unseen| placed.insert((*unseen).to_owned())) {
            line(&mut text, unseen);
        }
    }
    text.push_str("  }\n}\nINSERT BEFORE .text;\n");
    text
}

/// Functions of a start and a few seconds of nothing.
fn idle(daemon: &Path, folder: &Path, id: &str, documents: &[(&str, String)]) -> io::Result<BTreeSet<String>> {
    let (binary, profile) = profiled(daemon, folder, id)?;
    let sidecar = binary.start(folder, &Setup { app_id: id, app: None, documents })?;
    std::thread::sleep(Duration::from_secs(5));
    sidecar.stop(STOP)?;
    functions(&profile)
}

/// Functions of the requests the bench sends, on both sides of an invocation.
fn busy(daemon: &Path, folder: &Path, backends: &Backends) -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for (wire, protocol) in [(Wire::Http1, "http"), (Wire::Grpc, "grpc")] {
        let app = start_app(wire, 0)?;
        let stores = backends.stores();
        let mut documents = stores.clone();
        if wire == Wire::Http1 {
            let brokers =
                backends.brokers().into_iter().filter(|(file, _)| ["memory.yaml", "redis.yaml"].contains(file));
            documents.extend(brokers.map(|(file, text)| {
                // A store of this name is there, too.
                let name = file.trim_end_matches(".yaml");
                (broker_file(name), text.replace(&format!("name: {name}\n"), &format!("name: broker-{name}\n")))
            }));
            documents.extend(pubsub::subscriptions("broker-memory"));
        }
        let (callee, callee_profile) = profiled(daemon, folder, &format!("{protocol}-callee"))?;
        let (caller, caller_profile) = profiled(daemon, folder, &format!("{protocol}-caller"))?;
        let id = format!("{protocol}-callee");
        let setup = Setup { app_id: &id, app: Some((app.address, protocol)), documents: &documents };
        let callee = callee.start(folder, &setup)?;
        let caller = caller.start(folder, &Setup { app_id: "caller", app: None, documents: &stores })?;
        requests(wire, &caller, &callee, &stores)?;
        caller.stop(STOP)?;
        callee.stop(STOP)?;
        all.extend(functions(&caller_profile)?);
        all.extend(functions(&callee_profile)?);
    }
    Ok(all)
}

fn requests(wire: Wire, caller: &Sidecar, callee: &Sidecar, stores: &[(&str, String)]) -> io::Result<()> {
    let mut shots = Vec::new();
    if wire == Wire::Http1 {
        for store in stores.iter().filter_map(|(file, _)| file.strip_suffix(".yaml")) {
            shots.extend(state::shots(callee.http, store));
        }
        shots.extend(pubsub::shots(callee.http, "broker-memory"));
        shots.push(invoke::http_shot(caller.http, "/v1.0/invoke/http-callee/method/echo", 1024));
        shots.push(invoke::http_shot(caller.http, "/v1.0/invoke/http-callee/method/echo", 64 * 1024));
    } else {
        shots.push(invoke::grpc_shot(caller.grpc, 1024));
        shots.extend(state::shots(callee.http, "memory"));
        shots.push(state::grpc_get(callee.grpc));
    }
    let load = Load { pace: Pace::Rate(50), connections: 4, warm_up: Duration::ZERO, measured: EACH };
    for shot in shots {
        let outcome = load::run(&shot, load, &[])?;
        if outcome.good == 0 {
            let reason = outcome.reason.unwrap_or_default();
            return Err(io::Error::other(format!("{}: no answer as expected: {reason}", shot.path)));
        }
    }
    get(callee.http, "/v1.0/metadata")?;
    Ok(())
}

fn broker_file(name: &str) -> &'static str {
    match name {
        "memory" => "broker-memory.yaml",
        _ => "broker-redis.yaml",
    }
}

fn profiled(daemon: &Path, folder: &Path, name: &str) -> io::Result<(Binary, PathBuf)> {
    let profile = folder.join(format!("{name}.profile"));
    let mut binary = Binary::new(daemon)?;
    binary.under = under_profiler(&profile);
    Ok((binary, profile))
}

/// What to put in front of a command, so that it writes `profile` when it ends.
pub(crate) fn under_profiler(profile: &Path) -> Vec<OsString> {
    vec![
        "valgrind".into(),
        "--tool=cachegrind".into(),
        "--cache-sim=no".into(),
        "--demangle=no".into(),
        format!("--cachegrind-out-file={}", profile.display()).into(),
    ]
}

/// Names of all functions that ran.
pub(crate) fn functions(profile: &Path) -> io::Result<BTreeSet<String>> {
    let text = fs::read_to_string(profile)?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("fn=")).map(str::to_owned).collect())
}

/// Sizes of the functions that are in the binary itself, other than in the libraries it loads.
fn symbols(daemon: &Path) -> io::Result<BTreeMap<String, u64>> {
    let listed = Command::new("nm").args(["--defined-only", "--format=posix"]).arg(daemon).output()?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let code = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, kind, _address, size) = (words.next()?, words.next()?, words.next()?, words.next()?);
        "tTwW".contains(kind).then(|| u64::from_str_radix(size, 16).ok())?.map(|size| (name.to_owned(), size))
    });
    let code: BTreeMap<String, u64> = code.collect();
    if code.is_empty() {
        return Err(io::Error::other(format!("{} has no symbols; build it with -C strip=none", daemon.display())));
    }
    Ok(code)
}

/// Patterns for what was `used`: those that stand for little else, and the others.
///
/// The name of a generic function says all its types, in a thousand letters and more. Where all that begins like it
/// runs, too, the beginning does.
fn patterns(symbols: &BTreeMap<String, u64>, used: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let mut names: BTreeMap<String, Bytes> = BTreeMap::new();
    for (symbol, size) in symbols {
        if let Some(name) = without_hashes(symbol) {
            names.entry(name).or_default().add(if used.contains(symbol) { *size } else { 0 }, *size);
        }
    }
    let mut wanted: BTreeMap<String, Bytes> = BTreeMap::new();
    for (name, bytes) in names.iter().filter(|(_, bytes)| bytes.ran > 0) {
        let starts = STARTS.iter().filter_map(|length| name.get(..*length)).chain([name.as_str()]);
        let mut starts = starts.map(|start| (start, beginning(&names, start)));
        match starts.find(|(_, bytes)| bytes.share() >= WHOLE) {
            Some((start, bytes)) => wanted.insert(format!("{start}*"), bytes),
            None => wanted.insert(name.clone(), *bytes),
        };
    }
    let (dense, sparse): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, bytes)| bytes.share() >= DENSE);
    let names = |list: Vec<(String, Bytes)>| list.into_iter().map(|(name, _)| name).collect();
    (names(dense), names(sparse))
}

/// All that begins like this.
fn beginning(names: &BTreeMap<String, Bytes>, start: &str) -> Bytes {
    let mut sum = Bytes::default();
    let rest = names.range::<str, _>((Bound::Included(start), Bound::Unbounded));
    rest.take_while(|(name, _)| name.starts_with(start)).for_each(|(_, bytes)| sum.add(bytes.ran, bytes.all));
    sum
}

/// How much of what a pattern stands for runs.
#[derive(Clone, Copy, Default)]
struct Bytes {
    ran: u64,
    all: u64,
}

impl Bytes {
    fn add(&mut self, ran: u64, all: u64) {
        self.ran += ran;
        self.all += all;
    }

    fn share(self) -> f64 {
        self.ran as f64 / self.all as f64
    }
}

/// The name of a function as it is in every build; `None` for what is no symbol of ours.
fn without_hashes(name: &str) -> Option<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    if name.is_empty() || name.starts_with("0x") || !name.chars().all(known) {
        return None;
    }
    // Compilers add suffixes for the parts they split off and for copies.
    let name = name.split('.').next().filter(|n| !n.is_empty())?;
    if !name.starts_with("_R") {
        return Some(name.to_owned());
    }
    // The hashes of crates are within: `Cs`, base 62, `_`.
    let mut out = String::with_capacity(name.len());
    for (at, part) in name.split("Cs").enumerate() {
        let hash = part.find('_').filter(|end| at > 0 && (8..=12).contains(end));
        out.push_str(if at > 0 { "Cs" } else { "" });
        match hash {
            Some(end) => {
                out.push('*');
                out.push_str(&part[end..]);
            }
            None => out.push_str(part),
        }
    }
    Some(out)
}

fn line(out: &mut String, name: &str) {
    // `.text.unlikely.` is where compilers put what they take for cold.
    let parts = if name.ends_with('*') { String::new() } else { format!(" .text*.{name}.*") };
    let _ = writeln!(out, "    *(.text*.{name}{parts})");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_hashes() {
        assert_eq!(without_hashes("sqlite3_step.part.0").as_deref(), Some("sqlite3_step"));
        let std = "_RNvXst_NtNtCsgEmfK2I1SDS_4core3str7patternReNtB5_7Pattern15is_contained_in.970";
        let expected = "_RNvXst_NtNtCs*_4core3str7patternReNtB5_7Pattern15is_contained_in";
        assert_eq!(without_hashes(std).as_deref(), Some(expected));
        assert_eq!(without_hashes("0x0000000000001050"), None);
        assert_eq!(without_hashes("(below main)"), None);
    }

    #[test]
    fn a_beginning_stands_for_what_runs_as_a_whole() {
        let name = |end: &str| format!("_RNvMs_NtNtNtCs*_11mecha_agent7watches5boundNtB4_{end}");
        let other = format!("_RNvMs_NtNtNtCs*_11mecha_issuer5roots{}", "x".repeat(40));
        let sizes = [(name("4read"), 100), (name("5write"), 100), (other.clone(), 100), (other.clone() + "y", 90)];
        let symbols: BTreeMap<String, u64> =
            sizes.into_iter().map(|(n, size)| (n.replace('*', "gEmfK2I1SDS"), size)).collect();
        let used: BTreeSet<String> = symbols.keys().filter(|n| !n.ends_with('y')).cloned().collect();
        let (dense, sparse) = patterns(&symbols, &used);
        assert_eq!(dense, [format!("{}*", &name("")[..40]), other]);
        assert!(sparse.is_empty());
    }
}
