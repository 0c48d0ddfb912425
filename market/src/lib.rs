//! The market's rules as pure functions: what a valid trade is, which trades were seen before,
//! how trades fold into bars, when a bar is closed, and what the daily statistics are.
//!
//! Data flows `Tick` → [`validate`] → [`Trade`] → [`seen`] (dedup) → [`Ohlcv`] → [`gold`].
//!
//! This crate must never read a clock, touch a file or a socket, iterate in hash order, or hold a
//! price, a quantity or a sum of them in a float: the stream task, the reconciliation and the
//! replay all call the same code and must get the same bytes.

pub mod gold;
pub mod input;
pub mod interval;
pub mod ohlcv;
pub mod seen;
pub mod time;
pub mod validate;
pub mod window;

pub use gold::{GoldConfig, GoldValues, WindowValues};
pub use input::Correction;
pub use interval::{Interval, IntervalError, Intervals};
pub use ohlcv::{Ohlcv, Overflow, Point, Trade};
pub use seen::{Chunk, ChunkError, SeenIds};
pub use time::StreamTime;
pub use validate::{Limits, Reject, validate};
pub use window::{IdWindow, Verdict};
