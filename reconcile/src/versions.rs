//! Histories: at most one row per key, valid instant and system instant (INV-2), intervals that
//! are intervals (INV-3), closed rows that are closed by a successor (INV-6), and revisions that count
//! the versions.
//!
//! Pure: rows of one table in any order, grouped by a key number that the caller gives; findings
//! come with row numbers, which the caller turns into names.

/// The four instants of a row, µs, and whose row it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The caller's number of the natural key.
    pub key: u32,
    pub sys_from: i64,
    pub sys_to: i64,
    pub valid_from: i64,
    pub valid_to: i64,
    pub is_current: bool,
    /// `sys_from` of the version it replaced.
    pub prev_sys_from: Option<i64>,
    pub revision: i32,
    /// The caller's number of the row.
    pub row: u32,
}

/// What is wrong with a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// INV-2: these two rows of a key hold at the same valid and system instants.
    Overlap(u32, u32),
    /// INV-3: `from` is not before `to`.
    Backward(u32),
    /// `is_current` does not say whether `sys_to` is open.
    Flag(u32),
    /// INV-6: closed at `sys_to`, and no version follows there. It is a retraction, or the
    /// version that followed is lost.
    Unfollowed(u32),
    /// The version that this row says it replaced is not in the table.
    Orphan(u32),
    /// Its revision is not this one, which follows that of the version it replaced.
    Revision(u32, i32),
}

/// Checks all histories. `open_end` is the open end of both axes.
pub fn check(mut rows: Vec<Version>, open_end: i64) -> Vec<Fault> {
    let mut out = Vec::new();
    // Derived order: key, then sys_from.
    if !rows.is_sorted() {
        rows.sort_unstable();
    }
    for group in rows.chunk_by(|a, b| a.key == b.key) {
        one_key(group, open_end, &mut out);
    }
    out
}

fn one_key(group: &[Version], open_end: i64, out: &mut Vec<Fault>) {
    // Rows whose system interval is not over yet; one, in a good history of one valid interval.
    let mut alive: Vec<&Version> = Vec::new();
    for v in group {
        if v.sys_from >= v.sys_to || v.valid_from >= v.valid_to {
            out.push(Fault::Backward(v.row));
            continue;
        }
        if v.is_current != (v.sys_to == open_end) {
            out.push(Fault::Flag(v.row));
        }
        alive.retain(|a| a.sys_to > v.sys_from);
        for a in &alive {
            if a.valid_from < v.valid_to && v.valid_from < a.valid_to {
                out.push(Fault::Overlap(a.row, v.row));
            }
        }
        alive.push(v);
        let starting = |at: i64| group.binary_search_by_key(&at, |g| g.sys_from).ok();
        let starts = |at: i64| starting(at).is_some();
        if v.sys_to != open_end && !starts(v.sys_to) {
            out.push(Fault::Unfollowed(v.row));
        }
        if v.prev_sys_from.is_some_and(|prev| !starts(prev)) {
            out.push(Fault::Orphan(v.row));
        }
        let expected = match v.prev_sys_from {
            None => (group[0] == *v).then_some(0),
            Some(prev) => starting(prev).and_then(|at| group[at].revision.checked_add(1)),
        };
        if let Some(expected) = expected.filter(|e| *e != v.revision) {
            out.push(Fault::Revision(v.row, expected));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: i64 = 1_000;

    fn row(key: u32, row: u32, sys: (i64, i64), valid: (i64, i64)) -> Version {
        Version {
            key,
            sys_from: sys.0,
            sys_to: sys.1,
            valid_from: valid.0,
            valid_to: valid.1,
            is_current: sys.1 == END,
            prev_sys_from: None,
            revision: 0,
            row,
        }
    }

    #[test]
    fn each_fault_is_named() {
        let good = [
            row(1, 0, (10, 20), (0, END)),
            row(1, 1, (20, 30), (0, END)),
            row(1, 2, (30, END), (0, END)),
            row(2, 3, (10, END), (0, 5)),
            row(2, 4, (10, END), (5, END)),
        ];
        assert!(check(good.to_vec(), END).is_empty());
        let with = |change: fn(&mut Vec<Version>)| {
            let mut rows = good.to_vec();
            change(&mut rows);
            check(rows, END)
        };
        assert_eq!(
            with(|r| r.push(row(1, 9, (20, 30), (0, END)))),
            [Fault::Overlap(1, 9)]
        );
        assert_eq!(
            with(|r| {
                r.remove(2);
            }),
            [Fault::Unfollowed(1)]
        );
        assert_eq!(with(|r| r[0].valid_to = 0), [Fault::Backward(0)]);
        assert_eq!(with(|r| r[2].is_current = false), [Fault::Flag(2)]);
        assert_eq!(with(|r| r[0].prev_sys_from = Some(5)), [Fault::Orphan(0)]);
        assert_eq!(with(|r| r[0].revision = 3), [Fault::Revision(0, 0)]);
        let second = |revision: i32| {
            let mut rows = good.to_vec();
            (rows[1].prev_sys_from, rows[1].revision) = (Some(10), revision);
            check(rows, END)
        };
        assert_eq!(
            (second(1), second(2)),
            (vec![], vec![Fault::Revision(1, 1)])
        );
        assert_eq!(with(|r| r[4].valid_from = 4), [Fault::Overlap(3, 4)]);
    }

    proptest! {
        /// Overlaps are what a comparison of all pairs finds.
        #[test]
        fn overlaps_are_found(
            rows in prop::collection::vec((0u32..3, 0i64..20, 1i64..8, 0i64..20, 1i64..8), 0..25),
        ) {
            let rows: Vec<Version> = rows
                .into_iter()
                .enumerate()
                .map(|(n, (key, s, sl, v, vl))| row(key, n as u32, (s, s + sl), (v, v + vl)))
                .collect();
            let mut expected = vec![];
            for (n, a) in rows.iter().enumerate() {
                for b in &rows[n + 1..] {
                    if a.key == b.key
                        && a.sys_from < b.sys_to && b.sys_from < a.sys_to
                        && a.valid_from < b.valid_to && b.valid_from < a.valid_to
                    {
                        expected.push((a.row.min(b.row), a.row.max(b.row)));
                    }
                }
            }
            expected.sort_unstable();
            let mut found: Vec<(u32, u32)> = check(rows, END)
                .into_iter()
                .filter_map(|f| match f {
                    Fault::Overlap(a, b) => Some((a.min(b), a.max(b))),
                    _ => None,
                })
                .collect();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
