//! The node itself: its object, its heartbeat, and which pods are on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::pod;

/// Name of the only node.
pub(super) const NODE: &str = "this-machine";
/// As kubelets do; without it the controllers would take pods away from a node that seems lost.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Runs until the test ends, then ends every process.
pub(super) async fn run(shared: Arc<Shared>, client: Client) {
    let stop = shared.stop.clone();
    let mut pods = JoinSet::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = beat(&client) => {}
        () = follow(&shared, &client, &mut pods) => {}
    }
    // The tasks of pods see the same signal and kill what they started.
    while pods.join_next().await.is_some() {}
}

async fn beat(client: &Client) {
    let force = PatchParams::apply("kubelet").force();
    loop {
        let now = Timestamp::now().to_string();
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        let nodes: Api<Node> = Api::all(client.clone());
        // An API server that a test has taken away comes back, or does not.
        let _ = nodes.patch(NODE, &force, &Patch::Apply(json!({"apiVersion": "v1", "kind": "Node"}))).await;
        let _ = nodes.patch_status(NODE, &force, &Patch::Apply(node)).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40,
                "renewTime": format!("{:.6}", Timestamp::now())},
        });
        let _ = leases.patch(NODE, &force, &Patch::Apply(lease)).await;
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn follow(shared: &Arc<Shared>, client: &Client, tasks: &mut JoinSet<()>) {
    let mut here: HashMap<String, watch::Sender<Option<Pod>>> = HashMap::new();
    let mut listed: Vec<String> = Vec::new();
    let mut events = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.metadata.uid.clone());
                seen(shared, client, &mut here, tasks, pod);
            }
            Ok(Event::InitDone) => here.retain(|uid, pod| {
                let there = listed.contains(uid);
                if !there {
                    pod.send_replace(None);
                }
                there
            }),
            Ok(Event::Apply(pod)) => seen(shared, client, &mut here, tasks, pod),
            Ok(Event::Delete(pod)) => {
                if let Some(gone) = pod.metadata.uid.and_then(|uid| here.remove(&uid)) {
                    gone.send_replace(None);
                }
            }
            // The watcher begins again by itself. Running pods stay as they are meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        while tasks.try_join_next().is_some() {}
    }
}

fn seen(
    shared: &Arc<Shared>,
    client: &Client,
    here: &mut HashMap<String, watch::Sender<Option<Pod>>>,
    tasks: &mut JoinSet<()>,
    pod: Pod,
) {
    let Some(uid) = pod.metadata.uid.clone() else { return };
    let elsewhere = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| node != NODE);
    if elsewhere {
        return;
    }
    if let Some(known) = here.get(&uid) {
        known.send_replace(Some(pod));
        return;
    }
    let (sender, receiver) = watch::channel(Some(pod));
    here.insert(uid, sender);
    tasks.spawn(pod::run(shared.clone(), client.clone(), receiver));
}
