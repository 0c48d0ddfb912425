//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup: requests of group members.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};

use super::group::{Caller, Group, Member, State};
use super::journal::Record;
use super::{Client, Core, Outcome, Ticket, code, result_code, text};
use crate::wire::Response;

/// `group.min.session.timeout.ms`, lower than Kafka's so that tests can be quick.
const MIN_SESSION_MS: i32 = 100;
/// `group.max.session.timeout.ms`, as Kafka's default.
const MAX_SESSION_MS: i32 = 30 * 60_000;
/// Most members of a group.
const MAX_MEMBERS: usize = 10_000;

/// What a join asks for.
struct Join<'a> {
    ticket: Ticket,
    client: &'a Client,
    version: i16,
    instance: Option<String>,
    protocol_type: String,
    protocols: Vec<(String, Bytes)>,
    session_timeout: i64,
    rebalance_timeout: i64,
}

impl Join<'_> {
    fn member(&self, now: i64) -> Member {
        Member {
            instance_id: self.instance.clone(),
            client_id: self.client.id.clone(),
            client_host: self.client.host.clone(),
            session_timeout: self.session_timeout,
            rebalance_timeout: self.rebalance_timeout,
            protocols: self.protocols.clone(),
            assignment: Bytes::new(),
            deadline: now + self.session_timeout,
            join: Some(self.ticket),
            sync: None,
        }
    }
}

/// An immediate answer to a join, or None if it is parked or has been answered through the group.
type Joined = Result<Option<JoinGroupResponse>, (ResponseError, String)>;

impl Core {
    pub(super) fn join_group(
        &mut self,
        ticket: Ticket,
        client: &Client,
        version: i16,
        request: JoinGroupRequest,
        now: i64,
    ) -> Outcome {
        let id = request.group_id.0.to_string();
        let member_id = request.member_id.to_string();
        let session = request.session_timeout_ms;
        let checked = if id.is_empty() {
            Err(ResponseError::InvalidGroupId)
        } else if !(MIN_SESSION_MS..=MAX_SESSION_MS).contains(&session) {
            Err(ResponseError::InvalidSessionTimeout)
        } else if !member_id.is_empty() && !self.groups.contains_key(&id) {
            Err(ResponseError::UnknownMemberId)
        } else {
            Ok(())
        };
        if let Err(error) = checked {
            return Outcome::Reply(Response::JoinGroup(refused(error, member_id)));
        }
        let rebalance = if version >= 1 {
            request.rebalance_timeout_ms
        } else {
            session
        };
        let join = Join {
            ticket,
            client,
            version,
            instance: request.group_instance_id.map(|i| i.to_string()),
            protocol_type: request.protocol_type.to_string(),
            protocols: request
                .protocols
                .into_iter()
                .map(|p| (p.name.to_string(), own(&p.metadata)))
                .collect(),
            session_timeout: i64::from(session),
            rebalance_timeout: i64::from(rebalance.max(1)),
        };
        let fresh = format!(
            "{}-{}",
            join.instance.as_deref().unwrap_or(&client.id),
            self.rng.uuid()
        );
        let delay = self.config.initial_rebalance_delay_ms as i64;
        let joined = join_member(self.group_mut(&id), &join, member_id, fresh, delay, now);
        self.group_settled(&id);
        match joined {
            Ok(Some(response)) => Outcome::Reply(Response::JoinGroup(response)),
            Ok(None) => Outcome::Parked,
            Err((error, member_id)) => {
                Outcome::Reply(Response::JoinGroup(refused(error, member_id)))
            }
        }
    }

    pub(super) fn sync_group(
        &mut self,
        ticket: Ticket,
        request: SyncGroupRequest,
        now: i64,
    ) -> Outcome {
        let id = request.group_id.0.to_string();
        let Some(group) = self.groups.get_mut(&id) else {
            return Outcome::Reply(Response::SyncGroup(sync_error(
                ResponseError::UnknownMemberId,
            )));
        };
        let caller = Caller {
            member_id: &request.member_id,
            instance_id: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let differs =
            |given: &Option<_>, have: &str| given.as_deref().is_some_and(|g: &str| g != have);
        let checked = group.current(&caller).and_then(|()| {
            let protocol = group.protocol.as_deref().unwrap_or_default();
            if differs(&request.protocol_type, &group.protocol_type)
                || differs(&request.protocol_name, protocol)
            {
                return Err(ResponseError::InconsistentGroupProtocol);
            }
            Ok(())
        });
        if let Err(error) = checked {
            return Outcome::Reply(Response::SyncGroup(sync_error(error)));
        }
        let member_id = request.member_id.to_string();
        group.touch(&member_id, now);
        let outcome = match group.state {
            State::Empty => Outcome::Reply(Response::SyncGroup(sync_error(
                ResponseError::UnknownMemberId,
            ))),
            State::PreparingRebalance => Outcome::Reply(Response::SyncGroup(sync_error(
                ResponseError::RebalanceInProgress,
            ))),
            State::Stable => Outcome::Reply(Response::SyncGroup(group.sync_response(&member_id))),
            State::CompletingRebalance => {
                if let Some(member) = group.members.get_mut(&member_id) {
                    member.sync = Some(ticket);
                }
                if group.leader.as_deref() == Some(&member_id) {
                    let given = request.assignments.into_iter();
                    let assignments: BTreeMap<String, Bytes> = given
                        .map(|a| (a.member_id.to_string(), own(&a.assignment)))
                        .collect();
                    group.assign(assignments, now);
                }
                Outcome::Parked
            }
        };
        self.group_settled(&id);
        outcome
    }

    pub(super) fn heartbeat(&mut self, request: HeartbeatRequest, now: i64) -> Outcome {
        let caller = Caller {
            member_id: &request.member_id,
            instance_id: request.group_instance_id.as_deref(),
            generation: request.generation_id,
        };
        let result = match self.groups.get_mut(request.group_id.as_str()) {
            None => Err(ResponseError::UnknownMemberId),
            Some(group) => group.current(&caller).and_then(|()| {
                group.touch(caller.member_id, now);
                match group.state {
                    State::PreparingRebalance => Err(ResponseError::RebalanceInProgress),
                    _ => Ok(()),
                }
            }),
        };
        self.refresh_group_deadline();
        Outcome::Reply(Response::Heartbeat(
            HeartbeatResponse::default().with_error_code(result_code(&result)),
        ))
    }

    pub(super) fn leave_group(
        &mut self,
        request: LeaveGroupRequest,
        version: i16,
        now: i64,
    ) -> Outcome {
        let id = request.group_id.0.to_string();
        let mut response = LeaveGroupResponse::default();
        if version < 3 {
            let result = self.leave(&id, &request.member_id, None, now);
            response.error_code = result_code(&result);
        } else {
            for member in request.members {
                let instance = member.group_instance_id.as_deref();
                let result = self.leave(&id, &member.member_id, instance, now);
                response.members.push(
                    MemberResponse::default()
                        .with_member_id(member.member_id)
                        .with_group_instance_id(member.group_instance_id)
                        .with_error_code(result_code(&result)),
                );
            }
        }
        self.group_settled(&id);
        Outcome::Reply(Response::LeaveGroup(response))
    }

    fn leave(
        &mut self,
        group: &str,
        member_id: &str,
        instance: Option<&str>,
        now: i64,
    ) -> Result<(), ResponseError> {
        let group = self
            .groups
            .get_mut(group)
            .ok_or(ResponseError::UnknownMemberId)?;
        let leaving = match instance {
            // An administrator removes a static member by its instance id alone.
            Some(instance) if member_id.is_empty() => group
                .static_member(instance)
                .ok_or(ResponseError::UnknownMemberId)?
                .to_owned(),
            _ if group.pending.contains_key(member_id) => member_id.to_owned(),
            _ => {
                group.known(&Caller {
                    member_id,
                    instance_id: instance,
                    generation: -1,
                })?;
                member_id.to_owned()
            }
        };
        group.remove(&leaving, now);
        Ok(())
    }

    pub(super) fn tick_groups(&mut self, now: i64) {
        let due: Vec<String> = self
            .groups
            .iter()
            .filter(|(_, g)| g.deadline() <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            if let Some(group) = self.groups.get_mut(&id) {
                group.tick(now);
            }
            self.group_settled(&id);
        }
        self.refresh_group_deadline();
    }

    /// Sends what a group's change has brought about, and writes the change down.
    fn group_settled(&mut self, id: &str) {
        if let Some(group) = self.groups.get_mut(id) {
            let replies = std::mem::take(&mut group.replies);
            let written = std::mem::take(&mut group.changed)
                && matches!(group.state, State::Stable | State::Empty);
            let snapshot = written.then(|| group.snapshot());
            if let Some(group) = snapshot
                && let Err(error) = self.record(Record::Group {
                    id: id.to_owned(),
                    group,
                })
            {
                tracing::error!(%error, group = id, "group state was not written; after a restart its members rejoin");
            }
            for (ticket, response) in replies {
                self.send(ticket, response);
            }
        }
        self.refresh_group_deadline();
    }

    pub(super) fn refresh_group_deadline(&mut self) {
        self.group_deadline = self
            .groups
            .values()
            .map(Group::deadline)
            .min()
            .unwrap_or(i64::MAX);
    }
}

fn join_member(
    group: &mut Group,
    join: &Join<'_>,
    member_id: String,
    fresh: String,
    delay: i64,
    now: i64,
) -> Joined {
    let known = member_id.is_empty()
        || group.members.contains_key(&member_id)
        || group.pending.contains_key(&member_id);
    if let Some(instance) = &join.instance {
        let present = group.static_member(instance).map(str::to_owned);
        match (present, member_id.is_empty()) {
            (Some(present), true) => return replace_static(group, join, &present, fresh, now),
            (Some(present), false) if present != member_id => {
                return Err((ResponseError::FencedInstanceId, member_id));
            }
            (None, false) => return Err((ResponseError::UnknownMemberId, member_id)),
            _ => {}
        }
    } else if !known {
        return Err((ResponseError::UnknownMemberId, member_id));
    }
    if !group.members.contains_key(&member_id) {
        if !group.compatible(&join.protocol_type, &join.protocols) {
            return Err((ResponseError::InconsistentGroupProtocol, member_id));
        }
        if group.members.len() + group.pending.len() >= MAX_MEMBERS && member_id.is_empty() {
            return Err((ResponseError::GroupMaxSizeReached, member_id));
        }
        if member_id.is_empty() && join.instance.is_none() && join.version >= 4 {
            group.expect(fresh.clone(), join.session_timeout, now);
            return Err((ResponseError::MemberIdRequired, fresh));
        }
        let id = if member_id.is_empty() {
            fresh
        } else {
            member_id
        };
        group.pending.remove(&id);
        if group.members.is_empty() {
            group.protocol_type.clone_from(&join.protocol_type);
        }
        group.members.insert(id.clone(), join.member(now));
        if group.leader.is_none() {
            group.leader = Some(id);
        }
        group.prepare_rebalance(delay, now);
        return Ok(None);
    }
    rejoin(group, join, member_id, now)
}

/// A present member joins again.
fn rejoin(group: &mut Group, join: &Join<'_>, id: String, now: i64) -> Joined {
    let unchanged = group
        .members
        .get(&id)
        .is_some_and(|m| m.protocols == join.protocols);
    let leads = group.leader.as_deref() == Some(&id);
    match group.state {
        State::CompletingRebalance if unchanged => {
            return Ok(Some(group.join_response(&id, false)));
        }
        State::Stable if unchanged && !leads => return Ok(Some(group.join_response(&id, false))),
        _ => {}
    }
    if let Some(member) = group.members.get_mut(&id) {
        let assignment = std::mem::take(&mut member.assignment);
        // A client that repeats a parked join gets its answer on the new request.
        let earlier = member.join.take();
        *member = Member {
            assignment,
            ..join.member(now)
        };
        if let Some(ticket) = earlier {
            group.replies.push((
                ticket,
                Response::JoinGroup(refused(ResponseError::RebalanceInProgress, id)),
            ));
        }
    }
    group.prepare_rebalance(0, now);
    Ok(None)
}

/// A static member comes back under a new member id.
fn replace_static(
    group: &mut Group,
    join: &Join<'_>,
    old: &str,
    fresh: String,
    now: i64,
) -> Joined {
    let Some(gone) = group.members.remove(old) else {
        return Err((ResponseError::UnknownMemberId, fresh));
    };
    if let Some(ticket) = gone.join {
        group.replies.push((
            ticket,
            Response::JoinGroup(refused(ResponseError::FencedInstanceId, old.to_owned())),
        ));
    }
    if let Some(ticket) = gone.sync {
        group.replies.push((
            ticket,
            Response::SyncGroup(sync_error(ResponseError::FencedInstanceId)),
        ));
    }
    let led = group.leader.as_deref() == Some(old);
    let same = gone.protocols == join.protocols;
    group.members.insert(
        fresh.clone(),
        Member {
            assignment: gone.assignment,
            ..join.member(now)
        },
    );
    if led {
        group.leader = Some(fresh.clone());
    }
    group.changed = true;
    if group.state == State::Stable && same {
        if let Some(member) = group.members.get_mut(&fresh) {
            member.join = None;
        }
        // No rebalance: the generation stands. A leader that can be told so skips assigning; an
        // older one is shown another leader, so that it does not assign from a stale view.
        let mut response = group.join_response(&fresh, led && join.version >= 9);
        if led && join.version < 9 {
            response.leader = text(old);
            response.members.clear();
        }
        return Ok(Some(response));
    }
    group.prepare_rebalance(0, now);
    Ok(None)
}

/// A copy that does not keep the whole frame alive.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn refused(error: ResponseError, member_id: String) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(code(error))
        .with_generation_id(-1)
        .with_protocol_type(Some(text("")))
        .with_protocol_name(Some(text("")))
        .with_member_id(text(member_id))
}

fn sync_error(error: ResponseError) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(code(error))
}
