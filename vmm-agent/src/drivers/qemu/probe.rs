//! What this host lets the driver do.

use std::{
    fmt, io,
    path::Path,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use kvm_ioctls::{Kvm, VcpuExit};

use super::{
    Settings,
    arguments::Runs,
    settings::{Accelerator, Host},
};

/// The oldest QEMU whose states can leave the RAM out.
const OLDEST_MAJOR: u32 = 7;
/// How often the loop that times KVM runs: some microseconds on a CPU, and longer than [`KVM_LIMIT`] where
/// each instruction is emulated.
const LOOPS: u16 = 50_000;
/// What the loop may take. TCG is faster than a KVM beyond it.
const KVM_LIMIT: Duration = Duration::from_millis(5);
/// How long the answer is waited for at all.
const KVM_PATIENCE: Duration = Duration::from_secs(2);
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
            Accelerator::Auto | Accelerator::Kvm => time_kvm(),
        };
        let runs = match (settings.accelerator, &kvm) {
            (Accelerator::Tcg, _) => Ok(Runs::Tcg),
            (Accelerator::Auto, Ok(time)) if *time <= KVM_LIMIT => Ok(Runs::Kvm),
            (Accelerator::Auto, _) => Ok(Runs::Tcg),
            (Accelerator::Kvm, Ok(_)) => Ok(Runs::Kvm),
            (Accelerator::Kvm, Err(why)) => {
                Err(format!("{why}; set qemu.accelerator = \"tcg\" to do without KVM"))
            }
        };
        let shortfall = Host::look().ok().and_then(|host| settings.shortfall(host));
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
                "KVM        {LOOPS} loops of a guest took {time:?} (at most {KVM_LIMIT:?} is believed)"
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

/// How long a tiny guest takes on KVM: that the device can be opened says little, for there are hosts whose KVM
/// emulates each instruction, a thousand times slower than a CPU.
fn time_kvm() -> Result<Duration, String> {
    let (sender, answer) = mpsc::channel();
    // One that never answers costs a thread, once.
    std::thread::spawn(move || sender.send(run_loop()));
    match answer.recv_timeout(KVM_PATIENCE) {
        Ok(timed) => timed,
        Err(_) => Err(format!("a guest of {LOOPS} loops did not end within {KVM_PATIENCE:?}")),
    }
}

fn run_loop() -> Result<Duration, String> {
    const MEMORY: usize = 0x1000;
    /// Where the code lies in the guest's memory.
    const START: u64 = 0x100;
    let failed = |what: &'static str| move |error: kvm_ioctls::Error| format!("could not {what}: {error}");
    let kvm = Kvm::new().map_err(|error| format!("could not open /dev/kvm: {error}"))?;
    let machine = kvm.create_vm().map_err(failed("make a machine"))?;
    let mut memory = vec![0u8; 2 * MEMORY];
    // The kernel wants whole pages.
    let aligned = memory.as_ptr().align_offset(MEMORY);
    let [low, high] = LOOPS.to_le_bytes();
    // mov cx, LOOPS; again: dec cx; jnz again; hlt
    let code = [0xb9, low, high, 0x49, 0x75, 0xfd, 0xf4];
    let at = aligned + START as usize;
    memory[at..at + code.len()].copy_from_slice(&code);
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory[aligned..].as_ptr() as u64,
    };
    // SAFETY: the memory outlives the machine, which is dropped first, and nothing else uses it meanwhile.
    unsafe { machine.set_user_memory_region(region) }.map_err(failed("give it memory"))?;
    let mut cpu = machine.create_vcpu(0).map_err(failed("give it a CPU"))?;
    let mut special = cpu.get_sregs().map_err(failed("read its registers"))?;
    special.cs.base = 0;
    special.cs.selector = 0;
    cpu.set_sregs(&special).map_err(failed("set its registers"))?;
    let mut registers = cpu.get_regs().map_err(failed("read its registers"))?;
    registers.rip = START;
    registers.rflags = 2;
    cpu.set_regs(&registers).map_err(failed("set its registers"))?;
    let began = Instant::now();
    loop {
        match cpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(other) => return Err(format!("a guest stopped for {other:?}")),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(format!("a guest could not run: {error}")),
        }
    }
    let took = began.elapsed();
    drop(cpu);
    drop(machine);
    drop(memory);
    Ok(took)
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
