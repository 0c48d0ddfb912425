//! A damaged table is dropped and filled again from its topic; what Kafka cannot give back is not dropped.

use finlake_devkafka::DevKafka;
use finlake_lakehouse::{Filter, Table};

use super::part::cut_by_half;
use super::{damage, gone};
use crate::exact::{World, market};
use crate::harness::{Finlake, Ran, eventually, secs};
use crate::rows;

fn rebuild(world: &World, args: &[&str]) -> Ran {
    world
        .finlake("rebuild")
        .args(["tables", "rebuild"])
        .args(args)
        .run(secs(60))
}

#[test]
fn a_damaged_table_is_dropped_and_filled_again() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    world.produce(&market(&world, 31, 4, 8_000));
    world.finish("a");
    world.reconciles();
    let before = rows::silver(&world.data());
    damage(
        &world.data(),
        Table::Ohlcv,
        Filter::all().partition(0),
        gone,
    );
    assert_ne!(rows::silver(&world.data()), before);
    assert_eq!(world.reconcile().code, 1);

    // Not under a running sink.
    let mut running = world.finlake("a").args(["run"]).spawn();
    let refused = eventually("the sink has joined its group", secs(60), || {
        let ran = rebuild(&world, &["silver.market_ohlcv"]);
        (ran.code == 2).then_some(ran)
    });
    assert!(
        refused.stderr.contains("stop every sink first"),
        "{}",
        refused.stderr
    );
    assert_eq!(running.stop(secs(60)), 0, "{}", running.tail());

    // Its membership has to end; what would be read again is listed, and nothing dropped.
    let listed = eventually("the group is empty", secs(60), || {
        let ran = rebuild(&world, &["silver.market_ohlcv", "--output", "json"]);
        (ran.code == 1).then_some(ran)
    });
    let json = listed.json();
    assert_eq!(json["dropped"], false, "{json}");
    assert_eq!(json["rows"][0]["topic"], "market.ohlcv", "{json}");
    assert_eq!(world.reconcile().code, 1, "the table is there still");

    // Not by another application's ledger, nor from another cluster, whose offsets mean other records.
    let stranger = world
        .finlake("rebuild")
        .set("kafka.application_id", "other")
        .args(["tables", "rebuild", "silver.market_ohlcv", "--yes"])
        .run(secs(60));
    assert_eq!(stranger.code, 2, "{}", stranger.stdout);
    assert!(
        stranger.stderr.contains("set kafka.application_id"),
        "{}",
        stranger.stderr
    );
    let elsewhere = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let beside = World::at(elsewhere.bootstrap(), "1m,1h,1d");
    beside.create_topics();
    let other = beside
        .finlake_at("rebuild", &world.data())
        .args(["tables", "rebuild", "silver.market_ohlcv", "--yes"])
        .run(secs(60));
    assert_eq!(other.code, 2, "{}", other.stdout);
    assert!(other.stderr.contains("kafka changed"), "{}", other.stderr);

    let dropped = rebuild(&world, &["silver.market_ohlcv", "--yes"]);
    assert_eq!(dropped.code, 0, "{}\n{}", dropped.stdout, dropped.stderr);
    let again = rebuild(&world, &["silver.market_ohlcv", "--yes"]);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("does not exist"), "{}", again.stderr);
    let sink = ["run", "--roles", "sink", "--until-caught-up"];
    world.finlake("a").args(sink).run(secs(120)).ok();
    assert_eq!(rows::silver(&world.data()), before);
    world.reconciles();

    // Bronze likewise, while its topic is whole; not any more once it was cut.
    let bronze = rows::bronze(&world.data());
    let dropped = eventually("the group is empty", secs(60), || {
        let ran = rebuild(&world, &["bronze.market_ticks", "--yes"]);
        (ran.code == 0).then_some(ran)
    });
    assert!(dropped.stderr.contains("dropped"), "{}", dropped.stderr);
    world.finlake("a").args(sink).run(secs(120)).ok();
    assert_eq!(rows::bronze(&world.data()), bronze);
    world.reconciles();
    cut_by_half(&world);
    let refused = rebuild(&world, &["bronze.market_ticks", "--yes"]);
    assert_eq!(refused.code, 2, "{}", refused.stdout);
    assert!(
        refused.stderr.contains("those rows would be lost"),
        "{}",
        refused.stderr
    );
    assert_eq!(rows::bronze(&world.data()), bronze);
    let refused = rebuild(&world, &["quality.breaks", "--yes"]);
    assert_eq!(refused.code, 2, "{}", refused.stdout);
    assert!(
        refused.stderr.contains("cannot be rebuilt"),
        "{}",
        refused.stderr
    );
}

/// The broker in the folder remembers the demo's members at each start; nobody can be at work on it, though.
#[test]
fn in_a_demos_folder_no_session_has_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let finlake = |args: &[&str]| {
        let finlake = Finlake::new().data(dir.path()).args(args);
        finlake.run(secs(120))
    };
    let demo = ["demo", "--exit", "--trades", "20000"];
    finlake(&demo).ok();
    let before = rows::gold(dir.path());
    assert!(before.len() > 100, "{}", before.len());
    let listed = finlake(&["tables", "rebuild", "gold.market_metrics"]);
    assert_eq!(listed.code, 1, "{}\n{}", listed.stdout, listed.stderr);
    finlake(&["tables", "rebuild", "gold.market_metrics", "--yes"]).ok();
    finlake(&demo).ok();
    assert!(rows::gold(dir.path()).is_superset(&before));
}
