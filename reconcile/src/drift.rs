//! SCHEMA_DRIFT: the registered schema, the table's schema, the data files' own schemas and the
//! partition spec, column by column: added, removed, renamed, retyped.
//!
//! Pure: facts about columns in, findings out. Columns are told apart by Iceberg's field ids, so
//! a rename is seen as one.

use finlake_schemas::BreakKind;

use crate::findings::{Finding, Findings, Layer};

/// What is known of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Iceberg field id; `None` where the other side has none (Avro, a foreign file).
    pub id: Option<i32>,
    pub name: String,
    /// As Iceberg spells it: `decimal(38,8)`, `timestamptz`, `string` …
    pub ty: String,
}

/// Which two things are compared.
#[derive(Debug, Clone, Copy)]
pub struct Between<'a> {
    pub layer: Layer,
    pub table: &'a str,
    /// Part of the cause, such as `table`, `file`, `registry`.
    pub what: &'a str,
    /// Where the drift stands, for a person: a file's path, a subject.
    pub place: &'a str,
}

impl Between<'_> {
    fn push(
        &self,
        column: &str,
        how: &str,
        expected: Option<&str>,
        actual: Option<&str>,
        detail: &str,
        out: &mut Findings,
    ) {
        let mut f = Finding::new(
            BreakKind::SchemaDrift,
            self.layer,
            self.table,
            column,
            format!("{}:{how}", self.what),
        );
        f.expected = expected.map(str::to_owned);
        f.actual = actual.map(str::to_owned);
        out.push(f.detail(format!("{}: {detail}", self.place)));
    }
}

/// Compares `actual` with `expected`, by id where both sides have them, else by name. `extra`
/// says whether columns that are not expected are drift.
pub fn columns(
    between: Between<'_>,
    expected: &[Column],
    actual: &[Column],
    extra: bool,
    out: &mut Findings,
) {
    let mut used = vec![false; actual.len()];
    for e in expected {
        let by_id = |a: &Column| e.id.is_some() && a.id == e.id;
        let found = actual.iter().position(by_id).or_else(|| {
            actual
                .iter()
                .position(|a| a.name == e.name && (a.id.is_none() || e.id.is_none()))
        });
        let Some(at) = found else {
            // The same name under another id: dropped and added again, or written by somebody else.
            let again = actual.iter().position(|a| a.name == e.name);
            if let Some(at) = again {
                used[at] = true;
                if actual[at].ty != e.ty {
                    retyped(between, e, &actual[at], out);
                    continue;
                }
            }
            between.push(
                &e.name,
                "removed",
                Some(&e.ty),
                None,
                gone(between.what),
                out,
            );
            continue;
        };
        used[at] = true;
        let a = &actual[at];
        if a.name != e.name {
            between.push(
                &e.name,
                "renamed",
                Some(&e.name),
                Some(&a.name),
                "a column has another name; queries by the old one fail. Rename it back",
                out,
            );
        }
        if a.ty != e.ty {
            retyped(between, e, a, out);
        }
    }
    if !extra {
        return;
    }
    for (a, _) in actual.iter().zip(used).filter(|(_, used)| !used) {
        between.push(&a.name, "added", None, Some(&a.ty), new(between.what), out);
    }
}

fn gone(what: &str) -> &'static str {
    match what {
        "registry" => {
            "the registered schema has a field for which the table has no column: it was extended, \
             and what producers write there is not kept. Register the schema of this version as \
             the newest, or upgrade"
        }
        _ => {
            "a column is gone; what it held reads as null. Bring it back from the snapshot before, \
             or rebuild the table"
        }
    }
}

fn new(what: &str) -> &'static str {
    match what {
        "registry" => {
            "the registered schema lacks a field that the table has: what producers of that \
             schema send reads as null. Register the schema of this version as the newest"
        }
        _ => {
            "a column that this version does not know; the sink leaves it null. Upgrade, or drop it"
        }
    }
}

fn retyped(between: Between<'_>, e: &Column, a: &Column, out: &mut Findings) {
    between.push(
        &e.name,
        "retyped",
        Some(&e.ty),
        Some(&a.ty),
        "a column has another type; values may be rounded or unreadable. Change it back, or rebuild the table",
        out,
    );
}

/// Compares a registered schema with the table, where both can hold the same: a table has columns
/// of its own and a record has lists. `ours` are the fields that this version writes; one of them
/// that is in the table and not in the registry was taken out of the registered schema. By name,
/// since a registry has no ids.
pub fn registered(
    between: Between<'_>,
    registered: &[Column],
    ours: &[Column],
    table: &[Column],
    out: &mut Findings,
) {
    let bare = |c: &Column| Column {
        id: None,
        ..c.clone()
    };
    let written = |c: &&Column| ours.iter().any(|o| o.name == c.name);
    let registers = |c: &&Column| registered.iter().any(|r| r.name == c.name);
    let table: Vec<Column> = table
        .iter()
        .filter(|c| written(c) || registers(c))
        .map(bare)
        .collect();
    columns(between, registered, &table, true, out);
}

/// Compares partition specs: (column, transform), in order.
pub fn partitioning(
    between: Between<'_>,
    expected: &[(String, String)],
    actual: &[(String, String)],
    out: &mut Findings,
) {
    if expected == actual {
        return;
    }
    let show = |spec: &[(String, String)]| {
        let fields: Vec<String> = spec.iter().map(|(c, t)| format!("{t}({c})")).collect();
        fields.join(", ")
    };
    between.push(
        "partition spec",
        "partitioning",
        Some(&show(expected)),
        Some(&show(actual)),
        "the table is partitioned otherwise than configured; new files follow the table's spec and filters may read more of them. Change lake.buckets, or rewrite the table",
        out,
    );
}

/// Columns of a registered Avro record schema, types as Iceberg would have them; fields without a
/// counterpart (arrays, maps) are left out. `None` if the text is not a record schema.
pub fn avro(text: &str) -> Option<Vec<Column>> {
    let schema: serde_json::Value = serde_json::from_str(text).ok()?;
    let fields = schema.get("fields")?.as_array()?;
    let mut out = Vec::new();
    for f in fields {
        let name = f.get("name")?.as_str()?.to_owned();
        if let Some(ty) = avro_type(f.get("type")?) {
            out.push(Column { id: None, name, ty });
        }
    }
    Some(out)
}

fn avro_type(ty: &serde_json::Value) -> Option<String> {
    use serde_json::Value;
    match ty {
        Value::String(plain) => Some(
            match plain.as_str() {
                "string" => "string",
                "int" => "int",
                "long" => "long",
                "boolean" => "boolean",
                "double" => "double",
                "bytes" => "binary",
                _ => return None,
            }
            .to_owned(),
        ),
        // A nullable field: null and one other.
        Value::Array(union) => union
            .iter()
            .find(|t| t.as_str() != Some("null"))
            .and_then(avro_type),
        Value::Object(o) => {
            let inner = o.get("type")?;
            match o.get("logicalType").and_then(Value::as_str) {
                Some("decimal") => {
                    let scale = o.get("scale").and_then(Value::as_i64).unwrap_or(0);
                    Some(format!("decimal({},{scale})", o.get("precision")?))
                }
                Some("timestamp-micros") => Some("timestamptz".to_owned()),
                Some("date") => Some("date".to_owned()),
                Some("uuid") => Some("string".to_owned()),
                _ if inner.as_str() == Some("enum") => Some("string".to_owned()),
                _ if inner.as_str() == Some("array") || inner.as_str() == Some("map") => None,
                _ => avro_type(inner),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: Between<'_> = Between {
        layer: Layer::Silver,
        table: "silver.t",
        what: "table",
        place: "here",
    };

    fn column(id: i32, name: &str, ty: &str) -> Column {
        Column {
            id: Some(id),
            name: name.into(),
            ty: ty.into(),
        }
    }

    fn sample() -> Vec<Column> {
        vec![
            column(1, "a", "string"),
            column(2, "b", "decimal(38,8)"),
            column(3, "c", "long"),
        ]
    }

    #[test]
    fn each_change_has_its_name() {
        let with = |change: fn(&mut Vec<Column>)| {
            let mut actual = sample();
            change(&mut actual);
            let mut out = Findings::default();
            columns(B, &sample(), &actual, true, &mut out);
            out.list()
                .iter()
                .map(|f| (f.key.clone(), f.cause.clone()))
                .collect::<Vec<_>>()
        };
        let one = |key: &str, how: &str| vec![(key.to_owned(), format!("table:{how}"))];
        assert_eq!(with(|_| {}), []);
        assert_eq!(
            with(|c| {
                c.remove(1);
            }),
            one("b", "removed")
        );
        assert_eq!(with(|c| c[1].name = "x".into()), one("b", "renamed"));
        assert_eq!(with(|c| c[1].ty = "double".into()), one("b", "retyped"));
        assert_eq!(with(|c| c.push(column(9, "z", "int"))), one("z", "added"));
        assert_eq!(with(|c| c[1].id = None), []);
        assert_eq!(
            with(|c| c[1] = column(9, "b", "double")),
            one("b", "retyped")
        );
        assert_eq!(
            with(|c| c[1] = column(9, "b", "decimal(38,8)")),
            one("b", "removed")
        );
    }

    #[test]
    fn a_registered_schema_that_went_its_own_way_is_drift() {
        let table = sample();
        let ours = &table[..2];
        let found = |schema: &[Column]| {
            let mut out = Findings::default();
            registered(B, schema, ours, &table, &mut out);
            out.list()
                .iter()
                .map(|f| (f.key.clone(), f.cause.clone()))
                .collect::<Vec<_>>()
        };
        let one = |key: &str, how: &str| vec![(key.to_owned(), format!("table:{how}"))];
        assert_eq!(found(&table[..2]), [], "a table has columns of its own");
        let mut extended = table[..2].to_vec();
        extended.push(column(9, "venue", "string"));
        assert_eq!(found(&extended), one("venue", "removed"));
        assert_eq!(found(&table[..1]), one("b", "added"));
        let mut retyped = table[..2].to_vec();
        retyped[1].ty = "decimal(38,10)".into();
        assert_eq!(found(&retyped), one("b", "retyped"));
    }

    #[test]
    fn avro_types_map_to_columns() {
        for text in [
            finlake_schemas::Kind::Tick.newest(),
            finlake_schemas::Kind::Bar.newest(),
        ] {
            let columns = avro(text).unwrap();
            let ty = |name: &str| {
                columns
                    .iter()
                    .find(|c| c.name == name)
                    .map(|c| c.ty.as_str())
            };
            assert_eq!(ty("source"), Some("string"));
            assert!(matches!(ty("price").or(ty("open")), Some("decimal(38,8)")));
        }
        assert!(avro("[]").is_none());
    }
}
