use std::fmt;
use std::path::Path;

use mecha_components_api::{Error, ErrorKind, Retry};
use rusqlite::ErrorCode;

/// What the broker does about a failed statement or commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cure {
    /// Another process holds the file; nothing was written. Try again later.
    Wait,
    /// No room on the disk; smaller transactions may still pass.
    Space,
    /// Only this statement is at fault; others of the same batch may pass.
    Isolate,
    /// The connection cannot be trusted any more: open the file anew and check it.
    Reopen,
    /// The file is of a newer version; opening it again cannot help.
    Refuse,
}

/// A failure of the store. Unlike the driver's error it can be handed to every caller of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub cure: Cure,
    text: String,
}

impl Failure {
    pub(crate) fn new(cure: Cure, text: impl Into<String>) -> Self {
        Self { cure, text: text.into() }
    }

    /// The error a caller sees. `folder` is named because the cure is to be done there.
    pub(crate) fn to_error(&self, folder: &Path) -> Error {
        let folder = folder.display();
        match self.cure {
            Cure::Wait => Error::unavailable(format!("broker at {folder} is busy: another process holds it")),
            Cure::Space => Error::unavailable(format!(
                "broker at {folder} cannot write: the disk is full; free some space, nothing was stored"
            )),
            Cure::Isolate => Error::internal(format!("broker at {folder} could not store the request")),
            // A commit that failed in fsync may or may not be on the disk.
            Cure::Reopen => Error::unavailable(format!("broker at {folder} cannot be read or written"))
                .with_retry(Retry::IfIdempotent),
            Cure::Refuse => Error::new(ErrorKind::FailedPrecondition, format!("broker at {folder} cannot be used")),
        }
        .with_source(self.text.clone())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(e: rusqlite::Error) -> Self {
        let cure = match e.sqlite_error_code() {
            // "The database file is locked" / "A table in the database is locked".
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Cure::Wait,
            // "Insertion failed because database is full": also ENOSPC and quota.
            Some(ErrorCode::DiskFull) => Cure::Space,
            // "Some kind of disk I/O error occurred": fsync may have failed, so the page
            // cache cannot be trusted. Locking errors and a file swapped under us likewise.
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::NoLargeFileSupport,
            ) => Cure::Reopen,
            // "SQL error or missing database": our statements are fixed, so a table is gone or altered.
            Some(ErrorCode::Unknown) => Cure::Reopen,
            // Constraint, mismatch, too big, out of memory: this request alone.
            _ => Cure::Isolate,
        };
        Self::new(cure, e.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        let cure = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Cure::Space,
            _ => Cure::Reopen,
        };
        Self::new(cure, e.to_string())
    }
}

/// The broker was closed.
pub(crate) fn closed(folder: &Path) -> Error {
    Error::unavailable(format!("broker at {} is closed", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> Failure {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None).into()
    }

    #[test]
    fn driver_codes_have_the_cure_that_fits() {
        use rusqlite::ffi;
        for (code, cure) in [
            (ffi::SQLITE_BUSY, Cure::Wait),
            (ffi::SQLITE_BUSY_RECOVERY, Cure::Wait),
            (ffi::SQLITE_FULL, Cure::Space),
            (ffi::SQLITE_IOERR_FSYNC, Cure::Reopen),
            (ffi::SQLITE_CORRUPT, Cure::Reopen),
            (ffi::SQLITE_NOTADB, Cure::Reopen),
            (ffi::SQLITE_READONLY_DBMOVED, Cure::Reopen),
            (ffi::SQLITE_CONSTRAINT, Cure::Isolate),
            (ffi::SQLITE_NOMEM, Cure::Isolate),
        ] {
            assert_eq!(failure(code).cure, cure, "code {code}");
        }
    }

    #[test]
    fn an_unknown_outcome_is_not_offered_for_blind_retry() {
        let e = failure(rusqlite::ffi::SQLITE_IOERR_FSYNC).to_error(Path::new("/data"));
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::IfIdempotent));
        let e = failure(rusqlite::ffi::SQLITE_FULL).to_error(Path::new("/data"));
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Always));
        assert!(e.to_string().contains("/data") && e.to_string().contains("full"), "{e}");
    }
}
