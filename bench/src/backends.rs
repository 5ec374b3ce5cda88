//! Real servers behind the components, started for the bench and gone with it.

use std::io;

use mecha_testkit::servers::{Kafka, Postgres, PostgresOptions, Redis};

use crate::scenario::component;

/// What is installed here; the rest is left out and said so.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) redis: Option<Redis>,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) kafka: Option<Kafka>,
}

impl Backends {
    /// Starts what there is. Redis keeps its data in memory; PostgreSQL waits for its disk.
    pub(crate) fn start() -> Self {
        let postgres = PostgresOptions::new().durable().start();
        Self { redis: Redis::start(), postgres, kafka: Kafka::start() }
    }

    /// Address of the Redis server.
    pub(crate) fn redis_address(&self) -> io::Result<Option<std::net::SocketAddr>> {
        let Some(redis) = &self.redis else { return Ok(None) };
        redis.address().parse().map(Some).map_err(io::Error::other)
    }

    /// Address of the Kafka broker.
    pub(crate) fn kafka_address(&self) -> io::Result<Option<std::net::SocketAddr>> {
        let Some(kafka) = &self.kafka else { return Ok(None) };
        kafka.address().parse().map(Some).map_err(io::Error::other)
    }

    /// Documents of all state stores, by file name; each is named after its file.
    pub(crate) fn stores(&self) -> Vec<(&'static str, String)> {
        let mut out = vec![
            ("memory.yaml", component("memory", "state.in-memory", &[])),
            ("sql.yaml", component("sql", "state.sqlite", &[("connectionString", "FOLDER/state.db")])),
        ];
        if let Some(redis) = &self.redis {
            out.push(("redis.yaml", component("redis", "state.redis", &[("redisHost", &redis.address())])));
        }
        if let Some(postgres) = &self.postgres {
            let url = postgres.url();
            out.push(("postgres.yaml", component("postgres", "state.postgresql", &[("connectionString", &url)])));
        }
        out
    }

    /// Documents of all pub/sub components; each is named after its file.
    pub(crate) fn brokers(&self) -> Vec<(&'static str, String)> {
        let mut out = vec![
            ("memory.yaml", component("memory", "pubsub.in-memory", &[])),
            ("broker.yaml", component("broker", "pubsub.mecha", &[("path", "FOLDER/broker")])),
        ];
        if let Some(redis) = &self.redis {
            out.push(("redis.yaml", component("redis", "pubsub.redis", &[("redisHost", &redis.address())])));
        }
        if let Some(kafka) = &self.kafka {
            let address = kafka.address();
            let metadata = [("brokers", &*address), ("authType", "none"), ("initialOffset", "oldest")];
            out.push(("kafka.yaml", component("kafka", "pubsub.kafka", &metadata)));
        }
        out
    }
}
