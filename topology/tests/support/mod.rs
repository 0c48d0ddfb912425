//! A toy topology and a scripted Kafka, shared by the engine's tests.
#![allow(dead_code)] // each test binary uses a part

pub mod cluster;
pub mod harness;
pub mod mock;
pub mod toy;
