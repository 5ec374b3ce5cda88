//! State: what is written comes back, byte for byte, once, in order, and only to whom it belongs.

use std::time::Duration;

use mecha_tests::{Expect, Item, Op, Sidecar, component, escape, wait_until};
use serde_json::json;
use tonic::Code;

use crate::support::{memory_store, sqlite_store};

/// Both stores of this wave that need no server.
async fn with_stores() -> Sidecar {
    let builder = Sidecar::builder().app_id("app");
    let file = builder.folder().join("state.db");
    builder.component(memory_store("memory")).component(sqlite_store("sqlite", &file)).start().await
}

const STORES: [&str; 2] = ["memory", "sqlite"];

#[tokio::test]
async fn json_values_come_back_byte_for_byte() {
    let sidecar = with_stores().await;
    let values = [
        r#"{"b":1,"a":2}"#,
        r#"{"price":2.50,"big":12345678901234567890123,"exp":1E+3}"#,
        r#""quotes \" and caf\u00e9 and é""#,
        r#"[ 1 , 2,3 ]"#,
        "true",
        "0",
        "-0.0",
        "null",
        r#""""#,
        "{}",
        r#"{"a":1,"a":2}"#,
    ];
    for store in STORES {
        for api in sidecar.apis().await {
            for (number, value) in values.iter().enumerate() {
                let key = format!("exact-{}-{number}", api.name());
                api.save(store, &[Item::new(&key, *value)]).await.unwrap();
                let got = api.get(store, &key).await.unwrap().unwrap();
                assert_eq!(got.text(), *value, "{store} over {}", api.name());
                let in_transaction = format!("{key}-t");
                api.transact(store, &[Op::Upsert(Item::new(&in_transaction, *value))]).await.unwrap();
                let got = api.get(store, &in_transaction).await.unwrap().unwrap();
                assert_eq!(got.text(), *value, "{store} over {} in a transaction", api.name());
            }
        }
    }
}

#[tokio::test]
async fn grpc_values_may_be_any_bytes() {
    let sidecar = with_stores().await;
    let [_, grpc] = sidecar.apis().await;
    for store in STORES {
        for (number, value) in [&b"\x00\xff\xfe plain"[..], b"{\"broken\":", b"\"quoted\"", b"text"].iter().enumerate()
        {
            let key = format!("raw-{number}");
            grpc.save(store, &[Item::new(&key, value.to_vec())]).await.unwrap();
            assert_eq!(grpc.get(store, &key).await.unwrap().unwrap().value, *value, "{store}");
        }
    }
}

#[tokio::test]
async fn both_fronts_see_the_same_values() {
    let sidecar = with_stores().await;
    let [http, grpc] = sidecar.apis().await;
    for store in STORES {
        http.save(store, &[Item::new("by-http", r#"{"n":1}"#)]).await.unwrap();
        let there = grpc.get(store, "by-http").await.unwrap().unwrap();
        assert_eq!(there.text(), r#"{"n":1}"#);
        assert_eq!(there.etag, http.get(store, "by-http").await.unwrap().unwrap().etag);
        grpc.save(store, &[Item::new("by-grpc", "42")]).await.unwrap();
        assert_eq!(http.get(store, "by-grpc").await.unwrap().unwrap().text(), "42");
    }
}

#[tokio::test]
async fn http_answers_carry_type_and_etag() {
    let sidecar = with_stores().await;
    let [http, _] = sidecar.apis().await;
    http.save("memory", &[Item::new("k", "1")]).await.unwrap();
    let reply = sidecar.http().get("/v1.0/state/memory/k").send().await.expect(200);
    assert_eq!(reply.header("content-type"), "application/json");
    assert!(!reply.header("etag").is_empty());
    let none = sidecar.http().get("/v1.0/state/memory/absent").send().await.expect(204);
    assert!(none.body.is_empty() && none.header("etag").is_empty());
}

#[tokio::test]
async fn delete_is_idempotent() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = format!("gone-{}", api.name());
            api.delete(store, &key, None).await.unwrap();
            api.save(store, &[Item::new(&key, "1")]).await.unwrap();
            api.delete(store, &key, None).await.unwrap();
            assert!(api.get(store, &key).await.unwrap().is_none());
            api.delete(store, &key, None).await.unwrap();
        }
    }
}

#[tokio::test]
async fn empty_lists_are_fine() {
    let sidecar = with_stores().await;
    for api in sidecar.apis().await {
        api.save("memory", &[]).await.unwrap();
        api.transact("memory", &[]).await.unwrap();
        assert!(api.bulk_get("memory", &[]).await.unwrap().is_empty());
    }
    assert_eq!(sidecar.http().post_json("/v1.0/state/memory/bulk", &json!({"keys": []})).send().await.text(), "[]");
}

#[tokio::test]
async fn a_stale_etag_is_refused_and_changes_nothing() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = format!("etag-{}", api.name());
            api.save(store, &[Item::new(&key, "1")]).await.unwrap();
            let first = api.get(store, &key).await.unwrap().unwrap().etag;
            api.save(store, &[Item::new(&key, "2").etag(&first)]).await.unwrap();
            let second = api.get(store, &key).await.unwrap().unwrap().etag;
            assert_ne!(first, second);
            let fault = api.save(store, &[Item::new(&key, "3").etag(&first)]).await.unwrap_err();
            let message =
                format!("failed saving state in state store {store}: possible etag mismatch. error from state store…");
            fault.is(&Expect {
                http: 409,
                grpc: Code::Aborted,
                code: "ERR_STATE_SAVE",
                reason: "ERR_STATE_SAVE",
                message: message.leak(),
            });
            let fault = api.delete(store, &key, Some(&first)).await.unwrap_err();
            let message =
                format!("failed deleting state with key {key}: possible etag mismatch. error from state store…");
            fault.is(&Expect {
                http: 409,
                grpc: Code::Aborted,
                code: "ERR_STATE_DELETE",
                reason: "ERR_STATE_DELETE",
                message: message.leak(),
            });
            assert_eq!(api.get(store, &key).await.unwrap().unwrap().text(), "2");
            api.delete(store, &key, Some(&second)).await.unwrap();
            assert!(api.get(store, &key).await.unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn an_empty_etag_counts_as_none() {
    let sidecar = with_stores().await;
    for api in sidecar.apis().await {
        let key = format!("empty-etag-{}", api.name());
        api.save("memory", &[Item::new(&key, "1").etag("")]).await.unwrap();
        api.save("memory", &[Item::new(&key, "2").etag("")]).await.unwrap();
        api.delete("memory", &key, Some("")).await.unwrap();
        assert!(api.get("memory", &key).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn first_write_wins_once() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = format!("first-{}", api.name());
            api.save(store, &[Item::new(&key, "1").first_write()]).await.unwrap();
            let fault = api.save(store, &[Item::new(&key, "2").first_write()]).await.unwrap_err();
            assert!(fault.http == Some(409) || fault.grpc == Some(Code::Aborted), "{fault:?}");
            assert_eq!(api.get(store, &key).await.unwrap().unwrap().text(), "1");
            api.save(store, &[Item::new(&key, "3")]).await.unwrap();
            assert_eq!(api.get(store, &key).await.unwrap().unwrap().text(), "3");
        }
    }
}

#[tokio::test]
async fn one_writer_of_many_wins_with_an_etag() {
    let sidecar = with_stores().await;
    let [api, _] = sidecar.apis().await;
    for store in STORES {
        api.save(store, &[Item::new("race", "0")]).await.unwrap();
        let etag = api.get(store, "race").await.unwrap().unwrap().etag;
        let writers = (1..=8).map(|n| {
            let (api, etag) = (api.clone(), etag.clone());
            tokio::spawn(async move { api.save(store, &[Item::new("race", n.to_string()).etag(&etag)]).await })
        });
        let mut won = 0;
        for writer in writers.collect::<Vec<_>>() {
            match writer.await.unwrap() {
                Ok(()) => won += 1,
                Err(fault) => assert_eq!(fault.http, Some(409), "{fault:?}"),
            }
        }
        assert_eq!(won, 1, "{store}");
    }
}

#[tokio::test]
async fn values_end_with_their_ttl() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = format!("ttl-{}", api.name());
            api.save(store, &[Item::new(&key, "1").metadata("ttlInSeconds", "1")]).await.unwrap();
            let expiry = api.get(store, &key).await.unwrap().map(|got| got.metadata["ttlExpireTime"].clone());
            let expiry = expiry.expect("not expired yet");
            assert!(expiry.contains('T') && expiry.ends_with('Z'), "RFC 3339: {expiry}");
            wait_until(Duration::from_secs(10), "the value to expire", || async {
                api.get(store, &key).await.unwrap().is_none()
            })
            .await;
            assert!(api.bulk_get(store, &[&key]).await.unwrap()[0].etag.is_empty());
            // An expired key is absent for first-write too.
            api.save(store, &[Item::new(&key, "2").first_write()]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_ttl_of_minus_one_clears_the_former_one() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = format!("keep-{}", api.name());
            api.save(store, &[Item::new(&key, "1").metadata("ttlInSeconds", "100")]).await.unwrap();
            assert!(api.get(store, &key).await.unwrap().unwrap().metadata.contains_key("ttlExpireTime"));
            api.save(store, &[Item::new(&key, "2").metadata("ttlInSeconds", "-1")]).await.unwrap();
            assert!(!api.get(store, &key).await.unwrap().unwrap().metadata.contains_key("ttlExpireTime"));
        }
    }
}

#[tokio::test]
async fn bulk_reads_keep_the_order_asked() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let (one, two) = (format!("one-{}", api.name()), format!("two-{}", api.name()));
            api.save(store, &[Item::new(&one, "1"), Item::new(&two, r#"{"n": 2}"#)]).await.unwrap();
            let got = api.bulk_get(store, &[&two, "absent", &one, &two]).await.unwrap();
            let keys: Vec<&str> = got.iter().map(|item| item.key.as_str()).collect();
            assert_eq!(keys, [&two, "absent", &one, &two], "{store} over {}", api.name());
            assert_eq!(got[0].text(), r#"{"n": 2}"#);
            assert_eq!(got[2].text(), "1");
            assert!(!got[0].etag.is_empty() && got[0].etag == got[3].etag);
            assert!(got[1].etag.is_empty() && got[1].error.is_empty());
        }
    }
}

#[tokio::test]
async fn a_value_that_is_no_json_gives_its_item_an_error() {
    let sidecar = with_stores().await;
    let [http, grpc] = sidecar.apis().await;
    for store in STORES {
        grpc.save(store, &[Item::new("bytes", vec![0, 159]), Item::new("json", "7")]).await.unwrap();
        let got = http.bulk_get(store, &["bytes", "json"]).await.unwrap();
        assert!(!got[0].error.is_empty(), "{got:?}");
        assert_eq!(got[1].text(), "7");
        assert_eq!(grpc.bulk_get(store, &["bytes"]).await.unwrap()[0].value[..], [0, 159]);
    }
}

#[tokio::test]
async fn a_transaction_does_all_of_it() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = |name: &str| format!("{name}-tx-{}", api.name());
            api.save(store, &[Item::new(&key("old"), "1")]).await.unwrap();
            let operations = [Op::Upsert(Item::new(&key("new"), "2")), Op::Delete(Item::new(&key("old"), ""))];
            api.transact(store, &operations).await.unwrap();
            assert_eq!(api.get(store, &key("new")).await.unwrap().unwrap().text(), "2");
            assert!(api.get(store, &key("old")).await.unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn a_transaction_does_nothing_when_a_part_fails() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let key = |name: &str| format!("{name}-none-{}", api.name());
            api.save(store, &[Item::new(&key("kept"), "1")]).await.unwrap();
            let stale = "00000000-0000-0000-0000-000000000000";
            let operations =
                [Op::Upsert(Item::new(&key("other"), "2")), Op::Upsert(Item::new(&key("kept"), "3").etag(stale))];
            let fault = api.transact(store, &operations).await.unwrap_err();
            fault.is(&Expect {
                http: 409,
                grpc: Code::Aborted,
                code: "ERR_STATE_TRANSACTION",
                reason: "ERR_STATE_TRANSACTION",
                message: "error while executing state transaction: possible etag mismatch…",
            });
            assert!(api.get(store, &key("other")).await.unwrap().is_none(), "{store} over {}", api.name());
            assert_eq!(api.get(store, &key("kept")).await.unwrap().unwrap().text(), "1");
        }
    }
}

#[tokio::test]
async fn keys_may_hold_odd_characters() {
    let sidecar = with_stores().await;
    let keys = [
        "a/b",
        "a b",
        "a+b",
        "100%",
        "what?x=1#y",
        "ключ-é-😀",
        "tab\there",
        "a|b",
        "\"quoted\"",
        "back\\slash",
        "..a",
    ];
    for store in STORES {
        for api in sidecar.apis().await {
            for key in keys {
                let value = json!(format!("{key} by {}", api.name())).to_string();
                api.save(store, &[Item::new(key, value.clone())]).await.unwrap();
                for reader in sidecar.apis().await {
                    let got = reader.get(store, key).await.unwrap();
                    assert_eq!(got.unwrap_or_default().text(), value, "{store}: {key:?} over {}", reader.name());
                }
                api.delete(store, key, None).await.unwrap();
                assert!(api.get(store, key).await.unwrap().is_none(), "{key:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_plus_in_a_path_is_a_space() {
    let sidecar = with_stores().await;
    let [http, _] = sidecar.apis().await;
    http.save("memory", &[Item::new("a b", "1")]).await.unwrap();
    for path in ["/v1.0/state/memory/a+b", "/v1.0/state/memory/a%20b", "/v1.0//state/./memory/x/../a%20b/"] {
        assert_eq!(sidecar.http().get(path).send().await.expect(200).text(), "1", "{path}");
    }
    sidecar.http().get("/v1.0/state/memory/a%2").send().await.expect(400);
}

#[tokio::test]
async fn member_names_match_in_any_case() {
    let sidecar = with_stores().await;
    let body = json!([{"Key": "cased", "VALUE": 5, "Metadata": {"ttlInSeconds": "100"}}]);
    sidecar.http().post_json("/v1.0/state/memory", &body).send().await.expect(204);
    let reply = sidecar.http().get("/v1.0/state/memory/cased").send().await.expect(200);
    assert_eq!(reply.text(), "5");
    assert!(!reply.header("metadata.ttlexpiretime").is_empty());
}

#[tokio::test]
async fn request_metadata_in_the_query_reaches_every_item() {
    let sidecar = with_stores().await;
    let body = json!([{"key": "q", "value": 1}]);
    sidecar.http().post_json("/v1.0/state/memory?metadata.ttlInSeconds=100", &body).send().await.expect(204);
    let reply = sidecar.http().get("/v1.0/state/memory/q").send().await.expect(200);
    assert!(!reply.header("metadata.ttlexpiretime").is_empty());
}

#[tokio::test]
async fn put_does_what_post_does() {
    let sidecar = with_stores().await;
    let http = sidecar.http();
    let put = |path: &str, body: serde_json::Value| {
        http.request("PUT", path.to_owned()).body(body.to_string()).header("content-type", "application/json")
    };
    put("/v1.0/state/memory", json!([{"key": "p", "value": 1}])).send().await.expect(204);
    let bulk = put("/v1.0/state/memory/bulk", json!({"keys": ["p"]})).send().await.expect(200);
    assert_eq!(bulk.json()[0]["data"], 1);
    let operations = json!({"operations": [{"operation": "delete", "request": {"key": "p"}}]});
    put("/v1.0/state/memory/transaction", operations).send().await.expect(204);
    http.get("/v1.0/state/memory/p").send().await.expect(204);
}

#[tokio::test]
async fn an_item_without_a_value_is_null() {
    let sidecar = with_stores().await;
    sidecar.http().post_json("/v1.0/state/sqlite", &json!([{"key": "none"}])).send().await.expect(204);
    assert_eq!(sidecar.http().get("/v1.0/state/sqlite/none").send().await.expect(200).text(), "null");
}

#[tokio::test]
async fn an_empty_key_is_taken_by_reads_and_transactions() {
    let sidecar = with_stores().await;
    let [_, grpc] = sidecar.apis().await;
    for api in sidecar.apis().await {
        api.transact("memory", &[Op::Upsert(Item::new("", "1"))]).await.unwrap();
    }
    assert_eq!(grpc.get("memory", "").await.unwrap().unwrap().text(), "1");
    grpc.delete("memory", "", None).await.unwrap();
    assert!(grpc.get("memory", "").await.unwrap().is_none());
}

/// `(keyPrefix, stored prefix)` for app `App-One`, component `shared`, namespace `space`.
const PREFIXES: [(&str, &str); 6] = [
    ("appid", "App-One||"),
    ("", "App-One||"),
    ("name", "shared||"),
    ("namespace", "space.App-One||"),
    ("none", ""),
    ("MyOwn", "myown||"),
];

#[tokio::test]
async fn keys_are_stored_under_the_prefix_of_the_component() {
    for (strategy, prefix) in PREFIXES {
        let builder = Sidecar::builder().app_id("App-One").env("NAMESPACE", "space");
        let file = builder.folder().join("state.db");
        let mut metadata = vec![("connectionString", file.to_str().unwrap())];
        if !strategy.is_empty() {
            metadata.push(("keyPrefix", strategy));
        }
        let sidecar = builder.component(component("shared", "state.sqlite", &metadata)).start().await;
        for api in sidecar.apis().await {
            let key = format!("key-{}", api.name());
            api.save("shared", &[Item::new(&key, "1")]).await.unwrap();
            assert_eq!(api.bulk_get("shared", &[&key]).await.unwrap()[0].key, key);
        }
        let database = rusqlite::Connection::open(&file).unwrap();
        let mut statement = database.prepare("SELECT key, value, is_binary FROM state ORDER BY key").unwrap();
        let rows = statement
            .query_map((), |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, bool>(2)?)));
        let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        // By gRPC a value is bytes, whatever it holds.
        let expected = [
            (format!("{prefix}key-grpc"), "MQ==".to_owned(), true),
            (format!("{prefix}key-http"), "1".to_owned(), false),
        ];
        assert_eq!(rows, expected, "keyPrefix {strategy:?}");
    }
}

#[tokio::test]
async fn apps_share_what_their_prefix_says() {
    let shared = tempfile::tempdir().unwrap();
    let file = shared.path().join("state.db");
    let documents = [
        component("own", "state.sqlite", &[("connectionString", file.to_str().unwrap())]),
        component("named", "state.sqlite", &[("connectionString", file.to_str().unwrap()), ("keyPrefix", "name")]),
    ];
    let one = Sidecar::with("one", &documents).await;
    let two = Sidecar::with("two", &documents).await;
    let ([one, _], [two, _]) = (one.apis().await, two.apis().await);
    one.save("own", &[Item::new("k", "1")]).await.unwrap();
    one.save("named", &[Item::new("k", "1")]).await.unwrap();
    assert!(two.get("own", "k").await.unwrap().is_none());
    assert_eq!(two.get("named", "k").await.unwrap().unwrap().text(), "1");
}

#[tokio::test]
async fn a_file_survives_a_restart_and_memory_does_not() {
    let mut sidecar = with_stores().await;
    let [api, _] = sidecar.apis().await;
    for store in STORES {
        api.save(store, &[Item::new("k", "1")]).await.unwrap();
    }
    sidecar.kill().await;
    sidecar.again().await;
    assert!(api.get("memory", "k").await.unwrap().is_none());
    assert_eq!(api.get("sqlite", "k").await.unwrap().unwrap().text(), "1");
}

#[tokio::test]
async fn many_keys_at_once() {
    let sidecar = with_stores().await;
    for store in STORES {
        for api in sidecar.apis().await {
            let keys: Vec<String> = (0..200).map(|n| format!("many-{}-{n}", api.name())).collect();
            let items: Vec<Item> = keys.iter().map(|key| Item::new(key, json!(key).to_string())).collect();
            api.save(store, &items).await.unwrap();
            let asked: Vec<&str> = keys.iter().map(String::as_str).collect();
            let got = api.bulk_get(store, &asked).await.unwrap();
            assert_eq!(got.len(), keys.len());
            for (item, key) in got.iter().zip(&keys) {
                assert_eq!((&item.key, item.text()), (key, json!(key).to_string()));
            }
        }
    }
}

#[tokio::test]
async fn consistency_is_taken_on_reads_and_writes() {
    let sidecar = with_stores().await;
    for api in sidecar.apis().await {
        api.save("sqlite", &[Item::new("strong", "1").strong()]).await.unwrap();
        assert_eq!(api.get("sqlite", "strong").await.unwrap().unwrap().text(), "1");
    }
    // A read ignores a consistency it does not know.
    for consistency in ["strong", "eventual", "whatever"] {
        let path = format!("/v1.0/state/sqlite/{}?consistency={consistency}", escape("strong"));
        sidecar.http().get(path).send().await.expect(200);
    }
}
