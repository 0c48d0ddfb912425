//! What can be set about the pipeline, and its checked form that the processors share.

use std::sync::Arc;

use finlake_market::gold::GoldError;
use finlake_market::interval::{DAY, HOUR, MINUTE};
use finlake_market::{GoldConfig, Interval, IntervalError, Intervals, Limits};
use finlake_schemas::Codec;
use finlake_topology::{Micros, TopologyError};

/// When a changed forming bar goes to `market.ohlcv.live`. Closed and corrected ones go at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// With every commit.
    Commit,
    /// At most once per symbol and this many µs.
    Every(Micros),
}

/// Settings of the pipeline; the default is the documented behaviour. Durations are µs.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineConfig {
    /// Application id, written into ledger entries.
    pub app_id: String,
    /// Bars to compute; `1d` is added if missing.
    pub intervals: Vec<Interval>,
    pub emit: Emit,
    /// Forming bars of longer intervals become versions at each such multiple of stream time.
    pub checkpoint_every: Micros,
    /// A closed bar is corrected at most this often.
    pub correct_every: Micros,
    /// Forming bars become versions after this long without an accepted trade of their source.
    pub idle_checkpoint: Micros,
    pub limits: Limits,
    /// How long 1m bars stay in the store behind their symbol's latest trade.
    pub retention_1m: Micros,
    pub gold: GoldConfig,
    /// Symbols without an open bar that are kept decoded in memory, per task.
    pub cached_symbols: usize,
    /// For tests of the checks; none.
    pub faults: Faults,
}

/// Faults that tests plant into the processors, to see that somebody notices. By code alone: no setting and no command
/// reaches them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A corrected daily close changes the metrics of its own date and not of those after it.
    pub correction_not_carried: bool,
}

impl Default for PipelineConfig {
    fn default() -> Self {
        let interval = |text| Interval::parse(text).ok();
        Self {
            app_id: "finlake".to_owned(),
            intervals: ["1m", "1h", "1d"]
                .into_iter()
                .filter_map(interval)
                .collect(),
            emit: Emit::Every(1_000_000),
            checkpoint_every: HOUR,
            correct_every: 10_000_000,
            idle_checkpoint: MINUTE,
            limits: Limits::default(),
            retention_1m: 35 * DAY,
            gold: GoldConfig::default(),
            cached_symbols: 4096,
            faults: Faults::default(),
        }
    }
}

/// Why the pipeline cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Interval(#[from] IntervalError),
    #[error(transparent)]
    Gold(#[from] GoldError),
    #[error("{what} must be {must}, it is {is} µs")]
    Duration {
        what: &'static str,
        must: &'static str,
        is: Micros,
    },
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// The checked settings with the codec, shared by all tasks.
pub(crate) struct Plan {
    pub codec: Arc<Codec>,
    pub config: PipelineConfig,
    pub intervals: Intervals,
}

impl Plan {
    pub fn new(config: &PipelineConfig, codec: Arc<Codec>) -> Result<Self, PipelineError> {
        let emit = match config.emit {
            Emit::Commit => 0,
            Emit::Every(every) => every,
        };
        let checks = [
            ("emit", emit, 0, "0 or more"),
            ("correct_every", config.correct_every, 0, "0 or more"),
            ("idle_checkpoint", config.idle_checkpoint, 1, "above 0"),
            ("max_ahead", config.limits.max_ahead, 0, "0 or more"),
            ("retention_1m", config.retention_1m, DAY, "a day or more"),
        ];
        for (what, is, least, must) in checks {
            if is < least {
                return Err(PipelineError::Duration { what, must, is });
            }
        }
        let every = config.checkpoint_every;
        if every < MINUTE || every % MINUTE != 0 {
            return Err(PipelineError::Duration {
                what: "checkpoint_every",
                must: "whole minutes, at least one",
                is: every,
            });
        }
        config.gold.check()?;
        Ok(Self {
            codec,
            intervals: Intervals::new(&config.intervals)?,
            config: config.clone(),
        })
    }
}
