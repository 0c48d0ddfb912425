//! OffsetCommit, OffsetFetch, OffsetDelete, TxnOffsetCommit: the requests on a group's offsets.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse, TopicName, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::group::{Caller, Group};
use super::journal::Record;
use super::offsets::OffsetEntry;
use super::{Core, Outcome, code, result_code, storage_failed, text};
use crate::wire::Response;

/// Longest metadata string of a committed offset, as Kafka's default.
const MAX_METADATA: usize = 4096;

/// One partition's offset in an answer, before it takes the shape of a version.
struct Found {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: i16,
}

impl Core {
    pub(super) fn offset_commit(&mut self, request: OffsetCommitRequest, now: i64) -> Outcome {
        let id = request.group_id.0.to_string();
        let caller = Caller {
            member_id: &request.member_id,
            instance_id: request.group_instance_id.as_deref(),
            generation: request.generation_id_or_member_epoch,
        };
        let allowed = if id.is_empty() {
            Err(ResponseError::InvalidGroupId)
        } else {
            match self.groups.get_mut(&id) {
                Some(group) => group.may_commit(&caller, now),
                None if caller.generation < 0 => Ok(()),
                None => Err(ResponseError::IllegalGeneration),
            }
        };
        let mut response = OffsetCommitResponse::default();
        let mut entries = Vec::new();
        for topic in request.topics {
            let mut out = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
            for p in topic.partitions {
                let metadata = p
                    .committed_metadata
                    .map(|m| m.to_string())
                    .unwrap_or_default();
                let error = self.commit_error(allowed, &topic.name, p.partition_index, &metadata);
                out.partitions.push(
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(p.partition_index)
                        .with_error_code(error),
                );
                if error == 0 {
                    entries.push(OffsetEntry {
                        topic: topic.name.to_string(),
                        partition: p.partition_index,
                        offset: p.committed_offset,
                        leader_epoch: p.committed_leader_epoch,
                        metadata,
                    });
                }
            }
            response.topics.push(out);
        }
        if !entries.is_empty()
            && let Err(error) = self.record(Record::Offsets {
                group: id,
                offsets: entries,
            })
        {
            let error = code(storage_failed(error));
            let parts = response.topics.iter_mut().flat_map(|t| &mut t.partitions);
            parts.for_each(|p| p.error_code = error);
        }
        self.refresh_group_deadline();
        Outcome::Reply(Response::OffsetCommit(response))
    }

    fn commit_error(
        &self,
        allowed: Result<(), ResponseError>,
        topic: &str,
        partition: i32,
        metadata: &str,
    ) -> i16 {
        match allowed {
            Err(error) => code(error),
            Ok(()) if !self.partition_exists(topic, partition) => {
                code(ResponseError::UnknownTopicOrPartition)
            }
            Ok(()) if metadata.len() > MAX_METADATA => code(ResponseError::OffsetMetadataTooLarge),
            Ok(()) => 0,
        }
    }

    pub(super) fn txn_offset_commit(
        &mut self,
        request: TxnOffsetCommitRequest,
        now: i64,
    ) -> Outcome {
        let id = request.group_id.0.to_string();
        let producer_id = request.producer_id.0;
        let caller = Caller {
            member_id: &request.member_id,
            instance_id: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let mut allowed = match self.txns.get(request.transactional_id.as_str()) {
            None => Err(ResponseError::InvalidProducerIdMapping),
            Some(txn) => txn.may_commit_offsets(producer_id, request.producer_epoch, &id),
        };
        if allowed.is_ok() {
            allowed = match self.groups.get_mut(&id) {
                Some(group) => group.may_commit_in_txn(&caller, now),
                None if caller.generation < 0 => Ok(()),
                None => Err(ResponseError::IllegalGeneration),
            };
        }
        let mut response = TxnOffsetCommitResponse::default();
        let mut entries = Vec::new();
        for topic in request.topics {
            let mut out = TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone());
            for p in topic.partitions {
                let metadata = p
                    .committed_metadata
                    .map(|m| m.to_string())
                    .unwrap_or_default();
                let error = self.commit_error(allowed, &topic.name, p.partition_index, &metadata);
                out.partitions.push(
                    TxnOffsetCommitResponsePartition::default()
                        .with_partition_index(p.partition_index)
                        .with_error_code(error),
                );
                if error == 0 {
                    entries.push(OffsetEntry {
                        topic: topic.name.to_string(),
                        partition: p.partition_index,
                        offset: p.committed_offset,
                        leader_epoch: p.committed_leader_epoch,
                        metadata,
                    });
                }
            }
            response.topics.push(out);
        }
        if !entries.is_empty()
            && let Err(error) = self.record(Record::PendingOffsets {
                producer_id,
                group: id,
                offsets: entries,
            })
        {
            let error = code(storage_failed(error));
            let parts = response.topics.iter_mut().flat_map(|t| &mut t.partitions);
            parts.for_each(|p| p.error_code = error);
        }
        Outcome::Reply(Response::TxnOffsetCommit(response))
    }

    pub(super) fn offset_fetch(&mut self, request: OffsetFetchRequest, version: i16) -> Outcome {
        let stable = request.require_stable;
        let mut response = OffsetFetchResponse::default();
        if version < 8 {
            let group = self.groups.get(request.group_id.as_str());
            let asked = request.topics.map(|topics| {
                topics
                    .into_iter()
                    .map(|t| (t.name, t.partition_indexes))
                    .collect::<Vec<_>>()
            });
            for (name, found) in lookup(group, asked, stable) {
                let part = |f: Found| {
                    OffsetFetchResponsePartition::default()
                        .with_partition_index(f.partition)
                        .with_committed_offset(f.offset)
                        .with_committed_leader_epoch(f.leader_epoch)
                        .with_metadata(Some(text(f.metadata)))
                        .with_error_code(f.error)
                };
                let partitions = found.into_iter().map(part).collect();
                response.topics.push(
                    OffsetFetchResponseTopic::default()
                        .with_name(name)
                        .with_partitions(partitions),
                );
            }
        } else {
            for asked in request.groups {
                let group = self.groups.get(asked.group_id.as_str());
                let topics = asked.topics.map(|topics| {
                    topics
                        .into_iter()
                        .map(|t| (t.name, t.partition_indexes))
                        .collect::<Vec<_>>()
                });
                let mut out =
                    OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone());
                for (name, found) in lookup(group, topics, stable) {
                    let part = |f: Found| {
                        OffsetFetchResponsePartitions::default()
                            .with_partition_index(f.partition)
                            .with_committed_offset(f.offset)
                            .with_committed_leader_epoch(f.leader_epoch)
                            .with_metadata(Some(text(f.metadata)))
                            .with_error_code(f.error)
                    };
                    let partitions = found.into_iter().map(part).collect();
                    out.topics.push(
                        OffsetFetchResponseTopics::default()
                            .with_name(name)
                            .with_partitions(partitions),
                    );
                }
                response.groups.push(out);
            }
        }
        Outcome::Reply(Response::OffsetFetch(response))
    }

    pub(super) fn offset_delete(&mut self, request: OffsetDeleteRequest) -> Outcome {
        let id = request.group_id.0.to_string();
        let mut response = OffsetDeleteResponse::default();
        let Some(group) = self.groups.get(&id) else {
            response.error_code = code(ResponseError::GroupIdNotFound);
            return Outcome::Reply(Response::OffsetDelete(response));
        };
        let active = group.has_members();
        let mut gone = Vec::new();
        for topic in request.topics {
            let mut out = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
            for p in topic.partitions {
                let index = p.partition_index;
                let result = if !self.partition_exists(&topic.name, index) {
                    Err(ResponseError::UnknownTopicOrPartition)
                } else if active {
                    Err(ResponseError::GroupSubscribedToTopic)
                } else {
                    gone.push((topic.name.to_string(), index));
                    Ok(())
                };
                out.partitions.push(
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(index)
                        .with_error_code(result_code(&result)),
                );
            }
            response.topics.push(out);
        }
        if !gone.is_empty()
            && let Err(error) = self.record(Record::OffsetsDeleted {
                group: id,
                partitions: gone,
            })
        {
            response.error_code = code(storage_failed(error));
        }
        Outcome::Reply(Response::OffsetDelete(response))
    }
}

/// The offsets asked for (None: all that there are), topic by topic.
fn lookup(
    group: Option<&Group>,
    asked: Option<Vec<(TopicName, Vec<i32>)>>,
    stable: bool,
) -> Vec<(TopicName, Vec<Found>)> {
    let asked = asked.unwrap_or_else(|| {
        let mut all: Vec<(TopicName, Vec<i32>)> = Vec::new();
        for (topic, partition) in group.map(|g| g.offsets.partitions()).unwrap_or_default() {
            match all.last_mut() {
                Some((name, list)) if name.as_str() == topic => list.push(partition),
                _ => all.push((TopicName(text(topic)), vec![partition])),
            }
        }
        all
    });
    let find = |name: &TopicName, partition: i32| {
        let none = Found {
            partition,
            offset: -1,
            leader_epoch: -1,
            metadata: String::new(),
            error: 0,
        };
        let Some(group) = group else { return none };
        if stable && group.offsets.unstable(name, partition) {
            return Found {
                error: code(ResponseError::UnstableOffsetCommit),
                ..none
            };
        }
        match group.offsets.get(name, partition) {
            Some(c) => Found {
                offset: c.offset,
                leader_epoch: c.leader_epoch,
                metadata: c.metadata.clone(),
                ..none
            },
            None => none,
        }
    };
    asked
        .into_iter()
        .map(|(name, list)| {
            let found = list.into_iter().map(|p| find(&name, p)).collect();
            (name, found)
        })
        .collect()
}
