//! Starts a Redis, a PostgreSQL and an Apache Kafka on free ports, says where they are as lines
//! of `NAME=value`, and ends them and removes their data when its standard input ends.
//!
//! `examples/orders/run.sh --backends` runs it.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::thread;

use mecha_testkit::servers::{Kafka, Postgres, Redis};

fn main() -> ExitCode {
    let missing: Vec<&str> = [Redis::missing(), Postgres::missing(), Kafka::missing()].into_iter().flatten().collect();
    if !missing.is_empty() {
        eprintln!("servers are missing; install them with: {}", missing.join("; "));
        return ExitCode::FAILURE;
    }
    // The broker takes longest.
    let kafka = thread::spawn(Kafka::start);
    let (redis, postgres) = (Redis::start(), Postgres::start());
    let (Some(redis), Some(postgres), Ok(Some(kafka))) = (redis, postgres, kafka.join()) else {
        eprintln!("a server did not start");
        return ExitCode::FAILURE;
    };
    let lines =
        format!("SHOP_REDIS={}\nSHOP_POSTGRES={}\nSHOP_KAFKA={}\n", redis.address(), postgres.url(), kafka.address());
    let mut out = std::io::stdout();
    if out.write_all(lines.as_bytes()).and_then(|()| out.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}
