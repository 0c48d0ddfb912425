//! Dedup for ids that are not a sequence (hashes, UUIDs cut to 64 bits): the ids of a sliding
//! window of trade time, each with its own entry in a store.
//!
//! This is the policy alone. The store is whoever calls: it looks an id up, asks [`IdWindow`] what
//! the answer means, and from time to time deletes what lies before [`IdWindow::horizon`].

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not seen: accept it, store its id with its trade time.
    New,
    /// Seen within the window.
    Duplicate,
    /// Before the window: nobody knows any more. It must be rejected, not accepted twice.
    TooOld,
}

/// A window of `retention` µs behind the newest accepted trade of one (source, symbol).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdWindow {
    /// How long an id is remembered, µs of trade time.
    pub retention: i64,
    /// Trade time of the newest accepted trade; `i64::MIN` before the first.
    pub newest: i64,
    /// Everything before this was deleted already.
    pub swept: i64,
}

impl IdWindow {
    /// An empty window.
    pub fn new(retention: i64) -> Self {
        Self {
            retention,
            newest: i64::MIN,
            swept: i64::MIN,
        }
    }

    /// Ids of trades before this instant may be gone.
    pub fn horizon(&self) -> i64 {
        self.newest.saturating_sub(self.retention)
    }

    /// Judges a trade of this time whose id the store does or does not hold; `New` moves the
    /// window.
    pub fn judge(&mut self, time: i64, stored: bool) -> Verdict {
        if stored {
            return Verdict::Duplicate;
        }
        if time < self.horizon() {
            return Verdict::TooOld;
        }
        self.newest = self.newest.max(time);
        Verdict::New
    }

    /// The time before which stored ids should be deleted now: an eighth of the window at a time,
    /// so that a sweep touches each entry at most nine times in its life.
    pub fn sweep(&mut self) -> Option<i64> {
        let horizon = self.horizon();
        let due = self.swept.saturating_add(self.retention / 8);
        if horizon < due || horizon == i64::MIN {
            return None;
        }
        self.swept = horizon;
        Some(horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn too_old_is_never_accepted() {
        let mut w = IdWindow::new(100);
        assert_eq!(w.judge(1000, false), Verdict::New);
        assert_eq!(w.judge(900, false), Verdict::New);
        assert_eq!(w.judge(899, false), Verdict::TooOld);
        assert_eq!(w.judge(899, true), Verdict::Duplicate);
    }

    proptest! {
        /// No id is accepted twice, whatever was swept.
        #[test]
        fn never_twice(trades in prop::collection::vec((0u8..60, 0i64..1000), 1..200)) {
            // An id has one trade time, as in a feed; it may arrive often.
            let mut times = BTreeMap::new();
            let mut window = IdWindow::new(100);
            let mut store: BTreeMap<u8, i64> = BTreeMap::new();
            let mut accepted = BTreeSet::new();
            for (id, time) in trades {
                let time = *times.entry(id).or_insert(time);
                if window.judge(time, store.contains_key(&id)) == Verdict::New {
                    prop_assert!(accepted.insert(id));
                    store.insert(id, time);
                }
                if let Some(before) = window.sweep() {
                    store.retain(|_, t| *t >= before);
                }
            }
        }
    }
}
