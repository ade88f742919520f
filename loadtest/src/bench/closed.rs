//! Closed loops: so many clients, each of which asks again as soon as it was answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use super::{
    http1::Connection,
    http2, process,
    target::{Scheme, Target, Tls},
};

/// What each client does again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// A small request on a connection that stays.
    Request(Scheme),
    /// A small request on a connection of its own, TLS handshake included.
    Connection(Scheme),
    /// A small request on one of the streams of a connection.
    Stream,
    /// The same, a gRPC call.
    Call,
    /// One mebibyte to the client.
    Download,
    /// A hundred mebibytes to the client; counted by the mebibyte.
    Large,
    /// One mebibyte from the client.
    Upload,
    /// A WebSocket message and its echo.
    Message,
}

const MEBIBYTE: usize = 1 << 20;
const LARGE: usize = 100;
const LARGE_CONNECTIONS: usize = 2;
const H2_CONNECTIONS: usize = 8;
const H2_STREAMS: usize = 32;
const BODY_CONNECTIONS: usize = 8;
/// Each needs the session ticket of one before it, of which a client keeps eight.
const RESUMING_CONNECTIONS: usize = 8;
const CONNECTIONS: usize = 64;
/// Until caches, pools and clocks of the CPU have settled.
const WARM_UP: Duration = Duration::from_millis(200);
/// Every client must have been answered once within this.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Clients that are being connected at once, before the measurement.
const CONNECTING: usize = 16;

/// The first ones can't be resumed; the others must be, or the figure would not be what it says.
const RESUMED_SHARE: f64 = 0.9;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) cpu_us_each: f64,
}

struct Shared {
    target: Target,
    work: Work,
    done: AtomicU64,
    stop: AtomicBool,
    connecting: Semaphore,
    ready: Semaphore,
}

/// Runs `work` against a peer whose processes are `pids` for `window`.
pub(crate) async fn run(target: &Target, pids: &[u32], work: Work, window: Duration) -> anyhow::Result<Rate> {
    // Tickets of another peer would be of no use, and all peers have one name.
    let target = Target { tls: Tls::new()?, ..target.clone() };
    let shared = Arc::new(Shared {
        target,
        work,
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        connecting: Semaphore::new(CONNECTING),
        ready: Semaphore::new(0),
    });
    let clients = match work {
        Work::Connection(Scheme::Resuming) => RESUMING_CONNECTIONS,
        Work::Request(_) | Work::Connection(_) | Work::Message => CONNECTIONS,
        Work::Download | Work::Upload => BODY_CONNECTIONS,
        Work::Large => LARGE_CONNECTIONS,
        Work::Stream | Work::Call => H2_CONNECTIONS,
    };
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let shared = shared.clone();
        tasks.spawn(async move {
            if matches!(work, Work::Stream | Work::Call) {
                streams(&shared).await
            } else {
                client(&shared).await
            }
        });
    }
    let all_ready = shared.ready.acquire_many(u32::try_from(clients)?);
    tokio::select! {
        ready = timeout(READY_LIMIT, all_ready) => drop(ready.context("not all clients were answered")?),
        ended = tasks.join_next() => {
            ended.context("there are clients")???;
            anyhow::bail!("a client ended before the measurement");
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let count = || shared.done.load(Ordering::Relaxed);
    let (began, cpu_before, count_before) = (Instant::now(), process::cpu(pids)?, count());
    tokio::time::sleep(window).await;
    let (elapsed, cpu, count) =
        (began.elapsed(), process::cpu(pids)?.saturating_sub(cpu_before), count() - count_before);
    shared.stop.store(true, Ordering::Relaxed);
    let ending = async {
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    timeout(READY_LIMIT, ending).await.context("a client was not answered")??;
    if work == Work::Connection(Scheme::Resuming) {
        let share = shared.target.tls.resumed_share();
        ensure!(share > RESUMED_SHARE, "only {:.0} % of handshakes were resumed", share * 100.0);
    }
    ensure!(count > 0, "nothing was done in {elapsed:?}");
    let count = count as f64;
    Ok(Rate { per_second: count / elapsed.as_secs_f64(), cpu_us_each: cpu.as_secs_f64() * 1e6 / count })
}

async fn client(shared: &Shared) -> anyhow::Result<()> {
    let target = &shared.target;
    let scheme = match shared.work {
        Work::Request(scheme) | Work::Connection(scheme) => scheme,
        Work::Stream | Work::Call | Work::Download | Work::Large | Work::Upload | Work::Message => {
            Scheme::Http
        }
    };
    let request = request(target, shared.work);
    let place = shared.connecting.acquire().await?;
    let mut connection = Connection::open(target, scheme).await?;
    if shared.work == Work::Message {
        connection.upgrade(target).await?;
    }
    once(shared, &mut connection, &request, scheme).await?;
    drop(place);
    shared.ready.add_permits(1);
    while !shared.stop.load(Ordering::Relaxed) {
        if matches!(shared.work, Work::Connection(_)) {
            connection = Connection::open_small(target, scheme).await?;
        }
        once(shared, &mut connection, &request, scheme).await?;
        let units = if shared.work == Work::Large { LARGE as u64 } else { 1 };
        shared.done.fetch_add(units, Ordering::Relaxed);
    }
    Ok(())
}

fn request(target: &Target, work: Work) -> Vec<u8> {
    match work {
        Work::Request(_) | Work::Stream | Work::Call | Work::Message => target.head("GET", "/", ""),
        Work::Large => target.head("GET", &format!("/download?bytes={}", LARGE * MEBIBYTE), ""),
        Work::Connection(_) => target.head("GET", "/", "Connection: close\r\n"),
        Work::Download => target.head("GET", &format!("/download?bytes={MEBIBYTE}"), ""),
        Work::Upload => {
            let mut request = target.head("POST", "/once?id=1", &format!("Content-Length: {MEBIBYTE}\r\n"));
            request.resize(request.len() + MEBIBYTE, b'x');
            request
        }
    }
}

async fn once(
    shared: &Shared,
    connection: &mut Connection,
    request: &[u8],
    scheme: Scheme,
) -> anyhow::Result<()> {
    match shared.work {
        Work::Message => connection.ping_pong().await,
        Work::Download | Work::Large => {
            let expected = if shared.work == Work::Large { LARGE * MEBIBYTE } else { MEBIBYTE };
            let length = connection.exchange(request).await?;
            ensure!(length == expected as u64, "{length} bytes came");
            Ok(())
        }
        Work::Connection(_) => {
            connection.exchange(request).await?;
            // Who closes first keeps the port for a minute: let it be the server, as HTTP has it. Over TLS
            // the peers differ in whether they say so first.
            if scheme == Scheme::Http { connection.closed().await } else { Ok(()) }
        }
        Work::Request(_) | Work::Stream | Work::Call | Work::Upload => {
            connection.exchange(request).await?;
            Ok(())
        }
    }
}

/// All streams of one connection.
async fn streams(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let target = &shared.target;
    let sender = http2::open(target).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..H2_STREAMS {
        let (shared, sender) = (shared.clone(), sender.clone());
        tasks.spawn(async move {
            while !shared.stop.load(Ordering::Relaxed) {
                stream(&shared, &sender).await?;
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    stream(shared, &sender).await?;
    shared.ready.add_permits(1);
    drop(sender);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn stream(shared: &Shared, sender: &h2::client::SendRequest<Bytes>) -> anyhow::Result<()> {
    let target = &shared.target;
    if shared.work == Work::Call {
        return http2::call(sender, target).await;
    }
    http2::exchange(sender, target, Method::GET, "/", Bytes::new(), ()).await?;
    Ok(())
}
