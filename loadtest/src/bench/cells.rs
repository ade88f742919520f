//! What is measured: cells of a table, of one or more figures each.

use std::time::Duration;

use clap::ValueEnum;

use super::{
    closed::{self, Rate, Work},
    held::{self, Over},
    idle::{self, Idle},
    open,
    peers::{Assignment, Kind, Peer},
    results::Figure,
    spread,
    target::{Scheme, Tls},
};

/// One cell. The traffic cells run against peers that stay; the others start each peer afresh.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Cell {
    /// Small requests on 64 connections that stay
    H1,
    /// Small requests on a connection each
    New,
    /// 400 requests per second, timed from when each was due
    Latency,
    /// Small requests over TLS
    Tls,
    /// TLS connections, a full handshake and one request each
    TlsNew,
    /// TLS connections that resume a session
    TlsResumed,
    /// Small requests over HTTP/2 and TLS, 8 connections of 32 streams
    H2,
    /// 1 MiB to the client
    Down,
    /// 1 MiB from the client
    Up,
    /// 100 MiB to the client
    Large,
    /// gRPC calls without a stream, over HTTP/2 and TLS
    Grpc,
    /// WebSocket messages of 64 bytes and their echoes
    #[value(name = "websocket")]
    WebSocket,
    /// Memory of an idle HTTP/1.1 connection
    IdleH1,
    /// The same over TLS
    IdleTls,
    /// Memory of an idle HTTP/2 connection over TLS
    IdleH2,
    /// Memory of an idle WebSocket
    #[value(name = "idle-websocket")]
    IdleWebSocket,
    /// POSTs that wait for a backend that comes later
    Held,
    /// The same over HTTP/2 and TLS, 50 streams on each connection
    HeldH2,
    /// Ten thousand of them
    HeldMany,
    /// Fifteen thousand for a thousand sprites, as HTTP/2 streams
    HeldSpread,
    /// A hot sprite while a thousand sleeping ones are hit within a second
    Storm,
    /// Clients that leave in every phase, again and again
    Abort,
}

/// Held in [`Cell::HeldMany`].
const MANY: usize = 10_000;
/// Sleeping sprites in [`Cell::Storm`].
const STORM: usize = 1_000;
/// Clients of [`Cell::Abort`].
const ABORTS: usize = 1_000_000;

const fn rate(id: &'static str, title: &'static str, unit: &'static str) -> Figure {
    Figure { id, title, unit, digits: 0, cost: false }
}

const fn cost(id: &'static str, title: &'static str, unit: &'static str, digits: usize) -> Figure {
    Figure { id, title, unit, digits, cost: true }
}

/// All figures, in the order of the table's rows.
pub(crate) const FIGURES: [Figure; 54] = [
    rate("h1", "h1 keep-alive, 64 connections", "req/s"),
    cost("h1-cpu", "its CPU per request", "µs", 1),
    rate("new", "new connection per request", "req/s"),
    cost("new-cpu", "its CPU per request", "µs", 1),
    cost("latency-p50", "latency at 400 req/s, p50", "µs", 0),
    cost("latency-p99", "its p99", "µs", 0),
    cost("latency-p999", "its p99.9", "µs", 0),
    rate("tls", "TLS keep-alive, 64 connections", "req/s"),
    cost("tls-cpu", "its CPU per request", "µs", 1),
    rate("tls-new", "TLS new connections, full handshakes", "conn/s"),
    cost("tls-new-cpu", "its CPU per connection", "µs", 0),
    rate("tls-resumed", "TLS new connections, resumed", "conn/s"),
    cost("tls-resumed-cpu", "its CPU per connection", "µs", 0),
    rate("h2", "h2 over TLS, 8 × 32 streams", "req/s"),
    cost("h2-cpu", "its CPU per request", "µs", 1),
    rate("down", "1 MiB bodies down", "MiB/s"),
    cost("down-cpu", "its CPU per MiB", "µs", 0),
    rate("up", "1 MiB bodies up", "MiB/s"),
    cost("up-cpu", "its CPU per MiB", "µs", 0),
    rate("websocket", "WebSocket echoes, 64 connections", "msg/s"),
    cost("websocket-cpu", "its CPU per echo", "µs", 1),
    cost("idle-h1", "memory: idle h1 connection", "KiB", 2),
    cost("idle-tls", "memory: idle TLS connection", "KiB", 2),
    cost("idle-h2", "memory: idle h2 connection", "KiB", 2),
    cost("idle-websocket", "memory: idle WebSocket", "KiB", 2),
    cost("held", "memory: held POST", "KiB", 2),
    cost("held-cpu", "CPU while they wait", "% of a core", 1),
    cost("held-lost", "held POSTs lost", "", 0),
    cost("held-last", "last answer after the backend is ready", "ms", 0),
    cost("held-h2", "memory: held POST on an h2 stream", "KiB", 2),
    cost("held-h2-cpu", "CPU while they wait", "% of a core", 1),
    cost("held-h2-lost", "held h2 POSTs lost", "", 0),
    cost("held-h2-last", "last answer after the backend is ready", "ms", 0),
    cost("many", "memory: held POST, 10,000 of them", "KiB", 2),
    cost("many-cpu", "CPU while they wait", "% of a core", 1),
    cost("many-lost", "lost of 10,000", "", 0),
    cost("many-last", "last answer after the backend is ready", "ms", 0),
    cost("spread", "memory: held h2 stream, 15,000 for 1,000 sprites", "KiB", 2),
    cost("spread-cpu", "CPU while they wait", "% of a core", 1),
    cost("spread-lost", "lost of 15,000", "", 0),
    cost("spread-last", "last answer after the agent answers", "ms", 0),
    cost("storm-quiet-p99", "a hot sprite's p99, quiet", "ms", 2),
    cost("storm-paused-p99", "while 1,000 paused sprites wake", "ms", 2),
    cost("storm-paused", "the same, to quiet", "×", 2),
    cost("storm-paused-last", "the slowest of the 1,000", "ms", 0),
    cost("storm-cold-p99", "while 1,000 cold sprites wake", "ms", 2),
    cost("storm-cold", "the same, to quiet", "×", 2),
    cost("storm-cold-last", "the slowest of the 1,000", "ms", 0),
    rate("abort", "clients that leave in any phase", "1/s"),
    cost("abort-left", "counters that are not zero afterwards", "", 0),
    cost("abort-held", "memory kept", "MiB", 1),
    rate("grpc", "gRPC unary calls, 8 × 32 streams", "req/s"),
    cost("grpc-cpu", "its CPU per call", "µs", 1),
    rate("large", "100 MiB bodies down", "MiB/s"),
];

fn figure(id: &str) -> anyhow::Result<Figure> {
    FIGURES.into_iter().find(|figure| figure.id == id).ok_or_else(|| anyhow::anyhow!("no figure {id}"))
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) rounds: usize,
    /// Rounds of the cells that measure memory, which varies less and takes longer.
    pub(crate) memory_rounds: usize,
    pub(crate) window: Duration,
    pub(crate) latency_window: Duration,
    pub(crate) idle: usize,
    pub(crate) held: usize,
}

/// How a cell is measured.
#[derive(Clone, Copy, Debug)]
enum Task {
    /// Again and again, against a peer that stays: a rate, and perhaps the CPU of each.
    Rate(Work, &'static str, Option<&'static str>),
    Latency,
    Idle(Idle, &'static str),
    /// So many, or as many as asked for.
    Held(Over, Option<usize>, [&'static str; 4]),
    Spread,
    Storm,
    Abort,
}

impl Cell {
    const fn task(self) -> Task {
        match self {
            Self::H1 => Task::Rate(Work::Request(Scheme::Http), "h1", Some("h1-cpu")),
            Self::New => Task::Rate(Work::Connection(Scheme::Http), "new", Some("new-cpu")),
            Self::Latency => Task::Latency,
            Self::Tls => Task::Rate(Work::Request(Scheme::Https), "tls", Some("tls-cpu")),
            Self::TlsNew => Task::Rate(Work::Connection(Scheme::Https), "tls-new", Some("tls-new-cpu")),
            Self::TlsResumed => {
                Task::Rate(Work::Connection(Scheme::Resuming), "tls-resumed", Some("tls-resumed-cpu"))
            }
            Self::H2 => Task::Rate(Work::Stream, "h2", Some("h2-cpu")),
            Self::Grpc => Task::Rate(Work::Call, "grpc", Some("grpc-cpu")),
            Self::Down => Task::Rate(Work::Download, "down", Some("down-cpu")),
            Self::Up => Task::Rate(Work::Upload, "up", Some("up-cpu")),
            Self::Large => Task::Rate(Work::Large, "large", None),
            Self::WebSocket => Task::Rate(Work::Message, "websocket", Some("websocket-cpu")),
            Self::IdleH1 => Task::Idle(Idle::Http, "idle-h1"),
            Self::IdleTls => Task::Idle(Idle::Https, "idle-tls"),
            Self::IdleH2 => Task::Idle(Idle::H2, "idle-h2"),
            Self::IdleWebSocket => Task::Idle(Idle::WebSocket, "idle-websocket"),
            Self::Held => Task::Held(Over::Http1, None, ["held", "held-cpu", "held-lost", "held-last"]),
            Self::HeldH2 => {
                Task::Held(Over::H2, None, ["held-h2", "held-h2-cpu", "held-h2-lost", "held-h2-last"])
            }
            Self::HeldMany => {
                Task::Held(Over::Http1, Some(MANY), ["many", "many-cpu", "many-lost", "many-last"])
            }
            Self::HeldSpread => Task::Spread,
            Self::Storm => Task::Storm,
            Self::Abort => Task::Abort,
        }
    }

    /// Whether a quick run measures it.
    pub(crate) fn is_quick(self) -> bool {
        let slow = [Self::TlsResumed, Self::IdleH2, Self::HeldSpread, Self::Storm, Self::Abort, Self::Large];
        !slow.contains(&self)
    }

    /// Whether once is enough: what takes long, or is not compared.
    pub(crate) fn is_once(self) -> bool {
        [Self::HeldMany, Self::HeldSpread, Self::Storm, Self::Abort].contains(&self)
    }

    /// Whether each measurement starts a peer of its own.
    pub(crate) const fn starts_peers(self) -> bool {
        !matches!(self.task(), Task::Rate(..) | Task::Latency)
    }

    /// Whether it makes sense for a peer.
    pub(crate) fn applies(self, kind: Kind) -> bool {
        match self.task() {
            // Only sprites sleep; the others' answer to ten thousand is their answer to two.
            Task::Spread | Task::Storm | Task::Abort | Task::Held(_, Some(_), _) => kind == Kind::Gateway,
            // They hold nothing: a refused connection is an error.
            Task::Held(_, None, _) => !matches!(kind, Kind::Direct | Kind::Hyper | Kind::Pingora),
            // Configured to speak HTTP/2 to the backend, which gRPC needs.
            Task::Rate(Work::Call, ..) => matches!(kind, Kind::Nginx | Kind::Haproxy | Kind::Gateway),
            // The backend speaks no TLS; its memory is not the question.
            Task::Rate(Work::Request(scheme) | Work::Connection(scheme), ..) => {
                kind != Kind::Direct || scheme == Scheme::Http
            }
            Task::Rate(Work::Stream, ..) | Task::Idle(..) => kind != Kind::Direct,
            Task::Rate(Work::Download | Work::Upload | Work::Large | Work::Message, ..) | Task::Latency => {
                true
            }
        }
    }

    /// Measures a peer that stays.
    pub(crate) async fn traffic(self, peer: &mut Peer, size: Size) -> anyhow::Result<Vec<(Figure, f64)>> {
        let target = peer.target.clone();
        let Task::Rate(work, rate, cpu) = self.task() else {
            let samples =
                tokio::task::spawn_blocking(move || open::run(&target, size.latency_window)).await??;
            return Ok(vec![
                (figure("latency-p50")?, quantile(&samples, 0.5) * 1e6),
                (figure("latency-p99")?, quantile(&samples, 0.99) * 1e6),
                (figure("latency-p999")?, quantile(&samples, 0.999) * 1e6),
            ]);
        };
        let pids = peer.pids()?;
        let Rate { per_second, cpu_us_each } = on_its_own_thread(move |runtime| {
            runtime.block_on(closed::run(&target, &pids, work, size.window))
        })
        .await?;
        let mut figures = vec![(figure(rate)?, per_second)];
        if let Some(cpu) = cpu.filter(|_| peer.kind != Kind::Direct) {
            figures.push((figure(cpu)?, cpu_us_each));
        }
        Ok(figures)
    }

    /// Measures a peer that is started for it.
    pub(crate) async fn memory(
        self,
        kind: Kind,
        tls: Tls,
        work: Assignment<'_>,
        size: Size,
    ) -> anyhow::Result<Vec<(Figure, f64)>> {
        match self.task() {
            Task::Idle(idle, id) => {
                let mut peer = Peer::start(kind, tls, work).await?;
                let kib = idle::run(&mut peer, idle, size.idle).await?;
                peer.stop().await?;
                Ok(vec![(figure(id)?, kib)])
            }
            Task::Held(over, n, ids) => {
                figures_of(held::run(kind, tls, work.dir, over, n.unwrap_or(size.held)).await?, ids)
            }
            Task::Spread => {
                let ids = ["spread", "spread-cpu", "spread-lost", "spread-last"];
                figures_of(spread::run(work.backend).await?, ids)
            }
            Task::Storm => {
                let storm = crate::storm::run(STORM).await?;
                let quiet = quantile(&storm.quiet, 0.99) * 1e3;
                let mut figures = vec![(figure("storm-quiet-p99")?, quiet)];
                for (meanwhile, [p99, ratio, last]) in [
                    (&storm.paused, ["storm-paused-p99", "storm-paused", "storm-paused-last"]),
                    (&storm.cold, ["storm-cold-p99", "storm-cold", "storm-cold-last"]),
                ] {
                    let hot = quantile(&meanwhile.hot, 0.99) * 1e3;
                    figures.push((figure(p99)?, hot));
                    figures.push((figure(ratio)?, hot / quiet));
                    figures.push((figure(last)?, quantile(&meanwhile.woken, 1.0) * 1e3));
                }
                Ok(figures)
            }
            Task::Abort => {
                let aborted = crate::abort::run(ABORTS).await?;
                Ok(vec![
                    (figure("abort")?, aborted.per_second),
                    (figure("abort-left")?, aborted.left.len() as f64),
                    (figure("abort-held")?, aborted.kept_mib),
                ])
            }
            Task::Rate(..) | Task::Latency => anyhow::bail!("a cell of traffic"),
        }
    }
}

fn figures_of(held: held::Held, ids: [&'static str; 4]) -> anyhow::Result<Vec<(Figure, f64)>> {
    let [memory, cpu, lost, last] = ids;
    let mut figures = vec![(figure(lost)?, held.lost as f64)];
    // One that refuses at once holds nothing, which costs nothing.
    if let Some(last_answer) = held.last_answer {
        figures.push((figure(memory)?, held.kib_each));
        figures.push((figure(cpu)?, held.cpu_percent));
        figures.push((figure(last)?, last_answer.as_secs_f64() * 1e3));
    }
    Ok(figures)
}

/// In seconds; of samples that are sorted.
fn quantile(samples: &[Duration], share: f64) -> f64 {
    let rank = (share * samples.len() as f64).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied().unwrap_or_default().as_secs_f64()
}

/// All clients on one thread, so that the load is the same whatever the machine.
async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Runtime) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::spawn_blocking(move || work(runtime)).await?
}
