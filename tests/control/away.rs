//! What goes on while the control part is away for long.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use mecha_tests::Http;

use crate::clock::Clock;
use crate::guide::{Load, PATIENCE, Shop};
use crate::roles::{AGENT, HUB, INJECTOR};

const HOUR: Duration = Duration::from_secs(3600);
const POD: &str = "orders-api";

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

    // A day without the hub. Certificates and snapshots live as long, so the agent has to renew both meanwhile.
    shop.roles.kill(HUB);
    for hour in 1..=24 {
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
