//! The transaction of a thread, and what follows when it fails.

use super::{Producer, Slot, StreamThread};
use crate::Micros;
use crate::broker::Broker;
use crate::catchup::CatchUp;
use crate::error::Error;
use crate::processor::Domain;
use crate::record::TopicIdx;
use crate::task::CommitKind;

impl<D: Domain, B: Broker> StreamThread<D, B> {
    /// One transaction with every task that has something to commit, or with
    /// `all` that run. The batch must be processed: positions are taken here.
    pub(super) fn commit(&mut self, kind: CommitKind, all: bool) -> Result<(), Error> {
        let now = self.now();
        let mut members = Vec::with_capacity(self.slots.len());
        for (&partition, slot) in &mut self.slots {
            let gated = slot.gated.clone();
            let Some(task) = slot.running() else { continue };
            if !(all || task.needs_commit(now)) {
                continue;
            }
            self.broker.positions(partition, &mut self.positions)?;
            for (topic, position) in self.positions.iter().enumerate() {
                // A held input was polled further than it was processed.
                if let (Some(position), None) = (position, gated[topic]) {
                    task.advance(TopicIdx(topic as u16), *position);
                }
            }
            task.prepare_commit(now, kind)?;
            members.push((partition, task.positions().collect()));
        }
        if members.is_empty() {
            return Ok(());
        }
        self.transact(&members)?;
        self.committed_at = (now, self.now());
        self.after_commit(&members, now)?;
        self.failures = 0;
        Ok(())
    }

    /// begin → outputs and changelogs in one wave → deliveries → offsets → commit.
    pub(super) fn transact(&mut self, members: &[(i32, Vec<i64>)]) -> Result<(), Error> {
        let began = self.now();
        self.broker.begin()?;
        for (partition, _) in members {
            let Some(task) = self.slots.get(partition).and_then(|s| s.task.as_ref()) else {
                continue;
            };
            for output in task.outputs().iter() {
                self.broker.send_output(*partition, &output)?;
            }
            for (store, key, value) in task.changelog() {
                self.broker.send_changelog(*partition, store, key, value)?;
            }
        }
        let sent = self.now();
        self.broker.flush()?;
        let delivered = self.now();
        self.broker.send_offsets(members)?;
        let offsets = self.now();
        self.broker.commit()?;
        tracing::debug!(
            send_us = sent - began,
            deliver_us = delivered - sent,
            offsets_us = offsets - delivered,
            commit_us = self.now() - offsets,
            "transaction"
        );
        Ok(())
    }

    /// Kafka has it: now the stores may.
    pub(super) fn after_commit(
        &mut self,
        members: &[(i32, Vec<i64>)],
        began: Micros,
    ) -> Result<(), Error> {
        let now = self.now();
        let mut failed = None;
        for (partition, _) in members {
            let Some(task) = self.slots.get_mut(partition).and_then(Slot::running) else {
                continue;
            };
            let broker = &self.broker;
            let rejected = task.take_rejected();
            match task.post_commit(&|store| broker.delivered(*partition, store), now) {
                Ok(()) => {
                    let stats = task.stats();
                    self.hooks.observer.committed(*partition, stats, &rejected);
                }
                Err(Error::Rebuild(why)) => {
                    let wiped = task.state_mut().wipe();
                    wiped.map_err(|e| Error::Fatal(e.to_string()))?;
                    failed = Some(Error::Retry(why));
                }
                Err(Error::Retry(why)) if self.failures >= 3 => {
                    return Err(Error::Fatal(format!(
                        "{why}; the store has refused four commits in a row. Nothing is lost: \
                         Kafka has them. Check the disk, then restart"
                    )));
                }
                Err(error) => failed = Some(error),
            }
        }
        self.hooks.observer.transaction(members.len(), now - began);
        match failed {
            // The other tasks are whole, but one rule for all is simpler to trust.
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Drop everything uncommitted; every task catches up before it goes on.
    pub(super) fn recover(&mut self, error: Error) -> Result<(), Error> {
        self.hooks.observer.failed(&error);
        let now = self.now();
        for slot in self.slots.values_mut() {
            if let Some(task) = &mut slot.task {
                task.abort();
            }
        }
        if let Error::Fatal(_) = error {
            // Best effort: the next instance fences the transaction anyway.
            if let Err(e) = self.broker.abort() {
                tracing::warn!("abort before exit: {e}");
            }
            return Err(error);
        }
        self.failures += 1;
        tracing::warn!(failures = self.failures, "{error}");
        let pause = 50_000i64 << self.failures.min(7);
        match &error {
            Error::Fenced(_) => self.producer = Producer::Gone(now + self.config.fence_wait_us),
            Error::Renew(_) => self.producer = Producer::Gone(now + pause),
            _ => {
                if self.producer == Producer::Ready
                    && let Err(e) = self.broker.abort()
                {
                    tracing::warn!("abort failed: {e}");
                    let wait = match e {
                        Error::Fatal(_) => return Err(e),
                        Error::Fenced(_) => self.config.fence_wait_us,
                        _ => pause,
                    };
                    self.producer = Producer::Gone(now + wait);
                }
            }
        }
        if let Producer::Gone(at) = &mut self.producer {
            // A renewal that failed itself comes here as well.
            *at = (*at).max(now + pause);
        }
        for (&partition, slot) in &mut self.slots {
            self.broker.restore_stop(partition);
            if slot.catch_up.is_none() {
                self.broker.hold(partition)?;
            }
            let mut catch_up = CatchUp::new(now);
            catch_up.not_before = now + pause.min(1_000_000);
            slot.catch_up = Some(catch_up);
        }
        Ok(())
    }
}
