//! `sprite proxy`

use std::net::{IpAddr, Ipv4Addr};

use frames::TunnelRequest;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    context::Context,
    error::{Error, SIGNALLED},
    output::note,
    remote::{Event, Signals},
    tunnel::{self, Ended, TheirEnd, Tunnels, Voice},
};

const EXAMPLES: &str = "\
Examples:
  sprite proxy 3000                  localhost:3000 is port 3000 of the sprite
  sprite proxy 8080:3000 5432        localhost:8080 is its 3000, localhost:5432 its 5432
  sprite proxy 8080:db.internal:80   a host that the sprite can reach
  sprite proxy -W :22                stdin and stdout are one connection
  ssh -o ProxyCommand='sprite proxy -s web -W :22' sprite@web

It keeps listening while the sprite sleeps and while the network is down; the next connection wakes it.
A connection that breaks is reset. Ctrl-C ends it.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// PORT, LOCAL:REMOTE or LOCAL:HOST:REMOTE
    #[arg(value_name = "PORT", required_unless_present = "stdio", value_parser = Forward::parse)]
    ports: Vec<Forward>,
    /// Join stdin and stdout to one connection
    #[arg(short = 'W', long, value_name = "[HOST]:PORT", conflicts_with = "ports", value_parser = host_and_port)]
    stdio: Option<TunnelRequest>,
    /// The local address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
}

/// One local port and where it leads.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Forward {
    local: u16,
    to: TunnelRequest,
}

impl Forward {
    fn parse(text: &str) -> Result<Self, String> {
        let (local, rest) = match text.split_once(':') {
            None => (text, text.to_owned()),
            Some((local, rest)) => (local, rest.to_owned()),
        };
        // 0 lets the system choose.
        let local = local.parse::<u16>().map_err(|_| format!("{local:?} is no port"))?;
        let to = if rest.contains(':') {
            host_and_port(&rest)?
        } else {
            TunnelRequest { host: "localhost".to_owned(), port: port(&rest)?, half_close: true }
        };
        Ok(Self { local, to })
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{text:?} is no port (1 to 65535)"))
}

/// `host:port`, `:port`, `[v6]:port` or only a port.
fn host_and_port(text: &str) -> Result<TunnelRequest, String> {
    let (host, port_text) = text.rsplit_once(':').unwrap_or(("", text));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.is_empty() { "localhost" } else { host };
    Ok(TunnelRequest { host: host.to_owned(), port: port(port_text)?, half_close: true })
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    if let Some(target) = args.stdio {
        return join_stdio(Tunnels::new(api, &sprite, Voice::Silent), &target).await;
    }
    allow_many_connections();
    let mut signals = Signals::listen()?;
    let tunnels = Tunnels::new(api, &sprite, Voice::Aloud);
    let mut serving = JoinSet::new();
    for Forward { local, to } in args.ports {
        let listener = TcpListener::bind((args.bind, local)).await.map_err(|error| {
            Error::said(format!(
                "can't listen on {}:{local}: {error}\nChoose another local port: sprite proxy OTHER:{}",
                args.bind, to.port
            ))
        })?;
        let address = listener.local_addr()?;
        note(&format!("Listening on {address}, for {}:{} in {sprite}", to.host, to.port));
        serving.spawn(tunnels.clone().serve(listener, to));
    }
    loop {
        if let Event::Signal(_) = signals.next().await {
            return Ok(());
        }
    }
}

/// Two descriptors for each connection: as many as we may have.
fn allow_many_connections() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Fewer do as well; then fewer connections are accepted at once.
    let _ = setrlimit(Resource::Nofile, limit);
}

async fn join_stdio(tunnels: Tunnels, target: &TunnelRequest) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let work = async {
        let socket = tunnels.open_tunnel(target).await?;
        let (ended, _) = {
            let (from, to) = (tokio::io::stdin(), tokio::io::stdout());
            tunnel::relay(socket, from, to, TheirEnd::Whole).await
        };
        match ended {
            Ended::Whole => Ok(()),
            Ended::Broken(why) => Err(Error::said(format!("connection lost: {why}"))),
        }
    };
    tokio::select! {
        ended = work => ended,
        event = async { loop { if let Event::Signal(signal) = signals.next().await { break signal } } } => {
            Err(Error::Exit(SIGNALLED + u8::try_from(event.number()).unwrap_or(0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_three_ways() {
        let to = |host: &str, port| TunnelRequest { host: host.to_owned(), port, half_close: true };
        let forward = |local, to| Ok(Forward { local, to });
        assert_eq!(Forward::parse("3000"), forward(3000, to("localhost", 3000)));
        assert_eq!(Forward::parse("3001:3000"), forward(3001, to("localhost", 3000)));
        assert_eq!(Forward::parse("0:22"), forward(0, to("localhost", 22)));
        assert_eq!(Forward::parse("80:db:5432"), forward(80, to("db", 5432)));
        assert_eq!(Forward::parse("80:[::1]:5432"), forward(80, to("::1", 5432)));
        for bad in ["", "x", "1:", ":1", "1:0", "70000", "1:2:x", "-1"] {
            assert!(Forward::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(host_and_port(":22"), Ok(to("localhost", 22)));
        assert_eq!(host_and_port("db:22"), Ok(to("db", 22)));
    }
}
