//! The one task that owns all services: it feeds their machines and does what they say.

use std::{
    collections::BTreeMap,
    future::Future,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    pin::Pin,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use ids::{Moment, ServiceName};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    Ask, AskError, ChangeError, DEFAULT_GRACE, Definition, Ended, MAX_WAITING, Notice, Reply, Services,
    State, View, Views,
    definitions::Definitions,
    in_future, log,
    log::{Line, Log, Source},
    process::{self, read_lines},
    supervisor::{Effect, Event, Failure, Supervisor},
};
use crate::reap::Reaper;

/// Notices that a slow listener may fall behind.
const MAX_UNHEARD: usize = 256;
/// How long the output of an ended process is waited for, if something that it left still holds it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// See the module.
pub(crate) struct Actor {
    definitions: Definitions,
    slots: BTreeMap<ServiceName, Slot>,
    environment: BTreeMap<String, String>,
    asks: mpsc::Receiver<Ask>,
    views: watch::Sender<Views>,
    exits: FuturesUnordered<Exit>,
    reaper: Reaper,
    logs: PathBuf,
    origin: Instant,
    ending: Option<Ending>,
}

type Exit = Pin<Box<dyn Future<Output = (ServiceName, i32, ExitStatus)> + Send>>;

/// A service that has a machine. It may have lost its definition and be about to end.
struct Slot {
    supervisor: Supervisor,
    notices: broadcast::Sender<Notice>,
    log: Arc<Mutex<Log>>,
    started_at: Option<Timestamp>,
    next_restart_at: Option<Timestamp>,
}

/// The sprite is shutting down.
struct Ending {
    /// When whatever lives is killed.
    deadline: Moment,
    /// Until when a service is spared because another one that still runs needs it.
    in_order_until: Moment,
    /// Told when all have ended.
    done: Option<oneshot::Sender<()>>,
}

impl Actor {
    /// Makes the actor and its handle. Nothing is started by itself before [`Ask::Boot`]; what somebody
    /// starts earlier gets `environment`.
    pub(crate) fn new(
        file: PathBuf,
        logs: PathBuf,
        environment: BTreeMap<String, String>,
        reaper: Reaper,
    ) -> (Self, Services) {
        let definitions = Definitions::load(file.clone()).unwrap_or_else(|error| {
            // The next change overwrites it, so keep what can perhaps be repaired by a person.
            let aside = file.with_extension("json.broken");
            let kept = std::fs::copy(&file, &aside).is_ok();
            warn!(%error, file = %file.display(), aside = kept.then(|| aside.display().to_string()), "Could not read the services");
            Definitions::empty(file)
        });
        let (sender, asks) = mpsc::channel(MAX_WAITING);
        let (views, published) = watch::channel(Views::default());
        let services = Services { asks: sender, views: published, logs: logs.as_path().into() };
        let mut actor = Self {
            definitions,
            slots: BTreeMap::new(),
            environment,
            asks,
            views,
            exits: FuturesUnordered::new(),
            reaper,
            logs,
            origin: Instant::now(),
            ending: None,
        };
        actor.publish();
        (actor, services)
    }

    /// Runs until every handle is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let tick = self.next_tick().map(|at| self.origin + at.since_origin());
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
                Some((name, pid, status)) = self.exits.next() => self.exited(&name, pid, status),
                () = sleep_until(tick.unwrap_or(self.origin).into()), if tick.is_some() => self.tick(),
            }
            self.go_on_ending();
            self.publish();
        }
    }

    fn now(&self) -> Moment {
        Moment::from_origin(self.origin.elapsed())
    }

    fn next_tick(&self) -> Option<Moment> {
        let ending = self.ending.as_ref().map(|ending| ending.in_order_until).filter(|at| *at > self.now());
        self.slots.values().filter_map(|slot| slot.supervisor.wants_tick_at()).chain(ending).min()
    }

    fn tick(&mut self) {
        for name in self.slots.keys().cloned().collect::<Vec<_>>() {
            self.feed(&name, Event::Tick);
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Boot { environment } => {
                self.environment = environment;
                for name in self.definitions.in_order() {
                    if self.definitions.get(&name).is_ok_and(|one| !one.stopped_by_hand) {
                        self.feed(&name, Event::Start);
                    }
                }
            }
            Ask::Environment { environment } => self.environment = environment,
            Ask::Put { name, definition, reply } => {
                let done = self.change(|definitions| definitions.put(name.clone(), *definition));
                self.reply(reply, done, &name, |actor| actor.start_anew(&name));
            }
            Ask::Delete { name, reply } => {
                let done = self.change(|definitions| definitions.delete(&name));
                self.reply(reply, done, &name, |actor| {
                    actor.feed(&name, Event::Stop { grace: DEFAULT_GRACE });
                });
            }
            Ask::Start { name, reply } => {
                let done = self.change(|definitions| {
                    definitions
                        .chain(&name)
                        .iter()
                        .try_for_each(|one| definitions.set_stopped_by_hand(one, false))?;
                    definitions.get(&name).map(drop)
                });
                self.reply(reply, done, &name, |actor| {
                    for one in actor.definitions.chain(&name) {
                        actor.feed(&one, Event::Start);
                    }
                });
            }
            Ask::Listen { name, reply } => {
                let known = self.definitions.get(&name).map(drop).map_err(AskError::from);
                self.reply(reply, known, &name, |_| {});
            }
            Ask::Want { name } => self.want(&name),
            Ask::Stop { name, grace, reply } => {
                let done = self.stop_by_hand(&name);
                self.reply(reply, done, &name, |actor| actor.feed(&name, Event::Stop { grace }));
            }
            Ask::Restart { name, reply } => {
                let done = self.change(|definitions| definitions.set_stopped_by_hand(&name, false));
                self.reply(reply, done, &name, |actor| actor.start_anew(&name));
            }
            Ask::Signal { name, signal, reply } => {
                let pid = self.definitions.get(&name).map_err(AskError::from).and_then(|_| {
                    let slot = self.slots.get(&name);
                    slot.and_then(Slot::pid).ok_or_else(|| AskError::NotRunning(name.clone()))
                });
                let pid = pid.inspect(|pid| process::signal_group(*pid, signal)).map(drop);
                self.reply(reply, pid, &name, |_| {});
            }
            Ask::Shutdown { grace, reply } => self.shut_down(grace, reply),
        }
    }

    /// Changes the definitions, unless it is too late.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Definitions) -> Result<(), ChangeError>,
    ) -> Result<(), AskError> {
        if self.ending.is_some() {
            return Err(AskError::ShuttingDown);
        }
        Ok(change(&mut self.definitions)?)
    }

    /// Lets the asker listen, then acts, so that it hears everything from the beginning.
    fn reply(
        &mut self,
        reply: Reply,
        outcome: Result<(), AskError>,
        name: &ServiceName,
        act: impl FnOnce(&mut Self),
    ) {
        match outcome {
            Ok(()) => {
                // The asker may have left; what it asked for is done all the same.
                let _gone = reply.send(Ok(self.slot(name).notices.subscribe()));
                act(self);
                self.forget_if_over(name);
            }
            Err(error) => {
                let _gone = reply.send(Err(error));
            }
        }
    }

    fn stop_by_hand(&mut self, name: &ServiceName) -> Result<(), AskError> {
        self.definitions.get(name)?;
        if self.slots.get(name).is_none_or(|slot| matches!(slot.supervisor.state(), State::Stopped { .. })) {
            return Err(AskError::NotRunning(name.clone()));
        }
        self.change(|definitions| definitions.set_stopped_by_hand(name, true))
    }

    /// Starts what a request needs, if nothing forbids it; does not cut a back-off short.
    fn want(&mut self, name: &ServiceName) {
        if self.ending.is_some() || self.definitions.get(name).is_ok_and(|one| one.stopped_by_hand) {
            return;
        }
        for one in self.definitions.chain(name) {
            let at_rest = matches!(self.slot(&one).supervisor.state(), State::Stopped { .. });
            if at_rest && self.definitions.get(&one).is_ok_and(|one| !one.stopped_by_hand) {
                self.feed(&one, Event::Start);
            }
        }
    }

    fn start_anew(&mut self, name: &ServiceName) {
        for one in self.definitions.chain(name) {
            let event = if one == *name { Event::Restart { grace: DEFAULT_GRACE } } else { Event::Start };
            self.feed(&one, event);
        }
    }

    fn slot(&mut self, name: &ServiceName) -> &mut Slot {
        let path = log::path_of(&self.logs, name);
        self.slots.entry(name.clone()).or_insert_with(|| Slot::new(path))
    }

    /// Gives a service's machine an event and does what it says, until it says nothing more.
    fn feed(&mut self, name: &ServiceName, event: Event) {
        let now = self.now();
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let slot = self.slot(name);
            if let Some(notice) = told_by(slot.supervisor.state(), &event) {
                slot.say(notice);
            }
            let effect = slot.supervisor.handle(event, now);
            slot.after(now);
            match effect {
                Some(Effect::Spawn) => next = Some(self.spawn(name)),
                Some(Effect::Terminate(pid)) => {
                    info!(service = %name, pid, "Service is told to end");
                    slot.say(Notice::Stopping);
                    process::signal_group(pid, Signal::SIGTERM);
                    // One that is stopped could not obey.
                    process::signal_group(pid, Signal::SIGCONT);
                }
                Some(Effect::Kill(pid)) => {
                    warn!(service = %name, pid, "Service did not end in time and is killed");
                    process::signal_group(pid, Signal::SIGKILL);
                }
                None => {}
            }
        }
    }

    fn spawn(&mut self, name: &ServiceName) -> Event {
        let Ok(definition) = self.definitions.get(name).cloned() else {
            return Event::NotSpawned { error: "it was deleted".into() };
        };
        match process::spawn(&self.reaper, &definition, &self.environment) {
            Ok(spawned) => {
                let pid = spawned.pid;
                info!(service = %name, pid, "Service is started");
                let slot = self.slot(name);
                slot.started_at = Some(Timestamp::now());
                slot.say(Notice::Started);
                let pumps =
                    [slot.pump(spawned.stdout, Source::Stdout), slot.pump(spawned.stderr, Source::Stderr)];
                self.exits.push(Box::pin(watch_exit(name.clone(), pid, spawned.ended, pumps)));
                Event::Spawned { pid }
            }
            Err(error) => {
                let error = format!("failed to start: {error}");
                warn!(service = %name, %error, "Service could not be started");
                self.slot(name).say(Notice::NotSpawned(error.clone()));
                Event::NotSpawned { error }
            }
        }
    }

    fn exited(&mut self, name: &ServiceName, pid: i32, status: ExitStatus) {
        let ended = status.code().map(Ended::Code).or_else(|| status.signal().map(Ended::Signal));
        let ended = ended.unwrap_or(Ended::Code(0));
        info!(service = %name, pid, ?ended, "Service has ended");
        self.feed(name, Event::Exited(ended));
        self.forget_if_over(name);
    }

    /// A deleted service is forgotten when its process is gone.
    fn forget_if_over(&mut self, name: &ServiceName) {
        let over = self.slots.get(name).is_some_and(|slot| slot.pid().is_none());
        if over && self.definitions.get(name).is_err() {
            self.slots.remove(name);
        }
    }

    fn shut_down(&mut self, grace: Duration, done: oneshot::Sender<()>) {
        let now = self.now();
        self.ending =
            Some(Ending { deadline: now + grace, in_order_until: now + grace / 2, done: Some(done) });
    }

    /// Tells those services to end that nothing which still runs needs; after half of the time, all.
    fn go_on_ending(&mut self) {
        let now = self.now();
        let Some(ending) = &self.ending else { return };
        let (in_order, grace) = (now < ending.in_order_until, ending.deadline - now);
        let names: Vec<ServiceName> = self.slots.keys().cloned().collect();
        for name in names {
            let needed = self.definitions.iter().any(|(other, one)| {
                one.needs.contains(&name) && self.slots.get(other).is_some_and(|slot| slot.pid().is_some())
            });
            let settled = matches!(
                self.slots.get(&name).map(|slot| slot.supervisor.state()),
                Some(State::Stopping { then: super::supervisor::Then::Stay, .. } | State::Stopped { .. })
                    | None
            );
            let spared = needed && in_order;
            if !settled && !spared {
                self.feed(&name, Event::Stop { grace });
            }
        }
        let alive = self.slots.values().any(|slot| slot.pid().is_some());
        if let Some(ending) = &mut self.ending
            && !alive
            && let Some(done) = ending.done.take()
        {
            let _gone = done.send(());
        }
    }

    fn publish(&mut self) {
        let view = |(name, definition): (&ServiceName, &Definition)| {
            let slot = self.slots.get(name);
            let view = View {
                definition: definition.clone(),
                state: slot.map_or(State::Stopped { last: None }, |slot| slot.supervisor.state().clone()),
                started_at: slot.filter(|slot| slot.pid().is_some()).and_then(|slot| slot.started_at),
                next_restart_at: slot.and_then(|slot| slot.next_restart_at),
                restarts: slot.map_or(0, |slot| slot.supervisor.restarts()),
            };
            (name.clone(), view)
        };
        let views = self.definitions.iter().map(view).collect();
        self.views.send_replace(Arc::new(views));
    }
}

impl Slot {
    fn new(log: PathBuf) -> Self {
        Self {
            supervisor: Supervisor::new(),
            notices: broadcast::Sender::new(MAX_UNHEARD),
            log: Arc::new(Mutex::new(Log::new(log))),
            started_at: None,
            next_restart_at: None,
        }
    }

    fn pid(&self) -> Option<i32> {
        match self.supervisor.state() {
            State::Running { pid, .. } | State::Stopping { pid, .. } => Some(*pid),
            State::Stopped { .. } | State::Starting | State::Failed { .. } => None,
        }
    }

    /// Tells whoever listens; usually nobody does.
    fn say(&self, notice: Notice) {
        let _nobody = self.notices.send(notice);
    }

    /// Notes the time of the next restart when one has been planned.
    fn after(&mut self, now: Moment) {
        self.next_restart_at = match (self.supervisor.state(), self.next_restart_at) {
            (State::Failed { .. }, Some(planned)) => Some(planned),
            (State::Failed { restart_at, .. }, None) => Some(in_future(*restart_at - now)),
            (State::Stopped { .. } | State::Starting | State::Running { .. } | State::Stopping { .. }, _) => {
                None
            }
        };
    }

    /// Carries what a process writes to its log and its listeners.
    fn pump(&self, output: tokio::net::unix::pipe::Receiver, source: Source) -> JoinHandle<()> {
        let (log, notices) = (Arc::clone(&self.log), self.notices.clone());
        tokio::spawn(async move {
            let mut complained = false;
            read_lines(output, source, |lines: &[Line]| {
                let written = log.lock().unwrap_or_else(PoisonError::into_inner).write(lines);
                if let Err(error) = written
                    && !std::mem::replace(&mut complained, true)
                {
                    warn!(%error, "Could not write a service's log; lines are lost");
                }
                if notices.receiver_count() > 0 {
                    for line in lines {
                        let _nobody = notices.send(Notice::Output(line.clone()));
                    }
                }
            })
            .await;
        })
    }
}

/// What those who listen are told of an event, besides what its effects tell.
fn told_by(state: &State, event: &Event) -> Option<Notice> {
    match (state, event) {
        (State::Stopping { .. }, Event::Exited(ended)) => Some(Notice::Stopped(Some(*ended))),
        (
            State::Running { .. } | State::Stopped { .. } | State::Starting | State::Failed { .. },
            Event::Exited(ended),
        ) => Some(Notice::Exited(*ended)),
        // It waited for its next restart, and had no process that could end.
        (State::Failed { .. }, Event::Stop { .. }) => Some(Notice::Stopped(None)),
        (
            State::Running { .. } | State::Stopped { .. } | State::Starting | State::Stopping { .. },
            Event::Stop { .. },
        )
        | (
            _,
            Event::Start
            | Event::Restart { .. }
            | Event::Spawned { .. }
            | Event::NotSpawned { .. }
            | Event::Tick,
        ) => None,
    }
}

/// Resolves when a process has ended and its last words have been read.
async fn watch_exit(
    name: ServiceName,
    pid: i32,
    ended: oneshot::Receiver<ExitStatus>,
    pumps: [JoinHandle<()>; 2],
) -> (ServiceName, i32, ExitStatus) {
    // The reaper lives as long as the sprite.
    let status = ended.await.unwrap_or_default();
    // What it left behind in its group would hold its port when it is started again.
    process::signal_group(pid, Signal::SIGKILL);
    for mut pump in pumps {
        // A process that moved into a session of its own may hold the other end for ever.
        if timeout(LAST_WORDS, &mut pump).await.is_err() {
            pump.abort();
        }
    }
    (name, pid, status)
}

/// A failure as it is told about a service by name.
pub(crate) fn sentence(name: &ServiceName, failure: &Failure) -> String {
    format!("service \"{name}\" {failure}")
}
