//! Metadata, FindCoordinator, ApiVersions, DescribeCluster: who serves what. There is one node.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::{ApiVersion, ApiVersionsResponse};
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, MetadataRequest, MetadataResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, TopicName,
};
use std::collections::BTreeMap;
use uuid::Uuid;

use super::batch::NO_LEADER_EPOCH;
use super::topics::{Topic, valid_name};
use super::{Core, NODE_ID, Outcome, code, text};
use crate::wire::{APIS, Response};

/// "Not asked for" in the authorised-operations fields.
const NO_OPERATIONS: i32 = i32::MIN;

/// The answer to ApiVersions.
pub fn api_versions(error: i16) -> ApiVersionsResponse {
    let entry = |a: &crate::wire::Api| {
        ApiVersion::default()
            .with_api_key(a.key)
            .with_min_version(a.min)
            .with_max_version(a.max)
    };
    ApiVersionsResponse::default()
        .with_error_code(error)
        .with_api_keys(APIS.iter().map(entry).collect())
}

impl Core {
    pub(super) fn metadata(&mut self, request: MetadataRequest, version: i16, now: i64) -> Outcome {
        let mut topics = Vec::new();
        let all = match &request.topics {
            None => true,
            Some(list) => version == 0 && list.is_empty(),
        };
        if all {
            topics.extend(
                self.topics
                    .iter()
                    .map(|(name, topic)| describe(name, topic)),
            );
        }
        for asked in request.topics.unwrap_or_default() {
            let Some(name) = asked.name.map(|n| n.0.to_string()) else {
                topics.push(self.by_id(asked.topic_id));
                continue;
            };
            if !self.topics.contains_key(&name)
                && self.config.auto_create_topics
                && (version < 4 || request.allow_auto_topic_creation)
                && valid_name(&name)
                && let Err(error) =
                    self.add_topic(&name, self.config.default_partitions, BTreeMap::new(), now)
            {
                tracing::error!(%error, topic = %name, "automatic creation failed");
            }
            topics.push(match self.topics.get(&name) {
                Some(topic) => describe(&name, topic),
                None if !valid_name(&name) => {
                    missing(Some(name), ResponseError::InvalidTopicException)
                }
                None => missing(Some(name), ResponseError::UnknownTopicOrPartition),
            });
        }
        let broker = MetadataResponseBroker::default()
            .with_node_id(BrokerId(NODE_ID))
            .with_host(text(self.config.host.as_str()))
            .with_port(i32::from(self.config.port));
        let response = MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(text(self.cluster_id.as_str())))
            .with_controller_id(BrokerId(NODE_ID))
            .with_topics(topics)
            .with_cluster_authorized_operations(NO_OPERATIONS);
        Outcome::Reply(Response::Metadata(response))
    }

    fn by_id(&self, id: Uuid) -> MetadataResponseTopic {
        match self.topics.iter().find(|(_, t)| t.id == id) {
            Some((name, topic)) => describe(name, topic),
            None => missing(None, ResponseError::UnknownTopicId).with_topic_id(id),
        }
    }

    pub(super) fn find_coordinator(
        &mut self,
        request: FindCoordinatorRequest,
        version: i16,
    ) -> Outcome {
        let host = text(self.config.host.as_str());
        let port = i32::from(self.config.port);
        let known = matches!(request.key_type, 0 | 1);
        let error = if known {
            0
        } else {
            code(ResponseError::InvalidRequest)
        };
        let mut response = FindCoordinatorResponse::default();
        if version < 4 {
            response = response
                .with_error_code(error)
                .with_node_id(BrokerId(NODE_ID))
                .with_host(host)
                .with_port(port);
        } else {
            let one = |key| {
                Coordinator::default()
                    .with_key(key)
                    .with_node_id(BrokerId(NODE_ID))
                    .with_host(host.clone())
                    .with_port(port)
                    .with_error_code(error)
            };
            response.coordinators = request.coordinator_keys.into_iter().map(one).collect();
        }
        Outcome::Reply(Response::FindCoordinator(response))
    }

    pub(super) fn describe_cluster(&mut self, _request: DescribeClusterRequest) -> Outcome {
        let broker = DescribeClusterBroker::default()
            .with_broker_id(BrokerId(NODE_ID))
            .with_host(text(self.config.host.as_str()))
            .with_port(i32::from(self.config.port));
        let response = DescribeClusterResponse::default()
            .with_cluster_id(text(self.cluster_id.as_str()))
            .with_controller_id(BrokerId(NODE_ID))
            .with_brokers(vec![broker])
            .with_cluster_authorized_operations(NO_OPERATIONS);
        Outcome::Reply(Response::DescribeCluster(response))
    }

    /// There is one leader epoch for ever, so every epoch ends where the log ends.
    pub(super) fn offset_for_leader_epoch(
        &mut self,
        request: OffsetForLeaderEpochRequest,
    ) -> Outcome {
        let mut response = OffsetForLeaderEpochResponse::default();
        for topic in request.topics {
            let known = self.topics.get(topic.topic.as_str());
            let one = |p: kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition| {
                let end = EpochEndOffset::default().with_partition(p.partition);
                match known.and_then(|t| t.partition(p.partition)) {
                    Some(partition) => end.with_leader_epoch(p.leader_epoch).with_end_offset(partition.log.end_offset()),
                    None => end.with_error_code(code(ResponseError::UnknownTopicOrPartition)),
                }
            };
            let partitions = topic.partitions.into_iter().map(one).collect();
            response.topics.push(
                OffsetForLeaderTopicResult::default()
                    .with_topic(topic.topic)
                    .with_partitions(partitions),
            );
        }
        Outcome::Reply(Response::OffsetForLeaderEpoch(response))
    }
}

fn describe(name: &str, topic: &Topic) -> MetadataResponseTopic {
    let node = vec![BrokerId(NODE_ID)];
    let partition = |index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(NO_LEADER_EPOCH)
            .with_replica_nodes(node.clone())
            .with_isr_nodes(node.clone())
    };
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(name))))
        .with_topic_id(topic.id)
        .with_partitions((0..topic.partitions.len() as i32).map(partition).collect())
        .with_topic_authorized_operations(NO_OPERATIONS)
}

fn missing(name: Option<String>, error: ResponseError) -> MetadataResponseTopic {
    MetadataResponseTopic::default()
        .with_error_code(code(error))
        .with_name(name.map(|n| TopicName(text(n))))
        .with_topic_authorized_operations(NO_OPERATIONS)
}
