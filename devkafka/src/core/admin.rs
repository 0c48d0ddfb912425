//! Requests that change topics: create, delete, add partitions, delete records, settings.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse as Altered;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementallyAltered;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, CreatePartitionsRequest, CreatePartitionsResponse,
    CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, TopicName,
};

use super::config::{self, Kind};
use super::journal::Record;
use super::topics::{MAX_PARTITIONS, valid_name};
use super::{Core, Outcome, code, storage_failed, text};
use crate::wire::Response;

/// Resource types of the config requests.
pub const TOPIC: i8 = 2;
pub const BROKER: i8 = 4;

type Refusal = (ResponseError, String);

fn split<T>(result: Result<T, Refusal>) -> (Option<T>, i16, Option<String>) {
    match result {
        Ok(value) => (Some(value), 0, None),
        Err((error, message)) => (None, code(error), Some(message)),
    }
}

fn failed(error: crate::storage::StorageError) -> Refusal {
    (storage_failed(error), "storage failed".to_owned())
}

impl Core {
    pub(super) fn create_topics(
        &mut self,
        request: CreateTopicsRequest,
        version: i16,
        now: i64,
    ) -> Outcome {
        let mut response = CreateTopicsResponse::default();
        for topic in request.topics {
            let name = topic.name.clone();
            let (created, error, message) =
                split(self.create_topic(topic, request.validate_only, now));
            let mut out = CreatableTopicResult::default()
                .with_name(name)
                .with_error_code(error)
                .with_error_message(message.map(text))
                .with_num_partitions(-1)
                .with_replication_factor(-1)
                .with_configs(None);
            if let Some((id, partitions, configs)) = created {
                out.topic_id = id;
                out.num_partitions = partitions;
                out.replication_factor = 1;
                if version >= 5 {
                    out.configs = Some(
                        config::SETTINGS
                            .iter()
                            .map(|s| {
                                CreatableTopicConfigs::default()
                                    .with_name(text(s.name))
                                    .with_value(Some(text(config::value(&configs, s.name))))
                                    .with_config_source(if configs.contains_key(s.name) {
                                        1
                                    } else {
                                        5
                                    })
                            })
                            .collect(),
                    );
                }
            }
            response.topics.push(out);
        }
        Outcome::Reply(Response::CreateTopics(response))
    }

    fn create_topic(
        &mut self,
        topic: CreatableTopic,
        validate_only: bool,
        now: i64,
    ) -> Result<(uuid::Uuid, i32, BTreeMap<String, String>), Refusal> {
        let name = topic.name.to_string();
        if !valid_name(&name) {
            return Err((
                ResponseError::InvalidTopicException,
                format!("Topic name '{name}' is illegal"),
            ));
        }
        if self.topics.contains_key(&name) {
            return Err((
                ResponseError::TopicAlreadyExists,
                format!("Topic '{name}' already exists."),
            ));
        }
        let partitions = if topic.assignments.is_empty() {
            match topic.num_partitions {
                -1 => self.config.default_partitions,
                n => n,
            }
        } else {
            topic.assignments.len() as i32
        };
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err((
                ResponseError::InvalidPartitions,
                format!("Number of partitions must be 1 to {MAX_PARTITIONS}."),
            ));
        }
        if topic.assignments.is_empty() && !matches!(topic.replication_factor, -1 | 1) {
            return Err((
                ResponseError::InvalidReplicationFactor,
                "There is only one broker.".to_owned(),
            ));
        }
        let mut configs = BTreeMap::new();
        for c in topic.configs {
            if let Some(value) = c.value {
                configs.insert(c.name.to_string(), value.to_string());
            }
        }
        config::check(&configs).map_err(|message| (ResponseError::InvalidConfig, message))?;
        if validate_only {
            return Ok((uuid::Uuid::nil(), partitions, configs));
        }
        let id = self
            .add_topic(&name, partitions, configs.clone(), now)
            .map_err(failed)?;
        Ok((id, partitions, configs))
    }

    pub(super) fn delete_topics(&mut self, request: DeleteTopicsRequest, version: i16) -> Outcome {
        let mut response = DeleteTopicsResponse::default();
        let mut asked: Vec<(Option<String>, uuid::Uuid)> = Vec::new();
        if version >= 6 {
            asked.extend(
                request
                    .topics
                    .into_iter()
                    .map(|t| (t.name.map(|n| n.to_string()), t.topic_id)),
            );
        } else {
            asked.extend(
                request
                    .topic_names
                    .into_iter()
                    .map(|n| (Some(n.to_string()), uuid::Uuid::nil())),
            );
        }
        for (name, id) in asked {
            let by_id = name.is_none();
            let name = name.or_else(|| self.topic_name(id));
            let mut out = DeletableTopicResult::default().with_topic_id(id);
            match &name {
                Some(known) if self.topics.contains_key(known) => {
                    out.topic_id = self.topics.get(known).map_or(id, |t| t.id);
                    if let Err(error) = self.delete_topic(known) {
                        out.error_code = code(storage_failed(error));
                    }
                }
                _ if by_id => out.error_code = code(ResponseError::UnknownTopicId),
                _ => out.error_code = code(ResponseError::UnknownTopicOrPartition),
            }
            out.name = name.map(|n| TopicName(text(n)));
            response.responses.push(out);
        }
        Outcome::Reply(Response::DeleteTopics(response))
    }

    fn delete_topic(&mut self, name: &str) -> Result<(), crate::storage::StorageError> {
        let mut partitions = match self.topics.get_mut(name) {
            Some(topic) => std::mem::take(&mut topic.partitions),
            None => return Ok(()),
        };
        self.record(Record::TopicDeleted {
            name: name.to_owned(),
        })?;
        for partition in &mut partitions {
            self.woken.extend(partition.waiters.drain(..));
            partition.log.remove(self.storage.as_mut())?;
        }
        Ok(())
    }

    pub(super) fn create_partitions(
        &mut self,
        request: CreatePartitionsRequest,
        now: i64,
    ) -> Outcome {
        let mut response = CreatePartitionsResponse::default();
        for topic in request.topics {
            let name = topic.name.to_string();
            let result = self.grow_topic(&name, topic.count, request.validate_only, now);
            let (_, error, message) = split(result);
            response.results.push(
                CreatePartitionsTopicResult::default()
                    .with_name(topic.name)
                    .with_error_code(error)
                    .with_error_message(message.map(text)),
            );
        }
        Outcome::Reply(Response::CreatePartitions(response))
    }

    fn grow_topic(
        &mut self,
        name: &str,
        count: i32,
        validate_only: bool,
        now: i64,
    ) -> Result<(), Refusal> {
        let unknown = || {
            (
                ResponseError::UnknownTopicOrPartition,
                "This server does not host this topic-partition.".to_owned(),
            )
        };
        let topic = self.topics.get(name).ok_or_else(unknown)?;
        let have = topic.partitions.len() as i32;
        if count <= have || count > MAX_PARTITIONS {
            let message = format!(
                "The topic currently has {have} partition(s); {count} would not be an increase."
            );
            return Err((ResponseError::InvalidPartitions, message));
        }
        if validate_only {
            return Ok(());
        }
        let record = Record::Topic {
            name: name.to_owned(),
            id: topic.id,
            partitions: count,
            configs: topic.configs.clone(),
        };
        self.record(record).map_err(failed)?;
        self.open_topic(name, now).map_err(failed)
    }

    pub(super) fn delete_records(&mut self, request: DeleteRecordsRequest, now: i64) -> Outcome {
        let mut response = DeleteRecordsResponse::default();
        for topic in request.topics {
            let mut out = DeleteRecordsTopicResult::default().with_name(topic.name.clone());
            for p in topic.partitions {
                let mut part = DeleteRecordsPartitionResult::default()
                    .with_partition_index(p.partition_index)
                    .with_low_watermark(-1);
                match self.delete_before(&topic.name, p.partition_index, p.offset, now) {
                    Ok(low) => part.low_watermark = low,
                    Err(error) => part.error_code = code(error),
                }
                out.partitions.push(part);
            }
            response.topics.push(out);
        }
        Outcome::Reply(Response::DeleteRecords(response))
    }

    /// Moves a partition's start up to `offset` (-1: its end). Returns where it now starts.
    pub(super) fn delete_before(
        &mut self,
        name: &str,
        index: i32,
        offset: i64,
        now: i64,
    ) -> Result<i64, ResponseError> {
        let unknown = ResponseError::UnknownTopicOrPartition;
        let log = &self
            .topics
            .get(name)
            .and_then(|t| t.partition(index))
            .ok_or(unknown)?
            .log;
        let offset = if offset == -1 {
            log.end_offset()
        } else {
            offset
        };
        if offset < 0 || offset > log.end_offset() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        if offset <= log.start_offset() {
            return Ok(log.start_offset());
        }
        let record = Record::LogStart {
            topic: name.to_owned(),
            partition: index,
            offset,
        };
        self.record(record).map_err(storage_failed)?;
        let partition = self
            .topics
            .get_mut(name)
            .and_then(|t| t.partition_mut(index))
            .ok_or(unknown)?;
        partition
            .log
            .delete_before(self.storage.as_mut(), offset, now)
            .map_err(storage_failed)?;
        self.woken.extend(partition.waiters.drain(..));
        Ok(partition.log.start_offset())
    }

    pub(super) fn alter_configs(&mut self, request: AlterConfigsRequest) -> Outcome {
        let mut response = AlterConfigsResponse::default();
        for resource in request.resources {
            let given = resource.configs.into_iter();
            let configs = given
                .filter_map(|c| Some((c.name.to_string(), c.value?.to_string())))
                .collect();
            let result = self.set_configs(
                resource.resource_type,
                &resource.resource_name,
                configs,
                request.validate_only,
            );
            let (_, error, message) = split(result);
            response.responses.push(
                Altered::default()
                    .with_error_code(error)
                    .with_error_message(message.map(text))
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name),
            );
        }
        Outcome::Reply(Response::AlterConfigs(response))
    }

    pub(super) fn incremental_alter_configs(
        &mut self,
        request: IncrementalAlterConfigsRequest,
    ) -> Outcome {
        let mut response = IncrementalAlterConfigsResponse::default();
        for resource in request.resources {
            let mut configs = self
                .topics
                .get(resource.resource_name.as_str())
                .map(|t| t.configs.clone())
                .unwrap_or_default();
            let changed: Result<(), Refusal> = resource
                .configs
                .into_iter()
                .try_for_each(|c| change(&mut configs, c));
            let result = changed.and_then(|()| {
                self.set_configs(
                    resource.resource_type,
                    &resource.resource_name,
                    configs,
                    request.validate_only,
                )
            });
            let (_, error, message) = split(result);
            response.responses.push(
                IncrementallyAltered::default()
                    .with_error_code(error)
                    .with_error_message(message.map(text))
                    .with_resource_type(resource.resource_type)
                    .with_resource_name(resource.resource_name),
            );
        }
        Outcome::Reply(Response::IncrementalAlterConfigs(response))
    }

    fn set_configs(
        &mut self,
        resource_type: i8,
        name: &str,
        configs: BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), Refusal> {
        if resource_type != TOPIC {
            return Err((
                ResponseError::InvalidRequest,
                "only topics have settings that can be changed".to_owned(),
            ));
        }
        let topic = self.topics.get(name).ok_or((
            ResponseError::UnknownTopicOrPartition,
            format!("The topic '{name}' does not exist."),
        ))?;
        config::check(&configs).map_err(|message| (ResponseError::InvalidConfig, message))?;
        if validate_only {
            return Ok(());
        }
        let partitions = topic.partitions.len() as i32;
        self.record(Record::Topic {
            name: name.to_owned(),
            id: topic.id,
            partitions,
            configs,
        })
        .map_err(failed)
    }
}

/// Applies one operation of IncrementalAlterConfigs: 0 set, 1 delete, 2 append, 3 subtract.
fn change(configs: &mut BTreeMap<String, String>, c: AlterableConfig) -> Result<(), Refusal> {
    let name = c.name.to_string();
    let given = c.value.map(|v| v.to_string());
    let wrong = |message: String| Err((ResponseError::InvalidConfig, message));
    let Some(setting) = config::find(&name) else {
        return wrong(format!("Unknown topic config name: {name}"));
    };
    match (c.config_operation, given) {
        (0, Some(value)) => {
            configs.insert(name, value);
        }
        (1, _) => {
            configs.remove(&name);
        }
        (op @ (2 | 3), Some(value)) if matches!(setting.kind, Kind::List(_)) => {
            let now = config::value(configs, &name).to_owned();
            let mut list: Vec<&str> = now
                .split(',')
                .map(str::trim)
                .filter(|v| !v.is_empty())
                .collect();
            for item in value.split(',').map(str::trim) {
                list.retain(|v| *v != item);
                if op == 2 {
                    list.push(item);
                }
            }
            configs.insert(name, list.join(","));
        }
        _ => return wrong(format!("operation does not fit configuration {name}")),
    }
    Ok(())
}
