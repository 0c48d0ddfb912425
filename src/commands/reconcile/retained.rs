//! Topics as the comparisons want them: what is retained of `market.ticks`, and of `market.ohlcv`
//! and `market.metrics` as rows made by the sink's own code. Reads committed records, joins no group.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use finlake_lakehouse::rows::{fits_columns, representable};
use finlake_lakehouse::{Lakehouse, Table, VersionRows};
use finlake_reconcile::topic::{self, Ticked};
use finlake_reconcile::{Records, Stretch};
use finlake_schemas::{Kline, topics};

use super::source::Source;
use crate::kafka::Topic;

/// The topics, opened when they are first asked for.
pub struct Retained<'a> {
    source: &'a Source,
    lake: &'a Lakehouse,
    open: RefCell<BTreeMap<&'static str, Rc<Opened>>>,
}

/// A topic and what it held when it was opened.
struct Opened {
    topic: Topic,
    bounds: BTreeMap<i32, (i64, i64)>,
}

/// Records decoded at a time.
const CHUNK: usize = 50_000;

impl<'a> Retained<'a> {
    /// Asks nothing yet.
    pub fn new(source: &'a Source, lake: &'a Lakehouse) -> Retained<'a> {
        Retained {
            source,
            lake,
            open: RefCell::default(),
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

    fn each_tick(
        &self,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&Ticked<'_>),
    ) -> Result<i64> {
        let opened = self.opened(topics::TICKS)?;
        let bounds = opened.bounds.get(&partition).copied();
        let (low, high) = bounds.with_context(|| {
            format!(
                "{} has no partition {partition}, of which the table has rows",
                topics::TICKS
            )
        })?;
        let range = (range.0.max(low), range.1.min(high));
        let ranges = BTreeMap::from([(partition, range)]);
        opened.topic.read(&ranges, |message| {
            let value = message.value.unwrap_or_default();
            self.source.resolve(value)?;
            // As Bronze shows a key that is no text.
            let key = String::from_utf8_lossy(message.key.unwrap_or_default());
            let tick = self.source.codec.decode_tick(value).ok();
            let shown = tick.as_ref().filter(|t| fits_columns(t));
            let hash = match shown {
                Some(tick) => {
                    let names = topic::names(key.as_bytes(), tick.source, tick.symbol);
                    let timestamp_ms = message.timestamp_ms;
                    topic::content(names, timestamp_ms, tick)
                }
                None => topic::raw(key.as_bytes(), value),
            };
            take(&Ticked {
                offset: message.offset,
                hash,
                time: tick.as_ref().and_then(|t| representable(t.trade_time)),
                symbol: tick.as_ref().map(|t| t.symbol),
            });
            Ok(true)
        })?;
        Ok(low)
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
                let (offset, value) = (message.offset, message.value.unwrap_or_default());
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
    fn ticks(
        &self,
        partition: i32,
        range: (i64, i64),
        take: &mut dyn FnMut(&Ticked<'_>),
    ) -> Result<i64, String> {
        self.each_tick(partition, range, take)
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
                let value = message.value.unwrap_or_default();
                self.source.resolve(value)?;
                let place = || format!("{}:{}", message.partition, message.offset);
                let kline = self.source.codec.decode_kline(value).with_context(place)?;
                Ok(take(&kline))
            })
        };
        read().map_err(|e| format!("{} was not read: {e:#}", topics::KLINES))
    }
}
