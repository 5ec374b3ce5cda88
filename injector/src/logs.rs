//! Log lines on standard error, as text or as JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::cli::Common;

/// Starts writing log lines. What libraries say below a warning is left out, and what the API's client says at
/// all: whoever calls it says what failed, once.
pub(crate) fn start(common: &Common) {
    let level = common.log_level.as_str();
    let filter = EnvFilter::new(format!(
        "{level},hyper=warn,hyper_util=warn,h2=warn,rustls=warn,tower=warn,kube=warn,kube_client=off,kube_runtime=off,tonic=warn"
    ));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (in tests) keeps the first.
    let _ = if common.log_as_json {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}
