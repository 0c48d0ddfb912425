//! Ends of a thread, and its reports while it runs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Control, Producer, Slot, StreamThread};
use crate::broker::{Broker, Event};
use crate::error::Error;
use crate::processor::Domain;
use crate::record::TopicIdx;
use crate::task::CommitKind;

impl<D: Domain, B: Broker> StreamThread<D, B> {
    /// Lag and sizes, once a second.
    pub(super) fn report(&mut self) {
        let now = self.now();
        if now - self.reported_at < 1_000_000 {
            return;
        }
        self.reported_at = now;
        let all = self.slots.len();
        let running = self.slots.values().filter(|s| s.catch_up.is_none());
        let running = running.count();
        self.hooks.observer.tasks(all - running, running);
        for (&partition, slot) in &mut self.slots {
            let Some(task) = &slot.task else { continue };
            for (topic, position) in task.positions().enumerate() {
                let end = self.broker.known_end(TopicIdx(topic as u16), partition);
                if let Some(end) = end {
                    let name = &self.topology.inputs()[topic];
                    let lag = (end - position).max(0);
                    self.hooks.observer.lag(partition, name, lag);
                }
            }
            let size = task.state().size_estimate();
            self.hooks.observer.state_size(partition, size);
        }
    }

    /// Finish if an end was asked for and can be made now.
    pub(super) fn end(&mut self, control: &Control, idle: bool) -> Result<bool, Error> {
        let stop = control.stop.load(Ordering::Relaxed);
        if !stop && !control.drain.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let now = self.now();
        if stop {
            let by = *self
                .stop_by
                .get_or_insert(now + self.config.stop_timeout_us);
            let ready = self.producer == Producer::Ready
                && self.slots.values().all(|s| s.catch_up.is_none());
            if !ready && now < by && self.failures > 0 {
                return Ok(false);
            }
            if self.producer != Producer::Ready {
                tracing::warn!("stopping without a last commit: the producer is not usable");
                return Ok(true);
            }
        } else if !(idle && self.drained()?) {
            return Ok(false);
        }
        let stopping = true;
        let last = false;
        self.commit(CommitKind { stopping, last }, true)?;
        let last = true;
        self.commit(CommitKind { stopping, last }, true)?;
        if control.leave.load(Ordering::Relaxed) {
            self.leave()?;
        }
        Ok(true)
    }

    /// Every owned input is read to its high watermark.
    pub(super) fn drained(&mut self) -> Result<bool, Error> {
        let waiting = |s: &Slot<D>| s.catch_up.is_some() || s.gated.iter().any(Option::is_some);
        if !self.assigned_once || self.slots.values().any(waiting) {
            return Ok(false);
        }
        for (&partition, slot) in &mut self.slots {
            let Some(task) = slot.running() else {
                return Ok(false);
            };
            self.broker.positions(partition, &mut self.positions)?;
            for (topic, position) in self.positions.iter().enumerate() {
                if let Some(position) = position {
                    task.advance(TopicIdx(topic as u16), *position);
                }
            }
            let bounds = self.broker.input_bounds(partition)?;
            if task.positions().zip(&bounds).any(|(at, b)| at < b.high) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Give the partitions back; everything is committed.
    pub(super) fn leave(&mut self) -> Result<(), Error> {
        self.broker.unsubscribe()?;
        let by = self.now() + self.config.stop_timeout_us;
        while !self.slots.is_empty() && self.now() < by {
            self.batch.clear();
            let timeout = Duration::from_millis(50);
            let event = self
                .broker
                .poll(&mut self.batch, self.config.poll, timeout)?;
            if let Some(Event::Revoked(partitions) | Event::Lost(partitions)) = event {
                self.drop_slots(&partitions);
                self.broker.release(&partitions)?;
            }
        }
        Ok(())
    }
}
