//! Requests that only look: groups, settings, transactions, producers, log sizes. DeleteGroups too.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::list_transactions_response::TransactionState as ListedTransaction;
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    DescribeGroupsRequest, DescribeGroupsResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest,
    DescribeTransactionsResponse, GroupId, ListGroupsRequest, ListGroupsResponse,
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TopicName, TransactionalId,
};

use super::admin::{BROKER, TOPIC};
use super::group::Group;
use super::journal::Record;
use super::txn::TxnState;
use super::{Core, NODE_ID, Outcome, code, config, result_code, storage_failed, text};
use crate::wire::Response;

/// Where a setting's value comes from, as DescribeConfigs says it.
const FROM_TOPIC: i8 = 1;
const FROM_BROKER: i8 = 4;
const FROM_DEFAULT: i8 = 5;

impl Core {
    pub(super) fn list_groups(&mut self, request: ListGroupsRequest) -> Outcome {
        let wanted = |g: &Group| {
            let any_state = request.states_filter.is_empty();
            any_state
                || request
                    .states_filter
                    .iter()
                    .any(|s| s.eq_ignore_ascii_case(g.state.name()))
        };
        let types = &request.types_filter;
        let classic = types.is_empty() || types.iter().any(|t| t.eq_ignore_ascii_case("classic"));
        let listed = |(id, g): (&String, &Group)| {
            ListedGroup::default()
                .with_group_id(GroupId(text(id.as_str())))
                .with_protocol_type(text(g.protocol_type.as_str()))
                .with_group_state(text(g.state.name()))
                .with_group_type(text("classic"))
        };
        let groups = self
            .groups
            .iter()
            .filter(|(_, g)| classic && wanted(g))
            .map(listed)
            .collect();
        Outcome::Reply(Response::ListGroups(
            ListGroupsResponse::default().with_groups(groups),
        ))
    }

    pub(super) fn describe_groups(&mut self, request: DescribeGroupsRequest) -> Outcome {
        let mut response = DescribeGroupsResponse::default();
        for id in request.groups {
            let mut out = DescribedGroup::default()
                .with_group_id(id.clone())
                .with_authorized_operations(i32::MIN);
            match self.groups.get(id.as_str()) {
                None => out.group_state = text("Dead"),
                Some(group) => {
                    let protocol = group.protocol.clone().unwrap_or_default();
                    out.group_state = text(group.state.name());
                    out.protocol_type = text(group.protocol_type.as_str());
                    out.members = group
                        .members
                        .iter()
                        .map(|(member_id, m)| {
                            let metadata = m
                                .protocols
                                .iter()
                                .find(|(n, _)| *n == protocol)
                                .map(|(_, b)| b.clone());
                            DescribedGroupMember::default()
                                .with_member_id(text(member_id.as_str()))
                                .with_group_instance_id(m.instance_id.clone().map(text))
                                .with_client_id(text(m.client_id.as_str()))
                                .with_client_host(text(m.client_host.as_str()))
                                .with_member_metadata(metadata.unwrap_or_default())
                                .with_member_assignment(m.assignment.clone())
                        })
                        .collect();
                    out.protocol_data = text(protocol);
                }
            }
            response.groups.push(out);
        }
        Outcome::Reply(Response::DescribeGroups(response))
    }

    pub(super) fn delete_groups(&mut self, request: DeleteGroupsRequest) -> Outcome {
        let mut response = DeleteGroupsResponse::default();
        for id in request.groups_names {
            let result = match self.groups.get(id.as_str()) {
                None => Err(ResponseError::GroupIdNotFound),
                Some(group) if group.has_members() => Err(ResponseError::NonEmptyGroup),
                Some(_) => self
                    .record(Record::GroupDeleted { id: id.to_string() })
                    .map_err(storage_failed),
            };
            response.results.push(
                DeletableGroupResult::default()
                    .with_group_id(id)
                    .with_error_code(result_code(&result)),
            );
        }
        self.refresh_group_deadline();
        Outcome::Reply(Response::DeleteGroups(response))
    }

    pub(super) fn describe_configs(&mut self, request: DescribeConfigsRequest) -> Outcome {
        let mut response = DescribeConfigsResponse::default();
        for resource in request.resources {
            let mut out = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name.clone());
            let wanted = |name: &str| {
                resource
                    .configuration_keys
                    .as_ref()
                    .is_none_or(|k| k.iter().any(|k| k.as_str() == name))
            };
            match resource.resource_type {
                TOPIC => match self.topics.get(resource.resource_name.as_str()) {
                    None => out.error_code = code(ResponseError::UnknownTopicOrPartition),
                    Some(topic) => {
                        for s in config::SETTINGS.iter().filter(|s| wanted(s.name)) {
                            let value = config::value(&topic.configs, s.name);
                            let explicit = topic.configs.contains_key(s.name);
                            let source = if explicit { FROM_TOPIC } else { FROM_DEFAULT };
                            let synonym = DescribeConfigsSynonym::default()
                                .with_name(text(s.name))
                                .with_value(Some(text(value)))
                                .with_source(source);
                            out.configs.push(
                                DescribeConfigsResourceResult::default()
                                    .with_name(text(s.name))
                                    .with_value(Some(text(value)))
                                    .with_config_source(source)
                                    .with_config_type(s.type_code())
                                    .with_synonyms(if request.include_synonyms {
                                        vec![synonym]
                                    } else {
                                        Vec::new()
                                    }),
                            );
                        }
                    }
                },
                BROKER => {
                    for (name, value) in self.broker_settings() {
                        if wanted(name) {
                            out.configs.push(
                                DescribeConfigsResourceResult::default()
                                    .with_name(text(name))
                                    .with_value(Some(text(value)))
                                    .with_read_only(true)
                                    .with_config_source(FROM_BROKER)
                                    .with_config_type(2),
                            );
                        }
                    }
                }
                _ => out.error_code = code(ResponseError::InvalidRequest),
            }
            response.results.push(out);
        }
        Outcome::Reply(Response::DescribeConfigs(response))
    }

    fn broker_settings(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "advertised.listeners",
                format!("PLAINTEXT://{}:{}", self.config.host, self.config.port),
            ),
            (
                "auto.create.topics.enable",
                self.config.auto_create_topics.to_string(),
            ),
            ("default.replication.factor", "1".to_owned()),
            (
                "group.initial.rebalance.delay.ms",
                self.config.initial_rebalance_delay_ms.to_string(),
            ),
            ("log.cleaner.enable", "true".to_owned()),
            ("node.id", NODE_ID.to_string()),
            ("num.partitions", self.config.default_partitions.to_string()),
            (
                "transaction.abort.timed.out.transaction.cleanup.interval.ms",
                self.config.txn_scan_interval_ms.to_string(),
            ),
            ("transaction.max.timeout.ms", "900000".to_owned()),
        ]
    }

    pub(super) fn describe_log_dirs(&mut self, request: DescribeLogDirsRequest) -> Outcome {
        let wanted = |name: &str, index: i32| match &request.topics {
            None => true,
            Some(list) => list
                .iter()
                .any(|t| t.topic.as_str() == name && t.partitions.contains(&index)),
        };
        let mut dir = DescribeLogDirsResult::default()
            .with_log_dir(text("devkafka"))
            .with_total_bytes(-1)
            .with_usable_bytes(-1);
        for (name, topic) in &self.topics {
            let parts = topic
                .partitions
                .iter()
                .enumerate()
                .filter(|(i, _)| wanted(name, *i as i32));
            let parts: Vec<DescribeLogDirsPartition> = parts
                .map(|(i, p)| {
                    DescribeLogDirsPartition::default()
                        .with_partition_index(i as i32)
                        .with_partition_size(p.log.size() as i64)
                })
                .collect();
            if !parts.is_empty() {
                dir.topics.push(
                    DescribeLogDirsTopic::default()
                        .with_name(TopicName(text(name.as_str())))
                        .with_partitions(parts),
                );
            }
        }
        Outcome::Reply(Response::DescribeLogDirs(
            DescribeLogDirsResponse::default().with_results(vec![dir]),
        ))
    }

    pub(super) fn describe_producers(&mut self, request: DescribeProducersRequest) -> Outcome {
        let mut response = DescribeProducersResponse::default();
        for topic in request.topics {
            let known = self.topics.get(topic.name.as_str());
            let one = |index: i32| {
                let mut out = PartitionResponse::default().with_partition_index(index);
                match known.and_then(|t| t.partition(index)) {
                    None => out.error_code = code(ResponseError::UnknownTopicOrPartition),
                    Some(partition) => {
                        out.active_producers = partition
                            .log
                            .producers
                            .iter()
                            .map(|(id, p)| {
                                ProducerState::default()
                                    .with_producer_id(ProducerId(*id))
                                    .with_producer_epoch(i32::from(p.epoch))
                                    .with_last_sequence(p.last_sequence())
                                    .with_last_timestamp(p.last_timestamp)
                                    .with_coordinator_epoch(0)
                                    .with_current_txn_start_offset(p.txn_first.unwrap_or(-1))
                            })
                            .collect();
                    }
                }
                out
            };
            let partitions = topic.partition_indexes.iter().map(|i| one(*i)).collect();
            response.topics.push(
                TopicResponse::default()
                    .with_name(topic.name.clone())
                    .with_partitions(partitions),
            );
        }
        Outcome::Reply(Response::DescribeProducers(response))
    }

    pub(super) fn describe_transactions(
        &mut self,
        request: DescribeTransactionsRequest,
    ) -> Outcome {
        let mut response = DescribeTransactionsResponse::default();
        for id in request.transactional_ids {
            let mut out = TransactionState::default().with_transactional_id(id.clone());
            match self.txns.get(id.as_str()) {
                None => out.error_code = code(ResponseError::TransactionalIdNotFound),
                Some(txn) => {
                    out.transaction_state = text(txn.state.name());
                    out.transaction_timeout_ms = txn.timeout_ms;
                    out.transaction_start_time_ms = if txn.state == TxnState::Ongoing {
                        txn.started
                    } else {
                        -1
                    };
                    out.producer_id = ProducerId(txn.producer_id);
                    out.producer_epoch = txn.epoch;
                    for (topic, partition) in &txn.partitions {
                        match out.topics.last_mut() {
                            Some(t) if t.topic.as_str() == topic => t.partitions.push(*partition),
                            _ => out.topics.push(
                                TopicData::default()
                                    .with_topic(TopicName(text(topic.as_str())))
                                    .with_partitions(vec![*partition]),
                            ),
                        }
                    }
                }
            }
            response.transaction_states.push(out);
        }
        Outcome::Reply(Response::DescribeTransactions(response))
    }

    pub(super) fn list_transactions(
        &mut self,
        request: ListTransactionsRequest,
        now: i64,
    ) -> Outcome {
        const STATES: [TxnState; 6] = [
            TxnState::Empty,
            TxnState::Ongoing,
            TxnState::PrepareCommit,
            TxnState::PrepareAbort,
            TxnState::CompleteCommit,
            TxnState::CompleteAbort,
        ];
        let mut response = ListTransactionsResponse::default();
        let unknown = request
            .state_filters
            .iter()
            .filter(|f| STATES.iter().all(|s| s.name() != f.as_str()));
        response.unknown_state_filters = unknown.cloned().collect();
        for (id, txn) in &self.txns {
            let state = request.state_filters.is_empty()
                || request
                    .state_filters
                    .iter()
                    .any(|f| f.as_str() == txn.state.name());
            let producers = &request.producer_id_filters;
            let producer = producers.is_empty() || producers.iter().any(|p| p.0 == txn.producer_id);
            let long = request.duration_filter < 0
                || (txn.state == TxnState::Ongoing && now - txn.started > request.duration_filter);
            if state && producer && long {
                response.transaction_states.push(
                    ListedTransaction::default()
                        .with_transactional_id(TransactionalId(text(id.as_str())))
                        .with_producer_id(ProducerId(txn.producer_id))
                        .with_transaction_state(text(txn.state.name())),
                );
            }
        }
        Outcome::Reply(Response::ListTransactions(response))
    }
}
