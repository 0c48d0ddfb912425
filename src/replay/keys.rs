//! Which keys a replay is asked for: whole bar keys, or all of one instrument. Pure.

use anyhow::{Result, bail};
use finlake_schemas::keys;

use super::compare::Sides;
use super::range::instrument;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One bar.
    Bar {
        source: String,
        symbol: String,
        interval: String,
        /// µs.
        start: i64,
    },
    /// Everything of one instrument.
    Instrument { source: String, symbol: String },
}

impl Wanted {
    /// `source:symbol:`, as every key of the instrument begins.
    fn prefix(&self) -> Vec<u8> {
        let (Wanted::Bar { source, symbol, .. } | Wanted::Instrument { source, symbol }) = self;
        instrument(source, symbol)
    }

    fn is_bar(&self, key: &[u8]) -> bool {
        match self {
            Wanted::Bar {
                source,
                symbol,
                interval,
                start,
            } => {
                let mut bar = Vec::new();
                keys::bar(source, symbol, interval, *start, &mut bar);
                key == bar
            }
            // A symbol may hold a colon, interval and start do not.
            Wanted::Instrument { .. } => colons_after(key, &self.prefix()) == Some(1),
        }
    }

    fn is_metrics(&self, key: &[u8]) -> bool {
        colons_after(key, &self.prefix()) == Some(0)
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Bar {
                source,
                symbol,
                interval,
                start,
            } => write!(f, "{source}:{symbol}:{interval}:{start}"),
            Wanted::Instrument { source, symbol } => write!(f, "{source}:{symbol}"),
        }
    }
}

fn colons_after(key: &[u8], prefix: &[u8]) -> Option<usize> {
    let rest = key.strip_prefix(prefix)?;
    Some(rest.iter().filter(|b| **b == b':').count())
}

/// The source in the key of a bar or of metrics.
pub(super) fn source_of(key: &[u8]) -> &[u8] {
    key.split(|b| *b == b':').next().unwrap_or(key)
}

/// The symbol in the key of a bar.
pub(super) fn symbol_of(key: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(key).ok()?;
    let (_, rest) = text.split_once(':')?;
    rest.rsplitn(3, ':').nth(2)
}

/// Keeps what is wanted of both sides: those bars, and the metrics of their instruments; nothing wanted: all.
///
/// # Errors
/// Neither side has a key that is wanted.
pub(super) fn narrow(wanted: &[Wanted], sides: &mut Sides) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let bars = [
        &mut sides.bars,
        &mut sides.silver.settled,
        &mut sides.silver.last,
    ];
    let mut found = vec![false; wanted.len()];
    for rows in bars {
        rows.retain(|key, _| {
            let mut kept = false;
            for (w, found) in wanted.iter().zip(&mut found) {
                let hit = w.is_bar(key);
                (kept, *found) = (kept | hit, *found | hit);
            }
            kept
        });
    }
    if let Some((w, _)) = wanted.iter().zip(&found).find(|(_, found)| !**found) {
        bail!(
            "neither silver.market_ohlcv nor the replay has a bar {w} in this range; write the key as SOURCE:SYMBOL or \
             SOURCE:SYMBOL:INTERVAL:START, as `finlake replay` prints it"
        );
    }
    for rows in [
        &mut sides.metrics,
        &mut sides.gold.settled,
        &mut sides.gold.last,
    ] {
        rows.retain(|key, _| wanted.iter().any(|w| w.is_metrics(key)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::compare::{Content, Replayed, Row, Rows};
    use super::*;

    fn rows(keys: &[&str]) -> Rows {
        let row = Row {
            content: Content::Metrics {
                close: 1,
                statistics: Vec::new(),
            },
            closed: true,
            sys_from: 1,
            revision: 0,
        };
        let each = keys.iter();
        each.map(|k| (k.as_bytes().to_vec(), row.clone())).collect()
    }

    fn names(rows: &Rows) -> Vec<&str> {
        let names = rows.keys();
        names.map(|k| std::str::from_utf8(k).unwrap()).collect()
    }

    fn instrument(symbol: &str) -> Wanted {
        Wanted::Instrument {
            source: "x".into(),
            symbol: symbol.into(),
        }
    }

    fn sides() -> Sides {
        Sides {
            bars: rows(&["x:A:1m:5", "x:A:1d:0", "x:A:B:1m:5", "x:AB:1m:5"]),
            metrics: rows(&["x:A:1970-01-01", "x:AB:1970-01-01"]),
            silver: Replayed {
                settled: rows(&["x:A:1m:5"]),
                last: rows(&["x:C:1m:6"]),
            },
            gold: Replayed::default(),
        }
    }

    #[test]
    fn sources_and_symbols_are_read_off_keys() {
        assert_eq!(source_of(b"x:A:B:1m:60"), b"x");
        assert_eq!(source_of(b"x:A:1970-01-01"), b"x");
        assert_eq!(symbol_of(b"x:A:B:1m:60"), Some("A:B"));
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let mut all = sides();
        narrow(&[], &mut all).unwrap();
        assert_eq!(all.bars.len(), 4);

        let mut one = sides();
        let bar = Wanted::Bar {
            source: "x".into(),
            symbol: "A".into(),
            interval: "1m".into(),
            start: 5,
        };
        narrow(&[bar], &mut one).unwrap();
        assert_eq!(names(&one.bars), ["x:A:1m:5"]);
        assert_eq!(names(&one.metrics), ["x:A:1970-01-01"]);
        assert!(one.silver.last.is_empty());

        let mut two = sides();
        narrow(&[instrument("A"), instrument("C")], &mut two).unwrap();
        assert_eq!(names(&two.bars), ["x:A:1d:0", "x:A:1m:5"]);
        assert_eq!(names(&two.silver.last), ["x:C:1m:6"]);
    }

    #[test]
    fn a_key_that_is_nowhere_is_no_clean_result() {
        let wanted = [instrument("A"), instrument("Z")];
        let error = narrow(&wanted, &mut sides()).unwrap_err().to_string();
        assert!(error.contains("x:Z"), "{error}");
    }
}
