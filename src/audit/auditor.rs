//! What the audit knows and does, whoever reads the ledger for it: folds entries, compares the tables' row counts with
//! the ledger's totals, tells what it finds, and says what of its state may be kept.
//!
//! A state may be kept once the breaks before it are written and the tables have reached it: whoever goes on from there
//! has lost no finding, and knows the totals at which the tables stand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use anyhow::{Context, Result};
use finlake_lakehouse::{LakeError, Lakehouse, Pinned, Table};
use finlake_reconcile::counts::Balance;
use finlake_reconcile::{Findings, LedgerAudit, TaskAudit};
use finlake_schemas::{Break, BreakStatus, Codec, topics};
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::breaks::now;
use super::lines::{Line, Lines, TABLES};
use super::publish::{Breaks, Publisher};
use super::trail::{At, Trail, again};
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
    /// Entries that the metrics show.
    shown: u64,
    /// Reading began since.
    begun: bool,
    parts: BTreeMap<i32, Part>,
    /// Commit that all tables have reached, by partition, at the last look.
    floors: BTreeMap<i32, i64>,
    /// Commits that snapshots end at which are not judged yet, by partition.
    wanted: BTreeMap<i32, BTreeSet<i64>>,
    /// Of the ledger, since they were last told.
    ledger: Findings,
    /// In the order of [`TABLES`].
    trails: [Trail; TABLES.len()],
    /// Breaks, as last read; `None` until then.
    known: Option<Breaks>,
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
            shown: 0,
            begun: false,
            parts: BTreeMap::new(),
            floors: BTreeMap::new(),
            wanted: BTreeMap::new(),
            ledger: Findings::default(),
            trails: TABLES.map(|(table, layer)| Trail::new(table.to_string(), layer)),
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
        self.begun = true;
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
        self.shown = 0;
        self.parts.clear();
        self.ledger = Findings::default();
        self.trails.iter_mut().for_each(Trail::forget);
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
        let floor = self.floors.get(&partition).copied().unwrap_or(0);
        let wanted = self.wanted.get(&partition);
        if (entry.commit >= floor || wanted.is_some_and(|w| w.contains(&entry.commit)))
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

    /// Shows how far the ledger was read.
    pub fn show(&mut self) {
        let entries = self.audit.entries();
        if entries == self.shown && !self.begun {
            return;
        }
        self.begun = false;
        self.metrics.audit_read(entries.saturating_sub(self.shown));
        self.shown = entries;
        for (p, state) in self.audit.tasks() {
            self.metrics.audit_commit(p, state.commit);
        }
    }

    /// Entries folded.
    pub fn entries(&self) -> u64 {
        self.audit.entries()
    }

    /// INV-13: rows of each table against the ledger, snapshot by snapshot and at the table's own position. Gives what
    /// could not be compared.
    pub fn look(&mut self) -> Vec<(Table, Unlike)> {
        let mut floors: Option<BTreeMap<i32, i64>> = None;
        let mut unlike = Vec::new();
        self.wanted.clear();
        for (at, (table, _)) in TABLES.into_iter().enumerate() {
            let pinned = match self.runtime.block_on(self.lake.snapshot(table)) {
                Ok(pinned) => pinned,
                Err(e) => {
                    // The sink says the same, and louder.
                    if matches!(e, LakeError::TableMoved { .. }) {
                        tracing::warn!("audit: {e}");
                    } else {
                        tracing::debug!("audit: {e}");
                    }
                    self.trails[at].unseen();
                    floors = Some(BTreeMap::new());
                    unlike.push((table, Unlike::Unknown(e.to_string())));
                    continue;
                }
            };
            let commit = |p: &i32| pinned.position(*p).commit;
            floors = Some(match floors {
                None => {
                    let all = pinned.watermarks().positions.iter();
                    all.map(|(p, at)| (*p, at.commit)).collect()
                }
                Some(before) => before
                    .iter()
                    .map(|(p, n)| (*p, commit(p).min(*n)))
                    .collect(),
            });
            if let Err(why) = self.compare(at, &pinned) {
                unlike.push((table, why));
            }
        }
        self.floors = floors.unwrap_or_default();
        self.remember();
        unlike
    }

    /// Forgets what no table needs any more, and notes the state of each partition.
    fn remember(&mut self) {
        let none = BTreeSet::new();
        for (p, part) in &mut self.parts {
            let floor = self.floors.get(p).copied().unwrap_or(0);
            let wanted = self.wanted.get(p).unwrap_or(&none);
            part.lines.forget_before(floor, wanted);
            let newer = |marks: &VecDeque<(i64, TaskAudit)>, commit| {
                marks.back().is_none_or(|(_, s)| s.commit < commit)
            };
            if let Some(state) = self.audit.task(*p)
                && part.marks.len() < MARKS
                && newer(&part.marks, state.commit)
            {
                part.marks.push_back((part.next, state.clone()));
            }
            let bar = bar(&self.floors, &self.wanted, *p);
            while part.marks.get(1).is_some_and(|(_, s)| s.commit <= bar) {
                part.marks.pop_front();
            }
        }
    }

    fn compare(&mut self, at: usize, pinned: &Pinned) -> Result<(), Unlike> {
        let table = pinned.table();
        let trail = &mut self.trails[at];
        let line = pinned.lineage().map_err(|e| {
            trail.unseen();
            Unlike::Unknown(e.to_string())
        })?;
        let metadata = pinned.metadata();
        let kept = metadata.snapshots().map(|s| s.snapshot_id()).collect();
        let (audit, parts) = (&self.audit, &self.parts);
        let ledger = |p, commit| rows_at(audit, parts, table, p, commit);
        for (p, commit) in trail.follow(metadata.uuid().as_u128(), &line, kept, ledger) {
            self.wanted.entry(p).or_default().insert(commit);
        }
        let rows = line.last().map_or(0, |s| s.rows);
        let (balance, reached) = self.whole(pinned, rows)?;
        self.metrics
            .audit_table(&table.to_string(), rows - balance.expected);
        self.trails[at].compare(pinned.snapshot_id(), balance, reached);
        Ok(())
    }

    /// A table of so many rows against the ledger at its position, and up to which system time it holds all of it.
    fn whole(&self, pinned: &Pinned, rows: i64) -> Result<(Balance, i64), Unlike> {
        let table = pinned.table();
        let mut balance = Balance {
            actual: rows,
            ..Balance::default()
        };
        let mut whole = i64::MAX;
        for (p, position) in &pinned.watermarks().positions {
            let commit = position.commit;
            if commit == 0 {
                continue;
            }
            let unknown = |why: &str| {
                Unlike::Unknown(format!(
                    "{table} is at commit {commit} of partition {p}, {why}"
                ))
            };
            let part = self.parts.get(p);
            let part = part.ok_or_else(|| unknown("which the ledger does not have"))?;
            match rows_at(&self.audit, &self.parts, table, *p, commit) {
                At::Ahead => return Err(Unlike::Ahead),
                At::Unknown => {
                    return Err(unknown(
                        "of which the ledger's totals are not known: its beginning is gone, or the \
                         audit went on from a later state; `finlake reconcile` compares every commit",
                    ));
                }
                At::Rows(rows, uncounted) => {
                    balance.expected += rows;
                    balance.uncounted += uncounted;
                }
            }
            whole = whole.min(part.lines.reached(table, commit));
        }
        Ok((balance, whole))
    }

    /// Findings as metrics, log lines and breaks, each once; ends those about row counts that are right again.
    ///
    /// # Errors
    /// Kafka does not answer: the findings are kept for the next time.
    pub fn tell(&mut self) -> Result<()> {
        self.seen.extend(self.ledger.list().iter().map(|f| f.id()));
        // What others wrote since matters only to what is found: they may have ended it.
        let finds = !self.ledger.is_empty() || self.trails.iter().any(Trail::finds);
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

    fn changes(&self, known: &Breaks) -> Vec<Break> {
        let now = now();
        let mut changed = Vec::new();
        for finding in self.ledger.list() {
            let before = known.get(&finding.id());
            if before.is_none_or(|b| b.status == BreakStatus::Resolved) {
                changed.push(again(finding, known, now));
            }
        }
        changed.extend(self.trails.iter().flat_map(|t| t.changes(known, now)));
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
            let bar = bar(&self.floors, &self.wanted, *p);
            let Some((next, state)) = part.marks.front().filter(|(_, s)| s.commit <= bar) else {
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

/// Up to which commit of a partition a state may be kept: every table has reached it, and no snapshot that is still to be
/// judged begins before it.
fn bar(floors: &BTreeMap<i32, i64>, wanted: &BTreeMap<i32, BTreeSet<i64>>, partition: i32) -> i64 {
    let floor = floors.get(&partition).copied().unwrap_or(0);
    let first = wanted.get(&partition).and_then(|w| w.first());
    first.map_or(floor, |first| floor.min(*first))
}

/// Rows of a table after a commit, by the ledger.
fn rows_at(
    audit: &LedgerAudit,
    parts: &BTreeMap<i32, Part>,
    table: Table,
    partition: i32,
    commit: i64,
) -> At {
    if commit == 0 {
        return At::Rows(0, 0);
    }
    if audit.task(partition).is_none_or(|s| s.commit < commit) {
        return At::Ahead;
    }
    let part = parts.get(&partition);
    part.and_then(|part| part.lines.at(commit))
        .map_or(At::Unknown, |line| {
            let (rows, uncounted) = line.rows(table);
            At::Rows(rows, uncounted)
        })
}
