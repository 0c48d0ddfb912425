//! The detectors detect: faults of the task and of the sink are planted, by code, into the pipeline as it runs on Apache
//! Kafka, each with the event that makes it bite. `finlake reconcile`, `finlake replay --all --verify` and the audit,
//! as users call them, must each name what they can see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use finlake::app::{App, PlantedFaults, Sinks, Streams, ends};
use finlake::demo::market::Message;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::Table;
use finlake_lakehouse::faults::{Fault, Faults as LakeFaults, Plant, Point};
use finlake_schemas::topics;
use finlake_topology::faults::Faults as TaskFaults;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::runtime::Runtime;

use crate::exact::{World, market};
use crate::harness::{Kafka, Ran, eventually, secs};

/// Roles that run inside of the test.
pub struct Inside {
    app: App,
    runtime: Runtime,
}

impl Inside {
    pub fn new(world: &World, instance: &str, faults: PlantedFaults) -> Inside {
        let runtime = Runtime::new().unwrap();
        let config = world.config(instance);
        let mut app = runtime.block_on(App::prepare(config, true)).unwrap();
        app.faults = faults;
        Inside { app, runtime }
    }

    pub fn stream(&self) -> Streams {
        Streams::start(&self.app).unwrap()
    }

    /// Takes all that the ledger holds into the tables, and leaves.
    pub fn sink(&self) -> anyhow::Result<()> {
        let sinks = Sinks::start(&self.app, self.runtime.handle())?;
        sinks.control.leave.store(true, Ordering::Relaxed);
        sinks.drain_to(ends(&self.app.config, topics::LEDGER)?);
        sinks.join()
    }
}

/// A defect that strikes the first commit of its table that could carry it.
pub fn once(plant: Plant, table: Table) -> LakeFaults {
    let struck = AtomicBool::new(false);
    LakeFaults::none()
        .planting(move |p, t| (p, t) == (plant, table) && !struck.swap(true, Ordering::SeqCst))
}

fn in_lake(lake: LakeFaults) -> PlantedFaults {
    PlantedFaults {
        lake,
        ..PlantedFaults::default()
    }
}

fn in_task(task: TaskFaults) -> PlantedFaults {
    PlantedFaults {
        task,
        ..PlantedFaults::default()
    }
}

/// Asserts that reconcile names a break: kind, layer, and how key and cause begin.
fn names(found: &Ran, kind: &str, layer: &str, key: &str, cause: &str) {
    let json = found.json();
    let rows = json["rows"].as_array().unwrap();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or("").to_owned();
    let hit = rows.iter().any(|row| {
        (text(row, "kind"), text(row, "layer")) == (kind.to_owned(), layer.to_owned())
            && text(row, "key").starts_with(key)
            && text(row, "cause").starts_with(cause)
    });
    assert!(
        hit,
        "{kind} {layer} {key}… {cause}… is not among\n{}\n{}",
        found.stdout, found.stderr
    );
}

/// Asserts that the audit has written this break, by its log line, and says by its exit code that one is open.
fn audit_names(found: &Ran, kind: &str, key: &str, cause: &str) {
    assert_eq!(found.code, 1, "{}", found.stderr);
    let (kind, key) = (format!("kind=\"{kind}\""), format!("key=\"{key}"));
    let cause = format!("cause=\"{cause}");
    let hit = found
        .stderr
        .lines()
        .any(|l| l.contains(&kind) && l.contains(&key) && l.contains(&cause));
    assert!(hit, "{kind} {key} {cause}: {}", found.stderr);
}

fn verify(world: &World) -> Ran {
    world
        .finlake("replay")
        .args(["replay", "--all", "--verify"])
        .run(secs(300))
}

/// Asserts that the rebuild differs in exactly these tables.
fn rebuilt_differ(found: &Ran, tables: &[Table]) {
    for table in [Table::Ticks, Table::Ohlcv, Table::Metrics] {
        let name = table.to_string();
        let line = found.stderr.lines().find(|l| l.starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("{name}: {}", found.stderr));
        assert_eq!(
            line.ends_with("DIFFERENT"),
            tables.contains(&table),
            "{line}\n{}",
            found.stderr
        );
    }
    assert_eq!(found.code, 1, "{}", found.stderr);
}

/// A defect of the sink, and what must be said of it.
struct InLake {
    plant: Plant,
    table: Table,
    /// Kind, layer, beginnings of key and cause.
    reconcile: &'static [(&'static str, &'static str, &'static str, &'static str)],
    /// Kind, key, beginning of cause; nothing if there are as many rows as there should be.
    audit: Option<(&'static str, &'static str, &'static str)>,
    /// Why the replay does not even begin; else the rebuilt table is the one that differs.
    refused: Option<&'static str>,
}

/// A replay compares the current row of each key.
const TWO: Option<&str> = Some("silver.market_ohlcv has two current rows of one key");

const IN_LAKE: [InLake; 4] = [
    InLake {
        plant: Plant::CommitTwice,
        table: Table::Ticks,
        reconcile: &[("DUPLICATE", "bronze", "market.ticks/", "offset")],
        audit: Some(("DUPLICATE", "bronze.market_ticks", "INV-13:total:")),
        refused: None,
    },
    InLake {
        plant: Plant::CommitTwice,
        table: Table::Ohlcv,
        reconcile: &[
            ("DUPLICATE", "silver", "sim:", "INV-2:"),
            ("DUPLICATE", "silver", "", "INV-13:rows"),
        ],
        audit: Some(("DUPLICATE", "silver.market_ohlcv", "INV-13:total:")),
        refused: TWO,
    },
    InLake {
        plant: Plant::ClosedRowLost,
        table: Table::Ohlcv,
        reconcile: &[
            ("MISSING", "silver", "sim:", "INV-6:prev:"),
            ("MISSING", "silver", "", "INV-13:rows"),
        ],
        audit: Some(("MISSING", "silver.market_ohlcv", "INV-13:total:-")),
        refused: None,
    },
    InLake {
        plant: Plant::ClosingSkipped,
        table: Table::Ohlcv,
        reconcile: &[("DUPLICATE", "silver", "sim:", "INV-2:")],
        audit: None,
        refused: TWO,
    },
];

/// Topics of a market in two halves, and for each name tables that hold the first.
pub fn halves(
    kafka: &Kafka,
    trades: u64,
    apps: impl IntoIterator<Item = String>,
) -> (World, Vec<World>) {
    let world = World::on(kafka, "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 13, 6, trades);
    let stream = |world: &World| {
        let streams = Inside::new(world, "a", PlantedFaults::default()).stream();
        streams.drain();
        streams.join().unwrap();
    };
    let (first, rest) = messages.split_at(messages.len() * 3 / 4);
    world.produce(first);
    stream(&world);
    let sides: Vec<World> = apps.into_iter().map(|app| world.beside(&app)).collect();
    for side in &sides {
        Inside::new(side, "a", PlantedFaults::default())
            .sink()
            .unwrap();
    }
    world.produce(rest);
    stream(&world);
    (world, sides)
}

fn named(cases: &[InLake]) {
    let Some(kafka) = Kafka::start() else { return };
    let apps = (0..cases.len()).map(|n| format!("side-{n}"));
    let (_world, sides) = halves(&kafka, 8_000, apps);
    for (case, side) in cases.iter().zip(&sides) {
        let began = std::time::Instant::now();
        let faults = in_lake(once(case.plant, case.table));
        Inside::new(side, "a", faults).sink().unwrap();
        let found = side.audit();
        match case.audit {
            Some((kind, key, cause)) => audit_names(&found, kind, key, cause),
            None => assert_eq!(found.code, 0, "{}", found.stderr),
        }
        let audited = began.elapsed();
        let found = side.reconcile();
        assert_eq!(found.code, 1, "{}", found.stderr);
        for (kind, layer, key, cause) in case.reconcile {
            names(&found, kind, layer, key, cause);
        }
        let reconciled = began.elapsed();
        let found = verify(side);
        match case.refused {
            None => rebuilt_differ(&found, &[case.table]),
            Some(why) => {
                assert_eq!(found.code, 2, "{}", found.stderr);
                assert!(found.stderr.contains(why), "{}", found.stderr);
            }
        }
        println!(
            "{:?} {}: audited after {audited:?}, reconciled after {reconciled:?}, replayed after {:?}",
            case.plant,
            case.table,
            began.elapsed()
        );
    }
}

#[test]
fn defects_of_the_sink_are_named() {
    named(&IN_LAKE[..3]);
}

#[test]
#[ignore = "chaos: ./test --chaos"]
fn further_defects_of_the_sink_are_named() {
    named(&IN_LAKE[3..]);
}

/// Two sinks of one application id that do not know of each other: the one that lost the race puts its files on top.
#[test]
fn a_rebased_commit_is_named() {
    let Some(kafka) = Kafka::start() else { return };
    let (_world, sides) = halves(&kafka, 8_000, ["zombie".to_owned()]);
    let side = &sides[0];
    let (asleep, woken) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    let (tell, wake) = (asleep.0, std::sync::Mutex::new(Some(woken.1)));
    let sleepy = LakeFaults::new(move |point| {
        if point == Point::BeforeSwap
            && let Some(wake) = wake.lock().unwrap().take()
        {
            tell.send(()).unwrap();
            let _ = wake.recv_timeout(Duration::from_secs(60));
        }
        Fault::None
    });
    let struck = Arc::new(AtomicBool::new(false));
    let strikes = struck.clone();
    let faults = sleepy.planting(move |p, t| {
        (p, t) == (Plant::Rebased, Table::Ticks) && !strikes.swap(true, Ordering::SeqCst)
    });
    let zombie = Inside::new(side, "zombie", in_lake(faults));
    let zombie = std::thread::spawn(move || zombie.sink());
    asleep.1.recv_timeout(Duration::from_secs(60)).unwrap();
    // The other one: the same tables, a group of its own.
    let mut other = Inside::new(side, "other", PlantedFaults::default());
    other.app.config.kafka.application_id = "other".to_owned();
    other.sink().unwrap();
    woken.0.send(()).unwrap();
    zombie.join().unwrap().unwrap();
    assert!(struck.load(Ordering::SeqCst), "the swap was lost");

    audit_names(
        &side.audit(),
        "DUPLICATE",
        "bronze.market_ticks",
        "INV-13:total:",
    );
    let found = side.reconcile();
    assert_eq!(found.code, 1, "{}", found.stderr);
    names(&found, "DUPLICATE", "bronze", "market.ticks/", "offset");
    rebuilt_differ(&verify(side), &[Table::Ticks]);
}

/// Streams one half of a market, then the other one, with something in between; then sinks what there is.
fn streamed(
    world: &World,
    symbols: usize,
    faults: TaskFaults,
    between: impl FnOnce(),
) -> anyhow::Result<()> {
    world.create_topics();
    let messages = market(world, 31, symbols, 6_000);
    let (first, rest) = messages.split_at(messages.len() / 2);
    let inside = Inside::new(world, "a", in_task(faults));
    let streams = inside.stream();
    let piece = first.len() / 8 + 1;
    for part in first.chunks(piece) {
        world.produce(part);
        std::thread::sleep(Duration::from_millis(250));
    }
    eventually("all of the first half is committed", secs(30), || {
        let committed = committed(world);
        let ends = ends(&inside.app.config, topics::TICKS).unwrap();
        ends.iter()
            .all(|(p, end)| committed.get(*p as usize) == Some(end))
            .then_some(())
    });
    between();
    world.produce(rest);
    streams.drain();
    streams.join()
}

/// A client of the stream role's consumer group that does not join it.
fn group(world: &World) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .set("group.id", "finlake")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}

/// Committed offsets of `market.ticks`, by partition.
fn committed(world: &World) -> Vec<i64> {
    let mut list = TopicPartitionList::new();
    for p in 0..crate::exact::PARTITIONS {
        list.add_partition(topics::TICKS, p);
    }
    let found = group(world).committed_offsets(list, secs(10)).unwrap();
    let offset = |o: Offset| o.to_raw().unwrap_or(-1).max(0);
    found
        .elements()
        .iter()
        .map(|e| offset(e.offset()))
        .collect()
}

/// Five days of one symbol, three trades a day; then a late one that changes the close of the second day.
fn days(world: &World) -> (Vec<Message>, Message) {
    let day = 86_400_000_000;
    let message = |id: i64, time: i64| {
        world.trade("DAY-USD", id, FIRST_DAY * day + time, 1_000 + id * id % 17)
    };
    let ordinary = (0..15).map(|n| message(n, n / 3 * day + (n % 3 + 1) * 3_600_000_000));
    (ordinary.collect(), message(15, 2 * day - 1))
}

/// 2024-08-08, in days since 1970.
const FIRST_DAY: i64 = 19_943;

/// Runs these days through the pipeline, the late trade last; what reconcile and a replay say, and how many rows of Gold
/// the latter names.
fn corrected(world: &World, planted: bool) -> (Ran, Ran, usize) {
    world.create_topics();
    let (messages, late) = days(world);
    let mut inside = Inside::new(world, "a", PlantedFaults::default());
    let mut pipeline = finlake::app::pipeline_config(&inside.app.config);
    pipeline.faults.correction_not_carried = planted;
    let codec = inside.app.codec.clone();
    inside.app.topology = finlake_pipeline::build(&pipeline, codec).unwrap();
    for part in [messages.as_slice(), std::slice::from_ref(&late)] {
        world.produce(part);
        let streams = inside.stream();
        streams.drain();
        streams.join().unwrap();
    }
    inside.sink().unwrap();
    let found = world.reconcile();
    // The totals are those of the ledger.
    let audited = world.audit();
    assert_eq!(audited.code, 0, "{}", audited.stderr);
    let replay = world.finlake("replay").args(["replay", "--all"]);
    let replayed = replay.run(secs(300));
    let rows = replayed.stdout.lines();
    let gold = rows.filter(|l| l.starts_with("gold.market_metrics,sim:DAY-USD"));
    let gold = gold.count();
    (found, replayed, gold)
}

/// Each version of Gold was right when it was written, and the table is what its topic says: the version that is missing
/// is what gives the fault away.
#[test]
fn a_corrected_close_that_gold_does_not_carry_on_is_named() {
    let Some(kafka) = Kafka::start() else { return };
    let (found, replayed, gold) = corrected(&World::on(&kafka, "1m,1h,1d"), true);
    assert_eq!(found.code, 1, "{}", found.stderr);
    // With so few days the return of the day after is all that sees it.
    assert_eq!(found.json()["breaks"], 1, "{}", found.stdout);
    names(
        &found,
        "MISSING",
        "gold",
        "sim:DAY-USD:2024-08-10",
        "version:",
    );
    assert_eq!((replayed.code, gold), (1, 1), "{}", replayed.stdout);
    // The same days without it: it is not they that are named.
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let (found, replayed, gold) = corrected(&World::at(broker.bootstrap(), "1m,1h,1d"), false);
    assert_eq!(found.code, 0, "{}\n{}", found.stdout, found.stderr);
    assert_eq!((replayed.code, gold), (0, 0), "{}", replayed.stdout);
}

/// Another producer of the stream thread's transactional id: its open transaction is aborted, and it is fenced.
fn fence(world: &World) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .set("transactional.id", "finlake-a-0")
        .create()
        .unwrap();
    producer.init_transactions(secs(30)).unwrap();
}

#[test]
fn an_input_range_taken_twice_is_named() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    let faults = TaskFaults {
        range_twice: Some(3),
        ..TaskFaults::default()
    };
    streamed(&world, 6, faults, || {}).unwrap();
    // The sink takes no input twice: it stops.
    let sunk = Inside::new(&world, "a", PlantedFaults::default()).sink();
    let said = format!("{:#}", sunk.unwrap_err());
    assert!(said.contains("INV-12"), "{said}");
    let key = "market.ticks/";
    let cause = "INV-12:positions:market.ticks";
    audit_names(&world.audit(), "DUPLICATE", key, cause);
    names(&world.reconcile(), "DUPLICATE", "ledger", key, cause);
    // So does the rebuild, which is the same sink.
    let replayed = verify(&world);
    assert_eq!(replayed.code, 2, "{}", replayed.stderr);
    assert!(replayed.stderr.contains("INV-12"), "{}", replayed.stderr);
}

#[test]
fn an_overlay_that_outlives_its_abort_is_named() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    let faults = TaskFaults {
        overlay_after_abort: true,
        ..TaskFaults::default()
    };
    streamed(&world, 6, faults, || fence(&world)).unwrap();
    Inside::new(&world, "a", PlantedFaults::default())
        .sink()
        .unwrap();
    // The ledger's own chain was in that overlay, and so were the ids that dedup has seen.
    audit_names(&world.audit(), "LEDGER", "", "INV-12:chain");
    let found = world.reconcile();
    names(&found, "LEDGER", "ledger", "", "INV-12:chain");
    names(&found, "MISSING", "bronze", "", "accepted");
    names(&found, "MISSING", "silver", "sim:", "row");
    // The tables are what the topics say, which is not what the trades say.
    let replayed = verify(&world);
    assert_eq!(replayed.code, 1, "{}", replayed.stderr);
    let rows = replayed.stdout.lines();
    let different = rows.filter(|l| l.starts_with("silver.market_ohlcv,sim:"));
    assert!(different.count() > 10, "{}", replayed.stdout);
}

#[test]
fn a_store_written_before_its_transaction_is_named() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    let faults = TaskFaults {
        store_before_transaction: true,
        ..TaskFaults::default()
    };
    // The engine itself sees it: the store does not fit the group's offsets. One partition with trades is enough.
    let refused = streamed(&world, 1, faults, || fence(&world)).unwrap_err();
    let mut said = format!("{refused:#}");
    // Somebody makes them fit: input is passed over.
    let mut ran = 0;
    loop {
        let Some((topic, task, kept)) = ahead(&said) else {
            panic!("{said}")
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, task, Offset::Offset(kept))
            .unwrap();
        eventually("the group is empty", secs(30), || {
            group(&world).commit(&list, CommitMode::Sync).ok()
        });
        let streams = Inside::new(&world, "a", PlantedFaults::default()).stream();
        streams.drain();
        match streams.join() {
            Ok(()) => break,
            Err(e) => said = format!("{e:#}"),
        }
        ran += 1;
        assert!(ran < 10, "{said}");
    }
    let sunk = Inside::new(&world, "a", PlantedFaults::default()).sink();
    let said = format!("{:#}", sunk.unwrap_err());
    assert!(said.contains("commits between are missing"), "{said}");
    audit_names(&world.audit(), "MISSING", "", "INV-12:commit");
    names(&world.reconcile(), "MISSING", "ledger", "", "INV-12:commit");
    let replayed = verify(&world);
    assert_eq!(replayed.code, 2, "{}", replayed.stderr);
    assert!(replayed.stderr.contains("INV-12"), "{}", replayed.stderr);
}

/// Topic, partition and the store's position of "T/P: the group has committed offset …, but the task's changelog says …".
fn ahead(said: &str) -> Option<(String, i32, i64)> {
    let (before, after) = said.split_once(": the group has committed offset ")?;
    let (topic, task) = before.rsplit(' ').next()?.split_once('/')?;
    let kept = after.split_once("changelog says ")?.1;
    let kept = kept.split(';').next()?;
    Some((topic.to_owned(), task.parse().ok()?, kept.parse().ok()?))
}
