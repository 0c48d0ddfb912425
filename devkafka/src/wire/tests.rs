//! Every layout against the generated encoder: the walk must end exactly where the body ends.

use super::*;
use kafka_protocol::protocol::StrBytes;

fn s(v: &'static str) -> StrBytes {
    StrBytes::from_static_str(v)
}

/// Encodes `request` in every served version and checks that shape and decoder agree on it.
fn round_trip<R: Encodable + Decodable + HeaderVersion>(key: i16, build: impl Fn(i16) -> R) {
    let (index, api) = api(key).unwrap();
    for version in api.min..=api.max {
        let mut body = BytesMut::new();
        build(version)
            .encode(&mut body, version)
            .unwrap_or_else(|e| panic!("{} v{version}: {e}", api.name));
        let flexible = R::header_version(version) >= 2;
        let used = shapes()[index]
            .consumed(&body, version, flexible)
            .unwrap_or_else(|e| panic!("{} v{version}: {e}", api.name));
        assert_eq!(used, body.len(), "{} v{version}", api.name);
        assert!(Request::decode_body(key, version, &mut body.freeze()).is_ok());
    }
}

#[test]
fn layouts_match_the_generated_code() {
    round_trip(0, |_| {
        ProduceRequest::default().with_topic_data(vec![TopicProduceData(1), TopicProduceData(2)])
    });
    round_trip(1, |v| {
        let p = fetch_request::FetchPartition::default().with_partition(3);
        let mut r = FetchRequest::default().with_topics(vec![
            fetch_request::FetchTopic::default()
                .with_topic(TopicName(s("t")))
                .with_partitions(vec![p.clone(), p]),
        ]);
        if v >= 7 {
            r.forgotten_topics_data = vec![
                fetch_request::ForgottenTopic::default()
                    .with_topic(TopicName(s("f")))
                    .with_partitions(vec![1, 2]),
            ];
        }
        if v >= 11 {
            r.rack_id = s("rack");
        }
        r
    });
    round_trip(2, |_| {
        let p = list_offsets_request::ListOffsetsPartition::default();
        ListOffsetsRequest::default().with_topics(vec![
            list_offsets_request::ListOffsetsTopic::default().with_partitions(vec![p.clone(), p]),
        ])
    });
    round_trip(3, |_| {
        MetadataRequest::default().with_topics(Some(vec![
            metadata_request::MetadataRequestTopic::default().with_name(Some(TopicName(s("a")))),
        ]))
    });
    round_trip(8, |_| {
        let p = offset_commit_request::OffsetCommitRequestPartition::default()
            .with_committed_metadata(Some(s("m")));
        OffsetCommitRequest::default().with_topics(vec![
            offset_commit_request::OffsetCommitRequestTopic::default()
                .with_partitions(vec![p.clone(), p]),
        ])
    });
    round_trip(9, |v| {
        if v >= 8 {
            let t = offset_fetch_request::OffsetFetchRequestTopics::default()
                .with_partition_indexes(vec![1, 2, 3]);
            OffsetFetchRequest::default().with_groups(vec![
                offset_fetch_request::OffsetFetchRequestGroup::default()
                    .with_group_id(GroupId(s("g")))
                    .with_topics(Some(vec![t])),
            ])
        } else {
            OffsetFetchRequest::default().with_topics(Some(vec![
                offset_fetch_request::OffsetFetchRequestTopic::default()
                    .with_partition_indexes(vec![1, 2, 3]),
            ]))
        }
    });
    round_trip(10, |v| {
        if v >= 4 {
            FindCoordinatorRequest::default().with_coordinator_keys(vec![s("a"), s("b")])
        } else {
            FindCoordinatorRequest::default().with_key(s("k"))
        }
    });
    round_trip(11, |_| {
        let p = join_group_request::JoinGroupRequestProtocol::default()
            .with_name(s("range"))
            .with_metadata(Bytes::from_static(b"abc"));
        JoinGroupRequest::default().with_protocols(vec![p.clone(), p])
    });
    round_trip(12, |_| HeartbeatRequest::default().with_member_id(s("m")));
    round_trip(13, |v| {
        if v >= 3 {
            LeaveGroupRequest::default().with_members(vec![
                leave_group_request::MemberIdentity::default().with_member_id(s("m")),
            ])
        } else {
            LeaveGroupRequest::default().with_member_id(s("m"))
        }
    });
    round_trip(14, |_| {
        let a = sync_group_request::SyncGroupRequestAssignment::default()
            .with_assignment(Bytes::from_static(b"xyz"));
        SyncGroupRequest::default().with_assignments(vec![a.clone(), a])
    });
    round_trip(15, |_| {
        DescribeGroupsRequest::default().with_groups(vec![GroupId(s("g"))])
    });
    round_trip(16, |v| {
        if v >= 4 {
            ListGroupsRequest::default().with_states_filter(vec![s("Stable")])
        } else {
            ListGroupsRequest::default()
        }
    });
    round_trip(18, |_| ApiVersionsRequest::default());
    round_trip(19, |_| {
        let a = create_topics_request::CreatableReplicaAssignment::default()
            .with_broker_ids(vec![BrokerId(1)]);
        let c = create_topics_request::CreatableTopicConfig::default()
            .with_name(s("retention.ms"))
            .with_value(Some(s("1")));
        CreateTopicsRequest::default().with_topics(vec![
            create_topics_request::CreatableTopic::default()
                .with_assignments(vec![a])
                .with_configs(vec![c]),
        ])
    });
    round_trip(20, |v| {
        if v >= 6 {
            DeleteTopicsRequest::default()
                .with_topics(vec![delete_topics_request::DeleteTopicState::default()])
        } else {
            DeleteTopicsRequest::default().with_topic_names(vec![TopicName(s("t"))])
        }
    });
    round_trip(21, |_| {
        DeleteRecordsRequest::default().with_topics(vec![
            delete_records_request::DeleteRecordsTopic::default()
                .with_partitions(vec![Default::default()]),
        ])
    });
    round_trip(22, |_| {
        InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(s("t"))))
    });
    round_trip(23, |_| {
        OffsetForLeaderEpochRequest::default().with_topics(vec![
            offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
                .with_partitions(vec![Default::default()]),
        ])
    });
    round_trip(24, |_| {
        AddPartitionsToTxnRequest::default().with_v3_and_below_topics(vec![
            add_partitions_to_txn_request::AddPartitionsToTxnTopic::default()
                .with_partitions(vec![1]),
        ])
    });
    round_trip(25, |_| AddOffsetsToTxnRequest::default());
    round_trip(26, |_| EndTxnRequest::default());
    round_trip(28, |_| {
        TxnOffsetCommitRequest::default().with_topics(vec![
            txn_offset_commit_request::TxnOffsetCommitRequestTopic::default()
                .with_partitions(vec![Default::default()]),
        ])
    });
    round_trip(32, |_| {
        DescribeConfigsRequest::default().with_resources(vec![
            describe_configs_request::DescribeConfigsResource::default()
                .with_configuration_keys(Some(vec![s("k")])),
        ])
    });
    round_trip(33, |_| {
        AlterConfigsRequest::default().with_resources(vec![
            alter_configs_request::AlterConfigsResource::default()
                .with_configs(vec![Default::default()]),
        ])
    });
    round_trip(35, |_| {
        DescribeLogDirsRequest::default().with_topics(Some(vec![
            describe_log_dirs_request::DescribableLogDirTopic::default().with_partitions(vec![1]),
        ]))
    });
    round_trip(37, |_| {
        let a = create_partitions_request::CreatePartitionsAssignment::default()
            .with_broker_ids(vec![BrokerId(1)]);
        CreatePartitionsRequest::default().with_topics(vec![
            create_partitions_request::CreatePartitionsTopic::default()
                .with_assignments(Some(vec![a])),
        ])
    });
    round_trip(42, |_| {
        DeleteGroupsRequest::default().with_groups_names(vec![GroupId(s("g"))])
    });
    round_trip(44, |_| {
        IncrementalAlterConfigsRequest::default().with_resources(vec![
            incremental_alter_configs_request::AlterConfigsResource::default()
                .with_configs(vec![Default::default()]),
        ])
    });
    round_trip(47, |_| {
        OffsetDeleteRequest::default().with_topics(vec![
            offset_delete_request::OffsetDeleteRequestTopic::default()
                .with_partitions(vec![Default::default()]),
        ])
    });
    round_trip(60, |_| DescribeClusterRequest::default());
    round_trip(61, |_| {
        DescribeProducersRequest::default().with_topics(vec![
            describe_producers_request::TopicRequest::default().with_partition_indexes(vec![1]),
        ])
    });
    round_trip(65, |_| {
        DescribeTransactionsRequest::default().with_transactional_ids(vec![TransactionalId(s("t"))])
    });
    round_trip(66, |_| {
        ListTransactionsRequest::default()
            .with_state_filters(vec![s("Ongoing")])
            .with_producer_id_filters(vec![ProducerId(1)])
    });
}

#[allow(non_snake_case)]
fn TopicProduceData(partitions: usize) -> produce_request::TopicProduceData {
    let p = produce_request::PartitionProduceData::default()
        .with_records(Some(Bytes::from_static(b"records")));
    produce_request::TopicProduceData::default()
        .with_name(TopicName(s("t")))
        .with_partition_data(vec![p; partitions])
}

#[test]
fn a_huge_array_claim_is_refused_before_it_is_allocated() {
    // Metadata v1, client id null, array of 2^31 - 1 topics.
    let mut frame = BytesMut::new();
    frame.put_i16(3);
    frame.put_i16(1);
    frame.put_i32(7);
    frame.put_i16(-1);
    frame.put_i32(i32::MAX);
    assert!(matches!(
        decode(frame.freeze()),
        Err(WireError::Malformed { .. })
    ));
}
