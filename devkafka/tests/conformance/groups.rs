//! Consumer groups: both assignors, static members, offsets.

use std::time::{Duration, Instant};

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use super::clients::*;
use super::member::Member;

fn member(bootstrap: &str, group: &str, assignor: &str, instance: Option<&str>) -> Member<Usual> {
    let mut config = consumer_config(bootstrap, group, "read_committed");
    config.set("partition.assignment.strategy", assignor);
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    create(&config)
}

fn owned(consumer: &BaseConsumer) -> Vec<i32> {
    let mut list: Vec<i32> = consumer
        .assignment()
        .unwrap()
        .elements()
        .iter()
        .map(|e| e.partition())
        .collect();
    list.sort_unstable();
    list
}

/// Polls all until each has `each` partitions and together they have all of them once.
fn settle(members: &[&BaseConsumer], each: usize) {
    let begin = Instant::now();
    loop {
        for m in members {
            if let Some(message) = m.poll(Duration::from_millis(10)) {
                message.unwrap();
            }
        }
        let mut all: Vec<i32> = members.iter().flat_map(|m| owned(m)).collect();
        all.sort_unstable();
        let whole = (0..(each * members.len()) as i32).collect::<Vec<_>>();
        if all == whole && members.iter().all(|m| owned(m).len() == each) {
            return;
        }
        assert!(
            begin.elapsed() < WAIT,
            "no balance: {:?}",
            members.iter().map(|m| owned(m)).collect::<Vec<_>>()
        );
    }
}

/// Members join and leave; every partition has exactly one owner each time.
async fn join_and_leave(bootstrap: &str, assignor: &str) {
    let topic = topic(bootstrap, "assign", 4).await;
    let group = unique("g");
    let a = member(bootstrap, &group, assignor, None);
    a.subscribe(&[&topic]).unwrap();
    settle(&[&a], 4);
    let b = member(bootstrap, &group, assignor, None);
    b.subscribe(&[&topic]).unwrap();
    settle(&[&a, &b], 2);
    drop(b);
    settle(&[&a], 4);
}

pub async fn range(bootstrap: &str) {
    join_and_leave(bootstrap, "range").await;
}

pub async fn cooperative_sticky(bootstrap: &str) {
    join_and_leave(bootstrap, "cooperative-sticky").await;
}

/// A static member that comes back within its session gets its partitions without a rebalance.
pub async fn static_member_restart(bootstrap: &str) {
    let topic = topic(bootstrap, "static", 4).await;
    let group = unique("g");
    // Long enough for a machine that stands still for a while.
    let patient = |instance: &str| {
        let mut config = consumer_config(bootstrap, &group, "read_committed");
        config
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("group.instance.id", instance)
            .set("session.timeout.ms", "30000");
        create(&config)
    };
    let (a, b) = (patient("a"), patient("b"));
    a.subscribe(&[&topic]).unwrap();
    b.subscribe(&[&topic]).unwrap();
    settle(&[&a, &b], 2);
    let before = (owned(&a), owned(&b));
    drop(b);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        if let Some(m) = a.poll(Duration::from_millis(20)) {
            m.unwrap();
        }
        assert_eq!(owned(&a), before.0, "no rebalance while b is away");
    }
    let b = patient("b");
    b.subscribe(&[&topic]).unwrap();
    settle(&[&a, &b], 2);
    assert_eq!((owned(&a), owned(&b)), before);
}

/// Two members under one instance id: the earlier one is fenced.
pub async fn static_member_fenced(bootstrap: &str) {
    let topic = topic(bootstrap, "static2", 2).await;
    let group = unique("g");
    let old = member(bootstrap, &group, "cooperative-sticky", Some("a"));
    old.subscribe(&[&topic]).unwrap();
    settle(&[&old], 2);
    let new = member(bootstrap, &group, "cooperative-sticky", Some("a"));
    new.subscribe(&[&topic]).unwrap();
    settle(&[&new], 2);
    let begin = Instant::now();
    loop {
        if let Some(Err(_)) = old.poll(Duration::from_millis(50)) {
            break;
        }
        assert!(
            begin.elapsed() < WAIT,
            "the earlier instance was not fenced"
        );
    }
    let (code, reason) = old.client().fatal_error().expect("a fatal error");
    assert_eq!(
        code,
        rdkafka::error::RDKafkaErrorCode::FencedInstanceId,
        "{reason}"
    );
}

/// A member that vanishes without a word loses its partitions when its session ends.
pub async fn session_timeout(bootstrap: &str) {
    let topic = topic(bootstrap, "session", 2).await;
    let group = unique("g");
    let a = member(bootstrap, &group, "range", Some("a")); // static: closing sends no LeaveGroup
    let b = member(bootstrap, &group, "range", None);
    a.subscribe(&[&topic]).unwrap();
    b.subscribe(&[&topic]).unwrap();
    settle(&[&a, &b], 1);
    drop(a);
    settle(&[&b], 2);
}

/// A member may keep offsets, with metadata, of partitions that others own; one that has left may not.
pub async fn commit_of_what_others_own(bootstrap: &str) {
    let topic = topic(bootstrap, "commit2", 4).await;
    let group = unique("g");
    let a = member(bootstrap, &group, "range", None);
    let b = member(bootstrap, &group, "range", None);
    a.subscribe(&[&topic]).unwrap();
    b.subscribe(&[&topic]).unwrap();
    settle(&[&a, &b], 2);
    let mut all = TopicPartitionList::new();
    for p in 0..4 {
        let mut element = all.add_partition(&topic, p);
        element.set_offset(Offset::Offset(0)).unwrap();
        element.set_metadata(format!("of {p}"));
    }
    a.commit(&all, CommitMode::Sync).unwrap();
    let stranger = consumer(bootstrap, &group, "read_committed");
    let kept = stranger.committed_offsets(all.clone(), WAIT).unwrap();
    for element in kept.elements() {
        assert_eq!(element.offset(), Offset::Offset(0));
        assert_eq!(element.metadata(), format!("of {}", element.partition()));
    }
    stranger.commit(&all, CommitMode::Sync).unwrap_err();
    a.unsubscribe();
    settle(&[&b], 4);
    a.commit(&all, CommitMode::Sync).unwrap_err();
}

/// Committed offsets are there for the next member; groups are listed, described and deleted.
pub async fn commit_and_describe(bootstrap: &str) {
    let topic = topic(bootstrap, "commit", 1).await;
    let group = unique("g");
    let producer = plain_producer(bootstrap);
    for i in 0..10 {
        send(&producer, &topic, 0, "k", &i.to_string()).await;
    }
    let a = member(bootstrap, &group, "range", None);
    a.subscribe(&[&topic]).unwrap();
    assert_eq!(poll_values(&a, 10, WAIT).len(), 10);
    a.commit(&offsets(&topic, &[(0, 6)]), CommitMode::Sync)
        .unwrap();
    let listed = a.fetch_group_list(Some(&group), WAIT).unwrap();
    assert_eq!(listed.groups().len(), 1);
    assert_eq!(
        (
            listed.groups()[0].state(),
            listed.groups()[0].members().len()
        ),
        ("Stable", 1)
    );
    drop(a);
    let b = member(bootstrap, &group, "range", None);
    b.subscribe(&[&topic]).unwrap();
    assert_eq!(values(&poll_values(&b, 4, WAIT)), ["6", "7", "8", "9"]);
    drop(b);
    let admin = admin(bootstrap);
    let deleted = admin
        .delete_groups(&[&group], &AdminOptions::new())
        .await
        .unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    let c = consumer(bootstrap, &group, "read_committed");
    assert_eq!(committed(&c, &topic, 0), None);
}

/// A member that closes with a rebalance still unanswered ends all the same.
pub async fn close_unanswered(bootstrap: &str) {
    let topic = topic(bootstrap, "unanswered", 2).await;
    for assignor in ["range", "cooperative-sticky"] {
        let group = unique("g");
        let a = member(bootstrap, &group, assignor, Some("a"));
        a.subscribe(&[&topic]).unwrap();
        let watcher = member(bootstrap, &unique("g"), assignor, None);
        let begin = Instant::now();
        loop {
            let list = watcher.fetch_group_list(Some(&group), WAIT).unwrap();
            if list.groups().iter().any(|g| g.state() == "Stable") {
                break;
            }
            assert!(
                begin.elapsed() < WAIT,
                "{assignor}: the group is not stable"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        // The member learns of its assignment and asks the application.
        std::thread::sleep(Duration::from_millis(200));
        let (ended, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(a);
            let _ = ended.send(());
        });
        let ended = wait.recv_timeout(WAIT);
        assert!(ended.is_ok(), "{assignor}: the member does not close");
    }
}
