//! `mecha doctor --cluster`: can this cluster run the control part, and does it work?

use super::doctor::{Check, check};
use crate::cluster::health::{self, State};
use crate::error::Result;
use base64::Engine as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use mecha_apiserver::{Failure, FailureKind, call};
use mecha_patch::has_sidecar;
use mecha_resources::kinds::{
    AppPlacementSpec, CapabilityBackendSpec, CapabilityBindingSpec, CapabilityClaimSpec, EnvironmentClassSpec,
    EnvironmentSpec, GROUP, KindSpec, MemberClusterSpec, VERSION,
};
use serde_json::{Value, json};

/// Name of the webhook within its registration.
const WEBHOOK: &str = "pods.injector.mecha.dev";
/// ConfigMap with the roots that sidecars trust, and its key.
const BUNDLE: (&str, &str) = ("mecha-trust-bundle", "ca.crt");
/// A certificate that ends sooner is worth a look.
const SOON_DAYS: i64 = 14;
/// Oldest minor version of Kubernetes 1 that is supported, as the chart has it, and those that bring more.
const OLDEST: u32 = 28;
const NATIVE_SIDECARS: u32 = 29;
const MATCH_CONDITIONS: u32 = 30;
const DAY: i64 = 24 * 3600;

/// All checks, in the order in which they help: later ones need earlier ones.
pub(super) async fn checks(client: &Client, namespace: &str) -> Result<Vec<Check>> {
    let (reached, minor) = version(client).await;
    let mut checks = vec![reached];
    let Some(minor) = minor else { return Ok(checks) };
    checks.push(native(minor));
    checks.extend(features(client, minor).await);
    checks.push(kinds(client).await);
    match health::parts(client, namespace).await {
        Ok(parts) => checks.extend(parts.into_iter().map(|part| {
            check(
                format!("leader of {}", part.role),
                part.state,
                format!("{} {}", part.leader, part.detail).trim().to_owned(),
            )
        })),
        Err(error) => checks.push(check("leaders", State::Failed, error.to_string())),
    }
    checks.push(bundle(client, namespace).await);
    checks.extend(webhook(client).await);
    checks.push(way(client).await);
    Ok(checks)
}

async fn version(client: &Client) -> (Check, Option<u32>) {
    const WHAT: &str = "API server";
    match call(client.apiserver_version()).await {
        Ok(info) => {
            let digits = |minor: &str| minor.chars().take_while(char::is_ascii_digit).collect::<String>();
            let played = info.emulation_minor.as_deref().map_or_else(|| digits(&info.minor), digits);
            let played_as = match played == digits(&info.minor) {
                true => String::new(),
                false => format!(" in the part of 1.{played}"),
            };
            let minor = played.parse().unwrap_or_default();
            if info.major == "1" && minor < OLDEST {
                let next = format!("{} is older than 1.{OLDEST}; upgrade it", info.git_version);
                return (check(WHAT, State::Failed, next), Some(minor));
            }
            (check(WHAT, State::Ok, info.git_version + &played_as), Some(minor))
        }
        Err(failure) => {
            let next = match failure.kind {
                FailureKind::Unauthenticated => "log in again: the credentials of the kubeconfig are not accepted",
                FailureKind::Forbidden => "this account may not even ask for the version; use another --context",
                _ => "check the address in the kubeconfig, and the way to it",
            };
            (check(WHAT, State::Failed, format!("{failure}; {next}")), None)
        }
    }
}

fn native(minor: u32) -> Check {
    const WHAT: &str = "native sidecars";
    match minor {
        minor if minor >= NATIVE_SIDECARS => check(WHAT, State::Ok, "sidecars start before the app and end after it"),
        _ => {
            let text =
                format!("before 1.{NATIVE_SIDECARS} sidecars are plain containers: Jobs end only by the shutdown API");
            check(WHAT, State::Warning, text)
        }
    }
}

/// What the API server serves, by the lists of resources that it publishes.
async fn features(client: &Client, minor: u32) -> Vec<Check> {
    let admission = resources(client, "/apis/admissionregistration.k8s.io/v1").await;
    let mut checks = vec![
        served(
            "admission webhooks v1",
            &admission,
            "mutatingwebhookconfigurations",
            State::Failed,
            "without them use mecha inject; the injector cannot work",
        ),
        served(
            "ValidatingAdmissionPolicy",
            &admission,
            "validatingadmissionpolicies",
            State::Warning,
            "without it nothing guards who may accept a MemberCluster; leave that policy out of the installation",
        ),
    ];
    let definitions = resources(client, "/apis/apiextensions.k8s.io/v1").await;
    checks.push(served(
        "CustomResourceDefinitions with CEL",
        &definitions,
        "customresourcedefinitions",
        State::Failed,
        "the kinds of mecha.dev cannot be installed",
    ));
    let tokens = resources(client, "/api/v1").await;
    checks.push(served(
        "projected tokens",
        &tokens,
        "serviceaccounts/token",
        State::Failed,
        "sidecars cannot prove who they are; set --service-account-issuer and its keys at the API server",
    ));
    if minor < MATCH_CONDITIONS {
        let text = format!("before 1.{MATCH_CONDITIONS} only pods with the label mecha.dev/enabled=true are injected");
        checks.push(check("match conditions", State::Warning, text));
    }
    checks
}

async fn resources(client: &Client, path: &str) -> std::result::Result<Vec<String>, Failure> {
    let request = http::Request::get(path).body(Vec::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Err(Failure::from(kube::Error::HttpError(error))),
    };
    let list: Value = call(client.request(request)).await?;
    let names = list["resources"].as_array().into_iter().flatten().filter_map(|r| r["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

fn served(
    what: &str,
    list: &std::result::Result<Vec<String>, Failure>,
    name: &str,
    without: State,
    next: &str,
) -> Check {
    match list {
        Ok(names) if names.iter().any(|served| served == name) => check(what, State::Ok, format!("{name} is served")),
        Ok(_) => check(what, without, format!("{name} is switched off at the API server: {next}")),
        Err(failure) if failure.kind == FailureKind::NotFound => {
            check(what, without, format!("{name} is switched off at the API server: {next}"))
        }
        Err(failure) => check(what, State::Failed, format!("the API server does not say: {failure}")),
    }
}

async fn kinds(client: &Client) -> Check {
    const WHAT: &str = "kinds of mecha.dev";
    let wanted = [
        MemberClusterSpec::PLURAL,
        EnvironmentClassSpec::PLURAL,
        EnvironmentSpec::PLURAL,
        CapabilityBackendSpec::PLURAL,
        CapabilityClaimSpec::PLURAL,
        AppPlacementSpec::PLURAL,
        CapabilityBindingSpec::PLURAL,
    ];
    let path = format!("/apis/{GROUP}/{VERSION}");
    let next = "install the chart, or kubectl apply --server-side -f deploy/crds";
    match resources(client, &path).await {
        Ok(served) => {
            let missing: Vec<_> = wanted.iter().filter(|name| !served.iter().any(|s| s == *name)).copied().collect();
            match missing.is_empty() {
                true => check(WHAT, State::Ok, format!("all {} are served as {VERSION}", wanted.len())),
                false => check(WHAT, State::Failed, format!("{} are missing; {next}", missing.join(", "))),
            }
        }
        Err(failure) if failure.kind == FailureKind::NotFound => {
            check(WHAT, State::Failed, format!("none is installed; {next}"))
        }
        Err(failure) => check(WHAT, State::Failed, failure.to_string()),
    }
}

/// The roots that sidecars trust.
async fn bundle(client: &Client, namespace: &str) -> Check {
    const WHAT: &str = "trust bundle";
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match call(api.get(BUNDLE.0)).await {
        Ok(map) => {
            let pem = map.data.and_then(|mut data| data.remove(BUNDLE.1)).unwrap_or_default();
            days_left(WHAT, pem.as_bytes(), "the agent renews it; see that one leads")
        }
        Err(failure) if failure.kind == FailureKind::NotFound => {
            let text = format!("ConfigMap {namespace}/{} is not there: no agent has run yet", BUNDLE.0);
            check(WHAT, State::Failed, text)
        }
        Err(failure) => check(WHAT, State::Failed, failure.to_string()),
    }
}

/// The registration of the webhook and the roots it is checked against.
async fn webhook(client: &Client) -> Vec<Check> {
    const WHAT: &str = "webhook registration";
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let list = match call(api.list(&ListParams::default())).await {
        Ok(list) => list.items,
        Err(failure) => return vec![check(WHAT, State::Failed, failure.to_string())],
    };
    let ours = list.into_iter().find_map(|configuration| {
        let name = configuration.metadata.name?;
        let hook = configuration.webhooks?.into_iter().find(|hook| hook.name == WEBHOOK)?;
        Some((name, hook.client_config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default()))
    });
    let Some((name, bundle)) = ours else {
        let text = "no MutatingWebhookConfiguration of the injector: pods start without sidecars; install the injector, \
                    or use mecha inject";
        return vec![check(WHAT, State::Failed, text)];
    };
    vec![
        check(WHAT, State::Ok, format!("MutatingWebhookConfiguration {name}")),
        days_left("webhook certificate", &bundle, "the injector renews it; see that one leads"),
    ]
}

/// Days until the first of several certificates in PEM form that is still to be trusted alone: the last one.
fn days_left(what: &str, pem: &[u8], next: &str) -> Check {
    let ends = ends(pem);
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    match ends.iter().max().map(|end| (end - now) / DAY) {
        None => check(what, State::Failed, format!("it holds no certificate; {next}")),
        Some(days) if days < 0 => check(what, State::Failed, format!("it ended {} days ago; {next}", -days)),
        Some(days) if days < SOON_DAYS => check(what, State::Warning, format!("it ends in {days} days; {next}")),
        Some(days) => check(what, State::Ok, format!("{} certificates, {days} days left", ends.len())),
    }
}

fn ends(pem: &[u8]) -> Vec<i64> {
    let text = String::from_utf8_lossy(pem);
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    let body =
        |block: &str| block.split("-----END CERTIFICATE-----").next().unwrap_or_default().split_whitespace().collect();
    let der = blocks.filter_map(|block| base64::engine::general_purpose::STANDARD.decode::<String>(body(block)).ok());
    der.filter_map(|der| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    })
    .collect()
}

/// The way of a pod through the API server to the webhook and back; nothing is stored.
async fn way(client: &Client) -> Check {
    const WHAT: &str = "way to the webhook";
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<Pod>(&()));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "mecha-doctor",
            "labels": {"mecha.dev/enabled": "true"},
            "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": "mecha-doctor"},
        },
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "none"}]},
    });
    let pod: DynamicObject = match serde_json::from_value(pod) {
        Ok(pod) => pod,
        Err(error) => return check(WHAT, State::Failed, error.to_string()),
    };
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match call(api.create(&params, &pod)).await {
        Ok(made) if has_sidecar(&json!({"spec": made.data["spec"]})) => {
            check(WHAT, State::Ok, "a pod that asks for a sidecar gets one (dry run)")
        }
        Ok(_) => check(
            WHAT,
            State::Failed,
            "a pod in namespace default that asks for a sidecar would start without one; look at the webhook registration",
        ),
        Err(failure) => check(
            WHAT,
            State::Failed,
            format!("the API server refuses a pod that asks for a sidecar: {failure}; look at the injector's log"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_end_soon_or_have_ended_are_told() {
        assert_eq!(days_left("x", b"", "renew it").state, State::Failed);
        assert_eq!(
            days_left("x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "").state,
            State::Failed
        );
    }
}
