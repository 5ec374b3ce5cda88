//! What the driver and the server report, in the vocabulary of the component contract.

use deadpool_postgres::{HookError, PoolError};
use mecha_components_api::{Error, ErrorKind, Retry};

/// How one attempt ended badly.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: Error,
    pub(crate) done: Done,
    pub(crate) remedy: Remedy,
}

/// How far the attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// Nothing was written, and the same attempt may succeed a moment later.
    Nothing,
    /// No server answered: like [`Done::Nothing`], but waiting long makes no sense.
    Unreachable,
    /// The server may have done it.
    Perhaps,
    /// The answer is final.
    Final,
}

/// What is to be done about the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// This one is fine.
    Keep,
    /// This one is gone or useless.
    Drop,
    /// All idle ones are useless too: the server changed its role, or went away.
    DropAll,
    /// Prepared statements do not fit any more.
    Prepare,
}

/// Whether an operation may run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    /// Reads, and writes whose repetition leaves the same state behind.
    Harmless,
    /// Conditional writes, and whatever an application asks for.
    No,
}

impl Fault {
    /// The work itself refused, for example because of a stale ETag.
    pub(crate) fn refused(error: Error) -> Self {
        Self { error, done: Done::Final, remedy: Remedy::Keep }
    }

    /// No answer within the time allowed.
    pub(crate) fn no_answer() -> Self {
        let error = Error::timeout("the server did not answer within the time allowed");
        Self { error, done: Done::Perhaps, remedy: Remedy::DropAll }
    }

    /// No connection within the time allowed.
    pub(crate) fn no_connection() -> Self {
        let error = Error::unavailable("no connection became free within the time allowed; see 'maxConns'");
        Self { error, done: Done::Nothing, remedy: Remedy::Keep }
    }

    /// Getting a connection failed: nothing was sent.
    pub(crate) fn connecting(e: PoolError) -> Self {
        match e {
            PoolError::Backend(e) | PoolError::PostCreateHook(HookError::Backend(e)) => Self::on_connect(&e),
            PoolError::Closed => Self::refused(Error::unavailable("the component is closed").with_retry(Retry::Never)),
            PoolError::Timeout(_) => Self::no_connection(),
            PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(HookError::Message(_)) => {
                Self::refused(Error::internal("the connection pool is not set up"))
            }
        }
    }

    /// Making a connection failed: nothing was sent.
    pub(crate) fn on_connect(e: &tokio_postgres::Error) -> Self {
        if e.as_db_error().is_some() {
            let mut fault = Self::of(e);
            if fault.done == Done::Perhaps {
                fault.done = Done::Nothing;
            }
            return fault;
        }
        let mut text = format!("cannot connect to PostgreSQL: {}", chain(e));
        if text.contains("invalid peer certificate") {
            text.push_str("; set 'sslRootCert' to the authority that signed it, or 'sslmode' as you trust the network");
        }
        Self { error: Error::unavailable(text), done: Done::Unreachable, remedy: Remedy::Keep }
    }

    /// Something went wrong on a connection that had been made.
    pub(crate) fn of(e: &tokio_postgres::Error) -> Self {
        let Some(db) = e.as_db_error() else {
            // Not from the server: the connection broke, or an answer cannot be read.
            let error = Error::unavailable(format!("the connection to PostgreSQL was lost: {}", chain(e)))
                .with_retry(Retry::IfIdempotent);
            return Self { error, done: Done::Perhaps, remedy: Remedy::Drop };
        };
        let code = db.code().code();
        let Verdict { kind, retry, done, remedy, hint } = verdict(code);
        // The detail and the position of the server's message may quote values, its first line does not.
        let error = Error::new(kind, format!("{hint}: {} (SQLSTATE {code})", db.message())).with_retry(retry);
        Self { error, done, remedy }
    }

    /// Whether trying again cannot do harm.
    pub(crate) fn may_retry(&self, twice: Twice) -> bool {
        match self.done {
            Done::Nothing | Done::Unreachable => true,
            Done::Perhaps => twice == Twice::Harmless,
            Done::Final => false,
        }
    }

    /// The error for the caller. `what` says what was tried.
    pub(crate) fn into_error(self, what: &'static str) -> Error {
        let mut error =
            Error::new(self.error.kind(), format!("{what}: {}", self.error.message())).with_retry(self.error.retry());
        if let Some(source) = std::error::Error::source(&self.error) {
            error = error.with_source(source.to_string());
        }
        error
    }
}

struct Verdict {
    kind: ErrorKind,
    retry: Retry,
    done: Done,
    remedy: Remedy,
    hint: &'static str,
}

/// What a SQLSTATE means for us. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn verdict(code: &str) -> Verdict {
    use ErrorKind::{
        FailedPrecondition, Internal, InvalidArgument, Overloaded, PermissionDenied, Timeout, TooLarge,
        Unauthenticated, Unavailable,
    };
    let say = |kind, retry, done, remedy, hint| Verdict { kind, retry, done, remedy, hint };
    match code {
        // serialization_failure, deadlock_detected: the transaction was rolled back.
        "40001" | "40P01" => {
            say(Unavailable, Retry::Always, Done::Nothing, Remedy::Keep, "a concurrent transaction was faster")
        }
        // lock_not_available
        "55P03" => say(Unavailable, Retry::Always, Done::Nothing, Remedy::Keep, "a lock was not granted in time"),
        // read_only_sql_transaction: a primary that was demoted, or a standby.
        "25006" => say(
            Unavailable,
            Retry::Always,
            Done::Nothing,
            Remedy::DropAll,
            "the server takes no writes; it may have been demoted",
        ),
        // too_many_connections
        "53300" => {
            say(Unavailable, Retry::Always, Done::Nothing, Remedy::Drop, "the server has no connection to spare")
        }
        // disk_full
        "53100" => say(Unavailable, Retry::Always, Done::Final, Remedy::Keep, "the server's disk is full"),
        // admin_shutdown, crash_shutdown, idle_session_timeout: sent instead of an answer, so
        // nothing was committed.
        "57P01" | "57P02" | "57P05" => {
            say(Unavailable, Retry::Always, Done::Nothing, Remedy::Drop, "the server ended the connection")
        }
        // cannot_connect_now
        "57P03" => say(Unavailable, Retry::Always, Done::Nothing, Remedy::Drop, "the server is starting or stopping"),
        // query_canceled: `statement_timeout`, or an administrator.
        "57014" => say(Timeout, Retry::IfIdempotent, Done::Final, Remedy::Keep, "the statement was cancelled"),
        // invalid_sql_statement_name, duplicate_prepared_statement: a pooler gave us another session.
        "26000" | "42P05" => say(
            Unavailable,
            Retry::Always,
            Done::Nothing,
            Remedy::Prepare,
            "a prepared statement is not where it was; behind a pooler set 'queryExecMode' to exec",
        ),
        // feature_not_supported, in practice "cached plan must not change result type".
        "0A000" => say(Internal, Retry::Never, Done::Nothing, Remedy::Prepare, "the server does not support it"),
        // invalid_catalog_name
        "3D000" => say(FailedPrecondition, Retry::Never, Done::Final, Remedy::Drop, "there is no such database"),
        // undefined_table, invalid_schema_name, undefined_column
        "42P01" | "3F000" | "42703" => {
            say(FailedPrecondition, Retry::Never, Done::Final, Remedy::Keep, "the table is not as expected")
        }
        // insufficient_privilege
        "42501" => say(PermissionDenied, Retry::Never, Done::Final, Remedy::Keep, "the user may not do this"),
        // untranslatable_character
        "22P05" => say(
            InvalidArgument,
            Retry::Never,
            Done::Final,
            Remedy::Keep,
            "jsonb cannot hold the character NUL (\\u0000); version v2 of the component can",
        ),
        _ => match code.get(..2).unwrap_or_default() {
            // Connection exceptions.
            "08" => say(Unavailable, Retry::IfIdempotent, Done::Perhaps, Remedy::Drop, "the connection failed"),
            "22" => say(InvalidArgument, Retry::Never, Done::Final, Remedy::Keep, "the server refused a value"),
            "23" => say(FailedPrecondition, Retry::Never, Done::Final, Remedy::Keep, "a constraint forbids it"),
            "28" => say(Unauthenticated, Retry::Never, Done::Final, Remedy::Drop, "the server refused the credentials"),
            "42" => say(InvalidArgument, Retry::Never, Done::Final, Remedy::Keep, "the server refused the statement"),
            "53" => say(Overloaded, Retry::Always, Done::Final, Remedy::Keep, "the server is short of resources"),
            "54" => say(TooLarge, Retry::Never, Done::Final, Remedy::Keep, "a limit of the server was exceeded"),
            "57" => say(Unavailable, Retry::IfIdempotent, Done::Perhaps, Remedy::Drop, "an operator intervened"),
            "58" => say(Unavailable, Retry::IfIdempotent, Done::Final, Remedy::Keep, "the server's system failed"),
            _ => say(Internal, Retry::Never, Done::Final, Remedy::Keep, "the server reported an error"),
        },
    }
}

/// An error with its causes, without saying anything twice.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_rolled_back_is_tried_again() {
        for code in ["40001", "40P01", "57P01", "57P03", "53300", "25006", "26000"] {
            let v = verdict(code);
            assert_eq!(v.done, Done::Nothing, "{code}");
        }
        for code in ["08006", "57P04"] {
            assert_eq!(verdict(code).done, Done::Perhaps, "{code}");
        }
        for code in ["28P01", "42501", "22P02", "53100", "57014", "XX000", ""] {
            assert_eq!(verdict(code).done, Done::Final, "{code}");
        }
    }

    #[test]
    fn only_what_may_run_twice_is_repeated_when_the_outcome_is_unknown() {
        let lost = Fault::no_answer();
        assert!(lost.may_retry(Twice::Harmless));
        assert!(!lost.may_retry(Twice::No));
        assert!(Fault::no_connection().may_retry(Twice::No));
        assert!(!Fault::refused(Error::conflict("stale")).may_retry(Twice::Harmless));
    }

    #[test]
    fn a_demoted_server_loses_all_its_connections() {
        assert_eq!(verdict("25006").remedy, Remedy::DropAll);
        assert_eq!(verdict("40001").remedy, Remedy::Keep);
    }

    #[test]
    fn no_code_is_a_conflict() {
        for code in ["40001", "40P01", "55P03", "23505", "57P01"] {
            assert_ne!(verdict(code).kind, ErrorKind::Conflict, "{code}");
        }
    }
}
