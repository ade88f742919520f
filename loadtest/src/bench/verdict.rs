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

/// A bound that a figure of the gateway has to keep, and a better one that it should.
struct Promise {
    figure: &'static str,
    what: &'static str,
    must: Bound,
    aim: Bound,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    measure: Measure,
    limit: Limit,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

const fn most(measure: Measure, limit: f64) -> Bound {
    Bound { measure, limit: Limit::AtMost(limit) }
}

const fn least(measure: Measure, limit: f64) -> Bound {
    Bound { measure, limit: Limit::AtLeast(limit) }
}

const fn promise(figure: &'static str, what: &'static str, must: Bound, aim: Bound) -> Promise {
    Promise { figure, what, must, aim }
}

use Kind::{Caddy, Haproxy, Hyper, Nginx, Pingora, Traefik};
use Measure::{AddedOver, Plain, To};

const PROMISES: [Promise; 29] = [
    promise("h1-cpu", "CPU per warm h1 request", most(To(Pingora), 1.0), most(To(Nginx), 1.2)),
    promise("h1", "h1 keep-alive rate", least(To(Nginx), 0.65), least(To(Nginx), 1.0)),
    promise(
        "latency-p50",
        "added latency, p50 (µs)",
        most(AddedOver(Pingora), 0.0),
        most(AddedOver(Nginx), 0.0),
    ),
    promise(
        "latency-p99",
        "added latency, p99 (µs)",
        most(AddedOver(Pingora), 0.0),
        most(AddedOver(Nginx), 0.0),
    ),
    promise("tls-new", "TLS new connections", least(To(Nginx), 1.4), least(To(Nginx), 2.0)),
    promise("down", "1 MiB bodies down", least(To(Nginx), 1.8), least(To(Haproxy), 1.0)),
    promise("down", "the same, beside hyper", least(To(Nginx), 1.8), least(To(Hyper), 1.0)),
    promise("up", "1 MiB bodies up", least(To(Nginx), 1.8), least(To(Haproxy), 1.0)),
    promise("up", "the same, beside hyper", least(To(Nginx), 1.8), least(To(Hyper), 1.0)),
    promise("websocket-cpu", "CPU per WebSocket echo (µs)", most(Plain, 13.0), most(To(Nginx), 1.0)),
    promise("websocket-cpu", "the same, on any machine", most(To(Nginx), 13.0 / 11.2), most(To(Nginx), 1.0)),
    promise("idle-h1", "memory of an idle h1 connection (KiB)", most(Plain, 5.0), most(Plain, 3.0)),
    promise("idle-tls", "memory of an idle TLS connection (KiB)", most(Plain, 16.0), most(Plain, 12.0)),
    promise("idle-websocket", "memory of an idle WebSocket (KiB)", most(Plain, 5.0), most(Plain, 3.0)),
    promise("held", "memory of a held POST (KiB)", most(Plain, 5.0), most(Plain, 3.0)),
    promise("held-h2", "memory of a held h2 stream (KiB)", most(Plain, 12.0), most(Plain, 6.0)),
    promise("held-lost", "2,000 held POSTs: lost", most(Plain, 0.0), most(Plain, 0.0)),
    promise("held-last", "last answer after ready (ms)", most(Plain, 400.0), most(Plain, 150.0)),
    promise("held-last", "the same, to Caddy's", most(To(Caddy), 1.0 / 3.0), most(To(Caddy), 1.0 / 3.0)),
    promise(
        "held-last",
        "the same, to Traefik's",
        most(To(Traefik), 1.0 / 3.0),
        most(To(Traefik), 1.0 / 3.0),
    ),
    promise("held-cpu", "CPU while 2,000 wait (% of a core)", most(Plain, 2.0), most(Plain, 0.0)),
    promise("many-lost", "10,000 held POSTs: lost", most(Plain, 0.0), most(Plain, 0.0)),
    promise("many-last", "last answer after ready (ms)", most(Plain, 2000.0), most(Plain, 1000.0)),
    promise("many-cpu", "CPU while 10,000 wait (% of a core)", most(Plain, 2.0), most(Plain, 0.0)),
    promise("spread-lost", "15,000 held over 1,000 sprites: lost", most(Plain, 0.0), most(Plain, 0.0)),
    promise(
        "storm-paused",
        "hot p99 while 1,000 paused sprites wake, to quiet",
        most(Plain, 2.0),
        most(Plain, 1.1),
    ),
    promise(
        "storm-cold",
        "hot p99 while 1,000 cold sprites wake, to quiet",
        most(Plain, 2.0),
        most(Plain, 1.1),
    ),
    promise("abort-left", "counters left after random aborts", most(Plain, 0.0), most(Plain, 0.0)),
    promise("abort-held", "memory kept by them (MiB)", most(Plain, 64.0), most(Plain, 16.0)),
];

fn measured(results: &Results, figure: &str, measure: Measure) -> Option<f64> {
    match measure {
        Measure::Plain => results.median(Kind::Gateway, figure),
        Measure::To(kind) => results.ratio(Kind::Gateway, kind, figure),
        Measure::AddedOver(kind) => results.added(Kind::Gateway, kind, figure),
    }
}

/// The bound, what was measured, and whether that keeps it.
fn judge(results: &Results, figure: &str, bound: Bound, [yes, no]: [&str; 2]) -> String {
    let (sign, limit) = match bound.limit {
        Limit::AtMost(limit) => ('≤', limit),
        Limit::AtLeast(limit) => ('≥', limit),
    };
    let of = match bound.measure {
        Measure::Plain => String::new(),
        Measure::To(kind) => format!(" × {}", kind.name()),
        Measure::AddedOver(kind) => format!(" over {}", kind.name()),
    };
    let verdict = measured(results, figure, bound.measure).map_or("not measured".to_owned(), |value| {
        let kept = match bound.limit {
            Limit::AtMost(limit) => value <= limit,
            Limit::AtLeast(limit) => value >= limit,
        };
        format!("{}: {}", number(value, 2), if kept { yes } else { no })
    });
    format!("{sign} {}{of} | {verdict}", number(limit, 2))
}

/// A table of promises, and whether they are kept.
pub(crate) fn render(results: &Results) -> String {
    let mut lines = vec!["| figure | must | | aim | |".to_owned(), "|---|---:|---|---:|---|".to_owned()];
    for Promise { figure, what, must, aim } in &PROMISES {
        let must = judge(results, figure, *must, ["kept", "**missed**"]);
        let aim = judge(results, figure, *aim, ["reached", "not reached"]);
        lines.push(format!("| {what} | {must} | {aim} |"));
    }
    lines.push(String::new());
    lines.join("\n")
}
