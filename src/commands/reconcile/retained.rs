//! Topics as the comparisons want them: what is retained of `market.ticks`, `market.ohlcv` and
//! `market.metrics`, as rows made by the sink's own code. Reads committed records, joins no group.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use finlake_lakehouse::tables::TableDef;
use finlake_lakehouse::{BronzeRows, Lakehouse, RecordAt, Table, VersionRows};
use finlake_reconcile::columns::Bronze;
use finlake_reconcile::trades::{Names, Rules};
use finlake_reconcile::{Records, Stretch};
use finlake_schemas::{Kline, topics};
use rdkafka::Message;

use super::source::Source;
use crate::kafka::Topic;

/// The topics, opened when they are first asked for.
pub struct Retained<'a> {
    source: &'a Source,
    rules: &'a Rules,
    lake: &'a Lakehouse,
    ticks: TableDef,
    open: RefCell<BTreeMap<&'static str, Rc<Opened>>>,
    /// Partitions of `market.ticks` that were read whole: first offset, and the records in order.
    read: RefCell<BTreeMap<i32, Hashes>>,
}

/// A topic and what it held when it was opened.
struct Opened {
    topic: Topic,
    bounds: BTreeMap<i32, (i64, i64)>,
}

/// First offset that the topic still has; offset and content hash of its records, ascending.
type Hashes = (i64, Vec<(i64, u128)>);

/// A partition with at most this many retained records is read once and kept (32 bytes each); of a
/// larger one each range is read when it is asked for.
const KEPT: i64 = 20_000_000;

/// Records decoded at a time.
const CHUNK: usize = 50_000;

impl<'a> Retained<'a> {
    /// Asks nothing yet. `rules`: as the tables were made.
    pub fn new(source: &'a Source, rules: &'a Rules, lake: &'a Lakehouse) -> Retained<'a> {
        Retained {
            source,
            rules,
            lake,
            ticks: lake.def(Table::Ticks),
            open: RefCell::default(),
            read: RefCell::default(),
        }
    }

    fn opened(&self, name: &'static str) -> Result<Rc<Opened>> {
        if let Some(opened) = self.open.borrow().get(name) {
            return Ok(opened.clone());
        }
        let topic = Topic::open(&self.source.config, name)?;
        let bounds = topic.bounds()?;
        let opened = Rc::new(Opened { topic, bounds });
        self.open.borrow_mut().insert(name, opened.clone());
        Ok(opened)
    }

    fn hashes(&self, partition: i32, from: i64, to: i64) -> Result<Hashes> {
        if let Some((low, all)) = self.read.borrow().get(&partition) {
            let (a, b) = (
                all.partition_point(|r| r.0 < from),
                all.partition_point(|r| r.0 < to),
            );
            return Ok((*low, all[a..b.max(a)].to_vec()));
        }
        let opened = self.opened(topics::TICKS)?;
        let bounds = opened.bounds.get(&partition).copied();
        let (low, high) = bounds.with_context(|| {
            format!(
                "{} has no partition {partition}, of which the table has rows",
                topics::TICKS
            )
        })?;
        if high - low > KEPT {
            let range = (from.max(low), to.min(high));
            return self.range(&opened.topic, partition, low, range);
        }
        let all = self.range(&opened.topic, partition, low, (low, high))?;
        self.read.borrow_mut().insert(partition, all);
        self.hashes(partition, from, to)
    }

    fn range(&self, topic: &Topic, partition: i32, low: i64, range: (i64, i64)) -> Result<Hashes> {
        let mut out = Vec::new();
        let mut rows = BronzeRows::new(topics::TICKS, partition);
        topic.read(&BTreeMap::from([(partition, range)]), |message| {
            let value = message.payload().unwrap_or_default();
            self.source.resolve(value)?;
            let at = RecordAt {
                offset: message.offset(),
                timestamp: message
                    .timestamp()
                    .to_millis()
                    .unwrap_or(-1)
                    .saturating_mul(1000),
                key: message.key(),
                schema_id: finlake_schemas::schema_id(value),
                commit: 0,
                sys_from: 0,
            };
            match self.source.codec.decode_tick(value) {
                Ok(tick) => rows.push_tick(&at, &tick, value),
                Err(_) => rows.push_raw(&at, value),
            }
            if rows.len() >= CHUNK {
                let full = std::mem::replace(&mut rows, BronzeRows::new(topics::TICKS, partition));
                self.hash(full, partition, &mut out)?;
            }
            Ok(true)
        })?;
        self.hash(rows, partition, &mut out)?;
        Ok((low, out))
    }

    fn hash(&self, rows: BronzeRows, partition: i32, out: &mut Vec<(i64, u128)>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let batch = rows.finish(&self.ticks)?;
        let p = usize::try_from(partition)?;
        let mut bronze = Bronze::new(p + 1);
        bronze.take(
            &batch,
            self.rules,
            &mut Names::default(),
            &|_| i64::MAX,
            true,
        )?;
        out.append(&mut bronze.hashes[p]);
        Ok(())
    }

    fn versions(
        &self,
        table: Table,
        partition: i32,
        range: (i64, i64),
        take: &mut Take<'_>,
    ) -> Result<Stretch> {
        let name = if table == Table::Metrics {
            topics::METRICS
        } else {
            topics::OHLCV
        };
        let opened = self.opened(name)?;
        let (low, high) =
            opened.bounds.get(&partition).copied().with_context(|| {
                format!("there is no topic {name} with a partition {partition}")
            })?;
        let range = (range.0.max(low), range.1.min(high));
        let mut stretch = Stretch {
            first: low,
            next: range.0,
        };
        let def = self.lake.def(table);
        let mut rows = VersionRows::new(&def, partition)?;
        opened
            .topic
            .read(&BTreeMap::from([(partition, range)]), |message| {
                let (offset, value) = (message.offset(), message.payload().unwrap_or_default());
                self.source.resolve(value)?;
                let codec = &self.source.codec;
                let place = || format!("offset {offset}");
                if table == Table::Metrics {
                    let metrics = codec.decode_metrics(value).with_context(place)?;
                    rows.push_metrics(&metrics, offset)?;
                } else {
                    rows.push_bar(&codec.decode_bar(value).with_context(place)?, offset)?;
                }
                stretch.next = offset + 1;
                if rows.len() < CHUNK {
                    return Ok(true);
                }
                let full = std::mem::replace(&mut rows, VersionRows::new(&def, partition)?);
                let more = hand(full, take)?;
                Ok(more)
            })?;
        if !rows.is_empty() {
            hand(rows, take)?;
        }
        Ok(stretch)
    }
}

type Take<'a> = dyn FnMut(&RecordBatch) -> Result<bool, String> + 'a;

/// Hands on what becomes rows: a retraction only closes one.
fn hand(rows: VersionRows, take: &mut Take<'_>) -> Result<bool> {
    let versions = rows.finish()?;
    let kept: BooleanArray = versions.meta.iter().map(|m| Some(!m.retracted)).collect();
    let batch = if kept.false_count() > 0 {
        filter_record_batch(&versions.batch, &kept)?
    } else {
        versions.batch
    };
    take(&batch).map_err(|e| anyhow!(e))
}

impl Records for Retained<'_> {
    fn ticks(&self, partition: i32, from: i64, to: i64) -> Result<Hashes, String> {
        self.hashes(partition, from, to)
            .map_err(|e| format!("{}/{partition} was not compared: {e:#}", topics::TICKS))
    }

    fn written(
        &self,
        table: Table,
        partition: i32,
        range: (i64, i64),
        take: &mut Take<'_>,
    ) -> Result<Stretch, String> {
        self.versions(table, partition, range, take)
            .map_err(|e| format!("{table} was not compared with its topic: {e:#}"))
    }

    fn klines(&self, take: &mut dyn FnMut(&Kline<'_>) -> bool) -> Result<(), String> {
        let mut read = || -> Result<()> {
            let opened = self.opened(topics::KLINES)?;
            opened.topic.read(&opened.bounds, |message| {
                let value = message.payload().unwrap_or_default();
                self.source.resolve(value)?;
                let place = || format!("{}:{}", message.partition(), message.offset());
                let kline = self.source.codec.decode_kline(value).with_context(place)?;
                Ok(take(&kline))
            })
        };
        read().map_err(|e| format!("{} was not read: {e:#}", topics::KLINES))
    }
}
