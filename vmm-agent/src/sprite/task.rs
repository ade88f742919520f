//! The task that owns a sprite: a loop around two pure machines.

mod checkpoints;

use std::{collections::VecDeque, future::pending, sync::Arc, time::Duration};

use ::lease::grantor::{Demand as LeaseDemand, Grantor, Usage, Who};
use agent_api::{
    ChangeSprite, Changed, PublicState, Reason, SleepDepth, Sprite, WhyAwake, WhyHolder,
    lease::{self, GrantorMessage, RefusalCode},
};
use futures_util::future::BoxFuture;
use ids::{Attempt, Epoch};
use jiff::Timestamp;
use lifecycle::{
    Capabilities, Confirmation, Demand, Depth, Effect, Event, Found, Machine, Public, Refusal, Residence,
    Revocation, Settings, Timing, Transition,
};
use runtime_api::{Activity, ActivityKind, Command, ControlStream};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use self::checkpoints::Operation;
use super::{
    Begin, Message, Reply, SpriteError,
    book::Book,
    link::{Link, News},
    standing::Standing,
    transition::{self, Call, Ended, Failed},
};
use crate::{
    agent::{Agent, check_timing},
    api::chain,
    config::OnShutdown,
    drivers::Adopted,
    wakes::{Admission, Turn},
};

/// Under which name an order to wake holds the sprite until it is awake.
const WAKE_ORDER: &str = "wake-order";
/// When a sprite that the scheduler has no room for should be asked for again: about the time in which
/// a full queue of cold starts moves on.
const FULL_RETRY: Duration = Duration::from_secs(2);
/// How long a sprite that goes on after a pause keeps its turn at most while its runtime does not answer: it may be
/// stopped inside, and others must not wait for that.
const LONGEST_SETTLING: Duration = Duration::from_millis(100);

struct Task {
    agent: Arc<Agent>,
    /// Settings and published state; what is stored.
    sprite: Sprite,
    machine: Machine,
    grantor: Grantor,
    /// The driver call that was decided and not yet confirmed.
    decided: Option<(Transition, Call)>,
    /// The driver call that is out.
    call: Option<BoxFuture<'static, Ended>>,
    /// Resolves when PID 1 of this epoch is gone.
    exit: Option<BoxFuture<'static, Epoch>>,
    /// To its runtime, while it is awake or paused.
    link: Option<Link>,
    /// The record of its checkpoints, as it is stored.
    book: Book,
    /// What is being done with its checkpoints.
    operation: Option<Operation>,
    /// Our place in the host's wake queue.
    turn: Option<oneshot::Receiver<Admission>>,
    /// Until when we may keep our turn, while we have one. It paces and excludes nobody: one whose wake takes longer
    /// does not keep the others waiting.
    turn_ends: Option<Instant>,
    /// It goes on after a pause, and its runtime has yet to answer.
    settling: bool,
    wake_orders: Vec<Reply<WhyAwake>>,
    wake_attempt: Attempt,
    /// Why the last state change could not be written down, if it could not.
    unwritten: Option<String>,
    /// Destroyed for everybody else: nothing of it is published any more.
    withdrawn: bool,
    /// Nothing of it is left.
    gone: bool,
}

/// Runs until the sprite is destroyed or the agent stops.
pub(super) async fn run(
    agent: Arc<Agent>,
    sprite: Sprite,
    book: Book,
    begin: Begin,
    mut messages: mpsc::Receiver<Message>,
    standing: Arc<Standing>,
) {
    let mut task = Task::new(agent.clone(), sprite, book, begin);
    let mut stopping = false;
    task.mend_checkpoints().await;
    task.tell(Event::Tick).await;
    if !matches!(begin, Begin::Cold) || task.sprite.state != PublicState::Cold {
        // The store remembers what it was before the agent ended; say what it is.
        task.publish().await;
    }
    loop {
        // What has arrived by now counts when a decision is confirmed (T1).
        while let Ok(message) = messages.try_recv() {
            task.hear(message).await;
        }
        while let Some(news) = task.link.as_mut().and_then(Link::try_next) {
            task.hear_inside(news).await;
        }
        task.confirm().await;
        standing.set(task.machine.residence(task.demand()));
        if task.is_over(stopping) {
            break;
        }
        let wakeup = [task.machine.next_wakeup(), task.grantor.next_expiry()].into_iter().flatten().min();
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) => task.hear(message).await,
                // The handle in the agent's table outlives this task.
                None => break,
            },
            news = next_news(task.link.as_mut()) => task.hear_inside(news).await,
            ended = or_never(task.call.as_mut()) => task.ended(ended).await,
            outcome = checkpoints::worked(task.operation.as_mut()) => task.worked(outcome).await,
            epoch = or_never(task.exit.as_mut()) => {
                task.exit = None;
                task.tell(Event::Exited { epoch }).await;
            }
            turn = or_never(task.turn.as_mut()) => {
                task.turn = None;
                match turn {
                    Ok(Admission::Go) => {
                        task.turn_begins();
                        task.tell(Event::WakeAdmitted).await;
                    }
                    Ok(Admission::NoMemory) => task.tell(refused(Refusal::NoMemory)).await,
                    // It was given back.
                    Err(_) => {}
                }
            }
            () = until(task.turn_ends) => task.give_turn_back(),
            () = async { sleep_until(agent.instant(wakeup.unwrap_or_default())).await }, if wakeup.is_some() => {
                task.grantor.expire(agent.now());
                task.tell(Event::Tick).await;
            }
            () = agent.shutdown.cancelled(), if !stopping => {
                stopping = true;
                if agent.config.on_shutdown == OnShutdown::Stop {
                    task.tell(Event::Shutdown).await;
                }
            }
        }
    }
    standing.set(Residence::None);
    agent.wakes.finished(task.sprite.id);
    if task.withdrawn {
        agent.disown(task.sprite.id);
    }
}

async fn or_never<F: Future + Unpin>(future: Option<&mut F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

async fn next_news(link: Option<&mut Link>) -> News {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

impl Task {
    fn new(agent: Arc<Agent>, sprite: Sprite, book: Book, begin: Begin) -> Self {
        let now = agent.now();
        let has = agent.driver.capabilities(sprite.id);
        let settings = Settings {
            capabilities: Capabilities { pause: has.pause, suspend: has.suspend },
            timing: timing(&sprite, agent.config.suspend_after),
            drain_grace: agent.config.drain_grace,
        };
        let found = match begin {
            Begin::Cold => Found::Stopped,
            Begin::Adopted(Adopted::Running) => Found::Running,
            Begin::Adopted(Adopted::Paused) => Found::Paused,
            Begin::Adopted(Adopted::Suspended) => Found::Suspended,
        };
        let machine = Machine::new(settings, found, sprite.epoch, now, now + agent.config.holder_ttl);
        let mut task = Self {
            grantor: Grantor::new(agent.config.holder_ttl, now),
            machine,
            agent,
            sprite,
            decided: None,
            call: None,
            exit: None,
            link: None,
            book,
            operation: None,
            turn: None,
            turn_ends: None,
            settling: false,
            wake_orders: Vec::new(),
            wake_attempt: Attempt::default(),
            unwritten: None,
            withdrawn: false,
            gone: false,
        };
        match begin {
            Begin::Adopted(Adopted::Running | Adopted::Paused) => {
                task.watch_exit();
                task.link(None);
            }
            Begin::Cold if task.sprite.state != PublicState::Cold => {
                let phase = &task.sprite.phase;
                task.machine.note_loss(format!(
                    "it was {phase}, and its memory was lost when its agent or host went down"
                ));
            }
            Begin::Adopted(Adopted::Suspended) | Begin::Cold => {}
        }
        task
    }

    /// Whether there is nothing left to do.
    fn is_over(&self, stopping: bool) -> bool {
        if self.gone {
            return true;
        }
        match self.agent.config.on_shutdown {
            OnShutdown::Stop => stopping && self.call.is_none() && self.machine.is_down(),
            OnShutdown::Leave => stopping && self.call.is_none(),
        }
    }

    fn demand(&self) -> Demand {
        match self.grantor.demand() {
            LeaseDemand::Waiting => Demand::Waiting,
            LeaseDemand::Held => Demand::Held,
            LeaseDemand::IdleSince(at) => Demand::IdleSince(at),
        }
    }

    async fn hear(&mut self, message: Message) {
        let now = self.agent.now();
        match message {
            Message::Acquire { holder, attempt, request_id } => {
                self.grantor.acquire(holder, attempt, Some(request_id), now);
                self.tell(Event::Tick).await;
            }
            Message::Reassert { holder, attempt, epoch } => {
                if epoch == self.machine.epoch() {
                    self.grantor.reassert(holder, attempt, now);
                } else {
                    // It uses a life of the sprite that is over; what it gets is the present one.
                    self.grantor.acquire(holder, attempt, None, now);
                }
                self.tell(Event::Tick).await;
            }
            Message::Release { holder, attempt, idle_for } => {
                self.grantor.release(&holder, attempt, idle_for, now);
                self.tell_released().await;
            }
            Message::Report { holder, usage } => {
                let last_byte = now.saturating_before(Duration::from_millis(usage.last_byte_ms_ago));
                let usage = Usage { connections: usage.connections, requests: usage.requests, last_byte };
                self.grantor.report(&holder, usage);
            }
            Message::HolderLost { holder } => {
                self.grantor.holder_lost(&holder, now);
                self.tell_released().await;
            }
            Message::Change { change, reply } => {
                let changed = self.change(change).await;
                // Whoever asked may have left.
                let _ = reply.send(changed);
                self.tell(Event::Tick).await;
            }
            Message::Sleep { depth, reply } => {
                let depth = match depth {
                    SleepDepth::Warm => Depth::Warm,
                    SleepDepth::Suspended => Depth::Suspended,
                    SleepDepth::Cold => Depth::Cold,
                };
                self.tell(Event::Sleep(depth)).await;
                let _ = reply.send(Ok(self.why()));
            }
            Message::Squeeze => self.tell(Event::Squeeze).await,
            Message::Wake { reply } => {
                if let Ok(order) = WAKE_ORDER.parse() {
                    self.wake_attempt = self.wake_attempt.next();
                    self.wake_orders.push(reply);
                    self.grantor.acquire(order, self.wake_attempt, None, now);
                    self.tell(Event::Tick).await;
                }
            }
            Message::Why { reply } => {
                let _ = reply.send(Ok(self.why()));
            }
            Message::Checkpoints { reply } => {
                let _ = reply.send(Ok(self.checkpoints()));
            }
            Message::TakeCheckpoint { ask, reply } => {
                let _ = reply.send(self.take_checkpoint(ask.comment, ask.automatic).await);
            }
            Message::RestoreCheckpoint { checkpoint, reply } => {
                let _ = reply.send(self.restore_checkpoint(checkpoint));
            }
            Message::ForgetCheckpoint { checkpoint, reply } => {
                self.forget_checkpoint(checkpoint, reply).await;
            }
            Message::Fork { from, sprite, reply } => self.fork(from, sprite, reply).await,
            Message::Destroy { reply } => {
                let noted = self.agent.store.mark_destroying(self.sprite.id).await;
                let go = noted.is_ok();
                if go {
                    self.withdrawn = true;
                    self.end_operation();
                    self.agent.directory.remove_sprite(self.sprite.id);
                    info!(sprite = %self.sprite.id, name = %self.sprite.name, "Destroying sprite");
                }
                let _ = reply.send(noted.map_err(Into::into));
                if go {
                    self.tell(Event::Destroy).await;
                }
            }
        }
    }

    /// The runtime says what goes on inside.
    async fn hear_inside(&mut self, news: News) {
        let now = self.agent.now();
        match news {
            News::Anew => self.grantor.activities_gone(now),
            News::Begun(Activity { id, kind, name }) => {
                self.grantor.activity_begun(id, kind_name(kind), &name, now);
            }
            News::Ended(id) => self.grantor.activity_ended(id, now),
            News::Touched => self.grantor.touch(now),
            News::Answered if self.settling => self.give_turn_back(),
            // Too late. By now it may wait for another turn.
            News::Answered => {}
            News::Asked(id, question) => self.asked_inside(id, question).await,
        }
        self.tell(Event::Tick).await;
    }

    /// Listens to the runtime from now on, over `stream` if there is one already.
    fn link(&mut self, stream: Option<ControlStream>) {
        let runtime = self.agent.driver.endpoint(self.sprite.id).runtime();
        self.link = runtime.map(|runtime| Link::new(runtime, stream));
    }

    /// A lease may have ended.
    async fn tell_released(&mut self) {
        let event = if self.grantor.is_draining() { Event::Tick } else { Event::Drained };
        self.tell(event).await;
    }

    /// Feeds the machine and performs what it decides, in order, until it is content.
    async fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let effects = self.machine.handle(event, self.demand(), self.agent.now());
            for effect in effects {
                events.extend(self.perform(effect).await);
            }
        }
    }

    /// Makes the driver call that was decided, unless what has happened since takes it back.
    async fn confirm(&mut self) {
        let Some((transition, call)) = self.decided.take() else { return };
        match self.machine.confirm(transition, self.demand(), self.agent.now()) {
            Confirmation::Go => {
                if matches!(call, Call::Start(_) | Call::Stop | Call::Destroy) {
                    // The runtime there was is told to end by the driver, or is gone.
                    self.link = None;
                }
                if matches!(call, Call::Suspend) {
                    // Its first process is about to go, and that is no death.
                    self.exit = None;
                }
                let failed = match call {
                    Call::Start(_) => self.unwritten.take(),
                    Call::Pause
                    | Call::Resume(_)
                    | Call::Suspend
                    | Call::Stop
                    | Call::Checkpoint { .. }
                    | Call::Restore(_)
                    | Call::Unwanted
                    | Call::Destroy => None,
                };
                self.call = Some(match failed {
                    // An epoch that is not written down could be given out twice.
                    Some(reason) => {
                        let ended =
                            Ended { transition, call, outcome: Err(Failed::midway(reason)), control: None };
                        Box::pin(std::future::ready(ended))
                    }
                    None => Box::pin(transition::perform(
                        self.agent.clone(),
                        self.sprite.clone(),
                        transition,
                        call,
                    )),
                });
            }
            Confirmation::Abandoned(effects) => {
                let mut events = Vec::new();
                for effect in effects {
                    events.extend(self.perform(effect).await);
                }
                for event in events {
                    self.tell(event).await;
                }
            }
        }
    }

    async fn ended(&mut self, Ended { transition, call, outcome, control }: Ended) {
        self.call = None;
        match (call, outcome.is_ok()) {
            (Call::Start(_), true) => {
                self.watch_exit();
                self.link(control);
            }
            (Call::Resume(_), true) => {
                // From disk, it is another process, and nobody listens to its runtime yet.
                if control.is_some() {
                    self.watch_exit();
                    self.link(control);
                } else {
                    self.settle();
                }
            }
            (Call::Suspend, true) => self.link = None,
            (Call::Suspend, false) => self.watch_exit(),
            (Call::Stop | Call::Destroy, true) => self.exit = None,
            (Call::Start(_) | Call::Resume(_) | Call::Stop | Call::Destroy, false)
            | (Call::Pause | Call::Unwanted, _) => {}
            (Call::Checkpoint { .. } | Call::Restore(_), _) => self.made_by_the_lifecycle(&outcome).await,
        }
        self.tell(match outcome {
            Err(Failed { reason, changed_nothing: true }) => Event::DriverDeclined { transition, reason },
            Err(Failed { reason, .. }) => Event::DriverDone { transition, outcome: Err(reason) },
            Ok(()) => Event::DriverDone { transition, outcome: Ok(()) },
        })
        .await;
    }

    fn turn_begins(&mut self) {
        self.turn_ends = Some(Instant::now() + self.agent.config.longest_turn);
    }

    fn give_turn_back(&mut self) {
        self.turn = None;
        self.turn_ends = None;
        self.settling = false;
        self.agent.wakes.finished(self.sprite.id);
    }

    /// It may go on, which costs processor time that it has yet to get. Were all that are paused told to go on at once,
    /// they would make a queue at the processors, and whoever is awake would stand in it. So we keep our turn
    /// until its runtime has run.
    fn settle(&mut self) {
        self.settling =
            self.link.as_ref().is_some_and(|link| link.commands().try_send(Command::Ping).is_ok());
    }

    fn watch_exit(&mut self) {
        let (driver, id, epoch) = (self.agent.driver.clone(), self.sprite.id, self.machine.epoch());
        self.exit = Some(Box::pin(async move {
            driver.exited(id).await;
            epoch
        }));
    }

    async fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::AskWake(load) => {
                match self.agent.wakes.ask(self.sprite.id, &self.sprite.organization, load) {
                    Turn::Now => {
                        self.turn_begins();
                        return Some(Event::WakeAdmitted);
                    }
                    Turn::Later(turn) => self.turn = Some(turn),
                    Turn::Full => return Some(refused(Refusal::HostFull)),
                }
            }
            Effect::WakeDone if self.settling => {
                self.turn_ends = self.turn_ends.map(|ends| ends.min(Instant::now() + LONGEST_SETTLING));
            }
            Effect::CancelWake | Effect::WakeDone => self.give_turn_back(),
            Effect::Changed => {
                if self.machine.public() == Public::Cold {
                    self.grantor.activities_gone(self.agent.now());
                }
                self.publish().await;
            }
            Effect::Start { transition, epoch } => self.decided = Some((transition, Call::Start(epoch))),
            Effect::Pause(transition) => self.decided = Some((transition, Call::Pause)),
            Effect::Suspend(transition) => self.decided = Some((transition, Call::Suspend)),
            Effect::Resume { transition, epoch } => {
                self.decided = Some((transition, Call::Resume(epoch)));
            }
            Effect::Stop(transition) => self.decided = Some((transition, Call::Stop)),
            Effect::Checkpoint(transition) | Effect::Restore(transition) => {
                self.decided = Some((transition, self.checkpoint_call()));
            }
            Effect::Destroy(transition) => self.decided = Some((transition, Call::Destroy)),
            Effect::Grant { epoch, woken_from } => self.grant(epoch, woken_from),
            Effect::Refuse { refusal, retry_after } => self.refuse(&refusal, retry_after),
            Effect::Revoke(why) => {
                self.revoke(why);
                // With nobody to wait for, the sleep that was ordered need not wait.
                return (!self.grantor.is_draining()).then_some(Event::Drained);
            }
            Effect::Gone => {
                self.gone = true;
                if let Err(error) = self.agent.store.remove_sprite(self.sprite.id).await {
                    // It is marked as destroying; the next agent finishes.
                    warn!(sprite = %self.sprite.id, error = chain(&error), "Could not forget a destroyed sprite");
                }
                info!(sprite = %self.sprite.id, name = %self.sprite.name, "Sprite destroyed");
            }
        }
        None
    }

    fn grant(&mut self, epoch: Epoch, woken_from: Public) {
        let sprite = self.sprite.id;
        for (holder, attempt) in self.grantor.granted(epoch) {
            if holder.as_str() == WAKE_ORDER {
                self.grantor.release(&holder, attempt, Duration::ZERO, self.agent.now());
                continue;
            }
            let endpoint = self.agent.driver.endpoint(sprite);
            let woken_from = public(woken_from);
            let granted = GrantorMessage::Granted { sprite, attempt, epoch, endpoint, woken_from };
            self.agent.holders.send(&holder, granted);
        }
        let why = self.why();
        for reply in self.wake_orders.drain(..) {
            let _ = reply.send(Ok(why.clone()));
        }
    }

    fn refuse(&mut self, refusal: &Refusal, retry_after: Option<Duration>) {
        let (code, message) = refusal_text(refusal);
        self.agent.metrics.refusals.with_label_values(&[code_label(code)]).inc();
        let retry_after_ms = retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let refusal = lease::Refusal { code, message, retry_after_ms };
        let sprite = self.sprite.id;
        for (holder, attempt) in self.grantor.refused() {
            if holder.as_str() != WAKE_ORDER {
                let refused = GrantorMessage::Refused { sprite, attempt, refusal: refusal.clone() };
                self.agent.holders.send(&holder, refused);
            }
        }
        for reply in self.wake_orders.drain(..) {
            let _ = reply.send(Err(SpriteError::Refused(refusal.clone())));
        }
    }

    fn revoke(&mut self, why: Revocation) {
        let (sprite, epoch) = (self.sprite.id, self.machine.epoch());
        let reason = match why {
            Revocation::Sleep => "the sprite was told to sleep",
            Revocation::Exited => "the sprite's first process ended",
            Revocation::Restore => "the sprite is being restored",
            Revocation::Destroy => "the sprite is being destroyed",
            Revocation::Shutdown => "the sprite's host is shutting down",
        };
        for holder in self.grantor.revoke() {
            let revoked = GrantorMessage::Revoked { sprite, epoch, reason: reason.to_owned() };
            self.agent.holders.send(&holder, revoked);
        }
    }

    /// Writes the present state down, then shows it. A new epoch is on disk before it is used.
    async fn publish(&mut self) {
        let (state, epoch) = (public(self.machine.public()), self.machine.epoch());
        let now = Timestamp::now();
        if state != self.sprite.state {
            match state {
                PublicState::Running => self.sprite.last_running_at = Some(now),
                PublicState::Warm => self.sprite.last_warming_at = Some(now),
                PublicState::Cold => {}
            }
        }
        let new_epoch = epoch != self.sprite.epoch;
        let is_written = !new_epoch && state == self.sprite.state && self.unwritten.is_none();
        self.sprite.state = state;
        self.sprite.epoch = epoch;
        self.sprite.phase = self.machine.phase().to_owned();
        if self.withdrawn {
            return;
        }
        let saved = if new_epoch {
            self.agent.store.save_sprite(self.sprite.clone()).await
        } else if is_written {
            // What has changed (its phase) is nobody's any more when the agent has ended.
            Ok(())
        } else {
            self.agent.store.save_sprite_soon(self.sprite.clone()).await
        };
        self.unwritten = saved.err().map(|error| {
            warn!(sprite = %self.sprite.id, error = chain(&error), "Could not write down a sprite's state");
            format!("the agent could not write down its state: {error}")
        });
        self.agent.directory.put_sprite(&self.sprite);
    }

    async fn change(&mut self, change: ChangeSprite) -> Result<Changed<Sprite>, SpriteError> {
        let mut sprite = self.sprite.clone();
        let ChangeSprite { url_settings, labels, idle_timeout_ms, cold_after_ms } = change;
        sprite.url_settings = url_settings.unwrap_or(sprite.url_settings);
        sprite.labels = labels.unwrap_or(sprite.labels);
        sprite.timing.idle_timeout_ms = idle_timeout_ms.unwrap_or(sprite.timing.idle_timeout_ms);
        sprite.timing.cold_after_ms = cold_after_ms.unwrap_or(sprite.timing.cold_after_ms);
        sprite.updated_at = Timestamp::now();
        check_timing(sprite.timing)?;
        if self.withdrawn {
            return Err(SpriteError::Gone);
        }
        self.agent.store.save_sprite(sprite.clone()).await?;
        self.machine.set_timing(timing(&sprite, self.agent.config.suspend_after));
        self.sprite = sprite;
        let revision = self.agent.directory.put_sprite(&self.sprite);
        Ok(Changed { revision, now: self.sprite.clone() })
    }

    fn why(&self) -> WhyAwake {
        let now = self.agent.now();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let holders = self.grantor.why().into_iter().map(|why| {
            let held_for_ms = millis(now - why.since);
            match why.who {
                Who::Holder { holder, usage, request_id, .. } => WhyHolder {
                    holder: holder.to_string(),
                    activity: "connections".into(),
                    held_for_ms,
                    connections: usage.map_or(0, |usage| usage.connections),
                    requests: usage.map_or(0, |usage| usage.requests),
                    last_byte_ms_ago: usage.map(|usage| millis(now - usage.last_byte)),
                    request_id,
                    name: None,
                },
                Who::Activity { kind, name } => inside(kind, name, held_for_ms),
                Who::Unlisted(count) => inside("more", format!("{count} more"), held_for_ms),
            }
        });
        let state = public(self.machine.public());
        let sinks = !matches!(self.demand(), Demand::Waiting | Demand::Held);
        let sinks_to = match state {
            PublicState::Running if self.agent.driver.capabilities(self.sprite.id).pause => {
                Some(PublicState::Warm)
            }
            PublicState::Running | PublicState::Warm => Some(PublicState::Cold),
            PublicState::Cold => None,
        };
        WhyAwake {
            state,
            phase: self.machine.phase().to_owned(),
            epoch: self.machine.epoch(),
            holders: holders.collect(),
            sleeps_in_ms: self.machine.next_wakeup().filter(|_| sinks).map(|at| millis(at - now)),
            sinks_to: sinks_to.filter(|_| sinks),
            trouble: self.machine.trouble().map(|trouble| Reason {
                message: trouble.reason.clone(),
                retry_in_ms: trouble.retry_at.map(|at| millis(at - now)),
            }),
        }
    }
}

const fn refused(refusal: Refusal) -> Event {
    Event::WakeRefused { refusal, retry_after: FULL_RETRY }
}

fn inside(activity: &str, name: String, held_for_ms: u64) -> WhyHolder {
    WhyHolder {
        holder: "runtime".into(),
        activity: activity.into(),
        held_for_ms,
        connections: 0,
        requests: 0,
        last_byte_ms_ago: None,
        request_id: None,
        name: Some(name),
    }
}

const fn kind_name(kind: ActivityKind) -> &'static str {
    match kind {
        ActivityKind::Exec => "exec",
        ActivityKind::Session => "session",
        ActivityKind::Task => "task",
    }
}

fn timing(sprite: &Sprite, suspend_after: Duration) -> Timing {
    Timing {
        idle_timeout: Duration::from_millis(sprite.timing.idle_timeout_ms),
        suspend_after,
        cold_after: Duration::from_millis(sprite.timing.cold_after_ms),
    }
}

const fn public(state: Public) -> PublicState {
    match state {
        Public::Running => PublicState::Running,
        Public::Warm => PublicState::Warm,
        Public::Cold => PublicState::Cold,
    }
}

fn refusal_text(refusal: &Refusal) -> (RefusalCode, String) {
    match refusal {
        Refusal::HostFull => (
            RefusalCode::HostFull,
            "too many sprites of this host are waking; try again when some are up".into(),
        ),
        Refusal::NoMemory => (
            RefusalCode::HostFull,
            "the memory of this host is full of sprites that are in use; try again when some of them sleep"
                .into(),
        ),
        Refusal::Failed(reason) => {
            (RefusalCode::StartFailed, format!("the sprite could not be woken: {reason}"))
        }
        Refusal::Destroying => (RefusalCode::Destroying, "the sprite is being destroyed".into()),
        Refusal::ShuttingDown => {
            (RefusalCode::ShuttingDown, "the sprite's host is shutting down; try again soon".into())
        }
    }
}

const fn code_label(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::NotFound => "not_found",
        RefusalCode::Destroying => "destroying",
        RefusalCode::StartFailed => "start_failed",
        RefusalCode::HostFull => "host_full",
        RefusalCode::ShuttingDown => "shutting_down",
    }
}
