//! A group member's client and its end.
//!
//! A consumer closes by polling until librdkafka says that it is closed, and answers the
//! rebalances that come up meanwhile: without an answer librdkafka would wait for ever. But a
//! question that reaches a group which has ended is dropped unanswered, and then it is the
//! asker who waits for ever (librdkafka issue 4884, still so in 2.12.1). So while a client
//! closes, its rebalances are answered only if it does not end without.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaResult;
use rdkafka::types::RDKafkaRespErr;

/// How long the first answer is held back: a group that has ended says so within this.
const FIRST: Duration = Duration::from_millis(20);
/// Those after it: the first has ended the group, as a rule.
const NEXT: Duration = Duration::from_secs(1);

/// 0 while the client is open, 1 once it closes, 2 after a rebalance that came since.
#[derive(Default)]
pub struct Closing(AtomicU32);

impl Closing {
    fn begin(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// While the client closes, deals with a rebalance and gives `true`.
    pub fn answers<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) -> bool {
        let patience = match self.0.load(Ordering::Relaxed) {
            0 => return false,
            1 => FIRST,
            _ => NEXT,
        };
        self.0.store(2, Ordering::Relaxed);
        let by = Instant::now() + patience;
        while Instant::now() < by {
            if consumer.closed() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Any answer drops the whole assignment now. It fails only if the group has ended.
        let _ = consumer.unassign();
        true
    }

    /// Answers a rebalance in the usual way; `false` while the client closes.
    ///
    /// # Errors
    /// librdkafka refuses the answer.
    pub fn rebalance<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        err: RDKafkaRespErr,
        list: &TopicPartitionList,
    ) -> KafkaResult<bool> {
        if self.answers(consumer) {
            return Ok(false);
        }
        let assign = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        match (assign, consumer.rebalance_protocol()) {
            (true, RebalanceProtocol::Cooperative) => consumer.incremental_assign(list)?,
            (true, _) => consumer.assign(list)?,
            (false, RebalanceProtocol::Cooperative) => consumer.incremental_unassign(list)?,
            (false, _) => consumer.unassign()?,
        }
        Ok(true)
    }
}

/// The client of a group's member; its context learns when it closes.
pub struct Member<C: ConsumerContext + AsRef<Closing>>(BaseConsumer<C>);

impl<C: ConsumerContext + AsRef<Closing>> Member<C> {
    /// # Errors
    /// Impossible client settings.
    pub fn create(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        config.create_with_context(context).map(Self)
    }
}

impl<C: ConsumerContext + AsRef<Closing>> Deref for Member<C> {
    type Target = BaseConsumer<C>;

    fn deref(&self) -> &BaseConsumer<C> {
        &self.0
    }
}

impl<C: ConsumerContext + AsRef<Closing>> Drop for Member<C> {
    fn drop(&mut self) {
        let context: &C = self.0.context();
        context.as_ref().begin();
    }
}
