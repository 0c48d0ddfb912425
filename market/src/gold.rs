//! Daily statistics: returns, volatility and Sharpe ratio over the last n daily returns.
//!
//! Closes come in as exact decimals, oldest first; only what leaves here is a double. The result
//! depends on the closes of the largest window alone, so a corrected close changes the dates up to
//! that many observations later and no others.

use finlake_schemas::Dec8;
use thiserror::Error;

/// What the statistics are computed over.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldConfig {
    /// Window lengths in daily returns, ascending, each ≥ 2.
    pub windows: Vec<u16>,
    /// Periods a year for annualising: 365 crypto, 252 equities.
    pub periods: u16,
    /// Annual risk-free rate as a fraction (0.03 = 3 %).
    pub risk_free: f64,
}

impl Default for GoldConfig {
    fn default() -> Self {
        Self {
            windows: vec![30, 90],
            periods: 365,
            risk_free: 0.0,
        }
    }
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GoldError {
    #[error("gold windows {0:?}: give one to eight lengths, ascending, each from 2 to 1000 days")]
    Windows(Vec<u16>),
    #[error("gold periods must be 1 to 366 a year, they are {0}")]
    Periods(u16),
    #[error("the risk-free rate is an annual fraction such as 0.03, it is {0}")]
    RiskFree(f64),
}

impl GoldConfig {
    /// Refuses what cannot be computed.
    pub fn check(&self) -> Result<(), GoldError> {
        let w = &self.windows;
        let ascending = w.windows(2).all(|p| p[0] < p[1]);
        if w.is_empty() || w.len() > 8 || !ascending || w[0] < 2 || w.iter().any(|n| *n > 1000) {
            return Err(GoldError::Windows(w.clone()));
        }
        if !(1..=366).contains(&self.periods) {
            return Err(GoldError::Periods(self.periods));
        }
        if !(-1.0..=1.0).contains(&self.risk_free) {
            return Err(GoldError::RiskFree(self.risk_free));
        }
        Ok(())
    }

    /// The largest window: how many observations a corrected close reaches forward, and, plus one,
    /// how many closes a date needs.
    pub fn reach(&self) -> usize {
        self.windows
            .iter()
            .copied()
            .max()
            .unwrap_or(1)
            .max(1)
            .into()
    }
}

/// Statistics of one window; null until it is full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WindowValues {
    /// Daily returns in the window.
    pub n: u16,
    /// C_t / C_{t−n} − 1.
    pub ret: Option<f64>,
    /// Sample standard deviation of the daily returns × √periods.
    pub volatility: Option<f64>,
    /// Mean excess return / standard deviation × √periods; null also where that is zero.
    pub sharpe: Option<f64>,
}

/// The row of one date.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldValues {
    /// Daily returns known up to this date, counted up to the largest window.
    pub observations: u16,
    pub return_1: Option<f64>,
    pub windows: Vec<WindowValues>,
}

/// The values of the last date in `closes` (oldest first, all positive; more than
/// [`GoldConfig::reach`] + 1 of them are not looked at).
pub fn values(closes: &[Dec8], config: &GoldConfig) -> GoldValues {
    let closes = &closes[closes.len().saturating_sub(config.reach() + 1)..];
    let returns: Vec<f64> = closes
        .windows(2)
        .map(|pair| simple_return(pair[0], pair[1]))
        .collect();
    let windows = config
        .windows
        .iter()
        .map(|&n| {
            let len = usize::from(n);
            if returns.len() < len || len == 0 {
                return WindowValues {
                    n,
                    ret: None,
                    volatility: None,
                    sharpe: None,
                };
            }
            let moments = Moments::of(&returns[returns.len() - len..]);
            WindowValues {
                n,
                ret: Some(simple_return(
                    closes[closes.len() - 1 - len],
                    closes[closes.len() - 1],
                )),
                volatility: moments.volatility(config.periods),
                sharpe: moments.sharpe(config.periods, config.risk_free),
            }
        })
        .collect();
    GoldValues {
        // At most `reach`, which came from a u16.
        observations: returns.len().min(usize::from(u16::MAX)) as u16,
        return_1: returns.last().copied(),
        windows,
    }
}

/// to / from − 1. The difference is taken in exact arithmetic, so two near closes lose nothing.
pub fn simple_return(from: Dec8, to: Dec8) -> f64 {
    (to.0 - from.0) as f64 / from.0 as f64
}

/// Count, mean and sample variance of a window of returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    n: usize,
    mean: f64,
    variance: f64,
}

impl Moments {
    /// Two passes with compensated sums over deviations from the first value: equal returns give
    /// a variance of exactly zero, and large means do not drown small spreads.
    pub fn of(returns: &[f64]) -> Self {
        let n = returns.len();
        let Some(&base) = returns.first() else {
            return Self {
                n: 0,
                mean: f64::NAN,
                variance: f64::NAN,
            };
        };
        let size = returns.iter().fold(0.0f64, |m, r| m.max(r.abs()));
        let spread = returns.iter().fold(0.0f64, |m, r| m.max((r - base).abs()));
        let shift = sum(returns.iter().map(|r| r - base)) / n as f64;
        // Returns that are equal as fractions may differ in their last bit once closes exceed
        // 2^53 units of 1e-8; that is not a spread.
        let variance = if spread <= 4.0 * f64::EPSILON * size {
            0.0
        } else {
            sum(returns.iter().map(|r| {
                let d = (r - base) - shift;
                d * d
            })) / (n as f64 - 1.0)
        };
        Self {
            n,
            mean: base + shift,
            variance,
        }
    }

    /// Annualised sample standard deviation; null for fewer than two returns.
    pub fn volatility(&self, periods: u16) -> Option<f64> {
        (self.n >= 2).then(|| self.variance.sqrt() * f64::from(periods).sqrt())
    }

    /// Annualised Sharpe ratio; null for fewer than two returns or no spread.
    pub fn sharpe(&self, periods: u16, risk_free: f64) -> Option<f64> {
        let periods = f64::from(periods);
        (self.n >= 2 && self.variance > 0.0)
            .then(|| (self.mean - risk_free / periods) / self.variance.sqrt() * periods.sqrt())
    }
}

/// Neumaier's compensated sum.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for v in values {
        let next = total + v;
        lost += if total.abs() >= v.abs() {
            (total - next) + v
        } else {
            (v - next) + total
        };
        total = next;
    }
    total + lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn closes(list: &[i128]) -> Vec<Dec8> {
        list.iter().map(|c| Dec8(c * 100_000_000)).collect()
    }

    fn config(windows: &[u16]) -> GoldConfig {
        GoldConfig {
            windows: windows.to_vec(),
            periods: 365,
            risk_free: 0.0,
        }
    }

    #[test]
    fn a_window_needs_one_close_more_than_returns() {
        let c = config(&[2, 3]);
        let one = values(&closes(&[100]), &c);
        assert_eq!((one.observations, one.return_1), (0, None));
        let three = values(&closes(&[100, 110, 99]), &c);
        assert_eq!(three.observations, 2);
        assert_eq!(three.return_1, Some(-0.1));
        assert_eq!(three.windows[0].ret, Some(-0.01));
        assert_eq!(three.windows[1].ret, None);
        // returns 0.1 and −0.1: sample deviation √0.02, mean 0
        let vol = three.windows[0].volatility.unwrap();
        assert!((vol - (0.02f64 * 365.0).sqrt()).abs() < 1e-12);
        assert!(three.windows[0].sharpe.unwrap().abs() < 1e-12);
    }

    #[test]
    fn no_spread_means_no_sharpe() {
        let c = config(&[2, 30]);
        let flat = values(&closes(&[7; 31]), &c);
        assert_eq!(flat.windows[1].volatility, Some(0.0));
        assert_eq!(flat.windows[1].sharpe, None);
        let doubling: Vec<i128> = (0..31).map(|n| 1i128 << n).collect();
        assert_eq!(values(&closes(&doubling), &c).windows[1].sharpe, None);
        // The same growth at prices that no double holds exactly.
        let mut huge = vec![Dec8(1 << 60)];
        for _ in 0..30 {
            huge.push(Dec8(huge[huge.len() - 1].0 / 8 * 9));
        }
        let v = values(&huge[..12], &config(&[11]));
        assert_eq!(v.windows[0].sharpe, None, "{v:?}");
    }

    #[test]
    fn bad_configurations_are_named() {
        for windows in [&[][..], &[1], &[30, 30], &[90, 30], &[2000]] {
            assert!(matches!(
                config(windows).check(),
                Err(GoldError::Windows(_))
            ));
        }
        let mut c = config(&[30]);
        c.risk_free = f64::NAN;
        assert!(matches!(c.check(), Err(GoldError::RiskFree(_))));
        assert!(GoldConfig::default().check().is_ok());
    }

    proptest! {
        /// A date depends on the last reach + 1 closes alone.
        #[test]
        fn nothing_older_matters(list in prop::collection::vec(1i128..1_000_000, 8..40)) {
            let c = config(&[2, 5]);
            let all = closes(&list);
            prop_assert_eq!(values(&all, &c), values(&all[all.len() - 6..], &c));
        }

        #[test]
        fn agrees_with_the_textbook(list in prop::collection::vec(1i128..1_000_000, 6..40)) {
            let c = config(&[5]);
            let got = values(&closes(&list), &c).windows[0];
            let tail = &list[list.len() - 6..];
            let r: Vec<f64> = tail.windows(2).map(|p| p[1] as f64 / p[0] as f64 - 1.0).collect();
            let mean = r.iter().sum::<f64>() / 5.0;
            let sd = (r.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4.0).sqrt();
            let vol = got.volatility.unwrap();
            prop_assert!((vol - sd * 365f64.sqrt()).abs() <= 1e-9 * vol.max(1e-3));
        }
    }
}
