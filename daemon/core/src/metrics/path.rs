//! The `path` and `method` labels of the HTTP metrics.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Reported for request methods HTTP does not define.
const UNKNOWN_METHOD: &str = "UNKNOWN";

/// A pattern with more segments than this is refused; no real route has as many.
const MAX_SEGMENTS: usize = 64;

/// How the HTTP metrics name paths and methods (Configuration `metrics.http`).
#[derive(Clone, Debug, PartialEq)]
pub struct HttpLabelConfig {
    /// Report real paths; off: only a few fixed ones.
    pub increased_cardinality: bool,
    /// Patterns such as `/orders/{id}` that are reported in place of paths they match.
    pub path_matching: Vec<String>,
    /// Leave the `method` label empty.
    pub exclude_verbs: bool,
}

/// Which side of the daemon a path belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PathSide {
    /// A request on the daemon's own API.
    Api,
    /// A call from the daemon to the app.
    App,
}

/// Decides labels; built once per configuration.
#[derive(Debug)]
pub struct HttpLabels {
    config: HttpLabelConfig,
    patterns: Node,
    has_patterns: bool,
}

#[derive(Debug, Default)]
struct Node {
    literal: BTreeMap<Box<str>, Node>,
    any: Option<Box<Node>>,
    /// Pattern that ends here.
    end: Option<Box<str>>,
    /// Pattern that takes everything from here: `{rest...}` or a trailing slash.
    rest: Option<Box<str>>,
}

impl Default for HttpLabelConfig {
    fn default() -> Self {
        Self { increased_cardinality: true, path_matching: Vec::new(), exclude_verbs: false }
    }
}

impl HttpLabels {
    /// Real paths, no patterns.
    pub(super) fn plain() -> Self {
        Self { config: HttpLabelConfig::default(), patterns: Node::default(), has_patterns: false }
    }

    /// Compiles the patterns; the text of an error names the pattern.
    pub fn new(config: HttpLabelConfig) -> Result<Self, String> {
        let (labels, mistakes) = Self::lenient(config);
        match mistakes.into_iter().next() {
            Some(mistake) => Err(mistake),
            None => Ok(labels),
        }
    }

    /// Leaves out the patterns that are wrong, and says which.
    pub(super) fn lenient(config: HttpLabelConfig) -> (Self, Vec<String>) {
        let mut patterns = Node::default();
        let mistakes = config.path_matching.iter().filter_map(|pattern| patterns.insert(pattern).err()).collect();
        (Self { has_patterns: !config.path_matching.is_empty(), config, patterns }, mistakes)
    }

    /// Whether both were made of the same settings.
    pub(super) fn has_config_of(&self, other: &Self) -> bool {
        self.config == other.config
    }

    /// Whether real paths are reported, and with them the metrics that exist
    /// only then (`http/server/response_count`).
    pub fn increased_cardinality(&self) -> bool {
        self.config.increased_cardinality
    }

    /// The `method` label.
    pub fn method(&self, method: &str) -> &'static str {
        if self.config.exclude_verbs {
            return "";
        }
        const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
        KNOWN.into_iter().find(|known| *known == method).unwrap_or(UNKNOWN_METHOD)
    }

    /// The `path` label of `path`, which has no query.
    pub fn path<'a>(&'a self, side: PathSide, path: &'a str) -> Cow<'a, str> {
        if self.has_patterns {
            if side == PathSide::Api
                && let Some(rest) = invoked_path(path)
            {
                if let Some(pattern) = self.patterns.find(rest) {
                    return Cow::Owned(format!("/v1.0/invoke/{{app_id}}/method{pattern}"));
                }
            } else if let Some(pattern) = self.patterns.find(path) {
                return Cow::Borrowed(pattern);
            }
        }
        if self.config.increased_cardinality {
            return shorten(path);
        }
        match path {
            "/dapr/config" | "/dapr/subscribe" | "/healthz" => Cow::Borrowed(path),
            _ => Cow::Borrowed(""),
        }
    }
}

/// The app's own path inside `/v1.0/invoke/<app>/method/<path>`, with its slash.
fn invoked_path(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v1.0/invoke/")?;
    let rest = &rest[rest.find('/')?..];
    let rest = rest.strip_prefix("/method")?;
    rest.starts_with('/').then_some(rest)
}

/// Cuts or hides what makes a series per key, actor or workflow instance.
fn shorten(path: &str) -> Cow<'_, str> {
    let bare = path.strip_prefix('/').unwrap_or(path);
    let mut parts = [""; 6];
    let mut len = 0;
    for part in bare.splitn(6, '/') {
        parts[len] = part;
        len += 1;
    }
    if len < 3 {
        return Cow::Borrowed(path);
    }
    if parts[0] == "actors" {
        parts[2] = "{id}";
        return join(&parts[..len]);
    }
    if !parts[0].starts_with("v1.0") {
        return Cow::Borrowed(path);
    }
    match (parts[1], len) {
        ("state" | "secrets", _) => join(&parts[..3]),
        ("actors", 5..) => {
            parts[3] = "{id}";
            join(&parts[..5])
        }
        // `<component>/<name>/start` holds no instance.
        ("workflows", 5) if parts[4] == "start" => Cow::Borrowed(path),
        ("workflows", 4 | 5) => {
            parts[3] = "{instanceId}";
            join(&parts[..len])
        }
        ("workflows", 6) => {
            parts[3] = "{instanceId}";
            parts[5] = "{eventName}";
            join(&parts)
        }
        _ => Cow::Borrowed(path),
    }
}

fn join(parts: &[&str]) -> Cow<'static, str> {
    let mut out = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for part in parts {
        out.push('/');
        out.push_str(part);
    }
    Cow::Owned(out)
}

impl Node {
    fn insert(&mut self, pattern: &str) -> Result<(), String> {
        let Some(bare) = pattern.strip_prefix('/') else {
            return Err(format!("path pattern {pattern:?} must start with a slash"));
        };
        let parts: Vec<&str> = bare.split('/').collect();
        if parts.len() > MAX_SEGMENTS {
            return Err(format!("path pattern {pattern:?} has more than {MAX_SEGMENTS} segments"));
        }
        let mut node = self;
        for (at, part) in parts.iter().enumerate() {
            let last = at + 1 == parts.len();
            if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                if name == "$" && last {
                    node = node.literal.entry("".into()).or_default();
                    break;
                }
                if let Some(name) = name.strip_suffix("...") {
                    if !last || name.is_empty() {
                        return Err(format!(
                            "path pattern {pattern:?}: {{{name}...}} must be the last segment and have a name"
                        ));
                    }
                    return set(&mut node.rest, pattern);
                }
                if name.is_empty() {
                    return Err(format!("path pattern {pattern:?} has a parameter without a name"));
                }
                node = node.any.get_or_insert_default();
            } else if part.contains(['{', '}']) {
                return Err(format!("path pattern {pattern:?}: a parameter must be a whole segment"));
            } else if part.is_empty() && last && parts.len() > 1 {
                return set(&mut node.rest, pattern);
            } else {
                node = node.literal.entry((*part).into()).or_default();
            }
        }
        set(&mut node.end, pattern)
    }

    fn find(&self, path: &str) -> Option<&str> {
        self.walk(path.strip_prefix('/')?)
    }

    /// The most exact pattern wins: literal before parameter before rest, left to right.
    fn walk(&self, path: &str) -> Option<&str> {
        let (part, rest) = match path.split_once('/') {
            Some((part, rest)) => (part, Some(rest)),
            None => (path, None),
        };
        self.literal
            .get(part)
            .and_then(|node| node.after(rest))
            .or_else(|| self.any.as_deref().filter(|_| !part.is_empty()).and_then(|node| node.after(rest)))
            .or(self.rest.as_deref())
    }

    fn after(&self, rest: Option<&str>) -> Option<&str> {
        match rest {
            Some(rest) => self.walk(rest),
            None => self.end.as_deref(),
        }
    }
}

fn set(slot: &mut Option<Box<str>>, pattern: &str) -> Result<(), String> {
    match slot {
        Some(other) if **other != *pattern => {
            Err(format!("path patterns {other:?} and {pattern:?} match the same paths"))
        }
        _ => {
            *slot = Some(pattern.into());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(patterns: &[&str], increased_cardinality: bool) -> HttpLabels {
        HttpLabels::new(HttpLabelConfig {
            increased_cardinality,
            path_matching: patterns.iter().map(|p| (*p).to_owned()).collect(),
            exclude_verbs: false,
        })
        .unwrap()
    }

    #[test]
    fn real_paths_hide_keys_ids_and_instances() {
        let labels = labels(&[], true);
        for (side, path, label) in [
            (PathSide::Api, "/v1.0/state/store/key/with/slashes", "/v1.0/state/store"),
            (PathSide::Api, "/v1.0/state/store", "/v1.0/state/store"),
            (PathSide::Api, "/v1.0/secrets/vault/password", "/v1.0/secrets/vault"),
            (PathSide::Api, "/v1.0/metadata", "/v1.0/metadata"),
            (PathSide::Api, "/v1.0/invoke/a/method/orders/7", "/v1.0/invoke/a/method/orders/7"),
            (PathSide::Api, "/v1.0/actors/T/17/method/m", "/v1.0/actors/T/{id}/method"),
            (PathSide::Api, "/v1.0/actors/T/17/state", "/v1.0/actors/T/{id}/state"),
            (PathSide::App, "/actors/T/17/method/m", "/actors/T/{id}/method/m"),
            (PathSide::App, "/orders/state/7", "/orders/state/7"),
            (PathSide::Api, "/v1.0/workflows/dapr/17", "/v1.0/workflows/dapr/{instanceId}"),
            (PathSide::Api, "/v1.0/workflows/dapr/17/terminate", "/v1.0/workflows/dapr/{instanceId}/terminate"),
            (PathSide::Api, "/v1.0/workflows/dapr/Order/start", "/v1.0/workflows/dapr/Order/start"),
            (
                PathSide::Api,
                "/v1.0/workflows/dapr/17/raiseEvent/paid",
                "/v1.0/workflows/dapr/{instanceId}/raiseEvent/{eventName}",
            ),
            (PathSide::Api, "", ""),
            (PathSide::Api, "/", "/"),
        ] {
            assert_eq!(labels.path(side, path), label, "{path}");
        }
    }

    #[test]
    fn low_cardinality_keeps_only_fixed_paths() {
        let labels = labels(&[], false);
        for (path, label) in [
            ("/dapr/config", "/dapr/config"),
            ("/dapr/subscribe", "/dapr/subscribe"),
            ("/healthz", "/healthz"),
            ("/v1.0/healthz", ""),
            ("/orders/7", ""),
        ] {
            assert_eq!(labels.path(PathSide::App, path), label);
        }
    }

    #[test]
    fn patterns_are_reported_on_both_sides() {
        let labels = labels(&["/orders/{id}", "/orders/new", "/files/{path...}", "/tree/"], false);
        for (side, path, label) in [
            (PathSide::App, "/orders/7", "/orders/{id}"),
            (PathSide::App, "/orders/new", "/orders/new"),
            (PathSide::App, "/orders/", ""),
            (PathSide::App, "/orders/7/lines", ""),
            (PathSide::App, "/files/a/b/c", "/files/{path...}"),
            (PathSide::App, "/tree/a", "/tree/"),
            (PathSide::Api, "/v1.0/invoke/shop/method/orders/7", "/v1.0/invoke/{app_id}/method/orders/{id}"),
            (PathSide::Api, "/v1.0/invoke/shop/method/other", ""),
            (PathSide::Api, "/v1.0/invoke/shop", ""),
            (PathSide::Api, "/orders/7", "/orders/{id}"),
        ] {
            assert_eq!(labels.path(side, path), label, "{path}");
        }
    }

    #[test]
    fn bad_patterns_are_named() {
        for pattern in ["orders", "/a/{}", "/a{b}", "/{rest...}/x", "/{...}"] {
            let config = HttpLabelConfig { path_matching: vec![pattern.into()], ..Default::default() };
            let error = HttpLabels::new(config).unwrap_err();
            assert!(error.contains(pattern), "{error}");
        }
        let config = HttpLabelConfig { path_matching: vec!["/a/{x}".into(), "/a/{y}".into()], ..Default::default() };
        assert!(HttpLabels::new(config).unwrap_err().contains("match the same paths"));
    }

    #[test]
    fn methods_are_a_closed_set() {
        let labels = labels(&[], true);
        assert_eq!(labels.method("PATCH"), "PATCH");
        assert_eq!(labels.method("BREW"), "UNKNOWN");
        let without = HttpLabels::new(HttpLabelConfig { exclude_verbs: true, ..Default::default() }).unwrap();
        assert_eq!(without.method("GET"), "");
    }

    proptest::proptest! {
        #[test]
        fn any_path_gets_a_label(path in "(/?[a-z0-9.{}]{0,12}){0,9}", high: bool) {
            let labels = labels(&["/orders/{id}", "/a/{b}/c"], high);
            let _ = labels.path(PathSide::Api, &path);
            let _ = labels.path(PathSide::App, &path);
        }
    }
}
