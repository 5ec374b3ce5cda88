//! Cases that a front's API has no words for.

use mecha_testkit::{BINDING_CASES, PUBSUB_CASES, SECRET_CASES, STATE_CASES};

use super::Wire;

/// Why some cases are not put through a front.
struct Limit {
    block: &'static str,
    fronts: &'static [Wire],
    /// Only these entries; empty is every one.
    entries: &'static [&'static str],
    why: &'static str,
    cases: &'static [&'static str],
}

const LIMITS: &[Limit] = &[
    Limit {
        block: "state",
        fronts: &[Wire::Http],
        entries: &[],
        why: "a JSON body has no form for bytes",
        cases: &[
            "every_byte_round_trips",
            "empty_bytes_are_a_value",
            "text_that_looks_like_base64_stays",
            "bytes_that_are_json_stay",
            "one_mebibyte_round_trips",
            "bytes_replace_json_and_back",
            "bulk_keeps_bytes",
            "bytes_and_json_mix_in_a_transaction",
        ],
    },
    Limit {
        block: "state",
        fronts: &[Wire::Http],
        entries: &[],
        why: "a path has no empty last segment",
        cases: &["an_empty_key_is_refused_or_stored"],
    },
    Limit {
        block: "state",
        fronts: &Wire::ALL,
        entries: &[],
        why: "the API enumerates no keys",
        cases: &[
            "list_pages_through_a_prefix",
            "list_takes_the_prefix_literally",
            "list_hides_what_was_deleted",
            "list_hides_expired_keys",
        ],
    },
    Limit {
        block: "state",
        fronts: &Wire::ALL,
        entries: &[],
        why: "the API does not tell how many operations a transaction may have",
        cases: &["the_most_operations_are_kept_to"],
    },
    Limit {
        block: "pubsub",
        fronts: &[Wire::Http],
        entries: &[],
        why: "an app has no verdict that hands an event on",
        cases: &["a_released_message_goes_to_the_next_subscriber"],
    },
    Limit {
        block: "pubsub",
        fronts: &[Wire::Http],
        entries: &["in-memory"],
        why: "an app takes a topic once, and nothing is shared between sidecars",
        cases: &["two_groups_each_get_every_message"],
    },
    Limit {
        block: "pubsub",
        fronts: &[Wire::Http],
        entries: &["mecha", "redis-7"],
        why: "events that are handled side by side arrive as requests side by side",
        cases: &["messages_keep_their_order"],
    },
    Limit {
        block: "pubsub",
        fronts: &Wire::ALL,
        entries: &[],
        why: "metadata of a request is no part of the event",
        cases: &["metadata_arrives_with_the_message"],
    },
    Limit {
        block: "secrets",
        fronts: &Wire::ALL,
        entries: &["kubernetes", "local.file", "local.file-multi-valued"],
        why: "a missing secret looks like any other failed read: 500 or Internal",
        cases: &["an_unknown_secret_is_told"],
    },
    Limit {
        block: "secrets",
        fronts: &[Wire::Grpc],
        entries: &["kubernetes", "local.file", "local.file-multi-valued"],
        why: "a missing secret looks like any other failed read: 500 or Internal",
        cases: &["an_empty_name_gives_no_secret"],
    },
    Limit {
        block: "secrets",
        fronts: &[Wire::Http],
        entries: &[],
        why: "a path has no empty last segment",
        cases: &["an_empty_name_gives_no_secret"],
    },
    Limit {
        block: "output",
        fronts: &[Wire::Http],
        entries: &[],
        why: "a JSON body has no form for bytes",
        cases: &["every_byte_is_kept"],
    },
    Limit {
        block: "output",
        fronts: &Wire::ALL,
        entries: &[],
        why: "what a binding could not do is 500 or Internal, whatever the cause",
        cases: &["an_absent_object_is_not_got", "what_is_deleted_is_gone"],
    },
];

/// Why the case is not put through this front, if it is not.
pub(crate) fn of(block: &str, entry: &str, wire: Option<Wire>, case: &str) -> Option<&'static str> {
    let wire = wire?;
    let applies = |limit: &&Limit| {
        limit.block == block
            && limit.fronts.contains(&wire)
            && (limit.entries.is_empty() || limit.entries.contains(&entry))
            && limit.cases.contains(&case)
    };
    LIMITS.iter().find(applies).map(|limit| limit.why)
}

/// Every case named here exists; the names of those that do not.
pub(crate) fn unknown() -> Vec<String> {
    let known = |block: &str, name: &str| match block {
        "state" => STATE_CASES.iter().copied().flatten().any(|c| c.name == name),
        "pubsub" => PUBSUB_CASES.iter().any(|c| c.name == name),
        "secrets" => SECRET_CASES.iter().any(|c| c.name == name),
        "output" => BINDING_CASES.iter().any(|c| c.name == name),
        _ => false,
    };
    let named = LIMITS.iter().flat_map(|limit| limit.cases.iter().map(|case| (limit.block, *case)));
    named.filter(|(block, case)| !known(block, case)).map(|(block, case)| format!("{block}/{case}")).collect()
}
