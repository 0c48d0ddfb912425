//! Runs messages through the node graph, depth first, without allocation.
//!
//! Nodes lie in topological order, so a node's children have higher indices:
//! while a node runs it is split off the front of the slice and its children
//! are reached through the rest. That is all the borrow checker needs.

use crate::builder::{Mapper, Predicate};
use crate::context::Context;
use crate::processor::{Domain, Failure, Forward, Processor};
use crate::stats::CommitStats;

pub(crate) enum Kind<D: Domain> {
    /// Source or merge: hands on what comes.
    Pass,
    Filter(Predicate<D>),
    Map(Mapper<D>),
    Process(Box<dyn Processor<D>>),
}

pub(crate) struct Node<D: Domain> {
    pub kind: Kind<D>,
    pub children: Box<[usize]>,
}

pub(crate) struct Graph<D: Domain> {
    nodes: Vec<Node<D>>,
    /// Node of each input, by `TopicIdx`.
    sources: Vec<usize>,
}

/// The nodes behind a running one, and which of them are its children.
struct Rest<'n, D: Domain> {
    nodes: &'n mut [Node<D>],
    /// Index of `nodes[0]` in the whole graph.
    base: usize,
    children: &'n [usize],
}

impl<D: Domain> Forward<D> for Rest<'_, D> {
    fn forward(&mut self, ctx: &mut Context<'_>, msg: D::Msg<'_>) -> Result<(), Failure> {
        for &child in self.children {
            run(&mut self.nodes[child - self.base..], child, ctx, msg)?;
        }
        Ok(())
    }
}

/// Run node `at`, the first of `nodes`, and through it its children.
fn run<D: Domain>(
    nodes: &mut [Node<D>],
    at: usize,
    ctx: &mut Context<'_>,
    msg: D::Msg<'_>,
) -> Result<(), Failure> {
    let Some((node, behind)) = nodes.split_first_mut() else {
        return Ok(());
    };
    let mut rest = Rest {
        nodes: behind,
        base: at + 1,
        children: &node.children,
    };
    match &mut node.kind {
        Kind::Process(p) => {
            let caller = ctx.enter(at);
            let done = p.process(ctx, msg, &mut rest);
            ctx.enter(caller);
            done
        }
        Kind::Pass => rest.forward(ctx, msg),
        Kind::Filter(keep) => match keep(&msg) {
            true => rest.forward(ctx, msg),
            false => Ok(()),
        },
        Kind::Map(f) => rest.forward(ctx, f.map(msg)),
    }
}

impl<D: Domain> Graph<D> {
    pub fn new(nodes: Vec<Node<D>>, sources: Vec<usize>) -> Self {
        Self { nodes, sources }
    }

    /// Hand a source message of input `topic` to the graph.
    #[inline]
    pub fn process(
        &mut self,
        topic: usize,
        ctx: &mut Context<'_>,
        msg: D::Msg<'_>,
    ) -> Result<(), Failure> {
        let at = self.sources[topic];
        run(&mut self.nodes[at..], at, ctx, msg)
    }

    pub fn punctuate(&mut self, ctx: &mut Context<'_>) -> Result<(), Failure> {
        self.each(ctx, |p, ctx, out| p.punctuate(ctx, out))
    }

    pub fn prepare_commit(&mut self, ctx: &mut Context<'_>) -> Result<(), Failure> {
        self.each(ctx, |p, ctx, out| p.prepare_commit(ctx, out))
    }

    pub fn seal(&mut self, ctx: &mut Context<'_>, stats: &CommitStats) -> Result<(), Failure> {
        self.each(ctx, |p, ctx, _| p.seal(ctx, stats))
    }

    pub fn reset(&mut self) {
        for node in &mut self.nodes {
            if let Kind::Process(p) = &mut node.kind {
                p.reset();
            }
        }
    }

    /// Call `f` on every processor in topological order.
    fn each(
        &mut self,
        ctx: &mut Context<'_>,
        mut f: impl FnMut(
            &mut dyn Processor<D>,
            &mut Context<'_>,
            &mut dyn Forward<D>,
        ) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for at in 0..self.nodes.len() {
            let Some((node, behind)) = self.nodes[at..].split_first_mut() else {
                continue;
            };
            if let Kind::Process(p) = &mut node.kind {
                let mut rest = Rest {
                    nodes: behind,
                    base: at + 1,
                    children: &node.children,
                };
                ctx.enter(at);
                f(p.as_mut(), ctx, &mut rest)?;
            }
        }
        Ok(())
    }
}
