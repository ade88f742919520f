//! Whether KVM runs guests, and at a CPU's speed.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use kvm_ioctls::{Kvm, VcpuExit};

/// How often the loop that times KVM runs: some microseconds on a CPU, and longer than [`LIMIT`] where
/// each instruction is emulated.
pub(super) const LOOPS: u16 = 50_000;
/// What the loop may take. TCG is faster than a KVM beyond it.
pub(super) const LIMIT: Duration = Duration::from_millis(5);
/// How long the answer is waited for at all.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a tiny guest takes on KVM: that the device can be opened says little, for there are hosts whose KVM
/// emulates each instruction, a thousand times slower than a CPU.
pub(super) fn time() -> Result<Duration, String> {
    let (sender, answer) = mpsc::channel();
    // One that never answers costs a thread, once.
    std::thread::spawn(move || sender.send(run_loop()));
    match answer.recv_timeout(PATIENCE) {
        Ok(timed) => timed,
        Err(_) => Err(format!("a guest of {LOOPS} loops did not end within {PATIENCE:?}")),
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
