//! Bar intervals: their names, lengths and half-open UTC buckets.
//!
//! An interval never knows about trades or time passing; it only maps an instant to its bucket.

use std::cmp::Ordering;
use std::fmt;

use thiserror::Error;

/// Microseconds in a minute, an hour and a day.
pub const MINUTE: i64 = 60_000_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// Why a text is not an interval, or a list of them is not usable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IntervalError {
    #[error(
        "`{0}` is not an interval: write a whole number and m, h or d, such as 1m, 5m, 1h or 1d"
    )]
    Syntax(String),
    #[error(
        "interval `{0}` does not divide a day evenly, so its bars would not line up from day to day: \
         take minutes that divide 1440, hours that divide 24, or whole days"
    )]
    Uneven(String),
    #[error(
        "interval `{0}` is written `{1}`: the name is part of a bar's key, so each length has one"
    )]
    Spelling(String, String),
    #[error("intervals `{0}` and `{1}` have the same length: keep one of them")]
    Same(String, String),
}

/// A bar length with its name, for example `5m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    name: Box<str>,
    length: i64,
}

impl Interval {
    /// Reads `<n>m`, `<n>h` or `<n>d`, in the largest unit that fits. Minutes must divide 1440 and
    /// hours 24; days count from 1970-01-01.
    pub fn parse(text: &str) -> Result<Self, IntervalError> {
        let syntax = || IntervalError::Syntax(text.to_owned());
        let unit = text.chars().next_back().ok_or_else(syntax)?;
        let digits = &text[..text.len() - unit.len_utf8()];
        let plain = !digits.is_empty()
            && digits.len() <= 4
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0');
        if !plain {
            return Err(syntax());
        }
        let n: i64 = digits.parse().map_err(|_| syntax())?;
        let (unit, per_day) = match unit {
            'm' => (MINUTE, 1440),
            'h' => (HOUR, 24),
            'd' => (DAY, 0),
            _ => return Err(syntax()),
        };
        if per_day != 0 && per_day % n != 0 {
            return Err(IntervalError::Uneven(text.to_owned()));
        }
        let length = n * unit;
        let name = match (length % DAY, length % HOUR) {
            (0, _) => format!("{}d", length / DAY),
            (_, 0) => format!("{}h", length / HOUR),
            _ => format!("{}m", length / MINUTE),
        };
        if name != text {
            return Err(IntervalError::Spelling(text.to_owned(), name));
        }
        Ok(Self {
            name: name.into(),
            length,
        })
    }

    /// The name as configured; part of the bar's natural key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in µs, a multiple of a minute.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// Start of the bucket `[start, start + length)` that holds `time` (µs UTC).
    #[inline]
    pub fn start_of(&self, time: i64) -> i64 {
        time - time.rem_euclid(self.length)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl std::str::FromStr for Interval {
    type Err = IntervalError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Days since 1970-01-01 of an instant in µs.
pub fn date_of(time: i64) -> i32 {
    // An i64 of µs spans 106 million days to either side.
    time.div_euclid(DAY) as i32
}

/// The intervals one pipeline computes, shortest first, with the grid that all of them share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intervals {
    list: Vec<Interval>,
    grid: i64,
}

impl Intervals {
    /// Sorts the list, adds `1d` if it is missing (Gold needs it), and refuses equal lengths.
    pub fn new(list: &[Interval]) -> Result<Self, IntervalError> {
        let mut list = list.to_vec();
        if !list.iter().any(|i| i.length == DAY) {
            list.push(Interval {
                name: "1d".into(),
                length: DAY,
            });
        }
        list.sort_by(|a, b| match a.length.cmp(&b.length) {
            Ordering::Equal => a.name.cmp(&b.name),
            other => other,
        });
        if let Some(pair) = list.windows(2).find(|p| p[0].length == p[1].length) {
            return Err(IntervalError::Same(
                pair[0].name.to_string(),
                pair[1].name.to_string(),
            ));
        }
        let grid = list.iter().fold(0, |g, i| gcd(g, i.length));
        Ok(Self { list, grid })
    }

    /// All intervals, shortest first.
    pub fn list(&self) -> &[Interval] {
        &self.list
    }

    /// Position of the daily interval in [`Intervals::list`].
    pub fn daily(&self) -> usize {
        // `new` put it there.
        self.list.iter().position(|i| i.length == DAY).unwrap_or(0)
    }

    /// The longest length in µs whose buckets never straddle a bucket of any interval: trades may
    /// be folded on this grid first and merged into every interval afterwards.
    pub fn grid(&self) -> i64 {
        self.grid
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(names: &[&str]) -> Result<Intervals, IntervalError> {
        let list: Vec<_> = names.iter().map(|n| Interval::parse(n).unwrap()).collect();
        Intervals::new(&list)
    }

    #[test]
    fn names_that_are_refused() {
        for bad in [
            "", "m", "0m", "01m", "1", "1s", "-1m", "+1m", "1.5h", "1 m", "99999d", "1é",
        ] {
            assert!(
                matches!(Interval::parse(bad), Err(IntervalError::Syntax(_))),
                "{bad}"
            );
        }
        for (long, name) in [
            ("60m", "1h"),
            ("720m", "12h"),
            ("24h", "1d"),
            ("1440m", "1d"),
        ] {
            let spelling = IntervalError::Spelling(long.to_owned(), name.to_owned());
            assert_eq!(Interval::parse(long), Err(spelling));
        }
        for uneven in ["7m", "5h", "1441m", "48h", "25h"] {
            assert!(
                matches!(Interval::parse(uneven), Err(IntervalError::Uneven(_))),
                "{uneven}"
            );
        }
    }

    #[test]
    fn buckets_are_half_open() {
        let hour = Interval::parse("1h").unwrap();
        assert_eq!(hour.start_of(0), 0);
        assert_eq!(hour.start_of(HOUR - 1), 0);
        assert_eq!(hour.start_of(HOUR), HOUR);
        assert_eq!(hour.start_of(-1), -HOUR);
        assert_eq!(date_of(-1), -1);
        assert_eq!(date_of(DAY), 1);
    }

    #[test]
    fn daily_is_always_there_and_lengths_are_unique() {
        let set = all(&["1h", "1m"]).unwrap();
        let names: Vec<_> = set.list().iter().map(Interval::name).collect();
        assert_eq!(names, ["1m", "1h", "1d"]);
        assert_eq!(set.list()[set.daily()].name(), "1d");
        assert_eq!(set.grid(), MINUTE);
        assert_eq!(all(&["10m", "15m"]).unwrap().grid(), 5 * MINUTE);
        assert!(matches!(all(&["1h", "1h"]), Err(IntervalError::Same(_, _))));
    }

    proptest! {
        #[test]
        fn the_grid_never_straddles(time in 0i64..4_000_000_000_000_000) {
            let set = all(&["10m", "15m", "4h", "7d"]).unwrap();
            let start = time - time.rem_euclid(set.grid());
            for i in set.list() {
                prop_assert_eq!(i.start_of(start), i.start_of(start + set.grid() - 1));
                prop_assert_eq!(i.start_of(time), i.start_of(start));
            }
        }
    }
}
