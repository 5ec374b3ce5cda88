//! Real servers for tests: started on free ports in temporary folders, gone with their handle.
//!
//! A server that is not installed is absent: the tests that need it say so by name and pass,
//! and fail where it is required, by `CI=true` or `REQUIRE=redis-server`.

mod kafka;
mod kubernetes;
mod postgres;
mod process;
mod redis;

pub use kafka::{Kafka, KafkaOptions};
pub use kubernetes::{Kubernetes, KubernetesOptions};
pub use postgres::{Postgres, PostgresOptions};
pub use process::{Process, free_port};
pub use redis::{Redis, RedisOptions};

/// Whether a program is on the path.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether a missing `program` is a failure here. `REQUIRE` names programs or the products
/// they begin with: `redis` stands for `redis-server`.
#[must_use]
pub fn is_required(program: &str) -> bool {
    let named = std::env::var("REQUIRE").unwrap_or_default();
    let required = |name: &str| name == program || program.split('-').next() == Some(name);
    std::env::var("CI").is_ok_and(|v| v == "true") || named.split(',').any(|n| required(n.trim()))
}

/// Reports that `program` is not there and how to get it.
///
/// # Panics
/// Where the program is required.
#[track_caller]
pub fn absent(program: &str, install: &str) {
    let text = format!("{program} is not installed; install it with: {install}");
    assert!(!is_required(program), "required, but {text}");
    eprintln!("not run: {text}");
}
