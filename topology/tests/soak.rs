//! Random interleavings of input, crashes, faults, rebalances and time: what
//! is committed is exactly the fold of the input, whatever happened.

mod support;

use proptest::prelude::*;
use support::harness::{Process, check_partition, check_store};
use support::mock::{Fault, Kafka, Op};

#[derive(Debug, Clone)]
enum Step {
    Produce {
        aux: bool,
        partition: i32,
        key: u8,
        poison: bool,
    },
    Marker {
        partition: i32,
    },
    Turn {
        who: usize,
        times: usize,
    },
    Advance {
        ms: i64,
    },
    Fault {
        who: usize,
        op: Op,
        fault: Fault,
    },
    Move {
        partition: i32,
        to: usize,
    },
    Lose {
        who: usize,
    },
    Crash {
        who: usize,
    },
    LoseDisk {
        who: usize,
    },
    Up {
        who: usize,
    },
    Expire,
}

const PARTITIONS: i32 = 2;
const NAMES: [&str; 2] = ["a", "b"];

fn op() -> impl Strategy<Value = Op> {
    prop::sample::select(vec![
        Op::Begin,
        Op::Send,
        Op::Flush,
        Op::Offsets,
        Op::Commit,
        Op::Abort,
        Op::Renew,
        Op::Committed,
        Op::Restore,
    ])
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(vec![
        Fault::NotDelivered,
        Fault::StaleGeneration,
        Fault::UnknownCommitted,
        Fault::UnknownOpen,
        Fault::LateMarkers,
        Fault::TimedOutByBroker,
        Fault::CrashBefore,
        Fault::CrashAfter,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..2usize;
    let partition = 0..PARTITIONS;
    prop_oneof![
        8 => (any::<bool>(), partition.clone(), 0..4u8, prop::bool::weighted(0.1)).prop_map(
            |(aux, partition, key, poison)| Step::Produce { aux, partition, key, poison }
        ),
        1 => partition.clone().prop_map(|partition| Step::Marker { partition }),
        12 => (who.clone(), 1..40usize).prop_map(|(who, times)| Step::Turn { who, times }),
        2 => (1..5_000i64).prop_map(|ms| Step::Advance { ms }),
        4 => (who.clone(), op(), fault()).prop_map(|(who, op, fault)| Step::Fault { who, op, fault }),
        2 => (partition, who.clone()).prop_map(|(partition, to)| Step::Move { partition, to }),
        1 => who.clone().prop_map(|who| Step::Lose { who }),
        1 => who.clone().prop_map(|who| Step::Crash { who }),
        1 => who.clone().prop_map(|who| Step::LoseDisk { who }),
        3 => who.prop_map(|who| Step::Up { who }),
        1 => Just(Step::Expire),
    ]
}

fn run(steps: Vec<Step>) {
    let kafka = Kafka::new(PARTITIONS);
    let mut all: Vec<Process> = NAMES.iter().map(|n| Process::new(&kafka, n)).collect();
    for p in &mut all {
        p.up().unwrap();
    }
    for partition in 0..PARTITIONS {
        kafka.move_to(partition, "a");
    }
    for step in steps {
        match step {
            Step::Produce {
                aux,
                partition,
                key,
                poison,
            } => {
                let topic = if aux { "aux" } else { "in" };
                let key = format!("k{key}");
                kafka.produce(topic, partition, &key, if poison { "?" } else { "3" });
            }
            Step::Marker { partition } => kafka.marker("in", partition),
            Step::Turn { who, times } => all[who].turns(times),
            Step::Advance { ms } => kafka.advance(ms * 1000),
            Step::Fault { who, op, fault } => kafka.fail(NAMES[who], op, fault),
            Step::Move { partition, to } => kafka.move_to(partition, NAMES[to]),
            Step::Lose { who } => kafka.lose(NAMES[who], NAMES[1 - who]),
            Step::Crash { who } => all[who].crash(),
            Step::LoseDisk { who } => all[who].lose_disk(),
            // A fault may hit the start as well.
            Step::Up { who } => drop(all[who].up()),
            Step::Expire => kafka.expire_transactions(),
        }
    }
    // Heal, and let everything come to rest.
    kafka.lock().faults.clear();
    kafka.expire_transactions();
    for _ in 0..400 {
        for p in &mut all {
            p.up().unwrap();
            p.turns(10);
        }
        kafka.advance(20_000);
    }
    for partition in 0..PARTITIONS {
        check_partition(&kafka, partition);
        let owners: Vec<_> = all
            .iter()
            .filter(|p| p.running().contains(&partition))
            .collect();
        assert_eq!(owners.len(), 1, "partition {partition} has one owner");
        check_store(owners[0], partition);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// INV-10, INV-11, INV-12 under everything that can happen to a process.
    #[test]
    fn exactly_once_whatever_happens(steps in prop::collection::vec(step(), 1..120)) {
        run(steps);
    }
}
