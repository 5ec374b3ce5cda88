//! Which path of the app gets an event.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value};
use mecha_resiliency::compile_cel;
use serde_json::Value as Json;

use super::members::Members;
use super::moments;
use crate::app::AppSubscription;

/// The standard environment; making one is dear.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    if let Err(e) = moments::add(&mut env) {
        tracing::error!(target: "dapr.runtime", "rules cannot use timestamp() and duration(): {e}");
    }
    Arc::new(env)
});

/// Characters of an expression that a message shows.
const LONGEST_SHOWN: usize = 200;

/// The compiled rules of one subscription.
#[derive(Debug)]
pub(super) struct Routes {
    rules: Vec<Rule>,
    default: Option<Box<str>>,
}

#[derive(Debug)]
struct Rule {
    /// `None` is always true.
    program: Option<Program>,
    text: Box<str>,
    path: Box<str>,
}

impl Routes {
    /// Compiles the rules of a subscription. The error names the expression and what is wrong.
    pub(super) fn compile(sub: &AppSubscription) -> Result<Self, String> {
        let rules = sub.rules.iter().map(|rule| {
            let program = match rule.matches.trim() {
                "" => None,
                text => Some(compile(text)?),
            };
            Ok(Rule { program, text: rule.matches.as_str().into(), path: rule.path.as_str().into() })
        });
        Ok(Self { rules: rules.collect::<Result<_, String>>()?, default: sub.default_route.as_deref().map(Box::from) })
    }

    /// A single path for everything.
    pub(super) fn to(path: &str) -> Self {
        Self { rules: Vec::new(), default: Some(path.into()) }
    }

    /// The first path that takes the event; `None` when none does.
    ///
    /// # Errors
    /// A rule that cannot be decided ends the search.
    pub(super) fn pick(&self, event: &Members) -> Result<Option<&str>, String> {
        let mut value = None;
        for rule in &self.rules {
            let Some(program) = &rule.program else { return Ok(Some(&rule.path)) };
            let event = value.get_or_insert_with(|| to_cel(event)).clone();
            if decide(program, event).map_err(|e| format!("match `{}`: {e}", rule.text))? {
                return Ok(Some(&rule.path));
            }
        }
        Ok(self.default.as_deref())
    }
}

/// Checks the `match` of a routing rule; an empty one is always true.
///
/// # Errors
/// The expression and what is wrong with it.
pub fn check_rule(text: &str) -> Result<(), String> {
    match text.trim() {
        "" => Ok(()),
        text => compile(text).map(drop),
    }
}

fn compile(text: &str) -> Result<Program, String> {
    // Within limits: the parser recurses, and expressions come from apps.
    compile_cel(text).map_err(|e| format!("match `{}` {e}", shown(text)))
}

/// What of an expression goes into messages.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_SHOWN)]
}

fn decide(program: &Program, event: Value) -> Result<bool, String> {
    let run = || {
        let mut context = Context::with_env(ENV.clone());
        context.add_variable_from_value("event", event);
        program.execute(&context)
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(Value::Bool(truth))) => Ok(truth),
        Ok(Ok(other)) => Err(format!("the result is a {}, not a bool", other.type_of())),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("it cannot be evaluated".into()),
    }
}

/// The variable `event`. Numbers are doubles, as for expressions written for the incumbent.
fn to_cel(event: &Members) -> Value {
    let value = |(name, raw): (&str, &bytes::Bytes)| {
        let value: Json = serde_json::from_slice(raw).ok()?;
        Some((Key::from(name), cel_value(value)))
    };
    let mut map: std::collections::HashMap<Key, Value> = event.iter().filter_map(value).collect();
    if let (None, Some(text)) = (event.raw("data"), event.text("data_base64"))
        && let Ok(bytes) = BASE64_STANDARD.decode(text)
    {
        map.insert(Key::from("data"), Value::Bytes(Arc::new(bytes)));
    }
    Value::Map(Map::from(map))
}

fn cel_value(value: Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(truth),
        Json::Number(n) => n.as_f64().map_or(Value::Null, Value::Float),
        Json::String(text) => Value::String(Arc::new(text)),
        Json::Array(list) => Value::List(Arc::new(list.into_iter().map(cel_value).collect())),
        Json::Object(map) => {
            let members = map.into_iter().map(|(name, value)| (Key::from(name), cel_value(value)));
            Value::Map(Map::from(members.collect::<std::collections::HashMap<_, _>>()))
        }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
