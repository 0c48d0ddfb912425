//! Requests whose replies come later: joins that wait for others, fetches that wait for records.

mod sim;

use bytes::Bytes;
use finlake_devkafka::CoreConfig;
use finlake_devkafka::wire::{Request, Response};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use sim::*;

fn join(member: &str) -> Request {
    let protocol = join_group_request::JoinGroupRequestProtocol::default()
        .with_name(StrBytes::from_static_str("range"))
        .with_metadata(Bytes::from_static(b"m"));
    let request = JoinGroupRequest::default()
        .with_group_id(GroupId(StrBytes::from_static_str("g")))
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(5_000)
        .with_member_id(StrBytes::from_string(member.to_owned()))
        .with_protocol_type(StrBytes::from_static_str("consumer"))
        .with_protocols(vec![protocol]);
    Request::JoinGroup(request)
}

/// Joins under a new member id and leaves the join waiting; returns id and ticket.
fn enter(sim: &mut Sim) -> (String, u64) {
    let Response::JoinGroup(given) = sim.ask(5, join("")) else {
        panic!()
    };
    let id = given.member_id.to_string();
    let ticket = sim.post(5, join(&id));
    (id, ticket)
}

fn joined(sim: &mut Sim) -> Vec<(u64, i16, i32, usize)> {
    sim.replies()
        .into_iter()
        .map(|(ticket, r)| {
            let Response::JoinGroup(r) = r else {
                panic!("{r:?}")
            };
            (ticket, r.error_code, r.generation_id, r.members.len())
        })
        .collect()
}

#[test]
fn the_first_members_of_a_group_wait_for_each_other() {
    let mut sim = Sim::with(CoreConfig {
        initial_rebalance_delay_ms: 300,
        ..CoreConfig::default()
    });
    let (_, a) = enter(&mut sim);
    assert!(sim.next_deadline() <= sim.now + 300);
    sim.tick(100);
    let (_, b) = enter(&mut sim);
    assert_eq!(joined(&mut sim), []);
    sim.tick(200);
    let mut both = joined(&mut sim);
    both.sort_by_key(|(ticket, ..)| *ticket);
    assert_eq!(
        both.iter()
            .map(|(t, code, generation, _)| (*t, *code, *generation))
            .collect::<Vec<_>>(),
        [(a, 0, 1), (b, 0, 1)]
    );
    assert_eq!(
        both.iter().map(|(.., members)| members).sum::<usize>(),
        2,
        "the leader alone sees the members"
    );
}

#[test]
fn a_member_that_does_not_rejoin_is_left_out() {
    let mut sim = Sim::new();
    let (_, a) = enter(&mut sim);
    assert_eq!(joined(&mut sim), [(a, 0, 1, 1)]);
    let (_, b) = enter(&mut sim);
    assert_eq!(joined(&mut sim), []);
    sim.tick(4_999);
    assert_eq!(joined(&mut sim), []);
    sim.tick(1);
    assert_eq!(joined(&mut sim), [(b, 0, 2, 1)]);
}

fn fetch(min_bytes: i32, wait: i32, isolation: i8) -> Request {
    let part = fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
    let topic = fetch_request::FetchTopic::default()
        .with_topic(TopicName(StrBytes::from_static_str("t")))
        .with_partitions(vec![part]);
    Request::Fetch(
        FetchRequest::default()
            .with_max_bytes(1 << 20)
            .with_min_bytes(min_bytes)
            .with_max_wait_ms(wait)
            .with_isolation_level(isolation)
            .with_topics(vec![topic]),
    )
}

fn fetched(sim: &mut Sim) -> Vec<(u64, usize)> {
    sim.replies()
        .into_iter()
        .map(|(ticket, r)| {
            let Response::Fetch(r) = r else {
                panic!("{r:?}")
            };
            (
                ticket,
                r.responses[0].partitions[0]
                    .records
                    .as_ref()
                    .map_or(0, |b| b.len()),
            )
        })
        .collect()
}

#[test]
fn a_fetch_waits_for_bytes_or_for_time() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[("retention.ms", "-1")]); // the records below are from 1970
    let one = plain_batch(&[("k", Some("v"), 0)]);
    let soon = sim.post(11, fetch(1, 500, 0));
    let more = sim.post(11, fetch(one.len() as i32 + 1, 500, 0));
    assert_eq!(fetched(&mut sim), []);
    assert_eq!(
        sim.next_deadline(),
        sim.now + 1,
        "maintenance comes first here"
    );
    // The write itself and the fetch that it satisfies are answered in one step.
    let write = produce(&one);
    sim.post(9, write.clone());
    let answered: Vec<u64> = sim.replies().into_iter().map(|(t, _)| t).collect();
    assert!(
        answered.contains(&soon) && !answered.contains(&more),
        "{answered:?}"
    );
    sim.tick(499);
    assert_eq!(fetched(&mut sim), []);
    sim.tick(1);
    assert_eq!(fetched(&mut sim), [(more, one.len())]);
}

fn produce(batch: &Bytes) -> Request {
    let data = produce_request::PartitionProduceData::default().with_records(Some(batch.clone()));
    let topic = produce_request::TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_static_str("t")))
        .with_partition_data(vec![data]);
    Request::Produce(
        ProduceRequest::default()
            .with_acks(-1)
            .with_topic_data(vec![topic]),
    )
}

#[test]
fn the_end_of_a_transaction_wakes_committed_readers() {
    let mut sim = Sim::new();
    sim.create("t", 1, &[]);
    let (id, epoch) = sim.producer(Some("tx")).unwrap();
    sim.add_partitions("tx", id, epoch, &[("t", 0)]).unwrap();
    let waiting = sim.post(11, fetch(1, 60_000, 1));
    sim.produce_in(
        "tx",
        "t",
        0,
        records_batch(id, epoch, 0, &[("k", Some("v"), 0)], true),
    )
    .unwrap();
    assert_eq!(fetched(&mut sim), [], "the record is not committed yet");
    let end = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(StrBytes::from_static_str("tx")))
        .with_producer_id(ProducerId(id))
        .with_producer_epoch(epoch)
        .with_committed(true);
    sim.post(3, Request::EndTxn(end));
    assert!(
        sim.replies()
            .iter()
            .any(|(t, r)| *t == waiting && matches!(r, Response::Fetch(_)))
    );
}
