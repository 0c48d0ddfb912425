//! What `--apply` may send: not over what people corrected, and not out of a Bronze that is not whole.

use finlake_lakehouse::{Filter, Table};
use finlake_schemas::{Assertion, BarContent, Dec8, Dec16, topics};

use super::{DAY, damage, gone, high, higher, late_world, minute, tally};
use crate::corrections::send;
use crate::exact::World;
use crate::rows;

/// Asserts that the bar of the trade that `late_trade` made on day `n` was one higher at its high and at its close, of the
/// version that Silver holds.
fn correct(world: &World, interval: &str, day: i64, n: i64) {
    let (unit, time) = (100_000_000, day + n * DAY + 1_000);
    let start = day + n * DAY;
    let price = |more: i64| Dec8(i128::from(100 + n + more) * unit);
    let sql = format!(
        "select cast(sys_from as bigint), revision, taker_buy_base, taker_buy_quote from silver.market_ohlcv where \
         is_current and bar_interval = '{interval}' and cast(bar_start as bigint) = {start}"
    );
    let held = rows::ask(&world.data(), &sql);
    let held: Vec<&str> = held[0].split(',').collect();
    let content = BarContent {
        open: price(0),
        high: price(1),
        low: price(0),
        close: price(1),
        volume: Dec8(unit),
        quote_volume: Dec16(price(0).0 * unit),
        trade_count: 1,
        taker_buy_base: Dec8::parse(held[2]).unwrap(),
        taker_buy_quote: Dec16::parse(held[3]).unwrap(),
        first_trade_time: time,
        first_trade_id: n,
        last_trade_time: time,
        last_trade_id: n,
    };
    let assertion = Assertion {
        assertion_id: [n as u8; 16],
        source: "sim",
        symbol: "LATE-USD",
        bar_interval: interval,
        bar_start: start,
        expected_sys_from: Some(held[0].parse().unwrap()),
        expected_revision: Some(held[1].parse().unwrap()),
        content,
        retracted: false,
        origin: "desk",
        reason: "e2e",
        sent_at: 1,
    };
    let (mut key, mut value) = (Vec::new(), Vec::new());
    assertion.key(&mut key);
    world
        .codec
        .encode_assertion(&assertion, &mut value)
        .unwrap();
    send(world, &[(key, value)]);
    world.finish("a");
}

#[test]
fn what_somebody_corrected_outlives_the_remedy_for_a_late_trade() {
    let (_broker, world, day, from) = late_world();
    let (corrected, whole_day) = (day + 5 * DAY, 20);
    correct(&world, "1m", day, 5);
    correct(&world, "1d", day, whole_day);
    assert_eq!(high(&world, corrected), "106.00000000,1");

    let json = ["--from-offsets", &from, "--output", "json"];
    let found = world.replay(&json);
    assert_eq!(found.code, 1, "{}\n{}", found.stdout, found.stderr);
    assert_eq!(tally(&found, "silver")[2..], [1, 2], "{}", found.stdout);
    // Its own close, the next day's return, and every full window that holds the day.
    assert_eq!(tally(&found, "gold"), [28, 0, 0, 21], "{}", found.stdout);
    let rows = found.json()["rows"].clone();
    let said: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (&r["key"], &r["what"]))
        .collect();
    let key = |interval: &str, start: i64| format!("sim:LATE-USD:{interval}:{start}");
    for (name, what) in [
        (key("1m", day), "different"),
        (key("1m", corrected), "corrected"),
        (key("1d", day + whole_day * DAY), "corrected"),
    ] {
        assert!(
            said.contains(&(&name.clone().into(), &what.into())),
            "{name}: {said:?}"
        );
    }

    let applied = world.replay(&["--from-offsets", &from, "--apply", "--reason", "late"]);
    for told in ["sent 1 assertions", "2 corrected bars stay"] {
        assert!(applied.stderr.contains(told), "{told}: {}", applied.stderr);
    }
    world.finish("a");
    assert_eq!(high(&world, day), "500.00000000,2");
    assert_eq!(high(&world, corrected), "106.00000000,1");
    // What is corrected is no difference, and what the replay itself sent is no correction.
    let again = world.replay(&json);
    assert_eq!(again.code, 0, "{}\n{}", again.stdout, again.stderr);
    assert_eq!(tally(&again, "silver")[2..], [0, 2], "{}", again.stdout);

    // One of them is to go after all.
    let one = key("1m", corrected);
    let over = ["--apply", "--over-corrections", "--key", &one];
    let over = world.replay(&[&["--from-offsets", from.as_str()], &over[..]].concat());
    assert!(over.stderr.contains("sent 1 assertions"), "{}", over.stderr);
    world.finish("a");
    assert_eq!(high(&world, corrected), "105.00000000,1");
    let last = world.replay(&json);
    assert_eq!(tally(&last, "silver")[2..], [0, 1], "{}", last.stdout);
    // All of it is in the books.
    world.replays();
}

/// Trades that are lost from Bronze are in their bars: a replay out of it would take them back.
#[test]
fn nothing_is_sent_out_of_a_bronze_that_lost_rows() {
    let (_broker, world, day, from) = late_world();
    let before = rows::silver(&world.data());
    let lost = day + 30 * DAY;
    let row = Filter::all().between("trade_time", lost..lost + DAY);
    damage(&world.data(), Table::Ticks, row, gone);
    let found = world.replay(&["--from-offsets", &from, "--output", "csv"]);
    assert_eq!(found.code, 1, "{}\n{}", found.stdout, found.stderr);
    assert!(found.stdout.contains(",extra,"), "{}", found.stdout);

    let refused = world.replay(&["--from-offsets", &from, "--apply"]);
    assert_eq!(refused.code, 2, "{}\n{}", refused.stdout, refused.stderr);
    for told in [
        "nothing was sent",
        "MISSING market.ticks/",
        "finlake reconcile --layer bronze",
    ] {
        assert!(refused.stderr.contains(told), "{told}: {}", refused.stderr);
    }
    assert!(world.read(topics::BARS).is_empty(), "nothing was sent");
    assert!(world.read(topics::BREAKS).is_empty(), "nobody was told");
    world.finish("a");
    assert_eq!(rows::silver(&world.data()), before);
    // What does not come out of Bronze is not held up by it.
    damage(&world.data(), Table::Ohlcv, minute(day + 10 * DAY), higher);
    let applied = world.replay(&["--all", "--apply"]);
    assert!(
        applied.stderr.contains("sent 1 assertions"),
        "{}",
        applied.stderr
    );
}
