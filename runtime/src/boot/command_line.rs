//! What the host says on the kernel's command line.

use std::net::Ipv4Addr;

/// The words of it that matter here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CommandLine {
    /// `sprite.name`: the host name.
    pub(crate) name: Option<String>,
    /// `sprite.net`: `address/prefix,gateway,resolver` of the network card.
    pub(crate) net: Option<Net>,
    /// `sprite.vsock`: the host comes over vsock.
    pub(crate) vsock: bool,
    /// `module.parameter=value` of any module, in order.
    parameters: Vec<(String, String)>,
}

/// The address of the network card, and whom it leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Net {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) resolver: Ipv4Addr,
}

impl Net {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let (address, prefix) = parts.next()?.split_once('/')?;
        let net = Self {
            address: address.parse().ok()?,
            prefix: prefix.parse().ok().filter(|prefix| *prefix <= 32)?,
            gateway: parts.next()?.parse().ok()?,
            resolver: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(net)
    }

    pub(crate) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }
}

impl CommandLine {
    pub(crate) fn parse(line: &str) -> Self {
        let mut found = Self::default();
        for word in line.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match (key, key.split_once('.')) {
                ("sprite.name", _) => found.name = Some(value.to_owned()),
                ("sprite.net", _) => found.net = Net::parse(value),
                ("sprite.vsock", _) => found.vsock = true,
                (_, Some((module, parameter))) => {
                    found.parameters.push((module.replace('-', "_"), format!("{parameter}={value}")));
                }
                (_, None) => {}
            }
        }
        found
    }

    /// What is meant for a module, as the kernel wants it told when it is loaded.
    pub(crate) fn parameters_of(&self, module: &str) -> String {
        let module = module.replace('-', "_");
        let own = self.parameters.iter().filter(|(of, _)| *of == module).map(|(_, text)| text.as_str());
        own.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_host_are_found_among_the_kernels() {
        let line = CommandLine::parse(
            "console=ttyS0 quiet sprite.name=web sprite.net=10.0.2.15/24,10.0.2.2,10.0.2.3 \
             virtio_mmio.device=512@0xfeb00e00:12 virtio-mmio.device=512@0xfeb00c00:13\n",
        );
        assert_eq!(line.name.as_deref(), Some("web"));
        let net = line.net.expect("it is well formed");
        assert_eq!((net.address, net.mask()), ([10, 0, 2, 15].into(), [255, 255, 255, 0].into()));
        assert_eq!((net.gateway, net.resolver), ([10, 0, 2, 2].into(), [10, 0, 2, 3].into()));
        assert_eq!(line.parameters_of("virtio_mmio"), "device=512@0xfeb00e00:12 device=512@0xfeb00c00:13");
        assert_eq!(line.parameters_of("ext4"), "");
        assert!(!line.vsock);
    }

    #[test]
    fn a_network_that_makes_no_sense_is_none() {
        for bad in ["", "10.0.2.15", "10.0.2.15/33,1.1.1.1,1.1.1.1", "10.0.2.15/24,1.1.1.1", "a/24,b,c"] {
            assert_eq!(Net::parse(bad), None, "{bad}");
        }
        assert_eq!(Net::parse("1.2.3.4/0,1.1.1.1,1.1.1.1").map(Net::mask), Some(Ipv4Addr::UNSPECIFIED));
    }
}
