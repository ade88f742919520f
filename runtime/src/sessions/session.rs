//! One session: a process, what it has written, and who is attached.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use frames::{SessionEntry, SessionInfo, Signal, Stream};
use ids::Moment;
use jiff::Timestamp;
use runtime_api::{ActivityKind, SessionActivity};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    Sessions,
    gather::Gather,
    machine::{Effect, Event, Machine, Presence},
    output::{Chunk, Found, Output, Patience, ReaderId, Room, TERMINAL},
    rate::Rate,
    stdin::{Stdin, StdinQueue},
};
use crate::{
    activities::Guard,
    exec::{self, Command, Feed, Size, Spawned, Tap, Terminal},
};

/// What is read of a command's output at once, in bytes; also the largest payload that is sent.
pub(crate) const MAX_READ_BYTES: usize = 64 << 10;
/// The smallest buffer that output is read into.
const MIN_READ_BYTES: usize = 4 << 10;
/// How long output is still read when the command has ended and something that it left behind holds its pipes.
const DRAIN: Duration = Duration::from_millis(300);
/// Between two looks whether a slow client has read what the command had written before it ended.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// A session that wrote within this time is called active.
const ACTIVE: Duration = Duration::from_secs(5);

/// How long clients of one session wait for another that reads nothing: longer than a bad network needs to
/// repeat itself.
const AMONG_OTHERS: Duration = Duration::from_secs(5);
/// The process waits for its one client as long as that is there, for it was started for that client.
const OF_COMMAND: Patience = Patience { alone: None, among_others: AMONG_OTHERS };
/// A session is there for itself: a client whose machine fell asleep must not hold it up for ever.
const OF_SESSION: Patience = Patience { alone: Some(Duration::from_secs(30)), among_others: AMONG_OTHERS };

/// What a session is, once and for all.
#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    command: String,
    directory: String,
    created: Timestamp,
    terminal: Option<Arc<Terminal>>,
    has_terminal: bool,
    pid: i32,
    stdin: Option<Stdin>,
    sessions: Sessions,
    life: Mutex<Life>,
    /// The machine may want to be woken at another time.
    life_changed: Notify,
    output: Mutex<Output>,
    /// Output was written, or has ended.
    more: Notify,
    /// Output was read, or a reader has left.
    less: Notify,
    /// How its process ended.
    exit: watch::Sender<Option<u8>>,
}

#[derive(Debug)]
struct Life {
    machine: Machine,
    presence: Presence,
    guard: Option<Guard>,
    size: Size,
    rate: Rate,
    last_activity: Option<Timestamp>,
    last_output: Option<Moment>,
}

/// What runs a session.
pub(super) struct Work {
    pub(super) spawned: Spawned,
    pub(super) queue: StdinQueue,
}

impl Session {
    /// The session of a process. `limit` is how long it may be without a client.
    pub(super) fn new(
        sessions: &Sessions,
        number: u64,
        command: &Command,
        spawned: &Spawned,
        stdin: Option<Stdin>,
        limit: Option<Duration>,
    ) -> Self {
        let patience = if limit.is_none() { OF_SESSION } else { OF_COMMAND };
        let line = command.line();
        let guard = sessions.activities().begin(ActivityKind::Exec, &line);
        let mut session = Self::bare(sessions, number, command, patience);
        session.terminal.clone_from(&spawned.terminal);
        session.pid = spawned.pid;
        session.stdin = stdin;
        let life = session.life.get_mut().unwrap_or_else(PoisonError::into_inner);
        life.machine = Machine::new(limit, sessions.now());
        life.guard = Some(guard);
        session
    }

    /// The session of a process that could not be started: it says why, and has ended.
    pub(super) fn stillborn(
        sessions: &Sessions,
        number: u64,
        command: &Command,
        unfit: &exec::Unfit,
    ) -> Self {
        let session = Self::bare(sessions, number, command, OF_COMMAND);
        let (stream, end) =
            if command.terminal.is_some() { (TERMINAL, "\r\n") } else { (Stream::Stderr, "\n") };
        let mut frame = vec![stream.byte()];
        frame.extend_from_slice(unfit.message.as_bytes());
        frame.extend_from_slice(end.as_bytes());
        {
            let mut output = session.output();
            output.push(Chunk::new(frame.into()));
            output.end();
        }
        {
            let mut life = session.life();
            for event in [Event::Drained, Event::Exited { code: unfit.code }] {
                // There is no process to do anything to.
                let _finish = life.machine.handle(event, sessions.now());
            }
            life.presence = life.machine.presence();
        }
        session.exit.send_replace(Some(unfit.code));
        session
    }

    fn bare(sessions: &Sessions, number: u64, command: &Command, patience: Patience) -> Self {
        let now = sessions.now();
        Self {
            number,
            command: command.line(),
            directory: command.directory.to_string_lossy().trim_end_matches('/').to_owned(),
            created: Timestamp::now(),
            terminal: None,
            has_terminal: command.terminal.is_some(),
            pid: 0,
            stdin: None,
            sessions: sessions.clone(),
            life: Mutex::new(Life {
                machine: Machine::new(None, now),
                presence: Presence::Attended,
                guard: None,
                size: command.terminal.unwrap_or(Size { rows: 0, cols: 0 }),
                rate: Rate::default(),
                last_activity: None,
                last_output: None,
            }),
            life_changed: Notify::new(),
            output: Mutex::new(Output::new(sessions.scrollback(), patience)),
            more: Notify::new(),
            less: Notify::new(),
            exit: watch::Sender::new(None),
        }
    }

    /// Its number of this boot.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// As clients name it.
    pub(crate) fn id(&self) -> String {
        self.number.to_string()
    }

    /// Whether it has a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// The process that leads it.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The first thing that a client is told.
    pub(crate) fn info(&self, is_owner: bool) -> SessionInfo {
        let size = self.life().size;
        SessionInfo {
            session_id: self.id(),
            command: self.command.clone(),
            created: self.created.as_second(),
            cols: size.cols,
            rows: size.rows,
            is_owner,
            tty: self.has_terminal,
        }
    }

    /// As it is listed.
    pub(crate) fn entry(&self) -> SessionEntry {
        let now = self.sessions.now();
        let life = self.life();
        let wrote = life.last_output.is_some_and(|last| now - last < ACTIVE);
        SessionEntry {
            id: self.id(),
            command: self.command.clone(),
            workdir: self.directory.clone(),
            created: self.created.to_string(),
            bytes_per_second: life.rate.at(now),
            is_active: wrote || life.presence == Presence::Attended,
            last_activity: life.last_activity.map(|at| at.to_string()),
            tty: self.has_terminal,
        }
    }

    /// The code that its process ended with, if it has. Output may still be unread.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        *self.exit.borrow()
    }

    /// Resolves with that code. Cancel safe.
    pub(crate) async fn exited(&self) -> u8 {
        let mut exit = self.exit.subscribe();
        // Its sender lives as long as we do.
        let code = exit.wait_for(Option::is_some).await;
        code.ok().and_then(|code| *code).unwrap_or_default()
    }

    /// Types something.
    pub(crate) async fn write(&self, bytes: Bytes) {
        let Some(stdin) = &self.stdin else { return };
        self.life().last_activity = Some(Timestamp::now());
        self.sessions.activities().touch();
        stdin.write(bytes).await;
    }

    /// Ends the input. A terminal's does not end.
    pub(crate) async fn end_input(&self) {
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.has_terminal) {
            stdin.end().await;
        }
    }

    /// Gives the terminal another size. Zero is none, and keeps what was.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        let Some(terminal) = self.terminal.as_ref().filter(|_| rows > 0 && cols > 0) else { return };
        let size = Size { rows, cols };
        // The program may have ended.
        if terminal.resize(size).is_ok() {
            self.life().size = size;
        }
    }

    /// Sends a signal as a key of a terminal would: to what runs in the foreground.
    pub(crate) fn signal(&self, signal: Signal) {
        let group = self.terminal.as_ref().and_then(|terminal| terminal.foreground());
        if self.life().machine.is_running() {
            exec::signal_group(group.unwrap_or(self.pid), signal);
        }
    }

    /// Wants it to end: this signal now, and a KILL after `grace`.
    pub(crate) fn ask_to_end(&self, signal: Signal, grace: Option<Duration>) {
        self.feed(Event::Asked { signal, grace });
    }

    /// What the host is told may have to change.
    pub(super) fn reconsider(&self) {
        let mut life = self.life();
        self.show_presence(&mut life, true);
    }

    /// A new client.
    pub(crate) fn attach(self: &Arc<Self>) -> Attachment {
        let reader = self.output().attach();
        self.feed(Event::Attached);
        Attachment { session: Arc::clone(self), reader }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the machine an event, does what it says as far as that can be done here, and returns it.
    fn feed(&self, event: Event) -> Option<Effect> {
        let effect = {
            let mut life = self.life();
            let effect = life.machine.handle(event, self.sessions.now());
            self.show_presence(&mut life, false);
            effect
        };
        match effect {
            Some(Effect::Signal(signal)) => {
                exec::signal_group(self.pid, signal);
                // A job in the foreground of a shell is a group of its own.
                let job = self.terminal.as_ref().and_then(|terminal| terminal.foreground());
                if let Some(group) = job.filter(|group| *group != self.pid) {
                    exec::signal_group(group, signal);
                }
                // One that is stopped could not obey.
                if signal == Signal::TERM {
                    exec::signal_group(self.pid, Signal::CONT);
                }
            }
            Some(Effect::Kill) => exec::kill_session(self.pid),
            // Done by the task that runs the session, and only told to it.
            Some(Effect::Drain | Effect::Finish { .. }) | None => {}
        }
        self.life_changed.notify_one();
        effect
    }

    /// Lets the host know what this session is for the sprite's sleep. What comes begins before what was
    /// ends, so that there is no gap to fall asleep in.
    fn show_presence(&self, life: &mut Life, anew: bool) {
        let presence = life.machine.presence();
        if presence == life.presence && !anew {
            return;
        }
        life.presence = presence;
        let kind = match (presence, self.sessions.session_activity()) {
            (Presence::Attended, _) => Some(ActivityKind::Exec),
            (Presence::Unattended, SessionActivity::Running) => Some(ActivityKind::Session),
            (Presence::Unattended, SessionActivity::Output) | (Presence::Over, _) => None,
        };
        let next = kind.map(|kind| self.sessions.activities().begin(kind, &self.command));
        drop(std::mem::replace(&mut life.guard, next));
    }

    /// Runs it to its end.
    pub(super) async fn run(self: Arc<Self>, work: Work) {
        let Work { spawned, queue } = work;
        let Spawned { mut ended, taps, feed, .. } = spawned;
        let read: Vec<AtomicU64> = taps.iter().map(|_| AtomicU64::new(0)).collect();
        let code = self.supervise(&mut ended, &taps, &read, queue, feed).await;
        self.sessions.forget(&self, code);
        self.output().end();
        self.more.notify_waiters();
        self.less.notify_waiters();
        let pipes = taps.into_iter().filter(|tap| matches!(tap, Tap::Pipe(_))).collect();
        let sessions = self.sessions.clone();
        drop(self);
        sessions.linger(pipes).await;
    }

    /// Does all that a session needs until its machine says that it is over, with a code.
    async fn supervise(
        &self,
        ended: &mut tokio::sync::oneshot::Receiver<std::process::ExitStatus>,
        taps: &[Tap],
        read: &[AtomicU64],
        queue: StdinQueue,
        feed: Option<Feed>,
    ) -> u8 {
        let streams: &[Stream] =
            if self.has_terminal { &[TERMINAL] } else { &[Stream::Stdout, Stream::Stderr] };
        let pumps =
            taps.iter().zip(streams).zip(read).map(|((tap, stream), read)| self.pump(tap, *stream, read));
        let pumping = futures_util::future::join_all(pumps);
        let carrying = queue.carry(feed);
        tokio::pin!(pumping, carrying);
        let (mut pumped, mut carried, mut exited) = (false, false, false);
        loop {
            let tick = self.life().machine.wants_tick_at();
            let effect = tokio::select! {
                _all = &mut pumping, if !pumped => {
                    pumped = true;
                    self.feed(Event::Drained)
                }
                () = &mut carrying, if !carried => {
                    carried = true;
                    None
                }
                status = &mut *ended, if !exited => {
                    exited = true;
                    // The reaper lives as long as the sprite.
                    let code = exit_code(status.unwrap_or_default());
                    self.exit.send_replace(Some(code));
                    self.feed(Event::Exited { code })
                }
                () = self.sessions.sleep_until(tick) => self.feed(Event::Tick),
                () = self.life_changed.notified() => None,
            };
            match effect {
                Some(Effect::Finish { code }) => return code,
                Some(Effect::Drain) => {
                    self.drain(&mut pumping, taps, read).await;
                    pumped = true;
                    if let Some(Effect::Finish { code }) = self.feed(Event::Drained) {
                        return code;
                    }
                }
                Some(Effect::Signal(_) | Effect::Kill) | None => {}
            }
        }
    }

    /// Lets the pumps go on after the command's end: until its pipes are closed, or what it had written itself
    /// has been read and what it left behind has had its time.
    async fn drain(&self, pumping: &mut (impl Future + Unpin), taps: &[Tap], read: &[AtomicU64]) {
        let goals: Vec<u64> = taps
            .iter()
            .zip(read)
            .map(|(tap, read)| read.load(Ordering::Relaxed) + tap.waiting() as u64)
            .collect();
        if timeout_at(Instant::now() + DRAIN, &mut *pumping).await.is_ok() {
            return;
        }
        while goals.iter().zip(read).any(|(goal, read)| read.load(Ordering::Relaxed) < *goal) {
            tokio::select! {
                _all = &mut *pumping => return,
                () = sleep(DRAIN_PAUSE) => {}
            }
        }
    }

    /// Carries what the process writes into the buffer, at the pace of those who read it.
    async fn pump(&self, tap: &Tap, stream: Stream, read: &AtomicU64) {
        let mut size = MIN_READ_BYTES;
        let mut gather = Gather::default();
        loop {
            if tap.readable().await.is_err() {
                return;
            }
            self.room().await;
            let mut frame = Vec::with_capacity(1 + size);
            frame.push(stream.byte());
            frame.resize(1 + size, 0);
            let length = match tap.try_read(&mut frame[1..]) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            };
            frame.truncate(1 + length);
            let is_all = length < size;
            // Much output comes in large pieces, little output does not own large buffers.
            if !is_all {
                size = (size * 2).min(MAX_READ_BYTES);
            } else if length < size / 2 {
                size = (size / 2).max(MIN_READ_BYTES);
                frame.shrink_to_fit();
            }
            self.wrote(Chunk::new(frame.into()), length);
            read.fetch_add(length as u64, Ordering::Relaxed);
            if is_all {
                gather.after(length, self.sessions.now(), tap).await;
            }
        }
    }

    /// Resolves when there is room for one read.
    async fn room(&self) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            // From here on no reader's progress is missed.
            less.as_mut().enable();
            let room = self.output().room(1 + MAX_READ_BYTES, self.sessions.now());
            match room {
                Room::Now => return,
                Room::Later(until) => tokio::select! {
                    () = less => {}
                    () = self.sessions.sleep_until(until) => {}
                },
            }
        }
    }

    fn wrote(&self, chunk: Chunk, length: usize) {
        self.output().push(chunk);
        self.more.notify_waiters();
        let now = self.sessions.now();
        let unattended = {
            let mut life = self.life();
            life.rate.add(length, now);
            life.last_output = Some(now);
            life.last_activity = Some(Timestamp::now());
            life.presence == Presence::Unattended
        };
        if unattended && self.sessions.session_activity() == SessionActivity::Output {
            self.sessions.activities().touch();
        }
    }
}

/// What a client finds next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Output, and how many chunks it was: tell [`Attachment::sent`].
    Output(Chunk, u64),
    /// It has ended, and all its output came before.
    Ended(u8),
    /// This client was too slow, and has lost output.
    Lost,
}

/// A client's place in a session. It leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    session: Arc<Session>,
    reader: ReaderId,
}

impl Attachment {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// What comes next. It comes again until it has been [sent](Self::sent). Cancel safe.
    pub(crate) async fn next(&self) -> Next {
        loop {
            let more = self.session.more.notified();
            tokio::pin!(more);
            // From here on no output is missed.
            more.as_mut().enable();
            let (found, count) = self.session.output().peek_joined(self.reader, 1 + MAX_READ_BYTES);
            match found {
                Found::Chunk(chunk) => return Next::Output(chunk, count),
                Found::Lost => return Next::Lost,
                Found::End => return Next::Ended(self.session.exit_code().unwrap_or_default()),
                Found::Nothing => more.await,
            }
        }
    }

    /// The client has been sent so many chunks.
    pub(crate) fn sent(&self, count: u64) {
        self.session.output().advance(self.reader, count);
        self.session.less.notify_waiters();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.session.output().detach(self.reader);
        self.session.less.notify_waiters();
        self.session.feed(Event::Detached);
    }
}

/// As a shell would say it.
fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(0);
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// Sleeps until a moment of the sessions' clock, or for ever.
pub(super) async fn sleep_until_moment(origin: Instant, moment: Option<Moment>) {
    match moment {
        Some(moment) => sleep_until(origin + moment.since_origin()).await,
        None => std::future::pending().await,
    }
}
