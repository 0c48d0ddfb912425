//! The RocksDB backend: every option of it, and the translation of its errors.
//!
//! One column family for all tasks and stores, so that one write-ahead log, one set of write
//! buffers and one block cache serve the whole process and a write batch is atomic without further
//! ado. Recovery is point-in-time: after a crash of the machine the log is cut at the first damaged
//! record, so what remains is a prefix of whole commits.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, LogLevel, Options, Range,
    ReadOptions, WriteBatch, WriteOptions,
};

use crate::backend::{PREFIX, Visit};
use crate::db::{Budget, Durability, Usage};
use crate::error::{Result, StateError};

/// Write buffers the budget is divided into: one fills while the others are flushed.
const WRITE_BUFFERS: usize = 3;

pub(crate) struct Rocks {
    db: DB,
    path: PathBuf,
    cache: Cache,
    write_options: WriteOptions,
}

impl Rocks {
    pub(crate) fn open(path: &Path, budget: &Budget, durability: Durability) -> Result<Self> {
        let io = |e: std::io::Error| StateError::Io {
            path: path.to_path_buf(),
            detail: e.to_string(),
        };
        std::fs::create_dir_all(path).map_err(io)?;
        let cache = Cache::new_lru_cache(budget.block_cache);
        let db = DB::open(&options(budget, &cache), path)
            .map_err(|e| StateError::from_rocks(path, e.as_ref()))?;
        let mut write_options = WriteOptions::default();
        write_options.set_sync(durability == Durability::PowerLoss);
        Ok(Self {
            db,
            path: path.to_path_buf(),
            cache,
            write_options,
        })
    }

    /// Removes a closed store's files.
    pub(crate) fn destroy(path: &Path) -> Result<()> {
        DB::destroy(&Options::default(), path).map_err(|e| StateError::from_rocks(path, e.as_ref()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    #[cold]
    fn error(&self, error: rocksdb::Error) -> StateError {
        StateError::from_rocks(&self.path, error.as_ref())
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<()> {
        self.db
            .write_opt(batch, &self.write_options)
            .map_err(|e| self.error(e))
    }

    #[inline]
    pub(crate) fn get<R>(&self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> Result<R> {
        let value = self.db.get_pinned(key).map_err(|e| self.error(e))?;
        Ok(f(value.as_deref()))
    }

    pub(crate) fn scan(&self, from: &[u8], to: &[u8], f: &mut Visit<'_>) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(from);
        while let Some((key, value)) = iterator.item() {
            if let ControlFlow::Break(()) = f(&key[PREFIX..], value) {
                return Ok(());
            }
            iterator.next();
        }
        // An iterator also ends at an error.
        iterator.status().map_err(|e| self.error(e))
    }

    pub(crate) fn wipe(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete_range(from, to);
        self.write(batch)?;
        // The range delete alone is enough; whole files inside the range go at once, so that a
        // wipe gives space back and later reads need not step over what is deleted.
        self.db
            .delete_file_in_range(from, to)
            .map_err(|e| self.error(e))
    }

    pub(crate) fn size(&self, from: &[u8], to: &[u8]) -> u64 {
        self.db
            .get_approximate_sizes(&[Range::new(from, to)])
            .iter()
            .sum()
    }

    /// The first key at or after `from`.
    pub(crate) fn first_key(&self, from: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut iterator = self.db.raw_iterator();
        iterator.seek(from);
        let key = iterator.key().map(<[u8]>::to_vec);
        iterator.status().map_err(|e| self.error(e))?;
        Ok(key)
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.db.flush().map_err(|e| self.error(e))
    }

    pub(crate) fn usage(&self) -> Usage {
        let property = |name: &str| match self.db.property_int_value(name) {
            Ok(Some(value)) => value,
            _ => 0,
        };
        Usage {
            block_cache: self.cache.get_usage() as u64,
            write_buffers: property("rocksdb.cur-size-all-mem-tables"),
            table_readers: property("rocksdb.estimate-table-readers-mem"),
            on_disk: property("rocksdb.total-sst-files-size"),
        }
    }
}

fn options(budget: &Budget, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Index and filter blocks live in the cache too: memory stays bounded however big the state.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Most first reads of a key (a new minute's bar) are misses: the filter answers them.
    table.set_bloom_filter(10.0, false);
    table.set_format_version(6);
    table.set_block_size(8 << 10);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(budget.write_buffers / WRITE_BUFFERS);
    options.set_max_write_buffer_number(WRITE_BUFFERS as i32);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_max_open_files(budget.open_files);
    options.set_max_background_jobs(2);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_paranoid_checks(true);
    // Spread the write-back of tables, so that no flush ends in a burst of dirty pages.
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}
