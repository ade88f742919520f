//! The record of each open client connection: which sprites it reached, bytes each way, the last byte,
//! the tokens that were used on it. Leases, `why awake` and metrics all count from here.
//!
//! A connection that reached a sprite through its URL uses that sprite until it closes, idle or not.
//! What it holds are guards: they end when the connection's last reference goes, whatever ended it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::RawFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use ids::{Moment, SpriteId, TokenId};
use parking_lot::Mutex;
use pingora::protocols::SocketDigest;

use crate::{
    clock::Clock,
    edge::admit::Prepared,
    leases::{Slot, Use},
};

/// A connection rarely reaches more than one sprite, and never many: an h2 client that coalesces hosts.
const MAX_ATTACHMENTS: usize = 64;
/// A client that shows more tokens than this on one connection is not a client.
const MAX_TOKENS: usize = 16;

/// How soon a client that left without our reading from it is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// All open connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    clock: Clock,
    next: AtomicU64,
    open: DashMap<u64, Weak<Conn>>,
    /// Connections between two requests are not to take another one.
    ending: AtomicBool,
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) fd: RawFd,
    pub(crate) tls: bool,
    pub(crate) tls_name: Option<Box<str>>,
}

/// What goes on at one sprite.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) connections: u32,
    pub(crate) last_byte: Moment,
}

impl Ledger {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            next: AtomicU64::new(0),
            open: DashMap::new(),
            ending: AtomicBool::new(false),
        })
    }

    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Enters an accepted connection.
    pub(crate) fn enter(self: &Arc<Self>, socket: Accepted) -> Arc<Conn> {
        let Accepted { peer, local, fd, tls_name, tls } = socket;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let conn = Arc::new(Conn {
            id,
            peer,
            local,
            tls,
            tls_name,
            ledger: self.clone(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            last_byte: AtomicU64::new(micros(self.clock.now())),
            socket: Mutex::new(Some(fd)),
            phase: AtomicU8::new(Phase::Idle as u8),
            entry: Mutex::default(),
            prepared: Mutex::new(None),
        });
        self.open.insert(id, Arc::downgrade(&conn));
        conn
    }

    /// How many connections are open.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// All that are open. Gathered first: the last reference to a connection must not be dropped while the
    /// table is being walked, because its drop takes it out of the table.
    fn all(&self) -> Vec<Arc<Conn>> {
        self.open.iter().filter_map(|item| item.value().upgrade()).collect()
    }

    /// Closes every connection that `condemned` picks; the number of them.
    fn close_where(&self, condemned: impl Fn(&Entry) -> bool) -> usize {
        let chosen: Vec<Arc<Conn>> =
            self.all().into_iter().filter(|conn| condemned(&conn.entry.lock())).collect();
        for conn in &chosen {
            conn.close();
        }
        chosen.len()
    }

    /// The token was revoked: whatever it opened is closed (T32).
    pub(crate) fn close_token(&self, token: &TokenId) -> usize {
        self.close_where(|entry| entry.tokens.contains(token))
    }

    /// The sprite's URL became private: who came without a name has to go (T31).
    pub(crate) fn close_anonymous(&self, sprite: SpriteId) -> usize {
        self.close_where(|entry| entry.attached.iter().any(|a| a.slot.sprite() == sprite && a.anonymous))
    }

    /// The sprite is to sleep: connections without a request there let go of it (and stay open), the others
    /// when their requests have ended.
    pub(crate) fn detach(&self, sprite: SpriteId) {
        for conn in self.all() {
            conn.entry.lock().attached.retain_mut(|attachment| {
                let concerned = attachment.slot.sprite() == sprite;
                attachment.leaving |= concerned;
                !concerned || attachment.in_flight > 0
            });
        }
    }

    /// The sprite is gone.
    pub(crate) fn close_sprite(&self, sprite: SpriteId) -> usize {
        self.close_where(|entry| entry.attached.iter().any(|a| a.slot.sprite() == sprite))
    }

    /// The beginning of a drain: connections without a request end, the others after theirs.
    pub(crate) fn close_idle(&self) -> usize {
        self.ending.store(true, Ordering::SeqCst);
        let idle = |conn: &Arc<Conn>| conn.pass(Phase::Idle, Phase::Ending);
        self.all().into_iter().filter(idle).inspect(|conn| conn.close()).count()
    }

    /// The end of a drain.
    pub(crate) fn close_all(&self) -> usize {
        self.close_where(|_| true)
    }

    /// What goes on at each sprite that has connections.
    pub(crate) fn traffic(&self) -> HashMap<SpriteId, Traffic> {
        let mut all: HashMap<SpriteId, Traffic> = HashMap::new();
        for conn in self.all() {
            let last_byte =
                Moment::from_origin(Duration::from_micros(conn.last_byte.load(Ordering::Relaxed)));
            for attachment in &conn.entry.lock().attached {
                let traffic = all.entry(attachment.slot.sprite()).or_default();
                traffic.connections += 1;
                traffic.last_byte = traffic.last_byte.max(last_byte);
            }
        }
        all
    }
}

/// Whether a connection may be closed without anyone missing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Phase {
    /// Between two requests.
    Idle,
    Busy,
    /// Closed by us between two requests: what comes now was never begun.
    Ending,
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Conn {
    id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    tls: bool,
    /// The server name of the TLS handshake.
    tls_name: Option<Box<str>>,
    ledger: Arc<Ledger>,
    received: AtomicU64,
    sent: AtomicU64,
    /// In microseconds of the ledger's clock.
    last_byte: AtomicU64,
    /// The socket, as long as it is open.
    socket: Mutex<Option<RawFd>>,
    phase: AtomicU8,
    entry: Mutex<Entry>,
    /// What was decided on an HTTP/1 request before the proxy saw it.
    prepared: Mutex<Option<Box<Prepared>>>,
}

#[derive(Debug, Default)]
struct Entry {
    attached: Vec<Attachment>,
    next_attachment: u64,
    tokens: Vec<TokenId>,
}

#[derive(Debug)]
struct Attachment {
    id: u64,
    slot: Arc<Slot>,
    /// Whether anyone came over this connection without a name.
    anonymous: bool,
    /// Requests that rely on this attachment to hold the sprite.
    in_flight: u32,
    /// The sprite is put to sleep: the attachment ends with its last request.
    leaving: bool,
    _held: Use,
}

impl Attachment {
    fn is_for(&self, sprite: SpriteId) -> bool {
        !self.leaving && self.slot.sprite() == sprite
    }
}

/// A request that relies on its connection to hold the sprite.
#[derive(Debug)]
pub(crate) struct Flight {
    conn: Arc<Conn>,
    attachment: u64,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut entry = self.conn.entry.lock();
        let Some(at) = entry.attached.iter().position(|a| a.id == self.attachment) else { return };
        let attachment = &mut entry.attached[at];
        attachment.in_flight = attachment.in_flight.saturating_sub(1);
        if attachment.leaving && attachment.in_flight == 0 {
            entry.attached.swap_remove(at);
        }
    }
}

impl Conn {
    pub(crate) const fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) const fn local(&self) -> SocketAddr {
        self.local
    }

    pub(crate) const fn is_tls(&self) -> bool {
        self.tls
    }

    pub(crate) fn tls_name(&self) -> Option<&str> {
        self.tls_name.as_deref()
    }

    /// Ends when the client has closed its side, even if bytes it sent before are not read yet: then the
    /// kernel is the only one who knows. (A FIN behind a full receive window is seen by nobody.)
    pub(crate) async fn left(&self) {
        while !self.has_left() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A request begins; false if the connection was closed just before.
    pub(crate) fn begin_request(&self) -> bool {
        self.pass(Phase::Idle, Phase::Busy)
    }

    /// The connection waits for its next request; false if it is to wait for none.
    pub(crate) fn end_request(&self) -> bool {
        // The first time, there was no request yet.
        let _was_busy = self.pass(Phase::Busy, Phase::Idle);
        !self.ledger.ending.load(Ordering::SeqCst)
    }

    fn pass(&self, from: Phase, to: Phase) -> bool {
        self.phase.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether the client has closed its side, as the kernel knows.
    pub(crate) fn has_left(&self) -> bool {
        /// `TCP_ESTABLISHED` of Linux' `tcp_states.h`.
        const ESTABLISHED: u8 = 1;
        let socket = self.socket.lock();
        let Some(fd) = *socket else { return true };
        SocketDigest::from_raw_fd(fd).tcp_info().is_some_and(|info| info.tcpi_state != ESTABLISHED)
    }

    pub(crate) fn note_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_byte.store(micros(self.ledger.clock.now()), Ordering::Relaxed);
    }

    pub(crate) fn note_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.last_byte.store(micros(self.ledger.clock.now()), Ordering::Relaxed);
    }

    /// The slot of a sprite that this connection already holds: no lock is shared with another connection.
    pub(crate) fn attached(
        self: &Arc<Self>,
        sprite: SpriteId,
        anonymous: bool,
    ) -> Option<(Arc<Slot>, Flight)> {
        let mut entry = self.entry.lock();
        let attachment = entry.attached.iter_mut().find(|a| a.is_for(sprite))?;
        attachment.anonymous |= anonymous;
        attachment.in_flight += 1;
        Some((attachment.slot.clone(), Flight { conn: self.clone(), attachment: attachment.id }))
    }

    /// From now on, until it closes, the connection uses the sprite; false if it uses too many already.
    pub(crate) fn attach(&self, slot: &Arc<Slot>, anonymous: bool) -> bool {
        let mut entry = self.entry.lock();
        let entry = &mut *entry;
        if let Some(attachment) = entry.attached.iter_mut().find(|a| a.is_for(slot.sprite())) {
            attachment.anonymous |= anonymous;
            return true;
        }
        if entry.attached.len() >= MAX_ATTACHMENTS {
            return false;
        }
        let id = entry.next_attachment;
        entry.next_attachment += 1;
        let held = slot.begin_use();
        let slot = slot.clone();
        // Nearly always the only one: no room for more than there are.
        entry.attached.reserve_exact(1);
        entry.attached.push(Attachment { id, slot, anonymous, in_flight: 0, leaving: false, _held: held });
        true
    }

    /// The token was used on this connection; false if there have been too many.
    pub(crate) fn note_token(&self, token: &TokenId) -> bool {
        let mut entry = self.entry.lock();
        if entry.tokens.contains(token) {
            return true;
        }
        if entry.tokens.len() >= MAX_TOKENS {
            return false;
        }
        entry.tokens.reserve_exact(1);
        entry.tokens.push(token.clone());
        true
    }

    /// Closes both directions at once. Whoever reads or writes finds out immediately.
    pub(crate) fn close(&self) {
        if let Some(fd) = *self.socket.lock() {
            // Already closed by the peer is as good.
            let _closed = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
        }
    }

    /// The socket is about to be closed: its number will mean something else.
    pub(crate) fn socket_gone(&self) {
        *self.socket.lock() = None;
    }

    pub(crate) fn put_prepared(&self, prepared: Prepared) {
        *self.prepared.lock() = Some(Box::new(prepared));
    }

    pub(crate) fn take_prepared(&self) -> Option<Prepared> {
        self.prepared.lock().take().map(|prepared| *prepared)
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.ledger.open.remove(&self.id);
    }
}

fn micros(moment: Moment) -> u64 {
    u64::try_from(moment.since_origin().as_micros()).unwrap_or(u64::MAX)
}
