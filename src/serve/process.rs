//! The process's own metrics, under the names that Prometheus clients of other languages use.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Error, Gauge, IntGaugeVec, Opts, Registry};

/// Ticks of /proc/self/stat per second: USER_HZ, which Linux fixes at 100 for user space.
const TICKS: f64 = 100.0;

/// Adds the process and the build to a registry; once is enough.
///
/// # Errors
/// A metric of that name is there already with another shape.
pub fn register(registry: &Registry) -> Result<(), Error> {
    let build = IntGaugeVec::new(
        Opts::new("finlake_build_info", "1, with the version of the program."),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    for collector in [
        Box::new(build) as Box<dyn Collector>,
        Box::new(Process::new()?),
    ] {
        match registry.register(collector) {
            Ok(()) | Err(Error::AlreadyReg) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Read at each scrape. What the system does not tell is left out.
struct Process {
    memory: Gauge,
    cpu: Counter,
    files: Gauge,
}

impl Process {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            memory: Gauge::new("process_resident_memory_bytes", "Resident memory.")?,
            cpu: Counter::new("process_cpu_seconds_total", "User and system time.")?,
            files: Gauge::new("process_open_fds", "Open file descriptors.")?,
        })
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [self.memory.desc(), self.cpu.desc(), self.files.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        if let Some(bytes) = resident_bytes() {
            self.memory.set(bytes);
            families.extend(self.memory.collect());
        }
        if let Some(seconds) = cpu_seconds() {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
            families.extend(self.cpu.collect());
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.files.set(files.count() as f64);
            families.extend(self.files.collect());
        }
        families
    }
}

fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything; fields 14 and 15 are counted behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

/// What this module adds, for the documentation.
#[cfg(test)]
pub fn described() -> Vec<super::metrics::Described> {
    let one = |name: &str, kind, labels: &str, help: &str| super::metrics::Described {
        name: name.to_owned(),
        kind,
        labels: labels.to_owned(),
        help: help.to_owned(),
    };
    let registry = Registry::new();
    assert!(register(&registry).is_ok());
    let families = registry.gather();
    families
        .iter()
        .map(|family| match family.name() {
            name @ "process_cpu_seconds_total" => one(name, "counter", "", family.help()),
            name @ "finlake_build_info" => one(name, "gauge", "version", family.help()),
            name => one(name, "gauge", "", family.help()),
        })
        .collect()
}
