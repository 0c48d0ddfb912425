//! The exactly-once protocol against a scripted broker: every failure that
//! semantics name, one test each.

mod support;

use finlake_topology::Error;
use std::sync::atomic::Ordering;
use support::harness::{Process, check_partition, check_store};
use support::mock::{Fault, Kafka, Op};
use support::toy::LedgerLine;

/// One process that owns partitions 0 and 1, with some input, caught up.
fn one() -> (Kafka, Process) {
    let kafka = Kafka::new(2);
    for n in 0..10 {
        kafka.produce("in", n % 2, "k", &n.to_string());
    }
    kafka.produce("aux", 0, "a", "100");
    let mut p = Process::new(&kafka, "a");
    p.up().unwrap();
    kafka.move_to(0, "a");
    kafka.move_to(1, "a");
    drained(&mut p);
    (kafka, p)
}

/// Turn until everything produced so far is committed.
fn drained(p: &mut Process) {
    let partitions = p.kafka.lock().partitions;
    p.until("drained", |kafka, p| {
        (0..partitions).all(|n| {
            p.running().contains(&n)
                && ["in", "aux"]
                    .iter()
                    .all(|t| kafka.committed_offset(t, n) == Some(kafka.end(t, n)))
        })
    });
    for n in 0..partitions {
        check_partition(&p.kafka, n);
        check_store(p, n);
    }
}

#[test]
fn attached_partitions_follow_the_lead_and_every_commit_sends_all_positions() {
    let (kafka, _) = one();
    assert_eq!(kafka.committed_offset("aux", 0), Some(1));
    assert_eq!(
        kafka.committed_offset("aux", 1),
        Some(0),
        "never used, sent"
    );
}

#[test]
fn positions_pass_over_markers() {
    let (kafka, mut p) = one();
    kafka.produce("in", 0, "k", "1");
    kafka.marker("in", 0);
    kafka.marker("in", 0);
    drained(&mut p);
    kafka.produce("in", 0, "k", "1");
    drained(&mut p);
}

#[test]
fn heartbeats_come_without_input() {
    let (kafka, mut p) = one();
    let before = kafka.read("ledger", 1).len();
    kafka.advance(10_000_000);
    p.turns(3);
    assert_eq!(kafka.read("ledger", 1).len(), before + 1);
}

/// The next commit of `a` meets `fault` at `op`; afterwards all is well.
fn survives(op: Op, fault: Fault) {
    let (kafka, mut p) = one();
    kafka.fail("a", op, fault);
    for n in 0..6 {
        kafka.produce("in", n % 2, "k", "7");
    }
    p.until("the fault", |kafka, _| {
        kafka.lock().faults.values().all(|q| q.is_empty())
    });
    if p.thread.is_none() {
        p.up().unwrap();
    }
    drained(&mut p);
    kafka.produce("in", 0, "k", "8");
    drained(&mut p);
}

#[test]
fn a_record_that_is_not_delivered() {
    survives(Op::Flush, Fault::NotDelivered);
}

#[test]
fn a_stale_generation() {
    survives(Op::Offsets, Fault::StaleGeneration);
}

#[test]
fn an_unknown_outcome_that_was_a_commit() {
    survives(Op::Commit, Fault::UnknownCommitted);
}

/// The offsets say that it committed, the changelog not yet: only the high
/// watermark, not the last stable offset, tells that there is more to wait for.
#[test]
fn a_commit_whose_markers_are_late() {
    survives(Op::Commit, Fault::LateMarkers);
}

#[test]
fn an_unknown_outcome_that_was_none() {
    survives(Op::Commit, Fault::UnknownOpen);
}

#[test]
fn a_transaction_that_the_broker_timed_out() {
    survives(Op::Send, Fault::TimedOutByBroker);
    survives(Op::Flush, Fault::TimedOutByBroker);
    survives(Op::Commit, Fault::TimedOutByBroker);
}

#[test]
fn a_crash_at_every_step() {
    for op in [Op::Begin, Op::Send, Op::Flush, Op::Offsets, Op::Commit] {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            survives(op, fault);
        }
    }
}

#[test]
fn an_abort_that_fails_as_well() {
    let (kafka, mut p) = one();
    kafka.fail("a", Op::Flush, Fault::NotDelivered);
    kafka.fail("a", Op::Abort, Fault::NotDelivered);
    kafka.fail("a", Op::Renew, Fault::NotDelivered);
    kafka.produce("in", 0, "k", "7");
    drained(&mut p);
}

#[test]
fn fenced_by_a_process_with_the_same_id_is_fatal_and_named() {
    let (kafka, mut p) = one();
    kafka.replace("a");
    kafka.produce("in", 0, "k", "7");
    let error = loop {
        match p.turn() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(&error, Error::Fatal(m) if m.contains("another process")));
}

#[test]
fn a_revoked_partition_is_committed_before_it_is_released() {
    let (kafka, mut a) = one();
    let mut b = Process::new(&kafka, "b");
    b.up().unwrap();
    let offset = kafka.produce("in", 1, "k", "7");
    kafka.move_to(1, "b");
    a.turns(2);
    assert_eq!(kafka.committed_offset("in", 1), Some(offset + 1));
    assert_eq!(a.running(), [0]);
    b.until("runs", |_, b| b.running() == [1]);
    check_store(&b, 1);
    kafka.produce("in", 1, "k", "7");
    kafka.produce("in", 0, "k", "7");
    b.turns(200);
    a.turns(200);
    check_partition(&kafka, 0);
    check_partition(&kafka, 1);
}

#[test]
fn a_revoke_whose_commit_fails_is_released_and_the_rest_goes_on() {
    for (op, fault) in [
        (Op::Offsets, Fault::StaleGeneration),
        (Op::Commit, Fault::UnknownOpen),
        (Op::Commit, Fault::UnknownCommitted),
        (Op::Send, Fault::TimedOutByBroker),
    ] {
        let (kafka, mut a) = one();
        let mut b = Process::new(&kafka, "b");
        b.up().unwrap();
        kafka.produce("in", 1, "k", "7");
        kafka.produce("in", 0, "k", "7");
        kafka.fail("a", op, fault);
        kafka.move_to(1, "b");
        for _ in 0..3_000 {
            a.turn().unwrap();
            b.turn().unwrap();
        }
        assert_eq!((a.running(), b.running()), (vec![0], vec![1]));
        check_partition(&kafka, 0);
        check_partition(&kafka, 1);
        check_store(&a, 0);
        check_store(&b, 1);
    }
}

#[test]
fn a_pending_transaction_holds_up_only_its_partition() {
    let (kafka, mut a) = one();
    let mut b = Process::new(&kafka, "b");
    b.up().unwrap();
    kafka.move_to(1, "b");
    for _ in 0..300 {
        a.turn().unwrap();
        b.turn().unwrap();
    }
    // b dies with offsets of partition 1 pending, and its session ends.
    kafka.produce("in", 1, "k", "7");
    kafka.fail("b", Op::Offsets, Fault::CrashAfter);
    b.until("crash", |_, b| b.thread.is_none());
    kafka.lose("b", "a");
    kafka.produce("in", 0, "k", "7");
    a.turns(300);
    assert_eq!(a.running(), [0], "1 waits, 0 does not");
    check_store(&a, 0);
    kafka.expire_transactions();
    drained(&mut a);
}

#[test]
fn a_lost_partition_is_dropped_without_a_commit() {
    let (kafka, mut a) = one();
    let mut b = Process::new(&kafka, "b");
    b.up().unwrap();
    kafka.produce("in", 0, "k", "7");
    kafka.lose("a", "b");
    for _ in 0..300 {
        b.turn().unwrap();
    }
    for _ in 0..300 {
        a.turn().unwrap();
        b.turn().unwrap();
    }
    assert_eq!(b.running(), [0, 1]);
    assert!(a.running().is_empty());
    check_store(&b, 0);
    check_partition(&kafka, 0);
    check_partition(&kafka, 1);
}

#[test]
fn a_lost_disk_is_restored_and_a_kept_one_reads_only_the_tail() {
    let (kafka, mut p) = one();
    p.lose_disk();
    p.up().unwrap();
    drained(&mut p);
    kafka.produce("in", 0, "k", "1");
    kafka.fail("a", Op::Commit, Fault::CrashAfter);
    p.until("crash", |_, p| p.thread.is_none());
    p.up().unwrap();
    drained(&mut p);
}

#[test]
fn offsets_that_differ_from_the_store_stop_the_thread() {
    let (kafka, mut p) = one();
    p.crash();
    kafka.set_committed("in", 0, 2);
    p.up().unwrap();
    let error = loop {
        match p.turn() {
            Ok(_) => {}
            Err(e) => break e.to_string(),
        }
    };
    assert!(
        error.contains("in/0") && error.contains("changelog says 5"),
        "{error}"
    );
}

#[test]
fn input_deleted_before_it_was_read_stops_the_thread() {
    let (kafka, mut p) = one();
    p.crash();
    kafka.produce("in", 0, "k", "1");
    kafka.lock().starts.insert(("in".into(), 0), 6);
    p.up().unwrap();
    let error = loop {
        match p.turn() {
            Ok(_) => {}
            Err(e) => break e.to_string(),
        }
    };
    assert!(error.contains("1 records were deleted"), "{error}");
}

#[test]
fn another_cluster_stops_the_thread_and_a_recreated_changelog_rebuilds() {
    let (kafka, mut p) = one();
    p.crash();
    kafka.lock().id = "cluster-2".into();
    p.up().unwrap();
    let error = loop {
        match p.turn() {
            Ok(_) => {}
            Err(e) => break e.to_string(),
        }
    };
    assert!(
        error.contains("cluster-1") && error.contains("cluster-2"),
        "{error}"
    );
    p.crash();
    kafka.lock().id = "cluster-1".into();
    let changelog = "toy-sums-changelog".to_owned();
    kafka.lock().topic_ids.insert(changelog, 9);
    p.up().unwrap();
    drained(&mut p);
}

#[test]
fn an_old_store_is_rebuilt() {
    let (kafka, mut p) = one();
    p.crash();
    kafka.advance(4 * 24 * 3_600 * 1_000_000);
    p.up().unwrap();
    drained(&mut p);
}

#[test]
fn partition_counts_must_agree() {
    let kafka = Kafka::new(2);
    let mut p = Process::new(&kafka, "a");
    kafka.lock().partitions = 0;
    let error = p.up().unwrap_err().to_string();
    assert!(error.contains("`in` does not exist"), "{error}");
}

#[test]
fn a_graceful_stop_commits_and_says_goodbye() {
    let (kafka, mut p) = one();
    kafka.produce("in", 0, "k", "1");
    p.control.stop.store(true, Ordering::Relaxed);
    while !p.turn().unwrap() {}
    check_partition(&kafka, 0);
    for partition in 0..2 {
        let lines = kafka.read("ledger", partition);
        let last = LedgerLine::parse(lines.last().unwrap().2.as_deref().unwrap());
        assert!(last.last);
    }
}

#[test]
fn a_drain_ends_when_everything_is_read() {
    let kafka = Kafka::new(2);
    for n in 0..100 {
        kafka.produce("in", n % 2, "k", &n.to_string());
        kafka.marker("in", n % 2);
    }
    let mut p = Process::new(&kafka, "a");
    p.control.drain.store(true, Ordering::Relaxed);
    p.up().unwrap();
    p.turns(20);
    kafka.move_to(0, "a");
    kafka.move_to(1, "a");
    while !p.turn().unwrap() {}
    for partition in 0..2 {
        check_partition(&kafka, partition);
        assert_eq!(kafka.committed_offset("in", partition), Some(100));
    }
}

#[test]
fn leaving_hands_the_partitions_back() {
    let (kafka, mut p) = one();
    p.control.leave.store(true, Ordering::Relaxed);
    p.control.stop.store(true, Ordering::Relaxed);
    while !p.turn().unwrap() {}
    assert!(kafka.owned("a").is_empty());
}

/// A registry that can be away; knows values that begin with a digit.
struct Registry {
    away: std::sync::Arc<std::sync::atomic::AtomicBool>,
    asked: std::sync::Arc<std::sync::atomic::AtomicU32>,
    settled: bool,
}

impl finlake_topology::SchemaGate for Registry {
    fn known(&self, record: &finlake_topology::Record<'_>) -> bool {
        self.settled || record.value != Some(b"?")
    }

    fn resolve(&mut self, _: &finlake_topology::Record<'_>) -> finlake_topology::Resolution {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.away.load(Ordering::Relaxed) {
            true => finlake_topology::Resolution::Unreachable("no route".into()),
            false => {
                self.settled = true;
                finlake_topology::Resolution::Poison
            }
        }
    }
}

#[test]
fn an_unreachable_registry_holds_the_input_back_and_never_dead_letters() {
    let (kafka, mut p) = one();
    p.crash();
    let away = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = std::sync::Arc::<std::sync::atomic::AtomicU32>::default();
    p.gate = Some(Box::new(Registry {
        away: away.clone(),
        asked: asked.clone(),
        settled: false,
    }));
    kafka.produce("in", 0, "k", "1");
    kafka.produce("in", 0, "k", "?");
    let behind = kafka.produce("in", 0, "k", "2");
    kafka.produce("aux", 0, "k", "3");
    kafka.produce("in", 1, "k", "4");
    p.up().unwrap();
    p.turns(400);
    // Up to the unknown record, and everything else, is committed.
    assert_eq!(kafka.committed_offset("in", 0), Some(behind - 1));
    assert_eq!(kafka.committed_offset("aux", 0), Some(2));
    assert_eq!(kafka.committed_offset("in", 1), Some(6));
    assert!(kafka.read("in.dlq", 0).is_empty());
    kafka.produce("in", 0, "k", "5");
    let before = asked.load(Ordering::Relaxed);
    assert!(before > 1, "it asks again");
    away.store(false, Ordering::Relaxed);
    drained(&mut p);
    assert_eq!(
        kafka.read("in.dlq", 0).len(),
        1,
        "poison once the registry says so"
    );
}
