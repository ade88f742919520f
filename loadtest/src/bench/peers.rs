//! The peers: what they are, how they are configured, started and stopped.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde_json::json;
use test_support::{Child, Options, Program, World, program};
use tokio::time::timeout;

use super::{
    configs,
    http1::Connection,
    process,
    target::{Scheme, Target, Tls},
};

const START_LIMIT: Duration = Duration::from_secs(20);
/// Longer than any answer takes, if there is one.
const PROBE_LIMIT: Duration = Duration::from_millis(300);
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The sprite in front of the backend.
const SPRITE: &str = "bench";

/// In the order of the table's columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    Direct,
    Nginx,
    Haproxy,
    Caddy,
    Traefik,
    Hyper,
    Pingora,
    Gateway,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Direct,
        Self::Nginx,
        Self::Haproxy,
        Self::Caddy,
        Self::Traefik,
        Self::Hyper,
        Self::Pingora,
        Self::Gateway,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Caddy => "Caddy",
            Self::Traefik => "Traefik",
            Self::Hyper => "bare hyper",
            Self::Pingora => "bare Pingora",
            Self::Gateway => "gateway",
        }
    }

    /// Where its program is; `None` if this machine lacks it.
    fn program(self) -> anyhow::Result<Option<PathBuf>> {
        let release = program(Program::Gateway)?.with_file_name("");
        let venv = release.join("../bench/venv/bin");
        let system = |name: &str| {
            ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
                .map(|dir| Path::new(dir).join(name))
                .into_iter()
                .find(|path| path.exists())
        };
        Ok(match self {
            Self::Nginx => system("nginx"),
            Self::Haproxy => system("haproxy"),
            Self::Caddy => Some(venv.join("caddy")),
            Self::Traefik => Some(venv.join("traefik")),
            Self::Hyper => Some(release.join("bare-hyper")),
            Self::Pingora => Some(release.join("bare-pingora")),
            Self::Direct => Some(program(Program::Backend)?),
            Self::Gateway => Some(program(Program::Gateway)?),
        }
        .filter(|path| path.exists()))
    }

    pub(crate) fn installed(self) -> anyhow::Result<bool> {
        Ok(self.program()?.is_some())
    }

    /// What it says of its version; empty if it is built here.
    pub(crate) fn version(self) -> anyhow::Result<String> {
        let argument = match self {
            Self::Nginx | Self::Haproxy => "-v",
            Self::Caddy | Self::Traefik => "version",
            Self::Direct | Self::Hyper | Self::Pingora | Self::Gateway => return Ok(String::new()),
        };
        let Some(program) = self.program()? else { return Ok("not installed".into()) };
        let output = Command::new(program).arg(argument).output()?;
        // nginx says it on stderr.
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// The server behind all peers.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Backend {
    pub(crate) async fn start(address: SocketAddr, dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program(Program::Backend)?);
        command.arg(address.port().to_string());
        let log = dir.join("backend.log");
        let child = Child::start("the backend", &mut command, &log)?;
        listening(address).await.with_context(|| format!("the backend; {} may say why", log.display()))?;
        Ok(Self { address, child })
    }
}

/// What a peer is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Assignment<'a> {
    pub(crate) backend: SocketAddr,
    /// Where certificates are and configurations go.
    pub(crate) dir: &'a Path,
    /// The backend comes later: a pipe that says so to our gateway's start command. The others have to try
    /// again and again.
    pub(crate) late: Option<&'a Path>,
}

#[derive(Debug)]
enum Running {
    Backend(u32),
    Program(Child),
    /// With its own agent.
    System(Box<World>),
}

/// A peer that serves.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    running: Running,
}

pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn listening(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        ensure!(Instant::now() < deadline, "nothing listens on {address} after {START_LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Waits until a peer forwards: Traefik listens before it knows whereto. Before a backend that comes
/// `late`, whatever is no answer of the peer's own is good enough.
async fn serving(target: &Target, scheme: Scheme, late: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let asked = async {
            let mut connection = Connection::open_small(target, scheme).await?;
            connection.exchange(&target.head("GET", "/", "Connection: close\r\n")).await
        };
        match timeout(PROBE_LIMIT, asked).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if late && error.to_string() == "answered 502" => return Ok(()),
            Err(_) if late => return Ok(()),
            Ok(Err(error)) if Instant::now() > deadline => return Err(error),
            Err(_) if Instant::now() > deadline => anyhow::bail!("no answer"),
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

impl Peer {
    /// The backend itself, for comparison.
    pub(crate) fn direct(backend: &Backend, tls: Tls) -> Self {
        let target = target(backend.address, backend.address, tls);
        Self { kind: Kind::Direct, target, running: Running::Backend(backend.child.id()) }
    }

    pub(crate) async fn start(kind: Kind, tls: Tls, work: Assignment<'_>) -> anyhow::Result<Self> {
        if kind == Kind::Gateway {
            return gateway(tls, work).await;
        }
        let program = kind.program()?.with_context(|| format!("{} is not installed", kind.name()))?;
        let (http, https) = (free_address()?, free_address()?);
        let dir = tempfile::Builder::new().prefix(kind.name()).tempdir_in(work.dir)?.keep();
        let site = configs::Site {
            backend: work.backend,
            http,
            https,
            certificate: work.dir.join("certs/leaf.pem"),
            key: work.dir.join("certs/leaf.key"),
            dir: &dir,
            patient: work.late.is_some(),
        };
        let mut command = Command::new(program);
        configs::prepare(kind, &site, &mut command)?;
        let child = Child::start(kind.name(), &mut command, &dir.join("log"))?;
        let peer = Self { kind, target: target(http, https, tls), running: Running::Program(child) };
        for scheme in [Scheme::Http, Scheme::Https] {
            let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
            serving(&peer.target, scheme, work.late.is_some())
                .await
                .with_context(|| format!("{}: {}", kind.name(), log()))?;
        }
        Ok(peer)
    }

    /// Its processes, without those of an agent.
    pub(crate) fn pids(&mut self) -> anyhow::Result<Vec<u32>> {
        match &mut self.running {
            Running::Backend(pid) => Ok(vec![*pid]),
            Running::Program(child) => process::tree(child.id()),
            Running::System(world) => process::tree(world.gateway()?.id()),
        }
    }

    /// Ends it, and fails if anything of ours is left.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.running, Running::Backend(0)) {
            Running::Backend(_) => Ok(()),
            Running::Program(mut child) => {
                end(&mut child);
                Ok(())
            }
            Running::System(world) => world.stop().await,
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Running::Program(child) = &mut self.running {
            end(child);
        }
    }
}

/// Not killed at once: nginx's master has to end its workers.
fn end(child: &mut Child) {
    // Some say a signal's number as their status; that they have ended is all we want.
    let _ = child.stop(STOP_LIMIT);
}

fn target(http: SocketAddr, https: SocketAddr, tls: Tls) -> Target {
    // As long as a sprite's and a token of our own, which only our gateway gets.
    let token = format!("acme/00000/{}/spr_{}", "0".repeat(22), "0".repeat(43));
    Target { http, https, host: "bench-00000.sprites.localhost".into(), token: token.into(), tls }
}

async fn gateway(tls: Tls, work: Assignment<'_>) -> anyhow::Result<Peer> {
    let start = match work.late {
        // Opening it waits for somebody to write, reading it for the writer to close.
        Some(pipe) => json!(["/bin/cat", pipe]),
        None => json!(["/bin/true"]),
    };
    let agent = format!(
        "[[command]]\norganization = \"acme\"\nname = \"{SPRITE}\"\nweb = \"{}\"\nstart = {start}\nstop = [\"/bin/true\"]\n",
        work.backend,
    );
    // The others write no access log either.
    let gateway = "[log]\nfilter = \"warn\"\n".to_owned();
    let idle = Duration::from_secs(3600);
    let world = World::start(Options { agent, gateway, idle, ..Options::default() }).await?;
    let settings = json!({ "url_settings": { "auth": "sprite" } });
    let (status, sprite) = world.call("PUT", &format!("/v1/sprites/{SPRITE}"), Some(settings)).await?;
    ensure!(status == 200, "the sprite was refused: {status} {sprite}");
    let url = sprite["url"].as_str().context("a sprite has a url")?;
    let host = url.split(['/', ':']).find(|part| part.starts_with(SPRITE)).context("a url has a host")?;
    let localhost = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut target = target(localhost(world.http), localhost(world.https), tls);
    target.host = host.into();
    target.token = world.token.as_str().into();
    Ok(Peer { kind: Kind::Gateway, target, running: Running::System(Box::new(world)) })
}
