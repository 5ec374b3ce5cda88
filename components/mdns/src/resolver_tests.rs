use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)), PORT);

fn instance(app_id: &str, host: &str, port: u16) -> Instance {
    Instance { app_id: app_id.into(), namespace: String::new(), host: host.into(), port, instance_id: "i".into() }
}

fn known(mdns: &Mdns, app_id: &str) -> Vec<String> {
    mdns.cache.lock().get(app_id).unwrap_or_default().iter().map(ToString::to_string).collect()
}

fn with_service(app_id: &str, at: &str) -> Mdns {
    let mdns = Mdns::new();
    mdns.me.lock().push(Service::new(app_id, "box", 1, at.parse().unwrap()).unwrap());
    mdns
}

#[tokio::test]
async fn a_question_is_answered_and_the_answer_understood() {
    let (asker, server) = (Mdns::new(), with_service("orders", "10.0.0.5:50002"));
    asker.cache.lock().ask("orders", ASK_GAP);
    let (answer, way) = server.handle(&browse("orders", 1).unwrap(), ELSEWHERE, false).remove(0);
    assert_eq!(way, Way::Multicast);
    assert!(server.handle(&browse("other", 2).unwrap(), ELSEWHERE, false).is_empty());
    assert!(asker.handle(&answer, ELSEWHERE, false).is_empty());
    assert_eq!(known(&asker, "orders"), ["10.0.0.5:50002"]);
    let goodbye = server.me.lock()[0].goodbye();
    asker.handle(&goodbye, ELSEWHERE, false);
    assert!(known(&asker, "orders").is_empty());
}

#[tokio::test(start_paused = true)]
async fn copies_are_answered_once_and_floods_are_cut() {
    let server = with_service("orders", "10.0.0.5:50002");
    let question = browse("orders", 1).unwrap();
    assert_eq!(server.handle(&question, ELSEWHERE, false).len(), 1);
    assert!(server.handle(&question, ELSEWHERE, false).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(server.handle(&question, ELSEWHERE, false).len(), 1);
    let answered = (2..500).filter(|id| !server.handle(&browse("orders", *id).unwrap(), ELSEWHERE, false).is_empty());
    assert!(answered.count() <= ANSWERS_PER_SECOND as usize);
}

#[tokio::test]
async fn a_legacy_asker_is_answered_alone() {
    let server = with_service("orders", "10.0.0.5:50002");
    let from = SocketAddr::new(ELSEWHERE.ip(), 40000);
    let (_, way) = server.handle(&browse("orders", 1).unwrap(), from, false).remove(0);
    assert_eq!(way, Way::Legacy);
}

#[tokio::test]
async fn an_id_that_is_no_dns_name_is_not_found_at_once() {
    let mdns = Mdns::new();
    let target = Target { app_id: &"x".repeat(64), namespace: "" };
    let e = timeout(Duration::from_millis(500), mdns.resolve(target)).await.unwrap().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound);
    let e = mdns.announce(instance(&"x".repeat(64), "", 1), Box::new(|| {}), CancellationToken::new()).await;
    assert_eq!(e.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn the_announced_address_is_one_that_peers_can_dial() {
    assert_eq!(address(&instance("a", "10.1.1.1", 1)).to_string(), "10.1.1.1:1");
    assert_eq!(address(&instance("a", "[::1]", 1)).to_string(), "[::1]:1");
    assert_eq!(address(&instance("a", "localhost", 1)).to_string(), "127.0.0.1:1");
    for host in ["", "0.0.0.0", "::", "some-name"] {
        assert!(!address(&instance("a", host, 1)).ip().is_unspecified(), "{host}");
    }
}

/// Whether this machine delivers multicast to itself at all; containers without it exist.
/// Asked without any code of this crate, so that a defect here cannot excuse itself.
fn multicast_works() -> bool {
    let check = || {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let receiver = std::net::UdpSocket::bind("0.0.0.0:0")?;
        receiver.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let sender = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket2::SockRef::from(&sender).set_multicast_if_v4(&Ipv4Addr::LOCALHOST)?;
        sender.send_to(b"?", (group, receiver.local_addr()?.port()))?;
        receiver.recv(&mut [0; 1])
    };
    check().is_ok()
}

struct Sidecar {
    mdns: Arc<Mdns>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn sidecar(app_id: &str, port: u16) -> Sidecar {
    let (mdns, stop) = (Arc::new(Mdns::new()), CancellationToken::new());
    let (up, is_up) = tokio::sync::oneshot::channel();
    let (this, token, me) = (mdns.clone(), stop.clone(), instance(app_id, "127.0.0.1", port));
    let tell = Box::new(move || up.send(()).expect("the test waits"));
    let task = tokio::spawn(async move { this.announce(me, tell, token).await });
    timeout(Duration::from_secs(10), is_up).await.unwrap().unwrap();
    Sidecar { mdns, stop, task }
}

async fn resolve(mdns: &Mdns, app_id: &str) -> Result<Vec<String>> {
    let found = mdns.resolve(Target { app_id, namespace: "" }).await?;
    Ok(found.iter().map(ToString::to_string).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_of_one_machine_find_each_other() {
    if !multicast_works() {
        eprintln!("this machine delivers no multicast to itself: only the behaviour without it is tested here");
        return;
    }
    let tag = std::process::id();
    let [a, b] = [format!("mdns-test-a-{tag}"), format!("mdns-test-b-{tag}")];
    let (one, two) = (sidecar(&a, 4001).await, sidecar(&b, 4002).await);
    assert_eq!(resolve(&one.mdns, &b).await.unwrap(), ["127.0.0.1:4002"]);
    assert_eq!(resolve(&two.mdns, &a).await.unwrap(), ["127.0.0.1:4001"]);
    assert_eq!(resolve(&one.mdns, &a).await.unwrap(), ["127.0.0.1:4001"]);

    // One that announces nothing reads the sockets itself.
    let silent = Mdns::new();
    assert_eq!(resolve(&silent, &b).await.unwrap(), ["127.0.0.1:4002"]);

    two.stop.cancel();
    two.task.await.unwrap().unwrap();
    let gone = async {
        while !known(&one.mdns, &b).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("the leave was not heard");
    assert_eq!(resolve(&one.mdns, &b).await.unwrap_err().kind(), ErrorKind::NotFound);
    one.stop.cancel();
    one.task.await.unwrap().unwrap();
    assert!(one.mdns.me.lock().is_empty());
}

#[tokio::test]
async fn the_app_itself_is_found_and_up_is_told_with_or_without_multicast() {
    let app_id = format!("mdns-test-self-{}", std::process::id());
    let one = sidecar(&app_id, 4003).await;
    assert_eq!(resolve(&one.mdns, &app_id).await.unwrap(), ["127.0.0.1:4003"]);
    one.stop.cancel();
    timeout(Duration::from_secs(5), one.task).await.unwrap().unwrap().unwrap();
    assert!(known(&one.mdns, &app_id).is_empty());
}

#[tokio::test]
async fn a_dropped_announcement_is_withdrawn() {
    let mdns = Mdns::new();
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let up = Box::new(move || tell.store(true, Ordering::SeqCst));
    let announce = mdns.announce(instance("mdns-test-dropped", "127.0.0.1", 4004), up, CancellationToken::new());
    let _ = timeout(Duration::from_millis(50), announce).await;
    assert!(mdns.me.lock().is_empty());
    assert!(known(&mdns, "mdns-test-dropped").is_empty());
}
