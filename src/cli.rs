//! The command line: what can be said, not what happens then. Help texts teach; every command
//! ends with examples.
//!
//! Only arguments become types here. `main.rs` dispatches, `config.rs` checks values, `commands/`
//! and the roles do the work.

mod args;
mod replay;

pub use args::*;
pub use replay::*;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Inputs;
use crate::output::Format;

/// FinLake turns a Kafka topic of market trades into a bi-temporal Iceberg lakehouse, exactly
/// once, and proves it.
#[derive(Debug, Parser)]
#[command(
    name = "finlake",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "First steps:\n  \
        finlake demo                                    everything at once, no set-up\n  \
        finlake query \"SELECT * FROM silver.market_ohlcv LIMIT 5\"\n  \
        finlake tables                                  what is in the lakehouse\n\n\
        Exit codes: 0 done; 1 done, and something differs; 2 could not be done."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line.
    ///
    /// # Errors
    /// clap's, which says what is wrong or is the help.
    pub fn of(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let args: Vec<OsString> = args.into_iter().collect();
        let mut cli = Cli::try_parse_from(&args)?;
        cli.global.set = sets(&args);
        Ok(cli)
    }
}

/// Every `--set`, in order. clap forgets those before a command if there are some after it.
fn sets(args: &[OsString]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut args = args.iter().filter_map(|a| a.to_str());
    while let Some(arg) = args.next().filter(|a| *a != "--") {
        let value = match arg.strip_prefix("--set=") {
            None if arg == "--set" => args.next(),
            value => value,
        };
        // What is no pair was refused.
        found.extend(value.and_then(|v| key_value(v).ok()));
    }
    found
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Data folder: catalog, warehouse, state and finlake.toml lie in it [default: finlake-data]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "FINLAKE_DATA",
        hide_env_values = true
    )]
    pub data: Option<PathBuf>,

    /// Configuration file [default: DIR/finlake.toml if it exists]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "FINLAKE_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,

    /// Set a configuration key, such as stream.threads=2; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,

    /// Kafka brokers (kafka.bootstrap_servers)
    #[arg(long, global = true, value_name = "HOST:PORT,…")]
    pub bootstrap: Option<String>,

    /// How results are printed [default: table on a terminal, else csv]
    #[arg(
        long,
        short = 'o',
        global = true,
        value_enum,
        env = "FINLAKE_OUTPUT",
        hide_env_values = true
    )]
    pub output: Option<Format>,

    /// No progress bars and no remarks on stderr
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Global {
    /// What the configuration is made from, the environment included.
    pub fn inputs(&self) -> Inputs {
        let mut overrides: Vec<_> = self
            .set
            .iter()
            .map(|(k, v)| (k.clone(), v.clone(), "--set".to_owned()))
            .collect();
        if let Some(servers) = &self.bootstrap {
            let key = "kafka.bootstrap_servers".to_owned();
            overrides.push((key, servers.clone(), "--bootstrap".into()));
        }
        // Names or values that are not UTF-8 are no configuration of ours.
        let env = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .filter(|(k, _)| k.starts_with("FINLAKE_"))
            .collect();
        Inputs {
            data: self.data.clone(),
            config: self.config.clone(),
            overrides,
            env,
        }
    }

    /// The format of results: as asked, else by whether stdout is a terminal.
    pub fn format(&self) -> Format {
        self.output.unwrap_or_else(Format::of_stdout)
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it as section.key=value".into()),
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything in one process on made-up trades: broker, stream, tables, then a query
    Demo(DemoArgs),
    /// Run roles of the application until it is stopped
    Run(RunArgs),
    /// Bring trades into market.ticks
    #[command(subcommand)]
    Ingest(IngestCommand),
    /// Ask the tables with SQL, as of any valid and system time
    Query(QueryArgs),
    /// What the tables hold: rows, positions, snapshots, files
    Tables(TablesArgs),
    /// The versions of one bar or metric, who closed what, and the input behind each
    History(HistoryArgs),
    /// Run the topology again over past input, compare, correct
    Replay(ReplayArgs),
    /// Begin again: remove group offsets, stores and internal topics
    Reset(ResetArgs),
    /// Check the tables against the ledger, the layer below and the topics
    Reconcile(ReconcileArgs),
    /// What was found to be wrong: list, explain
    #[command(subcommand)]
    Breaks(BreaksCommand),
    /// Rejected records: list, look at, send again
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Kafka topics of the application
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Avro schemas in the registry
    #[command(subcommand)]
    Schemas(SchemasCommand),
    /// The processing topology
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// A single-node Kafka broker and schema registry, for development and tests
    Devkafka(DevkafkaArgs),
    /// The configuration in effect, or an example file with every key
    Config(ConfigArgs),
    /// Version of this program and of what its data formats are
    Version,
}

#[cfg(test)]
mod tests;
