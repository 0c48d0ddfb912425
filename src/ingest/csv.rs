//! One row of a trades or aggregate trades CSV. Pure; borrows from the row.
//!
//! Layouts: the exchange's archives, told apart by what stands where (trades: id, price, qty,
//! quoteQty, time, isBuyerMaker[, isBestMatch]; aggregate trades: id, price, qty, first, last,
//! time, isBuyerMaker[, isBestMatch]), or any order under a header that names the columns.

use finlake_schemas::Tick;

use super::{LineFault, Sources, decimal, micros};

const MAX_COLUMNS: usize = 32;

/// Where the columns stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    columns: usize,
    id: usize,
    price: usize,
    quantity: usize,
    time: usize,
    maker: Option<usize>,
    /// First and last id: the rows are aggregate trades.
    range: Option<(usize, usize)>,
    symbol: Option<usize>,
}

/// What the first row of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstRow {
    /// It names the columns.
    Header(Layout),
    /// It is a trade already.
    Row(Layout),
}

impl Layout {
    const TRADES: Layout = Layout {
        columns: 7,
        id: 0,
        price: 1,
        quantity: 2,
        time: 4,
        maker: Some(5),
        range: None,
        symbol: None,
    };
    const AGGREGATES: Layout = Layout {
        columns: 8,
        id: 0,
        price: 1,
        quantity: 2,
        time: 5,
        maker: Some(6),
        range: Some((3, 4)),
        symbol: None,
    };

    /// Whether rows name their symbol.
    pub fn has_symbol(&self) -> bool {
        self.symbol.is_some()
    }

    /// Tells the layout from the first row.
    ///
    /// # Errors
    /// What a row must hold.
    pub fn detect(row: &[u8]) -> Result<FirstRow, String> {
        let text = std::str::from_utf8(row).map_err(|_| "the first row is not text".to_owned())?;
        let cells: Vec<&str> = text.trim_ascii().split(',').map(clean).collect();
        if cells.len() > MAX_COLUMNS {
            return Err(format!("more than {MAX_COLUMNS} columns"));
        }
        if cells[0].parse::<i64>().is_err() {
            return Layout::from_header(&cells).map(FirstRow::Header);
        }
        // Seven columns are spot trades or futures aggregates: the maker's flag stands apart.
        let flag = |at: usize| cells.get(at).is_some_and(|cell| boolean(cell).is_some());
        let whole = |at: usize| cells[at].parse::<i64>().is_ok();
        let layout = match cells.len() {
            6 | 7 if flag(5) => Layout::TRADES,
            7 | 8 if flag(6) && (3..6).all(whole) => Layout::AGGREGATES,
            count => {
                return Err(format!(
                    "{count} columns are neither the exchange's trades (id, price, qty, quoteQty, \
                     time, isBuyerMaker, isBestMatch) nor its aggregate trades (id, price, qty, \
                     first id, last id, time, isBuyerMaker, isBestMatch); name the columns in a \
                     header"
                ));
            }
        };
        Ok(FirstRow::Row(Layout {
            columns: cells.len(),
            ..layout
        }))
    }

    fn from_header(cells: &[&str]) -> Result<Layout, String> {
        let find = |names: &[&str]| {
            cells.iter().position(|cell| {
                // One letter is a field of the exchange's, where case tells m from M.
                if cell.len() == 1 {
                    return names.contains(cell);
                }
                let plain = cell.replace(['_', ' '], "").to_ascii_lowercase();
                names.contains(&plain.as_str())
            })
        };
        let need = |what: &str, names: &[&str]| {
            find(names).ok_or_else(|| {
                format!("the header names no column for the {what} (any of {names:?})")
            })
        };
        let range =
            find(&["firsttradeid", "firstid", "f"]).zip(find(&["lasttradeid", "lastid", "l"]));
        Ok(Layout {
            columns: cells.len(),
            id: need(
                "trade id",
                &["id", "tradeid", "aggtradeid", "aggregatetradeid", "a", "t"],
            )?,
            price: need("price", &["price", "p"])?,
            quantity: need("quantity", &["qty", "quantity", "amount", "q"])?,
            time: need(
                "time",
                &["time", "tradetime", "transacttime", "timestamp", "T"],
            )?,
            maker: find(&["isbuyermaker", "buyermaker", "m"]),
            range,
            symbol: find(&["symbol", "s"]),
        })
    }

    /// Reads one row; `symbol` is used where the row does not name its own.
    ///
    /// # Errors
    /// The row does not fit the layout, or a cell is not what it should be.
    pub fn parse_row<'a>(
        &self,
        row: &'a [u8],
        symbol: &'a str,
        sources: &'a Sources,
    ) -> Result<Tick<'a>, LineFault> {
        let text = std::str::from_utf8(row).map_err(|_| LineFault::Field("text"))?;
        let mut cells = [""; MAX_COLUMNS];
        let mut found = 0;
        for cell in text.trim_ascii().split(',') {
            if found < MAX_COLUMNS {
                cells[found] = clean(cell);
            }
            found += 1;
        }
        if found != self.columns {
            return Err(LineFault::Columns {
                found,
                expected: self.columns,
            });
        }
        let int = |field: &'static str, at: usize| {
            cells[at]
                .parse::<i64>()
                .map_err(|_| LineFault::Field(field))
        };
        let (first, last) = match self.range {
            Some((first, last)) => (Some(int("first id", first)?), Some(int("last id", last)?)),
            None => (None, None),
        };
        Ok(Tick {
            source: match self.range {
                Some(_) => &sources.aggregate,
                None => &sources.single,
            },
            symbol: match self.symbol {
                Some(at) if cells[at].is_empty() => return Err(LineFault::Field("symbol")),
                Some(at) => cells[at],
                None => symbol,
            },
            trade_id: int("id", self.id)?,
            price: decimal("price", cells[self.price])?,
            quantity: decimal("quantity", cells[self.quantity])?,
            trade_time: micros("time", int("time", self.time)?)?,
            event_time: None,
            buyer_maker: match self.maker {
                Some(at) => Some(boolean(cells[at]).ok_or(LineFault::Field("isBuyerMaker"))?),
                None => None,
            },
            ingest_time: None,
            first_trade_id: first,
            last_trade_id: last,
        })
    }
}

/// Without white space and quotes; no cell of a trade holds a comma.
fn clean(cell: &str) -> &str {
    cell.trim_ascii().trim_matches('"')
}

fn boolean(cell: &str) -> Option<bool> {
    match cell {
        "True" | "true" | "TRUE" => Some(true),
        "False" | "false" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The symbol in an archive's file name: `BTCUSDT-trades-2024-08-08.csv.gz` → `BTCUSDT`.
pub fn symbol_of(file_name: &str) -> Option<&str> {
    let prefix = ["-trades-", "-aggTrades-"]
        .iter()
        .find_map(|mark| file_name.split_once(mark))?
        .0;
    // Delivery contracts have an underscore (BTCUSDT_240628); somebody's prefix is lower case.
    let others =
        prefix.trim_end_matches(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let symbol = prefix[others.len()..].trim_matches('_');
    (!symbol.is_empty()).then_some(symbol)
}
