//! What a replay gave against what the tables hold, key by key. Pure.
//!
//! Compared is content (semantics: without sys_*, revision, stage, commit and offsets). A live stream is never whole: a
//! bar that changed after the last version it was given is *pending*, not different, as long as the rules still allow
//! the task to wait.

use std::collections::BTreeMap;

use finlake_schemas::{Bar, BarContent, Metrics, Stage};

/// Statistics may differ in the last digits where sums were formed in another order.
const TOLERANCE: f64 = 1e-9;

/// The content of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Bar(Box<BarContent>),
    Metrics {
        /// decimal(38,8) units.
        close: i128,
        /// return_1, then return, volatility and Sharpe of each window.
        statistics: Vec<Option<f64>>,
    },
}

/// A current row, of a table or of a replay.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub content: Content,
    /// Whether stream time had passed the end of the bar.
    pub closed: bool,
    pub sys_from: i64,
    pub revision: i32,
}

impl Row {
    /// `None`: the record takes the row back.
    pub fn of_bar(bar: &Bar<'_>) -> Option<Row> {
        (!bar.retracted).then(|| Row {
            content: Content::Bar(Box::new(BarContent::of(bar))),
            closed: bar.stage == Stage::Closed,
            sys_from: bar.sys_from,
            revision: bar.revision,
        })
    }

    /// `None`: the record takes the row back.
    pub fn of_metrics(m: &Metrics<'_>) -> Option<Row> {
        let windows = m.windows.iter();
        let windows = windows.flat_map(|w| [w.ret, w.volatility, w.sharpe]);
        (!m.retracted).then(|| Row {
            content: Content::Metrics {
                close: m.close.0,
                statistics: std::iter::once(m.return_1).chain(windows).collect(),
            },
            closed: true,
            sys_from: m.sys_from,
            revision: m.revision,
        })
    }

    fn trades(&self) -> i64 {
        match &self.content {
            Content::Bar(bar) => bar.trade_count,
            Content::Metrics { .. } => 0,
        }
    }
}

/// Rows by natural key, as the topics spell it.
pub type Rows = BTreeMap<Vec<u8>, Row>;

/// How a key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The replay has it, the table has not.
    Missing,
    /// The table has it, the replay has not.
    Extra,
    /// Both have it, with other content.
    Different,
}

/// One key that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub key: Vec<u8>,
    pub what: What,
    pub live: Option<Row>,
    pub replayed: Option<Row>,
    /// Somebody corrected it, or what it is computed from: trades alone do not give it.
    pub corrected: bool,
}

impl Difference {
    /// As reports spell it.
    pub fn as_str(&self) -> &'static str {
        match (self.corrected, self.what) {
            (true, _) => "corrected",
            (false, What::Missing) => "missing",
            (false, What::Extra) => "extra",
            (false, What::Different) => "different",
        }
    }
}

/// Counts of a comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub equal: u64,
    /// The table may still be waiting for its next version.
    pub pending: u64,
    pub different: u64,
    /// Different because somebody corrected it.
    pub corrected: u64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (equal, pending, different) = (self.equal, self.pending, self.different);
        write!(f, "{equal} equal, {pending} pending, {different} different")?;
        match self.corrected {
            0 => Ok(()),
            n => write!(f, ", {n} corrected"),
        }
    }
}

/// What a replay gave: `settled` at the cut, and `last`, the rows that the task may have given by then, or gives at a stop.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    pub settled: Rows,
    pub last: Rows,
}

impl Replayed {
    /// Takes what a commit gave. A version of an unfinished bar that `by_clock` alone was due may come later: a task
    /// that was killed counts its quiet minute from its new start.
    pub fn take(&mut self, key: Vec<u8>, row: Option<Row>, by_clock: bool) {
        match row {
            Some(row) if by_clock && !row.closed => {
                self.last.insert(key, row);
            }
            row => {
                self.last.remove(&key);
                put(&mut self.settled, key, row);
            }
        }
    }
}

/// The newest row of a key; without one, that there is none any more.
pub fn put(rows: &mut Rows, key: Vec<u8>, row: Option<Row>) {
    match row {
        Some(row) => rows.insert(key, row),
        None => rows.remove(&key),
    };
}

/// Silver and Gold, as the tables hold them and as a replay gave them.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    pub bars: Rows,
    pub metrics: Rows,
    pub silver: Replayed,
    pub gold: Replayed,
}

/// Sets the differences apart whose keys were corrected.
pub fn set_apart(
    (tally, found): (&mut Tally, &mut [Difference]),
    is_corrected: impl Fn(&[u8]) -> bool,
) {
    for difference in found.iter_mut().filter(|d| is_corrected(&d.key)) {
        difference.corrected = true;
        tally.different -= 1;
        tally.corrected += 1;
    }
}

/// Compares; differences in order of key.
pub fn compare(live: &Rows, replayed: &Replayed) -> (Tally, Vec<Difference>) {
    let mut tally = Tally::default();
    let mut found = Vec::new();
    let mut keys: Vec<&Vec<u8>> = live.keys().collect();
    keys.extend(replayed.settled.keys());
    keys.extend(replayed.last.keys());
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (a, settled, last) = (
            live.get(key),
            replayed.settled.get(key),
            replayed.last.get(key),
        );
        let wanted = last.or(settled);
        if same(a, wanted) {
            tally.equal += 1;
        } else if last.is_some() && (same(a, settled) || waits(a, last)) {
            tally.pending += 1;
        } else {
            tally.different += 1;
            let what = match (a, wanted) {
                (None, _) => What::Missing,
                (_, None) => What::Extra,
                _ => What::Different,
            };
            found.push(Difference {
                key: key.clone(),
                what,
                live: a.cloned(),
                replayed: wanted.cloned(),
                corrected: false,
            });
        }
    }
    (tally, found)
}

/// A version of an unfinished bar between two that the replay made: the task checkpoints by its own clock too.
fn waits(live: Option<&Row>, last: Option<&Row>) -> bool {
    match (live, last) {
        (Some(live), Some(last)) => !live.closed && live.trades() <= last.trades(),
        _ => false,
    }
}

fn same(a: Option<&Row>, b: Option<&Row>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => equal(&a.content, &b.content),
        _ => false,
    }
}

fn equal(a: &Content, b: &Content) -> bool {
    match (a, b) {
        (Content::Bar(a), Content::Bar(b)) => a == b,
        (
            Content::Metrics { close, statistics },
            Content::Metrics {
                close: c,
                statistics: s,
            },
        ) => close == c && statistics.len() == s.len() && statistics.iter().zip(s).all(near),
        _ => false,
    }
}

fn near((a, b): (&Option<f64>, &Option<f64>)) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(close: i128, closed: bool) -> Row {
        Row {
            content: Content::Metrics {
                close,
                statistics: vec![Some(0.1), None],
            },
            closed,
            sys_from: 1,
            revision: 0,
        }
    }

    fn rows(all: &[(&str, i128, bool)]) -> Rows {
        let each = all.iter();
        each.map(|(k, c, closed)| (k.as_bytes().to_vec(), row(*c, *closed)))
            .collect()
    }

    #[test]
    fn what_is_missing_extra_or_different_is_named() {
        let live = rows(&[("a", 1, true), ("b", 2, true), ("c", 3, true)]);
        let replayed = Replayed {
            settled: rows(&[("a", 1, true), ("b", 9, true), ("d", 4, true)]),
            last: Rows::new(),
        };
        let (tally, found) = compare(&live, &replayed);
        assert_eq!((tally.equal, tally.pending, tally.different), (1, 0, 3));
        let what: Vec<_> = found.iter().map(|d| (d.key[0], d.what)).collect();
        let wanted = [
            (b'b', What::Different),
            (b'c', What::Extra),
            (b'd', What::Missing),
        ];
        assert_eq!(what, wanted);
    }

    #[test]
    fn what_was_corrected_is_counted_apart() {
        let live = rows(&[("a", 1, true), ("b", 2, true)]);
        let replayed = Replayed {
            settled: rows(&[("a", 5, true), ("b", 9, true)]),
            last: Rows::new(),
        };
        let (mut tally, mut found) = compare(&live, &replayed);
        set_apart((&mut tally, &mut found), |key| key == b"b");
        assert_eq!((tally.different, tally.corrected), (1, 1));
        let said: Vec<_> = found.iter().map(Difference::as_str).collect();
        assert_eq!(said, ["different", "corrected"]);
    }

    #[test]
    fn a_version_that_may_still_come_is_pending_and_a_wrong_one_is_not() {
        let replayed = Replayed {
            settled: rows(&[("a", 1, true), ("c", 1, true)]),
            last: rows(&[("a", 2, true), ("b", 5, false), ("c", 2, true)]),
        };
        let (tally, found) = compare(&rows(&[("a", 1, true), ("c", 7, true)]), &replayed);
        assert_eq!((tally.pending, tally.different), (2, 1));
        assert_eq!(found[0].key, b"c");
    }

    #[test]
    fn a_version_that_the_clock_alone_made_due_may_still_come() {
        let one = |close, closed| Some(row(close, closed));
        let mut replayed = Replayed::default();
        let mut take = |key: &str, row, by_clock| {
            replayed.take(key.as_bytes().to_vec(), row, by_clock);
        };
        // Quiet minutes of bars that go on: the table has no version yet, an older one, a wrong one.
        take("a", one(1, false), true);
        take("b", one(1, false), false);
        take("b", one(2, false), true);
        take("c", one(1, true), true);
        // Stream time made it due, or the bar has ended meanwhile, or a stop came: the table must have it.
        take("d", one(1, false), false);
        take("e", one(1, false), true);
        take("e", one(2, true), false);
        take("f", one(1, false), true);
        take("f", one(1, false), false);
        take("g", one(1, false), true);
        take("g", None, false);
        let live = rows(&[("b", 1, false), ("c", 7, true), ("g", 1, false)]);
        let (tally, found) = compare(&live, &replayed);
        assert_eq!((tally.equal, tally.pending, tally.different), (0, 2, 5));
        let named: Vec<_> = found.iter().map(|d| (d.key[0], d.what)).collect();
        let wanted = [
            (b'c', What::Different),
            (b'd', What::Missing),
            (b'e', What::Missing),
            (b'f', What::Missing),
            (b'g', What::Extra),
        ];
        assert_eq!(named, wanted);
    }

    #[test]
    fn statistics_may_differ_in_the_last_digits_only() {
        assert!(near((&Some(1.0), &Some(1.0 + 1e-12))));
        assert!(!near((&Some(1.0), &Some(1.000_001))));
        assert!(!near((&None, &Some(0.0))));
    }
}
