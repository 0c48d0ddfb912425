//! Reads the schemas that SCHEMA_DRIFT compares: the table's metadata and the footers of its data
//! files. Never reads a row.

use arrow::datatypes::{DataType, TimeUnit};

use finlake_lakehouse::{FileTask, Filter, Lakehouse, Pinned};
use finlake_schemas::Kind;
use iceberg::spec::Schema;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaDataReader;

use crate::boxed;
use crate::drift::{self, Between, Column};
use crate::findings::{Findings, Layer};

/// Files whose footers are read at most; the newest names are not the newest files, so it is all
/// or a plain sample in path order.
const FILES: usize = 5_000;

/// Columns of an Iceberg schema.
fn columns(schema: &Schema) -> Vec<Column> {
    let fields = schema.as_struct().fields().iter();
    fields
        .map(|f| Column {
            id: Some(f.id),
            name: f.name.clone(),
            ty: f.field_type.to_string().replace(' ', ""),
        })
        .collect()
}

/// Compares the table with its definition, its files with the table, and the registered schema
/// with the definition. Returns true if the table itself may be read by its columns, and reasons
/// why something could not be looked at.
///
/// # Errors
/// What the lakehouse gives for an unreadable manifest.
#[boxed(?Send)]
pub async fn check(
    lake: &Lakehouse,
    pinned: &Pinned,
    layer: Layer,
    filter: &Filter,
    registered: Option<&str>,
    out: &mut Findings,
) -> finlake_lakehouse::Result<(bool, Vec<String>)> {
    let mut unchecked = Vec::new();
    let name = pinned.table().to_string();
    let metadata = pinned.metadata();
    let table = columns(metadata.current_schema());
    let between = |what: &'static str, place| Between {
        layer,
        table: &name,
        what,
        place,
    };
    let before = out.total();
    // Field ids in the definition are those at creation; the table's own schemas say whether a
    // name has moved to another id since.
    let mut expected = columns(&pinned.def().iceberg_schema()?);
    let mut oldest: Vec<_> = metadata.schemas_iter().collect();
    oldest.sort_by_key(|s| s.schema_id());
    for column in &mut expected {
        // A catalog may renumber at creation.
        let first = oldest.iter().find_map(|s| s.field_id_by_name(&column.name));
        column.id = first;
    }
    drift::columns(
        between("table", "table schema"),
        &expected,
        &table,
        true,
        out,
    );
    let readable = out.total() == before;

    let spec: Vec<(String, String)> = metadata
        .default_partition_spec()
        .fields()
        .iter()
        .map(|f| {
            let column = metadata.current_schema().field_by_id(f.source_id);
            let name = column.map_or(f.name.clone(), |c| c.name.clone());
            (name, f.transform.to_string())
        })
        .collect();
    let wanted: Vec<(String, String)> = pinned
        .def()
        .partition_fields()
        .iter()
        .map(|(column, transform, _)| ((*column).to_owned(), transform.to_string()))
        .collect();
    // A column that was renamed or dropped is one drift, not two.
    if readable {
        drift::partitioning(between("table", "partition spec"), &wanted, &spec, out);
    }

    if let Some(text) = registered {
        match drift::avro(text) {
            Some(fields) if readable => {
                let between = between("registry", "registered schema and table");
                drift::registered(between, &fields, &ours(layer), &table, out);
            }
            Some(_) => {}
            None => unchecked.push(format!(
                "{name}: the registered schema is not an Avro record"
            )),
        }
    }

    let files = pinned.files(filter).await?;
    if files.len() > FILES {
        unchecked.push(format!(
            "{name}: schemas of {FILES} of {} files were read",
            files.len()
        ));
    }
    for file in files.iter().take(FILES) {
        match footer(lake, file).await {
            Ok(actual) => of_file(between("file", &file.path), &expected, &actual, out),
            Err(why) => unchecked.push(format!("{}: {why}", file.path)),
        }
    }
    Ok((readable, unchecked))
}

/// The fields that this version writes into the layer's topic.
fn ours(layer: Layer) -> Vec<Column> {
    let kind = match layer {
        Layer::Gold => Kind::Metrics,
        Layer::Silver => Kind::Bar,
        _ => Kind::Tick,
    };
    drift::avro(kind.newest()).unwrap_or_default()
}

/// A file holds the columns that the table had when it was written: one that an older schema has
/// not is no drift.
fn of_file(between: Between<'_>, expected: &[Column], actual: &[Column], out: &mut Findings) {
    drift::columns(between, expected, actual, true, out);
}

/// The columns that a data file itself declares.
async fn footer(lake: &Lakehouse, file: &FileTask) -> Result<Vec<Column>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let input = lake.file_io().new_input(&file.path).map_err(|e| text(&e))?;
    let length = if file.bytes > 0 {
        file.bytes
    } else {
        input.metadata().await.map_err(|e| text(&e))?.size
    };
    let reader = input.reader().await.map_err(|e| text(&e))?;
    // Most footers are smaller than this; a longer one is asked for again.
    let mut take = length.min(64 << 10);
    loop {
        let bytes = reader
            .read(length - take..length)
            .await
            .map_err(|e| text(&e))?;
        if bytes.len() < 8 {
            return Err("shorter than a Parquet footer".to_owned());
        }
        let tail = &bytes[bytes.len() - 8..];
        if &tail[4..] != b"PAR1" {
            return Err("not a Parquet file".to_owned());
        }
        let size = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])) + 8;
        if size > length {
            return Err("its footer is longer than the file".to_owned());
        }
        if size > take {
            take = size;
            continue;
        }
        let from = bytes.len() - size as usize;
        let metadata = ParquetMetaDataReader::decode_metadata(&bytes[from..bytes.len() - 8])
            .map_err(|e| text(&e))?;
        let metadata = metadata.file_metadata();
        let schema =
            parquet_to_arrow_schema(metadata.schema_descr(), None).map_err(|e| text(&e))?;
        let fields = schema.fields().iter();
        return Ok(fields
            .map(|f| Column {
                id: f
                    .metadata()
                    .get("PARQUET:field_id")
                    .and_then(|id| id.parse().ok()),
                name: f.name().clone(),
                ty: spelled(f.data_type()),
            })
            .collect());
    }
}

/// An Arrow type as Iceberg spells it.
fn spelled(ty: &DataType) -> String {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".into(),
        DataType::Dictionary(_, value) => spelled(value),
        DataType::Int32 => "int".into(),
        DataType::Int64 => "long".into(),
        DataType::Boolean => "boolean".into(),
        DataType::Float64 => "double".into(),
        DataType::Float32 => "float".into(),
        DataType::Date32 => "date".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".into(),
        DataType::Decimal128(p, s) => format!("decimal({p},{s})"),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "timestamptz".into(),
        DataType::Timestamp(TimeUnit::Microsecond, None) => "timestamp".into(),
        other => other.to_string(),
    }
}
