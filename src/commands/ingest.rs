//! `finlake ingest file`: trades from files into `market.ticks`; `finlake ingest klines`: the exchange's own klines
//! into `market.klines`.

use std::sync::Arc;

use anyhow::{Context, Result};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, Kind, topics};

use crate::cli::{Global, IngestFileArgs, IngestKlinesArgs, TradeFormat};
use crate::config::Config;
use crate::ingest::klines::{self, KlineFile, KlineOptions};
use crate::ingest::{self, Format, IngestOptions, KafkaOut, LineIssue, Out, Position, Summary};
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

/// Runs the command: all files are read and understood before the first kline is sent.
///
/// # Errors
/// A file that cannot be read or holds no klines, a broken line, Kafka or the registry.
pub fn klines(global: &Global, config: &Config, args: &IngestKlinesArgs) -> Result<()> {
    let options = KlineOptions {
        source: args.source.clone(),
        symbol: args.symbol.clone(),
        interval: args.interval.clone(),
    };
    let files: Vec<KlineFile> = args
        .files
        .iter()
        .map(|path| klines::read(path, &options))
        .collect::<Result<_, _>>()?;
    let codec = Codec::connect(
        parts::registry(config),
        &[Subject::new(topics::KLINES, Kind::Kline)],
    )
    .with_context(|| format!("schema registry {}", config.registry.url))?;
    let properties: Vec<(String, String)> =
        config.kafka.client_properties().0.into_iter().collect();
    let mut out = KafkaOut::new(&properties, topics::KLINES)?;
    let (mut sent, mut forming, mut others) = (0u64, 0u64, 0u64);
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for file in &files {
        others += file.others;
        for kline in &file.klines {
            let kline = kline.record();
            key.clear();
            kline.key(&mut key);
            value.clear();
            codec.encode_kline(&kline, &mut value)?;
            out.send(&key, &value)?;
            sent += 1;
            forming += u64::from(!kline.closed);
        }
    }
    out.finish()?;
    remark(
        global.quiet,
        &format!("{sent} klines, {forming} of them forming; {others} other messages"),
    );
    Ok(())
}
