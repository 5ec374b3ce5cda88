//! Calls that meet a stop half-way: what they need is there until they have ended, and who asks again is heard.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mecha_tests::{Answer, Call, HttpApp, Sidecar, Signal, wait_until};
use tokio::sync::Semaphore;

use crate::load::{Ask, Load, To};
use crate::support::{LIMIT, names, store};

/// An app whose slow call ends when it is told to.
async fn waits(go: &Arc<Semaphore>) -> HttpApp {
    let go = Arc::clone(go);
    HttpApp::builder()
        .on_call("/slow", move |_: Call| {
            let go = Arc::clone(&go);
            async move {
                go.acquire().await.unwrap().forget();
                Answer::text("done")
            }
        })
        .start()
        .await
}

/// A handler that works on a call of another sidecar saves its result before it answers.
#[tokio::test]
async fn an_app_reaches_the_api_until_its_calls_have_ended() {
    let shared = tempfile::tempdir().unwrap();
    let go = Arc::new(Semaphore::new(0));
    let app = waits(&go).await;
    let callee = Sidecar::builder().app_id("callee").app(&app).configuration(&names(shared.path()));
    let callee = callee.component(store(shared.path())).flag("dapr-graceful-shutdown-seconds", "50").start().await;
    let caller = Sidecar::builder().app_id("caller").configuration(&names(shared.path())).start().await;
    let http = caller.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/callee/method/slow").try_send().await });
    wait_until(LIMIT, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    callee.signal(Signal::Term);
    let http = callee.http();
    wait_until(LIMIT, "the farewell", || async {
        let reply = http.get("/v1.0/healthz/outbound").send().await;
        reply.header("connection") == "close"
    })
    .await;
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/state/store/none", 204);
    load.fresh("new", To::Tcp(callee.http_port()), Duration::from_millis(5), ask.clone());
    load.keep_alive("kept", To::Tcp(callee.http_port()), Duration::from_millis(5), vec![ask]);
    let client = callee.grpc().await;
    load.worker("gRPC", Duration::from_millis(5), move |_| {
        let mut client = client.clone();
        async move {
            let request = mecha_proto::runtime::GetMetadataRequest {};
            client.get_metadata(request).await.map(drop).map_err(|s| format!("{s:?}"))
        }
    });
    load.progress(200).await;
    load.finish().await;
    go.add_permits(1);
    let reply = call.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    let ended = callee.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn a_shutdown_by_api_ends_a_blocked_stop() {
    for (header, code) in [("", 0), ("dapr-force-shutdown", 1)] {
        let mut sidecar = Sidecar::builder().flag("dapr-block-shutdown-duration", "100s").start().await;
        sidecar.signal(Signal::Term);
        sidecar.wait_log("Blocking graceful shutdown for 1m40s or until app reports unhealthy...").await;
        let mut request = sidecar.http().post("/v1.0/shutdown", "");
        if !header.is_empty() {
            request = request.header(header, "true");
        }
        request.send().await.expect(204);
        assert_eq!(sidecar.exited(LIMIT).await, Some(code), "{}", sidecar.log());
    }
}

/// Whoever stops all processes of a machine reaches the one that leaves as well.
#[tokio::test]
async fn a_signal_to_a_daemon_that_leaves_cuts_no_call() {
    let go = Arc::new(Semaphore::new(0));
    let app = waits(&go).await;
    let builder = Sidecar::builder().app_id("me").app(&app).flag("dapr-graceful-shutdown-seconds", "50");
    let path = builder.folder().join("handover.sock");
    let mut sidecar = builder.flag("mecha-handover", path.to_str().unwrap()).start().await;
    let http = sidecar.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await });
    wait_until(LIMIT, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    let (before, door) = (sidecar.pid().to_string(), std::fs::metadata(&path).unwrap().ino());
    let told = async {
        // The successor opens its own when it has taken over.
        wait_until(LIMIT, "the door of the successor", || async {
            std::fs::metadata(&path).is_ok_and(|file| file.ino() != door)
        })
        .await;
        assert!(Command::new("kill").args(["-TERM", &before]).status().unwrap().success());
        go.add_permits(1);
    };
    let (ended, ()) = tokio::join!(sidecar.replace(&[]), told);
    assert_eq!(ended, Ok(Some(0)), "{}", sidecar.log());
    let reply = call.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
}
