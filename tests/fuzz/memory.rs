//! Documents made to fill memory or time, each read in a process of its own that is measured.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use mecha_resources::{Loaded, Severity};

/// Makes this program the one that is measured.
const CHILD: &str = "MECHA_TEST_FUZZ_MEASURE";
/// What one document may cost above what the process has anyway.
const MEMORY_KIB: u64 = 32 << 10;
/// Without optimisation everything takes longer, and the machine may be busy.
const TIME: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2_000 } else { 100 });

/// A document that is too much, and whether it must be refused.
struct Bomb {
    name: &'static str,
    text: fn() -> String,
    refused: bool,
}

const BOMBS: &[Bomb] = &[
    Bomb { name: "aliases-of-aliases", text: laughs, refused: true },
    Bomb { name: "aliases-in-merges", text: merges, refused: true },
    Bomb { name: "nested-flow", text: || document(&"[".repeat(100_000)), refused: true },
    Bomb {
        name: "nested-flow-closed",
        text: || document(&format!("{}{}", "[".repeat(5_000), "]".repeat(5_000))),
        refused: true,
    },
    Bomb { name: "nested-maps", text: || document(&"{a: ".repeat(50_000)), refused: true },
    Bomb { name: "nested-lists", text: || document(&"- ".repeat(50_000)), refused: true },
    Bomb { name: "nested-blocks", text: blocks, refused: true },
    Bomb { name: "many-documents", text: || "--- {}\n".repeat(60_000), refused: false },
    Bomb {
        name: "many-keys",
        text: || document(&(0..60_000).map(|i| format!("\n  k{i}: 1")).collect::<String>()),
        refused: false,
    },
    Bomb { name: "one-key-again-and-again", text: || document(&"\n  a: 1".repeat(60_000)), refused: false },
    Bomb { name: "long-scalar", text: || document(&"x".repeat(4 << 20)), refused: false },
    Bomb {
        name: "many-anchors",
        text: || document(&(0..40_000).map(|i| format!("\n- &a{i} x")).collect::<String>()),
        refused: false,
    },
];

fn document(spec: &str) -> String {
    format!("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: bomb\nspec: {spec}\n")
}

fn laughs() -> String {
    let mut text = "\n  a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        text.push_str(&format!("  a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", ")));
    }
    document(&text)
}

fn merges() -> String {
    let mut text = "\n  a0: &a0 {k0: 1, k1: 1, k2: 1}\n".to_owned();
    for level in 1..24 {
        let before = level - 1;
        text.push_str(&format!("  a{level}: &a{level} {{x: *a{before}, y: *a{before}, <<: *a{before}}}\n"));
    }
    document(&text)
}

fn blocks() -> String {
    let levels = (0..1_500).fold(String::new(), |text, depth| text + "\n" + &" ".repeat(depth + 2) + "a:");
    document(&levels)
}

pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Reads the document that `CHILD` names and prints refused, milliseconds and KiB.
pub(crate) fn child() {
    let path = std::env::var_os(CHILD).unwrap_or_default();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // From here on the peak counts anew.
    let _ = std::fs::OpenOptions::new().write(true).open("/proc/self/clear_refs").and_then(|mut f| f.write_all(b"5"));
    let before = peak_kib();
    let began = Instant::now();
    let mut loaded = Loaded::default();
    loaded.read_text("bomb.yaml", &text);
    let took = began.elapsed();
    let refused = loaded.diagnostics.iter().any(|d| d.severity == Severity::Error);
    println!("{refused} {} {}", took.as_millis(), peak_kib().saturating_sub(before));
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |bomb: &'static Bomb| {
        Trial::test(format!("yaml-bomb/{}", bomb.name), move || measure(bomb).map_err(Failed::from))
    };
    BOMBS.iter().map(trial).collect()
}

fn measure(bomb: &Bomb) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = dir.path().join("bomb.yaml");
    std::fs::write(&path, (bomb.text)()).map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program).env(CHILD, &path).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = said.split_whitespace();
    let (Some(refused), Some(Ok(ms)), Some(Ok(kib))) =
        (words.next(), words.next().map(str::parse::<u64>), words.next().map(str::parse::<u64>))
    else {
        return Err(format!("the reader died: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    };
    println!("yaml-bomb/{}: refused {refused}, {ms} ms, {kib} KiB", bomb.name);
    if bomb.refused && refused != "true" {
        return Err("it is not refused".to_owned());
    }
    if Duration::from_millis(ms) > TIME {
        return Err(format!("it takes {ms} ms, more than {TIME:?}"));
    }
    if kib > MEMORY_KIB {
        return Err(format!("it takes {kib} KiB, more than {MEMORY_KIB}"));
    }
    Ok(())
}
