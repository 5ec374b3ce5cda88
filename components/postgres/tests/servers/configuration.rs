use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{CancellationToken, Changes, ConfigItem, ConfigurationStore, ErrorKind, Metadata, Result};
use mecha_testkit::servers::Postgres;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, configuration, until};

/// The table and trigger of the documentation.
const SETUP: &str =
    "CREATE TABLE settings (key varchar NOT NULL, value varchar NOT NULL, version varchar NOT NULL, metadata json);
CREATE FUNCTION announce() RETURNS trigger AS $$
DECLARE data json;
BEGIN
  IF TG_OP = 'DELETE' THEN data = row_to_json(OLD); ELSE data = row_to_json(NEW); END IF;
  PERFORM pg_notify('news', json_build_object('table', TG_TABLE_NAME, 'action', TG_OP, 'data', data)::text);
  RETURN NULL;
END; $$ LANGUAGE plpgsql;
CREATE TRIGGER changes AFTER INSERT OR UPDATE OR DELETE ON settings FOR EACH ROW EXECUTE PROCEDURE announce()";

fn item(value: &str, version: &str) -> ConfigItem {
    ConfigItem { value: value.into(), version: version.into(), metadata: BTreeMap::new() }
}

struct Watching {
    news: mpsc::Receiver<Changes>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Watching {
    /// A watch that is known to listen.
    async fn start(server: &Postgres, store: &Arc<dyn ConfigurationStore>, keys: &[&str]) -> Self {
        let (out, news) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let keys = keys.iter().map(|k| (*k).to_owned()).collect();
        let before = listeners(server);
        let task = tokio::spawn({
            let (store, stop) = (Arc::clone(store), stop.clone());
            async move { store.watch(keys, Metadata::new(), out, stop).await }
        });
        until("the watch listens", async || listeners(server) > before).await;
        // Behind LISTEN the table is read once; that is over when the session waits again.
        until("the table was read", async || {
            server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT key::text%' AND state = 'idle'")
                != "0"
        })
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        Self { news, stop, task }
    }

    async fn next(&mut self) -> Changes {
        tokio::time::timeout(PATIENCE, self.news.recv()).await.expect("no change came").expect("the watch ended")
    }

    async fn quiet(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(300), self.news.recv()).await;
        assert!(more.is_err(), "unexpected: {more:?}");
    }
}

fn listeners(server: &Postgres) -> usize {
    server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").parse().unwrap()
}

fn one(key: &str, value: ConfigItem) -> Changes {
    [(key.to_owned(), value)].into_iter().collect()
}

#[tokio::test]
async fn the_highest_version_counts() {
    let Some(server) = Postgres::start() else { return };
    server.sql(SETUP);
    server.sql(
        "INSERT INTO settings VALUES ('a', 'old', '9', NULL), ('a', 'new', '10', '{\"m\": \"x\", \"n\": 1}'), \
         ('a', 'odd', 'zz', NULL), ('b', 'odd', 'first', NULL), ('with-dash ''', 'c', '1', '{}')",
    );
    let store = configuration(&server, &[("table", "settings")]).await.unwrap();
    let all = store.get(&[], &Metadata::new()).await.unwrap();
    assert_eq!(all.len(), 3);
    let metadata = [("m".to_owned(), "x".to_owned()), ("n".to_owned(), "1".to_owned())].into_iter().collect();
    assert_eq!(all["a"], ConfigItem { metadata, ..item("new", "10") });
    let some = store.get(&["with-dash '", "absent"], &Metadata::new()).await.unwrap();
    assert_eq!(some, one("with-dash '", item("c", "1")));
}

#[tokio::test]
async fn changes_arrive_once_and_deletions_are_empty() {
    let Some(server) = Postgres::start() else { return };
    server.sql(SETUP);
    server.sql("INSERT INTO settings VALUES ('a', '1', '1', NULL), ('z', '1', '1', NULL)");
    let store = configuration(&server, &[("table", "settings"), ("notifyChannel", "NEWS")]).await.unwrap();
    let mut watching = Watching::start(&server, &store, &["a", "b"]).await;
    server.sql("UPDATE settings SET value = '2', version = '2' WHERE key = 'a'");
    assert_eq!(watching.next().await, one("a", item("2", "2")));
    server.sql("UPDATE settings SET value = '2', version = '2' WHERE key = 'z'");
    server.sql("INSERT INTO settings VALUES ('b', 'x', '1', NULL)");
    assert_eq!(watching.next().await, one("b", item("x", "1")), "only what was asked for");
    server.sql("DELETE FROM settings WHERE key = 'a'");
    assert_eq!(watching.next().await, one("a", ConfigItem::default()));
    server.sql("INSERT INTO settings VALUES ('a', 'again', '1', NULL)");
    assert_eq!(watching.next().await, one("a", item("again", "1")));
    // Not a change, and not understood.
    server.sql("UPDATE settings SET value = value WHERE key = 'a'; NOTIFY news, 'nonsense'");
    watching.quiet().await;
    watching.stop.cancel();
    watching.task.await.unwrap().unwrap();
    until("the session is closed", async || listeners(&server) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_over_a_lost_connection() {
    let Some(mut server) = mecha_testkit::servers::PostgresOptions::new().durable().start() else { return };
    server.sql(SETUP);
    server.sql("INSERT INTO settings VALUES ('a', '1', '1', NULL), ('b', '1', '1', NULL), ('c', '1', '1', NULL)");
    let more = [("table", "settings"), ("notifyChannel", "news"), ("timeout", "2s")];
    let store = configuration(&server, &more).await.unwrap();
    let mut watching = Watching::start(&server, &store, &[]).await;
    for round in 2..5 {
        // A session that is ended, a crash, an orderly stop.
        match round {
            2 => {
                server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'");
            }
            3 => server.kill(),
            _ => server.stop(),
        }
        if round > 2 {
            server.restart();
        }
        server.sql(&format!("UPDATE settings SET value = '{round}', version = '{round}' WHERE key <> 'c'"));
        let mut seen = Changes::new();
        while seen.len() < 2 {
            for (key, item) in watching.next().await {
                assert_eq!(seen.insert(key.clone(), item), None, "{key} came twice");
            }
        }
        let wanted = item(&round.to_string(), &round.to_string());
        assert_eq!(seen, [("a".to_owned(), wanted.clone()), ("b".to_owned(), wanted)].into_iter().collect());
        watching.quiet().await;
    }
    watching.stop.cancel();
    watching.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_watch_without_receiver_ends() {
    let Some(server) = Postgres::start() else { return };
    server.sql(SETUP);
    let store = configuration(&server, &[("table", "settings"), ("notifyChannel", "news")]).await.unwrap();
    let watching = Watching::start(&server, &store, &[]).await;
    drop(watching.news);
    tokio::time::timeout(PATIENCE, watching.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn mistakes_are_clear() {
    let Some(server) = Postgres::start() else { return };
    let e = configuration(&server, &[("table", "nosuch")]).await.unwrap_err();
    assert!(e.message().contains("'nosuch' does not exist"), "{e}");
    assert!(
        configuration(&server, &[])
            .await
            .unwrap_err()
            .message()
            .contains("missing postgreSQL configuration table name")
    );
    assert!(configuration(&server, &[("table", "a; drop table b")]).await.is_err());
    server.sql(SETUP);
    let store = configuration(&server, &[("table", "settings")]).await.unwrap();
    let (out, _news) = mpsc::channel(1);
    let e = store.watch(Vec::new(), Metadata::new(), out, CancellationToken::new()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
    assert!(e.message().contains("pgNotifyChannel attribute cannot be empty"), "{e}");
    // A name that would be SQL is only a name.
    let (out, _news) = mpsc::channel(1);
    let md: Metadata = [("pgNotifyChannel", "x; DROP TABLE settings")].into_iter().collect();
    let stop = CancellationToken::new();
    let watching = tokio::spawn({
        let (store, stop) = (Arc::clone(&store), stop.clone());
        async move { store.watch(Vec::new(), md, out, stop).await }
    });
    until("it listens", async || listeners(&server) == 1).await;
    stop.cancel();
    watching.await.unwrap().unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM settings"), "0");
}
