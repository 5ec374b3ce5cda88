//! CEL expressions from documents and apps, compiled within limits.

use std::fmt;

use cel::Program;
use cel::common::ast::{EntryExpr, Expr, IdedExpr};

/// Longest expression that is compiled, in bytes.
pub const MAX_EXPRESSION: usize = 4_096;
/// Most brackets and conditionals inside each other.
pub const MAX_NESTING: usize = 16;
/// Deepest tree; a chain such as `a + b + c` is as deep as it is long, `&&` and `||` are not.
/// Evaluation takes some 40 KiB of stack for each level in an unoptimised build.
pub const MAX_DEPTH: usize = 32;
/// Most `all`, `exists`, `map` or `filter` inside each other; each one multiplies the work.
pub const MAX_LOOPS: usize = 2;

/// Stack for the parser, which takes some 150 KiB for each bracket in an unoptimised build:
/// more than a worker thread has. Only what is used of it is ever committed.
const PARSER_STACK: usize = 64 << 20;

/// Bytes of the parser's message that are shown.
const LONGEST_MESSAGE: usize = 400;

/// Why an expression is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError(String);

impl ExpressionError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// `is not valid CEL: …`, to follow the name of the field.
impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ExpressionError {}

/// Compiles a CEL expression that may come from anybody.
///
/// The parser recurses and has no limit of its own, so size and nesting are checked before and
/// it runs on a stack of its own; what it returns is shallow enough to be evaluated and dropped on
/// any thread. Meant for the moment a document is read, not for the path of a call.
///
/// # Errors
/// It is too large, nests too deep, or is no CEL.
pub fn compile_cel(source: &str) -> Result<Program, ExpressionError> {
    check_size(source)?;
    let text = source.to_owned();
    let worker = std::thread::Builder::new().name("cel".to_owned()).stack_size(PARSER_STACK);
    let worker = worker.spawn(move || {
        let program = Program::compile(&text).map_err(|e| format!("is not valid CEL: {}", one_line(&e)))?;
        let shape = Shape::of(program.expression());
        if shape.depth > MAX_DEPTH {
            return Err(format!("chains or nests more than {MAX_DEPTH} operations"));
        }
        if shape.loops > MAX_LOOPS {
            return Err(format!("has more than {MAX_LOOPS} loops inside each other"));
        }
        Ok(program)
    });
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result.map_err(ExpressionError),
        Ok(Err(_)) => Err(ExpressionError::new("is not valid CEL: the parser gave up")),
        Err(e) => Err(ExpressionError(format!("cannot be compiled now: {e}"))),
    }
}

/// Whether a program has a loop (`all`, `exists`, `exists_one`, `map`, `filter`).
pub(crate) fn has_loops(program: &Program) -> bool {
    Shape::of(program.expression()).loops > 0
}

fn check_size(source: &str) -> Result<(), ExpressionError> {
    if source.len() > MAX_EXPRESSION {
        return Err(ExpressionError(format!("is longer than {MAX_EXPRESSION} bytes")));
    }
    let mut depth = 0usize;
    // What stands in quotes is counted as well: a limit on the safe side needs no lexer.
    for b in source.bytes() {
        match b {
            // A conditional nests to the right without a bracket.
            b'(' | b'[' | b'{' | b'?' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(ExpressionError(format!("nests deeper than {MAX_NESTING} levels")));
        }
    }
    Ok(())
}

/// How deep a tree is, and how many loops are inside each other.
#[derive(Clone, Copy, Default)]
struct Shape {
    depth: usize,
    loops: usize,
}

impl Shape {
    fn of(node: &IdedExpr) -> Self {
        let below = match &node.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Self::default(),
            Expr::Call(call) => Self::deepest(call.args.iter().chain(call.target.as_deref())),
            Expr::Select(select) => Self::of(&select.operand),
            Expr::List(list) => Self::deepest(&list.elements),
            Expr::Map(map) => Self::entries(map.entries.iter().map(|e| &e.expr)),
            Expr::Struct(message) => Self::entries(message.entries.iter().map(|e| &e.expr)),
            Expr::Comprehension(c) => {
                let body = Self::deepest([&c.accu_init, &c.loop_cond, &c.loop_step, &c.result]);
                Self { loops: body.loops + 1, ..body }.max(Self::of(&c.iter_range))
            }
        };
        Self { depth: below.depth + 1, ..below }
    }

    fn deepest<'e>(nodes: impl IntoIterator<Item = &'e IdedExpr>) -> Self {
        nodes.into_iter().map(Self::of).fold(Self::default(), Self::max)
    }

    fn entries<'e>(entries: impl Iterator<Item = &'e EntryExpr>) -> Self {
        let shapes = entries.map(|entry| match entry {
            EntryExpr::StructField(field) => Self::of(&field.value),
            EntryExpr::MapEntry(entry) => Self::of(&entry.key).max(Self::of(&entry.value)),
        });
        shapes.fold(Self::default(), Self::max)
    }

    fn max(self, other: Self) -> Self {
        Self { depth: self.depth.max(other.depth), loops: self.loops.max(other.loops) }
    }
}

/// The beginning of a message, in one line. The parser repeats the expression for each fault it
/// finds, so that all of it may have a thousand times the size of the expression.
fn one_line(e: &impl fmt::Display) -> String {
    struct Beginning(String);
    impl fmt::Write for Beginning {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = LONGEST_MESSAGE.saturating_sub(self.0.len());
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            if text.len() > room { Err(fmt::Error) } else { Ok(()) }
        }
    }
    let mut text = Beginning(String::new());
    // The only error is a full room.
    let _ = fmt::write(&mut text, format_args!("{e}"));
    text.0.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_short_however_many_faults_there_are() {
        let error = compile_cel(&"= ".repeat(MAX_EXPRESSION / 2)).unwrap_err().to_string();
        assert!(error.starts_with("is not valid CEL: ") && error.len() < 500, "{} bytes: {error}", error.len());
    }

    #[test]
    fn hostile_expressions_end_before_the_stack_does() {
        let fill = |unit: &str, most: usize| unit.repeat(most / unit.len());
        let sources = [
            fill("(", MAX_EXPRESSION),
            fill("(", MAX_NESTING),
            fill("[", MAX_NESTING),
            format!("{}true{}", fill("(", MAX_NESTING), fill(")", MAX_NESTING)),
            fill("-", MAX_EXPRESSION),
            format!("{}true", fill("!", MAX_EXPRESSION - 4)),
            format!("true{}", fill("&&true", MAX_EXPRESSION - 4)),
            format!("true{}", fill("||true", MAX_EXPRESSION - 4)),
            format!("1{}", fill("<1", MAX_EXPRESSION - 1)),
            format!("1{}", fill("<1", 2 * MAX_DEPTH - 2)),
            format!("x{}>1", fill("+1", MAX_EXPRESSION - 3)),
            format!("x{}>1", fill("+1", 2 * MAX_DEPTH - 4)),
            format!("x{}>1", fill("/1", MAX_EXPRESSION - 3)),
            format!("x{}>1", fill("/1", 2 * MAX_DEPTH - 4)),
            format!("x{}", fill(".a", MAX_EXPRESSION - 1)),
            format!("x{}", fill(".a", 2 * MAX_DEPTH - 2)),
            format!("x{}", fill("[0]", MAX_EXPRESSION - 1)),
            format!("x{}", fill("[0]", 3 * MAX_DEPTH - 3)),
            format!("x{}", fill(".size()", MAX_EXPRESSION - 1)),
            format!("x{}", fill(".size()", 7 * MAX_DEPTH - 7)),
            fill("true?", 5 * MAX_NESTING),
        ];
        // The stack of a worker thread.
        let worker = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            for source in sources {
                if let Ok(program) = compile_cel(&source) {
                    let mut cx = cel::Context::default();
                    cx.add_variable_from_value("x", 1i64);
                    let _ = program.references();
                    let _ = program.execute(&cx);
                }
            }
        });
        worker.unwrap().join().unwrap();
    }

    #[test]
    fn loops_inside_loops_are_counted() {
        assert!(compile_cel("[1].all(a, [2].exists(b, b > a))").is_ok());
        let three = compile_cel("[1].all(a, [2].all(b, [3].all(c, a + b < c)))");
        assert!(three.unwrap_err().to_string().contains("loops"));
    }
}
