//! A reconciliation: pins the tables, reads them slice by slice, hands the rows to the
//! comparisons, and says what could not be checked.
//!
//! Reads only. Every layer is compared at the cut that the pinned snapshots hold, so it runs
//! while the pipeline runs: the newer table of the two is read only as far as the older one's cut,
//! and a Bronze table that stays behind Silver is "could not check", not a break. Data flows:
//! [`Pins`] → `columns` → comparisons → [`Report`].

mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arrow::array::RecordBatch;
use finlake_lakehouse::{Filter, LakeError, Lakehouse, Pinned, Scan, Table};
use finlake_market::GoldConfig;
use finlake_schemas::Kline;

use crate::books::Books;
use crate::boxed;
use crate::findings::{Findings, Layer};
use crate::rules::{Measured, Rule, Tally};
use crate::scope::Looked;
use crate::topic::Ticked;
use crate::trades::Rules;

/// What to check.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bronze, Silver, Gold.
    pub layers: BTreeSet<Layer>,
    /// Trade dates (days since 1970), half-open; `None`: everything.
    pub dates: Option<(i32, i32)>,
    pub symbol: Option<String>,
    /// As known at this system time (µs); `None`: at the cut the tables hold.
    pub as_of: Option<i64>,
    /// How long a correction may wait for its turn, µs.
    pub patience: i64,
    pub validators: Vec<Rule>,
    pub market: Rules,
    pub gold: GoldConfig,
    /// Findings listed at most.
    pub limit: usize,
    /// How long to wait for Bronze to reach Silver's cut.
    pub wait: Duration,
    /// Registered schemas by layer, as text.
    pub registered: BTreeMap<Layer, String>,
}

/// Follows a run.
pub trait Watch {
    /// `rows` more were compared of about `of` in all, in `what`.
    fn rows(&self, what: &str, rows: u64, of: u64);
}

/// Nobody looks.
pub struct Unwatched;
impl Watch for Unwatched {
    fn rows(&self, _: &str, _: u64, _: u64) {}
}

/// Where records of the topics come from, as far as they are retained.
pub trait Records {
    /// Hands the committed records of `market.ticks` in `range` (first and next offset, clamped to
    /// what is retained) to `take`, in offset order; gives the first offset that the topic still
    /// has.
    ///
    /// # Errors
    /// Why the topic could not be read.
    fn ticks(
        &self,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&Ticked<'_>),
    ) -> Result<i64, String>;

    /// Hands the committed records of a version table's topic in `range` (first and next offset,
    /// clamped to what is retained) to `take`, in offset order, as the rows that the sink makes
    /// of them: batches of the table's columns, retractions left out. `take` ends the reading
    /// with `false`.
    ///
    /// # Errors
    /// Why the topic could not be read, or what `take` gave.
    fn written(
        &self,
        table: Table,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&RecordBatch) -> Result<bool, String>,
    ) -> Result<Stretch, String>;

    /// Output records compared at a time: 40 bytes each, on either side.
    fn at_a_time(&self) -> usize {
        2_000_000
    }

    /// Hands every kline of `market.klines` to `take`, each partition in its order; `take` ends
    /// the reading with `false`. Without such a topic there are none.
    ///
    /// # Errors
    /// Why the topic could not be read.
    fn klines(&self, take: &mut dyn FnMut(&Kline<'_>) -> bool) -> Result<(), String>;
}

/// How far a topic was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First offset that the topic still has.
    pub first: i64,
    /// Offset after the last record handed on.
    pub next: i64,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Findings,
    pub measured: Vec<Measured>,
    /// Rules of which nothing was measured, and why.
    pub unmeasured: Vec<(Rule, String)>,
    /// Why something could not be checked; with any, "clean" cannot be said.
    pub unchecked: Vec<String>,
    /// What a reader should know, and what is no failure.
    pub notes: Vec<String>,
    /// Beginnings of causes that were not looked at.
    pub unchecked_causes: BTreeSet<String>,
    /// What a break that is not found again is judged by.
    pub looked: Looked,
    /// Rows compared, by layer.
    pub rows: BTreeMap<Layer, u64>,
    /// System time (µs) of the cut, by partition.
    pub cut: BTreeMap<i32, i64>,
    /// Time spent comparing, without reading and decoding files.
    pub compared: Duration,
}

impl Report {
    /// 0 clean, 1 breaks, 2 could not check.
    pub fn exit_code(&self) -> u8 {
        if !self.findings.is_empty() {
            1
        } else if !self.unchecked.is_empty() {
            2
        } else {
            0
        }
    }
}

/// The tables of a run, each at one snapshot.
#[derive(Debug)]
pub struct Pins {
    pub bronze: Option<Pinned>,
    pub silver: Option<Pinned>,
    pub gold: Option<Pinned>,
}

impl Pins {
    /// Pins what the layers need, under this tag: the layer and the one it is computed from, the
    /// computed one first, so that its input is at least as new as a rule; waits a while for it
    /// to be.
    ///
    /// # Errors
    /// What the lakehouse gives; a table that does not exist.
    #[boxed(?Send)]
    pub async fn take(
        lake: &Lakehouse,
        layers: &BTreeSet<Layer>,
        tag: &str,
        wait: Duration,
    ) -> Result<Pins, LakeError> {
        let has = |layer| layers.contains(&layer);
        let mut pins = Pins {
            bronze: None,
            silver: None,
            gold: None,
        };
        if has(Layer::Gold) {
            pins.gold = Some(lake.pin(Table::Metrics, tag).await?);
        }
        if has(Layer::Silver) || has(Layer::Gold) {
            pins.silver = Some(lake.pin(Table::Ohlcv, tag).await?);
        }
        if has(Layer::Bronze) || has(Layer::Silver) {
            pins.bronze = Some(lake.pin(Table::Ticks, tag).await?);
        }
        let step = Duration::from_millis(250);
        let mut waited = Duration::ZERO;
        while let (Some(bronze), Some(silver)) = (&pins.bronze, &pins.silver)
            && has(Layer::Silver)
            && behind(bronze, silver).is_some()
            && waited < wait
        {
            tokio::time::sleep(step).await;
            waited += step;
            lake.unpin(Table::Ticks, tag).await?;
            pins.bronze = Some(lake.pin(Table::Ticks, tag).await?);
        }
        Ok(pins)
    }

    /// Whether any of the tables has a row of this symbol.
    async fn know(&self, symbol: &str) -> Result<bool, LakeError> {
        let scan = Scan::columns(&["symbol"]).filter(Filter::all().symbol(symbol));
        for pinned in [&self.bronze, &self.silver, &self.gold]
            .into_iter()
            .flatten()
        {
            if pinned.collect(&scan).await?.num_rows() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the snapshots go.
    ///
    /// # Errors
    /// What the lakehouse gives; the tags expire with `unpin_stale`.
    #[boxed(?Send)]
    pub async fn release(self) -> Result<(), LakeError> {
        for pinned in [self.bronze, self.silver, self.gold].into_iter().flatten() {
            pinned.unpin().await?;
        }
        Ok(())
    }
}

/// A partition in which `below` has not reached the commit that `above` has.
pub fn behind(below: &Pinned, above: &Pinned) -> Option<(i32, i64, i64)> {
    let of = |(p, a): (&i32, &finlake_lakehouse::Position)| {
        let b = below.position(*p);
        (b.commit < a.commit).then_some((*p, b.commit, a.commit))
    };
    above.watermarks().positions.iter().find_map(of)
}

/// Runs all checks. `records`: the topic, where it can be reached.
///
/// # Errors
/// Catalog or storage fails; a single table that cannot be read is reported as unchecked instead.
#[boxed(?Send)]
pub async fn run(
    lake: &Lakehouse,
    pins: &Pins,
    options: &Options,
    books: Option<&Books>,
    records: Option<&dyn Records>,
    watch: &dyn Watch,
) -> Result<Report, LakeError> {
    let mut run = layers::Run {
        lake,
        options,
        books: books.filter(|b| !b.is_empty()),
        records,
        watch,
        report: Report {
            findings: Findings::limited(options.limit),
            ..Report::default()
        },
        tally: Tally::default(),
        unreadable: BTreeSet::new(),
    };
    if let Some(books) = run.books {
        run.report.findings.absorb(books.findings.clone());
        if !books.are_whole() {
            // Commits before the first that is left were not counted.
            let causes = ["INV-13", "position", "accepted"].map(str::to_owned);
            run.report.unchecked_causes.extend(causes);
        }
    } else {
        run.report
            .unchecked_causes
            .extend(["INV-11", "INV-12", "INV-13", "position", "accepted"].map(str::to_owned));
    }
    let bronze = options.layers.contains(&Layer::Bronze);
    let silver = options.layers.contains(&Layer::Silver);
    if let Some(pinned) = &pins.bronze
        && (bronze || silver)
    {
        let above = pins.silver.as_ref().filter(|_| silver);
        run.trades(pinned, above, bronze).await?;
    }
    if let (Some(silver), Some(gold)) = (&pins.silver, &pins.gold) {
        run.gold(silver, gold).await?;
    }
    if let Some(pinned) = &pins.silver
        && silver
        && !run.unreadable.contains(&Layer::Silver)
    {
        run.accuracy(pinned).await?;
    }
    for (pinned, layer) in [(&pins.silver, Layer::Silver), (&pins.gold, Layer::Gold)] {
        let Some(pinned) = pinned else { continue };
        if options.layers.contains(&layer) && !run.unreadable.contains(&layer) {
            run.outputs(pinned, layer).await?;
        }
    }
    let mut report = run.report;
    if let Some(symbol) = &options.symbol
        && report.rows.values().all(|rows| *rows == 0)
        && !pins.know(symbol).await?
    {
        // A slip of the pen is no clean result.
        report.unchecked.push(format!(
            "no table has a row of the symbol {symbol}, on any day: write it as the tables do"
        ));
    }
    report.measured = run.tally.judge(&options.validators);
    for rule in &options.validators {
        let known = report.measured.iter().any(|m| m.rule == *rule)
            || report.unmeasured.iter().any(|(r, _)| r == rule);
        if !known {
            let why = "nothing of what was checked bears on it".to_owned();
            report.unmeasured.push((rule.clone(), why));
        }
    }
    let date = options.dates.map(|(from, _)| from);
    let symbol = options.symbol.as_deref();
    crate::rules::broken(&report.measured, date, symbol, &mut report.findings);
    report.looked.reached = run.books.map(|books| crate::scope::reached(books, pins));
    Ok(report)
}

/// The part of a filter that the options give.
fn scope(options: &Options) -> Filter {
    match &options.symbol {
        Some(symbol) => Filter::all().symbol(symbol),
        None => Filter::all(),
    }
}
