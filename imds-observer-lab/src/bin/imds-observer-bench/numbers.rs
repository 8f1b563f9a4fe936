//! Medians, spreads, and tables of them.

use std::fmt::Write as _;

/// Results of one measurement in several rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// Quantile of the results, or NaN if there are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((last as f64 * share).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn least(&self) -> f64 {
        self.quantile(0.0)
    }

    pub(crate) fn most(&self) -> f64 {
        self.quantile(1.0)
    }

    /// Ratios of these results to the other ones, round by round.
    pub(crate) fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| own / other).collect())
    }

    /// Formats the results as `median (minimum to maximum)`.
    pub(crate) fn show(&self, digits: usize) -> String {
        if self.is_empty() {
            return "-".to_owned();
        }
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            self.median(),
            self.least(),
            self.most()
        )
    }
}

/// A Markdown table.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut text = String::new();
        let _ = writeln!(text, "| {} |", columns.join(" | "));
        let _ = writeln!(text, "|{}", "---|".repeat(columns.len()));
        Self(text)
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        let _ = writeln!(self.0, "| {} |", cells.join(" | "));
    }

    pub(crate) fn print(&self) {
        println!("{}", self.0);
    }
}

/// Formats whether a target is met.
pub(crate) fn verdict(met: bool) -> String {
    if met { "met" } else { "**not met**" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (mut own, mut other) = (Rounds::default(), Rounds::default());
        for (a, b) in [(2.0, 1.0), (9.0, 3.0), (4.0, 1.0)] {
            own.push(a);
            other.push(b);
        }
        assert_eq!(own.over(&other).show(1), "3.0 (2.0 to 4.0)");
        assert_eq!(Rounds::default().show(1), "-");
    }
}
