//! Brings tables to the layout of Dapr 1.18, or uses them as they are.
//!
//! Many daemons start at once. As in Dapr, the row `lock` of the metadata table is locked while
//! the layout changes, so that a daemon of either kind waits for the other. Every step is
//! written so that it does nothing where its work was done already; all of them and the
//! version commit together.

use std::time::Duration;

use mecha_components_api::{Error, Result, Retry};
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{Client, jitter, read};
use crate::config::Mode;
use crate::error::{Done, Fault};
use crate::sql::{Param, Sql};

/// Longest wait for another daemon that holds the lock.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
/// Pause before the metadata table is made again after a race.
const RACE_PAUSE: Duration = Duration::from_millis(50);

/// A layout and how to get there.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    /// Holds versions and the lock.
    pub(crate) metadata_table: &'a str,
    /// Row of `metadata_table` with the version.
    pub(crate) key: &'a str,
    /// Version after all steps.
    pub(crate) version: u32,
    /// The table that must exist.
    pub(crate) table: &'a str,
    /// Statements that change nothing when they are repeated.
    pub(crate) steps: &'a [String],
}

/// Makes the tables of `layout` unless they are there. A user without the right to create
/// anything is enough when they are.
pub(crate) async fn migrate(client: &Client, layout: &Layout<'_>) -> Result<()> {
    let started = Instant::now();
    let deadline = started + client.timeout().max(LOCK_LIMIT);
    let mut pause = RACE_PAUSE;
    loop {
        let fault = match timeout_at(deadline, attempt(client, layout, deadline)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(fault)) => fault,
            Err(_) => {
                return Err(Error::unavailable(
                    "another process keeps the lock of the table's layout; nothing was changed",
                ));
            }
        };
        client.cure(fault.remedy);
        // Whoever is not reachable now is the caller's problem: it tries again later.
        if fault.done != Done::Nothing || started.elapsed() + pause >= client.timeout() {
            return Err(fault.into_error("cannot set up the tables"));
        }
        sleep(jitter(pause)).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn attempt(client: &Client, layout: &Layout<'_>, deadline: Instant) -> std::result::Result<(), Fault> {
    let connect_by = deadline.min(Instant::now() + client.timeout());
    let mut lease = client.lease(connect_by).await?;
    let db = lease.get()?;
    let of = |e: tokio_postgres::Error| Fault::of(&e);
    if up_to_date(db, client.mode(), layout).await? {
        lease.settle();
        return Ok(());
    }
    let metadata = layout.metadata_table;
    let create = format!("CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)");
    // Two sessions that make the same table at once get in each other's way in the catalogue.
    again_after_race(db.batch_execute(&create).await)?;
    db.batch_execute(&format!(
        "INSERT INTO {metadata} (key, value) VALUES ('lock', 'lock') ON CONFLICT (key) DO NOTHING"
    ))
    .await
    .map_err(of)?;
    let wait = LOCK_LIMIT.as_millis();
    let lock = format!(
        "BEGIN; SET LOCAL statement_timeout = {wait}; SELECT value FROM {metadata} WHERE key = 'lock' FOR UPDATE"
    );
    db.batch_execute(&lock).await.map_err(of)?;
    if !up_to_date(db, client.mode(), layout).await? {
        tracing::info!(table = layout.table, "creating or updating the table");
        for step in layout.steps {
            again_after_race(db.batch_execute(step).await)?;
        }
        let (key, version) = (layout.key.replace('\'', "''"), layout.version);
        // Another table may share the row and be newer.
        let note = format!(
            "INSERT INTO {metadata} AS m (key, value) VALUES ('{key}', '{version}') ON CONFLICT (key) DO UPDATE \
             SET value = excluded.value WHERE m.value !~ '^[0-9]{{1,9}}$' OR m.value::int < {version}"
        );
        db.batch_execute(&note).await.map_err(of)?;
    }
    db.batch_execute("COMMIT").await.map_err(of)?;
    lease.settle();
    Ok(())
}

/// Whether the table exists in this version or a later one.
async fn up_to_date(
    db: &deadpool_postgres::ClientWrapper,
    mode: Mode,
    layout: &Layout<'_>,
) -> std::result::Result<bool, Fault> {
    let tables = Sql::once("SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL".into());
    let rows = read(db, mode, &tables, &[Param::Text(layout.metadata_table), Param::Text(layout.table)]).await?;
    let there = rows.iter().next().is_some_and(|row| row.bool(0).unwrap_or(false));
    if !there {
        return Ok(false);
    }
    let version = Sql::once(format!("SELECT value FROM {} WHERE key = $1", layout.metadata_table));
    let rows = read(db, mode, &version, &[Param::Text(layout.key)]).await?;
    let found = match rows.iter().next().map(|row| row.needed(0)) {
        None => return Ok(false),
        Some(text) => text.map_err(Fault::refused)?.trim().parse::<u32>(),
    };
    match found {
        Ok(found) => {
            if found > layout.version {
                tracing::warn!(table = layout.table, version = found, "the table was made by a newer program");
            }
            Ok(found >= layout.version)
        }
        Err(_) => Err(Fault::refused(
            Error::internal(format!("the version of table {} is not a number", layout.table)).with_retry(Retry::Never),
        )),
    }
}

/// unique_violation and duplicate_object of the catalogue: somebody else was faster.
fn again_after_race(outcome: std::result::Result<(), tokio_postgres::Error>) -> std::result::Result<(), Fault> {
    outcome.map_err(|e| {
        let raced = e.code().is_some_and(|c| matches!(c.code(), "23505" | "42P07" | "42710" | "42701"));
        let mut fault = Fault::of(&e);
        if raced {
            fault.done = Done::Nothing;
        }
        fault
    })
}
