use std::sync::Arc;

use cel::{Context, Program, Value};

use crate::breaker::Counts;
use crate::expression::{ExpressionError, compile_cel, has_loops};

const VARIABLES: [&str; 5] =
    ["requests", "totalSuccesses", "totalFailures", "consecutiveSuccesses", "consecutiveFailures"];
/// When a closed breaker opens.
#[derive(Clone, Debug)]
pub enum Trip {
    /// With more than this many failures in a row.
    MoreInARow(u32),
    /// When an expression over the counts is true.
    Expression(Arc<Expression>),
}

/// A compiled CEL expression with its source.
#[derive(Debug)]
pub struct Expression {
    source: String,
    program: Program,
}

/// Expressions are equal when their sources are.
impl PartialEq for Trip {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MoreInARow(a), Self::MoreInARow(b)) => a == b,
            (Self::Expression(a), Self::Expression(b)) => a.source == b.source,
            _ => false,
        }
    }
}

impl Default for Trip {
    fn default() -> Self {
        Self::MoreInARow(5)
    }
}

impl Trip {
    /// Compiles a CEL expression over `requests`, `totalSuccesses`, `totalFailures`,
    /// `consecutiveSuccesses` and `consecutiveFailures`.
    ///
    /// # Errors
    /// It does not compile, uses other names, is too large, or is neither true nor false.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        let source = source.trim();
        let program = compile_cel(source)?;
        if has_loops(&program) {
            return Err(ExpressionError::new("has a loop, which counts have no use for"));
        }
        let references = program.references();
        for name in references.variables() {
            if !VARIABLES.contains(&name) {
                return Err(ExpressionError::new(format!("uses '{name}'; it may use {}", VARIABLES.join(", "))));
            }
        }
        drop(references);
        let expression = Expression { source: source.to_owned(), program };
        expression.probe()?;
        Ok(Self::Expression(Arc::new(expression)))
    }

    /// Whether these counts open the breaker. An expression that fails, for example by dividing
    /// by zero, does not.
    #[must_use]
    pub fn applies(&self, counts: &Counts) -> bool {
        match self {
            Self::MoreInARow(limit) => counts.consecutive_failures > *limit,
            Self::Expression(e) => matches!(e.evaluate(counts), Ok(Value::Bool(true))),
        }
    }
}

impl Expression {
    fn evaluate(&self, counts: &Counts) -> Result<Value, cel::ExecutionError> {
        let mut cx = Context::default();
        let values = [
            counts.requests,
            counts.total_successes,
            counts.total_failures,
            counts.consecutive_successes,
            counts.consecutive_failures,
        ];
        for (name, value) in VARIABLES.into_iter().zip(values) {
            cx.add_variable_from_value(name, i64::from(value));
        }
        self.program.execute(&cx)
    }

    /// Tries it on a few counts: some may make it divide by zero, all failing means it is wrong.
    fn probe(&self) -> Result<(), ExpressionError> {
        let mut problem = String::new();
        for (successes, failures) in [(1, 1), (7, 3), (0, 6)] {
            let counts = Counts {
                requests: successes + failures,
                total_successes: successes,
                total_failures: failures,
                consecutive_successes: 0,
                consecutive_failures: failures,
            };
            match self.evaluate(&counts) {
                Ok(Value::Bool(_)) => return Ok(()),
                Ok(_) => return Err(ExpressionError::new("is neither true nor false".to_owned())),
                Err(e) => problem = e.to_string(),
            }
        }
        Err(ExpressionError::new(format!("cannot be evaluated: {problem}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failures(n: u32) -> Counts {
        Counts { requests: n, total_failures: n, consecutive_failures: n, ..Counts::default() }
    }

    #[test]
    fn the_default_is_more_than_five_in_a_row() {
        assert!(!Trip::default().applies(&failures(5)));
        assert!(Trip::default().applies(&failures(6)));
    }

    #[test]
    fn expressions_see_the_counts() {
        let trip = Trip::parse("requests >= 4 && totalFailures * 2 >= requests").unwrap();
        assert!(!trip.applies(&failures(3)));
        assert!(trip.applies(&failures(4)));
        let ratio = Trip::parse("double(totalFailures) / double(requests) > 0.5").unwrap();
        assert!(ratio.applies(&failures(1)));
        assert!(!ratio.applies(&Counts::default()));
    }

    #[test]
    fn wrong_expressions_are_refused_with_the_reason() {
        for (source, part) in [
            ("consecutiveFailure > 5", "uses 'consecutiveFailure'"),
            ("consecutiveFailures + 5", "neither true nor false"),
            ("consecutiveFailures >", "not valid CEL"),
            ("", "not valid CEL"),
            ("[1, 2].all(x, x > requests)", "loop"),
        ] {
            let message = Trip::parse(source).unwrap_err().to_string();
            assert!(message.contains(part), "{source}: {message}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(source in "[a-z0-9 <>=&|!?:.,+*/()\\[\\]{}\"'-]{0,60}") {
            let _ = Trip::parse(&source);
        }
    }
}
