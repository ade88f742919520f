//! Signals that we get, for the command to get.

use frames::Signal;
use tokio::signal::unix::{self, SignalKind};

/// What happened to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Somebody sent a signal that is the command's business.
    Signal(Signal),
    /// The terminal has another size.
    Resized,
    /// We were stopped and go on.
    Continued,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    quit: unix::Signal,
    user1: unix::Signal,
    user2: unix::Signal,
    resized: unix::Signal,
    continued: unix::Signal,
}

/// `SIGCONT`; tokio has no name for it.
const CONTINUE: i32 = 18;

pub(crate) const HUP: i32 = 1;
pub(crate) const INT: i32 = 2;
pub(crate) const QUIT: i32 = 3;
pub(crate) const TERM: i32 = 15;
const USR1: i32 = 10;
const USR2: i32 = 12;

impl Signals {
    /// From now on these signals do not end us.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
            quit: unix::signal(SignalKind::quit())?,
            user1: unix::signal(SignalKind::user_defined1())?,
            user2: unix::signal(SignalKind::user_defined2())?,
            resized: unix::signal(SignalKind::window_change())?,
            continued: unix::signal(SignalKind::from_raw(CONTINUE))?,
        })
    }

    /// The next event.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub(crate) async fn next(&mut self) -> Event {
        let number = tokio::select! {
            _ = self.interrupt.recv() => INT,
            _ = self.terminate.recv() => TERM,
            _ = self.hangup.recv() => HUP,
            _ = self.quit.recv() => QUIT,
            _ = self.user1.recv() => USR1,
            _ = self.user2.recv() => USR2,
            _ = self.resized.recv() => return Event::Resized,
            _ = self.continued.recv() => return Event::Continued,
        };
        // All of them are signals.
        Signal::from_number(number.into()).map_or(Event::Signal(Signal::TERM), Event::Signal)
    }
}
