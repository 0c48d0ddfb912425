//! `finlake dlq`: what was rejected and why.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::{Result, bail};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Assertion, BarsInput, Codec, Kind as Schema, Tick, dlq, schema_id, topics};

use super::letters::{Letter, Letters, is_class};
use super::{SAME, printer, redrive};
use crate::cli::{DlqCommand, DlqListArgs, DlqShowArgs, Global};
use crate::config::Config;
use crate::output::{Format, Kind, Progress, format_instant, remark};
use crate::parts;

/// Bytes of an undecodable value that are shown.
const SHOWN: usize = 1024;

/// Runs the command.
///
/// # Errors
/// Kafka does not answer, no such record.
pub fn run(global: &Global, config: &Config, command: &DlqCommand) -> Result<u8> {
    match command {
        DlqCommand::List(args) => list(global, config, args)?,
        DlqCommand::Show(args) => show(global, config, args)?,
        DlqCommand::Redrive(args) => redrive::run(global, config, args)?,
    }
    Ok(SAME)
}

/// Number of rejected records by class, most frequent first.
///
/// # Errors
/// Kafka does not answer.
pub fn counts(config: &Config) -> Result<Vec<(String, u64)>> {
    let letters = Letters::open(config)?;
    let mut classes = BTreeMap::new();
    letters.read(&letters.bounds(config)?, |letter| {
        *classes.entry(letter.class()).or_default() += 1;
        Ok(true)
    })?;
    Ok(most_first(classes))
}

fn most_first(classes: BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut classes: Vec<(String, u64)> = classes.into_iter().collect();
    classes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    classes
}

fn list(global: &Global, config: &Config, args: &DlqListArgs) -> Result<()> {
    let letters = Letters::open(config)?;
    let mut ranges = letters.bounds(config)?;
    if let Some(partition) = args.partition {
        ranges.retain(|p, _| *p == partition);
        if ranges.is_empty() {
            bail!("{} has no partition {partition}", topics::DLQ);
        }
    }
    let total = ranges
        .values()
        .map(|(from, to)| u64::try_from(to - from).unwrap_or(0))
        .sum();
    let progress = Progress::new(global.quiet, "reading", "records", Some(total));
    let mut classes = BTreeMap::new();
    // The newest of each partition: partitions are read side by side, in no common order.
    let mut newest: BTreeMap<i32, VecDeque<Letter>> = BTreeMap::new();
    letters.read(&ranges, |letter| {
        progress.add(1);
        let class = letter.class();
        if args
            .class
            .as_deref()
            .is_none_or(|asked| is_class(&class, asked))
        {
            *classes.entry(class).or_default() += 1;
            let held = newest.entry(letter.partition).or_default();
            held.push_back(letter);
            if held.len() > args.limit {
                held.pop_front();
            }
        }
        Ok(true)
    })?;
    progress.done();
    let mut shown: Vec<Letter> = newest.into_values().flatten().collect();
    shown.sort_by_key(|l| std::cmp::Reverse((l.timestamp, l.partition, l.offset)));
    shown.truncate(args.limit);

    let columns = [
        ("at", Kind::Text),
        ("time", Kind::Text),
        ("class", Kind::Text),
        ("message", Kind::Text),
        ("from", Kind::Text),
        ("key", Kind::Text),
    ];
    let mut out = printer(global, &columns)?;
    for letter in &shown {
        let key = letter
            .key
            .as_ref()
            .map(|k| String::from_utf8_lossy(k).into_owned());
        out.row(vec![
            Some(format!("{}:{}", letter.partition, letter.offset)),
            letter.timestamp.map(|ms| format_instant(ms * 1000)),
            Some(letter.class()),
            letter.header(dlq::ERROR_MESSAGE),
            letter
                .source()
                .map(|(topic, partition, offset)| format!("{topic}/{partition}:{offset}")),
            key,
        ])?;
    }
    let classes = most_first(classes);
    let json: serde_json::Map<_, _> = classes
        .iter()
        .map(|(c, n)| (c.clone(), (*n).into()))
        .collect();
    out.finish(&[("classes", json.into())])?;
    let counts: Vec<String> = classes
        .iter()
        .map(|(class, n)| format!("{n} {class}"))
        .collect();
    let text = match counts.is_empty() {
        true if args.class.is_some() || args.partition.is_some() => {
            "nothing of that was rejected".to_owned()
        }
        true => "nothing was rejected".to_owned(),
        false => format!("{} shown of: {}", shown.len(), counts.join(", ")),
    };
    remark(global.quiet, &text);
    Ok(())
}

fn show(global: &Global, config: &Config, args: &DlqShowArgs) -> Result<()> {
    let (partition, offset) = args.at;
    let letters = Letters::open(config)?;
    let bounds = letters.bounds(config)?;
    let within = bounds
        .get(&partition)
        .filter(|(from, to)| (*from..*to).contains(&offset));
    let mut found = None;
    if within.is_some() {
        letters.read(
            &BTreeMap::from([(partition, (offset, offset + 1))]),
            |letter| {
                found = Some(letter);
                Ok(false)
            },
        )?;
    }
    let Some(letter) = found.filter(|l| l.offset == offset) else {
        let has = match bounds.get(&partition) {
            Some((from, to)) if from < to => format!("it has {from} to {}", to - 1),
            Some(_) => "it is empty".to_owned(),
            None => format!(
                "there are partitions 0 to {}",
                bounds.len().saturating_sub(1)
            ),
        };
        bail!(
            "no record at {partition}:{offset} of {}; {has}",
            topics::DLQ
        );
    };
    let (value, how) = value(config, &letter);
    if global.format() == Format::Json {
        let headers: serde_json::Map<_, _> = letter
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into()))
            .collect();
        let whole = serde_json::json!({
            "at": format!("{partition}:{offset}"),
            "time": letter.timestamp.map(|ms| format_instant(ms * 1000)),
            "key": letter.key.as_ref().map(|k| String::from_utf8_lossy(k)),
            "headers": headers,
            "schema_id": letter.value.as_deref().and_then(schema_id),
            "value_bytes": letter.value.as_ref().map(Vec::len),
            "value_read_as": how,
            "value": value,
        });
        writeln!(io::stdout().lock(), "{whole:#}")?;
        return Ok(());
    }
    let mut text = String::new();
    let key = letter
        .key
        .as_ref()
        .map_or("none".into(), |k| String::from_utf8_lossy(k));
    let _ = writeln!(text, "at         {partition}:{offset}");
    if let Some(ms) = letter.timestamp {
        let _ = writeln!(text, "time       {}", format_instant(ms * 1000));
    }
    let _ = writeln!(text, "key        {}", clean(&key));
    for (name, value) in &letter.headers {
        let _ = writeln!(
            text,
            "header     {name} = {}",
            clean(&String::from_utf8_lossy(value))
        );
    }
    if let Some(id) = letter.value.as_deref().and_then(schema_id) {
        let _ = writeln!(text, "schema id  {id}");
    }
    let _ = writeln!(text, "value      {how}\n{value}");
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Data must not speak to the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// The value as text, and how it was read: decoded if the registry helps, else in hex.
fn value(config: &Config, letter: &Letter) -> (String, String) {
    let Some(bytes) = &letter.value else {
        return (String::new(), "none (a tombstone)".into());
    };
    let mut registry = parts::registry(config);
    // Looking at a record must not change the registry.
    registry.register = false;
    let subject = [Subject::new(topics::TICKS, Schema::Tick)];
    let why = match Codec::connect(registry, &subject) {
        Ok(codec) => {
            if let Some(id) = schema_id(bytes) {
                // If nobody knows the id, decoding says so.
                let _ = codec.resolve(id);
            }
            match codec.decode_tick(bytes) {
                Ok(tick) => return (tick_text(&tick), "decoded as a trade".into()),
                Err(e) => match codec.decode_bars_input(bytes) {
                    Ok(BarsInput::Assertion(a)) => {
                        return (assertion_text(&a), "decoded as a correction".into());
                    }
                    _ => e.to_string(),
                },
            }
        }
        Err(e) => e.to_string(),
    };
    let how = format!(
        "{} bytes, in hex, since it cannot be decoded: {}",
        bytes.len(),
        clean(&why)
    );
    (hex(bytes), how)
}

fn tick_text(tick: &Tick<'_>) -> String {
    let always = [
        ("source", tick.source.to_owned()),
        ("symbol", tick.symbol.to_owned()),
        ("trade_id", tick.trade_id.to_string()),
        ("price", tick.price.to_string()),
        ("quantity", tick.quantity.to_string()),
        ("trade_time", format_instant(tick.trade_time)),
    ];
    let if_known = [
        ("event_time", tick.event_time.map(format_instant)),
        ("ingest_time", tick.ingest_time.map(format_instant)),
        ("buyer_maker", tick.buyer_maker.map(|b| b.to_string())),
        ("first_trade_id", tick.first_trade_id.map(|n| n.to_string())),
        ("last_trade_id", tick.last_trade_id.map(|n| n.to_string())),
    ];
    let known = if_known
        .into_iter()
        .filter_map(|(name, v)| Some((name, v?)));
    lines(always.into_iter().chain(known))
}

fn assertion_text(a: &Assertion<'_>) -> String {
    let content = &a.content;
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    lines([
        ("source", a.source.to_owned()),
        ("symbol", a.symbol.to_owned()),
        ("bar_interval", a.bar_interval.to_owned()),
        ("bar_start", format_instant(a.bar_start)),
        (
            "expected_sys_from",
            or_none(a.expected_sys_from.map(format_instant)),
        ),
        (
            "expected_revision",
            or_none(a.expected_revision.map(|r| r.to_string())),
        ),
        ("retracted", a.retracted.to_string()),
        ("open", content.open.to_string()),
        ("high", content.high.to_string()),
        ("low", content.low.to_string()),
        ("close", content.close.to_string()),
        ("volume", content.volume.to_string()),
        ("trade_count", content.trade_count.to_string()),
        ("origin", a.origin.to_owned()),
        ("reason", a.reason.to_owned()),
        ("sent_at", format_instant(a.sent_at)),
    ])
}

/// Names and values, one a line.
fn lines(pairs: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let lines: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("  {name:<18} {}", clean(&value)))
        .collect();
    lines.join("\n")
}

/// Offsets, sixteen bytes a line, and what of them is text.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (n, line) in bytes.chunks(16).take(SHOWN / 16).enumerate() {
        let mut digits = String::new();
        for byte in line {
            let _ = write!(digits, "{byte:02x} ");
        }
        let letters: String = line
            .iter()
            .map(|b| {
                if b.is_ascii_graphic() || *b == b' ' {
                    char::from(*b)
                } else {
                    '.'
                }
            })
            .collect();
        let _ = writeln!(text, "  {:06x}  {digits:<48} {letters}", n * 16);
    }
    if bytes.len() > SHOWN {
        let _ = writeln!(text, "  … {} more bytes", bytes.len() - SHOWN);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_shows_bytes_and_text_and_ends() {
        let text = hex(b"\x00\x01hello\x1b[31m world, this is long");
        assert!(text.starts_with("  000000  00 01 68 65"), "{text}");
        assert!(text.contains("..hello.[31m wor"), "{text}");
        assert!(!text.contains('\u{1b}'));
        let long = hex(&[7; 2000]);
        assert!(long.ends_with("… 976 more bytes"), "{long}");
    }

    #[test]
    fn the_most_frequent_class_comes_first() {
        let classes = BTreeMap::from([("a".into(), 1), ("c".into(), 5), ("b".into(), 5)]);
        let names: Vec<String> = most_first(classes).into_iter().map(|(c, _)| c).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }
}
