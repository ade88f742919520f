//! What the host lets this driver do, found out by trying, and said plainly.

use std::{
    fmt, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    cgroups::{Cgroups, FreezeWay},
    identity::IdPool,
    launcher::Ids,
    layout::Layout,
    settings::Settings,
    spawn::try_namespaces,
};

/// What the agent says about the host when it starts. Its `Display` is one line a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    findings: Vec<String>,
    missing: Vec<String>,
}

impl Report {
    pub(super) fn new(ids: &IdPool, cgroups: &Cgroups) -> Self {
        let (mut findings, mut missing) = (Vec::new(), Vec::new());
        if ids.is_one() {
            missing.push(
                "user ids: the agent is not root, so every sprite has the agent's own id, and files \
                 inside can belong to root only"
                    .into(),
            );
        } else {
            findings.push("user ids: each sprite has 65536 of its own".into());
        }
        match cgroups.freeze_way() {
            FreezeWay::Version2 => findings.push("pause: cgroup version 2 freezer".into()),
            FreezeWay::Version1 => findings.push("pause: cgroup version 1 freezer".into()),
            FreezeWay::Signals => missing.push(
                "pause: no cgroup can be made, so processes are stopped by SIGSTOP, which a parent can notice".into(),
            ),
        }
        for (limit, why) in cgroups.missing() {
            missing.push(format!("limits: no {} limit ({why})", limit.controller()));
        }
        missing.push("network: no way out of a sprite; programs inside reach each other only".into());
        Self { findings, missing }
    }

    /// What works.
    pub(crate) fn findings(&self) -> &[String] {
        &self.findings
    }

    /// What does not, and what follows from it.
    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.findings.iter().map(|line| ("  has   ", line));
        for (mark, line) in lines.chain(self.missing.iter().map(|line| ("  lacks ", line))) {
            writeln!(f, "{mark}{line}")?;
        }
        Ok(())
    }
}

/// The runtime's binary, once it is certain that sprites can execute it.
pub(super) fn runtime(settings: &Settings) -> io::Result<PathBuf> {
    let path = match &settings.runtime {
        Some(path) => std::path::absolute(path)?,
        None => std::env::current_exe()?.with_file_name("runtime"),
    };
    let problem = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let meta = path.metadata().map_err(|error| {
        problem(format!("the runtime's binary {} can't be used: {error}", path.display()))
    })?;
    if !meta.is_file() || meta.permissions().mode() & 0o005 != 0o005 {
        return Err(problem(format!(
            "the runtime's binary {} must be a file that everyone may read and execute (chmod 755)",
            path.display()
        )));
    }
    Ok(path)
}

/// The ids that sprites get, once it is certain that namespaces with them can be made.
pub(super) fn ids(layout: &Layout, settings: &Settings) -> io::Result<IdPool> {
    let root = nix::unistd::geteuid().is_root();
    let (pool, sample) = if root {
        (IdPool::of_ranges(layout, settings.first_id)?, Ids::Range { base: settings.first_id })
    } else {
        let pool = IdPool::of_one();
        let sample = pool.ids_of(&layout.sprite(::ids::SpriteId::from_u128(0)))?;
        (pool, sample)
    };
    try_namespaces(sample).map_err(|error| {
        io::Error::new(
            error.source.kind(),
            format!("could not {}: {}; {}", error.step, error.source, advice(root)),
        )
    })?;
    Ok(pool)
}

/// What an operator can do where namespaces are refused.
fn advice(root: bool) -> String {
    let says = |path: &str, refusal: &str| {
        std::fs::read_to_string(Path::new("/proc/sys").join(path)).is_ok_and(|text| text.trim() == refusal)
    };
    if says("user/max_user_namespaces", "0") {
        "user namespaces are switched off: set the sysctl user.max_user_namespaces".into()
    } else if !root && says("kernel/unprivileged_userns_clone", "0") {
        "only root may make user namespaces here: set the sysctl kernel.unprivileged_userns_clone=1".into()
    } else if !root && says("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor reserves user namespaces for root: set the sysctl \
         kernel.apparmor_restrict_unprivileged_userns=0, or give the agent a profile that allows them"
            .into()
    } else if root {
        "the agent is root in a container that does not hand on what it needs: check that \
         /proc/self/uid_map covers first_id, or run the agent as an ordinary user"
            .into()
    } else {
        "the process driver needs user namespaces".into()
    }
}
