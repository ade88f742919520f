//! Moments at which a test has an agent, a machine or both killed.
//!
//! Between which two steps a kill falls decides what the next agent finds. Kills at random times hit the steps that take
//! long; those that take a microsecond are hit only if somebody knows of them. So each has a name, and the variable
//! `SPRITES_FAULT=POINT:VICTIM` has the victim (`agent`, `machine` or `both`) killed there, once. It is read when the
//! driver starts: only who starts the agent can set it, who can as well kill it. Unset it costs one load for each point.

use std::{
    fs,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tracing::warn;

use super::layout::Files;
use crate::drivers::pid::Identity;

/// The variable that names a point and a victim.
const VARIABLE: &str = "SPRITES_FAULT";

macro_rules! points {
    ($($(#[$about:meta])* $point:ident = $name:literal),* $(,)?) => {
        /// Where something can be killed.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Point { $($(#[$about])* $point),* }

        impl Point {
            /// All there are.
            pub(crate) const ALL: &[Self] = &[$(Self::$point),*];

            /// Its name, which begins with what goes on.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }
        }
    };
}

points! {
    /// QEMU is executed, and nothing says which process it is.
    LaunchExecuted = "launch.executed",
    /// It is written down, and its monitor answers.
    BootSpawned = "boot.spawned",
    /// The machine has written its disk out, and runs.
    PauseSynced = "pause.synced",
    /// Its CPUs are stopped.
    PauseStopped = "pause.stopped",
    /// They run again, and the runtime does not know what time it is.
    ResumeRunning = "resume.running",
    /// What the state will be of is written down.
    SuspendDescribed = "suspend.described",
    /// The state is whole, and has no name to be loaded by.
    SuspendSaved = "suspend.saved",
    /// It has, and QEMU is there.
    SuspendNamed = "suspend.named",
    /// QEMU is gone.
    SuspendEnded = "suspend.ended",
    /// State and RAM are written out, and nothing says so.
    SuspendSynced = "suspend.synced",
    /// The new QEMU waits for the state.
    LoadSpawned = "load.spawned",
    /// Nobody else can load it any more.
    LoadClaimed = "load.claimed",
    /// It is loaded, and the machine's CPUs are stopped.
    LoadLoaded = "load.loaded",
    /// They run.
    LoadRunning = "load.running",
    /// The used state is removed.
    LoadForgotten = "load.forgotten",
    /// The file of the new layer is there.
    CheckpointLayered = "checkpoint.layered",
    /// The next start opens the new layer; the machine writes the old one.
    CheckpointNoted = "checkpoint.noted",
    /// The machine has changed over.
    CheckpointSwitched = "checkpoint.switched",
    /// The checkpoint has its name.
    CheckpointNamed = "checkpoint.named",
    /// The machine goes on.
    CheckpointRunning = "checkpoint.running",
    /// The memory is copied, and its disk is not cut.
    ForkKept = "fork.kept",
    /// The new sprite has the copy, and no disk.
    ForkTaken = "fork.taken",
    /// QEMU writes what two layers hold into a new one.
    MergeBegun = "merge.begun",
    /// The new layer is on the disk, and the record does not name it.
    MergeWritten = "merge.written",
    /// The next start opens the new layer; the files of the two are there.
    MergeNoted = "merge.noted",
    /// They are gone.
    MergeSwept = "merge.swept",
    /// The runtime has heard that it is to end.
    StopTold = "stop.told",
    /// QEMU is gone.
    StopEnded = "stop.ended",
    /// Nothing of the run is left.
    StopCleaned = "stop.cleaned",
    /// The memory that knows the old disk is gone.
    RestoreForgotten = "restore.forgotten",
    /// The file of the new layer is there.
    RestoreLayered = "restore.layered",
    /// The disk is the restored one.
    RestoreNoted = "restore.noted",
}

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Agent,
    Machine,
    Both,
}

#[derive(Debug)]
struct Armed {
    point: Point,
    victim: Victim,
    fired: AtomicBool,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

/// Reads the variable.
///
/// # Errors
/// It names no point, or no victim.
pub(super) fn arm() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let armed = parse(&text).ok_or_else(|| {
        format!("{VARIABLE} is {text:?}, not POINT:VICTIM; `vmm-agent faults` lists points")
    })?;
    warn!(fault = text, "A fault will be made");
    // It is the same whoever comes first.
    let _again = ARMED.set(armed);
    Ok(())
}

fn parse(text: &str) -> Option<Armed> {
    let (point, victim) = text.split_once(':')?;
    let point = Point::ALL.iter().copied().find(|known| known.name() == point)?;
    let victim = match victim {
        "agent" => Victim::Agent,
        "machine" => Victim::Machine,
        "both" => Victim::Both,
        _ => return None,
    };
    Some(Armed { point, victim, fired: AtomicBool::new(false) })
}

/// Passes a point of a sprite's life.
pub(super) fn pass(point: Point, files: &Files) {
    let Some(armed) = ARMED.get() else { return };
    if armed.point != point || armed.fired.swap(true, Ordering::Relaxed) {
        return;
    }
    // The log is written in the background, and would be lost.
    eprintln!("fault: {}", point.name());
    if matches!(armed.victim, Victim::Machine | Victim::Both) {
        kill_machine(files);
    }
    if matches!(armed.victim, Victim::Agent | Victim::Both) {
        let _gone = kill(Pid::this(), Signal::SIGKILL);
    }
}

/// Kills the QEMU that is written down, if one is.
fn kill_machine(files: &Files) {
    let identity =
        fs::read(files.process()).ok().and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
    if let Some(Ok(Some(process))) = identity.map(|identity| identity.find()) {
        process.end_now();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_and_is_armed_by_it() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for point in Point::ALL {
            let armed = parse(&format!("{}:both", point.name())).unwrap();
            assert_eq!((armed.point, armed.victim), (*point, Victim::Both));
        }
        for wrong in ["", "load.claimed", "load.claimed:gateway", "load:agent"] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }
}
