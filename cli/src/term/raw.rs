//! Raw mode, which is left whatever happens: at the end of the guard's scope, in a panic, before an exit.

use std::{
    io::{IsTerminal, Write},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How the terminal was. There is one terminal, so one place remembers it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// What a program in a terminal may have turned on and not off again when its connection ends: the
/// alternate screen, a hidden cursor, mouse reports, bracketed paste, application keys, colours.
const UNDO: &[u8] =
    b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[0m";

/// While it lives, stdin's terminal hands over every key as it is.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Enters raw mode; `None` if stdin is no terminal.
    pub(crate) fn enter() -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let now = tcgetattr(stdin.as_fd())?;
        let mut raw = now.clone();
        raw.make_raw();
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        before.get_or_insert(now);
        tcsetattr(stdin.as_fd(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self(())))
    }

    /// Enters it once more, after a stop and a `fg` in which the shell took the terminal back.
    pub(crate) fn again(&self) {
        let stdin = std::io::stdin();
        if let Ok(mut now) = tcgetattr(stdin.as_fd()) {
            now.make_raw();
            // The terminal may be gone; then there is nothing to set.
            let _ = tcsetattr(stdin.as_fd(), OptionalActions::Drain, &now);
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was before [`Raw::enter`], if it was changed.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // The terminal may be gone; then there is nothing to put back.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Drain, &before);
    }
}

/// Undoes what a remote program turned on, for when it can't do so itself any more.
pub(crate) fn undo_modes() {
    let mut stdout = std::io::stdout().lock();
    if stdout.is_terminal() {
        // As in `restore`.
        let _ = stdout.write_all(UNDO).and_then(|()| stdout.flush());
    }
}

/// A panic's message belongs on a terminal that shows it properly.
pub(crate) fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// Columns and rows of the terminal; `None` if there is none, or one that does not know.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// While it lives, what is typed is not shown.
#[derive(Debug)]
pub(crate) struct Hidden(());

impl Hidden {
    /// Stops the echo of stdin's terminal.
    pub(crate) fn enter() -> std::io::Result<Self> {
        let stdin = std::io::stdin();
        let now = tcgetattr(&stdin)?;
        let mut hidden = now.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        tcsetattr(&stdin, OptionalActions::Drain, &hidden)?;
        Ok(Self(()))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        restore();
    }
}
