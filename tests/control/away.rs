//! What goes on while the control part is away for long.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mecha_tests::{Http, wait_until};

use crate::clock::Clock;
use crate::guide::{Load, PATIENCE, Shop};
use crate::install::NAMESPACE;
use crate::roles::{AGENT, HUB, INJECTOR};

const HOUR: Duration = Duration::from_secs(3600);
const POD: &str = "orders-api";
/// Hours after which the platform team asks for another root.
const ROTATE_AFTER: u32 = 6;

/// Two apps of which one calls the other. Who may is judged by the certificate of the caller's sidecar.
const PEERS: &str = r#"
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: friends}
spec:
  accessControl:
    defaultAction: deny
    trustDomain: public
    policies: [{appId: cart, defaultAction: allow, trustDomain: public, namespace: HOME}]
---
apiVersion: v1
kind: Pod
metadata:
  name: stock
  annotations: {dapr.io/enabled: "true", dapr.io/app-id: stock, dapr.io/app-port: "8080", dapr.io/config: friends}
spec:
  serviceAccountName: default
  containers: [{name: app, image: "example/orders-api:1", ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: cart, annotations: {dapr.io/enabled: "true", dapr.io/app-id: cart}}
spec:
  serviceAccountName: default
  containers: [{name: app, image: "example/cart:1"}]
"#;

/// What becomes of a call of `stock` by another app.
async fn asks_stock(shop: &Shop, caller: &str) -> Option<u16> {
    let api = Http::tcp(shop.node.port(&shop.home, caller, 3500));
    let reply = api.get("/v1.0/invoke/stock/method/hello").try_send().await;
    reply.ok().map(|reply| reply.status)
}

/// The roots that sidecars trust.
fn roots(shop: &Shop) -> String {
    shop.field(&["-n", NAMESPACE, "configmap", "mecha-trust-bundle"], ".data.ca\\.crt").unwrap()
}

/// The value of a metric of the sidecar.
async fn metric(shop: &Shop, series: &str) -> Option<f64> {
    let scraped = Http::tcp(shop.node.port(&shop.home, POD, 9090)).get("/metrics").try_send().await.ok()?.text();
    let line =
        scraped.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(['{', ' ']).map(str::to_owned))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Waits for a condition. A sidecar that comes back gets its snapshot some minutes later, so they have to pass.
async fn while_time_goes_on(clock: &mut Clock, what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited for {what}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        clock.forward(Duration::from_secs(180));
    }
}

/// Lets an hour pass between two calls, and then calls.
async fn an_hour(shop: &Shop, clock: &mut Clock) {
    clock.forward(HOUR);
    let load = Load::start(shop.api());
    load.goes_on(10).await;
    load.end().await;
    // The node's register of names stands for the DNS, and all in it has become an hour old at once.
    wait_until(PATIENCE, "stock to be found", async || asks_stock(shop, "cart").await == Some(200)).await;
    for _ in 0..5 {
        assert_eq!(asks_stock(shop, "cart").await, Some(200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_without_the_hub_and_hours_without_anybody_fail_no_call_and_sidecars_restart() {
    let mut clock = Clock::new();
    let Some(mut shop) = Shop::open_with(clock.variables()).await else { return };
    for role in [HUB, AGENT] {
        shop.roles.variables(role, clock.variables());
    }
    shop.roles.kill(AGENT);
    shop.roles.launch(&shop.server, AGENT);
    shop.roles.ready().await;
    assert_eq!(shop.save("a", "1").await, 204);
    shop.apply(&PEERS.replace("HOME", &shop.home));
    for pod in ["stock", "cart"] {
        let ready = ".status.conditions[?(@.type==\"Ready\")].status";
        shop.shows(&["-n", &shop.home, "pod", pod], ready, "True").await;
    }
    wait_until(PATIENCE, "stock to be found", async || asks_stock(&shop, "cart").await == Some(200)).await;
    assert_eq!(asks_stock(&shop, POD).await, Some(403), "its certificate says that it is another app");
    let first_roots = roots(&shop);

    // A day without the hub. Certificates and snapshots live as long, so the agent has to renew both meanwhile; and it
    // comes to another root, while sidecars have certificates of both.
    shop.roles.kill(HUB);
    for hour in 1..=24 {
        if hour == ROTATE_AFTER {
            let rotate = ["annotate", "secret", "mecha-trust-root", "mecha.dev/rotate=today"];
            shop.server.kubectl(&[&["-n", NAMESPACE], &rotate[..]].concat());
        }
        an_hour(&shop, &mut clock).await;
        let what = format!("certificate and snapshot to be young after {hour} hours");
        while_time_goes_on(&mut clock, &what, async || {
            let left = metric(&shop, "mecha_identity_certificate_seconds_left").await;
            let age = metric(&shop, "mecha_delivery_snapshot_age_seconds").await;
            left.is_some_and(|left| left > 8.0 * 3600.0) && age.is_some_and(|age| age < 7.0 * 3600.0)
        })
        .await;
    }
    let renewed = metric(&shop, "dapr_runtime_mtls_workload_cert_rotated_total").await.unwrap();
    assert!(renewed >= 1.0, "{renewed} renewals in a day");
    let begin = |pem: &str| pem.split("-----END").next().unwrap().to_owned();
    assert_ne!(begin(&roots(&shop)), begin(&first_roots), "another root signs");
    assert_eq!(asks_stock(&shop, POD).await, Some(403));
    // Who reads the claim's Secret needs neither hub nor sidecar.
    let secret = shop.field(&["-n", &shop.home, "capabilityclaim", "orders"], ".status.binding.name").unwrap();
    let host = shop.field(&["-n", &shop.home, "secret", &secret], ".data.host").unwrap();
    assert_eq!(BASE64_STANDARD.decode(host).unwrap(), shop.blue.address().as_bytes());

    // Then nobody is there any more, for some hours.
    for role in [AGENT, INJECTOR] {
        shop.roles.kill(role);
    }
    shop.server.kill_apiserver();
    for _ in 0..4 {
        an_hour(&shop, &mut clock).await;
    }
    shop.kill_sidecar().await;
    assert_eq!(shop.read("a").await, "\"1\"");
    assert_eq!(metric(&shop, "mecha_delivery_restored").await, Some(1.0), "it started from the snapshot");
    an_hour(&shop, &mut clock).await;

    shop.takes_everything_up_again().await;
}
