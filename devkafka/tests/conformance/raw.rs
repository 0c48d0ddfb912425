//! Requests that no client library would send, and the error codes a broker owes them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, Record, RecordBatchEncoder, RecordEncodeOptions,
    TimestampType,
};

use super::clients::{topic, topic_with, unique};

const OK: i16 = 0;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const CORRUPT_MESSAGE: i16 = 2;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const INVALID_REQUIRED_ACKS: i16 = 21;
const ILLEGAL_GENERATION: i16 = 22;
const INCONSISTENT_GROUP_PROTOCOL: i16 = 23;
const INVALID_GROUP_ID: i16 = 24;
const UNKNOWN_MEMBER_ID: i16 = 25;
const INVALID_SESSION_TIMEOUT: i16 = 26;
const INVALID_REQUEST: i16 = 42;
const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
const INVALID_PRODUCER_EPOCH: i16 = 47;
const INVALID_TXN_STATE: i16 = 48;
const INVALID_PRODUCER_ID_MAPPING: i16 = 49;
const INVALID_TRANSACTION_TIMEOUT: i16 = 50;
const CONCURRENT_TRANSACTIONS: i16 = 51;
const OPERATION_NOT_ATTEMPTED: i16 = 55;
const GROUP_ID_NOT_FOUND: i16 = 69;
const MEMBER_ID_REQUIRED: i16 = 79;
const INVALID_RECORD: i16 = 87;
const PRODUCER_FENCED: i16 = 90;

fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// One connection, one request at a time.
struct Raw(TcpStream);

impl Raw {
    fn connect(bootstrap: &str) -> Raw {
        let stream = TcpStream::connect(bootstrap).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Raw(stream)
    }

    fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(1)
            .with_client_id(Some(s("raw")));
        let mut body = BytesMut::new();
        header
            .encode(&mut body, R::header_version(version))
            .unwrap();
        request.encode(&mut body, version).unwrap();
        self.0
            .write_all(&(body.len() as u32).to_be_bytes())
            .unwrap();
        self.0.write_all(&body).unwrap();
        let mut len = [0; 4];
        self.0.read_exact(&mut len).unwrap();
        let mut reply = vec![0; u32::from_be_bytes(len) as usize];
        self.0.read_exact(&mut reply).unwrap();
        let mut reply = Bytes::from(reply);
        ResponseHeader::decode(&mut reply, R::Response::header_version(version)).unwrap();
        let response = R::Response::decode(&mut reply, version).unwrap();
        assert!(!reply.has_remaining());
        response
    }

    /// Repeats while the coordinator is being found, loaded, or busy with the last transaction.
    fn retry<T>(&mut self, mut act: impl FnMut(&mut Raw) -> (i16, T)) -> (i16, T) {
        for _ in 0..200 {
            let (code, value) = act(self);
            if !matches!(code, 14..=16 | CONCURRENT_TRANSACTIONS) {
                return (code, value);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the coordinator never became available");
    }

    fn find(&mut self, key: &str, key_type: i8) {
        let request = FindCoordinatorRequest::default()
            .with_key(s(key))
            .with_key_type(key_type);
        self.retry(|r| (r.ask(3, &request).error_code, ()));
    }

    fn init(&mut self, id: Option<&str>, timeout: i32, producer: (i64, i16)) -> (i16, (i64, i16)) {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(id.map(|i| TransactionalId(s(i))))
            .with_transaction_timeout_ms(timeout)
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1);
        self.retry(|r| {
            let r = r.ask(4, &request);
            (r.error_code, (r.producer_id.0, r.producer_epoch))
        })
    }

    fn add(
        &mut self,
        version: i16,
        id: &str,
        producer: (i64, i16),
        list: &[(&str, i32)],
    ) -> Vec<i16> {
        use add_partitions_to_txn_request::AddPartitionsToTxnTopic;
        let topics = list.iter().map(|(t, p)| {
            AddPartitionsToTxnTopic::default()
                .with_name(TopicName(s(t)))
                .with_partitions(vec![*p])
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(s(id)))
            .with_v3_and_below_producer_id(ProducerId(producer.0))
            .with_v3_and_below_producer_epoch(producer.1)
            .with_v3_and_below_topics(topics.collect());
        self.retry(|r| {
            let mut codes: Vec<(String, i16)> = r
                .ask(version, &request)
                .results_by_topic_v3_and_below
                .iter()
                .map(|t| {
                    (
                        t.name.to_string(),
                        t.results_by_partition[0].partition_error_code,
                    )
                })
                .collect();
            codes.sort_by_key(|(name, _)| list.iter().position(|(t, _)| t == name));
            let codes: Vec<i16> = codes.into_iter().map(|(_, c)| c).collect();
            (codes[0], codes)
        })
        .1
    }

    fn end(&mut self, version: i16, id: &str, producer: (i64, i16), commit: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_committed(commit);
        self.retry(|r| (r.ask(version, &request).error_code, ())).0
    }

    fn produce(
        &mut self,
        id: Option<&str>,
        acks: i16,
        topic: &str,
        partition: i32,
        batch: Bytes,
    ) -> (i16, i64) {
        use produce_request::{PartitionProduceData, TopicProduceData};
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch));
        let topic = TopicProduceData::default()
            .with_name(TopicName(s(topic)))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(acks)
            .with_timeout_ms(5000)
            .with_transactional_id(id.map(|i| TransactionalId(s(i))))
            .with_topic_data(vec![topic]);
        self.retry(|r| {
            let response = r.ask(9, &request);
            let part = &response.responses[0].partition_responses[0];
            (part.error_code, part.base_offset)
        })
    }

    fn txn_offsets(
        &mut self,
        id: &str,
        producer: (i64, i16),
        group: &str,
        member: &str,
        generation: i32,
        topic: &str,
    ) -> i16 {
        use txn_offset_commit_request::{
            TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
        };
        let part = TxnOffsetCommitRequestPartition::default().with_committed_offset(5);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_group_id(GroupId(s(group)))
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_member_id(s(member))
            .with_generation_id(generation)
            .with_topics(vec![topic]);
        self.retry(|r| (r.ask(3, &request).topics[0].partitions[0].error_code, ()))
            .0
    }

    fn add_offsets(&mut self, id: &str, producer: (i64, i16), group: &str) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_group_id(GroupId(s(group)));
        self.retry(|r| (r.ask(3, &request).error_code, ())).0
    }
}

fn batch(producer: (i64, i16), first: i32, count: usize, transactional: bool) -> Bytes {
    let records: Vec<Record> = (0..count)
        .map(|i| Record {
            transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
            producer_id: producer.0,
            producer_epoch: producer.1,
            timestamp_type: TimestampType::Creation,
            offset: i as i64,
            sequence: first + i as i32,
            timestamp: 1000,
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from_static(b"v")),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    RecordBatchEncoder::encode(
        &mut out,
        &records,
        &RecordEncodeOptions {
            version: 2,
            compression: Compression::None,
        },
    )
    .unwrap();
    out.freeze()
}

const NONE: (i64, i16) = (-1, -1);

/// Codes of the transaction coordinator and of partition leaders towards transactional producers.
pub async fn transaction_codes(bootstrap: &str) {
    let t = topic(bootstrap, "raw", 2).await;
    let (id, group) = (unique("tx"), unique("g"));
    let mut raw = Raw::connect(bootstrap);
    raw.find(&id, 1);
    raw.find(&group, 0);
    assert_eq!(raw.init(Some(""), 1000, NONE).0, INVALID_REQUEST);
    assert_eq!(raw.init(Some(&id), 0, NONE).0, INVALID_TRANSACTION_TIMEOUT);
    assert_eq!(
        raw.init(Some(&id), 99_000_000, NONE).0,
        INVALID_TRANSACTION_TIMEOUT
    );
    assert_eq!(
        raw.add(3, &id, (1, 0), &[(&t, 0)]),
        [INVALID_PRODUCER_ID_MAPPING],
        "unknown id"
    );
    let (code, p) = raw.init(Some(&id), 20_000, NONE);
    assert_eq!((code, p.1), (OK, 0));
    assert_eq!(
        raw.end(3, &id, p, true),
        INVALID_TXN_STATE,
        "nothing to commit"
    );
    assert_eq!(
        raw.add(3, &id, (p.0 + 1_000_000, 0), &[(&t, 0)]),
        [INVALID_PRODUCER_ID_MAPPING]
    );
    assert_eq!(raw.add(3, &id, (p.0, 7), &[(&t, 0)]), [PRODUCER_FENCED]);
    assert_eq!(
        raw.add(1, &id, (p.0, 7), &[(&t, 0)]),
        [INVALID_PRODUCER_EPOCH],
        "as older clients know it"
    );
    assert_eq!(
        raw.add(3, &id, p, &[(&t, 0), ("no-such-topic", 0)]),
        [OPERATION_NOT_ATTEMPTED, UNKNOWN_TOPIC_OR_PARTITION]
    );
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 0, 1, true)).0,
        INVALID_TXN_STATE,
        "partition not added"
    );
    assert_eq!(raw.add(3, &id, p, &[(&t, 0)]), [OK]);
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 0, 3, true)),
        (OK, 0)
    );
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 0, 3, true)),
        (OK, 0),
        "duplicate"
    );
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 4, 1, true)).0,
        OUT_OF_ORDER_SEQUENCE_NUMBER
    );
    assert_eq!(
        raw.txn_offsets(&id, p, &group, "", -1, &t),
        INVALID_TXN_STATE,
        "group not added"
    );
    assert_eq!(raw.add_offsets(&id, p, &group), OK);
    assert_eq!(
        raw.txn_offsets(&id, p, &group, "nobody", 3, &t),
        ILLEGAL_GENERATION,
        "no such group yet"
    );
    assert_eq!(
        raw.txn_offsets(&id, p, &group, "", -1, "no-such-topic"),
        UNKNOWN_TOPIC_OR_PARTITION
    );
    assert_eq!(raw.txn_offsets(&id, p, &group, "", -1, &t), OK);
    assert_eq!(
        raw.txn_offsets(&id, p, &group, "nobody", 3, &t),
        UNKNOWN_MEMBER_ID,
        "the group is there now"
    );
    assert_eq!(raw.end(3, &id, p, true), OK);
    assert_eq!(raw.end(3, &id, p, true), OK, "repeated");
    assert_eq!(
        raw.end(3, &id, p, false),
        INVALID_TXN_STATE,
        "it was committed"
    );
    assert_eq!(raw.add(3, &id, p, &[(&t, 0)]), [OK]);
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 3, 1, true)),
        (OK, 4),
        "the marker took offset 3"
    );
    let (code, next) = raw.init(Some(&id), 20_000, NONE);
    assert_eq!((code, next.0), (OK, p.0));
    assert!(next.1 > p.1);
    assert_eq!(raw.end(3, &id, p, true), PRODUCER_FENCED);
    assert_eq!(raw.end(1, &id, p, true), INVALID_PRODUCER_EPOCH);
    assert_eq!(
        raw.produce(Some(&id), -1, &t, 0, batch(p, 4, 1, true)).0,
        INVALID_PRODUCER_EPOCH
    );
    assert_eq!(raw.init(Some(&id), 20_000, p).0, PRODUCER_FENCED);
    let (code, bumped) = raw.init(Some(&id), 20_000, next);
    assert_eq!((code, bumped), (OK, (next.0, next.1 + 1)));
    assert_eq!(
        raw.init(Some(&id), 20_000, next),
        (OK, bumped),
        "repeated bump"
    );
}

/// Codes of Produce, Fetch and ListOffsets.
pub async fn data_codes(bootstrap: &str) {
    // Its records are from 1970: without this, upkeep may remove them in the middle.
    let t = topic_with(bootstrap, "raw", 1, &[("retention.ms", "-1")]).await;
    let mut raw = Raw::connect(bootstrap);
    let plain = batch((-1, -1), -1, 1, false);
    assert_eq!(
        raw.produce(None, 5, &t, 0, plain.clone()).0,
        INVALID_REQUIRED_ACKS
    );
    assert_eq!(
        raw.produce(None, -1, &t, 9, plain.clone()).0,
        UNKNOWN_TOPIC_OR_PARTITION
    );
    assert_eq!(
        raw.produce(None, -1, "no-such-topic", 0, plain.clone()).0,
        UNKNOWN_TOPIC_OR_PARTITION
    );
    let mut damaged = plain.to_vec();
    let at = damaged.len() - 1;
    damaged[at] ^= 1;
    assert_eq!(
        raw.produce(None, -1, &t, 0, damaged.into()).0,
        CORRUPT_MESSAGE
    );
    assert_eq!(
        raw.produce(
            None,
            -1,
            &t,
            0,
            [plain.clone(), plain.clone()].concat().into()
        )
        .0,
        INVALID_RECORD
    );
    assert_eq!(raw.produce(None, 1, &t, 0, plain), (OK, 0));
    let (code, p) = raw.init(None, 0, NONE);
    assert_eq!(code, OK);
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch(p, 17, 1, false)).0,
        OK,
        "an unknown producer may start anywhere"
    );
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch(p, 17, 1, false)),
        (OK, 1)
    );
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch(p, 19, 1, false)).0,
        OUT_OF_ORDER_SEQUENCE_NUMBER
    );
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch((p.0, p.1 + 1), 5, 1, false))
            .0,
        OUT_OF_ORDER_SEQUENCE_NUMBER
    );
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch((p.0, p.1 + 1), 0, 1, false)),
        (OK, 2)
    );
    assert_eq!(
        raw.produce(None, -1, &t, 0, batch(p, 18, 1, false)).0,
        INVALID_PRODUCER_EPOCH
    );

    use fetch_request::{FetchPartition, FetchTopic};
    let mut fetch = |offset: i64, topic: &str, partition: i32, isolation: i8| {
        let part = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20)
            .with_current_leader_epoch(-1)
            .with_log_start_offset(-1);
        let topic = FetchTopic::default()
            .with_topic(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_bytes(1 << 20)
            .with_min_bytes(1)
            .with_isolation_level(isolation)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let response = raw.ask(11, &request);
        let p = response.responses[0].partitions[0].clone();
        (
            p.error_code,
            p.records.map_or(0, |r| r.len()),
            p.high_watermark,
            p.last_stable_offset,
            p.aborted_transactions.map(|a| a.len()),
        )
    };
    let (code, len, high, stable, aborted) = fetch(0, &t, 0, 0);
    assert!(
        (code, high, stable, aborted) == (OK, 3, 3, None) && len > 200,
        "{:?}",
        (code, len, high, stable, aborted)
    );
    assert_eq!(fetch(3, &t, 0, 1), (OK, 0, 3, 3, Some(0)));
    assert_eq!(fetch(4, &t, 0, 0).0, OFFSET_OUT_OF_RANGE);
    assert_eq!(fetch(0, &t, 5, 0).0, UNKNOWN_TOPIC_OR_PARTITION);

    use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
    let mut list = |time: i64| {
        let part = ListOffsetsPartition::default()
            .with_timestamp(time)
            .with_current_leader_epoch(-1);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(s(&t)))
            .with_partitions(vec![part]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_topics(vec![topic]);
        let p = raw.ask(7, &request).topics[0].partitions[0].clone();
        (p.error_code, p.timestamp, p.offset)
    };
    assert_eq!(list(-1), (OK, -1, 3));
    assert_eq!(list(-2), (OK, -1, 0));
    assert_eq!(list(1000), (OK, 1000, 0));
    assert_eq!(list(1001), (OK, -1, -1));
    assert_eq!((list(-3).0, list(-3).1), (OK, 1000));
}

/// Codes of the group coordinator.
pub async fn group_codes(bootstrap: &str) {
    let t = topic(bootstrap, "raw", 1).await;
    let group = unique("g");
    let mut raw = Raw::connect(bootstrap);
    raw.find(&group, 0);
    let g = || GroupId(s(&group));
    let join = |member: &str, session: i32, kind: &str, assignor: &str| {
        let protocol = join_group_request::JoinGroupRequestProtocol::default()
            .with_name(s(assignor))
            .with_metadata(Bytes::from_static(&[0; 12]));
        JoinGroupRequest::default()
            .with_group_id(GroupId(s(&group)))
            .with_session_timeout_ms(session)
            .with_rebalance_timeout_ms(10_000)
            .with_member_id(s(member))
            .with_protocol_type(s(kind))
            .with_protocols(vec![protocol])
    };
    let mut ask_join = |r: &JoinGroupRequest| {
        raw.retry(|raw| {
            let r = raw.ask(5, r);
            (r.error_code, r)
        })
    };
    assert_eq!(
        ask_join(&join("nobody", 10_000, "consumer", "range")).0,
        UNKNOWN_MEMBER_ID
    );
    assert_eq!(
        ask_join(&join("", 99_000_000, "consumer", "range")).0,
        INVALID_SESSION_TIMEOUT
    );
    assert_eq!(
        ask_join(&join("", 10_000, "consumer", "range").with_group_id(GroupId(s("")))).0,
        INVALID_GROUP_ID
    );
    let (code, first) = ask_join(&join("", 10_000, "consumer", "range"));
    assert_eq!((code, first.generation_id), (MEMBER_ID_REQUIRED, -1));
    let me = first.member_id.to_string();
    let (code, joined) = ask_join(&join(&me, 10_000, "consumer", "range"));
    assert_eq!(
        (code, joined.generation_id, joined.leader.as_str()),
        (OK, 1, me.as_str())
    );
    assert_eq!(
        (joined.members.len(), joined.protocol_name.as_deref()),
        (1, Some("range"))
    );
    assert_eq!(
        ask_join(&join("", 10_000, "connect", "range")).0,
        INCONSISTENT_GROUP_PROTOCOL
    );
    assert_eq!(
        ask_join(&join("", 10_000, "consumer", "other")).0,
        INCONSISTENT_GROUP_PROTOCOL
    );

    let sync = |member: &str, generation: i32| {
        SyncGroupRequest::default()
            .with_group_id(g())
            .with_member_id(s(member))
            .with_generation_id(generation)
    };
    assert_eq!(raw.ask(3, &sync("nobody", 1)).error_code, UNKNOWN_MEMBER_ID);
    assert_eq!(raw.ask(3, &sync(&me, 7)).error_code, ILLEGAL_GENERATION);
    let beat = |member: &str, generation: i32| {
        HeartbeatRequest::default()
            .with_group_id(g())
            .with_member_id(s(member))
            .with_generation_id(generation)
    };
    assert_eq!(
        raw.ask(3, &beat(&me, 1)).error_code,
        OK,
        "while the assignment is awaited"
    );
    let mut commit = |member: &str, generation: i32, topic: &str| {
        use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
        let part = OffsetCommitRequestPartition::default().with_committed_offset(1);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = OffsetCommitRequest::default()
            .with_group_id(g())
            .with_member_id(s(member))
            .with_generation_id_or_member_epoch(generation)
            .with_topics(vec![topic]);
        raw.ask(7, &request).topics[0].partitions[0].error_code
    };
    const REBALANCE_IN_PROGRESS: i16 = 27;
    assert_eq!(
        commit(&me, 1, &t),
        REBALANCE_IN_PROGRESS,
        "before the assignment"
    );
    let assignment = sync_group_request::SyncGroupRequestAssignment::default()
        .with_member_id(s(&me))
        .with_assignment(Bytes::from_static(b"mine"));
    let synced = raw.ask(3, &sync(&me, 1).with_assignments(vec![assignment]));
    assert_eq!(
        (synced.error_code, &synced.assignment[..]),
        (OK, &b"mine"[..])
    );
    assert_eq!(
        raw.ask(3, &sync(&me, 1)).assignment,
        synced.assignment,
        "asked again"
    );
    assert_eq!(raw.ask(3, &beat(&me, 2)).error_code, ILLEGAL_GENERATION);
    assert_eq!(raw.ask(3, &beat("nobody", 1)).error_code, UNKNOWN_MEMBER_ID);
    let mut commit = |member: &str, generation: i32, topic: &str| {
        use offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
        let part = OffsetCommitRequestPartition::default().with_committed_offset(1);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = OffsetCommitRequest::default()
            .with_group_id(g())
            .with_member_id(s(member))
            .with_generation_id_or_member_epoch(generation)
            .with_topics(vec![topic]);
        raw.ask(7, &request).topics[0].partitions[0].error_code
    };
    assert_eq!(commit(&me, 1, &t), OK);
    assert_eq!(commit(&me, 1, "no-such-topic"), UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(commit(&me, 0, &t), ILLEGAL_GENERATION);
    assert_eq!(
        commit("", -1, &t),
        UNKNOWN_MEMBER_ID,
        "the group has members"
    );
    let leave = |member: &str| {
        LeaveGroupRequest::default()
            .with_group_id(g())
            .with_members(vec![
                leave_group_request::MemberIdentity::default().with_member_id(s(member)),
            ])
    };
    assert_eq!(
        raw.ask(3, &leave("nobody")).members[0].error_code,
        UNKNOWN_MEMBER_ID
    );
    const NON_EMPTY_GROUP: i16 = 68;
    let delete =
        |group: &str| DeleteGroupsRequest::default().with_groups_names(vec![GroupId(s(group))]);
    assert_eq!(
        raw.ask(1, &delete(&group)).results[0].error_code,
        NON_EMPTY_GROUP
    );
    assert_eq!(raw.ask(3, &leave(&me)).members[0].error_code, OK);
    assert_eq!(raw.ask(3, &beat(&me, 1)).error_code, UNKNOWN_MEMBER_ID);
    let described = raw.ask(4, &DescribeGroupsRequest::default().with_groups(vec![g()]));
    assert_eq!(
        (
            described.groups[0].error_code,
            described.groups[0].group_state.as_str()
        ),
        (OK, "Empty")
    );
    assert_eq!(raw.ask(1, &delete(&group)).results[0].error_code, OK);
    assert_eq!(
        raw.ask(1, &delete(&group)).results[0].error_code,
        GROUP_ID_NOT_FOUND
    );
}
