//! The HTTP endpoint: metrics, health, readiness.

pub mod metrics;
