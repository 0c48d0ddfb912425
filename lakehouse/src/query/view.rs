//! As-of views of a table, and the SQL extensions that name them.
//!
//! Half-open on both axes: `sys_from <= s < sys_to`, `valid_from <= v < valid_to`. A bar counts as
//! known at `v` only if it had ended by then, unless running bars are asked for: no look-ahead.
//! The rows come from an ordinary filter over the table, so pruning, pushdown and correctness are
//! those of any other filter.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::catalog::TableFunctionImpl;
use datafusion::common::{Result as DfResult, ScalarValue, plan_err};
use datafusion::datasource::{TableProvider, ViewTable, provider_as_source};
use datafusion::logical_expr::planner::{
    RelationPlanner, RelationPlannerContext, RelationPlanning, TypePlanner,
};
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlanBuilder, ScalarUDF, Volatility, col, create_udf, lit,
};
use datafusion::sql::sqlparser::ast::{
    DataType as SqlType, Expr as SqlExpr, FunctionArg, FunctionArgExpr, Ident, TableFactor,
};

use super::provider::LakeTable;
use crate::tables::{OPEN_END, instant_type};

/// The instants a table is asked for, µs UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AsOf {
    /// What was known at this system time; `None`: what is known now.
    pub system: Option<i64>,
    /// What held at this valid time; `None`: for all times.
    pub valid: Option<i64>,
    /// Bars that had not ended at the valid time, too.
    pub running: bool,
}

impl AsOf {
    /// Neither axis is restricted: all versions are rows.
    pub fn is_everything(&self) -> bool {
        self.system.is_none() && self.valid.is_none()
    }
}

fn instant(us: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(
        Some(us),
        Some("+00:00".into()),
    ))
}

/// The table seen as of these instants.
pub fn view(table: &LakeTable, as_of: &AsOf) -> DfResult<Arc<dyn TableProvider>> {
    if as_of.is_everything() {
        return Ok(Arc::new(table.clone()));
    }
    for column in ["sys_from", "sys_to", "valid_from", "valid_to", "is_current"] {
        if !table.has(column) {
            return plan_err!(
                "{} has no column {column}: it has no history to look back into; ask it without \
                 an as-of time",
                table.name()
            );
        }
    }
    let system = match as_of.system {
        Some(s) if s >= OPEN_END => {
            return plan_err!("the as-of system time lies at or after open_end()");
        }
        Some(s) => col("sys_from")
            .lt_eq(instant(s))
            .and(col("sys_to").gt(instant(s))),
        None => col("is_current"),
    };
    let mut filter = system;
    if let Some(v) = as_of.valid {
        filter = filter.and(
            col("valid_from")
                .lt_eq(instant(v))
                .and(col("valid_to").gt(instant(v))),
        );
        if table.has("bar_end") && !as_of.running {
            filter = filter.and(col("bar_end").lt_eq(instant(v)));
        }
    }
    let source = provider_as_source(Arc::new(table.asked(as_of.system)));
    let plan = LogicalPlanBuilder::scan(table.name(), source, None)?
        .filter(filter)?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// The tables a statement may name, by every name they go by.
pub type Tables = BTreeMap<String, LakeTable>;

/// Which of the table functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `as_of_system('table', system)`
    System,
    /// `as_of_valid('table', valid [, running])`
    Valid,
    /// `as_of('table', valid, system [, running])`
    Both,
}

impl Function {
    pub const ALL: [Function; 3] = [Function::System, Function::Valid, Function::Both];

    pub fn name(self) -> &'static str {
        match self {
            Function::System => "as_of_system",
            Function::Valid => "as_of_valid",
            Function::Both => "as_of",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Function::System => "as_of_system('table', system time)",
            Function::Valid => "as_of_valid('table', valid time [, running => true])",
            Function::Both => "as_of('table', valid time, system time [, running => true])",
        }
    }

    /// Number of instants after the table's name.
    fn instants(self) -> usize {
        match self {
            Function::Both => 2,
            _ => 1,
        }
    }

    fn takes_running(self) -> bool {
        self != Function::System
    }
}

/// A table function over the tables of one statement.
pub struct AsOfFunction {
    pub function: Function,
    pub tables: Arc<Tables>,
}

impl fmt::Debug for AsOfFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.name())
    }
}

impl TableFunctionImpl for AsOfFunction {
    fn call(&self, args: &[Expr]) -> DfResult<Arc<dyn TableProvider>> {
        let usage = self.function.usage();
        let n = self.function.instants();
        let fits = args.len() == 1 + n || (args.len() == 2 + n && self.function.takes_running());
        let (Some(Expr::Literal(name, _)), true) = (args.first(), fits) else {
            return plan_err!("write it as {usage}");
        };
        let Some(Some(name)) = name.try_as_str() else {
            return plan_err!("the table's name is a text: write it as {usage}");
        };
        let Some(table) = self.tables.get(name) else {
            return plan_err!("{}", unknown_table(name, &self.tables));
        };
        let times = args[1..=n]
            .iter()
            .map(|arg| literal_instant(arg, usage))
            .collect::<DfResult<Vec<i64>>>()?;
        let running = match args.get(1 + n) {
            None => false,
            Some(Expr::Literal(ScalarValue::Boolean(Some(running)), _)) => *running,
            Some(_) => return plan_err!("running is true or false: write it as {usage}"),
        };
        let as_of = match (self.function, times.as_slice()) {
            (Function::System, [system]) => AsOf {
                system: Some(*system),
                ..AsOf::default()
            },
            (Function::Valid, [valid]) => AsOf {
                valid: Some(*valid),
                running,
                system: None,
            },
            (_, [valid, system]) => AsOf {
                valid: Some(*valid),
                system: Some(*system),
                running,
            },
            _ => return plan_err!("write it as {usage}"),
        };
        view(table, &as_of)
    }
}

/// What to say about a name that no table has.
pub fn unknown_table(name: &str, tables: &Tables) -> String {
    let known: Vec<&str> = tables
        .keys()
        .filter(|k| k.contains('.'))
        .map(String::as_str)
        .collect();
    if known.is_empty() {
        return "there are no tables yet; they are made when the sink starts for the first time \
                (`finlake run` or `finlake demo`)"
            .to_owned();
    }
    format!("there is no table {name}; there are: {}", known.join(", "))
}

fn literal_instant(arg: &Expr, usage: &str) -> DfResult<i64> {
    let Expr::Literal(value, _) = arg else {
        return plan_err!("{arg} is not a constant: write it as {usage}");
    };
    if value.is_null() {
        return plan_err!("an as-of time must not be null: write it as {usage}");
    }
    match value.cast_to(&instant_type())? {
        ScalarValue::TimestampMicrosecond(Some(us), _) => Ok(us),
        _ => plan_err!("{arg} is not an instant: write it as {usage}"),
    }
}

/// `open_end()`: the end of what is still open, 9999-12-31T00:00:00Z.
pub fn open_end() -> ScalarUDF {
    create_udf(
        "open_end",
        Vec::new(),
        instant_type(),
        Volatility::Immutable,
        Arc::new(|_| {
            Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(
                Some(OPEN_END),
                Some("+00:00".into()),
            )))
        }),
    )
}

/// `TIMESTAMP` means microseconds in UTC, as the tables' columns are: DataFusion's nanoseconds
/// end in 2262, and a cast of an open end to them would overflow.
#[derive(Debug)]
pub struct MicrosecondTimestamps;

impl TypePlanner for MicrosecondTimestamps {
    fn plan_type(&self, sql_type: &SqlType) -> DfResult<Option<DataType>> {
        match sql_type {
            SqlType::Timestamp(None | Some(0..=6), _) | SqlType::Datetime(None | Some(0..=6)) => {
                Ok(Some(DataType::Timestamp(
                    TimeUnit::Microsecond,
                    Some("+00:00".into()),
                )))
            }
            _ => Ok(None),
        }
    }
}

/// Lets the as-of functions take `running => true`, which DataFusion does not do for functions
/// in FROM: the named argument becomes the last one.
#[derive(Debug)]
pub struct NamedRunning;

impl RelationPlanner for NamedRunning {
    fn plan_relation(
        &self,
        mut relation: TableFactor,
        _context: &mut dyn RelationPlannerContext,
    ) -> DfResult<RelationPlanning> {
        if let TableFactor::Table {
            name,
            args: Some(args),
            ..
        } = &mut relation
            && Function::ALL
                .iter()
                .any(|f| name.to_string().eq_ignore_ascii_case(f.name()))
        {
            let mut running = None;
            args.args.retain(|arg| match named(arg) {
                Some((name, value)) if name.value.eq_ignore_ascii_case("running") => {
                    running = Some(value.clone());
                    false
                }
                _ => true,
            });
            if let Some((name, _)) = args.args.iter().find_map(named) {
                return plan_err!("there is no argument {name}; the only named one is running");
            }
            args.args
                .extend(running.map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))));
        }
        Ok(RelationPlanning::Original(Box::new(relation)))
    }
}

fn named(arg: &FunctionArg) -> Option<(&Ident, &SqlExpr)> {
    match arg {
        FunctionArg::Named {
            name,
            arg: FunctionArgExpr::Expr(value),
            ..
        } => Some((name, value)),
        FunctionArg::ExprNamed {
            name: SqlExpr::Identifier(name),
            arg: FunctionArgExpr::Expr(value),
            ..
        } => Some((name, value)),
        _ => None,
    }
}
