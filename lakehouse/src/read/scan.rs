//! Reads the files of a pinned table, batch by batch, with where each row stands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

use super::filter::Bound;
use super::{Filter, Pinned};
use crate::boxed;
use crate::error::{LakeError, Result};
use crate::index::Kind;
use crate::writer::{bounds_of, canonical};

/// Rows of a batch, unless asked otherwise.
const BATCH: usize = 64 * 1024;
/// Files fetched ahead, so that an object store's latency is hidden.
const AHEAD: usize = 2;

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Columns in the order wanted; `None`: all of the table's definition.
    pub columns: Option<Vec<String>>,
    /// Rows wanted.
    pub filter: Filter,
    /// Text columns come as `Dictionary(Int32, Utf8)`: faster where values repeat.
    pub dictionaries: bool,
    /// Rows per batch at most; 0: 65,536.
    pub batch_rows: usize,
}

impl Scan {
    /// These columns of all rows.
    pub fn columns(columns: &[&str]) -> Scan {
        Scan {
            columns: Some(columns.iter().map(|c| c.to_string()).collect()),
            ..Scan::default()
        }
    }

    /// With a filter.
    pub fn filter(mut self, filter: Filter) -> Scan {
        self.filter = filter;
        self
    }

    /// With text as dictionaries.
    pub fn dictionaries(mut self) -> Scan {
        self.dictionaries = true;
        self
    }
}

/// A file that may hold rows wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTask {
    /// Its location.
    pub path: Arc<str>,
    /// Rows in it, before filtering.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

impl FileTask {
    /// What the file's name says: `ticks`, `hot`, `settled`, `history` or `foreign`.
    pub fn kind(&self) -> Kind {
        Kind::of(&self.path)
    }
}

/// Rows of one file.
#[derive(Debug, Clone)]
pub struct ScanBatch {
    /// The file they stand in.
    pub file: Arc<str>,
    /// The rows.
    pub batch: RecordBatch,
    first: u64,
    kept: Option<BooleanArray>,
}

impl ScanBatch {
    /// Row number in the file of each row of the batch, from 0.
    pub fn row_numbers(&self) -> Vec<u64> {
        match &self.kept {
            None => (self.first..self.first + self.batch.num_rows() as u64).collect(),
            Some(kept) => kept
                .values()
                .set_indices()
                .map(|i| self.first + i as u64)
                .collect(),
        }
    }
}

impl Pinned {
    /// The files of the snapshot that may hold rows wanted, in path order. Read them by
    /// [`Pinned::read_file`], from several tasks if you like.
    ///
    /// # Errors
    /// `Config` for a column that the table does not have, `Storage`; `SchemaDrift` if another
    /// engine left delete files.
    #[boxed]
    pub async fn files(&self, filter: &Filter) -> Result<Vec<FileTask>> {
        let bound = filter.bind(&self.def)?;
        let table = self.iceberg()?;
        let mut scan = table.scan().snapshot_id(self.snapshot_id());
        if let Some(predicate) = bound.predicate() {
            scan = scan.with_filter(predicate);
        }
        let planned: Vec<_> = scan.build()?.plan_files().await?.try_collect().await?;
        let mut files = Vec::with_capacity(planned.len());
        for task in planned {
            if !task.deletes.is_empty() {
                return Err(LakeError::SchemaDrift {
                    table: self.table,
                    detail: "another engine wrote delete files; compact the table \
                             (rewrite_data_files with delete-file-threshold 1)"
                        .into(),
                });
            }
            files.push(FileTask {
                path: task.data_file_path.as_str().into(),
                rows: task.record_count.unwrap_or(0),
                bytes: task.file_size_in_bytes,
            });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// All rows wanted, file by file in path order, in file order within.
    ///
    /// # Errors
    /// As [`Pinned::files`] and [`Pinned::read_file`].
    #[boxed]
    pub async fn scan(&self, scan: &Scan) -> Result<BoxStream<'static, Result<ScanBatch>>> {
        let files = self.files(&scan.filter).await?;
        let (this, scan) = (self.clone(), scan.clone());
        Ok(stream::iter(files)
            .map(move |file| {
                let (this, scan) = (this.clone(), scan.clone());
                async move { this.read_file(&file, &scan).await }
            })
            .buffered(AHEAD)
            .try_flatten()
            .boxed())
    }

    /// All rows wanted in one batch: for what is known to be small.
    ///
    /// # Errors
    /// As [`Pinned::scan`].
    #[boxed]
    pub async fn collect(&self, scan: &Scan) -> Result<RecordBatch> {
        let reader = Reader::new(self, scan)?;
        let batches: Vec<RecordBatch> = self
            .scan(scan)
            .await?
            .map_ok(|b| b.batch)
            .try_collect()
            .await?;
        Ok(arrow::compute::concat_batches(&reader.schema, &batches)?)
    }

    /// The rows wanted of one file. The file is fetched whole; batches are decoded as they are
    /// asked for, on the caller's task.
    ///
    /// # Errors
    /// `Storage`, `Parquet`, `Config` for an unknown column.
    #[boxed]
    pub async fn read_file(
        &self,
        file: &FileTask,
        scan: &Scan,
    ) -> Result<BoxStream<'static, Result<ScanBatch>>> {
        let bytes = self.lake.file_io().new_input(&file.path)?.read().await?;
        let reader = Reader::new(self, scan)?.open(file.path.clone(), bytes)?;
        Ok(stream::iter(reader).boxed())
    }
}

/// One scan of one table: columns and their names by field id.
struct Reader {
    /// What comes out.
    schema: SchemaRef,
    /// What is read: the same and the filter's columns.
    read: SchemaRef,
    names: BTreeMap<i32, String>,
    bound: Bound,
    dictionaries: bool,
    batch_rows: usize,
}

impl Reader {
    fn new(pinned: &Pinned, scan: &Scan) -> Result<Reader> {
        let def = &pinned.def;
        let bound = scan.filter.bind(def)?;
        let field = |name: &str| -> Result<Field> {
            let c =
                def.columns.iter().find(|c| c.name == name).ok_or_else(|| {
                    LakeError::Config(format!("{} has no column {name}", def.table))
                })?;
            let ty = match c.ty.arrow() {
                DataType::Utf8 if scan.dictionaries => {
                    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
                }
                ty => ty,
            };
            // A damaged table may lack what its schema requires; that is for the reader to find.
            Ok(Field::new(name, ty, true))
        };
        let all: Vec<String> = def.columns.iter().map(|c| c.name.clone()).collect();
        let wanted = scan.columns.as_ref().unwrap_or(&all);
        let mut fields: Vec<Field> = wanted
            .iter()
            .map(|name| field(name))
            .collect::<Result<_>>()?;
        let schema = Arc::new(Schema::new(fields.clone()));
        for name in bound.columns().collect::<BTreeSet<_>>() {
            if !wanted.iter().any(|w| w == name) {
                fields.push(field(name)?);
            }
        }
        let names = pinned
            .metadata()
            .current_schema()
            .as_struct()
            .fields()
            .iter()
            .map(|f| (f.id, f.name.clone()))
            .collect();
        Ok(Reader {
            schema,
            read: Arc::new(Schema::new(fields)),
            names,
            bound,
            dictionaries: scan.dictionaries,
            batch_rows: if scan.batch_rows == 0 {
                BATCH
            } else {
                scan.batch_rows
            },
        })
    }

    fn open(self, file: Arc<str>, bytes: bytes::Bytes) -> Result<FileReader> {
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let mut metadata = ArrowReaderMetadata::load(&bytes, options.clone())?;
        if self.dictionaries {
            let fields: Vec<Field> = metadata
                .schema()
                .fields()
                .iter()
                .map(|f| match f.data_type() {
                    DataType::Utf8 => {
                        let ty = DataType::Dictionary(
                            Box::new(DataType::Int32),
                            Box::new(DataType::Utf8),
                        );
                        f.as_ref().clone().with_data_type(ty)
                    }
                    _ => f.as_ref().clone(),
                })
                .collect();
            let schema = Arc::new(Schema::new(fields));
            metadata = ArrowReaderMetadata::try_new(
                metadata.metadata().clone(),
                options.with_schema(schema),
            )?;
        }
        // Columns go by field id; a file without ids (none of ours) by name.
        let schema = metadata.parquet_schema();
        let mut leaves = Vec::new();
        let mut renamed: BTreeMap<String, String> = BTreeMap::new();
        let mut place: BTreeMap<String, usize> = BTreeMap::new();
        for (i, leaf) in schema.columns().iter().enumerate() {
            let info = leaf.self_type().get_basic_info();
            let name = match info.has_id().then(|| self.names.get(&info.id())) {
                Some(Some(name)) => name.clone(),
                Some(None) => continue, // a column that was dropped
                None => leaf.name().to_string(),
            };
            if self.read.field_with_name(&name).is_ok() {
                leaves.push(i);
                place.insert(name.clone(), i);
                renamed.insert(leaf.name().to_string(), name);
            }
        }
        let mask = ProjectionMask::leaves(schema, leaves);
        let mut groups = VecDeque::new();
        let mut chosen = Vec::new();
        let mut first = 0u64;
        for (i, group) in metadata.metadata().row_groups().iter().enumerate() {
            let rows = group.num_rows().max(0) as u64;
            let may = self.bound.may_hold(|name, ty| {
                let column = group.column(*place.get(name)?);
                bounds_of(ty, column.statistics()?)
            });
            if may && rows > 0 {
                chosen.push(i);
                groups.push_back((first, rows));
            }
            first += rows;
        }
        let parquet = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata)
            .with_projection(mask)
            .with_row_groups(chosen)
            .with_batch_size(self.batch_rows)
            .build()?;
        Ok(FileReader {
            reader: self,
            file,
            parquet,
            renamed,
            groups,
            pending: VecDeque::new(),
        })
    }
}

/// The batches of one file.
struct FileReader {
    reader: Reader,
    file: Arc<str>,
    parquet: ParquetRecordBatchReader,
    /// Names in the file → names in the table.
    renamed: BTreeMap<String, String>,
    /// Row groups still to come: number of the next row, rows left.
    groups: VecDeque<(u64, u64)>,
    /// Decoded already.
    pending: VecDeque<ScanBatch>,
}

impl FileReader {
    /// The next rows of one row group; `None` at the end.
    fn rows(&mut self, batch: &RecordBatch, from: usize) -> (u64, usize) {
        let left = batch.num_rows() - from;
        match self.groups.front_mut() {
            None => (0, left),
            Some((first, rows)) => {
                let n = left.min(*rows as usize);
                let at = *first;
                *first += n as u64;
                *rows -= n as u64;
                if *rows == 0 {
                    self.groups.pop_front();
                }
                (at, n)
            }
        }
    }

    fn convert(&mut self, batch: RecordBatch) -> Result<Vec<ScanBatch>> {
        let fields: Vec<Field> = batch
            .schema()
            .fields()
            .iter()
            .map(|f| {
                let name = self.renamed.get(f.name()).unwrap_or(f.name());
                f.as_ref().clone().with_name(name)
            })
            .collect();
        let options =
            arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let named = RecordBatch::try_new_with_options(
            Arc::new(Schema::new(fields)),
            batch.columns().to_vec(),
            &options,
        )?;
        let read = canonical(&named, &self.reader.read)?;
        let mut out = Vec::new();
        let mut from = 0;
        // A batch may reach over the end of a row group; row numbers jump there if groups were
        // left out.
        while from < read.num_rows() {
            let (first, n) = self.rows(&read, from);
            let part = read.slice(from, n);
            from += n;
            let kept = self.reader.bound.rows(&part)?;
            let part = match &kept {
                None => part,
                Some(k) => filter_record_batch(&part, k)?,
            };
            if part.num_rows() == 0 {
                continue;
            }
            let columns = part.columns()[..self.reader.schema.fields().len()].to_vec();
            let options =
                arrow::array::RecordBatchOptions::new().with_row_count(Some(part.num_rows()));
            out.push(ScanBatch {
                file: self.file.clone(),
                batch: RecordBatch::try_new_with_options(
                    self.reader.schema.clone(),
                    columns,
                    &options,
                )?,
                first,
                kept,
            });
        }
        Ok(out)
    }
}

impl Iterator for FileReader {
    type Item = Result<ScanBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(ready) = self.pending.pop_front() {
                return Some(Ok(ready));
            }
            let parts = match self.parquet.next()? {
                Ok(batch) => self.convert(batch),
                Err(e) => Err(e.into()),
            };
            match parts {
                Ok(parts) => self.pending.extend(parts),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
