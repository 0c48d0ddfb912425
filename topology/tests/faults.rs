//! The faults that tests can plant do what they say: each breaks what it is to break, and the
//! engine says so where it can.

mod support;

use finlake_topology::faults::Faults;
use finlake_topology::{Error, TestDriver};
use support::harness::Process;
use support::mock::{Fault, Kafka, Op};
use support::toy::{APP, LedgerLine, Toy, number, topology};

fn driver(faults: Faults) -> TestDriver<Toy> {
    let mut d = TestDriver::new(&topology(), APP).unwrap();
    d.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    d.commit().unwrap();
    d.plant(faults).unwrap();
    d.pipe("in", Some(b"a"), Some(b"10")).unwrap();
    d
}

fn sum(d: &TestDriver<Toy>) -> i64 {
    number(&d.store("sums").unwrap()[0].1)
}

fn ranges(d: &TestDriver<Toy>) -> Vec<[i64; 4]> {
    let lines = d.outputs("ledger");
    let lines = lines
        .iter()
        .map(|o| LedgerLine::parse(o.value.as_deref().unwrap()));
    lines.map(|l| l.inputs[0]).collect()
}

#[test]
fn none_by_default() {
    let mut d = driver(Faults::default());
    assert_eq!(d.fail_commit().unwrap(), [1, 0]);
    assert_eq!(sum(&d), 1);
    d.pipe("in", Some(b"a"), Some(b"10")).unwrap();
    d.commit().unwrap();
    assert_eq!(sum(&d), 11);
    assert_eq!(ranges(&d), [[0, 1, 1, 0], [1, 2, 1, 0]]);
}

#[test]
fn a_batch_before_the_transaction_loses_what_the_transaction_lost() {
    let faults = Faults {
        store_before_transaction: true,
        ..Faults::default()
    };
    let mut d = driver(faults);
    assert_eq!(
        d.fail_commit().unwrap(),
        [2, 0],
        "the store is ahead: INV-10"
    );
    assert_eq!(sum(&d), 11);
    assert_eq!(ranges(&d).len(), 1, "and nobody has seen it");
    // As long as transactions succeed nothing is wrong.
    d.pipe("in", Some(b"a"), Some(b"100")).unwrap();
    d.commit().unwrap();
    assert_eq!(sum(&d), 111);
}

#[test]
fn the_thread_finds_a_store_that_is_ahead() {
    let kafka = Kafka::new(1);
    let mut p = Process::new(&kafka, "a");
    p.faults.store_before_transaction = true;
    p.up().unwrap();
    kafka.move_to(0, "a");
    p.until("a first commit", |kafka, _| {
        kafka.committed_offset("in", 0).is_some()
    });
    kafka.fail("a", Op::Flush, Fault::NotDelivered);
    kafka.produce("in", 0, "a", "1");
    let mut found = None;
    for _ in 0..5_000 {
        if let Err(e) = p.turn() {
            found = Some(e);
            break;
        }
    }
    match found {
        Some(Error::Fatal(why)) => assert!(why.contains("changelog says"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_overlay_that_outlives_its_abort_counts_twice() {
    let mut d = driver(Faults {
        overlay_after_abort: true,
        ..Faults::default()
    });
    assert_eq!(d.fail_commit().unwrap(), [1, 0], "the input is read again");
    d.pipe("in", Some(b"a"), Some(b"10")).unwrap();
    d.commit().unwrap();
    assert_eq!(sum(&d), 21);
}

#[test]
fn a_range_that_is_applied_twice_stands_in_the_ledger_twice() {
    let mut d = driver(Faults {
        range_twice: Some(2),
        ..Faults::default()
    });
    d.commit().unwrap();
    d.pipe("in", Some(b"a"), Some(b"100")).unwrap();
    d.commit().unwrap();
    d.commit().unwrap();
    assert_eq!(
        ranges(&d),
        [[0, 1, 1, 0], [1, 2, 1, 0], [1, 3, 2, 0], [3, 3, 0, 0]],
        "INV-12 is broken once"
    );
}
