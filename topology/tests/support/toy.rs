//! Counts values per key, echoes every record once, keeps a ledger.

use std::collections::BTreeMap;

use finlake_topology::{
    CommitStats, Context, Domain, Failure, Forward, NodeId, Processor, Record, SinkId, SinkOptions,
    Topology, TopologyBuilder,
};

pub struct Toy;

impl Domain for Toy {
    type Msg<'a> = Record<'a>;

    fn source(record: Record<'_>) -> Record<'_> {
        record
    }
}

/// Rejects values that are no number; counts them otherwise.
pub struct Count {
    echo: SinkId,
    counts: SinkId,
    cache: BTreeMap<Vec<u8>, i64>,
}

impl Processor<Toy> for Count {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        r: Record<'_>,
        out: &mut dyn Forward<Toy>,
    ) -> Result<(), Failure> {
        let text = std::str::from_utf8(r.value.unwrap_or_default()).ok();
        let n: i64 = text
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| Failure::reject("malformed", "not a number"))?;
        let key = r.key.unwrap_or_default();
        let sum = match self.cache.get(key) {
            Some(sum) => *sum,
            None => ctx.get(0, key)?.map_or(0, |v| number(&v)),
        };
        self.cache.insert(key.to_vec(), sum + n);
        let name = format!("{}@{}", ctx.topic(r.topic), r.offset);
        ctx.produce(self.echo, name.as_bytes(), r.value.unwrap_or_default(), &[])?;
        out.forward(ctx, r)
    }

    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        _: &mut dyn Forward<Toy>,
    ) -> Result<(), Failure> {
        for (key, sum) in std::mem::take(&mut self.cache) {
            ctx.put(0, &key, &sum.to_be_bytes());
            ctx.produce(self.counts, &key, &sum.to_be_bytes(), &[])?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.cache.clear();
    }
}

/// One line per commit.
pub struct Ledger {
    sink: SinkId,
}

impl Processor<Toy> for Ledger {
    fn process(
        &mut self,
        _: &mut Context<'_>,
        _: Record<'_>,
        _: &mut dyn Forward<Toy>,
    ) -> Result<(), Failure> {
        Ok(())
    }

    fn seal(&mut self, ctx: &mut Context<'_>, stats: &CommitStats) -> Result<(), Failure> {
        let entry = LedgerLine::of(stats).to_string();
        let key = ctx.task().to_string();
        ctx.produce(self.sink, key.as_bytes(), entry.as_bytes(), &[])
    }

    fn reset(&mut self) {}
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerLine {
    pub commit: i64,
    pub system_time: i64,
    /// start, end, records, rejected per input
    pub inputs: Vec<[i64; 4]>,
    pub last: bool,
}

impl LedgerLine {
    fn of(s: &CommitStats) -> Self {
        Self {
            commit: s.commit,
            system_time: s.system_time,
            inputs: s
                .inputs
                .iter()
                .map(|i| [i.start, i.end, i.records, i.rejected])
                .collect(),
            last: s.last,
        }
    }

    pub fn parse(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).unwrap();
        let mut parts = text.split(' ');
        let mut int = || parts.next().unwrap().parse::<i64>().unwrap();
        let (commit, system_time, last, n) = (int(), int(), int() == 1, int());
        let inputs = (0..n).map(|_| [int(), int(), int(), int()]).collect();
        Self {
            commit,
            system_time,
            inputs,
            last,
        }
    }
}

impl std::fmt::Display for LedgerLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (last, n) = (i64::from(self.last), self.inputs.len());
        write!(f, "{} {} {last} {n}", self.commit, self.system_time)?;
        for [a, b, c, d] in &self.inputs {
            write!(f, " {a} {b} {c} {d}")?;
        }
        Ok(())
    }
}

pub fn number(bytes: &[u8]) -> i64 {
    i64::from_be_bytes(bytes.try_into().unwrap())
}

pub const SOURCES: [&str; 2] = ["in", "aux"];
pub const SINKS: [&str; 4] = ["in.dlq", "echo", "counts", "ledger"];
pub const APP: &str = "toy";

pub fn topology() -> Topology<Toy> {
    topology_of("")
}

/// The same over topics that begin with `prefix`.
pub fn topology_of(prefix: &str) -> Topology<Toy> {
    let name = |topic: &str| format!("{prefix}{topic}");
    let mut b = TopologyBuilder::<Toy>::new();
    let lead = b.source(&name("in"));
    let aux = b.source(&name("aux"));
    b.dlq(&name("in.dlq"));
    let echo = b.sink(&name("echo"), SinkOptions::counted());
    let counts = b.sink(&name("counts"), SinkOptions::counted());
    let ledger = b.sink(&name("ledger"), SinkOptions::plain());
    let all: NodeId = b.merge("inputs", &[lead, aux]);
    let count = b
        .process("count", &[all])
        .stores(&["sums"])
        .sinks(&[echo, counts])
        .with(move || Count {
            echo,
            counts,
            cache: BTreeMap::new(),
        });
    let seen = b.filter("keyed", count, |r| r.key.is_some());
    b.process("ledger", &[seen])
        .sinks(&[ledger])
        .with(move || Ledger { sink: ledger });
    b.build().unwrap()
}
