//! Shadows: tables of the same definition beside the live ones, for replay and verification.
//!
//! A shadow is a lakehouse like any other, over namespaces of its own prefix and a warehouse
//! folder of its own, in the same catalog; or, by `Lakehouse::open(LakeConfig::local(dir))`, over a
//! catalog of its own. Everything that writes tables works on it unchanged. The live tables can
//! never be dropped here.

use crate::error::{LakeError, Result};
use crate::lake::{LakeConfig, Lakehouse, check_prefix, warehouse_url};
use crate::tables::Table;

/// Beginning of every shadow's namespace prefix.
const PREFIX: &str = "shadow_";

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
            ..self.clone()
        })
    }

    /// Whether this is a shadow's configuration.
    pub fn is_shadow(&self) -> bool {
        self.namespace_prefix
            .as_deref()
            .is_some_and(|p| p.starts_with(PREFIX))
    }
}

impl Lakehouse {
    /// Opens the shadow `name` of this lakehouse, in the same catalog. Its tables are made by
    /// `ensure_tables`. The clock is this one's; faults are not taken over.
    ///
    /// # Errors
    /// `Config` for the name, `Catalog`, `Storage`.
    pub async fn shadow(&self, name: &str) -> Result<Lakehouse> {
        let shadow = Lakehouse::open(self.config.shadow(name)?).await?;
        Ok(shadow.with_clock(self.clock.clone()))
    }

    /// Drops a shadow's tables: from the catalog first, then their files. What is not there is no
    /// error, so that an interrupted drop can be repeated.
    ///
    /// # Errors
    /// `Config` if this is not a shadow; `Catalog`, `Storage`.
    pub async fn drop_shadow(&self) -> Result<()> {
        if !self.config.is_shadow() {
            return Err(LakeError::Config(
                "these are not shadow tables; live tables are never dropped by FinLake".into(),
            ));
        }
        for table in Table::ALL {
            crate::catalog::CatalogOps::drop(self.catalog.as_ref(), &self.ident(table)).await?;
        }
        self.file_io.delete_prefix(&self.warehouse).await?;
        Ok(())
    }
}
