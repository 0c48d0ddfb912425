//! What a task's stores hold: written in the same batch as the data, so the two never disagree.
//!
//! The engine decides with it, at start and after every abort, what to read from the changelogs and
//! where to seek the inputs. This module only keeps and encodes it.

use bincode::{Decode, Encode};

use crate::codec::{Body, CodecError, Versioned};

/// The point up to which a task's stores are whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// Per store name, the offset of the next changelog record to apply.
    pub changelog: Vec<(String, i64)>,
    /// Per input topic, the position (next offset to process) of the task's partition.
    pub inputs: Vec<(String, i64)>,
    /// Id of the Kafka cluster the offsets belong to; empty if unknown.
    pub cluster_id: String,
    /// Topic ids (as Kafka gives them, UUID bytes) of the topics named above.
    pub topic_ids: Vec<(String, [u8; 16])>,
    /// When the checkpoint was written, milliseconds since 1970 UTC, by the caller's clock. Decides
    /// whether the changelog still holds the tombstones that were written since.
    pub written_at_ms: i64,
}

impl Checkpoint {
    /// Next changelog offset of a store, if the checkpoint knows the store.
    pub fn changelog_offset(&self, store: &str) -> Option<i64> {
        find(&self.changelog, store)
    }

    /// Position in an input topic, if the checkpoint knows the topic.
    pub fn input_position(&self, topic: &str) -> Option<i64> {
        find(&self.inputs, topic)
    }

    /// Id of a topic, if the checkpoint knows it.
    pub fn topic_id(&self, topic: &str) -> Option<[u8; 16]> {
        find(&self.topic_ids, topic)
    }
}

fn find<T: Copy>(list: &[(String, T)], name: &str) -> Option<T> {
    list.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
}

impl Versioned for Checkpoint {
    const WHAT: &'static str = "checkpoint";
    const VERSION: u8 = 1;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read(),
            _ => body.unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::hex;

    fn sample() -> Checkpoint {
        Checkpoint {
            changelog: vec![("bars".into(), 1234), ("seen".into(), 0)],
            inputs: vec![("market.ticks".into(), 5_000_000_000)],
            cluster_id: "C1".into(),
            topic_ids: vec![("market.ticks".into(), *b"0123456789abcdef")],
            written_at_ms: 1_795_000_000_123,
        }
    }

    // Frozen: version 1 as written since the first release. Never edit, only add versions.
    const V1: &str = "\
        01020462617273fba409047365656e00010c6d61726b65742e7469636b73fd00e40b5402\
        000000024331010c6d61726b65742e7469636b7330313233343536373839616263646566\
        fdf6bcacdc43030000";

    #[test]
    fn version_1_is_frozen() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(hex(&bytes), V1);
        assert_eq!(Checkpoint::from_bytes(&bytes), Ok(sample()));
    }

    #[test]
    fn looks_up_by_name() {
        let cp = sample();
        assert_eq!(cp.changelog_offset("seen"), Some(0));
        assert_eq!(cp.changelog_offset("none"), None);
        assert_eq!(cp.input_position("market.ticks"), Some(5_000_000_000));
        assert_eq!(cp.topic_id("market.ticks"), Some(*b"0123456789abcdef"));
    }
}
