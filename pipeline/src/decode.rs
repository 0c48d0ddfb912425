//! Bytes to valid trades. Whatever is not one is rejected here, with its reason; the engine puts
//! the record into the dead-letter topic.

use std::collections::BTreeSet;
use std::sync::Arc;

use finlake_market::validate;
use finlake_schemas::{dlq, schema_id};
use finlake_topology::{Context, Failure, Forward, Processor};

use crate::config::Plan;
use crate::table::Probe;
use crate::{Market, Msg, Observed};

pub(crate) struct Decode {
    plan: Arc<Plan>,
    /// Writer schemas since the last commit; `last` spares the set a look-up per record.
    schemas: BTreeSet<u32>,
    last: Option<u32>,
}

impl Decode {
    pub fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            schemas: BTreeSet::new(),
            last: None,
        }
    }

    #[inline]
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
                "the record has no value: a trade cannot be deleted",
            ));
        };
        let id = schema_id(value);
        if id != self.last {
            self.last = id;
            self.schemas.extend(id);
        }
        let tick = match self.plan.codec.decode_tick(value) {
            Ok(tick) => tick,
            Err(e) => return Err(Failure::reject(e.class(), e.to_string())),
        };
        let trade = match validate(
            &tick,
            record.key,
            record.timestamp_ms,
            &self.plan.config.limits,
        ) {
            Ok(trade) => trade,
            Err(e) => return Err(Failure::reject(e.class, e.message)),
        };
        let observed = Observed {
            trade,
            // `validate` has compared the key with source and symbol: it is there, and it is text.
            key: Probe::new(record.key.unwrap_or_default()),
            source_len: tick.source.len(),
        };
        out.forward(ctx, Msg::Trade(&observed))
    }
}

impl Processor<Market> for Decode {
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
        let ids: Vec<u32> = std::mem::take(&mut self.schemas).into_iter().collect();
        self.last = None;
        out.forward(ctx, Msg::Schemas(&ids))
    }

    fn reset(&mut self) {
        self.schemas.clear();
        self.last = None;
    }
}
