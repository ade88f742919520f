//! Everything that was measured, and what follows from it.

use serde_json::{Value, json};

use super::peers::Kind;

/// What a number says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Figure {
    /// As `--only` and the JSON name it.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) digits: usize,
    /// Whether less is better.
    pub(crate) cost: bool,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) round: usize,
    pub(crate) kind: Kind,
    pub(crate) figure: Figure,
    pub(crate) value: f64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    pub(crate) records: Vec<Record>,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(values[middle - 1], upper))
}

impl Results {
    fn of(&self, kind: Kind, figure: &str) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.kind == kind && record.figure.id == figure)
    }

    pub(crate) fn median(&self, kind: Kind, figure: &str) -> Option<f64> {
        median(self.of(kind, figure).map(|record| record.value).collect())
    }

    fn pairs(&self, kind: Kind, other: Kind, figure: &str) -> Vec<(f64, f64)> {
        let of_round = |round| self.of(other, figure).find(|record| record.round == round);
        self.of(kind, figure)
            .filter_map(|record| Some((record.value, of_round(record.round)?.value)))
            .collect()
    }

    /// The median of the ratios within each round: what else the machine did hits both of a pair.
    pub(crate) fn ratio(&self, kind: Kind, to: Kind, figure: &str) -> Option<f64> {
        let pairs = self.pairs(kind, to, figure).into_iter();
        median(pairs.filter(|(_, base)| *base > 0.0).map(|(value, base)| value / base).collect())
    }

    /// The median of the differences within each round.
    pub(crate) fn added(&self, kind: Kind, to: Kind, figure: &str) -> Option<f64> {
        median(self.pairs(kind, to, figure).into_iter().map(|(value, base)| value - base).collect())
    }

    /// All figures, in the order of their first measurement.
    pub(crate) fn to_json(&self, about: &Value) -> Value {
        let records: Vec<_> = self
            .records
            .iter()
            .map(|record| {
                json!({ "round": record.round, "peer": record.kind.name(), "figure": record.figure.id,
                        "unit": record.figure.unit, "value": record.value })
            })
            .collect();
        json!({ "about": about, "records": records, "failures": self.failures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure { id: "x", title: "", unit: "", digits: 0, cost: true };

    #[test]
    fn a_slow_round_does_not_bend_a_ratio() {
        let mut results = Results::default();
        for (round, nginx, gateway) in [(0, 10.0, 20.0), (1, 100.0, 210.0), (2, 10.0, 19.0)] {
            for (kind, value) in [(Kind::Nginx, nginx), (Kind::Gateway, gateway)] {
                results.records.push(Record { round, kind, figure: FIGURE, value });
            }
        }
        // Only one of a pair: no ratio.
        results.records.push(Record { round: 3, kind: Kind::Gateway, figure: FIGURE, value: 1.0 });
        assert_eq!(results.ratio(Kind::Gateway, Kind::Nginx, "x"), Some(2.0));
        assert_eq!(results.added(Kind::Gateway, Kind::Nginx, "x"), Some(10.0));
        assert_eq!(results.median(Kind::Nginx, "x"), Some(10.0));
        assert_eq!(results.median(Kind::Caddy, "x"), None);
    }
}
