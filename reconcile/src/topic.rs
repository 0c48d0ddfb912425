//! Bronze against the records of its topic: sums of content hashes over runs of offsets, so that a
//! table of any size is compared in one pass over either side and a few bytes of memory per run;
//! only where sums differ are rows looked at.
//!
//! Pure. The hash of a row and of a record are made by [`content`] and [`raw`] from what each of
//! them says, the record's from the decoded record itself: nothing that wrote the row takes part.

use std::collections::BTreeMap;

use finlake_schemas::{Tick, hash128};

/// Offsets summed together.
pub const RUN: i64 = 1 << 12;

/// A record of `market.ticks`, as its topic has it.
#[derive(Debug, Clone, Copy)]
pub struct Ticked<'a> {
    pub offset: i64,
    /// Of [`content`] or [`raw`].
    pub hash: u128,
    /// Trade time (µs) and symbol; `None` where they are null in Bronze.
    pub time: Option<i64>,
    pub symbol: Option<&'a str>,
}

/// Hash of what names a record: the same for all records of an instrument.
pub fn names(key: &[u8], source: &str, symbol: &str) -> u128 {
    // The names apart, so that none can run into the other.
    let names = hash128(
        source.as_bytes(),
        &hash128(b"", symbol.as_bytes()).to_le_bytes(),
    );
    hash128(key, &names.to_le_bytes())
}

/// Hash of a record whose fields are columns. `names` by [`names`], `timestamp_ms` Kafka's.
#[inline]
pub fn content(names: u128, timestamp_ms: i64, tick: &Tick<'_>) -> u128 {
    let mut all = [0u8; 89];
    let mut n = 0;
    let mut put = |part: &[u8]| {
        all[n..n + part.len()].copy_from_slice(part);
        n += part.len();
    };
    put(&tick.price.0.to_le_bytes());
    put(&tick.quantity.0.to_le_bytes());
    for value in [
        timestamp_ms,
        tick.trade_id,
        tick.trade_time,
        tick.event_time.unwrap_or(i64::MIN),
        tick.ingest_time.unwrap_or(i64::MIN),
        tick.first_trade_id.unwrap_or(i64::MIN),
        tick.last_trade_id.unwrap_or(i64::MIN),
    ] {
        put(&value.to_le_bytes());
    }
    put(&[tick.buyer_maker.map_or(2, u8::from)]);
    hash128(&names.to_le_bytes(), &all)
}

/// Hash of a record that Bronze keeps as bytes. `key` as Bronze shows it.
pub fn raw(key: &[u8], bytes: &[u8]) -> u128 {
    hash128(key, bytes)
}

/// Records of one partition by run of offsets: how many, and the wrapping sum of their hashes.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    runs: BTreeMap<i64, (u64, u128)>,
    /// The run that is being added to: neighbours mostly fall into the same.
    now: Option<(i64, (u64, u128))>,
    /// Least offset and the one after the greatest.
    bounds: Option<(i64, i64)>,
}

impl Sums {
    /// Adds a record.
    #[inline]
    pub fn add(&mut self, offset: i64, hash: u128) {
        let run = offset.div_euclid(RUN);
        // By its offset, odd so that nothing of the hash is lost: contents that exchanged their
        // places would add up to the same.
        let hash = hash.wrapping_mul(u128::from(offset as u64) << 1 | 1);
        match &mut self.now {
            Some((at, sum)) if *at == run => *sum = (sum.0 + 1, sum.1.wrapping_add(hash)),
            _ => {
                self.settle();
                self.now = Some((run, (1, hash)));
            }
        }
        let (low, high) = self.bounds.get_or_insert((offset, offset));
        *low = (*low).min(offset);
        *high = (*high).max(offset.saturating_add(1));
    }

    fn settle(&mut self) {
        if let Some((run, (n, hash))) = self.now.take() {
            let sum = self.runs.entry(run).or_default();
            *sum = (sum.0 + n, sum.1.wrapping_add(hash));
        }
    }

    /// Adds what another holds.
    pub fn absorb(&mut self, mut other: Sums) {
        self.settle();
        other.settle();
        for (run, (n, hash)) in other.runs {
            let sum = self.runs.entry(run).or_default();
            *sum = (sum.0 + n, sum.1.wrapping_add(hash));
        }
        if let Some((low, high)) = other.bounds {
            let bounds = self.bounds.get_or_insert((low, high));
            *bounds = (bounds.0.min(low), bounds.1.max(high));
        }
    }

    /// Least offset and the one after the greatest.
    pub fn bounds(&self) -> Option<(i64, i64)> {
        self.bounds
    }
}

/// Ranges of offsets in which the sides differ, whole runs, neighbours joined up to `most` offsets;
/// below `first` nothing is compared, and the run that it cuts is always given.
pub fn differing(topic: &mut Sums, table: &mut Sums, first: i64, most: i64) -> Vec<(i64, i64)> {
    topic.settle();
    table.settle();
    let mut out: Vec<(i64, i64)> = Vec::new();
    let mut runs: Vec<i64> = topic
        .runs
        .keys()
        .chain(table.runs.keys())
        .copied()
        .collect();
    runs.sort_unstable();
    runs.dedup();
    for run in runs {
        let (from, to) = (
            run.saturating_mul(RUN),
            run.saturating_add(1).saturating_mul(RUN),
        );
        let cut = from < first;
        if to <= first || (!cut && topic.runs.get(&run) == table.runs.get(&run)) {
            continue;
        }
        match out.last_mut() {
            Some(last) if last.1 == from && to - last.0 <= most => last.1 = to,
            _ => out.push((from.max(first), to)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use finlake_schemas::Dec8;

    use super::*;

    fn tick() -> Tick<'static> {
        Tick {
            source: "binance",
            symbol: "BTCUSDT",
            trade_id: 7,
            price: Dec8(100),
            quantity: Dec8(200),
            trade_time: 3,
            event_time: Some(4),
            buyer_maker: Some(true),
            ingest_time: None,
            first_trade_id: None,
            last_trade_id: None,
        }
    }

    #[test]
    fn every_field_counts() {
        let name = names(b"binance:BTCUSDT", "binance", "BTCUSDT");
        let base = content(name, 9, &tick());
        assert_eq!(base, content(name, 9, &tick()));
        let mut all = vec![base, content(name, 8, &tick())];
        let changes: [fn(&mut Tick<'_>); 10] = [
            |t| t.trade_id = 8,
            |t| t.price = Dec8(101),
            |t| t.quantity = Dec8(201),
            |t| t.trade_time = 4,
            |t| t.event_time = None,
            |t| t.event_time = Some(3),
            |t| t.buyer_maker = None,
            |t| t.ingest_time = Some(4),
            |t| t.first_trade_id = Some(4),
            |t| t.last_trade_id = Some(4),
        ];
        for change in changes {
            let mut other = tick();
            change(&mut other);
            all.push(content(name, 9, &other));
        }
        for (key, source, symbol) in [
            ("binance:BTCUSD", "binance", "BTCUSDT"),
            ("binance:BTCUSDT", "binanc", "BTCUSDT"),
            ("binance:BTCUSDT", "binance", "TCUSDT"),
        ] {
            all.push(content(names(key.as_bytes(), source, symbol), 9, &tick()));
        }
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
    }

    fn sums(rows: impl IntoIterator<Item = (i64, u128)>) -> Sums {
        let mut out = Sums::default();
        rows.into_iter().for_each(|(o, h)| out.add(o, h));
        out
    }

    #[test]
    fn order_and_parts_do_not_matter() {
        let rows: Vec<(i64, u128)> = (0..20_000).map(|o| (o, (o as u128) << 90 | 1)).collect();
        let mut whole = sums(rows.iter().copied());
        let mut parts = sums(rows.iter().rev().step_by(2).copied());
        parts.absorb(sums(rows.iter().rev().skip(1).step_by(2).copied()));
        assert_eq!(parts.bounds(), Some((0, 20_000)));
        assert!(differing(&mut whole, &mut parts, 0, i64::MAX).is_empty());
    }

    #[test]
    fn differing_runs_are_named_once_and_joined() {
        let rows = |skip: &[i64]| {
            let skip = skip.to_vec();
            sums(
                (0..10 * RUN)
                    .filter(move |o| !skip.contains(o))
                    .map(|o| (o, o as u128)),
            )
        };
        let mut topic = rows(&[]);
        let mut table = rows(&[3, RUN + 1, 2 * RUN, 8 * RUN + 5]);
        let found = differing(&mut topic, &mut table, 0, 2 * RUN);
        assert_eq!(
            found,
            [(0, 2 * RUN), (2 * RUN, 3 * RUN), (8 * RUN, 9 * RUN)]
        );
        // Retention took the first run and half of the second: what is left of it is looked at.
        let found = differing(&mut topic, &mut table, RUN + 7, i64::MAX);
        assert_eq!(found, [(RUN + 7, 3 * RUN), (8 * RUN, 9 * RUN)]);
        // Invented rows, far away and at impossible places.
        let mut table = rows(&[]);
        table.add(i64::MAX, 1);
        table.add(-1, 1);
        let found = differing(&mut topic, &mut table, i64::MIN, i64::MAX);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn contents_that_exchanged_their_places_differ() {
        let mut a = sums([(0, 5), (1, 9), (2, 4)]);
        let mut b = sums([(0, 9), (1, 5), (2, 4)]);
        assert_eq!(differing(&mut a, &mut b, 0, i64::MAX), [(0, RUN)]);
    }
}
