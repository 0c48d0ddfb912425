//! Answers a request with an error code without carrying it out; used by injected faults only.

use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::*;

use super::{Request, Response};

/// The error answer to a request; None for APIs that injected errors do not cover.
pub fn refusal(request: &Request, code: i16) -> Option<Response> {
    Some(match request {
        Request::Produce(r) => {
            let one = |p: &produce_request::PartitionProduceData| {
                PartitionProduceResponse::default()
                    .with_index(p.index)
                    .with_error_code(code)
                    .with_base_offset(-1)
            };
            let responses = r.topic_data.iter().map(|t| {
                let parts = t.partition_data.iter().map(one).collect();
                TopicProduceResponse::default()
                    .with_name(t.name.clone())
                    .with_partition_responses(parts)
            });
            Response::Produce(ProduceResponse::default().with_responses(responses.collect()))
        }
        Request::Fetch(r) => {
            let one = |p: &fetch_request::FetchPartition| {
                PartitionData::default()
                    .with_partition_index(p.partition)
                    .with_error_code(code)
                    .with_high_watermark(-1)
                    .with_last_stable_offset(-1)
                    .with_log_start_offset(-1)
                    .with_preferred_read_replica(BrokerId(-1))
                    .with_records(Some(bytes::Bytes::new()))
            };
            let responses = r.topics.iter().map(|t| {
                let parts = t.partitions.iter().map(one).collect();
                FetchableTopicResponse::default()
                    .with_topic(t.topic.clone())
                    .with_partitions(parts)
            });
            Response::Fetch(FetchResponse::default().with_responses(responses.collect()))
        }
        Request::Metadata(r) => {
            // Without topics it asks for brokers, which have to be there.
            let named = r.topics.as_ref().filter(|topics| !topics.is_empty())?;
            let topics = named.iter().map(|t| {
                MetadataResponseTopic::default()
                    .with_error_code(code)
                    .with_name(t.name.clone())
            });
            let response = MetadataResponse::default().with_topics(topics.collect());
            // Not asked for.
            Response::Metadata(response.with_cluster_authorized_operations(i32::MIN))
        }
        Request::AddPartitionsToTxn(r) => {
            let one = |p: &i32| {
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(*p)
                    .with_partition_error_code(code)
            };
            let results = r.v3_and_below_topics.iter().map(|t| {
                let parts = t.partitions.iter().map(one).collect();
                AddPartitionsToTxnTopicResult::default()
                    .with_name(t.name.clone())
                    .with_results_by_partition(parts)
            });
            let response = AddPartitionsToTxnResponse::default()
                .with_results_by_topic_v3_and_below(results.collect());
            Response::AddPartitionsToTxn(response)
        }
        Request::TxnOffsetCommit(r) => {
            let topics = r.topics.iter().map(|t| {
                let parts = t.partitions.iter().map(|p| {
                    TxnOffsetCommitResponsePartition::default()
                        .with_partition_index(p.partition_index)
                        .with_error_code(code)
                });
                TxnOffsetCommitResponseTopic::default()
                    .with_name(t.name.clone())
                    .with_partitions(parts.collect())
            });
            Response::TxnOffsetCommit(
                TxnOffsetCommitResponse::default().with_topics(topics.collect()),
            )
        }
        Request::OffsetCommit(r) => {
            let topics = r.topics.iter().map(|t| {
                let parts = t.partitions.iter().map(|p| {
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(p.partition_index)
                        .with_error_code(code)
                });
                OffsetCommitResponseTopic::default()
                    .with_name(t.name.clone())
                    .with_partitions(parts.collect())
            });
            Response::OffsetCommit(OffsetCommitResponse::default().with_topics(topics.collect()))
        }
        Request::InitProducerId(_) => {
            let none = InitProducerIdResponse::default()
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1);
            Response::InitProducerId(none.with_error_code(code))
        }
        Request::AddOffsetsToTxn(_) => {
            Response::AddOffsetsToTxn(AddOffsetsToTxnResponse::default().with_error_code(code))
        }
        Request::EndTxn(_) => Response::EndTxn(EndTxnResponse::default().with_error_code(code)),
        Request::JoinGroup(_) => Response::JoinGroup(
            JoinGroupResponse::default()
                .with_error_code(code)
                .with_generation_id(-1),
        ),
        Request::SyncGroup(_) => {
            Response::SyncGroup(SyncGroupResponse::default().with_error_code(code))
        }
        Request::Heartbeat(_) => {
            Response::Heartbeat(HeartbeatResponse::default().with_error_code(code))
        }
        _ => return None,
    })
}
