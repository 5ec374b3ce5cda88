//! The life of the process: bind, build, run, drain.

mod app_side;
mod apply;
mod delivery;
mod documents;
mod endpoints;
mod live;
mod names;
mod operator;
mod reload;
mod runtime;
mod servers;
mod settings;
mod source;
mod span_headers;
mod stop;

#[doc(hidden)]
pub use self::delivery::fuzzing;

use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime as Tokio};

use crate::cli::{self, Action, Env, Options};
use crate::logging::{LogIdentity, LogLosses, Logging};

/// What `--wait` waits at most.
const WAIT_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two questions of `--wait`.
const WAIT_PAUSE: Duration = Duration::from_millis(100);
/// What the last log lines may take to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Runs the command line; the returned status is the process's.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    match cli::command(args, Env::from_process()) {
        Ok(Action::Run(options)) => run(*options),
        Ok(Action::Version) => say(&cli::version()),
        Ok(Action::BuildInfo) => say(&cli::build_info()),
        Ok(Action::Help) => say(&cli::help()),
        Ok(Action::Wait { http_port }) => wait(http_port),
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}

fn say(text: &str) -> ExitCode {
    println!("{}", text.trim_end());
    ExitCode::SUCCESS
}

fn wait(port: u16) -> ExitCode {
    let Ok(tokio) = Builder::new_current_thread().enable_all().build() else { return ExitCode::FAILURE };
    tokio.block_on(async {
        let deadline = tokio::time::Instant::now() + WAIT_LIMIT;
        while tokio::time::Instant::now() < deadline && !outbound_ready(port).await {
            tokio::time::sleep(WAIT_PAUSE).await;
        }
    });
    // 0 in both cases, as the incumbent does.
    ExitCode::SUCCESS
}

async fn outbound_ready(port: u16) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request =
            format!("GET /v1.0/healthz/outbound HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = [0u8; 12];
        stream.read_exact(&mut head).await.ok()?;
        Some(head[9] == b'2')
    };
    tokio::time::timeout(Duration::from_secs(2), ask).await.ok().flatten().unwrap_or(false)
}

fn run(options: Options) -> ExitCode {
    let identity =
        LogIdentity { app_id: options.app_id.clone(), instance: cli::host_name(), version: cli::RUNTIME_VERSION };
    let logging = match Logging::install(&options.log, identity) {
        Ok(logging) => logging,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    logging.report_panics();
    let code = logged(options, logging.losses());
    logging.flush(FLUSH_LIMIT);
    code
}

fn logged(options: Options, losses: LogLosses) -> ExitCode {
    for warning in options.warnings.iter().chain(&options.env.warnings) {
        tracing::warn!(target: "dapr.runtime", "{warning}");
    }
    tracing::info!(
        target: "dapr.runtime",
        "Starting Dapr Runtime -- version {} -- commit {}", cli::RUNTIME_VERSION, cli::GIT_COMMIT
    );
    tracing::info!(target: "dapr.runtime", "Log level set to: {}", options.log.level);
    let tokio = match tokio_runtime() {
        Ok(tokio) => tokio,
        Err(e) => return fatal(&format!("starting the async runtime failed: {e}")),
    };
    let code = tokio.block_on(live::run(options, losses));
    // Blocking work that is stuck must not hold the exit up.
    tokio.shutdown_timeout(Duration::from_millis(200));
    code
}

/// Logs a fatal line; the status of such an exit is 1.
fn fatal(text: &str) -> ExitCode {
    tracing::error!(target: "dapr.runtime", fatal = true, "Fatal error from runtime: {text}");
    ExitCode::FAILURE
}

/// One worker up to two cores: on small quotas it has lower latency and uses less CPU than
/// two, and equals them at saturation.
fn tokio_runtime() -> std::io::Result<Tokio> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut builder = if cores <= 2 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if cores > 2 {
        builder.worker_threads((cores / 2).max(1));
    }
    builder.enable_all().max_blocking_threads(64).thread_keep_alive(Duration::from_secs(5)).build()
}
