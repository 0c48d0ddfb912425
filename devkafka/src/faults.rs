//! Faults on demand, for tests of what clients do when a broker misbehaves.
//!
//! Rules are consulted by the server at the connection's edge; the core never knows of them. Each
//! applies to an API, for a number of requests, in the order in which they were set.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::wire::{self, Request};

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out, and the connection is closed in place of the answer.
    DropReply,
    /// It is carried out and never answered; the connection stays open and does nothing more.
    /// The client sees a timeout: the outcome is unknown to it.
    Withhold,
    /// The connection is closed; the request is not carried out.
    CloseBefore,
    /// It is carried out that much later than it came.
    Delay(Duration),
    /// It is not carried out and answered with this error code. For the transaction, group, offset,
    /// produce and fetch requests, and for the topics that a Metadata request names; others are
    /// closed on instead.
    Error(i16),
}

#[derive(Debug)]
struct Rule {
    api_key: i16,
    /// For EndTxn: only commits, or only aborts.
    committed: Option<bool>,
    fault: Fault,
    left: u32,
}

/// The faults of one broker.
#[derive(Debug)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    refuse: watch::Sender<bool>,
    cuts: watch::Sender<u64>,
}

impl Faults {
    pub(crate) fn new() -> Faults {
        Faults {
            rules: Mutex::default(),
            refuse: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
        }
    }

    /// Applies `fault` to the next `times` requests of an API, named as in the protocol ("EndTxn").
    /// Returns false if there is no such API.
    pub fn inject(&self, api: &str, fault: Fault, times: u32) -> bool {
        let Some(api_key) = wire::api_key(api) else {
            return false;
        };
        self.rules.lock().push(Rule {
            api_key,
            committed: None,
            fault,
            left: times,
        });
        true
    }

    /// Applies `fault` to the next `times` EndTxn requests that commit (or, with false, abort).
    pub fn inject_end_txn(&self, committed: bool, fault: Fault, times: u32) {
        let Some(api_key) = wire::api_key("EndTxn") else {
            return;
        };
        self.rules.lock().push(Rule {
            api_key,
            committed: Some(committed),
            fault,
            left: times,
        });
    }

    /// Number of injected faults that have not happened yet.
    pub fn outstanding(&self) -> u32 {
        self.rules.lock().iter().map(|r| r.left).sum()
    }

    /// Forgets all rules and accepts connections again.
    pub fn clear(&self) {
        self.rules.lock().clear();
        self.refuse_connections(false);
    }

    /// Closes new connections as soon as they are made, until told otherwise.
    pub fn refuse_connections(&self, refuse: bool) {
        self.refuse.send_replace(refuse);
    }

    /// Closes every connection there is.
    pub fn cut_connections(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    pub(crate) fn refusing(&self) -> bool {
        *self.refuse.borrow()
    }

    pub(crate) fn cut_signal(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// The fault that hits this request, if any.
    pub(crate) fn take(&self, request: &Request) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let hit = |r: &Rule| {
            r.api_key == request.api_key()
                && match (r.committed, request) {
                    (Some(committed), Request::EndTxn(e)) => e.committed == committed,
                    _ => true,
                }
        };
        let at = rules.iter().position(hit)?;
        let rule = rules.get_mut(at)?;
        rule.left = rule.left.saturating_sub(1);
        let fault = rule.fault.clone();
        if rule.left == 0 {
            rules.remove(at);
        }
        Some(fault)
    }
}
