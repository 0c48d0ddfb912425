//! What a stream thread tells the outside while it runs: metrics, health, a
//! progress display. Observers only listen; the thread never waits for them.

use crate::Micros;
use crate::error::Error;
use crate::stats::CommitStats;

/// Listener to one stream thread. Every method may be left out.
pub trait Observer: Send {
    /// A task was assigned to the thread; its catch-up begins.
    fn assigned(&mut self, task: i32) {
        let _ = task;
    }

    /// A task's catch-up has replayed so many changelog records so far.
    fn restoring(&mut self, task: i32, replayed: u64) {
        let _ = (task, replayed);
    }

    /// A task has caught up and runs.
    fn restored(&mut self, task: i32, replayed: u64, took: Micros) {
        let _ = (task, replayed, took);
    }

    /// How many tasks of the thread catch up and run, once a second.
    fn tasks(&mut self, restoring: usize, running: usize) {
        let _ = (restoring, running);
    }

    /// A task has left the thread.
    fn released(&mut self, task: i32) {
        let _ = task;
    }

    /// A task's part of a transaction that has committed. `rejected` counts
    /// dead letters by class.
    fn committed(&mut self, task: i32, stats: &CommitStats, rejected: &[(String, i64)]) {
        let _ = (task, stats, rejected);
    }

    /// One transaction with `tasks` tasks has committed; `took` includes
    /// preparation and the stores' write.
    fn transaction(&mut self, tasks: usize, took: Micros) {
        let _ = (tasks, took);
    }

    /// Records between a task's position and the end of an input, as last heard.
    fn lag(&mut self, task: i32, topic: &str, records: i64) {
        let _ = (task, topic, records);
    }

    /// Bytes a task's stores take on disk, roughly.
    fn state_size(&mut self, task: i32, bytes: u64) {
        let _ = (task, bytes);
    }

    /// Input is held back: its schema cannot be resolved for now.
    fn held(&mut self, task: i32, topic: &str, why: &str) {
        let _ = (task, topic, why);
    }

    /// Something failed; the error says what the thread does about it.
    fn failed(&mut self, error: &Error) {
        let _ = error;
    }
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
