//! The servers that entries name as `{server:NAME}`: one of each for all entries, started
//! when the first one needs it.

use mecha_testkit::servers::{Kafka, Kubernetes, Postgres, Redis};
use parking_lot::Mutex;

static KAFKA: Mutex<Option<Kafka>> = Mutex::new(None);
static KUBERNETES: Mutex<Option<Kubernetes>> = Mutex::new(None);
static REDIS: Mutex<Option<Redis>> = Mutex::new(None);
static POSTGRES: Mutex<Option<Postgres>> = Mutex::new(None);

/// What the secret store is to find.
const SECRETS: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: shop, namespace: default}\n\
    stringData: {shop: val-one}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: db, namespace: default}\n\
    stringData: {db: val-two}\n";

/// The table of settings and a trigger that announces changes, as the documentation has them.
const SETTINGS: &str =
    "CREATE TABLE settings (key varchar PRIMARY KEY, value varchar NOT NULL, version varchar NOT NULL, metadata json);
CREATE FUNCTION announce() RETURNS trigger AS $$
DECLARE data json;
BEGIN
  IF TG_OP = 'DELETE' THEN data = row_to_json(OLD); ELSE data = row_to_json(NEW); END IF;
  PERFORM pg_notify('settings', json_build_object('table', TG_TABLE_NAME, 'action', TG_OP, 'data', data)::text);
  RETURN NULL;
END; $$ LANGUAGE plpgsql;
CREATE TRIGGER changes AFTER INSERT OR UPDATE OR DELETE ON settings FOR EACH ROW EXECUTE PROCEDURE announce()";

/// What is missing for a server of this name, with what to do about it.
pub(crate) fn missing(name: &str) -> Option<String> {
    match name {
        "kafka" => Kafka::missing().map(|install| format!("Apache Kafka is not installed ({install})")),
        "kubernetes" => Kubernetes::missing().map(|build| format!("kube-apiserver is not built ({build})")),
        "redis" => Redis::missing().map(|install| format!("redis-server is not installed ({install})")),
        "postgres" => Postgres::missing().map(|install| format!("postgresql is not installed ({install})")),
        _ => panic!("conformance/manifest.toml names the unknown server '{name}'"),
    }
}

/// The address of the server of this name.
pub(crate) fn address(name: &str) -> String {
    match name {
        "kafka" => {
            let mut kafka = KAFKA.lock();
            if kafka.is_none() {
                *kafka = Kafka::start();
            }
            kafka.as_ref().map(Kafka::address).unwrap_or_default()
        }
        // The file that says where it is.
        "kubernetes" => {
            let mut kubernetes = KUBERNETES.lock();
            if kubernetes.is_none() {
                *kubernetes = Kubernetes::start().inspect(|server| drop(server.apply(SECRETS)));
            }
            kubernetes.as_ref().map(|server| server.kubeconfig().to_string_lossy().into_owned()).unwrap_or_default()
        }
        "redis" => {
            let mut redis = REDIS.lock();
            if redis.is_none() {
                *redis = Redis::start();
            }
            redis.as_ref().map(Redis::address).unwrap_or_default()
        }
        "postgres" => {
            let mut postgres = POSTGRES.lock();
            if postgres.is_none() {
                *postgres = Postgres::start().inspect(|server| drop(server.sql(SETTINGS)));
            }
            postgres.as_ref().map(Postgres::url).unwrap_or_default()
        }
        _ => panic!("conformance/manifest.toml names the unknown server '{name}'"),
    }
}

/// Writes a configuration item the way users of this server do.
pub(crate) fn put_setting(server: &str, key: &str, value: &str, version: &str) -> Result<(), String> {
    match server {
        "postgres" => postgres_runs(&format!(
            "INSERT INTO settings (key, value, version) VALUES ({key}, {value}, {version}) ON CONFLICT (key) DO UPDATE \
             SET value = {value}, version = {version}",
            key = literal(key),
            value = literal(value),
            version = literal(version)
        )),
        "redis" => redis_says(&["SET", key, &format!("{value}||{version}")], "OK"),
        _ => Err(format!("nobody knows how to write configuration to '{server}'")),
    }
}

/// Removes a configuration item.
pub(crate) fn remove_setting(server: &str, key: &str) -> Result<(), String> {
    match server {
        "postgres" => postgres_runs(&format!("DELETE FROM settings WHERE key = {}", literal(key))),
        "redis" => redis_says(&["DEL", key], "1"),
        _ => Err(format!("nobody knows how to remove configuration from '{server}'")),
    }
}

fn redis_says(command: &[&str], wanted: &str) -> Result<(), String> {
    let redis = REDIS.lock();
    let redis = redis.as_ref().ok_or("the server was not started")?;
    let said = redis.command(command);
    if said == wanted { Ok(()) } else { Err(format!("{command:?}: '{said}'")) }
}

fn postgres_runs(sql: &str) -> Result<(), String> {
    let postgres = POSTGRES.lock();
    postgres.as_ref().ok_or("the server was not started")?.sql(sql);
    Ok(())
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Ends what was started.
pub(crate) fn stop() {
    drop(KAFKA.lock().take());
    drop(KUBERNETES.lock().take());
    drop(REDIS.lock().take());
    drop(POSTGRES.lock().take());
}
