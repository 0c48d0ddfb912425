//! Lets each (source, symbol, trade id) pass once, for ever.
//!
//! The seen ids of a symbol lie in the store in chunks of 65,536 ids, under
//! `D ‖ source:symbol ‖ 0 ‖ chunk number (big-endian)`. The chunks that the current trades fall into
//! are kept decoded; a changed one is written once per commit.

use std::collections::BTreeMap;

use finlake_market::Chunk;
use finlake_market::seen::place;
use finlake_topology::{Context, Failure, Forward, Processor};

use crate::ledger::Counts;
use crate::ohlcv::state::{CHUNK, name_key};
use crate::table::Table;
use crate::{Market, Msg, Observed};

const STORE: usize = 0;

/// Beyond this many symbols the decoded chunks are dropped; they are read back on demand.
const MAX_SYMBOLS: usize = 20_000;

#[derive(Default)]
struct Cached {
    chunk: Chunk,
    dirty: bool,
}

/// The chunks of one symbol: the one last used, and others of this commit by number.
struct Symbol {
    number: i64,
    current: Cached,
    others: BTreeMap<i64, Cached>,
    listed: bool,
}

pub(crate) struct Dedup {
    counts: Counts,
    symbols: Table<Symbol>,
    /// Symbols with a dirty chunk, in order of their first one.
    dirty: Vec<u32>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Dedup {
    pub fn new(counts: Counts) -> Self {
        Self {
            counts,
            symbols: Table::default(),
            dirty: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    #[inline]
    fn trade(
        &mut self,
        ctx: &mut Context<'_>,
        seen: &Observed<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        let (number, place) = place(seen.trade.at.id);
        let at = match self.symbols.find(&seen.key) {
            Some(at) => at,
            None => self.add(ctx, seen, number)?,
        };
        if self.symbols.at(at).number != number {
            self.turn_to(ctx, at, number)?;
        }
        let symbol = self.symbols.at(at);
        if symbol.current.chunk.contains(place) {
            ctx.count(self.counts.duplicates, 1);
            return Ok(());
        }
        // An id counts as seen only if its trade was taken: what is rejected may come again.
        out.forward(ctx, Msg::Trade(seen))?;
        ctx.count(self.counts.accepted, 1);
        symbol.current.chunk.insert(place);
        symbol.current.dirty = true;
        if !symbol.listed {
            symbol.listed = true;
            self.dirty.push(at);
        }
        Ok(())
    }

    #[cold]
    fn add(
        &mut self,
        ctx: &mut Context<'_>,
        seen: &Observed<'_>,
        number: i64,
    ) -> Result<u32, Failure> {
        let symbol = Symbol {
            number,
            current: self.load(ctx, seen.key.key(), number)?,
            others: BTreeMap::new(),
            listed: false,
        };
        Ok(self.symbols.insert(&seen.key, symbol))
    }

    /// Makes chunk `number` the current one of a symbol.
    #[cold]
    fn turn_to(&mut self, ctx: &mut Context<'_>, at: u32, number: i64) -> Result<(), Failure> {
        let wanted = match self.symbols.at(at).others.remove(&number) {
            Some(cached) => cached,
            None => {
                let name = self.symbols.key(at).to_owned();
                self.load(ctx, &name, number)?
            }
        };
        let symbol = self.symbols.at(at);
        let before = std::mem::replace(&mut symbol.current, wanted);
        symbol.others.insert(symbol.number, before);
        symbol.number = number;
        Ok(())
    }

    fn load(&mut self, ctx: &mut Context<'_>, name: &[u8], number: i64) -> Result<Cached, Failure> {
        store_key(name, number, &mut self.key);
        let chunk = if ctx.get_into(STORE, &self.key, &mut self.value)? {
            Chunk::decode(&self.value).map_err(|e| {
                let name = String::from_utf8_lossy(name);
                Failure::fatal(format!("{name}, chunk {number}: {e}"))
            })?
        } else {
            Chunk::new()
        };
        Ok(Cached {
            chunk,
            dirty: false,
        })
    }
}

fn store_key(name: &[u8], number: i64, key: &mut Vec<u8>) {
    name_key(CHUNK, name, key);
    key.push(0);
    key.extend_from_slice(&number.to_be_bytes());
}

impl Processor<Market> for Dedup {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        msg: Msg<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        match msg {
            Msg::Trade(seen) => self.trade(ctx, seen, out),
            other => out.forward(ctx, other),
        }
    }

    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        _out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        for at in std::mem::take(&mut self.dirty) {
            let (name, symbol) = self.symbols.entry(at);
            symbol.listed = false;
            let current = std::iter::once((&symbol.number, &mut symbol.current));
            for (number, cached) in current.chain(&mut symbol.others) {
                if std::mem::take(&mut cached.dirty) {
                    store_key(name, *number, &mut self.key);
                    self.value.clear();
                    cached.chunk.encode(&mut self.value);
                    ctx.put(STORE, &self.key, &self.value);
                }
            }
            // Late ids fall right before the current ones.
            let before = symbol.number - 1;
            symbol.others.retain(|number, _| *number == before);
        }
        if self.symbols.len() > MAX_SYMBOLS {
            self.symbols.clear();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.symbols.clear();
        self.dirty.clear();
    }
}
