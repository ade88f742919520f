//! The configuration file: raw TOML, checked into [`Settings`] before any port is bound.
//!
//! Every default is a named constant with the reason for its number.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ids::Port;
use route::Zone;
use serde::Deserialize;

/// Where a browser on the same machine finds us.
const HTTP_LISTEN: &str = "127.0.0.1:8080";
/// Metrics and health are for the operator: not on the public address.
const ADMIN_LISTEN: &str = "127.0.0.1:9090";
/// Browsers and curl resolve any name below `.localhost` to this machine.
const DOMAIN: &str = "sprites.localhost";
/// Where `make run` keeps its agent.
const AGENT_SOCKET: &str = ".run/state/agent.sock";
/// nginx gives 4 x 8 KiB, Cloudflare 32 KiB in all; frameworks behind us refuse more.
const HEADER_BYTES: usize = 32 * 1024;
/// A phone on a bad network needs a few seconds for a header; a slowloris wants minutes.
const HEADER_TIMEOUT_MS: u64 = 10_000;
/// An idle keep-alive connection holds its sprite awake, so it may not idle longer than a sprite may.
const KEEPALIVE_IDLE_MS: u64 = 30_000;
/// Below `KEEPALIVE_IDLE_MS`, so that it is always the sprite's side that is closed first (T23), and below
/// the 5 s after which Node, Apache and uvicorn close: a POST sent into such a close could not be repeated.
const UPSTREAM_IDLE_MS: u64 = 4_000;
/// Clients give up after 30 to 60 s; a cold boot of a virtual machine may need half of that.
const HOLD_BUDGET_MS: u64 = 60_000;
/// How long a just started program may take until it listens.
const PORT_WAIT_MS: u64 = 30_000;
/// Longer than the gap between two requests of a browser that opens a connection for each.
const LINGER_MS: u64 = 100;
/// Below the agent's `drain_grace_ms` (5 s), after which the sprite is frozen in the middle of a request.
const REVOKE_GRACE_MS: u64 = 3_000;
/// A dead peer is found this long after the first byte that it does not acknowledge.
/// (Or does not read: a browser that pauses a download for longer has to resume it.)
const TCP_USER_TIMEOUT_MS: u64 = 60_000;
/// A silent peer is probed after this long; with three probes at a third of it each.
const TCP_KEEPALIVE_MS: u64 = 30_000;
/// Ten thousand held requests are about 40 MB.
const HELD_PER_SPRITE: usize = 10_000;
/// See `HELD_PER_SPRITE`; four such storms at once.
const HELD_IN_ALL: usize = 40_000;
/// What a development server accepts at once without its listen queue (128) running over.
const RELEASE_AT_ONCE: usize = 64;
/// Enough for a download to finish; short enough for a deploy.
const DRAIN_GRACE_MS: u64 = 20_000;

/// Why the configuration is unusable. The message names the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("could not read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{key}: {reason}")]
    Value { key: &'static str, reason: String },
}

fn bad(key: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, reason: reason.into() }
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    domain: Option<String>,
    listen: RawListen,
    tls: Option<RawTls>,
    public: RawPublic,
    agent: RawAgent,
    limits: RawLimits,
    timing: RawTiming,
    log: RawLog,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, default)]
struct RawListen {
    http: Vec<String>,
    https: Vec<String>,
    admin: String,
    proxied: Vec<String>,
    proxies: Vec<String>,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            http: vec![HTTP_LISTEN.into()],
            https: Vec::new(),
            admin: ADMIN_LISTEN.into(),
            proxied: Vec::new(),
            proxies: Vec::new(),
        }
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPublic {
    scheme: Option<String>,
    port: Option<u16>,
    reserved_ports: BTreeSet<u16>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
struct RawAgent {
    socket: Option<PathBuf>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    header_bytes: usize,
    held_per_sprite: usize,
    held_in_all: usize,
    release_at_once: usize,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            header_bytes: HEADER_BYTES,
            held_per_sprite: HELD_PER_SPRITE,
            held_in_all: HELD_IN_ALL,
            release_at_once: RELEASE_AT_ONCE,
        }
    }
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, default)]
struct RawTiming {
    header_timeout_ms: u64,
    keepalive_idle_ms: u64,
    upstream_idle_ms: u64,
    hold_budget_ms: u64,
    port_wait_ms: u64,
    linger_ms: u64,
    revoke_grace_ms: u64,
    tcp_user_timeout_ms: u64,
    tcp_keepalive_ms: u64,
    drain_grace_ms: u64,
}

impl Default for RawTiming {
    fn default() -> Self {
        Self {
            header_timeout_ms: HEADER_TIMEOUT_MS,
            keepalive_idle_ms: KEEPALIVE_IDLE_MS,
            upstream_idle_ms: UPSTREAM_IDLE_MS,
            hold_budget_ms: HOLD_BUDGET_MS,
            port_wait_ms: PORT_WAIT_MS,
            linger_ms: LINGER_MS,
            revoke_grace_ms: REVOKE_GRACE_MS,
            tcp_user_timeout_ms: TCP_USER_TIMEOUT_MS,
            tcp_keepalive_ms: TCP_KEEPALIVE_MS,
            drain_grace_ms: DRAIN_GRACE_MS,
        }
    }
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLog {
    format: Option<String>,
    filter: Option<String>,
}

/// Checked settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: Listen,
    pub(crate) public: Public,
    pub(crate) agent_socket: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) log: Log,
}

/// Where we listen. At least one of `http` and `https` is not empty.
#[derive(Clone, Debug)]
pub(crate) struct Listen {
    pub(crate) http: Vec<SocketAddr>,
    pub(crate) https: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
    /// Those of `http` and `https` on which every connection begins with a header of the PROXY protocol.
    pub(crate) proxied: Vec<SocketAddr>,
    /// Who may connect to those.
    pub(crate) proxies: Arc<[Network]>,
    /// There if `https` is not empty.
    pub(crate) tls: Option<Tls>,
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `192.0.2.0/24`, or one address.
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) =
            text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
        (prefix <= longest).then_some(Self { address, prefix })
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        // A client of IPv4 on a socket of IPv6 is the same client.
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differ = u32::from(ours) ^ u32::from(other);
                differ.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differ = u128::from(ours) ^ u128::from(other);
                differ.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Files in PEM form.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// How the world reaches us: what sprites' URLs say.
#[derive(Clone, Debug)]
pub(crate) struct Public {
    pub(crate) zone: Zone,
    pub(crate) scheme: Scheme,
    /// Absent when it is the scheme's default.
    pub(crate) port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) header_bytes: usize,
    pub(crate) held_per_sprite: usize,
    pub(crate) held_in_all: usize,
    pub(crate) release_at_once: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) header_timeout: Duration,
    pub(crate) keepalive_idle: Duration,
    pub(crate) upstream_idle: Duration,
    pub(crate) hold_budget: Duration,
    pub(crate) port_wait: Duration,
    pub(crate) linger: Duration,
    pub(crate) revoke_grace: Duration,
    pub(crate) tcp_user_timeout: Duration,
    pub(crate) tcp_keepalive: Duration,
    pub(crate) drain_grace: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) format: telemetry::Format,
    pub(crate) filter: String,
}

/// Reads and checks the file at `path`.
pub(crate) fn load(path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    let raw = toml::from_str(&text)
        .map_err(|source| ConfigError::Syntax { path: path.into(), source: Box::new(source) })?;
    check(raw)
}

fn check(raw: Raw) -> Result<Settings, ConfigError> {
    let listen = listen(&raw.listen, raw.tls)?;
    Ok(Settings {
        public: public(raw.domain, raw.public, &listen)?,
        agent_socket: raw.agent.socket.unwrap_or_else(|| PathBuf::from(AGENT_SOCKET)),
        limits: limits(&raw.limits)?,
        timing: timing(&raw.timing)?,
        log: log(&raw.log)?,
        listen,
    })
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse()
        .map_err(|_| bad(key, format!("{text:?} is not an address with a port, such as \"127.0.0.1:8080\"")))
}

fn listen(raw: &RawListen, tls: Option<RawTls>) -> Result<Listen, ConfigError> {
    let all =
        |key, texts: &[String]| texts.iter().map(|text| address(key, text)).collect::<Result<Vec<_>, _>>();
    let http = all("listen.http", &raw.http)?;
    let https = all("listen.https", &raw.https)?;
    if http.is_empty() && https.is_empty() {
        return Err(bad("listen", "names neither http nor https addresses"));
    }
    if !https.is_empty() && tls.is_none() {
        return Err(bad("listen.https", "needs tls.certificate and tls.key"));
    }
    let proxied = all("listen.proxied", &raw.proxied)?;
    if let Some(unknown) = proxied.iter().find(|address| !http.contains(address) && !https.contains(address))
    {
        return Err(bad(
            "listen.proxied",
            format!("{unknown} is neither in listen.http nor in listen.https"),
        ));
    }
    let network = |text: &String| {
        let reason = || format!("{text:?} is neither an address nor a network such as \"10.0.0.0/8\"");
        Network::parse(text).ok_or_else(|| bad("listen.proxies", reason()))
    };
    let proxies = raw.proxies.iter().map(network).collect::<Result<_, _>>()?;
    if raw.proxies.is_empty() != proxied.is_empty() {
        return Err(bad("listen.proxies", "is needed by listen.proxied, and by nothing else"));
    }
    let tls = tls.filter(|_| !https.is_empty()).map(|tls| Tls { certificate: tls.certificate, key: tls.key });
    Ok(Listen { http, https, admin: address("listen.admin", &raw.admin)?, proxied, proxies, tls })
}

fn public(domain: Option<String>, raw: RawPublic, listen: &Listen) -> Result<Public, ConfigError> {
    let scheme = match raw.scheme.as_deref() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(other) => {
            return Err(bad("public.scheme", format!("{other:?} is neither \"http\" nor \"https\"")));
        }
        None if !listen.https.is_empty() => Scheme::Https,
        None => Scheme::Http,
    };
    let listening = match scheme {
        Scheme::Http => listen.http.first(),
        Scheme::Https => listen.https.first(),
    };
    let port = raw.port.or_else(|| listening.map(SocketAddr::port));
    let reserved_ports = raw
        .reserved_ports
        .into_iter()
        .map(|port| Port::try_from(port).map_err(|error| bad("public.reserved_ports", error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    let domain = domain.as_deref().unwrap_or(DOMAIN);
    let zone = Zone::new(domain).map_err(|error| bad("domain", error.to_string()))?.reserving(reserved_ports);
    Ok(Public { zone, scheme, port: port.filter(|port| *port != scheme.default_port()) })
}

fn limits(raw: &RawLimits) -> Result<Limits, ConfigError> {
    if !(1024..=1024 * 1024).contains(&raw.header_bytes) {
        return Err(bad("limits.header_bytes", "must be from 1024 to 1048576"));
    }
    for (key, value) in [
        ("limits.held_per_sprite", raw.held_per_sprite),
        ("limits.held_in_all", raw.held_in_all),
        ("limits.release_at_once", raw.release_at_once),
    ] {
        if value == 0 {
            return Err(bad(key, "must be at least 1"));
        }
    }
    Ok(Limits {
        header_bytes: raw.header_bytes,
        held_per_sprite: raw.held_per_sprite,
        held_in_all: raw.held_in_all,
        release_at_once: raw.release_at_once,
    })
}

fn timing(raw: &RawTiming) -> Result<Timing, ConfigError> {
    for (key, value) in [
        ("timing.header_timeout_ms", raw.header_timeout_ms),
        ("timing.keepalive_idle_ms", raw.keepalive_idle_ms),
        ("timing.upstream_idle_ms", raw.upstream_idle_ms),
        ("timing.hold_budget_ms", raw.hold_budget_ms),
        ("timing.tcp_user_timeout_ms", raw.tcp_user_timeout_ms),
        ("timing.tcp_keepalive_ms", raw.tcp_keepalive_ms),
    ] {
        if value == 0 {
            return Err(bad(key, "must be at least 1 (without it, something would wait for ever)"));
        }
    }
    if raw.upstream_idle_ms >= raw.keepalive_idle_ms {
        return Err(bad("timing.upstream_idle_ms", "must be less than timing.keepalive_idle_ms"));
    }
    let ms = Duration::from_millis;
    Ok(Timing {
        header_timeout: ms(raw.header_timeout_ms),
        keepalive_idle: ms(raw.keepalive_idle_ms),
        upstream_idle: ms(raw.upstream_idle_ms),
        hold_budget: ms(raw.hold_budget_ms),
        port_wait: ms(raw.port_wait_ms),
        linger: ms(raw.linger_ms),
        revoke_grace: ms(raw.revoke_grace_ms),
        tcp_user_timeout: ms(raw.tcp_user_timeout_ms),
        tcp_keepalive: ms(raw.tcp_keepalive_ms),
        drain_grace: ms(raw.drain_grace_ms),
    })
}

fn log(raw: &RawLog) -> Result<Log, ConfigError> {
    let format = raw
        .format
        .as_deref()
        .unwrap_or("text")
        .parse()
        .map_err(|reason: String| bad("log.format", reason))?;
    Ok(Log { format, filter: raw.filter.clone().unwrap_or_else(|| "info".into()) })
}

#[cfg(test)]
pub(crate) fn parse(text: &str) -> Result<Settings, String> {
    let raw = toml::from_str(text).map_err(|error| error.to_string())?;
    check(raw).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_states_the_defaults() {
        let example = include_str!("../../config/gateway.example.toml");
        let stated = parse(example).expect("the example parses");
        let defaults = parse("").expect("an empty file is a configuration");
        assert_eq!(format!("{stated:?}"), format!("{defaults:?}"));
    }

    #[test]
    fn a_bad_value_names_its_key() {
        for (text, key) in [
            ("domain = \"Sprites.\"", "domain"),
            ("[listen]\nhttp = [\"8080\"]", "listen.http"),
            ("[listen]\nhttp = []", "listen"),
            ("[listen]\nhttps = [\"127.0.0.1:1\"]", "listen.https"),
            ("[listen]\nproxied = [\"127.0.0.1:1\"]\nproxies = [\"::1\"]", "listen.proxied"),
            ("[listen]\nproxied = [\"127.0.0.1:8080\"]", "listen.proxies"),
            ("[listen]\nproxied = [\"127.0.0.1:8080\"]\nproxies = [\"10.0.0.0/33\"]", "listen.proxies"),
            ("[listen]\nproxies = [\"127.0.0.1\"]", "listen.proxies"),
            ("[public]\nscheme = \"ftp\"", "public.scheme"),
            ("[public]\nreserved_ports = [0]", "public.reserved_ports"),
            ("[limits]\nheld_in_all = 0", "limits.held_in_all"),
            ("[timing]\nupstream_idle_ms = 30000", "timing.upstream_idle_ms"),
            ("[log]\nformat = \"xml\"", "log.format"),
            ("[timing]\nkeepalive_idel_ms = 1", "keepalive_idel_ms"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_contains_what_begins_like_it() {
        let contains = |network: &str, address: &str| {
            Network::parse(network).expect(network).contains(address.parse().expect(address))
        };
        assert!(contains("10.0.0.0/8", "10.255.1.2") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.0"));
        assert!(contains("192.0.2.1", "::ffff:192.0.2.1") && contains("0.0.0.0/0", "8.8.8.8"));
        assert!(contains("2001:db8::/32", "2001:db8:1::") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(!contains("::/0", "127.0.0.1"));
    }
}
