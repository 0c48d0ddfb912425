//! One break of each cause, and runs that did not look at it.

use finlake_schemas::BreakKind;

use super::*;
use crate::findings::Finding;

const DAY: i32 = 20_000;
/// System time at which every break was told.
const TOLD: i64 = 1_000;

fn told(layer: Layer, key: &str, cause: &str) -> Break {
    let f = Finding::new(BreakKind::ValueDrift, layer, "t", key, cause);
    f.of("s", "X").on(DAY).to_break("reconcile", TOLD)
}

fn bar(interval: &str) -> String {
    format!("s:X:{interval}:17675712000000")
}

/// Everything was looked at, and every rule measured.
fn everything() -> Scope {
    let measures = [
        Measure::IdGaps,
        Measure::OhlcOrder,
        Measure::VolumeSum("1h".into()),
        Measure::KlineAccuracy("1m".into()),
        Measure::VendorAccuracy("1m".into()),
        Measure::NullRate("x".into()),
        Measure::MissingBars("1d".into()),
    ];
    let mut scope = Scope {
        layers: ["feed", "bronze", "silver", "gold"]
            .map(str::to_owned)
            .into(),
        intervals: ["1m", "1h", "1d"].map(str::to_owned).into(),
        measured: measures.map(|m| (m, true)).into(),
        ..Scope::default()
    };
    scope.looked.reached = Some(TOLD);
    scope.looked.written_since = [(Layer::Silver, i64::MIN), (Layer::Gold, i64::MIN)].into();
    for cause in ["kline_accuracy", "vendor_accuracy:v"] {
        scope.looked.compared.note(cause, &bar("1m"), true);
    }
    scope
}

fn covers(known: &Break, change: impl FnOnce(&mut Scope)) -> bool {
    let mut scope = everything();
    change(&mut scope);
    scope.covers(known)
}

/// Layer, key and cause of every kind of break that can end.
fn all() -> Vec<Break> {
    let (minute, hour, day) = (bar("1m"), bar("1h"), "s:X:2024-10-04");
    let silver = |key: &str, cause: &str| told(Layer::Silver, key, cause);
    vec![
        told(Layer::Feed, "s:X:7..9", "trade-id"),
        told(Layer::Bronze, "market.ticks/0:7..9", "position"),
        told(Layer::Bronze, "market.ticks/0:7..9", "offset"),
        told(Layer::Bronze, "market.ticks/0:7..9", "content"),
        told(Layer::Bronze, "market.ticks/0:7..9", "invented"),
        told(Layer::Bronze, "s:X:7", "contents:9"),
        told(Layer::Bronze, "0:7", "accepted"),
        told(Layer::Bronze, "0:7", "INV-13:rows"),
        told(Layer::Bronze, "null_rate:x", "validator"),
        silver("missing_bars:1d", "validator"),
        silver("0:7", "INV-13:rows"),
        silver(&minute, "row"),
        silver(&minute, "version"),
        silver(&minute, "trades"),
        silver(&minute, "close+vwap:70"),
        silver(&minute, "INV-2:70"),
        silver(&minute, "INV-6:prev:70"),
        silver(&minute, "record:70"),
        silver(&minute, "record:close:70"),
        silver(&minute, "invented:70"),
        silver(&minute, "ohlc_order"),
        silver(&hour, "volume_sum"),
        silver(&minute, "kline_accuracy"),
        silver(&minute, "vendor_accuracy:v"),
        silver("close", "table:retyped"),
        told(Layer::Gold, day, "row"),
        told(Layer::Gold, day, "close:70"),
        told(Layer::Gold, day, "record:70"),
    ]
}

#[test]
fn a_run_over_everything_covers_everything() {
    for known in all() {
        assert!(covers(&known, |_| {}), "{known:?}");
    }
}

#[test]
fn what_no_run_vouches_for_is_not_covered() {
    for known in all() {
        let none = [
            covers(&known, |s| s.past = true),
            covers(&known, |s| {
                s.layers.remove(&known.layer);
            }),
            covers(&known, |s| {
                s.unchecked.insert(class(&known.cause).to_owned());
                s.looked.written_since.clear();
            }),
            covers(&known, |s| s.symbol = Some("Y".into())),
            covers(&known, |s| s.date = Some(DAY + 1)),
            // The tables are being rebuilt, or nobody knows how far they are.
            covers(&known, |s| s.looked.reached = Some(TOLD - 1)),
            covers(&known, |s| s.looked.reached = None),
        ];
        assert_eq!(none, [false; 7], "{known:?}");
    }
}

#[test]
fn a_rule_that_is_switched_off_resolves_nothing() {
    let ruled = ["trade-id", "validator", "ohlc_order", "volume_sum"];
    for known in all() {
        let of_rule = ruled.contains(&class(&known.cause));
        let off = covers(&known, |s| s.measured.clear());
        assert_eq!(off, !of_rule, "{known:?}");
    }
}

#[test]
fn a_measure_speaks_of_its_own_interval() {
    let sums = told(Layer::Silver, &bar("1d"), "volume_sum");
    assert!(!covers(&sums, |_| {}), "1h was measured");
    for measure in [
        Measure::KlineAccuracy("1h".into()),
        Measure::KlineAccuracy("1m".into()),
    ] {
        // Without a comparison of the bar itself, whatever was measured.
        let known = told(Layer::Silver, &bar("1h"), "kline_accuracy");
        let covered = covers(&known, |s| s.measured = [(measure, true)].into());
        assert!(!covered);
    }
}

#[test]
fn bars_of_an_interval_that_the_table_lost_are_not_judged() {
    for known in all() {
        let of_bar = bar_of(&known.key).is_some();
        let by_itself = [
            "record",
            "invented",
            "kline_accuracy",
            "vendor_accuracy",
            "volume_sum",
        ];
        let without = covers(&known, |s| s.intervals.clear());
        let free = !of_bar || by_itself.contains(&class(&known.cause));
        assert_eq!(without, free, "{known:?}");
    }
}

#[test]
fn accuracy_is_judged_by_the_bar_or_by_the_whole() {
    let known = told(Layer::Silver, &bar("1m"), "kline_accuracy");
    let differs = |s: &mut Scope| s.looked.compared.note("kline_accuracy", &bar("1m"), false);
    // The rule allows some: over everything that ends the break, over a part of it not.
    assert!(covers(&known, differs));
    let narrow = |s: &mut Scope| {
        differs(s);
        s.date = Some(DAY);
    };
    assert!(!covers(&known, narrow));
    assert!(covers(&known, |s| s.date = Some(DAY)), "it agrees now");
    let broken = |s: &mut Scope| {
        differs(s);
        s.measured
            .insert(Measure::KlineAccuracy("1m".into()), false);
    };
    assert!(!covers(&known, broken));
    // Its kline is no longer retained; another vendor says nothing of this one.
    assert!(!covers(&known, |s| s.looked.compared = Compared::default()));
    let other = told(Layer::Silver, &bar("1m"), "vendor_accuracy:w");
    assert!(!covers(&other, |_| {}));
}

#[test]
fn a_share_ends_where_it_was_measured() {
    let of = |key: &str, date: Option<i32>| {
        let f = Finding::new(BreakKind::Missing, Layer::Bronze, "t", key, "validator");
        let mut b = f.to_break("reconcile", TOLD);
        b.trade_date = date;
        b
    };
    let day = rules::scoped(&Measure::NullRate("x".into()), Some(DAY), None);
    assert!(covers(&of(&day, Some(DAY)), |s| s.date = Some(DAY)));
    assert!(
        !covers(&of(&day, Some(DAY)), |_| {}),
        "the share of all is another one"
    );
    assert!(!covers(&of("null_rate:x", None), |s| s.date = Some(DAY)));
    assert!(!covers(&of("null_rate:y", None), |_| {}), "another column");
}

#[test]
fn versions_older_than_the_topic_are_not_judged_by_it() {
    let since = |t| {
        move |s: &mut Scope| {
            s.looked.written_since.insert(Layer::Silver, t);
        }
    };
    for cause in ["record:70", "record:close:70", "invented:70"] {
        let known = told(Layer::Silver, &bar("1m"), cause);
        assert!(covers(&known, since(70)));
        assert!(!covers(&known, since(71)));
        assert!(!covers(&known, |s| s.looked.written_since.clear()));
    }
    // That Bronze reaches further back than its topic says nothing of them.
    let known = told(Layer::Silver, &bar("1m"), "invented:70");
    assert!(covers(&known, |s| {
        s.unchecked.insert("invented".to_owned());
    }));
    let gold = told(Layer::Gold, "s:X:2024-10-04", "record:70");
    assert!(covers(&gold, since(71)), "each layer by its own topic");
}
