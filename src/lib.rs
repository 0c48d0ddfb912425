//! FinLake: a Kafka topic of market trades becomes a bi-temporal Iceberg lakehouse, exactly once,
//! and provably so. This crate is the application: command line, configuration, roles; the
//! engine and the domain are the workspace's other crates.

pub mod app;
pub mod audit;
pub mod cli;
pub mod commands;
pub mod config;
pub mod demo;
pub mod generate;
pub mod ingest;
pub mod kafka;
pub mod output;
pub mod parts;
pub mod replay;
pub mod run;
pub mod serve;
pub mod sink;
pub mod topics;
