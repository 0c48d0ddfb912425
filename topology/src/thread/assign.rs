//! What a thread owns and how it comes to run: rebalances, catch-ups, gates.

use std::time::Duration;

use finlake_state::StateError;

use super::{Producer, Slot, StreamThread};
use crate::Micros;
use crate::broker::{Broker, Event};
use crate::catchup::{CatchUp, Scene, store_error};
use crate::driver::store_specs;
use crate::error::Error;
use crate::processor::Domain;
use crate::record::TopicIdx;
use crate::task::{CommitKind, Task};

impl<D: Domain, B: Broker> StreamThread<D, B> {
    pub(super) fn rebalance(&mut self, event: Event) -> Result<(), Error> {
        tracing::info!(?event, "rebalance");
        match event {
            Event::Assigned(partitions) => {
                self.assigned_once = true;
                let now = self.now();
                self.broker.accept_assigned()?;
                for partition in partitions {
                    self.hooks.observer.assigned(partition);
                    self.slots.insert(
                        partition,
                        Slot {
                            task: None,
                            catch_up: Some(CatchUp::new(now)),
                            gated: vec![None; self.topology.inputs().len()],
                        },
                    );
                }
                Ok(())
            }
            Event::Revoked(partitions) => {
                // Still ours: commit. A failure must not keep the release waiting.
                let committed = match self.producer {
                    Producer::Ready => self.commit(CommitKind::default(), false),
                    Producer::Gone(_) => Ok(()),
                };
                let recovered = committed.or_else(|error| self.recover(error));
                self.drop_slots(&partitions);
                self.broker.release(&partitions)?;
                recovered
            }
            Event::Lost(partitions) => {
                self.drop_slots(&partitions);
                self.broker.release(&partitions)
            }
        }
    }

    pub(super) fn drop_slots(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.broker.restore_stop(*partition);
            if let Some(slot) = self.slots.remove(partition) {
                if let Some(mut task) = slot.task {
                    task.abort();
                }
                self.hooks.observer.released(*partition);
            }
        }
    }

    /// A producer that has gone is renewed when its time has come.
    pub(super) fn ensure_producer(&mut self) -> Result<(), Error> {
        let Producer::Gone(at) = self.producer else {
            return Ok(());
        };
        if self.now() < at {
            return Ok(());
        }
        self.broker.renew_producer()?;
        self.producer = Producer::Ready;
        Ok(())
    }

    pub(super) fn catch_up(&mut self) -> Result<(), Error> {
        // An open transaction of our own must be settled first.
        if self.producer != Producer::Ready || self.slots.values().all(|s| s.catch_up.is_none()) {
            return Ok(());
        }
        self.read_changelogs()?;
        let now = self.now();
        let waiting: Vec<i32> = self
            .slots
            .iter()
            .filter(|(_, s)| s.catch_up.as_ref().is_some_and(|c| c.not_before <= now))
            .map(|(&p, _)| p)
            .collect();
        for partition in waiting {
            match self.catch_up_one(partition, now) {
                Ok(()) => {}
                Err(Error::Fatal(why)) => return Err(Error::Fatal(why)),
                Err(error) => self.catch_up_again(partition, error, now)?,
            }
        }
        Ok(())
    }

    /// Feed polled changelog records to the catch-ups that read.
    pub(super) fn read_changelogs(&mut self) -> Result<(), Error> {
        let mut catch_ups = self.slots.values().filter_map(|s| s.catch_up.as_ref());
        if !catch_ups.any(CatchUp::is_reading) {
            return Ok(());
        }
        self.restore_batch.clear();
        self.broker
            .restore_poll(&mut self.restore_batch, Duration::from_millis(5))?;
        for &run in self.restore_batch.runs() {
            if let Some(slot) = self.slots.get_mut(&run.partition)
                && let (Some(catch_up), Some(task)) = (&mut slot.catch_up, &mut slot.task)
            {
                catch_up.apply(task, &self.restore_batch, run)?;
                let replayed = catch_up.replayed();
                self.hooks.observer.restoring(run.partition, replayed);
            }
        }
        Ok(())
    }

    pub(super) fn catch_up_one(&mut self, partition: i32, now: Micros) -> Result<(), Error> {
        let stores = store_specs(&self.topology);
        let Some(slot) = self.slots.get_mut(&partition) else {
            return Ok(());
        };
        let Some(catch_up) = &mut slot.catch_up else {
            return Ok(());
        };
        let task = match &mut slot.task {
            Some(task) => task,
            empty => {
                // Partition numbers are not negative.
                let state = self
                    .db
                    .task(partition as u32, &stores)
                    .map_err(|e| match e {
                        StateError::TaskInUse { .. } => Error::Retry(e.to_string()),
                        e => store_error(partition, e),
                    })?;
                let config = &self.config.task;
                let identity = self.identity.clone();
                empty.insert(Task::new(
                    &self.topology,
                    partition,
                    state,
                    config,
                    identity,
                ))
            }
        };
        let scene = Scene {
            stores: self.topology.stores(),
            inputs: self.topology.inputs(),
            app_id: &self.config.task.app_id,
            max_age_ms: self.config.max_store_age_ms,
            now,
        };
        if let Some(positions) = catch_up.step(&scene, &mut self.broker, task)? {
            task.resume(&positions)?;
            self.broker.start(partition, &positions)?;
            let (replayed, took) = (catch_up.replayed(), now - catch_up.started());
            slot.catch_up = None;
            slot.gated.fill(None);
            self.hooks.observer.restored(partition, replayed, took);
        }
        Ok(())
    }

    pub(super) fn catch_up_again(
        &mut self,
        partition: i32,
        error: Error,
        now: Micros,
    ) -> Result<(), Error> {
        self.hooks.observer.failed(&error);
        self.broker.restore_stop(partition);
        let Some(slot) = self.slots.get_mut(&partition) else {
            return Ok(());
        };
        let attempts = slot.catch_up.as_ref().map_or(0, |c| c.attempts);
        if attempts % 8 == 1 {
            tracing::warn!(
                task = partition,
                attempts,
                "task {partition} waits for its catch-up: {error}"
            );
        }
        if let (Error::Rebuild(why), Some(task)) = (&error, &mut slot.task) {
            tracing::warn!(task = partition, "{why}; the store is wiped and rebuilt");
            task.state_mut()
                .wipe()
                .map_err(|e| Error::Fatal(e.to_string()))?;
        }
        if let Some(catch_up) = &mut slot.catch_up {
            catch_up.again(now);
        }
        Ok(())
    }

    /// Read on where the schema gate had closed; it judges again.
    pub(super) fn reopen_gates(&mut self) -> Result<(), Error> {
        if self
            .slots
            .values()
            .all(|s| s.gated.iter().all(Option::is_none))
        {
            return Ok(());
        }
        let now = self.now();
        for (&partition, slot) in &mut self.slots {
            for (topic, until) in slot.gated.iter_mut().enumerate() {
                if until.is_some_and(|until| until <= now)
                    && slot.catch_up.is_none()
                    && let Some(task) = &slot.task
                {
                    let at = task.positions().nth(topic).unwrap_or(0);
                    self.broker
                        .start_input(TopicIdx(topic as u16), partition, at)?;
                    *until = None;
                }
            }
        }
        Ok(())
    }
}
