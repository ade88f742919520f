//! The table: a row for each figure, a column for each peer.

use std::fmt::Write;

use serde_json::Value;

use super::{
    cells::FIGURES,
    peers::Kind,
    results::{Figure, Results},
};

/// A number with its thousands apart.
pub(crate) fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |rest| ("-", rest));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

fn entry(results: &Results, kind: Kind, figure: Figure) -> String {
    let Some(median) = results.median(kind, figure.id) else { return "–".into() };
    let mut text = number(median, figure.digits);
    if kind == Kind::Direct || kind == Kind::Nginx {
        return text;
    }
    if let Some(ratio) = results.ratio(kind, Kind::Nginx, figure.id) {
        // To a String: it can't fail.
        let _ = write!(text, " ({ratio:.2}×)");
    }
    text
}

/// What was added to a direct request, which is what a proxy's latency is.
fn added(results: &Results, kind: Kind, figure: Figure) -> String {
    results.added(kind, Kind::Direct, figure.id).map_or_else(
        || "–".into(),
        |added| format!("{}{}", if added < 0.0 { "" } else { "+" }, number(added, figure.digits)),
    )
}

/// The whole table, with what must be known to read it.
pub(crate) fn render(results: &Results, about: &Value) -> String {
    let mut lines = vec![
        format!("| figure | unit | {} |", Kind::ALL.map(Kind::name).join(" | ")),
        format!("|---|---|{}", "---:|".repeat(Kind::ALL.len())),
    ];
    let rows = FIGURES
        .into_iter()
        .filter(|figure| Kind::ALL.into_iter().any(|kind| results.median(kind, figure.id).is_some()));
    for figure in rows {
        let entries = Kind::ALL.map(|kind| entry(results, kind, figure)).join(" | ");
        lines.push(format!("| {} | {} | {entries} |", figure.title, figure.unit));
        if figure.id.starts_with("latency") && results.median(Kind::Direct, figure.id).is_some() {
            let entries = Kind::ALL.map(|kind| match kind {
                Kind::Direct => String::new(),
                Kind::Nginx
                | Kind::Haproxy
                | Kind::Caddy
                | Kind::Traefik
                | Kind::Hyper
                | Kind::Pingora
                | Kind::Gateway => added(results, kind, figure),
            });
            lines.push(format!("| … added to direct | {} | {} |", figure.unit, entries.join(" | ")));
        }
    }
    lines.push(String::new());
    lines.push(format!(
        "Medians of {} rounds in random order (memory and holds: fewer), {} ms for each rate; in parentheses \
         the median of the ratios to nginx within each round. {} CPUs for clients, proxy and backend \
         together; one worker thread for each proxy; {} idle connections, {} held POSTs; {} s in all.",
        about["rounds"], about["window_ms"], about["cpus"], about["idle"], about["held"], about["seconds"],
    ));
    let versions: Vec<String> = about["versions"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, version)| Some((name, version.as_str().filter(|version| !version.is_empty())?)))
        .map(|(name, version)| format!("{name}: {version}"))
        .collect();
    lines.push(versions.join("; "));
    lines.extend(results.failures.iter().map(|failure| format!("- not measured: {failure}")));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(number(1234567.0, 0), "1,234,567");
        assert_eq!(number(-1234.56, 1), "-1,234.6");
        assert_eq!(number(999.0, 0), "999");
        assert_eq!(number(0.5, 2), "0.50");
    }
}
