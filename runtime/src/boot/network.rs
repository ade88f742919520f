//! The loopback interface, and the network card if the host gave one.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{BootError, CommandLine, command_line::Net, failed};

nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_mask, libc::SIOCSIFNETMASK, libc::ifreq);
nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);

/// The name that the kernel gives to the first network card.
const CARD: &[u8] = b"eth0";

pub(super) fn up(line: &CommandLine) -> Result<(), BootError> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|error| failed("open a socket")(error.into()))?;
    switch_on(&control, b"lo").map_err(failed("switch the loopback interface on"))?;
    match line.net {
        Some(net) => configure(&control, net).map_err(failed("configure the network card")),
        None => Ok(()),
    }
}

fn configure(control: &OwnedFd, net: Net) -> io::Result<()> {
    let control_fd = control.as_raw_fd();
    let mut request = request(CARD);
    request.ifr_ifru.ifru_addr = address(net.address);
    // SAFETY: the descriptor is a socket, and the request a valid one that lives for the length of the call.
    unsafe { set_address(control_fd, &raw const request) }?;
    request.ifr_ifru.ifru_netmask = address(net.mask());
    // SAFETY: as above.
    unsafe { set_mask(control_fd, &raw const request) }?;
    switch_on(control, CARD)?;
    // SAFETY: all zeros is a valid route.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(net.gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: as above.
    unsafe { add_route(control_fd, &raw const route) }?;
    let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if !resolvers.lines().any(|line| line.trim_start().starts_with("nameserver")) {
        fs::write("/etc/resolv.conf", format!("nameserver {}\n", net.resolver))?;
    }
    Ok(())
}

fn switch_on(control: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is a socket, and the request a valid one that lives for the length of the call.
    unsafe { set_flags(control.as_raw_fd(), &raw const request) }?;
    Ok(())
}

fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request
}

fn address(ip: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_INET as libc::sa_family_t;
    // Two bytes of port, then the address.
    for (to, from) in address.sa_data[2..6].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    address
}
