//! One source in this partition: its stream time and the bars that it holds open.

use finlake_market::StreamTime;
use finlake_market::time::next_multiple;
use finlake_topology::Micros;

use crate::config::Plan;

pub(crate) struct Source {
    pub name: Box<str>,
    pub time: StreamTime,
    /// Stream time as the store has it.
    pub stored: StreamTime,
    /// Per interval: where the forming bars end.
    pub ends: Box<[i64]>,
    /// The next multiple of the checkpoint period.
    checkpoint_at: i64,
    /// The least of these: nothing happens before stream time reaches it.
    pub next: i64,
    /// Per interval: symbols with a forming bar.
    pub open: Box<[Vec<u32>]>,
    /// Symbols that may have a delta.
    pub deltas: Vec<u32>,
    /// Clock at the last accepted trade.
    pub last_input: Micros,
    /// Some forming bar has changed since it was last made a version.
    pub unversioned: bool,
    /// The last multiple of the checkpoint period that stream time has passed in this commit.
    pub checkpoint_due: Option<i64>,
    /// There was no input for long enough.
    pub idle_due: bool,
}

impl Source {
    pub fn new(name: &str, intervals: usize, now: Micros) -> Self {
        Self {
            name: name.into(),
            time: StreamTime::UNSET,
            stored: StreamTime::UNSET,
            ends: vec![i64::MIN; intervals].into_boxed_slice(),
            checkpoint_at: i64::MIN,
            next: i64::MIN,
            open: vec![Vec::new(); intervals].into_boxed_slice(),
            deltas: Vec::new(),
            last_input: now,
            unversioned: false,
            checkpoint_due: None,
            idle_due: false,
        }
    }

    /// Takes stream time from the store.
    pub fn restore(&mut self, time: i64, plan: &Plan) {
        self.time = StreamTime::at(time);
        self.stored = self.time;
        self.set_ends(time, plan);
    }

    /// Stream time goes to `time`, which lies at or beyond `next`.
    pub fn pass(&mut self, time: i64, plan: &Plan) {
        if self.time != StreamTime::UNSET && self.checkpoint_at <= time {
            let every = plan.config.checkpoint_every;
            self.checkpoint_due = Some(next_multiple(time, every) - every);
        }
        self.time.advance(time);
        self.set_ends(time, plan);
    }

    fn set_ends(&mut self, time: i64, plan: &Plan) {
        self.checkpoint_at = next_multiple(time, plan.config.checkpoint_every);
        self.next = self.checkpoint_at;
        for (end, interval) in self.ends.iter_mut().zip(plan.intervals.list()) {
            *end = next_multiple(time, interval.length());
            self.next = self.next.min(*end);
        }
    }
}
