//! Runs a command beside the servers of the tests, which end with it.
//!
//! ```text
//! with_servers [--sql FILE] [--database NAME]... COMMAND...
//! ```
//!
//! The command finds `TEST_REDIS` and `TEST_KAFKA` (host:port), and `TEST_POSTGRES`
//! (host=… port=… user=…), for the servers that are installed. Every database is made with what the statements of `--sql` make.
//! The status is that of the command.

use std::process::{Command, ExitCode};

use mecha_testkit::servers::{Kafka, Postgres, Redis};

#[derive(Default)]
struct Options {
    sql: Option<String>,
    databases: Vec<String>,
    command: Vec<String>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(run) {
        Ok(status) => status,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--sql" => {
                let file = value()?;
                options.sql = Some(std::fs::read_to_string(&file).map_err(|e| format!("{file} cannot be read: {e}"))?);
            }
            "--database" => options.databases.push(value()?),
            _ => {
                options.command = std::iter::once(arg).chain(args).collect();
                return Ok(options);
            }
        }
    }
    Err("no command; usage: with_servers [--sql FILE] [--database NAME]... COMMAND...".to_owned())
}

fn run(options: Options) -> Result<ExitCode, String> {
    let Some((program, args)) = options.command.split_first() else { return Err("no command".to_owned()) };
    let mut command = Command::new(program);
    command.args(args);
    // The slowest to start goes first, beside the others.
    let kafka = std::thread::spawn(Kafka::start);
    let redis = Redis::start();
    if let Some(redis) = &redis {
        command.env("TEST_REDIS", redis.address());
    }
    let postgres = Postgres::start();
    if let Some(postgres) = &postgres {
        if let Some(sql) = &options.sql {
            postgres.sql(sql);
        }
        for name in &options.databases {
            // Copies what was made in the first one.
            postgres.sql(&format!("CREATE DATABASE \"{name}\" TEMPLATE postgres"));
        }
        command.env("TEST_POSTGRES", format!("host=127.0.0.1 port={} user=postgres", postgres.port()));
    }
    let kafka = kafka.join().map_err(|_| "Kafka does not start")?;
    if let Some(kafka) = &kafka {
        command.env("TEST_KAFKA", kafka.address());
    }
    let status = command.status().map_err(|e| format!("{program} cannot be started: {e}"))?;
    // Ended by a signal there is no code.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
