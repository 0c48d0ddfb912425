//! Records of `market.bars` to sound corrections. Whatever is not one is rejected here, with its
//! reason; whether a correction still fits its bar, `ohlcv` decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use finlake_market::input;
use finlake_schemas::{BarsInput, dlq, schema_id};
use finlake_topology::{Context, Failure, Forward, Processor};

use crate::config::Plan;
use crate::table::Probe;
use crate::{Corrected, Market, Msg};

pub(crate) struct Correct {
    plan: Arc<Plan>,
    /// Writer schemas since the last commit.
    schemas: BTreeSet<u32>,
}

impl Correct {
    pub fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            schemas: BTreeSet::new(),
        }
    }

    fn record(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        let Some(&record) = ctx.record() else {
            return Err(Failure::fatal("a source message without its record"));
        };
        let Some(value) = record.value else {
            return Err(Failure::reject(
                dlq::MALFORMED,
                "the record has no value: to take a bar back, assert it with `retracted`",
            ));
        };
        self.schemas.extend(schema_id(value));
        let decoded = self.plan.codec.decode_bars_input(value);
        let decoded = decoded.map_err(|e| Failure::reject(e.class(), e.to_string()))?;
        let refuse = |r: finlake_market::validate::Reject| Failure::reject(r.class, r.message);
        let assertion = match &decoded {
            BarsInput::Assertion(assertion) => assertion,
            other => {
                input::other(other, record.key).map_err(refuse)?;
                let what = match other {
                    BarsInput::Vendor(_) => "vendor bars",
                    _ => "corporate actions",
                };
                return Err(Failure::reject(
                    dlq::UNSUPPORTED,
                    format!(
                        "this version does not process {what} yet: the record is sound and stays \
                         here until one that does sends it again"
                    ),
                ));
            }
        };
        let intervals = &self.plan.intervals;
        let corrected = Corrected {
            correction: input::correction(assertion, record.key, intervals).map_err(refuse)?,
            // The check has compared the key with source and symbol.
            key: Probe::new(record.key.unwrap_or_default()),
            source_len: assertion.source.len(),
        };
        out.forward(ctx, Msg::Correction(&corrected))
    }
}

impl Processor<Market> for Correct {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        msg: Msg<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        match msg {
            Msg::Raw => self.record(ctx, out),
            other => out.forward(ctx, other),
        }
    }

    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        if self.schemas.is_empty() {
            return Ok(());
        }
        let ids: Vec<u32> = std::mem::take(&mut self.schemas).into_iter().collect();
        out.forward(ctx, Msg::Schemas(&ids))
    }

    fn reset(&mut self) {
        self.schemas.clear();
    }
}
