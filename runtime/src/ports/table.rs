//! All listening TCP sockets of the sprite's network, as the kernel has them.
//!
//! Asked over netlink (sock_diag(7)), which takes 20 µs. A kernel without that has the same in
//! `/proc/net`, which takes milliseconds: it walks through the table of all connections there could be.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use ids::Port;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

use super::Listener;

/// The kernel answers within the call; this is for a kernel that does not.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The state of a listening socket: `TCP_LISTEN`.
const LISTEN: u8 = 10;

/// The sockets with their inodes.
pub(super) fn read() -> BTreeMap<Listener, u64> {
    ask_kernel().unwrap_or_else(|_| read_files())
}

fn ask_kernel() -> io::Result<BTreeMap<Listener, u64>> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    let limit = TimeVal::new(ANSWER_LIMIT.as_secs().cast_signed(), 0);
    setsockopt(&netlink, ReceiveTimeout, &limit)?;
    let mut found = BTreeMap::new();
    dump(&netlink, libc::AF_INET as u8, &mut found)?;
    match dump(&netlink, libc::AF_INET6 as u8, &mut found) {
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        other => other?,
    }
    Ok(found)
}

/// Asks for all listeners of one family: `struct nlmsghdr`, then `struct inet_diag_req_v2`.
fn dump(netlink: &OwnedFd, family: u8, found: &mut BTreeMap<Listener, u64>) -> io::Result<()> {
    const HEADER_BYTES: usize = 16;
    const REQUEST_BYTES: usize = 56;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    let mut message = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    message.extend((HEADER_BYTES as u32 + REQUEST_BYTES as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend((1u32 << LISTEN).to_ne_bytes());
    message.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    send(netlink.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = vec![0; 32 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let mut rest = &answer[..length];
        while let Some((kind, body, next)) = split_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let number = body.get(..4).map_or(libc::EPROTO, |bytes| {
                        i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).abs()
                    });
                    return Err(io::Error::from_raw_os_error(number));
                }
                _ => found.extend(parse_socket(body)),
            }
            rest = next;
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The first netlink message: its type, its body, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let aligned = length.next_multiple_of(4).min(bytes.len());
    Some((kind, body, &bytes[aligned..]))
}

/// `struct inet_diag_msg`: family, state, ..., source port (4), destination port, source address (8),
/// destination address, interface, cookie, expires, queues, uid, inode (68).
fn parse_socket(body: &[u8]) -> Option<(Listener, u64)> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    if state != LISTEN {
        return None;
    }
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let address: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from([address[0], address[1], address[2], address[3]]),
        libc::AF_INET6 => IpAddr::from(address),
        _ => return None,
    };
    let inode = u32::from_ne_bytes(body.get(68..72)?.try_into().ok()?);
    Some((Listener { port: Port::try_from(port).ok()?, address }, inode.into()))
}

fn read_files() -> BTreeMap<Listener, u64> {
    let mut found = BTreeMap::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no second table.
        if let Ok(file) = File::open(path) {
            read_file(BufReader::new(file), &mut found);
        }
    }
    found
}

/// The kernel lists those that listen before those that are connected.
fn read_file(table: impl io::BufRead, found: &mut BTreeMap<Listener, u64>) {
    for line in table.lines().skip(1) {
        let Ok(line) = line else { return };
        // "sl local remote st queues timers retransmits uid timeout inode ..."
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(state)) = (fields.next(), fields.nth(1)) else { return };
        if u8::from_str_radix(state, 16) != Ok(LISTEN) {
            return;
        }
        let inode = fields.nth(5).and_then(|inode| inode.parse().ok()).unwrap_or(0);
        if let Some(listener) = parse_local(local) {
            found.insert(listener, inode);
        }
    }
}

/// "0100007F:1F90": the address in the machine's byte order, word by word; the port in ordinary hex.
fn parse_local(text: &str) -> Option<Listener> {
    let (address, port) = text.split_once(':')?;
    let port = Port::try_from(u16::from_str_radix(port, 16).ok()?).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for index in 0..4 {
                octets[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(Listener { port, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_file_is_understood() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0
   1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4244 1 0 100 0 0 10 0
   3: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4245 1 0 100 0 0 10 0
";
        let mut found = BTreeMap::new();
        read_file(table.as_bytes(), &mut found);
        let summary: Vec<_> =
            found.iter().map(|(one, inode)| (one.address.to_string(), one.port.get(), *inode)).collect();
        assert_eq!(summary, [("0.0.0.0".into(), 3000, 4243), ("127.0.0.1".into(), 8080, 4242)]);
        let v6 = parse_local("00000000000000000000000001000000:0050").unwrap();
        assert_eq!((v6.address.to_string().as_str(), v6.port.get()), ("::1", 80));
        for bad in ["", "0100007F", "0100007F:0000", "0100:1F90", "xxxxxxxx:1F90", "0100007F:1F90F"] {
            assert_eq!(parse_local(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn both_ways_find_the_same_listeners() {
        let sockets: Vec<_> = ["127.0.0.1:0", "127.0.0.2:0", "0.0.0.0:0", "[::1]:0", "[::]:0"]
            .iter()
            .filter_map(|address| std::net::TcpListener::bind(address).ok())
            .collect();
        let (asked, read) = (ask_kernel().unwrap(), read_files());
        for socket in &sockets {
            let address = socket.local_addr().unwrap();
            let listener = Listener { port: address.port().try_into().unwrap(), address: address.ip() };
            assert!(asked.contains_key(&listener), "{listener:?}");
            assert_eq!(asked.get(&listener), read.get(&listener), "{listener:?}");
        }
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        assert_eq!(split_message(&[]), None);
        assert_eq!(split_message(&[0; 16]), None);
        assert_eq!(split_message(&[255; 40]), None);
        assert_eq!(parse_socket(&[libc::AF_INET as u8, LISTEN, 0, 0, 1]), None);
    }
}
