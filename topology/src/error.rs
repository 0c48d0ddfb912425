//! Errors of the engine, named by what the caller does about them.
//!
//! A record at fault is not here: it is `Failure::Reject` and goes to the
//! dead-letter topic inside the transaction.

/// What to do next.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Transient, nothing was committed: abort, catch up, go on after a pause.
    #[error("{0}; retrying")]
    Retry(String),
    /// Group membership is stale: abort, drop every overlay of the thread, catch
    /// up and go on with the partitions that are still owned.
    #[error("{0}; rejoining the group")]
    Rejoin(String),
    /// The outcome of a transaction is unknown, or the producer is no longer
    /// usable: destroy it, make a new one (which settles the outcome), catch up.
    #[error("{0}; making a new producer")]
    Renew(String),
    /// As `Renew`, and the producer was fenced: by another process that bears
    /// this one's id, or by the broker, which aborts on a timeout. Wait long
    /// enough for the group to say which, before fencing back.
    #[error("{0}; waiting to see whether another process bears this id")]
    Fenced(String),
    /// A store cannot be used as it is: wipe it, restore it from its changelog.
    #[error("{0}; rebuilding the store from its changelog")]
    Rebuild(String),
    /// A human is needed; the message says for what.
    #[error("{0}")]
    Fatal(String),
}

impl Error {
    /// An error that stops the thread.
    pub fn fatal(why: impl std::fmt::Display) -> Self {
        Error::Fatal(why.to_string())
    }

    /// The message without the advice.
    pub fn message(&self) -> &str {
        match self {
            Error::Retry(m)
            | Error::Rejoin(m)
            | Error::Renew(m)
            | Error::Fenced(m)
            | Error::Rebuild(m)
            | Error::Fatal(m) => m,
        }
    }

    /// The same error with `what` in front of its message.
    pub fn context(self, what: impl std::fmt::Display) -> Self {
        match self {
            Error::Retry(m) => Error::Retry(format!("{what}: {m}")),
            Error::Rejoin(m) => Error::Rejoin(format!("{what}: {m}")),
            Error::Renew(m) => Error::Renew(format!("{what}: {m}")),
            Error::Fenced(m) => Error::Fenced(format!("{what}: {m}")),
            Error::Rebuild(m) => Error::Rebuild(format!("{what}: {m}")),
            Error::Fatal(m) => Error::Fatal(format!("{what}: {m}")),
        }
    }
}
