use std::fmt::Write as _;

/// A Component document.
#[must_use]
pub fn component(name: &str, kind: &str, metadata: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {}\nspec:\n  type: {kind}\n  version: v1\n",
        quoted(name)
    );
    if metadata.is_empty() {
        text.push_str("  metadata: []\n");
        return text;
    }
    text.push_str("  metadata:\n");
    for (key, value) in metadata {
        let _ = writeln!(text, "  - name: {}\n    value: {}", quoted(key), quoted(value));
    }
    text
}

/// A Subscription document (v2alpha1) with one route.
#[must_use]
pub fn subscription(name: &str, pubsub: &str, topic: &str, route: &str, more: &str) -> String {
    format!(
        "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata:\n  name: {name}\nspec:\n  pubsubname: {pubsub}\n  \
         topic: {}\n  routes:\n    default: {route}\n{}",
        quoted(topic),
        indent(more, 2)
    )
}

/// `text` with every line moved to the right.
#[must_use]
pub fn indent(text: &str, by: usize) -> String {
    text.lines().fold(String::new(), |mut moved, line| {
        let _ = writeln!(moved, "{:by$}{line}", "");
        moved
    })
}

/// JSON strings are YAML strings.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
