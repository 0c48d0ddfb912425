//! One file per subject; every test is ignored and run by `./test --bench`.

mod audit;
mod bronze;
mod catching_up;
mod latency;
mod market_hour;
mod steady;
