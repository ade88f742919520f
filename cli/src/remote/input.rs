//! stdin, read by a thread of its own: a terminal that is made non-blocking would be so for the shell too.
//!
//! One part waits in a channel of one, so a command that doesn't read keeps us from reading.

use std::io::IsTerminal;

use bytes::Bytes;
use rustix::termios::tcgetpgrp;
use tokio::sync::mpsc;

/// As much as a WebSocket message should hold.
const PART_BYTES: usize = 32 << 10;
/// Ctrl+\, which detaches.
pub(crate) const DETACH: u8 = 0x1c;
/// Ctrl-D.
pub(crate) const END_OF_TEXT: u8 = 0x04;

/// See the module.
#[derive(Debug)]
pub(crate) struct Input {
    parts: mpsc::Receiver<Bytes>,
    pub(crate) is_terminal: bool,
    ended: bool,
}

impl Input {
    /// Starts reading. A terminal whose foreground is somebody else's is left alone: reading it would stop
    /// us (SIGTTIN).
    pub(crate) fn start(tty: bool) -> Self {
        let stdin = std::io::stdin();
        let is_terminal = stdin.is_terminal();
        let in_background =
            is_terminal && tcgetpgrp(&stdin).is_ok_and(|foreground| foreground != rustix::process::getpgrp());
        let (to, parts) = mpsc::channel(1);
        if tty || !in_background {
            // It ends with the program: nobody can wake a thread that reads a terminal.
            std::thread::spawn(move || read(&to));
        }
        Self { parts, is_terminal, ended: false }
    }

    /// The next part; `None` once, at the end, and never anything after that.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return std::future::pending().await;
        }
        let part = self.parts.recv().await;
        self.ended = part.is_none();
        part
    }
}

fn read(to: &mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PART_BYTES];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut *buffer) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if to.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                    return;
                }
            }
        }
    }
}
