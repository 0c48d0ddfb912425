//! Rows of Bronze into slices, and into content hashes where the topic is compared.

use std::collections::{BTreeMap, BTreeSet};

use finlake_market::validate::names_hold;
use rustc_hash::FxHashMap;

use super::stamps::Stamps;
use super::*;
use crate::books::Books;
use crate::topic::{self, Sums};
use crate::trades::{Record, Slice};
use finlake_lakehouse::OPEN_END;
use finlake_schemas::Tick;

/// What is read of Bronze.
pub const TICKS: &[&str] = &[
    "kafka_partition",
    "kafka_offset",
    "kafka_timestamp",
    "commit",
    "record_key",
    "raw",
    "source",
    "symbol",
    "trade_id",
    "price",
    "quantity",
    "trade_time",
    "event_time",
    "buyer_maker",
    "ingest_time",
    "first_trade_id",
    "last_trade_id",
    "sys_from",
];

/// What tells which ids there are.
pub const IDS: &[&str] = &[
    "kafka_partition",
    "source",
    "symbol",
    "trade_id",
    "sys_from",
];

/// Hands on partition, instrument, id and system time of the rows of a batch that are not beyond the cut.
///
/// # Errors
/// [`BadColumn`].
pub fn ids(
    batch: &RecordBatch,
    names: &mut Names,
    until: &[i64],
    mut take: impl FnMut(usize, u32, i64, i64),
) -> Result<()> {
    let partitions = ints(batch, "kafka_partition")?;
    let mut symbols = Symbols::of(batch)?;
    let (ids, system) = (longs(batch, "trade_id")?, instants(batch, "sys_from")?);
    for at in 0..batch.num_rows() {
        let p = usize::try_from(partitions.or(at, -1)).unwrap_or(usize::MAX);
        let sys_from = system.or(at, i64::MIN);
        let (Some(id), Some(limit)) = (ids.get(at), until.get(p)) else {
            continue;
        };
        if sys_from > *limit || id < 0 {
            continue;
        }
        let symbol = symbols.number(at, names);
        take(p, symbol, id, sys_from);
    }
    Ok(())
}

/// Columns that only the comparison with the topic needs.
pub const TOPIC_ONLY: &[&str] = &["raw", "event_time", "ingest_time"];

/// What of the content hashes is wanted; with any, the columns of [`TOPIC_ONLY`] are read too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashed {
    No,
    /// Their sums by run of offsets.
    Sums,
    /// Each, with its offset.
    Rows,
}

/// Rows of Bronze, per Kafka partition.
#[derive(Debug, Default)]
pub struct Bronze {
    /// By partition.
    pub slices: Vec<Slice>,
    /// Instruments met.
    pub symbols: BTreeSet<u32>,
    /// System time of each commit met, by partition.
    commit_times: Vec<Times>,
    /// Sums of content hashes, by partition.
    pub sums: Vec<Sums>,
    /// Offset and content hash, by partition.
    pub hashes: Vec<Vec<(i64, u128)>>,
    /// What is wrong with what the sink stamps; `None`: it is not looked at.
    pub stamps: Option<Stamps>,
    /// Rows taken.
    pub rows: u64,
    /// Nulls and rows by column, for the validators.
    pub nulls: BTreeMap<String, (u64, u64)>,
    /// Rows that will come at most: room for them is made in the first partition met, mostly the
    /// only one of a folder. Memory that stays untouched costs nothing.
    pub room: usize,
}

/// System times by commit. Neighbours in a file may be of different commits, so a look-up per row
/// has to be cheap.
#[derive(Debug, Clone, Default)]
struct Times {
    /// What rows of a commit must bear, as the ledger has it.
    known: FxHashMap<i64, Option<i64>>,
    list: Vec<(i64, i64)>,
}

/// What all records of one instrument have in common.
struct Instrument<'a> {
    /// Numbers of key, source and symbol in the batch's dictionaries.
    ids: (i32, i32, i32),
    key: Option<&'a str>,
    source: &'a str,
    symbol: &'a str,
    number: u32,
    /// Key, source and symbol agree.
    named: bool,
    /// Of key, source and symbol; only where hashes are wanted.
    hash: u128,
}

impl Bronze {
    /// For this many partitions.
    pub fn new(partitions: usize) -> Bronze {
        Bronze {
            slices: vec![Slice::default(); partitions],
            commit_times: vec![Times::default(); partitions],
            sums: vec![Sums::default(); partitions],
            hashes: vec![Vec::new(); partitions],
            ..Bronze::default()
        }
    }

    /// System time (µs) of each commit met, of one partition.
    pub fn commit_times(&self, partition: usize) -> BTreeMap<i64, i64> {
        self.commit_times[partition].list.iter().copied().collect()
    }

    /// Counts the nulls of a column, if the batch has it.
    pub fn count_nulls(&mut self, batch: &RecordBatch, name: &str) {
        if let Some(column) = batch.column_by_name(name) {
            let n = self.nulls.entry(name.to_owned()).or_default();
            n.0 += column.null_count() as u64;
            n.1 += column.len() as u64;
        }
    }

    /// Takes a batch. `until` gives the greatest system time (µs) that is looked at, by partition;
    /// `books` what each commit's rows must bear.
    ///
    /// # Errors
    /// [`BadColumn`]; a partition that the table does not have.
    pub fn take(
        &mut self,
        batch: &RecordBatch,
        rules: &Rules,
        names: &mut Names,
        until: &[i64],
        hashed: Hashed,
        books: Option<&Books>,
    ) -> Result<()> {
        let partitions = ints(batch, "kafka_partition")?;
        let offsets = longs(batch, "kafka_offset")?;
        let timestamps = instants(batch, "kafka_timestamp")?;
        let commits = longs(batch, "commit")?;
        let keys = Texts::of(batch, "record_key")?;
        let sources = Texts::of(batch, "source")?;
        let symbols = Texts::of(batch, "symbol")?;
        let ids = longs(batch, "trade_id")?;
        let prices = decimals(batch, "price")?;
        let quantities = decimals(batch, "quantity")?;
        let times = instants(batch, "trade_time")?;
        let makers = flags(batch, "buyer_maker")?;
        let firsts = longs(batch, "first_trade_id")?;
        let lasts = longs(batch, "last_trade_id")?;
        let system = instants(batch, "sys_from")?;
        let extra = match hashed {
            Hashed::No => None,
            Hashed::Sums | Hashed::Rows => Some(Extra::of(batch)?),
        };
        let mut instrument: Option<Instrument<'_>> = None;
        // What the ledger says of schemas is compared where stamps are.
        let schemas = match (&self.stamps, books) {
            (Some(_), Some(_)) => Some(ints(batch, "schema_id")?),
            _ => None,
        };
        let mut commit = (usize::MAX, i64::MIN, None);
        let mut stamped = None;
        if let Some(stamps) = &mut self.stamps {
            stamps.take(batch, until, OPEN_END)?;
        }
        for at in 0..batch.num_rows() {
            let p = usize::try_from(partitions.or(at, -1)).unwrap_or(usize::MAX);
            let Some(limit) = until.get(p).filter(|_| p < self.slices.len()) else {
                return Err(BadColumn("kafka_partition".into()));
            };
            let sys_from = system.or(at, i64::MIN);
            if sys_from > *limit {
                continue;
            }
            self.rows += 1;
            let met = (keys.id(at), sources.id(at), symbols.id(at));
            if instrument.as_ref().is_none_or(|i| i.ids != met) {
                let (key, source) = (keys.get(at), sources.get(at).unwrap_or_default());
                let symbol = symbols.get(at).unwrap_or_default();
                let bytes = key.map(str::as_bytes);
                let number = names.id(source, symbol);
                self.symbols.insert(number);
                instrument = Some(Instrument {
                    ids: met,
                    key,
                    source,
                    symbol,
                    number,
                    named: names_hold(source, symbol, bytes),
                    hash: match extra {
                        Some(_) => topic::names(bytes.unwrap_or_default(), source, symbol),
                        None => 0,
                    },
                });
            }
            let Some(of) = &instrument else { continue };
            let number = commits.or(at, -1);
            // A record that did not decode may bear any.
            let schema = schemas.filter(|_| met.1 >= 0).map(|ids| ids.or(at, -1));
            if commit != (p, number, schema) {
                commit = (p, number, schema);
                if let (Some(stamps), Some(id)) = (&mut self.stamps, schema) {
                    stamps.schemas.insert((p, number, id));
                }
                if self.room > 0 {
                    self.slices[p].reserve(std::mem::take(&mut self.room));
                }
                let times = &mut self.commit_times[p];
                stamped = *times.known.entry(number).or_insert_with(|| {
                    times.list.push((number, sys_from));
                    let partition = i32::try_from(p).unwrap_or(i32::MAX);
                    books.and_then(|b| Some(b.line(partition, number)?.system_time))
                });
            }
            if stamped.is_some_and(|at| at != sys_from)
                && let Some(stamps) = &mut self.stamps
            {
                stamps.wrong(p, "sys_from", offsets.or(at, -1));
            }
            // A field that is null did not decode: such a trade is refused.
            let mut tick = Tick {
                source: of.source,
                symbol: of.symbol,
                trade_id: ids.or(at, -1),
                price: Dec8(prices.or(at, 0)),
                quantity: Dec8(quantities.or(at, 0)),
                trade_time: times.or(at, -1),
                event_time: None,
                buyer_maker: flag(makers, at),
                ingest_time: None,
                first_trade_id: firsts.get(at),
                last_trade_id: lasts.get(at),
            };
            let offset = offsets.or(at, -1);
            let timestamp_ms = timestamps.or(at, -1).div_euclid(1_000);
            if let Some(extra) = &extra {
                let hash = if extra.raw.is_valid(at) {
                    topic::raw(of.key.unwrap_or_default().as_bytes(), extra.raw.value(at))
                } else {
                    tick.event_time = extra.event.get(at);
                    tick.ingest_time = extra.ingest.get(at);
                    topic::content(of.hash, timestamp_ms, &tick)
                };
                if hashed == Hashed::Rows {
                    self.hashes[p].push((offset, hash));
                } else {
                    self.sums[p].add(offset, hash);
                }
            }
            let record = Record {
                offset,
                timestamp_ms,
                commit: number,
                named: of.named,
                tick,
            };
            self.slices[p].push(of.number, &record, rules);
        }
        Ok(())
    }
}

/// Columns that go into the content hash alone.
struct Extra<'a> {
    raw: &'a arrow::array::BinaryArray,
    event: Numbers<'a, i64>,
    ingest: Numbers<'a, i64>,
}

impl<'a> Extra<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Extra<'a>> {
        Ok(Extra {
            raw: column(batch, "raw")?
                .as_binary_opt::<i32>()
                .ok_or_else(|| BadColumn("raw".into()))?,
            event: instants(batch, "event_time")?,
            ingest: instants(batch, "ingest_time")?,
        })
    }
}
