//! Gives a machine its memory page by page, as it asks for it: the other end of Firecracker's `Uffd` back end.
//!
//! It is the agent's own binary, executed again, one process for each machine that was loaded this way, because it must
//! outlive the agent: a machine whose pages nobody brings stands still for ever.
//!
//! ```text
//! agent                    pager                           Firecracker
//!   ├─ listener, file ─────▶ wait ◀──────────────────────── connect: regions, userfaultfd
//!   │                         ├─ read file, UFFDIO_COPY ───▶ (a page that was missed, and those after it)
//!   │                         └─ UFFDIO_ZEROPAGE ──────────▶ (a page that the balloon had taken)
//!   │                        exit ◀─────────────────────────  exit
//! ```

use std::{
    fs::File,
    io::{self, IoSliceMut, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{FileExt as _, chown},
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sockopt},
    unistd::Pid,
};
use serde::Deserialize;

use super::layout::{Files, open_own};
use crate::drivers::{
    files::remove_if_there,
    pid::{self, Identity, Watched},
};

/// The argument that makes the agent's binary a pager.
pub(super) const ARGUMENT: &str = "--sprite-pager";
/// How long Firecracker may take to connect, in milliseconds: it was told to at once.
const CONNECT_LIMIT_MS: u16 = 10_000;
/// The longest description of a machine's memory; it has a region or two.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
const PAGE: u64 = 4096;
/// How many pages are brought at once: programs go on to the next one more often than not, and each fault
/// costs two switches of context.
const AHEAD: usize = 16;

/// Starts a pager for the memory of this name. It ends with the machine, or if none comes.
///
/// Needs a tokio runtime.
pub(super) fn start(files: &Files, memory: &str, uid: Option<u32>) -> io::Result<(Watched, Identity)> {
    remove_if_there(&files.pager())?;
    let listener = UnixListener::bind(files.pager())?;
    chown(files.pager(), uid, uid)?;
    let child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .arg(files.machine().join(memory))
        .env_clear()
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(File::options().append(true).open(files.log())?)
        .process_group(0)
        .spawn()?;
    Watched::child(Pid::from_raw(child.id().cast_signed()))
}

/// Becomes the pager, and never returns, if that is what this process was executed for.
pub(crate) fn run_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    let asked = arguments.next().is_some_and(|first| first == ARGUMENT);
    if let (true, Some(memory), None) = (asked, arguments.next(), arguments.next()) {
        // SAFETY: standard input is the listener that the agent gave us; nothing else here uses it.
        let listener = unsafe { UnixListener::from_raw_fd(libc::STDIN_FILENO) };
        let outcome = open_own(Path::new(&memory)).and_then(|memory| serve(&listener, &memory));
        if let Err(error) = &outcome {
            eprintln!("pager: {error}");
        }
        std::process::exit(i32::from(outcome.is_err()));
    }
}

/// A part of the guest's memory, as Firecracker describes it.
#[derive(Clone, Debug, Deserialize)]
struct Region {
    /// Where it is in Firecracker's address space.
    base_host_virt_addr: u64,
    size: u64,
    /// Where it is in the file.
    offset: u64,
}

/// What is known of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    /// In the file, and nowhere else.
    Absent,
    /// The machine has it.
    Present,
    /// The machine has given it back: it is zero now.
    GivenBack,
}

#[derive(Debug)]
struct Memory {
    file: File,
    regions: Vec<(Region, Vec<Page>)>,
}

/// What to do about a page that was missed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fill {
    Copy {
        to: u64,
        from: u64,
        length: u64,
    },
    Zero {
        at: u64,
    },
    /// It came meanwhile.
    Nothing,
}

/// Serves one machine, to its end.
fn serve(listener: &UnixListener, memory: &File) -> io::Result<()> {
    let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    if poll(&mut wanted, CONNECT_LIMIT_MS)? == 0 {
        return Err(io::Error::other("nobody has connected"));
    }
    let (stream, _) = listener.accept()?;
    let (regions, faults) = receive(&stream)?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    let machine = pid::open(Pid::from_raw(peer.pid()))?;
    let mut memory = Memory::new(memory.try_clone()?, regions);
    let mut buffer = vec![0; AHEAD * PAGE as usize];
    loop {
        let mut wanted =
            [PollFd::new(faults.as_fd(), PollFlags::POLLIN), PollFd::new(machine.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if wanted[1].any() == Some(true) {
            return Ok(());
        }
        // All that are there: a page that is being given back must be known before it is asked for again.
        let mut missed = Vec::new();
        while let Some(event) = next_event(&faults)? {
            match event {
                Event::Missed { address } => missed.push(address),
                Event::GivenBack { start, end } => memory.give_back(start, end),
                Event::Other => {}
            }
        }
        for address in missed {
            let fill = memory.fill(address);
            if !perform(&faults, &memory.file, fill, &mut buffer)? {
                // Refused while something is given back: said next. The fault is told again by nobody.
                memory.undo(fill);
                retry(&faults, &mut memory, address, &mut buffer)?;
            }
        }
    }
}

/// Tries a page until it is there: between the tries, what is given back is heard.
fn retry(faults: &File, memory: &mut Memory, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut waiting = vec![address];
    while let Some(address) = waiting.pop() {
        while let Some(event) = next_event(faults)? {
            match event {
                Event::Missed { address } => waiting.push(address),
                Event::GivenBack { start, end } => memory.give_back(start, end),
                Event::Other => {}
            }
        }
        let fill = memory.fill(address);
        if !perform(faults, &memory.file, fill, buffer)? {
            memory.undo(fill);
            waiting.push(address);
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Reads the message with which Firecracker begins.
fn receive(stream: &UnixStream) -> io::Result<(Vec<Region>, File)> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = cmsg_space!([RawFd; 1]);
    let (length, faults) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let received = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(received) => received.first().copied(),
            _ => None,
        });
        (message.bytes, received)
    };
    let faults = faults.ok_or_else(|| io::Error::other("no userfaultfd came with the regions"))?;
    // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
    let faults = File::from(unsafe { OwnedFd::from_raw_fd(faults) });
    nix::fcntl::fcntl(&faults, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok((serde_json::from_slice(&bytes[..length])?, faults))
}

impl Memory {
    fn new(file: File, regions: Vec<Region>) -> Self {
        let pages = |region: &Region| vec![Page::Absent; usize::try_from(region.size / PAGE).unwrap_or(0)];
        let regions = regions.into_iter().map(|region| (region.clone(), pages(&region))).collect();
        Self { file, regions }
    }

    fn give_back(&mut self, start: u64, end: u64) {
        for (region, pages) in &mut self.regions {
            let index = |address: u64| {
                let bytes = address
                    .clamp(region.base_host_virt_addr, region.base_host_virt_addr + region.size)
                    - region.base_host_virt_addr;
                usize::try_from(bytes / PAGE).unwrap_or(usize::MAX)
            };
            pages[index(start)..index(end)].fill(Page::GivenBack);
        }
    }

    /// Decides about the page at `address`, and some after it, and notes it as done.
    fn fill(&mut self, address: u64) -> Fill {
        let inside = |region: &Region| {
            address.checked_sub(region.base_host_virt_addr).is_some_and(|at| at < region.size)
        };
        let Some((region, pages)) = self.regions.iter_mut().find(|(region, _)| inside(region)) else {
            return Fill::Nothing;
        };
        let offset = (address - region.base_host_virt_addr) / PAGE;
        let Ok(first) = usize::try_from(offset) else { return Fill::Nothing };
        let at = region.base_host_virt_addr + offset * PAGE;
        match pages[first] {
            Page::Present => Fill::Nothing,
            Page::GivenBack => {
                pages[first] = Page::Present;
                Fill::Zero { at }
            }
            Page::Absent => {
                let run = pages[first..].iter().take(AHEAD).take_while(|page| **page == Page::Absent).count();
                pages[first..first + run].fill(Page::Present);
                Fill::Copy { to: at, from: region.offset + offset * PAGE, length: run as u64 * PAGE }
            }
        }
    }

    /// Notes that what [`fill`](Self::fill) decided was not done.
    fn undo(&mut self, fill: Fill) {
        let (start, length, page) = match fill {
            Fill::Copy { to, length, .. } => (to, length, Page::Absent),
            Fill::Zero { at } => (at, PAGE, Page::GivenBack),
            Fill::Nothing => return,
        };
        for (region, pages) in &mut self.regions {
            if let Some(at) = start.checked_sub(region.base_host_virt_addr).filter(|at| *at < region.size) {
                let first = usize::try_from(at / PAGE).unwrap_or(usize::MAX);
                pages[first..first + usize::try_from(length / PAGE).unwrap_or(0)].fill(page);
            }
        }
    }
}

// The kernel's include/uapi/linux/userfaultfd.h.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
const MESSAGE_BYTES: usize = 32;

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    length: u64,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

enum Event {
    Missed { address: u64 },
    GivenBack { start: u64, end: u64 },
    Other,
}

/// The next event that has come already.
fn next_event(faults: &File) -> io::Result<Option<Event>> {
    let mut message = [0; MESSAGE_BYTES];
    let mut events = faults;
    match events.read(&mut message) {
        Ok(MESSAGE_BYTES) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let word = |at: usize| message[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    Ok(Some(match message[0] {
        EVENT_PAGEFAULT => Event::Missed { address: word(16) },
        EVENT_REMOVE => Event::GivenBack { start: word(8), end: word(16) },
        _ => Event::Other,
    }))
}

/// Gives a page. `false` if the kernel wants to be asked again.
fn perform(faults: &File, file: &File, fill: Fill, buffer: &mut [u8]) -> io::Result<bool> {
    let done = match fill {
        Fill::Nothing => return Ok(true),
        Fill::Copy { to, from, length } => {
            let room = usize::try_from(length).map_err(io::Error::other)?;
            file.read_exact_at(&mut buffer[..room], from)?;
            let mut copy = Copy { to, from: buffer.as_ptr() as u64, length, mode: 0, copied: 0 };
            // SAFETY: the kernel reads `length` bytes of `buffer`, which is as long, and writes them into the other
            // process, and to `copied`; the structure is the one that this request takes.
            unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_COPY, &raw mut copy) }
        }
        Fill::Zero { at } => {
            let mut zero = Zero { start: at, length: PAGE, mode: 0, zeroed: 0 };
            // SAFETY: the kernel writes into the other process, and to `zeroed`; the structure is this request's.
            unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zero) }
        }
    };
    match Errno::result(done) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(Errno::EEXIST) => match fill {
            // A try that was broken off has brought some of them.
            Fill::Copy { to, from, length } if length > PAGE => {
                let pages = (0..length / PAGE).map(|page| page * PAGE);
                let one = |at| Fill::Copy { to: to + at, from: from + at, length: PAGE };
                pages.map(one).try_fold(true, |done, page| Ok(done & perform(faults, file, page, buffer)?))
            }
            _ => wake(faults, fill).map(|()| true),
        },
        // The machine is gone, which is seen next.
        Err(Errno::ESRCH | Errno::ENOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn wake(faults: &File, fill: Fill) -> io::Result<()> {
    let (Fill::Copy { to: start, .. } | Fill::Zero { at: start }) = fill else { return Ok(()) };
    let mut range = Range { start, length: PAGE };
    // SAFETY: takes two numbers, in the structure of this request.
    Errno::result(unsafe { libc::ioctl(faults.as_raw_fd(), UFFDIO_WAKE, &raw mut range) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::paged::{AT, BYTES, Paged},
        *,
    };

    /// With the kernel's own userfaultfd, as the real Firecracker uses it.
    #[test]
    fn a_process_finds_the_file_in_its_memory_and_zero_in_what_it_gave_back() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("p.sock"), dir.path().join("memory"));
        let content: Vec<u8> = (0..BYTES).map(|index| (index / 4096) as u8 + 1).collect();
        std::fs::write(&file, content).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let file = File::open(file).unwrap();
        // It ends with this process: whose memory it is lives as long as the pager does.
        std::thread::spawn(move || serve(&listener, &file).unwrap());
        let memory = Paged::connect(&socket).unwrap();
        assert_eq!(memory.byte(AT + 5), 38);
        for page in (0..BYTES / 4096).rev() {
            assert_eq!(usize::from(memory.byte(page * 4096 + 4095)), page + 1);
        }
        memory.give_back(7);
        memory.give_back(40);
        assert_eq!((memory.byte(7 * 4096), memory.byte(8 * 4096), memory.byte(40 * 4096)), (0, 9, 0));
    }

    fn memory() -> Memory {
        let regions = vec![
            Region { base_host_virt_addr: 0x10_0000, size: 64 * PAGE, offset: 0 },
            Region { base_host_virt_addr: 0x90_0000, size: 8 * PAGE, offset: 64 * PAGE },
        ];
        Memory::new(File::open("/dev/null").unwrap(), regions)
    }

    #[test]
    fn a_page_comes_with_those_after_it_and_once() {
        let mut memory = memory();
        let run = |to, from, pages| Fill::Copy { to, from, length: pages * PAGE };
        assert_eq!(memory.fill(0x10_0123), run(0x10_0000, 0, AHEAD as u64));
        assert_eq!(memory.fill(0x10_1000), Fill::Nothing);
        assert_eq!(memory.fill(0x90_5fff), run(0x90_5000, 69 * PAGE, 3), "up to the region's end");
        assert_eq!(memory.fill(0x90_3000), run(0x90_3000, 67 * PAGE, 2), "up to one that is there");
        assert_eq!(memory.fill(0x50_0000), Fill::Nothing, "nobody's");
    }

    #[test]
    fn a_page_that_was_given_back_is_zero_and_not_what_is_in_the_file() {
        let mut memory = memory();
        memory.fill(0x10_0000);
        memory.give_back(0x10_2000, 0x10_4000);
        assert_eq!(memory.fill(0x10_2000), Fill::Zero { at: 0x10_2000 });
        assert_eq!(memory.fill(0x10_2000), Fill::Nothing);
        memory.give_back(0x90_0000, 0x9f_0000);
        assert_eq!(memory.fill(0x90_7000), Fill::Zero { at: 0x90_7000 });
        assert_eq!(memory.fill(0x10_3000), Fill::Zero { at: 0x10_3000 });
    }

    #[test]
    fn what_was_not_done_is_decided_again() {
        let mut memory = memory();
        let first = memory.fill(0x10_0000);
        memory.undo(first);
        memory.give_back(0x10_1000, 0x10_2000);
        assert_eq!(memory.fill(0x10_0000), Fill::Copy { to: 0x10_0000, from: 0, length: PAGE });
    }
}
