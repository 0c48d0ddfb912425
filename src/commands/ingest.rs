//! `finlake ingest file`: trades from files into `market.ticks`.

use std::sync::Arc;

use anyhow::{Context, Result};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, Kind, topics};

use crate::cli::{Global, IngestFileArgs, TradeFormat};
use crate::config::Config;
use crate::ingest::{self, Format, IngestOptions, KafkaOut, LineIssue, Position, Summary};
use crate::output::{Progress, remark};
use crate::parts;

/// The parser's name of a format asked for on the command line.
pub fn format(format: TradeFormat) -> Format {
    match format {
        TradeFormat::Auto => Format::Auto,
        TradeFormat::Csv => Format::Csv,
        TradeFormat::Jsonl => Format::Messages,
        TradeFormat::Rest => Format::Rest,
        TradeFormat::Kraken => Format::Kraken,
    }
}

/// Draws an import's progress.
pub struct Watch<'a>(pub &'a Progress);

impl ingest::Progress for Watch<'_> {
    fn position(&mut self, position: Position) {
        self.0.set(position.trades);
    }

    fn issue(&mut self, issue: &LineIssue) {
        self.0.line(&format!("skipped {issue}"));
    }
}

/// What an import did, in a few lines.
pub fn report(summary: &Summary) -> String {
    let mut text = format!("{} trades from {} lines", summary.trades, summary.lines);
    if !summary.skipped.is_empty() {
        let kinds: Vec<String> = summary
            .skipped
            .iter()
            .map(|(k, n)| format!("{n} {k}"))
            .collect();
        text.push_str(&format!("; other messages: {}", kinds.join(", ")));
    }
    if summary.broken > 0 {
        text.push_str(&format!(
            "; {} BROKEN lines, the first of them:",
            summary.broken
        ));
        for issue in summary.issues.iter().take(5) {
            text.push_str(&format!("\n  {issue}"));
        }
    }
    text
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read, a broken line with `--strict`, Kafka or the registry.
pub fn file(global: &Global, config: &Config, args: &IngestFileArgs) -> Result<()> {
    let codec = Codec::connect(
        parts::registry(config),
        &[Subject::new(topics::TICKS, Kind::Tick)],
    )
    .with_context(|| format!("schema registry {}", config.registry.url))?;
    let codec = Arc::new(codec);
    let options = IngestOptions {
        format: format(args.format),
        source: args.source.clone(),
        symbol: args.symbol.clone(),
        strict: args.strict,
        rate: args.rate,
        limit: args.limit,
    };
    let properties: Vec<(String, String)> =
        config.kafka.client_properties().0.into_iter().collect();
    let mut out = KafkaOut::new(&properties, topics::TICKS)?;
    let inputs = ingest::open_inputs(&args.files, &options)?;
    let progress = Progress::new(global.quiet, "ingest", "trades", None);
    let summary = ingest::run(inputs, &codec, &mut out, &options, &mut Watch(&progress))?;
    progress.done();
    remark(global.quiet, &report(&summary));
    Ok(())
}
