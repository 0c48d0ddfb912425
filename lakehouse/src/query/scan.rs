//! Reads the files of one snapshot: Iceberg plans and prunes, DataFusion runs the parts in
//! parallel.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, Result as DfResult, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::{StreamExt, TryStreamExt};
use iceberg::Runtime;
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::io::FileIO;
use iceberg::scan::FileScanTask;

/// Files that are read at a time within a part, so that an object store's latency is hidden.
const FILES_AT_A_TIME: usize = 2;

/// A scan, its files dealt out to parts of about the same size.
pub struct LakeScan {
    table: Arc<str>,
    file_io: FileIO,
    parts: Vec<Vec<FileScanTask>>,
    schema: SchemaRef,
    /// Rows are known without reading: no predicate, no deletes.
    rows: Option<usize>,
    limit: Option<usize>,
    predicate: String,
    properties: Arc<PlanProperties>,
}

impl LakeScan {
    /// Deals the files out to at most `parts` parts.
    pub fn new(
        table: Arc<str>,
        file_io: FileIO,
        files: Vec<FileScanTask>,
        schema: SchemaRef,
        parts: usize,
        limit: Option<usize>,
        predicate: String,
    ) -> Self {
        let counted = files
            .iter()
            .all(|f| f.predicate.is_none() && f.deletes.is_empty());
        let rows = counted
            .then(|| files.iter().map(|f| f.record_count).sum::<Option<u64>>())
            .flatten()
            .and_then(|n| usize::try_from(n).ok());
        let parts = deal(files, parts);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(parts.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Self {
            table,
            file_io,
            parts,
            schema,
            rows,
            limit,
            predicate,
            properties,
        }
    }
}

/// Largest first, each to the part that has least; the same files always lie the same way.
fn deal(mut files: Vec<FileScanTask>, parts: usize) -> Vec<Vec<FileScanTask>> {
    let n = parts.clamp(1, files.len().max(1));
    files.sort_by(|a, b| {
        b.length
            .cmp(&a.length)
            .then_with(|| a.data_file_path.cmp(&b.data_file_path))
    });
    let mut dealt: Vec<(u64, Vec<FileScanTask>)> = (0..n).map(|_| (0, Vec::new())).collect();
    for file in files {
        // A file costs something however small it is.
        let cost = file.length + 100_000;
        if let Some((load, part)) = dealt.iter_mut().min_by_key(|(load, _)| *load) {
            *load += cost;
            part.push(file);
        }
    }
    dealt.into_iter().map(|(_, part)| part).collect()
}

impl fmt::Debug for LakeScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeScan")
            .field("table", &self.table)
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}

impl DisplayAs for LakeScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: usize = self.parts.iter().map(Vec::len).sum();
        let bytes: u64 = self.parts.iter().flatten().map(|t| t.length).sum();
        let columns: Vec<&str> = self
            .schema
            .fields()
            .iter()
            .map(|c| c.name().as_str())
            .collect();
        write!(
            f,
            "LakeScan: {} files={files} bytes={bytes} columns=[{}]",
            self.table,
            columns.join(", ")
        )?;
        if !self.predicate.is_empty() {
            write!(f, " skip unless: {}", self.predicate)?;
        }
        if let Some(limit) = self.limit {
            write!(f, " limit={limit}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for LakeScan {
    fn name(&self) -> &str {
        "LakeScan"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DfResult<SendableRecordBatchStream> {
        let files = self.parts.get(partition).cloned().unwrap_or_default();
        let runtime = Runtime::try_current().map_err(external)?;
        let reader = ArrowReaderBuilder::new(self.file_io.clone(), runtime)
            .with_data_file_concurrency_limit(FILES_AT_A_TIME)
            .with_batch_size(context.session_config().batch_size())
            .build();
        let files = futures::stream::iter(files.into_iter().map(Ok)).boxed();
        let batches = reader.read(files).map_err(external)?.stream();
        let schema = self.schema.clone();
        let mut left = self.limit.unwrap_or(usize::MAX);
        let batches = batches
            .map_err(external)
            .and_then(move |batch| {
                let schema = schema.clone();
                async move { with_schema(batch, schema) }
            })
            .try_take_while(move |batch| {
                let go_on = left > 0;
                left = left.saturating_sub(batch.num_rows());
                futures::future::ready(Ok(go_on))
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            self.schema.clone(),
            batches,
        )))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> DfResult<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        if let (None, Some(rows), None) = (partition, self.rows, self.limit) {
            statistics.num_rows = Precision::Exact(rows);
        }
        Ok(statistics)
    }
}

/// The batch under the scan's schema. A file without columns to read still has rows.
fn with_schema(batch: RecordBatch, schema: SchemaRef) -> DfResult<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options)
        .map_err(DataFusionError::from)
}

pub(super) fn external(e: iceberg::Error) -> DataFusionError {
    DataFusionError::External(Box::new(e))
}
