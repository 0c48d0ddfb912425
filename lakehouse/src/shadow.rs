//! Shadows: tables of the same definition beside the live ones, for replay and verification.
//!
//! A shadow is a lakehouse like any other, over namespaces of its own prefix (`shadow_<name>_silver`)
//! and a folder of its own (`<warehouse>/shadow/<name>`), in the same catalog: so that one
//! statement of any engine can join both. Everything that writes tables works on it unchanged.
//!
//! It bears a mark from its first moment on: a file in its folder before there is any table, and
//! the property `finlake.shadow` of every table, set in the metadata that creates it. So whatever
//! an interrupted run leaves behind can be told from live tables. Must never: drop or write
//! anything that bears no mark, or let a live sink write what bears one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use iceberg::{TableIdent, TableUpdate};

use crate::boxed;
use crate::catalog::CatalogOps;
use crate::error::{LakeError, Result};
use crate::lake::{LakeConfig, Lakehouse, check_prefix, warehouse_url};
use crate::storage;
use crate::tables::Table;

/// Property of every table of a shadow: its name.
pub const P_SHADOW: &str = "finlake.shadow";

/// Beginning of every shadow's namespace prefix.
const PREFIX: &str = "shadow_";
/// The mark of a shadow that has no table yet, or none any more.
const MARK: &str = "finlake-shadow.json";
const NAMESPACES: [&str; 4] = ["bronze", "silver", "gold", "quality"];

/// What makes a lakehouse a shadow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shadow {
    /// Its name.
    pub name: String,
    /// Further properties of its tables: where they come from.
    pub about: BTreeMap<String, String>,
}

/// A shadow that the catalog knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowInfo {
    /// Its name.
    pub name: String,
    /// Its tables, as `silver.market_ohlcv`, with their rows.
    pub tables: Vec<(Table, u64)>,
    /// What they say of themselves, without the prefix `finlake.shadow.`.
    pub about: BTreeMap<String, String>,
}

impl LakeConfig {
    /// The configuration of a shadow: namespaces `shadow_<name>_bronze` …, files under
    /// `<warehouse>/shadow/<name>`; the rest is this one's.
    ///
    /// # Errors
    /// `Config` if the name is not of lower-case letters, digits and `_`.
    pub fn shadow(&self, name: &str) -> Result<LakeConfig> {
        check_prefix(name)?;
        let warehouse = warehouse_url(&self.warehouse)?;
        Ok(LakeConfig {
            warehouse: format!("{warehouse}/shadow/{name}"),
            namespace_prefix: Some(format!("{PREFIX}{name}")),
            shadow: Some(Shadow {
                name: name.to_owned(),
                about: BTreeMap::new(),
            }),
            ..self.clone()
        })
    }

    /// The properties that its tables are created with, a shadow's mark among them.
    pub(crate) fn marks(&self) -> HashMap<String, String> {
        let Some(shadow) = &self.shadow else {
            return HashMap::new();
        };
        let about = shadow.about.iter().map(|(k, v)| (property(k), v.clone()));
        let mark = (P_SHADOW.to_owned(), shadow.name.clone());
        std::iter::once(mark).chain(about).collect()
    }
}

fn property(name: &str) -> String {
    format!("{P_SHADOW}.{name}")
}

/// Refuses to write a shadow as live tables, and live tables as a shadow.
pub(crate) fn check_mark(
    config: &LakeConfig,
    table: &TableIdent,
    properties: &HashMap<String, String>,
) -> Result<()> {
    match (&config.shadow, properties.get(P_SHADOW)) {
        (None, None) => Ok(()),
        (Some(shadow), Some(name)) if shadow.name == *name => Ok(()),
        (None, Some(name)) => Err(LakeError::Shadow(format!(
            "{table} belongs to the shadow {name}: the replay that made it alone wrote it, and no sink does; give \
             lake.namespace_prefix the prefix of the live tables"
        ))),
        (Some(shadow), _) => Err(LakeError::Shadow(format!(
            "{table} does not bear the mark of the shadow {}: no replay made it, so it is neither written nor dropped \
             as one; choose another name",
            shadow.name
        ))),
    }
}

/// Refuses to make live tables where shadows stand.
pub(crate) fn check_namespace(config: &LakeConfig) -> Result<()> {
    match &config.namespace_prefix {
        Some(prefix) if config.shadow.is_none() && prefix.starts_with(PREFIX) => {
            Err(LakeError::Shadow(format!(
                "namespaces {prefix}_… are those of a replay's shadow, and live tables are not made there; choose \
                 another lake.namespace_prefix"
            )))
        }
        _ => Ok(()),
    }
}

/// The shadow that a namespace belongs to, and which of its namespaces it is.
fn parse(namespace: &str) -> Option<(&str, &'static str)> {
    let rest = namespace.strip_prefix(PREFIX)?;
    NAMESPACES.into_iter().find_map(|base| {
        let name = rest.strip_suffix(base)?.strip_suffix('_')?;
        check_prefix(name).ok().map(|()| (name, base))
    })
}

/// The namespaces of shadows that a statement names, with which of the shadow's each is. Words of
/// its texts and comments too: they are looked up in the catalog and do no harm.
pub(crate) fn named(sql: &str) -> BTreeSet<(String, &'static str)> {
    let lower = sql.to_ascii_lowercase();
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = lower.split(word);
    words
        .filter_map(|w| parse(w).map(|(_, base)| (w.to_owned(), base)))
        .collect()
}

impl Lakehouse {
    /// Opens the shadow `name` of this lakehouse, in the same catalog. Its tables are made by
    /// `ensure_tables`. The clock is this one's; faults are not taken over.
    ///
    /// # Errors
    /// `Config` for the name, `Catalog`, `Storage`.
    #[boxed]
    pub async fn shadow(&self, name: &str) -> Result<Lakehouse> {
        let shadow = Lakehouse::open(self.config.shadow(name)?).await?;
        Ok(shadow.with_clock(self.clock.clone()))
    }

    /// Begins a new shadow: marks its folder. `about` says where its rows come from, in the
    /// properties `finlake.shadow.…` of each of its tables.
    ///
    /// # Errors
    /// `Shadow` if there is one of that name and it may not be replaced, or what stands there is
    /// none; `Config` for the name, `Catalog`, `Storage`.
    #[boxed]
    pub async fn create_shadow(
        &self,
        name: &str,
        about: BTreeMap<String, String>,
        overwrite: bool,
    ) -> Result<Lakehouse> {
        let mut config = self.config.shadow(name)?;
        if let Some(shadow) = &mut config.shadow {
            shadow.about = about;
        }
        let shadow = Lakehouse::open(config).await?;
        let shadow = shadow.with_clock(self.clock.clone());
        if shadow.is_there().await? {
            if !overwrite {
                return Err(LakeError::Shadow(format!(
                    "there is a shadow {name} already; drop it with `finlake tables drop-shadow {name}`, replace it \
                     with --overwrite, or choose another name"
                )));
            }
            shadow.remove().await?;
        }
        let marks: BTreeMap<String, String> = shadow.config.marks().into_iter().collect();
        let text = serde_json::to_vec_pretty(&marks)
            .map_err(|e| LakeError::Internal(format!("the mark of a shadow: {e}")))?;
        let mark = shadow.file_io.new_output(shadow.mark())?;
        mark.write(text.into()).await?;
        Ok(shadow)
    }

    /// Drops the shadow `name` of this lakehouse with all its files, an unfinished one too. Returns
    /// false if there is none.
    ///
    /// # Errors
    /// `Shadow` if a table of it bears no mark: nothing is dropped then; `Config` for the name,
    /// `Catalog`, `Storage`.
    #[boxed]
    pub async fn drop_shadow(&self, name: &str) -> Result<bool> {
        let shadow = self.shadow(name).await?;
        let there = shadow.is_there().await?;
        if there {
            shadow.remove().await?;
        }
        Ok(there)
    }

    /// Adds to what the tables of this shadow say of themselves.
    ///
    /// # Errors
    /// `Shadow` if this is none; `Catalog`, `Storage`, `Conflict`.
    #[boxed]
    pub async fn note(&self, about: &BTreeMap<String, String>) -> Result<()> {
        const TRIES: u32 = 5;
        let properties: HashMap<String, String> = about
            .iter()
            .map(|(k, v)| (property(k), v.clone()))
            .collect();
        for table in Table::ALL {
            let mut tries = 0;
            while let Some(base) = self.load(table).await? {
                if self.config.shadow.is_none() {
                    return Err(LakeError::Internal("only a shadow is annotated".into()));
                }
                check_mark(&self.config, &self.ident(table), base.metadata.properties())?;
                let update = TableUpdate::SetProperties {
                    updates: properties.clone(),
                };
                if self.update(table, &base, vec![update]).await? {
                    break;
                }
                tries += 1;
                if tries >= TRIES {
                    return Err(LakeError::Conflict { table, tries });
                }
            }
        }
        Ok(())
    }

    /// The shadows in this catalog, by name.
    ///
    /// # Errors
    /// `Catalog`, `Storage`.
    #[boxed]
    pub async fn shadows(&self) -> Result<Vec<ShadowInfo>> {
        let names: BTreeSet<String> = self
            .catalog
            .namespaces()
            .await?
            .iter()
            .filter_map(|n| parse(n).map(|(name, _)| name.to_owned()))
            .collect();
        let mut found = Vec::new();
        for name in names {
            let shadow = self.shadow(&name).await?;
            let mut info = ShadowInfo {
                name,
                tables: Vec::new(),
                about: BTreeMap::new(),
            };
            for table in Table::ALL {
                let Some(loaded) = shadow.load(table).await? else {
                    continue;
                };
                let metadata = &loaded.metadata;
                if metadata.properties().get(P_SHADOW) != Some(&info.name) {
                    continue;
                }
                let summary = metadata.current_snapshot().map(|s| s.summary());
                let rows = summary
                    .and_then(|s| s.additional_properties.get("total-records")?.parse().ok());
                info.tables.push((table, rows.unwrap_or(0)));
                let about = metadata.properties().iter();
                info.about.extend(about.filter_map(|(k, v)| {
                    let name = k.strip_prefix(P_SHADOW)?.strip_prefix('.')?;
                    Some((name.to_owned(), v.clone()))
                }));
            }
            if !info.tables.is_empty() {
                found.push(info);
            }
        }
        Ok(found)
    }

    fn mark(&self) -> String {
        format!("{}/{MARK}", self.warehouse)
    }

    /// Whether there is anything of this shadow: a table, its mark, or files that a writer left
    /// which did not notice in time that its tables were dropped.
    async fn is_there(&self) -> Result<bool> {
        for table in Table::ALL {
            if self.load(table).await?.is_some() {
                return Ok(true);
            }
        }
        if self.file_io.exists(self.mark()).await? {
            return Ok(true);
        }
        for namespace in self.namespaces() {
            let folder = format!("{}/{namespace}", self.warehouse);
            if !storage::list(&self.config.storage, &folder)
                .await?
                .is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn namespaces(&self) -> BTreeSet<String> {
        Table::ALL.map(|t| self.namespace(t)).into()
    }

    /// Drops this shadow: from the catalog first, then the files of its tables, its mark last, so
    /// that what an interrupted drop leaves behind can be dropped again. What else lies in its
    /// folder stays.
    async fn remove(&self) -> Result<()> {
        let mut tables = Vec::new();
        for table in Table::ALL {
            if let Some(loaded) = self.load(table).await? {
                let ident = self.ident(table);
                check_mark(&self.config, &ident, loaded.metadata.properties())?;
                tables.push((ident, loaded.metadata.location().to_owned()));
            }
        }
        for (ident, location) in tables {
            CatalogOps::drop(self.catalog.as_ref(), &ident).await?;
            // Where a catalog puts tables elsewhere than it was asked to.
            if !location.starts_with(&format!("{}/", self.warehouse)) {
                self.file_io.delete_prefix(&location).await?;
            }
        }
        for namespace in self.namespaces() {
            self.file_io
                .delete_prefix(&format!("{}/{namespace}", self.warehouse))
                .await?;
            if self.catalog.list(&namespace).await?.is_empty() {
                self.catalog.drop_namespace(&namespace).await?;
            }
        }
        self.file_io.delete(self.mark()).await?;
        let left = storage::list(&self.config.storage, &self.warehouse).await?;
        if left.is_empty() {
            // Folders alone.
            self.file_io.delete_prefix(&self.warehouse).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_shadows_in_any_case_and_nothing_else_is_one() {
        let sql = "select * from silver.market_ohlcv l join Shadow_Check_1_SILVER.market_ohlcv s \
                   on true where note = 'shadow_gold' and \"shadow_x_gold\".a = shadow_y_copper.b";
        let found: Vec<_> = named(sql).into_iter().collect();
        let wanted = [
            ("shadow_check_1_silver".to_owned(), "silver"),
            ("shadow_x_gold".to_owned(), "gold"),
        ];
        assert_eq!(found, wanted);
        assert_eq!(
            parse("shadow_silver_silver"),
            Some(("silver", "silver")),
            "a shadow may be called as a layer is"
        );
        assert_eq!(parse("shadow__silver"), None);
    }

    #[test]
    fn a_mark_keeps_live_tables_and_shadows_apart() {
        let live = LakeConfig::local(std::path::Path::new("/lake"));
        let shadow = live.shadow("a").unwrap();
        let other = live.shadow("b").unwrap();
        let table = TableIdent::from_strs(["silver", "market_ohlcv"]).unwrap();
        let (plain, marked) = (HashMap::new(), shadow.marks());
        check_mark(&live, &table, &plain).unwrap();
        check_mark(&shadow, &table, &marked).unwrap();
        for (config, properties) in [(&live, &marked), (&shadow, &plain), (&other, &marked)] {
            let e = check_mark(config, &table, properties).unwrap_err();
            assert!(
                matches!(e, LakeError::Shadow(_)) && !e.is_transient(),
                "{e}"
            );
        }
        let disguised = LakeConfig {
            namespace_prefix: Some("shadow_a".into()),
            ..live.clone()
        };
        assert!(check_namespace(&disguised).is_err());
        check_namespace(&live).unwrap();
        check_namespace(&shadow).unwrap();
    }
}
