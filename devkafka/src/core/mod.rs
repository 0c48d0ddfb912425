//! The broker as a pure state machine: requests, time and storage go in, replies come out.
//!
//! [`Core::handle`] takes a decoded request under a ticket of the caller's choice; sooner or later a
//! [`Reply`] with that ticket comes out of [`Core::take_replies`] (later for a Fetch that waits, a
//! JoinGroup, a SyncGroup). [`Core::tick`] lets time pass; [`Core::next_deadline`] says when it is
//! next needed. Nothing in here reads a clock, opens a file or socket, or depends on hash order, so
//! a simulator can drive it from a seed. It must never block.

pub mod batch;
pub mod config;
pub mod log;

mod admin;
mod compact;
mod describe;
mod fetch;
mod group;
mod group_api;
mod journal;
mod list_offsets;
mod metadata;
mod offsets;
mod offsets_api;
mod produce;
mod producer;
mod records;
mod retention;
mod state;
mod topics;
mod txn;
mod txn_api;

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::error::ResponseError;
use kafka_protocol::protocol::StrBytes;

use journal::{Journal, Record};
pub use journal::{frame, next_frame};
pub use metadata::api_versions;

use crate::storage::{Storage, StorageError};
use crate::wire::{Request, Response};

/// Identifies a request between [`Core::handle`] and its reply. The caller gives each one out once.
pub type Ticket = u64;

/// The broker's only node id.
pub const NODE_ID: i32 = 1;

/// What leaves the core.
#[derive(Debug)]
pub enum Reply {
    Send(Box<Response>),
    /// The client asked for no answer (Produce with acks = 0).
    Nothing,
}

/// Settings of a broker. Times are milliseconds.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// The address that clients are told.
    pub host: String,
    pub port: u16,
    /// Source of all ids that look random (topics, members, cluster).
    pub seed: u64,
    /// How long the first member of an empty group waits for others.
    pub initial_rebalance_delay_ms: u64,
    /// How often transactions are checked for their timeout.
    pub txn_scan_interval_ms: u64,
    /// How often retention and compaction run.
    pub maintenance_interval_ms: u64,
    /// Create topics that are asked for and missing.
    pub auto_create_topics: bool,
    /// Partitions of topics created without a count.
    pub default_partitions: i32,
}

impl Default for CoreConfig {
    fn default() -> CoreConfig {
        CoreConfig {
            host: "127.0.0.1".to_owned(),
            port: 9092,
            seed: 0,
            initial_rebalance_delay_ms: 0,
            txn_scan_interval_ms: 1_000,
            maintenance_interval_ms: 5_000,
            auto_create_topics: false,
            default_partitions: 1,
        }
    }
}

/// Who sent a request.
#[derive(Debug, Clone, Default)]
pub struct Client {
    pub id: String,
    pub host: String,
}

/// What a request handler decided.
enum Outcome {
    Reply(Response),
    Nothing,
    /// The ticket was kept; the reply follows.
    Parked,
}

/// The broker.
pub struct Core {
    config: CoreConfig,
    storage: Box<dyn Storage>,
    journal: Journal,
    rng: state::Rng,
    cluster_id: String,
    topics: BTreeMap<String, topics::Topic>,
    groups: BTreeMap<String, group::Group>,
    txns: BTreeMap<String, txn::Txn>,
    next_producer_id: i64,
    reserved_producer_ids: i64,
    offset_sequence: u64,
    replies: Vec<(Ticket, Reply)>,
    parked: BTreeMap<Ticket, fetch::ParkedFetch>,
    fetch_deadlines: BTreeSet<(i64, Ticket)>,
    woken: BTreeSet<Ticket>,
    group_deadline: i64,
    next_txn_scan: i64,
    next_maintenance: i64,
}

impl Core {
    /// Opens a broker on storage, replaying whatever an earlier one left there. `now`:
    /// milliseconds since the epoch, as everywhere.
    pub fn open(
        config: CoreConfig,
        mut storage: Box<dyn Storage>,
        now: i64,
    ) -> Result<Core, StorageError> {
        let (journal, records) = Journal::open(storage.as_mut())?;
        let seed = config.seed;
        let mut core = Core {
            next_txn_scan: now + config.txn_scan_interval_ms as i64,
            next_maintenance: now + config.maintenance_interval_ms as i64,
            config,
            storage,
            journal,
            rng: state::Rng::new(seed),
            cluster_id: String::new(),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            txns: BTreeMap::new(),
            next_producer_id: 0,
            reserved_producer_ids: 0,
            offset_sequence: 0,
            replies: Vec::new(),
            parked: BTreeMap::new(),
            fetch_deadlines: BTreeSet::new(),
            woken: BTreeSet::new(),
            group_deadline: i64::MAX,
        };
        core.recover(records, now)?;
        Ok(core)
    }

    /// The id of this cluster; it stays with the storage.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Changes the port that clients are told.
    pub fn set_port(&mut self, port: u16) {
        self.config.port = port;
    }

    /// Takes a request.
    pub fn handle(
        &mut self,
        ticket: Ticket,
        client: &Client,
        version: i16,
        request: Request,
        now: i64,
    ) {
        let outcome = match request {
            Request::Produce(r) => self.produce(r, now),
            Request::Fetch(r) => self.fetch(ticket, r, now),
            Request::ListOffsets(r) => self.list_offsets(r),
            Request::Metadata(r) => self.metadata(r, version, now),
            Request::OffsetCommit(r) => self.offset_commit(r, now),
            Request::OffsetFetch(r) => self.offset_fetch(r, version),
            Request::FindCoordinator(r) => self.find_coordinator(r, version),
            Request::JoinGroup(r) => self.join_group(ticket, client, version, r, now),
            Request::Heartbeat(r) => self.heartbeat(r, now),
            Request::LeaveGroup(r) => self.leave_group(r, version, now),
            Request::SyncGroup(r) => self.sync_group(ticket, r, now),
            Request::DescribeGroups(r) => self.describe_groups(r),
            Request::ListGroups(r) => self.list_groups(r),
            Request::ApiVersions(_) => {
                Outcome::Reply(Response::ApiVersions(metadata::api_versions(0)))
            }
            Request::CreateTopics(r) => self.create_topics(r, version, now),
            Request::DeleteTopics(r) => self.delete_topics(r, version),
            Request::DeleteRecords(r) => self.delete_records(r, now),
            Request::InitProducerId(r) => self.init_producer_id(r, now),
            Request::OffsetForLeaderEpoch(r) => self.offset_for_leader_epoch(r),
            Request::AddPartitionsToTxn(r) => self.add_partitions_to_txn(r, version, now),
            Request::AddOffsetsToTxn(r) => self.add_offsets_to_txn(r, version, now),
            Request::EndTxn(r) => self.end_txn(r, version, now),
            Request::TxnOffsetCommit(r) => self.txn_offset_commit(r, now),
            Request::DescribeConfigs(r) => self.describe_configs(r),
            Request::AlterConfigs(r) => self.alter_configs(r),
            Request::DescribeLogDirs(r) => self.describe_log_dirs(r),
            Request::CreatePartitions(r) => self.create_partitions(r, now),
            Request::DeleteGroups(r) => self.delete_groups(r),
            Request::IncrementalAlterConfigs(r) => self.incremental_alter_configs(r),
            Request::OffsetDelete(r) => self.offset_delete(r),
            Request::DescribeCluster(r) => self.describe_cluster(r),
            Request::DescribeProducers(r) => self.describe_producers(r),
            Request::DescribeTransactions(r) => self.describe_transactions(r),
            Request::ListTransactions(r) => self.list_transactions(r, now),
        };
        match outcome {
            Outcome::Reply(response) => self.send(ticket, response),
            Outcome::Nothing => self.replies.push((ticket, Reply::Nothing)),
            Outcome::Parked => {}
        }
        self.settle(now);
    }

    /// Lets time pass: waits end, sessions expire, transactions time out, logs are cleaned.
    pub fn tick(&mut self, now: i64) {
        self.expire_fetches(now);
        if now >= self.group_deadline {
            self.tick_groups(now);
        }
        if now >= self.next_txn_scan {
            self.next_txn_scan = now + (self.config.txn_scan_interval_ms as i64).max(1);
            self.abort_timed_out(now);
        }
        if now >= self.next_maintenance {
            self.next_maintenance = now + (self.config.maintenance_interval_ms as i64).max(1);
            self.maintain(now);
        }
        self.settle(now);
    }

    /// When [`Core::tick`] is next needed.
    pub fn next_deadline(&self) -> i64 {
        let fetch = self.fetch_deadlines.first().map_or(i64::MAX, |(at, _)| *at);
        fetch
            .min(self.group_deadline)
            .min(self.next_txn_scan)
            .min(self.next_maintenance)
    }

    /// The replies that have become due, in order.
    pub fn take_replies(&mut self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut self.replies)
    }

    fn send(&mut self, ticket: Ticket, response: Response) {
        self.replies.push((ticket, Reply::Send(Box::new(response))));
    }

    /// Writes a change to the journal and applies it.
    fn record(&mut self, record: Record) -> Result<(), StorageError> {
        self.journal.write(self.storage.as_mut(), &record)?;
        self.apply(record);
        Ok(())
    }

    fn settle(&mut self, now: i64) {
        self.wake_fetches(now);
        if self.journal.wants_snapshot() {
            let records = self.snapshot();
            if let Err(error) = self.journal.snapshot(self.storage.as_mut(), &records) {
                tracing::error!(%error, "journal snapshot failed; the journal stays as it is");
            }
        }
    }
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

/// The code of a result, 0 for success.
fn result_code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, |e| e.code())
}

fn text(s: impl Into<String>) -> StrBytes {
    StrBytes::from_string(s.into())
}

/// A storage failure as the client sees it.
fn storage_failed(error: StorageError) -> ResponseError {
    tracing::error!(%error, "storage failed");
    ResponseError::KafkaStorageError
}
