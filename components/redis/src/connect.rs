//! Dialling: a node, the primary that sentinels name, or a cluster; with or without TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mecha_components_api::Secret;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub, SendError};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates,
    TlsMode, Value,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Login, RedisConfig, Tls, Topology};
use crate::error::is;

/// A silent connection is probed after this time…
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// …this often…
const PROBE_EVERY: Duration = Duration::from_secs(3);
/// …and given up after this many probes: 14 s in all.
const PROBES: u32 = 3;
/// Bytes the other side did not confirm for this long end the connection.
const UNCONFIRMED: Duration = Duration::from_secs(10);
/// Requests that may wait for the driver; above it callers wait, each with its deadline.
const QUEUE: usize = 512;

/// A connection that many callers share.
#[derive(Clone)]
pub(crate) enum Wire {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Wire {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Node(c) => c.req_packed_command(cmd),
            Self::Cluster(c) => c.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Node(c) => c.req_packed_commands(pipeline, offset, count),
            Self::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Node(c) => c.get_db(),
            Self::Cluster(c) => c.get_db(),
        }
    }
}

/// A connection, and whether it ended.
pub(crate) struct Dialled {
    pub(crate) wire: Wire,
    /// Set once the other side closed it; never for a cluster, which dials anew by itself.
    pub(crate) gone: Arc<AtomicBool>,
}

/// Connects for calls that are answered within `answer`, at which a cluster's connection gives
/// up on them. The caller bounds the wait. Boxed, so that the futures of calls, which dial
/// seldom, stay small.
pub(crate) fn dial(config: &RedisConfig, answer: Duration) -> RedisFuture<'_, Dialled> {
    Box::pin(async move {
        if config.topology == Topology::Cluster {
            return Ok(Dialled { wire: Wire::Cluster(cluster(config, answer).await?), gone: Arc::default() });
        }
        // The third version of the protocol, because with it the client says when a
        // connection ends: a call that follows is not sent into the void.
        match dial_node(config, ProtocolVersion::RESP3).await {
            Err(e) if speaks_no_resp3(&e) => dial_node(config, ProtocolVersion::RESP2).await,
            outcome => outcome,
        }
    })
}

/// Connects for messages of channels. The caller bounds the wait.
pub(crate) fn dial_channels(config: &RedisConfig) -> RedisFuture<'_, PubSub> {
    Box::pin(async { client(config, ProtocolVersion::RESP2).await?.get_async_pubsub().await })
}

async fn dial_node(config: &RedisConfig, protocol: ProtocolVersion) -> RedisResult<Dialled> {
    let gone = Arc::new(AtomicBool::new(false));
    // Deadlines are the caller's: one timer a call is enough.
    let mut settings = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    if protocol == ProtocolVersion::RESP3 {
        let gone = Arc::clone(&gone);
        settings = settings.set_push_sender(move |push: PushInfo| -> Result<(), SendError> {
            if push.kind == PushKind::Disconnection {
                gone.store(true, Ordering::Release);
            }
            Ok(())
        });
    }
    let client = client(config, protocol).await?;
    let wire = Wire::Node(client.get_multiplexed_async_connection_with_config(&settings).await?);
    Ok(Dialled { wire, gone })
}

/// Servers before version 6, proxies, and users who may not call HELLO. Some proxies hang up on
/// what they do not know; where something else is wrong the second try says so again.
fn speaks_no_resp3(e: &RedisError) -> bool {
    e.kind() == ErrorKind::RESP3NotSupported
        || ["ERR", "NOPROTO", "NOPERM"].iter().any(|code| is(e, code))
        || (e.is_connection_dropped() && !e.is_connection_refusal())
}

/// The one server, or the one that the sentinels name now.
async fn client(config: &RedisConfig, protocol: ProtocolVersion) -> RedisResult<Client> {
    if let Topology::Sentinel(name) = &config.topology {
        return primary(config, name, protocol).await;
    }
    let Some((host, port)) = config.hosts.first() else {
        return Err(RedisError::from((ErrorKind::InvalidClientConfig, "no address")));
    };
    let info = address(config, host, *port)
        .into_connection_info()?
        .set_tcp_settings(tcp())
        .set_redis_settings(settings(&config.login, config.db).set_protocol(protocol));
    match &config.tls {
        Some(tls) => Client::build_with_tls(info, certificates(tls)),
        None => Client::open(info),
    }
}

async fn primary(config: &RedisConfig, name: &str, protocol: ProtocolVersion) -> RedisResult<Client> {
    let sentinels = config.hosts.iter().map(|(host, port)| address(config, host, *port));
    let mut builder = SentinelClientBuilder::new(sentinels, name, SentinelServerType::Master)?
        .set_client_to_redis_db(config.db)
        .set_client_to_redis_protocol(protocol)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if let Some(username) = &config.login.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &config.login.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(username) = &config.sentinel_login.username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &config.sentinel_login.password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    if let Some(tls) = &config.tls {
        builder = builder
            .set_client_to_redis_tls_mode(mode(tls))
            .set_client_to_redis_certificates(certificates(tls))
            .set_client_to_sentinel_tls_mode(mode(tls))
            .set_client_to_sentinel_certificates(certificates(tls));
    }
    builder.build()?.async_get_client().await
}

async fn cluster(config: &RedisConfig, answer: Duration) -> RedisResult<ClusterConnection> {
    let nodes = config.hosts.iter().map(|(host, port)| address(config, host, *port));
    let mut builder = ClusterClientBuilder::new(nodes)
        .tcp_settings(tcp())
        .connection_timeout(config.dial)
        .response_timeout(answer)
        .overall_response_timeout(None)
        // Redirects count as retries, so there is always one.
        .retries(config.retries.max.max(1))
        .min_retry_wait(millis(config.retries.first.min(config.retries.longest)))
        .max_retry_wait(millis(config.retries.longest));
    if let Some(username) = &config.login.username {
        builder = builder.username(username);
    }
    if let Some(password) = &config.login.password {
        builder = builder.password(password.expose());
    }
    if let Some(tls) = &config.tls {
        builder = builder.tls(mode(tls)).certs(certificates(tls));
    }
    builder.build()?.get_async_connection().await
}

fn address(config: &RedisConfig, host: &str, port: u16) -> ConnectionAddr {
    match &config.tls {
        None => ConnectionAddr::Tcp(host.to_owned(), port),
        Some(tls) => ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: tls.insecure, tls_params: None },
    }
}

fn settings(login: &Login, db: i64) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_db(db).set_lib_name("mecha", env!("CARGO_PKG_VERSION"));
    if let Some(username) = &login.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password.expose());
    }
    settings
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    let settings = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(UNCONFIRMED);
    settings
}

fn mode(tls: &Tls) -> TlsMode {
    if tls.insecure { TlsMode::Insecure } else { TlsMode::Secure }
}

fn certificates(tls: &Tls) -> TlsCertificates {
    TlsCertificates {
        client_tls: tls.client.as_ref().map(|(cert, key)| ClientTlsConfig {
            client_cert: cert.clone().into_bytes(),
            client_key: key.expose().as_bytes().to_vec(),
        }),
        root_cert: tls.roots.clone().map(String::into_bytes),
    }
}

/// Finds mistakes in certificates before anything is dialled.
pub(crate) fn check_certificates(tls: &Tls) -> Result<(), String> {
    let chain = |key: &str, text: &str| match CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Vec<_>>() {
        found if found.is_empty() => Err(format!("'{key}' holds no certificate in PEM")),
        found if found.iter().any(Result::is_err) => Err(format!("'{key}' holds a certificate that cannot be read")),
        _ => Ok(()),
    };
    if let Some(roots) = &tls.roots {
        chain("mecha.caCert", roots)?;
    }
    if let Some((cert, key)) = &tls.client {
        chain("clientCert", cert)?;
        check_key(key)?;
    }
    Ok(())
}

fn check_key(key: &Secret) -> Result<(), String> {
    PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
        .map(|_| ())
        .map_err(|_| "'clientKey' holds no private key in PEM".to_owned())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
