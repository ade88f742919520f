//! What this host lets the driver do.

use std::{
    fmt, io,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{Settings, arguments::Runs, settings::Accelerator};
use crate::drivers::{kvm, size::Host};

/// The oldest QEMU whose states can leave the RAM out.
const OLDEST_MAJOR: u32 = 7;
/// Over how long the time stamp counter is compared with the host's clock.
const TSC_SPAN: Duration = Duration::from_millis(50);

/// What was found.
#[derive(Debug)]
pub(crate) struct Report {
    /// QEMU, as it calls itself; or what is wrong with it, and what to do.
    pub(super) version: Result<String, String>,
    /// How machines run; or why they can't.
    pub(super) runs: Result<Runs, String>,
    /// What KVM is good for here.
    kvm: Result<Duration, String>,
    shortfall: Option<String>,
}

impl Report {
    /// Looks. Blocks, for seconds at worst.
    pub(super) fn of_host(settings: &Settings) -> Self {
        let kvm = match settings.accelerator {
            Accelerator::Tcg => Err("not asked: qemu.accelerator is \"tcg\"".to_owned()),
            Accelerator::Auto | Accelerator::Kvm => kvm::time(),
        };
        let runs = match (settings.accelerator, &kvm) {
            (Accelerator::Tcg, _) => Ok(Runs::Tcg),
            (Accelerator::Auto, Ok(time)) if *time <= kvm::LIMIT => Ok(Runs::Kvm),
            (Accelerator::Auto, _) => Ok(Runs::Tcg),
            (Accelerator::Kvm, Ok(_)) => Ok(Runs::Kvm),
            (Accelerator::Kvm, Err(why)) => {
                Err(format!("{why}; set qemu.accelerator = \"tcg\" to do without KVM"))
            }
        };
        let shortfall = Host::look().ok().and_then(|host| settings.size().shortfall(host));
        Self { version: version(&settings.program), runs, kvm, shortfall }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Ok(version) => writeln!(f, "QEMU       {version}")?,
            Err(why) => writeln!(f, "QEMU       no: {why}")?,
        }
        match &self.kvm {
            Ok(time) => writeln!(
                f,
                "KVM        {} loops of a guest took {time:?} (at most {:?} is believed)",
                kvm::LOOPS,
                kvm::LIMIT
            )?,
            Err(why) => writeln!(f, "KVM        no: {why}")?,
        }
        match &self.runs {
            Ok(Runs::Kvm) => writeln!(f, "machines   run on the host's CPU")?,
            Ok(Runs::Tcg) => writeln!(f, "machines   are translated (TCG): several times slower than a CPU")?,
            Err(why) => writeln!(f, "machines   can't run: {why}")?,
        }
        match &self.shortfall {
            Some(shortfall) => write!(f, "sizes      {shortfall}"),
            None => write!(f, "sizes      the host is large enough for the defaults"),
        }
    }
}

fn version(program: &Path) -> Result<String, String> {
    let missing = |error: io::Error| {
        format!(
            "could not run {} ({error}); install it (on Debian: apt-get install qemu-system-x86 qemu-utils) or name it in qemu.program",
            program.display()
        )
    };
    let output = Command::new(program).arg("-version").output().map_err(missing)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    let major = line.split_whitespace().find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major >= OLDEST_MAJOR => Ok(line),
        Some(_) => Err(format!("{line} is too old: version {OLDEST_MAJOR}.2 or newer is needed")),
        None => Err(format!("{} does not say which version it is", program.display())),
    }
}

/// The speed of the time stamp counter. Blocks for [`TSC_SPAN`].
#[cfg(target_arch = "x86_64")]
pub(super) fn tsc_khz() -> Option<u64> {
    use std::arch::x86_64::_rdtsc;
    // SAFETY: reads a register.
    let now = || (unsafe { _rdtsc() }, Instant::now());
    let (first, began) = now();
    std::thread::sleep(TSC_SPAN);
    let (second, ended) = now();
    let micros = (ended - began).as_micros();
    let khz = u128::from(second.checked_sub(first)?) * 1000 / micros;
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// Other processors have timers of their own.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const fn tsc_khz() -> Option<u64> {
    None
}
