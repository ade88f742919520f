//! QEMU's monitor: one command and its answer at a time, over a Unix socket.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

/// How long QEMU may take to answer. It answers in less than a millisecond, on a machine that is not overloaded.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to move a state. Devices only, so that is little; on a slow disk it may wait.
const MIGRATION_LIMIT: Duration = Duration::from_secs(60);
/// The pause between two questions about it.
const MIGRATION_PAUSE: Duration = Duration::from_millis(1);
/// The longest line that is believed, in bytes: of a disk with many layers much is said.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Why a command did not do.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The monitor broke: QEMU is gone, or going.
    #[error("the monitor of QEMU broke")]
    Broken(#[from] io::Error),
    /// QEMU said no.
    #[error("QEMU could not {command}: {message}")]
    Refused {
        /// What it was told.
        command: String,
        /// What it said.
        message: String,
    },
    /// QEMU did not answer.
    #[error("QEMU did not {0} within {1:?}")]
    Late(String, Duration),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// The monitor of one machine. QEMU listens to one at a time.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    /// What came and was not used up.
    buffer: Vec<u8>,
}

impl Qmp {
    /// Connects and waits for the greeting.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn connect(socket: &Path) -> Result<Self, QmpError> {
        let late = |_| QmpError::Late("let itself be reached".into(), ANSWER_LIMIT);
        let connected = timeout(ANSWER_LIMIT, UnixStream::connect(socket)).await.map_err(late)??;
        Self::over(connected).await
    }

    /// Waits for the greeting of a QEMU at the other end.
    pub(super) async fn over(stream: UnixStream) -> Result<Self, QmpError> {
        let greeted = async {
            let mut monitor = Self { stream, buffer: Vec::new() };
            monitor.line().await?;
            Ok::<_, io::Error>(monitor)
        };
        let late = |_| QmpError::Late("greet".into(), ANSWER_LIMIT);
        let mut monitor = timeout(ANSWER_LIMIT, greeted).await.map_err(late)??;
        monitor.command("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// Gives a command and returns its answer.
    ///
    /// # Cancel safety
    /// Not cancel safe: the answer would be taken for the next one's. Connect anew.
    pub(super) async fn command(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.exchange(command, arguments, None).await
    }

    /// The same, with a descriptor for QEMU.
    pub(super) async fn command_with(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.exchange(command, arguments, Some(descriptor)).await
    }

    async fn exchange(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let exchanged = async {
            let mut line = json!({"execute": command, "arguments": arguments}).to_string();
            line.push('\n');
            self.send(line.as_bytes(), descriptor).await?;
            loop {
                match self.line().await? {
                    Line { error: Some(Refusal { desc }), .. } => {
                        return Err(QmpError::Refused { command: command.to_owned(), message: desc });
                    }
                    Line { value: Some(value), .. } => return Ok(value),
                    // An event; whoever waits for one asks again.
                    Line { .. } => {}
                }
            }
        };
        let late = |_| QmpError::Late(command.to_owned(), ANSWER_LIMIT);
        timeout(ANSWER_LIMIT, exchanged).await.map_err(late)?
    }

    /// Has the state written to, or read from, `state`, without the RAM, which is a file of its own.
    pub(super) async fn migrate(
        &mut self,
        direction: Direction,
        state: BorrowedFd<'_>,
    ) -> Result<(), QmpError> {
        self.command_with("getfd", json!({"fdname": "state"}), state).await?;
        self.command(direction.command(), json!({"uri": "fd:state"})).await?;
        let ended = timeout(MIGRATION_LIMIT, self.migration_end());
        let late = |_| QmpError::Late(direction.command().to_owned(), MIGRATION_LIMIT);
        if ended.await.map_err(late)?? {
            return Ok(());
        }
        let told = self.command("query-migrate", json!({})).await?;
        let message = told.get("error-desc").and_then(Value::as_str).unwrap_or("it did not say why");
        Err(QmpError::Refused { command: direction.command().to_owned(), message: message.to_owned() })
    }

    /// Waits for the end of a migration and says whether it was a good one. Its event says when to ask; it is also
    /// asked every now and then, for the event may come before the answer to a question, which is then the older news.
    async fn migration_end(&mut self) -> Result<bool, QmpError> {
        loop {
            let told = self.command("query-migrate", json!({})).await?;
            match told.get("status").and_then(Value::as_str) {
                Some("completed") => return Ok(true),
                Some("failed" | "cancelled") => return Ok(false),
                _ => {
                    if let Ok(told) = timeout(MIGRATION_PAUSE, self.wait_for("MIGRATION")).await {
                        told?;
                    }
                }
            }
        }
    }

    /// Waits for an event. Cancel safe.
    async fn wait_for(&mut self, name: &str) -> Result<(), QmpError> {
        loop {
            let line = self.line().await?;
            if line.event.as_deref() == Some(name) {
                tracing::trace!(name, data = ?line.data, "QEMU told an event");
                return Ok(());
            }
        }
    }

    /// What the machine does: `running`, `paused`, `inmigrate` and so on.
    pub(super) async fn status(&mut self) -> Result<String, QmpError> {
        let told = self.command("query-status", json!({})).await?;
        Ok(told.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Whether a machine that waits for a state has been told to read one.
    pub(super) async fn is_loading(&mut self) -> Result<bool, QmpError> {
        let told = self.command("query-migrate", json!({})).await?;
        Ok(told.get("status").is_some_and(|status| status != "none"))
    }

    async fn send(&mut self, line: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(descriptor) = descriptor else { return self.stream.write_all(line).await };
        let stream = &self.stream;
        let descriptors = [descriptor.as_raw_fd()];
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let slices = [io::IoSlice::new(line)];
                let rights = [ControlMessage::ScmRights(&descriptors)];
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                Ok(sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, flags, None)?)
            })
            .await?;
        self.stream.write_all(&line[sent..]).await
    }

    async fn line(&mut self) -> io::Result<Line> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(io::Error::other);
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Which way a state goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// Out of the machine.
    Save,
    /// Into it.
    Load,
}

impl Direction {
    const fn command(self) -> &'static str {
        match self {
            Self::Save => "migrate",
            Self::Load => "migrate-incoming",
        }
    }
}
