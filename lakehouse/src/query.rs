//! SQL over the lakehouse, as of any valid and system time.
//!
//! A statement sees each table at one load of its current metadata: as-of times are looked up in
//! rows, not in snapshots, so expired snapshots do not matter (INV-5). Reads only: statements that
//! would change something are refused. Data flows: catalog → [`provider::LakeTable`] → [`view`]
//! (as-of filter) → DataFusion → files pruned by [`predicate`], read by [`scan`].
//!
//! With every answer comes its [`Stability`]: up to which system time all tables of the statement
//! are whole, and whether the answer is final.

mod predicate;
mod provider;
mod scan;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::CatalogProvider;
use datafusion::catalog::{MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use finlake_schemas::keys::iso_instant;
use futures::{Stream, TryStreamExt};
use iceberg::{NamespaceIdent, Runtime, TableIdent};

use crate::boxed;
use crate::error::LakeError;
use crate::lake::Lakehouse;
use crate::properties::{self, Watermarks};
use crate::shadow;
use crate::tables::Table;

use provider::LakeTable;
pub use view::AsOf;
use view::{AsOfFunction, Function, MicrosecondTimestamps, NamedRunning, Tables};

/// Namespaces that a statement sees as schemas.
const NAMESPACES: [&str; 4] = ["bronze", "silver", "gold", "quality"];
const CATALOG: &str = "lake";

/// Why a statement gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The statement is wrong, or failed while it ran.
    #[error("{0}")]
    Sql(String),
    /// `--stable` was asked for and the answer would not be final.
    #[error("not final: {0}")]
    NotFinal(String),
}

impl From<DataFusionError> for QueryError {
    fn from(e: DataFusionError) -> Self {
        // Without DataFusion's wrapping words and backtraces; they say nothing to the user.
        let text = e.find_root().message().into_owned();
        QueryError::Sql(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// How long an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stability {
    /// Tables that the statement reads, sorted.
    pub tables: Vec<String>,
    /// System time (µs) up to which all of them are whole; `None`: not known (a table that
    /// another engine moved, or one without positions), or no table is read.
    pub frontier: Option<i64>,
    /// The greatest system time (µs) that a table is asked for; `None`: some table is asked for
    /// what is known now.
    pub asked: Option<i64>,
    /// The same statement gives the same answer for ever (INV-5).
    pub is_final: bool,
}

/// An answer on its way.
pub struct Answer {
    pub schema: SchemaRef,
    pub stability: Stability,
    batches: SendableRecordBatchStream,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("stability", &self.stability)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// The rows as they come.
    pub fn batches(self) -> impl Stream<Item = Result<RecordBatch, QueryError>> {
        self.batches.map_err(QueryError::from)
    }

    /// All rows.
    ///
    /// # Errors
    /// `Sql` if the statement fails while it runs.
    #[boxed]
    pub async fn collect(self) -> Result<Vec<RecordBatch>, QueryError> {
        self.batches().try_collect().await
    }
}

/// How a statement is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// For every table that the statement names outside an as-of function.
    pub as_of: AsOf,
    /// Refuse an answer that is not final.
    pub stable: bool,
    /// Bytes that sorting, grouping and joining may take before they spill to disk.
    pub memory: Option<usize>,
}

/// Answers statements on a lakehouse.
#[derive(Debug, Clone)]
pub struct QueryEngine {
    lake: Lakehouse,
}

impl QueryEngine {
    /// For this lakehouse. Loads nothing yet.
    pub fn open(lake: &Lakehouse) -> QueryEngine {
        QueryEngine { lake: lake.clone() }
    }

    /// Plans a statement and begins to run it.
    ///
    /// # Errors
    /// `Sql` for a wrong statement, `NotFinal` with `stable`, `Lake` if catalog or storage fail.
    #[boxed]
    pub async fn sql(&self, sql: &str, options: &Options) -> Result<Answer, QueryError> {
        let tables = Arc::new(self.tables(sql).await?);
        let context = context(&tables, options)?;
        let read_only = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        let frame = match context.sql_with_options(sql, read_only).await {
            Ok(frame) => frame,
            Err(e) => return Err(explain(e, &tables)),
        };
        let stability = stability(frame.logical_plan())?;
        if options.stable && !stability.is_final {
            return Err(QueryError::NotFinal(not_final(&stability)));
        }
        let batches = frame.execute_stream().await?;
        Ok(Answer {
            schema: batches.schema(),
            stability,
            batches,
        })
    }

    /// Every table of the catalog's namespaces, by `schema.table` and, where it is the only one
    /// of that name, by `table`; and those of the shadows that the statement names, by namespace
    /// and table.
    async fn tables(&self, sql: &str) -> Result<Tables, QueryError> {
        let mut tables = Tables::new();
        let live = NAMESPACES.map(|namespace| {
            let full = match &self.lake.config().namespace_prefix {
                Some(prefix) => format!("{prefix}_{namespace}"),
                None => namespace.to_owned(),
            };
            (namespace.to_owned(), full, namespace)
        });
        let shadows = shadow::named(sql).into_iter();
        let shadows = shadows.map(|(full, base)| (full.clone(), full, base));
        for (namespace, full, base) in live.into_iter().chain(shadows) {
            for name in self.lake.catalog.list(&full).await? {
                let ident = TableIdent::new(NamespaceIdent::new(full.clone()), name.clone());
                let Some(loaded) = self.lake.catalog.load(&ident).await? else {
                    continue;
                };
                let table = iceberg::table::Table::builder()
                    .file_io(self.lake.file_io().clone())
                    .identifier(ident)
                    .metadata_location(loaded.location.clone())
                    .metadata(loaded.metadata.clone())
                    .runtime(Runtime::try_current().map_err(LakeError::from)?)
                    .build()
                    .map_err(LakeError::from)?;
                let user_name = format!("{namespace}.{name}");
                let frontier = frontier(&format!("{base}.{name}"), &loaded);
                let table = LakeTable::new(&user_name, table, frontier)?;
                tables.entry(name).or_insert_with(|| table.clone());
                tables.insert(user_name, table);
            }
        }
        Ok(tables)
    }
}

/// The stable frontier as the table's properties have it; unknown if they cannot be trusted.
fn frontier(name: &str, loaded: &crate::catalog::Loaded) -> Option<i64> {
    let marks = Watermarks::read(loaded.metadata.properties()).ok()?;
    if let Some(table) = Table::parse(name) {
        properties::check_authority(table, &loaded.metadata, &marks).ok()?;
    }
    marks.frontier()
}

fn context(tables: &Arc<Tables>, options: &Options) -> Result<SessionContext, QueryError> {
    let mut config = SessionConfig::new()
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, "silver");
    let settings = &mut config.options_mut();
    // A literal 0.1 is a decimal, so that comparisons with prices are exact.
    settings.sql_parser.parse_float_as_decimal = true;
    settings.execution.time_zone = Some("+00:00".to_owned());
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(
            options.memory.unwrap_or(1 << 30),
        )))
        .build_arc()?;
    let mut state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_type_planner(Arc::new(MicrosecondTimestamps))
        .build();
    state.register_relation_planner(Arc::new(NamedRunning))?;
    let context = SessionContext::new_with_state(state);

    let catalog = MemoryCatalogProvider::new();
    let schemas = tables.keys().filter_map(|name| name.split_once('.'));
    let schemas: BTreeSet<&str> = schemas.map(|(schema, _)| schema).collect();
    for namespace in schemas {
        let schema = MemorySchemaProvider::new();
        let prefix = format!("{namespace}.");
        for (name, table) in tables.iter() {
            if let Some(bare) = name.strip_prefix(&prefix) {
                let provider = view::view(table, &options.as_of)?;
                schema.register_table(bare.to_owned(), provider)?;
            }
        }
        catalog.register_schema(namespace, Arc::new(schema))?;
    }
    context.register_catalog(CATALOG, Arc::new(catalog));
    context.register_udf(view::open_end());
    for function in Function::ALL {
        let tables = tables.clone();
        context.register_udtf(function.name(), Arc::new(AsOfFunction { function, tables }));
    }
    Ok(context)
}

/// Looks at every table that the statement reads, in subqueries too.
fn stability(plan: &LogicalPlan) -> Result<Stability, QueryError> {
    let mut tables = BTreeSet::new();
    let (mut frontier, mut asked, mut is_final) = (Some(i64::MAX), Some(i64::MIN), true);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(table) = provider.as_any().downcast_ref::<LakeTable>()
        {
            let (whole, wanted) = table.stability();
            tables.insert(table.name().to_owned());
            frontier = frontier.zip(whole).map(|(a, b)| a.min(b));
            asked = asked.zip(wanted).map(|(a, b)| a.max(b));
            is_final &= whole
                .zip(wanted)
                .is_some_and(|(whole, wanted)| wanted <= whole);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if tables.is_empty() {
        (frontier, asked) = (None, None);
    }
    Ok(Stability {
        tables: tables.into_iter().collect(),
        frontier,
        asked,
        is_final,
    })
}

/// Why an answer is not final, and what to ask instead.
pub fn not_final(stability: &Stability) -> String {
    let tables = stability.tables.join(", ");
    match (stability.frontier, stability.asked) {
        (None, _) => format!("the stable frontier of {tables} is not known"),
        (Some(0), _) => {
            format!("of {tables} at least one partition has not said yet how far it is whole")
        }
        (Some(frontier), None) => format!(
            "the statement asks for what is known now; {tables} are whole up to {}: add \
             --as-of-system with this or an earlier time",
            iso_instant(frontier)
        ),
        (Some(frontier), Some(asked)) => format!(
            "{tables} are whole up to {}, asked for was {}: wait, or ask for an earlier time",
            iso_instant(frontier),
            iso_instant(asked)
        ),
    }
}

/// A planning error, with what to do where DataFusion only says what it missed.
fn explain(e: DataFusionError, tables: &Tables) -> QueryError {
    let error = QueryError::from(e);
    let QueryError::Sql(text) = &error else {
        return error;
    };
    let missing = text
        .strip_prefix("table '")
        .and_then(|rest| rest.strip_suffix("' not found"))
        .map(|name| name.strip_prefix("lake.").unwrap_or(name));
    match missing {
        Some(name) => QueryError::Sql(view::unknown_table(name, tables)),
        None if text.starts_with("DDL not supported") || text.starts_with("DML not supported") => {
            QueryError::Sql("queries only: the sink alone writes these tables".to_owned())
        }
        None => error,
    }
}

#[cfg(test)]
mod tests;
