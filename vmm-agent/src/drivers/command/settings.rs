//! What the configuration says of each sprite that commands wake and put to sleep.

use std::{collections::BTreeMap, time::Duration};

use ids::{OrgSlug, Port, SpriteName};
use serde::Deserialize;

/// Long enough for a machine that boots.
const DEFAULT_DEADLINE_MS: u64 = 120_000;
/// Between two looks at whether it still runs.
const DEFAULT_STATUS_PERIOD_MS: u64 = 5_000;

/// One `[[command]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The organization that owns the sprite.
    pub(crate) organization: OrgSlug,
    /// The sprite's name.
    pub(crate) name: SpriteName,
    /// Where its URL leads, `host:port`.
    pub(crate) web: String,
    /// Where its `port--` URLs lead.
    #[serde(default)]
    pub(crate) ports: BTreeMap<Port, String>,
    /// Brings it up. Does nothing to one that is up.
    pub(super) start: Vec<String>,
    /// Takes it down. Does nothing to one that is down.
    pub(super) stop: Vec<String>,
    /// Stops its time, and `resume` starts it again; both or neither.
    #[serde(default)]
    pub(super) pause: Option<Vec<String>>,
    #[serde(default)]
    pub(super) resume: Option<Vec<String>>,
    /// Ends with 0 while it is up.
    #[serde(default)]
    pub(super) status: Option<Vec<String>>,
    #[serde(default = "default_deadline_ms")]
    deadline_ms: u64,
    #[serde(default = "default_status_period_ms")]
    status_period_ms: u64,
}

const fn default_deadline_ms() -> u64 {
    DEFAULT_DEADLINE_MS
}

const fn default_status_period_ms() -> u64 {
    DEFAULT_STATUS_PERIOD_MS
}

impl Settings {
    /// What is wrong with it, for the operator.
    pub(crate) fn check(&self) -> Result<(), String> {
        let who = format!("{}/{}", self.organization, self.name);
        let commands = [
            Some(&self.start),
            Some(&self.stop),
            self.pause.as_ref(),
            self.resume.as_ref(),
            self.status.as_ref(),
        ];
        if commands.into_iter().flatten().any(|command| command.first().is_none_or(String::is_empty)) {
            return Err(format!("of {who} has an empty command"));
        }
        if self.pause.is_some() != self.resume.is_some() {
            return Err(format!("of {who} has one of pause and resume; it needs both or neither"));
        }
        for address in self.ports.values().chain([&self.web]) {
            let port = address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<Port>()));
            if !matches!(port, Some((false, Ok(_)))) {
                return Err(format!("of {who} has the address {address:?}; it must be host:port"));
            }
        }
        Ok(())
    }

    pub(super) const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    pub(super) const fn status_period(&self) -> Duration {
        Duration::from_millis(self.status_period_ms)
    }
}
