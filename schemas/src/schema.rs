//! The Avro schemas: our own, embedded, and those that other writers registered.
//!
//! Pure. A writer schema comes in as the registry's JSON and leaves as a [`Writer`]: what it can be
//! read as, and by which way. Decoding always follows the writer's schema, never ours.

use std::collections::{BTreeMap, BTreeSet};

use apache_avro::Schema as AvroSchema;
use apache_avro::schema_compatibility::SchemaCompatibility;
use serde_json::Value;

/// What a schema of ours describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Tick,
    Bar,
    Metrics,
    Ledger,
}

/// All kinds, in a fixed order.
pub const KINDS: [Kind; 4] = [Kind::Tick, Kind::Bar, Kind::Metrics, Kind::Ledger];

const TICK: [&str; 2] = [
    include_str!("../avro/tick.v1.avsc"),
    include_str!("../avro/tick.v2.avsc"),
];
const BAR: [&str; 1] = [include_str!("../avro/bar.v1.avsc")];
const METRICS: [&str; 1] = [include_str!("../avro/metrics.v1.avsc")];
const LEDGER: [&str; 1] = [include_str!("../avro/ledger.v1.avsc")];

impl Kind {
    /// The `.avsc` texts, oldest version first, all of them in use side by side.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::Tick => &TICK,
            Kind::Bar => &BAR,
            Kind::Metrics => &METRICS,
            Kind::Ledger => &LEDGER,
        }
    }

    /// The version that holds every field we read.
    pub const fn newest(self) -> &'static str {
        let versions = self.versions();
        versions[versions.len() - 1]
    }
}

/// Which decoder fits a writer's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Field for field our own: hand-written decoder.
    TickV1,
    TickV2,
    /// Anything else that can be read: by field name, through serde.
    ByName,
}

/// A writer's schema, ready to decode with.
pub(crate) struct Writer {
    pub(crate) id: u32,
    /// Without logical types, see [`strip_logical_types`].
    pub(crate) schema: serde_avro_fast::Schema,
    pub(crate) form: Form,
    /// What it can be read as.
    pub(crate) kind: Kind,
}

/// A writer's schema that the registry knows and we cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) String);

impl Writer {
    /// Decides what a registered schema can be read as.
    pub(crate) fn new(id: u32, json: &str) -> Result<Writer, Unreadable> {
        let unreadable = |why: String| Unreadable(why);
        let value: Value =
            serde_json::from_str(json).map_err(|e| unreadable(format!("not JSON: {e}")))?;
        let avro = AvroSchema::parse_str(json)
            .map_err(|e| unreadable(format!("not an Avro schema: {e}")))?;
        let mut reasons = Vec::new();
        for kind in KINDS {
            match readable_as(&avro, &value, kind) {
                Ok(()) => {
                    let stripped = strip_logical_types(value).to_string();
                    let schema = stripped
                        .parse()
                        .map_err(|e| unreadable(format!("not an Avro schema: {e}")))?;
                    let form = form_of(&avro, json, kind);
                    return Ok(Writer {
                        id,
                        schema,
                        form,
                        kind,
                    });
                }
                Err(why) => reasons.push(format!("as {kind:?}: {why}")),
            }
        }
        Err(unreadable(reasons.join("; ")))
    }
}

fn readable_as(writer: &AvroSchema, writer_json: &Value, kind: Kind) -> Result<(), String> {
    let reader = AvroSchema::parse_str(kind.newest()).map_err(|e| e.to_string())?;
    SchemaCompatibility::can_read(writer, &reader).map_err(|e| e.to_string())?;
    let reader_json: Value = serde_json::from_str(kind.newest()).map_err(|e| e.to_string())?;
    units_agree(writer_json, &reader_json)
}

/// Avro's resolution ignores units: a `timestamp-millis` is a long like any other, and a decimal
/// is bytes. Here a field must mean what ours means.
fn units_agree(writer: &Value, reader: &Value) -> Result<(), String> {
    let (written, read) = (Units::of(writer), Units::of(reader));
    for (field, ours) in &read.logical {
        if !written.fields.contains(field) {
            continue;
        }
        match written.logical.get(field) {
            Some(theirs) if theirs == ours => {}
            Some(theirs) => return Err(format!("{field} is {theirs}, not {ours}")),
            // A bare long or string says nothing against ours; bare bytes have no scale.
            None if ours.starts_with("decimal") => {
                return Err(format!("{field} has no scale, it must be {ours}"));
            }
            None => {}
        }
    }
    Ok(())
}

/// Fields as `Record.field`, with the logical type of each that has one.
#[derive(Default)]
struct Units {
    fields: BTreeSet<String>,
    logical: BTreeMap<String, String>,
}

impl Units {
    fn of(schema: &Value) -> Units {
        let mut units = Units::default();
        units.walk(schema, "");
        units
    }

    fn walk(&mut self, schema: &Value, at: &str) {
        match schema {
            Value::Array(variants) => variants.iter().for_each(|v| self.walk(v, at)),
            Value::Object(object) => {
                if let Some(logical) = object.get("logicalType").and_then(Value::as_str) {
                    // The precision may be less than ours, the scale is the unit.
                    let text = match object.get("scale").and_then(Value::as_u64) {
                        Some(scale) => format!("{logical} of scale {scale}"),
                        None if logical == "decimal" => "decimal of scale 0".to_owned(),
                        None => logical.to_owned(),
                    };
                    self.logical.insert(at.to_owned(), text);
                }
                if let Some(Value::Array(fields)) = object.get("fields") {
                    let name = object.get("name").and_then(Value::as_str).unwrap_or("");
                    let name = name.rsplit('.').next().unwrap_or(name);
                    for field in fields {
                        let Some(field_name) = field.get("name").and_then(Value::as_str) else {
                            continue;
                        };
                        let at = format!("{name}.{field_name}");
                        self.fields.insert(at.clone());
                        if let Some(schema) = field.get("type") {
                            self.walk(schema, &at);
                        }
                    }
                    return;
                }
                for nested in ["type", "items", "values"] {
                    if let Some(schema) = object.get(nested) {
                        self.walk(schema, at);
                    }
                }
            }
            _ => {}
        }
    }
}

fn form_of(writer: &AvroSchema, json: &str, kind: Kind) -> Form {
    if kind != Kind::Tick {
        return Form::ByName;
    }
    let canonical = writer.canonical_form();
    for (text, form) in Kind::Tick
        .versions()
        .iter()
        .zip([Form::TickV1, Form::TickV2])
    {
        // The very text is what we meet nearly always; other spellings of it are equal too.
        let same = json == *text
            || AvroSchema::parse_str(text).is_ok_and(|ours| ours.canonical_form() == canonical);
        if same {
            return form;
        }
    }
    Form::ByName
}

/// The serde decoder would carry decimals through a 96-bit type; without the annotation they are
/// the bytes they are, and `wire` reads them whole.
pub(crate) fn strip_logical_types(schema: Value) -> Value {
    match schema {
        Value::Array(variants) => variants.into_iter().map(strip_logical_types).collect(),
        Value::Object(object) => {
            let annotated = object.contains_key("logicalType");
            object
                .into_iter()
                .filter(|(key, _)| {
                    !(annotated && matches!(key.as_str(), "logicalType" | "precision" | "scale"))
                })
                .map(|(key, value)| {
                    // Defaults are data, not schema.
                    let value = if key == "default" {
                        value
                    } else {
                        strip_logical_types(value)
                    };
                    (key, value)
                })
                .collect()
        }
        other => other,
    }
}

/// Whether each schema can read what the other writes.
///
/// # Errors
/// Says which field is in the way.
pub fn both_ways(a: &str, b: &str) -> Result<(), String> {
    let parse = |text: &str| AvroSchema::parse_str(text).map_err(|e| e.to_string());
    let (first, second) = (parse(a)?, parse(b)?);
    SchemaCompatibility::mutual_read(&first, &second).map_err(|e| e.to_string())?;
    let json = |text: &str| serde_json::from_str::<Value>(text).map_err(|e| e.to_string());
    let (a, b) = (json(a)?, json(b)?);
    units_agree(&a, &b)?;
    units_agree(&b, &a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_schemas_parse_and_are_readable_as_themselves() {
        for kind in KINDS {
            for (at, text) in kind.versions().iter().enumerate() {
                let writer = Writer::new(7, text).unwrap_or_else(|e| panic!("{kind:?}: {}", e.0));
                assert_eq!(writer.kind, kind);
                let expected = match (kind, at) {
                    (Kind::Tick, 0) => Form::TickV1,
                    (Kind::Tick, _) => Form::TickV2,
                    _ => Form::ByName,
                };
                assert_eq!(writer.form, expected);
            }
        }
    }

    #[test]
    fn tick_versions_are_compatible_both_ways() {
        let [v1, v2] = TICK;
        assert_eq!(both_ways(v1, v2), Ok(()));
    }

    #[test]
    fn all_versions_of_a_kind_are_compatible_both_ways() {
        for kind in KINDS {
            for a in kind.versions() {
                for b in kind.versions() {
                    assert_eq!(both_ways(a, b), Ok(()), "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn a_required_new_field_breaks_one_direction() {
        let broken = TICK[1].replace(r#"["null", "boolean"], "default": null"#, r#""boolean""#);
        assert_ne!(broken, TICK[1]);
        assert!(both_ways(TICK[0], &broken).is_err());
    }

    #[test]
    fn other_units_are_refused() {
        let millis = TICK[0].replace("timestamp-micros", "timestamp-millis");
        let why = Writer::new(1, &millis)
            .err()
            .map(|e| e.0)
            .unwrap_or_default();
        assert!(why.contains("Tick.trade_time is timestamp-millis"), "{why}");

        let scale = TICK[0].replace("\"scale\": 8", "\"scale\": 10");
        assert!(Writer::new(1, &scale).is_err());
        let bare = TICK[0].replace(
            r#"{"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}"#,
            r#""bytes""#,
        );
        assert_ne!(bare, TICK[0]);
        assert!(Writer::new(1, &bare).is_err());
    }

    #[test]
    fn other_spellings_of_ours_take_the_fast_way() {
        let value: Value = serde_json::from_str(TICK[1]).unwrap();
        assert_eq!(
            Writer::new(1, &value.to_string()).map(|w| w.form).ok(),
            Some(Form::TickV2)
        );
    }

    #[test]
    fn strangers_are_unreadable_with_a_reason() {
        for json in [
            "",
            "nonsense",
            r#""string""#,
            r#"{"type":"record","name":"Trade","fields":[]}"#,
            r#"{"type":"record","name":"Tick","namespace":"finlake","fields":[{"name":"a","type":"int"}]}"#,
        ] {
            let why = Writer::new(1, json).err().map(|e| e.0).unwrap_or_default();
            assert!(!why.is_empty(), "{json}");
        }
    }
}
