//! What a process costs (from /proc), what it says (from /metrics), and how results are printed.

use std::collections::BTreeMap;

use crate::harness::http;

/// A process's consumption so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all its threads, seconds.
    pub cpu: f64,
    /// Resident memory, MB.
    pub rss: f64,
    /// Most of it so far, MB.
    pub peak: f64,
}

/// `None` if the process is gone. CPU has the kernel's grain of 10 ms.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields after the command's name, which may hold anything: state is the first.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mb = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        let kb: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kb / 1024.0)
    };
    Some(Usage {
        // USER_HZ is 100 on every Linux that Rust runs on.
        cpu: ticks as f64 / 100.0,
        rss: mb("VmRSS:")?,
        peak: mb("VmHWM:")?,
    })
}

/// Of this process.
pub fn own() -> Usage {
    usage(std::process::id()).expect("/proc is there")
}

/// One reading of a process's metrics.
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Sum over all label values.
    pub fn sum(&self, metric: &str) -> f64 {
        let of = |name: &str| name.split('{').next() == Some(metric);
        let all = self.0.iter().filter(|(name, _)| of(name));
        // From 0, for the sum over no series is -0.
        all.fold(0.0, |sum, (_, value)| sum + value)
    }

    /// The series whose labels contain `part`.
    pub fn with(&self, metric: &str, part: &str) -> f64 {
        let of = |name: &str| name.split('{').next() == Some(metric) && name.contains(part);
        let all = self.0.iter().filter(|(name, _)| of(name));
        all.map(|(_, value)| value).sum()
    }
}

/// Reads `/metrics` of `address`.
pub fn scrape(address: &str) -> Scrape {
    let Ok(text) = http(address, "GET /metrics", "") else {
        return Scrape(BTreeMap::new());
    };
    let lines = text.lines().filter(|l| l.starts_with("finlake_"));
    let pairs = lines.filter_map(|l| {
        let (name, value) = l.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Scrape(pairs.collect())
}

/// Prints one row of the result table.
pub fn row(id: &str, what: &str, target: &str, measured: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    println!("BENCH | {id} | {what} | {target} | {measured} | load {load}");
}

/// The value below which `per_mille` of the sorted values lie.
pub fn quantile(sorted: &[u32], per_mille: usize) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    let at = (sorted.len() * per_mille / 1000).min(sorted.len() - 1);
    f64::from(sorted[at])
}
