//! Finding the rows in which two sides differ, by hashing key ranges and splitting those that do
//! not agree.
//!
//! Pure. A side is its keys in order with one hash per row; the hash of a range is the wrapping
//! sum of its rows' hashes, as in the ledger, so that a range of a topic, of a table and of a
//! ledger entry are compared alike. Equal sides cost one comparison; d differing rows among n
//! cost about d × log n.

use std::ops::Range;

/// Rows of one side: keys ascending, equal keys side by side.
#[derive(Debug, Clone, Default)]
pub struct Side {
    keys: Vec<i64>,
    hashes: Vec<u128>,
    /// `sums[n]` is the wrapping sum of the first n hashes.
    sums: Vec<u128>,
}

impl Side {
    /// Rows in any order.
    pub fn new(mut rows: Vec<(i64, u128)>) -> Side {
        if !rows.is_sorted() {
            rows.sort_unstable();
        }
        let mut sums = Vec::with_capacity(rows.len() + 1);
        let mut sum = 0u128;
        sums.push(sum);
        for (_, hash) in &rows {
            sum = sum.wrapping_add(*hash);
            sums.push(sum);
        }
        Side {
            keys: rows.iter().map(|r| r.0).collect(),
            hashes: rows.iter().map(|r| r.1).collect(),
            sums,
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Rows and hash sum of the keys in `[from, to)`.
    pub fn range(&self, from: i64, to: i64) -> (u64, u128) {
        let rows = self.rows(from, to);
        (rows.len() as u64, self.sum(&rows))
    }

    fn rows(&self, from: i64, to: i64) -> Range<usize> {
        self.keys.partition_point(|k| *k < from)..self.keys.partition_point(|k| *k < to)
    }

    fn sum(&self, rows: &Range<usize>) -> u128 {
        self.sums[rows.end].wrapping_sub(self.sums[rows.start])
    }
}

/// How the two sides differ at one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Expected and not there.
    Missing(i64),
    /// There and not expected.
    Extra(i64),
    /// There more often than expected.
    Doubled(i64),
    /// There with other content.
    Differs(i64),
}

impl Difference {
    /// The key.
    pub fn key(self) -> i64 {
        match self {
            Difference::Missing(k)
            | Difference::Extra(k)
            | Difference::Doubled(k)
            | Difference::Differs(k) => k,
        }
    }
}

/// Rows at which a range is compared row by row.
const SMALL: usize = 8;

/// All differences, in key order. At most `limit` are listed; a second value says that there are
/// more.
pub fn differences(expected: &Side, actual: &Side, limit: usize) -> (Vec<Difference>, bool) {
    let mut out = Vec::new();
    let all = (0..expected.len(), 0..actual.len());
    let complete = split(expected, actual, all.0, all.1, limit, &mut out);
    (out, !complete)
}

/// False once the limit is reached.
fn split(
    expected: &Side,
    actual: &Side,
    e: Range<usize>,
    a: Range<usize>,
    limit: usize,
    out: &mut Vec<Difference>,
) -> bool {
    if e.len() == a.len() && expected.sum(&e) == actual.sum(&a) {
        return true;
    }
    let (longer, rows) = if e.len() >= a.len() {
        (expected, &e)
    } else {
        (actual, &a)
    };
    let (first, last) = (longer.keys[rows.start], longer.keys[rows.end - 1]);
    if rows.len() <= SMALL || first == last {
        return small(expected, actual, e, a, limit, out);
    }
    // The middle key of the longer side; never the first, so that both halves are smaller.
    let mut middle = longer.keys[rows.start + rows.len() / 2];
    if middle == first {
        middle = longer.keys[rows.start..rows.end]
            .iter()
            .copied()
            .find(|k| *k > first)
            .unwrap_or(last);
    }
    let ec = e.start + expected.keys[e.clone()].partition_point(|k| *k < middle);
    let ac = a.start + actual.keys[a.clone()].partition_point(|k| *k < middle);
    split(expected, actual, e.start..ec, a.start..ac, limit, out)
        && split(expected, actual, ec..e.end, ac..a.end, limit, out)
}

/// A merge of two short ranges.
fn small(
    expected: &Side,
    actual: &Side,
    e: Range<usize>,
    a: Range<usize>,
    limit: usize,
    out: &mut Vec<Difference>,
) -> bool {
    let (mut i, mut j) = (e.start, a.start);
    while i < e.end || j < a.end {
        let key = match (i < e.end, j < a.end) {
            (true, true) => expected.keys[i].min(actual.keys[j]),
            (true, false) => expected.keys[i],
            _ => actual.keys[j],
        };
        let run = |side: &Side, from: usize, end: usize| {
            from + side.keys[from..end].partition_point(|k| *k <= key)
        };
        let (ie, je) = (run(expected, i, e.end), run(actual, j, a.end));
        let (wanted, found) = (&expected.hashes[i..ie], &actual.hashes[j..je]);
        let difference = if wanted == found {
            None
        } else if found.is_empty() {
            Some(Difference::Missing(key))
        } else if wanted.is_empty() {
            Some(Difference::Extra(key))
        } else if found.len() > wanted.len() && wanted.iter().all(|h| found.contains(h)) {
            Some(Difference::Doubled(key))
        } else {
            Some(Difference::Differs(key))
        };
        if let Some(difference) = difference {
            if out.len() == limit {
                return false;
            }
            out.push(difference);
        }
        (i, j) = (ie, je);
    }
    true
}

/// Consecutive keys as half-open ranges; gaps of up to `join` keys do not part a range.
pub fn ranges(keys: impl IntoIterator<Item = i64>, join: i64) -> Vec<(i64, i64)> {
    let mut out: Vec<(i64, i64)> = Vec::new();
    for key in keys {
        match out.last_mut() {
            Some(range) if key <= range.1.saturating_add(join) => range.1 = key.saturating_add(1),
            _ => out.push((key, key.saturating_add(1))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_become_ranges() {
        assert_eq!(ranges([1, 2, 3, 7, 8, 20], 0), [(1, 4), (7, 9), (20, 21)]);
        assert_eq!(ranges([1, 2, 3, 5, 9], 1), [(1, 6), (9, 10)]);
        assert!(ranges([], 0).is_empty());
    }

    fn naive(expected: &[(i64, u128)], actual: &[(i64, u128)]) -> Vec<Difference> {
        type Both = (Vec<u128>, Vec<u128>);
        let mut by_key: BTreeMap<i64, Both> = BTreeMap::new();
        for (k, h) in expected {
            by_key.entry(*k).or_default().0.push(*h);
        }
        for (k, h) in actual {
            by_key.entry(*k).or_default().1.push(*h);
        }
        let mut out = vec![];
        for (k, (mut e, mut a)) in by_key {
            e.sort_unstable();
            a.sort_unstable();
            if e == a {
                continue;
            }
            out.push(if a.is_empty() {
                Difference::Missing(k)
            } else if e.is_empty() {
                Difference::Extra(k)
            } else if a.len() > e.len() && e.iter().all(|h| a.contains(h)) {
                Difference::Doubled(k)
            } else {
                Difference::Differs(k)
            });
        }
        out
    }

    proptest! {
        #[test]
        fn finds_what_a_full_comparison_finds(
            rows in prop::collection::vec((0i64..400, 1u128..1_000_000), 0..300),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4), 0..12),
        ) {
            // Keys are unique on the expected side, as offsets are.
            let rows: BTreeMap<i64, u128> = rows.into_iter().collect();
            let rows: Vec<(i64, u128)> = rows.into_iter().collect();
            let mut actual = rows.clone();
            for (at, what) in changes {
                if actual.is_empty() { break; }
                let at = at.index(actual.len());
                let row = actual[at];
                match what {
                    0 => { actual.remove(at); }
                    1 => actual.push(row),
                    2 => actual[at].1 ^= 1 << 90,
                    _ => actual.push((row.0 + 1_000, 5)),
                }
            }
            let (found, more) = differences(&Side::new(rows.clone()), &Side::new(actual.clone()), 1_000);
            prop_assert!(!more);
            prop_assert_eq!(found, naive(&rows, &actual));
        }

        #[test]
        fn the_limit_is_kept(n in 20i64..200, limit in 0usize..10) {
            let rows: Vec<(i64, u128)> = (0..n).map(|k| (k, k as u128 + 1)).collect();
            let (found, more) = differences(&Side::new(rows), &Side::default(), limit);
            prop_assert_eq!((found.len(), more), (limit, true));
        }
    }
}
