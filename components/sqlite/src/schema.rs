//! Migrations and clean-up that several processes, also of the incumbent, do on one file.

use std::time::{Duration, SystemTime};

use mecha_components_api::Error;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::error::Fault;
use crate::stamp;

/// The incumbent's slack: a period that ended this little ago counts as over.
const CLAIM_SLACK: Duration = Duration::from_millis(100);

/// Runs the steps that the row `row` of the metadata table does not count yet, and all of them where `table` is
/// missing: that row is one for every table of the file, as the incumbent has it, so it may count those of another.
/// Steps change nothing when they are repeated.
pub(crate) fn migrate(db: &Connection, metadata: &str, row: &str, table: &str, steps: &[&str]) -> Result<(), Fault> {
    // A look without a lock first, so that a start does not wait for a busy neighbour.
    if exists(db, metadata)? && exists(db, table)? && level(db, metadata, row)? >= steps.len() {
        return Ok(());
    }
    let tx = Transaction::new_unchecked(db, TransactionBehavior::Exclusive)?;
    tx.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
    ))?;
    let level = level(db, metadata, row)?;
    let done = if exists(db, table)? { level } else { 0 };
    for step in steps.iter().skip(done) {
        tx.execute_batch(step)?;
    }
    // Another table may be further than this program knows.
    if level < steps.len() {
        tx.execute(
            &format!("REPLACE INTO {metadata} (key, value) VALUES (?1, ?2)"),
            params![row, steps.len().to_string()],
        )?;
    }
    Ok(tx.commit()?)
}

/// Whether something of this name can be read; SQLite does not tell names apart by their case.
fn exists(db: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?1 COLLATE NOCASE)";
    db.query_row(sql, [table], |r| r.get(0))
}

fn level(db: &Connection, metadata: &str, row: &str) -> Result<usize, Fault> {
    let text: Option<String> =
        db.query_row(&format!("SELECT value FROM {metadata} WHERE key = ?1"), [row], |r| r.get(0)).optional()?;
    let Some(text) = text else { return Ok(0) };
    text.parse().map_err(|_| {
        Fault::Refused(Error::internal(format!(
            "invalid migration level found in table {metadata}, row '{row}': {text}"
        )))
    })
}

/// Notes in `row` that the clean-up of this period begins; false when somebody did within `every`.
pub(crate) fn claim_cleanup(
    db: &Connection,
    metadata: &str,
    row: &str,
    now: SystemTime,
    every: Duration,
) -> rusqlite::Result<bool> {
    let period = every.saturating_sub(CLAIM_SLACK).as_millis();
    let sql = format!(
        "INSERT INTO {metadata} (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value \
         WHERE value IS NULL OR unixepoch(value) IS NULL OR abs(unixepoch(excluded.value) - unixepoch(value)) * 1000 > ?3"
    );
    let period = i64::try_from(period).unwrap_or(i64::MAX);
    Ok(db.execute(&sql, params![row, stamp::seconds(now), period])? > 0)
}
