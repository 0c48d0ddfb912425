//! Corrections of bars, read from their Bronze table.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
use finlake_lakehouse::Table;

use super::*;
use crate::asserted::Asserted;

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
        let prices = ["open", "high", "low", "close", "volume"];
        let wanted: Vec<&str> = ["source", "symbol", "bar_interval", "bar_start"]
            .into_iter()
            .chain(prices)
            .chain(["expected_sys_from", "retracted", "kafka_offset"])
            .collect();
        let filter = scope(self.options).text("record_kind", "assertion");
        let mut found = Assertions::default();
        let list = self.options.market.intervals.list();
        let mut batches = pinned.scan(&Scan::columns(&wanted).filter(filter)).await?;
        while let Some(b) = batches.try_next().await? {
            let b = &b.batch;
            let missing = |name: &str| bad(columns::BadColumn(name.to_owned()));
            let column = |name: &str| b.column_by_name(name).ok_or_else(|| missing(name));
            let text = |name: &str| {
                column(name)?
                    .as_string_opt::<i32>()
                    .ok_or_else(|| missing(name))
            };
            let instant = |name: &str| {
                column(name)?
                    .as_primitive_opt::<TimestampMicrosecondType>()
                    .ok_or_else(|| missing(name))
            };
            let (sources, symbols) = (text("source")?, text("symbol")?);
            let (intervals, starts) = (text("bar_interval")?, instant("bar_start")?);
            let expected = instant("expected_sys_from")?;
            let retracted = column("retracted")?
                .as_boolean_opt()
                .ok_or_else(|| missing("retracted"))?;
            let offsets = column("kafka_offset")?
                .as_primitive_opt::<Int64Type>()
                .ok_or_else(|| missing("kafka_offset"))?;
            let mut values = Vec::with_capacity(prices.len());
            for name in prices {
                let of = column(name)?.as_primitive_opt::<Decimal128Type>();
                values.push(of.ok_or_else(|| missing(name))?);
            }
            for at in 0..b.num_rows() {
                // What a column cannot hold was refused.
                let whole = values.iter().all(|v| v.is_valid(at)) && starts.is_valid(at);
                let interval = list.iter().position(|i| i.name() == intervals.value(at));
                let (true, Some(interval)) = (whole, interval) else {
                    continue;
                };
                let key = BarKey {
                    symbol: walk.names.id(sources.value(at), symbols.value(at)),
                    interval: interval as u8,
                    start: starts.value(at),
                };
                let [open, high, low, close, volume] = [0, 1, 2, 3, 4].map(|n| values[n].value(at));
                let asserted = Asserted {
                    offset: offsets.value(at),
                    expected: expected.is_valid(at).then(|| expected.value(at)),
                    retracted: retracted.is_valid(at) && retracted.value(at),
                    open,
                    high,
                    low,
                    close,
                    volume,
                };
                found.push(key, asserted);
            }
        }
        walk.asserted = Arc::new(found);
        Ok(())
    }
}
