//! The lines of the protocol.

use std::collections::BTreeMap;

use ids::{CheckpointId, Epoch, Port, SpriteName};
use rand::RngCore as _;
use serde::{Deserialize, Serialize};

/// The longest line that either side accepts, in bytes. A configuration with a large environment is
/// the longest line there is.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The name of the serial port over which the host reaches the runtime in a virtual machine.
pub const SERIAL_PORT_NAME: &str = "sprite.0";
/// The vsock port on which the runtime listens in a virtual machine that has vsock, and which the host asks for where
/// it reaches the machine by that convention.
pub const VSOCK_PORT: u32 = 1024;

/// The first line on every stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Connect to something in the sprite.
    Dial(DialRequest),
    /// Become the control stream.
    Control,
    /// To the runtime of a virtual machine: write everything to the disk that its programs have written.
    Sync,
    /// To the runtime of a virtual machine: it slept, or was made from another one's memory.
    Woken(Woken),
}

/// What a machine can't know after a sleep.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Woken {
    /// The host's clock, in nanoseconds since 1970. The machine's has stood still.
    pub unix_nanos: u64,
    /// 64 random hexadecimal digits for the kernel's pool: another machine may have been made from the same memory.
    pub entropy: String,
}

impl Woken {
    /// As of now, with fresh random digits.
    #[must_use]
    pub fn now() -> Self {
        // A host whose clock is before 1970 has other troubles.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut entropy = [0u8; 32];
        rand::rng().fill_bytes(&mut entropy);
        Self {
            unix_nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl std::fmt::Debug for Woken {
    /// Without the entropy, which is a secret of the machine's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Woken").field("unix_nanos", &self.unix_nanos).finish_non_exhaustive()
    }
}

/// Asks for a connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DialRequest {
    /// To what.
    pub target: Target,
    /// How long the runtime may wait until something listens there, in milliseconds.
    pub wait_ms: u64,
    /// Whether to hand the connected socket over instead of relaying it.
    pub handoff: bool,
    /// For the runtime's log: the request that wants this connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What to connect to in a sprite.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The sprite's web server: the service with an `http_port`, else port 8080, else the first
    /// HTTP port opened.
    Web,
    /// This port.
    Port(Port),
    /// The runtime's own HTTP API.
    Api,
}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done. `port` is the port that was dialled, if one was.
    Ok {
        /// The port that [`Target::Web`] turned out to be, or the port asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<Port>,
    },
    /// Not done, and why.
    Refused(DialRefusal),
}

/// Why the runtime did not connect. No byte of the caller's has reached the sprite's program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct DialRefusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what happened and what to do.
    pub message: String,
    /// The port that was tried, if one was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    /// What listens in the sprite instead.
    #[serde(default)]
    pub listening: Vec<Port>,
}

/// Kinds of [`DialRefusal`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Nothing listened on the port within the time allowed.
    NotListening,
    /// The service that owns the web port could not be started, or was stopped by hand.
    ServiceDown,
    /// The sprite is shutting down.
    ShuttingDown,
    /// The request made no sense to the runtime.
    BadRequest,
    /// The runtime is out of something (descriptors, say).
    Exhausted,
}

/// A line from the host on the control stream.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Who the sprite is. Services start when it has arrived for the first time; later ones only
    /// update what can change while running.
    Configure(Configuration),
    /// Stop services and everything else (TERM, then KILL after the grace), then exit.
    Shutdown {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// Answered by [`Event::Pong`].
    Ping,
    /// Answers an [`Event::Asked`].
    Answered {
        /// Which.
        id: u64,
        /// What the host says.
        reply: Reply,
    },
}

/// What a program in the sprite asks of the host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Question {
    /// Which checkpoints there are. Answered by an array of them.
    ListCheckpoints,
    /// Take one. Answered when it is there.
    TakeCheckpoint {
        /// What it is for.
        comment: String,
    },
    /// Restore one. Answered when it has begun, as the sprite ends with it.
    RestoreCheckpoint {
        /// Which.
        checkpoint: CheckpointId,
    },
    /// Remove one. Answered when it is gone.
    RemoveCheckpoint {
        /// Which.
        checkpoint: CheckpointId,
    },
}

/// What the host says to a [`Question`], in the terms of HTTP.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: serde_json::Value,
}

/// What a runtime must be told before it can serve.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Configuration {
    /// The sprite's name; also its host name.
    pub name: SpriteName,
    /// The sprite's public URL, for `SPRITE_URL` in the environment of its processes.
    pub url: String,
    /// The network identity that this boot serves.
    pub epoch: Epoch,
    /// Extra environment for every process of the sprite.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What a detached session counts for.
    #[serde(default)]
    pub session_activity: SessionActivity,
    /// How much clients may run at once.
    #[serde(default)]
    pub session_limits: SessionLimits,
    /// What it can't know, if its memory comes from disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub woken: Option<Woken>,
}

/// Bounds of the commands that clients run in a sprite. They count for what is started after they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionLimits {
    /// Commands at once.
    pub max: usize,
    /// How much of its output a session keeps for those who attach, in bytes; also what a client may lag
    /// behind. A runtime takes [`SessionLimits::LEAST_SCROLLBACK_BYTES`] for less.
    pub scrollback_bytes: usize,
}

impl SessionLimits {
    /// Room for two of the largest pieces in which output is read.
    pub const LEAST_SCROLLBACK_BYTES: usize = 160 << 10;
}

impl Default for SessionLimits {
    /// More commands than people start by hand, and more output than any screen shows; together at most
    /// 128 MiB.
    fn default() -> Self {
        Self { max: 512, scrollback_bytes: 256 << 10 }
    }
}

/// A line from the runtime on the control stream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line: who answers, and whether it has been configured (it has when an agent
    /// comes back to a sprite that went on living).
    Hello {
        /// The runtime's version.
        version: String,
        /// The epoch of the configuration it runs with, if any.
        configured: Option<Epoch>,
    },
    /// Configured; services that start on boot have been told to.
    Ready,
    /// A process began to listen.
    PortOpened(ListeningPort),
    /// It no longer listens.
    PortClosed(ListeningPort),
    /// Something inside began to keep the sprite awake. After each [`Event::Hello`] the runtime says this of
    /// everything that does: what the host knew before no longer counts.
    ActivityBegun(Activity),
    /// It ended.
    ActivityEnded {
        /// Which.
        id: u64,
    },
    /// The sprite was used just now by something that holds nothing, such as bytes for a command's stdin. Sent
    /// at most about once a second.
    Touched,
    /// Answer to [`Command::Ping`].
    Pong,
    /// A program in the sprite wants something of the host. A question that is still open when the control
    /// stream ends is not answered.
    Asked {
        /// Tells it from all others of this boot.
        id: u64,
        /// What.
        question: Question,
    },
}

/// Something inside a sprite that keeps it awake until it ends.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Activity {
    /// Tells it from all others of this boot.
    pub id: u64,
    /// What kind of thing it is.
    pub kind: ActivityKind,
    /// What it is called, for people: a command line, say. At most 256 bytes.
    pub name: String,
}

/// Kinds of [`Activity`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivityKind {
    /// A command with a client.
    Exec,
    /// A session that runs without a client.
    Session,
    /// A task that a program in the sprite declared.
    Task,
}

/// Whether a session that nobody is attached to keeps its sprite awake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionActivity {
    /// As long as it runs.
    #[default]
    Running,
    /// Only by what it writes: each output counts as use, silence lets the sprite sleep.
    Output,
}

/// A listening TCP socket in the sprite.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ListeningPort {
    /// The port.
    pub port: Port,
    /// The address it is bound to, such as `0.0.0.0` or `::1`.
    pub address: String,
    /// A process that has the socket open, if one was found.
    pub pid: Option<u32>,
}
