//! The agent's configuration file, checked as a whole before anything starts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use lifecycle::WakeLimits;
use runtime_api::{SessionActivity, SessionLimits};
use serde::Deserialize;

use crate::{
    drivers::{
        command::Settings as CommandSettings, firecracker, process::Settings as ProcessSettings, qemu,
    },
    memory,
};

/// The largest scrollback that can be asked for: beyond it, a few sessions would be a sprite's memory.
const MOST_SCROLLBACK_BYTES: usize = 64 << 20;
/// Sprites' own documented idle window.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A paused sprite costs only its memory; ten minutes cover a coffee break, not a night.
const DEFAULT_COLD_AFTER: Duration = Duration::from_secs(600);
/// One whose memory goes to disk costs next to nothing, so it is kept for as long as people remember what they did.
const DEFAULT_COLD_AFTER_ON_DISK: Duration = Duration::from_secs(30 * 24 * 3600);
/// To wake from RAM is ten times faster than from disk, and most visitors who come back do so within minutes.
const DEFAULT_SUSPEND_AFTER: Duration = Duration::from_secs(300);
/// Long enough for a gateway to reconnect after a hiccup, short enough that a dead one costs little.
const DEFAULT_HOLDER_TTL: Duration = Duration::from_secs(10);
/// Time between TERM and KILL at a stop; what most supervisors use is 10 s, but nothing sleeps
/// under a lease, so nobody is being served.
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(5);
/// Wakes are bound by the CPU; more at once only makes each slower, and sprites that are awake with them.
const WAKES_PER_CPU: usize = 1;
/// Much longer than a boot on a processor of its own, and much shorter than anybody's patience.
const DEFAULT_LONGEST_TURN: Duration = Duration::from_secs(5);
/// A wake storm beyond this is told to come back instead of waiting past everybody's patience.
const DEFAULT_MAX_QUEUED_WAKES: usize = 10_000;
/// One organization may fill half of the queue, so that another always finds room.
const ORGANIZATION_SHARE: usize = 2;
/// How long requests in flight may take to end when a sprite is told to sleep.
const DEFAULT_DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Why a configuration can't be used; printed to the operator as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("could not read {path}: {source}; write one after config/agent.example.toml")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {key} {reason}")]
    Value { path: PathBuf, key: &'static str, reason: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    state_dir: PathBuf,
    #[serde(default)]
    driver: DriverKind,
    #[serde(default = "default_url_template")]
    url_template: String,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    lifecycle: RawLifecycle,
    #[serde(default)]
    sessions: RawSessions,
    #[serde(default)]
    leases: RawLeases,
    #[serde(default)]
    wakes: RawWakes,
    #[serde(default)]
    memory: memory::Settings,
    #[serde(default)]
    checkpoints: Checkpoints,
    #[serde(default)]
    process: ProcessSettings,
    #[serde(default)]
    qemu: qemu::Settings,
    #[serde(default)]
    firecracker: firecracker::Settings,
    #[serde(default)]
    command: Vec<CommandSettings>,
}

/// How the sprites that are made over the API are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DriverKind {
    /// Linux namespaces.
    #[default]
    Process,
    /// Virtual machines.
    Qemu,
    /// Virtual machines of Firecracker.
    Firecracker,
}

impl DriverKind {
    /// Whether it can put a sprite's memory on disk.
    const fn suspends(self) -> bool {
        match self {
            Self::Process => false,
            Self::Qemu | Self::Firecracker => true,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    format: String,
    filter: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: "text".into(), filter: "info".into() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLifecycle {
    idle_timeout_ms: Option<u64>,
    suspend_after_ms: Option<u64>,
    cold_after_ms: Option<u64>,
    stop_grace_ms: Option<u64>,
    drain_grace_ms: Option<u64>,
    on_shutdown: OnShutdown,
    session_activity: SessionActivity,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSessions {
    max_per_sprite: Option<usize>,
    scrollback_kib: Option<usize>,
}

impl RawSessions {
    /// The limits, or which key is wrong and why.
    fn check(&self) -> Result<SessionLimits, (&'static str, String)> {
        let default = SessionLimits::default();
        let limits = SessionLimits {
            max: self.max_per_sprite.unwrap_or(default.max),
            scrollback_bytes: self
                .scrollback_kib
                .map_or(default.scrollback_bytes, |kib| kib.saturating_mul(1024)),
        };
        if limits.max == 0 {
            return Err(("sessions.max_per_sprite", "must be at least 1, or nothing can be run".into()));
        }
        let (least, most) = (SessionLimits::LEAST_SCROLLBACK_BYTES, MOST_SCROLLBACK_BYTES);
        if !(least..=most).contains(&limits.scrollback_bytes) {
            let reason = format!("must be from {} to {}", least / 1024, most / 1024);
            return Err(("sessions.scrollback_kib", reason));
        }
        Ok(limits)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLeases {
    holder_ttl_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawWakes {
    max_at_once: Option<usize>,
    longest_turn_ms: Option<u64>,
    max_queued: Option<usize>,
    max_queued_per_organization: Option<usize>,
}

/// The `[checkpoints]` table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Checkpoints {
    /// Checkpoints of a sprite that somebody asked for.
    pub(crate) max_per_sprite: usize,
    /// Those that are made by themselves: when there are more, the oldest go.
    pub(crate) max_automatic: usize,
    /// Disks that are copied at once, for checkpoints, restores and forks.
    pub(crate) copies_at_once: usize,
}

impl Default for Checkpoints {
    /// More checkpoints than people look through; enough automatic ones to take back a few restores; two
    /// copies keep a disk busy.
    fn default() -> Self {
        Self { max_per_sprite: 50, max_automatic: 5, copies_at_once: 2 }
    }
}

impl Checkpoints {
    /// Which key is wrong, and why.
    const fn check(self) -> Result<Self, (&'static str, &'static str)> {
        if self.max_automatic == 0 {
            return Err(("checkpoints.max_automatic", "must be at least 1, or no restore can be taken back"));
        }
        if self.copies_at_once == 0 {
            return Err(("checkpoints.copies_at_once", "must be at least 1, or no checkpoint is ever taken"));
        }
        Ok(self)
    }
}

fn default_url_template() -> String {
    "http://{label}.sprites.localhost:8080".into()
}

/// What becomes of the sprites when the agent is told to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnShutdown {
    /// They are stopped; nothing is left behind.
    #[default]
    Stop,
    /// They live on, and the next agent adopts them.
    Leave,
}

/// The checked configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) state_dir: PathBuf,
    pub(crate) url_template: String,
    pub(crate) log_format: telemetry::Format,
    pub(crate) log_filter: String,
    pub(crate) driver: DriverKind,
    pub(crate) idle_timeout: Duration,
    /// From warm to its memory on disk, where the driver can.
    pub(crate) suspend_after: Duration,
    pub(crate) cold_after: Duration,
    pub(crate) stop_grace: Duration,
    pub(crate) drain_grace: Duration,
    pub(crate) on_shutdown: OnShutdown,
    pub(crate) session_activity: SessionActivity,
    pub(crate) session_limits: SessionLimits,
    pub(crate) holder_ttl: Duration,
    pub(crate) wakes: WakeLimits,
    /// After this time a wake no longer counts as one of those at once.
    pub(crate) longest_turn: Duration,
    pub(crate) memory: memory::Settings,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) process: ProcessSettings,
    pub(crate) qemu: qemu::Settings,
    pub(crate) firecracker: firecracker::Settings,
    /// Sprites that commands wake and put to sleep.
    pub(crate) commands: Vec<CommandSettings>,
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })?;
        let refusal =
            |key, reason: &str| ConfigError::Value { path: path.to_owned(), key, reason: reason.to_owned() };
        let refuse = |key, reason: &str| Err(refusal(key, reason));
        if !raw.url_template.contains("{label}") {
            return refuse("url_template", "must contain {label}, which stands for name-suffix");
        }
        let mut names = std::collections::HashSet::new();
        for command in &raw.command {
            command.check().map_err(|reason| refusal("command", &reason))?;
            if !names.insert((&command.organization, &command.name)) {
                return refuse("command", &format!("has {}/{} twice", command.organization, command.name));
            }
        }
        let log_format = raw.log.format.parse().map_err(|reason: String| refusal("log.format", &reason))?;
        let millis = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_millis);
        let holder_ttl = millis(raw.leases.holder_ttl_ms, DEFAULT_HOLDER_TTL);
        if holder_ttl < Duration::from_millis(300) {
            return refuse("leases.holder_ttl_ms", "must be at least 300, or every hiccup ends all leases");
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if !(1..=10_000).contains(&raw.process.cpu_weight) {
            return refuse("process.cpu_weight", "must be from 1 to 10000");
        }
        let at_once = raw.wakes.max_at_once.unwrap_or(cpus * WAKES_PER_CPU);
        let queued = raw.wakes.max_queued.unwrap_or(DEFAULT_MAX_QUEUED_WAKES);
        if at_once == 0 {
            return refuse("wakes.max_at_once", "must be at least 1, or no sprite ever wakes");
        }
        Ok(Self {
            state_dir: raw.state_dir,
            url_template: raw.url_template,
            log_format,
            log_filter: raw.log.filter,
            driver: raw.driver,
            idle_timeout: millis(raw.lifecycle.idle_timeout_ms, DEFAULT_IDLE_TIMEOUT),
            suspend_after: millis(raw.lifecycle.suspend_after_ms, DEFAULT_SUSPEND_AFTER),
            cold_after: millis(
                raw.lifecycle.cold_after_ms,
                if raw.driver.suspends() { DEFAULT_COLD_AFTER_ON_DISK } else { DEFAULT_COLD_AFTER },
            ),
            stop_grace: millis(raw.lifecycle.stop_grace_ms, DEFAULT_STOP_GRACE),
            drain_grace: millis(raw.lifecycle.drain_grace_ms, DEFAULT_DRAIN_GRACE),
            on_shutdown: raw.lifecycle.on_shutdown,
            session_activity: raw.lifecycle.session_activity,
            session_limits: raw.sessions.check().map_err(|(key, reason)| refusal(key, &reason))?,
            holder_ttl,
            wakes: WakeLimits {
                at_once,
                queued,
                queued_per_organization: raw
                    .wakes
                    .max_queued_per_organization
                    .unwrap_or((queued / ORGANIZATION_SHARE).max(1)),
            },
            longest_turn: millis(raw.wakes.longest_turn_ms, DEFAULT_LONGEST_TURN),
            memory: raw.memory.check().map_err(|(key, reason)| refusal(key, reason))?,
            checkpoints: raw.checkpoints.check().map_err(|(key, reason)| refusal(key, reason))?,
            process: raw.process,
            qemu: raw.qemu.check().map_err(|(key, reason)| refusal(key, reason))?,
            firecracker: raw.firecracker,
            commands: raw.command,
        })
    }

    /// The socket on which the API is served.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(&self.state_dir)
    }
}

/// The API socket of an agent with this state directory.
pub(crate) fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// Where an agent with this state directory has its images, unless told otherwise.
pub(crate) fn images_in(state_dir: &Path) -> PathBuf {
    state_dir.join("images")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_parses_and_shows_the_defaults() {
        let text = include_str!("../../config/agent.example.toml");
        let config = Config::parse(text, Path::new("agent.example.toml")).unwrap();
        assert_eq!(config.idle_timeout, DEFAULT_IDLE_TIMEOUT);
        assert_eq!(config.cold_after, DEFAULT_COLD_AFTER);
        assert_eq!(config.suspend_after, DEFAULT_SUSPEND_AFTER);
        assert_eq!(config.driver, DriverKind::Process);
        assert_eq!(config.qemu, qemu::Settings::default());
        assert_eq!(config.firecracker, firecracker::Settings::default());
        assert_eq!(config.stop_grace, DEFAULT_STOP_GRACE);
        assert_eq!(config.holder_ttl, DEFAULT_HOLDER_TTL);
        assert_eq!(config.drain_grace, DEFAULT_DRAIN_GRACE);
        assert_eq!(config.longest_turn, DEFAULT_LONGEST_TURN);
        assert_eq!(config.wakes.queued, DEFAULT_MAX_QUEUED_WAKES);
        assert_eq!(config.wakes.queued_per_organization, DEFAULT_MAX_QUEUED_WAKES / ORGANIZATION_SHARE);
        assert_eq!(config.on_shutdown, OnShutdown::Stop);
        assert_eq!(config.session_activity, SessionActivity::Running);
        assert_eq!(config.session_limits, SessionLimits::default());
        assert_eq!(config.checkpoints, Checkpoints::default());
        assert_eq!(config.memory, memory::Settings::default());
    }

    #[test]
    fn a_wrong_key_is_named() {
        let error = Config::parse("state_dir = \"x\"\nidel = 3\n", Path::new("a.toml")).unwrap_err();
        assert!(error.to_string().contains("idel"), "{error}");
        let error = Config::parse(
            "state_dir = \"x\"\n[[command]]\norganization = \"a\"\nname = \"b\"\nweb = \"nowhere\"\n\
            start = [\"true\"]\nstop = [\"true\"]\n",
            Path::new("a.toml"),
        )
        .unwrap_err();
        assert!(error.to_string().contains("host:port"), "{error}");
        let error = Config::parse("state_dir = \"x\"\ndriver = \"xen\"\n", Path::new("a.toml")).unwrap_err();
        assert!(error.to_string().contains("driver") && error.to_string().contains("xen"), "{error}");
    }
}
