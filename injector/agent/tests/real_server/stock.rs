//! What a client of Dapr's own protocol sees.

use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, Live};
use mecha_proto::operator::*;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::cluster::{Cluster, LIMIT, binding, component, dial, entry, eventually, names, read};

async fn next(updates: &mut Streaming<ComponentUpdateEvent>) -> (String, ResourceEventType) {
    let event = timeout(LIMIT, updates.message()).await.expect("an event comes").unwrap().unwrap();
    (names([&event.component]).remove(0), event.r#type())
}

fn ask(namespace: &str) -> ListComponentsRequest {
    ListComponentsRequest { namespace: namespace.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gets_what_is_in_its_namespace_and_scope_and_nothing_else() {
    let Some(cluster) = Cluster::start().await else { return };
    let (agent, role) = cluster.agent("a").await;
    cluster.apply(&component("shop", "cache", &[], json!([])));
    cluster.apply(&component("shop", "ledger", &["billing"], json!([])));
    cluster.apply(&component("other", "foreign", &[], json!([])));
    let orders = component("shop", "orders", &["cart"], json!([]));
    cluster.apply(&binding(1, json!([entry("orders", 1, &orders)])));

    let mut cart = cluster.stock(&agent, "shop", "cart").await;
    let listed = |client: OperatorClient| async move {
        let mut client = client;
        names(&client.list_components(ask("shop")).await.unwrap().into_inner().components)
    };
    eventually("what cart sees", || async { (listed(cart.clone()).await == ["cache", "orders"]).then_some(()) }).await;
    // Whoever asks for no namespace asks for its own.
    let all = cart.list_components(ask("")).await.unwrap().into_inner().components;
    assert_eq!(names(&all), ["cache", "orders"]);
    assert_eq!(read(&all[1])["kind"], "Component");
    assert_eq!(listed(cluster.stock(&agent, "shop", "billing").await).await, ["cache", "ledger"]);
    // Who takes an app id that nothing is scoped to gets what is for everybody.
    assert_eq!(listed(cluster.stock(&agent, "shop", "intruder").await).await, ["cache"]);
    let refused = cart.list_components(ask("other")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = cart.component_update(ComponentUpdateRequest { namespace: "other".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    // Without a certificate, or with one of another authority, nothing is said at all.
    let nobody = Live::new(cluster.bundle());
    let forged = Live::new(cluster.bundle());
    forged.set_identity(Ca::new("another").identity("spiffe://public/ns/shop/cart"));
    for who in [nobody, forged] {
        let answer = match dial(agent.address(), who).await {
            Ok(channel) => operator_client::OperatorClient::new(channel).list_components(ask("shop")).await,
            Err(_) => continue,
        };
        answer.unwrap_err();
    }
    // And an agent of another authority is not believed.
    let stranger = Live::new(Bundle::from_pem(&Ca::new("another").root_pem()).unwrap());
    stranger.set_identity(cluster.ca.identity("spiffe://public/ns/shop/cart"));
    assert!(dial(agent.address(), stranger).await.is_err());

    let request = ComponentUpdateRequest { namespace: "shop".into() };
    let mut updates = cart.component_update(request).await.unwrap().into_inner();
    let mut changed = component("shop", "cache", &[], json!([{"name": "size", "value": "2"}]));
    cluster.apply(&changed);
    assert_eq!(next(&mut updates).await, ("cache".to_owned(), ResourceEventType::Updated));
    // What is not for cart makes no event: the next one is about what comes after it.
    cluster.apply(&component("shop", "books", &["billing"], json!([])));
    cluster.apply(&component("shop", "extra", &["cart"], json!([])));
    assert_eq!(next(&mut updates).await, ("extra".to_owned(), ResourceEventType::Created));
    changed["scopes"] = json!(["billing"]);
    cluster.apply(&changed);
    assert_eq!(next(&mut updates).await, ("cache".to_owned(), ResourceEventType::Deleted));
    cluster.apply(&binding(2, json!([])));
    assert_eq!(next(&mut updates).await, ("orders".to_owned(), ResourceEventType::Deleted));

    // The agent stops: streams end with a word, and everything within a bound.
    timeout(LIMIT, role.tasks.drain()).await.expect("the agent drains");
    let ended = timeout(LIMIT, updates.message()).await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
}

type OperatorClient = operator_client::OperatorClient<tonic::transport::Channel>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_by_hand_are_served_also_when_their_definitions_come_later() {
    let Some(cluster) = Cluster::without_dapr().await else { return };
    let (agent, _role) = cluster.agent("a").await;
    let mut cart = cluster.stock(&agent, "shop", "cart").await;
    assert!(cart.list_components(ask("shop")).await.unwrap().into_inner().components.is_empty());

    cluster.install_dapr();
    let header = |kind: &str, version: &str, name: &str| {
        json!({"apiVersion": format!("dapr.io/{version}"), "kind": kind,
               "metadata": {"name": name, "namespace": "shop"}})
    };
    let with = |kind: &str, version: &str, name: &str, spec: serde_json::Value| {
        let mut document = header(kind, version, name);
        document["spec"] = spec;
        cluster.apply(&document);
    };
    with("Subscription", "v1alpha1", "old", json!({"pubsubname": "events", "topic": "t", "route": "/t"}));
    with("Subscription", "v2alpha1", "new", json!({"pubsubname": "events", "topic": "t", "routes": {"default": "/n"}}));
    with("Configuration", "v1alpha1", "main", json!({"tracing": {"samplingRate": "1"}}));
    with("Resiliency", "v1alpha1", "policies", json!({"policies": {}}));
    with("HTTPEndpoint", "v1alpha1", "bank", json!({"baseUrl": "https://bank.example"}));
    cluster.apply(&component("shop", "cache", &[], json!([])));

    let namespace = || "shop".to_owned();
    let subscriptions = eventually("both subscriptions", || {
        let mut cart = cart.clone();
        async move {
            let all = cart.list_subscriptions_v2(ListSubscriptionsRequest { namespace: namespace() }).await.unwrap();
            let all = all.into_inner().subscriptions;
            (all.len() == 2).then_some(all)
        }
    })
    .await;
    let routes: Vec<_> = subscriptions.iter().map(|s| read(s)["spec"]["routes"]["default"].clone()).collect();
    assert_eq!(routes, ["/n", "/t"]);
    assert_eq!(cart.list_subscriptions(()).await.unwrap().into_inner().subscriptions, subscriptions);
    eventually("the other kinds", || {
        let mut cart = cart.clone();
        async move {
            let lists = [
                cart.list_components(ask("shop")).await.unwrap().into_inner().components,
                cart.list_resiliency(ListResiliencyRequest { namespace: namespace() })
                    .await
                    .unwrap()
                    .into_inner()
                    .resiliencies,
                cart.list_http_endpoints(ListHttpEndpointsRequest { namespace: namespace() })
                    .await
                    .unwrap()
                    .into_inner()
                    .http_endpoints,
            ];
            let main = GetConfigurationRequest { name: "main".into(), namespace: namespace() };
            let main = cart.get_configuration(main).await.ok()?.into_inner().configuration;
            assert_eq!(read(&main)["spec"]["tracing"]["samplingRate"], "1");
            (lists.iter().map(names).collect::<Vec<_>>() == [["cache"], ["policies"], ["bank"]]).then_some(())
        }
    })
    .await;
    let policies = GetResiliencyRequest { name: "policies".into(), namespace: namespace() };
    assert_eq!(names([&cart.get_resiliency(policies).await.unwrap().into_inner().resiliency]), ["policies"]);
    let none = GetConfigurationRequest { name: "none".into(), namespace: namespace() };
    assert_eq!(cart.get_configuration(none).await.unwrap_err().code(), Code::NotFound);
    // What is not built says so, and nothing waits for it.
    let servers = cart.list_mcp_servers(ListMcpServersRequest { namespace: namespace() }).await.unwrap();
    assert!(servers.into_inner().mcp_servers.is_empty());
    let follow = cart.mcp_server_update(McpServerUpdateRequest { namespace: namespace() }).await.unwrap_err();
    assert_eq!(follow.code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_claim_moves_a_stock_sidecar_gets_the_side_that_owns_it() {
    let Some(cluster) = Cluster::start().await else { return };
    let side = |kind: &str| {
        let mut document = component("shop", "orders", &[], json!([]));
        document["spec"]["type"] = kind.into();
        document
    };
    let moving = |revision: i64, phase: &str| {
        let mut entry = entry("orders", revision, &side("state.new"));
        entry["previousDocument"] = side("state.old").to_string().into();
        entry["swap"] = json!({"from": "a", "to": "b", "strategy": "Drain", "phase": phase,
                               "startedAt": "2026-11-21T03:00:00Z"});
        binding(revision, json!([entry]))
    };
    cluster.apply(&moving(1, "Prepare"));
    let (agent, _role) = cluster.agent("a").await;
    let mut cart = cluster.stock(&agent, "shop", "cart").await;
    let listed = cart.list_components(ask("shop")).await.unwrap().into_inner().components;
    assert_eq!(read(&listed[0])["spec"]["type"], "state.old");
    let mut updates =
        cart.component_update(ComponentUpdateRequest { namespace: "shop".into() }).await.unwrap().into_inner();
    for (revision, phase, kind) in [(2, "Switch", "state.new"), (3, "RollBack", "state.old")] {
        cluster.apply(&moving(revision, phase));
        let event = timeout(LIMIT, updates.message()).await.expect(phase).unwrap().unwrap();
        assert_eq!(event.r#type(), ResourceEventType::Updated);
        assert_eq!(read(&event.component)["spec"]["type"], kind);
    }
}
