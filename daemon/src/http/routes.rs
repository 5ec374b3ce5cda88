//! The one table of HTTP paths. Anything that is not in it falls through to service invocation.

use http::Method;
use mecha_core::unbuilt::Unbuilt;

/// A matched API path; parameters are still escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'p> {
    Invoke {
        id: &'p str,
        method: &'p str,
    },
    StateGet {
        store: &'p str,
        key: &'p str,
    },
    StateSave {
        store: &'p str,
    },
    StateDelete {
        store: &'p str,
        key: &'p str,
    },
    StateBulkGet {
        store: &'p str,
    },
    StateTransact {
        store: &'p str,
    },
    StateQuery {
        store: &'p str,
    },
    Publish {
        pubsub: &'p str,
        topic: &'p str,
    },
    PublishBulk {
        pubsub: &'p str,
        topic: &'p str,
    },
    Binding {
        name: &'p str,
    },
    SecretGet {
        store: &'p str,
        key: &'p str,
    },
    SecretList {
        store: &'p str,
    },
    ConfigurationGet {
        store: &'p str,
    },
    ConfigurationSubscribe {
        store: &'p str,
    },
    ConfigurationUnsubscribe {
        store: &'p str,
        id: &'p str,
    },
    Metadata,
    MetadataSet {
        key: &'p str,
    },
    Health,
    OutboundHealth,
    Shutdown,
    TryLock {
        store: &'p str,
    },
    Unlock {
        store: &'p str,
    },
    Unbuilt {
        what: Unbuilt,
        name: &'p str,
    },
    /// Our own additions below `/v1.0-mecha/`.
    Mecha {
        rest: &'p str,
    },
}

impl Route<'_> {
    /// Whether the handler reads a body.
    pub(super) fn takes_body(&self) -> bool {
        matches!(
            self,
            Self::StateSave { .. }
                | Self::StateBulkGet { .. }
                | Self::StateTransact { .. }
                | Self::StateQuery { .. }
                | Self::Publish { .. }
                | Self::PublishBulk { .. }
                | Self::Binding { .. }
                | Self::MetadataSet { .. }
                | Self::TryLock { .. }
                | Self::Unlock { .. }
        )
    }
}

/// A route with the API name and version that allow and deny lists speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Matched<'p> {
    pub(super) api: &'static str,
    pub(super) version: &'static str,
    pub(super) route: Route<'p>,
}

/// What the table says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match<'p> {
    /// Path and method are known.
    Known(Matched<'p>),
    /// The path is known under another method.
    OtherMethod,
    /// Not an API path.
    None,
}

/// Looks up a cleaned, still escaped path.
pub(super) fn find<'p>(method: &Method, path: &'p str) -> Match<'p> {
    let Some((version, rest)) = path.strip_prefix("/v1.0").and_then(split_version) else { return Match::None };
    let (api, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let get = method == Method::GET;
    let post = method == Method::POST;
    let save = post || method == Method::PUT;
    let delete = method == Method::DELETE;
    let stable = version == "v1";
    let alpha1 = version == "v1alpha1";
    let two = rest.split_once('/');
    let known = |api: &'static str, ok: bool, route: Route<'p>| {
        if ok { Match::Known(Matched { api, version, route }) } else { Match::OtherMethod }
    };
    match api {
        "invoke" if stable => match two {
            Some((id, tail)) => match tail.strip_prefix("method/") {
                Some(method) => known("invoke", true, Route::Invoke { id, method }),
                None if tail == "method" => known("invoke", true, Route::Invoke { id, method: "" }),
                None => Match::None,
            },
            None => Match::None,
        },
        "state" if stable => match two {
            None if !rest.is_empty() => known("state", save, Route::StateSave { store: rest }),
            Some((store, key @ ("bulk" | "transaction"))) => {
                if save && key == "bulk" {
                    known("state", true, Route::StateBulkGet { store })
                } else if save {
                    known("state", true, Route::StateTransact { store })
                } else if get {
                    known("state", true, Route::StateGet { store, key })
                } else {
                    known("state", delete, Route::StateDelete { store, key })
                }
            }
            Some((store, key)) if !key.contains('/') => {
                if get {
                    known("state", true, Route::StateGet { store, key })
                } else {
                    known("state", delete, Route::StateDelete { store, key })
                }
            }
            _ => Match::None,
        },
        "state" if alpha1 => match two {
            Some((store, "query")) => known("state", save, Route::StateQuery { store }),
            _ => Match::None,
        },
        "publish" if stable || alpha1 => {
            if let Some(("bulk", tail)) = two
                && let Some((pubsub, topic)) = tail.split_once('/')
            {
                return known("publish", save, Route::PublishBulk { pubsub, topic });
            }
            if !stable {
                return Match::None;
            }
            let (pubsub, topic) = two.unwrap_or((rest, ""));
            known("publish", save, Route::Publish { pubsub, topic })
        }
        "bindings" if stable && two.is_none() && !rest.is_empty() => {
            known("bindings", save, Route::Binding { name: rest })
        }
        "secrets" if stable => match two {
            Some((store, "bulk")) => known("secrets", get, Route::SecretList { store }),
            Some((store, key)) if !key.contains('/') => known("secrets", get, Route::SecretGet { store, key }),
            _ => Match::None,
        },
        "configuration" if stable || alpha1 => match two {
            None if !rest.is_empty() => known("configuration", get, Route::ConfigurationGet { store: rest }),
            Some((store, "subscribe")) => known("configuration", get, Route::ConfigurationSubscribe { store }),
            Some((store, tail)) => match tail.split_once('/') {
                Some((id, "unsubscribe")) => known("configuration", get, Route::ConfigurationUnsubscribe { store, id }),
                _ => Match::None,
            },
            None => Match::None,
        },
        "metadata" if stable => match rest {
            "" => known("metadata", get, Route::Metadata),
            key if !key.contains('/') => known("metadata", method == Method::PUT, Route::MetadataSet { key }),
            _ => Match::None,
        },
        "healthz" if stable => match rest {
            "" => known("healthz", get, Route::Health),
            "outbound" => known("healthz", get, Route::OutboundHealth),
            _ => Match::None,
        },
        "shutdown" if stable && rest.is_empty() => known("shutdown", post, Route::Shutdown),
        "lock" if alpha1 && two.is_none() && !rest.is_empty() => known("lock", post, Route::TryLock { store: rest }),
        "unlock" if alpha1 && two.is_none() && !rest.is_empty() => known("unlock", post, Route::Unlock { store: rest }),
        "mecha" if version == "mecha" => {
            Match::Known(Matched { api: "mecha", version: "v1", route: Route::Mecha { rest } })
        }
        _ => unbuilt(method, version, api, rest),
    }
}

fn unbuilt<'p>(method: &Method, version: &'static str, api: &str, rest: &'p str) -> Match<'p> {
    let save = method == Method::POST || method == Method::PUT;
    let parts: Vec<&str> = rest.split('/').collect();
    let known = |api: &'static str, ok: bool, what: Unbuilt| {
        let name = parts.first().copied().unwrap_or_default();
        if ok {
            Match::Known(Matched { api, version, route: Route::Unbuilt { what, name } })
        } else {
            Match::OtherMethod
        }
    };
    let get = method == Method::GET;
    let delete = method == Method::DELETE;
    match (version, api, parts.as_slice()) {
        ("v1", "actors", [_, _, "method", _, ..]) => known("actors", get || save || delete, Unbuilt::ActorInvoke),
        ("v1", "actors", [_, _, "state", _]) => known("actors", get, Unbuilt::ActorState),
        ("v1", "actors", [_, _, "state"]) => known("actors", save, Unbuilt::ActorStateSave),
        ("v1", "actors", [_, _, "reminders", _]) => known("actors", get || save || delete, Unbuilt::ActorReminder),
        ("v1", "actors", [_, _, "timers", _]) => known("actors", save || delete, Unbuilt::ActorTimer),
        ("v1" | "v1alpha1", "jobs", [_]) => {
            let what = if get {
                Unbuilt::JobGet
            } else if delete {
                Unbuilt::JobDelete
            } else {
                Unbuilt::JobSchedule
            };
            known("jobs", get || delete || method == Method::POST, what)
        }
        ("v1" | "v1alpha1" | "v1beta1", "workflows", [_, _]) => known("workflows", get, Unbuilt::WorkflowGet),
        ("v1" | "v1alpha1" | "v1beta1", "workflows", [_, _, verb, ..]) => {
            let what = match *verb {
                "start" => Unbuilt::WorkflowStart,
                "pause" => Unbuilt::WorkflowPause,
                "resume" => Unbuilt::WorkflowResume,
                "terminate" => Unbuilt::WorkflowTerminate,
                "purge" => Unbuilt::WorkflowPurge,
                "raiseEvent" => Unbuilt::WorkflowRaiseEvent,
                _ => return Match::None,
            };
            known("workflows", method == Method::POST, what)
        }
        ("v1alpha1", "crypto", [_, "encrypt" | "decrypt"]) => known("crypto", method == Method::PUT, Unbuilt::Crypto),
        (
            "v1alpha1",
            "subtlecrypto",
            [_, "getkey" | "encrypt" | "decrypt" | "wrapkey" | "unwrapkey" | "sign" | "verify"],
        ) => known("subtlecrypto", method == Method::POST, Unbuilt::SubtleCrypto),
        ("v1alpha1" | "v1alpha2", "conversation", [_, "converse"]) => {
            known("conversation", method == Method::POST, Unbuilt::Conversation)
        }
        _ => Match::None,
    }
}

fn split_version(rest: &str) -> Option<(&'static str, &str)> {
    let (tag, rest) = match rest.strip_prefix('-') {
        None => ("", rest.strip_prefix('/')?),
        // Our own paths have no API name behind the version.
        Some(tagged) if tagged == "mecha" || tagged.starts_with("mecha/") => return Some(("mecha", tagged)),
        Some(tagged) => tagged.split_once('/')?,
    };
    let version = match tag {
        "" => "v1",
        "alpha1" => "v1alpha1",
        "alpha2" => "v1alpha2",
        "beta1" => "v1beta1",
        _ => return None,
    };
    Some((version, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: &Method, path: &'static str) -> Option<Route<'static>> {
        match find(method, path) {
            Match::Known(m) => Some(m.route),
            _ => None,
        }
    }

    #[test]
    fn the_paths_of_the_contract() {
        let (get, post, put, del) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
        assert_eq!(route(&get, "/v1.0/state/s/k"), Some(Route::StateGet { store: "s", key: "k" }));
        assert_eq!(route(&get, "/v1.0/state/s/bulk"), Some(Route::StateGet { store: "s", key: "bulk" }));
        assert_eq!(route(&put, "/v1.0/state/s/bulk"), Some(Route::StateBulkGet { store: "s" }));
        assert_eq!(route(&post, "/v1.0/state/s"), Some(Route::StateSave { store: "s" }));
        assert_eq!(route(&del, "/v1.0/state/s/k"), Some(Route::StateDelete { store: "s", key: "k" }));
        assert_eq!(route(&post, "/v1.0-alpha1/state/s/query"), Some(Route::StateQuery { store: "s" }));
        assert_eq!(route(&post, "/v1.0/publish/p/a/b"), Some(Route::Publish { pubsub: "p", topic: "a/b" }));
        assert_eq!(route(&post, "/v1.0/publish/p"), Some(Route::Publish { pubsub: "p", topic: "" }));
        assert_eq!(route(&post, "/v1.0/publish/bulk/p/t"), Some(Route::PublishBulk { pubsub: "p", topic: "t" }));
        assert_eq!(
            route(&post, "/v1.0-alpha1/publish/bulk/p/t/u"),
            Some(Route::PublishBulk { pubsub: "p", topic: "t/u" })
        );
        assert_eq!(route(&get, "/v1.0/secrets/s/bulk"), Some(Route::SecretList { store: "s" }));
        assert_eq!(route(&get, "/v1.0/healthz/outbound"), Some(Route::OutboundHealth));
        assert_eq!(route(&post, "/v1.0-alpha1/lock/l"), Some(Route::TryLock { store: "l" }));
        assert_eq!(route(&get, "/v1.0-mecha/swaps"), Some(Route::Mecha { rest: "swaps" }));
        assert_eq!(
            route(&Method::PATCH, "/v1.0/invoke/app/method/a/b"),
            Some(Route::Invoke { id: "app", method: "a/b" })
        );
    }

    #[test]
    fn other_methods_and_unknown_paths() {
        assert_eq!(find(&Method::GET, "/v1.0/shutdown"), Match::OtherMethod);
        assert_eq!(find(&Method::GET, "/v1.0/nothing"), Match::None);
        assert_eq!(find(&Method::GET, "/orders"), Match::None);
        assert_eq!(find(&Method::GET, "/v1.0"), Match::None);
    }
}
