use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput, Tag};

use super::{Entry, Node, Value, scalar};

/// Values of one file, each expansion of an alias counted.
pub const MAX_NODES: usize = 100_000;
/// Bytes of text in the values of one file, each expansion of an alias counted.
pub const MAX_TEXT_BYTES: usize = 8 << 20;
/// Lists and mappings inside each other.
pub const MAX_DEPTH: usize = 64;
/// Broken documents reported before the rest of a file is left unread.
const MAX_FAULTS: usize = 50;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// Its place in the file, counted from 1.
    pub index: u32,
    /// Its value.
    pub root: Node,
    /// Keys that were given twice; the last one counts.
    pub repeated: Vec<(String, u32, u32)>,
}

/// Why a document cannot be read.
#[derive(Debug)]
pub struct Fault {
    /// Place of the document in the file, counted from 1.
    pub document: u32,
    /// Line, counted from 1.
    pub line: u32,
    /// Column, counted from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The documents that could be read.
    pub documents: Vec<Document>,
    /// One entry for each that could not.
    pub faults: Vec<Fault>,
}

/// Reads all documents of `text`; a broken one does not hide those after it.
#[must_use]
pub fn parse(text: &str) -> Parsed {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text.strip_prefix('\u{feff}').unwrap_or(text), options),
        nodes: 0,
        text_bytes: 0,
        anchors: HashMap::new(),
        repeated: Vec::new(),
    };
    let mut parsed = Parsed::default();
    for index in 1.. {
        reader.anchors.clear();
        match reader.document() {
            Ok(Some(root)) => {
                let repeated = std::mem::take(&mut reader.repeated);
                parsed.documents.push(Document { index, root, repeated });
            }
            Ok(None) => break,
            Err(stop) => {
                reader.repeated.clear();
                let (line, column) = stop.at;
                parsed.faults.push(Fault { document: index, line, column, message: stop.message });
                let give_up = stop.over_budget || parsed.faults.len() >= MAX_FAULTS;
                if give_up || !matches!(reader.parser.proceed_next_document(), Ok(true)) {
                    break;
                }
            }
        }
    }
    parsed
}

type At = (u32, u32);

struct Stop {
    at: At,
    message: String,
    over_budget: bool,
}

impl Stop {
    fn new(at: At, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), over_budget: false }
    }
}

/// A collection that is still open.
struct Frame {
    at: At,
    anchor: usize,
    kind: FrameKind,
}

enum FrameKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<Key>, merges: Vec<Node> },
}

struct Key {
    text: String,
    at: At,
    merge: bool,
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    nodes: usize,
    text_bytes: usize,
    anchors: HashMap<usize, Node>,
    repeated: Vec<(String, u32, u32)>,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<Option<Node>, Stop> {
        let mut stack: Vec<Frame> = Vec::new();
        let mut root = None;
        loop {
            let (event, span) = match self.parser.next_event() {
                None => return Ok(None),
                Some(Ok(next)) => next,
                Some(Err(e)) => {
                    let at = (narrow(e.marker().line()), narrow(e.marker().col() + 1));
                    return Err(Stop::new(at, format!("not valid YAML: {}", e.info())));
                }
            };
            let at = (narrow(span.start.line()), narrow(span.start.col() + 1));
            let (node, anchor, plain) = match event {
                Event::StreamEnd => return Ok(None),
                Event::DocumentEnd => {
                    return Ok(Some(root.unwrap_or(Node { value: Value::Null, line: at.0, column: at.1 })));
                }
                // Counted, so that a file of nothing but separators ends as well.
                Event::DocumentStart(..) => {
                    self.charge(1, 0, at)?;
                    continue;
                }
                Event::SequenceStart(_, anchor, _) => {
                    Self::open(&mut stack, at, anchor, FrameKind::List(Vec::new()))?;
                    continue;
                }
                Event::MappingStart(_, anchor, _) => {
                    let kind = FrameKind::Map { entries: Vec::new(), key: None, merges: Vec::new() };
                    Self::open(&mut stack, at, anchor, kind)?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(frame) = stack.pop() else { continue };
                    let anchor = frame.anchor;
                    (self.close(frame)?, anchor, false)
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.charge(0, text.len(), at)?;
                    let plain = style == ScalarStyle::Plain && tag.is_none();
                    let value = match tag.as_deref() {
                        None if plain => scalar::resolve(&text),
                        None => Value::Text(text.into_owned()),
                        Some(tag) => tagged(tag, text.into_owned()),
                    };
                    (Node { value, line: at.0, column: at.1 }, anchor, plain)
                }
                Event::Alias(id) => {
                    let Some(target) = self.anchors.get(&id) else {
                        return Err(Stop::new(at, "an alias cannot refer to a value that it is part of"));
                    };
                    let (nodes, bytes) = weight(target);
                    self.charge(nodes, bytes, at)?;
                    let Some(target) = self.anchors.get(&id) else { continue };
                    (target.clone(), 0, false)
                }
                _ => continue,
            };
            if anchor != 0 {
                let (nodes, bytes) = weight(&node);
                self.charge(nodes, bytes, at)?;
                self.anchors.insert(anchor, node.clone());
            }
            self.charge(1, 0, at)?;
            match stack.last_mut() {
                None => root = Some(node),
                Some(Frame { kind: FrameKind::List(items), .. }) => items.push(node),
                Some(Frame { kind: FrameKind::Map { entries, key, merges }, .. }) => match key.take() {
                    None => {
                        let merge = plain && matches!(&node.value, Value::Text(t) if t == "<<");
                        let text = match node.value {
                            Value::Null if plain => None,
                            _ => node.scalar_text(),
                        };
                        let Some(text) = text else {
                            return Err(Stop::new(at, format!("a key must be text, found {}", node.describe())));
                        };
                        *key = Some(Key { text, at, merge });
                    }
                    Some(key) if key.merge => merges.push(node),
                    Some(key) => entries.push(Entry { key: key.text, line: key.at.0, column: key.at.1, node }),
                },
            }
        }
    }

    fn open(stack: &mut Vec<Frame>, at: At, anchor: usize, kind: FrameKind) -> Result<(), Stop> {
        if stack.len() >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} lists and mappings inside each other");
            return Err(Stop { at, message, over_budget: true });
        }
        stack.push(Frame { at, anchor, kind });
        Ok(())
    }

    fn close(&mut self, frame: Frame) -> Result<Node, Stop> {
        let at = frame.at;
        let value = match frame.kind {
            FrameKind::List(items) => Value::List(items),
            FrameKind::Map { mut entries, merges, .. } => {
                self.drop_repeated(&mut entries);
                for merge in merges {
                    merge_into(&mut entries, merge)?;
                }
                Value::Map(entries)
            }
        };
        Ok(Node { value, line: at.0, column: at.1 })
    }

    /// Keeps the last of entries with one key, and notes the others.
    fn drop_repeated(&mut self, entries: &mut Vec<Entry>) {
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(entries.len());
        let mut repeated = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            if let Some(before) = last.insert(&entry.key, i) {
                repeated.push(before);
                self.repeated.push((entry.key.clone(), entry.line, entry.column));
            }
        }
        if !repeated.is_empty() {
            repeated.sort_unstable();
            let mut index = 0;
            entries.retain(|_| {
                let keep = repeated.binary_search(&index).is_err();
                index += 1;
                keep
            });
        }
    }

    fn charge(&mut self, nodes: usize, bytes: usize, at: At) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        let message = if self.nodes > MAX_NODES {
            format!("more than {MAX_NODES} values in one file, aliases expanded")
        } else if self.text_bytes > MAX_TEXT_BYTES {
            format!("more than {MAX_TEXT_BYTES} bytes of text in one file, aliases expanded")
        } else {
            return Ok(());
        };
        Err(Stop { at, message, over_budget: true })
    }
}

/// Adds what `<<` names; keys that are already there stay.
fn merge_into(entries: &mut Vec<Entry>, merge: Node) -> Result<(), Stop> {
    let at = (merge.line, merge.column);
    let sources = match merge.value {
        Value::Map(found) => vec![found],
        Value::List(items) => {
            let mut sources = Vec::with_capacity(items.len());
            for item in items {
                let Value::Map(found) = item.value else {
                    return Err(Stop::new(at, "'<<' takes a mapping or a list of mappings"));
                };
                sources.push(found);
            }
            sources
        }
        _ => return Err(Stop::new(at, "'<<' takes a mapping or a list of mappings")),
    };
    let mut present: std::collections::HashSet<String> = entries.iter().map(|e| e.key.clone()).collect();
    for entry in sources.into_iter().flatten() {
        if present.insert(entry.key.clone()) {
            entries.push(entry);
        }
    }
    Ok(())
}

/// A scalar with an explicit tag; an unknown tag means text.
fn tagged(tag: &Tag, text: String) -> Value {
    match tag.core_suffix() {
        Some("null") => Value::Null,
        Some("bool" | "int") => scalar::resolve(&text),
        Some("float") => match scalar::resolve(&text) {
            Value::Int(i) => Value::Float(i as f64),
            other => other,
        },
        _ => Value::Text(text),
    }
}

/// Nodes and bytes of text in a tree. The depth is bounded, so is the recursion.
fn weight(node: &Node) -> (usize, usize) {
    match &node.value {
        Value::Text(t) => (1, t.len()),
        Value::List(items) => items.iter().map(weight).fold((1, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        Value::Map(entries) => entries
            .iter()
            .map(|e| (e.key.len(), weight(&e.node)))
            .fold((1, 0), |a, (key, b)| (a.0 + 1 + b.0, a.1 + key + b.1)),
        _ => (1, 0),
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
