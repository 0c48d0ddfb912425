//! The codec held against `apache-avro`: what one writes the other reads, under our own schemas
//! and under those of other writers, and what the one refuses the other must not invent.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::{Cursor, Plan, Record};
use crate::codec::DecodeError;
use crate::records::*;
use crate::schema::{KINDS, Kind, bare};

/// Decodes as one kind of record and encodes again as ours: what the codec understood.
type Rewrite = fn(&Plan, &[u8]) -> Result<Vec<u8>, DecodeError>;

fn rewrite<'a, T: Record<'a>>(plan: &Plan, datum: &'a [u8]) -> Result<Vec<u8>, DecodeError> {
    let record: T = plan.decode(datum, 1)?;
    let mut out = Vec::new();
    record.put(&mut out).expect("decoded, so it can be encoded");
    Ok(out)
}

fn of(kind: Kind) -> Rewrite {
    match kind {
        Kind::Tick => |p, d| rewrite::<Tick<'_>>(p, d),
        Kind::Bar => |p, d| rewrite::<Bar<'_>>(p, d),
        Kind::Metrics => |p, d| rewrite::<Metrics<'_>>(p, d),
        Kind::Ledger => |p, d| rewrite::<LedgerEntry>(p, d),
        Kind::VendorBar => |p, d| rewrite::<VendorBar<'_>>(p, d),
        Kind::Action => |p, d| rewrite::<CorporateAction<'_>>(p, d),
        Kind::Assertion => |p, d| rewrite::<Assertion<'_>>(p, d),
        Kind::Break => |p, d| rewrite::<Break>(p, d),
        Kind::Kline => |p, d| rewrite::<Kline<'_>>(p, d),
    }
}

fn fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Tick => Tick::FIELDS,
        Kind::Bar => Bar::FIELDS,
        Kind::Metrics => Metrics::FIELDS,
        Kind::Ledger => LedgerEntry::FIELDS,
        Kind::VendorBar => VendorBar::FIELDS,
        Kind::Action => CorporateAction::FIELDS,
        Kind::Assertion => Assertion::FIELDS,
        Kind::Break => Break::FIELDS,
        Kind::Kline => Kline::FIELDS,
    }
}

/// Every record of a schema, nested ones too, by name.
fn records(schema: &Schema, all: &mut Vec<(String, Vec<String>)>) {
    match schema {
        Schema::Record(r) => {
            let names = r.fields.iter().map(|f| f.name.clone()).collect();
            all.push((r.name.name().to_owned(), names));
            r.fields.iter().for_each(|f| records(&f.schema, all));
        }
        Schema::Array(a) => records(&a.items, all),
        Schema::Union(u) => u.variants().iter().for_each(|v| records(v, all)),
        _ => {}
    }
}

#[test]
fn records_have_the_fields_of_their_schemas_in_order() {
    let mut seen = 0;
    for kind in KINDS {
        let mut all = Vec::new();
        records(&bare(kind.newest()).unwrap(), &mut all);
        for (at, (name, schema)) in all.iter().enumerate() {
            let ours = match name.as_str() {
                _ if at == 0 => fields(kind),
                "WindowMetrics" => WindowMetrics::FIELDS,
                "InputRange" => InputRange::FIELDS,
                "OutputCount" => OutputCount::FIELDS,
                "BarContent" => BarContent::FIELDS,
                // Pairs of a name and a number.
                "StreamTime" => &["source", "time"],
                "Total" => &["name", "value"],
                other => panic!("{other} is not looked at"),
            };
            assert_eq!(ours, schema, "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 9 + 6);
}

/// [`super::Slot::zero`] stands for a field that a writer does not have.
#[test]
fn defaults_are_the_zero_of_their_type() {
    fn walk(json: &Json, found: &mut usize) {
        if let Some(default) = json.get("default") {
            assert_eq!(default, &Json::Null, "{json}");
            *found += 1;
        }
        match json {
            Json::Array(all) => all.iter().for_each(|j| walk(j, found)),
            Json::Object(all) => all.values().for_each(|j| walk(j, found)),
            _ => {}
        }
    }
    let mut found = 0;
    for kind in KINDS {
        walk(&serde_json::from_str(kind.newest()).unwrap(), &mut found);
    }
    assert!(found > 20);
}

#[test]
fn enums_have_the_symbols_of_their_schemas_in_order() {
    let all = |schema: &str, field: &str| -> Vec<String> {
        let Schema::Record(record) = bare(schema).unwrap() else {
            panic!()
        };
        let field = record.fields.iter().find(|f| f.name == field).unwrap();
        match &field.schema {
            Schema::Enum(e) => e.symbols.clone(),
            other => panic!("{other:?}"),
        }
    };
    macro_rules! same {
        ($kind:expr, $field:literal, $type:ty) => {
            let ours: Vec<&str> = <$type>::ALL.iter().map(|v| v.as_str()).collect();
            assert_eq!(all($kind.newest(), $field), ours);
            for (at, v) in <$type>::ALL.iter().enumerate() {
                assert_eq!(*v as usize, at);
            }
        };
    }
    same!(Kind::Bar, "stage", Stage);
    same!(Kind::Bar, "origin", Origin);
    same!(Kind::Bar, "basis", Basis);
    same!(Kind::VendorBar, "basis", Basis);
    same!(Kind::Action, "kind", ActionKind);
    same!(Kind::Break, "kind", BreakKind);
    same!(Kind::Break, "severity", Severity);
    same!(Kind::Break, "status", BreakStatus);
}

fn read(writer: &Schema, reader: Option<&Schema>, mut datum: &[u8]) -> Result<Value, String> {
    let reader = GenericDatumReader::builder(writer)
        .maybe_reader_schema(reader)
        .build()
        .unwrap();
    let value = reader.read_value(&mut datum).map_err(|e| e.to_string())?;
    match datum {
        [] => Ok(value),
        _ => Err("bytes after its end".to_owned()),
    }
}

fn write(schema: &Schema, value: Value) -> Vec<u8> {
    let writer = GenericDatumWriter::builder(schema).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// A source of choices.
struct Dice<'d>(&'d [u64], usize);

impl Dice<'_> {
    fn next(&mut self) -> u64 {
        let at = self.1;
        self.1 += 1;
        let n = self.0[at % self.0.len()];
        // Not the same once round.
        (n ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(at as u32 % 64)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Small numbers are as likely as large ones.
    fn long(&mut self) -> i64 {
        let bits = self.below(64) as u32;
        (self.next() as i64) >> bits
    }
}

/// Some value of a schema without logical types. Bytes are decimals and text UUIDs where the name
/// of the field says so.
fn value(schema: &Schema, field: &str, dice: &mut Dice<'_>) -> Value {
    match schema {
        Schema::Null => Value::Null,
        Schema::Boolean => Value::Boolean(dice.below(2) == 1),
        Schema::Int => Value::Int(dice.long() as i32),
        Schema::Long => Value::Long(dice.long()),
        Schema::Float => Value::Float(dice.long() as f32 / 16.0),
        Schema::Double => Value::Double(dice.long() as f64 / 1024.0),
        Schema::Bytes => {
            let wide = i128::from(dice.long()) << dice.below(60);
            let bytes = wide.to_be_bytes();
            Value::Bytes(bytes[dice.below(4)..].to_vec())
        }
        Schema::String if field.ends_with("_id") => {
            Value::String(uuid::Uuid::from_u64_pair(dice.next(), dice.next()).to_string())
        }
        Schema::String => {
            let length = dice.below(12);
            let letter = |_| char::from_u32(0x20 + dice.below(0x500) as u32).unwrap_or('x');
            Value::String((0..length).map(letter).collect())
        }
        Schema::Fixed(f) => Value::Fixed(f.size, (0..f.size).map(|_| dice.next() as u8).collect()),
        Schema::Enum(e) => {
            let at = dice.below(e.symbols.len());
            Value::Enum(at as u32, e.symbols[at].clone())
        }
        Schema::Union(u) => {
            let at = dice.below(u.variants().len());
            Value::Union(at as u32, Box::new(value(&u.variants()[at], field, dice)))
        }
        Schema::Array(a) => {
            let length = dice.below(4);
            Value::Array((0..length).map(|_| value(&a.items, field, dice)).collect())
        }
        Schema::Map(m) => Value::Map(
            (0..dice.below(4))
                .map(|n| (format!("k{n}"), value(&m.types, field, dice)))
                .collect(),
        ),
        Schema::Record(r) => Value::Record(
            r.fields
                .iter()
                .map(|f| (f.name.clone(), value(&f.schema, &f.name, dice)))
                .collect(),
        ),
        // Only the hash is referred to by name.
        Schema::Ref { .. } => Value::Fixed(16, (0..16).map(|_| dice.next() as u8).collect()),
        other => panic!("{other:?}"),
    }
}

/// Our schema as another writer might have it: fields in other order, left out where ours has a
/// default, added; numbers narrower; unions for plain types and plain types for unions.
fn foreign(kind: Kind, dice: &mut Dice<'_>) -> Json {
    let mut schema: Json =
        serde_json::from_str(&bare(kind.newest()).unwrap().independent().to_string()).unwrap();
    let mut again: Json = serde_json::from_str(kind.newest()).unwrap();
    again = strip(again);
    schema["fields"] = again["fields"].take();
    change(&mut schema, dice);
    schema
}

trait Independent {
    fn independent(&self) -> String;
}

impl Independent for Schema {
    fn independent(&self) -> String {
        self.canonical_form()
    }
}

fn strip(json: Json) -> Json {
    match json {
        Json::Array(all) => all.into_iter().map(strip).collect(),
        Json::Object(all) => {
            if all.contains_key("logicalType") && all["type"].is_string() && all.len() <= 4 {
                return match all["type"].as_str() {
                    Some("fixed") => {
                        json!({"type": "fixed", "name": all["name"], "size": all["size"]})
                    }
                    _ => all["type"].clone(),
                };
            }
            let all = all.into_iter().filter(|(k, _)| k != "doc");
            all.map(|(k, v)| (k, strip(v))).collect()
        }
        other => other,
    }
}

fn change(record: &mut Json, dice: &mut Dice<'_>) {
    let Some(fields) = record["fields"].as_array_mut() else {
        return;
    };
    // The hash is defined where it first stands, so its order must stay.
    let orderly = fields.iter().any(|f| f.to_string().contains("Hash128"));
    let mut out = Vec::new();
    for mut field in fields.drain(..) {
        if field.get("default").is_some() && dice.below(3) == 0 {
            continue;
        }
        let optional = field["type"].is_array();
        match field["type"].as_str() {
            Some("long") if dice.below(4) == 0 => field["type"] = json!("int"),
            Some("double") => {
                let narrower = ["double", "float", "long", "int"];
                field["type"] = json!(narrower[dice.below(4)]);
            }
            // Ours cannot hold null: only values are written, of whatever branch.
            Some("string") if dice.below(4) == 0 => field["type"] = json!(["string"]),
            Some("boolean") if dice.below(4) == 0 => field["type"] = json!(["boolean"]),
            _ => {}
        }
        if optional {
            let inner = field["type"][1].clone();
            match dice.below(4) {
                0 => field["type"] = inner,
                1 => field["type"] = json!([inner, "null"]),
                _ => {}
            }
            field.as_object_mut().unwrap().remove("default");
        }
        if let Some(items) = field["type"].get_mut("items")
            && items.is_object()
        {
            change(items, dice);
        }
        if field["type"]["type"] == json!("record") {
            change(&mut field["type"], dice);
        }
        out.push(field);
    }
    if !orderly {
        for at in (1..out.len()).rev() {
            out.swap(at, dice.below(at + 1));
        }
    }
    let strange = [
        json!("null"),
        json!("string"),
        json!("float"),
        json!({"type": "map", "values": ["null", "long"]}),
        json!({"type": "array", "items": {"type": "array", "items": "boolean"}}),
        json!(["null", {"type": "record", "name": "Odd", "fields": [
            {"name": "f", "type": {"type": "fixed", "name": "Odder", "size": 3}},
            {"name": "e", "type": {"type": "enum", "name": "Oddest", "symbols": ["a", "b"]}}
        ]}]),
    ];
    if dice.below(2) == 0 && record["name"] != json!("InputRange") {
        let at = dice.below(out.len() + 1);
        let which = dice.below(strange.len());
        // Its names may be defined once only.
        let nested = record["namespace"].is_null();
        if !(nested && which == 5) {
            out.insert(at, json!({"name": "strange", "type": strange[which]}));
        }
    }
    record["fields"] = Json::Array(out);
}

fn rolls() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(any::<u64>(), 8..40)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(KINDS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Written by the reference, read by us, written by us, read by the reference: unchanged.
    #[test]
    fn the_reference_and_we_understand_each_other(kind in kinds(), rolls in rolls()) {
        let ours = bare(kind.newest()).unwrap();
        let was = value(&ours, "", &mut Dice(&rolls, 0));
        let datum = write(&ours, was.clone());
        let plan = Plan::new(&ours, &ours).unwrap();
        prop_assert!(matches!(plan, Plan::Own(_)));
        for plan in [plan, Plan::foreign(&ours, &ours).unwrap()] {
            let again = of(kind)(&plan, &datum).unwrap();
            prop_assert_eq!(shortest(read(&ours, None, &again).unwrap()), shortest(was.clone()));
        }
    }

    /// Another writer's schema: we read what the reference resolves, and nothing else.
    #[test]
    fn other_writers_are_resolved_as_the_reference_does(
        kind in kinds(),
        rolls in rolls(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..2),
    ) {
        let ours = bare(kind.newest()).unwrap();
        let mut dice = Dice(&rolls, 0);
        let json = foreign(kind, &mut dice).to_string();
        let theirs = bare(&json).unwrap();
        let written = value(&theirs, "", &mut dice);
        let mut datum = write(&theirs, written);
        let plan = Plan::new(&theirs, &ours).unwrap();
        let whole = of(kind)(&plan, &datum);
        let resolved = read(&theirs, Some(&ours), &datum).unwrap();
        let again = whole.unwrap_or_else(|e| panic!("{e}\n{json}"));
        prop_assert_eq!(shortest(read(&ours, None, &again).unwrap()), shortest(resolved));
        // Damaged.
        if flips.is_empty() && cut.is_none() && tail.is_empty() {
            return Ok(());
        }
        for (at, byte) in flips {
            let at = at.index(datum.len().max(1)).min(datum.len().saturating_sub(1));
            if let Some(b) = datum.get_mut(at) { *b = byte; }
        }
        if let Some(at) = cut {
            datum.truncate(at.index(datum.len() + 1));
        }
        datum.extend(tail);
        if let Ok(again) = of(kind)(&plan, &datum) {
            let resolved = read(&theirs, Some(&ours), &datum);
            let resolved = resolved.unwrap_or_else(|e| panic!("only we read it: {e}\n{json}"));
            prop_assert_eq!(shortest(read(&ours, None, &again).unwrap()), shortest(resolved));
        }
    }

    /// Both ways of reading our own schema judge any bytes alike.
    #[test]
    fn the_fast_way_is_the_slow_way(
        kind in kinds(),
        rolls in rolls(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let ours = bare(kind.newest()).unwrap();
        let fast = Plan::new(&ours, &ours).unwrap();
        let slow = Plan::foreign(&ours, &ours).unwrap();
        let mut datum = write(&ours, value(&ours, "", &mut Dice(&rolls, 0)));
        for (at, byte) in flips {
            let at = at.index(datum.len());
            datum[at] = byte;
        }
        for bytes in [&datum[..], &datum[..cut.index(datum.len())], &noise] {
            prop_assert_eq!(of(kind)(&fast, bytes), of(kind)(&slow, bytes));
        }
    }
}

/// Decimals of equal value are equal: ours are written as short as can be.
fn shortest(value: Value) -> Value {
    match value {
        Value::Bytes(mut bytes) => {
            while bytes.len() > 1 && (bytes[0] as i8) == (bytes[1] as i8) >> 7 {
                bytes.remove(0);
            }
            Value::Bytes(bytes)
        }
        // Texts of one UUID.
        Value::String(text) => match uuid::Uuid::try_parse(&text) {
            Ok(id) => Value::String(id.to_string()),
            Err(_) => Value::String(text),
        },
        // No number equals itself otherwise.
        Value::Double(d) => Value::Long(d.to_bits() as i64),
        Value::Union(at, inner) => Value::Union(at, Box::new(shortest(*inner))),
        Value::Array(all) => Value::Array(all.into_iter().map(shortest).collect()),
        Value::Record(all) => {
            Value::Record(all.into_iter().map(|(k, v)| (k, shortest(v))).collect())
        }
        other => other,
    }
}

#[test]
fn schemas_without_end_are_refused() {
    let ours = bare(Kind::Tick.newest()).unwrap();
    let with = |extra: &str| {
        let json =
            Kind::Tick
                .newest()
                .replacen(r#""fields": ["#, &format!(r#""fields": [{extra}, "#), 1);
        Plan::new(&bare(&json).unwrap(), &ours).unwrap_err()
    };
    let endless = r#"{"name": "x", "type": {"type": "record", "name": "Node", "fields": [
        {"name": "next", "type": ["null", "Node"]}]}}"#;
    assert!(with(endless).contains("refer to themselves"));
    // A tower in which every floor doubles.
    let mut tower = r#"{"type": "record", "name": "R0", "fields": []}"#.to_owned();
    for n in 1..15 {
        let below = format!("R{}", n - 1);
        tower = format!(
            r#"{{"type": "record", "name": "R{n}", "fields": [{{"name": "a", "type": {tower}}},
                {{"name": "b", "type": "{below}"}}]}}"#
        );
    }
    assert!(with(&format!(r#"{{"name": "x", "type": {tower}}}"#)).contains("too many"));
}

#[test]
fn counts_of_nothing_cost_nothing() {
    let mut huge = vec![0x80; 8];
    huge.push(0x40);
    for count in [&huge[..], &[0xff; 9], &[0x81, 0x80, 0x80, 0x80, 0x10]] {
        assert!(Cursor::new(count).block().is_err());
    }
    // Negative: so many elements, in a block of so many bytes.
    let mut cursor = Cursor::new(&[3, 4, 9, 9]);
    assert_eq!(cursor.block(), Ok(2));
    assert_eq!(cursor.rest, [9, 9]);
    assert_eq!(Cursor::new(&[1, 0]).block(), Ok(1));
}
