//! Which TCP ports are listened on, by whom, and in what order they were opened.
//!
//! The kernel tells nobody when a port is opened, so the table is read, by one task for all who care: up to a
//! thousand times a second while dials wait, and every [`POLL`] while a client watches. The host, which always
//! cares, is in no hurry: for it the table is read more and more seldom, unless something has begun
//! that may open a port. The kernel walks through the listeners of all sprites for each of them, and a thousand
//! idle ones that looked seven times a second would keep a processor busy.

mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use frames::PortNotice;
use ids::Port;
use runtime_api::ListeningPort;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

/// How long a new port may go unnoticed. A dial does not wait for it: it tries the port itself.
const POLL: Duration = Duration::from_millis(150);

/// How long it may go unnoticed by the host when nothing has begun or changed for a while.
const LONGEST_CALM: Duration = Duration::from_secs(5);

/// A timer that is so late was not late: its sprite was paused.
const OVERSLEPT: Duration = Duration::from_millis(500);

/// Between two looks while a dial waits: this at first, so that what starts quickly is reached quickly,
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// and this in the end, so that what starts slowly is not slowed down.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Ports whose protocol is known not to be HTTP: ssh, smtp, dns, pop3, imap, ldap, databases, caches,
/// brokers. [`Ports::first_http`] passes over them.
const NOT_HTTP: &[u16] = &[
    21, 22, 23, 25, 53, 110, 139, 143, 389, 445, 465, 587, 636, 993, 995, 1433, 1521, 3306, 5432, 5672, 6379,
    9042, 9092, 11211, 27017,
];
/// A socket that listens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Listener {
    /// Its port.
    pub(crate) port: Port,
    /// The address that it is bound to.
    pub(crate) address: IpAddr,
}

/// The table as it was read last.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    known: Mutex<Known>,
    /// Changes when a port is opened or closed.
    changes: watch::Sender<u64>,
    /// How many want to hear of changes at once.
    waiting: AtomicUsize,
    /// How many want to hear of them soon.
    watching: AtomicUsize,
    /// How many want to hear of them some time.
    attending: AtomicUsize,
    /// Somebody new does.
    wanted: Notify,
    /// The host, which attends already, has come back: the machine woke, most likely, and has more urgent things to do.
    back: Notify,
}

/// Somebody who wants to hear of changes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    count: &'a AtomicUsize,
    changes: watch::Receiver<u64>,
}

impl Waiting<'_> {
    /// Resolves when a port has been opened or closed since the last call, or since this was made. Cancel
    /// safe.
    pub(crate) async fn changed(&mut self) {
        // Its sender lives as long as we do.
        let _open = self.changes.changed().await;
    }

    /// The next [`changed`](Self::changed) resolves at once.
    pub(crate) fn mark_changed(&mut self) {
        self.changes.mark_changed();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Known {
    listeners: BTreeMap<Listener, Details>,
    opened: u64,
}

#[derive(Clone, Copy, Debug)]
struct Details {
    /// The how-manieth to be opened since boot.
    order: u64,
    pid: Option<u32>,
}

impl Ports {
    /// Begins to wait for changes: none that happens from now on is missed, and each is noticed at once.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.count(&self.waiting, &self.wanted)
    }

    /// Begins to watch: none that happens from now on is missed, and each is noticed within [`POLL`].
    pub(crate) fn watch(&self) -> Waiting<'_> {
        self.count(&self.watching, &self.wanted)
    }

    /// Begins to attend: none that happens from now on is missed, and each is noticed within [`LONGEST_CALM`].
    pub(crate) fn attend(&self) -> Waiting<'_> {
        match self.attending.load(Ordering::Relaxed) {
            0 => self.count(&self.attending, &self.wanted),
            _ => self.count(&self.attending, &self.back),
        }
    }

    /// Something has begun that may open a port.
    pub(crate) fn stir(&self) {
        self.wanted.notify_one();
    }

    fn count<'a>(&'a self, count: &'a AtomicUsize, news: &Notify) -> Waiting<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        news.notify_one();
        Waiting { count, changes: self.changes.subscribe() }
    }

    /// Looks for those who care, for ever.
    pub(crate) async fn look(&self) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        let (mut pause, mut calm) = (FIRST_PAUSE, POLL);
        // Whether the next look has been put off.
        let mut put_off = false;
        loop {
            let rest = match (count(&self.waiting), count(&self.watching), count(&self.attending)) {
                (1.., _, _) => Some(pause),
                (0, 1.., _) => Some(POLL),
                (0, 0, 1..) => Some(calm),
                (0, 0, 0) => None,
            };
            let began = Instant::now();
            let notified = tokio::select! {
                () = self.wanted.notified() => true,
                () = self.back.notified(), if !put_off => {
                    put_off = true;
                    continue;
                }
                () = sleep(rest.unwrap_or_default()), if rest.is_some() => false,
            };
            put_off = false;
            // Time stood still for the sprite, and nothing happened in it. That many wake at once is no reason for all of
            // them to look at once.
            if !notified && rest.is_some_and(|rest| began.elapsed() > rest + OVERSLEPT) {
                continue;
            }
            let before = *self.changes.borrow();
            self.refresh();
            let has_changed = *self.changes.borrow() != before;
            // A newcomer may wait for something quick.
            (pause, calm) = match notified {
                true => (FIRST_PAUSE, POLL),
                false if has_changed => (pause, POLL),
                false => ((pause * 2).min(LONGEST_PAUSE), (calm * 2).min(LONGEST_CALM)),
            };
        }
    }

    /// Reads the kernel's table, and returns all who listen now, in the order of their opening (as
    /// far as it was seen).
    pub(crate) fn refresh(&self) -> Vec<(Listener, Option<u32>)> {
        let now = table::read();
        if self.lock().update(&now) {
            self.changes.send_modify(|number| *number += 1);
        }
        self.known()
    }

    /// Those who listened at the last look, in the order of their opening.
    pub(crate) fn known(&self) -> Vec<(Listener, Option<u32>)> {
        let known = self.lock();
        let mut all: Vec<_> = known.listeners.iter().collect();
        all.sort_by_key(|(_, details)| details.order);
        all.into_iter().map(|(listener, details)| (*listener, details.pid)).collect()
    }

    /// The ports that are listened on now, in ascending order.
    pub(crate) fn listening(&self) -> Vec<Port> {
        let ports: BTreeSet<Port> = self.refresh().into_iter().map(|(listener, _)| listener.port).collect();
        ports.into_iter().collect()
    }

    /// Of the ports that were listened on at the last look and may speak HTTP, the first to be opened.
    pub(crate) fn first_http(&self) -> Option<Port> {
        let known = self.lock();
        let http = known.listeners.iter().filter(|(listener, _)| !NOT_HTTP.contains(&listener.port.get()));
        http.min_by_key(|(_, details)| details.order).map(|(listener, _)| listener.port)
    }

    /// Addresses at which `port` was listened on at the last look.
    pub(crate) fn addresses(&self, port: Port) -> Vec<IpAddr> {
        let known = self.lock();
        known
            .listeners
            .keys()
            .filter(|listener| listener.port == port)
            .map(|listener| listener.address)
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes what is now; `true` if that is something new.
    fn update(&mut self, now: &BTreeMap<Listener, u64>) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|listener, _| now.contains_key(listener));
        let closed = self.listeners.len() < before;
        let new: BTreeMap<u64, Listener> = now
            .iter()
            .filter(|(listener, _)| !self.listeners.contains_key(listener))
            .map(|(listener, inode)| (*inode, *listener))
            .collect();
        if new.is_empty() {
            return closed;
        }
        let owners = owners_of(&new.keys().copied().collect());
        // Of two that were opened between two looks, the one with the smaller inode was made first.
        for (inode, listener) in new {
            self.opened += 1;
            let details = Details { order: self.opened, pid: owners.get(&inode).copied() };
            self.listeners.insert(listener, details);
        }
        true
    }
}

/// As it is told to the host.
pub(crate) fn to_wire(listener: Listener, pid: Option<u32>) -> ListeningPort {
    ListeningPort { port: listener.port, address: listener.address.to_string(), pid }
}

/// As it is told to a client.
pub(crate) fn to_notice(listener: Listener, pid: Option<u32>) -> PortNotice {
    // What every address of the sprite leads to, its own name leads to.
    let local = listener.address.is_unspecified() || listener.address.is_loopback();
    let address = if local { "localhost".to_owned() } else { listener.address.to_string() };
    PortNotice { port: listener.port.get(), address, pid }
}

/// Which process has each of these sockets open; one that shares it is as good as another.
fn owners_of(inodes: &BTreeSet<u64>) -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Not those that have ended meanwhile, nor those whose files we may not see.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                found.entry(inode).or_insert(pid);
            }
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_seen_with_its_owner_while_it_is_open() {
        let ports = Ports::default();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::try_from(socket.local_addr().unwrap().port()).unwrap();
        let seen = ports.refresh().into_iter().find(|(listener, _)| listener.port == port);
        assert_eq!(seen.and_then(|(_, pid)| pid), Some(std::process::id()));
        assert_eq!(ports.addresses(port), [IpAddr::from([127, 0, 0, 1])]);
        drop(socket);
        assert!(!ports.listening().contains(&port));
        assert!(ports.addresses(port).is_empty());
    }
}
