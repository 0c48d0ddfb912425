//! The lakehouse end to end: a SQLite catalog and a warehouse in a temp dir.

mod asof;
mod common;
mod crashes;
mod files;
mod planted;
mod quality;
mod races;
mod reads;
mod rest;
mod shadows;
mod versions;
