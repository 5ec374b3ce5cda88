//! Puts every component through the cases of its building block.
//!
//! `cargo test -p mecha-tests --test conformance -- state/sqlite` runs a part of it.

mod blocks;
mod configuration;
mod fronts;
mod instances;
mod locks;
mod manifest;
mod plan;
mod servers;

use std::sync::Arc;

use libtest_mimic::Arguments;

/// Cases at once.
const THREADS: usize = 16;

fn main() {
    let mut arguments = Arguments::from_args();
    // Most cases wait for clocks and disks, not for a processor.
    arguments.test_threads.get_or_insert(THREADS);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => Arc::new(runtime),
        Err(e) => panic!("cannot start the runtime: {e}"),
    };
    let manifest = manifest::Manifest::load();
    let mut plan = plan::Plan::new(runtime);
    blocks::limits(&mut plan);
    blocks::state(&mut plan, &manifest.state);
    blocks::pubsub(&mut plan, &manifest.pubsub);
    blocks::secrets(&mut plan, &manifest.secrets);
    blocks::output(&mut plan, &manifest.output);
    configuration::configuration(&mut plan, &manifest.configuration);
    locks::locks(&mut plan, &manifest.lock);
    blocks::resolvers(&mut plan, &manifest.resolver);

    let (trials, after) = plan.split();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        after.run(arguments.filter.as_deref());
    }
    servers::stop();
    conclusion.exit();
}
