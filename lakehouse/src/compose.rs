//! Turns the versions of a batch into files: closes rows, opens rows, cools rows.
//!
//! Copy-on-write over hot, settled and history files. It reads the hot rows in memory and, for
//! rows not found there, settled files located by their bounds; it writes new files and lists the
//! ones they replace. Nothing in memory changes here: the hot store follows only after the swap
//! (`HotUpdate`), so a lost swap loses no row. Files are written one at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::TimestampMicrosecondType;
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{DataFile, Struct};

use crate::bitemporal::{Fate, Incoming, Violation, chain};
use crate::boxed;
use crate::error::{LakeError, Result};
use crate::hot::{Columns, HotPart, KEY_COLUMNS, cooling};
use crate::index::{Base, FileMeta, Kind};
use crate::lake::HotRule;
use crate::rows::Versions;
use crate::split::{Part, Splitter};
use crate::tables::{OPEN_END, Table, TableDef, instant_type};
use crate::writer::FileWriter;

/// What composing reads from.
pub struct Inputs<'a> {
    /// The table.
    pub def: &'a TableDef,
    /// The base that is committed against.
    pub base: &'a Base,
    /// Reads and writes files.
    pub files: &'a FileWriter,
    /// Partitions rows.
    pub splitter: &'a Splitter,
    /// When rows cool.
    pub rule: &'a HotRule,
    /// Whether the batch can be cut into smaller commits.
    pub may_halve: bool,
    /// What a test planted into this commit.
    pub planted: Planted,
}

/// Defects of `close`, for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// Closed rows are dropped.
    pub lost: bool,
    /// Rows stay open.
    pub skipped: bool,
}

/// A file and its rows that close, each with its `sys_to`.
type Closing = (Arc<FileMeta>, Vec<(u32, i64)>);

/// Changes of the hot store, to be made after the swap.
#[derive(Debug, Default)]
pub struct HotUpdate {
    /// Files that leave.
    pub removed: Vec<Arc<str>>,
    /// Files that come.
    pub inserted: Vec<(Arc<str>, RecordBatch)>,
    /// Stream time afterwards.
    pub stream: BTreeMap<String, i64>,
}

/// The files of a change.
#[derive(Debug, Default)]
pub struct Composed {
    /// New files.
    pub added: Vec<Arc<DataFile>>,
    /// Replaced files.
    pub removed: BTreeSet<Arc<str>>,
    /// Per Kafka partition.
    pub hot: BTreeMap<i32, HotUpdate>,
    /// Rows that became open.
    pub opened: u64,
    /// Rows that were closed.
    pub closed: u64,
    /// The batch would rewrite more settled files than `rule.rewrites`: cut it. What was
    /// composed so far is to be thrown away.
    pub too_many: bool,
    rewritten: usize,
    /// Another engine's files that hold rows of several Kafka partitions, with the rows that close:
    /// each is rewritten once, when all partitions have been seen.
    foreign: BTreeMap<Arc<str>, Closing>,
    history: Vec<RecordBatch>,
    jobs: Vec<Job>,
}

/// A file to be written by `finish`: together, since a file costs waiting rather than work.
#[derive(Debug)]
pub struct Job {
    /// Kind of the file.
    pub kind: Kind,
    /// Rows of one partition tuple; several batches are written one after the other.
    pub batches: Vec<RecordBatch>,
    /// The tuple.
    pub partition: Struct,
    /// Its directory text.
    pub dir: String,
}

impl Job {
    fn new(kind: Kind, part: Part) -> Job {
        Job {
            kind,
            batches: vec![part.batch],
            partition: part.partition,
            dir: part.dir,
        }
    }
}

/// Files written at the same time.
const WRITERS: usize = 8;

/// An open row of the table that must be closed but is not hot.
struct Need {
    prev: i64,
    sys_to: i64,
    symbol: String,
    time: i64,
    hits: u32,
    found: Option<i64>,
}

/// One Iceberg partition's hot rows, before and after.
#[derive(Default)]
struct Tuple {
    /// Existing hot files with the rows that stay (false = closed).
    files: Vec<(Arc<str>, RecordBatch, Vec<bool>)>,
    /// New rows.
    new: Option<RecordBatch>,
    touched: bool,
}

impl Composed {
    /// Adds some of the versions of one Kafka partition, given by `rows`. `now` is the system time
    /// of the batch (µs).
    ///
    /// # Errors
    /// `DuplicateOpenRow`, `MissingOpenRow`, `Violation`; `Storage`, `Parquet`.
    #[boxed]
    pub async fn versions(
        &mut self,
        io: &Inputs<'_>,
        partition: i32,
        hot: &HotPart,
        versions: &Versions,
        rows: Range<usize>,
        now: i64,
    ) -> Result<()> {
        let first = rows.start;
        let records: Vec<Incoming> = rows
            .clone()
            .map(|i| Incoming {
                key: versions.key(i),
                sys_from: versions.meta[i].sys_from,
                prev: versions.meta[i].prev,
                retracted: versions.meta[i].retracted,
            })
            .collect();
        let chain = chain(&records).map_err(|(i, v)| violated(io.def.table, &records[i], v))?;
        let key_text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        for i in &chain.fresh {
            if hot.get(records[*i].key).is_some() {
                return Err(LakeError::DuplicateOpenRow {
                    table: io.def.table,
                    key: key_text(records[*i].key),
                });
            }
        }
        // Which open rows close: hot ones by file and row, the others by key.
        let columns = Columns::new(io.def, &versions.batch)?;
        let mut hot_closed: BTreeMap<Arc<str>, Vec<(u32, i64)>> = BTreeMap::new();
        let mut needs: HashMap<&[u8], Need> = HashMap::new();
        for c in &chain.closings {
            let key = records[c.record].key;
            match hot.get(key) {
                Some(at) if at.sys_from == c.prev => hot_closed
                    .entry(at.path.clone())
                    .or_default()
                    .push((at.row, c.sys_to)),
                Some(_) => {
                    return Err(LakeError::MissingOpenRow {
                        table: io.def.table,
                        key: key_text(key),
                        prev_sys_from: c.prev,
                    });
                }
                None => {
                    let row = first + c.record;
                    needs.insert(
                        key,
                        Need {
                            prev: c.prev,
                            sys_to: c.sys_to,
                            symbol: columns.symbol(row).to_string(),
                            time: columns.time(row),
                            hits: 0,
                            found: None,
                        },
                    );
                }
            }
        }
        let settled = find_settled(io, partition, &mut needs).await?;
        self.rewritten += settled.len();
        if io.may_halve && self.rewritten > io.rule.rewrites {
            self.too_many = true;
            return Ok(());
        }
        for (file, rows) in settled {
            if file.kind == Kind::Foreign {
                let of = self.foreign.entry(file.path.clone());
                of.or_insert_with(|| (file, Vec::new())).1.extend(rows);
            } else {
                self.rewrite_settled(io, partition, &file, rows).await?;
            }
        }
        // Rows of the batch: open ones and those that a later record of it closed.
        let mut open = Vec::new();
        let mut closed = Vec::new();
        for (i, fate) in chain.fates.iter().enumerate() {
            match fate {
                Fate::Open => open.push((first + i) as u32),
                Fate::Closed { sys_to } => closed.push(((first + i) as u32, *sys_to)),
                Fate::Gone => {}
            }
        }
        self.opened += open.len() as u64;
        self.close(io, partition, &versions.batch, &closed)?;
        let mut stream = hot.stream.clone();
        for row in rows {
            columns.advance(row, &mut stream);
        }
        let open = take_record_batch(&versions.batch, &UInt32Array::from(open))?;
        let tuples = self.tuples(io, partition, hot, &open, &hot_closed)?;
        let update = self.place_open(io, partition, tuples, stream, now)?;
        self.hot.insert(partition, update);
        Ok(())
    }

    /// Adds a file to be written.
    pub fn push(&mut self, job: Job) {
        self.jobs.push(job);
    }

    /// Writes everything gathered. Call once, after all partitions.
    ///
    /// # Errors
    /// `Storage`, `Parquet`, `Arrow`.
    #[boxed]
    pub async fn finish(&mut self, io: &Inputs<'_>) -> Result<()> {
        for (file, rows) in std::mem::take(&mut self.foreign).into_values() {
            // The number counts for a planted fault only.
            self.rewrite_settled(io, 0, &file, rows).await?;
        }
        let batches = std::mem::take(&mut self.history);
        if !batches.is_empty() {
            let all = concat_batches(&io.def.arrow_schema(), &batches)?;
            for part in io.splitter.split(&all, false)? {
                self.push(Job::new(Kind::History, part));
            }
        }
        let jobs = std::mem::take(&mut self.jobs);
        let mut written = stream::iter(jobs)
            .map(|job| async move {
                let sorted = job.batches.len() == 1;
                let file = io
                    .files
                    .write(job.kind, job.partition, &job.dir, &job.batches, sorted)
                    .await?;
                Ok::<_, LakeError>((job.kind, job.batches, file))
            })
            .buffered(WRITERS);
        while let Some((kind, batches, file)) = written.try_next().await? {
            if let (Kind::Hot(p), Some(batch)) = (kind, batches.into_iter().next())
                && let Some(update) = self.hot.get_mut(&p)
            {
                update.inserted.push((file.file_path().into(), batch));
            }
            self.added.push(Arc::new(file));
        }
        Ok(())
    }

    /// Groups hot rows and new rows by Iceberg partition.
    fn tuples(
        &mut self,
        io: &Inputs<'_>,
        partition: i32,
        hot: &HotPart,
        open: &RecordBatch,
        hot_closed: &BTreeMap<Arc<str>, Vec<(u32, i64)>>,
    ) -> Result<BTreeMap<String, Tuple>> {
        let mut tuples: BTreeMap<String, Tuple> = BTreeMap::new();
        let meta: HashMap<&str, &Arc<FileMeta>> =
            io.base.files().map(|f| (f.path.as_ref(), f)).collect();
        for (path, batch) in &hot.files {
            let file = meta.get(path.as_ref()).ok_or_else(|| {
                LakeError::Internal(format!("hot file {path} is not in the base"))
            })?;
            let tuple = tuples.entry(format!("{:?}", file.partition)).or_default();
            let mut keep = vec![true; batch.num_rows()];
            if let Some(rows) = hot_closed.get(path) {
                for (row, _) in rows {
                    keep[*row as usize] = false;
                }
                self.close(io, partition, batch, rows)?;
                tuple.touched = true;
            }
            tuple.files.push((path.clone(), batch.clone(), keep));
        }
        for part in io.splitter.split(open, true)? {
            let tuple = tuples.entry(format!("{:?}", part.partition)).or_default();
            tuple.new = Some(part.batch);
            tuple.touched = true;
        }
        Ok(tuples)
    }

    /// Decides what cools; the touched hot files and the settled ones are to be written.
    fn place_open(
        &mut self,
        io: &Inputs<'_>,
        partition: i32,
        mut tuples: BTreeMap<String, Tuple>,
        stream: BTreeMap<String, i64>,
        now: i64,
    ) -> Result<HotUpdate> {
        let mut candidates = Vec::new();
        for tuple in tuples.values() {
            for (_, batch, keep) in &tuple.files {
                let columns = Columns::new(io.def, batch)?;
                candidates.extend(
                    (0..batch.num_rows())
                        .filter(|r| keep[*r])
                        .map(|r| columns.candidate(r, &stream, io.rule)),
                );
            }
            if let Some(new) = &tuple.new {
                let columns = Columns::new(io.def, new)?;
                candidates
                    .extend((0..new.num_rows()).map(|r| columns.candidate(r, &stream, io.rule)));
            }
        }
        let mut leaves = cooling(&candidates, now, io.rule).into_iter();
        let mut update = HotUpdate {
            stream,
            ..HotUpdate::default()
        };
        let schema = io.def.arrow_schema();
        for tuple in tuples.values_mut() {
            let mut stay = Vec::new();
            let mut cold = Vec::new();
            let mut sources: Vec<(&RecordBatch, Vec<bool>)> = tuple
                .files
                .iter()
                .map(|(_, batch, keep)| (batch, keep.clone()))
                .collect();
            if let Some(new) = &tuple.new {
                sources.push((new, vec![true; new.num_rows()]));
            }
            for (batch, keep) in sources {
                let mut hot_rows = vec![false; keep.len()];
                let mut cold_rows = vec![false; keep.len()];
                for row in (0..keep.len()).filter(|r| keep[*r]) {
                    let cools = leaves.next().unwrap_or(false);
                    tuple.touched |= cools;
                    if cools {
                        cold_rows[row] = true;
                    } else {
                        hot_rows[row] = true;
                    }
                }
                push_filtered(&mut stay, batch, hot_rows)?;
                push_filtered(&mut cold, batch, cold_rows)?;
            }
            if !tuple.touched {
                continue;
            }
            for (path, ..) in &tuple.files {
                self.removed.insert(path.clone());
                update.removed.push(path.clone());
            }
            for (kind, rows) in [
                (Kind::Hot(partition), stay),
                (Kind::Settled(partition), cold),
            ] {
                let rows = concat_batches(&schema, &rows)?;
                for part in io.splitter.split(&rows, true)? {
                    self.push(Job::new(kind, part));
                }
            }
        }
        Ok(update)
    }

    /// Rewrites a settled file without the rows that close.
    async fn rewrite_settled(
        &mut self,
        io: &Inputs<'_>,
        partition: i32,
        file: &FileMeta,
        rows: Vec<(u32, i64)>,
    ) -> Result<()> {
        let batch = io.files.read(&file.path, None).await?;
        self.close(io, partition, &batch, &rows)?;
        let mut keep = vec![true; batch.num_rows()];
        for (row, _) in &rows {
            keep[*row as usize] = false;
        }
        let rest = filter_record_batch(&batch, &BooleanArray::from(keep))?;
        drop(batch);
        // A file that mixes current and closed rows (another engine's) is taken apart.
        for (part, current) in halves(io, rest)? {
            for part in io.splitter.split(&part, current)? {
                let kind = if current { file.kind } else { Kind::History };
                let written = io
                    .files
                    .write(kind, part.partition, &part.dir, &[part.batch], true)
                    .await?;
                self.added.push(Arc::new(written));
            }
        }
        if !self.removed.insert(file.path.clone()) {
            let path = &file.path;
            return Err(LakeError::Internal(format!(
                "{path} would be rewritten twice"
            )));
        }
        Ok(())
    }

    /// Takes rows over into history, closed.
    fn close(
        &mut self,
        io: &Inputs<'_>,
        partition: i32,
        batch: &RecordBatch,
        rows: &[(u32, i64)],
    ) -> Result<()> {
        if rows.is_empty() || io.planted.lost {
            return Ok(());
        }
        let def = io.def;
        self.closed += rows.len() as u64;
        let indices: UInt32Array = rows.iter().map(|(r, _)| *r).collect();
        let taken = take_record_batch(batch, &indices)?;
        if io.planted.skipped {
            for part in io.splitter.split(&taken, true)? {
                self.push(Job::new(Kind::Settled(partition), part));
            }
            return Ok(());
        }
        let sys_to: TimestampMicrosecondArray = rows.iter().map(|(_, t)| Some(*t)).collect();
        let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
        columns[def.index("sys_to")?] = Arc::new(sys_to.with_data_type(instant_type()));
        columns[def.index("is_current")?] = Arc::new(BooleanArray::from(vec![false; rows.len()]));
        self.history
            .push(RecordBatch::try_new(taken.schema(), columns)?);
        Ok(())
    }
}

fn push_filtered(out: &mut Vec<RecordBatch>, batch: &RecordBatch, rows: Vec<bool>) -> Result<()> {
    if rows.iter().all(|r| *r) {
        out.push(batch.clone());
    } else if rows.iter().any(|r| *r) {
        out.push(filter_record_batch(batch, &BooleanArray::from(rows))?);
    }
    Ok(())
}

/// A batch as its current and its closed rows.
fn halves(io: &Inputs<'_>, batch: RecordBatch) -> Result<Vec<(RecordBatch, bool)>> {
    let sys_to = open_until(io.def, &batch)?;
    let open: Vec<bool> = sys_to.values().iter().map(|t| *t == OPEN_END).collect();
    let mut out = Vec::new();
    for current in [true, false] {
        let rows: Vec<bool> = open.iter().map(|o| *o == current).collect();
        let mut half = Vec::new();
        push_filtered(&mut half, &batch, rows)?;
        out.extend(half.into_iter().map(|b| (b, current)));
    }
    Ok(out)
}

fn open_until<'a>(def: &TableDef, batch: &'a RecordBatch) -> Result<&'a TimestampMicrosecondArray> {
    batch
        .column_by_name("sys_to")
        .and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or_else(|| LakeError::Internal(format!("{} without sys_to", def.table)))
}

/// Finds the needed rows in settled files: exactly one open row per key, or a stop.
async fn find_settled(
    io: &Inputs<'_>,
    partition: i32,
    needs: &mut HashMap<&[u8], Need>,
) -> Result<Vec<Closing>> {
    let mut out = Vec::new();
    if needs.is_empty() {
        return Ok(out);
    }
    let candidates: Vec<Arc<FileMeta>> = io
        .base
        .files()
        .filter(|f| match f.kind {
            Kind::Settled(p) => p == partition,
            Kind::Foreign => io.splitter.is_current(&f.partition) != Some(false),
            _ => false,
        })
        .filter(|f| {
            // A break's symbol is no part of its key: nothing tells where the old version is.
            io.def.table == Table::Breaks || needs.values().any(|n| f.may_hold(&n.symbol, n.time))
        })
        .cloned()
        .collect();
    let mut key = Vec::new();
    for file in candidates {
        let batch = io.files.read(&file.path, Some(KEY_COLUMNS)).await?;
        let columns = Columns::new(io.def, &batch)?;
        let sys_to = open_until(io.def, &batch)?;
        let mut rows = Vec::new();
        for row in 0..batch.num_rows() {
            if sys_to.value(row) != OPEN_END || sys_to.is_null(row) {
                continue;
            }
            key.clear();
            columns.key(row, &mut key);
            if let Some(need) = needs.get_mut(key.as_slice()) {
                need.hits += 1;
                need.found = Some(columns.sys_from(row));
                rows.push((row as u32, need.sys_to));
            }
        }
        if !rows.is_empty() {
            out.push((file, rows));
        }
    }
    let mut all: Vec<_> = needs.iter().collect();
    all.sort_by_key(|(k, _)| **k);
    for (key, need) in all {
        let key = String::from_utf8_lossy(key).into_owned();
        match need.hits {
            1 if need.found == Some(need.prev) => {}
            0 | 1 => {
                return Err(LakeError::MissingOpenRow {
                    table: io.def.table,
                    key,
                    prev_sys_from: need.prev,
                });
            }
            _ => {
                return Err(LakeError::DuplicateOpenRow {
                    table: io.def.table,
                    key,
                });
            }
        }
    }
    Ok(out)
}

fn violated(table: Table, record: &Incoming<'_>, v: Violation) -> LakeError {
    let key = String::from_utf8_lossy(record.key).into_owned();
    match v {
        Violation::AlreadyOpen { .. } => LakeError::DuplicateOpenRow { table, key },
        Violation::WrongPredecessor { prev, .. } => LakeError::MissingOpenRow {
            table,
            key,
            prev_sys_from: prev,
        },
        other => LakeError::Violation {
            key,
            detail: other.to_string(),
            hint: "check the stream application's version and its ledger",
        },
    }
}
