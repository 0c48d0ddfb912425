//! `finlake config`: the values in effect, or an example file with every key.

use std::io::{self, Write};

use anyhow::Result;

use crate::cli::{ConfigArgs, Global};
use crate::config::{Config, example, settings};
use crate::output::{Kind, Printer};

/// Runs the command. Secrets are not shown.
///
/// # Errors
/// A configuration that is not usable, with every problem and its key.
pub fn run(global: &Global, args: &ConfigArgs) -> Result<u8> {
    if args.example {
        io::stdout().write_all(example().as_bytes())?;
        return Ok(0);
    }
    let (config, layers) = Config::load_with_layers(&global.inputs())?;
    for warning in &config.warnings {
        eprintln!("{warning}");
    }
    if args.check {
        return Ok(0);
    }
    let columns = [
        ("key", Kind::Text),
        ("value", Kind::Text),
        ("from", Kind::Text),
    ];
    let mut printer = Printer::new(io::stdout().lock(), global.format(), &columns)?;
    for s in settings(&layers) {
        printer.row(vec![
            Some(s.key.to_string()),
            Some(s.value.to_string()),
            Some(s.origin.to_string()),
        ])?;
    }
    printer.finish(&[])?;
    Ok(0)
}
