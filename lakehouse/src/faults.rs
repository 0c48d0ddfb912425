//! Crash points of a commit, for tests and the simulator.
//!
//! Production installs `Faults::none()`, which costs one branch per point. A hook decides what
//! happens at a point; it never sees or changes data.

use std::sync::Arc;

use crate::error::{LakeError, Result};

/// Points at which a commit can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// Before the first data file.
    BeforeData,
    /// Data files are written, no manifest yet.
    AfterData,
    /// Manifests and manifest list are written, no metadata yet.
    BeforeMetadata,
    /// The metadata file is written, the swap not sent.
    BeforeSwap,
    /// The swap was sent; the reply can be lost here.
    AfterSwap,
    /// The swap succeeded, clean-up of expired files has not begun.
    BeforeCleanup,
}

impl Point {
    /// All points in order.
    pub const ALL: [Point; 6] = [
        Point::BeforeData,
        Point::AfterData,
        Point::BeforeMetadata,
        Point::BeforeSwap,
        Point::AfterSwap,
        Point::BeforeCleanup,
    ];

    fn name(self) -> &'static str {
        match self {
            Point::BeforeData => "before data",
            Point::AfterData => "after data",
            Point::BeforeMetadata => "before metadata",
            Point::BeforeSwap => "before swap",
            Point::AfterSwap => "after swap",
            Point::BeforeCleanup => "before clean-up",
        }
    }
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The process dies here: the call returns `LakeError::Injected` and cleans nothing up.
    Crash,
    /// The catalog's reply is lost (meaningful at `AfterSwap`).
    LoseReply,
}

type Hook = dyn Fn(Point) -> Fault + Send + Sync;

/// The installed hook.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Hook>>);

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faults({})", self.0.is_some())
    }
}

impl Faults {
    /// No faults.
    pub fn none() -> Faults {
        Faults(None)
    }

    /// Asks `hook` at every point.
    pub fn new(hook: impl Fn(Point) -> Fault + Send + Sync + 'static) -> Faults {
        Faults(Some(Arc::new(hook)))
    }

    /// Crashes if the hook says so.
    ///
    /// # Errors
    /// `Injected`.
    pub(crate) fn crash_at(&self, point: Point) -> Result<()> {
        match self.at(point) {
            Fault::Crash => Err(LakeError::Injected(point.name())),
            _ => Ok(()),
        }
    }

    pub(crate) fn at(&self, point: Point) -> Fault {
        self.0.as_ref().map_or(Fault::None, |hook| hook(point))
    }
}
