//! A topology in words and as a Mermaid diagram; both are deterministic, so
//! that a change of shape is a change in a snapshot.

use std::fmt::Write as _;

use crate::builder::{Decl, NodeDecl, NodeId, SinkId, Topology};
use crate::processor::Domain;

impl<D: Domain> Topology<D> {
    /// The graph as indented text: inputs, nodes with stores, sinks and
    /// children, outputs, changelogs of application `app_id`.
    pub fn describe(&self, app_id: &str) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(app_id, &mut out);
        out
    }

    fn write_text(&self, app_id: &str, out: &mut String) -> std::fmt::Result {
        let shape = &self.shape;
        writeln!(out, "Application {app_id}")?;
        writeln!(out, "  Inputs (partition p of each belongs to task p):")?;
        for (at, topic) in shape.inputs.iter().enumerate() {
            let how = if at == 0 { "subscribed" } else { "attached" };
            writeln!(out, "    {topic} ({how})")?;
        }
        writeln!(out, "  Nodes:")?;
        for (at, node) in shape.nodes.iter().enumerate() {
            writeln!(out, "    {}: {}", kind(node), node.name)?;
            if !node.stores.is_empty() {
                let names = node.stores.iter().map(|&s| &*shape.stores[s]);
                writeln!(out, "      stores: {}", join(names))?;
            }
            if !node.sinks.is_empty() {
                let names = node.sinks.iter().map(|&s| self.sink_topic(s));
                writeln!(out, "      sinks: {}", join(names))?;
            }
            let children = shape.children[at].iter();
            let names: Vec<&str> = children.map(|&c| shape.nodes[c].name.as_str()).collect();
            if !names.is_empty() {
                writeln!(out, "      --> {}", names.join(", "))?;
            }
        }
        writeln!(out, "  Outputs:")?;
        for (at, sink) in shape.sinks.iter().enumerate() {
            let counted = if sink.options.ledger {
                "counted"
            } else {
                "plain"
            };
            let dlq = if shape.dlq == Some(SinkId(at as u16)) {
                ", dead letters"
            } else {
                ""
            };
            writeln!(out, "    {} ({counted}{dlq})", sink.topic)?;
        }
        writeln!(out, "  Changelogs:")?;
        for topic in self.changelogs(app_id) {
            writeln!(out, "    {topic}")?;
        }
        Ok(())
    }

    /// The graph as a Mermaid flowchart.
    pub fn mermaid(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_mermaid(&mut out);
        out
    }

    fn write_mermaid(&self, out: &mut String) -> std::fmt::Result {
        let shape = &self.shape;
        writeln!(out, "flowchart TD")?;
        for (at, node) in shape.nodes.iter().enumerate() {
            match node.decl {
                Decl::Source => writeln!(out, "  n{at}[/\"{}\"/]", node.name)?,
                Decl::Filter(_) => writeln!(out, "  n{at}{{\"{}\"}}", node.name)?,
                _ => writeln!(out, "  n{at}[\"{}\"]", node.name)?,
            }
        }
        // The engine's own store has no reader in the graph.
        for (at, store) in shape.stores.iter().enumerate().skip(1) {
            writeln!(out, "  s{at}[(\"{store}\")]")?;
        }
        for (at, sink) in shape.sinks.iter().enumerate() {
            writeln!(out, "  k{at}[\\\"{}\"\\]", sink.topic)?;
        }
        for (at, node) in shape.nodes.iter().enumerate() {
            for child in &shape.children[at] {
                writeln!(out, "  n{at} --> n{child}")?;
            }
            for store in &node.stores {
                writeln!(out, "  n{at} --- s{store}")?;
            }
            for sink in &node.sinks {
                writeln!(out, "  n{at} --> k{}", sink.0)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sink_topic(&self, sink: SinkId) -> &str {
        &self.shape.sinks[sink.index()].topic
    }

    /// Name of a node.
    pub fn node_name(&self, node: NodeId) -> &str {
        &self.shape.nodes[usize::from(node.0)].name
    }
}

fn kind<D: Domain>(node: &NodeDecl<D>) -> &'static str {
    match node.decl {
        Decl::Source => "Source",
        Decl::Merge => "Merge",
        Decl::Filter(_) => "Filter",
        Decl::Map(_) => "Map",
        Decl::Process(_) => "Processor",
    }
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
