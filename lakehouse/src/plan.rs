//! Pure planning: table watermark + batch → append, trim, skip or stop.
//!
//! One range type with `join`, `trim` and `gap` carries the algebra; commit numbers and input
//! positions are both such ranges. Nothing here knows of files, clocks or rows. Data flows: the
//! sink hands in what the table says and what the ledger offers, and does what comes out.

use std::collections::BTreeMap;

use crate::error::{LakeError, Result};
use crate::properties::Position;
use crate::tables::Table;

/// A half-open range of numbers [start, end).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    /// First number.
    pub start: i64,
    /// One past the last; never below `start`.
    pub end: i64,
}

impl OffsetRange {
    /// [start, end); empty if `end <= start`.
    pub fn new(start: i64, end: i64) -> OffsetRange {
        OffsetRange {
            start,
            end: end.max(start),
        }
    }

    /// Count of numbers.
    pub fn len(&self) -> i64 {
        self.end - self.start
    }

    /// No numbers.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether the number is inside.
    pub fn contains(&self, n: i64) -> bool {
        self.start <= n && n < self.end
    }

    /// This range followed by `next`; only if they touch exactly.
    pub fn join(self, next: OffsetRange) -> Option<OffsetRange> {
        (self.end == next.start).then_some(OffsetRange {
            start: self.start,
            end: next.end,
        })
    }

    /// The part from `from` on.
    pub fn trim(self, from: i64) -> OffsetRange {
        let start = self.start.max(from).min(self.end);
        OffsetRange {
            start,
            end: self.end,
        }
    }

    /// What is missing between `from` and this range, if anything.
    pub fn gap(self, from: i64) -> Option<OffsetRange> {
        (from < self.start).then_some(OffsetRange {
            start: from,
            end: self.start,
        })
    }
}

/// A cut inside a batch: the state after one task commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// Commit number.
    pub commit: i64,
    /// Input position (exclusive) after it.
    pub input_end: i64,
    /// System time of the commit (µs): the table is whole up to here once it holds the commit.
    pub system_time: i64,
    /// Offset of the ledger topic after the commit's entry, if known: where to read on.
    pub ledger_next: Option<i64>,
    /// Offset of the table's own topic after the commit's last record, if known.
    pub output_next: Option<i64>,
}

/// What a batch offers for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Kafka partition.
    pub partition: i32,
    /// Input position at which the batch starts.
    pub input_start: i64,
    /// Whole task commits, ascending; possibly none (then only the frontier moves).
    pub cuts: Vec<Cut>,
    /// Frontier after the batch (µs), at least the last cut's system time.
    pub frontier: i64,
}

/// What to do with one partition's part of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Everything is in the table already.
    Skip,
    /// Take the rows of the commits in the range; the table then stands at `to`.
    Append {
        /// Commit numbers to take.
        commits: OffsetRange,
        /// Position after taking them.
        to: Position,
    },
}

/// Decides for one partition.
///
/// # Errors
/// `Gap` if commits are missing between table and batch, `PositionMismatch` if commit numbers
/// fit and input positions do not, `Internal` if the offer itself is not contiguous.
pub fn step(table: Table, stored: Position, offer: &Offer) -> Result<Step> {
    let frontier = stored.frontier.max(offer.frontier);
    let Some((first, last)) = offer.cuts.first().zip(offer.cuts.last()) else {
        if frontier == stored.frontier {
            return Ok(Step::Skip);
        }
        let next = stored.commit + 1;
        return Ok(Step::Append {
            commits: OffsetRange::new(next, next),
            to: Position { frontier, ..stored },
        });
    };
    for pair in offer.cuts.windows(2) {
        if let [a, b] = pair
            && (b.commit != a.commit + 1
                || b.input_end < a.input_end
                || b.system_time <= a.system_time)
        {
            return Err(LakeError::Internal(format!(
                "batch of partition {} is not contiguous at commit {} (INV-12)",
                offer.partition, b.commit
            )));
        }
    }
    let offered = OffsetRange::new(first.commit, last.commit + 1);
    let next = stored.commit + 1;
    if let Some(missing) = offered.gap(next) {
        return Err(LakeError::Gap {
            table,
            partition: offer.partition,
            stored: stored.commit,
            first: first.commit,
            missing_from: missing.start,
            missing_to: missing.end - 1,
        });
    }
    let commits = offered.trim(next);
    if commits.is_empty() {
        return Ok(Step::Skip);
    }
    // The position before the first commit that is taken must be the stored one. At commit 0 the
    // table has no position yet: it starts wherever the first commit started.
    let before = if commits.start == first.commit {
        offer.input_start
    } else {
        offer
            .cuts
            .iter()
            .find(|c| c.commit == stored.commit)
            .map_or(stored.input_end, |c| c.input_end)
    };
    if stored.commit > 0 && before != stored.input_end {
        return Err(LakeError::PositionMismatch {
            table,
            partition: offer.partition,
            stored: stored.input_end,
            offered: before,
        });
    }
    Ok(Step::Append {
        commits,
        to: Position {
            commit: last.commit,
            input_end: last.input_end,
            frontier: frontier.max(last.system_time),
            // Hints: an older one still holds, it only makes the sink read more.
            ledger_next: latest(offer, |c| c.ledger_next).or(stored.ledger_next),
            output_next: latest(offer, |c| c.output_next).or(stored.output_next),
        },
    })
}

/// The last hint given in a batch.
fn latest(offer: &Offer, hint: impl Fn(&Cut) -> Option<i64>) -> Option<i64> {
    offer.cuts.iter().rev().find_map(hint)
}

/// Decides for a whole batch: a step per partition.
///
/// # Errors
/// As `step`; also `Internal` if a partition is offered twice.
pub fn plan(
    table: Table,
    stored: &BTreeMap<i32, Position>,
    offers: &[Offer],
) -> Result<BTreeMap<i32, Step>> {
    let mut out = BTreeMap::new();
    for offer in offers {
        let at = stored.get(&offer.partition).copied().unwrap_or_default();
        if out
            .insert(offer.partition, step(table, at, offer)?)
            .is_some()
        {
            return Err(LakeError::Internal(format!(
                "partition {} is in the batch twice",
                offer.partition
            )));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(commit: i64) -> Cut {
        Cut {
            commit,
            input_end: commit * 10,
            system_time: commit * 1_000,
            ..Cut::default()
        }
    }

    fn offer(first: i64, last: i64) -> Offer {
        Offer {
            partition: 0,
            input_start: (first - 1) * 10,
            cuts: (first..=last).map(cut).collect(),
            frontier: last * 1_000,
        }
    }

    fn at(commit: i64) -> Position {
        Position {
            commit,
            input_end: commit * 10,
            frontier: commit * 1_000,
            ..Position::default()
        }
    }

    #[test]
    fn hints_move_with_the_position_and_are_never_forgotten() {
        let to = |stored: Position, o: &Offer| match step(Table::Ohlcv, stored, o).unwrap() {
            Step::Append { to, .. } => (to.ledger_next, to.output_next),
            Step::Skip => panic!("nothing to take"),
        };
        let mut o = offer(5, 7);
        let stored = Position {
            ledger_next: Some(50),
            output_next: Some(8),
            ..at(4)
        };
        // A batch without hints (an older sink, or no output records) keeps what stands there.
        assert_eq!(to(stored, &o), (Some(50), Some(8)));
        o.cuts[0].output_next = Some(11);
        o.cuts[2].ledger_next = Some(80);
        assert_eq!(to(stored, &o), (Some(80), Some(11)));
        assert_eq!(to(at(4), &offer(5, 5)), (None, None));
    }

    #[test]
    fn append_trim_skip_stop() {
        let t = Table::Ticks;
        let range = |s: Step| match s {
            Step::Append { commits, .. } => (commits.start, commits.end),
            Step::Skip => (0, 0),
        };
        assert_eq!(range(step(t, at(4), &offer(5, 7)).unwrap()), (5, 8));
        assert_eq!(range(step(t, at(5), &offer(4, 7)).unwrap()), (6, 8));
        assert_eq!(step(t, at(7), &offer(4, 7)).unwrap(), Step::Skip);
        assert!(matches!(
            step(t, at(2), &offer(5, 7)).unwrap_err(),
            LakeError::Gap {
                missing_from: 3,
                missing_to: 4,
                ..
            }
        ));
        let mut shifted = offer(5, 7);
        shifted.input_start += 1;
        assert!(matches!(
            step(t, at(4), &shifted).unwrap_err(),
            LakeError::PositionMismatch { .. }
        ));
        shifted.cuts[1].commit = 9;
        assert!(step(t, at(4), &shifted).is_err());
    }

    #[test]
    fn a_new_table_starts_where_the_first_commit_does() {
        let mut first = offer(1, 2);
        first.input_start = 777;
        let step = step(Table::Ticks, Position::default(), &first).unwrap();
        assert!(matches!(step, Step::Append { to, .. } if to.commit == 2));
        assert!(matches!(
            super::step(Table::Ticks, Position::default(), &offer(2, 3)).unwrap_err(),
            LakeError::Gap {
                missing_from: 1,
                ..
            }
        ));
    }

    #[test]
    fn heartbeat_moves_the_frontier_only() {
        let beat = Offer {
            partition: 0,
            input_start: 40,
            cuts: vec![],
            frontier: 9_000,
        };
        let step = step(Table::Ohlcv, at(4), &beat).unwrap();
        let Step::Append { commits, to } = step else {
            panic!("{step:?}")
        };
        assert!(commits.is_empty());
        assert_eq!((to.commit, to.input_end, to.frontier), (4, 40, 9_000));
        assert_eq!(super::step(Table::Ohlcv, to, &beat).unwrap(), Step::Skip);
    }

    proptest! {
        #[test]
        fn range_algebra(a in -50i64..50, n in 0i64..30, m in 0i64..30, from in -80i64..80) {
            let r = OffsetRange::new(a, a + n);
            let s = OffsetRange::new(a + n, a + n + m);
            let joined = r.join(s).unwrap();
            prop_assert_eq!(joined.len(), n + m);
            prop_assert_eq!(r.join(OffsetRange::new(a + n + 1, a + n + 2)), None);
            let t = joined.trim(from);
            for k in -200..200 {
                prop_assert_eq!(t.contains(k), joined.contains(k) && k >= from);
                let gapped = joined.gap(from).is_some_and(|g| g.contains(k));
                prop_assert_eq!(gapped, k >= from && k < joined.start);
            }
        }

        /// Any cutting of a ledger into overlapping, repeated batches takes every commit exactly
        /// once and in order, and ends at the ledger's end (INV-12).
        #[test]
        fn every_commit_exactly_once(
            n in 1i64..60,
            batches in prop::collection::vec((0i64..60, 1i64..20), 0..40),
        ) {
            let mut stored = Position::default();
            let mut taken = vec![];
            let mut offers: Vec<Offer> = batches
                .iter()
                .filter(|(start, _)| *start < n)
                .map(|(start, len)| offer(start + 1, (start + len).min(n)))
                .collect();
            offers.push(offer(1, n));
            for o in &offers {
                match step(Table::Ohlcv, stored, o) {
                    Ok(Step::Append { commits, to }) => {
                        taken.extend(commits.start..commits.end);
                        prop_assert!(to.commit > stored.commit);
                        stored = to;
                    }
                    Ok(Step::Skip) => prop_assert!(o.cuts.last().unwrap().commit <= stored.commit),
                    Err(LakeError::Gap { missing_from, missing_to, .. }) => {
                        prop_assert_eq!(missing_from, stored.commit + 1);
                        prop_assert_eq!(missing_to, o.cuts[0].commit - 1);
                    }
                    Err(e) => prop_assert!(false, "{e}"),
                }
            }
            prop_assert_eq!(taken, (1..=n).collect::<Vec<_>>());
            prop_assert_eq!(stored, at(n));
        }
    }
}
