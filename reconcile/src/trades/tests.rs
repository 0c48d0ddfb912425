use finlake_market::Interval;
use finlake_market::interval::{DAY, HOUR};
use proptest::prelude::*;

use super::*;

const T0: i64 = 1_723_075_200_000_000;
const ONE: i128 = 100_000_000;

pub fn rules() -> Rules {
    let list: Vec<Interval> = ["1m", "1h", "1d"]
        .iter()
        .map(|t| Interval::parse(t).unwrap())
        .collect();
    Rules {
        intervals: Intervals::new(&list).unwrap(),
        limits: Limits::default(),
        retention_1m: 35 * DAY,
    }
}

fn push(slice: &mut Slice, offset: i64, id: i64, time: i64, price: i128, r: &Rules) {
    let tick = Tick {
        source: "s",
        symbol: "X",
        trade_id: id,
        price: Dec8(price),
        quantity: Dec8(ONE),
        trade_time: time,
        event_time: None,
        buyer_maker: Some(id % 2 == 0),
        ingest_time: None,
        first_trade_id: None,
        last_trade_id: None,
    };
    let record = Record {
        offset,
        timestamp_ms: (T0 + 1_000 * DAY) / 1000,
        commit: offset / 10 + 1,
        named: true,
        tick,
    };
    slice.push(0, &record, r);
}

fn key(interval: u8, start: i64) -> BarKey {
    BarKey {
        symbol: 0,
        interval,
        start,
    }
}

fn run(slice: &mut Slice, cuts: Vec<(BarKey, i64)>) -> Folded {
    fold(
        slice,
        &rules(),
        &Cuts::new(cuts),
        &mut Seen::default(),
        &Outside::default(),
    )
    .unwrap()
}

#[test]
fn a_version_reflects_what_came_before_it() {
    let r = rules();
    let mut slice = Slice::default();
    // Files are in order of time: offsets 0, 2, 1, 3.
    for (offset, time, price) in [(0, 0, 10), (2, 5, 30), (1, 10, 20), (3, 20, 40)] {
        push(&mut slice, offset, offset, T0 + time, price * ONE, &r);
    }
    let folded = run(
        &mut slice,
        vec![(key(0, T0), 2), (key(0, T0), 4), (key(2, T0), 1)],
    );
    let minute = &folded.bars[0];
    let close = |o: &Option<Ohlcv>| o.map(|o| (o.close.0 / ONE, o.trade_count));
    assert_eq!(
        minute
            .at
            .iter()
            .map(|(t, o)| (*t, close(o)))
            .collect::<Vec<_>>(),
        [(2, Some((20, 2))), (4, Some((40, 4)))]
    );
    let day = folded.bars.iter().find(|b| b.key.interval == 2).unwrap();
    assert_eq!(close(&day.at[0].1), Some((10, 1)));
    assert_eq!(close(&day.total), Some((40, 4)));
    assert_eq!((day.last_offset, day.last_commit), (3, 1));
}

#[test]
fn the_first_by_offset_counts_and_the_others_are_named() {
    let r = rules();
    let mut slice = Slice::default();
    push(&mut slice, 7, 1, T0, 99 * ONE, &r);
    push(&mut slice, 3, 1, T0, 10 * ONE, &r);
    push(&mut slice, 8, 1, T0, 10 * ONE, &r);
    push(&mut slice, 9, 2, T0, -ONE, &r);
    push(&mut slice, 12, 3, T0 + 1, 11 * ONE, &r);
    push(&mut slice, 12, 3, T0 + 1, 11 * ONE, &r);
    let folded = run(&mut slice, vec![]);
    assert_eq!(folded.bars[0].total.unwrap().open, Dec8(10 * ONE));
    assert_eq!(folded.bars[0].total.unwrap().trade_count, 2);
    assert_eq!(folded.doubled, [12]);
    let same = SameId {
        symbol: 0,
        id: 1,
        first: 3,
        other: 7,
    };
    assert_eq!(folded.two_contents, [same]);
    let first = Counted {
        records: 4,
        accepted: 1,
        duplicates: 2,
        rejected: 1,
    };
    let second = Counted {
        records: 1,
        accepted: 1,
        ..Counted::default()
    };
    assert_eq!(folded.counts, BTreeMap::from([(1, first), (2, second)]));
}

#[test]
fn an_id_of_another_day_is_resolved_from_outside() {
    let r = rules();
    let mut seen = Seen::default();
    let cuts = Cuts::default();
    let none = Outside::default();
    let mut monday = Slice::default();
    push(&mut monday, 5, 1, T0, ONE, &r);
    assert!(
        fold(&mut monday, &r, &cuts, &mut seen, &none)
            .unwrap()
            .elsewhere
            .is_empty()
    );
    let mut tuesday = Slice::default();
    push(&mut tuesday, 9, 1, T0 + DAY, ONE, &r);
    push(&mut tuesday, 10, 2, T0 + DAY, ONE, &r);
    let folded = fold(&mut tuesday, &r, &cuts, &mut seen, &none).unwrap();
    assert_eq!(folded.elsewhere, [(0, 1)]);
    let outside = Outside {
        losers: BTreeSet::from([9]),
        settled: BTreeSet::from([(0, 1)]),
        newer: vec![],
    };
    let folded = fold(&mut tuesday, &r, &cuts, &mut Seen::default(), &outside).unwrap();
    assert_eq!(folded.bars[0].total.unwrap().trade_count, 1);
    assert_eq!(folded.counts[&1].duplicates, 1);
}

#[test]
fn what_came_too_late_for_its_minute_is_kept_apart() {
    let r = rules();
    let mut slice = Slice::default();
    push(&mut slice, 1, 1, T0, 10 * ONE, &r);
    push(&mut slice, 9, 2, T0 + 1, 20 * ONE, &r);
    let newer = |time| Outside {
        newer: vec![(0, time, 5)],
        ..Outside::default()
    };
    let at = |time: i64, slice: &mut Slice| {
        let cuts = Cuts::new(vec![(key(0, T0), 2)]);
        fold(slice, &r, &cuts, &mut Seen::default(), &newer(time))
            .unwrap()
            .bars
    };
    let limit = T0 + MINUTE + r.retention_1m;
    let bars = at(limit - 1, &mut slice);
    assert_eq!(
        (bars[0].total.unwrap().trade_count, &bars[0].replayed),
        (2, &None)
    );
    let bars = at(limit, &mut slice);
    assert_eq!(bars[0].total.unwrap().trade_count, 1);
    assert_eq!(bars[0].replayed.as_ref().unwrap().1.trade_count, 2);
    let hour = bars.iter().find(|b| b.key.interval == 1).unwrap();
    assert_eq!(hour.total.unwrap().trade_count, 2);
}

#[test]
fn huge_amounts_keep_all_their_digits_and_room_is_judged() {
    let r = rules();
    let mut slice = Slice::default();
    let huge = 40_000_000_000_000_000_000_000_000_000i128; // × 10^8 = 4 × 10^36
    for (n, price) in [huge, huge, 5].into_iter().enumerate() {
        push(&mut slice, n as i64, n as i64, T0 + n as i64, price, &r);
    }
    let folded = run(&mut slice, vec![]);
    let bar = folded.bars[0].total.unwrap();
    assert_eq!(bar.high, Dec8(huge));
    assert_eq!(bar.quote_volume.0, (2 * huge + 5) * ONE);
    for n in 3..20 {
        push(&mut slice, n, n, T0 + n, huge, &r);
    }
    let folded = run(&mut slice, vec![]);
    // Half a column is 4.99… × 10^37: twelve of them fit.
    assert_eq!(folded.counts[&1].accepted + folded.counts[&2].accepted, 13);
}

#[test]
fn spans_hold_whole_bars() {
    let list: Vec<Interval> = ["1h", "3d", "2d"]
        .iter()
        .map(|t| Interval::parse(t).unwrap())
        .collect();
    let wide = Rules {
        intervals: Intervals::new(&list).unwrap(),
        ..rules()
    };
    assert_eq!(wide.span(), 6 * DAY);
    assert_eq!(rules().span(), DAY);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Every bar at every cut equals a plain fold of the trades before it, whatever the order of
    /// rows in the files.
    #[test]
    fn equals_a_plain_fold(
        trades in prop::collection::vec((0i64..80, 0i64..3 * HOUR, 1i128..1_000), 1..120),
        cut in prop::collection::vec((0u8..3, 0i64..180, 0i64..130), 0..40),
        shuffle in any::<u64>(),
    ) {
        let r = rules();
        let mut order: Vec<usize> = (0..trades.len()).collect();
        order.sort_by_key(|n| (*n as u64).wrapping_mul(shuffle | 1) >> 3);
        let mut slice = Slice::default();
        for n in order {
            let (id, time, price) = trades[n];
            push(&mut slice, n as i64, id, T0 + time, price * ONE, &r);
        }
        let cuts: Vec<(BarKey, i64)> = cut
            .into_iter()
            .map(|(k, minute, at)| {
                let i = &r.intervals.list()[usize::from(k)];
                (key(k, i.start_of(T0 + minute * MINUTE)), at)
            })
            .collect();
        let folded = run(&mut slice, cuts.clone());

        let mut taken = BTreeSet::new();
        let mut accepted = Vec::new();
        for (n, (id, time, price)) in trades.iter().enumerate() {
            if taken.insert(*id) {
                accepted.push((n as i64, *id, T0 + time, price * ONE));
            }
        }
        let plain = |key: BarKey, before: i64| {
            let i = &r.intervals.list()[usize::from(key.interval)];
            let mut bar: Option<Ohlcv> = None;
            for (offset, id, time, price) in &accepted {
                if *offset >= before || i.start_of(*time) != key.start { continue; }
                let trade = Trade {
                    at: Point { time: *time, id: *id },
                    price: Dec8(*price),
                    quantity: Dec8(ONE),
                    quote: Dec16(price * ONE),
                    taker_buy: id % 2 != 0,
                    trades: 1,
                };
                match &mut bar {
                    Some(bar) => bar.fold(&trade).unwrap(),
                    None => bar = Some(Ohlcv::of(&trade)),
                }
            }
            bar
        };
        let mut keys = BTreeSet::new();
        for bar in &folded.bars {
            keys.insert(bar.key);
            prop_assert_eq!(bar.total, plain(bar.key, i64::MAX));
            for (at, content) in &bar.at {
                prop_assert_eq!(*content, plain(bar.key, *at));
            }
            let mut mine: Vec<i64> = cuts.iter().filter(|c| c.0 == bar.key).map(|c| c.1).collect();
            mine.sort_unstable();
            mine.dedup();
            prop_assert_eq!(mine, bar.at.iter().map(|a| a.0).collect::<Vec<_>>());
        }
        let n: usize = accepted.len() * r.intervals.list().len();
        prop_assert!(keys.len() <= n);
    }
}
