//! Row builders: records of the topics → Arrow columns, without an allocation per row.
//!
//! One builder per Kafka partition and table. Bronze takes every input record, decodable or not;
//! Silver and Gold take the output records. Values are stored as they came: nothing is validated
//! or recomputed here. Data flows: the consumer pushes, `sink::TableSink::commit` finishes.

mod bars;
mod bronze;
mod cells;
mod versions;

pub use bars::BarsRows;
pub use bronze::{BronzeRows, RecordAt, fits_columns, representable};
pub(crate) use versions::BreakAt;
pub use versions::{VersionMeta, VersionRows, Versions};
