//! Arguments of the commands that look back: replay, history, reset.

use clap::Args;
use finlake_lakehouse::VersionKey;

use crate::commands::history;
use crate::output::parse_instant;
use crate::replay::Wanted;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake replay --all                                     everything, commit by commit as the ledger has it\n  \
    finlake replay --all --verify                            and the tables rebuilt from their topics, row for row\n  \
    finlake replay --all --to 2026-11-02T12:00:00Z           what the tables knew at that instant\n  \
    finlake replay --from-timestamp 2026-11-01 --to 2026-11-02\n  \
    finlake replay --from-offsets market.ticks:0:120000      the remedy a too_late dead letter names\n  \
    finlake replay --from-timestamp 2026-11-01 --apply       sends what differs as corrections\n  \
    finlake replay --from-timestamp 2026-11-01 --key binance:BTCUSDT:1m:2026-11-01T09:30:00Z --apply\n  \
    finlake replay --all --shadow check                      keeps what comes out as tables\n\n\
    --shadow makes tables beside the live ones for any engine to join, such as\n\
    shadow_check_silver.market_ohlcv; `finlake tables drop-shadow check` drops them.\n\n\
    A replay never writes a live table. --apply sends assertions through market.bars; the running\n\
    stream role checks them against what it holds, and alone gives out revision and system time.\n\
    Before anything is sent that comes out of Bronze, Bronze is reconciled with the ledger and the\n\
    topic; if it lost, doubled or changed rows, nothing is sent. Bars that somebody corrected are\n\
    shown as `corrected` by the replay of a range, which has trades only, and are left as they are.\n\n\
    Exit codes: 0 nothing differs (what was corrected is no difference); 1 something differs;\n\
    2 could not be done.")]
#[command(group(clap::ArgGroup::new("range").required(true).args(["all", "from_timestamp", "from_offsets"])))]
pub struct ReplayArgs {
    /// Everything that the ledger holds
    #[arg(long)]
    pub all: bool,

    /// Trades made from this instant on, widened to whole days
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    pub from_timestamp: Option<i64>,

    /// Trades at and after these input offsets, and all others of the bars they are in
    #[arg(long, value_name = "TOPIC:PARTITION:OFFSET", value_delimiter = ',', value_parser = from_offset)]
    pub from_offsets: Vec<(i32, i64)>,

    /// Trades made up to this instant, widened to a whole day; with --all: commits up to this
    /// system time, compared with what the tables knew then
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    pub to: Option<i64>,

    /// Compare, show and apply only this bar, or all of an instrument, as `finlake history` takes
    /// it (may be repeated); Gold: of the same instrument
    #[arg(long = "key", value_name = "SOURCE:SYMBOL[:INTERVAL:START]", value_parser = wanted, conflicts_with = "verify")]
    pub keys: Vec<Wanted>,

    /// Also rebuild the tables from their topics and compare every version of every row
    #[arg(long, requires = "all")]
    pub verify: bool,

    /// Send what differs in Silver as assertions (Gold follows)
    #[arg(long)]
    pub apply: bool,

    /// With --apply: also bars that somebody corrected, back to what the trades give
    #[arg(long, requires = "apply", conflicts_with = "all")]
    pub over_corrections: bool,

    /// Why, for the assertions and for whoever reads them later
    #[arg(long, default_value = "replay", requires = "apply")]
    pub reason: String,

    /// Keep what comes out as tables beside the live ones: shadow_NAME_silver.market_ohlcv and
    /// shadow_NAME_gold.market_metrics; with --verify the rebuilt tables too, as shadow NAME_rebuilt
    #[arg(long, value_name = "NAME")]
    pub shadow: Option<String>,

    /// Replace a shadow of that name
    #[arg(long, requires = "shadow")]
    pub overwrite: bool,

    /// Most differences printed; all are counted, and sent
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
}

fn wanted(text: &str) -> Result<Wanted, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not a bar or an instrument; write SOURCE:SYMBOL, or SOURCE:SYMBOL:INTERVAL:START, such as \
             binance:BTCUSDT:5m:2024-08-08T23:55:00Z"
        )
    };
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [source, symbol] if !source.is_empty() && !symbol.is_empty() => Ok(Wanted::Instrument {
            source: source.into(),
            symbol: symbol.into(),
        }),
        _ => match history::parse(text) {
            Ok(VersionKey::Bar {
                source,
                symbol,
                interval,
                start,
            }) => Ok(Wanted::Bar {
                source,
                symbol,
                interval,
                start,
            }),
            _ => Err(wrong()),
        },
    }
}

fn from_offset(text: &str) -> Result<(i32, i64), String> {
    let wrong =
        || "write it as market.ticks:PARTITION:OFFSET, such as market.ticks:0:120000".to_owned();
    let mut parts = text.rsplitn(3, ':');
    let offset: Option<i64> = parts.next().and_then(|p| p.parse().ok());
    let partition: Option<i32> = parts.next().and_then(|p| p.parse().ok());
    match (parts.next(), partition, offset) {
        (Some(finlake_schemas::topics::TICKS), Some(p), Some(o)) if p >= 0 && o >= 0 => Ok((p, o)),
        _ => Err(wrong()),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake history binance:BTCUSDT:5m:2024-08-08T23:55:00Z       a bar\n  \
    finlake history binance:BTCUSDT:2024-08-08                    the metrics of a day\n\n\
    Oldest version first: when it was known, what closed it, and the input positions behind it.")]
pub struct HistoryArgs {
    /// SOURCE:SYMBOL:INTERVAL:START of a bar, or SOURCE:SYMBOL:DATE of metrics
    pub key: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    finlake reset                    lists what would be removed, removes nothing\n  \
    finlake reset --outputs --yes    the application begins again at the first record of its inputs\n\n\
    Inputs, the registry and the tables are never touched. Tables know the topics they were filled\n\
    from: after a reset with --outputs the sink needs a new warehouse (--set lake.namespace_prefix=…).")]
pub struct ResetArgs {
    /// Also the topics that the application writes: Silver, Gold, live, ledger, dead letters
    #[arg(long)]
    pub outputs: bool,

    /// Do it
    #[arg(long)]
    pub yes: bool,
}
