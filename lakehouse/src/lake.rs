//! The lakehouse as a whole: configuration, catalog, storage, and the tables' creation.
//!
//! `Lakehouse::open` connects (it creates the SQLite file and nothing else); `ensure_tables`
//! creates what is missing, each table with a first empty snapshot at commit 0, and refuses
//! tables of another schema or another Kafka cluster. Readers take `table`, writers go through
//! `sink::TableSink`. Data flows: config → catalog + FileIO → tables.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iceberg::io::FileIO;
use iceberg::{NamespaceIdent, Runtime, TableCreation, TableIdent};

use crate::boxed;
use crate::catalog::{CatalogOps, Loaded, SqliteCatalog, Swap};
use crate::error::{LakeError, Result};
use crate::faults::Faults;
use crate::properties::{self, KafkaIds, Position, Watermarks};
use crate::rest::RestCatalog;
use crate::shadow::{self, Shadow};
use crate::snapshot;
use crate::tables::{Table, TableDef, check_buckets};

/// Where the catalog is.
#[derive(Debug, Clone)]
pub enum Catalog {
    /// One SQLite file, made for one machine.
    Sqlite {
        /// Path of the database file.
        path: PathBuf,
    },
    /// An Iceberg REST catalog.
    Rest {
        /// Base URI, without `/v1`.
        uri: String,
        /// Warehouse name as the server knows it.
        warehouse: Option<String>,
        /// Token, credential, headers …
        props: HashMap<String, String>,
    },
}

/// Upkeep that belongs to the commits.
#[derive(Debug, Clone)]
pub struct Upkeep {
    /// Snapshots kept; more than this many expire.
    pub snapshots: usize,
    /// No snapshot younger than this expires.
    pub snapshot_age: Duration,
    /// Old metadata files kept.
    pub metadata_files: usize,
    /// Manifests are merged when there are more than this many.
    pub manifests: usize,
    /// Merged data files are not merged again beyond this size (bytes).
    pub file_bytes: u64,
    /// At most this many rows are decoded and written again by merging in one commit.
    pub merge_rows: u64,
    /// At most this many bytes of row groups are copied by merging in one commit.
    pub copy_bytes: u64,
    /// Row groups are copied as they are where a file has at least this many rows to each.
    pub copy_rows: u64,
    /// Files that hold together no more rows than this are always sorted into one row group: it
    /// costs little, and row groups of a few rows would cost every reader.
    pub small_rows: u64,
    /// Files of similar size that make a merge, as long as the table has few files.
    pub fan_in: usize,
    /// Live files a table should not exceed by much: merging grows eager towards it. A table of
    /// many partitions is granted two files for each.
    pub files: usize,
    /// A partition that no commit has written for this many snapshots is merged to the end.
    pub idle: i64,
    /// Files of fewer rows are written without compression and dictionaries: they are merged
    /// soon, and until then cost a few kilobytes more.
    pub plain_rows: usize,
    /// Files under `metadata/` and `data/` that nothing refers to are removed at start if older.
    pub orphan_age: Duration,
}

impl Default for Upkeep {
    fn default() -> Self {
        Upkeep {
            snapshots: 100,
            snapshot_age: Duration::from_secs(15 * 60),
            metadata_files: 20,
            manifests: 50,
            file_bytes: 48 << 20,
            merge_rows: 120_000,
            copy_bytes: 64 << 20,
            copy_rows: 1_000,
            small_rows: 8_192,
            fan_in: 8,
            files: 120,
            idle: 60,
            plain_rows: 1_000,
            orphan_age: Duration::from_secs(3 * 24 * 3600),
        }
    }
}

/// Which current rows stay hot: in memory, in small files.
#[derive(Debug, Clone)]
pub struct HotRule {
    /// A closed version stays hot until stream time is this far past its valid time's end.
    pub closed_for: Duration,
    /// An unfinished version (checkpoint) stays hot until stream time is this far past its end.
    pub unfinished_for: Duration,
    /// At most this many hot rows per Kafka partition and table; the oldest cool first.
    pub max_rows: usize,
    /// Cooled rows wait until this many have gathered per Kafka partition …
    pub batch: usize,
    /// … or the oldest of them is overdue by this much system time.
    pub patience: Duration,
    /// Settled files that one commit rewrites at most, as far as the batch can be cut.
    pub rewrites: usize,
}

impl Default for HotRule {
    fn default() -> Self {
        HotRule {
            closed_for: Duration::from_secs(600),
            unfinished_for: Duration::from_secs(48 * 3600),
            max_rows: 50_000,
            batch: 4_000,
            patience: Duration::from_secs(3600),
            rewrites: 16,
        }
    }
}

/// Configuration of the lakehouse.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// Catalog.
    pub catalog: Catalog,
    /// Catalog name: Spark must use the same to see the SQLite catalog's tables.
    pub catalog_name: String,
    /// Warehouse as a URL (`file:///…`, `s3://bucket/prefix`) or an absolute path.
    pub warehouse: String,
    /// Storage properties (`s3.endpoint`, `s3.access-key-id` …).
    pub storage: BTreeMap<String, String>,
    /// Prefix of the namespaces (`shadow` → `shadow_bronze.market_ticks`).
    pub namespace_prefix: Option<String>,
    /// Set by `LakeConfig::shadow` alone: the tables are a shadow's.
    pub shadow: Option<Shadow>,
    /// `bucket(N, symbol)` instead of partitioning by symbol: for more than 64 symbols.
    pub buckets: Option<u32>,
    /// Gold window lengths in observations.
    pub gold_windows: Vec<i32>,
    /// Partition count of the Kafka topics.
    pub kafka_partitions: i32,
    /// Upkeep.
    pub upkeep: Upkeep,
    /// Hot rows.
    pub hot: HotRule,
}

impl LakeConfig {
    /// SQLite catalog `dir/catalog.db`, catalog name `finlake`, warehouse `dir/warehouse/`.
    pub fn local(dir: &Path) -> LakeConfig {
        LakeConfig {
            catalog: Catalog::Sqlite {
                path: dir.join("catalog.db"),
            },
            catalog_name: "finlake".into(),
            warehouse: dir.join("warehouse").display().to_string(),
            storage: BTreeMap::new(),
            namespace_prefix: None,
            shadow: None,
            buckets: None,
            gold_windows: vec![30, 90],
            kafka_partitions: 1,
            upkeep: Upkeep::default(),
            hot: HotRule::default(),
        }
    }
}

/// Wall clock in ms, handed in so that tests and the simulator move it.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The system's clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as i64)
    })
}

/// An open lakehouse. Cheap to clone.
#[derive(Clone)]
pub struct Lakehouse {
    pub(crate) config: Arc<LakeConfig>,
    pub(crate) catalog: Arc<dyn CatalogOps>,
    pub(crate) file_io: FileIO,
    pub(crate) warehouse: String,
    pub(crate) clock: Clock,
    pub(crate) faults: Faults,
}

impl std::fmt::Debug for Lakehouse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lakehouse")
            .field("warehouse", &self.warehouse)
            .field("catalog", &self.catalog)
            .finish_non_exhaustive()
    }
}

impl Lakehouse {
    /// Connects to catalog and storage.
    ///
    /// # Errors
    /// `Config` for impossible settings, `Catalog`/`Storage` if something does not answer.
    #[boxed]
    pub async fn open(config: LakeConfig) -> Result<Lakehouse> {
        check_buckets(config.buckets, config.kafka_partitions)?;
        let warehouse = warehouse_url(&config.warehouse)?;
        let file_io = crate::storage::file_io(&config.storage);
        let catalog: Arc<dyn CatalogOps> = match &config.catalog {
            Catalog::Sqlite { path } => {
                Arc::new(SqliteCatalog::open(path, &config.catalog_name, file_io.clone()).await?)
            }
            Catalog::Rest {
                uri,
                warehouse,
                props,
            } => Arc::new(RestCatalog::open(uri, warehouse.as_deref(), props.clone()).await?),
        };
        Ok(Lakehouse {
            config: Arc::new(config),
            catalog,
            file_io,
            warehouse,
            clock: system_clock(),
            faults: Faults::none(),
        })
    }

    /// Replaces the clock (tests, simulator, replay).
    pub fn with_clock(mut self, clock: Clock) -> Lakehouse {
        self.clock = clock;
        self
    }

    /// Installs crash points (tests, simulator).
    pub fn with_faults(mut self, faults: Faults) -> Lakehouse {
        self.faults = faults;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &LakeConfig {
        &self.config
    }

    /// Storage of the warehouse.
    pub fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// The definition of a table under this configuration.
    pub fn def(&self, table: Table) -> TableDef {
        TableDef::new(table, self.config.buckets, &self.config.gold_windows)
    }

    /// Namespace of a table, with the configured prefix.
    pub fn namespace(&self, table: Table) -> String {
        match &self.config.namespace_prefix {
            Some(p) => format!("{p}_{}", table.namespace()),
            None => table.namespace().to_string(),
        }
    }

    /// Identifier of a table in the catalog.
    pub fn ident(&self, table: Table) -> TableIdent {
        TableIdent::new(
            NamespaceIdent::new(self.namespace(table)),
            table.name().to_string(),
        )
    }

    /// Loads a table's current metadata; `None` if it was never created.
    ///
    /// # Errors
    /// `Catalog`, `Storage`.
    #[boxed]
    pub async fn load(&self, table: Table) -> Result<Option<Loaded>> {
        self.catalog.load(&self.ident(table)).await
    }

    /// The table as iceberg's read API takes it, at its current snapshot.
    ///
    /// # Errors
    /// `Catalog` if the table does not exist yet.
    #[boxed]
    pub async fn table(&self, table: Table) -> Result<iceberg::table::Table> {
        let loaded = self.load(table).await?.ok_or_else(|| {
            LakeError::Catalog(format!(
                "{} does not exist; `finlake run --roles sink` creates it",
                self.ident(table)
            ))
        })?;
        self.as_table(table, &loaded)
    }

    /// Wraps loaded metadata for iceberg's read API.
    ///
    /// # Errors
    /// `Storage` outside a tokio runtime.
    pub fn as_table(&self, table: Table, loaded: &Loaded) -> Result<iceberg::table::Table> {
        Ok(iceberg::table::Table::builder()
            .file_io(self.file_io.clone())
            .identifier(self.ident(table))
            .metadata_location(loaded.location.clone())
            .metadata(loaded.metadata.clone())
            .runtime(Runtime::try_current()?)
            .build()?)
    }

    /// Positions and identities of a table; empty if it does not exist. Refuses a moved table.
    ///
    /// # Errors
    /// `TableMoved`, `Corrupt`, `Catalog`, `Storage`.
    #[boxed]
    pub async fn watermarks(&self, table: Table) -> Result<Watermarks> {
        let Some(loaded) = self.load(table).await? else {
            return Ok(Watermarks::default());
        };
        let marks = Watermarks::read(loaded.metadata.properties())?;
        properties::check_authority(table, &loaded.metadata, &marks)?;
        Ok(marks)
    }

    /// Position of one Kafka partition in a table.
    ///
    /// # Errors
    /// As `watermarks`.
    #[boxed]
    pub async fn position(&self, table: Table, partition: i32) -> Result<Option<Position>> {
        Ok(self
            .watermarks(table)
            .await?
            .positions
            .get(&partition)
            .copied())
    }

    /// Creates missing tables, finishes half-created ones, and checks the rest against this
    /// configuration and this Kafka cluster.
    ///
    /// # Errors
    /// `SchemaDrift`, `KafkaChanged`, `TableMoved`, `Shadow`, `Catalog`, `Storage`.
    #[boxed]
    pub async fn ensure_tables(&self, ids: &KafkaIds) -> Result<()> {
        self.ensure_only(&Table::ALL, ids).await
    }

    /// The same for these tables.
    ///
    /// # Errors
    /// As `ensure_tables`.
    #[boxed]
    pub async fn ensure_only(&self, tables: &[Table], ids: &KafkaIds) -> Result<()> {
        for table in tables {
            self.ensure(*table, ids).await?;
        }
        Ok(())
    }

    async fn ensure(&self, table: Table, ids: &KafkaIds) -> Result<()> {
        let def = self.def(table);
        let ident = self.ident(table);
        for _ in 0..5 {
            let loaded = match self.catalog.load(&ident).await? {
                Some(loaded) => loaded,
                None => {
                    shadow::check_namespace(&self.config)?;
                    let location = format!(
                        "{}/{}/{}",
                        self.warehouse,
                        self.namespace(table),
                        table.name()
                    );
                    let creation = TableCreation::builder()
                        .name(table.name().to_string())
                        .location(location)
                        .schema(def.iceberg_schema()?)
                        .partition_spec(def.partition_spec()?)
                        .sort_order(def.sort_order()?)
                        .properties(self.config.marks())
                        .build();
                    self.catalog.create(&ident, creation).await?
                }
            };
            shadow::check_mark(&self.config, &ident, loaded.metadata.properties())?;
            def.check(loaded.metadata.current_schema())?;
            let marks = Watermarks::read(loaded.metadata.properties())?;
            properties::check_authority(table, &loaded.metadata, &marks)?;
            properties::check_identities(table, &marks, ids)?;
            let mut props = HashMap::new();
            if marks.snapshot.is_none() {
                if loaded.metadata.current_snapshot_id().is_some() {
                    return Err(LakeError::SchemaDrift {
                        table,
                        detail: "the table holds data that FinLake did not write".into(),
                    });
                }
                props = properties::initial(self.config.kafka_partitions);
            } else {
                if marks.positions.len() as i32 != self.config.kafka_partitions {
                    return Err(LakeError::Config(format!(
                        "{table} was created for {} Kafka partitions, the topics have {}; \
                         partition counts are fixed for the life of an application",
                        marks.positions.len(),
                        self.config.kafka_partitions
                    )));
                }
            }
            let known = loaded.metadata.properties();
            let wanted = properties::wanted(ids, self.config.upkeep.metadata_files);
            props.extend(wanted.into_iter().filter(|(k, v)| known.get(k) != Some(v)));
            if props.is_empty() {
                return Ok(());
            }
            if self.empty_commit(&ident, &loaded, props).await? {
                return Ok(());
            }
        }
        Err(LakeError::Conflict { table, tries: 5 })
    }

    /// One empty `append` snapshot that carries properties. Returns false if someone else
    /// changed the table first. Properties are never set alone, since REST compares only the
    /// snapshot id.
    pub(crate) async fn empty_commit(
        &self,
        ident: &TableIdent,
        base: &Loaded,
        mut props: HashMap<String, String>,
    ) -> Result<bool> {
        let id = snapshot::fresh_id(&base.metadata);
        props.insert(properties::P_SNAPSHOT.to_string(), id.to_string());
        let manifests = match base.metadata.current_snapshot() {
            Some(s) => crate::index::read_manifest_list(&self.file_io, &base.metadata, s).await?,
            None => Vec::new(),
        };
        let list = format!(
            "{}/metadata/snap-{id}-{}.avro",
            base.metadata.location(),
            uuid::Uuid::new_v4()
        );
        snapshot::write_manifest_list(&self.file_io, &list, &base.metadata, id, &manifests).await?;
        // The totals go on: the next commit counts from them.
        let before = base.metadata.current_snapshot();
        let before = before.map(|s| s.summary().additional_properties.iter());
        let totals = before.into_iter().flatten();
        let totals = totals.filter(|(name, _)| name.starts_with("total-"));
        let mut summary: HashMap<String, String> =
            totals.map(|(n, v)| (n.clone(), v.clone())).collect();
        summary.insert("finlake.kind".to_string(), "setup".to_string());
        let (proposal, _) = snapshot::propose(
            base,
            snapshot::NewSnapshot {
                id,
                operation: iceberg::spec::Operation::Append,
                manifest_list: list,
                summary,
                now_ms: (self.clock)(),
                properties: props,
                expire: Vec::new(),
            },
        )?;
        let staged = self.catalog.stage(ident, base, proposal).await?;
        match self.catalog.swap(ident, base, staged).await? {
            Swap::Done(_) => Ok(true),
            Swap::Lost => Ok(false),
            Swap::Unknown(detail) => {
                let now = self.catalog.load(ident).await?;
                if now.is_some_and(|n| n.metadata.snapshot_by_id(id).is_some()) {
                    return Ok(true);
                }
                tracing::warn!(%ident, detail, "outcome of a set-up commit unknown, trying again");
                Ok(false)
            }
        }
    }
}

/// A namespace prefix goes into namespaces, folders and other engines' SQL.
pub(crate) fn check_prefix(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 48 || !name.chars().all(plain) {
        return Err(LakeError::Config(format!(
            "{name:?} names no shadow: use up to 48 lower-case letters, digits and _"
        )));
    }
    Ok(())
}

/// `/abs/dir` → `file:///abs/dir`; trailing slashes removed.
pub(crate) fn warehouse_url(text: &str) -> Result<String> {
    let text = text.trim_end_matches('/');
    if text.contains("://") {
        return Ok(text.to_string());
    }
    let path = std::path::absolute(text)
        .map_err(|e| LakeError::Config(format!("warehouse {text}: {e}")))?;
    Ok(format!("file://{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties::P_POSITION;

    #[tokio::test]
    async fn tables_start_with_an_empty_snapshot_at_commit_zero() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LakeConfig::local(dir.path());
        config.kafka_partitions = 3;
        let lake = Lakehouse::open(config.clone()).await.unwrap();
        let ids = KafkaIds {
            cluster_id: "c".into(),
            topic_ids: BTreeMap::new(),
        };
        lake.ensure_tables(&ids).await.unwrap();
        lake.ensure_tables(&ids).await.unwrap();
        for table in Table::ALL {
            let loaded = lake.load(table).await.unwrap().unwrap();
            assert_eq!(loaded.metadata.snapshots().len(), 1);
            let marks = lake.watermarks(table).await.unwrap();
            assert_eq!(marks.snapshot, loaded.metadata.current_snapshot_id());
            assert_eq!(marks.positions.len(), 3);
            assert_eq!(lake.position(table, 2).await.unwrap().unwrap().commit, 0);
            assert!(
                loaded
                    .metadata
                    .properties()
                    .contains_key(&format!("{P_POSITION}0"))
            );
            lake.table(table).await.unwrap();
        }
        // A later start takes over what its configuration says.
        config.upkeep.metadata_files = 7;
        let later = Lakehouse::open(config.clone()).await.unwrap();
        for _ in 0..2 {
            later.ensure_tables(&ids).await.unwrap();
            for table in Table::ALL {
                let metadata = later.load(table).await.unwrap().unwrap().metadata;
                assert_eq!(metadata.properties()[properties::P_METADATA_FILES], "7");
                assert_eq!(metadata.snapshots().len(), 2, "once");
                let marks = later.watermarks(table).await.unwrap();
                assert_eq!(marks.snapshot, metadata.current_snapshot_id());
            }
        }
        let other = KafkaIds {
            cluster_id: "other".into(),
            topic_ids: BTreeMap::new(),
        };
        assert!(matches!(
            lake.ensure_tables(&other).await.unwrap_err(),
            LakeError::KafkaChanged { .. }
        ));
        config.kafka_partitions = 4;
        let wider = Lakehouse::open(config).await.unwrap();
        assert!(wider.ensure_tables(&ids).await.is_err());
    }

    #[test]
    fn warehouse_spelling() {
        assert_eq!(warehouse_url("s3://b/p/").unwrap(), "s3://b/p");
        assert_eq!(warehouse_url("/a/b/").unwrap(), "file:///a/b");
    }
}
