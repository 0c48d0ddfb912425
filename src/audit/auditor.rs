//! What the audit knows and does, whoever reads the ledger for it: folds entries, compares the tables' row counts with
//! the ledger's totals, tells what it finds, and says what of its state may be kept.
//!
//! A state may be kept once the breaks before it are written and the tables have reached it: whoever goes on from there
//! has lost no finding, and knows the totals at which the tables stand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result};
use finlake_lakehouse::{LakeError, Lakehouse, Pinned, Table};
use finlake_reconcile::counts::{self, Of};
use finlake_reconcile::{Findings, Layer, LedgerAudit, TOTAL, TaskAudit, resolved};
use finlake_schemas::{Break, BreakStatus, Codec, topics};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::breaks::now;
use super::lines::{Line, Lines, TABLES};
use super::publish::Publisher;
use crate::config::Config;
use crate::serve::metrics::Metrics;

/// States remembered per partition until the tables reach them.
const MARKS: usize = 1_000;
/// Greatest size of offset metadata that brokers take by default.
const METADATA: usize = 4_000;
/// Found by.
pub(super) const NAME: &str = "audit";

/// What it knows of one partition.
#[derive(Default)]
struct Part {
    lines: Lines,
    /// Ledger offset after the last entry folded.
    next: i64,
    /// Offset and state at each look since the tables' position.
    marks: VecDeque<(i64, TaskAudit)>,
}

/// Why a table was not compared.
pub(super) enum Unlike {
    /// It holds commits that were not read yet.
    Ahead,
    /// It cannot be.
    Unknown(String),
}

pub(super) struct Auditor {
    publisher: Publisher,
    codec: Arc<Codec>,
    lake: Lakehouse,
    metrics: Arc<Metrics>,
    runtime: Handle,
    audit: LedgerAudit,
    parts: BTreeMap<i32, Part>,
    /// Commit that all tables have reached, by partition, at the last look.
    floors: BTreeMap<i32, i64>,
    /// Of the ledger, since they were last told.
    ledger: Findings,
    /// Of the tables, at the last look.
    totals: Findings,
    /// Tables compared at the last look, and up to which system time (µs) each holds what the ledger says.
    compared: BTreeMap<String, i64>,
    /// Breaks, as last read; `None` until then.
    known: Option<BTreeMap<[u8; 16], Break>>,
    /// All that this process found.
    seen: BTreeSet<[u8; 16]>,
}

impl Auditor {
    pub fn new(
        config: &Config,
        codec: Arc<Codec>,
        lake: Lakehouse,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Result<Auditor> {
        let mut auditor = Auditor {
            publisher: Publisher::new(config),
            codec,
            lake,
            metrics,
            runtime,
            audit: LedgerAudit::new(),
            parts: BTreeMap::new(),
            floors: BTreeMap::new(),
            ledger: Findings::default(),
            totals: Findings::default(),
            compared: BTreeMap::new(),
            known: None,
            seen: BTreeSet::new(),
        };
        // So that entries below the tables' position need not be remembered.
        auditor.look();
        Ok(auditor)
    }

    /// The ledger of this partition is read from here on: from the offset of a kept state, or from its first record
    /// that is left, which is the first ever if `low` is 0.
    pub fn begin(&mut self, partition: i32, kept: Option<(i64, TaskAudit)>, low: i64) {
        let part = self.parts.entry(partition).or_default();
        match kept {
            Some((next, state)) => {
                part.next = next;
                if let Some(line) = Line::of(&state) {
                    part.lines.push(line);
                }
                self.audit.resume(partition, state);
            }
            None if low == 0 => self.audit.from_start(partition),
            None => {}
        }
    }

    /// Another instance goes on from the kept states, or this one does again: what was found and not told is found
    /// again then.
    pub fn forget(&mut self) {
        self.audit = LedgerAudit::new();
        self.parts.clear();
        self.ledger = Findings::default();
        self.totals = Findings::default();
        self.compared.clear();
        // Others write breaks meanwhile.
        self.known = None;
    }

    /// Folds a record of the ledger; one that was read before is left out.
    ///
    /// # Errors
    /// It is not an entry.
    pub fn entry(&mut self, partition: i32, offset: i64, value: &[u8]) -> Result<()> {
        let part = self.parts.entry(partition).or_default();
        if offset < part.next {
            return Ok(());
        }
        if let Some(id) = finlake_schemas::schema_id(value)
            && !self.codec.knows(id)
        {
            self.codec.resolve(id)?;
        }
        let entry = self
            .codec
            .decode_ledger(value)
            .with_context(|| format!("{}/{partition}:{offset}", topics::LEDGER))?;
        part.next = offset + 1;
        if !self.audit.push(&entry, value, &mut self.ledger) {
            return Ok(());
        }
        self.metrics.audit_entry(partition, entry.commit);
        let floor = self.floors.get(&partition).copied().unwrap_or(0);
        if entry.commit >= floor
            && let Some(line) = self.audit.task(partition).and_then(Line::of)
        {
            part.lines.push(line);
        }
        Ok(())
    }

    /// Where each partition's reading goes on; 0: with its first record.
    pub fn positions(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.parts.iter().map(|(p, part)| (*p, part.next))
    }

    /// Entries folded.
    pub fn entries(&self) -> u64 {
        self.audit.entries()
    }

    /// INV-13 by totals: rows of each table against the ledger at the table's own position. Gives what could not be
    /// compared.
    pub fn look(&mut self) -> Vec<(Table, Unlike)> {
        self.totals = Findings::default();
        self.compared.clear();
        let mut floors: Option<BTreeMap<i32, i64>> = None;
        let mut unlike = Vec::new();
        for (table, layer) in TABLES {
            let pinned = match self.runtime.block_on(self.lake.snapshot(table)) {
                Ok(pinned) => pinned,
                Err(e) => {
                    // The sink says the same, and louder.
                    if matches!(e, LakeError::TableMoved { .. }) {
                        tracing::warn!("audit: {e}");
                    } else {
                        tracing::debug!("audit: {e}");
                    }
                    floors = Some(BTreeMap::new());
                    unlike.push((table, Unlike::Unknown(e.to_string())));
                    continue;
                }
            };
            let at = |p: &i32| pinned.position(*p).commit;
            floors = Some(match floors {
                None => {
                    let all = pinned.watermarks().positions.iter();
                    all.map(|(p, at)| (*p, at.commit)).collect()
                }
                Some(before) => before.iter().map(|(p, n)| (*p, at(p).min(*n))).collect(),
            });
            if let Err(why) = self.compare(table, layer, &pinned) {
                unlike.push((table, why));
            }
        }
        self.floors = floors.unwrap_or_default();
        for (p, part) in &mut self.parts {
            let floor = self.floors.get(p).copied().unwrap_or(0);
            part.lines.forget_before(floor);
            let newer = |marks: &VecDeque<(i64, TaskAudit)>, commit| {
                marks.back().is_none_or(|(_, s)| s.commit < commit)
            };
            if let Some(state) = self.audit.task(*p)
                && part.marks.len() < MARKS
                && newer(&part.marks, state.commit)
            {
                part.marks.push_back((part.next, state.clone()));
            }
            while part.marks.get(1).is_some_and(|(_, s)| s.commit <= floor) {
                part.marks.pop_front();
            }
        }
        unlike
    }

    fn compare(&mut self, table: Table, layer: Layer, pinned: &Pinned) -> Result<(), Unlike> {
        let (mut expected, mut uncounted) = (0, 0);
        let mut whole = i64::MAX;
        for (p, position) in &pinned.watermarks().positions {
            if position.commit == 0 {
                continue;
            }
            let unknown = |why: &str| {
                Unlike::Unknown(format!(
                    "{table} is at commit {} of partition {p}, {why}",
                    position.commit
                ))
            };
            let part = self.parts.get(p);
            let part = part.ok_or_else(|| unknown("which the ledger does not have"))?;
            let reached = self.audit.task(*p).map_or(0, |s| s.commit);
            if reached < position.commit {
                return Err(Unlike::Ahead);
            }
            let line = part.lines.at(position.commit).ok_or_else(|| {
                unknown(
                    "of which the ledger's totals are not known: its beginning is gone, or the \
                     audit went on from a later state; `finlake reconcile` compares every commit",
                )
            })?;
            let (rows, may_be_none) = line.rows(table);
            expected += rows;
            uncounted += may_be_none;
            whole = whole.min(part.lines.reached(table, position.commit));
        }
        let rows = pinned
            .metadata()
            .current_snapshot()
            .and_then(|s| s.summary().additional_properties.get("total-records"))
            .and_then(|n| n.parse::<i64>().ok())
            .unwrap_or(0);
        let name = table.to_string();
        self.metrics.audit_table(&name, rows - expected);
        let of = Of {
            layer,
            table: &name,
        };
        let (snapshot, found) = (pinned.snapshot_id(), &mut self.totals);
        counts::totals(of, snapshot, expected, rows, uncounted, found);
        self.compared.insert(name, whole);
        Ok(())
    }

    /// Findings as metrics, log lines and breaks, each once; ends those about row counts that are right again.
    ///
    /// # Errors
    /// Kafka does not answer: the findings are kept for the next time.
    pub fn tell(&mut self) -> Result<()> {
        let found = [&self.ledger, &self.totals];
        let found = found.into_iter().flat_map(|f| f.list());
        self.seen.extend(found.map(|f| f.id()));
        // What others wrote since matters only to what is found: they may have ended it.
        let finds = !self.ledger.is_empty() || !self.totals.is_empty();
        if let Some(known) = self.known.as_ref().filter(|_| !finds)
            && self.changes(known).is_empty()
        {
            self.ledger = Findings::default();
            return Ok(());
        }
        let published = self
            .publisher
            .publish(&self.codec, |known| Ok(self.changes(known)))?;
        for b in published.written {
            if b.status == BreakStatus::Opened {
                self.metrics.audit_finding(b.kind.as_str(), &b.layer);
                tracing::error!(
                    kind = b.kind.as_str(),
                    key = b.key,
                    cause = b.cause,
                    expected = b.expected,
                    actual = b.actual,
                    "audit: {}",
                    b.detail
                );
            } else {
                tracing::info!(key = b.key, cause = b.cause, "audit: no longer found");
            }
        }
        self.known = Some(published.known);
        self.ledger = Findings::default();
        Ok(())
    }

    fn changes(&self, known: &BTreeMap<[u8; 16], Break>) -> Vec<Break> {
        let now = now();
        let mut changed = Vec::new();
        for finding in self.ledger.list().iter().chain(self.totals.list()) {
            let before = known.get(&finding.id());
            if before.is_none_or(|b| b.status == BreakStatus::Resolved) {
                let later = before.map_or(now, |b| now.max(b.system_time + 1));
                changed.push(finding.to_break(NAME, later));
            }
        }
        let still: BTreeSet<_> = self.totals.list().iter().map(|f| f.id()).collect();
        let ended = known.values().filter(|b| {
            b.status != BreakStatus::Resolved
                && b.cause.starts_with(TOTAL)
                // A table that is being filled anew has not come to the broken rows yet.
                && self.compared.get(&b.table).is_some_and(|t| b.system_time <= *t)
                && !still.contains(&b.break_id)
        });
        changed.extend(ended.map(|b| resolved(b, now)));
        changed
    }

    /// Breaks that are open: found by this process, or by an audit before it. Nothing is known before `tell`.
    pub fn open(&self) -> usize {
        let known = self.known.iter().flat_map(|known| known.values());
        known
            .filter(|b| b.status == BreakStatus::Opened)
            .filter(|b| b.found_by == NAME || self.seen.contains(&b.break_id))
            .count()
    }

    /// Offsets and states that may be kept, see the module. Call it only after a `tell` that succeeded.
    pub fn marks(&self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (p, part) in &self.parts {
            let floor = self.floors.get(p).copied().unwrap_or(0);
            let Some((next, state)) = part.marks.front().filter(|(_, s)| s.commit <= floor) else {
                continue;
            };
            let text = state.encode();
            let mut element = list.add_partition(topics::LEDGER, *p);
            if element.set_offset(Offset::Offset(*next)).is_ok() && text.len() <= METADATA {
                element.set_metadata(text.as_str());
            }
        }
        list
    }
}
