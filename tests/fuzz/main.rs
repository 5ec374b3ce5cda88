//! Everything that reads bytes from outside, put through bytes nobody thought of.
//!
//! `cargo test -p mecha-tests --test fuzz` runs the gate's number of inputs from the same seed each
//! time; `MECHA_TEST_LONG=1` runs far more from a new one, which is printed. An input that fails is
//! kept and becomes a file in `corpus/<target>/`, which every run tries first. Where an input ends the
//! whole process (a stack that overflows), `MECHA_TEST_FUZZ_TRACE=1` keeps each before it is tried.

mod alive;
mod cluster;
mod data;
mod delivery;
mod documents;
mod engine;
mod identities;
mod invocation;
mod memory;
mod messages;
mod peers;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    if memory::is_child() {
        memory::child();
        return;
    }
    let arguments = Arguments::from_args();
    if engine::long() {
        println!("MECHA_TEST_FUZZ_SEED={}", engine::seed());
    }
    let groups = [
        cluster::TARGETS,
        data::TARGETS,
        delivery::TARGETS,
        documents::TARGETS,
        identities::TARGETS,
        invocation::TARGETS,
        messages::TARGETS,
        peers::TARGETS,
    ];
    let mut trials: Vec<Trial> = groups
        .concat()
        .into_iter()
        .map(|target| Trial::test(target.name, move || engine::run(target).map_err(Failed::from)))
        .collect();
    trials.extend(memory::trials());
    trials.extend(alive::trials());
    libtest_mimic::run(&arguments, trials).exit();
}
