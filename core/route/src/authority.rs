//! Splits an authority into host and port, as strictly as RFC 3986 §3.2 allows and a bit more.

use std::net::{Ipv4Addr, Ipv6Addr};

use ids::Port;

/// The longest host name there is (RFC 1035 §2.3.4), with its trailing dot.
const MAX_HOST_BYTES: usize = 254;
/// A host and `:65535`.
const MAX_AUTHORITY_BYTES: usize = MAX_HOST_BYTES + 6;

/// What is wrong with an authority, for people.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Why {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// Longer than a host name can be.
    #[error("it is longer than a host name can be")]
    TooLong,
    /// White space, a comma, `@`, `%`, `_`, a control character, anything beyond ASCII.
    #[error("it has a character that host names don't have")]
    Character,
    /// Not a port, or not spelled as ports are.
    #[error("its port is not a whole number from 1 to 65535 without leading zeros")]
    Port,
    /// Brackets without an IPv6 address in them.
    #[error("what stands in brackets is not an IPv6 address")]
    Ipv6,
    /// A dot where a label should be.
    #[error("it has an empty label")]
    EmptyLabel,
    /// `a.name-suffix.domain`.
    #[error("a sprite's host name has exactly one label before the domain")]
    SecondLabel,
    /// Longer than 63 characters.
    #[error("a label of a host name has at most 63 characters")]
    LabelTooLong,
    /// No hyphen, or a name or suffix with the wrong characters.
    #[error("a sprite's host name begins with `name-suffix` or `port--name-suffix`")]
    Label,
    /// `xn--`: names are ASCII.
    #[error("sprites have no internationalized names")]
    Punycode,
    /// What stands before `--` is no port.
    #[error("what stands before `--` is not a port from 1 to 65535 without leading zeros")]
    LabelPort,
    /// A port that belongs to the system.
    #[error("that port of a sprite can't be reached from outside")]
    ReservedPort,
}

/// A host without its port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Host<'a> {
    Ip,
    /// Without the trailing dot; ASCII letters, digits, dots and hyphens; no empty label; any case.
    Name(&'a str),
}

pub(crate) fn split(authority: &str) -> Result<Host<'_>, Why> {
    if authority.is_empty() {
        return Err(Why::Empty);
    }
    if authority.len() > MAX_AUTHORITY_BYTES {
        return Err(Why::TooLong);
    }
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or(Why::Ipv6)?;
        address.parse::<Ipv6Addr>().map_err(|_| Why::Ipv6)?;
        if !after.is_empty() {
            check_port(after.strip_prefix(':').ok_or(Why::Character)?)?;
        }
        return Ok(Host::Ip);
    }
    let host = match authority.split_once(':') {
        None => authority,
        Some((host, port)) => {
            check_port(port)?;
            host
        }
    };
    if host.parse::<Ipv4Addr>().is_ok() {
        return Ok(Host::Ip);
    }
    name(host)
}

fn check_port(text: &str) -> Result<(), Why> {
    text.parse::<Port>().map(|_| ()).map_err(|_| Why::Port)
}

fn name(host: &str) -> Result<Host<'_>, Why> {
    if host.is_empty() {
        return Err(Why::Empty);
    }
    if host.len() > MAX_HOST_BYTES {
        return Err(Why::TooLong);
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.') {
        return Err(Why::Character);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.split('.').any(str::is_empty) {
        return Err(Why::EmptyLabel);
    }
    if host.split('.').any(|label| label.len() > 63) {
        return Err(Why::LabelTooLong);
    }
    Ok(Host::Name(host))
}
