//! The Avro schemas: our own, embedded, and those that other writers registered.
//!
//! Pure. A writer schema comes in as the registry's JSON and leaves as a [`Writer`]: what it can be
//! read as, and by which way. Decoding always follows the writer's schema, never ours.

use std::collections::{BTreeMap, BTreeSet};

use apache_avro::Schema as AvroSchema;
use apache_avro::schema_compatibility::SchemaCompatibility;
use serde_json::Value;

use crate::avro::Plan;

/// What a schema of ours describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Tick,
    Bar,
    Metrics,
    Ledger,
    VendorBar,
    Action,
    Assertion,
    Break,
    Kline,
}

/// All kinds, in a fixed order.
pub const KINDS: [Kind; 9] = [
    Kind::Tick,
    Kind::Bar,
    Kind::Metrics,
    Kind::Ledger,
    Kind::VendorBar,
    Kind::Action,
    Kind::Assertion,
    Kind::Break,
    Kind::Kline,
];

const TICK: [&str; 2] = [
    include_str!("../avro/tick.v1.avsc"),
    include_str!("../avro/tick.v2.avsc"),
];
const BAR: [&str; 1] = [include_str!("../avro/bar.v1.avsc")];
const METRICS: [&str; 1] = [include_str!("../avro/metrics.v1.avsc")];
const LEDGER: [&str; 1] = [include_str!("../avro/ledger.v1.avsc")];
const VENDOR_BAR: [&str; 1] = [include_str!("../avro/vendor_bar.v1.avsc")];
const ACTION: [&str; 1] = [include_str!("../avro/corporate_action.v1.avsc")];
const ASSERTION: [&str; 1] = [include_str!("../avro/assertion.v1.avsc")];
const BREAK: [&str; 1] = [include_str!("../avro/break.v1.avsc")];
const KLINE: [&str; 1] = [include_str!("../avro/kline.v1.avsc")];

impl Kind {
    /// The `.avsc` texts, oldest version first, all of them in use side by side.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::Tick => &TICK,
            Kind::Bar => &BAR,
            Kind::Metrics => &METRICS,
            Kind::Ledger => &LEDGER,
            Kind::VendorBar => &VENDOR_BAR,
            Kind::Action => &ACTION,
            Kind::Assertion => &ASSERTION,
            Kind::Break => &BREAK,
            Kind::Kline => &KLINE,
        }
    }

    /// The record's name in Avro, without its namespace.
    pub const fn record_name(self) -> &'static str {
        match self {
            Kind::Tick => "Tick",
            Kind::Bar => "Bar",
            Kind::Metrics => "Metrics",
            Kind::Ledger => "LedgerEntry",
            Kind::VendorBar => "VendorBar",
            Kind::Action => "CorporateAction",
            Kind::Assertion => "Assertion",
            Kind::Break => "Break",
            Kind::Kline => "Kline",
        }
    }

    /// The version that holds every field we read.
    pub const fn newest(self) -> &'static str {
        let versions = self.versions();
        versions[versions.len() - 1]
    }
}

/// A writer's schema, ready to decode with.
pub(crate) struct Writer {
    pub(crate) id: u32,
    /// What it can be read as.
    pub(crate) kind: Kind,
    pub(crate) plan: Plan,
}

/// A writer's schema that the registry knows and we cannot read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) String);

impl Writer {
    /// Decides what a registered schema can be read as.
    pub(crate) fn new(id: u32, json: &str) -> Result<Writer, Unreadable> {
        let value: Value =
            serde_json::from_str(json).map_err(|e| Unreadable(format!("not JSON: {e}")))?;
        let avro = AvroSchema::parse_str(json)
            .map_err(|e| Unreadable(format!("not an Avro schema: {e}")))?;
        let AvroSchema::Record(record) = &avro else {
            return Err(Unreadable("it is no record".to_owned()));
        };
        // As Avro has it, the namespace may differ.
        let name = record.name.name();
        let Some(kind) = KINDS.into_iter().find(|k| k.record_name() == name) else {
            return Err(Unreadable(format!("no record of FinLake's is a `{name}`")));
        };
        let unreadable = |why: String| Unreadable(format!("as {kind:?}: {why}"));
        let reader = AvroSchema::parse_str(kind.newest()).map_err(|e| unreadable(e.to_string()))?;
        SchemaCompatibility::can_read(&avro, &reader).map_err(|e| unreadable(e.to_string()))?;
        units_agree(&value, &parsed(kind.newest()).map_err(unreadable)?).map_err(unreadable)?;
        let plan = Plan::new(
            &bare(json).map_err(unreadable)?,
            &bare(kind.newest()).map_err(unreadable)?,
        )
        .map_err(unreadable)?;
        Ok(Writer { id, kind, plan })
    }
}

fn parsed(json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

/// A schema without logical types: the codec reads the bytes that are there, units were compared
/// before.
pub(crate) fn bare(json: &str) -> Result<AvroSchema, String> {
    AvroSchema::parse(&strip_logical_types(parsed(json)?)).map_err(|e| e.to_string())
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

fn strip_logical_types(schema: Value) -> Value {
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
    let (a, b) = (parsed(a)?, parsed(b)?);
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
                let fields = [6, 11][at];
                match (kind, writer.plan) {
                    (Kind::Tick, plan) => assert_eq!(plan, Plan::Own(fields)),
                    (_, plan) => assert!(matches!(plan, Plan::Own(_)), "{kind:?}: {plan:?}"),
                }
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
            Writer::new(1, &value.to_string()).map(|w| w.plan).ok(),
            Some(Plan::Own(11))
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
