//! Certificates renewed, roots replaced and the authority gone, under calls that come over new
//! and over kept connections.

use std::sync::Arc;
use std::time::Duration;

use mecha_identity::testing::Ca;
use mecha_tests::{Answer, Authority, HttpApp, Sidecar, eventually};

use crate::load::{Ask, Load, To};
use crate::support::{LIMIT, names, rounds};

const CALL: &str = "/v1.0/invoke/callee/method/hello";
const ROTATED: &str = "dapr_runtime_mtls_workload_cert_rotated_total";

/// A caller and a callee; connections between them end as soon as they are idle.
struct Sidecars {
    caller: Sidecar,
    callee: Sidecar,
    _app: HttpApp,
    _names: tempfile::TempDir,
}

async fn sidecars(authority: &Authority) -> Sidecars {
    let folder = tempfile::tempdir().unwrap();
    let app = HttpApp::builder().on("/hello", Answer::text("hello")).start().await;
    let shelf = |id: &str| {
        let shelf = folder.path().join(id);
        std::fs::create_dir(&shelf).unwrap();
        shelf.to_str().unwrap().to_owned()
    };
    let builder = |id: &str| {
        let builder = Sidecar::builder().app_id(id).configuration(&names(folder.path()));
        authority
            .secure(builder)
            .env("DAPR_GRPC_MAX_CONN_IDLE", "10ms")
            .env("DAPR_GRPC_CONN_COLLECTOR_INTERVAL", "10ms")
            .env("MECHA_SNAPSHOT_FOLDER", shelf(id))
    };
    let callee = builder("callee").app(&app).start().await;
    let caller = builder("caller").start().await;
    Sidecars { caller, callee, _app: app, _names: folder }
}

impl Sidecars {
    /// One client that calls without pause, and one that is so slow that each of its calls meets a new
    /// connection when the other is between two.
    fn load(&self, load: &mut Load, without_pause: bool) {
        let to = To::Tcp(self.caller.http_port());
        load.keep_alive("slow", to.clone(), Duration::from_millis(60), vec![Ask::get(CALL, 200)]);
        if without_pause {
            load.keep_alive("busy", to, Duration::ZERO, vec![Ask::get(CALL, 200)]);
        }
    }

    /// Waits until both have renewed this often in all.
    async fn renewed(&self, times: f64) {
        for sidecar in [&self.caller, &self.callee] {
            eventually("renewals", || async { (rotated(sidecar).await >= times).then_some(()) }).await;
        }
    }

    /// Waits until both trust what the file of the anchors says.
    async fn trust(&self, changes: usize) {
        for sidecar in [&self.caller, &self.callee] {
            let line = "new trust anchors are in force";
            eventually("the new anchors", || async { (sidecar.log().matches(line).count() >= changes).then_some(()) })
                .await;
        }
    }
}

async fn rotated(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().await;
    let line = metrics.lines().find(|line| line.starts_with(ROTATED));
    line.map_or(0.0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[tokio::test]
async fn renewals_fail_no_call() {
    let authority = Authority::start().await;
    authority.lasting(Duration::from_millis(200));
    let sidecars = sidecars(&authority).await;
    for busy in [false, true] {
        let mut load = Load::default();
        sidecars.load(&mut load, busy);
        let target = rotated(&sidecars.caller).await.max(rotated(&sidecars.callee).await) + 20.0;
        sidecars.renewed(target).await;
        load.progress(10).await;
        load.finish().await;
    }
}

#[tokio::test]
async fn a_change_of_the_root_fails_no_call() {
    let authority = Authority::start().await;
    authority.lasting(Duration::from_secs(2));
    let sidecars = sidecars(&authority).await;
    let mut load = Load::default();
    sidecars.load(&mut load, false);
    let mut old = authority.ca();
    let mut changes = 0;
    for _ in 0..rounds(5, 100) {
        let new = Arc::new(Ca::new("root"));
        authority.publish(&[&old, &new]);
        changes += 1;
        sidecars.trust(changes).await;
        authority.sign_with(new.clone());
        let (caller, callee) = (rotated(&sidecars.caller).await, rotated(&sidecars.callee).await);
        // One that was under way may still be of the old root.
        sidecars.renewed(caller.max(callee) + 2.0).await;
        load.progress(10).await;
        authority.publish(&[&new]);
        changes += 1;
        sidecars.trust(changes).await;
        load.progress(10).await;
        old = new;
    }
    load.finish().await;
}

#[tokio::test]
async fn a_root_that_is_gone_at_once_is_followed_by_new_certificates() {
    let authority = Authority::start().await;
    let sidecars = sidecars(&authority).await;
    assert_eq!(sidecars.caller.http().get(CALL).send().await.status, 200);
    // Theirs last an hour yet, and nobody who reads the file accepts them any more.
    let new = Arc::new(Ca::new("root"));
    authority.sign_with(new.clone());
    authority.publish(&[&new]);
    sidecars.renewed(1.0).await;
    mecha_tests::wait_until(LIMIT, "calls to work again", || async {
        sidecars.caller.http().get(CALL).send().await.status == 200
    })
    .await;
}

#[tokio::test]
async fn an_authority_that_is_away_stops_no_call_before_the_certificate_ends() {
    let authority = Authority::start().await;
    authority.lasting(Duration::from_secs(20));
    let sidecars = sidecars(&authority).await;
    authority.stop();
    let mut load = Load::default();
    sidecars.load(&mut load, false);
    // Renewals come at half of the life, from then on they fail.
    for sidecar in [&sidecars.caller, &sidecars.callee] {
        sidecar.wait_log("the certificate was not renewed and is good for another").await;
    }
    load.progress(10).await;
    load.finish().await;
    // New connections then fail with the cause, and the process stays.
    let text = eventually("the end of the certificate", || async {
        let reply = sidecars.caller.http().get(CALL).send().await;
        (reply.status != 200).then(|| reply.text())
    })
    .await;
    let told = "the certificate of spiffe://public/ns/default/caller has expired and was not renewed: no connection";
    assert!(text.contains(told), "{text}");
    let failed = "dapr_runtime_mtls_workload_cert_rotated_fail_total{app_id=\"caller\",reason=\"sign\"}";
    assert!(sidecars.caller.metrics().await.contains(failed));
    authority.serve().await;
    mecha_tests::wait_until(LIMIT, "calls to work again", || async {
        sidecars.caller.http().get(CALL).send().await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_container_that_starts_without_the_authority_goes_on_with_its_certificate() {
    let authority = Authority::start().await;
    let mut sidecars = sidecars(&authority).await;
    authority.stop();
    sidecars.caller.kill().await;
    sidecars.caller.again().await;
    assert_eq!(sidecars.caller.http().get(CALL).send().await.status, 200);
    assert!(sidecars.caller.log().contains("this start goes on with the certificate of the one before"));
    authority.serve().await;
    mecha_tests::wait_until(LIMIT, "a renewal", || async { rotated(&sidecars.caller).await >= 1.0 }).await;
    // Who is refused does not go on with what was kept.
    authority.refuse(Some((tonic::Code::PermissionDenied, "the pod is gone")));
    sidecars.caller.kill().await;
    sidecars.caller.spawn_again();
    assert_eq!(sidecars.caller.exited(LIMIT).await, Some(1));
}

#[tokio::test]
async fn a_rebuild_keeps_the_identity() {
    let authority = Authority::start().await;
    let sidecars = sidecars(&authority).await;
    let mut load = Load::default();
    sidecars.load(&mut load, true);
    let signed = authority.signed();
    authority.stop();
    for _ in 0..2 {
        load.progress(20).await;
        for sidecar in [&sidecars.caller, &sidecars.callee] {
            sidecar.signal(mecha_tests::Signal::Hup);
        }
    }
    load.progress(50).await;
    load.finish().await;
    assert_eq!(authority.signed(), signed);
}
