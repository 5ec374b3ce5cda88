//! `nameresolution.sqlite`: peers of one machine, or of a shared disk, in one table.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, CancellationToken, Clock, Component, ConfigErrors, Error, Field, FieldType, Instance, Metadata,
    NameResolver, Prepared, Registration, Result, Target,
};
use rusqlite::params;
use uuid::Uuid;

use crate::client::{Client, Setup, Upkeep};
use crate::config::{CONNECTION_STRING, DISABLE_WAL, DbConfig, Defaults, METADATA_TABLE_NAME, span, table};

/// Lower than those of the state store: an answer that comes later is of no use to a call.
const DEFAULTS: Defaults = Defaults { timeout: Duration::from_secs(1), busy_timeout: Duration::from_millis(800) };
const DEFAULT_UPDATE_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause before a renewal that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Dead rows deleted in one round of clean-up.
const SWEEP_ROWS: u32 = 500;
/// Addresses of one app that are looked at, at most.
const MOST_ADDRESSES: u32 = 1_000;

const FIELDS: &[Field] = &[
    CONNECTION_STRING,
    Field::new("timeout", FieldType::Duration, "Longest time of one look-up; at least 1s, bare numbers are seconds.")
        .default("1s")
        .aliases(&["timeoutInSeconds"]),
    Field::new("busyTimeout", FieldType::Duration, "How long one statement waits for another process's lock before it is tried anew.")
        .default("800ms"),
    DISABLE_WAL,
    Field::new("tableName", FieldType::Text, "Table that holds the instances.").default("hosts"),
    METADATA_TABLE_NAME,
    Field::new("updateInterval", FieldType::Duration, "An instance that was not refreshed for this long counts as dead; whole seconds, at least 1s more than the timeout.")
        .default("5s"),
    Field::new("cleanupInterval", FieldType::Duration, "Period in which rows of dead instances are deleted; 0 never deletes them.")
        .default("1h")
        .aliases(&["cleanupIntervalInSeconds"]),
];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn NameResolver> {
    Registration {
        kind: "nameresolution.sqlite",
        aliases: &[],
        versions: &["v1"],
        summary: "Finds peers through a shared SQLite file; works where multicast does not",
        fields: FIELDS,
        prepare,
    }
}

struct SqliteResolverConfig {
    db: DbConfig,
    table: String,
    metadata_table: String,
    update_interval: Duration,
    cleanup_interval: Duration,
}

/// The name resolver.
struct SqliteResolver {
    client: Client,
    clock: Arc<dyn Clock>,
    sql: Arc<Sql>,
    /// Seconds after which a row is dead.
    life: i64,
    /// Pause between two renewals.
    renew_every: Duration,
}

struct Sql {
    resolve: String,
    register: String,
    renew: String,
    remove: String,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn NameResolver>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let interval = if md.contains("cleanupInterval") { "cleanupInterval" } else { "cleanupIntervalInSeconds" };
    let config = SqliteResolverConfig {
        db: DbConfig::read(md, &mut errors, &DEFAULTS),
        table: table(md, &mut errors, "tableName", "hosts"),
        metadata_table: table(md, &mut errors, "metadataTableName", "metadata"),
        update_interval: span(md, &mut errors, "updateInterval", DEFAULT_UPDATE_INTERVAL),
        cleanup_interval: span(md, &mut errors, interval, DEFAULT_CLEANUP_INTERVAL),
    };
    if config.update_interval.subsec_nanos() != 0 {
        errors.push("updateInterval", "update interval must not contain fractions of seconds");
    }
    if config.update_interval < config.db.timeout + Duration::from_secs(1) {
        errors.push("updateInterval", "update interval must be at least 1s greater than timeout");
    }
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn NameResolver>>)
}

#[async_trait]
impl Prepared<dyn NameResolver> for SqliteResolverConfig {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn NameResolver>> {
        let table = &self.table;
        let life = whole_seconds(self.update_interval);
        let sql = Sql {
            resolve: format!(
                "SELECT address FROM {table} WHERE app_id = ?1 AND ?2 - last_update < ?3 ORDER BY address LIMIT {MOST_ADDRESSES}"
            ),
            // The address is unique: whoever listens there now takes over the row of whoever did before.
            register: format!(
                "REPLACE INTO {table} (registration_id, address, app_id, namespace, last_update) VALUES (?1, ?2, ?3, ?4, ?5)"
            ),
            renew: format!("UPDATE {table} SET last_update = ?3 WHERE registration_id = ?1 AND address = ?2"),
            remove: format!("DELETE FROM {table} WHERE registration_id = ?1 AND address = ?2"),
        };
        let upkeep = (!self.cleanup_interval.is_zero()).then(|| sweep(&self, Arc::clone(&cx.clock)));
        let setup = migrate(table.clone(), self.metadata_table.clone());
        let renew_every = self.update_interval - self.db.timeout;
        if self.db.memory {
            tracing::warn!(
                "nameresolution.sqlite with an in-memory database: apps of other processes will not be found"
            );
        }
        let client = Client::open(self.db, setup, upkeep).await?;
        Ok(Arc::new(SqliteResolver { client, clock: Arc::clone(&cx.clock), sql: Arc::new(sql), life, renew_every }))
    }
}

fn migrate(table: String, metadata: String) -> Setup {
    Box::new(move |db| {
        crate::schema::migrate(
            db,
            &metadata,
            "nr-migrations",
            &table,
            &[&format!(
                "CREATE TABLE IF NOT EXISTS {table} (
                    registration_id TEXT NOT NULL PRIMARY KEY,
                    address TEXT NOT NULL,
                    app_id TEXT NOT NULL,
                    namespace TEXT NOT NULL,
                    last_update INTEGER NOT NULL
                );
                CREATE UNIQUE INDEX IF NOT EXISTS {table}_address_idx ON {table} (address);
                CREATE INDEX IF NOT EXISTS {table}_last_update_idx ON {table} (last_update);"
            )],
        )
    })
}

fn sweep(config: &SqliteResolverConfig, clock: Arc<dyn Clock>) -> Upkeep {
    let every = config.cleanup_interval;
    let life = whole_seconds(config.update_interval);
    let metadata = config.metadata_table.clone();
    let delete = format!(
        "DELETE FROM {0} WHERE registration_id IN (SELECT registration_id FROM {0} WHERE ?1 - last_update >= ?2 LIMIT {SWEEP_ROWS})",
        config.table
    );
    let mut running = false;
    Upkeep {
        every,
        round: Box::new(move |db| {
            if !running && !crate::schema::claim_cleanup(db, &metadata, "nr-last-cleanup", clock.now(), every)? {
                return Ok(false);
            }
            let deleted = db.prepare_cached(&delete)?.execute(params![unix(clock.now()), life])?;
            running = deleted == SWEEP_ROWS as usize;
            Ok(running)
        }),
    }
}

impl SqliteResolver {
    async fn register(&self, id: &str, address: &str, me: &Instance) -> Result<()> {
        let (sql, clock) = (Arc::clone(&self.sql), Arc::clone(&self.clock));
        let (id, address) = (id.to_owned(), address.to_owned());
        let (app_id, namespace) = (me.app_id.clone(), me.namespace.clone());
        let work = move |db: &rusqlite::Connection| {
            let values = params![id, address, app_id, namespace, unix(clock.now())];
            db.prepare_cached(&sql.register)?.execute(values)?;
            Ok(())
        };
        self.client.write(0, false, work).await
    }

    /// False when the row is gone.
    async fn renew(&self, id: &str, address: &str) -> Result<bool> {
        let (sql, clock) = (Arc::clone(&self.sql), Arc::clone(&self.clock));
        let (id, address) = (id.to_owned(), address.to_owned());
        let work = move |db: &rusqlite::Connection| {
            Ok(db.prepare_cached(&sql.renew)?.execute(params![id, address, unix(clock.now())])? > 0)
        };
        self.client.write(0, false, work).await
    }

    async fn remove(&self, id: &str, address: &str) -> Result<()> {
        let sql = Arc::clone(&self.sql);
        let (id, address) = (id.to_owned(), address.to_owned());
        let work = move |db: &rusqlite::Connection| {
            db.prepare_cached(&sql.remove)?.execute(params![id, address])?;
            Ok(())
        };
        self.client.write(0, false, work).await
    }

    /// Renews until the row was taken away and cannot be put back; errors are tried again.
    async fn keep_alive(&self, id: &str, address: &str, me: &Instance) {
        let mut pause = self.renew_every;
        loop {
            tokio::time::sleep(pause).await;
            let outcome = match self.renew(id, address).await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    // The machine slept beyond our life, or another process claims our address.
                    tracing::warn!(address, app_id = me.app_id, "registration lost, announcing this instance again");
                    self.register(id, address, me).await
                }
                Err(e) => Err(e),
            };
            pause = match outcome {
                Ok(()) => self.renew_every,
                Err(error) => {
                    tracing::warn!(%error, app_id = me.app_id, "failed to renew the registration of this instance");
                    RETRY_PAUSE
                }
            };
        }
    }
}

impl fmt::Debug for SqliteResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteResolver").finish_non_exhaustive()
    }
}

#[async_trait]
impl Component for SqliteResolver {
    async fn ping(&self) -> Result<()> {
        self.client
            .read(|db| {
                Ok(db.query_row("SELECT count(*) FROM (SELECT 1 FROM sqlite_master LIMIT 1)", [], |_| Ok(()))?)
            })
            .await
    }

    async fn close(&self) {
        self.client.close().await;
    }
}

#[async_trait]
impl NameResolver for SqliteResolver {
    /// Looks at the app id only, as the incumbent does.
    async fn resolve(&self, target: Target<'_>) -> Result<Vec<Arc<str>>> {
        let (sql, clock, life) = (Arc::clone(&self.sql), Arc::clone(&self.clock), self.life);
        let app_id = target.app_id.to_owned();
        let work = move |db: &rusqlite::Connection| {
            let mut statement = db.prepare_cached(&sql.resolve)?;
            let rows = statement.query_map(params![app_id, unix(clock.now()), life], |r| r.get::<_, Arc<str>>(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        };
        let addresses = self.client.read(work).await?;
        if addresses.is_empty() { Err(Error::not_found("no host found with the given ID")) } else { Ok(addresses) }
    }

    async fn announce(&self, me: Instance, up: Box<dyn FnOnce() + Send>, stop: CancellationToken) -> Result<()> {
        let id = Uuid::new_v4().hyphenated().to_string();
        let address = host_port(&me.host, me.port);
        self.register(&id, &address, &me).await?;
        up();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_alive(&id, &address, &me) => {}
        }
        self.remove(&id, &address).await
    }
}

/// `host:port`, IPv6 in brackets.
fn host_port(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn unix(at: SystemTime) -> i64 {
    whole_seconds(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

fn whole_seconds(d: Duration) -> i64 {
    i64::try_from(d.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
