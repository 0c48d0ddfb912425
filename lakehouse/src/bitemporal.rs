//! Bi-temporal rules, pure: open rows + records → closed rows + new open rows.
//!
//! `assert_over` and `retract_over` are the general rules over one key's rows; `chain` is the
//! special case of the tables, where the key fixes valid time and every record names the version
//! it replaces. No clock, no I/O, no hash order. A closed row is never touched again (INV-4);
//! intervals are half-open and never empty (INV-3).

use std::collections::BTreeMap;

use crate::tables::OPEN_END;

/// A half-open interval [from, to) in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First instant.
    pub from: i64,
    /// First instant after it.
    pub to: i64,
}

impl Span {
    /// [from, open end).
    pub fn since(from: i64) -> Span {
        Span { from, to: OPEN_END }
    }

    /// INV-3: from < to.
    pub fn is_valid(self) -> bool {
        self.from < self.to
    }

    /// Whether the spans share an instant.
    pub fn overlaps(self, other: Span) -> bool {
        self.from < other.to && other.from < self.to
    }

    /// Whether the instant is inside.
    pub fn contains(self, t: i64) -> bool {
        self.from <= t && t < self.to
    }
}

/// A row of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<P> {
    /// Valid time.
    pub valid: Span,
    /// System time; open while `to` is the open end.
    pub sys: Span,
    /// Content without revision, times, commit and offsets.
    pub payload: P,
}

/// What one record changes among one key's open rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<P> {
    /// Indexes into the open rows, with the system time at which each is closed.
    pub closed: Vec<(usize, i64)>,
    /// New open rows.
    pub opened: Vec<Row<P>>,
}

/// A record that breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// INV-3 would break.
    #[error("an interval is empty or reversed: [{}, {})", .0.from, .0.to)]
    EmptySpan(Span),
    /// System time did not move past an open row's start.
    #[error("system time {at} is not after {open}, at which the open row began")]
    SystemTime {
        /// System time of the record.
        at: i64,
        /// Start of the open row.
        open: i64,
    },
    /// A first version where a version is open.
    #[error("a first version, but the version of {open} is open")]
    AlreadyOpen {
        /// Start of the open version.
        open: i64,
    },
    /// A version that replaces another than the open one.
    #[error("it replaces the version of {prev}, but {open:?} is open")]
    WrongPredecessor {
        /// The version named.
        prev: i64,
        /// The version that is open, if any.
        open: Option<i64>,
    },
    /// A retraction that replaces nothing.
    #[error("a retraction without a version to retract")]
    NothingToRetract,
}

/// Asserts that `payload` holds over `valid`, as known from system time `s` on: overlapping open
/// rows are closed, their remnants outside `valid` are opened again, then the new row is opened.
/// If open rows with the same payload cover `valid` already, nothing changes.
///
/// # Errors
/// `EmptySpan`, `SystemTime`.
pub fn assert_over<P: Clone + PartialEq>(
    open: &[Row<P>],
    valid: Span,
    payload: &P,
    s: i64,
) -> Result<Delta<P>, Violation> {
    check(valid)?;
    if holds(open, valid, payload) {
        return Ok(Delta {
            closed: vec![],
            opened: vec![],
        });
    }
    let mut delta = cut(open, valid, s)?;
    delta.opened.push(Row {
        valid,
        sys: Span::since(s),
        payload: payload.clone(),
    });
    Ok(delta)
}

/// Retracts whatever holds over `valid` from system time `s` on.
///
/// # Errors
/// `EmptySpan`, `SystemTime`.
pub fn retract_over<P: Clone + PartialEq>(
    open: &[Row<P>],
    valid: Span,
    s: i64,
) -> Result<Delta<P>, Violation> {
    check(valid)?;
    cut(open, valid, s)
}

fn check(valid: Span) -> Result<(), Violation> {
    if valid.is_valid() {
        Ok(())
    } else {
        Err(Violation::EmptySpan(valid))
    }
}

fn holds<P: PartialEq>(open: &[Row<P>], valid: Span, payload: &P) -> bool {
    let mut spans: Vec<Span> = open
        .iter()
        .filter(|r| r.payload == *payload)
        .map(|r| r.valid)
        .collect();
    spans.sort();
    let mut covered = valid.from;
    for s in spans {
        if s.from <= covered {
            covered = covered.max(s.to);
        }
    }
    covered >= valid.to
}

fn cut<P: Clone>(open: &[Row<P>], valid: Span, s: i64) -> Result<Delta<P>, Violation> {
    let mut delta = Delta {
        closed: vec![],
        opened: vec![],
    };
    for (i, r) in open.iter().enumerate() {
        if !r.valid.overlaps(valid) {
            continue;
        }
        if s <= r.sys.from {
            return Err(Violation::SystemTime {
                at: s,
                open: r.sys.from,
            });
        }
        delta.closed.push((i, s));
        for remnant in [
            Span {
                from: r.valid.from,
                to: valid.from,
            },
            Span {
                from: valid.to,
                to: r.valid.to,
            },
        ] {
            if remnant.is_valid() {
                delta.opened.push(Row {
                    valid: remnant,
                    sys: Span::since(s),
                    payload: r.payload.clone(),
                });
            }
        }
    }
    Ok(delta)
}

/// A record as far as versions are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// Natural key.
    pub key: &'a [u8],
    /// System time of this version.
    pub sys_from: i64,
    /// System time of the version it replaces; `None` for a first one.
    pub prev: Option<i64>,
    /// Closes without opening.
    pub retracted: bool,
}

/// What becomes of a record of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is the open version after the batch.
    Open,
    /// A later record of the batch replaced it: it goes to history as it comes.
    Closed {
        /// Its sys_to.
        sys_to: i64,
    },
    /// A retraction: no row.
    Gone,
}

/// An open row of the table that the batch closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closing {
    /// Index of the record that closes it (it has the key).
    pub record: usize,
    /// sys_from of the row.
    pub prev: i64,
    /// Its sys_to.
    pub sys_to: i64,
}

/// What a batch does to versions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// One fate per record.
    pub fates: Vec<Fate>,
    /// Rows of the table to close: at most one per key.
    pub closings: Vec<Closing>,
    /// Records that claim to be the first version of their key: no row may be open.
    pub fresh: Vec<usize>,
}

/// Links the records of a batch, in order, into versions. Each key may occur several times (one
/// sink batch takes many task commits); intermediate versions are closed at once.
///
/// # Errors
/// The index of the offending record and what is wrong.
pub fn chain(records: &[Incoming<'_>]) -> Result<Chain, (usize, Violation)> {
    enum State {
        Open(usize),
        Vacant,
    }
    let mut states: BTreeMap<&[u8], State> = BTreeMap::new();
    let mut out = Chain::default();
    for (i, r) in records.iter().enumerate() {
        let fail = |v| Err((i, v));
        match (states.get(r.key), r.prev) {
            (None, None) if r.retracted => return fail(Violation::NothingToRetract),
            (None, None) => out.fresh.push(i),
            (None, Some(prev)) => {
                if r.sys_from <= prev {
                    return fail(Violation::SystemTime {
                        at: r.sys_from,
                        open: prev,
                    });
                }
                out.closings.push(Closing {
                    record: i,
                    prev,
                    sys_to: r.sys_from,
                });
            }
            (Some(State::Open(at)), prev) => {
                let open = records[*at].sys_from;
                match prev {
                    None => return fail(Violation::AlreadyOpen { open }),
                    Some(prev) if prev != open => {
                        return fail(Violation::WrongPredecessor {
                            prev,
                            open: Some(open),
                        });
                    }
                    Some(_) if r.sys_from <= open => {
                        return fail(Violation::SystemTime {
                            at: r.sys_from,
                            open,
                        });
                    }
                    Some(_) => {
                        out.fates[*at] = Fate::Closed { sys_to: r.sys_from };
                    }
                }
            }
            (Some(State::Vacant), None) if r.retracted => {
                return fail(Violation::NothingToRetract);
            }
            (Some(State::Vacant), None) => {}
            (Some(State::Vacant), Some(prev)) => {
                return fail(Violation::WrongPredecessor { prev, open: None });
            }
        }
        if r.retracted {
            out.fates.push(Fate::Gone);
            states.insert(r.key, State::Vacant);
        } else {
            out.fates.push(Fate::Open);
            states.insert(r.key, State::Open(i));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
