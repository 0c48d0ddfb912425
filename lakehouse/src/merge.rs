//! Merging small data files: the same rows, fewer files.
//!
//! Row groups of some size are copied byte by byte, which costs no decoding and little memory,
//! each row group staying sorted in itself; what is tiny is decoded, sorted as a whole and goes in
//! as one row group. Never changes, drops or adds a row; the caller puts the files and what they
//! replace into one commit.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use iceberg::spec::DataFile;

use crate::boxed;
use crate::error::{LakeError, Result};
use crate::index::{FileMeta, Kind};
use crate::lake::Upkeep;
use crate::maintain::MergeGroup;
use crate::split::{Part, Splitter};
use crate::tables::TableDef;
use crate::writer::{FileWriter, Source};

/// Writes the merged file(s) of a group.
///
/// # Errors
/// `Storage`, `Parquet`; `Internal` if the row count would change.
#[boxed]
pub async fn merge(
    files: &FileWriter,
    splitter: &Splitter,
    def: &TableDef,
    group: &MergeGroup,
    upkeep: &Upkeep,
) -> Result<Vec<DataFile>> {
    let (copied, decoded) = group.copied_and_decoded(upkeep);
    let mut out = Vec::new();
    if let Some(first) = copied.first() {
        let mut sources: Vec<Source<'_>> = copied
            .iter()
            .map(|f| Source::Path(f.path.as_ref()))
            .collect();
        for part in sorted(files, splitter, def, group.kind, &decoded).await? {
            sources.push(Source::Bytes(files.encode(&[part.batch])?));
        }
        let dir = splitter.dir(&first.partition);
        let joined = files
            .join(group.kind, first.partition.clone(), &dir, &sources)
            .await?;
        out.extend(joined);
    }
    if out.is_empty() {
        // Nothing to copy, or files of different schemas, whose row groups do not go together.
        let all: Vec<&Arc<FileMeta>> = group.files.iter().collect();
        for part in sorted(files, splitter, def, group.kind, &all).await? {
            let batches = [part.batch];
            out.push(
                files
                    .write(group.kind, part.partition, &part.dir, &batches, true)
                    .await?,
            );
        }
    }
    let after: u64 = out.iter().map(DataFile::record_count).sum();
    if after != group.rows() {
        return Err(LakeError::Internal(format!(
            "merging {} rows of {} gave {after}",
            group.rows(),
            def.table
        )));
    }
    Ok(out)
}

/// The rows of some files as one sorted batch per partition tuple (there is one).
async fn sorted(
    files: &FileWriter,
    splitter: &Splitter,
    def: &TableDef,
    kind: Kind,
    some: &[&Arc<FileMeta>],
) -> Result<Vec<Part>> {
    let mut batches: Vec<RecordBatch> = Vec::with_capacity(some.len());
    for f in some {
        batches.push(files.read(&f.path, None).await?);
    }
    let all = concat_batches(&def.arrow_schema(), &batches)?;
    drop(batches);
    splitter.split(&all, kind != Kind::History)
}
