//! The ledger's own arithmetic, entry by entry: INV-11 (records = accepted + duplicates +
//! rejected) and INV-12 (commit numbers and positions contiguous, skipped offsets accounted for,
//! system time rising, hash chain, running totals).
//!
//! Pure. The state of a task is a few hundred bytes of text: it travels in the audit group's
//! offset metadata, so that a restarted audit goes on exactly where it stopped. After a finding
//! the entry in hand becomes the new base, so one fault gives its findings once and not with
//! every entry that follows.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::{BreakKind, LedgerEntry, hash128, topics};
use serde::{Deserialize, Serialize};

use crate::counts::Counted;
use crate::findings::{Finding, Findings, Layer};

/// What the audit knows of one task after its last entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskAudit {
    /// Number of the last entry.
    #[serde(rename = "c")]
    pub commit: i64,
    /// Its system time, µs.
    #[serde(rename = "s")]
    pub system_time: i64,
    /// Its hash, as 32 hex digits.
    #[serde(rename = "h")]
    pub hash: String,
    /// Input position (exclusive) by topic.
    #[serde(rename = "i")]
    pub inputs: BTreeMap<String, i64>,
    /// Running totals by name.
    #[serde(rename = "t")]
    pub totals: BTreeMap<String, i64>,
    /// The task stopped gracefully with this entry.
    #[serde(rename = "l", default)]
    pub last: bool,
    /// Records ever taken, by input topic. Only known if the audit has seen every entry.
    #[serde(rename = "r", default)]
    pub taken: BTreeMap<String, i64>,
    /// Every entry from the first on was seen.
    #[serde(rename = "w", default)]
    pub whole: bool,
    /// Corrections taken by entries that do not say how many records retract, as builds before that total wrote them: so
    /// many rows may be missing, and nobody can tell. Only known if the audit has seen every entry.
    #[serde(rename = "u", default)]
    pub uncounted: i64,
}

/// The stored state is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored audit state {0:?} is not readable; the audit of this partition begins anew")]
pub struct BadState(String);

impl TaskAudit {
    /// Text form, led by a version.
    pub fn encode(&self) -> String {
        // A struct of numbers, texts and maps with text keys: serialising cannot fail.
        format!("v2 {}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads every version ever written.
    ///
    /// # Errors
    /// [`BadState`].
    pub fn decode(text: &str) -> Result<TaskAudit, BadState> {
        let read = match text.split_once(' ') {
            Some(("v2", json)) => serde_json::from_str(json).ok(),
            Some(("v1", json)) => serde_json::from_str(json).ok().map(TaskAudit::of_v1),
            _ => None,
        };
        read.ok_or_else(|| BadState(text.chars().take(80).collect()))
    }

    /// Retractions were not counted: any correction may have been one.
    fn of_v1(mut self) -> TaskAudit {
        self.uncounted = self.taken.get(topics::BARS).copied().unwrap_or(0);
        self
    }
}

/// Folds ledger entries, per task.
#[derive(Debug, Clone, Default)]
pub struct LedgerAudit {
    tasks: BTreeMap<i32, TaskAudit>,
    /// Tasks whose entries are read from the very first record of the ledger on.
    from_start: BTreeSet<i32>,
    entries: u64,
}

/// Names of the running totals that an entry's own numbers give.
fn sums(entry: &LedgerEntry) -> BTreeMap<&str, i64> {
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for i in &entry.inputs {
        for (name, n) in [
            ("records", i.records),
            ("accepted", i.accepted),
            ("duplicates", i.duplicates),
            ("rejected", i.rejected),
            ("skipped", i.skipped),
        ] {
            *sums.entry(name).or_default() += n;
        }
    }
    *sums.entry("corrections").or_default() += entry.corrections;
    for o in &entry.outputs {
        *sums.entry(&o.topic).or_default() += o.count;
    }
    sums
}

/// The running totals of records that make no row, with the topic whose records they are: Silver, Gold.
const RETRACTED: [(&str, &str); 2] = [
    (LedgerEntry::BARS_RETRACTED, topics::OHLCV),
    (LedgerEntry::METRICS_RETRACTED, topics::METRICS),
];

/// Corrections that an entry's commit took: it retracts no more records of a topic than that.
pub(crate) fn asserted(entry: &LedgerEntry) -> i64 {
    let bars = entry.inputs.iter().filter(|i| i.topic == topics::BARS);
    bars.map(|i| i.accepted).sum()
}

impl LedgerAudit {
    /// Nothing seen yet.
    pub fn new() -> LedgerAudit {
        LedgerAudit::default()
    }

    /// Goes on after an earlier audit of this task.
    pub fn resume(&mut self, task: i32, state: TaskAudit) {
        self.tasks.insert(task, state);
    }

    /// What comes next of this task is the first record that its ledger ever had: nothing was cut
    /// off by retention, so it must be commit 1.
    pub fn from_start(&mut self, task: i32) {
        self.from_start.insert(task);
    }

    /// The state of a task.
    pub fn task(&self, task: i32) -> Option<&TaskAudit> {
        self.tasks.get(&task)
    }

    /// All tasks, in order.
    pub fn tasks(&self) -> impl Iterator<Item = (i32, &TaskAudit)> {
        self.tasks.iter().map(|(task, state)| (*task, state))
    }

    /// Entries folded since this audit began.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many records of Silver and of Gold retract in this entry, which is to be pushed next; `None` if that is not
    /// known: the entry before was not seen, or its writer did not count them.
    pub fn retracted(&self, entry: &LedgerEntry) -> Option<[i64; 2]> {
        let before = self.tasks.get(&entry.task);
        let before = before.filter(|b| b.commit + 1 == entry.commit);
        if before.is_none() && entry.commit != 1 {
            return None;
        }
        let grown = |name: &str| {
            // A chain without the total begins it at 0.
            let had = before.and_then(|b| b.totals.get(name)).copied();
            Some(entry.total(name)? - had.unwrap_or(0))
        };
        let [(bars, _), (metrics, _)] = RETRACTED;
        Some([grown(bars)?, grown(metrics)?])
    }

    /// The intervals of which this entry's commit made bars, which is to be pushed next; `None` if that is not known.
    pub fn intervals(&self, entry: &LedgerEntry) -> Option<BTreeSet<String>> {
        let before = self.tasks.get(&entry.task);
        let before = before.filter(|b| b.commit + 1 == entry.commit);
        if before.is_none() && entry.commit != 1 {
            return None;
        }
        let had = |interval: &str| {
            let total = before?.totals.get(&LedgerEntry::commits_of(interval))?;
            Some(*total)
        };
        let grown = entry
            .commits_by_interval()
            .filter(|(interval, n)| *n > had(interval).unwrap_or(0));
        let made: BTreeSet<String> = grown.map(|(interval, _)| interval.to_owned()).collect();
        // A writer that does not count hands the totals on as they were; days are always made.
        (!made.is_empty()).then_some(made)
    }

    /// Takes the next entry of a task, in the order of the ledger; `value` is the record's value as
    /// it was read, which the next entry's `prev_hash` is a hash of. True if it was new.
    pub fn push(&mut self, entry: &LedgerEntry, value: &[u8], out: &mut Findings) -> bool {
        let before = self.tasks.get(&entry.task);
        if let Some(b) = before.filter(|b| entry.commit <= b.commit) {
            if entry.commit == b.commit && b.hash == hex(hash128(&[], value)) {
                return false; // read again
            }
            out.push(
                finding(entry, "INV-12:commit", BreakKind::Duplicate)
                    .expected(format!("commit {}", b.commit + 1))
                    .actual(format!("commit {}", entry.commit))
                    .detail(
                        "commit numbers went back: two tasks ran for one partition, the task's \
                         state was lost and began again, or an entry was slipped in; stop the \
                         application and compare both entries of this number",
                    ),
            );
            if entry.commit < b.commit {
                // Whoever wrote it goes on from there.
                let mut state = state_after(entry, value);
                state.taken.clone_from(&b.taken);
                state.uncounted = b.uncounted;
                self.tasks.insert(entry.task, state);
            }
            return false;
        }
        self.entries += 1;
        balance(entry, out);
        if let Some(before) = before {
            follows(entry, before, out);
        } else if entry.commit > 1 && self.from_start.contains(&entry.task) {
            out.push(
                finding(entry, "INV-12:commit", BreakKind::Missing)
                    .expected("commit 1")
                    .actual(format!("commit {}", entry.commit))
                    .detail(
                        "the ledger begins with a later commit: the state store ran ahead of \
                         Kafka, and what it took before was never written; rebuild the state, \
                         and replay from the first offset",
                    ),
            );
        } else if entry.commit == 1 && entry.prev_hash != 0 {
            out.push(
                finding(entry, "INV-12:chain", BreakKind::Ledger)
                    .expected("0")
                    .actual(hex(entry.prev_hash))
                    .detail("the first entry of a task names a predecessor"),
            );
        }
        let mut taken = before.map(|b| b.taken.clone()).unwrap_or_default();
        for i in &entry.inputs {
            *taken.entry(i.topic.clone()).or_default() += i.records;
        }
        let mut uncounted = before.map_or(0, |b| b.uncounted);
        if RETRACTED.iter().any(|(n, _)| entry.total(n).is_none()) {
            uncounted += asserted(entry);
        }
        let whole = match before {
            Some(b) => b.whole && entry.commit == b.commit + 1,
            None => entry.commit == 1,
        };
        let state = TaskAudit {
            taken,
            whole,
            uncounted,
            ..state_after(entry, value)
        };
        self.tasks.insert(entry.task, state);
        true
    }
}

/// What an entry alone says about the state after it.
fn state_after(entry: &LedgerEntry, value: &[u8]) -> TaskAudit {
    let inputs = entry.inputs.iter().map(|i| (i.topic.clone(), i.end));
    TaskAudit {
        commit: entry.commit,
        system_time: entry.system_time,
        hash: hex(hash128(&[], value)),
        inputs: inputs.collect(),
        totals: entry.totals.iter().cloned().collect(),
        last: entry.last,
        ..TaskAudit::default()
    }
}

/// INV-11, and that positions are all accounted for.
fn balance(entry: &LedgerEntry, out: &mut Findings) {
    for i in &entry.inputs {
        let sum = i.accepted + i.duplicates + i.rejected;
        if i.records != sum {
            out.push(
                finding(entry, format!("INV-11:{}", i.topic), BreakKind::Ledger)
                    .expected(format!("records = {}", i.records))
                    .actual(format!(
                        "accepted {} + duplicates {} + rejected {} = {sum}",
                        i.accepted, i.duplicates, i.rejected
                    ))
                    .detail(
                        "the task lost count of what it did with its input; reconcile Bronze and \
                         Silver over this commit, and report a bug",
                    ),
            );
        }
        let covered = i.records + i.skipped;
        let numbers = [i.records, i.accepted, i.duplicates, i.rejected, i.skipped];
        if i.end - i.start != covered || numbers.iter().any(|n| *n < 0) {
            out.push(
                finding(
                    entry,
                    format!("INV-12:skipped:{}", i.topic),
                    BreakKind::Ledger,
                )
                .expected(format!("{} positions", i.end - i.start))
                .actual(format!("records {} + skipped {}", i.records, i.skipped))
                .detail(
                    "positions of the input are neither records nor markers: input was \
                         passed over",
                ),
            );
        }
    }
}

/// INV-12 between two entries.
fn follows(entry: &LedgerEntry, before: &TaskAudit, out: &mut Findings) {
    if entry.commit != before.commit + 1 {
        out.push(
            finding(entry, "INV-12:commit", BreakKind::Missing)
                .expected(format!("commit {}", before.commit + 1))
                .actual(format!("commit {}", entry.commit))
                .detail(
                    "entries are missing between: the ledger lost records (retention, \
                     DeleteRecords) or the task's state was lost and began again",
                ),
        );
        // Whatever lies between is unknown: positions, chain and totals cannot be judged.
        return;
    }
    if entry.system_time <= before.system_time {
        out.push(
            finding(entry, "INV-12:system_time", BreakKind::Ledger)
                .expected(format!("> {}", before.system_time))
                .actual(entry.system_time.to_string())
                .detail("system time did not rise; as-of answers between the two are not fixed"),
        );
    }
    if before.hash != hex(entry.prev_hash) {
        out.push(
            finding(entry, "INV-12:chain", BreakKind::Ledger)
                .expected(before.hash.clone())
                .actual(hex(entry.prev_hash))
                .detail(
                    "the entry before is not the one this entry was written after: the ledger \
                     was changed, or an aborted commit reached the store",
                ),
        );
    }
    for i in &entry.inputs {
        let Some(&end) = before.inputs.get(&i.topic) else {
            continue; // an input that this version of the application reads for the first time
        };
        if i.start > end {
            out.push(
                position(entry, &i.topic, end, i.start, BreakKind::Missing).detail(
                    "a range of the input was never processed: keep state folder and topics as they \
                 are and report a bug; the trades can be sent again once that is understood",
                ),
            );
        } else if i.start < end {
            out.push(
                position(entry, &i.topic, end, i.start, BreakKind::Duplicate).detail(
                    "a range of the input was processed twice: a commit was applied twice, or the \
                 state store ran ahead of Kafka",
                ),
            );
        }
    }
    let new: BTreeMap<&str, i64> = entry.totals.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    for (name, n) in sums(entry) {
        let due = before.totals.get(name).copied().unwrap_or(0) + n;
        let found = new.get(name).copied();
        if found != Some(due) && !(found.is_none() && due == 0) {
            out.push(
                finding(entry, format!("INV-12:totals:{name}"), BreakKind::Ledger)
                    .expected(due.to_string())
                    .actual(found.map_or("none".to_owned(), |f| f.to_string()))
                    .detail("a running total does not follow from the entry before"),
            );
        }
    }
    for (name, topic) in RETRACTED {
        let made = Counted::Output(topic).of(entry);
        let had = before.totals.get(name).copied();
        let due = had.unwrap_or(0)..=had.unwrap_or(0) + made;
        let found = new.get(name).copied();
        if found.or(had).is_some() && !found.is_some_and(|n| due.contains(&n)) {
            out.push(
                finding(entry, format!("INV-12:totals:{name}"), BreakKind::Ledger)
                    .expected(format!("{} to {}", due.start(), due.end()))
                    .actual(found.map_or("none".to_owned(), |f| f.to_string()))
                    .detail(
                        "a running total of retracted records went back, is gone, or grew by more \
                         than the commit's records",
                    ),
            );
        }
    }
}

fn position(entry: &LedgerEntry, topic: &str, end: i64, start: i64, kind: BreakKind) -> Finding {
    let (a, b) = (end.min(start), end.max(start));
    let mut finding = finding(entry, format!("INV-12:positions:{topic}"), kind)
        .expected(format!("start {end}"))
        .actual(format!("start {start}"));
    finding.key = format!("{topic}/{}:{a}..{b}", entry.task);
    finding
}

fn finding(entry: &LedgerEntry, cause: impl Into<String>, kind: BreakKind) -> Finding {
    let key = format!("{}:{}", entry.task, entry.commit);
    Finding::new(kind, Layer::Ledger, topics::LEDGER, key, cause)
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}

#[cfg(test)]
pub(crate) mod tests {
    use finlake_schemas::{InputRange, OutputCount};
    use proptest::prelude::*;

    use super::*;

    /// A ledger as a task writes it; the bytes are stand-ins, only their hashes matter.
    pub(crate) fn ledger(task: i32, commits: &[(i64, i64, i64)]) -> Vec<(LedgerEntry, Vec<u8>)> {
        let mut out: Vec<(LedgerEntry, Vec<u8>)> = Vec::new();
        let mut totals: BTreeMap<String, i64> = BTreeMap::new();
        let (mut at, mut hash) = (0, 0u128);
        for (n, (accepted, duplicates, skipped)) in commits.iter().enumerate() {
            let records = accepted + duplicates;
            let mut entry = LedgerEntry {
                app_id: "app".into(),
                task,
                commit: n as i64 + 1,
                system_time: 1_000 * (n as i64 + 1),
                stream_times: vec![],
                inputs: vec![InputRange {
                    topic: topics::TICKS.into(),
                    start: at,
                    end: at + records + skipped,
                    records,
                    hash: 7,
                    accepted: *accepted,
                    duplicates: *duplicates,
                    rejected: 0,
                    skipped: *skipped,
                }],
                outputs: vec![OutputCount {
                    topic: topics::OHLCV.into(),
                    count: *accepted,
                    hash: 9,
                }],
                corrections: 0,
                totals: vec![],
                schema_ids: vec![],
                prev_hash: hash,
                last: false,
                heartbeat: records == 0,
            };
            for (name, n) in sums(&entry) {
                *totals.entry(name.to_owned()).or_default() += n;
            }
            entry.totals = totals.clone().into_iter().collect();
            at = entry.inputs[0].end;
            let value = format!("{entry:?}").into_bytes();
            hash = hash128(&[], &value);
            out.push((entry, value));
        }
        out
    }

    /// The same ledger after `edit` of each entry, which puts what the commit adds to further totals into `totals`; what
    /// follows from the entries is made anew.
    pub(crate) fn rewritten(
        mut entries: Vec<(LedgerEntry, Vec<u8>)>,
        edit: impl Fn(usize, &mut LedgerEntry),
    ) -> Vec<(LedgerEntry, Vec<u8>)> {
        let mut totals: BTreeMap<String, i64> = BTreeMap::new();
        let mut hash = 0;
        for (n, (entry, value)) in entries.iter_mut().enumerate() {
            entry.totals.clear();
            edit(n, entry);
            for (name, n) in std::mem::take(&mut entry.totals) {
                *totals.entry(name).or_default() += n;
            }
            for (name, n) in sums(entry) {
                *totals.entry(name.to_owned()).or_default() += n;
            }
            entry.totals = totals.clone().into_iter().collect();
            entry.prev_hash = hash;
            *value = format!("{entry:?}").into_bytes();
            hash = hash128(&[], value);
        }
        entries
    }

    /// A writer that counts: so many records of Silver retract in each commit.
    pub(crate) fn retracting(
        entries: Vec<(LedgerEntry, Vec<u8>)>,
        bars: &[i64],
    ) -> Vec<(LedgerEntry, Vec<u8>)> {
        rewritten(entries, |n, entry| {
            entry.totals = vec![
                (LedgerEntry::BARS_RETRACTED.to_owned(), bars[n]),
                (LedgerEntry::METRICS_RETRACTED.to_owned(), 0),
            ];
            correct(n, entry);
        })
    }

    /// The commit takes one correction.
    pub(crate) fn correct(n: usize, entry: &mut LedgerEntry) {
        let n = n as i64;
        entry.inputs.push(InputRange {
            topic: topics::BARS.into(),
            start: n,
            end: n + 1,
            records: 1,
            hash: 7,
            accepted: 1,
            duplicates: 0,
            rejected: 0,
            skipped: 0,
        });
    }

    fn run(entries: &[(LedgerEntry, Vec<u8>)]) -> Findings {
        let mut audit = LedgerAudit::new();
        let mut out = Findings::default();
        for (entry, value) in entries {
            audit.push(entry, value, &mut out);
        }
        out
    }

    fn causes(found: &Findings) -> Vec<(BreakKind, &str)> {
        found
            .list()
            .iter()
            .map(|f| (f.kind, f.cause.as_str()))
            .collect()
    }

    fn sample() -> Vec<(LedgerEntry, Vec<u8>)> {
        ledger(3, &[(5, 1, 1), (0, 0, 0), (7, 0, 1), (2, 2, 0), (1, 0, 1)])
    }

    #[test]
    fn a_good_ledger_is_clean_and_may_be_read_again() {
        // The last entry, that is; what came before it is the reader's to leave out, by its offset.
        let twice: Vec<_> = sample().into_iter().flat_map(|e| [e.clone(), e]).collect();
        assert!(run(&twice).is_empty());
    }

    #[test]
    fn state_survives_as_text() {
        let all = sample();
        let mut first = LedgerAudit::new();
        let mut out = Findings::default();
        for (entry, value) in &all[..3] {
            first.push(entry, value, &mut out);
        }
        let text = first.task(3).unwrap().encode();
        assert!(
            text.len() < 1_000,
            "{} bytes must fit offset metadata",
            text.len()
        );
        let mut second = LedgerAudit::new();
        second.resume(3, TaskAudit::decode(&text).unwrap());
        for (entry, value) in &all[2..] {
            second.push(entry, value, &mut out);
        }
        assert!(out.is_empty());
        assert_eq!(second.entries(), 2);
        assert!(TaskAudit::decode("v2 {}").is_err());
        assert!(TaskAudit::decode("v3 {}").is_err());
    }

    #[test]
    fn fixture_of_the_stored_state() {
        let old = r#"v1 {"c":2,"s":5,"h":"00","i":{"market.ticks":9},"t":{"records":9},"l":true}"#;
        let state = TaskAudit::decode(old).unwrap();
        assert_eq!(
            (state.commit, state.inputs["market.ticks"], state.whole),
            (2, 9, false)
        );
        let text = r#"v1 {"c":2,"s":5,"h":"00","i":{"market.ticks":9},"t":{"records":9},"l":true,"r":{"market.ticks":9},"w":true}"#;
        let state = TaskAudit::decode(text).unwrap();
        assert_eq!((state.taken["market.ticks"], state.whole), (9, true));
        assert_eq!(state.uncounted, 0);
        // Any correction before may have been a retraction.
        let text = text.replace("\"r\":{", "\"r\":{\"market.bars\":4,");
        assert_eq!(TaskAudit::decode(&text).unwrap().uncounted, 4);
        let v2 = r#"v2 {"c":2,"s":5,"h":"00","i":{"market.ticks":9},"t":{"records":9},"l":true,"r":{"market.ticks":9},"w":true,"u":3}"#;
        let state = TaskAudit::decode(v2).unwrap();
        assert_eq!((state.whole, state.uncounted), (true, 3));
        assert_eq!(state.encode(), v2);
    }

    #[test]
    fn what_no_entry_counted_is_remembered() {
        let commits = [(5, 0, 0), (3, 0, 0), (4, 0, 0), (1, 0, 0)];
        // A build that counts took over with the third entry.
        let entries = rewritten(ledger(3, &commits), |n, entry| {
            if n >= 2 {
                entry.totals = vec![
                    (LedgerEntry::BARS_RETRACTED.to_owned(), 1),
                    (LedgerEntry::METRICS_RETRACTED.to_owned(), 0),
                ];
            }
            correct(n, entry);
        });
        let mut audit = LedgerAudit::new();
        let mut found = Findings::default();
        let mut known = Vec::new();
        for (entry, value) in &entries {
            known.push(audit.retracted(entry));
            audit.push(entry, value, &mut found);
            let text = audit.task(3).unwrap().encode();
            audit.resume(3, TaskAudit::decode(&text).unwrap());
        }
        assert!(found.is_empty(), "{:?}", found.list());
        assert_eq!(known, [None, None, Some([1, 0]), Some([1, 0])]);
        let state = audit.task(3).unwrap();
        assert_eq!((state.whole, state.uncounted), (true, 2));
        assert_eq!(state.totals[LedgerEntry::BARS_RETRACTED], 2);
    }

    #[test]
    fn totals_of_retractions_follow() {
        let good = retracting(ledger(3, &[(5, 0, 0), (3, 0, 0), (4, 0, 0)]), &[0, 1, 0]);
        assert!(run(&good).is_empty());
        let set = |entry: &mut LedgerEntry, to: Option<i64>| {
            entry
                .totals
                .retain(|(name, _)| name != LedgerEntry::BARS_RETRACTED);
            let total = to.map(|to| (LedgerEntry::BARS_RETRACTED.to_owned(), to));
            entry.totals.extend(total);
        };
        // Gone, gone back, more than the commit has records.
        for to in [None, Some(0), Some(6)] {
            let mut bad = good.clone();
            set(&mut bad[2].0, to);
            let name = "INV-12:totals:market.ohlcv.retracted";
            assert_eq!(causes(&run(&bad)), [(BreakKind::Ledger, name)], "{to:?}");
        }
    }

    #[test]
    fn each_fault_has_its_name() {
        type Fault = fn(&mut Vec<(LedgerEntry, Vec<u8>)>);
        let cases: &[(Fault, &[(BreakKind, &str)])] = &[
            (
                |l| l[2].0.inputs[0].accepted += 1,
                &[
                    (BreakKind::Ledger, "INV-11:market.ticks"),
                    (BreakKind::Ledger, "INV-12:totals:accepted"),
                ],
            ),
            (
                |l| {
                    l.remove(2);
                },
                &[(BreakKind::Missing, "INV-12:commit")],
            ),
            (
                |l| l[2].0.inputs[0].skipped += 1,
                &[
                    (BreakKind::Ledger, "INV-12:skipped:market.ticks"),
                    (BreakKind::Ledger, "INV-12:totals:skipped"),
                ],
            ),
            (
                |l| l[2].0.system_time = l[1].0.system_time,
                &[(BreakKind::Ledger, "INV-12:system_time")],
            ),
            (
                |l| l[2].0.prev_hash ^= 1,
                &[(BreakKind::Ledger, "INV-12:chain")],
            ),
            (
                |l| l[2].0.inputs[0].start += 1,
                &[
                    (BreakKind::Ledger, "INV-12:skipped:market.ticks"),
                    (BreakKind::Missing, "INV-12:positions:market.ticks"),
                ],
            ),
            (
                |l| l[2].0.inputs[0].start -= 1,
                &[
                    (BreakKind::Ledger, "INV-12:skipped:market.ticks"),
                    (BreakKind::Duplicate, "INV-12:positions:market.ticks"),
                ],
            ),
            (
                |l| l[2].0.totals.retain(|(name, _)| name != "records"),
                &[
                    (BreakKind::Ledger, "INV-12:totals:records"),
                    (BreakKind::Ledger, "INV-12:totals:records"),
                ],
            ),
            (
                |l| {
                    let mut other = l[2].clone();
                    other.1.push(0);
                    l.insert(3, other);
                },
                &[(BreakKind::Duplicate, "INV-12:commit")],
            ),
            (
                |l| {
                    let again = l[1].clone();
                    l.push(again);
                },
                &[(BreakKind::Duplicate, "INV-12:commit")],
            ),
        ];
        for (n, (fault, expected)) in cases.iter().enumerate() {
            let mut entries = sample();
            fault(&mut entries);
            let found = run(&entries);
            assert_eq!(causes(&found), *expected, "case {n}");
            for f in found.list() {
                assert!(f.key.starts_with("3:") || f.key.starts_with("market.ticks/3:"));
                assert!(!f.detail.is_empty());
            }
        }
    }

    #[test]
    fn a_ledger_that_was_not_cut_begins_with_commit_1() {
        let entries = ledger(0, &[(1, 0, 0), (2, 0, 0), (3, 0, 0)]);
        let cut = &entries[1..];
        assert!(run(cut).is_empty(), "retention took the first");
        let mut audit = LedgerAudit::new();
        audit.from_start(0);
        let mut found = Findings::default();
        for (entry, value) in cut {
            audit.push(entry, value, &mut found);
        }
        assert_eq!(causes(&found), [(BreakKind::Missing, "INV-12:commit")]);
    }

    proptest! {
        /// Any number changed in any entry is found; nothing else is.
        #[test]
        fn no_number_can_change(
            commits in prop::collection::vec((0i64..50, 0i64..5, 0i64..3), 2..30),
            at in any::<prop::sample::Index>(),
            what in 0usize..8,
            by in prop_oneof![-5i64..0, 1i64..5],
        ) {
            let clean = ledger(0, &commits);
            prop_assert!(run(&clean).is_empty());
            let mut bad = clean;
            let at = at.index(bad.len());
            let entry = &mut bad[at].0;
            let input = &mut entry.inputs[0];
            match what {
                0 => input.records += by,
                1 => input.accepted += by,
                2 => input.duplicates += by,
                3 => input.rejected += by,
                4 => input.skipped += by,
                5 => input.start += by,
                6 => input.end += by,
                _ => entry.commit += by,
            }
            let mut audit = LedgerAudit::new();
            audit.from_start(0);
            let mut found = Findings::default();
            for (entry, value) in &bad {
                audit.push(entry, value, &mut found);
            }
            prop_assert!(!found.is_empty());
        }
    }
}
