//! Cgroups: where a sprite's processes are counted, limited and frozen together.
//!
//! Hosts differ: version 2 only, version 1 only, or both beside each other ("hybrid", where version 2
//! has no controllers but can freeze). And an agent that is not root may write none of them. What is
//! there is found out once, by trying; what is not is left out, and said by the probe.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ids::SpriteId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::settings::Settings;

/// The cgroup that holds the sprites' ones, below the agent's own.
const PARENT: &str = "sprites";
/// Where the agent itself goes if it must make room: version 2 gives limits only to cgroups whose
/// parent holds no process.
const OWN_LEAF: &str = "agent";
/// How long the kernel may take to notice that the last process of a cgroup is gone.
const EMPTY_LIMIT: Duration = Duration::from_secs(2);
/// The period over which CPU time is counted, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Something that a cgroup can limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    Processes,
    Memory,
    Cpu,
}

impl Limit {
    pub(super) const ALL: [Self; 3] = [Self::Processes, Self::Memory, Self::Cpu];

    /// The kernel's name of the controller.
    pub(super) fn controller(self) -> &'static str {
        match self {
            Self::Processes => "pids",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
        }
    }
}

/// How a sprite's processes can be frozen together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FreezeWay {
    Version2,
    Version1,
    Signals,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    One,
    Two,
}

/// What can be used on this host.
#[derive(Debug)]
pub(super) struct Cgroups {
    freeze: Option<(Version, PathBuf)>,
    limits: Vec<(Limit, Version, PathBuf)>,
    missing: Vec<(Limit, String)>,
}

/// The cgroups of one sprite.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct SpriteCgroups {
    /// Every directory that was made for it.
    dirs: Vec<PathBuf>,
    /// The one that can freeze it, by version 2.
    pub(super) freeze_v2: Option<PathBuf>,
    /// The one that can freeze it, by version 1.
    pub(super) freeze_v1: Option<PathBuf>,
}

impl Cgroups {
    /// Finds out what this process may use.
    pub(super) fn discover() -> Self {
        let hierarchies = hierarchies();
        let mut found = Self { freeze: None, limits: Vec::new(), missing: Vec::new() };
        let unified = hierarchies.iter().find(|hierarchy| hierarchy.version == Version::Two);
        let controlled = |name: &str| {
            hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|own| own == name))
        };
        if let Some(hierarchy) = unified
            && let Ok(parent) = make_parent(&hierarchy.own, "cgroup.freeze")
        {
            found.freeze = Some((Version::Two, parent));
        } else if let Some(hierarchy) = controlled("freezer")
            && let Ok(parent) = make_parent(&hierarchy.own, "freezer.state")
        {
            found.freeze = Some((Version::One, parent));
        }
        for limit in Limit::ALL {
            let place = match (controlled(limit.controller()), unified) {
                (Some(hierarchy), _) => {
                    make_parent(&hierarchy.own, "cgroup.procs").map(|parent| (Version::One, parent))
                }
                (None, Some(hierarchy)) => {
                    delegate(&hierarchy.own, limit).map(|parent| (Version::Two, parent))
                }
                (None, None) => Err(io::Error::other("no cgroup hierarchy is mounted")),
            };
            match place {
                Ok((version, parent)) => found.limits.push((limit, version, parent)),
                Err(error) => found.missing.push((limit, error.to_string())),
            }
        }
        found
    }

    pub(super) fn freeze_way(&self) -> FreezeWay {
        match &self.freeze {
            Some((Version::Two, _)) => FreezeWay::Version2,
            Some((Version::One, _)) => FreezeWay::Version1,
            None => FreezeWay::Signals,
        }
    }

    /// Limits that can be set here.
    pub(super) fn possible(&self) -> impl Iterator<Item = Limit> {
        self.limits.iter().map(|(limit, _, _)| *limit)
    }

    /// Limits that can't be set here, and why.
    pub(super) fn missing(&self) -> &[(Limit, String)] {
        &self.missing
    }

    /// The cgroups that [`make`](Self::make) makes at most, there or not: an agent that was killed
    /// before it had written anything down may have left them.
    pub(super) fn of(&self, id: SpriteId) -> SpriteCgroups {
        let parents = self.freeze.iter().map(|(_, parent)| parent);
        let parents = parents.chain(self.limits.iter().map(|(_, _, parent)| parent));
        SpriteCgroups {
            dirs: parents.map(|parent| parent.join(id.to_string())).collect(),
            ..SpriteCgroups::default()
        }
    }

    /// Makes a sprite's cgroups and sets its limits. Those of an earlier run are used again.
    pub(super) fn make(&self, id: SpriteId, settings: &Settings) -> io::Result<SpriteCgroups> {
        let mut made = SpriteCgroups::default();
        let mut make = |parent: &Path| -> io::Result<PathBuf> {
            let dir = parent.join(id.to_string());
            make_below(parent, &dir)?;
            if !made.dirs.contains(&dir) {
                made.dirs.push(dir.clone());
            }
            Ok(dir)
        };
        let mut freeze = (None, None);
        match &self.freeze {
            Some((Version::Two, parent)) => freeze.0 = Some(make(parent)?),
            Some((Version::One, parent)) => freeze.1 = Some(make(parent)?),
            None => {}
        }
        for (limit, version, parent) in &self.limits {
            let amount = match limit {
                Limit::Processes => Some(settings.max_processes),
                Limit::Memory => settings.max_memory_mib.map(|mib| mib << 20),
                Limit::Cpu => settings.max_cpu_percent.map(|percent| percent * CPU_PERIOD_US / 100),
            };
            // Without a limit it still has its share of CPU time, whatever number of threads it has.
            if amount.is_none() && *limit != Limit::Cpu {
                continue;
            }
            let dir = make(parent)?;
            if *version == Version::Two {
                // Again for each: the parent may be a new one, since the last sprite takes it along.
                fs::write(parent.join("cgroup.subtree_control"), format!("+{}", limit.controller()))?;
            }
            if *limit == Limit::Cpu {
                share_cpu(parent, *version, settings.cpu_weight)?;
            }
            let Some(amount) = amount else { continue };
            let (file, text) = match (limit, version) {
                (Limit::Processes, _) => ("pids.max", amount.to_string()),
                (Limit::Memory, Version::One) => ("memory.limit_in_bytes", amount.to_string()),
                (Limit::Memory, Version::Two) => ("memory.max", amount.to_string()),
                (Limit::Cpu, Version::One) => ("cpu.cfs_quota_us", amount.to_string()),
                (Limit::Cpu, Version::Two) => ("cpu.max", format!("{amount} {CPU_PERIOD_US}")),
            };
            fs::write(dir.join(file), text)?;
        }
        (made.freeze_v2, made.freeze_v1) = freeze;
        Ok(made)
    }
}

impl SpriteCgroups {
    #[cfg(test)]
    pub(super) fn of_test(dir: PathBuf) -> Self {
        Self { dirs: vec![dir], ..Self::default() }
    }

    /// Puts a process, and with it all that it will ever fork, into these cgroups.
    pub(super) fn enter(&self, pid: u32) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| fs::write(dir.join("cgroup.procs"), pid.to_string()))
    }

    /// The processes in them; `None` if it has no cgroup.
    pub(super) fn processes(&self) -> Option<Vec<Pid>> {
        let text = fs::read_to_string(self.dirs.first()?.join("cgroup.procs")).ok()?;
        Some(text.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
    }

    /// Removes the cgroups of a sprite that has ended; those that are not there are no error.
    pub(super) fn remove(&self) -> io::Result<()> {
        let deadline = std::time::Instant::now() + EMPTY_LIMIT;
        for dir in &self.dirs {
            loop {
                match fs::remove_dir(dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy
                            && std::time::Instant::now() < deadline =>
                    {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(parent) = dir.parent().filter(|parent| parent.ends_with(PARENT)) {
                // Refused as long as another sprite is in it.
                let _others = fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

/// Gives all sprites together a share of CPU time. They share it evenly: a cgroup's own weight is left as it is.
fn share_cpu(parent: &Path, version: Version, weight: u64) -> io::Result<()> {
    match version {
        // The default is 1024 there, and 100 in version 2.
        Version::One => fs::write(parent.join("cpu.shares"), (weight * 1024 / 100).max(2).to_string()),
        Version::Two => fs::write(parent.join("cpu.weight"), weight.to_string()),
    }
}

/// Makes `dir` and its parent, which another sprite that ends may be removing at this moment.
fn make_below(parent: &Path, dir: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 5;
    for _ in 0..ATTEMPTS {
        fs::create_dir_all(parent)?;
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    fs::create_dir_all(dir)
}

struct Hierarchy {
    version: Version,
    /// Version 1: the controllers of this hierarchy.
    controllers: Vec<String>,
    /// The agent's own cgroup in it, as a directory.
    own: PathBuf,
}

fn hierarchies() -> Vec<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    parse_hierarchies(&mounts, &memberships)
}

fn parse_hierarchies(mounts: &str, memberships: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        // "id parent dev root mountpoint options [tags] - type source super-options"
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(place), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let version = match *kind {
            "cgroup2" => Version::Two,
            "cgroup" => Version::One,
            _ => continue,
        };
        let options: Vec<&str> = right.get(2).map(|options| options.split(',').collect()).unwrap_or_default();
        let membership = memberships.lines().find_map(|line| {
            // "hierarchy:controllers:path"
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let controllers: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
            let same = match version {
                Version::Two => controllers.is_empty(),
                Version::One => {
                    !controllers.is_empty() && controllers.iter().all(|name| options.contains(name))
                }
            };
            same.then(|| (controllers.iter().map(|name| (*name).to_owned()).collect(), path))
        });
        let Some((controllers, path)) = membership else { continue };
        let below = path.strip_prefix(*root).unwrap_or(path).trim_start_matches('/');
        found.push(Hierarchy {
            version,
            controllers,
            own: if below.is_empty() { PathBuf::from(place) } else { Path::new(place).join(below) },
        });
    }
    found
}

/// Makes the sprites' parent below `own` and proves that a cgroup in it can be made and has `file`.
fn make_parent(own: &Path, file: &str) -> io::Result<PathBuf> {
    let parent = own.join(PARENT);
    let trial = parent.join(format!("trial-{}", std::process::id()));
    fs::create_dir_all(&trial)?;
    let usable = fs::OpenOptions::new().write(true).open(trial.join(file));
    fs::remove_dir(&trial)?;
    // Made again for the first sprite. Refused if there are sprites.
    let _in_use = fs::remove_dir(&parent);
    usable?;
    Ok(parent)
}

/// Version 2: makes a controller available to the sprites' cgroups.
fn delegate(own: &Path, limit: Limit) -> io::Result<PathBuf> {
    let name = limit.controller();
    let available = fs::read_to_string(own.join("cgroup.controllers"))?;
    if !available.split_whitespace().any(|controller| controller == name) {
        return Err(io::Error::other(format!("the {name} controller is not available in {}", own.display())));
    }
    let parent = make_parent(own, "cgroup.procs")?;
    let enable = |cgroup: &Path| fs::write(cgroup.join("cgroup.subtree_control"), format!("+{name}"));
    enable(own)
        .or_else(|error| {
            if error.kind() != io::ErrorKind::ResourceBusy {
                return Err(error);
            }
            make_room(own)?;
            enable(own)
        })
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} can't be divided ({error}); run the agent in a cgroup of its own", own.display()),
            )
        })?;
    Ok(parent)
}

/// Moves the agent out of a cgroup that holds nothing else.
fn make_room(own: &Path) -> io::Result<()> {
    let me = std::process::id().to_string();
    if fs::read_to_string(own.join("cgroup.procs"))?.trim() != me {
        return Err(io::Error::other("it holds other processes"));
    }
    let leaf = own.join(OWN_LEAF);
    fs::create_dir_all(&leaf)?;
    fs::write(leaf.join("cgroup.procs"), me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_understood() {
        let mounts = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 25 0:29 / /proc rw - proc proc rw
nonsense";
        let memberships = "5:memory:/docker/abc/agent\n4:cpu,cpuacct:/\n0::/user.slice\n";
        let found = parse_hierarchies(mounts, memberships);
        let summary: Vec<_> = found.iter().map(|one| (one.version, one.own.to_str().unwrap())).collect();
        assert_eq!(
            summary,
            [
                (Version::One, "/sys/fs/cgroup/cpu,cpuacct"),
                (Version::One, "/sys/fs/cgroup/memory/agent"),
                (Version::Two, "/sys/fs/cgroup/unified/user.slice"),
            ]
        );
    }
}
