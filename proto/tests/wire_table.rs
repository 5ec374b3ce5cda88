//! The wire identity: `wire.txt` states every message, field, enum value and method of Dapr 1.18 that we
//! speak, written down from the interface contract and not from the .proto files. Whatever drifts from
//! it breaks clients.
//!
//! ```text
//! message <name> <field>:<number>:<type>[* repeated | ? explicit presence | | member of a oneof][=<JSON name>]
//! enum <name> <value>:<number>
//! rpc <service>/<method> <request> <response>
//! ```
//! Names leave out `dapr.proto.`; `google.` stands for `google.protobuf.`; a JSON name is given where it
//! is not the lowerCamelCase of the field's.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

fn short(name: &str) -> String {
    name.trim_start_matches('.').replace("dapr.proto.", "").replace("google.protobuf.", "google.")
}

fn lower_camel(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn cell(field: &FieldDescriptorProto, maps: &BTreeMap<String, String>) -> String {
    let map = maps.get(field.type_name());
    let mark = match field.label() {
        _ if map.is_some() => "",
        Label::Repeated => "*",
        _ if field.proto3_optional() => "?",
        _ if field.oneof_index.is_some() => "|",
        _ => "",
    };
    let json = match field.json_name() {
        name if name == lower_camel(field.name()) => String::new(),
        name => format!("={name}"),
    };
    let ty = map.cloned().unwrap_or_else(|| type_of(field));
    format!(" {}:{}:{ty}{mark}{json}", field.name(), field.number())
}

fn message(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    let (maps, nested): (Vec<_>, Vec<_>) =
        message.nested_type.iter().partition(|m| m.options.as_ref().is_some_and(|o| o.map_entry()));
    let maps = maps
        .into_iter()
        .map(|entry| {
            let types: Vec<_> = entry.field.iter().map(type_of).collect();
            (format!(".dapr.proto.{name}.{}", entry.name()), format!("map<{}>", types.join(",")))
        })
        .collect();
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    let cells: String = fields.into_iter().map(|field| cell(field, &maps)).collect();
    lines.insert(format!("message {name}{cells}"));
    for inner in nested {
        self::message(&name, inner, lines);
    }
    for inner in &message.enum_type {
        enumeration(&name, inner, lines);
    }
}

fn enumeration(scope: &str, found: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    let values: String = found.value.iter().map(|v| format!(" {}:{}", v.name(), v.number())).collect();
    lines.insert(format!("enum {scope}.{}{values}", found.name()));
}

fn service(scope: &str, found: &ServiceDescriptorProto, lines: &mut BTreeSet<String>) {
    for method in &found.method {
        let side = |stream: bool, ty: &str| format!("{}{}", if stream { "stream:" } else { "" }, short(ty));
        lines.insert(format!(
            "rpc {scope}.{}/{} {} {}",
            found.name(),
            method.name(),
            side(method.client_streaming(), method.input_type()),
            side(method.server_streaming(), method.output_type()),
        ));
    }
}

fn described() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(mecha_proto::FILE_DESCRIPTOR_SET).expect("the committed set decodes");
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("dapr.proto.")) {
        let scope = short(file.package());
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        file.message_type.iter().for_each(|m| message(&scope, m, &mut lines));
        file.enum_type.iter().for_each(|e| enumeration(&scope, e, &mut lines));
        file.service.iter().for_each(|s| service(&scope, s, &mut lines));
    }
    lines
}

#[test]
fn the_descriptors_are_the_table() {
    let table: BTreeSet<String> = include_str!("wire.txt").lines().map(str::to_owned).collect();
    let described = described();
    let missing: Vec<_> = table.difference(&described).collect();
    let extra: Vec<_> = described.difference(&table).collect();
    assert!(missing.is_empty() && extra.is_empty(), "wanted: {missing:#?}\nfound instead: {extra:#?}");
}

#[test]
fn every_import_is_in_the_set_so_reflection_can_serve_it() {
    let set = FileDescriptorSet::decode(mecha_proto::FILE_DESCRIPTOR_SET).expect("the committed set decodes");
    let mut seen = BTreeSet::new();
    for file in &set.file {
        for import in &file.dependency {
            assert!(seen.contains(import), "{} imports {import}, which does not come before it", file.name());
        }
        seen.insert(file.name().to_owned());
    }
    assert!(seen.contains("dapr/proto/runtime/v1/dapr.proto"));
}
