//! The launcher: the agent's own binary, executed again with one thread, which turns itself into the
//! parent of a sprite's PID 1 and leaves.
//!
//! A user namespace can only be entered by a process with one thread, and the agent has many. So:
//!
//! ```text
//! agent                     launcher                              PID 1
//!   ├─ spawn, Build ────────▶ open the mounts (as root)
//!   │                         unshare the user namespace
//!   │◀──────────── Unshared ─┤
//!   ├─ map ids, cgroups
//!   ├─ Mapped ──────────────▶ become root inside
//!   │                         unshare the other namespaces, fork ──▶ wait
//!   │◀──────── Forked{pid} ──┤                                       │
//!   ├─ record the pid                                                │
//!   ├─ Go ──────────────────▶ ──────────────────────────────────────▶ mounts, limits of power
//!   │◀──────────── Executed ─┤◀────────────── (pipe closed by exec) ─ exec runtime
//!                             exit
//! ```
//!
//! An agent that is killed before it has recorded the pid closes the channel, and the launcher kills
//! PID 1 before its first instruction: there is no moment in which a sprite lives that nobody knows.

mod confine;
mod mounts;
mod plan;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{signal, wait},
    unistd::{self, ForkResult, Gid, Pid, Uid},
};

use plan::Step as _;
pub(super) use plan::{Channel, Failure, Ids, Order, Plan, Report};

/// The argument that makes the agent's binary a launcher.
pub(super) const ARGUMENT: &str = "--sprite-launcher";
/// How much rather than others the kernel ends a sprite's processes when memory is short, of 1000. The
/// runtime gives more to what it starts, so that it is not the first of them.
const OOM_SCORE: &str = "400";
/// Where PID 1 finds its listening socket.
const LISTENER: i32 = 3;

/// Becomes the launcher, and never returns, if that is what this process was executed for.
///
/// Must be called first in `main`, before anything starts a thread.
pub(crate) fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT) && arguments.next().is_none() {
        std::process::exit(run());
    }
}

fn run() -> i32 {
    // SAFETY: standard input is the channel that the agent gave us; nothing else here reads it.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) };
    // Moved away from 0, so that PID 1 can have a standard input of its own.
    let Ok(socket) = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(10)) else { return 1 };
    // SAFETY: just duplicated for us.
    let channel = Channel::new(unsafe { OwnedFd::from_raw_fd(socket) });
    match launch(&channel) {
        Ok(()) => 0,
        Err(failure) => {
            // The agent may be gone; then nobody wants to know.
            let _gone = channel.send(&Report::Failed(failure), None);
            1
        }
    }
}

fn launch(channel: &Channel) -> Result<(), Failure> {
    let (plan, listener) = match channel.receive().step("receive the plan")? {
        (Order::Build(plan), Some(listener)) => (plan, listener),
        (Order::Try { ids }, None) => {
            enter_user_namespace(channel, ids)?;
            enter_other_namespaces()?;
            return channel.send(&Report::Executed, None).step("report to the agent");
        }
        (Order::Build(_) | Order::Try { .. } | Order::Mapped | Order::Go, _) => return Err(out_of_order()),
    };
    // When memory is short, sprites go before the agent and the gateway. Raising it needs no right; a
    // kernel that refuses all the same changes only the order.
    let _optional = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let early = match plan.ids {
        Ids::Range { .. } => Some(mounts::Sources::open(&plan)?),
        Ids::Single { .. } => None,
    };
    enter_user_namespace(channel, plan.ids)?;
    enter_other_namespaces()?;
    let sources = match early {
        Some(sources) => sources,
        None => mounts::Sources::open(&plan)?,
    };

    let (go_read, go_write) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).step("make a pipe")?;
    let (result_read, result_write) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).step("make a pipe")?;
    // SAFETY: this process has one thread, so the child may do whatever the parent may.
    match unsafe { unistd::fork() }.step("fork PID 1")? {
        ForkResult::Child => {
            drop((go_write, result_read));
            let failure = first_process(&plan, sources, listener, File::from(go_read));
            // The launcher may be gone; then nobody wants to know.
            let _gone = serde_json::to_writer(File::from(result_write), &failure);
            std::process::exit(1);
        }
        ForkResult::Parent { child } => {
            drop((go_read, result_write, sources, listener));
            supervise(channel, child, File::from(go_write), File::from(result_read))
        }
    }
}

/// Becomes root of a new user namespace, whose ids the agent maps.
fn enter_user_namespace(channel: &Channel, ids: Ids) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).step("make a user namespace")?;
    channel.send(&Report::Unshared, None).step("report to the agent")?;
    match channel.receive().step("wait for the agent")?.0 {
        Order::Mapped => {}
        Order::Build(_) | Order::Try { .. } | Order::Go => return Err(out_of_order()),
    }
    match ids {
        Ids::Range { .. } => unistd::setgroups(&[]).step("drop supplementary groups")?,
        // The kernel forbids it; the agent's own groups stay, without a name.
        Ids::Single { .. } => {}
    }
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    unistd::setresgid(group, group, group).step("become group 0 of the sprite")?;
    unistd::setresuid(user, user, user).step("become root of the sprite")
}

fn enter_other_namespaces() -> Result<(), Failure> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .step("make mount, pid, net, ipc, uts and cgroup namespaces")
}

fn out_of_order() -> Failure {
    Failure { step: "follow the agent's orders (it sent the wrong one)".into(), errno: libc::EPROTO }
}

/// The launcher after the fork: lets PID 1 go once the agent has recorded it, and reports its exec.
fn supervise(channel: &Channel, child: Pid, mut go: File, mut result: File) -> Result<(), Failure> {
    let recorded = channel
        .send(&Report::Forked { pid: child.as_raw() }, None)
        .and_then(|()| channel.receive())
        .step("wait until the agent has recorded PID 1")
        .and_then(|(order, _)| match order {
            Order::Go => Ok(()),
            Order::Build(_) | Order::Try { .. } | Order::Mapped => Err(out_of_order()),
        });
    if let Err(failure) = recorded {
        end(child);
        return Err(failure);
    }
    let told = go.write_all(b"!").and_then(|()| {
        let mut failure = String::new();
        result.read_to_string(&mut failure)?;
        Ok(failure)
    });
    let failure = told.step("hear from PID 1")?;
    if failure.is_empty() {
        // The agent may have been killed meanwhile. It has recorded PID 1, which lives on.
        let _gone = channel.send(&Report::Executed, None);
        return Ok(());
    }
    end(child);
    Err(serde_json::from_str(&failure)
        .unwrap_or(Failure { step: format!("start PID 1 (it said {failure:?})"), errno: libc::EPROTO }))
}

fn end(child: Pid) {
    // It can't be gone before we have waited for it, so the kill finds it; a wait can only fail if it
    // is not ours, which it is.
    let _always = signal::kill(child, signal::Signal::SIGKILL);
    let _always = wait::waitpid(child, None);
}

/// PID 1 from its first instruction to its exec; returns only when a step fails.
fn first_process(plan: &Plan, sources: mounts::Sources, listener: OwnedFd, mut go: File) -> Failure {
    match become_runtime(plan, sources, listener, &mut go) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn become_runtime(
    plan: &Plan,
    sources: mounts::Sources,
    listener: OwnedFd,
    go: &mut File,
) -> Result<std::convert::Infallible, Failure> {
    go.read_exact(&mut [0]).step("wait for the launcher")?;
    unistd::setsid().step("begin a session")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    sources.become_root()?;
    super::sys::loopback_up().step("switch on the loopback interface")?;
    unistd::sethostname(&plan.hostname).step("set the host name")?;
    place_descriptors(listener).step("arrange descriptors")?;
    confine::signals_to_default().step("reset signals")?;
    confine::confine()?;

    let program = c"/.sprite/bin/runtime";
    let arguments = [c"runtime", c"--listen-fd", c"3"];
    let environment = [
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        c"LANG=C.UTF-8",
        c"HOME=/home/sprite",
    ];
    unistd::execve(program, &arguments, &environment).step("execute the runtime")
}

/// 0 is nothing, 1 and 2 are the log they were, 3 is the listening socket; the rest goes with the exec.
fn place_descriptors(listener: OwnedFd) -> io::Result<()> {
    let nothing = File::options().read(true).open("/dev/null")?;
    // SAFETY: each of the two calls replaces a descriptor number that nothing in this process owns
    // any more: 0 was moved away at the start, and what was 3 is not used after this.
    unsafe {
        if libc::dup2(nothing.as_raw_fd(), libc::STDIN_FILENO) < 0 {
            return Err(io::Error::last_os_error());
        }
        if listener.as_raw_fd() == LISTENER {
            // dup2 onto itself would leave the close-on-exec flag.
            if libc::fcntl(LISTENER, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        } else if libc::dup2(listener.as_raw_fd(), LISTENER) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // Not closed here: if the listener is 3 already, that would close it.
    let _kept_for_exec = listener.into_raw_fd();
    super::sys::close_on_exec_from(LISTENER + 1)
}
