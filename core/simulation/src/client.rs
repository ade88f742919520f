//! Clients, their connections and their requests.

use std::time::Duration;

use hold::Ticket;
use ids::{Epoch, Moment};
use lease::holder::Era;
use route::{Destination, HostError, Zone};

use crate::{
    driver::Process,
    world::{Ending, Event, World},
};

/// How long a gateway goes on sending a request again that provably reached nobody.
const RESEND_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ClientId(pub(crate) u64);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RequestId(pub(crate) u64);

/// What a client comes for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) requests: u64,
    /// It leaves after this, whatever goes on.
    pub(crate) patience: Duration,
}

impl Visit {
    /// One request, to its end.
    pub(crate) const fn patient() -> Self {
        Self { requests: 1, patience: Duration::from_secs(24 * 3_600) }
    }
}

/// A client's connection to a gateway.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) gateway: usize,
    pub(crate) sprite: usize,
    /// The connection holds the sprite since its first request was let through.
    pub(crate) attached: bool,
    relied: Option<Era>,
    request: Option<RequestId>,
    requests_left: u64,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) client: ClientId,
    pub(crate) gateway: usize,
    pub(crate) sprite: usize,
    pub(crate) place: Place,
    /// Its place in line, waiting or released.
    pub(crate) ticket: Option<Ticket>,
    /// Whether it is a use of its own, beside that of its connection.
    pub(crate) uses: bool,
    /// The lease that it relies on, once it does not wait.
    pub(crate) relied: Option<Era>,
    pub(crate) arrived: Moment,
    pub(crate) entered: Moment,
    sent_again: bool,
    /// Its lease was lost or taken from it, so that what happens to it now is nobody's fault.
    pub(crate) excused: bool,
}

/// Where a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In line since [`Request::entered`], or before it.
    Waiting,
    /// On its way to the sprite of this epoch.
    Dialing(Epoch),
    /// In the sprite of this epoch.
    Serving(Epoch),
}

impl World {
    /// One of the clients that come by themselves.
    pub(crate) fn some_client(&mut self) {
        if !self.busy {
            return;
        }
        let next = self.random.about(self.scenario.clients);
        self.plan(next, Event::SomeClient);
        let gateway = self.random.index(self.gateways.len());
        // A few sprites have most of the visitors.
        let sprites = self.sprites.len();
        let most = if self.random.per_mille(500) { sprites } else { sprites.div_ceil(3) };
        let sprite = self.random.index(most);
        // Now and then a crowd comes at once.
        let crowd = if self.random.per_mille(20) { self.random.below(100) } else { 1 };
        for _ in 0..crowd {
            let visit = self.some_visit();
            self.come(gateway, sprite, visit);
        }
    }

    fn some_visit(&mut self) -> Visit {
        let requests = if self.random.per_mille(700) { 1 } else { 1 + self.random.below(6) };
        // Some leave in the middle of whatever goes on, the rest when they have had enough.
        let patience = if self.random.per_mille(200) {
            self.random.about(Duration::from_millis(500))
        } else {
            Duration::from_secs(120) + self.random.about(Duration::from_secs(30))
        };
        Visit { requests, patience }
    }

    /// Somebody comes for whatever is called by this name. What has no meaning reaches nothing (T35).
    pub(crate) fn come_for(&mut self, gateway: usize, authority: &str) {
        let zone = Zone::new("sprites.localhost").expect("it is a domain");
        let found = match zone.parse(authority) {
            Ok(Destination::Sprite(host)) => {
                self.sprites.iter().position(|sprite| !sprite.gone && sprite.label == host.key())
            }
            Ok(Destination::Api) | Err(HostError::Malformed { .. } | HostError::NotOurs) => None,
        };
        match found {
            Some(sprite) => self.come(gateway, sprite, Visit::patient()),
            None => *self.report.endings.entry(Ending::Refused).or_default() += 1,
        }
    }

    pub(crate) fn come(&mut self, gateway: usize, sprite: usize, visit: Visit) {
        if !self.gateways[gateway].alive {
            return;
        }
        let id = ClientId(self.number());
        let client = Client {
            gateway,
            sprite,
            attached: false,
            relied: None,
            request: None,
            requests_left: visit.requests,
        };
        self.clients.insert(id, client);
        self.sprites[sprite].visitors += 1;
        self.plan(visit.patience, Event::Leaves(id));
        self.ask(id);
    }

    /// The client sends its next request.
    pub(crate) fn ask(&mut self, id: ClientId) {
        let request = RequestId(self.number());
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.requests_left -= 1;
        client.request = Some(request);
        let (gateway, sprite) = (client.gateway, client.sprite);
        let now = self.now;
        self.requests.insert(
            request,
            Request {
                client: id,
                gateway,
                sprite,
                place: Place::Waiting,
                ticket: None,
                uses: false,
                relied: None,
                arrived: now,
                entered: now,
                sent_again: false,
                excused: false,
            },
        );
        self.enter(request);
    }

    /// The gateway lets a request go on at `epoch`: it is on its way.
    pub(crate) fn go(&mut self, id: RequestId, epoch: Epoch) {
        let delay = self.random.about(Duration::from_micros(500));
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.place = Place::Dialing(epoch);
        self.plan(delay, Event::Delivered(id));
    }

    /// A request reaches the sprite.
    pub(crate) fn deliver(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Place::Dialing(epoch) = request.place else { return };
        let (client, gateway, sprite) = (request.client, request.gateway, request.sprite);
        if self.sprites[sprite].process != (Process::Running { epoch }) {
            self.bounce(id, epoch);
            return;
        }
        request.place = Place::Serving(epoch);
        let waited = self.now - request.arrived;
        self.report.longest_wait = self.report.longest_wait.max(waited);
        let attached =
            self.clients.get_mut(&client).map(|client| std::mem::replace(&mut client.attached, true));
        if attached == Some(false) {
            self.begin_use(gateway, sprite);
            let relied = self.rely(gateway, sprite);
            self.clients.entry(client).and_modify(|client| client.relied = relied);
        }
        if self.random.per_mille(self.scenario.commands_per_mille) {
            self.begin_command(sprite);
        }
        // Some take very long (T4), some no time at all.
        let typical = if self.busy && self.random.per_mille(10) {
            Duration::from_secs(8)
        } else {
            self.scenario.service
        };
        let head = self.random.about(typical);
        let rest = self.random.about(typical);
        self.plan(head, Event::Answered(id));
        self.plan(head + rest, Event::Served(id));
    }

    /// A request reaches a sprite that sleeps, or is not the one it was sent to. Not a byte was read: the
    /// gateway sends it again.
    fn bounce(&mut self, id: RequestId, epoch: Epoch) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let sprite = request.sprite;
        let first = !std::mem::replace(&mut request.sent_again, true);
        request.place = Place::Waiting;
        let late = self.now - request.arrived >= RESEND_FOR;
        if first {
            self.report.bounced += 1;
        }
        let excused = std::mem::take(&mut request.excused) || self.sprites[sprite].is_excused(self.now);
        let process = self.sprites[sprite].process;
        if !excused {
            self.violated(|| {
                format!("{id:?} for epoch {epoch} reached sprite {sprite}, which is {process:?}")
            });
        }
        self.let_go(id);
        if late {
            self.end(id, Ending::Expired);
        } else {
            let pause = self.random.between(Duration::from_millis(20), Duration::from_millis(200));
            self.plan(pause, Event::Retries(id));
        }
    }

    /// The response head is there.
    pub(crate) fn answered(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Place::Serving(_) = request.place else { return };
        let (gateway, sprite) = (request.gateway, request.sprite);
        if let Some(ticket) = request.ticket.take() {
            self.leave_line(gateway, sprite, ticket);
        }
    }

    pub(crate) fn served(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Place::Serving(epoch) = request.place else { return };
        let sprite = request.sprite;
        let process = self.sprites[sprite].process;
        if process == (Process::Running { epoch }) {
            self.end(id, Ending::Served);
            return;
        }
        request.excused |= self.sprites[sprite].is_excused(self.now);
        if !request.excused {
            self.violated(|| format!("sprite {sprite} became {process:?} while it served {id:?}"));
        }
        if process == (Process::Paused { epoch }) {
            // Frozen in the middle. It goes on when somebody wakes the sprite, or the client has enough.
            self.plan(Duration::from_millis(700), Event::Served(id));
        } else {
            self.end(id, Ending::Broken);
        }
    }

    /// A request has ended, in whichever way.
    pub(crate) fn end(&mut self, id: RequestId, ending: Ending) {
        self.let_go(id);
        let Some(request) = self.requests.remove(&id) else {
            self.violated(|| format!("{id:?} ended twice, the second time as {ending:?}"));
            return;
        };
        *self.report.endings.entry(ending).or_default() += 1;
        if let Place::Serving(_) = request.place {
            self.sprites[request.sprite].used_at = Some(self.now);
        }
        let Some(client) = self.clients.get_mut(&request.client) else { return };
        client.request = None;
        if client.requests_left > 0 && ending == Ending::Served {
            let pause = self.random.about(Duration::from_millis(800));
            self.plan(pause, Event::AsksAgain(request.client));
        } else {
            self.close(request.client);
        }
    }

    /// The client is gone, whatever it was doing.
    pub(crate) fn leave(&mut self, id: ClientId) {
        let Some(client) = self.clients.get(&id) else { return };
        match client.request {
            Some(request) => {
                self.clients.entry(id).and_modify(|client| client.requests_left = 0);
                self.end(request, Ending::Left);
            }
            None => self.close(id),
        }
    }

    /// Gives up a request's place in line and its use of the sprite.
    fn let_go(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (gateway, sprite) = (request.gateway, request.sprite);
        let ticket = request.ticket.take();
        let uses = std::mem::take(&mut request.uses);
        let relied = request.relied.take();
        if let Some(ticket) = ticket {
            self.leave_line(gateway, sprite, ticket);
        }
        if uses {
            self.end_use(gateway, sprite, relied);
        }
    }

    /// The connection ends.
    fn close(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else { return };
        if client.attached {
            self.end_use(client.gateway, client.sprite, client.relied);
            self.sprites[client.sprite].used_at = Some(self.now);
        }
        self.went(client.sprite);
        self.tempt_fate(client.gateway, client.sprite);
    }

    /// A visitor of a sprite is gone.
    fn went(&mut self, sprite: usize) {
        self.sprites[sprite].visitors -= 1;
        self.sprites[sprite].needed_at = self.now;
    }

    /// Now and then somebody comes just when the sprite is about to sleep (T5).
    fn tempt_fate(&mut self, gateway: usize, sprite: usize) {
        if !self.busy || self.scenario.clients.is_zero() || !self.random.per_mille(100) {
            return;
        }
        let timing = self.scenario.settings.timing;
        let mut sleeps = self.scenario.holder.linger + timing.idle_timeout;
        if self.random.per_mille(300) {
            sleeps += timing.cold_after;
        }
        let just = self
            .random
            .between(Duration::ZERO, Duration::from_millis(8))
            .saturating_sub(Duration::from_millis(2));
        let visit = self.some_visit();
        self.plan(sleeps + just, Event::Comes { gateway, sprite, visit });
    }

    /// Everyone at a gateway that died is gone; so are their requests.
    pub(crate) fn lose_clients(&mut self, gateway: usize) {
        let theirs: Vec<_> =
            self.requests.iter().filter(|(_, r)| r.gateway == gateway).map(|(id, _)| *id).collect();
        for id in theirs {
            self.requests.remove(&id);
            *self.report.endings.entry(Ending::GatewayDied).or_default() += 1;
        }
        let clients: Vec<_> =
            self.clients.iter().filter(|(_, c)| c.gateway == gateway).map(|(id, _)| *id).collect();
        for id in clients {
            if let Some(client) = self.clients.remove(&id) {
                self.went(client.sprite);
            }
        }
    }
}
