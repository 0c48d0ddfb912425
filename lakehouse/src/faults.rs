//! Crash points and planted defects, for tests and the simulator.
//!
//! Production installs `Faults::none()`, which costs one branch per point; nothing but a caller of
//! `Lakehouse::with_faults` can install another, no setting and no command. A hook decides what
//! happens at a point; it never sees or changes data. Planted defects are those that the checks of
//! the lakehouse must find: a commit applied twice, a closed version lost or left open, a commit
//! rebased onto a foreign snapshot unchecked. `tamper` and `alter` damage a table from outside.

mod damage;

use std::sync::Arc;

use crate::error::{LakeError, Result};
use crate::tables::Table;

pub use damage::{Alteration, alter, tamper};

/// A defect to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Plant {
    /// The rows of the commit are added a second time by a commit of their own, positions
    /// unchanged: DUPLICATE.
    CommitTwice,
    /// Versions that the commit closes do not reach the history: MISSING (INV-5, INV-7).
    ClosedRowLost,
    /// Versions that the commit should close stay open beside their successors: DUPLICATE
    /// (INV-2, INV-6).
    ClosingSkipped,
    /// After a lost swap the commit goes onto the foreign snapshot without comparing positions:
    /// what both took is there twice.
    Rebased,
}

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
type Plants = dyn Fn(Plant, Table) -> bool + Send + Sync;

/// The installed hooks.
#[derive(Clone, Default)]
pub struct Faults {
    hook: Option<Arc<Hook>>,
    plants: Option<Arc<Plants>>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let installed = self.hook.is_some() || self.plants.is_some();
        write!(f, "Faults({installed})")
    }
}

impl Faults {
    /// No faults.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// Asks `hook` at every point.
    pub fn new(hook: impl Fn(Point) -> Fault + Send + Sync + 'static) -> Faults {
        Faults {
            hook: Some(Arc::new(hook)),
            plants: None,
        }
    }

    /// Asks `plants` as well, once for each commit that could carry the defect (`Rebased`: for
    /// each one that would otherwise be planned anew).
    pub fn planting(
        mut self,
        plants: impl Fn(Plant, Table) -> bool + Send + Sync + 'static,
    ) -> Faults {
        self.plants = Some(Arc::new(plants));
        self
    }

    pub(crate) fn planted(&self, plant: Plant, table: Table) -> bool {
        self.plants.as_ref().is_some_and(|ask| ask(plant, table))
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
        self.hook.as_ref().map_or(Fault::None, |hook| hook(point))
    }
}
