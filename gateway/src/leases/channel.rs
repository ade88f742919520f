//! The lease channel: connects, says hello, carries messages both ways, pings, and starts over when it
//! breaks, for as long as the program runs.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use agent_api::{
    ApiError,
    client::{AgentClient, LeaseReader, LeaseWriter},
    lease::{GrantorMessage, HolderMessage},
};
use ids::{HolderId, Moment};
use lease::holder::Grant;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Leases, Outbox};
use crate::{backoff::Backoff, edge::respond::EdgeError};

/// The first pause after a break: an agent that restarts is back within this.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause: what a restarted agent costs in held time.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the agent may take to answer the hello.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one write may take before the channel counts as stuck.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages sent in one write.
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the channel broke: {0}")]
    Io(#[from] io::Error),
    #[error("the agent closed the channel")]
    Closed,
    #[error("the agent did not say welcome")]
    NoWelcome,
    #[error("the agent was silent for {0:?}")]
    Silent(Duration),
    #[error("more messages than the channel carries")]
    Stuck,
}

/// Runs until it is dropped.
pub(crate) async fn run(agent: AgentClient, leases: std::sync::Arc<Leases>, mut outbox: Outbox) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match open(&agent, &leases.holder).await {
            Ok((reader, writer, ttl)) => {
                backoff.reset();
                // Whatever was meant for an earlier channel is settled anew below.
                while outbox.0.try_recv().is_ok() {}
                leases.channel_up(ttl);
                info!(holder = %leases.holder, ?ttl, "The lease channel is open");
                let heard = AtomicU64::new(0);
                let error = carry(&leases, reader, writer, &mut outbox, ttl, &heard).await;
                leases.channel_lost(heard_at(&heard));
                warn!(%error, "The lease channel broke; leases are kept while it is opened again");
            }
            Err(error) => {
                if backoff.is_first() {
                    warn!(%error, "The lease channel can't be opened");
                }
                if leases.shared.is_unreachable() {
                    leases.fail_waiting(&EdgeError::AgentUnreachable);
                }
            }
        }
        backoff.pause().await;
    }
}

fn heard_at(heard: &AtomicU64) -> Moment {
    Moment::from_origin(Duration::from_micros(heard.load(Ordering::Relaxed)))
}

async fn open(
    agent: &AgentClient,
    holder: &HolderId,
) -> Result<(LeaseReader, LeaseWriter, Duration), Broken> {
    let (mut reader, mut writer) = agent.leases().await?;
    writer.send(&[HolderMessage::Hello { holder: holder.clone() }]).await?;
    let welcome = timeout(WELCOME_TIMEOUT, reader.next()).await.map_err(|_| Broken::NoWelcome)??;
    match welcome {
        Some(GrantorMessage::Welcome { holder_ttl_ms }) => {
            Ok((reader, writer, Duration::from_millis(holder_ttl_ms)))
        }
        Some(
            GrantorMessage::Granted { .. }
            | GrantorMessage::Refused { .. }
            | GrantorMessage::Revoked { .. }
            | GrantorMessage::Pong,
        ) => Err(Broken::NoWelcome),
        None => Err(Broken::Closed),
    }
}

/// Carries messages until the channel breaks; says why it did.
async fn carry(
    leases: &Leases,
    reader: LeaseReader,
    writer: LeaseWriter,
    outbox: &mut Outbox,
    ttl: Duration,
    heard: &AtomicU64,
) -> Broken {
    let note = || {
        let micros = leases.shared.clock.now().since_origin().as_micros();
        heard.store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    };
    note();
    let ended = tokio::select! {
        ended = receive(leases, reader, ttl, note) => ended,
        ended = send(leases, writer, outbox, ttl / 3) => ended,
    };
    match ended {
        Ok(()) => Broken::Closed,
        Err(error) => error,
    }
}

async fn receive(
    leases: &Leases,
    mut reader: LeaseReader,
    ttl: Duration,
    note: impl Fn(),
) -> Result<(), Broken> {
    while let Some(message) = timeout(ttl, reader.next()).await.map_err(|_| Broken::Silent(ttl))?? {
        note();
        match message {
            GrantorMessage::Granted { sprite, attempt, epoch, endpoint, woken_from } => {
                leases.granted(sprite, attempt, Grant { epoch, endpoint }, woken_from);
            }
            GrantorMessage::Refused { sprite, attempt, refusal } => leases.refused(sprite, attempt, refusal),
            GrantorMessage::Revoked { sprite, epoch, reason } => {
                info!(%sprite, %epoch, reason, "A lease was revoked");
                leases.revoked(sprite, epoch);
            }
            GrantorMessage::Welcome { .. } | GrantorMessage::Pong => {}
        }
    }
    Ok(())
}

async fn send(
    leases: &Leases,
    mut writer: LeaseWriter,
    outbox: &mut Outbox,
    ping_every: Duration,
) -> Result<(), Broken> {
    let mut ping = tokio::time::interval(ping_every.max(Duration::from_millis(50)));
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            count = outbox.0.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return Ok(());
                }
            }
            _ = ping.tick() => batch.push(HolderMessage::Ping),
        }
        if leases.shared.stuck.load(Ordering::Acquire) {
            return Err(Broken::Stuck);
        }
        timeout(WRITE_TIMEOUT, writer.send(&batch)).await.map_err(|_| Broken::Silent(WRITE_TIMEOUT))??;
        batch.clear();
    }
}
