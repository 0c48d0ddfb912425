//! A consumer group of the classic protocol: members, generation, state.
//!
//! The state machine is Kafka's: Empty → PreparingRebalance (members join) → CompletingRebalance
//! (the leader assigns) → Stable. This file holds the state and its transitions; `group_api.rs`
//! turns requests into them and sends the replies they produce. Replies to parked joins and syncs
//! are collected in [`Group::replies`], never sent from here.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_response::{JoinGroupResponse, JoinGroupResponseMember};
use kafka_protocol::messages::sync_group_response::SyncGroupResponse;
use serde::{Deserialize, Serialize};

use super::offsets::Offsets;
use super::{Ticket, code, text};
use crate::wire::Response;

/// How long a member id that was given out may stay unused, at most (milliseconds).
const PENDING_MS: i64 = 5 * 60_000;

/// Who a request claims to be.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub member_id: &'a str,
    pub instance_id: Option<&'a str>,
    pub generation: i32,
}

/// Group states; names as Kafka shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

/// A member. Times are milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: i64,
    pub rebalance_timeout: i64,
    /// Assignor name and subscription, in the member's order of preference.
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
    /// When its session ends, unless it is heard from.
    #[serde(skip)]
    pub deadline: i64,
    #[serde(skip)]
    pub join: Option<Ticket>,
    #[serde(skip)]
    pub sync: Option<Ticket>,
}

impl Member {
    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map(|(_, m)| m.clone())
            .unwrap_or_default()
    }
}

/// What of a group outlives the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupSnapshot {
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    pub members: BTreeMap<String, Member>,
}

/// A consumer group.
#[derive(Debug)]
pub struct Group {
    pub state: State,
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: Option<String>,
    pub leader: Option<String>,
    pub members: BTreeMap<String, Member>,
    /// Member ids given out and not yet used, with their end of life.
    pub pending: BTreeMap<String, i64>,
    pub offsets: Offsets,
    /// When the running rebalance stops waiting.
    rebalance_deadline: i64,
    /// True while an empty group waits for more first members.
    initial: bool,
    pub replies: Vec<(Ticket, Response)>,
    /// True if members or assignments changed since they were last written to the journal.
    pub changed: bool,
}

impl Group {
    pub fn new() -> Group {
        Group {
            state: State::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            offsets: Offsets::default(),
            rebalance_deadline: i64::MAX,
            initial: false,
            replies: Vec::new(),
            changed: false,
        }
    }

    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    pub fn snapshot(&self) -> GroupSnapshot {
        GroupSnapshot {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: self.members.clone(),
        }
    }

    pub fn restore(&mut self, from: GroupSnapshot) {
        self.state = if from.members.is_empty() {
            State::Empty
        } else {
            State::Stable
        };
        self.generation = from.generation;
        self.protocol_type = from.protocol_type;
        self.protocol = from.protocol;
        self.leader = from.leader;
        // Live, the record is a copy of the members that are there, parked requests included.
        self.members = from.members;
    }

    /// Gives recovered members a whole session to be heard from.
    pub fn recovered(&mut self, now: i64) {
        for member in self.members.values_mut() {
            member.deadline = now + member.session_timeout;
        }
    }

    /// The member that acts under a group instance id.
    pub fn static_member(&self, instance: &str) -> Option<&str> {
        self.members
            .iter()
            .find(|(_, m)| m.instance_id.as_deref() == Some(instance))
            .map(|(id, _)| id.as_str())
    }

    /// Checks member id and instance id, not the generation.
    pub fn known(&self, caller: &Caller<'_>) -> Result<(), ResponseError> {
        if let Some(instance) = caller.instance_id {
            match self.static_member(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(id) if id != caller.member_id => return Err(ResponseError::FencedInstanceId),
                Some(_) => return Ok(()),
            }
        }
        if self.members.contains_key(caller.member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    /// Checks member, instance and generation.
    pub fn current(&self, caller: &Caller<'_>) -> Result<(), ResponseError> {
        self.known(caller)?;
        if caller.generation == self.generation {
            Ok(())
        } else {
            Err(ResponseError::IllegalGeneration)
        }
    }

    /// Checks an OffsetCommit and counts it as a sign of life.
    pub fn may_commit(&mut self, caller: &Caller<'_>, now: i64) -> Result<(), ResponseError> {
        if caller.generation < 0 && self.state == State::Empty {
            return Ok(()); // a client that only keeps offsets here
        }
        self.current(caller)?;
        if self.state == State::CompletingRebalance {
            return Err(ResponseError::RebalanceInProgress);
        }
        self.touch(caller.member_id, now);
        Ok(())
    }

    /// Checks a TxnOffsetCommit (KIP-447); one without any group metadata is let through.
    pub fn may_commit_in_txn(
        &mut self,
        caller: &Caller<'_>,
        now: i64,
    ) -> Result<(), ResponseError> {
        if caller.generation < 0 && caller.member_id.is_empty() && caller.instance_id.is_none() {
            return Ok(());
        }
        self.current(caller)?;
        self.touch(caller.member_id, now);
        Ok(())
    }

    pub fn touch(&mut self, member_id: &str, now: i64) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.deadline = now + member.session_timeout;
        }
    }

    /// True if the assignors have one in common with every present member.
    pub fn compatible(&self, protocol_type: &str, protocols: &[(String, Bytes)]) -> bool {
        if self.members.is_empty() {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let shared = |name: &str| {
            self.members
                .values()
                .all(|m| m.protocols.iter().any(|(n, _)| n == name))
        };
        protocol_type == self.protocol_type && protocols.iter().any(|(name, _)| shared(name))
    }

    /// Starts (or goes on with) a rebalance. `delay`: how long an empty group waits.
    pub fn prepare_rebalance(&mut self, delay: i64, now: i64) {
        for (_, member) in self.members.iter_mut() {
            if let Some(ticket) = member.sync.take() {
                let error = SyncGroupResponse::default()
                    .with_error_code(code(ResponseError::RebalanceInProgress));
                self.replies.push((ticket, Response::SyncGroup(error)));
            }
        }
        if self.state != State::PreparingRebalance {
            self.initial = self.state == State::Empty && delay > 0;
            let longest = self
                .members
                .values()
                .map(|m| m.rebalance_timeout)
                .max()
                .unwrap_or(0);
            self.rebalance_deadline = now + if self.initial { delay } else { longest };
            self.state = State::PreparingRebalance;
        }
        self.maybe_complete_join(now);
    }

    /// Completes the join phase if everyone is there.
    pub fn maybe_complete_join(&mut self, now: i64) {
        if self.state != State::PreparingRebalance || self.initial {
            return;
        }
        if self.pending.is_empty() && self.members.values().all(|m| m.join.is_some()) {
            self.complete_join(now);
        }
    }

    fn complete_join(&mut self, now: i64) {
        // Static members that have not come back keep their place until their session ends.
        let gone: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| m.join.is_none() && m.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.members.remove(&id);
        }
        self.generation += 1;
        self.initial = false;
        self.rebalance_deadline = i64::MAX;
        self.changed = true;
        if self.members.is_empty() {
            self.state = State::Empty;
            self.protocol = None;
            self.leader = None;
            return;
        }
        if !self.members.values().any(|m| m.join.is_some()) {
            // Only absent static members are left: wait for their sessions to end.
            self.state = State::PreparingRebalance;
            self.rebalance_deadline = now
                + self
                    .members
                    .values()
                    .map(|m| m.rebalance_timeout)
                    .max()
                    .unwrap_or(1);
            return;
        }
        self.state = State::CompletingRebalance;
        self.protocol = self.choose_protocol();
        let led = self
            .leader
            .as_ref()
            .and_then(|id| self.members.get(id))
            .is_some_and(|m| m.join.is_some());
        if !led {
            self.leader = self
                .members
                .iter()
                .find(|(_, m)| m.join.is_some())
                .map(|(id, _)| id.clone());
        }
        let longest = self
            .members
            .values()
            .map(|m| m.rebalance_timeout)
            .max()
            .unwrap_or(0);
        self.rebalance_deadline = now + longest;
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            self.touch(&id, now);
            if let Some(ticket) = self.members.get_mut(&id).and_then(|m| m.join.take()) {
                let response = self.join_response(&id, false);
                self.replies.push((ticket, Response::JoinGroup(response)));
            }
        }
    }

    /// The assignor that every member knows and most prefer; ties go to the first by name.
    fn choose_protocol(&self) -> Option<String> {
        let common = |name: &String| {
            self.members
                .values()
                .all(|m| m.protocols.iter().any(|(n, _)| n == name))
        };
        let mut votes: BTreeMap<&String, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(n, _)| common(n)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied()?;
        votes
            .into_iter()
            .find(|(_, v)| *v == most)
            .map(|(name, _)| name.clone())
    }

    /// The answer to a member's join in the present generation.
    pub fn join_response(&self, member_id: &str, skip_assignment: bool) -> JoinGroupResponse {
        let protocol = self.protocol.clone().unwrap_or_default();
        let leader = self.leader.clone().unwrap_or_default();
        let mut response = JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_protocol_type(Some(text(self.protocol_type.as_str())))
            .with_member_id(text(member_id))
            .with_skip_assignment(skip_assignment);
        if leader == member_id {
            response.members = self
                .members
                .iter()
                .map(|(id, m)| {
                    JoinGroupResponseMember::default()
                        .with_member_id(text(id.as_str()))
                        .with_group_instance_id(m.instance_id.clone().map(text))
                        .with_metadata(m.metadata(&protocol))
                })
                .collect();
        }
        response
            .with_leader(text(leader))
            .with_protocol_name(Some(text(protocol)))
    }

    pub fn sync_response(&self, member_id: &str) -> SyncGroupResponse {
        let assignment = self
            .members
            .get(member_id)
            .map(|m| m.assignment.clone())
            .unwrap_or_default();
        SyncGroupResponse::default()
            .with_protocol_type(Some(text(self.protocol_type.as_str())))
            .with_protocol_name(self.protocol.clone().map(text))
            .with_assignment(assignment)
    }

    /// Takes the leader's assignments and answers everyone who waits for them.
    pub fn assign(&mut self, assignments: BTreeMap<String, Bytes>, now: i64) {
        for (id, member) in self.members.iter_mut() {
            member.assignment = assignments.get(id).cloned().unwrap_or_default();
        }
        self.state = State::Stable;
        self.rebalance_deadline = i64::MAX;
        self.changed = true;
        let waiting: Vec<(String, Ticket)> = self
            .members
            .iter_mut()
            .filter_map(|(id, m)| m.sync.take().map(|t| (id.clone(), t)))
            .collect();
        for (id, ticket) in waiting {
            self.touch(&id, now);
            let response = self.sync_response(&id);
            self.replies.push((ticket, Response::SyncGroup(response)));
        }
    }

    /// Removes a member and rebalances the others. Its parked requests are answered with an error.
    pub fn remove(&mut self, member_id: &str, now: i64) {
        self.pending.remove(member_id);
        let Some(member) = self.members.remove(member_id) else {
            self.maybe_complete_join(now);
            return;
        };
        let error = code(ResponseError::UnknownMemberId);
        if let Some(ticket) = member.join {
            self.replies.push((
                ticket,
                Response::JoinGroup(
                    JoinGroupResponse::default()
                        .with_error_code(error)
                        .with_generation_id(-1),
                ),
            ));
        }
        if let Some(ticket) = member.sync {
            self.replies.push((
                ticket,
                Response::SyncGroup(SyncGroupResponse::default().with_error_code(error)),
            ));
        }
        self.changed = true;
        match self.state {
            State::Stable | State::CompletingRebalance => self.prepare_rebalance(0, now),
            State::PreparingRebalance => self.maybe_complete_join(now),
            State::Empty => {}
        }
    }

    /// When [`Group::tick`] is next needed.
    pub fn deadline(&self) -> i64 {
        let sessions = self
            .members
            .values()
            .filter(|m| m.join.is_none())
            .map(|m| m.deadline);
        let pending = self.pending.values().copied();
        sessions
            .chain(pending)
            .chain([self.rebalance_deadline])
            .min()
            .unwrap_or(i64::MAX)
    }

    /// Ends sessions and rebalance phases that have lasted too long.
    pub fn tick(&mut self, now: i64) {
        self.pending.retain(|_, deadline| *deadline > now);
        let silent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| m.join.is_none() && m.deadline <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in silent {
            self.remove(&id, now);
        }
        if now >= self.rebalance_deadline {
            match self.state {
                State::PreparingRebalance => self.complete_join(now),
                State::CompletingRebalance => {
                    // Members that have not asked for their assignment in time are gone.
                    self.rebalance_deadline = i64::MAX;
                    let late: Vec<String> = self
                        .members
                        .iter()
                        .filter(|(_, m)| m.sync.is_none())
                        .map(|(id, _)| id.clone())
                        .collect();
                    late.iter().for_each(|id| self.remove(id, now));
                }
                State::Empty | State::Stable => self.rebalance_deadline = i64::MAX,
            }
        }
        self.maybe_complete_join(now);
    }

    /// Remembers a member id that a client will join with.
    pub fn expect(&mut self, member_id: String, session_timeout: i64, now: i64) {
        self.pending
            .insert(member_id, now + session_timeout.min(PENDING_MS));
    }
}
