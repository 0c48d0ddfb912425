//! Catalogs: load a table, create it, and swap its metadata by compare-and-swap.
//!
//! The library's own catalog commit reloads and rebases in silence; here `swap` succeeds only on
//! exactly the base it was given, or says that it lost, or that nobody knows. `sqlite` keeps
//! `iceberg-catalog-sql`'s table layout, so pyiceberg, Spark (JDBC catalog, schema V1) and
//! DuckDB open it as it is. Never retries: `commit.rs` decides.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::io::FileIO;
use iceberg::spec::{TableMetadata, TableMetadataBuilder, TableMetadataRef};
use iceberg::{MetadataLocation, TableCreation, TableIdent, TableRequirement, TableUpdate};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqlitePool};

use crate::boxed;
use crate::error::{LakeError, Result};

/// A table as the catalog had it: the base of a compare-and-swap.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Metadata location, exactly as the catalog spells it (Spark writes `file:/…`, Rust
    /// `file:///…`; the swap compares the text).
    pub location: String,
    /// Its content.
    pub metadata: TableMetadataRef,
}

/// A change to be swapped in.
#[derive(Debug)]
pub struct Proposal {
    /// The metadata after the change.
    pub metadata: TableMetadata,
    /// The change as updates (REST).
    pub updates: Vec<TableUpdate>,
    /// What must still hold (REST).
    pub requirements: Vec<TableRequirement>,
}

/// A proposal whose metadata file is written (where the client writes it).
#[derive(Debug)]
pub struct Staged {
    /// New metadata location; `None` where the server chooses it.
    pub location: Option<String>,
    /// The proposal.
    pub proposal: Proposal,
}

/// Outcome of a swap.
#[derive(Debug)]
pub enum Swap {
    /// The table is now at this metadata.
    Done(Loaded),
    /// Somebody else changed the table first; nothing happened.
    Lost,
    /// No answer, or an answer that does not tell: reload and compare.
    Unknown(String),
}

/// What the sink needs of a catalog.
#[async_trait]
pub trait CatalogOps: Debug + Send + Sync {
    /// Loads a table; `None` if it does not exist.
    async fn load(&self, table: &TableIdent) -> Result<Option<Loaded>>;

    /// Creates a table and its namespace. If someone created it meanwhile, loads theirs.
    async fn create(&self, table: &TableIdent, creation: TableCreation) -> Result<Loaded>;

    /// Writes the new metadata file, if this catalog's clients do so. Nothing is visible yet.
    async fn stage(&self, table: &TableIdent, base: &Loaded, proposal: Proposal) -> Result<Staged>;

    /// Compare-and-swap. An `Err` means that nothing was sent.
    async fn swap(&self, table: &TableIdent, base: &Loaded, staged: Staged) -> Result<Swap>;

    /// Whether this client owns metadata files (and so deletes old ones).
    fn owns_metadata_files(&self) -> bool;

    /// Names of the tables in a namespace.
    async fn list(&self, namespace: &str) -> Result<Vec<String>>;

    /// Names of the namespaces, nested ones aside.
    async fn namespaces(&self) -> Result<Vec<String>>;

    /// Removes a table from the catalog; its files stay. Used for shadow tables.
    async fn drop(&self, table: &TableIdent) -> Result<()>;

    /// Removes an empty namespace; none of that name is no error. Used for shadow tables.
    async fn drop_namespace(&self, namespace: &str) -> Result<()>;
}

/// The location of the metadata file that follows `base`.
///
/// # Errors
/// `Storage` if the location cannot be parsed.
pub fn next_location(base: Option<&Loaded>, next: &TableMetadata) -> Result<MetadataLocation> {
    let version = base.map_or(0, |b| {
        let name = b.location.rsplit('/').next().unwrap_or_default();
        let digits = name.trim_start_matches('v');
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end]
            .parse::<i32>()
            .map_or(1, |v| v.saturating_add(1))
    });
    let text = format!(
        "{}/metadata/{version:05}-{}.metadata.json",
        next.location(),
        uuid::Uuid::new_v4()
    );
    Ok(MetadataLocation::from_str(&text)?.with_new_metadata(next))
}

/// SQLite catalog on one file, one row per table.
#[derive(Debug)]
pub struct SqliteCatalog {
    name: String,
    pool: SqlitePool,
    file_io: FileIO,
}

const ONE_TABLE: &str = "catalog_name = ? AND table_namespace = ? AND table_name = ? \
                         AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";

impl SqliteCatalog {
    /// Opens or creates the database file.
    ///
    /// # Errors
    /// `Catalog` if the file cannot be opened.
    #[boxed]
    pub async fn open(path: &Path, name: &str, file_io: FileIO) -> Result<SqliteCatalog> {
        if let Some(dir) = path.parent() {
            tokio::fs::create_dir_all(dir)
                .await
                .map_err(|e| LakeError::catalog(format!("{}: {e}", dir.display())))?;
        }
        // FULL, since a swap that the disk forgets while data files of the base are already
        // deleted would leave a table without files. WAL makes that one fsync.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options)
            .await
            .map_err(|e| LakeError::catalog(format!("{}: {e}", path.display())))?;
        for ddl in [
            "CREATE TABLE IF NOT EXISTS iceberg_tables (
                catalog_name VARCHAR(255) NOT NULL,
                table_namespace VARCHAR(255) NOT NULL,
                table_name VARCHAR(255) NOT NULL,
                metadata_location VARCHAR(1000),
                previous_metadata_location VARCHAR(1000),
                iceberg_type VARCHAR(5),
                PRIMARY KEY (catalog_name, table_namespace, table_name))",
            "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
                catalog_name VARCHAR(255) NOT NULL,
                namespace VARCHAR(255) NOT NULL,
                property_key VARCHAR(255),
                property_value VARCHAR(1000),
                PRIMARY KEY (catalog_name, namespace, property_key))",
        ] {
            sqlx::query(ddl)
                .execute(&pool)
                .await
                .map_err(LakeError::catalog)?;
        }
        Ok(SqliteCatalog {
            name: name.to_string(),
            pool,
            file_io,
        })
    }
}

fn namespace(table: &TableIdent) -> String {
    table.namespace().join(".")
}

#[async_trait]
impl CatalogOps for SqliteCatalog {
    async fn load(&self, table: &TableIdent) -> Result<Option<Loaded>> {
        // A reader may lose its metadata file to a fast writer's clean-up between the row and the
        // file: read the row again then.
        for attempt in 0.. {
            let row = sqlx::query(&format!(
                "SELECT metadata_location FROM iceberg_tables WHERE {ONE_TABLE}"
            ))
            .bind(&self.name)
            .bind(namespace(table))
            .bind(table.name())
            .fetch_optional(&self.pool)
            .await
            .map_err(LakeError::catalog)?;
            let Some(row) = row else { return Ok(None) };
            let location: String = row.try_get(0).map_err(LakeError::catalog)?;
            match TableMetadata::read_from(&self.file_io, &location).await {
                Ok(metadata) => {
                    return Ok(Some(Loaded {
                        location,
                        metadata: metadata.into(),
                    }));
                }
                Err(e) if attempt >= 3 => return Err(e.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20 << attempt)).await,
            }
        }
        Ok(None)
    }

    async fn create(&self, table: &TableIdent, creation: TableCreation) -> Result<Loaded> {
        let metadata = TableMetadataBuilder::from_table_creation(creation)?
            .build()?
            .metadata;
        let location = next_location(None, &metadata)?;
        metadata.write_to(&self.file_io, &location).await?;
        let location = location.to_string();
        sqlx::query("INSERT OR IGNORE INTO iceberg_namespace_properties VALUES (?, ?, ?, ?)")
            .bind(&self.name)
            .bind(namespace(table))
            .bind("exists")
            .bind("true")
            .execute(&self.pool)
            .await
            .map_err(LakeError::catalog)?;
        let done = sqlx::query(
            "INSERT OR IGNORE INTO iceberg_tables (catalog_name, table_namespace, table_name, \
             metadata_location, iceberg_type) VALUES (?, ?, ?, ?, 'TABLE')",
        )
        .bind(&self.name)
        .bind(namespace(table))
        .bind(table.name())
        .bind(&location)
        .execute(&self.pool)
        .await
        .map_err(LakeError::catalog)?;
        if done.rows_affected() == 0 {
            let _ = self.file_io.delete(&location).await;
            return self.load(table).await?.ok_or_else(|| {
                LakeError::Catalog(format!("{table} was created and dropped meanwhile"))
            });
        }
        Ok(Loaded {
            location,
            metadata: metadata.into(),
        })
    }

    async fn stage(
        &self,
        _table: &TableIdent,
        base: &Loaded,
        proposal: Proposal,
    ) -> Result<Staged> {
        let location = next_location(Some(base), &proposal.metadata)?;
        proposal.metadata.write_to(&self.file_io, &location).await?;
        Ok(Staged {
            location: Some(location.to_string()),
            proposal,
        })
    }

    async fn swap(&self, table: &TableIdent, base: &Loaded, staged: Staged) -> Result<Swap> {
        let location = staged
            .location
            .ok_or_else(|| LakeError::Internal("a staged SQL commit has a location".into()))?;
        let done = sqlx::query(&format!(
            "UPDATE iceberg_tables SET metadata_location = ?, previous_metadata_location = ? \
             WHERE {ONE_TABLE} AND metadata_location = ?"
        ))
        .bind(&location)
        .bind(&base.location)
        .bind(&self.name)
        .bind(namespace(table))
        .bind(table.name())
        .bind(&base.location)
        .execute(&self.pool)
        .await;
        Ok(match done {
            Ok(r) if r.rows_affected() == 1 => Swap::Done(Loaded {
                location,
                metadata: staged.proposal.metadata.into(),
            }),
            Ok(_) => Swap::Lost,
            Err(e) => Swap::Unknown(e.to_string()),
        })
    }

    fn owns_metadata_files(&self) -> bool {
        true
    }

    async fn list(&self, namespace: &str) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT table_name FROM iceberg_tables WHERE catalog_name = ? \
             AND table_namespace = ? ORDER BY table_name",
        )
        .bind(&self.name)
        .bind(namespace)
        .fetch_all(&self.pool)
        .await
        .map_err(LakeError::catalog)?;
        rows.iter()
            .map(|r| r.try_get(0).map_err(LakeError::catalog))
            .collect()
    }

    async fn namespaces(&self) -> Result<Vec<String>> {
        let rows = sqlx::query(
            "SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = ? ORDER BY 1",
        )
        .bind(&self.name)
        .fetch_all(&self.pool)
        .await
        .map_err(LakeError::catalog)?;
        rows.iter()
            .map(|r| r.try_get(0).map_err(LakeError::catalog))
            .collect()
    }

    async fn drop(&self, table: &TableIdent) -> Result<()> {
        sqlx::query(&format!("DELETE FROM iceberg_tables WHERE {ONE_TABLE}"))
            .bind(&self.name)
            .bind(namespace(table))
            .bind(table.name())
            .execute(&self.pool)
            .await
            .map_err(LakeError::catalog)?;
        Ok(())
    }

    async fn drop_namespace(&self, namespace: &str) -> Result<()> {
        sqlx::query(
            "DELETE FROM iceberg_namespace_properties WHERE catalog_name = ? AND namespace = ? AND NOT EXISTS \
             (SELECT 1 FROM iceberg_tables WHERE catalog_name = ? AND table_namespace = ?)",
        )
        .bind(&self.name)
        .bind(namespace)
        .bind(&self.name)
        .bind(namespace)
        .execute(&self.pool)
        .await
        .map_err(LakeError::catalog)?;
        Ok(())
    }
}

/// Properties handed to a REST catalog, as `iceberg-catalog-rest` names them.
pub type RestProps = HashMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{Table, TableDef};

    fn creation(location: &str) -> TableCreation {
        let def = TableDef::new(Table::Ticks, None, &[]);
        TableCreation::builder()
            .name("market_ticks".to_string())
            .location(location.to_string())
            .schema(def.iceberg_schema().unwrap())
            .partition_spec(def.partition_spec().unwrap())
            .sort_order(def.sort_order().unwrap())
            .build()
    }

    #[tokio::test]
    async fn swap_happens_on_the_given_base_only() {
        let dir = tempfile::tempdir().unwrap();
        let io = FileIO::new_with_fs();
        let catalog = SqliteCatalog::open(&dir.path().join("catalog.db"), "finlake", io)
            .await
            .unwrap();
        let table = TableIdent::from_strs(["bronze", "market_ticks"]).unwrap();
        assert!(catalog.load(&table).await.unwrap().is_none());
        let location = format!("file://{}/wh/bronze/market_ticks", dir.path().display());
        let base = catalog.create(&table, creation(&location)).await.unwrap();
        let again = catalog.create(&table, creation(&location)).await.unwrap();
        assert_eq!(again.location, base.location);
        let change = |key: &str| {
            let base = base.clone();
            let key = key.to_string();
            async move {
                let builder = (*base.metadata)
                    .clone()
                    .into_builder(Some(base.location.clone()));
                let built = builder
                    .set_properties(HashMap::from([(key, "1".to_string())]))
                    .unwrap()
                    .build()
                    .unwrap();
                Proposal {
                    metadata: built.metadata,
                    updates: built.changes,
                    requirements: vec![],
                }
            }
        };
        let first = catalog
            .stage(&table, &base, change("a").await)
            .await
            .unwrap();
        let second = catalog
            .stage(&table, &base, change("b").await)
            .await
            .unwrap();
        assert!(matches!(
            catalog.swap(&table, &base, first).await.unwrap(),
            Swap::Done(_)
        ));
        assert!(matches!(
            catalog.swap(&table, &base, second).await.unwrap(),
            Swap::Lost
        ));
        let now = catalog.load(&table).await.unwrap().unwrap();
        assert!(
            now.location.contains("/metadata/00001-"),
            "{}",
            now.location
        );
        assert!(now.metadata.properties().contains_key("a"));
        assert_eq!(catalog.list("bronze").await.unwrap(), ["market_ticks"]);
        assert_eq!(catalog.namespaces().await.unwrap(), ["bronze"]);
        catalog.drop(&table).await.unwrap();
        assert!(catalog.namespaces().await.unwrap().is_empty());
        assert!(catalog.load(&table).await.unwrap().is_none());
    }

    #[test]
    fn versions_follow_other_engines_names() {
        let built = TableMetadataBuilder::from_table_creation(creation("file:///wh/t"))
            .unwrap()
            .build()
            .unwrap();
        let at = |location: &str| Loaded {
            location: location.to_string(),
            metadata: built.metadata.clone().into(),
        };
        for (base, next) in [
            ("file:/wh/t/metadata/00041-abc.metadata.json", "00042-"),
            ("file:///wh/t/metadata/v7.metadata.json", "00008-"),
            ("file:///wh/t/metadata/odd.json", "00001-"),
        ] {
            let text = next_location(Some(&at(base)), &built.metadata)
                .unwrap()
                .to_string();
            assert!(text.contains(&format!("/metadata/{next}")), "{text}");
        }
    }
}
