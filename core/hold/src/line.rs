//! See the crate's documentation.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ids::Moment;

/// What a line may grow to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How many requests may wait for one sprite.
    pub max_waiting: usize,
    /// How many released requests may be without an answer at once (T16). Zero counts as one.
    pub release_at_once: usize,
    /// How long a request may wait.
    pub budget: Duration,
}

/// A held request's place. Never used twice by one line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(u64);

/// Whether there is room for one more request in the gateway as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is.
    Free,
    /// There is not.
    Full,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Arrival {
    /// It goes on at once, and the line forgets it.
    Pass,
    /// It waits until it is released, failed or expired.
    Wait {
        /// Its place.
        ticket: Ticket,
        /// When [`Line::expire`] gives it up.
        deadline: Moment,
    },
    /// It is refused at once.
    Refuse(Full),
}

/// Which limit refuses a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    /// As many requests wait for this sprite as may.
    #[error("too many requests wait for this sprite")]
    Sprite,
    /// As many requests wait, for all sprites, as may.
    #[error("too many requests wait for sprites to wake")]
    Gateway,
}

/// The requests held for one sprite.
#[derive(Debug)]
pub struct Line {
    limits: Limits,
    open: bool,
    next: u64,
    /// With deadlines. Tickets grow and all have the same budget, so the first is both the next to go and
    /// the first to expire.
    waiting: BTreeMap<Ticket, Moment>,
    released: BTreeSet<Ticket>,
}

impl Line {
    /// An empty line, closed: the sprite counts as asleep until [`Line::open`].
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, open: false, next: 0, waiting: BTreeMap::new(), released: BTreeSet::new() }
    }

    /// A request arrives. `in_all` says whether the gateway may hold one more for any sprite.
    pub fn arrive(&mut self, now: Moment, in_all: Room) -> Arrival {
        if self.open && self.waiting.is_empty() {
            return Arrival::Pass;
        }
        if self.waiting.len() >= self.limits.max_waiting {
            return Arrival::Refuse(Full::Sprite);
        }
        if in_all == Room::Full {
            return Arrival::Refuse(Full::Gateway);
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        let deadline = now + self.limits.budget;
        self.waiting.insert(ticket, deadline);
        Arrival::Wait { ticket, deadline }
    }

    /// The sprite is awake. Returns who goes now.
    #[must_use = "a dropped ticket is a request that hangs"]
    pub fn open(&mut self) -> Vec<Ticket> {
        self.open = true;
        self.release()
    }

    /// The sprite sleeps, or may: whoever arrives from now on waits. Released requests are on their way
    /// and stay so.
    pub const fn close(&mut self) {
        self.open = false;
    }

    /// A released request was answered (its response head came) or has failed. Returns who goes now.
    /// Anyone else's ticket changes nothing.
    #[must_use = "a dropped ticket is a request that hangs"]
    pub fn answered(&mut self, ticket: Ticket) -> Vec<Ticket> {
        match self.released.remove(&ticket) {
            true => self.release(),
            false => Vec::new(),
        }
    }

    /// The client of a held or released request has gone; its slot is free. Returns who goes now.
    #[must_use = "a dropped ticket is a request that hangs"]
    pub fn cancel(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.waiting.remove(&ticket);
        self.answered(ticket)
    }

    /// The sprite can't be had: everyone who waits gets the same error, once (T12).
    #[must_use = "a dropped ticket is a request that hangs"]
    pub fn fail(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.waiting).into_keys().collect()
    }

    /// Returns those whose budget is spent.
    #[must_use = "a dropped ticket is a request that hangs"]
    pub fn expire(&mut self, now: Moment) -> Vec<Ticket> {
        let mut expired = Vec::new();
        while let Some(first) = self.waiting.first_entry().filter(|first| *first.get() <= now) {
            expired.push(first.remove_entry().0);
        }
        expired
    }

    /// When [`Line::expire`] will have something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        self.waiting.first_key_value().map(|(_, deadline)| *deadline)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many released requests are without an answer.
    #[must_use]
    pub fn released(&self) -> usize {
        self.released.len()
    }

    /// Whether requests pass, or would once those before them are gone.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Whether nobody waits or is on the way, so that nothing is lost when the line is dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.released.is_empty()
    }

    fn release(&mut self) -> Vec<Ticket> {
        let mut going = Vec::new();
        while self.open && self.released.len() < self.limits.release_at_once.max(1) {
            let Some((ticket, _)) = self.waiting.pop_first() else { break };
            self.released.insert(ticket);
            going.push(ticket);
        }
        going
    }
}
