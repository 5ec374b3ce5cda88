//! From the command line to running roles.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use mecha_apiserver::trace::Tracer;
use mecha_apiserver::{Gate, Role};
use tokio::task::JoinSet;

use crate::cli::{AgentArgs, HubArgs, InjectorArgs, Registrar, RoleArgs};
use crate::program::Failed;

/// Id that sidecars expect of what delivers documents to them.
const OPERATOR: &str = "dapr-operator";

/// Starts what `args` asks for; the first in `running` that ends, ends the program.
///
/// # Errors
/// What the command line says makes no sense.
pub(crate) fn start(
    args: RoleArgs,
    role: &Role,
    tracer: &Tracer,
    running: &mut JoinSet<Result<(), Failed>>,
) -> Result<(), Failed> {
    match args {
        RoleArgs::Hub(args) => hub(&args, role, tracer, running),
        RoleArgs::Agent(args) => agent(&args, role, tracer, running),
        RoleArgs::Injector(args) => injector(&args, role, tracer, running)?,
        RoleArgs::All { hub: h, agent: a, injector: i } => {
            hub(&h, role, tracer, running);
            agent(&a, role, tracer, running);
            injector(&i, role, tracer, running)?;
        }
    }
    Ok(())
}

fn hub(args: &HubArgs, role: &Role, tracer: &Tracer, running: &mut JoinSet<Result<(), Failed>>) {
    let options = mecha_hub::Options {
        cluster_name: args.cluster.clone(),
        hysteresis: mecha_hub::Hysteresis { min_gain: args.min_gain, hold_ms: args.hold_seconds.saturating_mul(1000) },
        tracer: tracer.clone(),
        ..mecha_hub::Options::default()
    };
    let gate = role.ready.wait_for("the start of the hub");
    let role = role.clone();
    running.spawn(begun(gate, async move { mecha_hub::run(options, role).await.map_err(|e| Failed::new("hub", e)) }));
}

/// Runs `role` and opens the gate once it has begun: by then it has announced what it waits for itself.
async fn begun<T>(gate: Gate, role: impl Future<Output = T>) -> T {
    let mut role = pin!(role);
    let mut gate = Some(gate);
    poll_fn(move |cx| {
        let polled = role.as_mut().poll(cx);
        if let Some(gate) = gate.take() {
            gate.open();
        }
        polled
    })
    .await
}

/// What looks after sources; and the issuer with what delivers documents, which gets its certificate from there.
fn agent(args: &AgentArgs, role: &Role, tracer: &Tracer, running: &mut JoinSet<Result<(), Failed>>) {
    let issuing = mecha_issuer::Options {
        listen: args.issuer_address,
        trust_domain: args.trust_domain.clone(),
        leaf_ttl: Duration::from_secs(args.certificate_seconds),
        publish_wait: Duration::from_secs(args.root_publish_seconds),
        tracer: tracer.clone(),
        ..mecha_issuer::Options::default()
    };
    let delivering = mecha_agent::Options {
        listen: args.agent_address,
        cluster: args.agent_cluster.clone(),
        tracer: tracer.clone(),
        ..mecha_agent::Options::default()
    };
    let sources = mecha_sources::Options {
        cluster_name: args.agent_cluster.clone(),
        probe_program: args.probe_program.clone(),
        tracer: tracer.clone(),
        ..mecha_sources::Options::default()
    };
    let beside = role.clone();
    let gate = role.ready.wait_for("the start of the sources");
    running.spawn(begun(gate, async move {
        mecha_sources::run(sources, beside).await.map_err(|e| Failed::new("sources", e))
    }));
    let gate = role.ready.wait_for("the start of the agent");
    let role = role.clone();
    running.spawn(async move {
        let stop = role.tasks.stopping().clone();
        let issuer = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            started = mecha_issuer::Issuer::start(issuing, &role) => started.map_err(|e| Failed::new("issuer", e))?,
        };
        tracing::info!(address = %issuer.address(), "certificates are issued");
        let namespace = &role.namespace;
        let names = ["svc", "svc.cluster.local"].map(|end| format!("mecha-agent.{namespace}.{end}"));
        let live = issuer.control(OPERATOR, &names).map_err(|e| Failed::new("issuer", e))?;
        let agent = mecha_agent::Agent::start(delivering, &role, live).await.map_err(|e| Failed::new("agent", e))?;
        tracing::info!(address = %agent.address(), "sidecars are served");
        gate.open();
        stop.cancelled().await;
        Ok(())
    });
}

fn injector(
    args: &InjectorArgs,
    role: &Role,
    tracer: &Tracer,
    running: &mut JoinSet<Result<(), Failed>>,
) -> Result<(), Failed> {
    use mecha_webhook::{CanaryOptions, Options, Reach, Registration, RepairOptions};
    let defaults = Options::default();
    let reach = match &args.webhook_url {
        None => Reach::Service { name: args.webhook_service.clone(), port: 443 },
        Some(url) => {
            let host = url.strip_prefix("https://").and_then(host_of).ok_or_else(|| {
                Failed::new("webhook-url", format!("--webhook-url {url:?} must look like https://HOST:PORT"))
            })?;
            Reach::Url { url: format!("{}/mutate", url.trim_end_matches('/')), host }
        }
    };
    // What counts until the ConfigMap says otherwise.
    let service = |name: &str| format!("{name}.{}.svc.cluster.local:443", role.namespace);
    let mut sidecars = defaults.defaults.clone();
    sidecars.control_plane_namespace.clone_from(&role.namespace);
    sidecars.addresses.operator = service("mecha-agent");
    sidecars.addresses.sentry = service("dapr-sentry");
    let options = Options {
        listen: args.webhook_address,
        reach,
        defaults: sidecars,
        registration: match args.registration {
            Registrar::Injector => Registration::Whole,
            Registrar::Chart => Registration::Roots,
        },
        skipped_namespaces: args.skipped_namespaces.clone(),
        canary: CanaryOptions { namespace: args.canary_namespace.clone(), ..defaults.canary.clone() },
        repair: RepairOptions { evict: !args.report_only, ..defaults.repair },
        tracer: tracer.clone(),
        ..defaults
    };
    let gate = role.ready.wait_for("the start of the injector");
    let role = role.clone();
    running.spawn(begun(gate, async move {
        mecha_webhook::run(options, role).await.map_err(|e| Failed::new("injector", e))
    }));
    Ok(())
}

/// The host of `HOST:PORT`, without the brackets of an IPv6 address.
fn host_of(authority: &str) -> Option<String> {
    let authority = authority.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty() && !host.contains('/')).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url() {
        assert_eq!(host_of("127.0.0.1:1/").as_deref(), Some("127.0.0.1"));
        assert_eq!(host_of("[::1]:1").as_deref(), Some("::1"));
        for bad in ["a", ":1", "a:x", "a/b:1"] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
