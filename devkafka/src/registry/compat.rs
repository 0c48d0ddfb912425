//! Schemas as the registry sees them: parsed, brought to a normal form, compared.
//!
//! What can be read is decided by apache-avro's `SchemaCompatibility`; a schema that can be read only
//! for some data counts as incompatible, as in Confluent's registry.

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Refused, Result};

/// Deepest nesting of a schema's JSON. The Avro parser recurses; this keeps it off the stack's end.
const MAX_DEPTH: usize = 64;
/// Longest schema text in bytes.
const MAX_LEN: usize = 1 << 20;

/// Compatibility levels, named as in the registry's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Level {
    None,
    Backward,
    BackwardTransitive,
    Forward,
    ForwardTransitive,
    Full,
    FullTransitive,
}

impl Level {
    pub fn parse(name: &str) -> Option<Level> {
        serde_json::from_value(Value::String(name.to_ascii_uppercase())).ok()
    }

    pub fn transitive(self) -> bool {
        matches!(
            self,
            Level::BackwardTransitive | Level::ForwardTransitive | Level::FullTransitive
        )
    }

    fn new_reads_old(self) -> bool {
        matches!(
            self,
            Level::Backward | Level::BackwardTransitive | Level::Full | Level::FullTransitive
        )
    }

    fn old_reads_new(self) -> bool {
        matches!(
            self,
            Level::Forward | Level::ForwardTransitive | Level::Full | Level::FullTransitive
        )
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// JSON with sorted keys and no spaces: equal for schemas that differ in layout only.
pub fn normal_form(schema: &str) -> Option<String> {
    let value: Value = serde_json::from_str(schema).ok()?;
    Some(sorted(&value).to_string())
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        Value::Object(fields) => {
            let mut pairs: Vec<(&String, &Value)> = fields.iter().collect();
            pairs.sort_by_key(|(k, _)| k.as_str());
            Value::Object(
                pairs
                    .into_iter()
                    .map(|(k, v)| (k.clone(), sorted(v)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// Checks that a text is an Avro schema; returns its normal form.
pub fn parse(schema: &str) -> Result<String> {
    avro(schema)?;
    normal_form(schema).ok_or_else(|| Refused::invalid("not JSON"))
}

fn avro(schema: &str) -> Result<Schema> {
    if schema.len() > MAX_LEN {
        return Err(Refused::invalid("longer than 1 MiB"));
    }
    let value: Value = serde_json::from_str(schema).map_err(Refused::invalid)?;
    if depth(&value) > MAX_DEPTH {
        return Err(Refused::invalid("nested too deeply"));
    }
    Schema::parse(&value).map_err(Refused::invalid)
}

/// What makes `new` incompatible with `old` at a level; nothing if it is compatible.
pub fn check(level: Level, new: &str, old: &str) -> Result<Vec<String>> {
    if level == Level::None {
        return Ok(Vec::new());
    }
    let (new, old) = (avro(new)?, avro(old)?);
    let mut problems = Vec::new();
    if level.new_reads_old() {
        problems.extend(read_problem(
            "the new schema cannot read data of the old one",
            &old,
            &new,
        ));
    }
    if level.old_reads_new() {
        problems.extend(read_problem(
            "the old schema cannot read data of the new one",
            &new,
            &old,
        ));
    }
    Ok(problems)
}

fn read_problem(what: &str, writer: &Schema, reader: &Schema) -> Option<String> {
    match SchemaCompatibility::can_read(writer, reader) {
        Ok(Compatibility::Full) => None,
        Ok(Compatibility::Partial) => Some(format!("{what}: only some of it")),
        Err(e) => Some(format!("{what}: {e}")),
    }
}
