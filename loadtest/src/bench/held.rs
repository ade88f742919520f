//! POSTs that wait for a backend that is not there yet: what they cost, how many are lost, and how soon
//! they are answered once it is.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Method;
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use super::{
    http1::Connection,
    http2,
    peers::{Assignment, Backend, Kind, Peer, free_address},
    process,
    target::{Scheme, Target, Tls},
};

/// Clients that are connecting at once: as fast as they come, but not faster than the kernel's queue.
const CONNECTING: usize = 256;
/// From the last request sent to the first measurement.
const SETTLE: Duration = Duration::from_millis(700);
/// How long the CPU is watched while they wait.
const WATCH: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
const BODY: usize = 200;
/// On one HTTP/2 connection; every peer allows a hundred.
const STREAMS: usize = 50;

/// What the POSTs come over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    /// A connection each.
    Http1,
    /// A stream each.
    H2,
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) kib_each: f64,
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) lost: usize,
    /// From when the backend listens to the last answer; absent if none came.
    pub(crate) last_answer: Option<Duration>,
}

/// Sends `n` POSTs to a freshly started peer, lets them wait, then starts the backend.
pub(crate) async fn run(kind: Kind, tls: Tls, dir: &Path, over: Over, n: usize) -> anyhow::Result<Held> {
    let backend = free_address()?;
    let pipes = tempfile::tempdir_in(dir)?;
    let pipe = pipes.path().join("start");
    mkfifo(&pipe, Mode::S_IRWXU)?;
    let work = Assignment { backend, dir, late: Some(&pipe) };
    let mut peer = Peer::start(kind, tls, work).await?;
    let pids = peer.pids()?;
    let memory_before = process::memory_kib(&pids)?;
    let sent = Arc::new(AtomicUsize::new(0));
    let connecting = Arc::new(Semaphore::new(CONNECTING));
    let mut posts = JoinSet::new();
    let mut sender = None;
    for id in 0..n {
        let (target, sent, connecting) = (peer.target.clone(), sent.clone(), connecting.clone());
        if over == Over::Http1 {
            posts.spawn(async move { post(&target, id, &sent, &connecting).await });
            continue;
        }
        if id % STREAMS == 0 {
            sender = Some(http2::open(&target).await?);
        }
        let sender = sender.clone().context("the first stream opens a connection")?;
        posts.spawn(async move { post_stream(&sender, &target, id, &sent).await });
    }
    drop(sender);
    let all_sent = async {
        while sent.load(Ordering::Relaxed) < n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, all_sent).await.context("not all requests could be sent")?;
    tokio::time::sleep(SETTLE).await;
    let memory = process::memory_kib(&pids)? - memory_before;
    let cpu_before = process::cpu(&pids)?;
    tokio::time::sleep(WATCH).await;
    let cpu = process::cpu(&pids)?.saturating_sub(cpu_before);

    let server = Backend::start(backend, dir).await?;
    let ready = Instant::now();
    if kind == Kind::Gateway {
        let opened = tokio::task::spawn_blocking(move || {
            std::fs::OpenOptions::new().write(true).open(pipe)?.write_all(b"go\n")
        });
        timeout(PATIENCE, opened).await.context("nobody asked for the start")???;
    }
    let (mut lost, mut last) = (0, None);
    let answers = async {
        while let Some(answered) = posts.join_next().await {
            match answered? {
                Ok(at) => last = last.max(Some(at.saturating_duration_since(ready))),
                Err(_) => lost += 1,
            }
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, answers).await.context("some requests were never answered")??;
    drop(server);
    peer.stop().await?;
    Ok(Held {
        kib_each: memory / n as f64,
        cpu_percent: cpu.as_secs_f64() / WATCH.as_secs_f64() * 100.0,
        lost,
        last_answer: last,
    })
}

/// When the answer came. An error is a lost request: no answer, or not the backend's, or the backend got
/// it twice (its count is then not the one character that one is).
async fn post(
    target: &Target,
    id: usize,
    sent: &AtomicUsize,
    connecting: &Semaphore,
) -> anyhow::Result<Instant> {
    let place = connecting.acquire().await?;
    let connection = Connection::open_small(target, Scheme::Http).await;
    drop(place);
    let mut request = target.head("POST", &format!("/once?id={id}"), &format!("Content-Length: {BODY}\r\n"));
    request.resize(request.len() + BODY, b'x');
    // One that could not even connect does not keep the others waiting.
    drop(Unsent(sent));
    let length = connection?.exchange(&request).await?;
    ensure!(length == 1, "not the count of one");
    Ok(Instant::now())
}

/// Counts a request that is sent, or never will be.
struct Unsent<'a>(&'a AtomicUsize);

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The same on a stream.
async fn post_stream(
    sender: &SendRequest<Bytes>,
    target: &Target,
    id: usize,
    sent: &AtomicUsize,
) -> anyhow::Result<Instant> {
    let (path, body) = (format!("/once?id={id}"), Bytes::from_static(&[b'x'; BODY]));
    let length = http2::exchange(sender, target, Method::POST, &path, body, Unsent(sent)).await?;
    ensure!(length == 1, "not the count of one");
    Ok(Instant::now())
}
