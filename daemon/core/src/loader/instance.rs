//! One component on its way from a document to something that can be called.

use std::sync::Arc;

use mecha_components_api::{
    BuildCx, ConfigErrors, ConfigurationStore, Error, Field, FieldType, Hold, InputBinding, LockStore, Lookup,
    Metadata, OutputBinding, Prepared, PubSub, Registration, Registry, SecretStore, StateStore,
};
use mecha_resources::{Component, ValueSource};

use super::content::Drawn;
use super::{Failure, Loader, block, info};
use crate::etag::{EtagMark, place};
use crate::keys::KeyScheme;
use crate::metrics::OpBlock;
use crate::ops::Ops;
use crate::policies::{ComponentKind, Guarded, Policies};
use crate::pubsub::scopes::TopicScopes;
use crate::store::{
    Block, ConfigurationHandle, Handle, Info, InputHandle, LockHandle, OutputHandle, PubSubHandle, SecretHandle,
    Snapshot, StateHandle, StateRules, TopicRules,
};

/// Longest value that is repeated in a message.
const LONGEST_SHOWN: usize = 32;

const STATE_KEYS: &[&str] = &[
    "keyPrefix",
    "actorStateStore",
    "outboxPublishPubsub",
    "outboxPublishTopic",
    "outboxPubsub",
    "outboxDiscardWhenMissingState",
    "primaryEncryptionKey",
    "secondaryEncryptionKey",
];
/// Features of a state store that are not built: automatic encryption and the outbox.
const UNBUILT_STATE_KEYS: &[&str] =
    &["primaryEncryptionKey", "secondaryEncryptionKey", "outboxPublishPubsub", "outboxPublishTopic"];
const PUBSUB_KEYS: &[&str] =
    &["consumerID", "allowedTopics", "publishingScopes", "subscriptionScopes", "protectedTopics"];
const BINDING_KEYS: &[&str] = &["direction", "route"];
const LOCK_KEYS: &[&str] = &["keyPrefix"];

/// What events are read from. Equal for two instances that read the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    kind: Arc<str>,
    prefix: Option<Arc<str>>,
    place: String,
}

/// A component whose metadata was accepted; nothing outside was touched.
pub(super) struct Draft {
    parts: DraftParts,
    /// What its instance holds.
    pub(super) holds: Option<Hold>,
}

enum DraftParts {
    State(Box<dyn Prepared<dyn StateStore>>, KeyScheme),
    PubSub(Box<dyn Prepared<dyn PubSub>>, TopicRules),
    Secret(Box<dyn Prepared<dyn SecretStore>>),
    Configuration(Box<dyn Prepared<dyn ConfigurationStore>>),
    Lock(Box<dyn Prepared<dyn LockStore>>, KeyScheme),
    Binding {
        input: Option<Box<dyn Prepared<dyn InputBinding>>>,
        output: Option<Box<dyn Prepared<dyn OutputBinding>>>,
        metadata: Metadata,
    },
}

/// A component that was built.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) info: Info,
    pub(super) parts: Parts,
}

/// Its handles.
#[derive(Clone, Debug)]
pub(super) enum Parts {
    State(Arc<StateHandle>),
    PubSub(Arc<PubSubHandle>),
    Secret(Arc<SecretHandle>),
    Configuration(Arc<ConfigurationHandle>),
    Lock(Arc<LockHandle>),
    Binding { input: Option<Arc<InputHandle>>, output: Option<Arc<OutputHandle>> },
}

impl Parts {
    /// Those of `name` in a snapshot.
    pub(super) fn of(s: &Snapshot, name: &str) -> Option<Self> {
        let state = s.state.get(name).cloned().map(Self::State);
        let pubsub = || s.pubsub.get(name).cloned().map(Self::PubSub);
        let secret = || s.secrets.get(name).cloned().map(Self::Secret);
        let configuration = || s.configuration.get(name).cloned().map(Self::Configuration);
        let lock = || s.lock.get(name).cloned().map(Self::Lock);
        let binding = || {
            let (input, output) = (s.input.get(name).cloned(), s.output.get(name).cloned());
            (input.is_some() || output.is_some()).then_some(Self::Binding { input, output })
        };
        state.or_else(pubsub).or_else(secret).or_else(configuration).or_else(lock).or_else(binding)
    }

    /// Takes those of `name` out of a snapshot.
    pub(super) fn remove(s: &mut Snapshot, name: &str) {
        s.state.remove(name);
        s.pubsub.remove(name);
        s.secrets.remove(name);
        s.configuration.remove(name);
        s.lock.remove(name);
        s.input.remove(name);
        s.output.remove(name);
    }

    fn put(self, s: &mut Snapshot, name: &str) {
        let name = || Box::<str>::from(name);
        match self {
            Self::State(h) => drop(s.state.insert(name(), h)),
            Self::PubSub(h) => drop(s.pubsub.insert(name(), h)),
            Self::Secret(h) => drop(s.secrets.insert(name(), h)),
            Self::Configuration(h) => drop(s.configuration.insert(name(), h)),
            Self::Lock(h) => drop(s.lock.insert(name(), h)),
            Self::Binding { input, output } => {
                s.input.extend(input.map(|h| (name(), h)));
                s.output.extend(output.map(|h| (name(), h)));
            }
        }
    }

    /// Who it is; `None` for a binding without any direction.
    pub(super) fn info(&self) -> Option<Info> {
        Some(match self {
            Self::State(h) => h.info.clone(),
            Self::PubSub(h) => h.info.clone(),
            Self::Secret(h) => h.info.clone(),
            Self::Configuration(h) => h.info.clone(),
            Self::Lock(h) => h.info.clone(),
            Self::Binding { input, output } => {
                input.as_ref().map(|h| &h.info).or_else(|| output.as_ref().map(|h| &h.info))?.clone()
            }
        })
    }

    /// Puts policies over its calls.
    pub(super) fn set_policies(&self, policies: &Policies, name: &str) {
        let both = |kind| (policies.outbound(kind, name), policies.inbound(kind, name));
        let (ops, (outbound, inbound)) = match self {
            Self::State(h) => (&h.ops, both(ComponentKind::Statestore)),
            Self::PubSub(h) => (&h.ops, both(ComponentKind::Pubsub)),
            Self::Secret(h) => (&h.ops, both(ComponentKind::Secretstore)),
            Self::Configuration(h) => (&h.ops, both(ComponentKind::Configuration)),
            Self::Lock(h) => (&h.ops, both(ComponentKind::Lock)),
            Self::Binding { input, output } => {
                let (outbound, inbound) = both(ComponentKind::Binding);
                if let Some(h) = input {
                    h.ops.set_policies(Guarded::none(), inbound);
                }
                if let Some(h) = output {
                    h.ops.set_policies(outbound, Guarded::none());
                }
                return;
            }
        };
        ops.set_policies(outbound, inbound);
    }

    /// Whether the data, or the topics, of both are at one place.
    pub(super) fn same_place(&self, other: &Self) -> bool {
        let same = |a: Option<String>, b: Option<String>| a.is_some() && a == b;
        match (self, other) {
            (Self::State(a), Self::State(b)) => {
                a.info.kind == b.info.kind && a.extra.keys == b.extra.keys && same(a.inner.place(), b.inner.place())
            }
            (Self::PubSub(_), Self::PubSub(_)) | (Self::Binding { .. }, Self::Binding { .. }) => {
                self.source().is_some_and(|source| other.source() == Some(source))
            }
            (Self::Configuration(a), Self::Configuration(b)) => same(a.inner.place(), b.inner.place()),
            (Self::Lock(a), Self::Lock(b)) => a.extra == b.extra && same(a.inner.place(), b.inner.place()),
            _ => false,
        }
    }

    /// What its ETags tell of the store they are from.
    pub(super) fn etags(&self) -> Option<&EtagMark> {
        match self {
            Self::State(h) => Some(&h.extra.etags),
            _ => None,
        }
    }

    /// What it reads events from; `None` where it reads none, or nobody can tell.
    pub(super) fn source(&self) -> Option<Source> {
        let (info, prefix, place) = match self {
            Self::PubSub(h) => (&h.info, h.extra.namespace_prefix.clone(), h.inner.place()),
            Self::Binding { input: Some(h), .. } => (&h.info, None, h.inner.place()),
            _ => return None,
        };
        Some(Source { kind: info.kind.clone(), prefix, place: place? })
    }

    /// Whether data of the app lies in it.
    pub(super) fn holds_data(&self) -> bool {
        matches!(self, Self::State(_) | Self::Configuration(_) | Self::Lock(_))
    }

    /// Users besides the snapshot and the caller's copy.
    pub(super) fn users(&self) -> u64 {
        let users = |count: usize| count.saturating_sub(1) as u64;
        match self {
            Self::State(h) => users(Arc::strong_count(h)),
            Self::PubSub(h) => users(Arc::strong_count(h)),
            Self::Secret(h) => users(Arc::strong_count(h)),
            Self::Configuration(h) => users(Arc::strong_count(h)),
            Self::Lock(h) => users(Arc::strong_count(h)),
            Self::Binding { output, .. } => output.as_ref().map_or(0, |h| users(Arc::strong_count(h))),
        }
    }

    /// Asks the backend whether it is there.
    async fn ping(&self) -> Result<(), Error> {
        match self {
            Self::State(h) => h.inner.ping().await,
            Self::PubSub(h) => h.inner.ping().await,
            Self::Secret(h) => h.inner.ping().await,
            Self::Configuration(h) => h.inner.ping().await,
            Self::Lock(h) => h.inner.ping().await,
            Self::Binding { input, output } => {
                if let Some(h) = input {
                    h.inner.ping().await?;
                }
                match output {
                    Some(h) => h.inner.ping().await,
                    None => Ok(()),
                }
            }
        }
    }

    /// Releases what was never used.
    pub(super) async fn close(&self) {
        match self {
            Self::State(h) => h.inner.close().await,
            Self::PubSub(h) => h.inner.close().await,
            Self::Secret(h) => h.inner.close().await,
            Self::Configuration(h) => h.inner.close().await,
            Self::Lock(h) => h.inner.close().await,
            Self::Binding { input, output } => {
                if let Some(h) = input {
                    h.inner.close().await;
                }
                if let Some(h) = output {
                    h.inner.close().await;
                }
            }
        }
    }
}

impl Instance {
    /// Lets ETags go on from those of the instance before; call it before this one takes calls.
    pub(super) fn follow(&self, before: Option<&EtagMark>) {
        if let (Some(new), Some(before)) = (self.parts.etags(), before) {
            new.follow(before);
        }
    }

    /// Puts it in the place of whatever has its name.
    pub(super) fn publish(self, s: &mut Snapshot) {
        let name = self.info.name.clone();
        Parts::remove(s, &name);
        s.degraded.remove(&*name);
        match s.listed.iter_mut().find(|i| i.name == name) {
            Some(slot) => *slot = self.info,
            None => s.listed.push(self.info),
        }
        self.parts.put(s, &name);
    }
}

impl Loader {
    /// Looks the type up and reads the metadata; touches nothing outside.
    pub(super) fn draft(&self, c: &Component, drawn: &Drawn) -> Result<Draft, Failure> {
        let block = block(&c.kind).ok_or_else(|| Failure::creation(format!("incorrect type {}", c.kind)))?;
        let mut md = self.metadata(c, drawn)?;
        let me = &self.core.me;
        let keys = |md: &Metadata| {
            KeyScheme::from_metadata(md, &c.meta.name, &me.app_id, &me.namespace).map_err(|e| Failure::init(c, e, true))
        };
        let parts = match block {
            Block::State => {
                let prepared = self.prepare(&self.registry.state, "state store", c, &md, STATE_KEYS)?;
                if let Some(key) = UNBUILT_STATE_KEYS.iter().find(|k| md.get_non_empty(k).is_some()) {
                    // Storing in the clear, or publishing nothing, would break a promise without a word.
                    let text =
                        format!("metadata key '{key}' is not supported by this version; remove it to go on without it");
                    return Err(Failure::init(c, text, true));
                }
                if md.get("actorStateStore").is_some_and(mecha_components_api::parse_bool) {
                    tracing::info!(target: "dapr.runtime.processor", "Using '{}' as actor state store", c.meta.name);
                }
                DraftParts::State(prepared, keys(&md)?)
            }
            Block::PubSub => {
                if md.get_non_empty("consumerID").is_none() {
                    md.insert("consumerID", me.app_id.as_ref());
                }
                let prepared = self.prepare(&self.registry.pubsub, "message bus", c, &md, PUBSUB_KEYS)?;
                let templated = c
                    .metadata
                    .iter()
                    .any(|item| matches!(&item.value, ValueSource::Plain(t) if t.expose().contains("{namespace}")));
                let rules = TopicRules {
                    scopes: TopicScopes::from_metadata(&md, &me.app_id),
                    namespace_prefix: (templated && !me.namespace.is_empty()).then(|| me.namespace.clone()),
                };
                DraftParts::PubSub(prepared, rules)
            }
            Block::Secret => DraftParts::Secret(self.prepare(&self.registry.secrets, "secret store", c, &md, &[])?),
            Block::Configuration => DraftParts::Configuration(self.prepare(
                &self.registry.configuration,
                "configuration store",
                c,
                &md,
                &[],
            )?),
            Block::Lock => {
                let prepared = self.prepare(&self.registry.lock, "lock store", c, &md, LOCK_KEYS)?;
                DraftParts::Lock(prepared, keys(&md)?)
            }
            Block::Binding => self.draft_binding(c, md)?,
        };
        let holds = match &parts {
            DraftParts::State(p, _) => p.holds(),
            DraftParts::PubSub(p, _) => p.holds(),
            DraftParts::Secret(p) => p.holds(),
            DraftParts::Configuration(p) => p.holds(),
            DraftParts::Lock(p, _) => p.holds(),
            DraftParts::Binding { input, output, .. } => {
                input.as_ref().and_then(|p| p.holds()).or_else(|| output.as_ref().and_then(|p| p.holds()))
            }
        };
        Ok(Draft { parts, holds })
    }

    fn draft_binding(&self, c: &Component, md: Metadata) -> Result<DraftParts, Failure> {
        let direction = md.get("direction").unwrap_or_default().to_lowercase();
        let wanted = |way: &str| direction.is_empty() || direction.split(',').any(|d| d.trim() == way);
        let known_input = matches!(Registry::find(&self.registry.input, &c.kind, &c.version), Lookup::Found(_));
        let known_output = matches!(Registry::find(&self.registry.output, &c.kind, &c.version), Lookup::Found(_));
        let (as_input, as_output) = (wanted("input") && known_input, wanted("output") && known_output);
        if !as_input && !as_output {
            // Says which types are known, or that the direction does not fit.
            self.prepare(&self.registry.output, "binding", c, &md, BINDING_KEYS)?;
            let text = format!("binding type {} does not work in direction '{direction}'", c.kind);
            return Err(Failure::init(c, text, true));
        }
        let input =
            as_input.then(|| self.prepare(&self.registry.input, "input binding", c, &md, BINDING_KEYS)).transpose()?;
        let output = as_output
            .then(|| self.prepare(&self.registry.output, "output binding", c, &md, BINDING_KEYS))
            .transpose()?;
        Ok(DraftParts::Binding { input, output, metadata: md })
    }

    /// Builds what was prepared; with `probe` its backend has to answer as well.
    pub(super) async fn make(&self, c: &Component, draft: Draft, probe: bool) -> Result<Instance, Failure> {
        let name = &c.meta.name;
        let (info, parts) = match draft.parts {
            DraftParts::State(prepared, keys) => {
                let inner = self.build(prepared, c).await?;
                let caps = inner.caps();
                let named = [
                    (caps.etag, "ETAG"),
                    (inner.transact().is_some(), "TRANSACTIONAL"),
                    (caps.ttl, "TTL"),
                    (caps.delete_with_prefix, "DELETE_WITH_PREFIX"),
                    (caps.keys_like, "KEYS_LIKE"),
                    (inner.query().is_some(), "QUERY_API"),
                    (caps.actor, "ACTOR"),
                ];
                let info = info(c, names(named));
                let ops = self.ops(ComponentKind::Statestore, Some(OpBlock::State), name);
                let etags = EtagMark::new(place(inner.place(), &c.kind, keys.prefix()).as_deref());
                let extra = StateRules { keys, etags };
                (info.clone(), Parts::State(Arc::new(Handle { info, ops, extra, inner })))
            }
            DraftParts::PubSub(prepared, extra) => {
                let inner = self.build(prepared, c).await?;
                let caps = inner.caps();
                let named = [
                    (caps.subscribe_wildcards, "SUBSCRIBE_WILDCARDS"),
                    (caps.message_ttl, "MESSAGE_TTL"),
                    (caps.bulk, "BULK_PUBSUB"),
                ];
                let info = info(c, names(named));
                let ops = self.ops(ComponentKind::Pubsub, None, name);
                (info.clone(), Parts::PubSub(Arc::new(Handle { info, ops, extra, inner })))
            }
            DraftParts::Secret(prepared) => {
                let inner = self.build(prepared, c).await?;
                let info = info(c, names([(inner.caps().multiple_keys, "MULTIPLE_KEY_VALUES_PER_SECRET")]));
                let ops = self.ops(ComponentKind::Secretstore, Some(OpBlock::Secret), name);
                (info.clone(), Parts::Secret(Arc::new(Handle { info, ops, extra: (), inner })))
            }
            DraftParts::Configuration(prepared) => {
                let inner = self.build(prepared, c).await?;
                let info = info(c, Vec::new());
                let ops = self.ops(ComponentKind::Configuration, Some(OpBlock::Configuration), name);
                (info.clone(), Parts::Configuration(Arc::new(Handle { info, ops, extra: (), inner })))
            }
            DraftParts::Lock(prepared, keys) => {
                let inner = self.build(prepared, c).await?;
                let info = info(c, Vec::new());
                let ops = self.ops(ComponentKind::Lock, None, name);
                (info.clone(), Parts::Lock(Arc::new(Handle { info, ops, extra: keys, inner })))
            }
            DraftParts::Binding { input, output, metadata } => {
                let input = match input {
                    Some(prepared) => Some(self.build(prepared, c).await?),
                    None => None,
                };
                let output = match output {
                    Some(prepared) => Some(self.build(prepared, c).await?),
                    None => None,
                };
                let info = info(c, names([(input.is_some(), "INPUT_BINDING"), (output.is_some(), "OUTPUT_BINDING")]));
                let policies = self.policies.load();
                let inbound = policies.inbound(ComponentKind::Binding, name);
                let input = input.map(|inner| {
                    let ops = Ops::new(&self.core.metrics, None, name, Guarded::none(), inbound);
                    Arc::new(Handle { info: info.clone(), ops, extra: metadata, inner })
                });
                let output = output.map(|inner| {
                    let outbound = policies.outbound(ComponentKind::Binding, name);
                    let ops = Ops::named(&self.core.metrics, name, inner.operations(), outbound);
                    Arc::new(Handle { info: info.clone(), ops, extra: (), inner })
                });
                (info, Parts::Binding { input, output })
            }
        };
        let instance = Instance { info, parts };
        if probe {
            let answer = tokio::time::timeout(c.init_timeout, instance.parts.ping()).await;
            let failure = match answer {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(Failure::init(c, e, false)),
                Err(_) => Some(Failure::slow(c)),
            };
            if let Some(failure) = failure {
                instance.parts.close().await;
                return Err(failure);
            }
        }
        Ok(instance)
    }

    fn build_cx(&self, component: &Component) -> BuildCx {
        BuildCx {
            name: component.meta.name.as_str().into(),
            app_id: self.core.me.app_id.clone(),
            namespace: self.core.me.namespace.clone(),
            strict: self.cx.strict_components,
            home: self.cx.home.clone(),
            clock: self.cx.clock.clone(),
        }
    }

    /// Looks the type up and reads the metadata.
    fn prepare<C: ?Sized + 'static>(
        &self,
        list: &[Registration<C>],
        what: &str,
        component: &Component,
        md: &Metadata,
        common: &[&'static str],
    ) -> Result<Box<dyn Prepared<C>>, Failure> {
        let version = if component.version.is_empty() { "v1" } else { &component.version };
        let reg = match Registry::find(list, &component.kind, &component.version) {
            Lookup::Found(reg) => reg,
            Lookup::WrongVersion(reg) => {
                return Err(Failure::creation(format!(
                    "couldn't find {what} {}/{version} (known versions: {})",
                    component.kind,
                    reg.versions.join(", ")
                )));
            }
            Lookup::Unknown => {
                let hint = match (self.cx.left_out)(&component.kind) {
                    Some(feature) => format!(" (this build was made without the feature '{feature}')"),
                    None => {
                        let mut known: Vec<&str> = list.iter().map(|r| r.kind).collect();
                        known.sort_unstable();
                        format!(" (known: {})", known.join(", "))
                    }
                };
                return Err(Failure::creation(format!("couldn't find {what} {}/{version}{hint}", component.kind)));
            }
        };
        for (key, near) in reg.unknown_keys(md, common) {
            let known: Vec<&str> = reg.fields.iter().map(|f| f.name).collect();
            let near = near.map_or_else(String::new, |n| format!(" Did you mean '{n}'?"));
            tracing::warn!(
                target: "dapr.runtime.processor",
                "component {}: metadata key '{key}' is not known and ignored.{near} Known keys: {}",
                component.log_name(),
                known.join(", ")
            );
        }
        (reg.prepare)(md, version).map_err(|e| Failure::init(component, mistakes(&e, reg.fields, component), true))
    }

    async fn build<C: ?Sized + 'static>(
        &self,
        prepared: Box<dyn Prepared<C>>,
        component: &Component,
    ) -> Result<Arc<C>, Failure> {
        let cx = self.build_cx(component);
        match tokio::time::timeout(component.init_timeout, prepared.build(&cx)).await {
            Ok(built) => built.map_err(|e: Error| Failure::init(component, e, false)),
            Err(_) => Err(Failure::slow(component)),
        }
    }

    fn ops(&self, kind: ComponentKind, block: Option<OpBlock>, name: &str) -> Ops {
        let policies = self.policies.load();
        let (out, inb) = (policies.outbound(kind, name), policies.inbound(kind, name));
        Ops::new(&self.core.metrics, block, name, out, inb)
    }
}

/// The mistakes, each with the wrong value where that cannot be a secret: numbers, durations and
/// sizes that stand in the document itself.
fn mistakes(errors: &ConfigErrors, fields: &[Field], component: &Component) -> String {
    let has_number = |ty| matches!(ty, FieldType::Integer | FieldType::Duration | FieldType::Quantity);
    let given = |key: &str| {
        let is_named = |name: &str| name.eq_ignore_ascii_case(key);
        let field = fields.iter().find(|f| is_named(f.name) || f.aliases.iter().any(|a| is_named(a)))?;
        let item = component.metadata.iter().rfind(|item| is_named(&item.name))?;
        match &item.value {
            ValueSource::Plain(text) if has_number(field.ty) && !field.secret => {
                Some(text.expose()).filter(|text| (1..=LONGEST_SHOWN).contains(&text.len()))
            }
            _ => None,
        }
    };
    let texts = errors.list().iter().map(|e| match given(&e.field) {
        Some(value) => format!("{} (given: '{}')", e.message, value.escape_debug()),
        None => e.message.clone(),
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn names<const N: usize>(capabilities: [(bool, &'static str); N]) -> Vec<&'static str> {
    capabilities.into_iter().filter_map(|(has, name)| has.then_some(name)).collect()
}
