//! `mecha doctor`: can this machine run apps, and do the running ones work? Of a cluster: [`cluster_doctor`].

use super::{cluster_doctor, lint, version};
use crate::args::DoctorArgs;
use crate::client::{Call, Endpoint};
use crate::cluster::health::State;
use crate::error::{FAILURE, OK, Result};
use crate::home::Home;
use crate::output::{self, Table};
use crate::registry::{self, Record};
use crate::run::sidecar;
use http::Method;
use mecha_resources::{Loaded, Severity};
use serde::Serialize;
use std::time::Duration;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) check: String,
    pub(super) state: State,
    pub(super) detail: String,
}

pub(crate) async fn run(args: &DoctorArgs) -> Result<u8> {
    let checks = match args.cluster || args.access.is_named() {
        true => cluster_doctor::checks(&args.access.client().await?, &args.control_namespace).await?,
        false => machine().await?,
    };
    output::print(args.output, &checks, || {
        let mut table = Table::new(["CHECK", "STATE", "DETAIL"]);
        for check in &checks {
            table.row(vec![check.check.clone(), check.state.to_string(), check.detail.clone()]);
        }
        table.render()
    })?;
    Ok(if checks.iter().any(|check| check.state == State::Failed) { FAILURE } else { OK })
}

async fn machine() -> Result<Vec<Check>> {
    let home = Home::locate()?;
    let mut checks = vec![folder(&home), program().await];
    checks.extend(defaults(&home));
    match registry::list(&home) {
        Ok(records) => {
            for record in records {
                checks.push(app(&record).await);
            }
        }
        Err(error) => checks.push(check("running apps", State::Failed, error.to_string())),
    }
    Ok(checks)
}

pub(super) fn check(name: impl Into<String>, state: State, detail: impl Into<String>) -> Check {
    Check { check: name.into(), state, detail: detail.into() }
}

fn folder(home: &Home) -> Check {
    match home.prepare() {
        Ok(_) => check("home folder", State::Ok, home.root().display().to_string()),
        Err(error) => check("home folder", State::Failed, error.to_string()),
    }
}

async fn program() -> Check {
    match sidecar::find() {
        Ok(path) => match version::sidecar_version(&path).await {
            Some(version) => check("sidecar program", State::Ok, format!("{version} in {}", path.display())),
            None => check("sidecar program", State::Failed, format!("{} does not tell its version", path.display())),
        },
        Err(error) => check("sidecar program", State::Failed, error.to_string()),
    }
}

fn defaults(home: &Home) -> Vec<Check> {
    let mut all = Loaded::default();
    for path in [home.components(), home.config()] {
        if path.exists() {
            lint::lint(&path, home, &mut all);
        }
    }
    if all.diagnostics.is_empty() {
        return vec![check("default resources", State::Ok, format!("{} components", all.components.len()))];
    }
    let finding = |finding: &mecha_resources::Diagnostic| {
        let state = match finding.severity {
            Severity::Error => State::Failed,
            Severity::Warning => State::Warning,
        };
        check("default resources", state, finding.to_string())
    };
    all.diagnostics.iter().map(finding).collect()
}

async fn app(record: &Record) -> Check {
    let name = format!("app {}", record.app_id);
    let endpoint = match Endpoint::of(record) {
        Ok(endpoint) => endpoint,
        Err(error) => return check(name, State::Failed, error.to_string()),
    };
    match Call::new(Method::GET, "/v1.0/healthz").send(&endpoint, PROBE_TIMEOUT).await {
        Ok(answer) if answer.status.is_success() => check(name, State::Ok, format!("ready on {endpoint}")),
        Ok(answer) => check(name, State::Warning, answer.error().to_string()),
        Err(error) => check(name, State::Failed, error.to_string()),
    }
}
