//! What FinLake needs of a broker, as checks that take nothing but a bootstrap address, so that
//! devkafka and a real Kafka have to pass the same ones. Every check uses names of its own.

#![allow(dead_code)] // each test binary uses its part

pub mod clients;
pub mod groups;
// As FinLake's own members end, so do those here.
#[path = "../../../topology/src/kafka/member.rs"]
pub mod member;
pub mod raw;
pub mod soak;
pub mod transactions;
