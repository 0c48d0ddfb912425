//! Parquet files: one record batch of one partition tuple → one data file with exact statistics.
//!
//! Field ids come from the table's schema, so that every engine resolves columns by id. Arrow's
//! own schema is not embedded: dictionary-encoded text is an optimisation of this writer, readers
//! must see plain strings. Encodings are plain or dictionary, zstd-compressed, which every engine
//! reads (Iceberg's vectorised Spark reader refuses delta encodings before 1.11). Never decides
//! what goes into a file.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema as ArrowSchema, SchemaRef};
use bytes::Bytes;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Struct, TableMetadata,
};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use crate::error::{LakeError, Result};
use crate::index::Kind;
use crate::lake::Lakehouse;
use crate::tables::{ColType, TableDef};

/// Rows per row group: large enough to scan fast, small enough to prune and to keep memory low.
const ROW_GROUP: usize = 128 * 1024;
/// Encoded bytes gathered before they are handed to the store.
const CHUNK: usize = 8 << 20;

/// Writes and reads the data files of one table.
#[derive(Debug, Clone)]
pub struct FileWriter {
    file_io: FileIO,
    def: TableDef,
    location: String,
    ids: HashMap<String, i32>,
    spec_id: i32,
    sort_order_id: i32,
    props: WriterProperties,
    /// For files of fewer rows than `plain_rows`: no compression, no dictionaries.
    plain: WriterProperties,
    plain_rows: usize,
}

/// A file whose row groups are copied.
#[derive(Debug, Clone)]
pub enum Source<'a> {
    /// A data file.
    Path(&'a str),
    /// An encoded file in memory.
    Bytes(Bytes),
}

impl FileWriter {
    /// A writer for the table's current schema and default partition spec.
    ///
    /// # Errors
    /// `SchemaDrift` if a column is missing, `Parquet` for an impossible compression level.
    pub fn new(lake: &Lakehouse, def: &TableDef, metadata: &TableMetadata) -> Result<FileWriter> {
        let schema = metadata.current_schema();
        let mut ids = HashMap::new();
        for c in &def.columns {
            let id = schema
                .field_id_by_name(&c.name)
                .ok_or_else(|| LakeError::SchemaDrift {
                    table: def.table,
                    detail: format!("column {} is missing", c.name),
                })?;
            ids.insert(c.name.clone(), id);
        }
        Ok(FileWriter {
            file_io: lake.file_io().clone(),
            def: def.clone(),
            location: metadata.location().to_string(),
            ids,
            spec_id: metadata.default_partition_spec_id(),
            sort_order_id: metadata.default_sort_order_id() as i32,
            props: writer_properties(def)?,
            plain: properties(def, Compression::UNCOMPRESSED, false),
            plain_rows: lake.config().upkeep.plain_rows,
        })
    }

    /// The partition spec that files are written for.
    pub fn spec_id(&self) -> i32 {
        self.spec_id
    }

    /// Writes one file. All rows belong to `partition`; `dir` is its directory text.
    ///
    /// # Errors
    /// `Storage`, `Parquet`.
    pub async fn write(
        &self,
        kind: Kind,
        partition: Struct,
        dir: &str,
        batches: &[RecordBatch],
        sorted: bool,
    ) -> Result<DataFile> {
        let path = self.new_path(kind, dir);
        let mut parquet = self.encoder(batches)?;
        let mut out = None;
        let mut size = 0u64;
        let mut nans: HashMap<i32, u64> = HashMap::new();
        for batch in batches {
            self.encode_batch(&mut parquet, batch, &mut nans)?;
            if parquet.inner().len() >= CHUNK {
                if out.is_none() {
                    out = Some(self.file_io.new_output(&path)?.writer().await?);
                }
                if let Some(out) = &mut out {
                    let chunk = std::mem::take(parquet.inner_mut());
                    size += chunk.len() as u64;
                    out.write(Bytes::from(chunk)).await?;
                }
            }
        }
        let metadata = parquet.finish()?;
        let tail = std::mem::take(parquet.inner_mut());
        size += tail.len() as u64;
        match &mut out {
            Some(out) => {
                out.write(Bytes::from(tail)).await?;
                out.close().await?;
            }
            None => {
                self.file_io
                    .new_output(&path)?
                    .write(Bytes::from(tail))
                    .await?;
            }
        }
        self.data_file(path, partition, size, &metadata, nans, sorted)
    }

    /// Encodes a file in memory, as `write` would.
    ///
    /// # Errors
    /// `Parquet`, `Arrow`.
    pub fn encode(&self, batches: &[RecordBatch]) -> Result<Bytes> {
        let mut parquet = self.encoder(batches)?;
        for batch in batches {
            self.encode_batch(&mut parquet, batch, &mut HashMap::new())?;
        }
        parquet.finish()?;
        Ok(Bytes::from(std::mem::take(parquet.inner_mut())))
    }

    fn encoder(&self, batches: &[RecordBatch]) -> Result<ArrowWriter<Vec<u8>>> {
        let first = batches
            .first()
            .ok_or_else(|| LakeError::Internal("a data file without rows".into()))?;
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let props = if rows < self.plain_rows {
            &self.plain
        } else {
            &self.props
        };
        let options = ArrowWriterOptions::new()
            .with_properties(props.clone())
            .with_skip_arrow_metadata(true);
        let schema = self.file_schema(first.schema_ref())?;
        Ok(ArrowWriter::try_new_with_options(
            Vec::new(),
            schema,
            options,
        )?)
    }

    fn encode_batch(
        &self,
        parquet: &mut ArrowWriter<Vec<u8>>,
        batch: &RecordBatch,
        nans: &mut HashMap<i32, u64>,
    ) -> Result<()> {
        self.count_nans(batch, nans);
        let schema = self.file_schema(batch.schema_ref())?;
        parquet.write(&batch.clone().with_schema(schema)?)?;
        Ok(())
    }

    /// A fresh path for a file.
    fn new_path(&self, kind: Kind, dir: &str) -> String {
        format!(
            "{}/data/{dir}/{}{}.parquet",
            self.location,
            kind.prefix(),
            uuid::Uuid::new_v4()
        )
    }

    /// Joins files of one partition tuple by copying their row groups, without decoding a value.
    /// `None` if one of them was written with another schema. Page indexes are left out.
    ///
    /// # Errors
    /// `Storage`, `Parquet`.
    pub async fn join(
        &self,
        kind: Kind,
        partition: Struct,
        dir: &str,
        sources: &[Source<'_>],
    ) -> Result<Option<DataFile>> {
        let path = self.new_path(kind, dir);
        let mut parquet: Option<SerializedFileWriter<Vec<u8>>> = None;
        let mut out = self.file_io.new_output(&path)?.writer().await?;
        let mut size = 0u64;
        for source in sources {
            let bytes = match source {
                Source::Path(path) => self.file_io.new_input(path)?.read().await?,
                Source::Bytes(bytes) => bytes.clone(),
            };
            let metadata = ArrowReaderMetadata::load(&bytes, Default::default())?;
            let schema = metadata.parquet_schema().root_schema_ptr();
            let leaves = metadata.parquet_schema().columns();
            // All of one older schema are decoded too: what is said about the file goes by the
            // columns that the table has now.
            let other = !leaves.iter().map(|l| l.name()).eq(self
                .def
                .columns
                .iter()
                .map(|c| c.name.as_str()))
                || parquet
                    .as_ref()
                    .is_some_and(|w| w.schema_descr().root_schema_ptr() != schema);
            if other {
                drop(out);
                self.discard(&path).await;
                return Ok(None);
            }
            let writer = match &mut parquet {
                Some(w) => w,
                none => none.insert(SerializedFileWriter::new(
                    Vec::new(),
                    schema,
                    Arc::new(self.props.clone()),
                )?),
            };
            for group in metadata.metadata().row_groups() {
                let mut target = writer.next_row_group()?;
                for column in group.columns() {
                    let whole = ColumnCloseResult {
                        bytes_written: column.compressed_size().max(0) as u64,
                        rows_written: group.num_rows().max(0) as u64,
                        metadata: column.clone(),
                        bloom_filter: None,
                        column_index: None,
                        offset_index: None,
                    };
                    target.append_column(&bytes, whole)?;
                }
                target.close()?;
            }
            let chunk = std::mem::take(writer.inner_mut());
            size += chunk.len() as u64;
            out.write(Bytes::from(chunk)).await?;
        }
        let Some(mut parquet) = parquet else {
            return Err(LakeError::Internal("a join of no files".into()));
        };
        let metadata = parquet.finish()?;
        let tail = std::mem::take(parquet.inner_mut());
        size += tail.len() as u64;
        out.write(Bytes::from(tail)).await?;
        out.close().await?;
        self.data_file(path, partition, size, &metadata, HashMap::new(), false)
            .map(Some)
    }

    /// The batch's schema with the table's field ids.
    fn file_schema(&self, schema: &SchemaRef) -> Result<SchemaRef> {
        let mut fields = Vec::with_capacity(schema.fields().len());
        for (f, c) in schema.fields().iter().zip(&self.def.columns) {
            if *f.name() != c.name {
                return Err(LakeError::Internal(format!(
                    "column {} where {} belongs",
                    f.name(),
                    c.name
                )));
            }
            let id = self.ids[&c.name].to_string();
            let meta = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), id)]);
            fields
                .push(Field::new(f.name(), f.data_type().clone(), !c.required).with_metadata(meta));
        }
        Ok(Arc::new(ArrowSchema::new(fields)))
    }

    fn count_nans(&self, batch: &RecordBatch, nans: &mut HashMap<i32, u64>) {
        for (c, array) in self.def.columns.iter().zip(batch.columns()) {
            if c.ty == ColType::Double {
                let array = array.as_primitive::<Float64Type>();
                let n = array.iter().flatten().filter(|v| v.is_nan()).count();
                *nans.entry(self.ids[&c.name]).or_default() += n as u64;
            }
        }
    }

    fn data_file(
        &self,
        path: String,
        partition: Struct,
        size: u64,
        metadata: &ParquetMetaData,
        nans: HashMap<i32, u64>,
        sorted: bool,
    ) -> Result<DataFile> {
        let rows = metadata.file_metadata().num_rows() as u64;
        let mut column_sizes: HashMap<i32, u64> = HashMap::new();
        let mut nulls: HashMap<i32, u64> = HashMap::new();
        let mut lower: HashMap<i32, Datum> = HashMap::new();
        let mut upper: HashMap<i32, Datum> = HashMap::new();
        for (i, c) in self.def.columns.iter().enumerate() {
            let id = self.ids[&c.name];
            let mut bounds: Option<(Datum, Datum)> = None;
            let mut complete = true;
            for group in metadata.row_groups() {
                let chunk = group.column(i);
                *column_sizes.entry(id).or_default() += chunk.compressed_size().max(0) as u64;
                let stats = chunk.statistics();
                let group_nulls = stats.and_then(Statistics::null_count_opt);
                if let Some(n) = group_nulls {
                    *nulls.entry(id).or_default() += n;
                }
                if !c.bounds || group_nulls == Some(chunk.num_values() as u64) {
                    continue;
                }
                match stats.and_then(|s| bounds_of(c.ty, s)) {
                    Some((lo, hi)) => {
                        bounds = Some(match bounds {
                            None => (lo, hi),
                            Some((a, b)) => {
                                (if lo < a { lo } else { a }, if hi > b { hi } else { b })
                            }
                        });
                    }
                    None => complete = false, // a group without bounds: none for the file
                }
            }
            if let (Some((lo, hi)), true) = (bounds, complete) {
                lower.insert(id, lo);
                upper.insert(id, hi);
            }
        }
        let offsets = metadata
            .row_groups()
            .iter()
            .filter_map(|g| g.columns().first())
            .map(|c| c.dictionary_page_offset().unwrap_or(c.data_page_offset()))
            .collect();
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(path)
            .file_format(DataFileFormat::Parquet)
            .partition(partition)
            .partition_spec_id(self.spec_id)
            .record_count(rows)
            .file_size_in_bytes(size)
            .column_sizes(column_sizes)
            .value_counts(self.ids.values().map(|id| (*id, rows)).collect())
            .null_value_counts(nulls)
            .nan_value_counts(nans)
            .lower_bounds(lower)
            .upper_bounds(upper)
            .split_offsets(Some(offsets));
        if sorted {
            builder.sort_order_id(self.sort_order_id);
        }
        builder
            .build()
            .map_err(|e| LakeError::Internal(format!("data file: {e}")))
    }

    /// Reads a data file into the canonical schema of the table (by name), whole or with only
    /// `columns`. Missing columns (older files) come as null.
    ///
    /// # Errors
    /// `Storage`, `Parquet`, `Arrow`.
    pub async fn read(&self, path: &str, columns: Option<&[&str]>) -> Result<RecordBatch> {
        let bytes = self.file_io.new_input(path)?.read().await?;
        let metadata = ArrowReaderMetadata::load(&bytes, Default::default())?;
        let wanted = |name: &str| columns.is_none_or(|c| c.contains(&name));
        let leaves: Vec<usize> = metadata
            .parquet_schema()
            .columns()
            .iter()
            .enumerate()
            .filter(|(_, c)| wanted(c.name()))
            .map(|(i, _)| i)
            .collect();
        let mask = ProjectionMask::leaves(metadata.parquet_schema(), leaves);
        let rows = metadata.metadata().file_metadata().num_rows().max(1) as usize;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
            .with_projection(mask)
            .with_batch_size(rows)
            .build()?;
        let schema = self.def.arrow_schema();
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .filter(|f| wanted(f.name()))
            .cloned()
            .collect();
        let schema = Arc::new(ArrowSchema::new(fields));
        let mut batches = Vec::new();
        for batch in reader {
            batches.push(canonical(&batch?, &schema)?);
        }
        Ok(arrow::compute::concat_batches(&schema, &batches)?)
    }

    /// Removes a file that no snapshot refers to.
    pub async fn discard(&self, path: &str) {
        let _ = self.file_io.delete(path).await;
    }
}

/// Casts a batch to `schema` by name: plain strings, the library's spelling of UTC.
pub fn canonical(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut arrays = Vec::with_capacity(schema.fields().len());
    for f in schema.fields() {
        arrays.push(match batch.column_by_name(f.name()) {
            None => arrow::array::new_null_array(f.data_type(), batch.num_rows()),
            Some(a) if a.data_type() == f.data_type() => a.clone(),
            Some(a) => match (a.data_type(), f.data_type()) {
                (DataType::Timestamp(u, _), DataType::Timestamp(w, tz)) if u == w => {
                    retag(a.as_ref(), tz.clone())
                }
                _ => arrow::compute::cast(a, f.data_type())?,
            },
        });
    }
    Ok(RecordBatch::try_new(schema.clone(), arrays)?)
}

fn retag(array: &dyn Array, tz: Option<Arc<str>>) -> arrow::array::ArrayRef {
    use arrow::datatypes::TimestampMicrosecondType;
    Arc::new(
        array
            .as_primitive::<TimestampMicrosecondType>()
            .clone()
            .with_timezone_opt(tz),
    )
}

/// Settings of every data file, also used by the benchmark's bare writer.
///
/// # Errors
/// `Parquet` for an impossible compression level.
pub fn writer_properties(def: &TableDef) -> Result<WriterProperties> {
    Ok(properties(
        def,
        Compression::ZSTD(ZstdLevel::try_new(1)?),
        true,
    ))
}

fn properties(def: &TableDef, compression: Compression, dictionaries: bool) -> WriterProperties {
    let mut props = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_enabled(dictionaries)
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_created_by("finlake".into());
    for c in &def.columns {
        let path = ColumnPath::from(c.name.as_str());
        // Ever-growing numbers have no repeats: a dictionary would be built and thrown away.
        let unique = matches!(
            c.name.as_str(),
            "kafka_offset"
                | "trade_id"
                | "first_trade_id"
                | "last_trade_id"
                | "tick_id"
                | "metric_id"
        );
        if unique {
            props = props.set_column_dictionary_enabled(path.clone(), false);
        }
        if c.bounds {
            props = props.set_column_statistics_enabled(path.clone(), EnabledStatistics::Page);
        }
        // Nearly constant within a file: a dictionary and runs leave nothing to compress, and a
        // compressor costs more than such a column.
        let constant = matches!(
            c.name.as_str(),
            "kafka_topic"
                | "kafka_partition"
                | "record_key"
                | "schema_id"
                | "source"
                | "symbol"
                | "buyer_maker"
                | "bar_interval"
                | "stage"
                | "origin"
                | "basis"
                | "basis_at"
                | "retracted"
                | "periods"
                | "risk_free"
                | "valid_to"
                | "sys_to"
                | "is_current"
        );
        if constant {
            props = props.set_column_compression(path, Compression::UNCOMPRESSED);
        }
    }
    props.build()
}

pub(crate) fn bounds_of(ty: ColType, stats: &Statistics) -> Option<(Datum, Datum)> {
    let pair = |lo: Datum, hi: Datum| Some((lo, hi));
    match (ty, stats) {
        (ColType::Bool, Statistics::Boolean(s)) => {
            pair(Datum::bool(*s.min_opt()?), Datum::bool(*s.max_opt()?))
        }
        (ColType::Int, Statistics::Int32(s)) => {
            pair(Datum::int(*s.min_opt()?), Datum::int(*s.max_opt()?))
        }
        (ColType::Date, Statistics::Int32(s)) => {
            pair(Datum::date(*s.min_opt()?), Datum::date(*s.max_opt()?))
        }
        (ColType::Long, Statistics::Int64(s)) => {
            pair(Datum::long(*s.min_opt()?), Datum::long(*s.max_opt()?))
        }
        (ColType::Instant, Statistics::Int64(s)) => pair(
            Datum::timestamptz_micros(*s.min_opt()?),
            Datum::timestamptz_micros(*s.max_opt()?),
        ),
        // The writer may shorten long text: the lower bound then is a prefix, the upper one is
        // rounded up, so both still bound.
        (ColType::Str, Statistics::ByteArray(s)) => {
            let text = |b: &[u8]| std::str::from_utf8(b).ok().map(Datum::string);
            pair(text(s.min_opt()?.data())?, text(s.max_opt()?.data())?)
        }
        _ => None,
    }
}
