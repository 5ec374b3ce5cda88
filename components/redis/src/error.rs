//! The server's errors in the vocabulary of the component contract: one table.

use mecha_components_api::{Error, ErrorKind, Retry};
use redis::{ErrorKind as Kind, RedisError};

/// How one try ended badly.
#[derive(Debug)]
pub(crate) enum Fault {
    /// There is no connection; nothing was sent.
    Unsent(RedisError),
    /// The server refused, or the connection broke after sending.
    Sent(RedisError),
    /// No answer in time.
    Silent,
    /// No connection in time; nothing was sent.
    Unreached(Option<RedisError>),
    /// The component was closed.
    Closed,
}

/// What the client does about a fault before the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The command did nothing; the same server may take it a moment later.
    Again,
    /// The command did nothing, and this server is the wrong one.
    Elsewhere,
    /// The connection is gone, and nobody knows what the command did.
    Lost,
    /// The answer is final.
    Final,
}

impl Fault {
    /// What to do about it.
    pub(crate) fn next(&self) -> Next {
        match self {
            Self::Unsent(e) => match e.kind() {
                // Waiting cannot help: wrong certificate files, a server that does not know us.
                Kind::InvalidClientConfig if !is_resolution(e) => Next::Final,
                Kind::AuthenticationFailed => Next::Final,
                _ => Next::Again,
            },
            Self::Sent(e) => match row(e) {
                Some(row) => row.next,
                None if broke(e) => Next::Lost,
                None => Next::Final,
            },
            Self::Silent | Self::Unreached(_) | Self::Closed => Next::Final,
        }
    }

    /// The server refuses everything for a while, whatever it is asked.
    pub(crate) fn is_state(e: &RedisError) -> bool {
        row(e).is_some_and(|row| matches!(row.next, Next::Again | Next::Elsewhere))
    }

    /// The error for the caller. `what` says what was tried.
    pub(crate) fn into_error(self, what: &'static str, address: &str) -> Error {
        match self {
            Self::Unsent(e) => {
                let inner = classify(what, &e);
                match inner.kind() {
                    ErrorKind::Unauthenticated | ErrorKind::PermissionDenied => inner,
                    _ => Error::unavailable(format!("{what}: cannot connect to Redis at {address}: {}", text(&e))),
                }
            }
            Self::Sent(e) => classify(what, &e),
            Self::Silent => Error::timeout(format!(
                "{what}: Redis at {address} did not answer in time; the operation may still be carried out"
            )),
            Self::Unreached(cause) => {
                let cause = cause.map(|e| format!(": {}", text(&e))).unwrap_or_default();
                Error::timeout(format!("{what}: no connection to Redis at {address} in time{cause}"))
                    .with_retry(Retry::Always)
            }
            Self::Closed => Error::unavailable(format!("{what}: the component is closed")),
        }
    }
}

/// One line of the table.
struct Row {
    code: &'static str,
    kind: ErrorKind,
    retry: Retry,
    next: Next,
    hint: &'static str,
}

const fn line(code: &'static str, kind: ErrorKind, retry: Retry, next: Next, hint: &'static str) -> Row {
    Row { code, kind, retry, next, hint }
}

/// What the first word of an error reply means. The sentences above the lines are the
/// server's own (src/server.c and src/cluster.c of Redis 7).
const TABLE: &[Row] = &[
    // "-LOADING Redis is loading the dataset in memory"
    line("LOADING", ErrorKind::Unavailable, Retry::Always, Next::Again, "the server is loading its data"),
    // "-READONLY You can't write against a read only replica."
    line("READONLY", ErrorKind::Unavailable, Retry::Always, Next::Elsewhere, "the server is a read-only replica"),
    // "-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
    line("MASTERDOWN", ErrorKind::Unavailable, Retry::Always, Next::Again, "the replica has lost its primary"),
    // "-TRYAGAIN Multiple keys request during rehashing of slot"
    line("TRYAGAIN", ErrorKind::Unavailable, Retry::Always, Next::Again, "the cluster is moving the keys"),
    // "-CLUSTERDOWN The cluster is down" / "Hash slot not served"
    line("CLUSTERDOWN", ErrorKind::Unavailable, Retry::Always, Next::Again, "the cluster does not serve the key"),
    // "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
    line("BUSY", ErrorKind::Unavailable, Retry::Always, Next::Again, "the server is busy with a script"),
    // "-NOREPLICAS Not enough good replicas to write."
    line("NOREPLICAS", ErrorKind::Unavailable, Retry::Always, Next::Final, "too few replicas; nothing was written"),
    // "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."
    line("MISCONF", ErrorKind::Unavailable, Retry::Always, Next::Final, "the server cannot save to its disk"),
    // "-OOM command not allowed when used memory > 'maxmemory'."
    line("OOM", ErrorKind::Overloaded, Retry::Always, Next::Final, "the server is out of memory; nothing was written"),
    // "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
    line("UNBLOCKED", ErrorKind::Unavailable, Retry::Always, Next::Elsewhere, "the server became a replica"),
    // "-NOAUTH Authentication required."
    line("NOAUTH", ErrorKind::Unauthenticated, Retry::Never, Next::Final, "the server asks for a password"),
    // "-WRONGPASS invalid username-password pair or user is disabled."
    line("WRONGPASS", ErrorKind::Unauthenticated, Retry::Never, Next::Final, "user name or password is wrong"),
    // "-NOPERM User joe has no permissions to run the 'get' command"
    line("NOPERM", ErrorKind::PermissionDenied, Retry::Never, Next::Final, "the user may not do this"),
    // "-WRONGTYPE Operation against a key holding the wrong kind of value"
    line("WRONGTYPE", ErrorKind::FailedPrecondition, Retry::Never, Next::Final, "the key holds another type of value"),
    // "-CROSSSLOT Keys in request don't hash to the same slot"
    line(
        "CROSSSLOT",
        ErrorKind::InvalidArgument,
        Retry::Never,
        Next::Final,
        "the keys lie on different slots of the cluster; give them a common {tag}",
    ),
    // "-MOVED 3999 127.0.0.1:6381", from a server we took for a single node.
    line("MOVED", ErrorKind::FailedPrecondition, Retry::Never, Next::Final, "a cluster; set redisType to cluster"),
    // "-NOGROUP No such key 'x' or consumer group 'y' in XREADGROUP with GROUP option"
    line("NOGROUP", ErrorKind::NotFound, Retry::Never, Next::Final, "the consumer group does not exist"),
    // "-EXECABORT Transaction discarded because of previous errors."
    line("EXECABORT", ErrorKind::Unavailable, Retry::Always, Next::Final, "the server discarded the transaction"),
    // "-NOSCRIPT No matching script. Please use EVAL."
    line("NOSCRIPT", ErrorKind::Unavailable, Retry::Always, Next::Final, "the server forgot a script"),
];

fn row(e: &RedisError) -> Option<&'static Row> {
    let code = code(e)?;
    TABLE.iter().find(|row| row.code == code)
}

/// The first word of the server's error reply.
fn code(e: &RedisError) -> Option<String> {
    let (code, detail) = match e.code() {
        Some(code) => (code.to_owned(), e.detail().map(str::to_owned)),
        // Of a failed pipeline the first failure counts.
        None => {
            let errors = e.clone().into_server_errors()?;
            let (_, first) = errors.first()?;
            (first.code().to_owned(), first.details().map(str::to_owned))
        }
    };
    // Before version 7 a script wraps the error of its command.
    let wrapped = detail.filter(|d| code == "ERR" && d.contains("@user_script")).and_then(|d| {
        let row = TABLE.iter().find(|row| d.contains(&format!("-{} ", row.code)))?;
        Some(row.code.to_owned())
    });
    Some(wrapped.unwrap_or(code))
}

/// Whether the server answered with this code.
pub(crate) fn is(e: &RedisError, wanted: &str) -> bool {
    code(e).is_some_and(|code| code == wanted)
}

/// Whether a command of a module is not known.
pub(crate) fn is_unknown_command(e: &RedisError) -> bool {
    is(e, "ERR") && e.detail().is_some_and(|d| d.contains("unknown command"))
}

/// Whether the connection broke. Anything that is no answer of the server counts: after a
/// reply that cannot be parsed nothing on that connection can be trusted.
fn broke(e: &RedisError) -> bool {
    matches!(e.kind(), Kind::Io | Kind::Parse | Kind::ClusterConnectionNotFound) || e.is_unrecoverable_error()
}

/// The look-up of the host name found nothing.
fn is_resolution(e: &RedisError) -> bool {
    e.to_string().contains("No address found")
}

/// Turns an error of the client or server into one of ours.
pub(crate) fn classify(what: &'static str, e: &RedisError) -> Error {
    if let Some(row) = row(e) {
        return Error::new(row.kind, format!("{what}: {} ({})", row.hint, text(e))).with_retry(row.retry);
    }
    let (kind, retry) = match e.kind() {
        // The login failed for a reason the table does not know.
        Kind::AuthenticationFailed => (ErrorKind::Unauthenticated, Retry::Never),
        Kind::Io if e.is_timeout() => (ErrorKind::Timeout, Retry::IfIdempotent),
        _ if broke(e) => (ErrorKind::Unavailable, Retry::IfIdempotent),
        Kind::MasterNameNotFoundBySentinel | Kind::NoValidReplicasFoundBySentinel | Kind::EmptySentinelList => {
            (ErrorKind::Unavailable, Retry::Always)
        }
        // "-ERR …" and the answers of a server we do not understand.
        _ => (ErrorKind::Internal, Retry::Never),
    };
    Error::new(kind, format!("{what}: {}", text(e))).with_retry(retry)
}

/// The error in words, without what came from the caller: some replies repeat arguments.
fn text(e: &RedisError) -> String {
    let mut text = e.to_string();
    for secret in [", with args", " with args beginning with"] {
        if let Some(at) = text.find(secret) {
            text.truncate(at);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> RedisError {
        let line = format!("-{text}\r\n");
        redis::parse_redis_value(line.as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn each_reply_has_its_kind() {
        use ErrorKind::{
            FailedPrecondition, Internal, InvalidArgument, NotFound, Overloaded, PermissionDenied, Unauthenticated,
            Unavailable,
        };
        let table = [
            ("LOADING Redis is loading the dataset in memory", Unavailable, Next::Again),
            ("READONLY You can't write against a read only replica.", Unavailable, Next::Elsewhere),
            ("MASTERDOWN Link with MASTER is down", Unavailable, Next::Again),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Unavailable, Next::Again),
            ("CLUSTERDOWN The cluster is down", Unavailable, Next::Again),
            ("BUSY Redis is busy running a script.", Unavailable, Next::Again),
            ("NOREPLICAS Not enough good replicas to write.", Unavailable, Next::Final),
            ("MISCONF Errors writing to the AOF file", Unavailable, Next::Final),
            ("OOM command not allowed when used memory > 'maxmemory'.", Overloaded, Next::Final),
            ("UNBLOCKED force unblock from blocking operation", Unavailable, Next::Elsewhere),
            ("NOAUTH Authentication required.", Unauthenticated, Next::Final),
            ("WRONGPASS invalid username-password pair", Unauthenticated, Next::Final),
            ("NOPERM this user has no permissions", PermissionDenied, Next::Final),
            ("WRONGTYPE Operation against a key", FailedPrecondition, Next::Final),
            ("CROSSSLOT Keys in request don't hash to the same slot", InvalidArgument, Next::Final),
            ("MOVED 3999 127.0.0.1:6381", FailedPrecondition, Next::Final),
            ("NOGROUP No such key 'x' or consumer group 'y'", NotFound, Next::Final),
            ("ERR value is not an integer or out of range", Internal, Next::Final),
            ("SOMETHING else", Internal, Next::Final),
            (
                "ERR Error running script (call to f_1): @user_script:1: @user_script: 1: -READONLY You can't write",
                Unavailable,
                Next::Elsewhere,
            ),
        ];
        for (text, kind, next) in table {
            let e = classify("set", &reply(text));
            assert_eq!(e.kind(), kind, "{text}");
            assert_eq!(Fault::Sent(reply(text)).next(), next, "{text}");
            assert!(e.message().starts_with("set: "), "{e}");
        }
    }

    #[test]
    fn a_refusal_that_did_nothing_may_always_be_sent_again() {
        for text in ["LOADING x", "READONLY x", "MASTERDOWN x", "OOM x", "NOREPLICAS x"] {
            assert_eq!(classify("set", &reply(text)).retry(), Retry::Always, "{text}");
        }
    }

    #[test]
    fn a_broken_connection_leaves_the_outcome_open() {
        let io = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(Fault::Sent(io.clone()).next(), Next::Lost);
        let e = Fault::Sent(io.clone()).into_error("set", "r:1");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::IfIdempotent));
        let e = Fault::Unsent(io).into_error("set", "r:1");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::Always));
        let e = Fault::Silent.into_error("set", "r:1");
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, Retry::IfIdempotent));
    }

    #[test]
    fn arguments_of_the_caller_are_not_repeated() {
        let e = classify("set", &reply("ERR unknown command 'JSON.SET', with args beginning with: 'key' 'hunter2' "));
        assert!(!e.to_string().contains("hunter2"), "{e}");
        assert!(is_unknown_command(&reply("ERR unknown command 'JSON.SET', with args beginning with: ")));
    }
}
