//! The task through the test driver: what a commit holds, what an abort drops.

mod support;

use finlake_topology::state::StateDb;
use finlake_topology::{RecordBatch, TestDriver, TopicIdx, TopologyBuilder, TopologyError};
use support::toy::{APP, LedgerLine, Toy, number, topology};

fn driver() -> TestDriver<Toy> {
    TestDriver::new(&topology(), APP).unwrap()
}

#[test]
fn describes_itself() {
    insta::assert_snapshot!(topology().describe(APP), @r"
    Application toy
      Inputs (partition p of each belongs to task p):
        in (subscribed)
        aux (attached)
      Nodes:
        Source: in
          --> inputs
        Source: aux
          --> inputs
        Merge: inputs
          --> count
        Processor: count
          stores: sums
          sinks: echo, counts
          --> keyed
        Filter: keyed
          --> ledger
        Processor: ledger
          sinks: ledger
      Outputs:
        in.dlq (counted, dead letters)
        echo (counted)
        counts (counted)
        ledger (plain)
      Changelogs:
        toy-task-changelog
        toy-sums-changelog
    ");
    insta::assert_snapshot!(topology().mermaid(), @r#"
    flowchart TD
      n0[/"in"/]
      n1[/"aux"/]
      n2["inputs"]
      n3["count"]
      n4{"keyed"}
      n5["ledger"]
      s1[("sums")]
      k0[\"in.dlq"\]
      k1[\"echo"\]
      k2[\"counts"\]
      k3[\"ledger"\]
      n0 --> n2
      n1 --> n2
      n2 --> n3
      n3 --> n4
      n3 --- s1
      n3 --> k1
      n3 --> k2
      n4 --> n5
      n5 --> k3
    "#);
}

#[test]
fn a_commit_holds_outputs_stores_and_positions() {
    let mut d = driver();
    d.pipe("in", Some(b"a"), Some(b"2")).unwrap();
    d.pipe("aux", Some(b"a"), Some(b"3")).unwrap();
    d.pipe_at("in", 5, 0, Some(b"b"), Some(b"7")).unwrap();
    assert!(d.outputs("echo").is_empty(), "nothing before the commit");
    let stats = d.commit().unwrap().clone();
    assert_eq!(stats.commit, 1);
    assert_eq!(stats.system_time, d.now_us());
    let lead = &stats.inputs[0];
    assert_eq!(
        (lead.start, lead.end, lead.records, lead.skipped),
        (0, 6, 2, 4)
    );
    assert_ne!(lead.hash, 0);
    let counts: Vec<_> = stats
        .outputs
        .iter()
        .map(|o| (o.topic.as_str(), o.count))
        .collect();
    assert_eq!(counts, [("in.dlq", 0), ("echo", 3), ("counts", 2)]);
    assert!(!stats.heartbeat);
    let echo = d.outputs("echo");
    assert_eq!(echo[2].key.as_deref(), Some(&b"in@5"[..]));
    let sums = d.store("sums").unwrap();
    assert_eq!(number(&sums[0].1), 5);
    // The same clock: system time still moves.
    let next = d.commit().unwrap();
    assert!(next.heartbeat);
    assert_eq!(next.system_time, stats.system_time + 1);
    // changelog: two sums and the task's record twice
    let stores: Vec<_> = d.changelog().iter().map(|(s, _, _)| s.as_str()).collect();
    assert_eq!(stores, ["task", "sums", "sums", "task"]);
}

#[test]
fn hashes_are_sums_over_key_and_value() {
    let mut d = driver();
    d.pipe("in", Some(b"ab"), Some(b"1")).unwrap();
    d.pipe("in", Some(b"a"), Some(b"2")).unwrap();
    let h = xxhash_rust::xxh3::xxh3_128;
    let stats = d.commit().unwrap();
    assert_eq!(stats.inputs[0].hash, h(b"ab1").wrapping_add(h(b"a2")));
    let echo = h(b"in@01").wrapping_add(h(b"in@12"));
    assert_eq!(stats.outputs[1].hash, echo);
}

#[test]
fn poison_is_dead_lettered_with_its_reason() {
    let mut d = driver();
    d.pipe("in", Some(b"a"), Some(b"x")).unwrap();
    d.pipe("aux", None, None).unwrap();
    d.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    let stats = d.commit().unwrap().clone();
    assert_eq!(stats.inputs[0].rejected, 1);
    assert_eq!(stats.inputs[1].rejected, 1);
    assert_eq!(stats.outputs[0].count, 2);
    let dlq = d.outputs("in.dlq");
    assert_eq!(dlq[0].value.as_deref(), Some(&b"x"[..]));
    assert_eq!((&dlq[1].key, &dlq[1].value), (&None, &None), "as received");
    let headers: Vec<_> = dlq[0]
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), std::str::from_utf8(v).unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            ("finlake.error.class", "malformed"),
            ("finlake.error.message", "not a number"),
            ("finlake.topic", "in"),
            ("finlake.partition", "0"),
            ("finlake.offset", "0"),
            ("finlake.app.id", "toy"),
        ]
    );
    assert_eq!(dlq[1].header("finlake.topic"), Some("aux"));
    assert_eq!(d.outputs("counts").len(), 1);
}

#[test]
fn an_abort_drops_everything_since_the_commit() {
    let mut d = driver();
    d.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    d.commit().unwrap();
    d.pipe("in", Some(b"a"), Some(b"10")).unwrap();
    d.pipe("in", Some(b"b"), Some(b"x")).unwrap();
    assert_eq!(d.abort().unwrap(), [1, 0]);
    d.pipe("in", Some(b"a"), Some(b"10")).unwrap();
    let stats = d.commit().unwrap().clone();
    assert_eq!(stats.commit, 2);
    assert_eq!(stats.inputs[0].rejected, 0);
    let sums = d.store("sums").unwrap();
    assert_eq!((sums.len(), number(&sums[0].1)), (1, 11));
}

#[test]
fn restart_and_restore_give_the_same_state() {
    let mut d = driver();
    for n in 0..20 {
        let key = [b'a' + n % 3];
        let value = n.to_string();
        d.pipe("in", Some(&key), Some(value.as_bytes())).unwrap();
        if n % 4 == 0 {
            d.commit().unwrap();
        }
    }
    d.commit().unwrap();
    let before = d.store("sums").unwrap();
    let last = d.commits().last().unwrap().clone();
    assert_eq!(d.crash().unwrap(), [20, 0]);
    assert_eq!(d.store("sums").unwrap(), before);
    assert_eq!(d.crash_and_restore().unwrap(), [20, 0]);
    assert_eq!(d.store("sums").unwrap(), before);
    let next = d.commit().unwrap();
    assert_eq!(next.commit, last.commit + 1);
    assert!(next.system_time > last.system_time);
}

#[test]
fn heartbeats_first_at_once_then_by_the_clock_and_a_last_one() {
    let mut d = driver();
    assert!(
        d.maybe_commit().unwrap(),
        "the first directly after assignment"
    );
    assert!(!d.maybe_commit().unwrap());
    d.advance(9_999_999).unwrap();
    assert!(!d.maybe_commit().unwrap());
    d.advance(1).unwrap();
    assert!(d.maybe_commit().unwrap());
    d.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    assert!(d.maybe_commit().unwrap());
    let last = d.stop().unwrap().clone();
    assert!(last.last && last.heartbeat);
    let lines: Vec<_> = d.outputs("ledger");
    let lines: Vec<_> = lines
        .iter()
        .map(|o| LedgerLine::parse(o.value.as_deref().unwrap()))
        .collect();
    let commits: Vec<_> = lines.iter().map(|l| l.commit).collect();
    assert_eq!(commits, [1, 2, 3, 4, 5], "INV-12");
    assert!(lines[4].last && !lines[3].last);
}

#[test]
fn records_before_the_position_are_not_processed_again() {
    let mut d = driver();
    d.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    d.pipe_at("in", 0, 0, Some(b"a"), Some(b"1")).unwrap();
    let stats = d.commit().unwrap();
    assert_eq!(stats.inputs[0].records, 1);
}

#[test]
fn tasks_share_a_database() {
    let db = StateDb::memory();
    let t = topology();
    let mut zero = TestDriver::over(&t, APP, db.clone(), 0).unwrap();
    let mut one = TestDriver::over(&t, APP, db, 1).unwrap();
    zero.pipe("in", Some(b"a"), Some(b"1")).unwrap();
    zero.commit().unwrap();
    one.commit().unwrap();
    assert!(one.store("sums").unwrap().is_empty());
    let mut batch = RecordBatch::new();
    batch.push(TopicIdx(1), 1, 3, 0, Some(b"a"), Some(b"4"));
    one.pipe_batch(&batch).unwrap();
    assert_eq!(one.commit().unwrap().inputs[1].end, 4);
}

#[test]
fn a_topology_is_checked() {
    let build = |f: &dyn Fn(&mut TopologyBuilder<Toy>)| {
        let mut b = TopologyBuilder::<Toy>::new();
        f(&mut b);
        b.build().err()
    };
    assert_eq!(build(&|_| {}), Some(TopologyError::NoSource));
    let twice = build(&|b| {
        b.source("a");
        b.source("a");
    });
    assert!(matches!(twice, Some(TopologyError::Duplicate { .. })));
    let feeds_itself = build(&|b| {
        b.source("a");
        b.dlq("a");
    });
    assert!(matches!(feeds_itself, Some(TopologyError::Conflict(_))));
    let named = build(&|b| {
        b.source("a b");
    });
    assert!(matches!(named, Some(TopologyError::BadName { .. })));
}
