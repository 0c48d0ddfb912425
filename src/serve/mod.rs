//! The HTTP endpoint: metrics, health, readiness.

mod http;
pub mod metrics;
mod process;

pub use http::{Ready, ServeError, Server, start};

#[cfg(test)]
pub(crate) use process::described as process_metrics;
