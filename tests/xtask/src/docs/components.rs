use mecha_components_api::{Field, FieldType, Registration, Registry};

use super::Pages;
use super::manifest::Powers;
use super::markdown::{cell, code, codes, table};

/// Every component of the shipped binary.
pub(super) struct Catalogue {
    entries: Vec<Entry>,
}

/// One component type; a binding may be registered as input and as output.
struct Entry {
    kind: &'static str,
    aliases: &'static [&'static str],
    versions: &'static [&'static str],
    summary: &'static str,
    blocks: Vec<&'static str>,
    fields: Vec<Field>,
    powers: Vec<String>,
}

impl Catalogue {
    pub(super) fn new(powers: &Powers) -> Self {
        let mut registry = Registry::new();
        mecha_components::register_all(&mut registry);
        let mut found = Self { entries: Vec::new() };
        found.add("state store", &registry.state);
        found.add("pub/sub", &registry.pubsub);
        found.add("input binding", &registry.input);
        found.add("output binding", &registry.output);
        found.add("secret store", &registry.secrets);
        found.add("configuration store", &registry.configuration);
        found.add("lock store", &registry.lock);
        found.add("name resolution", &registry.resolvers);
        for entry in &mut found.entries {
            let names = std::iter::once(&entry.kind).chain(entry.aliases);
            let lists = names.filter_map(|name| powers.get(*name)).flatten();
            for word in lists {
                if !entry.powers.contains(word) {
                    entry.powers.push(word.clone());
                }
            }
        }
        found
    }

    fn add<C: ?Sized>(&mut self, block: &'static str, list: &[Registration<C>]) {
        for reg in list {
            let index = self.entries.iter().position(|entry| entry.kind == reg.kind).unwrap_or_else(|| {
                self.entries.push(Entry {
                    kind: reg.kind,
                    aliases: reg.aliases,
                    versions: reg.versions,
                    summary: reg.summary,
                    blocks: Vec::new(),
                    fields: Vec::new(),
                    powers: Vec::new(),
                });
                self.entries.len() - 1
            });
            let entry = &mut self.entries[index];
            if !entry.blocks.contains(&block) {
                entry.blocks.push(block);
            }
            for field in reg.fields {
                if !entry.fields.iter().any(|known| known.name == field.name) {
                    entry.fields.push(*field);
                }
            }
        }
    }

    /// The table of components; `folder` is where their pages lie, seen from the page it stands on.
    pub(super) fn table(&self, folder: &str) -> String {
        table(
            ["Type", "Block", "What it is", "What it can do"],
            self.entries.iter().map(|entry| {
                [
                    format!("[`{kind}`]({folder}{kind}.md)", kind = entry.kind),
                    entry.blocks.join(", "),
                    cell(entry.summary),
                    cell(&entry.powers.join(", ")),
                ]
            }),
        )
    }

    pub(super) fn pages(&self, pages: &mut Pages) {
        let list = format!(
            "# Components\n\nEvery component of the shipped `mechad`. Metadata keys match in any case, and so does what follows the first dot of a type. A \
             key that a component does not know is accepted, and a warning names the known ones; `mecha lint` fails \
             on it. Keys that every component of a block takes are in [configuration](../configuration.md).\n\n{}",
            self.table("components/")
        );
        pages.insert("docs/reference/components.md".to_owned(), list);
        for entry in &self.entries {
            pages.insert(format!("docs/reference/components/{}.md", entry.kind), entry.page());
        }
    }
}

impl Entry {
    fn page(&self) -> String {
        let mut out = format!("# {}\n\n{}\n\n", self.kind, self.summary);
        let mut facts = vec![
            ["Building block".to_owned(), self.blocks.join(", ")],
            ["Versions".to_owned(), format!("{}; the first is the default", codes(self.versions))],
        ];
        if self.versions.len() == 1 {
            facts[1][1] = codes(self.versions);
        }
        if !self.aliases.is_empty() {
            facts.push(["Other names".to_owned(), codes(self.aliases)]);
        }
        if !self.powers.is_empty() {
            facts.push(["Can do".to_owned(), cell(&self.powers.join(", "))]);
        }
        out.push_str(&table(["", ""], facts));
        out.push_str("\n## Example\n\n```yaml\n");
        out.push_str(&self.example());
        out.push_str("```\n\n## Metadata\n\n");
        if self.fields.is_empty() {
            out.push_str("It has no keys of its own.\n");
        } else {
            out.push_str(&table(["Key", "Type", "Default", "Required", "Meaning"], self.fields.iter().map(row)));
            if self.fields.iter().any(|field| field.secret) {
                out.push_str(
                    "\nGive a key marked *secret* with `secretKeyRef`, so that its value stands in no document. It is \
                     never logged and never shown.\n",
                );
            }
        }
        out.push_str("\n[All components](../components.md)\n");
        out
    }

    /// A document with the required keys.
    fn example(&self) -> String {
        let short = self.kind.split_once('.').map_or(self.kind, |(_, rest)| rest);
        let required: Vec<&Field> = self.fields.iter().filter(|field| field.required).collect();
        if self.blocks == ["name resolution"] {
            let mut out = format!(
                "# In the Configuration document, not in a Component.\napiVersion: dapr.io/v1alpha1\n\
                 kind: Configuration\nmetadata:\n  name: config\nspec:\n  nameResolution:\n    component: {short}\n"
            );
            if !required.is_empty() {
                out.push_str("    configuration:\n");
                for field in required {
                    out.push_str(&format!("      {}: {}\n", field.name, sample(field)));
                }
            }
            return out;
        }
        let mut out = format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: my-{}\nspec:\n  type: {}\n  version: {}\n",
            short.replace('.', "-"),
            self.kind,
            self.versions.first().copied().unwrap_or("v1")
        );
        if required.is_empty() {
            out.push_str("  metadata: []\n");
        } else {
            out.push_str("  metadata:\n");
            for field in required {
                out.push_str(&format!("    - name: {}\n", field.name));
                if field.secret {
                    out.push_str("      secretKeyRef:\n        name: my-secret\n        key: my-key\n");
                } else {
                    out.push_str(&format!("      value: {}\n", sample(field)));
                }
            }
        }
        out
    }
}

fn row(field: &Field) -> [String; 5] {
    let mut name = code(field.name);
    if !field.aliases.is_empty() {
        name.push_str(&format!(", also {}", codes(field.aliases)));
    }
    let mut ty = ty(field.ty).to_owned();
    if field.secret {
        ty.push_str(", *secret*");
    }
    [name, ty, code(field.default), if field.required { "yes" } else { "" }.to_owned(), cell(field.doc)]
}

fn ty(ty: FieldType) -> &'static str {
    match ty {
        FieldType::Text => "text",
        FieldType::Integer => "whole number",
        FieldType::Boolean => "true or false",
        FieldType::Duration => "duration",
        FieldType::Quantity => "size",
    }
}

/// A value a reader sees at once has to be replaced.
fn sample(field: &Field) -> &'static str {
    match field.ty {
        _ if !field.default.is_empty() => field.default,
        FieldType::Text => "\"...\"",
        FieldType::Integer => "\"1\"",
        FieldType::Boolean => "\"true\"",
        FieldType::Duration => "\"30s\"",
        FieldType::Quantity => "\"4Mi\"",
    }
}
