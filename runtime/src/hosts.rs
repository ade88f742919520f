//! Host names as the sprite knows them: its own, and those in `/etc/hosts`.

use std::net::{IpAddr, Ipv4Addr};

/// What a host name means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// The sprite itself, whichever address its program listens on.
    Here,
    /// This one.
    Ip(IpAddr),
}

impl Address {
    pub(crate) const fn is_loopback_name(self) -> bool {
        matches!(self, Self::Here)
    }

    pub(crate) const fn ip(self) -> IpAddr {
        match self {
            Self::Here => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::Ip(ip) => ip,
        }
    }
}

/// The address of `host`. `own` is the sprite's name.
///
/// # Errors
/// A sentence for people, if the name is not known here.
pub(crate) async fn address(host: &str, own: Option<&str>) -> Result<Address, String> {
    if let Some(known) = known(host, own) {
        return Ok(known);
    }
    let hosts = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
    look_up(&hosts, host).map(Address::Ip).ok_or_else(|| {
        format!("{host:?} is neither an address nor a name in the sprite's /etc/hosts; give an address")
    })
}

fn known(host: &str, own: Option<&str>) -> Option<Address> {
    let bare = host.strip_suffix('.').unwrap_or(host);
    if bare.eq_ignore_ascii_case("localhost") || own.is_some_and(|own| bare.eq_ignore_ascii_case(own)) {
        return Some(Address::Here);
    }
    let ip: IpAddr = host.parse().ok()?;
    let here = ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip.to_string() == "::1";
    Some(if here { Address::Here } else { Address::Ip(ip) })
}

fn look_up(hosts: &str, name: &str) -> Option<IpAddr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sprite_is_known_under_all_its_names() {
        for host in ["localhost", "LOCALHOST.", "mine", "127.0.0.1", "0.0.0.0", "::", "::1"] {
            assert_eq!(known(host, Some("mine")), Some(Address::Here), "{host}");
        }
        assert_eq!(known("127.0.0.2", None), Some(Address::Ip([127, 0, 0, 2].into())));
        assert_eq!(known("mine", None), None);
        assert_eq!(known("1.2.3", None), None);
    }

    #[test]
    fn names_of_etc_hosts_are_found() {
        let hosts = "# a\n127.0.0.1 localhost\n10.1.2.3\tdb db.internal # the database\nbroken\n::7 six\n";
        assert_eq!(look_up(hosts, "DB.internal"), Some([10, 1, 2, 3].into()));
        assert_eq!(look_up(hosts, "six"), "::7".parse().ok());
        assert_eq!(look_up(hosts, "the"), None);
    }
}
