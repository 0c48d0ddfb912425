//! The tables: columns, partitioning, sort order, and the Arrow types the writer fills.
//!
//! Pure definitions. Never reads a catalog; field ids in use come from the table's own metadata
//! (a catalog may renumber), so everything here goes by name. Data flows from here into
//! `catalog.rs` (creation), `rows.rs` (builders) and `writer.rs` (files).

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use iceberg::spec::{
    NestedField, NullOrder, PrimitiveType, Schema, SortDirection, SortField, SortOrder, Transform,
    Type, UnboundPartitionField, UnboundPartitionSpec,
};

use crate::error::{LakeError, Result};

/// 9999-12-31T00:00:00Z in µs: the open end of both time axes.
pub const OPEN_END: i64 = 253_402_214_400_000_000;
/// Its day: no trade lies there.
pub const LAST_DAY: i32 = 2_932_896;

/// A table of the lakehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `bronze.market_ticks`: one row per input record.
    Ticks,
    /// `silver.market_ohlcv`: versions of bars.
    Ohlcv,
    /// `gold.market_metrics`: versions of metrics.
    Metrics,
    /// `bronze.market_bars`: one row per record of vendors' bars, corporate actions, assertions.
    Bars,
    /// `quality.breaks`: versions of breaks.
    Breaks,
}

impl Table {
    /// All tables, in the order they are created.
    pub const ALL: [Table; 5] = [
        Table::Ticks,
        Table::Ohlcv,
        Table::Metrics,
        Table::Bars,
        Table::Breaks,
    ];

    /// Namespace without prefix: `bronze`, `silver`, `gold` or `quality`.
    pub fn namespace(self) -> &'static str {
        match self {
            Table::Ticks | Table::Bars => "bronze",
            Table::Ohlcv => "silver",
            Table::Metrics => "gold",
            Table::Breaks => "quality",
        }
    }

    /// Table name inside its namespace.
    pub fn name(self) -> &'static str {
        match self {
            Table::Ticks => "market_ticks",
            Table::Ohlcv => "market_ohlcv",
            Table::Metrics => "market_metrics",
            Table::Bars => "market_bars",
            Table::Breaks => "breaks",
        }
    }

    /// Whether rows are versions that later records close (Bronze rows never close).
    pub fn versioned(self) -> bool {
        !matches!(self, Table::Ticks | Table::Bars)
    }

    /// Parses `bronze.market_ticks` or `market_ticks`.
    pub fn parse(text: &str) -> Option<Table> {
        Table::ALL
            .into_iter()
            .find(|t| text == t.name() || text == t.to_string())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace(), self.name())
    }
}

/// Column types in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColType {
    /// Text.
    Str,
    /// 32-bit integer.
    Int,
    /// 64-bit integer.
    Long,
    /// Boolean.
    Bool,
    /// 64-bit float; Gold statistics only.
    Double,
    /// decimal(38,8).
    Dec8,
    /// decimal(38,16).
    Dec16,
    /// timestamptz in µs.
    Instant,
    /// Date (days since 1970-01-01).
    Date,
    /// Bytes.
    Bytes,
}

impl ColType {
    fn iceberg(self) -> PrimitiveType {
        let dec = |scale| PrimitiveType::Decimal {
            precision: 38,
            scale,
        };
        match self {
            ColType::Str => PrimitiveType::String,
            ColType::Int => PrimitiveType::Int,
            ColType::Long => PrimitiveType::Long,
            ColType::Bool => PrimitiveType::Boolean,
            ColType::Double => PrimitiveType::Double,
            ColType::Dec8 => dec(8),
            ColType::Dec16 => dec(16),
            ColType::Instant => PrimitiveType::Timestamptz,
            ColType::Date => PrimitiveType::Date,
            ColType::Bytes => PrimitiveType::Binary,
        }
    }

    /// Arrow type of the column in memory.
    pub fn arrow(self) -> DataType {
        match self {
            ColType::Str => DataType::Utf8,
            ColType::Int => DataType::Int32,
            ColType::Long => DataType::Int64,
            ColType::Bool => DataType::Boolean,
            ColType::Double => DataType::Float64,
            ColType::Dec8 => DataType::Decimal128(38, 8),
            ColType::Dec16 => DataType::Decimal128(38, 16),
            ColType::Instant => instant_type(),
            ColType::Date => DataType::Date32,
            ColType::Bytes => DataType::Binary,
        }
    }
}

/// Arrow's timestamptz in µs, as Iceberg's own reader types it.
pub fn instant_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: ColType,
    /// NOT NULL.
    pub required: bool,
    /// Whether bounds go into the manifests (filters prune by them). Others carry counts only,
    /// which keeps manifests small and commits flat.
    pub bounds: bool,
}

/// What `tables.rs` knows about one table under one configuration.
#[derive(Debug, Clone)]
pub struct TableDef {
    /// Which table.
    pub table: Table,
    /// Columns in order; field id = position + 1 at creation.
    pub columns: Vec<Column>,
    /// `bucket(N, symbol)` instead of `symbol`.
    pub buckets: Option<u32>,
    /// Natural-key columns in key order; empty for Bronze.
    pub key: &'static [&'static str],
    /// Column that files are sorted by after `symbol`.
    pub time: &'static str,
}

const fn req(name: &'static str, ty: ColType) -> (&'static str, ColType, bool) {
    (name, ty, true)
}
const fn opt(name: &'static str, ty: ColType) -> (&'static str, ColType, bool) {
    (name, ty, false)
}

use ColType::{Bool, Bytes, Date, Dec8, Dec16, Double, Instant, Int, Long, Str};

const TICKS: &[(&str, ColType, bool)] = &[
    req("kafka_topic", Str),
    req("kafka_partition", Int),
    req("kafka_offset", Long),
    req("kafka_timestamp", Instant),
    req("commit", Long),
    opt("record_key", Str),
    opt("schema_id", Int),
    opt("raw", Bytes),
    opt("source", Str),
    opt("symbol", Str),
    opt("trade_id", Long),
    opt("price", Dec8),
    opt("quantity", Dec8),
    opt("trade_time", Instant),
    opt("event_time", Instant),
    opt("buyer_maker", Bool),
    opt("ingest_time", Instant),
    opt("first_trade_id", Long),
    opt("last_trade_id", Long),
    req("valid_from", Instant),
    req("valid_to", Instant),
    req("sys_from", Instant),
    req("sys_to", Instant),
    req("is_current", Bool),
];

const OHLCV: &[(&str, ColType, bool)] = &[
    req("tick_id", Str),
    req("source", Str),
    req("symbol", Str),
    req("bar_interval", Str),
    req("bar_start", Instant),
    req("bar_end", Instant),
    req("trade_date", Date),
    req("open", Dec8),
    req("high", Dec8),
    req("low", Dec8),
    req("close", Dec8),
    req("volume", Dec8),
    req("quote_volume", Dec16),
    req("trade_count", Long),
    req("taker_buy_base", Dec8),
    req("taker_buy_quote", Dec16),
    req("vwap", Dec8),
    req("first_trade_time", Instant),
    req("first_trade_id", Long),
    req("last_trade_time", Instant),
    req("last_trade_id", Long),
    req("stage", Str),
    req("revision", Int),
    req("origin", Str),
    req("basis", Str),
    opt("basis_at", Date),
    req("retracted", Bool),
    req("valid_from", Instant),
    req("valid_to", Instant),
    req("sys_from", Instant),
    req("sys_to", Instant),
    req("is_current", Bool),
    opt("prev_sys_from", Instant),
    req("commit", Long),
    req("ticks_offset", Long),
    req("bars_offset", Long),
    req("kafka_partition", Int),
    req("kafka_offset", Long),
];

const METRICS: &[(&str, ColType, bool)] = &[
    req("metric_id", Str),
    req("source", Str),
    req("symbol", Str),
    req("trade_date", Date),
    req("close", Dec8),
    req("observations", Long),
    opt("return_1", Double),
    req("periods", Int),
    req("risk_free", Double),
    req("revision", Int),
    req("retracted", Bool),
    req("valid_from", Instant),
    req("valid_to", Instant),
    req("sys_from", Instant),
    req("sys_to", Instant),
    req("is_current", Bool),
    opt("prev_sys_from", Instant),
    req("commit", Long),
    req("ticks_offset", Long),
    req("bars_offset", Long),
    req("kafka_partition", Int),
    req("kafka_offset", Long),
];

const BARS: &[(&str, ColType, bool)] = &[
    req("kafka_topic", Str),
    req("kafka_partition", Int),
    req("kafka_offset", Long),
    req("kafka_timestamp", Instant),
    req("commit", Long),
    opt("record_key", Str),
    opt("schema_id", Int),
    // Kept always: the columns below are what queries ask for, not the whole record.
    opt("raw", Bytes),
    opt("record_kind", Str),
    opt("source", Str),
    opt("symbol", Str),
    opt("trade_date", Date),
    opt("bar_interval", Str),
    opt("bar_start", Instant),
    opt("bar_end", Instant),
    opt("open", Dec8),
    opt("high", Dec8),
    opt("low", Dec8),
    opt("close", Dec8),
    opt("volume", Dec8),
    opt("basis", Str),
    opt("basis_at", Date),
    opt("action_kind", Str),
    opt("ratio_to", Dec8),
    opt("ratio_from", Dec8),
    opt("amount", Dec8),
    opt("currency", Str),
    opt("assertion_id", Str),
    opt("expected_sys_from", Instant),
    opt("expected_revision", Int),
    opt("retracted", Bool),
    opt("origin", Str),
    opt("reason", Str),
    opt("ingest_time", Instant),
    req("valid_from", Instant),
    req("valid_to", Instant),
    req("sys_from", Instant),
    req("sys_to", Instant),
    req("is_current", Bool),
];

const BREAKS: &[(&str, ColType, bool)] = &[
    req("break_id", Str),
    req("kind", Str),
    req("severity", Str),
    req("layer", Str),
    req("table_name", Str),
    req("break_key", Str),
    req("cause", Str),
    opt("source", Str),
    opt("symbol", Str),
    opt("trade_date", Date),
    req("status", Str),
    opt("expected", Str),
    opt("actual", Str),
    req("detail", Str),
    req("found_by", Str),
    req("found_at", Instant),
    req("valid_from", Instant),
    req("valid_to", Instant),
    req("sys_from", Instant),
    req("sys_to", Instant),
    req("is_current", Bool),
    opt("prev_sys_from", Instant),
    req("kafka_partition", Int),
    req("kafka_offset", Long),
];

/// Columns whose bounds are kept in manifests.
const BOUNDED: &[&str] = &[
    "source",
    "symbol",
    "bar_interval",
    "bar_start",
    "bar_end",
    "trade_date",
    "trade_time",
    "trade_id",
    "stage",
    "kafka_timestamp",
    "kafka_partition",
    "kafka_offset",
    "commit",
    "valid_from",
    "valid_to",
    "sys_from",
    "sys_to",
    "is_current",
];

impl TableDef {
    /// The definition of `table`. `windows` are Gold's window lengths in observations.
    pub fn new(table: Table, buckets: Option<u32>, windows: &[i32]) -> TableDef {
        let (cols, key, time): (_, &'static [&'static str], _) = match table {
            Table::Ticks => (TICKS, &[], "trade_time"),
            Table::Ohlcv => (
                OHLCV,
                &["source", "symbol", "bar_interval", "bar_start"],
                "bar_start",
            ),
            Table::Metrics => (METRICS, &["source", "symbol", "trade_date"], "trade_date"),
            Table::Bars => (BARS, &[], "valid_from"),
            Table::Breaks => (BREAKS, &["break_id"], "valid_from"),
        };
        let column = |name: &str, ty, required| Column {
            name: name.to_string(),
            ty,
            required,
            bounds: BOUNDED.contains(&name),
        };
        let mut columns: Vec<Column> = cols.iter().map(|&(n, t, r)| column(n, t, r)).collect();
        if table == Table::Metrics {
            for n in windows {
                for what in ["return", "volatility", "sharpe"] {
                    let name = format!("{what}_{n}");
                    if columns.iter().all(|c| c.name != name) {
                        columns.push(column(&name, Double, false));
                    }
                }
            }
        }
        TableDef {
            table,
            columns,
            buckets,
            key,
            time,
        }
    }

    /// Position of a column.
    ///
    /// # Errors
    /// `Internal` if there is none: a defect of this crate.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.columns
            .iter()
            .position(|c| c.name == name)
            .ok_or_else(|| LakeError::Internal(format!("{} has no column {name}", self.table)))
    }

    /// Iceberg schema for creation (ids 1, 2, … in order).
    ///
    /// # Errors
    /// Storage errors of the builder, which a fixed column list does not give.
    pub fn iceberg_schema(&self) -> Result<Schema> {
        let fields = self.columns.iter().zip(1..).map(|(c, id)| {
            let ty = Type::Primitive(c.ty.iceberg());
            Arc::new(NestedField::new(id, &c.name, ty, c.required))
        });
        Ok(Schema::builder().with_fields(fields).build()?)
    }

    /// Arrow schema without field ids: what hot rows and builders use. Text is plain Utf8.
    pub fn arrow_schema(&self) -> SchemaRef {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|c| Field::new(&c.name, c.ty.arrow(), !c.required))
            .collect();
        Arc::new(ArrowSchema::new(fields))
    }

    /// Partition fields as (column, transform, name).
    pub fn partition_fields(&self) -> Vec<(&'static str, Transform, &'static str)> {
        let symbol = match self.buckets {
            Some(n) => ("symbol", Transform::Bucket(n), "symbol_bucket"),
            None => ("symbol", Transform::Identity, "symbol"),
        };
        let current = ("is_current", Transform::Identity, "is_current");
        match self.table {
            Table::Ticks => vec![("trade_time", Transform::Day, "trade_time_day"), symbol],
            Table::Ohlcv => vec![
                ("trade_date", Transform::Month, "trade_date_month"),
                symbol,
                current,
            ],
            Table::Metrics => vec![
                ("trade_date", Transform::Year, "trade_date_year"),
                symbol,
                current,
            ],
            // A vendor sends twenty years of a symbol at once: time would only scatter them.
            Table::Bars => vec![symbol],
            Table::Breaks => vec![current],
        }
    }

    /// Partition spec for creation.
    ///
    /// # Errors
    /// `Internal` if a column is missing.
    pub fn partition_spec(&self) -> Result<UnboundPartitionSpec> {
        let mut fields = Vec::new();
        for (column, transform, name) in self.partition_fields() {
            fields.push(UnboundPartitionField {
                source_id: self.index(column)? as i32 + 1,
                field_id: None,
                name: name.to_string(),
                transform,
            });
        }
        Ok(UnboundPartitionSpec::builder()
            .with_spec_id(0)
            .add_partition_fields(fields)?
            .build())
    }

    /// Sort order for creation: (symbol, time).
    ///
    /// # Errors
    /// `Internal` if a column is missing.
    pub fn sort_order(&self) -> Result<SortOrder> {
        let mut fields = Vec::new();
        for column in ["symbol", self.time] {
            fields.push(SortField {
                source_id: self.index(column)? as i32 + 1,
                transform: Transform::Identity,
                direction: SortDirection::Ascending,
                null_order: NullOrder::First,
            });
        }
        Ok(SortOrder::builder()
            .with_order_id(1)
            .with_fields(fields)
            .build_unbound()?)
    }

    /// Compares a table's schema with this definition, by name and type.
    ///
    /// # Errors
    /// `SchemaDrift` naming the first difference. Extra columns at the end are accepted (another
    /// engine may add some), since every file carries field ids.
    pub fn check(&self, schema: &Schema) -> Result<()> {
        let drift = |detail: String| {
            Err(LakeError::SchemaDrift {
                table: self.table,
                detail,
            })
        };
        for c in &self.columns {
            match schema.field_by_name(&c.name) {
                None => return drift(format!("column {} is missing", c.name)),
                Some(f) if *f.field_type != Type::Primitive(c.ty.iceberg()) => {
                    return drift(format!(
                        "column {} is {}, expected {}",
                        c.name,
                        f.field_type,
                        c.ty.iceberg()
                    ));
                }
                Some(_) => {}
            }
        }
        for f in schema.as_struct().fields() {
            if f.required && self.index(&f.name).is_err() {
                return drift(format!(
                    "required column {} is unknown to this version",
                    f.name
                ));
            }
        }
        Ok(())
    }
}

/// Checks `bucket(N)` against the partition count: N × partitions ≤ 32, or every commit would
/// write too many small files.
///
/// # Errors
/// `Config`, with the largest N that fits.
pub fn check_buckets(buckets: Option<u32>, kafka_partitions: i32) -> Result<()> {
    let partitions = kafka_partitions.max(1) as u32;
    match buckets {
        Some(0) => Err(LakeError::Config(
            "buckets must be at least 1; leave it out to partition by symbol".into(),
        )),
        Some(n) if n.saturating_mul(partitions) > 32 => Err(LakeError::Config(format!(
            "buckets = {n} with {partitions} Kafka partitions gives {} open files per commit, at \
             most 32 are allowed; set buckets = {} or fewer",
            n.saturating_mul(partitions),
            (32 / partitions).max(1)
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_columns_are_there() {
        let def = TableDef::new(Table::Ohlcv, None, &[]);
        for name in [
            "tick_id",
            "symbol",
            "trade_date",
            "open",
            "high",
            "low",
            "close",
            "volume",
            "valid_from",
            "valid_to",
            "sys_from",
            "sys_to",
            "is_current",
            "kafka_partition",
            "kafka_offset",
        ] {
            assert!(def.index(name).is_ok(), "{name}");
        }
        let gold = TableDef::new(Table::Metrics, Some(8), &[30, 90]);
        for name in ["return_1", "return_30", "volatility_90", "sharpe_30"] {
            assert!(gold.index(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn specs_and_orders_build() {
        for table in Table::ALL {
            for buckets in [None, Some(8)] {
                let def = TableDef::new(table, buckets, &[30, 90]);
                let schema = def.iceberg_schema().unwrap();
                def.check(&schema).unwrap();
                def.partition_spec().unwrap().bind(schema).unwrap();
                assert_eq!(def.sort_order().unwrap().fields.len(), 2);
                assert_eq!(Table::parse(&table.to_string()), Some(table));
            }
        }
    }

    #[test]
    fn missing_or_retyped_columns_are_drift() {
        let def = TableDef::new(Table::Metrics, None, &[30]);
        let wider = TableDef::new(Table::Metrics, None, &[30, 90]);
        assert!(def.check(&wider.iceberg_schema().unwrap()).is_ok());
        let drift = wider.check(&def.iceberg_schema().unwrap()).unwrap_err();
        assert!(drift.to_string().contains("return_90"), "{drift}");
    }

    #[test]
    fn bucket_rule() {
        assert!(check_buckets(None, 100).is_ok());
        assert!(check_buckets(Some(8), 4).is_ok());
        assert!(check_buckets(Some(0), 4).is_err());
        let e = check_buckets(Some(16), 4).unwrap_err().to_string();
        assert!(e.contains("buckets = 8"), "{e}");
    }

    #[test]
    fn open_end_is_the_first_instant_of_its_day() {
        assert_eq!(OPEN_END % 86_400_000_000, 0);
        assert_eq!(OPEN_END / 86_400_000_000, i64::from(LAST_DAY));
        assert_eq!(LAST_DAY, 2_932_896);
    }
}
