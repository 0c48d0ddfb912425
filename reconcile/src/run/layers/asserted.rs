//! Corrections of bars, read from their Bronze table.

use finlake_lakehouse::Table;

use super::*;

impl Run<'_> {
    /// Everything that was asserted of bars in the scope.
    pub(super) async fn assertions(&mut self, walk: &mut Walk<'_>) -> Result<()> {
        let pinned = match self.lake.snapshot(Table::Bars).await {
            Ok(pinned) => pinned,
            Err(e) => {
                self.cannot(format!(
                    "corrections of bars are not known, so a corrected bar looks like drift: {} \
                     cannot be read: {e}",
                    Table::Bars
                ));
                return Ok(());
            }
        };
        for (p, until) in (0..).zip(walk.asserted_until.iter_mut()) {
            *until = pinned.position(p).commit;
        }
        let filter = scope(self.options).text("record_kind", "assertion");
        let scan = Scan::columns(&columns::assertion_columns()).filter(filter);
        let mut found = Assertions::default();
        let mut batches = pinned.scan(&scan.dictionaries()).await?;
        while let Some(b) = batches.try_next().await? {
            let market = &self.options.market;
            columns::assertions(&b.batch, market, &mut walk.names, &mut found).map_err(bad)?;
        }
        walk.asserted = Arc::new(found);
        Ok(())
    }
}
