use proptest::prelude::*;

use super::*;

fn service(app_id: &str, at: &str) -> Service {
    Service::new(app_id, "laptop", 7, at.parse().unwrap()).unwrap()
}

fn only_found(bytes: &[u8]) -> Vec<Found> {
    match read(bytes).expect("readable") {
        Incoming::Found(found) => found,
        Incoming::Query(_) => panic!("not a response"),
    }
}

fn only_query(bytes: &[u8]) -> Query<'_> {
    match read(bytes).expect("readable") {
        Incoming::Query(query) => query,
        Incoming::Found(_) => panic!("not a query"),
    }
}

/// Bytes by hand, so that the test does not share a mistake with the code.
struct Raw(Vec<u8>);

impl Raw {
    fn header(id: u16, flags: u16, counts: [u16; 4]) -> Self {
        let words = [id, flags, counts[0], counts[1], counts[2], counts[3]];
        Self(words.iter().flat_map(|w| w.to_be_bytes()).collect())
    }

    fn name(mut self, name: &str) -> Self {
        for label in name.split('.') {
            self.0.push(label.len() as u8);
            self.0.extend(label.as_bytes());
        }
        self.0.push(0);
        self
    }

    fn words(mut self, words: &[u16]) -> Self {
        self.0.extend(words.iter().flat_map(|w| w.to_be_bytes()));
        self
    }

    fn record(self, name: &str, kind: u16, class: u16, ttl: u32, data: &[u8]) -> Self {
        let mut this = self.name(name).words(&[kind, class]);
        this.0.extend(ttl.to_be_bytes());
        this.0.extend((data.len() as u16).to_be_bytes());
        this.0.extend(data);
        this
    }
}

fn name_bytes(name: &str) -> Vec<u8> {
    Raw(Vec::new()).name(name).0
}

fn srv(port: u16, target: &str) -> Vec<u8> {
    [[0, 0, 0, 0].as_slice(), &port.to_be_bytes(), &name_bytes(target)].concat()
}

/// An answer as the incumbent's library sends it: PTR, then SRV, TXT and A as additional records.
fn incumbent(app: &str, text: &str, ttl: u32) -> Vec<u8> {
    let (service, instance) = (format!("{app}.local"), format!("box:42.{app}.local"));
    let text = [&[text.len() as u8], text.as_bytes()].concat();
    Raw::header(99, 0x8400, [1, 1, 0, 3])
        .name(&service)
        .words(&[12, 1])
        .record(&service, 12, 1, ttl, &name_bytes(&instance))
        .record(&instance, 33, 1, ttl, &srv(50002, "box.local"))
        .record(&instance, 16, 1, ttl, &text)
        .record("box.local", 1, 1, ttl, &[10, 1, 2, 3])
        .0
}

#[test]
fn reads_an_answer_of_the_incumbent() {
    let want = Found {
        app_id: "myapp".into(),
        instance: "box:42.myapp.local".into(),
        addresses: vec!["10.1.2.3:50002".parse().unwrap()],
        gone: false,
    };
    assert_eq!(only_found(&incumbent("myapp", "myapp", 3200)), std::slice::from_ref(&want));
    assert_eq!(only_found(&incumbent("myapp", "myapp", 0)), [Found { gone: true, ..want }]);
}

#[test]
fn a_text_that_does_not_fit_the_name_is_not_believed() {
    assert_eq!(only_found(&incumbent("myapp", "other", 1)), []);
    assert_eq!(only_found(&incumbent("notmyapp", "myapp", 1)), []);
    assert_eq!(only_found(&incumbent("myapp", "", 1)), []);
}

#[test]
fn understands_the_incumbents_question_and_answers_it() {
    // Id, no flags, one question: PTR of the service, class IN.
    let bytes = Raw::header(4711, 0, [1, 0, 0, 0]).name("Orders.local").words(&[12, 1]).0;
    let me = service("orders", "10.0.0.5:50002");
    let query = only_query(&bytes);
    assert_eq!(query.asks(&me), Some((Asked::Browse, false)));
    let answer = me.answer(Asked::Browse, Way::Multicast, &query);
    let packet = Packet::parse(&answer).unwrap();
    assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER));
    assert!(matches!(packet.answers[..], [ResourceRecord { rdata: RData::PTR(_), .. }]));
    let kinds: Vec<TYPE> = packet.additional_records.iter().map(|r| r.rdata.type_code()).collect();
    assert_eq!(kinds, [TYPE::SRV, TYPE::TXT, TYPE::A]);
    let found = only_found(&answer);
    assert!(me.is(&found[0]));
    assert_eq!(found[0].addresses, ["10.0.0.5:50002".parse().unwrap()]);
    assert_eq!(found[0].instance, "laptop:7.orders.local");
}

#[test]
fn an_asker_that_wants_its_own_answer_is_told_apart() {
    let me = service("orders", "[fd00::5]:1");
    let bytes = Raw::header(1, 0, [1, 0, 0, 0]).name("orders.local").words(&[12, 0x8001]).0;
    let query = only_query(&bytes);
    assert_eq!(query.asks(&me), Some((Asked::Browse, true)));
    let answer = me.answer(Asked::Browse, Way::Legacy, &query);
    let packet = Packet::parse(&answer).unwrap();
    assert_eq!((packet.id(), packet.questions.len(), packet.answers[0].ttl), (1, 1, LEGACY_TTL));
    assert_eq!(only_found(&answer)[0].addresses, ["[fd00::5]:1".parse().unwrap()]);
}

#[test]
fn other_questions_are_not_ours() {
    let me = service("orders", "10.0.0.5:1");
    for (name, kind, want) in [
        ("orders.local", 1, None),
        ("order.local", 12, None),
        ("x.orders.local", 12, None),
        ("orders.local", 255, Some(Asked::Browse)),
        ("laptop:7.orders.local", 33, Some(Asked::Instance)),
        ("laptop:7.orders.local", 12, None),
        ("_services._dns-sd._udp.local", 12, Some(Asked::Types)),
    ] {
        let bytes = Raw::header(0, 0, [1, 0, 0, 0]).name(name).words(&[kind, 1]).0;
        assert_eq!(only_query(&bytes).asks(&me).map(|a| a.0), want, "{name} {kind}");
    }
}

#[test]
fn a_probe_wants_no_answer() {
    let bytes = Raw::header(0, 0, [1, 0, 1, 0]).name("orders.local").words(&[12, 1]).record(
        "laptop:7.orders.local",
        33,
        1,
        120,
        &srv(1, "a.local"),
    );
    assert!(read(&bytes.0).is_none());
}

#[test]
fn announcement_and_goodbye_carry_everything() {
    let me = service("my.app", "127.0.0.1:3500");
    let found = only_found(&me.announcement());
    assert!(me.is(&found[0]) && !found[0].gone);
    assert_eq!(found[0].app_id, "my.app");
    let gone = only_found(&me.goodbye());
    assert!(gone[0].gone);
    assert!(!me.is(&Found { addresses: vec!["127.0.0.1:3501".parse().unwrap()], ..found[0].clone() }));
}

#[test]
fn names_that_dns_cannot_hold_are_refused_and_long_hosts_are_cut() {
    let at = "10.0.0.1:1".parse().unwrap();
    for app_id in ["", ".", "a..b", "a\\b", "a=b", &"x".repeat(64), &"x.".repeat(200)] {
        assert!(Service::new(app_id, "h", 1, at).is_err(), "{app_id}");
    }
    for host in ["", ".", &"h".repeat(64), "a.b.c", &"ü".repeat(40)] {
        let me = Service::new("app", host, u32::MAX, at).unwrap();
        assert!(me.is(&only_found(&me.announcement())[0]), "{host}");
    }
    assert!(browse(&"x".repeat(64), 1).is_none());
    assert_eq!(
        browse("myapp", 0x0102).unwrap(),
        Raw::header(0x0102, 0, [1, 0, 0, 0]).name("myapp.local").words(&[12, 1]).0
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_ignored(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let me = service("app", "10.0.0.1:1");
        if let Some(Incoming::Query(query)) = read(&bytes) {
            let _ = query.asks(&me);
        }
    }

    #[test]
    fn a_damaged_answer_is_read_or_ignored(at in 0usize..120, byte: u8, cut in 0usize..120) {
        let mut bytes = incumbent("myapp", "myapp", 120);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
        bytes.truncate(cut);
        let _ = read(&bytes);
    }

    #[test]
    fn any_app_id_is_refused_or_found_again(app_id in "[a-zA-Z0-9._-]{1,40}", port in 1u16..) {
        if let Ok(me) = Service::new(&app_id, "host", 1, SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), port)) {
            let found = only_found(&me.announcement());
            prop_assert!(me.is(&found[0]), "{:?}", found);
        }
    }
}
