//! `finlake tables`: what the tables hold, their snapshots, positions and files.

use std::io;

use anyhow::{Result, bail};
use finlake_lakehouse::{Lakehouse, Table, inspect};
use tokio::runtime::Runtime;

use crate::cli::{Global, TablesArgs, TablesCommand};
use crate::config::Config;
use crate::output::{Kind, Printer, format_instant, remark};

/// The table that was named, or all that exist.
fn chosen(lake: &Lakehouse, runtime: &Runtime, name: Option<&String>) -> Result<Vec<Table>> {
    match name {
        None => {
            let infos = runtime.block_on(inspect::tables(lake))?;
            Ok(infos.iter().filter(|t| t.exists).map(|t| t.table).collect())
        }
        Some(name) => match Table::parse(name) {
            Some(table) => Ok(vec![table]),
            None => bail!(
                "there is no table {name}; there are {}",
                Table::ALL.map(|t| t.to_string()).join(", ")
            ),
        },
    }
}

/// An instant; zero is how a partition begins that has not said anything yet.
pub(crate) fn time(at: Option<i64>) -> Option<String> {
    at.filter(|at| *at > 0).map(format_instant)
}

/// Runs the command. Exit code 1 if another engine moved a table.
///
/// # Errors
/// No such table, catalog or storage.
pub fn run(global: &Global, config: &Config, args: &TablesArgs) -> Result<u8> {
    let runtime = Runtime::new()?;
    let lake = runtime.block_on(super::existing_lake(config))?;
    let out = io::stdout().lock();
    let format = global.format();
    let (text, number) = (Kind::Text, Kind::Number);
    let mut moved = false;
    match &args.command {
        None => {
            let columns = [
                ("table", text),
                ("rows", number),
                ("files", number),
                ("bytes", number),
                ("snapshots", number),
                ("newest_snapshot", text),
                ("frontier", text),
                ("state", text),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for t in runtime.block_on(inspect::tables(&lake))? {
                moved |= t.moved;
                let state = match (t.exists, t.moved) {
                    (false, _) => "not created yet",
                    (true, true) => "moved by another engine",
                    (true, false) => "ok",
                };
                printer.row(vec![
                    Some(t.table.to_string()),
                    Some(t.rows.to_string()),
                    Some(t.files.to_string()),
                    Some(t.bytes.to_string()),
                    Some(t.snapshots.to_string()),
                    time(t.newest),
                    time(t.frontier),
                    Some(state.into()),
                ])?;
            }
            printer.finish(&[])?;
        }
        Some(TablesCommand::Snapshots { table, limit }) => {
            let columns = [
                ("table", text),
                ("snapshot_id", number),
                ("sequence", number),
                ("committed_at", text),
                ("parent_id", number),
                ("current", text),
                ("operation", text),
                ("added_rows", number),
                ("removed_rows", number),
                ("added_files", number),
                ("removed_files", number),
                ("total_rows", number),
                ("total_files", number),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for table in chosen(&lake, &runtime, table.as_ref())? {
                for s in runtime.block_on(inspect::snapshots(&lake, table, *limit))? {
                    printer.row(vec![
                        Some(s.table.to_string()),
                        Some(s.id.to_string()),
                        Some(s.sequence.to_string()),
                        Some(format_instant(s.time)),
                        s.parent.map(|id| id.to_string()),
                        Some(if s.is_current { "yes" } else { "" }.into()),
                        Some(s.operation),
                        Some(s.added_rows.to_string()),
                        Some(s.removed_rows.to_string()),
                        Some(s.added_files.to_string()),
                        Some(s.removed_files.to_string()),
                        Some(s.total_rows.to_string()),
                        Some(s.total_files.to_string()),
                    ])?;
                }
            }
            printer.finish(&[])?;
        }
        Some(TablesCommand::Offsets { table }) => {
            let columns = [
                ("table", text),
                ("partition", number),
                ("commit", number),
                ("input_end", number),
                ("frontier", text),
                ("state", text),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for table in chosen(&lake, &runtime, table.as_ref())? {
                for o in runtime.block_on(inspect::offsets(&lake, table))? {
                    moved |= o.moved;
                    printer.row(vec![
                        Some(o.table.to_string()),
                        Some(o.partition.to_string()),
                        Some(o.commit.to_string()),
                        Some(o.input_end.to_string()),
                        time(Some(o.frontier)),
                        Some(if o.moved { "moved" } else { "ok" }.into()),
                    ])?;
                }
            }
            printer.finish(&[])?;
        }
        Some(TablesCommand::Adopt { table }) => {
            let columns = [
                ("table", text),
                ("partition", number),
                ("commit", number),
                ("input_end", number),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for table in chosen(&lake, &runtime, Some(table))? {
                for (partition, at) in runtime.block_on(lake.adopt(table))? {
                    printer.row(vec![
                        Some(table.to_string()),
                        Some(partition.to_string()),
                        Some(at.commit.to_string()),
                        Some(at.input_end.to_string()),
                    ])?;
                }
            }
            printer.finish(&[])?;
        }
        Some(TablesCommand::Shadows) => {
            let columns = [
                ("shadow", text),
                ("table", text),
                ("rows", number),
                ("made_by", text),
                ("range", text),
                ("begun", text),
                ("finished", text),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for shadow in runtime.block_on(lake.shadows())? {
                let about = |name: &str| shadow.about.get(name).cloned();
                for (table, rows) in &shadow.tables {
                    printer.row(vec![
                        Some(shadow.name.clone()),
                        Some(table.to_string()),
                        Some(rows.to_string()),
                        about("made-by"),
                        about("range"),
                        about("begun"),
                        about("finished"),
                    ])?;
                }
            }
            printer.finish(&[])?;
        }
        Some(TablesCommand::DropShadow { name }) => {
            if !runtime.block_on(lake.drop_shadow(name))? {
                bail!("there is no shadow {name}; `finlake tables shadows` lists what there is");
            }
            remark(global.quiet, &format!("dropped the shadow {name}"));
        }
        Some(TablesCommand::Files { table }) => {
            let columns = [
                ("table", text),
                ("kind", text),
                ("files", number),
                ("rows", number),
                ("bytes", number),
                ("largest", number),
            ];
            let mut printer = Printer::new(out, format, &columns)?;
            for table in chosen(&lake, &runtime, table.as_ref())? {
                for f in runtime.block_on(inspect::files(&lake, table))? {
                    printer.row(vec![
                        Some(f.table.to_string()),
                        Some(f.kind.to_string()),
                        Some(f.files.to_string()),
                        Some(f.rows.to_string()),
                        Some(f.bytes.to_string()),
                        Some(f.largest.to_string()),
                    ])?;
                }
            }
            printer.finish(&[])?;
        }
    }
    Ok(u8::from(moved))
}
