//! The contract between the runtime and its components.
//!
//! A component is a driver for one technology: it implements one or more of
//! the building-block traits here ([`StateStore`], [`PubSub`], …) and is made
//! known to the runtime by a [`Registration`] in a [`Registry`]. Components know
//! nothing of the daemon, of HTTP or of gRPC; the runtime knows nothing of
//! drivers.
//!
//! The life of a component: `prepare` (pure, reports every mistake at once) →
//! `build` (may connect, must not spawn) → use → `close`. Long work is a future
//! that the runtime owns and runs; a [`CancellationToken`] ends it.

mod binding;
mod clock;
mod component;
mod configuration;
mod error;
mod lock;
mod metadata;
mod pubsub;
mod registry;
mod resolver;
mod secret;
mod state;

pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use tokio_util::sync::CancellationToken;

pub use binding::{BindingEvent, Direction, InputBinding, Invoke, OnBindingEvent, OutputBinding, Reply};
pub use clock::{Clock, SystemClock};
pub use component::{BuildCx, Component};
pub use configuration::{Changes, ConfigItem, ConfigurationStore};
pub use error::{Error, ErrorKind, Result, Retry};
pub use lock::{FencedLock, LockStore, Unlocked};
pub use metadata::{ConfigErrors, FieldError, Metadata, did_you_mean, parse_bool, parse_go_duration, parse_quantity};
pub use pubsub::{
    BulkPublish, BulkReply, Deliver, Delivery, FailedEntry, PubSub, PubSubCaps, Publish, Subscribe, Trial, Verdict,
};
pub use registry::{Field, FieldType, Hold, Lookup, Prepare, Prepared, Registration, Registry};
pub use resolver::{Instance, NameResolver, Target};
pub use secret::{Secret, SecretCaps, SecretMap, SecretStore};
pub use state::{
    BulkState, Concurrency, Consistency, DeleteState, GetState, Item, KeyPage, ListKeys, QueryPage, QueryState,
    SetState, StateCaps, StateStore, TransactOp, TransactState, Ttl, Value,
};
