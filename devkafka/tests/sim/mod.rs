//! A Core with a hand-moved clock and storage that can be made to die.

#![allow(dead_code)]

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use finlake_devkafka::storage::{MemoryStorage, Storage, StorageError};
use finlake_devkafka::wire::{Request, Response};
use finlake_devkafka::{Client, Core, CoreConfig, Reply};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, NO_PARTITION_LEADER_EPOCH, Record, RecordBatchDecoder, RecordBatchEncoder,
    RecordEncodeOptions, TimestampType,
};

pub const OFFSET_OUT_OF_RANGE: i16 = 1;
pub const MESSAGE_TOO_LARGE: i16 = 10;
pub const INVALID_TIMESTAMP: i16 = 32;
pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
pub const INVALID_PRODUCER_EPOCH: i16 = 47;
pub const INVALID_RECORD: i16 = 87;

/// Storage that fails for good after a number of changes.
struct Mortal {
    files: Arc<Mutex<MemoryStorage>>,
    left: Arc<Mutex<usize>>,
}

impl Mortal {
    fn change<T>(
        &self,
        act: impl FnOnce(&mut MemoryStorage) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let mut left = self.left.lock().unwrap();
        if *left == 0 {
            return Err(StorageError::new(
                "change",
                "dead",
                std::io::Error::other("storage is dead"),
            ));
        }
        *left -= 1;
        act(&mut self.files.lock().unwrap())
    }
}

impl Storage for Mortal {
    fn durable(&self) -> bool {
        self.files.lock().unwrap().durable()
    }
    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        self.files.lock().unwrap().list(prefix)
    }
    fn len(&mut self, name: &str) -> Result<u64, StorageError> {
        self.files.lock().unwrap().len(name)
    }
    fn append(&mut self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        self.change(|f| f.append(name, parts))
    }
    fn read(&mut self, name: &str, pos: u64, len: usize) -> Result<Bytes, StorageError> {
        self.files.lock().unwrap().read(name, pos, len)
    }
    fn truncate(&mut self, name: &str, len: u64) -> Result<(), StorageError> {
        self.change(|f| f.truncate(name, len))
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.change(|f| f.replace(name, bytes))
    }
    fn remove(&mut self, name: &str) -> Result<(), StorageError> {
        self.change(|f| f.remove(name))
    }
}

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub offset: i64,
    pub timestamp: i64,
    pub key: String,
    pub value: Option<String>,
}

pub struct Sim {
    core: Core,
    files: Arc<Mutex<MemoryStorage>>,
    left: Arc<Mutex<usize>>,
    pub now: i64,
    tickets: u64,
}

fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn ok(code: i16) -> Result<(), i16> {
    if code == 0 { Ok(()) } else { Err(code) }
}

fn config(seed: u64) -> CoreConfig {
    CoreConfig {
        seed,
        maintenance_interval_ms: 1,
        ..CoreConfig::default()
    }
}

impl Sim {
    pub fn new() -> Sim {
        Sim::on(MemoryStorage::journaled())
    }

    pub fn on(files: MemoryStorage) -> Sim {
        let files = Arc::new(Mutex::new(files));
        let left = Arc::new(Mutex::new(usize::MAX));
        let now = 1_700_000_000_000;
        let storage = Mortal {
            files: files.clone(),
            left: left.clone(),
        };
        let core = Core::open(config(0), Box::new(storage), now).unwrap();
        Sim {
            core,
            files,
            left,
            now,
            tickets: 0,
        }
    }

    /// Drops the Core and opens another on what its storage holds.
    pub fn reopen(&mut self) {
        *self.left.lock().unwrap() = usize::MAX;
        let storage = Mortal {
            files: self.files.clone(),
            left: self.left.clone(),
        };
        self.core = Core::open(config(self.tickets), Box::new(storage), self.now).unwrap();
    }

    pub fn die_after(&mut self, changes: usize) {
        *self.left.lock().unwrap() = changes;
    }

    pub fn files(&self) -> MemoryStorage {
        self.files.lock().unwrap().clone()
    }

    pub fn segments(&self, topic: &str) -> Vec<String> {
        self.files().list(&format!("topics/{topic}.")).unwrap()
    }

    pub fn bytes(&self, topic: &str) -> u64 {
        let mut files = self.files();
        self.segments(topic)
            .iter()
            .map(|n| files.len(n).unwrap())
            .sum()
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: i64) {
        self.now += ms;
        self.core.tick(self.now);
        self.core.take_replies();
    }

    pub fn ask(&mut self, version: i16, request: Request) -> Response {
        self.tickets += 1;
        self.core
            .handle(self.tickets, &Client::default(), version, request, self.now);
        for (ticket, reply) in self.core.take_replies() {
            if let Reply::Send(response) = reply
                && ticket == self.tickets
            {
                return *response;
            }
        }
        panic!("no reply at once");
    }

    /// Sends a request whose reply may come later; returns its ticket.
    pub fn post(&mut self, version: i16, request: Request) -> u64 {
        self.tickets += 1;
        self.core
            .handle(self.tickets, &Client::default(), version, request, self.now);
        self.tickets
    }

    /// What has come out since the last call.
    pub fn replies(&mut self) -> Vec<(u64, Response)> {
        let sent = self.core.take_replies();
        sent.into_iter()
            .filter_map(|(t, r)| {
                if let Reply::Send(r) = r {
                    Some((t, *r))
                } else {
                    None
                }
            })
            .collect()
    }

    pub fn tick(&mut self, ms: i64) {
        self.now += ms;
        self.core.tick(self.now);
    }

    pub fn next_deadline(&self) -> i64 {
        self.core.next_deadline()
    }

    pub fn with(config: CoreConfig) -> Sim {
        let mut sim = Sim::new();
        let storage = Mortal {
            files: sim.files.clone(),
            left: sim.left.clone(),
        };
        sim.core = Core::open(config, Box::new(storage), sim.now).unwrap();
        sim
    }

    pub fn create(&mut self, topic: &str, partitions: i32, configs: &[(&str, &str)]) {
        use create_topics_request::{CreatableTopic, CreatableTopicConfig};
        let configs = configs.iter().map(|(k, v)| {
            CreatableTopicConfig::default()
                .with_name(s(k))
                .with_value(Some(s(v)))
        });
        let topic = CreatableTopic::default()
            .with_name(TopicName(s(topic)))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
        let request =
            CreateTopicsRequest::default().with_topics(vec![topic.with_configs(configs.collect())]);
        let Response::CreateTopics(r) = self.ask(7, Request::CreateTopics(request)) else {
            panic!()
        };
        assert_eq!(r.topics[0].error_code, 0, "{:?}", r.topics[0].error_message);
    }

    pub fn producer(&mut self, id: Option<&str>) -> Result<(i64, i16), i16> {
        let mut request = InitProducerIdRequest::default()
            .with_transactional_id(id.map(|i| TransactionalId(s(i))))
            .with_transaction_timeout_ms(10_000);
        request.producer_id = ProducerId(-1);
        request.producer_epoch = -1;
        let Response::InitProducerId(r) = self.ask(4, Request::InitProducerId(request)) else {
            panic!()
        };
        ok(r.error_code).map(|()| (r.producer_id.0, r.producer_epoch))
    }

    pub fn produce(&mut self, topic: &str, partition: i32, batch: Bytes) -> Result<i64, i16> {
        self.send(None, topic, partition, batch)
    }

    pub fn produce_in(
        &mut self,
        id: &str,
        topic: &str,
        partition: i32,
        batch: Bytes,
    ) -> Result<i64, i16> {
        self.send(Some(id), topic, partition, batch)
    }

    fn send(
        &mut self,
        id: Option<&str>,
        topic: &str,
        partition: i32,
        batch: Bytes,
    ) -> Result<i64, i16> {
        use produce_request::{PartitionProduceData, TopicProduceData};
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch));
        let topic = TopicProduceData::default()
            .with_name(TopicName(s(topic)))
            .with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_acks(-1)
            .with_transactional_id(id.map(|i| TransactionalId(s(i))))
            .with_topic_data(vec![topic]);
        let Response::Produce(r) = self.ask(9, Request::Produce(request)) else {
            panic!()
        };
        let part = &r.responses[0].partition_responses[0];
        ok(part.error_code).map(|()| part.base_offset)
    }

    pub fn add_partitions(
        &mut self,
        id: &str,
        pid: i64,
        epoch: i16,
        list: &[(&str, i32)],
    ) -> Result<(), i16> {
        use add_partitions_to_txn_request::AddPartitionsToTxnTopic;
        let topics = list.iter().map(|(t, p)| {
            AddPartitionsToTxnTopic::default()
                .with_name(TopicName(s(t)))
                .with_partitions(vec![*p])
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(s(id)))
            .with_v3_and_below_producer_id(ProducerId(pid))
            .with_v3_and_below_producer_epoch(epoch)
            .with_v3_and_below_topics(topics.collect());
        let Response::AddPartitionsToTxn(r) = self.ask(3, Request::AddPartitionsToTxn(request))
        else {
            panic!()
        };
        ok(r.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code)
    }

    pub fn add_offsets(&mut self, id: &str, pid: i64, epoch: i16, group: &str) -> Result<(), i16> {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_producer_id(ProducerId(pid))
            .with_producer_epoch(epoch)
            .with_group_id(GroupId(s(group)));
        let Response::AddOffsetsToTxn(r) = self.ask(3, Request::AddOffsetsToTxn(request)) else {
            panic!()
        };
        ok(r.error_code)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn txn_offsets(
        &mut self,
        id: &str,
        pid: i64,
        epoch: i16,
        group: &str,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<(), i16> {
        use txn_offset_commit_request::{
            TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
        };
        let part = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_group_id(GroupId(s(group)))
            .with_producer_id(ProducerId(pid))
            .with_producer_epoch(epoch)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        let Response::TxnOffsetCommit(r) = self.ask(3, Request::TxnOffsetCommit(request)) else {
            panic!()
        };
        ok(r.topics[0].partitions[0].error_code)
    }

    pub fn end_txn(&mut self, id: &str, pid: i64, epoch: i16, commit: bool) -> Result<(), i16> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(s(id)))
            .with_producer_id(ProducerId(pid))
            .with_producer_epoch(epoch)
            .with_committed(commit);
        let Response::EndTxn(r) = self.ask(3, Request::EndTxn(request)) else {
            panic!()
        };
        ok(r.error_code)
    }

    pub fn committed(&mut self, group: &str, topic: &str, partition: i32) -> i64 {
        use offset_fetch_request::OffsetFetchRequestTopic;
        let topic = OffsetFetchRequestTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partition_indexes(vec![partition]);
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(s(group)))
            .with_topics(Some(vec![topic]))
            .with_require_stable(true);
        let Response::OffsetFetch(r) = self.ask(7, Request::OffsetFetch(request)) else {
            panic!()
        };
        assert_eq!(r.topics[0].partitions[0].error_code, 0);
        r.topics[0].partitions[0].committed_offset
    }

    fn list_offset(&mut self, topic: &str, partition: i32, query: i64, isolation: i8) -> i64 {
        use list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
        let part = ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_timestamp(query);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = ListOffsetsRequest::default()
            .with_isolation_level(isolation)
            .with_topics(vec![topic]);
        let Response::ListOffsets(r) = self.ask(5, Request::ListOffsets(request)) else {
            panic!()
        };
        assert_eq!(r.topics[0].partitions[0].error_code, 0);
        r.topics[0].partitions[0].offset
    }

    pub fn start(&mut self, topic: &str, partition: i32) -> i64 {
        self.list_offset(topic, partition, -2, 0)
    }

    pub fn end(&mut self, topic: &str, partition: i32) -> i64 {
        self.list_offset(topic, partition, -1, 0)
    }

    pub fn stable(&mut self, topic: &str, partition: i32) -> i64 {
        self.list_offset(topic, partition, -1, 1)
    }

    pub fn delete_records(&mut self, topic: &str, partition: i32, offset: i64) -> Result<i64, i16> {
        use delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
        let part = DeleteRecordsPartition::default()
            .with_partition_index(partition)
            .with_offset(offset);
        let topic = DeleteRecordsTopic::default()
            .with_name(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let Response::DeleteRecords(r) = self.ask(
            2,
            Request::DeleteRecords(DeleteRecordsRequest::default().with_topics(vec![topic])),
        ) else {
            panic!()
        };
        let part = &r.topics[0].partitions[0];
        ok(part.error_code).map(|()| part.low_watermark)
    }

    /// All data records of a partition, as a client of that isolation sees them.
    pub fn read(&mut self, topic: &str, partition: i32, committed_only: bool) -> Vec<Read> {
        let mut out = Vec::new();
        let mut from = self.start(topic, partition);
        let upto = if committed_only {
            self.stable(topic, partition)
        } else {
            self.end(topic, partition)
        };
        while from < upto {
            let (records, aborted) = self.fetch(topic, partition, from, committed_only);
            assert!(
                !records.is_empty() || from >= upto,
                "no progress at {from} of {upto}"
            );
            if records.is_empty() {
                break;
            }
            let mut bytes = records;
            let mut skip: std::collections::BTreeSet<i64> = Default::default();
            let mut pending = aborted;
            while !bytes.is_empty() {
                // A batch at a time: its last offset says where to go on, whatever records it has left.
                let len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
                let mut batch = bytes.split_to(len);
                let base = i64::from_be_bytes(batch[..8].try_into().unwrap());
                let last = base + i64::from(i32::from_be_bytes(batch[23..27].try_into().unwrap()));
                // As clients do: the batch's own time stands for all of its records.
                let append_time = (batch[22] & 8 != 0)
                    .then(|| i64::from_be_bytes(batch[35..43].try_into().unwrap()));
                for r in RecordBatchDecoder::decode(&mut batch).unwrap().records {
                    pending.retain(|(pid, first)| {
                        if *first <= r.offset {
                            skip.insert(*pid);
                            false
                        } else {
                            true
                        }
                    });
                    if r.control {
                        skip.remove(&r.producer_id);
                    } else if r.offset >= from
                        && !(r.transactional && committed_only && skip.contains(&r.producer_id))
                    {
                        let text = |b: Bytes| String::from_utf8(b.to_vec()).unwrap();
                        out.push(Read {
                            offset: r.offset,
                            timestamp: append_time.unwrap_or(r.timestamp),
                            key: r.key.map(text).unwrap_or_default(),
                            value: r.value.map(text),
                        });
                    }
                }
                from = last + 1;
            }
        }
        out
    }

    fn fetch(
        &mut self,
        topic: &str,
        partition: i32,
        from: i64,
        committed_only: bool,
    ) -> (Bytes, Vec<(i64, i64)>) {
        use fetch_request::{FetchPartition, FetchTopic};
        let part = FetchPartition::default()
            .with_partition(partition)
            .with_fetch_offset(from)
            .with_partition_max_bytes(1500);
        let topic = FetchTopic::default()
            .with_topic(TopicName(s(topic)))
            .with_partitions(vec![part]);
        let request = FetchRequest::default()
            .with_max_bytes(1 << 20)
            .with_isolation_level(i8::from(committed_only))
            .with_topics(vec![topic]);
        let Response::Fetch(r) = self.ask(11, Request::Fetch(request)) else {
            panic!()
        };
        let data = &r.responses[0].partitions[0];
        assert_eq!(data.error_code, 0);
        let aborted = data.aborted_transactions.clone().unwrap_or_default();
        (
            data.records.clone().unwrap_or_default(),
            aborted
                .iter()
                .map(|a| (a.producer_id.0, a.first_offset))
                .collect(),
        )
    }

    pub fn values(&mut self, topic: &str, partition: i32, committed_only: bool) -> Vec<String> {
        self.read(topic, partition, committed_only)
            .into_iter()
            .filter_map(|r| r.value)
            .collect()
    }
}

type Kv<'a> = (&'a str, Option<&'a str>, i64);

pub fn plain_batch(records: &[Kv<'_>]) -> Bytes {
    encode(-1, -1, -1, records, false, Compression::None)
}

pub fn compressed_batch(records: &[Kv<'_>], codec: i16) -> Bytes {
    let codecs = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];
    encode(-1, -1, -1, records, false, codecs[codec as usize])
}

pub fn records_batch(
    pid: i64,
    epoch: i16,
    first: i32,
    records: &[Kv<'_>],
    transactional: bool,
) -> Bytes {
    encode(pid, epoch, first, records, transactional, Compression::None)
}

pub fn producer_batch(
    pid: i64,
    epoch: i16,
    first: i32,
    count: usize,
    transactional: bool,
) -> Bytes {
    encode(
        pid,
        epoch,
        first,
        &vec![("k", Some("v"), 0); count],
        transactional,
        Compression::None,
    )
}

fn encode(
    pid: i64,
    epoch: i16,
    first: i32,
    records: &[Kv<'_>],
    transactional: bool,
    compression: Compression,
) -> Bytes {
    let bytes = |t: &str| Bytes::copy_from_slice(t.as_bytes());
    let records: Vec<Record> = records
        .iter()
        .enumerate()
        .map(|(i, (key, value, timestamp))| Record {
            transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: NO_PARTITION_LEADER_EPOCH,
            producer_id: pid,
            producer_epoch: epoch,
            timestamp_type: TimestampType::Creation,
            offset: i as i64,
            sequence: first + i as i32,
            timestamp: *timestamp,
            key: Some(bytes(key)),
            value: value.map(bytes),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    RecordBatchEncoder::encode(
        &mut out,
        &records,
        &RecordEncodeOptions {
            version: 2,
            compression,
        },
    )
    .unwrap();
    out.freeze()
}
