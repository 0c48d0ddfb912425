//! The shadow: what a replay gives, as Silver and Gold tables of their own beside the live ones, for whoever wants to look
//! into a difference with their own SQL and engines.
//!
//! Rows go through the table sink that production writes with, whole commits at a time: so versions close each other,
//! frontiers move and as-of queries work as they do on live tables. Must never: open a live table for writing (a
//! shadow's tables bear a mark, and the sink asks for it), or leave anything behind that bears none. Data flows: outputs
//! of the replayed task → [`Shadow`] → tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use finlake_lakehouse::{
    Cut, KafkaIds, Lakehouse, PartitionBatch, Rows, SinkBatch, Table, TableSink, VersionRows,
    inspect,
};
use finlake_schemas::{Codec, LedgerEntry, topics};
use finlake_topology::OutputRecord;
use tokio::runtime::Handle;

use crate::output::format_instant;

/// Rows, or commits, that make a table commit.
const BATCH: usize = 50_000;
/// What a replay gives; Bronze is its input.
const TABLES: [(Table, &str); 2] = [
    (Table::Ohlcv, topics::OHLCV),
    (Table::Metrics, topics::METRICS),
];

/// Where the rows of a replay are to be kept.
#[derive(Debug, Clone)]
pub struct Keep {
    /// Name of the shadow.
    pub name: String,
    /// Whether a shadow of that name may be replaced.
    pub overwrite: bool,
    /// What was asked for, to be written into the tables.
    pub command: String,
    /// When, µs.
    pub now: i64,
}

impl Keep {
    /// What the tables say of themselves from the start.
    fn about(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("made-by".to_owned(), self.command.clone()),
            ("begun".to_owned(), format_instant(self.now)),
        ])
    }

    /// Where `--verify` keeps the tables that it rebuilds.
    pub fn rebuilt(&self) -> Keep {
        Keep {
            name: format!("{}_rebuilt", self.name),
            ..self.clone()
        }
    }

    /// Begins a shadow without tables.
    ///
    /// # Errors
    /// There is one of that name; catalog or storage.
    pub fn create(&self, lake: &Lakehouse, runtime: &Handle) -> Result<Lakehouse> {
        Ok(runtime.block_on(lake.create_shadow(&self.name, self.about(), self.overwrite))?)
    }

    /// Drops what a replay that failed had begun; if that fails too, says what is left.
    pub fn abandon(&self, lake: &Lakehouse, runtime: &Handle) {
        if let Err(e) = runtime.block_on(lake.drop_shadow(&self.name)) {
            let name = &self.name;
            tracing::warn!(
                "the shadow {name} is unfinished; `finlake tables drop-shadow {name}` drops it: {e}"
            );
        }
    }
}

/// The tables of a shadow as other engines name them, with their rows.
pub type Kept = Vec<(String, u64)>;

/// Notes that a shadow is whole, and says what is in it.
pub(super) fn finished(
    lake: &Lakehouse,
    runtime: &Handle,
    mut about: BTreeMap<String, String>,
) -> Result<Kept> {
    let now = jiff::Timestamp::now().as_microsecond();
    about.insert("finished".to_owned(), format_instant(now));
    let tables = runtime.block_on(async {
        lake.note(&about).await?;
        inspect::tables(lake).await
    })?;
    let tables = tables.into_iter().filter(|t| t.exists);
    let named = tables.map(|t| {
        let (namespace, name) = (lake.namespace(t.table), t.table.name());
        (format!("{namespace}.{name}"), t.rows)
    });
    Ok(named.collect())
}

/// One table of the shadow, and the rows and commits that wait for its next commit.
struct Layer {
    table: Table,
    topic: &'static str,
    sink: TableSink,
    rows: VersionRows,
    cuts: Vec<Cut>,
    input_start: i64,
    /// Records so far of the partition. They are in no topic, and the table wants them numbered.
    next: i64,
}

/// How the versions of a range are stamped: there is no commit of the ledger that they belong to.
#[derive(Clone, Copy)]
struct Stamp {
    commit: i64,
    system_time: i64,
}

impl Layer {
    fn push(&mut self, codec: &Codec, value: &[u8], stamp: Option<Stamp>) -> Result<()> {
        if self.table == Table::Ohlcv {
            let mut bar = codec.decode_bar(value)?;
            if let Some(stamp) = stamp {
                (bar.commit, bar.sys_from) = (stamp.commit, stamp.system_time);
                (bar.revision, bar.prev_sys_from) = (0, None);
            }
            self.rows.push_bar(&bar, self.next)?;
        } else {
            let mut metrics = codec.decode_metrics(value)?;
            if let Some(stamp) = stamp {
                (metrics.commit, metrics.sys_from) = (stamp.commit, stamp.system_time);
                (metrics.revision, metrics.prev_sys_from) = (0, None);
            }
            self.rows.push_metrics(&metrics, self.next)?;
        }
        self.next += 1;
        Ok(())
    }

    fn cut(&mut self, start: i64, cut: Cut) {
        if self.cuts.is_empty() {
            self.input_start = start;
        }
        self.cuts.push(cut);
    }

    /// Hands over what waits, as one snapshot.
    async fn flush(&mut self, lake: &Lakehouse, partition: i32) -> Result<()> {
        let empty = VersionRows::new(&lake.def(self.table), partition)?;
        let rows = std::mem::replace(&mut self.rows, empty);
        let cuts = std::mem::take(&mut self.cuts);
        let Some(last) = cuts.last() else {
            return Ok(());
        };
        let part = PartitionBatch {
            partition,
            input_start: self.input_start,
            frontier: last.system_time,
            cuts,
            rows: Rows::Versions(rows),
        };
        self.sink.commit(SinkBatch { parts: vec![part] }).await?;
        Ok(())
    }
}

/// A shadow that is being written, one partition after the other.
pub struct Shadow {
    lake: Lakehouse,
    runtime: Handle,
    codec: Arc<Codec>,
    layers: Vec<Layer>,
    partition: i32,
}

impl Shadow {
    /// Makes the tables; `about` says what is replayed.
    ///
    /// # Errors
    /// Catalog or storage.
    pub fn open(
        lake: &Lakehouse,
        codec: Arc<Codec>,
        runtime: &Handle,
        about: &BTreeMap<String, String>,
    ) -> Result<Shadow> {
        let mut layers = Vec::new();
        runtime.block_on(async {
            // Filled from no topic: bound to no cluster.
            let ids = KafkaIds::default();
            lake.ensure_only(&TABLES.map(|(table, _)| table), &ids)
                .await?;
            lake.note(about).await?;
            for (table, topic) in TABLES {
                layers.push(Layer {
                    table,
                    topic,
                    sink: TableSink::open(lake, table).await?,
                    rows: VersionRows::new(&lake.def(table), 0)?,
                    cuts: Vec::new(),
                    input_start: 0,
                    next: 0,
                });
            }
            anyhow::Ok(())
        })?;
        Ok(Shadow {
            lake: lake.clone(),
            runtime: runtime.clone(),
            codec,
            layers,
            partition: 0,
        })
    }

    /// The partition whose commits come next; those of the one before are all in the tables.
    ///
    /// # Errors
    /// Catalog or storage.
    pub fn begin(&mut self, partition: i32) -> Result<()> {
        self.flush()?;
        for layer in &mut self.layers {
            layer.sink.revoke(&[self.partition]);
            self.runtime.block_on(layer.sink.assign(&[partition]))?;
            layer.rows = VersionRows::new(&self.lake.def(layer.table), partition)?;
            layer.next = 0;
        }
        self.partition = partition;
        Ok(())
    }

    /// A commit of the ledger, as the replay gave it; `wanted`: whether Silver and Gold held it.
    ///
    /// # Errors
    /// Catalog or storage; a record that does not decode.
    pub fn commit(
        &mut self,
        entry: &LedgerEntry,
        outputs: &[OutputRecord],
        wanted: [bool; 2],
    ) -> Result<()> {
        let ticks = entry.inputs.iter().find(|r| r.topic == topics::TICKS);
        let (start, end) = ticks.map_or((0, 0), |r| (r.start, r.end));
        for (layer, _) in self.layers.iter_mut().zip(wanted).filter(|(_, w)| *w) {
            let topic = layer.topic;
            for record in outputs.iter().filter(|r| r.topic == topic) {
                let value = record.value.as_deref().unwrap_or_default();
                layer.push(&self.codec, value, None)?;
            }
            layer.cut(
                start,
                Cut {
                    commit: entry.commit,
                    input_end: end,
                    system_time: entry.system_time,
                    ..Cut::default()
                },
            );
        }
        let waits = |l: &Layer| l.rows.len() >= BATCH || l.cuts.len() >= BATCH;
        if self.layers.iter().any(waits) {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            let flushed = layer.flush(&self.lake, self.partition);
            self.runtime.block_on(flushed)?;
        }
        Ok(())
    }

    /// What a range gave of the partition that was begun: one version of each key, all known from `now` on, in as many
    /// commits as their number asks for. `input_end`: the position up to which the input was taken.
    ///
    /// # Errors
    /// Catalog or storage; a record that does not decode.
    pub fn versions(&mut self, latest: &Latest, input_end: i64, now: i64) -> Result<()> {
        for (layer, values) in self.layers.iter_mut().zip(&latest.0) {
            let values: Vec<&Vec<u8>> = values.values().collect();
            let chunks: Vec<&[&Vec<u8>]> = values.chunks(BATCH).collect();
            // A range without rows is whole, too.
            let n = chunks.len().max(1) as i64;
            for commit in 1..=n {
                let stamp = Stamp {
                    commit,
                    system_time: now,
                };
                for value in chunks
                    .get(commit as usize - 1)
                    .into_iter()
                    .copied()
                    .flatten()
                {
                    layer.push(&self.codec, value, Some(stamp))?;
                }
                // Each begins where the one before ended; they take the range at once.
                let start = if commit == 1 { 0 } else { input_end };
                layer.cut(
                    start,
                    Cut {
                        commit,
                        input_end,
                        // The table is whole up to `now` with the last of them only.
                        system_time: now - (n - commit),
                        ..Cut::default()
                    },
                );
                let flushed = layer.flush(&self.lake, self.partition);
                self.runtime.block_on(flushed)?;
            }
        }
        Ok(())
    }

    /// Partitions of which nothing was asked: they hold nothing that a query would have to wait for.
    ///
    /// # Errors
    /// Catalog or storage.
    pub fn leave_out(&mut self, partitions: &[i32], now: i64) -> Result<()> {
        for layer in &mut self.layers {
            let parts = partitions.iter().map(|p| PartitionBatch {
                partition: *p,
                input_start: 0,
                cuts: Vec::new(),
                frontier: now,
                rows: Rows::None,
            });
            let batch = SinkBatch {
                parts: parts.collect(),
            };
            self.runtime.block_on(async {
                layer.sink.assign(partitions).await?;
                layer.sink.commit(batch).await?;
                anyhow::Ok(())
            })?;
        }
        Ok(())
    }

    /// Commits what waits, and notes that the tables are whole.
    ///
    /// # Errors
    /// Catalog or storage.
    pub fn finish(mut self, about: BTreeMap<String, String>) -> Result<Kept> {
        self.flush()?;
        finished(&self.lake, &self.runtime, about)
    }
}

/// The newest value of each key of Silver and of Gold, as the topology encoded it.
#[derive(Default)]
pub struct Latest([BTreeMap<Vec<u8>, Vec<u8>>; 2]);

impl Latest {
    /// Takes what the task gave; later values replace earlier ones.
    ///
    /// # Errors
    /// A record that does not decode.
    pub fn take(&mut self, codec: &Codec, outputs: &[OutputRecord]) -> Result<()> {
        for record in outputs {
            let at = TABLES.iter().position(|(_, topic)| record.topic == *topic);
            let (Some(at), Some(key)) = (at, &record.key) else {
                continue;
            };
            let value = record.value.as_deref().unwrap_or_default();
            let retracted = if at == 0 {
                codec.decode_bar(value)?.retracted
            } else {
                codec.decode_metrics(value)?.retracted
            };
            if retracted {
                self.0[at].remove(key);
            } else {
                self.0[at].insert(key.clone(), value.to_vec());
            }
        }
        Ok(())
    }

    /// Keeps what is asked for.
    pub fn retain(&mut self, bar: impl Fn(&[u8]) -> bool, metrics: impl Fn(&[u8]) -> bool) {
        self.0[0].retain(|key, _| bar(key));
        self.0[1].retain(|key, _| metrics(key));
    }
}

/// Positions of the partitions, as `0=12,1=40`.
pub fn positions(of: impl Iterator<Item = (i32, i64)>) -> String {
    let all = of.map(|(p, at)| format!("{p}={at}"));
    all.collect::<Vec<_>>().join(",")
}
