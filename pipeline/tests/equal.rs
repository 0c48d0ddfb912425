//! The proof by trial: whatever the order, the duplicates, the commits, the aborts and the crashes,
//! the rows that remain equal a batch computation over the set of accepted trades.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use finlake_market::gold::{GoldConfig, values};
use finlake_pipeline::{Emit, PipelineConfig};
use finlake_schemas::{Dec8, Metrics, topics};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Pipe(usize),
    Commit,
    Wait(i64),
    Abort,
    Crash,
    Restore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1usize..20).prop_map(Step::Pipe),
        5 => Just(Step::Commit),
        3 => (0i64..70_000_000).prop_map(Step::Wait),
        1 => Just(Step::Abort),
        1 => Just(Step::Crash),
        1 => Just(Step::Restore),
    ];
    prop::collection::vec(step, 5..60)
}

/// Trades over a few days, mostly in order, some late by minutes, some by days, some twice.
fn trades() -> impl Strategy<Value = Vec<T>> {
    let one = (
        0usize..4,
        prop_oneof![
            6 => 0i64..90_000_000,
            2 => 0i64..2 * HOUR,
            1 => 0i64..DAY,
        ],
        prop_oneof![
            8 => Just(0i64),
            3 => 0i64..3 * MIN,
            1 => 0i64..3 * DAY,
        ],
        1i64..50,
        1i64..5,
        any::<bool>(),
        prop::bool::weighted(0.15),
    );
    prop::collection::vec(one, 1..160).prop_map(|list| {
        let names = [("x", "A"), ("x", "B"), ("y", "A"), ("y", "A:Z")];
        let mut now = [4 * DAY; 4];
        let mut ids = [65_500i64; 4];
        let mut out: Vec<T> = Vec::new();
        for (n, step, late, price, quantity, buyer_maker, again) in list {
            let twice = again.then(|| out.get(out.len().wrapping_sub(3)).cloned());
            if let Some(Some(t)) = twice {
                out.push(t);
                continue;
            }
            now[n] += step;
            ids[n] += 1 + (price % 7) / 6;
            let (source, symbol) = names[n];
            out.push(T {
                source,
                symbol,
                id: ids[n],
                at: now[n] - late,
                price,
                quantity,
                buyer_maker,
            });
        }
        out
    })
}

const INTERVALS: [(&str, i64); 4] = [("1m", MIN), ("5m", 5 * MIN), ("1h", HOUR), ("1d", DAY)];

fn config(emit: Emit) -> PipelineConfig {
    PipelineConfig {
        intervals: INTERVALS
            .iter()
            .map(|(name, _)| name.parse().unwrap())
            .collect(),
        emit,
        // Short, so that trades do come too late.
        retention_1m: 2 * DAY,
        gold: GoldConfig {
            windows: vec![2, 3],
            ..GoldConfig::default()
        },
        // Small, so that symbols are dropped and read back.
        cached_symbols: 1,
        ..PipelineConfig::default()
    }
}

/// Runs the steps, then what is left, then a graceful stop.
fn run(sim: &mut Sim, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Pipe(n) => sim.pipe(*n),
            Step::Commit => sim.commit(),
            Step::Wait(by) => {
                sim.wait(*by);
            }
            Step::Abort => sim.at = sim.driver.abort().unwrap()[0] as usize,
            Step::Crash => sim.at = sim.driver.crash_and_restore().unwrap()[0] as usize,
            Step::Restore => sim.at = sim.driver.crash_and_restore().unwrap()[0] as usize,
        }
    }
    sim.pipe(usize::MAX / 2);
    sim.driver.advance(20_000).unwrap();
    sim.driver.stop().unwrap();
}

/// Trades that came too late for their 1m bar, by (source, symbol, id).
fn too_late(log: &[T]) -> BTreeSet<(&str, &str, i64)> {
    let mut latest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut late = BTreeSet::new();
    for t in log {
        let id = (t.source, t.symbol, t.id);
        if !seen.insert(id) {
            continue;
        }
        let of = latest.entry((t.source, t.symbol)).or_insert(i64::MIN / 2);
        let end = t.at - t.at.rem_euclid(MIN) + MIN;
        if end <= *of - 2 * DAY {
            late.insert(id);
        }
        *of = (*of).max(t.at);
    }
    late
}

/// Gold by the book: all closes of a symbol, every date computed from scratch.
fn check_gold(sim: &Sim, config: &GoldConfig) {
    let mut rows: BTreeMap<(&str, &str, i32), Metrics<'_>> = BTreeMap::new();
    let metrics = sim.metrics();
    for m in metrics {
        let key = (m.source, m.symbol, m.trade_date);
        match rows.get(&key) {
            None => assert_eq!((m.revision, m.prev_sys_from), (0, None)),
            Some(before) => {
                assert_eq!(m.revision, before.revision + 1);
                assert_eq!(m.prev_sys_from, Some(before.sys_from));
                assert!(m.commit > before.commit);
                let same = m.close == before.close && m.windows == before.windows;
                assert!(
                    !same || m.return_1 != before.return_1 || m.observations != before.observations
                );
            }
        }
        assert_eq!(m.valid_from, (i64::from(m.trade_date) + 1) * DAY);
        rows.insert(key, m);
    }
    let bars = current(sim);
    let mut closes: BTreeMap<(&str, &str), Vec<(i32, Dec8)>> = BTreeMap::new();
    for b in bars.values() {
        if b.bar_interval == "1d" && b.stage.as_str() == "closed" {
            let of = closes.entry((b.source, b.symbol)).or_default();
            of.push((b.trade_date, b.close));
        }
    }
    let mut expected = 0;
    for ((source, symbol), days) in &closes {
        let series: Vec<Dec8> = days.iter().map(|d| d.1).collect();
        for (n, (date, close)) in days.iter().enumerate() {
            expected += 1;
            let row = &rows[&(*source, *symbol, *date)];
            let want = values(&series[..=n], config);
            assert_eq!(row.close, *close);
            assert_eq!(row.observations, i64::from(want.observations));
            assert_eq!(row.return_1, want.return_1);
            for (have, want) in row.windows.iter().zip(&want.windows) {
                assert_eq!(have.n, i32::from(want.n));
                assert_eq!(
                    (have.ret, have.volatility, have.sharpe),
                    (want.ret, want.volatility, want.sharpe)
                );
            }
            // INV-9: it does not say more than Silver said at its system time.
            let at = sim.versions().into_iter().rfind(|b| {
                b.bar_interval == "1d"
                    && (b.source, b.symbol, b.trade_date) == (*source, *symbol, *date)
                    && b.sys_from <= row.sys_from
                    && b.stage.as_str() == "closed"
            });
            assert_eq!(at.map(|b| b.close), Some(row.close));
        }
    }
    assert_eq!(rows.len(), expected);
}

fn check_all(log: &[T], config: &PipelineConfig, sim: &Sim) {
    let late = too_late(log);
    let mut unique: BTreeMap<(&str, &str, i64), &T> = BTreeMap::new();
    for t in log {
        unique.entry((t.source, t.symbol, t.id)).or_insert(t);
    }
    let want = by_definition(unique.values().copied(), &INTERVALS, |t, interval| {
        interval == "1m" && late.contains(&(t.source, t.symbol, t.id))
    });
    let rows = current(sim);
    let have: BTreeMap<BarKey, Content> =
        rows.iter().map(|(k, b)| (k.clone(), content(b))).collect();
    assert_eq!(have, want, "INV-1");
    // Stages: closed if and only if the source's stream time has passed the end.
    let times: BTreeMap<String, i64> = sim
        .ledger()
        .last()
        .unwrap()
        .stream_times
        .iter()
        .cloned()
        .collect();
    for b in rows.values() {
        let over = times[b.source] >= b.bar_end;
        assert_eq!(b.stage.as_str(), if over { "closed" } else { "checkpoint" });
        assert!(b.low <= b.vwap && b.vwap <= b.high);
    }
    // The last state on `.live` is the newest version's.
    let mut live = BTreeMap::new();
    for (_, b) in sim.bars(topics::LIVE) {
        live.insert(key_of(&b), b);
    }
    assert_eq!(live.len(), rows.len());
    for (key, b) in &rows {
        assert_eq!(content(&live[key]), content(b));
        assert_eq!(live[key].stage, b.stage);
    }
    let letters = sim.dead();
    assert!(letters.iter().all(|(class, _)| class == "too_late:1m"));
    assert_eq!(letters.len(), late.len());
    check_gold(sim, &config.gold);
    check_ledger(sim);
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More with FINLAKE_CASES=10000.
        cases: std::env::var("FINLAKE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// INV-1, INV-6, INV-9, INV-11, INV-12, INV-13.
    #[test]
    fn equals_a_batch_computation(log in trades(), steps in steps(), live in any::<bool>()) {
        let config = config(if live { Emit::Commit } else { Emit::Every(1_000_000) });
        let mut sim = Sim::new(&config);
        for t in &log {
            sim.append_trade(t);
        }
        run(&mut sim, &steps);
        check_all(&log, &config, &sim);
    }

    /// The same trades in another order, with other commits: the same rows.
    #[test]
    fn inv_1_order_does_not_matter(
        (log, shuffled) in trades().prop_flat_map(|t| (Just(t.clone()), Just(t).prop_shuffle())),
        steps in steps(),
    ) {
        // Nothing may be too late here: that does depend on the order.
        let config = PipelineConfig { retention_1m: 400 * DAY, ..config(Emit::Commit) };
        // A trade that came twice has one content.
        let ids: BTreeSet<_> = log.iter().map(|t| (t.source, t.symbol, t.id, t.at)).collect();
        let rows = |log: &[T], steps: &[Step]| {
            let mut sim = Sim::new(&config);
            for t in log {
                sim.append_trade(t);
            }
            run(&mut sim, steps);
            let rows: BTreeMap<BarKey, Content> =
                current(&sim).iter().map(|(k, b)| (k.clone(), content(b))).collect();
            let mut gold: BTreeMap<(String, String, i32), String> = BTreeMap::new();
            for m in sim.metrics() {
                let text = format!("{:?} {:?} {:?} {}", m.close, m.return_1, m.windows, m.observations);
                gold.insert((m.source.into(), m.symbol.into(), m.trade_date), text);
            }
            (rows, gold)
        };
        let one = rows(&log, &[]);
        let other = rows(&shuffled, &steps);
        prop_assert!(!ids.is_empty());
        prop_assert_eq!(one, other);
    }
}

/// A hundred days with corrections: exactly the dates whose windows hold the changed close are
/// sent again, and only if they say something else.
#[test]
fn a_corrected_close_reaches_as_far_as_the_largest_window() {
    let config = PipelineConfig {
        gold: GoldConfig {
            windows: vec![3, 10],
            ..GoldConfig::default()
        },
        ..PipelineConfig::default()
    };
    let mut s = Sim::new(&config);
    for day in 0..60 {
        // No trade on every seventh day: no bar, no row.
        if day % 7 != 6 {
            s.trades(&[t(day, day * DAY + 5, 100 + (day * 37) % 11)]);
        }
    }
    s.commit();
    let before = s.metrics().len();
    let dates: Vec<i32> = s.metrics().iter().map(|m| m.trade_date).collect();
    assert_eq!(before, 51, "the last day is not over");
    check_gold(&s, &config.gold);
    // A late trade before the day's last one changes the bar, not the close: no news for Gold.
    s.trades(&[t(1000, 22 * DAY + 1, 500)]);
    s.wait(11_000_000);
    assert_eq!(s.metrics().len(), before);
    // One after it changes the close.
    s.trades(&[t(1001, 21 * DAY + 6, 90)]);
    s.wait(11_000_000);
    let first = dates
        .iter()
        .position(|d| i64::from(*d) * DAY == T0 + 21 * DAY)
        .unwrap();
    let sent: Vec<i32> = s.metrics()[before..].iter().map(|m| m.trade_date).collect();
    assert_eq!(sent, dates[first..=first + 10]);
    check_gold(&s, &config.gold);
    // A day that had no trades gets one: later dates see one more close.
    s.trades(&[t(1002, 27 * DAY, 103)]);
    s.wait(11_000_000);
    check_gold(&s, &config.gold);
    check_ledger(&s);
}
