//! Arguments of the commands.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake demo                               a made-up market; then stays up until Ctrl-C\n  \
    finlake demo --exit --data lake            ends when everything is in the tables, keeps them\n  \
    finlake demo --input capture.jsonl.gz --intervals 1m,5m,1h,1d --exit\n\n\
    Broker, schema registry, stream and sink run in this one process. The tables stay in the data\n\
    folder: ask them afterwards with `finlake query --data DIR`.")]
pub struct DemoArgs {
    /// Take the trades from this file instead (may be repeated; merged by trade time; formats as
    /// in `finlake ingest file --help`)
    #[arg(long = "input", value_name = "FILE")]
    pub inputs: Vec<PathBuf>,

    /// How the input files are written
    #[arg(long, value_enum, default_value = "auto", requires = "inputs")]
    pub format: TradeFormat,

    /// Bar intervals, separated by commas (stream.intervals)
    #[arg(long, value_name = "LIST")]
    pub intervals: Option<String>,

    /// End when drained: every input record in the tables, every task's last commit too
    #[arg(long)]
    pub exit: bool,

    /// Trades to make up
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000_000))]
    pub trades: u64,

    /// Symbols to make up
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub symbols: u32,

    /// Seed of the made-up trades: the same seed makes the same trades
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A role of `finlake run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Trades in; bars, metrics and ledger out
    Stream,
    /// Ledger in; Iceberg tables out
    Sink,
    /// Ledger and table metadata in; breaks out
    Audit,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake run --data /var/lib/finlake                   both roles in one process\n  \
    finlake run --roles stream --set kafka.instance_id=2  a second stream instance\n  \
    finlake run --roles sink --config /etc/finlake.toml\n  \
    finlake run --roles audit --until-caught-up           does the ledger add up, do the tables hold it?\n\n\
    SIGTERM or Ctrl-C commits what is open and stops. The instance's partitions wait for its\n\
    return until stream.session_timeout_ms is over; --leave hands them on at once.\n\n\
    Exit code: 0; with the audit role and --until-caught-up 1 if breaks that it found are open,\n\
    2 if it could not check.")]
pub struct RunArgs {
    /// Roles of this process, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stream,sink")]
    pub roles: Vec<Role>,

    /// Leave the group when stopping, so that others take over at once (scaling down)
    #[arg(long)]
    pub leave: bool,

    /// Stop when everything that was in the input at the start has been processed
    #[arg(long)]
    pub until_caught_up: bool,

    /// Do not create missing topics
    #[arg(long)]
    pub no_create_topics: bool,
}

#[derive(Debug, Subcommand)]
pub enum IngestCommand {
    /// Trades from files: CSV, JSON lines or recorded WebSocket messages, also .gz
    File(IngestFileArgs),
    /// The exchange's own klines from files, for the rules kline_accuracy:INTERVAL
    Klines(IngestKlinesArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake ingest klines BTCUSDT-5m-2024-08.csv.gz\n  \
    finlake ingest klines capture-*.jsonl\n\n\
    Read are recorded WebSocket messages (kline events among others), the exchange's archive CSVs,\n\
    its REST answers, and Kraken's answer to OHLC. Klines are compared with, never computed from.")]
pub struct IngestKlinesArgs {
    /// Files, read in this order
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Source, as of the trades [default: binance, kraken]
    #[arg(long)]
    pub source: Option<String>,

    /// Symbol, where the file does not say it
    #[arg(long)]
    pub symbol: Option<String>,

    /// Interval such as 5m, where the file does not say it
    #[arg(long)]
    pub interval: Option<String>,
}

/// How a file of trades is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TradeFormat {
    /// By name and first line
    Auto,
    /// Comma-separated with a header, or in the exchange's archive format
    Csv,
    /// One message of the exchange's WebSocket per line
    Jsonl,
    /// The exchange's REST answer: an array of trades
    Rest,
    /// Kraken's REST answer to Trades
    Kraken,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake ingest file trades.csv.gz --source binance --symbol BTCUSDT\n  \
    finlake ingest file capture-*.jsonl --rate 5000\n\n\
    Bringing a file in twice does no harm: trades are known by source, symbol and trade id.")]
pub struct IngestFileArgs {
    /// Files, read in this order
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How the files are written
    #[arg(long, value_enum, default_value = "auto")]
    pub format: TradeFormat,

    /// Source of the trades, part of their identity, such as binance; aggregate trades are a
    /// source of their own (binance.agg) [default: from the file]
    #[arg(long)]
    pub source: Option<String>,

    /// Symbol, where the file does not say it
    #[arg(long)]
    pub symbol: Option<String>,

    /// Trades per second [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,

    /// Stop after this many trades
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,

    /// Stop at the first broken line instead of reporting it and going on
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Tables: bronze.market_ticks, silver.market_ohlcv, gold.market_metrics.\n\
    Without an as-of option all versions are rows; is_current marks the newest ones.\n\n\
    Examples:\n  \
    finlake query \"SELECT symbol, bar_start, close FROM silver.market_ohlcv\n      \
    WHERE bar_interval = '1h' AND is_current ORDER BY 2 DESC LIMIT 10\"\n  \
    finlake query --as-of-system 2026-11-22T12:00:00Z \"SELECT …\"   what was known at noon\n  \
    finlake query --as-of-valid 2026-11-21 \"SELECT …\"              bars that had ended by then\n\n\
    Within one statement:\n  \
    as_of_system('silver.market_ohlcv', '2026-11-22T12:00:00Z')\n  \
    as_of_valid('silver.market_ohlcv', '2026-11-21')\n  \
    as_of('silver.market_ohlcv', valid, system [, running => true])\n  \
    open_end()    the end of what is still open; a TIMESTAMP '9999-12-31' literal overflows\n\n\
    An answer is final up to the stable frontier, which is printed with it."
)]
pub struct QueryArgs {
    /// The statement; - reads it from stdin
    pub sql: String,

    /// What the tables knew at this instant (system time)
    #[arg(long, value_name = "TIME", value_parser = crate::output::parse_instant)]
    pub as_of_system: Option<i64>,

    /// What held at this instant (valid time); bars that had not ended by then are left out
    #[arg(long, value_name = "TIME", value_parser = crate::output::parse_instant)]
    pub as_of_valid: Option<i64>,

    /// With --as-of-valid: running bars too
    #[arg(long, requires = "as_of_valid")]
    pub running: bool,

    /// Refuse an answer that is not final (exit code 2)
    #[arg(long)]
    pub stable: bool,

    /// Show the plan instead of running it
    #[arg(long)]
    pub explain: bool,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    finlake tables                                  one line per table\n  \
    finlake tables snapshots silver.market_ohlcv\n  \
    finlake tables offsets                          positions per Kafka partition\n  \
    finlake tables files -o json\n  \
    finlake tables shadows                          what replays have kept beside the live tables"
)]
pub struct TablesArgs {
    #[command(subcommand)]
    pub command: Option<TablesCommand>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum TablesCommand {
    /// Snapshots, newest first, with what each took
    Snapshots {
        /// One table only
        table: Option<String>,
        /// Most snapshots shown per table
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Per Kafka partition: last commit, input position, stable frontier
    Offsets {
        /// One table only
        table: Option<String>,
    },
    /// Take a table over as it is after another engine moved it (rollback, replaced data)
    #[command(
        after_help = "FinLake stops with `table_moved` when a table's current snapshot does not follow its own last one.\n\
        Look at what was done first: `finlake tables snapshots TABLE`. Adopting sets the positions to what\n\
        the current snapshot's history says, so that what a rollback took away is taken again from Kafka."
    )]
    Adopt {
        /// The table, such as silver.market_ohlcv
        table: String,
    },
    /// Live files by kind: count, rows, bytes
    Files {
        /// One table only
        table: Option<String>,
    },
    /// Tables that replays have kept (`replay --shadow`): where they come from, whether they are whole
    Shadows,
    /// Drop what a replay has kept, an unfinished shadow too; live tables are never dropped
    #[command(after_help = "Example:\n  finlake tables drop-shadow check\n\n\
        Only what bears the mark of that shadow is dropped. A replay that still writes it ends with\n\
        an error; drop the shadow again then, for the files that it left behind.")]
    DropShadow {
        /// The shadow's name, as given to replay --shadow
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Rejected records, newest first, and how many there are of each class
    #[command(
        after_help = "Examples:\n  finlake dlq list\n  finlake dlq list --class invalid --limit 100"
    )]
    List(DlqListArgs),
    /// One rejected record: headers, and its value decoded or in hex
    #[command(
        after_help = "Example:\n  finlake dlq show 0:17        partition 0, offset 17 of market.ticks.dlq"
    )]
    Show(DlqShowArgs),
    /// Send rejected records to their topic again, once their cause is gone
    #[command(after_help = "Examples:\n  \
        finlake dlq redrive --class unknown_schema --dry-run\n  \
        finlake dlq redrive --class unknown_schema\n  \
        finlake dlq redrive --partition 2 --from 100 --to 120\n\n\
        No record is sent twice: how far a partition was redriven is kept in the consumer group\n\
        <application>-dlq-redrive-<class>, and a redriven record bears the header finlake.redrive. With\n\
        --partition and --from, records from before that position can be sent again.\n\
        too_late records are refused: the trade counts in the other intervals already, and\n\
        would be a duplicate. Their remedy is a replay.")]
    Redrive(DlqRedriveArgs),
}

#[derive(Debug, Args)]
pub struct DlqListArgs {
    /// Only this class, such as malformed, invalid, too_late
    #[arg(long)]
    pub class: Option<String>,
    /// Only this partition
    #[arg(long)]
    pub partition: Option<i32>,
    /// Most records shown; all are counted
    #[arg(long, default_value_t = 50)]
    pub limit: usize,
}

#[derive(Debug, Args)]
pub struct DlqShowArgs {
    /// PARTITION:OFFSET in market.ticks.dlq, as `dlq list` prints it
    #[arg(value_name = "PARTITION:OFFSET", value_parser = partition_offset)]
    pub at: (i32, i64),
}

#[derive(Debug, Args)]
pub struct DlqRedriveArgs {
    /// Only this class [default: all but too_late]
    #[arg(long)]
    pub class: Option<String>,
    /// Only this partition
    #[arg(long)]
    pub partition: Option<i32>,
    /// First offset; may lie before what was redriven already
    #[arg(long, requires = "partition", value_name = "OFFSET")]
    pub from: Option<i64>,
    /// Last offset
    #[arg(long, requires = "partition", value_name = "OFFSET")]
    pub to: Option<i64>,
    /// Say what would be sent, send nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn partition_offset(text: &str) -> Result<(i32, i64), String> {
    text.split_once(':')
        .and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)))
        .filter(|(p, o): &(i32, i64)| *p >= 0 && *o >= 0)
        .ok_or_else(|| "write it as PARTITION:OFFSET, such as 0:17".into())
}

#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// Create what is missing, compare what is there
    #[command(after_help = "Examples:\n  \
        finlake topics create --dry-run\n  \
        finlake topics create --set kafka.partitions=8\n\n\
        Existing topics are never changed; what differs is listed, and the exit code is 1.")]
    Create {
        /// Only say what is missing and what differs
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum SchemasCommand {
    /// Register this version's schemas (asks for compatibility first)
    Register,
    /// Compare this version's schemas with the registry; changes nothing
    Check,
}

#[derive(Debug, Subcommand)]
pub enum TopologyCommand {
    /// Sources, processors, stores and sinks
    #[command(after_help = "Example:\n  finlake topology describe --mermaid > topology.mmd")]
    Describe {
        /// As a Mermaid diagram
        #[arg(long)]
        mermaid: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake devkafka                     127.0.0.1:9092 and 127.0.0.1:8081, kept in the data folder\n  \
    finlake devkafka --memory --listen 127.0.0.1:0\n\n\
    For development and tests. There is no replication and no access control: use Apache Kafka\n\
    for anything that matters.")]
pub struct DevkafkaArgs {
    /// Where the broker listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9092")]
    pub listen: SocketAddr,

    /// Where the schema registry listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub registry: SocketAddr,

    /// Address that clients are told, where it is not the one listened on
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,

    /// Keep everything in memory; it is gone at the end
    #[arg(long)]
    pub memory: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake config                                   values in effect, and where each is from\n  \
    finlake config --example > finlake.toml          every key with its meaning\n  \
    FINLAKE_STREAM_THREADS=2 finlake config")]
pub struct ConfigArgs {
    /// Print a complete, documented configuration file
    #[arg(long)]
    pub example: bool,
    /// Only check; print nothing if all is well
    #[arg(long, conflicts_with = "example")]
    pub check: bool,
}

/// A layer that can be reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum ReconcileLayer {
    /// Input records: ledger, trade ids, topic
    Bronze,
    /// Bars, recomputed from Bronze
    Silver,
    /// Metrics, recomputed from Silver
    Gold,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake reconcile                                       everything\n  \
    finlake reconcile --layer silver --date 2026-01-05 --symbol BTCUSDT\n  \
    finlake reconcile --as-of 2026-11-22T12:00:00Z -o json  what the tables knew at noon\n\n\
    Runs while the pipeline runs: the tables are pinned, and compared at the cut that they hold.\n\
    Breaks go to quality.breaks: each is opened once, and resolved when a later run over it no\n\
    longer finds it. docs/reconcile.md says what each of them means.\n\n\
    Exit codes: 0 clean; 1 breaks; 2 something could not be checked (Kafka not reachable, Bronze\n\
    behind Silver, an --as-of time beyond the stable frontier).")]
pub struct ReconcileArgs {
    /// Layers, separated by commas
    #[arg(
        long = "layer",
        value_enum,
        value_delimiter = ',',
        default_value = "bronze,silver,gold"
    )]
    pub layers: Vec<ReconcileLayer>,

    /// Only this trade date, such as 2026-01-05
    #[arg(long, value_name = "DATE", value_parser = date)]
    pub date: Option<i32>,

    /// Only this symbol
    #[arg(long)]
    pub symbol: Option<String>,

    /// As the tables stood at this system time [default: the cut that they hold]
    #[arg(long, value_name = "TIME", value_parser = crate::output::parse_instant)]
    pub as_of: Option<i64>,

    /// Validators instead of quality.rules
    #[arg(long, value_name = "LIST")]
    pub rules: Option<String>,

    /// Print only; write no breaks
    #[arg(long)]
    pub report_only: bool,

    /// Write the results as metrics into this file, for the node exporter's textfile collector
    #[arg(long, value_name = "FILE.prom")]
    pub metrics: Option<PathBuf>,

    /// Ask the tables alone: no ledger, no topics, no registry, no breaks written
    #[arg(long)]
    pub no_kafka: bool,

    /// Longest wait for Bronze to reach the cut that Silver holds, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub wait: std::time::Duration,

    /// Most breaks listed of each kind, layer and cause; all are counted
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub limit: usize,
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    text.parse()
        .map(std::time::Duration::from_secs)
        .map_err(|_| "write it as a whole number of seconds".into())
}

/// Days since 1970 of a calendar date.
fn date(text: &str) -> Result<i32, String> {
    let wrong = || "write it as a date, such as 2026-01-05".to_owned();
    if text.len() != 10 {
        return Err(wrong());
    }
    let us = crate::output::parse_instant(text).map_err(|_| wrong())?;
    i32::try_from(us.div_euclid(86_400_000_000)).map_err(|_| wrong())
}

#[derive(Debug, Subcommand)]
pub enum BreaksCommand {
    /// Breaks, newest first
    #[command(
        after_help = "Examples:\n  finlake breaks list\n  finlake breaks list --layer silver --all"
    )]
    List(BreaksListArgs),
    /// Note why a break is there; it stays open until it is no longer found
    #[command(
        after_help = "Example:\n  finlake breaks explain 60610ce3 --why \"exchange outage 02:10 to 02:14\""
    )]
    Explain {
        /// The break's id, or how it begins
        id: String,
        /// The reason, for the next person
        #[arg(long)]
        why: String,
    },
}

#[derive(Debug, Args)]
pub struct BreaksListArgs {
    /// Resolved ones too
    #[arg(long)]
    pub all: bool,
    /// Only this layer
    #[arg(long, value_parser = ["feed", "ledger", "bronze", "silver", "gold"])]
    pub layer: Option<String>,
}
