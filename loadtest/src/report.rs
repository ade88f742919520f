//! Distributions and how they are printed.

use std::time::Duration;

use serde_json::json;

/// One measured distribution, or one count.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) samples: Vec<Duration>,
    /// What else must be known to read it.
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn new(what: &str, mut samples: Vec<Duration>, note: impl Into<String>) -> Self {
        samples.sort_unstable();
        Self { what: what.to_owned(), samples, note: note.into() }
    }

    /// The smallest sample that is not below `share` of all (nearest rank).
    fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.samples.len() as f64).ceil() as usize;
        self.samples.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// One rate, or one amount.
#[derive(Debug)]
pub(crate) struct Rate {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// Of what it is measured beside.
    pub(crate) share: Option<f64>,
    pub(crate) note: String,
}

/// Prints rates.
pub(crate) fn print_rates(rates: &[Rate], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let rates: Vec<_> = rates
            .iter()
            .map(|rate| {
                json!({ "what": rate.what, "value": rate.value, "unit": rate.unit, "share": rate.share,
                        "note": rate.note })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rates)?);
        return Ok(());
    }
    println!("\n| what | | | of the plain relay | |");
    println!("|---|---:|---|---:|---|");
    for rate in rates {
        let share = rate.share.map(|share| format!("{:.0} %", share * 100.0)).unwrap_or_default();
        println!("| {} | {:.1} | {} | {share} | {} |", rate.what, rate.value, rate.unit, rate.note);
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Prints all rows.
pub(crate) fn print(rows: &[Row], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({ "what": row.what, "n": row.samples.len(), "p50_ms": ms(row.quantile(0.5)),
                        "p90_ms": ms(row.quantile(0.9)), "p99_ms": ms(row.quantile(0.99)),
                        "max_ms": ms(row.quantile(1.0)), "note": row.note })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("| what | n | p50 ms | p90 ms | p99 ms | max ms | |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
            row.what,
            row.samples.len(),
            ms(row.quantile(0.5)),
            ms(row.quantile(0.9)),
            ms(row.quantile(0.99)),
            ms(row.quantile(1.0)),
            row.note
        );
    }
    Ok(())
}
