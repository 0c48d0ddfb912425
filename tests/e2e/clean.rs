//! What is asked of tables that nothing has harmed, whatever died while they were written: reconciled with Kafka and
//! audited, they are clean.

use crate::exact::World;
use crate::harness::{Ran, secs};

impl World {
    /// `finlake reconcile`, breaks as JSON.
    pub fn reconcile(&self) -> Ran {
        self.finlake("reconcile")
            .args(["reconcile", "--quiet", "--output", "json"])
            .run(secs(300))
    }

    /// A pass of the audit.
    pub fn audit(&self) -> Ran {
        self.finlake("audit")
            .args(["run", "--roles", "audit", "--until-caught-up"])
            .run(secs(120))
    }

    /// Reconciles all layers with Kafka, and audits: nothing may be found.
    pub fn reconciles(&self) {
        let ran = self.reconcile();
        assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
        let json = ran.json();
        assert_eq!(
            (&json["breaks"], &json["unchecked"]),
            (&0.into(), &serde_json::json!([])),
            "{json:#}"
        );
        for layer in ["bronze", "silver", "gold"] {
            let rows = json["compared_rows"][layer].as_u64();
            assert!(rows.is_some_and(|n| n > 100), "{json:#}");
        }
        let ran = self.audit();
        assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
        let said = |text: &str| assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
        said("ledger entries checked, 0 breaks open");
        // Further passes go on from there, and compare the tables all the same.
        for _ in 0..2 {
            let again = self.audit();
            assert_eq!(again.code, 0, "{}\n{}", again.stdout, again.stderr);
            assert_eq!(entries(&again), 0, "{}", again.stderr);
        }
    }
}

/// Ledger entries that a pass has read.
fn entries(audit: &Ran) -> u64 {
    let said = audit.stderr.split("audit: ").last().unwrap_or_default();
    let n = said.split(' ').next().unwrap_or_default();
    n.parse().unwrap_or_else(|_| panic!("{}", audit.stderr))
}
