//! librdkafka's errors, sorted by what the thread does about them.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::Error;

/// The step of a transaction that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Init,
    Begin,
    Send,
    Offsets,
    Commit,
    Abort,
}

/// What a failed step of a transaction means.
pub(crate) fn transaction(stage: Stage, id: &str, error: &KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    let why = format!("transaction of `{id}`: {stage:?} failed: {error}");
    let (code, fatal, abort, retriable) = match error {
        KafkaError::Transaction(e) => (
            e.code(),
            e.is_fatal(),
            e.txn_requires_abort(),
            e.is_retriable(),
        ),
        KafkaError::MessageProduction(code) => (*code, *code == Code::Fatal, true, false),
        // Not everything was delivered, so EndTxn was never sent.
        KafkaError::Flush(code) => (*code, false, true, false),
        _ => (Code::Unknown, false, false, false),
    };
    match code {
        Code::FencedInstanceId => return fenced_instance(id),
        Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::TopicAuthorizationFailed => {
            return Error::Fatal(format!(
                "{why}; grant the application's principal Write on the transactional id and its \
                 topics, Read on its group"
            ));
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch if fatal || !abort => {
            return Error::Fenced(why);
        }
        _ => {}
    }
    let stale = matches!(
        code,
        Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress
    );
    match stage {
        _ if fatal => Error::Renew(why),
        Stage::Init if retriable => Error::Retry(why),
        // Certainly aborted or certainly to be aborted.
        Stage::Begin | Stage::Send | Stage::Offsets | Stage::Commit if abort && stale => {
            Error::Rejoin(why)
        }
        Stage::Begin | Stage::Send | Stage::Offsets | Stage::Commit if abort => Error::Retry(why),
        // Offsets that did not come through in time: nothing is committed.
        Stage::Offsets if retriable => Error::Retry(why),
        // A commit that timed out may have happened; whatever else is unknown
        // is treated alike.
        _ => Error::Renew(why),
    }
}

/// The consumer was fenced: somebody else took its place in the group.
pub(crate) fn fenced_instance(id: &str) -> Error {
    Error::Fatal(format!(
        "another process bears the instance id `{id}` and has taken its place in the group; give \
         every instance of the application its own instance id (kafka.instance_id), or stop one of the two"
    ))
}

/// What an error from the consumer's queue means; `None` if librdkafka deals
/// with it and it is only worth a log line.
pub(crate) fn consumer(id: &str, error: &KafkaError) -> Option<Error> {
    use RDKafkaErrorCode as Code;
    let (code, fatal) = match error {
        KafkaError::MessageConsumptionFatal(code) => (*code, true),
        KafkaError::MessageConsumption(code) | KafkaError::Global(code) => (*code, false),
        _ => return None,
    };
    match code {
        Code::FencedInstanceId => Some(fenced_instance(id)),
        Code::AutoOffsetReset | Code::OffsetOutOfRange => Some(Error::Fatal(format!(
            "the position to read from is outside of the log ({error}): records were deleted \
             before they were processed, or the topic was recreated. Restart to see which topic \
             and partition"
        ))),
        Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed => {
            Some(Error::Fatal(format!(
                "Kafka refuses to let `{id}` read ({error}); grant its principal Read on its \
                 topics and its group"
            )))
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic => Some(Error::Fatal(format!(
            "a topic that `{id}` reads has gone ({error}); restart to see which"
        ))),
        _ if fatal => Some(Error::Fatal(format!("consumer `{id}`: {error}"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undelivered_is_not_unknown() {
        let timeout = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
        let error = transaction(Stage::Commit, "x", &timeout);
        assert!(matches!(error, Error::Retry(_)), "{error}");
    }

    #[test]
    fn fenced_instance_names_the_id() {
        let fenced = KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::FencedInstanceId);
        let error = consumer("app-a-0", &fenced);
        assert!(matches!(error, Some(Error::Fatal(m)) if m.contains("`app-a-0`")));
        let transport = KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure);
        assert_eq!(consumer("x", &transport), None);
    }
}
