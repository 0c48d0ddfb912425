//! Merging small data files: the same rows, fewer files.
//!
//! Small groups are decoded and sorted as a whole; large ones are joined by copying row groups,
//! which costs no decoding and little memory, each row group staying sorted in itself. Never
//! changes, drops or adds a row; the caller puts the files and what they replace into one commit.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use iceberg::spec::DataFile;

use crate::error::{LakeError, Result};
use crate::index::Kind;
use crate::maintain::{MergeGroup, SORT_ROWS};
use crate::split::Splitter;
use crate::tables::TableDef;
use crate::writer::FileWriter;

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
    let mut out = Vec::new();
    if rows > SORT_ROWS
        && let Some(first) = group.files.first()
    {
        let dir = splitter.dir(&first.partition);
        let paths: Vec<&str> = group.files.iter().map(|f| f.path.as_ref()).collect();
        let joined = files
            .join(group.kind, first.partition.clone(), &dir, &paths)
            .await?;
        out.extend(joined);
    }
    if out.is_empty() {
        let mut batches: Vec<RecordBatch> = Vec::with_capacity(group.files.len());
        for f in &group.files {
            batches.push(files.read(&f.path, None).await?);
        }
        let all = concat_batches(&def.arrow_schema(), &batches)?;
        drop(batches);
        for part in splitter.split(&all, group.kind != Kind::History)? {
            let batches = [part.batch];
            out.push(
                files
                    .write(group.kind, part.partition, &part.dir, &batches, true)
                    .await?,
            );
        }
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
