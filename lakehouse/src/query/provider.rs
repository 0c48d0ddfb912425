//! A table as of one load of its metadata, for DataFusion.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{Result as DfResult, Statistics, stats::Precision};
use datafusion::datasource::{TableProvider, TableType};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::table::Table as IcebergTable;

use super::predicate;
use super::scan::{LakeScan, external};
use crate::error::Result;

/// One table at one snapshot. Everything a statement reads of a table, however often it names
/// it, is that snapshot.
#[derive(Clone)]
pub struct LakeTable {
    name: Arc<str>,
    table: IcebergTable,
    schema: SchemaRef,
    /// System time (µs) up to which the table is whole; `None`: not known.
    frontier: Option<i64>,
    /// System time (µs) that the statement asks this table for.
    asked: Option<i64>,
}

impl LakeTable {
    /// `name` as a user writes it: `silver.market_ohlcv`.
    pub fn new(name: &str, table: IcebergTable, frontier: Option<i64>) -> Result<Self> {
        let schema = schema_to_arrow_schema(table.metadata().current_schema())?;
        // Field ids are the files' business and would stand in every result.
        let fields: Vec<_> = schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_metadata(Default::default()))
            .collect();
        Ok(Self {
            name: name.into(),
            table,
            schema: Arc::new(Schema::new(fields)),
            frontier,
            asked: None,
        })
    }

    /// The same, noting the system time that is asked for (the filter is the caller's).
    pub fn asked(&self, system: Option<i64>) -> Self {
        Self {
            asked: system,
            ..self.clone()
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn has(&self, column: &str) -> bool {
        self.schema.field_with_name(column).is_ok()
    }

    /// Up to where the table is whole, and what is asked of it.
    pub fn stability(&self) -> (Option<i64>, Option<i64>) {
        (self.frontier, self.asked)
    }
}

impl fmt::Debug for LakeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LakeTable")
            .field("name", &self.name)
            .field("snapshot", &self.table.metadata().current_snapshot_id())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let predicate = predicate::from_filters(filters, &self.schema);
        let shown = predicate.as_ref().map(ToString::to_string);
        let names = schema.fields().iter().map(|f| f.name());
        let mut scan = self.table.scan().select(names);
        if let Some(predicate) = predicate {
            scan = scan.with_filter(predicate);
        }
        let scan = scan.build().map_err(external)?;
        let files = scan.plan_files().await.map_err(external)?;
        let files: Vec<_> = files.try_collect().await.map_err(external)?;
        Ok(Arc::new(LakeScan::new(
            self.name.clone(),
            self.table.file_io().clone(),
            files,
            schema,
            state.config().target_partitions(),
            // Without filters only: a filter after the limit would lose rows.
            limit.filter(|_| filters.is_empty()),
            shown.unwrap_or_default(),
        )))
    }

    fn statistics(&self) -> Option<Statistics> {
        let rows = self
            .table
            .metadata()
            .current_snapshot()?
            .summary()
            .additional_properties
            .get("total-records")?
            .parse()
            .ok()?;
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Inexact(rows);
        Some(statistics)
    }
}
