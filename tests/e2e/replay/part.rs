//! Replays that look at a part: a range in the middle, single keys, the ledger up to an instant, and what retention took
//! from the topic.

use finlake_devkafka::DevKafka;
use finlake_lakehouse::{Filter, Table};
use finlake_schemas::topics;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::{DAY, at, damage, gone, high, higher, late_world, minute, tally};
use crate::exact::{PARTITIONS, World, market};
use crate::harness::secs;
use crate::rows;

#[test]
fn a_range_in_the_middle_is_compared_and_nothing_else() {
    let (_broker, world, day, _) = late_world();
    for n in [10, 30] {
        damage(&world.data(), Table::Ohlcv, minute(day + n * DAY), higher);
    }
    let range = |from: i64, to: i64| {
        let (from, to) = (at(day + from * DAY), at(day + to * DAY));
        world.replay(&["--from-timestamp", &from, "--to", &to, "--output", "json"])
    };
    let inside = range(20, 40);
    assert_eq!(inside.code, 1, "{}\n{}", inside.stdout, inside.stderr);
    assert_eq!(tally(&inside, "silver"), [59, 0, 1, 0], "{}", inside.stdout);
    assert_eq!(tally(&inside, "gold"), [20, 0, 0, 0], "{}", inside.stdout);
    let found = &inside.json()["rows"][0];
    let key = format!("sim:LATE-USD:1m:{}", day + 30 * DAY);
    assert_eq!(
        (&found["key"], &found["what"]),
        (&key.into(), &"different".into())
    );

    let outside = range(11, 30);
    assert_eq!(outside.code, 0, "{}\n{}", outside.stdout, outside.stderr);
    assert_eq!(
        tally(&outside, "silver"),
        [57, 0, 0, 0],
        "{}",
        outside.stdout
    );
}

#[test]
fn only_the_keys_that_were_asked_for_are_compared_and_applied() {
    let (_broker, world, day, from) = late_world();
    for n in [10, 30] {
        damage(&world.data(), Table::Ohlcv, minute(day + n * DAY), higher);
    }
    let keyed = |range: &[&str], key: &str, more: &[&str]| {
        let args = [range, &["--key", key], more].concat();
        world.replay(&args)
    };
    let range = ["--from-offsets", from.as_str()];
    let bar = |n: i64| format!("sim:LATE-USD:1m:{}", at(day + n * DAY));
    let json = ["--output", "json"];
    let (one, other) = (bar(10), bar(11));
    let found = keyed(&range, &one, &json);
    assert_eq!(found.code, 1, "{}\n{}", found.stdout, found.stderr);
    assert_eq!(tally(&found, "silver"), [0, 0, 1, 0], "{}", found.stdout);
    assert_eq!(tally(&found, "gold")[0], 49, "{}", found.stdout);
    let right = keyed(&range, &other, &json);
    assert_eq!(right.code, 0, "{}\n{}", right.stdout, right.stderr);
    let all = keyed(&range, "sim:LATE-USD", &json);
    assert_eq!(tally(&all, "silver"), [147, 0, 3, 0], "{}", all.stdout);
    // The whole ledger too; there the late trade is not in its minute.
    let whole = keyed(&["--all"], &one, &json);
    assert_eq!(tally(&whole, "silver"), [0, 0, 1, 0], "{}", whole.stdout);
    // A key that is nowhere is no clean result.
    let nowhere = keyed(&range, "sim:LATEUSD", &[]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("sim:LATEUSD"), "{}", nowhere.stderr);

    let late = bar(0);
    let applied = keyed(&range, &late, &["--apply"]);
    assert!(
        applied.stderr.contains("sent 1 assertions"),
        "{}",
        applied.stderr
    );
    world.finish("a");
    assert_eq!(high(&world, day), "500.00000000,2");
    assert_eq!(
        high(&world, day + 10 * DAY),
        "111.00000000,1",
        "not asked for"
    );
}

/// Of a partition its own instruments are compared, however names begin; and of an id the first trade counts, wherever
/// that one lies. A rule that is broken does not stand in the way of a correction.
#[test]
fn a_range_takes_nothing_of_others_for_its_own() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let (spot, minute_us, day) = ("BTC/USDT", 60_000_000, 20_458 * DAY);
    let perpetuals: Vec<String> = (0..6).map(|n| format!("{spot}:P{n}")).collect();
    // Nine days later, and sent first: the same id is no other trade afterwards.
    let mut messages = vec![world.trade(spot, 7, day + 9 * DAY, 100)];
    for symbol in perpetuals.iter().map(String::as_str).chain([spot]) {
        for id in 1..=20 {
            let price = if id == 7 { 777 } else { 100 };
            messages.push(world.trade(symbol, id, day + id * minute_us, price));
        }
    }
    world.produce(&messages);
    world.finish("a");
    let of = |symbol: &str| {
        let key = format!("sim:{symbol}");
        let sent = world.read(topics::TICKS).into_iter();
        let mut of = sent.filter(|(m, _)| m.key == key.as_bytes());
        of.next().unwrap().0.partition
    };
    let partition = of(spot);
    assert!(perpetuals.iter().any(|p| of(p) != partition));
    let clean = |args: &[&str]| {
        let ran = world.replay(args);
        assert_eq!(ran.code, 0, "{args:?}: {}\n{}", ran.stdout, ran.stderr);
    };
    clean(&["--from-offsets", &format!("market.ticks:{partition}:0")]);
    clean(&["--from-timestamp", &at(day), "--to", &at(day + DAY)]);

    let one = Filter::all().current().interval("1m").symbol(spot);
    let one = one.between("bar_start", day + 3 * minute_us..day + 4 * minute_us);
    damage(&world.data(), Table::Ohlcv, one, higher);
    let later = [(partition, 5), (partition, 0)].map(|(p, o)| format!("market.ticks:{p}:{o}"));
    let applied = world
        .finlake("replay")
        .set("quality.rules", "null_rate:event_time<=0.5")
        .args(["replay", "--apply", "--from-offsets", &later.join(",")])
        .run(secs(120));
    assert!(
        applied.stderr.contains("sent 1 assertions"),
        "{}",
        applied.stderr
    );
}

/// `market.ticks` cut by retention: Bronze has what is gone.
#[test]
fn what_retention_took_from_the_topic_is_replayed_out_of_bronze() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 19, 8, 20_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    for part in [first, rest] {
        world.produce(part);
        world.finish("a");
    }
    let cut = cut_by_half(&world);
    let replayed = world.replay(&["--all", "--output", "json"]);
    assert_eq!(replayed.code, 0, "{}\n{}", replayed.stdout, replayed.stderr);
    let json = replayed.json();
    assert_eq!(json["from_bronze"].as_u64().unwrap(), cut, "{json}");
    assert!(json["records"].as_u64().unwrap() > cut, "{json}");
    assert!(tally(&replayed, "silver")[0] > 1_000, "{json}");

    // With rows of that part lost, nothing may be sent.
    let offsets = Filter::all().partition(0).offsets(10..11);
    damage(&world.data(), Table::Ticks, offsets, gone);
    let refused = world.replay(&["--all", "--apply"]);
    assert_eq!(refused.code, 2, "{}\n{}", refused.stdout, refused.stderr);
    assert!(
        refused.stderr.contains("nothing was sent"),
        "{}",
        refused.stderr
    );
    assert!(world.read(topics::BARS).is_empty());
}

/// Deletes the first half of each partition of `market.ticks`; how many records that were.
fn cut_by_half(world: &World) -> u64 {
    let mut ends = [0i64; PARTITIONS as usize];
    for (record, _) in world.read(topics::TICKS) {
        ends[record.partition as usize] = record.offset + 1;
    }
    let mut list = TopicPartitionList::new();
    for (p, end) in (0..).zip(ends) {
        let half = Offset::Offset(end / 2);
        list.add_partition_offset(topics::TICKS, p, half).unwrap();
    }
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .create()
        .unwrap();
    let deleted = admin.delete_records(&list, &AdminOptions::new());
    let deleted = futures::executor::block_on(deleted).unwrap();
    for element in deleted.elements() {
        element.error().unwrap();
    }
    ends.iter().map(|end| (end / 2) as u64).sum()
}

#[test]
fn the_ledger_is_replayed_up_to_an_instant() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 29, 8, 16_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    world.produce(first);
    world.finish("a");
    let times = "select distinct cast(sys_from as bigint) from silver.market_ohlcv order by 1";
    let times = rows::ask(&world.data(), times);
    let time = |n: usize| times[n].parse::<i64>().unwrap();
    let (amid, stopped) = (time(times.len() / 2), time(times.len() - 1));
    world.produce(rest);
    world.finish("a");
    let counted = |table: &str, what: &str| -> u64 {
        let sql = format!("select count(*) from {table} where {what}");
        rows::ask(&world.data(), &sql)[0].parse().unwrap()
    };
    let until = |to: &str, more: &[&str]| {
        let args = ["--all", "--to", to, "--output", "json"];
        world.replay(&[&args, more].concat())
    };
    let silver = "silver.market_ohlcv";
    let open =
        |us: i64| format!("cast(sys_from as bigint) <= {us} and cast(sys_to as bigint) > {us}");
    assert!(counted(silver, &format!("cast(sys_from as bigint) > {stopped}")) > 100);
    for then in [amid, stopped] {
        let ran = until(&at(then), &["--shadow", "then", "--overwrite"]);
        assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
        let [equal, pending, different, _] = tally(&ran, "silver");
        assert_eq!(different, 0);
        let known = counted(silver, &open(then));
        assert!(
            equal + pending >= known && equal > known / 2,
            "{equal} {pending} {known}"
        );
        // Just these commits.
        for table in [silver, "gold.market_metrics"] {
            let shadow = format!("shadow_then_{table}");
            let made = format!("cast(sys_from as bigint) <= {then}");
            assert_eq!(
                counted(&shadow, "true"),
                counted(table, &made),
                "{table} at {then}"
            );
        }
    }
    // Beyond the newest commit it is as without; before the first there is nothing to compare.
    let (beyond, all) = (
        until("2100-01-01", &[]),
        world.replay(&["--all", "--output", "json"]),
    );
    assert_eq!((beyond.code, all.code), (0, 0), "{}", beyond.stderr);
    assert_eq!(tally(&beyond, "silver"), tally(&all, "silver"));
    assert_eq!(until("2001-01-01", &[]).code, 2);
    let refused = until(&at(stopped), &["--verify"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.stderr.contains("--verify rebuilds"),
        "{}",
        refused.stderr
    );
    assert_eq!(until(&at(stopped), &["--apply"]).code, 2);

    // Rows of later versions are not looked at, those known then are, closed ones too.
    let version = |from: std::ops::Range<i64>, is_current: bool| {
        let filter = Filter::all().between("sys_from", from);
        filter.flag("is_current", is_current).interval("1h")
    };
    damage(
        &world.data(),
        Table::Ohlcv,
        version(stopped + 1..i64::MAX, true),
        higher,
    );
    assert_eq!(until(&at(stopped), &[]).code, 0);
    let closed = version(0..stopped + 1, false).between("sys_to", stopped + 1..i64::MAX);
    damage(&world.data(), Table::Ohlcv, closed, higher);
    let ran = until(&at(stopped), &[]);
    assert_eq!(
        (ran.code, tally(&ran, "silver")[2]),
        (1, 1),
        "{}",
        ran.stdout
    );
}
