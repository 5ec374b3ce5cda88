//! What the incumbent does not have: how far a sidecar is, and receipts of changes, the same over both fronts.

use mecha_proto::sidecar::sidecar_client::SidecarClient;
use mecha_proto::sidecar::{DocumentChange, GetPhaseRequest, ListSwapsRequest, SidecarPhase, SwapOutcome, SwapReceipt};
use mecha_tests::{Sidecar, component, eventually};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::support::{memory_store, wait_series};

const TOKEN: &str = "token-canary-4711";

async fn client(sidecar: &Sidecar) -> SidecarClient<Channel> {
    SidecarClient::new(sidecar.channel().await)
}

fn write(sidecar: &Sidecar, file: &str, text: &str) {
    let beside = sidecar.folder().join(file);
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, sidecar.resources().join(file)).unwrap();
}

/// What HTTP says once there are this many receipts.
async fn receipts(sidecar: &Sidecar, count: usize) -> Value {
    eventually(&format!("{count} receipts"), || async {
        let all = sidecar.http().get("/v1.0-mecha/swaps").send().await.expect(200).json();
        let ended = all["swaps"].as_array().unwrap().iter().filter(|r| r["outcome"] != "draining").count();
        (ended >= count).then_some(all)
    })
    .await
}

/// A receipt in the words of the HTTP API.
fn as_json(receipt: &SwapReceipt) -> Value {
    let text = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    json!({
        "generation": receipt.generation,
        "time": receipt.time.unwrap().seconds,
        "kind": receipt.kind,
        "name": receipt.name,
        "change": receipt.change().as_str_name().trim_start_matches("DOCUMENT_CHANGE_").to_lowercase(),
        "from": text(&receipt.from),
        "to": text(&receipt.to),
        "outcome": receipt.outcome().as_str_name().trim_start_matches("SWAP_OUTCOME_").to_lowercase(),
        "inFlight": receipt.in_flight,
        "finished": receipt.finished,
        "redelivered": receipt.redelivered,
        "failed": receipt.failed,
        "switchMs": receipt.switch_time.map(|d| d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6),
        "durationMs": receipt.total_time.map(|d| d.seconds as f64 * 1e3 + f64::from(d.nanos) / 1e6),
        "dataMoved": receipt.data_moved,
        "emptied": receipt.emptied,
        "reason": text(&receipt.reason),
    })
}

#[tokio::test]
async fn receipts_and_phase_are_the_same_on_both_fronts() {
    let sidecar = Sidecar::builder()
        .switch("mecha-strict")
        .document("store.yaml", &memory_store("store"))
        .document("away.yaml", &component("away", "state.sqlite", &[("connectionString", "/nowhere/at/all.db")]))
        .start()
        .await;
    write(&sidecar, "store.yaml", &component("store", "state.in-memory", &[("keyPrefix", "none")]));
    receipts(&sidecar, 1).await;
    write(&sidecar, "store.yaml", &component("store", "state.nothing", &[]));
    let http = receipts(&sidecar, 2).await;
    let mut client = client(&sidecar).await;
    let grpc = client.list_swaps(ListSwapsRequest {}).await.unwrap().into_inner();
    assert_eq!(json!(grpc.generation), http["generation"]);
    assert_eq!(grpc.swaps.len(), 2);
    assert_eq!((grpc.swaps[0].change(), grpc.swaps[0].outcome()), (DocumentChange::Updated, SwapOutcome::Applied));
    assert_eq!((grpc.swaps[0].data_moved, grpc.swaps[0].emptied), (Some(false), None));
    assert_eq!(grpc.swaps[1].outcome(), SwapOutcome::Refused);
    for (grpc, http) in grpc.swaps.iter().zip(http["swaps"].as_array().unwrap()) {
        for (field, value) in as_json(grpc).as_object().unwrap() {
            match field.as_str() {
                "time" => {
                    let time: jiff::Timestamp = http["time"].as_str().unwrap().parse().unwrap();
                    assert_eq!(*value, json!(time.as_second()));
                }
                "switchMs" | "durationMs" => {
                    let (grpc, http) = (value.as_f64().unwrap(), http[field].as_f64().unwrap());
                    assert!((grpc - http).abs() < 0.001, "{field}: {grpc} and {http}");
                }
                _ => assert_eq!(*value, http[field], "{field} of {http}"),
            }
        }
    }
    let phase = sidecar.http().get("/v1.0-mecha/phase").send().await.expect(200).json();
    let answer = client.get_phase(GetPhaseRequest {}).await.unwrap().into_inner();
    assert_eq!((phase["phase"].as_str(), answer.phase()), (Some("ready"), SidecarPhase::Ready));
    assert_eq!((answer.refused.len(), &grpc.refused), (1, &answer.refused));
    let refused = &answer.refused[0];
    assert_eq!(phase["refused"], json!([{"kind": refused.kind, "name": refused.name, "reason": refused.reason}]));
    assert_eq!((refused.kind.as_str(), refused.name.as_str()), ("Component", "store"));
    let degraded = &answer.degraded[0];
    assert_eq!(phase["degraded"], json!([{"name": degraded.name, "type": degraded.r#type, "cause": degraded.cause}]));
    assert_eq!((degraded.name.as_str(), degraded.r#type.as_str()), ("away", "state.sqlite/v1"));
    assert_eq!(answer.documents, None);
    let served = [("grpc_server_method", "/mecha.v1.Sidecar/ListSwaps"), ("grpc_server_status", "OK")];
    wait_series(&sidecar, "dapr_grpc_io_server_completed_rpcs", &served, 1.0).await;
}

#[tokio::test]
async fn token_and_lists_hold_on_both_fronts() {
    let sidecar = Sidecar::builder().env("DAPR_API_TOKEN", TOKEN).spawn();
    let mut sidecar = sidecar;
    sidecar.ready().await;
    sidecar.http().get("/v1.0-mecha/swaps").send().await.expect(401);
    sidecar.http().get("/v1.0-mecha/swaps").header("dapr-api-token", TOKEN).send().await.expect(200);
    let mut client = client(&sidecar).await;
    let status = client.list_swaps(ListSwapsRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut request = Request::new(ListSwapsRequest {});
    request.metadata_mut().insert("dapr-api-token", TOKEN.parse().unwrap());
    assert_eq!(client.list_swaps(request).await.unwrap().into_inner().generation, 0);

    let rules = "api:\n  allowed:\n  - {name: state, version: v1, protocol: http}\n  \
                 - {name: state, version: v1, protocol: grpc}\n";
    let sidecar = Sidecar::builder().configuration(rules).start().await;
    assert_ne!(sidecar.http().get("/v1.0-mecha/phase").send().await.status, 200);
    let mut client = self::client(&sidecar).await;
    assert_eq!(client.get_phase(GetPhaseRequest {}).await.unwrap_err().code(), Code::Unimplemented);
}
