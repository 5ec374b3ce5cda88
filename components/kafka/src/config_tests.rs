use proptest::prelude::*;

use super::*;

const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn read(pairs: &[(&str, &str)]) -> Result<KafkaConfig, ConfigErrors> {
    let md: Metadata = pairs.iter().copied().collect();
    let mut errors = ConfigErrors::new();
    let config = KafkaConfig::read(&md, &mut errors, true);
    errors.finish(config)
}

fn with(pairs: &[(&str, &str)]) -> Result<KafkaConfig, ConfigErrors> {
    read(&[&[("brokers", "a:1"), ("authType", "none")], pairs].concat())
}

#[test]
fn defaults() {
    let config = with(&[]).unwrap();
    assert_eq!(config.group("app"), "app");
    assert_eq!(config.group(""), "default");
    assert_eq!((config.initial, config.retry), (Initial::Newest, Redeliver::Constant(MILLISECOND * 100)));
    let consumer = config.consumer("app");
    let has = |c: &ClientConfig, key: &str, value: &str| assert_eq!(c.get(key), Some(value), "{key}");
    has(&consumer, "client.id", "sarama");
    has(&consumer, "session.timeout.ms", "10000");
    has(&consumer, "socket.timeout.ms", "5000");
    has(&consumer, "heartbeat.interval.ms", "3000");
    has(&consumer, "partition.assignment.strategy", "range");
    has(&consumer, "security.protocol", "plaintext");
    has(&consumer, "enable.auto.offset.store", "false");
    let producer = config.producer();
    has(&producer, "enable.idempotence", "true");
    has(&producer, "acks", "all");
    has(&producer, "message.max.bytes", "1048576");
    has(&producer, "partitioner", "fnv1a_random");
}

#[test]
fn librdkafka_takes_every_setting() {
    let given = [("consumerGroupRebalanceStrategy", "sticky"), ("compression", "zstd"), ("saslUsername", "u")];
    let secret = [("saslPassword", "p"), ("saslMechanism", "SHA-512"), ("caCert", PEM)];
    let config =
        read(&[&[("brokers", "a:1,[::1]:2"), ("authType", "password")], &given[..], &secret].concat()).unwrap();
    config.producer().create_native_config().unwrap();
    config.consumer("g").create_native_config().unwrap();
    assert_eq!(config.consumer("g").get("security.protocol"), Some("sasl_ssl"));
    assert_eq!(config.substitute(), Some("cooperative-sticky"));
}

#[test]
fn the_group_is_named_by_the_first_of_its_keys() {
    assert_eq!(with(&[("consumerID", "c")]).unwrap().group("app"), "c");
    assert_eq!(with(&[("consumerID", "c"), ("consumerGroup", "g")]).unwrap().group("app"), "g");
}

#[test]
fn certificates_are_verified_unless_told_otherwise() {
    let setting = |pairs: &[(&str, &str)], key: &str| {
        let config =
            read(&[&[("brokers", "a:1"), ("authType", "certificate"), ("caCert", PEM)], pairs].concat()).unwrap();
        config.producer().get(key).map(str::to_owned)
    };
    assert_eq!(setting(&[], "enable.ssl.certificate.verification").as_deref(), Some("true"));
    assert_eq!(setting(&[], "ssl.endpoint.identification.algorithm").as_deref(), Some("https"));
    assert_eq!(setting(&[("skipVerify", "true")], "enable.ssl.certificate.verification").as_deref(), Some("false"));
    assert_eq!(setting(&[("disableTls", "true")], "security.protocol").as_deref(), Some("plaintext"));
}

#[test]
fn the_old_key_of_the_login_counts_where_the_new_one_is_missing() {
    let protocol = |pairs: &[(&str, &str)]| {
        read(&[&[("brokers", "a:1")], pairs].concat()).map(|c| c.producer().get("security.protocol").map(str::to_owned))
    };
    assert_eq!(protocol(&[("authRequired", "false")]).unwrap().as_deref(), Some("plaintext"));
    assert_eq!(protocol(&[("authRequired", "true")]).unwrap().as_deref(), Some("ssl"));
    let password = [("authRequired", "true"), ("saslUsername", "u"), ("saslPassword", "p")];
    assert_eq!(protocol(&password).unwrap().as_deref(), Some("sasl_ssl"));
    assert!(protocol(&[("authRequired", "maybe")]).is_err());
    assert!(protocol(&[]).is_err());
}

#[test]
fn every_mistake_is_told_and_no_secret() {
    let errors = read(&[
        ("brokers", "a b"),
        ("authType", "password"),
        ("saslPassword", "hunter2"),
        ("saslMechanism", "MD5"),
        ("clientKey", "hunter2"),
        ("initialOffset", "middle"),
        ("version", "new"),
        ("compression", "rar"),
        ("channelBufferSize", "0"),
        ("excludeHeaderMetaRegex", "("),
        ("heartbeatInterval", "20s"),
        ("schemaRegistryURL", "http://joe:hunter2@r"),
        ("consumerGroupRebalanceStrategy", "fair"),
        ("mecha.publishTimeout", "0"),
    ])
    .unwrap_err();
    let fields: Vec<&str> = errors.list().iter().map(|e| e.field.as_str()).collect();
    for field in [
        "brokers",
        "saslUsername",
        "saslMechanism",
        "clientKey",
        "clientCert",
        "initialOffset",
        "version",
        "compression",
        "channelBufferSize",
        "excludeHeaderMetaRegex",
        "heartbeatInterval",
        "schemaRegistryURL",
        "consumerGroupRebalanceStrategy",
        "mecha.publishTimeout",
    ] {
        assert!(fields.contains(&field), "{field} is not among {fields:?}");
    }
    assert!(!errors.to_string().contains("hunter2"));
}

#[test]
fn a_login_that_cannot_be_made_is_refused_by_name() {
    let keys = [("awsRegion", "Frankfurt"), ("awsSecretKey", "hunter2")];
    let text = read(&[&[("brokers", "a:1"), ("authType", "awsiam")], &keys[..]].concat()).unwrap_err().to_string();
    assert!(text.contains("awsRegion") && !text.contains("hunter2"), "{text}");
    let token = [("brokers", "a:1"), ("oidcTokenEndpoint", "nowhere"), ("oidcExtensions", "{}"), ("caCert", "hunter2")];
    for (kind, missing) in [("oidc", "oidcClientSecret"), ("oidc_private_key_jwt", "oidcClientAssertionKey")] {
        let text = read(&[&[("authType", kind)], &token[..]].concat()).unwrap_err().to_string();
        for key in ["oidcTokenEndpoint", "oidcClientID", "oidcExtensions", missing] {
            assert!(text.contains(key), "{key} is not named: {text}");
        }
        assert!(!text.contains("hunter2"));
    }
}

#[test]
fn a_member_with_a_short_session_finds_a_silent_connection_sooner() {
    let silence = |session: &str| {
        let config = with(&[("sessionTimeout", session), ("heartbeatInterval", "100ms")]).unwrap();
        config.consumer("app").get("socket.timeout.ms").map(str::to_owned)
    };
    for (session, want) in [("1s", "2000"), ("6s", "3000"), ("60s", "10000")] {
        assert_eq!(silence(session).as_deref(), Some(want), "{session}");
    }
}

#[test]
fn aws_logs_in_by_token() {
    let keys = [("awsRegion", "eu-west-1"), ("awsAccessKey", "a"), ("awsSecretKey", "hunter2")];
    let config = read(&[&[("brokers", "a:1"), ("authType", "awsiam")], &keys[..]].concat()).unwrap();
    assert_eq!(config.producer().get("sasl.mechanisms"), Some("OAUTHBEARER"));
    assert_eq!(config.producer().get("security.protocol"), Some("sasl_ssl"));
    assert!(config.tokens().is_some());
    assert!(!format!("{config:?}{:?}", config.tokens()).contains("hunter2"));
}

#[test]
fn addresses() {
    let brokers = |text: &str| read(&[("brokers", text), ("authType", "none")]).map(|c| c.address());
    assert_eq!(brokers("a, b:1 ,[::1]:2").unwrap(), "a:9092,b:1,[::1]:2");
    for bad in ["", ",", "a:0", "a:x", "a:70000", ":1", "plaintext://a:1", "u@a:1", "[::1", "a b:1"] {
        assert!(brokers(bad).is_err(), "{bad}");
    }
}

#[test]
fn credentials_stay_out_of_debug() {
    let pairs = [("brokers", "a:1"), ("authType", "password"), ("saslUsername", "u"), ("saslPassword", "hunter2")];
    assert!(!format!("{:?}", read(&pairs).unwrap()).contains("hunter2"));
}

proptest! {
    #[test]
    fn any_address_is_read_or_refused(text in "\\PC{0,40}|[a-z0-9.:,\\[\\]]{0,40}") {
        if let Ok(config) = read(&[("brokers", &text), ("authType", "none")]) {
            prop_assert!(config.producer().create_native_config().is_ok());
        }
    }

    #[test]
    fn pauses_are_bounded(again in 0_u32..u32::MAX) {
        prop_assert!(Redeliver::Growing.pause(again) <= SECOND * 30);
        prop_assert!(Redeliver::Growing.pause(again) >= SECOND);
    }
}
