//! DataFusion filters as Iceberg predicates, for skipping files and row groups.
//!
//! Pure. What comes out must follow from the filters: it may keep rows that they drop, never drop
//! one that they keep. So only a bare column against a literal of exactly its type is taken, and
//! nothing under NOT; DataFusion applies the whole filter afterwards. (The library's own
//! conversion strips casts and negates partly converted terms, and so loses rows.)

use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator, expr::InList};
use iceberg::expr::{Predicate, Reference};
use iceberg::spec::Datum;

/// What may be skipped by, of all these filters together; `None`: nothing.
pub fn from_filters(filters: &[Expr], schema: &SchemaRef) -> Option<Predicate> {
    filters
        .iter()
        .filter_map(|filter| from_expr(filter, schema))
        .reduce(Predicate::and)
}

fn from_expr(expr: &Expr, schema: &SchemaRef) -> Option<Predicate> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
            // One side alone follows from both.
            Operator::And => match (from_expr(left, schema), from_expr(right, schema)) {
                (Some(l), Some(r)) => Some(l.and(r)),
                (one, other) => one.or(other),
            },
            Operator::Or => Some(from_expr(left, schema)?.or(from_expr(right, schema)?)),
            _ => comparison(left, *op, right, schema),
        },
        Expr::Between(Between {
            expr,
            negated: false,
            low,
            high,
        }) => {
            let from = comparison(expr, Operator::GtEq, low, schema);
            let to = comparison(expr, Operator::LtEq, high, schema);
            match (from, to) {
                (Some(l), Some(r)) => Some(l.and(r)),
                (one, other) => one.or(other),
            }
        }
        Expr::InList(InList {
            expr,
            list,
            negated: false,
        }) => {
            let (column, data_type) = column(expr, schema)?;
            let data: Option<Vec<Datum>> = list.iter().map(|e| literal(e, &data_type)).collect();
            Some(column.is_in(data?))
        }
        Expr::Column(_) => {
            let (column, data_type) = column(expr, schema)?;
            (data_type == DataType::Boolean).then(|| column.equal_to(Datum::bool(true)))
        }
        Expr::Not(inner) => {
            let (column, data_type) = column(inner, schema)?;
            (data_type == DataType::Boolean).then(|| column.equal_to(Datum::bool(false)))
        }
        Expr::IsNull(inner) => Some(column(inner, schema)?.0.is_null()),
        Expr::IsNotNull(inner) => Some(column(inner, schema)?.0.is_not_null()),
        Expr::IsTrue(inner) => from_expr(inner, schema),
        _ => None,
    }
}

fn comparison(left: &Expr, op: Operator, right: &Expr, schema: &SchemaRef) -> Option<Predicate> {
    let ((column, data_type), value, op) = match (column(left, schema), column(right, schema)) {
        (Some(c), None) => (c, right, op),
        (None, Some(c)) => (c, left, op.swap()?),
        _ => return None,
    };
    let datum = literal(value, &data_type)?;
    match op {
        Operator::Eq => Some(column.equal_to(datum)),
        Operator::Lt => Some(column.less_than(datum)),
        Operator::LtEq => Some(column.less_than_or_equal_to(datum)),
        Operator::Gt => Some(column.greater_than(datum)),
        Operator::GtEq => Some(column.greater_than_or_equal_to(datum)),
        _ => None,
    }
}

/// A bare column of the table, of a type whose bounds and order are the same everywhere. Not
/// doubles (NaN, −0) and not decimals, whose statistics are rarely narrow enough to skip by.
fn column(expr: &Expr, schema: &SchemaRef) -> Option<(Reference, DataType)> {
    let Expr::Column(Column { name, .. }) = expr else {
        return None;
    };
    let data_type = schema.field_with_name(name).ok()?.data_type().clone();
    let usable = matches!(
        data_type,
        DataType::Boolean
            | DataType::Int32
            | DataType::Int64
            | DataType::Utf8
            | DataType::Date32
            | DataType::Timestamp(TimeUnit::Microsecond, Some(_))
    );
    usable.then(|| (Reference::new(name), data_type))
}

/// The literal as a datum, if it is of exactly this type. Null compares to nothing.
fn literal(expr: &Expr, data_type: &DataType) -> Option<Datum> {
    let Expr::Literal(value, _) = expr else {
        return None;
    };
    match (value, data_type) {
        (ScalarValue::Boolean(Some(v)), DataType::Boolean) => Some(Datum::bool(*v)),
        (ScalarValue::Int32(Some(v)), DataType::Int32) => Some(Datum::int(*v)),
        (ScalarValue::Int64(Some(v)), DataType::Int64) => Some(Datum::long(*v)),
        (
            ScalarValue::Utf8(Some(v))
            | ScalarValue::LargeUtf8(Some(v))
            | ScalarValue::Utf8View(Some(v)),
            DataType::Utf8,
        ) => Some(Datum::string(v)),
        (ScalarValue::Date32(Some(v)), DataType::Date32) => Some(Datum::date(*v)),
        (
            ScalarValue::TimestampMicrosecond(Some(v), Some(_)),
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)),
        ) => Some(Datum::timestamptz_micros(*v)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::{Field, Schema};
    use datafusion::logical_expr::{cast, col, lit, not};

    use super::*;

    fn schema() -> SchemaRef {
        let field = |name: &str, data_type| Field::new(name, data_type, true);
        Arc::new(Schema::new(vec![
            field("n", DataType::Int64),
            field("s", DataType::Utf8),
            field("b", DataType::Boolean),
            field("x", DataType::Float64),
            field("p", DataType::Decimal128(38, 8)),
            field(
                "t",
                DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            ),
        ]))
    }

    fn text(filter: Expr) -> Option<String> {
        from_filters(&[filter], &schema()).map(|p| p.to_string())
    }

    #[test]
    fn comparisons_with_exact_types() {
        assert_eq!(text(col("n").gt(lit(5i64))).as_deref(), Some("n > 5"));
        assert_eq!(text(lit(5i64).gt(col("n"))).as_deref(), Some("n < 5"));
        assert_eq!(text(col("s").eq(lit("a"))).as_deref(), Some("s = \"a\""));
        assert_eq!(text(col("b")).as_deref(), Some("b = true"));
        assert_eq!(text(not(col("b"))).as_deref(), Some("b = false"));
        assert!(text(col("n").between(lit(1i64), lit(2i64))).is_some());
        assert!(text(col("s").in_list(vec![lit("a"), lit("b")], false)).is_some());
        let t = ScalarValue::TimestampMicrosecond(Some(1), Some("UTC".into()));
        assert!(text(col("t").lt(lit(t))).is_some());
    }

    #[test]
    fn what_does_not_follow_is_left_out() {
        // The library would make `n = 100` of the first and `NOT n > 5` of the second.
        let cases = [
            cast(col("x"), DataType::Int64).eq(lit(100i64)),
            not(col("n").gt(lit(5i64)).and(col("x").gt(lit(1.0)))),
            cast(col("n"), DataType::Utf8).eq(lit("1")),
            col("n").not_eq(lit(5i64)),
            col("s").in_list(vec![lit("a")], true),
            col("n").gt(lit(5i32)),
            col("x").gt(lit(1.0)),
            col("n").gt(col("n")),
            col("n").eq(lit(ScalarValue::Int64(None))),
            col("n").gt(lit(5i64)).or(col("x").gt(lit(1.0))),
        ];
        for case in cases {
            assert_eq!(text(case.clone()), None, "{case}");
        }
    }

    #[test]
    fn one_side_of_a_conjunction_is_enough() {
        let both = col("n").gt(lit(5i64)).and(col("x").gt(lit(1.0)));
        assert_eq!(text(both).as_deref(), Some("n > 5"));
    }
}
