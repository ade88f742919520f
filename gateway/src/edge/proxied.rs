//! The PROXY protocol: a load balancer in front of us says, before anything else, for whom it connects.
//!
//! On a listener that expects it every connection has to begin with such a header, and has to come from an
//! address that may say so: whoever else could send one would choose the address that he is seen under. What
//! is not exactly a header ends the connection; nothing is guessed.
//!
//! Version 1 is a line, `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`, of at most 107 bytes. Version 2 is
//! binary: a signature of 12 bytes, version and command, family and transport, the length of what follows,
//! addresses and ports, then further fields, which are of no use here. [`decode`] is pure.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{io::AsyncReadExt, net::TcpStream};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const MAX_LINE_BYTES: usize = 107;
/// The fixed part of version 2.
const FIXED_BYTES: usize = 16;
/// Addresses and further fields: certificates' names and checksums need some hundred bytes.
const MAX_FIELDS_BYTES: usize = 2048;
/// What is looked at at once.
const PEEK_BYTES: usize = 256;

/// For whom a connection was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behalf {
    /// For this client, which meant to reach this address.
    Client { peer: SocketAddr, local: SocketAddr },
    /// For the load balancer itself, to see whether we are here; or it can't tell.
    Itself,
}

/// It is not a header, or not one of TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it does not begin with a header of the PROXY protocol")]
pub(super) struct NoHeader;

/// Reads the header at the beginning of `bytes`, and tells its length; `None` if more bytes are needed. Then
/// all that are there are of the header.
///
/// # Errors
/// It is none. Decided as early as the bytes allow.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<(usize, Behalf)>, NoHeader> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] == SIGNATURE[..known] {
        return binary(bytes);
    }
    let known = bytes.len().min(b"PROXY ".len());
    if bytes[..known] != b"PROXY "[..known] {
        return Err(NoHeader);
    }
    match memchr::memchr(b'\n', &bytes[..bytes.len().min(MAX_LINE_BYTES)]) {
        Some(end) => {
            let line = bytes[..end].strip_suffix(b"\r").ok_or(NoHeader)?;
            Ok(Some((end + 1, text(std::str::from_utf8(line).map_err(|_| NoHeader)?)?)))
        }
        None if bytes.len() >= MAX_LINE_BYTES => Err(NoHeader),
        None => Ok(None),
    }
}

fn text(line: &str) -> Result<Behalf, NoHeader> {
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(NoHeader);
    let family = word()?;
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Ok(Behalf::Itself);
    }
    let (from, to) = (word()?, word()?);
    let (from_port, to_port) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() {
        return Err(NoHeader);
    }
    let address = |text: &str| -> Result<IpAddr, NoHeader> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| NoHeader),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| NoHeader),
            _ => Err(NoHeader),
        }
    };
    Ok(client(address(from)?, from_port, address(to)?, to_port))
}

/// A port in its only spelling.
fn port(text: &str) -> Result<u16, NoHeader> {
    let number: u16 = text.parse().map_err(|_| NoHeader)?;
    if number.to_string() == text { Ok(number) } else { Err(NoHeader) }
}

const fn client(from: IpAddr, from_port: u16, to: IpAddr, to_port: u16) -> Behalf {
    Behalf::Client { peer: SocketAddr::new(from, from_port), local: SocketAddr::new(to, to_port) }
}

fn binary(bytes: &[u8]) -> Result<Option<(usize, Behalf)>, NoHeader> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const UNSPECIFIED: u8 = 0x00;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    let command = bytes.get(12).copied();
    if command.is_some_and(|command| command != LOCAL && command != PROXY) {
        return Err(NoHeader);
    }
    let family = bytes.get(13).copied();
    if command == Some(PROXY) && family.is_some_and(|family| ![UNSPECIFIED, TCP4, TCP6].contains(&family)) {
        return Err(NoHeader);
    }
    let Some(length) = bytes.get(14..FIXED_BYTES) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > MAX_FIELDS_BYTES {
        return Err(NoHeader);
    }
    let Some(fields) = bytes.get(FIXED_BYTES..FIXED_BYTES + length) else { return Ok(None) };
    let behalf = match (command, family) {
        (Some(PROXY), Some(TCP4)) => {
            let (addresses, _) = fields.split_first_chunk::<12>().ok_or(NoHeader)?;
            let [a, b, c, d, e, f, g, h, ports @ ..] = *addresses;
            let (from, to) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
            let [from_port, to_port] = both(ports);
            client(from.into(), from_port, to.into(), to_port)
        }
        (Some(PROXY), Some(TCP6)) => {
            let (from, rest) = fields.split_first_chunk::<16>().ok_or(NoHeader)?;
            let (to, rest) = rest.split_first_chunk::<16>().ok_or(NoHeader)?;
            let (ports, _) = rest.split_first_chunk::<4>().ok_or(NoHeader)?;
            let [from_port, to_port] = both(*ports);
            client(Ipv6Addr::from(*from).into(), from_port, Ipv6Addr::from(*to).into(), to_port)
        }
        _ => Behalf::Itself,
    };
    Ok(Some((FIXED_BYTES + length, behalf)))
}

const fn both(ports: [u8; 4]) -> [u16; 2] {
    [u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])]
}

/// Reads the header from a connection, and not a byte of what follows: that may be a TLS handshake.
///
/// # Errors
/// The connection broke, or began otherwise ([`io::ErrorKind::InvalidData`]).
pub(super) async fn read(tcp: &mut TcpStream) -> io::Result<Behalf> {
    let mut header = Vec::new();
    loop {
        let mut seen = [0; PEEK_BYTES];
        let count = tcp.peek(&mut seen).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = header.len();
        header.extend_from_slice(&seen[..count]);
        let decoded = decode(&header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // What is of the header is taken, so that the next look waits for more.
        let taken = decoded.map_or(count, |(length, _)| length - before);
        tcp.read_exact(&mut seen[..taken]).await?;
        if let Some((_, behalf)) = decoded {
            return Ok(behalf);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    fn whole(bytes: &[u8]) -> Result<Option<(usize, Behalf)>, NoHeader> {
        decode(&[bytes, b"\x16\x03\x01GET"].concat())
    }

    fn v2(command: u8, family: u8, fields: &[u8]) -> Vec<u8> {
        let length = u16::try_from(fields.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, fields].concat()
    }

    fn behalf(peer: &str, local: &str) -> Behalf {
        Behalf::Client { peer: peer.parse().expect("an address"), local: local.parse().expect("an address") }
    }

    #[test]
    fn each_version_tells_the_client() {
        let four = behalf("192.0.2.1:56324", "198.51.100.1:443");
        let six = behalf("[2001:db8::1]:1", "[2001:db8::2]:65535");
        let fields4 = [192, 0, 2, 1, 198, 51, 100, 1, 220, 4, 1, 187];
        let mut fields6 = [0; 36];
        fields6[..2].copy_from_slice(&[0x20, 1]);
        fields6[2..4].copy_from_slice(&[0xd, 0xb8]);
        fields6[15] = 1;
        fields6[16..20].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        fields6[31] = 2;
        fields6[32..].copy_from_slice(&[0, 1, 255, 255]);
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(), four),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n".to_vec(), six),
            (b"PROXY UNKNOWN\r\n".to_vec(), Behalf::Itself),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), Behalf::Itself),
            (v2(0x21, 0x11, &fields4), four),
            (v2(0x21, 0x11, &[&fields4[..], b"\x04\x00\x02xx"].concat()), four),
            (v2(0x21, 0x21, &fields6), six),
            (v2(0x20, 0x00, b""), Behalf::Itself),
            (v2(0x20, 0x11, &fields4), Behalf::Itself),
            (v2(0x21, 0x00, b"abc"), Behalf::Itself),
        ] {
            assert_eq!(whole(&bytes), Ok(Some((bytes.len(), expected))), "{bytes:?}");
            for end in 0..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Ok(None), "{:?}", &bytes[..end]);
            }
        }
    }

    #[test]
    fn what_is_not_exactly_a_header_is_none() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 056324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.1 1 443\r\n",
            "PROXY TCP4 2001:db8::1 198.51.100.1 1 443\r\n",
            "PROXY TCP6 192.0.2.1 2001:db8::1 1 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            "PROXY \r\n",
            "proxy UNKNOWN\r\n",
        ] {
            assert_eq!(whole(line.as_bytes()), Err(NoHeader), "{line:?}");
        }
        assert_eq!(whole(format!("PROXY UNKNOWN {}\r\n", "x".repeat(100)).as_bytes()), Err(NoHeader));
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x12, 12),
            (0x21, 0x31, 216),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x20, 0, 4096),
        ] {
            assert_eq!(
                decode(&v2(command, family, &vec![0; length])),
                Err(NoHeader),
                "{command:x} {family:x} {length}"
            );
        }
    }

    /// Random bytes, and headers with random faults: never a panic, never a length beyond the bytes.
    #[test]
    fn no_bytes_confuse_the_decoder() {
        let mut random = rand::rng();
        for _ in 0..200_000 {
            let mut bytes = match random.random_range(0..3) {
                0 => b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(),
                1 => {
                    v2(0x21, if random.random() { 0x11 } else { 0x21 }, &vec![7; random.random_range(0..64)])
                }
                _ => (0..random.random_range(0..64)).map(|_| random.random()).collect(),
            };
            for _ in 0..random.random_range(0..3) {
                if !bytes.is_empty() {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] = random.random();
                }
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            if let Ok(Some((length, _))) = decode(&bytes) {
                assert!(length <= bytes.len(), "{bytes:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_left_for_whoever_reads_next() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client =
            TcpStream::connect(listener.local_addr().expect("its address")).await.expect("connected");
        let (mut tcp, _) = listener.accept().await.expect("accepted");
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";
        let sending = tokio::spawn(async move {
            for byte in header.iter().chain(b"rest") {
                client.write_all(&[*byte]).await.expect("sent");
                tokio::task::yield_now().await;
            }
            client
        });
        assert_eq!(read(&mut tcp).await.expect("a header"), behalf("192.0.2.1:56324", "198.51.100.1:443"));
        drop(sending.await.expect("no panic"));
        let mut rest = String::new();
        tcp.read_to_string(&mut rest).await.expect("read");
        assert_eq!(rest, "rest");
    }
}
