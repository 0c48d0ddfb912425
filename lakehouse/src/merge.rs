//! Merging small data files: the same rows, fewer files.
//!
//! Small groups are sorted as a whole; large ones are joined file by file, each staying sorted in
//! itself, so that memory stays bounded. Never changes, drops or adds a row; the caller puts the
//! files and what they replace into one commit.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use iceberg::spec::DataFile;

use crate::error::{LakeError, Result};
use crate::index::Kind;
use crate::maintain::MergeGroup;
use crate::split::Splitter;
use crate::tables::TableDef;
use crate::writer::FileWriter;

/// Up to this many rows a merged file is sorted as a whole.
const SORT_ROWS: u64 = 150_000;

/// Writes the merged file(s) of a group.
///
/// # Errors
/// `Storage`, `Parquet`; `Internal` if the row count would change.
pub async fn merge(
    files: &FileWriter,
    splitter: &Splitter,
    def: &TableDef,
    group: &MergeGroup,
) -> Result<Vec<DataFile>> {
    let rows: u64 = group.files.iter().map(|f| f.rows).sum();
    let current = group.kind != Kind::History;
    let mut batches: Vec<RecordBatch> = Vec::with_capacity(group.files.len());
    for f in &group.files {
        batches.push(files.read(&f.path, None).await?);
    }
    let mut out = Vec::new();
    if rows <= SORT_ROWS {
        let all = concat_batches(&def.arrow_schema(), &batches)?;
        drop(batches);
        for part in splitter.split(&all, current)? {
            out.push(
                files
                    .write(group.kind, part.partition, &part.dir, &[part.batch], true)
                    .await?,
            );
        }
    } else if let Some(first) = group.files.first() {
        let dir = splitter.dir(&first.partition);
        out.push(
            files
                .write(group.kind, first.partition.clone(), &dir, &batches, false)
                .await?,
        );
    }
    let after: u64 = out.iter().map(DataFile::record_count).sum();
    if after != rows {
        return Err(LakeError::Internal(format!(
            "merging {rows} rows of {} gave {after}",
            def.table
        )));
    }
    Ok(out)
}
