//! A run's results as a file in Prometheus' text format: what a nightly job leaves for the node
//! exporter's textfile collector. A command that ends cannot be scraped.

use std::path::Path;

use anyhow::{Context, Result};
use finlake_reconcile::Report;
use prometheus::{Gauge, GaugeVec, Opts, Registry, TextEncoder};

/// Names and meanings, as docs/metrics.md lists them.
pub const ALL: [(&str, &str); 6] = [
    (
        "finlake_quality_value",
        "What a validator measured; absent where there was nothing to measure.",
    ),
    (
        "finlake_quality_limit",
        "The greatest value that is fine, by quality.rules.",
    ),
    (
        "finlake_quality_measured",
        "Of how many ids, bars or rows the value is; 0 where there was nothing to measure.",
    ),
    (
        "finlake_quality_breaks",
        "Breaks found by the last reconciliation.",
    ),
    (
        "finlake_quality_result",
        "Exit code of the last reconciliation: 0 clean, 1 breaks, 2 something could not be checked.",
    ),
    (
        "finlake_quality_timestamp_seconds",
        "When the last reconciliation ended, seconds since 1970.",
    ),
];

fn text(report: &Report, now: i64) -> Result<String> {
    let registry = Registry::new();
    let opts = |n: usize| Opts::new(ALL[n].0, ALL[n].1);
    let vector = |n: usize, labels: &[&str]| -> Result<GaugeVec> {
        let made = GaugeVec::new(opts(n), labels)?;
        registry.register(Box::new(made.clone()))?;
        Ok(made)
    };
    let single = |n: usize, value: f64| -> Result<()> {
        let made = Gauge::with_opts(opts(n))?;
        made.set(value);
        registry.register(Box::new(made))?;
        Ok(())
    };
    let (value, limit) = (vector(0, &["rule"])?, vector(1, &["rule"])?);
    let measured = vector(2, &["rule"])?;
    for m in &report.measured {
        let rule = m.rule.measure.to_string();
        value.with_label_values(&[&rule]).set(m.value);
        limit.with_label_values(&[&rule]).set(m.rule.limit);
        measured.with_label_values(&[&rule]).set(m.of as f64);
    }
    for (rule, _) in &report.unmeasured {
        let name = rule.measure.to_string();
        limit.with_label_values(&[&name]).set(rule.limit);
        measured.with_label_values(&[&name]).set(0.0);
    }
    let breaks = vector(3, &["kind", "severity"])?;
    for ((kind, severity), n) in report.findings.counts() {
        let labels = [kind.as_str(), severity.as_str()];
        breaks.with_label_values(&labels).set(*n as f64);
    }
    single(4, f64::from(report.exit_code()))?;
    single(5, now as f64 / 1e6)?;
    Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
}

/// Writes the file, whole or not at all. `now` in µs.
///
/// # Errors
/// The folder cannot be written.
pub fn write(report: &Report, now: i64, path: &Path) -> Result<()> {
    // The collector reads whatever ends in .prom, so the name meanwhile ends otherwise.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let failed = || format!("metrics file {}", path.display());
    std::fs::write(&beside, text(report, now)?).with_context(failed)?;
    std::fs::rename(&beside, path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use finlake_reconcile::rules;
    use finlake_reconcile::rules::Measured;

    use super::*;

    #[test]
    fn a_report_is_a_file_of_metrics() {
        let rules = rules::parse("id_gaps<=5, kline_accuracy:1m<=0").unwrap();
        let mut report = Report::default();
        report.measured.push(Measured {
            rule: rules[0].clone(),
            value: 2.5,
            of: 400,
        });
        report.unmeasured.push((rules[1].clone(), "none".into()));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("finlake.prom");
        write(&report, 1_500_000, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in [
            "finlake_quality_value{rule=\"id_gaps\"} 2.5",
            "finlake_quality_limit{rule=\"kline_accuracy:1m\"} 0",
            "finlake_quality_measured{rule=\"id_gaps\"} 400",
            "finlake_quality_measured{rule=\"kline_accuracy:1m\"} 0",
            "finlake_quality_result 0",
            "finlake_quality_timestamp_seconds 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("finlake_quality_value{rule=\"kline_accuracy:1m\"}"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_documentation_lists_them() {
        let docs = include_str!("../../../docs/metrics.md");
        for (name, help) in ALL {
            let row = docs.lines().find(|l| l.starts_with(&format!("| `{name}`")));
            assert!(row.is_some_and(|l| l.contains(help)), "{name}: {help}");
        }
    }
}
