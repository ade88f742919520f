//! Fifteen thousand requests for a thousand sprites, held until the agent answers: as HTTP/2 streams, because a
//! connection each would need more descriptors than machines usually allow.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use test_support::{Options, World};
use tokio::{task::JoinSet, time::timeout};

use super::{
    held::Held,
    http2, process,
    target::{Target, Tls},
};

const SPRITES: usize = 1_000;
const STREAMS: usize = 15_000;
/// The backend counts what it has seen, from other cells too.
const FIRST_ID: usize = 1_000_000;
/// On one connection, each for another sprite: a gateway takes 64 hosts on one.
const STREAMS_EACH: usize = 50;
/// From the last request sent to the first measurement.
const SETTLE: Duration = Duration::from_millis(700);
const WATCH: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module. All sprites have the same backend.
pub(crate) async fn run(backend: SocketAddr) -> anyhow::Result<Held> {
    let agent: String = (0..SPRITES)
        .map(|n| {
            format!(
                "[[command]]\norganization = \"acme\"\nname = \"s{n}\"\nweb = \"{backend}\"\n\
                 start = [\"/bin/true\"]\nstop = [\"/bin/true\"]\n"
            )
        })
        .collect();
    let gateway = "[log]\nfilter = \"warn\"\n".to_owned();
    let (idle, holder_ttl) = (Duration::from_secs(3600), PATIENCE * 2);
    let mut world = World::start(Options { agent, gateway, idle, holder_ttl, ..Options::default() }).await?;
    let mut targets = Vec::with_capacity(SPRITES);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, world.http));
    let tls = Tls::new()?;
    for n in 0..SPRITES {
        let settings = json!({ "url_settings": { "auth": "sprite" } });
        let (status, sprite) = world.call("PUT", &format!("/v1/sprites/s{n}"), Some(settings)).await?;
        ensure!(status == 200, "{status} {sprite}");
        let url = sprite["url"].as_str().context("a sprite has a url")?;
        let host = url.split(['/', ':']).find(|part| part.starts_with('s')).context("a url has a host")?;
        targets.push(Target {
            http: address,
            https: address,
            host: host.into(),
            token: world.token.as_str().into(),
            tls: tls.clone(),
        });
    }
    let pids = [world.gateway()?.id()];
    let agent = Pid::from_raw(i32::try_from(world.agent()?.id())?);
    let memory_before = process::memory_kib(&pids)?;
    // It answers nobody until it goes on.
    kill(agent, Signal::SIGSTOP)?;
    let held = hold(&targets, &pids, memory_before, || Ok(kill(agent, Signal::SIGCONT)?)).await;
    // Whatever became of it, nothing is to be left behind.
    kill(agent, Signal::SIGCONT)?;
    world.stop().await?;
    held
}

async fn hold(
    targets: &[Target],
    pids: &[u32],
    memory_before: f64,
    go_on: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Held> {
    let sent = Arc::new(AtomicUsize::new(0));
    let mut streams = JoinSet::new();
    for first in (0..STREAMS).step_by(STREAMS_EACH) {
        let sender = http2::open_plain(targets[0].http).await?;
        for n in first..first + STREAMS_EACH {
            let (sender, target, sent) = (sender.clone(), targets[n % SPRITES].clone(), sent.clone());
            streams.spawn(async move {
                let path = format!("/once?id={}", FIRST_ID + n);
                let unsent = Unsent(&sent);
                let length =
                    http2::exchange(&sender, &target, Method::POST, &path, Bytes::from_static(b"x"), unsent)
                        .await?;
                ensure!(length == 1, "not the count of one");
                anyhow::Ok(Instant::now())
            });
        }
    }
    let all_sent = async {
        while sent.load(Ordering::Relaxed) < STREAMS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, all_sent).await.context("not all requests could be sent")?;
    tokio::time::sleep(SETTLE).await;
    let memory = process::memory_kib(pids)? - memory_before;
    let cpu_before = process::cpu(pids)?;
    tokio::time::sleep(WATCH).await;
    let cpu = process::cpu(pids)?.saturating_sub(cpu_before);
    let ready = Instant::now();
    go_on()?;
    let (mut lost, mut last) = (0, None);
    let answers = async {
        while let Some(answered) = streams.join_next().await {
            match answered? {
                Ok(at) => last = last.max(Some(at.saturating_duration_since(ready))),
                Err(error) => {
                    if lost == 0 {
                        eprintln!("lost: {error:#}");
                    }
                    lost += 1;
                }
            }
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, answers).await.context("some requests were never answered")??;
    Ok(Held {
        kib_each: memory / STREAMS as f64,
        cpu_percent: cpu.as_secs_f64() / WATCH.as_secs_f64() * 100.0,
        lost,
        last_answer: last,
    })
}

/// Counts a request that is sent, or never will be.
struct Unsent<'a>(&'a AtomicUsize);

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
