//! A configuration that changes between two runs: what is in the tables stays right, and a reconciliation knows
//! by which rules each row was made.

use finlake::demo::market::Message;
use finlake_devkafka::DevKafka;
use finlake_schemas::{Dec8, Tick};

use crate::exact::World;
use crate::harness::{Finlake, Ran, secs};
use crate::rows;

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 1_440 * MINUTE;
/// 2026-01-05T00:00:00Z.
const FIRST: i64 = 1_767_571_200_000_000;
const SYMBOLS: [&str; 3] = ["AAA-USD", "BBB-USD", "CCC-USD"];

/// A trade of each symbol every ten minutes from one instant to another, µs after the first day began.
fn trades(world: &World, from: i64, to: i64) -> Vec<Message> {
    let mut out = Vec::new();
    for n in from / (10 * MINUTE)..to / (10 * MINUTE) {
        for symbol in SYMBOLS {
            let price = 100 + i128::from(n % 17);
            let tick = Tick {
                source: "sim",
                symbol,
                trade_id: n,
                price: Dec8(price * 100_000_000),
                quantity: Dec8(50_000_000),
                trade_time: FIRST + n * 10 * MINUTE + 1_000,
                event_time: None,
                buyer_maker: Some(n % 2 == 0),
                ingest_time: None,
                first_trade_id: None,
                last_trade_id: None,
            };
            out.push(world.message(&tick));
        }
    }
    out
}

/// Processes with these settings changed.
fn process(world: &World, settings: &[(&'static str, &str)]) {
    let with = |f: Finlake| settings.iter().fold(f, |f, (k, v)| f.set(k, v));
    with(world.finlake("a"))
        .args(["run", "--until-caught-up"])
        .run(secs(120))
        .ok();
}

fn reconcile(world: &World, settings: &[(&'static str, &str)]) -> Ran {
    let finlake = settings
        .iter()
        .fold(world.finlake("a"), |f, (k, v)| f.set(k, v));
    finlake
        .args(["reconcile", "--quiet", "--output", "json"])
        .run(secs(120))
}

fn is_clean(ran: &Ran) {
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
}

#[test]
fn intervals_and_rates_may_change_and_every_row_is_held_to_its_own() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let hour = 60 * MINUTE;
    // Until half past five of the second day, in the middle of a bar of four hours.
    let change = DAY + 5 * hour + 30 * MINUTE;
    world.produce(&trades(&world, 0, change));
    process(&world, &[]);
    is_clean(&reconcile(&world, &[]));

    let added = [
        ("stream.intervals", "1m,1h,4h,1d"),
        ("gold.risk_free", "0.05"),
    ];
    world.produce(&trades(&world, change, 2 * DAY + 13 * hour));
    process(&world, &added);
    for settings in [&added[..], &[]] {
        let told = reconcile(&world, settings);
        assert_eq!(told.code, 1, "{}\n{}", told.stdout, told.stderr);
        let json = told.json();
        let rows = json["rows"].as_array().unwrap();
        // Of before the change nothing is missed; the bar that was forming has only a part of its trades.
        let wanted = SYMBOLS.map(|s| format!("sim:{s}:4h:{}", FIRST + DAY + 4 * hour));
        let found: Vec<_> = rows
            .iter()
            .map(|r| r["key"].as_str().unwrap().to_owned())
            .collect();
        let mut sorted = found.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted, wanted, "{}", told.stdout);
        assert!(
            rows.iter().all(|r| r["kind"] == "VALUE_DRIFT"),
            "{}",
            told.stdout
        );
    }

    let replay = |args: &[&str]| {
        let finlake = added
            .iter()
            .fold(world.finlake("replay"), |f, (k, v)| f.set(k, v));
        finlake.arg("replay").args(args).run(secs(120))
    };
    let applied = replay(&["--from-timestamp", "2026-01-05T00:00:00Z", "--apply"]);
    assert!(
        applied.stderr.contains("assertions"),
        "{}\n{}",
        applied.stdout,
        applied.stderr
    );
    process(&world, &added);
    is_clean(&reconcile(&world, &added));
    let whole = "select count(*), min(trade_count), max(trade_count) from silver.market_ohlcv \
                 where is_current and bar_interval = '4h' and stage = 'closed'";
    // Six of each of two days and three of the third, of three symbols.
    assert_eq!(rows::ask(&world.data(), whole), ["45,24,24"]);

    // It goes again, with a bar half made.
    world.produce(&trades(&world, 2 * DAY + 13 * hour, 3 * DAY + hour));
    process(&world, &[]);
    is_clean(&reconcile(&world, &[]));
    let rates = "select distinct risk_free from gold.market_metrics order by 1";
    assert_eq!(
        rows::ask(&world.data(), rates),
        ["0.0", "0.05"],
        "the second day closed by the other"
    );
}
