//! What a connection costs that does nothing.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use h2::client::SendRequest;
use http::Method;
use tokio::task::JoinSet;

use super::{
    http1::Connection,
    http2,
    peers::Peer,
    process,
    target::{Scheme, Target},
};

/// Connections that are being opened at once.
const OPENING: usize = 16;
/// Exchanges before the first measurement, so that what a peer sets up once is not counted.
const WARM_UP: usize = 64;
const SETTLE: Duration = Duration::from_millis(700);

/// Kinds of idle connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Idle {
    Http,
    Https,
    H2,
    WebSocket,
}

/// Kept open by not being dropped.
enum Opened {
    Http1 { _connection: Connection },
    H2 { _sender: SendRequest<Bytes> },
}

async fn open(target: &Target, idle: Idle) -> anyhow::Result<Opened> {
    let scheme = match idle {
        Idle::Http | Idle::WebSocket => Scheme::Http,
        Idle::Https => Scheme::Https,
        Idle::H2 => {
            let sender = http2::open(target).await?;
            http2::exchange(&sender, target, Method::GET, "/", Bytes::new(), ()).await?;
            return Ok(Opened::H2 { _sender: sender });
        }
    };
    let mut connection = Connection::open_small(target, scheme).await?;
    match idle {
        Idle::Http | Idle::Https | Idle::H2 => {
            connection.exchange(&target.head("GET", "/", "")).await?;
        }
        Idle::WebSocket => {
            connection.upgrade(target).await?;
            connection.ping_pong().await?;
        }
    }
    Ok(Opened::Http1 { _connection: connection })
}

async fn open_all(target: &Target, idle: Idle, n: usize) -> anyhow::Result<Vec<Opened>> {
    let mut opening = JoinSet::new();
    let mut opened = Vec::with_capacity(n);
    while opened.len() < n {
        while opening.len() < OPENING && opened.len() + opening.len() < n {
            let target = target.clone();
            opening.spawn(async move { open(&target, idle).await });
        }
        opened.push(opening.join_next().await.context("connections are being opened")???);
    }
    Ok(opened)
}

/// KiB of user memory for each of `n` connections of a freshly started peer, each used once.
pub(crate) async fn run(peer: &mut Peer, idle: Idle, n: usize) -> anyhow::Result<f64> {
    let pids = peer.pids()?;
    drop(open_all(&peer.target, idle, WARM_UP).await?);
    tokio::time::sleep(SETTLE).await;
    let before = process::memory_kib(&pids)?;
    let connections = open_all(&peer.target, idle, n).await?;
    tokio::time::sleep(SETTLE).await;
    let after = process::memory_kib(&pids)?;
    drop(connections);
    Ok((after - before) / n as f64)
}
