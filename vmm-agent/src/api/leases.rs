//! The lease channel, agent's side: reads what a holder says, tells the sprites, writes what they answer.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use agent_api::lease::{
    GrantorMessage, HolderMessage, MAX_LINE_BYTES, Refusal, RefusalCode, UPGRADE_PROTOCOL,
};
use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use hyper_util::rt::TokioIo;
use ids::{HolderId, SpriteId};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tokio_util::codec::{FramedRead, LinesCodec};
use tracing::{debug, info, warn};

use super::answer::Failure;
use crate::{agent::Agent, sprite::Message};

/// How long a holder may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a write may wait for a holder that does not read.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Messages written in one system call at the most.
const BATCH: usize = 256;

/// Upgrades the request to a lease channel and serves it until it breaks.
pub(crate) async fn upgrade(State(agent): State<Arc<Agent>>, request: Request) -> Result<Response, Failure> {
    let asked = request.headers().get(header::UPGRADE).map(HeaderValue::as_bytes);
    if asked != Some(UPGRADE_PROTOCOL.as_bytes()) {
        let message = format!("this call takes Upgrade: {UPGRADE_PROTOCOL}");
        return Err(Failure::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message));
    }
    let upgraded = hyper::upgrade::on(request);
    // Owned by the tracker, which the agent waits for when it stops.
    agent.tasks.spawn({
        let agent = agent.clone();
        async move {
            match upgraded.await {
                Ok(upgraded) => serve(&agent, TokioIo::new(upgraded)).await,
                Err(error) => debug!(%error, "A lease channel was not upgraded"),
            }
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, UPGRADE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn serve(agent: &Agent, channel: impl AsyncRead + AsyncWrite + Send + 'static) {
    let (reader, writer) = tokio::io::split(channel);
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
    let hello = match timeout(HELLO_DEADLINE, lines.next()).await {
        Ok(Some(Ok(line))) => serde_json::from_str(&line),
        Ok(Some(Err(_)) | None) | Err(_) => return,
    };
    let Ok(HolderMessage::Hello { holder }) = hello else {
        warn!("A lease channel did not begin with hello");
        return;
    };
    let (registration, messages) = agent.holders.register(holder.clone()).await;
    info!(%holder, "Holder connected");
    let mut session = Session { agent, holder: holder.clone(), sprites: HashSet::new() };
    let end = tokio::select! {
        end = session.read(&mut lines) => end,
        end = write(writer, messages, agent.config.holder_ttl) => end,
        () = agent.shutdown.cancelled() => Ok("the agent shuts down"),
    };
    match end {
        Ok(reason) => info!(%holder, reason, "Holder disconnected"),
        Err(error) => warn!(%holder, %error, "Lease channel broke"),
    }
    session.lost().await;
    // Only now may a newer channel of this holder be heard.
    drop(registration);
    agent.holders.forget_closed(&holder);
}

struct Session<'a> {
    agent: &'a Agent,
    holder: HolderId,
    /// Where this holder may have a lease; bounded by the number of sprites on this host.
    sprites: HashSet<SpriteId>,
}

impl Session<'_> {
    async fn read<R: AsyncRead + Unpin>(
        &mut self,
        lines: &mut FramedRead<R, LinesCodec>,
    ) -> io::Result<&'static str> {
        loop {
            let silence = self.agent.config.holder_ttl;
            let Ok(line) = timeout(silence, lines.next()).await else {
                return Ok("it was silent for too long");
            };
            let Some(line) = line else { return Ok("it closed the channel") };
            let message = serde_json::from_str(&line.map_err(io::Error::other)?)?;
            self.hear(message).await;
        }
    }

    async fn hear(&mut self, message: HolderMessage) {
        let holder = self.holder.clone();
        match message {
            HolderMessage::Hello { .. } => warn!(%holder, "A holder said hello twice"),
            HolderMessage::Ping => self.agent.holders.send(&holder, GrantorMessage::Pong),
            HolderMessage::Acquire { sprite, attempt, request_id } => {
                self.sprites.insert(sprite);
                let acquire = Message::Acquire { holder: holder.clone(), attempt, request_id };
                if !self.tell(sprite, acquire).await {
                    self.agent.holders.send(&holder, no_such_sprite(sprite, attempt));
                }
            }
            HolderMessage::Reassert { sprite, attempt, epoch } => {
                self.sprites.insert(sprite);
                let reassert = Message::Reassert { holder: holder.clone(), attempt, epoch };
                if !self.tell(sprite, reassert).await {
                    self.agent.holders.send(&holder, no_such_sprite(sprite, attempt));
                }
            }
            HolderMessage::Release { sprite, attempt, idle_for_ms } => {
                let idle_for = Duration::from_millis(idle_for_ms);
                // The sprite may be gone, and the lease with it.
                self.tell(sprite, Message::Release { holder, attempt, idle_for }).await;
            }
            HolderMessage::Report { sprite, usage } => {
                self.tell(sprite, Message::Report { holder, usage }).await;
            }
        }
    }

    async fn tell(&mut self, id: SpriteId, message: Message) -> bool {
        match self.agent.sprite(id) {
            Some(sprite) => sprite.tell(message).await,
            None => {
                self.sprites.remove(&id);
                false
            }
        }
    }

    async fn lost(&mut self) {
        for id in self.sprites.drain() {
            if let Some(sprite) = self.agent.sprite(id) {
                sprite.tell(Message::HolderLost { holder: self.holder.clone() }).await;
            }
        }
    }
}

fn no_such_sprite(sprite: SpriteId, attempt: ids::Attempt) -> GrantorMessage {
    let refusal = Refusal {
        code: RefusalCode::NotFound,
        message: "the sprite does not exist (any more)".into(),
        retry_after_ms: None,
    };
    GrantorMessage::Refused { sprite, attempt, refusal }
}

async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut messages: mpsc::Receiver<GrantorMessage>,
    holder_ttl: Duration,
) -> io::Result<&'static str> {
    let holder_ttl_ms = u64::try_from(holder_ttl.as_millis()).unwrap_or(u64::MAX);
    let mut batch = vec![GrantorMessage::Welcome { holder_ttl_ms }];
    let mut lines = Vec::new();
    loop {
        lines.clear();
        for message in batch.drain(..) {
            serde_json::to_writer(&mut lines, &message)?;
            lines.push(b'\n');
        }
        let written = async {
            writer.write_all(&lines).await?;
            writer.flush().await
        };
        timeout(WRITE_DEADLINE, written).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if messages.recv_many(&mut batch, BATCH).await == 0 {
            return Ok("a newer channel took over, or it did not keep up");
        }
    }
}
