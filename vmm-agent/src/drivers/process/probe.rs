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
    spawn::{LaunchError, try_namespaces},
};

/// What the agent says about the host when it starts. Its `Display` is one line a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    findings: Vec<String>,
    missing: Vec<String>,
}

impl Report {
    /// Tries everything and says what came of it. Blocks.
    pub(crate) fn of_host(settings: &Settings) -> Self {
        let mut report = Self { findings: Vec::new(), missing: Vec::new() };
        match runtime(settings) {
            Ok(path) => report.findings.push(format!("runtime: {}", path.display())),
            Err(error) => report.missing.push(format!("runtime: {error}")),
        }
        match try_ids(settings) {
            Ok(Ids::Range { base }) => {
                report.findings.push(format!(
                    "namespaces: yes; each sprite has 65536 user ids of its own, from {base} on"
                ));
            }
            Ok(Ids::Single { .. }) => {
                report.findings.push("namespaces: yes".into());
                report.missing.push(
                    "user ids: the agent is not root, so every sprite has the agent's own id, and there is \
                     only root inside"
                        .into(),
                );
            }
            Err(error) => report.missing.push(format!("namespaces: {error}")),
        }
        let cgroups = Cgroups::discover();
        match cgroups.freeze_way() {
            FreezeWay::Version2 => report.findings.push("pause: the freezer of cgroup version 2".into()),
            FreezeWay::Version1 => report.findings.push("pause: the freezer of cgroup version 1".into()),
            FreezeWay::Signals => report.missing.push(
                "pause: no cgroup can be made, so processes are stopped with SIGSTOP, which a parent can notice".into(),
            ),
        }
        for limit in cgroups.possible() {
            report.findings.push(format!("limits: {}", limit.controller()));
        }
        for (limit, why) in cgroups.missing() {
            report.missing.push(format!("limits: no {} limit ({why})", limit.controller()));
        }
        report.missing.push(
            "network: no way out of a sprite; gateways reach in, programs inside reach each other".into(),
        );
        report
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
    match try_ids(settings)? {
        Ids::Range { base } => IdPool::of_ranges(layout, base),
        single @ Ids::Single { .. } => Ok(IdPool::of_one(single)),
    }
}

/// The kind of ids that sprites get, tried out.
fn try_ids(settings: &Settings) -> io::Result<Ids> {
    let user = nix::unistd::geteuid();
    // Root has no choice: if its sprites had its own id, root inside would be root outside.
    let ids = if user.is_root() {
        Ids::Range { base: settings.first_id }
    } else {
        Ids::Single { uid: user.as_raw(), gid: nix::unistd::getegid().as_raw() }
    };
    try_namespaces(ids).map_err(|error| {
        let LaunchError { step, source } = error;
        io::Error::new(source.kind(), format!("could not {step}: {source}; {}", advice(user.is_root())))
    })?;
    Ok(ids)
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
