//! Files as streams of trades: decompression, telling the format, line numbers, and the merge of
//! several files by trade time. Reads; decides nothing about a trade.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use finlake_schemas::Tick;
use flate2::bufread::MultiGzDecoder;

use super::csv::{FirstRow, Layout, symbol_of};
use super::document::{self, Entry};
use super::message::{Parsed, parse_line};
use super::{Format, IngestError, IngestOptions, LineFault, LineIssue, OwnedTrade, Sources};

/// The longest line that is read; messages are some kilobytes.
const MAX_LINE: usize = 16 << 20;
/// The largest document that is read as a whole.
const MAX_DOCUMENT: u64 = 256 << 20;
/// What is looked at to tell the format.
const HEAD: usize = 64 << 10;

/// Something on the way: a trade, or why there is none.
#[derive(Debug)]
pub enum InputError {
    /// One broken line; the next ones may be good.
    Line(LineIssue),
    /// The end of this import.
    Fatal(IngestError),
}

/// Opens files and merges their trades by trade time; each file is taken to be nearly in order,
/// as recordings are. `-` is standard input.
///
/// # Errors
/// A file cannot be read, or its format cannot be told.
pub fn open_inputs(paths: &[PathBuf], options: &IngestOptions) -> Result<Inputs, IngestError> {
    let files = paths
        .iter()
        .map(|path| InputFile::open(path, options))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Inputs {
        pending: (0..files.len()).rev().collect(),
        heads: BinaryHeap::new(),
        current: files.iter().map(|_| None).collect(),
        files,
    })
}

/// The merged trades of several files. Holds one trade of each.
pub struct Inputs {
    files: Vec<InputFile>,
    current: Vec<Option<OwnedTrade>>,
    /// Files with a trade in `current`, the earliest on top; of one instant, the file given first.
    heads: BinaryHeap<Reverse<(i64, usize)>>,
    /// Files whose next trade has to be read before the earliest is known.
    pending: Vec<usize>,
}

impl Iterator for Inputs {
    type Item = Result<OwnedTrade, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(at) = self.pending.pop() {
            match self.files[at].next() {
                Some(Ok(trade)) => {
                    self.heads.push(Reverse((trade.trade_time, at)));
                    self.current[at] = Some(trade);
                }
                Some(Err(e)) => {
                    // A broken line is told at once; the file is asked again afterwards.
                    if matches!(e, InputError::Line(_)) {
                        self.pending.push(at);
                    }
                    return Some(Err(e));
                }
                None => {}
            }
        }
        let Reverse((_, at)) = self.heads.pop()?;
        self.pending.push(at);
        self.current[at].take().map(Ok)
    }
}

impl Inputs {
    /// Bytes read so far, as they lie on disk.
    pub fn bytes_read(&self) -> u64 {
        self.files
            .iter()
            .map(|file| file.bytes.load(Ordering::Relaxed))
            .sum()
    }

    /// Bytes of all files; `None` with standard input among them.
    pub fn bytes_total(&self) -> Option<u64> {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Lines read so far.
    pub fn lines(&self) -> u64 {
        self.files.iter().map(|file| file.line).sum()
    }

    /// Messages of other kinds so far, by kind in order of name.
    pub fn skipped(&self) -> Vec<(String, u64)> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for (kind, count) in self.files.iter().flat_map(|file| &file.skipped) {
            *all.entry(kind.clone()).or_default() += count;
        }
        all.into_iter().collect()
    }
}

/// What the lines of one file are.
enum Lines {
    Messages,
    Csv(Layout),
    /// Read already.
    Document(VecDeque<Entry>),
}

struct InputFile {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    lines: Lines,
    sources: Sources,
    symbol: String,
    buffer: Vec<u8>,
    /// Number of the line in `buffer`.
    line: u64,
    skipped: BTreeMap<String, u64>,
    names: Vec<Arc<str>>,
    bytes: Arc<AtomicU64>,
    size: Option<u64>,
}

impl InputFile {
    fn open(path: &Path, options: &IngestOptions) -> Result<InputFile, IngestError> {
        let read_error = |error| IngestError::Read {
            file: path.to_owned(),
            error,
        };
        let layout_error = |why: String| IngestError::Layout {
            file: path.to_owned(),
            why,
        };
        let bytes = Arc::new(AtomicU64::new(0));
        let (raw, size): (Box<dyn Read + Send>, _) = if path.as_os_str() == "-" {
            (Box::new(std::io::stdin()), None)
        } else {
            let file = File::open(path).map_err(read_error)?;
            let size = file.metadata().map_err(read_error)?.len();
            (Box::new(file), Some(size))
        };
        let counted = Counted {
            inner: raw,
            bytes: Arc::clone(&bytes),
        };
        let mut plain = BufReader::with_capacity(HEAD, counted);
        // By its first bytes, not by its name: archives get renamed.
        let magic = plain.fill_buf().map_err(read_error)?;
        if magic.starts_with(b"PK\x03\x04") {
            return Err(layout_error("a zip archive; unpack it first".to_owned()));
        }
        let mut reader: Box<dyn BufRead + Send> = match magic {
            [0x1f, 0x8b, ..] => {
                Box::new(BufReader::with_capacity(HEAD, MultiGzDecoder::new(plain)))
            }
            _ => Box::new(plain),
        };
        let head = peek(&mut reader).map_err(read_error)?;
        let format = match options.format {
            Format::Auto => detect(&head).map_err(layout_error)?,
            chosen => chosen,
        };
        let default_source = match format {
            Format::Kraken => "kraken",
            _ => "binance",
        };
        let sources = Sources::named(options.source.as_deref().unwrap_or(default_source));
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        let symbol = options.symbol.as_deref().or(symbol_of(name));
        // What was looked at is read again.
        let mut reader: Box<dyn BufRead + Send> =
            Box::new(std::io::Cursor::new(head.clone()).chain(reader));
        let lines = match format {
            Format::Auto | Format::Messages => Lines::Messages,
            Format::Csv => {
                let first = head.split(|&b| b == b'\n').next().unwrap_or(&[]);
                let first_row = Layout::detect(first).map_err(layout_error)?;
                let (layout, header) = match first_row {
                    FirstRow::Header(layout) => (layout, true),
                    FirstRow::Row(layout) => (layout, false),
                };
                if symbol.is_none() && !layout.has_symbol() {
                    return Err(layout_error(
                        "the file does not say its symbol; give --symbol, or name it \
                         SYMBOL-trades-DATE.csv"
                            .to_owned(),
                    ));
                }
                if header {
                    let mut line = Vec::new();
                    reader.read_until(b'\n', &mut line).map_err(read_error)?;
                }
                return Ok(InputFile {
                    line: u64::from(header),
                    ..InputFile::new(
                        path,
                        reader,
                        Lines::Csv(layout),
                        sources,
                        symbol,
                        bytes,
                        size,
                    )
                });
            }
            Format::Rest | Format::Kraken => {
                let mut text = Vec::new();
                let read = reader
                    .take(MAX_DOCUMENT + 1)
                    .read_to_end(&mut text)
                    .map_err(read_error)?;
                if read as u64 > MAX_DOCUMENT {
                    return Err(layout_error(format!(
                        "a document of more than {} MiB; split it",
                        MAX_DOCUMENT >> 20
                    )));
                }
                reader = Box::new(std::io::empty());
                // A message written over several lines is a document too.
                let entries = match (format, parse_line(&text, &sources)) {
                    (Format::Kraken, _) => document::kraken(&text),
                    (_, Ok(Parsed::Trade(tick))) => Ok(vec![Ok(document_trade(&tick, &sources))]),
                    _ => document::rest(&text, symbol),
                };
                Lines::Document(entries.map_err(layout_error)?.into())
            }
        };
        Ok(InputFile::new(
            path, reader, lines, sources, symbol, bytes, size,
        ))
    }

    fn new(
        path: &Path,
        reader: Box<dyn BufRead + Send>,
        lines: Lines,
        sources: Sources,
        symbol: Option<&str>,
        bytes: Arc<AtomicU64>,
        size: Option<u64>,
    ) -> InputFile {
        InputFile {
            path: path.to_owned(),
            reader,
            lines,
            sources,
            symbol: symbol.unwrap_or_default().to_owned(),
            buffer: Vec::new(),
            line: 0,
            skipped: BTreeMap::new(),
            names: Vec::new(),
            bytes,
            size,
        }
    }

    fn next(&mut self) -> Option<Result<OwnedTrade, InputError>> {
        loop {
            if let Lines::Document(entries) = &mut self.lines {
                let entry = entries.pop_front()?;
                self.line += 1;
                return Some(match entry {
                    Ok(trade) => {
                        let source = Arc::clone(trade.source(&self.sources));
                        let symbol = shared(&mut self.names, &trade.symbol);
                        Ok(owned(&trade.tick, source, symbol))
                    }
                    Err(fault) => Err(self.issue(fault)),
                });
            }
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => return Some(Err(e)),
            }
            let parsed = match &self.lines {
                Lines::Csv(_) if self.buffer.trim_ascii().is_empty() => Ok(Parsed::Blank),
                Lines::Csv(layout) => layout
                    .parse_row(&self.buffer, &self.symbol, &self.sources)
                    .map(Parsed::Trade),
                _ => parse_line(&self.buffer, &self.sources),
            };
            match parsed {
                Ok(Parsed::Trade(tick)) => {
                    let source = match tick.first_trade_id {
                        Some(_) => Arc::clone(&self.sources.aggregate),
                        None => Arc::clone(&self.sources.single),
                    };
                    let symbol = shared(&mut self.names, tick.symbol);
                    return Some(Ok(owned(&tick, source, symbol)));
                }
                Ok(Parsed::Skipped(kind)) => match self.skipped.get_mut(kind) {
                    Some(count) => *count += 1,
                    None => {
                        self.skipped.insert(kind.to_owned(), 1);
                    }
                },
                Ok(Parsed::Blank) => {}
                Err(fault) => return Some(Err(self.issue(fault))),
            }
        }
    }

    /// The next line into `buffer`; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, InputError> {
        self.buffer.clear();
        let fatal = |path: &Path, error| {
            InputError::Fatal(IngestError::Read {
                file: path.to_owned(),
                error,
            })
        };
        let read = self
            .reader
            .by_ref()
            .take(MAX_LINE as u64)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|e| fatal(&self.path, e))?;
        if read == 0 {
            return Ok(false);
        }
        self.line += 1;
        if read == MAX_LINE && !self.buffer.ends_with(b"\n") {
            // The rest of it is read over, in pieces.
            self.buffer.clear();
            loop {
                let available = self.reader.fill_buf().map_err(|e| fatal(&self.path, e))?;
                let end = available.iter().position(|&b| b == b'\n');
                let length = end.map_or(available.len(), |at| at + 1);
                self.reader.consume(length);
                if end.is_some() || length == 0 {
                    break;
                }
            }
            return Err(self.issue(LineFault::TooLong(MAX_LINE)));
        }
        Ok(true)
    }

    fn issue(&self, fault: LineFault) -> InputError {
        InputError::Line(LineIssue {
            file: self.path.clone(),
            line: self.line,
            fault,
        })
    }
}

fn document_trade(tick: &Tick<'_>, sources: &Sources) -> document::DocumentTrade {
    document::DocumentTrade {
        symbol: tick.symbol.to_owned(),
        aggregate: *tick.source == *sources.aggregate && tick.first_trade_id.is_some(),
        tick: Tick {
            source: "",
            symbol: "",
            ..*tick
        },
    }
}

/// One allocation per symbol, not per trade.
fn shared(names: &mut Vec<Arc<str>>, name: &str) -> Arc<str> {
    /// Beyond this the file is no capture of a few symbols, and a scan would cost more than it saves.
    const MOST: usize = 64;
    if let Some(known) = names.iter().find(|known| known.as_ref() == name) {
        return Arc::clone(known);
    }
    let new: Arc<str> = name.into();
    if names.len() < MOST {
        names.push(Arc::clone(&new));
    }
    new
}

fn owned(tick: &Tick<'_>, source: Arc<str>, symbol: Arc<str>) -> OwnedTrade {
    OwnedTrade {
        source,
        symbol,
        trade_id: tick.trade_id,
        price: tick.price,
        quantity: tick.quantity,
        trade_time: tick.trade_time,
        event_time: tick.event_time,
        buyer_maker: tick.buyer_maker,
        ingest_time: tick.ingest_time,
        first_trade_id: tick.first_trade_id,
        last_trade_id: tick.last_trade_id,
    }
}

/// The first bytes, without a byte-order mark.
fn peek(reader: &mut dyn BufRead) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(HEAD as u64).read_to_end(&mut head)?;
    if head.starts_with(b"\xef\xbb\xbf") {
        head.drain(..3);
    }
    Ok(head)
}

/// Tells the format from the first bytes.
fn detect(head: &[u8]) -> Result<Format, String> {
    let text = head.trim_ascii_start();
    let first = text.split(|&b| b == b'\n').next().unwrap_or(&[]);
    let has = |needle: &str| {
        text.windows(needle.len())
            .any(|window| window == needle.as_bytes())
    };
    match text.first() {
        None => Ok(Format::Messages),
        Some(b'[') => Ok(Format::Rest),
        Some(b'{') if has("\"stream\"") || has("\"e\"") => {
            // A whole message on the first line, or one over several lines?
            match serde_json::from_slice::<serde::de::IgnoredAny>(first) {
                Err(e) if e.is_eof() && first.len() < text.len() => Ok(Format::Rest),
                _ => Ok(Format::Messages),
            }
        }
        Some(b'{') if has("\"result\"") => Ok(Format::Kraken),
        Some(b'{') if has("\"data\"") => Ok(Format::Rest),
        Some(b'{') => Ok(Format::Messages),
        Some(_) if first.starts_with(b"ws") || first.contains(&b'{') => Ok(Format::Messages),
        Some(_) if first.contains(&b',') => Ok(Format::Csv),
        Some(_) => Err("the format cannot be told from the first line; give --format".to_owned()),
    }
}

struct Counted {
    inner: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
