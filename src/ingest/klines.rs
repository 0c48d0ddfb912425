//! The exchange's own klines from files: recorded WebSocket messages, archive CSVs, REST answers,
//! Kraken's OHLC answer. Parsing is pure; [`read`] opens a file.
//!
//! A kline is an oracle, so nothing is guessed: a broken line ends the import, and a kline of
//! which it is not known that its interval was over counts as forming, which nothing is compared
//! with.

use std::io::Read;
use std::path::Path;

use finlake_market::Interval;
use finlake_schemas::{Dec8, Dec16, Kline};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::message::split_receive_time;
use super::{IngestError, LineFault, LineIssue, decimal, micros};

/// What the files do not say.
#[derive(Debug, Clone, Default)]
pub struct KlineOptions {
    /// Default: `binance`, `kraken`.
    pub source: Option<String>,
    pub symbol: Option<String>,
    /// `1m`, `5m` …
    pub interval: Option<String>,
}

/// A kline that owns its texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedKline {
    pub source: String,
    pub symbol: String,
    pub interval: String,
    /// µs.
    pub start: i64,
    /// µs, exclusive.
    pub end: i64,
    /// Open, high, low, close, volume.
    pub values: [Dec8; 5],
    pub trade_count: i64,
    pub quote_volume: Option<Dec16>,
    pub taker_buy: Option<(Dec8, Dec16)>,
    pub closed: bool,
    /// µs.
    pub event_time: Option<i64>,
    /// µs.
    pub ingest_time: Option<i64>,
}

impl OwnedKline {
    /// As the record to be encoded.
    pub fn record(&self) -> Kline<'_> {
        let [open, high, low, close, volume] = self.values;
        Kline {
            source: &self.source,
            symbol: &self.symbol,
            bar_interval: &self.interval,
            bar_start: self.start,
            bar_end: self.end,
            open,
            high,
            low,
            close,
            volume,
            trade_count: self.trade_count,
            quote_volume: self.quote_volume,
            taker_buy_base: self.taker_buy.map(|t| t.0),
            taker_buy_quote: self.taker_buy.map(|t| t.1),
            closed: self.closed,
            event_time: self.event_time,
            ingest_time: self.ingest_time,
        }
    }
}

/// What one file holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KlineFile {
    pub klines: Vec<OwnedKline>,
    /// Messages that are no klines.
    pub others: u64,
}

/// The largest file that is read, unpacked: klines are few.
const MAX_FILE: u64 = 1 << 30;

/// Reads a file, also `.gz`.
///
/// # Errors
/// It cannot be read, holds no klines, or a line is broken.
pub fn read(path: &Path, options: &KlineOptions) -> Result<KlineFile, IngestError> {
    let failed = |error| IngestError::Read {
        file: path.to_owned(),
        error,
    };
    let too_large = || IngestError::Layout {
        file: path.to_owned(),
        why: format!(
            "more than {} MiB, unpacked: split it, or take the klines out of it first",
            MAX_FILE >> 20
        ),
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(too_large());
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let mut plain = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = MultiGzDecoder::new(bytes.as_slice()).take(MAX_FILE + 1);
        unpacked.read_to_end(&mut plain).map_err(failed)?;
        if plain.len() as u64 > MAX_FILE {
            return Err(too_large());
        }
    } else {
        plain = bytes;
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    parse(&plain, name, options).map_err(|e| match e {
        Bad::Layout(why) => IngestError::Layout {
            file: path.to_owned(),
            why,
        },
        Bad::Line(line, fault) => IngestError::Strict(LineIssue {
            file: path.to_owned(),
            line,
            fault,
        }),
    })
}

/// Why a file is refused.
#[derive(Debug)]
enum Bad {
    Layout(String),
    /// Counted from 1; in a document, the number of the kline.
    Line(u64, LineFault),
}

fn parse(bytes: &[u8], name: &str, options: &KlineOptions) -> Result<KlineFile, Bad> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = bytes.trim_ascii();
    let first = text.split(|&b| b == b'\n').next().unwrap_or(&[]);
    let document = || serde_json::from_slice::<Value>(text).ok();
    let file = match text.first() {
        Some(b'[') => rest(document(), options)?,
        Some(b'{') if !first.windows(7).any(|w| w == b"\"kline\"") && document().is_some() => {
            rest(document(), options)?
        }
        Some(c) if c.is_ascii_alphanumeric() && first.contains(&b',') && !first.contains(&b'{') => {
            csv(text, name, options)?
        }
        _ => messages(text, options)?,
    };
    if file.klines.is_empty() {
        return Err(Bad::Layout(
            "no klines: neither kline messages, nor the exchange's twelve columns, nor Kraken's \
             OHLC answer"
                .to_owned(),
        ));
    }
    Ok(file)
}

/// The interval as FinLake spells it, and the end of the one that starts here.
fn interval(name: &str, start: i64) -> Result<(String, i64), LineFault> {
    let interval = Interval::parse(name).map_err(|_| LineFault::Field("interval"))?;
    Ok((interval.name().to_owned(), start + interval.length()))
}

fn messages(text: &[u8], options: &KlineOptions) -> Result<KlineFile, Bad> {
    let source = options.source.as_deref().unwrap_or("binance");
    let mut file = KlineFile::default();
    for (n, line) in text.split(|&b| b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        // Most of a recording is something else, and need not be parsed.
        if !line.windows(7).any(|w| w == b"\"kline\"") {
            file.others += 1;
            continue;
        }
        match message(line, source).map_err(|f| Bad::Line(n as u64 + 1, f))? {
            Some(kline) => file.klines.push(kline),
            None => file.others += 1,
        }
    }
    Ok(file)
}

/// One message; `None` if it is no kline, or one of an interval that FinLake does not know.
fn message(line: &[u8], source: &str) -> Result<Option<OwnedKline>, LineFault> {
    let (received, json) = match line.first() {
        Some(b'{') => (None, line),
        _ => split_receive_time(line)?,
    };
    let value: Value = serde_json::from_slice(json).map_err(|e| LineFault::Json(e.to_string()))?;
    let event = value.get("data").unwrap_or(&value);
    if event.get("e").and_then(Value::as_str) != Some("kline") {
        return Ok(None);
    }
    let k = event.get("k").ok_or(LineFault::Field("k"))?;
    let text = |name: &'static str| {
        k.get(name)
            .and_then(Value::as_str)
            .ok_or(LineFault::Field(name))
    };
    let dec = |name: &'static str| decimal(name, text(name)?);
    let int = |v: &Value, name: &'static str| {
        v.get(name)
            .and_then(Value::as_i64)
            .ok_or(LineFault::Field(name))
    };
    let name = text("i")?;
    if Interval::parse(name).is_err() {
        return Ok(None);
    }
    let start = micros("t", int(k, "t")?)?;
    let (interval, end) = interval(name, start)?;
    Ok(Some(OwnedKline {
        source: source.to_owned(),
        symbol: text("s")?.to_owned(),
        interval,
        start,
        end,
        values: [dec("o")?, dec("h")?, dec("l")?, dec("c")?, dec("v")?],
        trade_count: int(k, "n")?,
        quote_volume: Some(dec16("q", text("q")?)?),
        taker_buy: Some((dec("V")?, dec16("Q", text("Q")?)?)),
        closed: k
            .get("x")
            .and_then(Value::as_bool)
            .ok_or(LineFault::Field("x"))?,
        event_time: Some(micros("E", int(event, "E")?)?),
        ingest_time: received,
    }))
}

fn dec16(field: &'static str, text: &str) -> Result<Dec16, LineFault> {
    Dec16::parse(text).map_err(|e| LineFault::Decimal {
        field,
        why: e.to_string(),
    })
}

/// `BTCUSDT-5m-2024-08.csv.gz`: symbol and interval.
fn named(file_name: &str) -> (Option<&str>, Option<&str>) {
    let mut parts = file_name.split('-');
    let (Some(symbol), Some(interval)) = (parts.next(), parts.next()) else {
        return (None, None);
    };
    if Interval::parse(interval).is_err() {
        return (None, None);
    }
    // Somebody's prefix is lower case, and parted by an underscore.
    (symbol.rsplit('_').next(), Some(interval))
}

/// The archive's layout, with or without header: open_time, open, high, low, close, volume,
/// close_time, quote_volume, count, taker_buy_volume, taker_buy_quote_volume, ignore.
fn csv(text: &[u8], name: &str, options: &KlineOptions) -> Result<KlineFile, Bad> {
    let (symbol, every) = named(name);
    let need = |given: &Option<String>, said: Option<&str>, what: &str| {
        given.as_deref().or(said).map(str::to_owned).ok_or_else(|| {
            Bad::Layout(format!(
                "the file does not say its {what}; give --{what}, or name it \
                 SYMBOL-INTERVAL-DATE.csv"
            ))
        })
    };
    let symbol = need(&options.symbol, symbol, "symbol")?;
    let every = need(&options.interval, every, "interval")?;
    let source = options.source.as_deref().unwrap_or("binance");
    let mut file = KlineFile::default();
    for (n, line) in text.split(|&b| b == b'\n').enumerate() {
        let line = String::from_utf8_lossy(line);
        let cells: Vec<&str> = line.trim().split(',').map(str::trim).collect();
        if cells == [""] || (n == 0 && cells[0].parse::<i64>().is_err()) {
            continue;
        }
        let row = || {
            if cells.len() < 11 {
                return Err(LineFault::Columns {
                    found: cells.len(),
                    expected: 12,
                });
            }
            twelve(&|at| Some(cells[at].to_owned()), source, &symbol, &every)
        };
        file.klines
            .push(row().map_err(|f| Bad::Line(n as u64 + 1, f))?);
    }
    Ok(file)
}

/// The exchange's twelve columns, of an archive or of a REST answer.
fn twelve(
    cell: &dyn Fn(usize) -> Option<String>,
    source: &str,
    symbol: &str,
    every: &str,
) -> Result<OwnedKline, LineFault> {
    let text = |at: usize, field: &'static str| cell(at).ok_or(LineFault::Field(field));
    let int = |at: usize, field: &'static str| {
        text(at, field)?
            .parse::<i64>()
            .map_err(|_| LineFault::Field(field))
    };
    let dec = |at: usize, field: &'static str| decimal(field, &text(at, field)?);
    let start = micros("open_time", int(0, "open_time")?)?;
    let (interval, end) = interval(every, start)?;
    Ok(OwnedKline {
        source: source.to_owned(),
        symbol: symbol.to_owned(),
        interval,
        start,
        end,
        values: [
            dec(1, "open")?,
            dec(2, "high")?,
            dec(3, "low")?,
            dec(4, "close")?,
            dec(5, "volume")?,
        ],
        trade_count: int(8, "count")?,
        quote_volume: Some(dec16("quote_volume", &text(7, "quote_volume")?)?),
        taker_buy: Some((
            dec(9, "taker_buy_volume")?,
            dec16(
                "taker_buy_quote_volume",
                &text(10, "taker_buy_quote_volume")?,
            )?,
        )),
        // Archives hold what is over.
        closed: true,
        event_time: None,
        ingest_time: None,
    })
}

/// REST answers: an array of the twelve columns, bare or recorded as `{"queryString", "data"}`,
/// and Kraken's `{"result": {PAIR: [[time, o, h, l, c, vwap, volume, count], …], "last"}}`.
fn rest(document: Option<Value>, options: &KlineOptions) -> Result<KlineFile, Bad> {
    let document = document.ok_or_else(|| Bad::Layout("not JSON".to_owned()))?;
    if let Some(result) = document.get("result").and_then(Value::as_object) {
        return kraken(result, options);
    }
    let rows = document
        .as_array()
        .or_else(|| document.get("data")?.as_array());
    let rows = rows.ok_or_else(|| Bad::Layout("no array of klines".to_owned()))?;
    let query = document.get("queryString").and_then(Value::as_str);
    let asked = |name: &str| {
        query?
            .split('&')
            .find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == name))
            .map(|(_, v)| v.to_owned())
    };
    let need = |given: &Option<String>, what: &str| {
        given
            .clone()
            .or_else(|| asked(what))
            .ok_or_else(|| Bad::Layout(format!("the file does not say its {what}; give --{what}")))
    };
    let symbol = need(&options.symbol, "symbol")?;
    let every = need(&options.interval, "interval")?;
    let source = options.source.as_deref().unwrap_or("binance");
    let mut file = KlineFile::default();
    for (n, row) in rows.iter().enumerate() {
        let cell = |at: usize| shown(row.get(at)?);
        let kline = twelve(&cell, source, &symbol, &every);
        file.klines
            .push(kline.map_err(|f| Bad::Line(n as u64 + 1, f))?);
    }
    // The newest of an answer may have been under way when it was given.
    if let Some(last) = file.klines.last_mut() {
        last.closed = false;
    }
    Ok(file)
}

fn shown(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

fn kraken(
    result: &serde_json::Map<String, Value>,
    options: &KlineOptions,
) -> Result<KlineFile, Bad> {
    // Beyond it the answer is not final.
    let last = result
        .get("last")
        .and_then(Value::as_i64)
        .unwrap_or(i64::MIN);
    let every = options.interval.as_deref().ok_or_else(|| {
        Bad::Layout("Kraken's answer does not say its interval; give --interval".to_owned())
    })?;
    let mut file = KlineFile::default();
    for (pair, rows) in result {
        for (n, row) in rows.as_array().into_iter().flatten().enumerate() {
            let one = || -> Result<OwnedKline, LineFault> {
                let text = |at: usize, field: &'static str| {
                    row.get(at).and_then(shown).ok_or(LineFault::Field(field))
                };
                let int = |at: usize, field: &'static str| {
                    row.get(at)
                        .and_then(Value::as_i64)
                        .ok_or(LineFault::Field(field))
                };
                let dec = |at: usize, field: &'static str| decimal(field, &text(at, field)?);
                let seconds = int(0, "time")?;
                let start = micros("time", seconds.saturating_mul(1_000))?;
                let (interval, end) = interval(every, start)?;
                Ok(OwnedKline {
                    source: options
                        .source
                        .clone()
                        .unwrap_or_else(|| "kraken".to_owned()),
                    symbol: options.symbol.clone().unwrap_or_else(|| pair.clone()),
                    interval,
                    start,
                    end,
                    values: [
                        dec(1, "open")?,
                        dec(2, "high")?,
                        dec(3, "low")?,
                        dec(4, "close")?,
                        dec(6, "volume")?,
                    ],
                    trade_count: int(7, "count")?,
                    quote_volume: None,
                    taker_buy: None,
                    closed: seconds <= last,
                    event_time: None,
                    ingest_time: None,
                })
            };
            file.klines
                .push(one().map_err(|f| Bad::Line(n as u64 + 1, f))?);
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str = r#"{"e":"kline","E":1633998523963,"s":"NKNUSDT","k":{"t":1633998480000,"T":1633998539999,"s":"NKNUSDT","i":"1m","f":1,"L":30,"o":"0.35270000","c":"0.35280000","h":"0.35290000","l":"0.35220000","v":"25877.00000000","n":30,"x":true,"q":"9116.04600000","V":"58.00000000","Q":"20.46240000","B":"0"}}"#;
    const ROW: &str = "1722470400000,64628.01,64705.98,64601.00,64674.01,134.16525,1722470699999,8674537.0664191,11714,57.8137,3737985.72872,0";

    fn options(interval: Option<&str>, symbol: Option<&str>) -> KlineOptions {
        KlineOptions {
            source: None,
            symbol: symbol.map(str::to_owned),
            interval: interval.map(str::to_owned),
        }
    }

    fn fault(text: &str, name: &str, o: &KlineOptions) -> String {
        match parse(text.as_bytes(), name, o).unwrap_err() {
            Bad::Layout(why) => why,
            Bad::Line(n, fault) => format!("{n}: {fault}"),
        }
    }

    #[test]
    fn messages_are_read_with_what_surrounds_them() {
        let text = format!(
            "wss://host/stream <-> 1633998511.159679\n1633998523.9572978: {{\"stream\":\"nknusdt@kline_1m\",\"data\":{EVENT}}}\n{{\"e\":\"trade\"}}\n{}\n",
            EVENT
                .replace("\"x\":true", "\"x\":false")
                .replace("1m", "1M")
        );
        let file = parse(text.as_bytes(), "x", &KlineOptions::default()).unwrap();
        assert_eq!(
            (file.klines.len(), file.others),
            (1, 3),
            "a month is no interval here"
        );
        let k = file.klines[0].record();
        assert_eq!(
            (k.source, k.symbol, k.bar_interval),
            ("binance", "NKNUSDT", "1m")
        );
        assert_eq!(
            (k.bar_start, k.bar_end),
            (1_633_998_480_000_000, 1_633_998_540_000_000)
        );
        assert_eq!(
            (k.high.to_string(), k.close.to_string()),
            ("0.3529".into(), "0.3528".into())
        );
        assert_eq!((k.trade_count, k.closed), (30, true));
        assert_eq!(k.taker_buy_quote.unwrap().to_string(), "20.4624");
        assert_eq!(k.ingest_time, Some(1_633_998_523_957_297));
        let broken = EVENT.replace("\"n\":30,", "");
        assert!(fault(&broken, "x", &KlineOptions::default()).contains("1: field n"));
    }

    #[test]
    fn archives_and_answers_are_the_same_klines() {
        let name = "binance_spot_BTCUSDT-5m-2024-08.csv.gz";
        let none = KlineOptions::default();
        let csv = parse(ROW.as_bytes(), name, &none).unwrap();
        let k = csv.klines[0].record();
        assert_eq!(
            (k.symbol, k.bar_interval, k.trade_count),
            ("BTCUSDT", "5m", 11_714)
        );
        assert_eq!((k.volume.to_string(), k.closed), ("134.16525".into(), true));
        let headed = format!("open_time,open,high,low,close,volume,x,x,x,x,x,x\n{ROW}\n");
        assert_eq!(parse(headed.as_bytes(), name, &none).unwrap(), csv);
        let cells: Vec<String> = ROW.split(',').map(|c| format!("\"{c}\"")).collect();
        let json = format!("[[{0}],[{0}]]", cells.join(","));
        let given = options(Some("5m"), Some("BTCUSDT"));
        let rest = parse(json.as_bytes(), "x", &given).unwrap();
        assert_eq!(rest.klines[0], csv.klines[0]);
        assert!(!rest.klines[1].closed, "the newest may be under way");
        let recorded = format!(r#"{{"queryString":"interval=5m&symbol=BTCUSDT","data":{json}}}"#);
        assert_eq!(parse(recorded.as_bytes(), "x", &none).unwrap(), rest);
        assert!(fault(ROW, "x.csv", &none).contains("--symbol"));
        assert!(fault("1,2,3", name, &none).contains("3 columns"));
        assert!(fault(&json, "x", &none).contains("--symbol"));
        assert!(fault("{\"e\":\"trade\"}", "x", &none).contains("no array of klines"));
        assert!(fault("", "x", &none).contains("no klines"));
    }

    #[test]
    fn krakens_answer_is_final_up_to_its_last() {
        let text = r#"{"error":[],"result":{"XBTUSDT":[[1762777020,"106038.2","106039.2","106037.2","106038.3","106038.2","0.5",7],[1762777080,"1","1","1","1","0","0",0]],"last":1762777020}}"#;
        let file = parse(text.as_bytes(), "x", &options(Some("1m"), None)).unwrap();
        let k = file.klines[0].record();
        assert_eq!(
            (k.source, k.symbol, k.trade_count),
            ("kraken", "XBTUSDT", 7)
        );
        assert_eq!(
            (k.volume.to_string(), k.close.to_string()),
            ("0.5".into(), "106038.3".into())
        );
        assert_eq!((k.closed, file.klines[1].closed), (true, false));
        assert!(fault(text, "x", &KlineOptions::default()).contains("--interval"));
    }
}
