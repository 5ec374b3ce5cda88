//! Which functions the roles need, for the layout of their program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use mecha_apiserver::{CapabilityClaim, EnvironmentClass, Selection, Tasks, follow};
use mecha_testkit::servers::Kubernetes;
use serde_json::json;

use super::{backend_of, begin, create, make_backends, make_environments, namespace_of, role, rule, until};
use crate::layout::{functions, under_profiler};

/// What a role does by itself once it is ready.
const IDLE: Duration = Duration::from_secs(20);

/// Runs each role of `program` under the profiler: alone, and while a claim is bound and moved.
///
/// # Errors
/// No API server, no valgrind, or a role that does not start.
pub(crate) fn used(program: &Path, folder: &Path) -> io::Result<Vec<(&'static str, BTreeSet<String>)>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Kubernetes::start().ok_or_else(|| io::Error::other("the API server's programs are not built"))?;
    let client = runtime.block_on(begin(&server))?;
    let profiled = |run: &str, moves: bool| -> io::Result<BTreeSet<String>> {
        let mut roles = Vec::new();
        for name in ["hub", "agent", "injector"] {
            let profile = folder.join(format!("{name}-{run}.profile"));
            let under: Vec<OsString> = under_profiler(&profile);
            roles.push((role(program, &under, &server, name)?, profile));
        }
        if moves {
            runtime.block_on(bind_and_move(&client))?;
        }
        std::thread::sleep(IDLE);
        let mut all = BTreeSet::new();
        for (role, profile) in roles {
            role.stop()?;
            all.extend(functions(&profile)?);
        }
        Ok(all)
    };
    Ok(vec![
        ("A start of each role, and nothing to do.", profiled("idle", false)?),
        ("A claim that is bound and moved.", profiled("move", true)?),
    ])
}

async fn bind_and_move(client: &kube::Client) -> io::Result<()> {
    let tasks = Tasks::new();
    make_backends(client).await?;
    let environments = make_environments(client, &tasks, "bench", 1).await?;
    let namespace = environments.first().map(|e| namespace_of(e).to_owned()).unwrap_or_default();
    let claim = json!({
        "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityClaim", "metadata": {"name": "store"},
        "spec": {"kind": "state"},
    });
    create(&Api::<CapabilityClaim>::namespaced(client.clone(), &namespace), claim).await?;
    let claims = follow::<CapabilityClaim>(client.clone(), &Selection::default(), &tasks);
    until(&claims, "the claim is bound", |all| all.iter().any(|c| backend_of(c) == Some("blue"))).await?;
    let edit = json!({"spec": {"capabilities": [rule("green")]}});
    let classes: Api<EnvironmentClass> = Api::all(client.clone());
    classes.patch("bench", &PatchParams::default(), &Patch::Merge(&edit)).await.map_err(io::Error::other)?;
    until(&claims, "the claim has moved", |all| all.iter().any(|c| backend_of(c) == Some("green"))).await?;
    tasks.drain().await;
    Ok(())
}
