//! `finlake version`: this program's version, and the versions of what it writes.

use anyhow::Result;
use finlake_lakehouse::properties;
use finlake_schemas::Kind as Schema;

use super::printer;
use crate::cli::Global;
use crate::output::Kind;

/// Runs the command.
///
/// # Errors
/// Stdout cannot be written to.
pub fn run(global: &Global) -> Result<()> {
    let mut out = printer(global, &[("what", Kind::Text), ("version", Kind::Text)])?;
    let mut row = |what: &str, version: String| out.row(vec![Some(what.to_owned()), Some(version)]);
    row("finlake", env!("CARGO_PKG_VERSION").to_owned())?;
    for (name, kind) in [
        ("schema Tick", Schema::Tick),
        ("schema Bar", Schema::Bar),
        ("schema Metrics", Schema::Metrics),
        ("schema LedgerEntry", Schema::Ledger),
    ] {
        row(name, format!("v{}", kind.versions().len()))?;
    }
    row("table properties", format!("v{}", properties::VERSION))?;
    row("Iceberg format", "v2".to_owned())?;
    Ok(out.finish(&[])?)
}
