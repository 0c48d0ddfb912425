//! What FinLake needs of a broker, as checks that take nothing but a bootstrap address, so that
//! devkafka and a real Kafka have to pass the same ones. Every check uses names of its own.

#![allow(dead_code)] // each test binary uses its part

pub mod clients;
pub mod groups;
pub mod raw;
pub mod soak;
pub mod transactions;
