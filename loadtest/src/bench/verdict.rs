//! What we have promised of these figures, and whether it holds.

use super::{peers::Kind, results::Results, table::number};

/// How a figure of the gateway is judged.
#[derive(Clone, Copy, Debug)]
enum Measure {
    /// As it is.
    Plain,
    /// Its ratio to a peer's.
    To(Kind),
    /// What it adds to a direct request, minus what a peer adds.
    AddedOver(Kind),
}

/// `must` and `aim` bound the measure from above for a cost, from below for a rate.
struct Promise {
    figure: &'static str,
    what: &'static str,
    measure: Measure,
    limit: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

const fn promise(figure: &'static str, what: &'static str, measure: Measure, limit: Limit) -> Promise {
    Promise { figure, what, measure, limit }
}

const PROMISES: [Promise; 18] = [
    promise(
        "h1-cpu",
        "CPU per warm h1 request, to bare Pingora",
        Measure::To(Kind::Pingora),
        Limit::AtMost(1.0),
    ),
    promise("h1", "h1 keep-alive rate, to nginx", Measure::To(Kind::Nginx), Limit::AtLeast(0.65)),
    promise(
        "latency-p50",
        "added p50 over bare Pingora's (µs)",
        Measure::AddedOver(Kind::Pingora),
        Limit::AtMost(0.0),
    ),
    promise(
        "latency-p99",
        "added p99 over bare Pingora's (µs)",
        Measure::AddedOver(Kind::Pingora),
        Limit::AtMost(0.0),
    ),
    promise("tls-new", "TLS new connections, to nginx", Measure::To(Kind::Nginx), Limit::AtLeast(1.4)),
    promise("down", "1 MiB bodies down, to nginx", Measure::To(Kind::Nginx), Limit::AtLeast(1.8)),
    promise("up", "1 MiB bodies up, to nginx", Measure::To(Kind::Nginx), Limit::AtLeast(1.0)),
    promise("websocket-cpu", "CPU per WebSocket echo (µs)", Measure::Plain, Limit::AtMost(13.0)),
    promise("websocket-cpu", "the same, to nginx", Measure::To(Kind::Nginx), Limit::AtMost(13.0 / 11.2)),
    promise("idle-h1", "memory of an idle h1 connection (KiB)", Measure::Plain, Limit::AtMost(5.0)),
    promise("idle-tls", "memory of an idle TLS connection (KiB)", Measure::Plain, Limit::AtMost(16.0)),
    promise("idle-websocket", "memory of an idle WebSocket (KiB)", Measure::Plain, Limit::AtMost(5.0)),
    promise("held", "memory of a held POST (KiB)", Measure::Plain, Limit::AtMost(5.0)),
    promise("held-h2", "memory of a held h2 POST (KiB)", Measure::Plain, Limit::AtMost(12.0)),
    promise("held-cpu", "CPU while they wait (% of a core)", Measure::Plain, Limit::AtMost(2.0)),
    promise("held-lost", "held POSTs lost", Measure::Plain, Limit::AtMost(0.0)),
    promise("held-last", "last answer after ready (ms)", Measure::Plain, Limit::AtMost(400.0)),
    promise("held-last", "the same, to Caddy", Measure::To(Kind::Caddy), Limit::AtMost(1.0 / 3.0)),
];

fn measured(results: &Results, promise: &Promise) -> Option<f64> {
    match promise.measure {
        Measure::Plain => results.median(Kind::Gateway, promise.figure),
        Measure::To(kind) => results.ratio(Kind::Gateway, kind, promise.figure),
        Measure::AddedOver(kind) => results.added(Kind::Gateway, kind, promise.figure),
    }
}

/// A table of promises, and whether they are kept.
pub(crate) fn render(results: &Results) -> String {
    let mut lines = vec!["| promise | must | measured | |".to_owned(), "|---|---:|---:|---|".to_owned()];
    for promise in &PROMISES {
        let (sign, limit) = match promise.limit {
            Limit::AtMost(limit) => ('≤', limit),
            Limit::AtLeast(limit) => ('≥', limit),
        };
        let (value, kept) = measured(results, promise).map_or(("–".to_owned(), "not measured"), |value| {
            let kept = match promise.limit {
                Limit::AtMost(limit) => value <= limit,
                Limit::AtLeast(limit) => value >= limit,
            };
            (number(value, 2), if kept { "kept" } else { "**missed**" })
        });
        lines.push(format!("| {} | {sign} {} | {value} | {kept} |", promise.what, number(limit, 2)));
    }
    lines.push(String::new());
    lines.join("\n")
}
