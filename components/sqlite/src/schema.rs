//! Migrations and clean-up that several processes, also of the incumbent, do on one file.

use std::time::{Duration, SystemTime};

use mecha_components_api::Error;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::error::Fault;
use crate::stamp;

/// The incumbent's slack: a period that ended this little ago counts as over.
const CLAIM_SLACK: Duration = Duration::from_millis(100);

/// Runs the steps that the row `row` of the metadata table does not count yet.
pub(crate) fn migrate(db: &Connection, metadata: &str, row: &str, steps: &[&str]) -> Result<(), Fault> {
    // A look without a lock first, so that a start does not wait for a busy neighbour.
    let exists: bool = db.query_row(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1)",
        [metadata],
        |r| r.get(0),
    )?;
    if exists && level(db, metadata, row)? >= steps.len() {
        return Ok(());
    }
    let tx = Transaction::new_unchecked(db, TransactionBehavior::Exclusive)?;
    tx.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)"
    ))?;
    for (done, step) in steps.iter().enumerate().skip(level(db, metadata, row)?) {
        tx.execute_batch(step)?;
        tx.execute(
            &format!("REPLACE INTO {metadata} (key, value) VALUES (?1, ?2)"),
            params![row, (done + 1).to_string()],
        )?;
    }
    Ok(tx.commit()?)
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
