//! Kafka's errors in the vocabulary of the component contract: one table.

use mecha_components_api::{Error, ErrorKind, Retry};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What an error code means: kind, whether to send again, and a hint for people.
type Meaning = (ErrorKind, Retry, &'static str);

/// The table. The sentences above the arms are librdkafka's own (rd_kafka_err_descs of 2.12),
/// those that begin with Broker come from Kafka's protocol guide.
fn meaning(code: Code) -> Meaning {
    use ErrorKind::{
        FailedPrecondition, Internal, InvalidArgument, NotFound, Overloaded, PermissionDenied, Timeout, TooLarge,
        Unauthenticated, Unavailable,
    };
    use Retry::{Always, IfIdempotent, Never};
    match code {
        // "Local: Message timed out"
        Code::MessageTimedOut => (Timeout, IfIdempotent, "no acknowledgement in time; the record may still be stored"),
        // "Local: Timed out" / "Local: Timed out in queue": a question, not a record.
        Code::OperationTimedOut | Code::TimedOutQueue => (Timeout, Always, "no answer in time"),
        // "Local: All broker connections are down"
        Code::AllBrokersDown => (Unavailable, Always, "no broker can be reached"),
        // "Local: Broker transport failure"
        Code::BrokerTransportFailure => (Unavailable, IfIdempotent, "the connection to a broker broke"),
        // "Local: Host resolution failure"
        Code::Resolve => (Unavailable, Always, "the address of a broker is not known"),
        // "Local: SSL error"
        Code::SSL => {
            (Unavailable, Always, "no encrypted connection could be made; see caCert, clientCert and disableTls")
        }
        // "Local: Queue full"
        Code::QueueFull => (Overloaded, Always, "too many records wait for the brokers; nothing was sent"),
        // "Local: Authentication failure" / "Broker: SASL Authentication failed"
        Code::Authentication | Code::SaslAuthenticationFailed => {
            (Unauthenticated, Never, "the brokers refused the login; see authType and its keys")
        }
        // "Broker: Unsupported SASL mechanism" / "Broker: Request not valid in current SASL state"
        Code::UnsupportedSASLMechanism | Code::IllegalSASLState => {
            (Unauthenticated, Never, "the brokers do not take this kind of login; see saslMechanism")
        }
        // "Broker: Topic authorization failed"
        Code::TopicAuthorizationFailed => (PermissionDenied, Never, "the user may not use this topic"),
        // "Broker: Group authorization failed"
        Code::GroupAuthorizationFailed => (PermissionDenied, Never, "the user may not use this consumer group"),
        // "Broker: Cluster authorization failed"
        Code::ClusterAuthorizationFailed => (PermissionDenied, Never, "the user may not do this on the cluster"),
        // "Local: Unknown topic" / "Broker: Unknown topic or partition"
        Code::UnknownTopic | Code::UnknownTopicOrPartition => {
            (NotFound, Never, "the topic or partition does not exist, and the brokers did not create it")
        }
        // "Local: Unknown partition"
        Code::UnknownPartition => (InvalidArgument, Never, "the topic does not have this partition"),
        // "Broker: Invalid topic"
        Code::InvalidTopic => (InvalidArgument, Never, "the brokers do not take this name of a topic"),
        // "Broker: Message size too large" / "Broker: Invalid message size" / "Broker: Message batch larger than
        // configured server segment size"
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            (TooLarge, Never, "the record is larger than maxMessageBytes or than the brokers take")
        }
        // "Broker: Broker failed to validate record", such as one without a key for a compacted topic.
        Code::InvalidRecord => (InvalidArgument, Never, "the brokers refused the record"),
        // "Broker: Policy violation"
        Code::PolicyViolation => (InvalidArgument, Never, "a policy of the brokers forbids it"),
        // "Broker: Invalid message": damaged on its way.
        Code::InvalidMessage => (Unavailable, IfIdempotent, "the record arrived damaged"),
        // "Broker: Not enough in-sync replicas"
        Code::NotEnoughReplicas => (Unavailable, Always, "too few replicas are in sync; nothing was stored"),
        // "Broker: Message(s) written to insufficient number of in-sync replicas"
        Code::NotEnoughReplicasAfterAppend => (Unavailable, IfIdempotent, "stored on too few replicas"),
        // "Broker: Leader not available" / "Broker: Not leader for partition" / "Broker: Broker not available" /
        // "Broker: Request timed out" / "Broker: Broker disconnected before response received" /
        // "Broker: Disk error when trying to access log file on disk"
        Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerNotAvailable
        | Code::RequestTimedOut
        | Code::NetworkException
        | Code::KafkaStorageError => (Unavailable, IfIdempotent, "the leader of the partition is not available"),
        // "Broker: Coordinator load in progress" / "Broker: Coordinator not available" / "Broker: Not coordinator" /
        // "Local: Waiting for coordinator"
        Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::WaitingForCoordinator => (Unavailable, Always, "the coordinator of the group is not available"),
        // "Broker: Throttling quota has been exceeded"
        Code::ThrottlingQuotaExceeded => (Overloaded, Always, "the quota of this client is used up"),
        // "Broker: Unsupported version" / "Local: Required feature not supported by broker"
        Code::UnsupportedVersion | Code::UnsupportedFeature => {
            (FailedPrecondition, Never, "the brokers are too old for this client")
        }
        // "Broker: Unsupported compression type"
        Code::UnsupportedCompressionType => (FailedPrecondition, Never, "the brokers do not know this compression"),
        // "Broker: Inconsistent group protocol"
        Code::InconsistentGroupProtocol => (
            FailedPrecondition,
            Never,
            "other members of the group share partitions out in another way; see consumerGroupRebalanceStrategy",
        ),
        // "Broker: Invalid session timeout"
        Code::InvalidSessionTimeout => (FailedPrecondition, Never, "the brokers do not allow this sessionTimeout"),
        // "Local: Purged in queue"
        Code::PurgeQueue => (Unavailable, Always, "the component was closed; nothing was sent"),
        // "Local: Purged in flight"
        Code::PurgeInflight => (Unavailable, IfIdempotent, "the component was closed before the acknowledgement"),
        // "Local: Fatal error" / "Broker: Broker received an out of order sequence number" / "Broker: Producer
        // attempted an operation with an old epoch" / "Broker: Unknown Producer Id" / "Local: This instance has been
        // fenced by a newer instance": the producer cannot go on and is made anew.
        Code::Fatal
        | Code::OutOfOrderSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId
        | Code::Fenced
        | Code::ProducerFenced => (Unavailable, IfIdempotent, "the brokers lost track of this producer"),
        _ => (Internal, IfIdempotent, "unexpected error"),
    }
}

/// Waiting cannot help: the login or its rights are wrong.
pub(crate) fn is_refusal(code: Code) -> bool {
    matches!(meaning(code).0, ErrorKind::Unauthenticated | ErrorKind::PermissionDenied)
}

/// Turns an error code into one of ours. `what` says what was tried, `trouble` what last went
/// wrong with the connections, if they are in trouble.
pub(crate) fn classify(what: &str, code: Code, trouble: Option<&str>) -> Error {
    let (mut kind, retry, hint) = meaning(code);
    let cause = trouble.map(|t| format!("; last trouble: {t}")).unwrap_or_default();
    if kind == ErrorKind::Timeout && trouble.is_some() {
        // It timed out because nobody is there.
        kind = ErrorKind::Unavailable;
    }
    Error::new(kind, format!("{what}: {hint} ({code}){cause}")).with_retry(retry)
}

/// The same for what librdkafka's wrapper reports.
pub(crate) fn convert(what: &str, e: &KafkaError, trouble: Option<&str>) -> Error {
    match (e.rdkafka_error_code(), e) {
        (Some(code), _) => classify(what, code, trouble),
        (None, KafkaError::Canceled) => classify(what, Code::PurgeInflight, trouble),
        // The value may be a secret.
        (None, KafkaError::ClientConfig(_, _, key, _)) => {
            Error::new(ErrorKind::FailedPrecondition, format!("{what}: the client does not take the setting {key}"))
        }
        // Unreadable certificates and the like, in librdkafka's words, which hold no values.
        (None, KafkaError::ClientCreation(text)) => {
            Error::new(ErrorKind::FailedPrecondition, format!("{what}: {text}"))
        }
        (None, _) => Error::internal(format!("{what}: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_kind() {
        use ErrorKind::{
            FailedPrecondition, Internal, InvalidArgument, NotFound, Overloaded, PermissionDenied, Timeout, TooLarge,
            Unauthenticated, Unavailable,
        };
        let table = [
            (Code::MessageTimedOut, Timeout, Retry::IfIdempotent),
            (Code::OperationTimedOut, Timeout, Retry::Always),
            (Code::AllBrokersDown, Unavailable, Retry::Always),
            (Code::BrokerTransportFailure, Unavailable, Retry::IfIdempotent),
            (Code::Resolve, Unavailable, Retry::Always),
            (Code::SSL, Unavailable, Retry::Always),
            (Code::QueueFull, Overloaded, Retry::Always),
            (Code::Authentication, Unauthenticated, Retry::Never),
            (Code::SaslAuthenticationFailed, Unauthenticated, Retry::Never),
            (Code::UnsupportedSASLMechanism, Unauthenticated, Retry::Never),
            (Code::TopicAuthorizationFailed, PermissionDenied, Retry::Never),
            (Code::GroupAuthorizationFailed, PermissionDenied, Retry::Never),
            (Code::ClusterAuthorizationFailed, PermissionDenied, Retry::Never),
            (Code::UnknownTopicOrPartition, NotFound, Retry::Never),
            (Code::UnknownPartition, InvalidArgument, Retry::Never),
            (Code::InvalidTopic, InvalidArgument, Retry::Never),
            (Code::MessageSizeTooLarge, TooLarge, Retry::Never),
            (Code::InvalidRecord, InvalidArgument, Retry::Never),
            (Code::PolicyViolation, InvalidArgument, Retry::Never),
            (Code::NotEnoughReplicas, Unavailable, Retry::Always),
            (Code::NotEnoughReplicasAfterAppend, Unavailable, Retry::IfIdempotent),
            (Code::NotLeaderForPartition, Unavailable, Retry::IfIdempotent),
            (Code::CoordinatorNotAvailable, Unavailable, Retry::Always),
            (Code::ThrottlingQuotaExceeded, Overloaded, Retry::Always),
            (Code::UnsupportedVersion, FailedPrecondition, Retry::Never),
            (Code::InconsistentGroupProtocol, FailedPrecondition, Retry::Never),
            (Code::PurgeQueue, Unavailable, Retry::Always),
            (Code::PurgeInflight, Unavailable, Retry::IfIdempotent),
            (Code::Fatal, Unavailable, Retry::IfIdempotent),
            (Code::OutOfOrderSequenceNumber, Unavailable, Retry::IfIdempotent),
            (Code::BadMessage, Internal, Retry::IfIdempotent),
        ];
        for (code, kind, retry) in table {
            let e = classify("publish", code, None);
            assert_eq!((e.kind(), e.retry()), (kind, retry), "{code}");
            assert!(e.message().starts_with("publish: "), "{e}");
        }
    }

    #[test]
    fn a_timeout_while_nobody_is_there_says_so() {
        let e = classify("publish", Code::MessageTimedOut, Some("a:1: Connection refused"));
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, Retry::IfIdempotent));
        assert!(e.to_string().contains("Connection refused"), "{e}");
    }

    #[test]
    fn values_of_settings_are_not_repeated() {
        use rdkafka::types::RDKafkaConfRes;
        let e = KafkaError::ClientConfig(
            RDKafkaConfRes::RD_KAFKA_CONF_INVALID,
            "hunter2 is wrong".to_owned(),
            "sasl.password".to_owned(),
            "hunter2".to_owned(),
        );
        let e = convert("connect", &e, None);
        assert!(!e.to_string().contains("hunter2") && e.to_string().contains("sasl.password"), "{e}");
    }
}
