//! One HTTP/1.1 request and its answer, relayed as they stand.
//!
//! Heads were judged and cut ([`head`](super::head), [`wire`](super::wire)); bodies pass as they come, chunk by
//! chunk, followed only far enough to know where they end. Both ways move at once, so that an answer may come
//! before the request's end, and neither way keeps a buffer while nothing moves.
//!
//! ```text
//!   client ──head, body──▶ sprite     Up:   head ▶ body ▶ watch (has the client left?)
//!   client ◀──answer────── sprite     Down: heads ▶ body ▶ done, or switched to another protocol
//! ```

use std::{
    future::poll_fn,
    io::IoSlice,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep, timeout},
};
use tracing::debug;

use super::{
    Edge,
    access::{self, Line},
    admit::Prepared,
    answering, attempt,
    chunks::{Chunks, Malformed, Sender},
    ctx::RequestCtx,
    gate::gone,
    head::{Framing, Request},
    headers::Told,
    relay::Moved,
    respond::{EdgeError, Shape, answer},
    tracked::Tracked,
    tunnel::Tunnel,
    wire::{self, Added, Asked, Body, Fault, Kind},
};
use crate::{
    metrics::{Class, Side},
    upstream::Direct,
};

/// What of a body is read at once, on the stack.
const BODY_READ: usize = 64 * 1024;
/// The same of an answer's head: what comes with it is copied once.
const HEAD_READ: usize = 16 * 1024;
/// How much of a pipelined request, or of what follows an upgrade, is taken in before its turn.
const AHEAD_BYTES: usize = 4 * 1024;
/// How often we look whether a client has left whose bytes we don't read at the moment.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Interim answers before the final one.
const MOST_INTERIM: u32 = 32;
/// What is read of a body that nobody wants, only to keep the connection.
const DRAIN_BYTES: usize = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a client may take to take its last answer.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What becomes of the client's connection.
pub(super) enum After {
    /// It may carry the next request.
    Next(Box<Tracked>),
    Closed,
    /// It speaks another protocol from here on.
    Switched(Box<Tunnel>),
}

/// Why an exchange was not brought to its end.
enum Failure {
    /// The client has left.
    Gone,
    /// The client can still be told.
    Error(EdgeError),
    /// The connection into the sprite broke before an answer.
    Broken(String),
    /// It broke in the middle of the answer.
    Cut(String),
}

/// Serves one admitted request.
pub(super) async fn serve(
    edge: &Edge,
    client: Box<Tracked>,
    mut request: Request,
    prepared: Prepared,
) -> After {
    let mut ctx = RequestCtx::of(client.conn().clone(), prepared);
    ctx.wants_timing = request.wants_timing;
    let Some(forward) = &ctx.forward else { return After::Closed };
    let mut head = request.take_wire(forward.path.as_deref());
    if request.framing == Framing::Upgrade {
        head.extend_from_slice(b"connection: Upgrade\r\n");
    }
    Told::of(client.conn(), forward, request.host(), &ctx.request_id).write(&mut head);
    let mut exchange = Exchange {
        edge,
        request: &request,
        client,
        ctx,
        up: Up::new(head, request.framing),
        down: Down::default(),
        moved: Moved::default(),
        look: None,
    };
    let ended = exchange.run().await;
    exchange.finish(ended).await
}

struct Exchange<'a> {
    edge: &'a Edge,
    request: &'a Request,
    client: Box<Tracked>,
    ctx: RequestCtx,
    up: Up,
    down: Down,
    moved: Moved,
    /// When to look next whether the client has left.
    look: Option<Pin<Box<Sleep>>>,
}

/// The request on its way.
struct Up {
    /// Kept whole until the answer comes, for another try.
    head: Vec<u8>,
    head_at: usize,
    /// What of the body is still to come from the client.
    body: Body,
    /// Taken from the client, not yet by the sprite.
    kept: Vec<u8>,
    kept_at: usize,
    /// The sprite takes no more: it has closed, perhaps after an answer.
    broken: bool,
    /// The sprite's kernel has taken some of it.
    touched: bool,
    /// Some of the body has come, or the client was told to send it.
    continued: bool,
}

impl Up {
    const fn new(head: Vec<u8>, framing: Framing) -> Self {
        let body = match framing {
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::new(Sender::Client)),
            Framing::Upgrade => Body::Length(0),
        };
        Self {
            head,
            head_at: 0,
            body,
            kept: Vec::new(),
            kept_at: 0,
            broken: false,
            touched: false,
            continued: false,
        }
    }

    fn has_kept(&self) -> bool {
        self.head_at < self.head.len() || self.kept_at < self.kept.len()
    }

    /// Whether the sprite has the whole request.
    fn is_complete(&self) -> bool {
        self.body.is_done() && !self.has_kept() && !self.broken
    }
}

/// The answer on its way.
#[derive(Default)]
struct Down {
    stage: Stage,
    /// The beginning of a head that is not complete yet.
    head: Vec<u8>,
    /// For the client, not yet taken.
    out: Vec<u8>,
    out_at: usize,
    interim: u32,
    /// The sprite has said something.
    heard: bool,
    /// The client's connection ends with this answer.
    closes: bool,
    /// The sprite's connection may carry another request.
    reusable: bool,
}

impl Down {
    const fn lasts_until_close(&self) -> bool {
        matches!(self.stage, Stage::Body(Body::UntilClose))
    }
}

#[derive(Default)]
enum Stage {
    #[default]
    Heads,
    Body(Body),
    Switched,
}

impl Exchange<'_> {
    /// Finds a connection and moves everything over it; another one if nothing of the request was seen.
    async fn run(&mut self) -> Result<Direct, Failure> {
        let mut fresh = false;
        loop {
            let mut sprite = match self.parked(fresh) {
                Some(sprite) => sprite,
                None => Box::pin(self.dial()).await?,
            };
            match poll_fn(|cx| self.poll(cx, &mut sprite)).await {
                Ok(()) => return Ok(sprite),
                Err(Failure::Broken(why)) if self.may_repeat(&sprite) => {
                    debug!(request_id = self.ctx.request_id, why, "A kept connection was of no use");
                    self.up.head_at = 0;
                    self.up.broken = false;
                    fresh = true;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// A connection that is open already.
    fn parked(&mut self, fresh: bool) -> Option<Direct> {
        let forward = self.ctx.forward.as_ref().filter(|_| !fresh)?;
        let (upstream, target) = (forward.lease.upstream(), forward.target);
        let most_idle = self.edge.settings.timing.upstream_idle;
        loop {
            let sprite = upstream.take_parked(target, self.edge.ledger.now(), most_idle)?;
            // What can't be repeated is not risked on what we last heard of it.
            if self.request.method.is_safe() || sprite.is_quiet() {
                self.ctx.tries += 1;
                return Some(sprite);
            }
        }
    }

    /// Dials until the sprite takes the connection, the client leaves, or nothing helps.
    async fn dial(&mut self) -> Result<Direct, Failure> {
        loop {
            self.ctx.tries += 1;
            let Some(forward) = &self.ctx.forward else {
                return Err(Failure::Error(EdgeError::Internal("a request without a sprite".into())));
            };
            let request = attempt::dial_request(self.edge, forward, &self.ctx.request_id);
            let upstream = forward.lease.upstream().clone();
            let began = Instant::now();
            let dialed = tokio::select! {
                dialed = Direct::dial(&upstream, &request) => dialed,
                () = gone(&mut self.client) => return Err(Failure::Gone),
            };
            let (error, may_help) = match dialed {
                Ok(direct) => {
                    self.ctx.connect_took = Some(began.elapsed());
                    return Ok(direct);
                }
                Err(failure) => attempt::classify(failure),
            };
            if !may_help || self.ctx.tries >= attempt::MAX_TRIES {
                return Err(Failure::Error(error));
            }
            if let Err(error) = attempt::again(&mut self.ctx).await {
                return Err(if self.ctx.abandoned { Failure::Gone } else { Failure::Error(error) });
            }
        }
    }

    /// Whether the request may be sent once more (promise 1, T19): if nothing of it was taken; or, as RFC 9110
    /// §9.2.2 has it, if a kept connection broke before any answer, which nearly always means that the server
    /// closed it for being idle, and the request only reads.
    fn may_repeat(&self, sprite: &Direct) -> bool {
        let only_reads = self.request.method.is_safe() && matches!(self.request.framing, Framing::Length(0));
        let repeatable = !self.up.touched || (only_reads && !self.has_slept());
        sprite.is_reused() && !self.down.heard && repeatable && self.ctx.tries < attempt::MAX_TRIES
    }

    fn has_slept(&self) -> bool {
        self.ctx.forward.as_ref().is_some_and(|forward| forward.lease.upstream().has_ended())
    }

    /// Moves what can be moved, both ways.
    fn poll(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Poll<Result<(), Failure>> {
        match self.poll_up(cx, sprite) {
            Ok(()) => self.poll_down(cx, sprite),
            Err(Failure::Error(error)) if !matches!(self.down.stage, Stage::Heads) => {
                Poll::Ready(Err(Failure::Cut(error.to_string())))
            }
            Err(failure) => Poll::Ready(Err(failure)),
        }
    }

    /// Moves what can be moved of the request; what it waits for wakes the task.
    fn poll_up(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Result<(), Failure> {
        loop {
            if self.up.broken {
                // Perhaps an answer explains it. Until then nothing is read: it has nowhere to go.
                return self.look_for_client(cx);
            }
            if !self.up.body.is_done() && self.up.kept_at == self.up.kept.len() {
                self.take_ahead()?;
            }
            if self.up.has_kept() {
                match self.poll_send(cx, sprite) {
                    Poll::Ready(()) => continue,
                    Poll::Pending => return self.look_for_client(cx),
                }
            }
            if self.up.body.is_done() {
                // Gives its memory back: an answer may take long.
                self.up.kept = Vec::new();
                self.up.kept_at = 0;
                return self.watch(cx);
            }
            match self.poll_body(cx, sprite)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    self.up.kept = Vec::new();
                    return Ok(());
                }
            }
        }
    }

    /// Takes what of the body was read with the head.
    fn take_ahead(&mut self) -> Result<(), Failure> {
        let ahead = self.client.ahead();
        let taken = self.up.body.take(ahead).map_err(malformed)?;
        self.up.continued |= taken > 0;
        self.up.kept_at = 0;
        match taken {
            // Its room is of use for as long as the body flows.
            0 => self.up.kept.clear(),
            1.. => self.up.kept = self.client.take_ahead(taken),
        }
        Ok(())
    }

    /// Sends what is kept.
    fn poll_send(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Poll<()> {
        let Up { head, head_at, kept, kept_at, touched, broken, .. } = &mut self.up;
        let head_left = head.len() - *head_at;
        let slices = [IoSlice::new(&head[*head_at..]), IoSlice::new(&kept[*kept_at..])];
        let written = match (head_left, kept.is_empty()) {
            (0, _) => ready!(Pin::new(sprite).poll_write(cx, &kept[*kept_at..])),
            (_, true) => ready!(Pin::new(sprite).poll_write(cx, &head[*head_at..])),
            (_, false) => ready!(Pin::new(sprite).poll_write_vectored(cx, &slices)),
        };
        match written {
            Ok(written @ 1..) => {
                *touched = true;
                let of_head = written.min(head_left);
                *head_at += of_head;
                *kept_at += written - of_head;
                self.moved.to_sprite += (written - of_head) as u64;
            }
            Ok(0) | Err(_) => *broken = true,
        }
        Poll::Ready(())
    }

    /// Moves a part of the body straight from the client to the sprite.
    fn poll_body(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Result<Poll<()>, Failure> {
        let mut room = [MaybeUninit::uninit(); BODY_READ];
        let mut read = ReadBuf::uninit(&mut room);
        match self.client.poll_receive(cx, &mut read) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
            Poll::Ready(Ok(()) | Err(_)) => return Err(Failure::Gone),
        }
        let taken = self.up.body.take(read.filled()).map_err(malformed)?;
        let (body, next) = read.filled().split_at(taken);
        self.client.keep_ahead(next);
        self.up.continued = true;
        let written = match Pin::new(sprite).poll_write(cx, body) {
            Poll::Ready(Ok(written)) if written > 0 || body.is_empty() => written,
            Poll::Ready(Ok(_) | Err(_)) => {
                self.up.broken = true;
                return Ok(Poll::Ready(()));
            }
            Poll::Pending => 0,
        };
        self.moved.to_sprite += written as u64;
        self.up.kept.clear();
        self.up.kept.extend_from_slice(&body[written..]);
        self.up.kept_at = 0;
        Ok(Poll::Ready(()))
    }

    /// The whole request is on its way: keeps what comes next, and notices when the client leaves.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while self.client.ahead().len() < AHEAD_BYTES {
            match self.client.poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) => return Err(Failure::Gone),
                Poll::Pending => return Ok(()),
            }
        }
        self.look_for_client(cx)
    }

    /// The client is not being read, so only the kernel knows whether it has left.
    fn look_for_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        loop {
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(LOOK_EVERY)));
            if look.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
            if self.client.conn().has_left() {
                return Err(Failure::Gone);
            }
            self.look = None;
        }
    }

    /// Moves what can be moved of the answer; ready when the client has all of it.
    fn poll_down(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Poll<Result<(), Failure>> {
        loop {
            while self.down.out_at < self.down.out.len() {
                match ready!(self.client.poll_send(cx, &self.down.out[self.down.out_at..])) {
                    Ok(sent @ 1..) => self.down.out_at += sent,
                    Ok(0) | Err(_) => return Poll::Ready(Err(Failure::Gone)),
                }
            }
            self.down.out.clear();
            self.down.out_at = 0;
            let moved = match &self.down.stage {
                Stage::Heads => self.poll_heads(cx, sprite),
                Stage::Body(body) if body.is_done() => break,
                Stage::Body(_) => self.poll_answer(cx, sprite),
                Stage::Switched => break,
            };
            match moved {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => break,
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => {
                    // Nothing moves: gives its memory back.
                    self.down.out = Vec::new();
                    return match self.client.poll_send_rest(cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Err(Failure::Gone)),
                        Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
        self.client.poll_send_rest(cx).map_err(|_| Failure::Gone)
    }

    /// Reads on in the heads of the answer.
    fn poll_heads(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Poll<Result<bool, Failure>> {
        let mut room = [MaybeUninit::uninit(); HEAD_READ];
        let mut read = ReadBuf::uninit(&mut room);
        let broken = match ready!(Pin::new(sprite).poll_read(cx, &mut read)) {
            Ok(()) if !read.filled().is_empty() => {
                self.down.heard = true;
                let mut kept = std::mem::take(&mut self.down.head);
                let taken = match kept.is_empty() {
                    true => self.take_heads(read.filled()),
                    false => {
                        kept.extend_from_slice(read.filled());
                        self.take_heads(&kept)
                    }
                };
                return Poll::Ready(taken.map(|()| true));
            }
            Ok(()) => "it was closed without an answer".to_owned(),
            Err(error) => error.to_string(),
        };
        Poll::Ready(Err(Failure::Broken(broken)))
    }

    /// Rewrites the heads at the beginning of `bytes` for the client, with what follows.
    fn take_heads(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        let unusable = |Fault(why)| Failure::Error(EdgeError::UpstreamBroken(why.to_owned()));
        let asked = Asked {
            method: &self.request.method,
            host: self.request.host(),
            upgrade: self.request.framing == Framing::Upgrade,
        };
        loop {
            let first_byte = self.ctx.started.elapsed();
            let timing = self.ctx.wants_timing.then(|| {
                self.ctx.first_byte = Some(first_byte);
                self.ctx.server_timing()
            });
            // A client that was told the end before it sent a byte of the body may never send it.
            let unsent = self.request.expects_continue && !self.up.continued && !self.up.body.is_done();
            let added = Added {
                request_id: &self.ctx.request_id,
                sprite_version: self.ctx.class == Class::Inside,
                timing: timing.as_deref(),
                closes: self.request.closes || unsent || self.edge.is_draining(),
            };
            let read = wire::answer(bytes, asked, &added, &mut self.down.out).map_err(unusable)?;
            let Some(answer) = read else {
                self.down.head = bytes.to_vec();
                return Ok(());
            };
            bytes = &bytes[answer.length..];
            self.down.stage = match answer.kind {
                Kind::Interim => {
                    self.down.interim += 1;
                    self.up.continued |= answer.status == 100;
                    if self.down.interim > MOST_INTERIM {
                        return Err(unusable(Fault("it has no end of interim answers")));
                    }
                    continue;
                }
                Kind::Switched => {
                    self.moved.to_client += bytes.len() as u64;
                    self.down.out.extend_from_slice(bytes);
                    Stage::Switched
                }
                Kind::Final { mut body, reusable } => {
                    self.down.closes = added.closes || matches!(body, Body::UntilClose);
                    let taken = body.take(bytes).map_err(|Malformed| unusable(Fault(CHUNKS)))?;
                    self.down.reusable = reusable && taken == bytes.len();
                    self.moved.to_client += taken as u64;
                    self.down.out.extend_from_slice(&bytes[..taken]);
                    Stage::Body(body)
                }
            };
            self.ctx.first_byte = Some(first_byte);
            self.ctx.status = answer.status;
            if self.up.head_at == self.up.head.len() {
                // It is not sent again, and the answer may take long.
                self.up.head = Vec::new();
                self.up.head_at = 0;
            }
            if let Some(forward) = &mut self.ctx.forward {
                forward.lease.answered();
            }
            return Ok(());
        }
    }

    /// Moves a part of the answer's body straight to the client; false at its end.
    fn poll_answer(&mut self, cx: &mut Context<'_>, sprite: &mut Direct) -> Poll<Result<bool, Failure>> {
        let mut room = [MaybeUninit::uninit(); BODY_READ];
        let mut read = ReadBuf::uninit(&mut room);
        let cut = match ready!(Pin::new(sprite).poll_read(cx, &mut read)) {
            // Closed by us because the lease ended, it is not the end that the sprite meant.
            Ok(()) if read.filled().is_empty() && self.down.lasts_until_close() && !self.is_over() => {
                return Poll::Ready(Ok(false));
            }
            Ok(()) if read.filled().is_empty() => "it was closed in its middle".to_owned(),
            Ok(()) => {
                let Stage::Body(body) = &mut self.down.stage else { return Poll::Ready(Ok(false)) };
                let Ok(taken) = body.take(read.filled()) else {
                    return Poll::Ready(Err(Failure::Cut(CHUNKS.to_owned())));
                };
                self.down.reusable &= taken == read.filled().len();
                self.moved.to_client += taken as u64;
                let bytes = &read.filled()[..taken];
                let sent = match self.client.poll_send(cx, bytes) {
                    Poll::Ready(Ok(sent)) if sent > 0 || bytes.is_empty() => sent,
                    Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Err(Failure::Gone)),
                    Poll::Pending => 0,
                };
                self.down.out.extend_from_slice(&bytes[sent..]);
                return Poll::Ready(Ok(true));
            }
            Err(error) => error.to_string(),
        };
        Poll::Ready(Err(Failure::Cut(cut)))
    }

    fn is_over(&self) -> bool {
        self.ctx.forward.as_ref().is_some_and(|forward| forward.lease.upstream().is_over())
    }

    /// Settles both connections, and writes the log.
    async fn finish(self, ended: Result<Direct, Failure>) -> After {
        match ended {
            Ok(sprite) if matches!(self.down.stage, Stage::Switched) => self.switch(sprite),
            Ok(sprite) => {
                if self.down.reusable
                    && self.up.is_complete()
                    && let Some(forward) = &self.ctx.forward
                {
                    sprite.park(forward.target, self.edge.ledger.now());
                } else {
                    drop(sprite);
                }
                self.log();
                // The lease is let go of, whatever the client does from here on.
                let Self { client, ctx, up, down, .. } = self;
                drop(ctx);
                match (down.closes, up.body.is_done()) {
                    (false, true) => After::Next(client),
                    (false, false) => Box::pin(drain(client, up.body)).await,
                    (true, done) => {
                        Box::pin(client.close(!done)).await;
                        After::Closed
                    }
                }
            }
            Err(failure) => {
                Box::pin(self.fail(failure)).await;
                After::Closed
            }
        }
    }

    async fn fail(mut self, failure: Failure) {
        let error = match failure {
            Failure::Gone => {
                self.edge.metrics.error(Side::Downstream);
                self.ctx.abandoned = true;
                return self.log();
            }
            Failure::Error(error) => error,
            // The sprite may have seen the request: it is not sent again.
            Failure::Broken(_) | Failure::Cut(_) if self.has_slept() => EdgeError::SpriteSlept,
            Failure::Broken(why) | Failure::Cut(why) => EdgeError::UpstreamBroken(why),
        };
        if matches!(error, EdgeError::UpstreamBroken(_) | EdgeError::SpriteSlept) {
            self.edge.metrics.error(Side::Upstream);
        }
        debug!(request_id = self.ctx.request_id, %error, "A request failed");
        if matches!(self.down.stage, Stage::Body(_)) {
            let seems_whole = self.down.lasts_until_close();
            self.ctx.error = Some(error);
            self.log();
            if seems_whole {
                self.client.reset();
            }
            return;
        }
        let answer = answer(&error);
        self.edge.metrics.refusal(&answer.code);
        self.ctx.status = answer.status;
        self.ctx.error = Some(error);
        let shape = if self.ctx.wants_page { Shape::Page } else { Shape::Json };
        let text = answering::raw(&answer, shape, &self.ctx.request_id, self.ctx.class);
        self.log();
        let Self { mut client, ctx, .. } = self;
        drop(ctx);
        // Whether it was read or not, this connection ends here.
        let _ended = timeout(LAST_WORDS, client.end_with(&text)).await;
    }

    fn switch(self, mut sprite: Direct) -> After {
        self.log();
        let Self { client, ctx, moved, .. } = self;
        let RequestCtx { forward: Some(forward), request_id, .. } = ctx else { return After::Closed };
        let forward = if forward.is_watch() {
            sprite.outlive_lease();
            None
        } else {
            Some(forward)
        };
        After::Switched(Box::new(Tunnel { client, sprite, forward, request_id, moved }))
    }

    fn log(&self) {
        let line = Line {
            method: &self.request.method,
            host: self.request.host(),
            path: self.request.path(),
            status: self.ctx.status,
            received: self.moved.to_sprite,
            sent: self.moved.to_client,
        };
        access::log(self.edge, &self.ctx, &line);
    }
}

const CHUNKS: &str = "the chunks of its answer are malformed";

fn malformed(_: Malformed) -> Failure {
    Failure::Error(EdgeError::BadRequest("the chunks of its body are malformed".into()))
}

/// The answer came before the request's end: reads the rest away if it is small, so that the connection can
/// carry the next request, or else closes it so that the client can read the answer (T25).
async fn drain(mut client: Box<Tracked>, mut body: Body) -> After {
    let draining = async {
        let mut drained = 0;
        loop {
            match body.take(client.ahead()) {
                Ok(taken) => {
                    drained += taken;
                    client.skip_ahead(taken);
                }
                Err(Malformed) => return false,
            }
            if body.is_done() {
                return true;
            }
            if drained > DRAIN_BYTES || !matches!(client.fill().await, Ok(1..)) {
                return false;
            }
        }
    };
    if timeout(DRAIN_TIME, draining).await.is_ok_and(|drained| drained) {
        return After::Next(client);
    }
    client.close(true).await;
    After::Closed
}
