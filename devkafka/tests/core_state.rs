//! The Core by itself, with time and storage in the test's hands: crashes at every step, torn
//! files, idempotence, retention, compaction.

mod sim;

use std::collections::BTreeMap;

use finlake_devkafka::storage::{MemoryStorage, Storage};
use sim::*;

const DAY: i64 = 86_400_000;

#[test]
fn sequence_numbers_are_checked_as_kafka_does() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[]);
    let (id, epoch) = sim.producer(None).unwrap();
    let batch = |first: i32, n: usize| producer_batch(id, epoch, first, n, false);
    assert_eq!(sim.produce("t", 0, batch(0, 3)), Ok(0));
    assert_eq!(sim.produce("t", 0, batch(3, 2)), Ok(3));
    assert_eq!(
        sim.produce("t", 0, batch(3, 2)),
        Ok(3),
        "a repeated batch is acknowledged, not appended"
    );
    assert_eq!(sim.produce("t", 0, batch(0, 3)), Ok(0));
    assert_eq!(sim.end("t", 0), 5);
    assert_eq!(
        sim.produce("t", 0, batch(6, 1)),
        Err(OUT_OF_ORDER_SEQUENCE_NUMBER)
    );
    for i in 0..6 {
        assert_eq!(sim.produce("t", 0, batch(5 + i, 1)), Ok(i64::from(5 + i)));
    }
    assert_eq!(
        sim.produce("t", 0, batch(3, 2)),
        Err(OUT_OF_ORDER_SEQUENCE_NUMBER),
        "only five batches are remembered"
    );
    assert_eq!(
        sim.produce("t", 0, producer_batch(id, epoch + 1, 0, 1, false)),
        Ok(11)
    );
    assert_eq!(
        sim.produce("t", 0, batch(11, 1)),
        Err(INVALID_PRODUCER_EPOCH)
    );
    sim.reopen();
    assert_eq!(
        sim.produce("t", 0, producer_batch(id, epoch + 1, 0, 1, false)),
        Ok(11),
        "also after a restart"
    );
    assert_eq!(
        sim.produce("t", 0, producer_batch(id, epoch + 1, 1, 1, false)),
        Ok(12)
    );
}

#[test]
fn damaged_batches_are_refused() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[("max.message.bytes", "2000")]);
    let good = plain_batch(&[("k", Some("v"), 0)]);
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x40;
        // Base offset and leader epoch lie outside the checksum and are the broker's to set.
        let outside = at < 8 || (12..16).contains(&at);
        assert_eq!(
            sim.produce("t", 0, bad.into()).is_ok(),
            outside,
            "byte {at}"
        );
    }
    for len in 0..good.len() {
        assert!(sim.produce("t", 0, good.slice(..len)).is_err());
    }
    let twice = [good.clone(), good].concat();
    assert_eq!(sim.produce("t", 0, twice.into()), Err(INVALID_RECORD));
    let long = "x".repeat(3000);
    assert_eq!(
        sim.produce("t", 0, plain_batch(&[("k", Some(&long), 0)])),
        Err(MESSAGE_TOO_LARGE)
    );
    let ahead = plain_batch(&[("k", Some("v"), sim.now + 2 * 3_600_000)]);
    assert_eq!(sim.produce("t", 0, ahead), Err(INVALID_TIMESTAMP));
}

#[test]
fn log_append_time_is_the_brokers() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[("message.timestamp.type", "LogAppendTime")]);
    sim.produce(
        "t",
        0,
        plain_batch(&[("a", Some("1"), 7), ("b", Some("2"), 8)]),
    )
    .unwrap();
    let read = sim.read("t", 0, false); // decoding checks the checksum
    assert_eq!(
        read.iter().map(|r| r.timestamp).collect::<Vec<_>>(),
        [sim.now, sim.now]
    );
}

/// A transaction's commit, with storage that dies after each possible number of operations: after
/// the restart it has either happened everywhere or, once timed out, nowhere.
#[test]
fn a_commit_is_atomic_wherever_the_process_dies() {
    let mut outcomes = BTreeMap::new();
    for alive in 0..200 {
        let mut sim = Sim::new();
        sim.create("t", 2, &[]);
        let (id, epoch) = sim.producer(Some("tx")).unwrap();
        sim.die_after(alive);
        let acknowledged = transaction(&mut sim, id, epoch).is_ok();
        sim.reopen();
        sim.pass(60_000);
        sim.pass(60_000);
        let seen = (
            sim.values("t", 0, true),
            sim.values("t", 1, true),
            sim.committed("g", "t", 0),
        );
        let all = (vec!["a".to_owned()], vec!["b".to_owned()], 42);
        let none = (vec![], vec![], -1);
        assert!(seen == all || seen == none, "died after {alive}: {seen:?}");
        assert!(
            !acknowledged || seen == all,
            "died after {alive}: acknowledged and lost"
        );
        assert_eq!(sim.stable("t", 0), sim.end("t", 0), "nothing hangs");
        *outcomes.entry((acknowledged, seen == all)).or_insert(0) += 1;
        // The id can be used again.
        let (id, epoch) = sim.producer(Some("tx")).unwrap();
        transaction(&mut sim, id, epoch).unwrap();
        if acknowledged {
            break;
        }
    }
    assert_eq!(outcomes.get(&(true, true)), Some(&1), "{outcomes:?}");
    assert!(
        outcomes.contains_key(&(false, true)) && outcomes.contains_key(&(false, false)),
        "{outcomes:?}"
    );
}

fn transaction(sim: &mut Sim, id: i64, epoch: i16) -> Result<(), i16> {
    sim.add_partitions("tx", id, epoch, &[("t", 0), ("t", 1)])?;
    for (partition, value) in [(0, "a"), (1, "b")] {
        let batch = records_batch(id, epoch, 0, &[("k", Some(value), 0)], true);
        sim.produce_in("tx", "t", partition, batch)?;
    }
    sim.add_offsets("tx", id, epoch, "g")?;
    sim.txn_offsets("tx", id, epoch, "g", "t", 0, 42)?;
    sim.end_txn("tx", id, epoch, true)
}

/// Cut at every byte, a log opens with the whole batches before the cut and goes on from there.
#[test]
fn torn_files_lose_only_what_was_torn() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[]);
    let mut ends = vec![0];
    for i in 0..5 {
        sim.produce(
            "t",
            0,
            plain_batch(&[("k", Some(&format!("value {i}")), 0)]),
        )
        .unwrap();
        ends.push(sim.files().len(&sim.segments("t")[0]).unwrap());
    }
    let name = sim.segments("t")[0].clone();
    for cut in 0..*ends.last().unwrap() {
        let mut files = sim.files();
        files.truncate(&name, cut).unwrap();
        let mut torn = Sim::on(files);
        let whole = ends.iter().filter(|e| **e <= cut).count() - 1;
        assert_eq!(torn.values("t", 0, false).len(), whole, "cut at {cut}");
        assert_eq!(
            torn.produce("t", 0, plain_batch(&[("k", Some("next"), 0)])),
            Ok(whole as i64)
        );
        torn.reopen();
        assert_eq!(torn.end("t", 0), whole as i64 + 1);
    }
    let journal = sim.files().len("meta.journal").unwrap();
    for cut in 0..journal {
        let mut files = sim.files();
        files.truncate("meta.journal", cut).unwrap();
        Sim::on(files);
    }
}

#[test]
fn retention_by_time_and_by_size() {
    let mut sim = Sim::new();
    sim.create(
        "time",
        1,
        &[("retention.ms", "1000"), ("segment.ms", "100")],
    );
    sim.create(
        "size",
        1,
        &[("retention.bytes", "3000"), ("segment.bytes", "1024")],
    );
    sim.create("keep", 1, &[("retention.ms", "-1")]);
    for i in 0..30 {
        for topic in ["time", "size", "keep"] {
            let stamp = sim.now;
            sim.produce(
                topic,
                0,
                plain_batch(&[("k", Some(&format!("{i:0200}")), stamp)]),
            )
            .unwrap();
        }
        sim.pass(50);
    }
    sim.pass(700);
    let start = sim.start("time", 0);
    assert!(start > 0 && start < 30, "start {start}");
    sim.pass(DAY);
    assert_eq!((sim.start("time", 0), sim.end("time", 0)), (30, 30));
    assert!(sim.start("size", 0) > 10, "start {}", sim.start("size", 0));
    assert_eq!(sim.start("keep", 0), 0);
    let before = (
        sim.start("size", 0),
        sim.end("time", 0),
        sim.segments("size").len(),
    );
    sim.reopen();
    assert_eq!(
        before,
        (
            sim.start("size", 0),
            sim.end("time", 0),
            sim.segments("size").len()
        )
    );
    assert_eq!(sim.start("time", 0), 30);
    assert_eq!(
        sim.produce("time", 0, plain_batch(&[("k", Some("v"), 0)])),
        Ok(30)
    );
}

#[test]
fn delete_records_moves_the_start() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[]);
    for _ in 0..10 {
        sim.produce("t", 0, plain_batch(&[("k", Some("v"), 0)]))
            .unwrap();
    }
    assert_eq!(sim.delete_records("t", 0, 4), Ok(4));
    assert_eq!(sim.delete_records("t", 0, 11), Err(OFFSET_OUT_OF_RANGE));
    sim.reopen();
    assert_eq!((sim.start("t", 0), sim.values("t", 0, false).len()), (4, 6));
    assert_eq!(sim.delete_records("t", 0, -1), Ok(10));
    sim.reopen();
    assert_eq!((sim.start("t", 0), sim.end("t", 0)), (10, 10));
}

const COMPACT: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "2048"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("delete.retention.ms", "86400000"),
];

/// The newest value of each key, read from the start.
fn table(sim: &mut Sim) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for r in sim.read("t", 0, true) {
        match r.value {
            Some(v) => state.insert(r.key, v),
            None => state.remove(&r.key),
        };
    }
    state
}

#[test]
fn compaction_keeps_the_newest_of_each_key() {
    let mut sim = Sim::new();
    sim.create("t", 1, COMPACT);
    let mut expected = BTreeMap::new();
    for i in 0..400 {
        let (a, b) = (format!("k{}", i % 7), format!("k{}", (i * 3) % 11));
        let value = format!("{i:060}");
        if i % 13 == 5 {
            sim.produce("t", 0, plain_batch(&[(&a, None, 0)])).unwrap();
            expected.remove(&a);
        } else {
            // Two records in one batch, of which often only one survives.
            let codec = (i % 5) as i16;
            sim.produce(
                "t",
                0,
                compressed_batch(
                    &[(&a, Some(&value), 1000 + i), (&b, Some(&value), 2000 + i)],
                    codec,
                ),
            )
            .unwrap();
            expected.insert(a, value.clone());
            expected.insert(b, value);
        }
    }
    let before = sim.bytes("t");
    sim.pass(10_000);
    assert!(
        sim.bytes("t") < before / 4,
        "{} of {before} bytes left",
        sim.bytes("t")
    );
    assert_eq!(table(&mut sim), expected);
    assert_eq!(sim.end("t", 0), 400 * 2 - 31);
    let read = sim.read("t", 0, true);
    assert!(read.windows(2).all(|w| w[0].offset < w[1].offset));
    assert!(
        read.iter()
            .filter(|r| r.value.is_some())
            .all(|r| r.timestamp >= 1000),
        "timestamps are kept"
    );
    sim.reopen();
    assert_eq!(table(&mut sim), expected);
    sim.pass(10_000);
    assert_eq!(table(&mut sim), expected);
}

#[test]
fn tombstones_go_after_their_time() {
    let mut sim = Sim::new();
    sim.create("t", 1, COMPACT);
    sim.produce(
        "t",
        0,
        plain_batch(&[("gone", Some("v"), 0), ("stays", Some("v"), 0)]),
    )
    .unwrap();
    sim.produce("t", 0, plain_batch(&[("gone", None, 5)]))
        .unwrap();
    let fill = |sim: &mut Sim, n: usize| {
        for i in 0..n {
            sim.produce(
                "t",
                0,
                plain_batch(&[("fill", Some(&format!("{i:0300}")), 0)]),
            )
            .unwrap();
        }
    };
    fill(&mut sim, 20);
    sim.pass(10_000);
    let keys = |sim: &mut Sim| {
        sim.read("t", 0, true)
            .into_iter()
            .map(|r| (r.key, r.value.is_none(), r.timestamp))
            .collect::<Vec<_>>()
    };
    assert!(
        keys(&mut sim).contains(&("gone".to_owned(), true, 5)),
        "tombstone with its own timestamp: {:?}",
        keys(&mut sim)
    );
    sim.reopen();
    sim.pass(DAY + 60_000);
    fill(&mut sim, 20);
    sim.pass(10_000);
    assert!(
        !keys(&mut sim).iter().any(|(k, _, _)| k == "gone"),
        "{:?}",
        keys(&mut sim)
    );
    assert!(keys(&mut sim).iter().any(|(k, _, _)| k == "stays"));
}

#[test]
fn compaction_respects_transactions() {
    let mut sim = Sim::new();
    sim.create("t", 1, COMPACT);
    let (id, epoch) = sim.producer(Some("tx")).unwrap();
    let mut expected = BTreeMap::new();
    for i in 0..60 {
        sim.add_partitions("tx", id, epoch, &[("t", 0)]).unwrap();
        let value = format!("{i:0100}");
        let key = format!("k{}", i % 5);
        let batch = records_batch(id, epoch, i, &[(&key, Some(&value), 0)], true);
        sim.produce_in("tx", "t", 0, batch).unwrap();
        let commit = i % 3 != 1;
        sim.end_txn("tx", id, epoch, commit).unwrap();
        if commit {
            expected.insert(key, value);
        }
    }
    // An open transaction holds compaction back as it holds readers back.
    let (open, open_epoch) = sim.producer(Some("open")).unwrap();
    sim.add_partitions("open", open, open_epoch, &[("t", 0)])
        .unwrap();
    sim.produce_in(
        "open",
        "t",
        0,
        records_batch(open, open_epoch, 0, &[("k0", Some("open"), 0)], true),
    )
    .unwrap();
    for i in 0..40 {
        let value = format!("{i:0100}");
        sim.produce("t", 0, plain_batch(&[("later", Some(&value), 0)]))
            .unwrap();
    }
    sim.pass(10_000);
    assert_eq!(table(&mut sim), expected);
    assert_eq!(
        sim.read("t", 0, false)
            .iter()
            .filter(|r| r.key == "later")
            .count(),
        40,
        "nothing beyond the last stable offset is cleaned"
    );
    let unstable = sim.stable("t", 0);
    sim.reopen();
    assert_eq!(
        (table(&mut sim), sim.stable("t", 0)),
        (expected.clone(), unstable)
    );
    sim.end_txn("open", open, open_epoch, false).unwrap();
    for round in 0..3 {
        sim.pass(DAY + 60_000); // markers whose records are gone go too
        sim.produce(
            "t",
            0,
            plain_batch(&[("later", Some(&format!("{round:02000}")), 0)]),
        )
        .unwrap();
        sim.pass(10_000);
        sim.reopen();
        assert_eq!(
            sim.stable("t", 0),
            sim.end("t", 0),
            "a removed marker must not leave its transaction open"
        );
        let mut now = table(&mut sim);
        now.remove("later");
        assert_eq!(now, expected);
    }
}

#[test]
fn a_journal_is_rewritten_before_it_grows_for_ever() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[]);
    let (id, epoch) = sim.producer(Some("tx")).unwrap();
    for i in 0..12_000 {
        sim.add_offsets("tx", id, epoch, "g").unwrap();
        sim.txn_offsets("tx", id, epoch, "g", "t", 0, i).unwrap();
        sim.end_txn("tx", id, epoch, true).unwrap();
    }
    let len = sim.files().len("meta.journal").unwrap();
    assert!(len < 5 << 20, "{len} bytes");
    sim.reopen();
    assert_eq!(sim.committed("g", "t", 0), 11_999);
    let (again, next_epoch) = sim.producer(Some("tx")).unwrap();
    assert_eq!((again, next_epoch), (id, epoch + 1));
    assert!(sim.producer(None).unwrap().0 > id);
}

#[test]
fn memory_without_journal_writes_none() {
    let mut sim = Sim::on(MemoryStorage::new());
    sim.create("t", 1, &[]);
    assert_eq!(sim.files().len("meta.journal").unwrap(), 0);
}
