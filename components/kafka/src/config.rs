//! What a component document says about a Kafka cluster, and what librdkafka is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{ConfigErrors, Metadata, Secret};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use regex::Regex;

use crate::aws::Aws;
use crate::oidc::Oidc;
use crate::schemas::Schemas;
use crate::tokens::{Source, Tokens};

/// Ways to log in, for messages.
const AUTH_TYPES: &str = "none, password, mtls, certificate, oidc, oidc_private_key_jwt or awsiam";

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Group of a process without an app id.
const NAMELESS_GROUP: &str = "default";
/// Longest wait for an answer of a broker. A silent connection is given up after it.
const SILENCE: Duration = Duration::from_secs(10);
/// The same for a consumer with a short session, at least: brokers hold an empty fetch back for half a second.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);
/// Pauses between attempts to connect, for ever.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);
/// Longest time without news about a topic that should exist.
const PROPAGATION: Duration = Duration::from_secs(5);
/// How often positions are committed that changed.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// Messages and KiB that may wait in the producer; more are refused as overload.
const QUEUE_MESSAGES: u32 = 20_000;
const QUEUE_KIB: u32 = 64 * 1024;

/// The metadata keys of both components; `$retry` is the default of `consumeRetryEnabled`.
macro_rules! kafka_fields {
    ($retry:literal; $($own:expr,)*) => {
        &[
            Field::new("brokers", FieldType::Text, "Addresses of brokers to begin with, host:port, separated by commas.").required(),
            Field::new("authType", FieldType::Text, "How to log in: none, password, mtls, certificate, oidc, oidc_private_key_jwt or awsiam (Amazon MSK).").required(),
            Field::new("authRequired", FieldType::Boolean, "Old way to say it: true is password where saslPassword is given, else mtls; false is none."),
            Field::new("saslUsername", FieldType::Text, "User name for authType password."),
            Field::new("saslPassword", FieldType::Text, "Password for authType password.").secret(),
            Field::new("saslMechanism", FieldType::Text, "PLAINTEXT, SHA-256 or SHA-512 (the latter two are SCRAM).").default("PLAINTEXT"),
            Field::new("oidcTokenEndpoint", FieldType::Text, "Where tokens are asked for, for authType oidc and oidc_private_key_jwt."),
            Field::new("oidcClientID", FieldType::Text, "Who asks for tokens."),
            Field::new("oidcClientSecret", FieldType::Text, "Secret of the client, for authType oidc.").secret(),
            Field::new("oidcScopes", FieldType::Text, "Scopes to ask for, separated by commas.").default("openid"),
            Field::new("oidcExtensions", FieldType::Text, "Refused: the Kafka client has no SASL extensions."),
            Field::new("oidcClientAssertionCert", FieldType::Text, "Accepted; the key alone signs."),
            Field::new("oidcClientAssertionKey", FieldType::Text, "Private key that signs the client's assertion, PEM (RSA or EC P-256), for authType oidc_private_key_jwt.").secret(),
            Field::new("oidcKid", FieldType::Text, "Name of that key at the identity provider."),
            Field::new("oidcResource", FieldType::Text, "Resource that the token is for."),
            Field::new("oidcAudience", FieldType::Text, "Audience that the token (oidc) or the assertion (oidc_private_key_jwt, default the endpoint) is for."),
            Field::new("awsRegion", FieldType::Text, "Region of the cluster, for authType awsiam; default is AWS_REGION.").aliases(&["region"]),
            Field::new("awsAccessKey", FieldType::Text, "Access key, for authType awsiam; default is what AWS_ACCESS_KEY_ID or the web identity of AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN give.").aliases(&["accessKey"]),
            Field::new("awsSecretKey", FieldType::Text, "Secret of that key.").aliases(&["secretKey"]).secret(),
            Field::new("awsSessionToken", FieldType::Text, "Session token of a key that ends.").aliases(&["sessionToken"]).secret(),
            Field::new("awsIamRoleArn", FieldType::Text, "Role to take with these credentials.").aliases(&["assumeRoleArn"]),
            Field::new("awsStsSessionName", FieldType::Text, "Name of the session with that role.").aliases(&["sessionName"]).default("DaprDefaultSession"),
            Field::new("caCert", FieldType::Text, "Roots that sign the brokers' certificates, PEM, instead of the system's."),
            Field::new("clientCert", FieldType::Text, "Certificate of this client, PEM, for authType mtls."),
            Field::new("clientKey", FieldType::Text, "Key of that certificate, PEM.").secret(),
            Field::new("skipVerify", FieldType::Boolean, "Accept any certificate of a broker. Unsafe.").default("false"),
            Field::new("disableTls", FieldType::Boolean, "Send everything in the clear, passwords too.").default("false"),
            Field::new("consumerGroup", FieldType::Text, "Name of the consumer group; default is consumerID."),
            Field::new("consumerID", FieldType::Text, "Name of the consumer group; default is the app id."),
            Field::new("clientID", FieldType::Text, "How this client calls itself in the brokers' logs and quotas.").default("sarama"),
            Field::new("initialOffset", FieldType::Text, "Where a new group begins: newest or oldest.").default("newest"),
            Field::new("consumeRetryEnabled", FieldType::Boolean, "Deliver a failed record again after consumeRetryInterval; else after pauses that grow from 1s to 30s. Either way no later one of its partition is committed before it.").default($retry),
            Field::new("consumeRetryInterval", FieldType::Duration, "Pause before a failed record is delivered again; bare numbers are milliseconds.").default("100ms"),
            Field::new("heartbeatInterval", FieldType::Duration, "How often a consumer tells the group that it lives.").default("3s"),
            Field::new("sessionTimeout", FieldType::Duration, "A consumer that was silent for this long loses its partitions.").default("10s"),
            Field::new("consumerGroupRebalanceStrategy", FieldType::Text, "How partitions are shared out: range, roundrobin or sticky. sticky becomes cooperative-sticky, which cannot share a group with daprd.").default("range"),
            Field::new("mecha.assignment", FieldType::Text, "The same in librdkafka's words: range, roundrobin or cooperative-sticky; wins over consumerGroupRebalanceStrategy."),
            Field::new("channelBufferSize", FieldType::Integer, "About so many records of a partition are fetched ahead.").default("256"),
            Field::new("consumerFetchMin", FieldType::Integer, "Bytes a broker waits for before it answers a fetch.").default("1"),
            Field::new("consumerFetchDefault", FieldType::Integer, "Most bytes of a partition in one fetch; a larger record comes alone.").default("1048576"),
            Field::new("maxMessageBytes", FieldType::Integer, "Largest record that may be published, in bytes.").default("1048576"),
            Field::new("compression", FieldType::Text, "none, gzip, snappy, lz4 or zstd.").default("none"),
            Field::new("version", FieldType::Text, "Version of the brokers. Accepted; the client asks the brokers themselves.").default("2.0.0.0"),
            Field::new("clientConnectionTopicMetadataRefreshInterval", FieldType::Duration, "How often the layout of topics is asked for; new partitions are found by then.").default("8m"),
            Field::new("clientConnectionKeepAliveInterval", FieldType::Duration, "Accepted; connections are kept alive by the system's TCP settings.").default("0s"),
            Field::new("escapeHeaders", FieldType::Boolean, "Escape keys and header values of received records as in URL queries.").default("false"),
            Field::new("excludeHeaderMetaRegex", FieldType::Text, "Headers whose name matches become no metadata, and metadata whose name matches no header."),
            Field::new("schemaRegistryURL", FieldType::Text, "Schema registry with Confluent's API, for requests and subscriptions whose metadata valueSchemaType is Avro. Its certificate is checked against the system's roots and caCert."),
            Field::new("schemaRegistryAPIKey", FieldType::Text, "User name at the schema registry."),
            Field::new("schemaRegistryAPISecret", FieldType::Text, "Password of that user.").secret(),
            Field::new("schemaCachingEnabled", FieldType::Boolean, "Keep schemas; else the registry is asked for each record.").default("true"),
            Field::new("schemaLatestVersionCacheTTL", FieldType::Duration, "How long the latest schema of a topic is taken for the latest.").default("5m"),
            Field::new("useAvroJSON", FieldType::Boolean, "JSON names the type of a union's value, as Avro's JSON encoding does; else it is plain.").default("false"),
            Field::new("mecha.publishTimeout", FieldType::Duration, "Longest wait for the brokers to acknowledge a record, retries included.").default("10s"),
            $($own),*
        ]
    };
}
pub(crate) use kafka_fields;

/// How to reach a cluster, and how to read from and write to it.
#[derive(Clone)]
pub(crate) struct KafkaConfig {
    brokers: Vec<String>,
    login: Option<Login>,
    tls: Option<Tls>,
    client_id: String,
    group: Option<String>,
    heartbeat: Duration,
    session: Duration,
    assignment: Assignment,
    buffer: u32,
    fetch_min: u32,
    fetch_max: u32,
    max_message: u32,
    compression: &'static str,
    refresh: Duration,
    /// The schema registry.
    pub(crate) schemas: Option<Arc<Schemas>>,
    pub(crate) initial: Initial,
    pub(crate) retry: Redeliver,
    pub(crate) headers: HeaderRules,
    /// Longest wait of a publish.
    pub(crate) publish: Duration,
}

/// Where a group that never committed anything begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initial {
    Newest,
    Oldest,
}

/// When a record comes again that was not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redeliver {
    /// After this pause, each time.
    Constant(Duration),
    /// After pauses that grow.
    Growing,
}

/// Which headers become metadata, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderRules {
    pub(crate) escape: bool,
    pub(crate) exclude: Option<Regex>,
}

/// How to log in.
#[derive(Clone)]
enum Login {
    Password { mechanism: &'static str, username: String, password: Secret },
    Token(Tokens),
}

impl Login {
    fn mechanism(&self) -> &'static str {
        match self {
            Self::Password { mechanism, .. } => mechanism,
            Self::Token(_) => "OAUTHBEARER",
        }
    }
}

#[derive(Clone)]
struct Tls {
    roots: Option<String>,
    client: Option<(String, Secret)>,
    insecure: bool,
}

/// librdkafka's name, and whether the user asked for something it does not have.
#[derive(Clone, Copy)]
struct Assignment {
    strategy: &'static str,
    substitute: bool,
}

/// Shows no credentials.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("login", &self.login.as_ref().map(Login::mechanism))
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Redeliver {
    /// The pause before the `again`th delivery (from 1) after the first.
    pub(crate) fn pause(self, again: u32) -> Duration {
        match self {
            Self::Constant(pause) => pause,
            Self::Growing => SECOND.saturating_mul(1 << again.saturating_sub(1).min(8)).min(SECOND * 30),
        }
    }
}

impl KafkaConfig {
    /// The brokers, for [`mecha_components_api::Component::place`].
    pub(crate) fn place(&self) -> String {
        self.brokers.join(",")
    }

    /// Reads the shared keys, noting mistakes in `errors`; `retry` is the default of
    /// `consumeRetryEnabled`.
    pub(crate) fn read(md: &Metadata, errors: &mut ConfigErrors, retry: bool) -> Self {
        let brokers = brokers(md, errors);
        let (login, tls) = access(md, errors);
        let schemas = Schemas::read(md, errors).map(Arc::new);
        check_version(md, errors);
        let interval = errors.duration(md, "consumeRetryInterval", MILLISECOND, MILLISECOND * 100);
        let retry = if errors.bool(md, "consumeRetryEnabled", retry) {
            Redeliver::Constant(interval)
        } else {
            Redeliver::Growing
        };
        let exclude = match md.get_non_empty("excludeHeaderMetaRegex").map(Regex::new) {
            Some(Err(e)) => {
                errors
                    .push("excludeHeaderMetaRegex", format!("'excludeHeaderMetaRegex' is no regular expression: {e}"));
                None
            }
            Some(Ok(regex)) => Some(regex),
            None => None,
        };
        errors.duration(md, "clientConnectionKeepAliveInterval", SECOND, Duration::ZERO);
        let refresh = errors.duration(md, "clientConnectionTopicMetadataRefreshInterval", SECOND, SECOND * 480);
        let session = between(md, errors, "sessionTimeout", SECOND * 10, MILLISECOND * 10..=SECOND * 3600);
        let heartbeat = between(md, errors, "heartbeatInterval", SECOND * 3, MILLISECOND..=SECOND * 3600);
        if heartbeat >= session {
            errors.push("heartbeatInterval", "'heartbeatInterval' must be shorter than 'sessionTimeout'");
        }
        let max_message = number(md, errors, "maxMessageBytes", 1_048_576, 0..=1_000_000_000);
        Self {
            brokers,
            login,
            tls,
            schemas,
            client_id: errors.text(md, "clientID", "sarama"),
            group: md.get_non_empty("consumerGroup").or_else(|| md.get_non_empty("consumerID")).map(str::to_owned),
            heartbeat,
            session,
            assignment: assignment(md, errors),
            buffer: number(md, errors, "channelBufferSize", 256, 1..=1_000_000),
            fetch_min: number(md, errors, "consumerFetchMin", 1, 1..=100_000_000),
            fetch_max: number(md, errors, "consumerFetchDefault", 1_048_576, 1..=100_000_000),
            // As the incumbent has it, zero is the client's default.
            max_message: if max_message == 0 { 1_048_576 } else { max_message.max(1000) },
            compression: compression(md, errors),
            refresh: if refresh.is_zero() { SECOND * 480 } else { refresh.clamp(MILLISECOND * 10, SECOND * 3600) },
            initial: initial(md, errors),
            retry,
            headers: HeaderRules { escape: errors.bool(md, "escapeHeaders", false), exclude },
            publish: between(md, errors, "mecha.publishTimeout", SECOND * 10, MILLISECOND * 10..=SECOND * 3600),
        }
    }

    /// The tokens to log in with, where that is how it is done.
    pub(crate) fn tokens(&self) -> Option<&Tokens> {
        match &self.login {
            Some(Login::Token(tokens)) => Some(tokens),
            _ => None,
        }
    }

    /// The consumer group of an app.
    pub(crate) fn group(&self, app_id: &str) -> String {
        match &self.group {
            Some(group) => group.clone(),
            None if app_id.is_empty() => NAMELESS_GROUP.to_owned(),
            None => app_id.to_owned(),
        }
    }

    /// The addresses for messages.
    pub(crate) fn address(&self) -> String {
        self.brokers.join(",")
    }

    /// The assignment that takes the place of the one that was asked for.
    pub(crate) fn substitute(&self) -> Option<&'static str> {
        self.assignment.substitute.then_some(self.assignment.strategy)
    }

    /// What all clients have in common.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut c = ClientConfig::new();
        c.set_log_level(RDKafkaLogLevel::Warning);
        c.set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.timeout.ms", ms(SILENCE))
            .set("socket.connection.setup.timeout.ms", ms(SILENCE))
            .set("reconnect.backoff.ms", ms(RECONNECT_FIRST))
            .set("reconnect.backoff.max.ms", ms(RECONNECT_LONGEST))
            .set("topic.metadata.refresh.interval.ms", ms(self.refresh))
            .set("topic.metadata.propagation.max.ms", ms(PROPAGATION))
            // As the incumbent's client does; brokers may still refuse it.
            .set("allow.auto.create.topics", "true");
        let protocol = match (&self.login, &self.tls) {
            (None, None) => "plaintext",
            (None, Some(_)) => "ssl",
            (Some(_), None) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        c.set("security.protocol", protocol);
        if let Some(login) = &self.login {
            c.set("sasl.mechanisms", login.mechanism());
            if let Login::Password { username, password, .. } = login {
                c.set("sasl.username", username).set("sasl.password", password.expose());
            }
        }
        if let Some(tls) = &self.tls {
            c.set("enable.ssl.certificate.verification", if tls.insecure { "false" } else { "true" })
                .set("ssl.endpoint.identification.algorithm", if tls.insecure { "none" } else { "https" });
            if let Some(roots) = &tls.roots {
                c.set("ssl.ca.pem", roots);
            }
            if let Some((cert, key)) = &tls.client {
                c.set("ssl.certificate.pem", cert).set("ssl.key.pem", key.expose());
            }
        }
        c
    }

    /// Idempotent, acknowledged by all replicas in sync.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut c = self.client();
        c.set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", ms(self.publish))
            .set("request.timeout.ms", ms(self.publish.min(SILENCE)))
            // Whoever publishes waits for the acknowledgement: batches form by themselves while
            // requests are under way, and a lone record does not wait for company.
            .set("linger.ms", "0")
            .set("partitioner", "fnv1a_random")
            .set("compression.type", self.compression)
            .set("message.max.bytes", self.max_message.to_string())
            .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB.max(self.max_message / 512).to_string());
        c
    }

    /// A member of `group`. Positions are committed by the client, but only those that were
    /// stored, which is done after the verdict.
    pub(crate) fn consumer(&self, group: &str) -> ClientConfig {
        let mut c = self.client();
        let fetch = self.fetch_max.max(self.max_message);
        c.set("group.id", group)
            // A connection that lost its broker without a word is found before the group gives this member up.
            .set("socket.timeout.ms", ms((self.session / 2).clamp(SHORTEST_SILENCE, SILENCE)))
            .set("session.timeout.ms", ms(self.session))
            .set("heartbeat.interval.ms", ms(self.heartbeat))
            .set("max.poll.interval.ms", ms(self.session.max(SECOND * 300)))
            .set("partition.assignment.strategy", self.assignment.strategy)
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", ms(COMMIT_EVERY))
            .set("enable.auto.offset.store", "false")
            // Positions are given with each assignment, so this is for positions the log no
            // longer has: what is left of it was never seen.
            .set("auto.offset.reset", "earliest")
            .set("fetch.min.bytes", self.fetch_min.to_string())
            .set("fetch.message.max.bytes", self.fetch_max.to_string())
            .set("fetch.max.bytes", fetch.saturating_mul(8).clamp(fetch, 100_000_000).to_string())
            .set("message.max.bytes", self.max_message.to_string())
            .set("queued.min.messages", self.buffer.to_string())
            .set("queued.max.messages.kbytes", (self.fetch_max / 1024).max(64).to_string())
            // The default waits a second once enough is fetched ahead, and with a short queue
            // that would be the pace.
            .set("fetch.queue.backoff.ms", "10");
        c
    }
}

fn ms(duration: Duration) -> String {
    duration.as_millis().to_string()
}

fn number(
    md: &Metadata,
    errors: &mut ConfigErrors,
    key: &str,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> u32 {
    match u32::try_from(errors.int(md, key, default.into())) {
        Ok(n) if range.contains(&n) => n,
        _ => {
            errors.push(key, format!("'{key}' must be between {} and {}", range.start(), range.end()));
            default
        }
    }
}

fn between(
    md: &Metadata,
    errors: &mut ConfigErrors,
    key: &str,
    default: Duration,
    range: std::ops::RangeInclusive<Duration>,
) -> Duration {
    let given = errors.duration(md, key, SECOND, default);
    if range.contains(&given) {
        return given;
    }
    errors.push(key, format!("'{key}' must be between {:?} and {:?}", range.start(), range.end()));
    default
}

fn brokers(md: &Metadata, errors: &mut ConfigErrors) -> Vec<String> {
    let text = errors.required(md, "brokers");
    let mut brokers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match broker(part) {
            Some(broker) => brokers.push(broker),
            None => errors.push("brokers", "'brokers' must look like one.example:9092,two.example:9092"),
        }
    }
    if brokers.is_empty() && !text.is_empty() {
        errors.push("brokers", "'brokers' names no broker");
    }
    brokers
}

/// `host`, `host:port` or `[v6]:port`, nothing that librdkafka would read as something else.
fn broker(text: &str) -> Option<String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let allowed = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '%') || (c == ':' && text.starts_with('['))
    };
    if host.is_empty() || !host.chars().all(allowed) {
        return None;
    }
    match port.map(str::parse::<u16>) {
        None => Some(format!("{text}:9092")),
        Some(Ok(port)) if port > 0 => Some(text.to_owned()),
        Some(_) => None,
    }
}

/// How to log in, and whether to encrypt.
fn access(md: &Metadata, errors: &mut ConfigErrors) -> (Option<Login>, Option<Tls>) {
    let kind = match (md.get_non_empty("authType"), md.get_non_empty("authRequired")) {
        (Some(kind), _) => kind.to_ascii_lowercase(),
        (None, Some(required)) => match required.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" if md.get_non_empty("saslPassword").is_some() => "password".to_owned(),
            "true" | "t" | "1" => "mtls".to_owned(),
            "false" | "f" | "0" => "none".to_owned(),
            _ => {
                errors.push("authRequired", "'authRequired' must be true or false");
                return (None, None);
            }
        },
        (None, None) => {
            errors.push("authType", format!("metadata key 'authType' is required: {AUTH_TYPES}"));
            return (None, None);
        }
    };
    let login = match kind.as_str() {
        "none" => return (None, None),
        "password" => Some(login(md, errors)),
        "oidc" | "oidc_private_key_jwt" => {
            let oidc = Oidc::read(md, errors, kind == "oidc_private_key_jwt");
            oidc.map(|oidc| Login::Token(Tokens::new(Source::Oidc(oidc))))
        }
        "mtls" | "certificate" => None,
        "awsiam" => {
            let aws = Aws::read(md, errors, |name| std::env::var(name).ok());
            aws.map(|aws| Login::Token(Tokens::new(Source::Aws(aws))))
        }
        _ => {
            errors.push("authType", format!("'authType' must be {AUTH_TYPES}"));
            None
        }
    };
    let roots = pem(md, errors, "caCert");
    if kind == "certificate" && md.get_non_empty("caCert").is_none() {
        errors.push("caCert", "'caCert' is required with authType certificate");
    }
    let client = match (pem(md, errors, "clientCert"), pem(md, errors, "clientKey")) {
        (Some(cert), Some(key)) => Some((cert, Secret::new(key))),
        _ => None,
    };
    if md.get_non_empty("clientCert").is_some() != md.get_non_empty("clientKey").is_some() {
        errors.push("clientCert", "'clientCert' and 'clientKey' need each other");
    }
    let disabled = errors.bool(md, "disableTls", false);
    if disabled && kind == "mtls" {
        errors.push("disableTls", "authType mtls needs TLS, but 'disableTls' is true");
    }
    let client = client.filter(|_| kind == "mtls");
    let insecure = errors.bool(md, "skipVerify", false);
    (login, (!disabled).then_some(Tls { roots, client, insecure }))
}

fn login(md: &Metadata, errors: &mut ConfigErrors) -> Login {
    let mechanism = match errors.text(md, "saslMechanism", "PLAINTEXT").to_ascii_uppercase().as_str() {
        "PLAINTEXT" | "PLAIN" => "PLAIN",
        "SHA-256" | "SCRAM-SHA-256" => "SCRAM-SHA-256",
        "SHA-512" | "SCRAM-SHA-512" => "SCRAM-SHA-512",
        _ => {
            errors.push("saslMechanism", "'saslMechanism' must be PLAINTEXT, SHA-256 or SHA-512");
            "PLAIN"
        }
    };
    Login::Password {
        mechanism,
        username: errors.required(md, "saslUsername"),
        password: Secret::new(errors.required(md, "saslPassword")),
    }
}

fn pem(md: &Metadata, errors: &mut ConfigErrors, key: &str) -> Option<String> {
    let text = md.get_non_empty(key)?;
    if text.contains("-----BEGIN ") && text.contains("-----END ") {
        return Some(text.to_owned());
    }
    errors.push(key, format!("'{key}' must be PEM text, from -----BEGIN to -----END"));
    None
}

fn assignment(md: &Metadata, errors: &mut ConfigErrors) -> Assignment {
    let known = |strategy| Assignment { strategy, substitute: false };
    match md.get_non_empty("mecha.assignment").map(str::to_ascii_lowercase).as_deref() {
        Some("range") => return known("range"),
        Some("roundrobin") => return known("roundrobin"),
        Some("cooperative-sticky") => return known("cooperative-sticky"),
        Some(_) => {
            errors.push("mecha.assignment", "'mecha.assignment' must be range, roundrobin or cooperative-sticky")
        }
        None => {}
    }
    match errors.text(md, "consumerGroupRebalanceStrategy", "range").to_ascii_lowercase().as_str() {
        "range" => known("range"),
        "roundrobin" => known("roundrobin"),
        "sticky" => Assignment { strategy: "cooperative-sticky", substitute: true },
        _ => {
            errors.push(
                "consumerGroupRebalanceStrategy",
                "'consumerGroupRebalanceStrategy' must be range, roundrobin or sticky",
            );
            known("range")
        }
    }
}

fn compression(md: &Metadata, errors: &mut ConfigErrors) -> &'static str {
    let given = errors.text(md, "compression", "none").to_ascii_lowercase();
    match ["none", "gzip", "snappy", "lz4", "zstd"].into_iter().find(|known| *known == given) {
        Some(known) => known,
        None => {
            errors.push("compression", "'compression' must be none, gzip, snappy, lz4 or zstd");
            "none"
        }
    }
}

fn initial(md: &Metadata, errors: &mut ConfigErrors) -> Initial {
    match errors.text(md, "initialOffset", "newest").to_ascii_lowercase().as_str() {
        "newest" => Initial::Newest,
        "oldest" => Initial::Oldest,
        _ => {
            errors.push("initialOffset", "'initialOffset' must be newest or oldest");
            Initial::Newest
        }
    }
}

fn check_version(md: &Metadata, errors: &mut ConfigErrors) {
    let Some(text) = md.get_non_empty("version") else { return };
    let parts: Vec<&str> = text.split('.').collect();
    if !(3..=4).contains(&parts.len()) || !parts.iter().all(|p| p.parse::<u16>().is_ok()) {
        errors.push("version", "'version' must look like 2.0.0 or 0.10.2.0");
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
