//! Several instances with the role audit on Apache Kafka: one is active, whatever becomes of it another goes on, and what
//! goes wrong meanwhile is found once. And two sinks for one partition.

use finlake::app::PlantedFaults;
use finlake::demo::market::Message;
use finlake_devkafka::DevKafka;
use finlake_lakehouse::Table;
use finlake_lakehouse::faults::Plant;
use finlake_schemas::topics;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::exact::{PARTITIONS, World, market};
use crate::harness::{FinlakeProcess, Kafka, eventually, http, secs};
use crate::planted::{Inside, once};

/// Whether an instance is active, by what it last said; `None` before it said anything.
fn is_active(audit: &FinlakeProcess) -> Option<bool> {
    audit.log().lines().rev().find_map(|line| {
        let active = line.contains("audit: active;");
        (active || line.contains("audit: stands by;")).then_some(active)
    })
}

/// Waits until one is active and the others have said that they stand by; takes that one out.
fn take_active(what: &str, audits: &mut Vec<FinlakeProcess>) -> FinlakeProcess {
    let look = |audits: &[FinlakeProcess]| {
        let seats: Option<Vec<bool>> = audits.iter().map(is_active).collect();
        seats.filter(|seats| seats.iter().filter(|active| **active).count() == 1)
    };
    let at = eventually(what, secs(90), || {
        let seats = look(audits)?;
        // All have heard of it.
        std::thread::sleep(secs(3));
        let again = look(audits).filter(|again| *again == seats);
        again?.iter().position(|active| *active)
    });
    audits.remove(at)
}

/// How much of the ledger the group has kept states of: offsets with a state, by partition.
fn kept(world: &World) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &world.bootstrap)
        .set("group.id", "finlake-audit")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for p in 0..PARTITIONS {
        list.add_partition(topics::LEDGER, p);
    }
    let committed = consumer.committed_offsets(list, secs(10)).unwrap();
    let all = committed.elements();
    all.iter()
        .filter(|e| e.metadata().starts_with("v2 "))
        .filter_map(|e| match e.offset() {
            Offset::Offset(at) => Some(at),
            _ => None,
        })
        .collect()
}

#[test]
fn another_instance_takes_the_audit_over() {
    let Some(kafka) = Kafka::start() else { return };
    let world = World::on(&kafka, "1m,1h,1d");
    world.create_topics();
    let messages = market(&world, 13, 6, 3_000);
    let (first, rest) = messages.split_at(messages.len() * 3 / 4);
    let process = |messages: &[Message], faults: PlantedFaults| {
        world.produce(messages);
        let inside = Inside::new(&world, "a", faults);
        let streams = inside.stream();
        streams.drain();
        streams.join().unwrap();
        inside.sink().unwrap();
    };
    process(first, PlantedFaults::default());
    let audit = |name: &str| {
        world
            .finlake(name)
            .args(["run", "--roles", "audit"])
            .spawn()
    };
    let mut audits = vec![audit("a"), audit("b"), audit("c")];
    let active = take_active("one is active", &mut audits);
    eventually("it keeps states of all partitions", secs(90), || {
        (kept(&world).len() == PARTITIONS as usize).then_some(())
    });

    // A zombie: it sleeps beyond its session, another one takes its place, and it wakes up.
    active.pause();
    let second = take_active("another one has taken over", &mut audits);
    active.resume();
    audits.extend([active, second]);
    let mut active = take_active("the zombie has taken its turn", &mut audits);
    assert!(audits.iter_mut().all(|a| a.is_running()));

    // Dead, and a row of the rest is lost.
    active.kill9();
    let faults = PlantedFaults {
        lake: once(Plant::ClosedRowLost, Table::Ohlcv),
        ..PlantedFaults::default()
    };
    process(rest, faults);
    let found = |audit: &FinlakeProcess| {
        let log = audit.log();
        let named = |l: &&str| {
            l.contains("kind=\"MISSING\"")
                && l.contains("silver.market_ohlcv")
                && l.contains("INV-13:total:-")
        };
        log.lines().filter(named).count()
    };
    let finder = take_active("a third one has taken over", &mut audits);
    eventually("it finds the lost row", secs(90), || {
        (found(&finder) == 1).then_some(())
    });
    audits.push(finder);
    for mut audit in audits {
        assert_eq!(audit.stop(secs(60)), 0, "{}", audit.tail());
        assert!(
            !audit.log().contains("not compared"),
            "all tables were compared: {}",
            audit.log()
        );
    }
    // Opened once, known to whoever comes; nothing of the ledger is left to read.
    let ran = world.audit();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let said = "audit: 0 ledger entries checked, 1 breaks open";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    let breaks = world.read(topics::BREAKS);
    assert_eq!(breaks.len(), 1);
}

/// What an instance's metrics endpoint says of a gauge without labels.
fn gauge(process: &FinlakeProcess, name: &str) -> Option<i64> {
    let log = process.log();
    let (_, rest) = log.split_once("metrics http://")?;
    let (address, _) = rest.split_once('/')?;
    let text = http(address, "GET /metrics", "").ok()?;
    let mut lines = text.lines().filter_map(|l| l.split_once(' '));
    lines.find(|(n, _)| *n == name)?.1.parse().ok()
}

#[test]
fn a_sink_that_lost_its_partition_tells_no_frontier() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1d");
    let finlake = |name: &str| world.finlake(name).set("kafka.partitions", 1);
    finlake("setup").args(["topics", "create"]).quick().ok();
    world.produce(&market(&world, 17, 2, 500));
    let all = finlake("a").args(["run", "--until-caught-up"]);
    all.run(secs(120)).ok();

    let frontier = |sink: &FinlakeProcess| gauge(sink, "finlake_frontier_timestamp_seconds");
    let sink = |name: &str| finlake(name).args(["run", "--roles", "sink"]).spawn();
    let mut asleep = sink("a");
    let told = eventually("it tells how whole the tables are", secs(60), || {
        frontier(&asleep).filter(|at| *at > 0)
    });
    // Beyond its session, and another one has taken the partition over.
    asleep.pause();
    let mut other = sink("b");
    eventually("the other one tells it", secs(60), || {
        frontier(&other).filter(|at| *at >= told)
    });
    asleep.resume();
    eventually("it has nothing to tell", secs(60), || {
        frontier(&asleep).filter(|at| *at == 0)
    });
    eventually("the other one tells", secs(60), || {
        frontier(&other).filter(|at| *at >= told)
    });
    for sink in [&mut asleep, &mut other] {
        assert_eq!(sink.stop(secs(60)), 0, "{}", sink.tail());
    }
}
