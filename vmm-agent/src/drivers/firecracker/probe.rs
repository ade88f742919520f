//! What this host lets the driver do.

use std::{
    fmt, io,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::Settings;
use crate::drivers::kvm;

/// For people, one line each.
#[derive(Debug)]
pub(crate) struct Report {
    program: Result<String, io::Error>,
    kvm: Result<Duration, io::Error>,
    jailer: Option<Result<String, io::Error>>,
}

impl Report {
    pub(super) fn of_host(settings: &Settings) -> Self {
        Self {
            program: version(&settings.program),
            kvm: kvm(),
            jailer: settings.jailer.as_deref().map(|jailer| version(jailer).and_then(as_root)),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |found: &Result<String, io::Error>| match found {
            Ok(text) => text.clone(),
            Err(error) => format!("unusable: {error}"),
        };
        writeln!(f, "firecracker  {}", said(&self.program))?;
        match &self.kvm {
            Ok(took) => writeln!(f, "KVM          runs guests ({} loops took {took:?})", kvm::LOOPS)?,
            Err(error) => writeln!(f, "KVM          unusable: {error}")?,
        }
        match &self.jailer {
            Some(jailer) => write!(f, "jailer       {}", said(jailer)),
            None => write!(f, "jailer       not asked for: machines run as the agent's user"),
        }
    }
}

/// What Firecracker says its version is, if sprites can be run with it.
pub(super) fn usable(settings: &Settings) -> io::Result<String> {
    let version = version(&settings.program)?;
    kvm()?;
    if let Some(jailer) = &settings.jailer {
        self::version(jailer).and_then(as_root)?;
    }
    Ok(version)
}

fn version(program: &Path) -> io::Result<String> {
    let failed = |what: String| {
        io::Error::other(format!("{} {what}; [firecracker] names it in the configuration", program.display()))
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("can't be run ({error})")))?;
    // It says more of itself in the lines that follow.
    let text = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
    if !output.status.success() || text.is_empty() {
        return Err(failed(format!("--version failed ({})", output.status)));
    }
    Ok(text)
}

fn kvm() -> io::Result<Duration> {
    let advice = |what: String| {
        io::Error::other(format!(
            "{what}; Firecracker needs a KVM that runs guests, the `qemu` driver does not"
        ))
    };
    match kvm::time().map_err(advice)? {
        took if took <= kvm::LIMIT => Ok(took),
        took => Err(advice(format!(
            "{} loops of a guest took {took:?}: its instructions are emulated",
            kvm::LOOPS
        ))),
    }
}

fn as_root(version: String) -> io::Result<String> {
    if nix::unistd::geteuid().is_root() {
        return Ok(version);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the jailer needs an agent that is root"))
}
