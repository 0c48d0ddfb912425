//! Writes one ledger entry per commit: what was taken, what was given, and a hash of the entry
//! before, so that nobody can take one out or slip one in.

use std::sync::Arc;

use bincode::{Decode, Encode};
use finlake_schemas::{InputRange, LedgerEntry, OutputCount, hash128, keys};
use finlake_topology::inv::{Inv, check};
use finlake_topology::state::Versioned;
use finlake_topology::state::codec::{Body, CodecError};
use finlake_topology::{CommitStats, Context, Counter, Failure, Forward, Processor, SinkId};

use crate::config::Plan;
use crate::{Market, Msg};

const STORE: usize = 0;
const KEY: &[u8] = b"ledger";

/// Counters that the processors above fill and the ledger reads.
#[derive(Clone, Copy)]
pub(crate) struct Counts {
    pub accepted: Counter,
    pub duplicates: Counter,
    pub corrections: Counter,
    /// Of market.bars: corrections that changed a bar, and those that held already.
    pub asserted: Counter,
    pub held: Counter,
    /// Versions sent to Silver and to Gold that take a row back.
    pub bars_retracted: Counter,
    pub metrics_retracted: Counter,
}

/// What an entry needs of the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
struct Chain {
    prev_hash: u128,
    totals: Vec<(String, i64)>,
}

impl Versioned for Chain {
    const WHAT: &'static str = "ledger chain";
    const VERSION: u8 = 1;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read(),
            _ => body.unknown(),
        }
    }
}

impl Chain {
    fn add(&mut self, name: &str, n: i64) {
        match self.totals.binary_search_by(|(have, _)| (**have).cmp(name)) {
            Ok(at) => self.totals[at].1 += n,
            Err(at) => self.totals.insert(at, (name.to_owned(), n)),
        }
    }
}

pub(crate) struct Ledger {
    plan: Arc<Plan>,
    counts: Counts,
    sink: SinkId,
    chain: Option<Chain>,
    stream_times: Vec<(String, i64)>,
    schema_ids: Vec<i32>,
}

impl Ledger {
    pub fn new(plan: Arc<Plan>, counts: Counts, sink: SinkId) -> Self {
        Self {
            plan,
            counts,
            sink,
            chain: None,
            stream_times: Vec::new(),
            schema_ids: Vec::new(),
        }
    }

    fn chain(&mut self, ctx: &Context<'_>) -> Result<Chain, Failure> {
        match self.chain.take() {
            Some(chain) => Ok(chain),
            None => match ctx.get(STORE, KEY)? {
                Some(bytes) => Chain::from_bytes(&bytes).map_err(Failure::fatal),
                None => Ok(Chain::default()),
            },
        }
    }

    fn inputs(&self, stats: &CommitStats) -> Vec<InputRange> {
        let counters = [
            (self.counts.accepted, self.counts.duplicates),
            (self.counts.asserted, self.counts.held),
        ];
        let list = stats.inputs.iter().zip(counters);
        list.map(|(i, (accepted, duplicates))| {
            let range = InputRange {
                topic: i.topic.clone(),
                start: i.start,
                end: i.end,
                records: i.records,
                hash: i.hash,
                accepted: stats.counter(accepted),
                duplicates: stats.counter(duplicates),
                rejected: i.rejected,
                skipped: i.skipped,
            };
            check(
                Inv::CountsBalance,
                range.records == range.accepted + range.duplicates + range.rejected,
                || format!("{range:?}"),
            );
            range
        })
        .collect()
    }
}

impl Processor<Market> for Ledger {
    fn process(
        &mut self,
        _ctx: &mut Context<'_>,
        msg: Msg<'_>,
        _out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        match msg {
            Msg::StreamTime((source, time)) => {
                self.stream_times.push(((*source).to_owned(), *time));
            }
            // Confluent ids are 31 bits wide in practice; the ledger shows their bits.
            Msg::Schemas(ids) => self.schema_ids.extend(ids.iter().map(|id| *id as i32)),
            Msg::Raw | Msg::Trade(_) | Msg::Correction(_) | Msg::Version(_) => {}
        }
        Ok(())
    }

    fn seal(&mut self, ctx: &mut Context<'_>, stats: &CommitStats) -> Result<(), Failure> {
        let mut chain = self.chain(ctx)?;
        // Each input has told its own.
        self.schema_ids.sort_unstable();
        self.schema_ids.dedup();
        let inputs = self.inputs(stats);
        let corrections = stats.counter(self.counts.corrections);
        for i in &inputs {
            chain.add("records", i.records);
            chain.add("accepted", i.accepted);
            chain.add("duplicates", i.duplicates);
            chain.add("rejected", i.rejected);
            chain.add("skipped", i.skipped);
        }
        chain.add("corrections", corrections);
        for o in &stats.outputs {
            chain.add(&o.topic, o.count);
        }
        // Of all the records that a table takes these make no row. The totals are there from the first commit on, also
        // as 0: whoever counts rows sees by them that nothing is left out.
        for (name, counter) in [
            (LedgerEntry::BARS_RETRACTED, self.counts.bars_retracted),
            (
                LedgerEntry::METRICS_RETRACTED,
                self.counts.metrics_retracted,
            ),
        ] {
            chain.add(name, stats.counter(counter));
        }
        // Which bars were to be made: whoever compares knows from when on, and until when.
        for interval in self.plan.intervals.list() {
            chain.add(&LedgerEntry::commits_of(interval.name()), 1);
        }
        let entry = LedgerEntry {
            app_id: self.plan.config.app_id.clone(),
            task: ctx.task(),
            commit: stats.commit,
            system_time: stats.system_time,
            stream_times: std::mem::take(&mut self.stream_times),
            inputs,
            outputs: stats
                .outputs
                .iter()
                .map(|o| OutputCount {
                    topic: o.topic.clone(),
                    count: o.count,
                    hash: o.hash,
                })
                .collect(),
            corrections,
            totals: chain.totals.clone(),
            schema_ids: std::mem::take(&mut self.schema_ids),
            prev_hash: chain.prev_hash,
            last: stats.last,
            heartbeat: stats.heartbeat,
        };
        let mut key = Vec::new();
        keys::ledger(entry.task, &mut key);
        let mut value = Vec::new();
        let codec = &self.plan.codec;
        codec
            .encode_ledger(&entry, &mut value)
            .map_err(Failure::fatal)?;
        ctx.produce(self.sink, &key, &value, &[])?;

        chain.prev_hash = hash128(&[], &value);
        ctx.put(STORE, KEY, &chain.to_bytes().map_err(Failure::fatal)?);
        self.chain = Some(chain);
        Ok(())
    }

    fn reset(&mut self) {
        self.chain = None;
        self.stream_times.clear();
        self.schema_ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: stores and changelogs hold these bytes.
    #[test]
    fn chain_fixture() {
        let mut chain = Chain {
            prev_hash: 0xff,
            ..Chain::default()
        };
        chain.add("records", 300);
        chain.add("accepted", 2);
        let v1 = b"\x01\xfb\xff\x00\x02\x08accepted\x04\x07records\xfb\x58\x02";
        assert_eq!(chain.to_bytes().unwrap(), v1);
        assert_eq!(Chain::from_bytes(v1).unwrap(), chain);
    }

    /// A chain of a build that did not count retractions goes on, and counts from there.
    #[test]
    fn a_chain_takes_further_totals_in() {
        let v1 = b"\x01\xfb\xff\x00\x02\x08accepted\x04\x07records\xfb\x58\x02";
        let mut chain = Chain::from_bytes(v1).unwrap();
        chain.add(LedgerEntry::BARS_RETRACTED, 0);
        chain.add(LedgerEntry::BARS_RETRACTED, 3);
        let again = Chain::from_bytes(&chain.to_bytes().unwrap()).unwrap();
        let totals: Vec<_> = again.totals.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        assert_eq!(
            totals,
            [
                ("accepted", 2),
                (LedgerEntry::BARS_RETRACTED, 3),
                ("records", 300)
            ]
        );
    }
}
