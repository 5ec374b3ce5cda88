//! Dapr's YAML documents as types.
//!
//! [`load_dir`] and [`load_configuration_files`] read them from disk; [`Loaded::read_text`] and
//! [`Loaded::read_json`] take them from anywhere else. Every mistake is a [`Diagnostic`] with
//! file, line, field and the likeliest correction; a document with an error is skipped, the
//! others load. [`resolve`] turns the metadata of a component into plain pairs.
//!
//! No async, no logging, no environment: what is needed from outside is passed in. Values
//! that may be secrets are [`Sensitive`] and show up in neither `Debug` nor JSON.

mod component;
mod configuration;
mod decode;
mod diagnostic;
mod endpoint;
pub mod kinds;
mod load;
mod other;
mod resiliency;
mod resolve;
mod subscription;
mod text;
mod value;
pub mod yaml;

pub use component::{Component, DEFAULT_INIT_TIMEOUT, DuplicateComponents, SecretQuery, unique_names};
pub use configuration::{
    API_NAMES, AccessControl, AccessOperation, AccessPolicy, Api, ApiLogging, ApiRule, Configuration,
    DEFAULT_ALLOWED_CLOCK_SKEW, DEFAULT_SAMPLING_RATE, DEFAULT_WORKLOAD_CERT_TTL, DefaultAccess,
    FEATURES_ON_BY_DEFAULT, Feature, Handler, HttpMetrics, MetricLabel, MetricRule, Metrics, Mtls, NameResolution,
    Otel, OtelProtocol, Pipeline, SecretsScope, TokenValidator, Tracing,
};
pub use diagnostic::{Diagnostic, Located, Origin, Severity};
pub use endpoint::{ClientTls, HttpEndpoint, Renegotiation};
pub use load::{
    LoadError, Loaded, LoadedConfiguration, MAX_FILE_BYTES, MAX_FILES, Refused, load_configuration_files, load_dir,
    load_dirs,
};
pub use other::Other;
pub use resiliency::{
    ActorTarget, AppTarget, BreakerPolicy, BreakerScope, CodeList, ComponentTarget, PolicyKind, PolicyNames,
    Resiliency, RetryPolicy, RetryShape, Targets, UnknownPolicy, unknown_policies,
};
pub use resolve::{ResolveCx, ResolveError, ResolveNote, Resolved, env_ref_allowed, resolve};
pub use subscription::{BulkSubscribe, RouteRule, Routes, Subscription};
pub use text::{did_you_mean, expand, format_duration, parse_duration};
pub use value::{Meta, NameValue, OpaqueJson, Resource, SecretRef, Sensitive, SpecHash, ValueSource};

#[cfg(test)]
mod tests;
