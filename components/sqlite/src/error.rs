//! SQLite's result codes in the vocabulary of the component contract.

use mecha_components_api::{Error, ErrorKind, Retry};
use rusqlite::ErrorCode;

/// How one piece of database work ended badly.
#[derive(Debug)]
pub(crate) enum Fault {
    /// SQLite said so.
    Db(rusqlite::Error),
    /// The work itself refused, for example because of a stale ETag.
    Refused(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        Self::Db(e)
    }
}

impl Fault {
    /// The error for the caller. `what` says what was tried.
    pub(crate) fn into_error(self, what: &'static str) -> Error {
        match self {
            Self::Db(e) => classify(what, &e),
            Self::Refused(e) => e,
        }
    }
}

/// Somebody else holds a lock; the same call may work a moment later.
pub(crate) fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// The connection can no longer be trusted: it must be opened again, and the file checked,
/// before the next acknowledgement.
pub(crate) fn is_broken(e: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DatabaseCorrupt, NotADatabase, SystemIoFailure};
    matches!(e.sqlite_error_code(), Some(SystemIoFailure | DatabaseCorrupt | NotADatabase | CannotOpen))
}

/// Turns a SQLite error into one of ours. The message holds SQLite's text, which names
/// tables and columns but never values.
///
/// The sentences above the arms are from <https://sqlite.org/rescode.html>.
pub(crate) fn classify(what: &'static str, e: &rusqlite::Error) -> Error {
    let Some(code) = e.sqlite_error_code() else {
        // Not from SQLite: a column of an unexpected type or count, text that is no UTF-8.
        return Error::internal(format!("{what}: {e}")).with_retry(Retry::Never);
    };
    let (kind, retry, hint) = match code {
        // "the database file could not be written (or in some cases read) because of
        // concurrent activity by some other database connection, usually a database
        // connection in a separate process" — the transaction was rolled back.
        // "a write operation could not continue because of a conflict within the same
        // database connection or a conflict with a different database connection that uses
        // a shared cache"
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => (
            ErrorKind::Unavailable,
            Retry::Always,
            "another process holds the database; it stayed locked for the whole time allowed",
        ),
        // "a write could not complete because the disk is full" — rolled back, the old value stays.
        ErrorCode::DiskFull => {
            (ErrorKind::Unavailable, Retry::Always, "the disk is full; nothing was written, free some space")
        }
        // "the operation could not finish because the operating system reported an I/O error"
        ErrorCode::SystemIoFailure => {
            (ErrorKind::Unavailable, Retry::IfIdempotent, "the disk reported an input/output error")
        }
        // "SQLite was unable to open a file. The file in question might be a primary database
        // file or one of several temporary disk files."
        ErrorCode::CannotOpen => (
            ErrorKind::Unavailable,
            Retry::Always,
            "cannot open the database file; check that its folder exists and may be written to",
        ),
        // "a problem with the file locking protocol used by SQLite", in WAL mode a race to
        // start a transaction.
        ErrorCode::FileLockingProtocolFailed => {
            (ErrorKind::Unavailable, Retry::Always, "the locking protocol of the database failed")
        }
        // "an attempt is made to alter some data for which the current database connection
        // does not have write permission"
        ErrorCode::ReadOnly => (ErrorKind::Unavailable, Retry::Never, "the database is read-only"),
        // "the requested access mode for a newly created database could not be provided"
        // "an SQL statement being prepared is not authorized"
        ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => {
            (ErrorKind::PermissionDenied, Retry::Never, "access to the database was refused")
        }
        // "the database file has been corrupted"
        ErrorCode::DatabaseCorrupt => {
            (ErrorKind::Internal, Retry::Never, "the database file is damaged; restore it from a backup")
        }
        // "the file being opened does not appear to be an SQLite database file"
        ErrorCode::NotADatabase => (ErrorKind::Internal, Retry::Never, "the file is not a SQLite database"),
        // "a string or BLOB was too large"
        ErrorCode::TooBig => (ErrorKind::TooLarge, Retry::Never, "the value is larger than SQLite can store"),
        // "SQLite was unable to allocate all the memory it needed to complete the operation"
        ErrorCode::OutOfMemory => (ErrorKind::Overloaded, Retry::Always, "SQLite ran out of memory"),
        // "an operation was interrupted by the sqlite3_interrupt() interface"
        ErrorCode::OperationInterrupted => (ErrorKind::Timeout, Retry::Always, "the operation was interrupted"),
        // "the database schema has changed" more often than SQLite prepares again by itself.
        ErrorCode::SchemaChanged => (ErrorKind::Unavailable, Retry::Always, "another process is changing the tables"),
        // "an SQL constraint violation occurred": a table whose columns are not the documented ones.
        ErrorCode::ConstraintViolation => {
            (ErrorKind::Internal, Retry::Never, "the table does not have the expected layout")
        }
        // Everything else is a defect on our side or a table of another layout.
        _ => (ErrorKind::Internal, Retry::Never, "SQLite refused the statement"),
    };
    Error::new(kind, format!("{what}: {hint} ({e})")).with_retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn failure(code: std::ffi::c_int) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
    }

    #[test]
    fn each_code_has_its_kind() {
        use ErrorKind::{Internal, Overloaded, PermissionDenied, Timeout, TooLarge, Unavailable};
        let table = [
            (ffi::SQLITE_BUSY, Unavailable, Retry::Always),
            (ffi::SQLITE_BUSY_SNAPSHOT, Unavailable, Retry::Always),
            (ffi::SQLITE_LOCKED, Unavailable, Retry::Always),
            (ffi::SQLITE_FULL, Unavailable, Retry::Always),
            (ffi::SQLITE_IOERR, Unavailable, Retry::IfIdempotent),
            (ffi::SQLITE_IOERR_FSYNC, Unavailable, Retry::IfIdempotent),
            (ffi::SQLITE_CANTOPEN, Unavailable, Retry::Always),
            (ffi::SQLITE_PROTOCOL, Unavailable, Retry::Always),
            (ffi::SQLITE_READONLY, Unavailable, Retry::Never),
            (ffi::SQLITE_PERM, PermissionDenied, Retry::Never),
            (ffi::SQLITE_CORRUPT, Internal, Retry::Never),
            (ffi::SQLITE_NOTADB, Internal, Retry::Never),
            (ffi::SQLITE_TOOBIG, TooLarge, Retry::Never),
            (ffi::SQLITE_NOMEM, Overloaded, Retry::Always),
            (ffi::SQLITE_INTERRUPT, Timeout, Retry::Always),
            (ffi::SQLITE_CONSTRAINT, Internal, Retry::Never),
            (ffi::SQLITE_ERROR, Internal, Retry::Never),
        ];
        for (code, kind, retry) in table {
            let e = classify("set", &failure(code));
            assert_eq!((e.kind(), e.retry()), (kind, retry), "code {code}");
            assert!(e.message().starts_with("set: "));
        }
    }

    #[test]
    fn a_lock_is_never_a_conflict() {
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_BUSY_RECOVERY, ffi::SQLITE_BUSY_SNAPSHOT, ffi::SQLITE_LOCKED] {
            assert!(is_busy(&failure(code)));
            assert_ne!(classify("set", &failure(code)).kind(), ErrorKind::Conflict);
        }
    }

    #[test]
    fn input_output_errors_break_the_connection() {
        assert!(is_broken(&failure(ffi::SQLITE_IOERR_FSYNC)));
        assert!(!is_broken(&failure(ffi::SQLITE_FULL)));
        assert!(!is_broken(&failure(ffi::SQLITE_BUSY)));
    }
}
