use std::time::Duration;

use mecha_components_api::{Consistency, ErrorKind};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

#[derive(Debug)]
struct Hand(Mutex<SystemTime>);

impl Clock for Hand {
    fn now(&self) -> SystemTime {
        *self.0.lock()
    }
}

fn store() -> (InMemoryState, Arc<Hand>) {
    let clock = Arc::new(Hand(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000))));
    (InMemoryState { clock: clock.clone(), table: RwLock::default() }, clock)
}

static NONE: Metadata = Metadata::new();

fn set<'a>(key: &'a str, value: &'a str) -> SetState<'a> {
    SetState {
        key,
        value: Value::Json(Bytes::copy_from_slice(value.as_bytes())),
        etag: None,
        concurrency: Concurrency::LastWrite,
        consistency: Consistency::Eventual,
        ttl: None,
        content_type: None,
        metadata: &NONE,
    }
}

fn delete<'a>(key: &'a str, etag: Option<&'a str>) -> DeleteState<'a> {
    let (concurrency, consistency) = (Concurrency::LastWrite, Consistency::Eventual);
    DeleteState { key, etag, concurrency, consistency, metadata: &NONE }
}

async fn get(store: &InMemoryState, key: &str) -> Option<Item> {
    store.get(GetState { key, consistency: Consistency::Eventual, metadata: &NONE }).await.unwrap()
}

#[tokio::test]
async fn what_was_set_comes_back_and_every_write_has_its_own_etag() {
    let (store, _) = store();
    assert_eq!(get(&store, "k").await, None);
    store.set(set("k", "1")).await.unwrap();
    let first = get(&store, "k").await.unwrap();
    assert_eq!((&first.value[..], first.expires), (&b"1"[..], None));
    store.set(set("k", "1")).await.unwrap();
    let second = get(&store, "k").await.unwrap();
    assert_ne!(first.etag, second.etag);
    assert!(Uuid::parse_str(&second.etag.unwrap()).is_ok());
}

#[tokio::test]
async fn an_empty_value_is_not_an_absent_one() {
    let (store, _) = store();
    store.set(set("k", "")).await.unwrap();
    assert!(get(&store, "k").await.unwrap().value.is_empty());
}

#[tokio::test]
async fn a_stale_or_malformed_etag_changes_nothing() {
    let (store, _) = store();
    store.set(set("k", "1")).await.unwrap();
    let etag = get(&store, "k").await.unwrap().etag.unwrap();
    store.set(SetState { etag: Some(&etag), ..set("k", "2") }).await.unwrap();
    for stale in [etag.as_str(), "x", "\u{1F600}"] {
        let e = store.set(SetState { etag: Some(stale), ..set("k", "3") }).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert_eq!(store.delete(delete("k", Some(stale))).await.unwrap_err().kind(), ErrorKind::Conflict);
    }
    let e = store.set(SetState { etag: Some(&etag), ..set("absent", "3") }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert_eq!(&get(&store, "k").await.unwrap().value[..], b"2");
}

#[tokio::test]
async fn first_write_wins_once_until_the_item_expires() {
    let (store, clock) = store();
    let first = |v| SetState {
        concurrency: Concurrency::FirstWrite,
        ttl: Some(Ttl::After(Duration::from_secs(1))),
        ..set("k", v)
    };
    store.set(first("1")).await.unwrap();
    assert_eq!(store.set(first("2")).await.unwrap_err().kind(), ErrorKind::Conflict);
    *clock.0.lock() += Duration::from_secs(1);
    store.set(first("3")).await.unwrap();
    assert_eq!(&get(&store, "k").await.unwrap().value[..], b"3");
}

#[tokio::test]
async fn expires_to_the_moment_everywhere() {
    let (store, clock) = store();
    let end = clock.now() + Duration::from_secs(5);
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(5))), ..set("k", "1") }).await.unwrap();
    let item = get(&store, "k").await.unwrap();
    assert_eq!(item.expires, Some(end));
    *clock.0.lock() = end - Duration::from_nanos(1);
    assert!(get(&store, "k").await.is_some());
    *clock.0.lock() = end;
    assert_eq!(get(&store, "k").await, None);
    assert!(store.keys("", 10, None).await.unwrap().keys.is_empty());
    let reqs = [GetState { key: "k", consistency: Consistency::Eventual, metadata: &NONE }];
    assert_eq!(store.get_many(&reqs).await.unwrap().remove(0).unwrap(), None);
    let e = store.set(SetState { etag: item.etag.as_deref(), ..set("k", "2") }).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_write_without_ttl_clears_a_former_one() {
    let (store, clock) = store();
    for ttl in [None, Some(Ttl::Never)] {
        store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(1))), ..set("k", "1") }).await.unwrap();
        store.set(SetState { ttl, ..set("k", "2") }).await.unwrap();
        *clock.0.lock() += Duration::from_secs(2);
        assert_eq!(get(&store, "k").await.unwrap().expires, None);
    }
    store.set(SetState { ttl: Some(Ttl::After(Duration::MAX)), ..set("k", "3") }).await.unwrap();
    assert!(get(&store, "k").await.is_some());
}

#[tokio::test]
async fn writing_frees_what_expired() {
    let (store, clock) = store();
    for i in 0..1000 {
        let key = format!("old{i}");
        store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(1))), ..set(&key, "1") }).await.unwrap();
    }
    *clock.0.lock() += Duration::from_secs(2);
    for i in 0..100 {
        store.set(set(&format!("new{i}"), "1")).await.unwrap();
    }
    let table = store.table.read();
    assert_eq!((table.items.len(), table.due.len()), (100, 0));
}

#[tokio::test]
async fn a_transaction_is_whole_or_not_at_all() {
    let (store, _) = store();
    store.set(set("a", "1")).await.unwrap();
    store.set(SetState { ttl: Some(Ttl::After(Duration::from_secs(9))), ..set("b", "1") }).await.unwrap();
    let before = (get(&store, "a").await, get(&store, "b").await);
    let ops = vec![
        TransactOp::Set(set("a", "2")),
        TransactOp::Delete(delete("b", None)),
        TransactOp::Set(set("c", "new")),
        TransactOp::Set(set("a", "3")),
        TransactOp::Delete(delete("a", Some("stale"))),
    ];
    assert_eq!(TransactState::transact(&store, ops, &NONE).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!((get(&store, "a").await, get(&store, "b").await, get(&store, "c").await), (before.0, before.1, None));
    assert_eq!(store.table.read().due.len(), 1);

    let ops = vec![
        TransactOp::Set(set("a", "2")),
        TransactOp::Delete(delete("b", None)),
        TransactOp::Delete(delete("b", None)),
    ];
    TransactState::transact(&store, ops, &NONE).await.unwrap();
    assert_eq!(&get(&store, "a").await.unwrap().value[..], b"2");
    assert_eq!(get(&store, "b").await, None);
}

#[tokio::test]
async fn keys_come_in_pages_and_stay_under_the_prefix() {
    let (store, _) = store();
    for key in ["app||a", "app||b", "app||c", "apq", "ap", "zz"] {
        store.set(set(key, "1")).await.unwrap();
    }
    let page = store.keys("app||", 2, None).await.unwrap();
    assert_eq!((page.keys, page.next.as_deref()), (vec!["app||a".into(), "app||b".to_owned()], Some("app||b")));
    let page = store.keys("app||", 2, Some("app||b")).await.unwrap();
    assert_eq!((page.keys, page.next), (vec!["app||c".to_owned()], None));
    assert_eq!(store.keys("app||", 9, Some("a")).await.unwrap().keys.len(), 3);
    assert!(store.keys("app||", 9, Some("zz")).await.unwrap().keys.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Set { key: u8, value: u8, ttl: Option<u64>, etag: Guess, first: bool },
    Delete { key: u8, etag: Guess },
    Pass(u64),
}

#[derive(Clone, Copy, Debug)]
enum Guess {
    None,
    Right,
    Wrong,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = || prop_oneof![3 => Just(Guess::None), 2 => Just(Guess::Right), 1 => Just(Guess::Wrong)];
    let set = (0..4u8, any::<u8>(), prop::option::of(1..5u64), guess(), any::<bool>())
        .prop_map(|(key, value, ttl, etag, first)| Step::Set { key, value, ttl, etag, first });
    let delete = (0..4u8, guess()).prop_map(|(key, etag)| Step::Delete { key, etag });
    prop::collection::vec(prop_oneof![4 => set, 2 => delete, 1 => (0..4u64).prop_map(Step::Pass)], 1..40)
}

proptest! {
    /// The store against a plain map with deadlines.
    #[test]
    fn behaves_like_a_map_with_deadlines(steps in steps()) {
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        rt.block_on(async {
            let (store, clock) = store();
            let mut model: BTreeMap<u8, (u8, Option<SystemTime>)> = BTreeMap::new();
            for step in steps {
                let now = clock.now();
                model.retain(|_, (_, end)| end.is_none_or(|e| now < e));
                match step {
                    Step::Pass(seconds) => *clock.0.lock() += Duration::from_secs(seconds),
                    Step::Set { key, value, ttl, etag, first } => {
                        let name = key.to_string();
                        let current = get(&store, &name).await.and_then(|i| i.etag);
                        let etag = match etag { Guess::None => None, Guess::Right => current, Guess::Wrong => Some("no".into()) };
                        let ok = match (&etag, model.get(&key)) {
                            (Some(e), found) => e != "no" && found.is_some(),
                            (None, Some(_)) => !first,
                            (None, None) => true,
                        };
                        let concurrency = if first { Concurrency::FirstWrite } else { Concurrency::LastWrite };
                        let text = value.to_string();
                        let req = SetState {
                            etag: etag.as_deref(),
                            concurrency,
                            ttl: ttl.map(|s| Ttl::After(Duration::from_secs(s))),
                            ..set(&name, &text)
                        };
                        assert_eq!(store.set(req).await.is_ok(), ok);
                        if ok {
                            model.insert(key, (value, ttl.map(|s| now + Duration::from_secs(s))));
                        }
                    }
                    Step::Delete { key, etag } => {
                        let name = key.to_string();
                        let current = get(&store, &name).await.and_then(|i| i.etag);
                        let etag = match etag { Guess::None => None, Guess::Right => current, Guess::Wrong => Some("no".into()) };
                        let ok = etag.as_deref().is_none_or(|e| e != "no" && model.contains_key(&key));
                        assert_eq!(store.delete(delete(&name, etag.as_deref())).await.is_ok(), ok);
                        if ok {
                            model.remove(&key);
                        }
                    }
                }
                let now = clock.now();
                for key in 0..4u8 {
                    let want = model.get(&key).filter(|(_, end)| end.is_none_or(|e| now < e));
                    let have = get(&store, &key.to_string()).await;
                    assert_eq!(have.as_ref().map(|i| &i.value[..]), want.map(|(v, _)| v.to_string()).as_deref().map(str::as_bytes));
                    assert_eq!(have.and_then(|i| i.expires), want.and_then(|(_, end)| *end));
                }
            }
        });
    }
}
