//! What a sprite's processes can't do, whoever they are inside.

use std::{collections::BTreeMap, io};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::{
    super::sys,
    plan::{Failure, Step as _},
};

/// Linux capabilities (capabilities(7)) that root keeps inside: what containers usually have. Each is
/// only over what the sprite's own namespaces own.
const KEPT_CAPABILITIES: u64 = {
    const CHOWN: u64 = 0;
    const DAC_OVERRIDE: u64 = 1;
    const FOWNER: u64 = 3;
    const FSETID: u64 = 4;
    const KILL: u64 = 5;
    const SETGID: u64 = 6;
    const SETUID: u64 = 7;
    const SETPCAP: u64 = 8;
    const NET_BIND_SERVICE: u64 = 10;
    const NET_RAW: u64 = 13;
    const SYS_CHROOT: u64 = 18;
    const MKNOD: u64 = 27;
    const AUDIT_WRITE: u64 = 29;
    const SETFCAP: u64 = 31;
    1 << CHOWN
        | 1 << DAC_OVERRIDE
        | 1 << FOWNER
        | 1 << FSETID
        | 1 << KILL
        | 1 << SETGID
        | 1 << SETUID
        | 1 << SETPCAP
        | 1 << NET_BIND_SERVICE
        | 1 << NET_RAW
        | 1 << SYS_CHROOT
        | 1 << MKNOD
        | 1 << AUDIT_WRITE
        | 1 << SETFCAP
};

/// System calls that a sandbox never needs and that widen what of the kernel can be attacked, or
/// that would undo the sprite's walls.
const DENIED: &[libc::c_long] = &[
    // Kernel code and its replacement.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    // Interfaces with a long history of escapes.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keyrings are not namespaced; file handles walk around the root.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    // The machine as a whole.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    // Mounts and namespaces: the sprite has those it was given.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
];

/// Puts signals back to what a program expects: the Rust runtime ignores SIGPIPE, and that survives
/// an exec.
pub(super) fn signals_to_default() -> io::Result<()> {
    // SAFETY: installs no handler, only the default.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Gives up, for this process and all it will ever start, what the sprite must not have.
pub(super) fn confine() -> Result<(), Failure> {
    sys::keep_capabilities(KEPT_CAPABILITIES).step("drop capabilities")?;
    nix::sys::prctl::set_no_new_privs().step("forbid new privileges")?;
    for program in filters().map_err(|error| Failure {
        step: format!("build the system call filter ({error})"),
        errno: libc::EINVAL,
    })? {
        seccompiler::apply_filter(&program).map_err(|error| Failure {
            step: format!("install the system call filter ({error})"),
            errno: io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL),
        })?;
    }
    Ok(())
}

/// Three programs, since each has one answer for what it matches.
fn filters() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let denied = DENIED.iter().map(|call| (*call, Vec::new()));
    // A new user namespace would give back every capability that was dropped.
    let new_user = || -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let flag = libc::CLONE_NEWUSER as u64;
        let with_flag =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
        Ok(vec![SeccompRule::new(vec![with_flag])?])
    };
    let conditional = [(libc::SYS_unshare, new_user()?), (libc::SYS_clone, new_user()?)];
    let refused = filter(denied.chain(conditional).collect(), libc::EPERM)?;
    // The flags of clone3 are in memory, where a filter can't see them. "No such call" makes every
    // C library fall back to clone.
    let unknown = filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    let mut programs = vec![refused, unknown];
    if cfg!(target_arch = "x86_64") {
        programs.push(no_x32());
    }
    Ok(programs)
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: i32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let matched = SeccompAction::Errno(errno as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, matched, architecture)?.try_into()
}

/// The x32 interface has the same calls under other numbers, which the other filters don't list: it
/// is switched off as a whole.
fn no_x32() -> BpfProgram {
    const LOAD_NUMBER: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS, of `seccomp_data.nr` at offset 0
    const JUMP_IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    vec![
        sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_of_this_architecture_compiles() {
        assert!(filters().is_ok_and(|programs| programs.len() >= 2));
    }
}
