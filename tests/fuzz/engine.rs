//! A mutation fuzzer that runs on a stable compiler: seeds from a folder, a dictionary, and
//! for each input no panic, a time limit, and what the target says must hold.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Inputs per target in the gate, and in the long form.
const INPUTS: (u64, u64) = (3_000, 1_000_000);
/// Time per target in the gate, and in the long form; what is left of the inputs is then not tried.
const TIME: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));
/// Longest time for one input, in a build without optimisation on a busy machine.
const SLOW: Duration = Duration::from_secs(1);
/// After this time it is told which input hangs, and the run ends.
const HANGS: Duration = Duration::from_secs(30);
/// Largest input that is made.
const LARGEST: usize = 64 << 10;

/// Whether the input was taken; an error says what did not hold.
pub(crate) type Checked = Result<bool, String>;

/// What is fuzzed.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Words that matter to the format.
    pub(crate) words: &'static [&'static str],
    pub(crate) check: fn(&[u8]) -> Checked,
}

/// SplitMix64: the same inputs for the same number, on every machine.
pub(crate) struct Dice(u64);

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

/// The seeds of a target, in the order of their names.
pub(crate) fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// The number all inputs of this run come from.
pub(crate) fn seed() -> u64 {
    let named = std::env::var("MECHA_TEST_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    named.unwrap_or_else(|| {
        if !long() {
            return 1;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    })
}

/// Whether the long form was asked for.
pub(crate) fn long() -> bool {
    std::env::var("MECHA_TEST_LONG").is_ok_and(|v| v == "1")
}

/// Puts a target through its inputs.
pub(crate) fn run(target: Target) -> Result<(), String> {
    keep_panics_quiet();
    let seeds = corpus(target.name);
    if seeds.is_empty() {
        return Err(format!("tests/fuzz/corpus/{} holds no seed", target.name));
    }
    let (inputs, time) = if long() { (INPUTS.1, TIME.1) } else { (INPUTS.0, TIME.0) };
    let seed = seed();
    let watch = Watch::new(target.name);
    let (began, mut accepted, mut slowest) = (Instant::now(), 0_u64, Duration::ZERO);
    for (number, bytes) in seeds.iter().enumerate() {
        let (took, taken) = one(target, bytes, &watch, &format!("seed {number}"))?;
        slowest = slowest.max(took);
        accepted += u64::from(taken);
    }
    if accepted == 0 {
        return Err(format!("none of the {} seeds is taken, so the target tries nothing", seeds.len()));
    }
    let mut dice = Dice::new(seed ^ target.name.bytes().fold(0_u64, |hash, b| hash.wrapping_mul(31) ^ u64::from(b)));
    let mut done = 0;
    while done < inputs && began.elapsed() < time {
        let bytes = mutated(&seeds, target.words, &mut dice);
        let (took, taken) = one(target, &bytes, &watch, &format!("input {done} of seed {seed}"))?;
        slowest = slowest.max(took);
        accepted += u64::from(taken);
        done += 1;
    }
    println!("{}: {done} inputs, {accepted} taken, slowest {slowest:?}", target.name);
    Ok(())
}

fn one(target: Target, bytes: &[u8], watch: &Watch, what: &str) -> Result<(Duration, bool), String> {
    watch.begin(bytes);
    let began = Instant::now();
    let outcome = checked(target, bytes);
    let mut took = began.elapsed();
    watch.end();
    if outcome.is_ok() && took > SLOW {
        // Somebody else may have had the processor.
        let again = Instant::now();
        let _ = checked(target, bytes);
        took = took.min(again.elapsed());
    }
    match outcome {
        Ok(_) if took > SLOW => Err(report(target, bytes, what, &format!("it took {took:?}"))),
        Ok(taken) => Ok((took, taken)),
        Err(why) => {
            let small = smaller(target, bytes);
            let why = checked(target, &small).err().unwrap_or(why);
            Err(report(target, &small, what, &why))
        }
    }
}

fn checked(target: Target, bytes: &[u8]) -> Checked {
    match catch_unwind(AssertUnwindSafe(|| (target.check)(bytes))) {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("panic: {}", LAST_PANIC.with_borrow(Clone::clone))),
    }
}

/// Takes away what the failure does not need.
fn smaller(target: Target, bytes: &[u8]) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut best = bytes.to_vec();
    let mut piece = best.len().div_ceil(2);
    while piece > 0 && Instant::now() < deadline {
        let (mut at, mut shrunk) = (0, false);
        while at < best.len() && Instant::now() < deadline {
            let end = (at + piece).min(best.len());
            let candidate = [&best[..at], &best[end..]].concat();
            if checked(target, &candidate).is_err() {
                best = candidate;
                shrunk = true;
            } else {
                at = end;
            }
        }
        if !shrunk {
            piece /= 2;
        }
    }
    best
}

/// Keeps the input, and says how it becomes a seed.
fn report(target: Target, bytes: &[u8], what: &str, why: &str) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let file = std::env::temp_dir().join(format!("fuzz-{}-{hash:016x}", target.name));
    let kept = match std::fs::write(&file, bytes) {
        Ok(()) => format!("kept in {}; copy it to tests/fuzz/corpus/{}/", file.display(), target.name),
        Err(e) => format!("it could not be kept: {e}"),
    };
    let mut shown = String::new();
    for byte in bytes.iter().take(200) {
        let _ = write!(shown, "{}", std::ascii::escape_default(*byte));
    }
    format!("{why}\n {what}, {} bytes: \"{shown}\"\n {kept}", bytes.len())
}

/// A new input from the seeds.
pub(crate) fn mutated(seeds: &[Vec<u8>], words: &[&str], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seeds.get(dice.below(seeds.len())).cloned().unwrap_or_default();
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(11) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = at + dice.below(16).min(bytes.len() - at);
                bytes.drain(at..end);
            }
            4 | 5 => {
                if let Some(word) = words.get(dice.below(words.len())) {
                    bytes.splice(at..at, word.bytes());
                }
            }
            6 => {
                // The rest of another seed.
                if let Some(other) = seeds.get(dice.below(seeds.len())) {
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[dice.below(other.len() + 1)..]);
                }
            }
            7 => {
                // A part, again and again: depth, length and number.
                let end = at + dice.below(24).min(bytes.len() - at);
                let part = bytes[at..end].to_vec();
                let times = 1 << dice.below(11);
                bytes.splice(at..at, part.repeat(times));
            }
            8 => {
                const ODD: [u8; 12] = [0, 1, 9, 10, 13, 0x20, 0x25, 0x2e, 0x7f, 0x80, 0xc3, 0xff];
                bytes.insert(at, ODD[dice.below(ODD.len())]);
            }
            9 => {
                const NUMBERS: [&str; 10] =
                    ["0", "-1", "1e999", "9007199254740993", "18446744073709551616", "0x10", "-0", "1.", "NaN", "٣"];
                bytes.splice(at..at, NUMBERS[dice.below(NUMBERS.len())].bytes());
            }
            _ => {
                let (from, length) = (dice.below(bytes.len() + 1), dice.below(32));
                let end = from + length.min(bytes.len() - from);
                let part = bytes[from..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
        bytes.truncate(LARGEST);
    }
    bytes
}

/// Panics are kept for the report instead of being printed.
fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| LAST_PANIC.set(info.to_string())));
    });
}

/// Ends the run when an input does not end, and says which.
struct Watch(Arc<Watched>);

struct Watched {
    name: &'static str,
    /// Every input is kept before it is tried, for those that end the process.
    traced: bool,
    began: Instant,
    /// Milliseconds since `began`, plus one; 0 while nothing runs.
    since: AtomicU64,
    input: Mutex<Vec<u8>>,
}

impl Watch {
    fn new(name: &'static str) -> Self {
        let traced = std::env::var_os("MECHA_TEST_FUZZ_TRACE").is_some();
        let watched = Arc::new(Watched {
            name,
            traced,
            began: Instant::now(),
            since: AtomicU64::new(0),
            input: Mutex::default(),
        });
        let weak = Arc::downgrade(&watched);
        std::thread::spawn(move || {
            while let Some(watched) = weak.upgrade() {
                let since = watched.since.load(Ordering::SeqCst);
                let now = watched.began.elapsed().as_millis() as u64;
                if since > 0 && now.saturating_sub(since) > HANGS.as_millis() as u64 {
                    let input = watched.input.lock().clone();
                    let file = std::env::temp_dir().join(format!("fuzz-{name}-hangs"));
                    let _ = std::fs::write(&file, &input);
                    eprintln!("{name}: an input does not end within {HANGS:?}; kept in {}", file.display());
                    std::process::exit(101);
                }
                drop(watched);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self(watched)
    }

    fn begin(&self, bytes: &[u8]) {
        if self.0.traced {
            let _ = std::fs::write(std::env::temp_dir().join(format!("fuzz-{}-last", self.0.name)), bytes);
        }
        let mut input = self.0.input.lock();
        input.clear();
        input.extend_from_slice(bytes);
        self.0.since.store(self.0.began.elapsed().as_millis() as u64 + 1, Ordering::SeqCst);
    }

    fn end(&self) {
        self.0.since.store(0, Ordering::SeqCst);
    }
}
