//! The components that must keep what they acknowledge, and the servers behind them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mecha_testkit::servers::{Kafka, KafkaOptions, Postgres, PostgresOptions, Redis, RedisOptions};
use mecha_tests::{FaultProxy, component};
use tempfile::TempDir;

/// Building block of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    State,
    PubSub,
}

/// A component.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Type, and version where there are several.
    pub(crate) name: &'static str,
    pub(crate) block: Block,
    /// The server it needs, if any.
    pub(crate) server: Option<Kind>,
    /// How long a caller may have to wait for its answer, as its document says.
    pub(crate) limit: Duration,
    kind: &'static str,
    version: &'static str,
    metadata: fn(&Place) -> Vec<(&'static str, String)>,
}

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Redis,
    Postgres,
    Kafka,
}

/// Where a component finds what it stores.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Port of the proxy before the server.
    port: u16,
    /// A folder that outlives the daemon.
    pub(crate) folder: PathBuf,
}

/// What a row runs on: its server and a proxy before it, if it has one, and a folder.
pub(crate) struct Ground {
    pub(crate) behind: Option<Behind>,
    folder: TempDir,
}

/// A server behind a proxy.
pub(crate) struct Behind {
    pub(crate) proxy: FaultProxy,
    pub(crate) server: Server,
}

/// A running server that keeps what it acknowledged when it is killed.
pub(crate) enum Server {
    Redis(Redis),
    Postgres(Postgres),
    Kafka(Box<Kafka>),
}

/// Every durable component.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "state.sqlite",
        block: Block::State,
        server: None,
        limit: Duration::from_secs(1),
        kind: "state.sqlite",
        version: "v1",
        metadata: |place| vec![("connectionString", text(&place.folder.join("state.db")))],
    },
    Row {
        name: "state.redis",
        block: Block::State,
        server: Some(Kind::Redis),
        limit: Duration::from_secs(1),
        kind: "state.redis",
        version: "v1",
        metadata: redis,
    },
    Row {
        name: "state.postgresql/v1",
        block: Block::State,
        server: Some(Kind::Postgres),
        limit: Duration::from_secs(1),
        kind: "state.postgresql",
        version: "v1",
        metadata: postgres,
    },
    Row {
        name: "state.postgresql/v2",
        block: Block::State,
        server: Some(Kind::Postgres),
        limit: Duration::from_secs(1),
        kind: "state.postgresql",
        version: "v2",
        metadata: postgres,
    },
    Row {
        name: "pubsub.mecha",
        block: Block::PubSub,
        server: None,
        limit: Duration::from_secs(1),
        kind: "pubsub.mecha",
        version: "v1",
        metadata: |place| vec![("path", text(&place.folder.join("broker")))],
    },
    Row {
        name: "pubsub.redis",
        block: Block::PubSub,
        server: Some(Kind::Redis),
        limit: Duration::from_secs(1),
        kind: "pubsub.redis",
        version: "v1",
        metadata: |place| {
            let mut metadata = redis(place);
            metadata.extend([("processingTimeout", "2s".to_owned()), ("redeliverInterval", "500ms".to_owned())]);
            metadata
        },
    },
    Row {
        name: "pubsub.kafka",
        block: Block::PubSub,
        server: Some(Kind::Kafka),
        limit: Duration::from_secs(2),
        kind: "pubsub.kafka",
        version: "v1",
        metadata: |place| {
            vec![
                ("brokers", format!("127.0.0.1:{}", place.port)),
                ("authType", "none".to_owned()),
                ("initialOffset", "oldest".to_owned()),
                ("sessionTimeout", "3s".to_owned()),
                ("heartbeatInterval", "500ms".to_owned()),
                ("mecha.publishTimeout", "2s".to_owned()),
            ]
        },
    },
];

fn redis(place: &Place) -> Vec<(&'static str, String)> {
    vec![
        ("redisHost", format!("127.0.0.1:{}", place.port)),
        ("readTimeout", "1s".to_owned()),
        ("dialTimeout", "1s".to_owned()),
    ]
}

fn postgres(place: &Place) -> Vec<(&'static str, String)> {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", place.port);
    vec![("connectionString", url), ("timeout", "1s".to_owned())]
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

impl Row {
    /// The Component document for one that is called `name`.
    pub(crate) fn document(&self, name: &str, place: &Place) -> String {
        let metadata = (self.metadata)(place);
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        component(name, self.kind, &metadata).replace("version: v1", &format!("version: {}", self.version))
    }

    /// Its type, as metrics name it.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// How log lines call one of this name.
    pub(crate) fn log_name(&self, name: &str) -> String {
        format!("{name} ({}/{})", self.kind, self.version)
    }

    /// What it runs on; `None` when its server is not installed, which is told.
    pub(crate) async fn start(&self) -> Option<Ground> {
        let folder = tempfile::tempdir().unwrap();
        let Some(kind) = self.server else { return Some(Ground { behind: None, folder }) };
        let proxy = FaultProxy::start(0).await;
        let server = kind.start(&proxy)?;
        proxy.aim(server.port()).await;
        Some(Ground { behind: Some(Behind { proxy, server }), folder })
    }
}

impl Ground {
    /// What documents say.
    pub(crate) fn place(&self) -> Place {
        let port = self.behind.as_ref().map_or(0, |behind| behind.proxy.port());
        Place { port, folder: self.folder.path().to_owned() }
    }

    /// The server of a row that has one.
    pub(crate) fn behind(&mut self) -> &mut Behind {
        self.behind.as_mut().unwrap()
    }
}

impl Kind {
    fn start(self, proxy: &FaultProxy) -> Option<Server> {
        match self {
            Self::Redis => RedisOptions::new().durable().start().map(Server::Redis),
            Self::Postgres => PostgresOptions::new().durable().start().map(Server::Postgres),
            Self::Kafka => KafkaOptions::new().advertise(proxy.port()).start().map(Box::new).map(Server::Kafka),
        }
    }
}

impl Server {
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Redis(redis) => redis.port(),
            Self::Postgres(postgres) => postgres.port(),
            Self::Kafka(kafka) => kafka.port(),
        }
    }

    /// Ends it without notice.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Redis(redis) => redis.kill(),
            Self::Postgres(postgres) => postgres.kill(),
            Self::Kafka(kafka) => kafka.kill(),
        }
    }

    /// Ends it as an operator would.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Redis(redis) => {
                redis.command(&["SHUTDOWN", "NOSAVE"]);
            }
            Self::Postgres(postgres) => postgres.stop(),
            Self::Kafka(kafka) => kafka.stop(),
        }
    }

    /// Starts it again where it was, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Redis(redis) => redis.restart(),
            Self::Postgres(postgres) => postgres.restart(),
            Self::Kafka(kafka) => kafka.restart(),
        }
    }

    /// Stops it in its tracks.
    pub(crate) fn freeze(&self) {
        match self {
            Self::Redis(redis) => redis.freeze(),
            Self::Postgres(postgres) => postgres.freeze(),
            Self::Kafka(kafka) => kafka.freeze(),
        }
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        match self {
            Self::Redis(redis) => redis.thaw(),
            Self::Postgres(postgres) => postgres.thaw(),
            Self::Kafka(kafka) => kafka.thaw(),
        }
    }
}
