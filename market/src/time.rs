//! Stream time: the clock of the trades of one source in one partition, and what it closes.
//!
//! It never moves back and only accepted records move it. It is the only clock that decides about
//! bars; the wall clock never does.

/// Stream time of one (partition, source), µs UTC. Starts unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTime(i64);

impl StreamTime {
    /// Before the first accepted record.
    pub const UNSET: StreamTime = StreamTime(i64::MIN);

    /// As read back from a store.
    pub fn at(time: i64) -> Self {
        Self(time)
    }

    /// `None` before the first accepted record.
    pub fn get(self) -> Option<i64> {
        (self.0 != i64::MIN).then_some(self.0)
    }

    /// Takes an accepted record's time; true if stream time moved.
    #[inline]
    pub fn advance(&mut self, time: i64) -> bool {
        let moved = time > self.0;
        if moved {
            self.0 = time;
        }
        moved
    }

    /// A bar `[start, end)` is closed once stream time has reached its end: no trade in order can
    /// change it any more.
    #[inline]
    pub fn closes(self, end: i64) -> bool {
        self.0 >= end
    }
}

/// The first multiple of `step` (µs, > 0) that lies strictly after `time`: the next instant at
/// which a bucket of this length ends, or a checkpoint of this period falls due.
#[inline]
pub fn next_multiple(time: i64, step: i64) -> i64 {
    (time - time.rem_euclid(step)).saturating_add(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn never_back() {
        let mut t = StreamTime::UNSET;
        assert_eq!(t.get(), None);
        assert!(!t.closes(0));
        assert!(t.advance(-5));
        assert!(t.advance(10));
        assert!(!t.advance(10));
        assert!(!t.advance(3));
        assert_eq!(t.get(), Some(10));
        assert!(t.closes(10), "[0, 10) holds nothing at or after 10");
        assert!(!t.closes(11));
    }

    proptest! {
        #[test]
        fn multiples(time in -1_000_000i64..1_000_000, step in 1i64..10_000) {
            let next = next_multiple(time, step);
            prop_assert!(next > time && next - step <= time && next % step == 0);
        }
    }
}
