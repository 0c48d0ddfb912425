//! Bars against klines and vendors' bars: collects the references, then reads Silver once.

use finlake_lakehouse::Table;
use finlake_schemas::{Kline, topics};

use super::*;
use crate::accuracy::{Reference, References, Who};
use crate::rules::Rule;

/// References held at a time, some 130 bytes each; a run over more needs --date or --symbol.
const HELD: usize = 4_000_000;

/// Rules of one kind and the intervals they speak of, by place in the configured list.
struct Asked {
    rules: Vec<Rule>,
    intervals: BTreeMap<String, u8>,
}

impl Run<'_> {
    /// Measures the accuracy rules over the current closed bars.
    pub async fn accuracy(&mut self, silver: &Pinned) -> Result<()> {
        for who in [Who::Exchange, Who::Vendor] {
            let asked = self.asked(who);
            if asked.rules.is_empty() {
                continue;
            }
            let mut references = References::default();
            let collected = match who {
                Who::Exchange => self.klines(&asked, &mut references),
                Who::Vendor => self.vendors(&asked, &mut references).await?,
            };
            let why = match collected {
                Err(why) => {
                    self.report.unchecked.push(why.clone());
                    why
                }
                Ok(why) => why,
            };
            references.sort();
            self.against(silver, &asked.rules, &references).await?;
            for rule in asked.rules {
                if self.tally.has(&rule.measure) {
                    continue;
                }
                self.report.unmeasured.push((rule, why.clone()));
            }
        }
        Ok(())
    }

    fn asked(&self, who: Who) -> Asked {
        let list = self.options.market.intervals.list();
        let mut asked = Asked {
            rules: Vec::new(),
            intervals: BTreeMap::new(),
        };
        for rule in &self.options.validators {
            let name = match (&rule.measure, who) {
                (Measure::KlineAccuracy(i), Who::Exchange) => i,
                (Measure::VendorAccuracy(i), Who::Vendor) => i,
                _ => continue,
            };
            asked.rules.push(rule.clone());
            if let Some(at) = list.iter().position(|i| i.name() == *name) {
                // Intervals are a handful.
                asked.intervals.insert(name.clone(), at as u8);
            }
        }
        asked
    }

    /// Whether a bar of somebody else's lies in the scope.
    fn in_scope(&self, symbol: &str, start: i64) -> bool {
        let day = finlake_market::interval::date_of(start);
        self.options.symbol.as_deref().is_none_or(|s| s == symbol)
            && self
                .options
                .dates
                .is_none_or(|(from, to)| (from..to).contains(&day))
    }

    /// Closed klines of the topic. What comes back says why nothing may be measured.
    fn klines(&self, asked: &Asked, into: &mut References) -> std::result::Result<String, String> {
        let Some(records) = self.records else {
            return Ok(format!("{} was not read", topics::KLINES));
        };
        let mut order = 0;
        let (mut all, mut full) = (0u64, false);
        records.klines(&mut |k: &Kline<'_>| {
            all += 1;
            order += 1;
            let Some(interval) = asked.intervals.get(k.bar_interval) else {
                return true;
            };
            if k.closed && self.in_scope(k.symbol, k.bar_start) {
                let reference = Reference {
                    interval: *interval,
                    start: k.bar_start,
                    values: [k.open, k.high, k.low, k.close, k.volume].map(|d| d.0),
                    trade_count: Some(k.trade_count),
                };
                into.push(Who::Exchange, k.source, k.symbol, reference, order);
                full = into.len() >= HELD;
            }
            !full
        })?;
        if full {
            return Err(format!(
                "{} holds more than {HELD} klines of this scope: the rest was not compared; \
                 narrow it by --date or --symbol",
                topics::KLINES
            ));
        }
        Ok(match all {
            0 => format!(
                "{} is empty; `finlake ingest klines` fills it",
                topics::KLINES
            ),
            n => format!(
                "none of the {n} klines of {} is of a closed bar here",
                topics::KLINES
            ),
        })
    }

    /// Vendors' bars, as quoted, from their Bronze table.
    async fn vendors(
        &self,
        asked: &Asked,
        into: &mut References,
    ) -> Result<std::result::Result<String, String>> {
        let pinned = match self.lake.snapshot(Table::Bars).await {
            Ok(pinned) => pinned,
            Err(e) => return Ok(Err(format!("{} cannot be read: {e}", Table::Bars))),
        };
        let filter = Filter::all().text("record_kind", "vendor_bar");
        let scan = Scan::columns(&columns::vendor_columns()).filter(filter);
        let mut batches = pinned.scan(&scan.dictionaries()).await?;
        let (mut all, mut adjusted) = (0u64, 0u64);
        while let Some(b) = batches.try_next().await? {
            let taken = columns::vendors(&b.batch, |bar| {
                all += 1;
                let Some(interval) = asked.intervals.get(bar.interval) else {
                    return;
                };
                if !bar.as_quoted {
                    adjusted += 1;
                    return;
                }
                if !self.in_scope(bar.symbol, bar.start) || into.len() >= HELD {
                    return;
                }
                let reference = Reference {
                    interval: *interval,
                    start: bar.start,
                    values: bar.values,
                    trade_count: None,
                };
                into.push(Who::Vendor, bar.source, bar.symbol, reference, bar.offset);
            });
            taken.map_err(bad)?;
        }
        if into.len() >= HELD {
            return Ok(Err(format!(
                "{} holds more than {HELD} vendors' bars of this scope: the rest was not compared; \
                 narrow it by --date or --symbol",
                Table::Bars
            )));
        }
        Ok(Ok(format!(
            "none of the {all} vendors' bars in {} is of a closed bar here ({adjusted} are \
             split-adjusted, and not comparable)",
            Table::Bars
        )))
    }

    /// Reads the current bars of the intervals asked for, and compares.
    async fn against(
        &mut self,
        silver: &Pinned,
        rules: &[Rule],
        references: &References,
    ) -> Result<()> {
        if references.is_empty() {
            return Ok(());
        }
        let mut held: BTreeMap<Measure, Findings> = BTreeMap::new();
        let as_of = self.options.as_of.unwrap_or(i64::MAX);
        let marks = silver.watermarks();
        let partitions = marks.positions.keys().max().map_or(0, |p| p + 1);
        let limits: Vec<i64> = (0..partitions)
            .map(|p| silver.position(p).frontier.min(as_of))
            .collect();
        let until = |p: usize| limits.get(p).copied().unwrap_or(i64::MIN);
        let filter = self.filter(None).text("stage", "closed");
        let scan = Scan::columns(columns::BARS).filter(filter).dictionaries();
        let mut batches = silver.scan(&scan).await?;
        let mut names = Names::default();
        let market = &self.options.market;
        while let Some(b) = batches.try_next().await? {
            let mut rows = vec![Vec::new(); limits.len()];
            columns::bars(&b.batch, market, &mut names, &until, OPEN_END, &mut rows)
                .map_err(bad)?;
            let current = rows.iter().flatten().filter(|r| r.sys_to == OPEN_END);
            for row in current {
                for rule in rules {
                    let measure = &rule.measure;
                    let out = held
                        .entry(measure.clone())
                        .or_insert_with(|| Findings::limited(self.options.limit));
                    let compared = &mut self.report.looked.compared;
                    references.compare(
                        measure,
                        row,
                        &names,
                        market,
                        &mut self.tally,
                        compared,
                        out,
                    );
                }
            }
        }
        // The single bars are told only where the rule as a whole does not hold.
        for m in self.tally.judge(rules).iter().filter(|m| m.is_broken()) {
            if let Some(found) = held.remove(&m.rule.measure) {
                self.report.findings.absorb(found);
            }
        }
        Ok(())
    }
}
