//! What is measured: cells of a table, of one or more figures each.

use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;

use super::{
    closed::{self, Rate, Work},
    held::{self, Over},
    idle::{self, Idle},
    open,
    peers::{Assignment, Kind, Peer},
    results::Figure,
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
}

const fn rate(id: &'static str, title: &'static str, unit: &'static str) -> Figure {
    Figure { id, title, unit, digits: 0, cost: false }
}

const fn cost(id: &'static str, title: &'static str, unit: &'static str, digits: usize) -> Figure {
    Figure { id, title, unit, digits, cost: true }
}

/// All figures, in the order of the table's rows.
pub(crate) const FIGURES: [Figure; 33] = [
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

impl Cell {
    fn work(self) -> Option<(Work, &'static str, &'static str)> {
        Some(match self {
            Self::H1 => (Work::Request(Scheme::Http), "h1", "h1-cpu"),
            Self::New => (Work::Connection(Scheme::Http), "new", "new-cpu"),
            Self::Tls => (Work::Request(Scheme::Https), "tls", "tls-cpu"),
            Self::TlsNew => (Work::Connection(Scheme::Https), "tls-new", "tls-new-cpu"),
            Self::TlsResumed => (Work::Connection(Scheme::Resuming), "tls-resumed", "tls-resumed-cpu"),
            Self::H2 => (Work::Stream, "h2", "h2-cpu"),
            Self::Down => (Work::Download, "down", "down-cpu"),
            Self::Up => (Work::Upload, "up", "up-cpu"),
            Self::WebSocket => (Work::Message, "websocket", "websocket-cpu"),
            Self::Latency
            | Self::IdleH1
            | Self::IdleTls
            | Self::IdleH2
            | Self::IdleWebSocket
            | Self::Held
            | Self::HeldH2 => return None,
        })
    }

    fn idle(self) -> Option<(Idle, &'static str)> {
        match self {
            Self::IdleH1 => Some((Idle::Http, "idle-h1")),
            Self::IdleTls => Some((Idle::Https, "idle-tls")),
            Self::IdleH2 => Some((Idle::H2, "idle-h2")),
            Self::IdleWebSocket => Some((Idle::WebSocket, "idle-websocket")),
            Self::H1
            | Self::New
            | Self::Latency
            | Self::Tls
            | Self::TlsNew
            | Self::TlsResumed
            | Self::H2
            | Self::Down
            | Self::Up
            | Self::WebSocket
            | Self::Held
            | Self::HeldH2 => None,
        }
    }

    fn held(self) -> Option<(Over, [&'static str; 4])> {
        match self {
            Self::Held => Some((Over::Http1, ["held", "held-cpu", "held-lost", "held-last"])),
            Self::HeldH2 => Some((Over::H2, ["held-h2", "held-h2-cpu", "held-h2-lost", "held-h2-last"])),
            Self::H1
            | Self::New
            | Self::Latency
            | Self::Tls
            | Self::TlsNew
            | Self::TlsResumed
            | Self::H2
            | Self::Down
            | Self::Up
            | Self::WebSocket
            | Self::IdleH1
            | Self::IdleTls
            | Self::IdleH2
            | Self::IdleWebSocket => None,
        }
    }

    /// Whether a quick run measures it.
    pub(crate) fn is_quick(self) -> bool {
        !matches!(self, Self::TlsResumed | Self::IdleH2 | Self::HeldH2)
    }

    /// Whether each measurement starts a peer of its own.
    pub(crate) fn starts_peers(self) -> bool {
        self.held().is_some() || self.idle().is_some()
    }

    /// Whether it makes sense for a peer.
    pub(crate) fn applies(self, kind: Kind) -> bool {
        match kind {
            // The backend speaks no TLS; its memory is not the question.
            Kind::Direct => {
                !self.starts_peers()
                    && !matches!(self, Self::Tls | Self::TlsNew | Self::TlsResumed | Self::H2)
            }
            // They hold nothing: a refused connection is an error.
            Kind::Hyper | Kind::Pingora => self.held().is_none(),
            Kind::Nginx | Kind::Haproxy | Kind::Caddy | Kind::Traefik | Kind::Gateway => true,
        }
    }

    /// Measures a peer that stays.
    pub(crate) async fn traffic(self, peer: &mut Peer, size: Size) -> anyhow::Result<Vec<(Figure, f64)>> {
        let target = peer.target.clone();
        let Some((work, rate, cpu)) = self.work() else {
            let samples =
                tokio::task::spawn_blocking(move || open::run(&target, size.latency_window)).await??;
            let quantile = |share: f64| {
                let rank = (share * samples.len() as f64).ceil() as usize;
                samples.get(rank.saturating_sub(1)).copied().unwrap_or_default().as_secs_f64() * 1e6
            };
            return Ok(vec![
                (figure("latency-p50")?, quantile(0.5)),
                (figure("latency-p99")?, quantile(0.99)),
                (figure("latency-p999")?, quantile(0.999)),
            ]);
        };
        let pids = peer.pids()?;
        let Rate { per_second, cpu_us_each } = on_its_own_thread(move |runtime| {
            runtime.block_on(closed::run(&target, &pids, work, size.window))
        })
        .await?;
        let mut figures = vec![(figure(rate)?, per_second)];
        if peer.kind != Kind::Direct {
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
        if let Some((idle, id)) = self.idle() {
            let mut peer = Peer::start(kind, tls, work).await?;
            let kib = idle::run(&mut peer, idle, size.idle).await?;
            peer.stop().await?;
            return Ok(vec![(figure(id)?, kib)]);
        }
        let (over, [memory, cpu, lost, last]) = self.held().context("a cell of traffic")?;
        let held = held::run(kind, tls, work.dir, over, size.held).await?;
        let mut figures = vec![(figure(lost)?, held.lost as f64)];
        // One that refuses at once holds nothing, which costs nothing.
        if let Some(last_answer) = held.last_answer {
            figures.push((figure(memory)?, held.kib_each));
            figures.push((figure(cpu)?, held.cpu_percent));
            figures.push((figure(last)?, last_answer.as_secs_f64() * 1e3));
        }
        Ok(figures)
    }
}

/// All clients on one thread, so that the load is the same whatever the machine.
async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce(tokio::runtime::Runtime) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::spawn_blocking(move || work(runtime)).await?
}
