//! Stopping the time of all processes of a sprite at once, and starting it again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use tracing::warn;

use super::{
    super::files::{remove_if_there, write_whole},
    cgroups::SpriteCgroups,
    tree,
};

/// How long a freeze may take. The kernel needs microseconds; a process in a long disk operation, or
/// one that another one traces, needs longer.
pub(super) const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// How one sprite is frozen, by one at a time.
#[derive(Debug)]
pub(super) struct Freezer {
    way: Way,
    turn: Mutex<()>,
}

#[derive(Debug)]
enum Way {
    /// `cgroup.freeze`: the processes don't notice.
    Version2(PathBuf),
    /// `freezer.state`: the same, older.
    Version1(PathBuf),
    /// SIGSTOP and SIGCONT to each process: parents see their children stop and go on.
    Signals {
        /// PID 1.
        root: Pid,
        /// Where is written which processes were stopped before, for they stay so. That the file is
        /// there means that the sprite is paused, or about to be.
        stopped: PathBuf,
    },
}

/// Why a freeze failed.
#[derive(Debug)]
pub(super) enum FreezeError {
    Io(io::Error),
    /// Not complete within [`FREEZE_LIMIT`]; it has been undone.
    TimedOut,
}

impl From<io::Error> for FreezeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Freezer {
    /// The best one that the sprite's cgroups offer.
    pub(super) fn of(cgroups: &SpriteCgroups, root: Pid, stopped: PathBuf) -> Self {
        let way = match (&cgroups.freeze_v2, &cgroups.freeze_v1) {
            (Some(dir), _) => Way::Version2(dir.clone()),
            (None, Some(dir)) => Way::Version1(dir.clone()),
            (None, None) => Way::Signals { root, stopped },
        };
        Self { way, turn: Mutex::new(()) }
    }

    /// Freezes and waits until nothing runs; thaws again if that takes too long. Blocks.
    pub(super) fn freeze(&self) -> Result<(), FreezeError> {
        let _turn = self.turn.lock();
        self.way.freeze()
    }

    /// Lets everything run that ran before the freeze. Blocks.
    pub(super) fn thaw(&self) -> io::Result<()> {
        let _turn = self.turn.lock();
        self.way.thaw()
    }

    /// Whether a freeze was begun and not undone, be it complete or not.
    pub(super) fn begun(&self) -> io::Result<bool> {
        let _turn = self.turn.lock();
        self.way.begun()
    }

    /// Does something while nothing runs and no system call is under way; whoever wants to freeze or thaw the
    /// sprite waits for it. What was frozen before stays so. Blocks.
    ///
    /// The file `mark` is there while the sprite is frozen for this: should we be killed in it, the next agent knows
    /// that it is to go on.
    pub(super) fn hold_still<T>(&self, mark: &Path, work: impl FnOnce() -> T) -> Result<T, FreezeError> {
        let _turn = self.turn.lock();
        if self.way.begun()? {
            self.way.freeze()?;
            return Ok(work());
        }
        File::create(mark)?;
        let held = Held { way: &self.way, mark };
        self.way.freeze()?;
        let done = work();
        drop(held);
        Ok(done)
    }
}

/// What is frozen for a moment; it goes on when this is dropped.
struct Held<'a> {
    way: &'a Way,
    mark: &'a Path,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.way.thaw().and_then(|()| remove_if_there(self.mark)) {
            // Whoever needs it next resumes it.
            warn!(mark = %self.mark.display(), %error, "Could not let a sprite go on after a moment's freeze");
        }
    }
}

impl Way {
    fn freeze(&self) -> Result<(), FreezeError> {
        let mut ladder = Ladder::new(FREEZE_LIMIT);
        while !self.pushed_all_the_way()? {
            if !ladder.wait() {
                self.thaw()?;
                return Err(FreezeError::TimedOut);
            }
        }
        Ok(())
    }

    /// Asks for the freeze, and says whether it is complete. Asked again each time, because version 1
    /// and signals miss processes that are being forked.
    fn pushed_all_the_way(&self) -> io::Result<bool> {
        match self {
            Self::Version2(dir) => {
                fs::write(dir.join("cgroup.freeze"), "1")?;
                Ok(fs::read_to_string(dir.join("cgroup.events"))?.lines().any(|line| line == "frozen 1"))
            }
            Self::Version1(dir) => {
                fs::write(dir.join("freezer.state"), "FROZEN")?;
                Ok(fs::read_to_string(dir.join("freezer.state"))?.trim() == "FROZEN")
            }
            Self::Signals { root, stopped } => stop_all(*root, stopped),
        }
    }

    fn thaw(&self) -> io::Result<()> {
        match self {
            Self::Version2(dir) => fs::write(dir.join("cgroup.freeze"), "0"),
            Self::Version1(dir) => fs::write(dir.join("freezer.state"), "THAWED"),
            Self::Signals { root, stopped } => continue_all(*root, stopped),
        }
    }

    fn begun(&self) -> io::Result<bool> {
        match self {
            Self::Version2(dir) => Ok(fs::read_to_string(dir.join("cgroup.freeze"))?.trim() == "1"),
            Self::Version1(dir) => Ok(fs::read_to_string(dir.join("freezer.state"))?.trim() != "THAWED"),
            Self::Signals { stopped, .. } => stopped.try_exists(),
        }
    }
}

/// Tells every process to stop, parents first (the children of a stopped parent can't be reaped by
/// it, so a pid that we have just read still means the same process), and says whether all have.
fn stop_all(root: Pid, stopped: &Path) -> io::Result<bool> {
    let tree = tree::descendants(root)?;
    if !stopped.try_exists()? {
        let mut before = BTreeSet::new();
        for pid in &tree {
            if super::super::pid::stat(*pid)?.is_some_and(|stat| stat.state == b'T') {
                before.insert(pid.as_raw());
            }
        }
        // Written before the first signal: an agent that is killed now can still undo all of it.
        write_whole(stopped, &serde_json::to_vec(&before)?)?;
    }
    for pid in &tree {
        send(*pid, Signal::SIGSTOP)?;
    }
    for pid in &tree {
        if !tree::is_stopped(*pid)? {
            return Ok(false);
        }
    }
    // What one of them forked before it stopped is not in our list.
    Ok(tree::descendants(root)? == tree)
}

fn continue_all(root: Pid, stopped: &Path) -> io::Result<()> {
    if !stopped.try_exists()? {
        return Ok(());
    }
    let before = read_stopped(stopped)?;
    for pid in tree::descendants(root)? {
        if !before.contains(&pid.as_raw()) {
            send(pid, Signal::SIGCONT)?;
        }
    }
    remove_if_there(stopped)
}

fn read_stopped(path: &Path) -> io::Result<BTreeSet<i32>> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn send(pid: Pid, signal: Signal) -> io::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Looks again after growing pauses: at once, then 20 µs, ... up to 2 ms, until a deadline.
struct Ladder {
    deadline: Instant,
    pause: Duration,
}

impl Ladder {
    fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, pause: Duration::from_micros(20) }
    }

    /// Waits; `false` when the deadline has passed.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.deadline {
            return false;
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(2));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A shell that forks all the time, with one child that is stopped already.
    struct Tree {
        child: Child,
        dir: PathBuf,
    }

    impl Tree {
        fn start(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("freezer-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let script = "sh -c 'kill -STOP $$; echo awake > late' & i=0; \
                          while true; do i=$((i+1)); echo $i > new; mv new count; done";
            let child = Command::new("sh").args(["-c", script]).current_dir(&dir).spawn().unwrap();
            let tree = Self { child, dir };
            tree.counts_on();
            tree
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.child.id() as i32)
        }

        fn count(&self) -> u64 {
            fs::read_to_string(self.dir.join("count"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(0)
        }

        fn counts_on(&self) {
            let (before, deadline) = (self.count(), Instant::now() + Duration::from_secs(10));
            while self.count() <= before + 3 {
                assert!(Instant::now() < deadline, "it does not run");
                std::thread::sleep(Duration::from_millis(2));
            }
        }

        fn is_frozen_and_thawed_by(&self, way: Way) {
            let freezer = Freezer { way, turn: Mutex::default() };
            let mark = self.dir.join("mark");
            for _ in 0..20 {
                freezer.freeze().unwrap();
                assert!(freezer.begun().unwrap());
                let frozen = self.count();
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(self.count(), frozen);
                freezer.freeze().unwrap();
                freezer.hold_still(&mark, || assert!(!mark.exists(), "it was frozen before")).unwrap();
                assert!(freezer.begun().unwrap());
                freezer.thaw().unwrap();
                assert!(!freezer.begun().unwrap());
                let held = freezer.hold_still(&mark, || {
                    let held = self.count();
                    std::thread::sleep(Duration::from_millis(5));
                    assert!(mark.exists());
                    (held, self.count())
                });
                let (before, after) = held.unwrap();
                assert_eq!(before, after);
                assert!(!freezer.begun().unwrap() && !mark.exists());
                freezer.thaw().unwrap();
                self.counts_on();
            }
            assert!(!self.dir.join("late").exists(), "what was stopped before stays so");
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            for pid in tree::descendants(self.pid()).unwrap() {
                let _gone = kill(pid, Signal::SIGKILL);
            }
            self.child.wait().unwrap();
            fs::remove_dir_all(&self.dir).unwrap();
        }
    }

    #[test]
    fn signals_stop_a_tree_that_forks_all_the_time() {
        let tree = Tree::start("signals");
        let stopped = tree.dir.join("stopped.json");
        tree.is_frozen_and_thawed_by(Way::Signals { root: tree.pid(), stopped });
    }

    #[test]
    fn cgroups_of_both_versions_freeze() {
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        let v2 = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let v2 = v2.into_iter().find(|path| path.join("cgroup.procs").exists());
        let name = format!("freezer-test-{}", std::process::id());
        for (root, way) in [(Some(v1), Way::Version1 as fn(PathBuf) -> Way), (v2, Way::Version2)] {
            let Some(dir) = root.map(|root| root.join(&name)) else { continue };
            if fs::create_dir(&dir).is_err() {
                continue; // not there, or not ours to write
            }
            let tree = Tree::start("cgroup");
            for pid in tree::descendants(tree.pid()).unwrap() {
                let _ended = fs::write(dir.join("cgroup.procs"), pid.to_string());
            }
            // By now, those that it forked outside have ended.
            tree.counts_on();
            tree.is_frozen_and_thawed_by(way(dir.clone()));
            drop(tree);
            let cgroups = SpriteCgroups::of_test(dir);
            cgroups.remove().unwrap();
        }
    }
}
