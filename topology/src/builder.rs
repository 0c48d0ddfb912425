//! The DSL: declare sources, processors and sinks; `build` checks and freezes
//! them into a [`Topology`], from which every task makes its own instance.
//!
//! ```ignore
//! let mut b = TopologyBuilder::<Market>::new();
//! let ticks = b.source("market.ticks");          // subscribed; later sources are attached
//! let bars = b.source("market.bars");
//! b.dlq("market.ticks.dlq");
//! let ohlcv = b.sink("market.ohlcv", SinkOptions::counted());
//! let decode = b.process("decode", &[ticks, bars]).with(Decode::new);
//! let fold = b.process("ohlcv", &[decode]).stores(&["bars"]).sinks(&[ohlcv]).with(move || Fold::new(ohlcv));
//! let topology = b.build()?;
//! ```
//!
//! A node's parents are declared before it, so node order is topological and a
//! cycle cannot be written.

use std::sync::Arc;

use crate::graph::{Graph, Kind, Node};
use crate::processor::{Domain, Processor};
use crate::stats::Counter;

/// A node of the graph under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u16);

/// An output topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkId(pub(crate) u16);

impl SinkId {
    /// Position in the order of declaration.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// How a sink is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkOptions {
    /// Counted and hashed per commit, listed in `CommitStats::outputs`.
    pub ledger: bool,
}

impl SinkOptions {
    /// Counted and hashed: the ledger vouches for its records.
    pub fn counted() -> Self {
        Self { ledger: true }
    }

    /// Sent in the same transaction, but not accounted for (live views, the
    /// ledger itself).
    pub fn plain() -> Self {
        Self { ledger: false }
    }
}

/// Why a topology cannot be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopologyError {
    /// There is nothing to subscribe to.
    #[error("a topology needs at least one source")]
    NoSource,
    /// Two things of one kind share a name.
    #[error("{kind} `{name}` is declared twice; give each its own name")]
    Duplicate {
        /// node, sink, source, store
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A name that Kafka or a changelog cannot carry.
    #[error("{kind} name `{name}` may hold only letters, digits, '.', '_' and '-'")]
    BadName {
        /// node, sink, source, store
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A topic is read and written, or a store takes the engine's name.
    #[error("{0}")]
    Conflict(String),
    /// More nodes, sinks or stores than the engine's tables hold.
    #[error("at most {max} {kind} are supported")]
    TooMany {
        /// nodes, sinks, stores
        kind: &'static str,
        /// The limit.
        max: usize,
    },
}

/// The engine's own store: commit number, system time, input positions.
pub(crate) const TASK_STORE: &str = "task";

type Factory<D> = Arc<dyn Fn() -> Box<dyn Processor<D>> + Send + Sync>;
pub(crate) type Predicate<D> = Arc<dyn for<'a> Fn(&<D as Domain>::Msg<'a>) -> bool + Send + Sync>;
pub(crate) type Mapper<D> = Arc<dyn MapMsg<D>>;

/// A pure function from message to message. (A trait, since a closure type
/// cannot say that its result borrows from its argument.)
pub trait MapMsg<D: Domain>: Send + Sync + 'static {
    /// The message to hand on.
    fn map<'a>(&self, msg: D::Msg<'a>) -> D::Msg<'a>;
}

pub(crate) enum Decl<D: Domain> {
    Source,
    Merge,
    Filter(Predicate<D>),
    Map(Mapper<D>),
    Process(Factory<D>),
}

pub(crate) struct NodeDecl<D: Domain> {
    pub name: String,
    pub parents: Vec<NodeId>,
    pub decl: Decl<D>,
    /// Indices into `Shape::stores`.
    pub stores: Vec<usize>,
    pub sinks: Vec<SinkId>,
}

pub(crate) struct SinkDecl {
    pub topic: String,
    pub options: SinkOptions,
}

/// Collects declarations; see the module's example.
pub struct TopologyBuilder<D: Domain> {
    nodes: Vec<NodeDecl<D>>,
    inputs: Vec<String>,
    sinks: Vec<SinkDecl>,
    stores: Vec<String>,
    counters: Vec<(String, String)>,
    dlq: Option<SinkId>,
}

impl<D: Domain> Default for TopologyBuilder<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D: Domain> TopologyBuilder<D> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            nodes: Vec::new(),
            inputs: Vec::new(),
            sinks: Vec::new(),
            stores: vec![TASK_STORE.to_owned()],
            counters: Vec::new(),
            dlq: None,
        }
    }

    /// An input topic. The first is subscribed; every other is attached: its
    /// partition p belongs to whoever owns partition p of the first. Records
    /// bear `TopicIdx(n)` of the n-th call.
    pub fn source(&mut self, topic: &str) -> NodeId {
        self.inputs.push(topic.to_owned());
        self.node(topic.to_owned(), &[], Decl::Source)
    }

    /// One stream out of several.
    pub fn merge(&mut self, name: &str, parents: &[NodeId]) -> NodeId {
        self.node(name.to_owned(), parents, Decl::Merge)
    }

    /// Pass on the messages for which `keep` holds.
    pub fn filter<F>(&mut self, name: &str, parent: NodeId, keep: F) -> NodeId
    where
        F: for<'a> Fn(&D::Msg<'a>) -> bool + Send + Sync + 'static,
    {
        self.node(name.to_owned(), &[parent], Decl::Filter(Arc::new(keep)))
    }

    /// Pass on `f.map(message)`.
    pub fn map(&mut self, name: &str, parent: NodeId, f: impl MapMsg<D>) -> NodeId {
        self.node(name.to_owned(), &[parent], Decl::Map(Arc::new(f)))
    }

    /// A processor node below `parents` (several are merged); finish it with
    /// [`ProcessBuilder::with`].
    pub fn process<'b>(&'b mut self, name: &str, parents: &[NodeId]) -> ProcessBuilder<'b, D> {
        ProcessBuilder {
            name: name.to_owned(),
            parents: parents.to_vec(),
            stores: Vec::new(),
            sinks: Vec::new(),
            builder: self,
        }
    }

    /// An output topic that processors may produce to. Its partition is the
    /// task's own.
    pub fn sink(&mut self, topic: &str, options: SinkOptions) -> SinkId {
        let id = SinkId(self.sinks.len() as u16);
        self.sinks.push(SinkDecl {
            topic: topic.to_owned(),
            options,
        });
        id
    }

    /// The dead-letter topic, counted: where `Failure::Reject` and
    /// `Context::dead_letter` put the source record. Without one a rejection
    /// stops the task.
    pub fn dlq(&mut self, topic: &str) -> SinkId {
        let id = self.sink(topic, SinkOptions::counted());
        self.dlq = Some(id);
        id
    }

    /// A counter for `Context::count`.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        let id = Counter(self.counters.len() as u16);
        self.counters.push((name.to_owned(), help.to_owned()));
        id
    }

    /// Check and freeze.
    pub fn build(self) -> Result<Topology<D>, TopologyError> {
        self.check()?;
        let mut children = vec![Vec::new(); self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            for parent in &node.parents {
                children[usize::from(parent.0)].push(at);
            }
        }
        Ok(Topology {
            shape: Arc::new(Shape {
                nodes: self.nodes,
                children,
                inputs: self.inputs.into_iter().map(Arc::from).collect(),
                sinks: self.sinks,
                stores: self.stores.into_iter().map(Arc::from).collect(),
                counters: self.counters,
                dlq: self.dlq,
            }),
        })
    }

    fn node(&mut self, name: String, parents: &[NodeId], decl: Decl<D>) -> NodeId {
        let id = NodeId(self.nodes.len() as u16);
        self.nodes.push(NodeDecl {
            name,
            parents: parents.to_vec(),
            decl,
            stores: Vec::new(),
            sinks: Vec::new(),
        });
        id
    }

    fn check(&self) -> Result<(), TopologyError> {
        if self.inputs.is_empty() {
            return Err(TopologyError::NoSource);
        }
        let limits = [
            ("nodes", self.nodes.len(), 1024),
            ("sinks", self.sinks.len(), 64),
            ("stores", self.stores.len(), 256),
        ];
        for (kind, n, max) in limits {
            if n > max {
                return Err(TopologyError::TooMany { kind, max });
            }
        }
        let sinks: Vec<&str> = self.sinks.iter().map(|s| s.topic.as_str()).collect();
        names("node", self.nodes.iter().map(|n| n.name.as_str()))?;
        names("source", self.inputs.iter().map(String::as_str))?;
        names("sink", sinks.iter().copied())?;
        names("store", self.stores.iter().map(String::as_str))?;
        if let Some(both) = self.inputs.iter().find(|i| sinks.contains(&i.as_str())) {
            return Err(TopologyError::Conflict(format!(
                "topic `{both}` is both read and written; a task would feed itself"
            )));
        }
        Ok(())
    }
}

fn names<'a>(kind: &'static str, all: impl Iterator<Item = &'a str>) -> Result<(), TopologyError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in all {
        let ok = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if !ok {
            return Err(TopologyError::BadName {
                kind,
                name: name.to_owned(),
            });
        }
        if !seen.insert(name) {
            return Err(TopologyError::Duplicate {
                kind,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// A processor node being declared.
#[must_use = "call `with` to add the node"]
pub struct ProcessBuilder<'b, D: Domain> {
    builder: &'b mut TopologyBuilder<D>,
    name: String,
    parents: Vec<NodeId>,
    stores: Vec<String>,
    sinks: Vec<SinkId>,
}

impl<D: Domain> ProcessBuilder<'_, D> {
    /// State stores, changelogged to `<app>-<store>-changelog`. The processor
    /// names them by their place in this list (0, 1, …). Two processors that
    /// name the same store share it.
    pub fn stores(mut self, names: &[&str]) -> Self {
        self.stores = names.iter().map(|&n| n.to_owned()).collect();
        self
    }

    /// Sinks this node may produce to; producing to another one is an error.
    pub fn sinks(mut self, sinks: &[SinkId]) -> Self {
        self.sinks = sinks.to_vec();
        self
    }

    /// Add the node; `factory` makes one processor per task.
    pub fn with<P, F>(self, factory: F) -> NodeId
    where
        P: Processor<D> + 'static,
        F: Fn() -> P + Send + Sync + 'static,
    {
        let builder = self.builder;
        let stores = self
            .stores
            .into_iter()
            .map(|name| {
                // "task" itself stays the engine's: a second one fails `check`.
                match builder.stores.iter().skip(1).position(|s| *s == name) {
                    Some(at) => at + 1,
                    None => {
                        builder.stores.push(name);
                        builder.stores.len() - 1
                    }
                }
            })
            .collect();
        let make: Factory<D> = Arc::new(move || Box::new(factory()));
        let id = builder.node(self.name, &self.parents, Decl::Process(make));
        if let Some(node) = builder.nodes.last_mut() {
            node.stores = stores;
            node.sinks = self.sinks;
        }
        id
    }
}

/// A checked, immutable topology; cheap to clone, shared by all threads.
pub struct Topology<D: Domain> {
    pub(crate) shape: Arc<Shape<D>>,
}

impl<D: Domain> Clone for Topology<D> {
    fn clone(&self) -> Self {
        Self {
            shape: self.shape.clone(),
        }
    }
}

pub(crate) struct Shape<D: Domain> {
    pub nodes: Vec<NodeDecl<D>>,
    pub children: Vec<Vec<usize>>,
    pub inputs: Vec<Arc<str>>,
    pub sinks: Vec<SinkDecl>,
    pub stores: Vec<Arc<str>>,
    pub counters: Vec<(String, String)>,
    pub dlq: Option<SinkId>,
}

impl<D: Domain> Topology<D> {
    /// Input topics; the first is the subscribed one.
    pub fn inputs(&self) -> &[Arc<str>] {
        &self.shape.inputs
    }

    /// Output topics, dead-letter topic included, with their options.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, SinkOptions)> {
        self.shape
            .sinks
            .iter()
            .map(|s| (s.topic.as_str(), s.options))
    }

    /// State stores, the engine's own `task` first.
    pub fn stores(&self) -> &[Arc<str>] {
        &self.shape.stores
    }

    /// The changelog topics of application `app_id`, in store order.
    pub fn changelogs(&self, app_id: &str) -> Vec<String> {
        self.shape
            .stores
            .iter()
            .map(|s| changelog_topic(app_id, s))
            .collect()
    }

    /// Name and help of the topology's counters, in declaration order.
    pub fn counters(&self) -> &[(String, String)] {
        &self.shape.counters
    }

    pub(crate) fn instantiate(&self) -> Graph<D> {
        let nodes = self.shape.nodes.iter().zip(&self.shape.children);
        Graph::new(
            nodes
                .map(|(n, children)| Node {
                    kind: match &n.decl {
                        Decl::Source | Decl::Merge => Kind::Pass,
                        Decl::Filter(f) => Kind::Filter(f.clone()),
                        Decl::Map(f) => Kind::Map(f.clone()),
                        Decl::Process(make) => Kind::Process(make()),
                    },
                    children: children.clone().into_boxed_slice(),
                })
                .collect(),
            self.source_nodes(),
        )
    }

    fn source_nodes(&self) -> Vec<usize> {
        let nodes = self.shape.nodes.iter().enumerate();
        nodes
            .filter(|(_, n)| matches!(n.decl, Decl::Source))
            .map(|(at, _)| at)
            .collect()
    }
}

/// Name of the changelog topic of a store.
pub fn changelog_topic(app_id: &str, store: &str) -> String {
    format!("{app_id}-{store}-changelog")
}
