//! `finlake version`.

use std::io::{self, Write};

use anyhow::Result;

use crate::cli::Global;

/// Prints the program's version and those of the data formats it writes.
///
/// # Errors
/// stdout is gone.
pub fn run(_global: &Global) -> Result<()> {
    writeln!(
        io::stdout(),
        "finlake {}\nTick schema v{}\nIceberg format v2\ntable properties v{}",
        env!("CARGO_PKG_VERSION"),
        finlake_schemas::Kind::Tick.versions().len(),
        finlake_lakehouse::properties::VERSION,
    )?;
    Ok(())
}
