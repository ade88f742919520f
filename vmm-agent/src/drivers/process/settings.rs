//! What an operator can choose.

use std::path::PathBuf;

use serde::Deserialize;

/// Enough for a build or a browser; few enough that a fork bomb is no more than a nuisance.
const DEFAULT_MAX_PROCESSES: u64 = 512;
/// As much as one process beside them: what wakes them comes before what they do when they wake.
const DEFAULT_CPU_WEIGHT: u64 = 100;
/// Above the ids that systems hand out to users, below none that they reserve.
const DEFAULT_FIRST_ID: u32 = 100_000;

/// The `[process]` table of the agent's configuration.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The runtime's binary, readable and executable by everyone; the file `runtime` beside the
    /// agent's own binary if absent.
    pub(crate) runtime: Option<PathBuf>,
    /// The most processes and threads of a sprite at once.
    pub(crate) max_processes: u64,
    /// The most memory of a sprite, in MiB; no limit if absent.
    pub(crate) max_memory_mib: Option<u64>,
    /// The most CPU time of a sprite, in percent of one core; no limit if absent.
    pub(crate) max_cpu_percent: Option<u64>,
    /// What all sprites together get of a CPU that others need as well, such as the gateway and the agent: this much,
    /// where a process beside them gets 100 (1 to 10000). Among each other they share evenly.
    pub(crate) cpu_weight: u64,
    /// The first of the user and group ids that sprites are given, 65536 each, when the agent is root.
    pub(crate) first_id: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            runtime: None,
            max_processes: DEFAULT_MAX_PROCESSES,
            max_memory_mib: None,
            max_cpu_percent: None,
            cpu_weight: DEFAULT_CPU_WEIGHT,
            first_id: DEFAULT_FIRST_ID,
        }
    }
}
