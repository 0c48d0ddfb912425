//! Results on stdout, as a table for people or as JSON or CSV for programs; progress and remarks
//! on stderr, only where a person looks.
//!
//! Rows flow through a [`Printer`]: CSV and JSON are written as they come, a table when it is
//! whole. Prices are exact decimals and stay so: JSON has them as strings.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use clap::ValueEnum;
pub use finlake_schemas::keys::iso_instant as format_instant;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Table,
    /// One JSON object: rows, and what is to be said about them
    Json,
    /// Comma-separated with a header
    Csv,
}

impl Format {
    /// A table on a terminal, else CSV.
    pub fn of_stdout() -> Format {
        if io::stdout().is_terminal() {
            Format::Table
        } else {
            Format::Csv
        }
    }
}

/// What a column holds: how it is aligned, and how it stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Left-aligned; a JSON string.
    Text,
    /// Right-aligned; a JSON number.
    Number,
    /// Right-aligned; a JSON string, since a JSON number would lose digits.
    Exact,
    /// Left-aligned; true or false.
    Bool,
}

/// A cell: its text, or nothing.
pub type Cell = Option<String>;

/// Writes rows in one of the formats.
pub struct Printer<W: Write> {
    out: W,
    format: Format,
    columns: Vec<(String, Kind)>,
    /// Rows of a table, until it is whole.
    held: Vec<Vec<Cell>>,
    rows: usize,
}

impl<W: Write> Printer<W> {
    /// Begins with these columns.
    pub fn new(out: W, format: Format, columns: &[(&str, Kind)]) -> io::Result<Self> {
        let columns = columns
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind))
            .collect();
        let mut printer = Self {
            out,
            format,
            columns,
            held: Vec::new(),
            rows: 0,
        };
        printer.begin()?;
        Ok(printer)
    }

    /// Begins with the columns of record batches.
    pub fn for_schema(out: W, format: Format, schema: &Schema) -> io::Result<Self> {
        let columns: Vec<(&str, Kind)> = schema
            .fields()
            .iter()
            .map(|f| (f.name().as_str(), kind_of(f.data_type())))
            .collect();
        Self::new(out, format, &columns)
    }

    /// Number of rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn row(&mut self, cells: Vec<Cell>) -> io::Result<()> {
        self.rows += 1;
        match self.format {
            Format::Table => {
                self.held.push(cells);
                Ok(())
            }
            Format::Csv => self.csv_line(cells.iter().map(|c| c.as_deref().unwrap_or(""))),
            Format::Json => {
                let lead = if self.rows == 1 { "\n  " } else { ",\n  " };
                let mut line = String::from(lead);
                line.push('{');
                for (i, ((name, kind), cell)) in self.columns.iter().zip(&cells).enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    let _ = write!(line, "{comma}{}: {}", json(name), json_cell(*kind, cell));
                }
                line.push('}');
                self.out.write_all(line.as_bytes())
            }
        }
    }

    /// All rows of a batch with this printer's columns.
    pub fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let options = FormatOptions::default();
        let formatters = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        for row in 0..batch.num_rows() {
            let cells = formatters
                .iter()
                .zip(batch.columns())
                .map(|(f, column)| {
                    if column.is_null(row) {
                        return Ok(None);
                    }
                    f.value(row)
                        .try_to_string()
                        .map(Some)
                        .map_err(io::Error::other)
                })
                .collect::<io::Result<Vec<_>>>()?;
            self.row(cells)?;
        }
        Ok(())
    }

    /// Ends. `about` are facts on the whole result; they are part of JSON only, elsewhere they
    /// are remarks for stderr and the caller's business.
    pub fn finish(mut self, about: &[(&str, serde_json::Value)]) -> io::Result<()> {
        match self.format {
            Format::Table => self.table()?,
            Format::Csv => {}
            Format::Json => {
                self.out
                    .write_all(if self.rows == 0 { b"]" } else { b"\n]" })?;
                for (name, value) in about {
                    write!(self.out, ",\n{}: {value}", json(name))?;
                }
                self.out.write_all(b"}\n")?;
            }
        }
        self.out.flush()
    }

    fn begin(&mut self) -> io::Result<()> {
        match self.format {
            Format::Table => Ok(()),
            Format::Csv => {
                let names: Vec<String> = self.columns.iter().map(|(n, _)| n.clone()).collect();
                self.csv_line(names.iter().map(String::as_str))
            }
            Format::Json => self.out.write_all(b"{\"rows\": ["),
        }
    }

    fn csv_line<'a>(&mut self, cells: impl Iterator<Item = &'a str>) -> io::Result<()> {
        let mut line = String::new();
        for (i, cell) in cells.enumerate() {
            if i > 0 {
                line.push(',');
            }
            if cell.contains([',', '"', '\n', '\r']) {
                let _ = write!(line, "\"{}\"", cell.replace('"', "\"\""));
            } else {
                line.push_str(cell);
            }
        }
        line.push('\n');
        self.out.write_all(line.as_bytes())
    }

    fn table(&mut self) -> io::Result<()> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|(n, _)| n.chars().count())
            .collect();
        for row in &self.held {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.as_ref().map_or(0, |c| c.chars().count()));
            }
        }
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((text, width), (_, kind)) in cells.zip(&widths).zip(&self.columns) {
                let pad = " ".repeat(width.saturating_sub(text.chars().count()));
                let _ = match kind {
                    Kind::Number | Kind::Exact => write!(line, "{pad}{text}  "),
                    Kind::Text | Kind::Bool => write!(line, "{text}{pad}  "),
                };
            }
            format!("{}\n", line.trim_end())
        };
        let mut out = line(&mut self.columns.iter().map(|(n, _)| n.as_str()));
        let rules: Vec<String> = widths.iter().map(|w| "─".repeat(*w)).collect();
        out.push_str(&line(&mut rules.iter().map(String::as_str)));
        for row in &self.held {
            // What a terminal would obey must not come out of data.
            let clean: Vec<String> = row
                .iter()
                .map(|c| {
                    c.as_deref()
                        .unwrap_or("")
                        .replace(char::is_control, "\u{fffd}")
                })
                .collect();
            out.push_str(&line(&mut clean.iter().map(String::as_str)));
        }
        self.out.write_all(out.as_bytes())
    }
}

fn kind_of(data_type: &DataType) -> Kind {
    match data_type {
        DataType::Boolean => Kind::Bool,
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => Kind::Exact,
        t if t.is_numeric() => Kind::Number,
        _ => Kind::Text,
    }
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_cell(kind: Kind, cell: &Cell) -> String {
    match (kind, cell) {
        (_, None) => "null".into(),
        (Kind::Bool, Some(text)) => text.clone(),
        // NaN and infinities are no JSON numbers.
        (Kind::Number, Some(text))
            if text.parse::<i128>().is_ok() || text.parse().is_ok_and(f64::is_finite) =>
        {
            text.clone()
        }
        (_, Some(text)) => json(text),
    }
}

const DAY: i64 = 86_400_000_000;

/// Reads an instant as people write it: RFC 3339, or a date and time without a zone (UTC), or a
/// date, or `now`. µs since 1970 UTC.
pub fn parse_instant(text: &str) -> Result<i64, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(jiff::Timestamp::now().as_microsecond());
    }
    if let Ok(t) = text.parse::<jiff::Timestamp>() {
        return Ok(t.as_microsecond());
    }
    // A Timestamp ends some hours before the tables' open end does; civil time does not.
    let civil = text.strip_suffix('Z').unwrap_or(text);
    let dated = civil
        .parse::<jiff::civil::DateTime>()
        .or_else(|_| civil.parse::<jiff::civil::Date>().map(|d| d.at(0, 0, 0, 0)));
    let wrong = || {
        format!(
            "\"{text}\" is not an instant; write it as 2026-11-22T12:00:00Z, 2026-11-22, or now"
        )
    };
    let t = dated.map_err(|_| wrong())?;
    let days = t
        .date()
        .since(jiff::civil::date(1970, 1, 1))
        .map_err(|_| wrong())?
        .get_days();
    let time = jiff::civil::Time::midnight()
        .until(t.time())
        .map_err(|_| wrong())?;
    let within = time.total(jiff::Unit::Microsecond).map_err(|_| wrong())?;
    // Below 86,400,000,000: exact in a double.
    Ok(i64::from(days) * DAY + within as i64)
}

/// `1.2 MB`, for people.
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1000.0 || unit == "TB" {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{bytes} B")
}

/// A progress bar on stderr; nothing where nobody looks (`quiet`, or no terminal).
pub struct Progress(ProgressBar);

impl Progress {
    /// Towards `total` of `unit`; unknown: a counter only.
    pub fn new(quiet: bool, what: &str, unit: &str, total: Option<u64>) -> Self {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::no_length(),
        };
        let hidden = quiet || !io::stderr().is_terminal();
        bar.set_draw_target(if hidden {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(8)
        });
        let template = if total.is_some() {
            format!(
                "{{msg}} {{bar:30}} {{human_pos}}/{{human_len}} {unit}  {{per_sec:.dim}}  {{eta}} left"
            )
        } else {
            format!("{{spinner}} {{msg}} {{human_pos}} {unit}  {{per_sec:.dim}}")
        };
        // The templates above are constant but for the unit; a wrong one shows the plain bar.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.set_message(what.to_owned());
        if total.is_none() && !hidden {
            bar.enable_steady_tick(Duration::from_millis(125));
        }
        Self(bar)
    }

    pub fn set(&self, position: u64) {
        self.0.set_position(position);
    }

    pub fn add(&self, n: u64) {
        self.0.inc(n);
    }

    pub fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        self.0.println(text);
    }

    /// Takes the bar away.
    pub fn done(self) {
        self.0.finish_and_clear();
    }
}

/// A remark on stderr, unless `quiet`.
pub fn remark(quiet: bool, text: &str) {
    if !quiet {
        eprintln!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[(&str, Kind)] = &[
        ("name", Kind::Text),
        ("n", Kind::Number),
        ("p", Kind::Exact),
    ];

    fn print(format: Format, rows: &[[Option<&str>; 3]]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, format, COLUMNS).unwrap();
        for row in rows {
            printer
                .row(row.iter().map(|c| c.map(str::to_owned)).collect())
                .unwrap();
        }
        printer.finish(&[("final", true.into())]).unwrap();
        String::from_utf8(out).unwrap()
    }

    const ROWS: &[[Option<&str>; 3]] = &[
        [Some("a,\"b\""), Some("1"), Some("0.10000000")],
        [Some("\u{1b}[31m"), None, Some("2")],
    ];

    #[test]
    fn tables_align_and_never_pass_control_characters_on() {
        let text = print(Format::Table, ROWS);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name   n           p");
        assert_eq!(lines[2], "a,\"b\"  1  0.10000000");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let text = print(Format::Csv, ROWS);
        assert!(
            text.starts_with("name,n,p\n\"a,\"\"b\"\"\",1,0.10000000\n"),
            "{text}"
        );
    }

    #[test]
    fn json_parses_and_keeps_decimals_exact() {
        for rows in [ROWS, &[]] {
            let text = print(Format::Json, rows);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["final"], true);
            assert_eq!(value["rows"].as_array().unwrap().len(), rows.len());
        }
        let value: serde_json::Value = serde_json::from_str(&print(Format::Json, ROWS)).unwrap();
        assert_eq!(value["rows"][0]["p"], "0.10000000");
        assert_eq!(value["rows"][0]["n"], 1);
        assert!(value["rows"][1]["n"].is_null());
    }

    #[test]
    fn instants_round_trip_up_to_the_open_end() {
        // The largest instant with four digits of year.
        let last = 253_402_300_799_999_999;
        for us in [0, -1, 1_700_000_000_123_456, 253_402_214_400_000_000, last] {
            assert_eq!(
                parse_instant(&format_instant(us)),
                Ok(us),
                "{}",
                format_instant(us)
            );
        }
        assert_eq!(parse_instant("1970-01-02"), Ok(DAY));
        assert_eq!(
            parse_instant("1970-01-01T02:00:00+01:00"),
            Ok(3_600_000_000)
        );
        assert_eq!(parse_instant("1970-01-01 00:00:01"), Ok(1_000_000));
        assert!(
            parse_instant("yesterday")
                .unwrap_err()
                .contains("2026-11-22T12:00:00Z")
        );
    }
}
