use finlake_schemas::BreakKind;

use super::*;

const TABLE: &str = "silver.market_ohlcv";
/// Long after all that is told.
const REACHED: i64 = i64::MAX;

/// A table whose commits make ten rows each; what it does wrong is said per snapshot.
struct World {
    line: Vec<SnapshotChange>,
    /// Snapshots that are kept and lead nowhere.
    others: BTreeSet<i64>,
    trail: Trail,
    known: Breaks,
    /// The ledger is known of these commits.
    ledger: std::ops::RangeInclusive<i64>,
    /// Read so far.
    read: i64,
    reached: i64,
    now: i64,
}

fn trail() -> Trail {
    Trail::new(TABLE.to_owned(), Layer::Silver)
}

impl World {
    fn new() -> World {
        let root = SnapshotChange {
            id: 1,
            parent: None,
            change: 0,
            rows: 0,
            commits: None,
        };
        World {
            line: vec![root],
            others: BTreeSet::new(),
            trail: trail(),
            known: Breaks::new(),
            ledger: 0..=1_000,
            read: 1_000,
            reached: REACHED,
            now: 0,
        }
    }

    fn put(&mut self, change: i64, commits: Option<BTreeMap<i32, i64>>) -> i64 {
        let last = self.line.last().unwrap();
        let next = SnapshotChange {
            id: last.id + 1,
            parent: Some(last.id),
            change,
            rows: last.rows + change,
            commits,
        };
        self.line.push(next);
        self.line.last().unwrap().id
    }

    /// The sink's next snapshot: partitions 0 and 1 up to these commits; so many rows too many.
    fn commit(&mut self, to: [i64; 2], off: i64) -> i64 {
        let (held, rows) = (self.expected(), |to: [i64; 2]| (to[0] + to[1]) * 10);
        let commits = [(0, to[0]), (1, to[1])].into();
        self.put(rows(to) - held + off, Some(commits))
    }

    fn expected(&self) -> i64 {
        let last = self.line.iter().rev().find_map(|s| s.commits.as_ref());
        last.map_or(0, |c| c.values().sum::<i64>() * 10)
    }

    /// One look; its changes are written. Kind, status, snapshot and rows of each.
    fn look(&mut self) -> Vec<(BreakKind, BreakStatus, Option<i64>, i64)> {
        let at = |_: i32, commit: i64| match commit {
            c if c > self.read => At::Ahead,
            0 => At::Rows(0, 0),
            c if self.ledger.contains(&c) => At::Rows(c * 10, 0),
            _ => At::Unknown,
        };
        let ids = self.line.iter().map(|s| s.id);
        let kept = ids.chain(self.others.iter().copied()).collect();
        let wanted = self.trail.follow(7, &self.line, kept, at);
        if wanted.is_empty() {
            let last = self.line.last().unwrap();
            let rows = Balance {
                expected: self.expected(),
                actual: last.rows,
                uncounted: 0,
            };
            self.trail.compare(last.id, rows, self.reached);
        }
        self.now += 1_000;
        let changes = self.trail.changes(&self.known, self.now);
        let all = changes.iter().map(|b| {
            let off = counts::off(&b.cause).unwrap();
            (b.kind, b.status, counts::snapshot(b), off)
        });
        let all = all.collect();
        self.known
            .extend(changes.into_iter().map(|b| (b.break_id, b)));
        all
    }

    /// Another process goes on from a kept state.
    fn restart(&mut self, from: i64) {
        self.trail = trail();
        self.ledger = from..=1_000;
    }

    fn expire(&mut self, snapshots: usize) {
        self.line.drain(..snapshots);
    }
}

const OPENED: BreakStatus = BreakStatus::Opened;
const RESOLVED: BreakStatus = BreakStatus::Resolved;
const MISSING: BreakKind = BreakKind::Missing;
const DUPLICATE: BreakKind = BreakKind::Duplicate;

#[test]
fn a_loss_and_a_doubling_that_cancel_out_are_two_breaks() {
    let mut w = World::new();
    w.commit([3, 2], 0);
    let lost = w.commit([6, 2], -4);
    w.commit([9, 9], 0);
    let doubled = w.commit([12, 10], 4);
    assert_eq!(
        w.look(),
        [
            (MISSING, OPENED, Some(lost), -4),
            (DUPLICATE, OPENED, Some(doubled), 4)
        ]
    );
    let texts: Vec<_> = w
        .known
        .values()
        .map(|b| b.expected.clone().unwrap())
        .collect();
    assert!(
        texts.contains(&"30 rows more: commits 4-6 of partition 0".to_owned()),
        "{texts:?}"
    );
    w.commit([20, 20], 0);
    assert_eq!(w.look(), []);
    w.restart(15);
    w.commit([22, 20], 0);
    assert_eq!(w.look(), [], "known, though nobody can judge them again");
    w.restart(0);
    assert_eq!(w.look(), [], "found again: the same breaks");
}

#[test]
fn a_snapshot_of_somebody_else_must_not_change_how_many_rows_there_are() {
    let mut w = World::new();
    w.commit([3, 2], 0);
    w.put(0, None);
    w.commit([4, 4], 0);
    assert_eq!(w.look(), []);
    let damage = w.put(-7, None);
    w.commit([5, 5], 0);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(damage), -7)]);
}

#[test]
fn commits_that_are_applied_twice_or_go_back_are_told_once() {
    let mut w = World::new();
    w.commit([9, 9], 0);
    // The same positions once more.
    let twice = w.put(30, Some([(0, 9), (1, 9)].into()));
    // On top of what another sink took: partition 0 is at 12 again, and 13 to 20 come a second time.
    w.commit([20, 9], 0);
    let back = w.put(30, Some([(0, 12)].into()));
    w.commit([20, 9], 0);
    w.line.last_mut().unwrap().change = 80;
    w.line.last_mut().unwrap().rows = w.line[4].rows + 80;
    assert_eq!(
        w.look(),
        [
            (DUPLICATE, OPENED, Some(twice), 30),
            (DUPLICATE, OPENED, Some(back), 110)
        ]
    );
}

#[test]
fn what_expired_unseen_is_told_of_the_table_as_a_whole() {
    let mut w = World::new();
    w.commit([3, 2], 0);
    w.commit([6, 6], -4);
    w.commit([7, 7], 0);
    w.commit([9, 9], 0);
    w.expire(3);
    let here = w.commit([12, 12], 5);
    assert_eq!(
        w.look(),
        [
            (DUPLICATE, OPENED, Some(here), 5),
            (MISSING, OPENED, None, -4)
        ]
    );
    w.commit([13, 13], 0);
    assert_eq!(w.look(), []);
}

#[test]
fn a_break_outlives_the_snapshot_that_it_is_about() {
    let mut w = World::new();
    let lost = w.commit([3, 2], -4);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(lost), -4)]);
    w.commit([6, 6], 0);
    assert_eq!(w.look(), []);
    w.commit([9, 9], 0);
    w.expire(2);
    assert_eq!(w.look(), []);
    w.restart(6);
    assert_eq!(w.look(), [], "and no total beside it");
    let more = w.commit([10, 10], -1);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(more), -1)]);
}

#[test]
fn the_ledger_may_be_read_later() {
    let mut w = World::new();
    w.read = 5;
    let first = w.commit([3, 2], -1);
    w.commit([8, 4], 0);
    let kept = w.line.iter().map(|s| s.id).collect();
    let wanted = trail().follow(7, &w.line, kept, |_, c| {
        if c > 5 {
            At::Ahead
        } else {
            At::Rows(c * 10, 0)
        }
    });
    assert_eq!(wanted, [(0, 3), (0, 8), (1, 2), (1, 4)]);
    assert_eq!(
        w.look(),
        [(MISSING, OPENED, Some(first), -1)],
        "as far as it goes"
    );
    w.read = 1_000;
    let next = w.commit([9, 9], 2);
    assert_eq!(w.look(), [(DUPLICATE, OPENED, Some(next), 2)]);
}

#[test]
fn a_table_that_was_rolled_back_is_right_again() {
    let mut w = World::new();
    w.commit([3, 2], 0);
    let lost = w.commit([6, 6], -4);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(lost), -4)]);
    let rolled_back = w.line.pop().unwrap();
    w.others.insert(rolled_back.id);
    // Not before it holds all that it held.
    w.reached = 500;
    assert_eq!(w.look(), []);
    w.put(0, None);
    w.line.last_mut().unwrap().id = 90;
    w.commit([6, 6], 0);
    w.reached = REACHED;
    assert_eq!(w.look(), [(MISSING, RESOLVED, Some(lost), -4)]);
    assert_eq!(w.look(), []);
    // Forward again.
    w.line.truncate(2);
    w.line.push(rolled_back);
    w.restart(0);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(lost), -4)]);
}

#[test]
fn a_table_that_is_filled_anew_ends_its_breaks_when_it_is_full() {
    let mut w = World::new();
    let lost = w.commit([6, 6], -4);
    w.look();
    let mut anew = World::new();
    anew.known = w.known.clone();
    anew.line[0].id = 50;
    anew.reached = 500;
    anew.commit([2, 2], 0);
    assert_eq!(anew.look(), []);
    // Though the beginning of its history is gone already.
    anew.commit([4, 4], 0);
    anew.expire(1);
    assert_eq!(anew.look(), []);
    anew.reached = REACHED;
    anew.commit([6, 6], 0);
    assert_eq!(anew.look(), [(MISSING, RESOLVED, Some(lost), -4)]);
}

#[test]
fn what_was_made_up_for_and_ended_stays_so() {
    let mut w = World::new();
    w.commit([6, 6], -4);
    w.put(4, None);
    assert_eq!(w.look().len(), 2);
    // By who has counted the rows of every commit.
    for b in w.known.values_mut() {
        b.status = RESOLVED;
    }
    assert_eq!(w.look(), []);
    w.commit([7, 7], 0);
    assert_eq!(w.look(), []);
    // Of one that was ended wrongly nobody has made up for the rows.
    let mut w = World::new();
    let lost = w.commit([6, 6], -4);
    w.look();
    w.known.values_mut().for_each(|b| b.status = RESOLVED);
    assert_eq!(w.look(), [(MISSING, OPENED, Some(lost), -4)]);
}

#[test]
fn breaks_that_cancel_out_stay_when_their_snapshots_have_expired() {
    let mut w = World::new();
    w.commit([3, 3], -4);
    w.commit([6, 6], 4);
    assert_eq!(w.look().len(), 2);
    w.commit([9, 9], 0);
    w.commit([10, 10], 0);
    w.expire(3);
    w.restart(9);
    assert_eq!(w.look(), []);
    // One of them expires before the other.
    let mut w = World::new();
    w.commit([3, 3], -4);
    w.commit([6, 6], 4);
    w.look();
    w.commit([9, 9], 0);
    w.expire(2);
    assert_eq!(w.look(), []);
}
