use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    BuildCx, ConfigErrors, ConfigurationStore, InputBinding, LockStore, Metadata, NameResolver, OutputBinding, PubSub,
    Result, SecretStore, StateStore, did_you_mean,
};

/// Type of a metadata key, for decoding and for the generated reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    Text,
    /// Whole number.
    Integer,
    /// Truthy text.
    Boolean,
    /// Go duration, or a bare number.
    Duration,
    /// Kubernetes quantity.
    Quantity,
}

/// One metadata key of a component: the single source of its reference page,
/// of the unknown-key warning and of `mecha lint`.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Key as it is documented.
    pub name: &'static str,
    /// Type of its value.
    pub ty: FieldType,
    /// Other spellings that are accepted.
    pub aliases: &'static [&'static str],
    /// Must be present and not empty.
    pub required: bool,
    /// Holds a secret: use `secretKeyRef`, never shown.
    pub secret: bool,
    /// Default, as a user would write it; empty when there is none.
    pub default: &'static str,
    /// One sentence: what it does, with the unit.
    pub doc: &'static str,
}

impl Field {
    /// An optional key without default.
    #[must_use]
    pub const fn new(name: &'static str, ty: FieldType, doc: &'static str) -> Self {
        Self { name, ty, aliases: &[], required: false, secret: false, default: "", doc }
    }

    /// Marks it as required.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Marks it as a secret.
    #[must_use]
    pub const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// Documents its default.
    #[must_use]
    pub const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// Names other accepted spellings.
    #[must_use]
    pub const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }
}

/// A resource (port, file, consumer id) that an instance holds, alone or beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub resource: String,
    /// Nobody else can have it meanwhile.
    pub alone: bool,
}

impl Hold {
    /// Whether the holders of both cannot be there at a time.
    #[must_use]
    pub fn excludes(&self, other: &Self) -> bool {
        self.resource == other.resource && (self.alone || other.alone)
    }
}

/// A component whose metadata was accepted: everything that can be known
/// without touching the outside is known.
#[async_trait]
pub trait Prepared<C: ?Sized + 'static>: Send {
    /// What an instance holds that another one of the same document may want, too.
    fn holds(&self) -> Option<Hold> {
        None
    }

    /// Makes the instance. May connect, must not spawn.
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<C>>;
}

/// Reads the metadata of a document; the second argument is the version.
pub type Prepare<C> = fn(&Metadata, &str) -> Result<Box<dyn Prepared<C>>, ConfigErrors>;

/// How the runtime gets to know a component.
pub struct Registration<C: ?Sized + 'static> {
    /// Type, as documents spell it: `state.redis`.
    pub kind: &'static str,
    /// Other accepted types.
    pub aliases: &'static [&'static str],
    /// Versions, the first is the default.
    pub versions: &'static [&'static str],
    /// One line for the table of components.
    pub summary: &'static str,
    /// Its metadata keys.
    pub fields: &'static [Field],
    /// Pure; reports every mistake together.
    pub prepare: Prepare<C>,
}

impl<C: ?Sized + 'static> Registration<C> {
    /// Keys of `md` that this component does not know, each with the likeliest known one.
    /// Keys of the runtime itself (`keyPrefix`, scopes…) are passed in `common`.
    pub fn unknown_keys<'m>(&self, md: &'m Metadata, common: &[&'static str]) -> Vec<(&'m str, Option<&'static str>)> {
        let known = || {
            let own = self.fields.iter().flat_map(|f| std::iter::once(f.name).chain(f.aliases.iter().copied()));
            own.chain(common.iter().copied())
        };
        md.iter()
            .map(|(k, _)| k)
            .filter(|k| !known().any(|n| n.eq_ignore_ascii_case(k)))
            .map(|k| (k, did_you_mean(k, known())))
            .collect()
    }
}

/// Result of looking a type up.
pub enum Lookup<'a, C: ?Sized + 'static> {
    /// Known type and version.
    Found(&'a Registration<C>),
    /// Known type, unknown version.
    WrongVersion(&'a Registration<C>),
    /// Nobody registered it.
    Unknown,
}

/// All components of one process, registered explicitly.
#[derive(Default)]
pub struct Registry {
    /// `state.*`
    pub state: Vec<Registration<dyn StateStore>>,
    /// `pubsub.*`
    pub pubsub: Vec<Registration<dyn PubSub>>,
    /// `bindings.*` as sources.
    pub input: Vec<Registration<dyn InputBinding>>,
    /// `bindings.*` as calls.
    pub output: Vec<Registration<dyn OutputBinding>>,
    /// `secretstores.*`
    pub secrets: Vec<Registration<dyn SecretStore>>,
    /// `configuration.*`
    pub configuration: Vec<Registration<dyn ConfigurationStore>>,
    /// `lock.*`
    pub lock: Vec<Registration<dyn LockStore>>,
    /// `nameresolution.*`
    pub resolvers: Vec<Registration<dyn NameResolver>>,
}

impl Registry {
    /// Nothing registered.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds `kind` and `version` in one of the lists. What follows the first dot of the
    /// type, and the version, match in any case; an empty version is the first registered one.
    pub fn find<'a, C: ?Sized>(list: &'a [Registration<C>], kind: &str, version: &str) -> Lookup<'a, C> {
        let Some(reg) = list.iter().find(|r| {
            std::iter::once(&r.kind).chain(r.aliases).any(|k| same_kind(k, kind))
                && (version.is_empty() || r.versions.iter().any(|v| v.eq_ignore_ascii_case(version)))
        }) else {
            return match list.iter().find(|r| std::iter::once(&r.kind).chain(r.aliases).any(|k| same_kind(k, kind))) {
                Some(reg) => Lookup::WrongVersion(reg),
                None => Lookup::Unknown,
            };
        };
        Lookup::Found(reg)
    }
}

fn same_kind(known: &str, given: &str) -> bool {
    match (known.split_once('.'), given.split_once('.')) {
        (Some((a, b)), Some((c, d))) => a == c && b.eq_ignore_ascii_case(d),
        _ => known == given,
    }
}
