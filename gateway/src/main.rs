//! The gateway: the edge in front of sprites. It wakes a sprite when a request comes for it, holds the
//! request until it can be served, and keeps the sprite awake while somebody uses it.
//!
//! It owns no truth: what it knows it has from the agent, and a restart loses nothing.

mod admin;
mod api;
mod backoff;
mod clock;
mod config;
mod dial;
mod drain;
mod edge;
mod feed;
mod leases;
mod ledger;
mod metrics;
mod routes;
mod upstream;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use agent_api::client::AgentClient;
use anyhow::Context;
use clap::Parser;
use ids::HolderId;
use rand::Rng;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::{
    clock::Clock,
    config::Settings,
    drain::Signals,
    edge::{Edge, listen, listen::Listener},
    leases::Leases,
    ledger::Ledger,
    metrics::Metrics,
    routes::RouteTable,
};

/// Gives memory of closed connections back, and costs less per connection than the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit status of a bad configuration (`EX_USAGE` of `sysexits.h`).
const BAD_CONFIGURATION: u8 = 64;
/// How often the agent hears what goes on under the leases, for `why awake`.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Unused connections into sprites are looked at four times in the time that they may idle, within these.
const SHORTEST_SWEEP: Duration = Duration::from_millis(200);
const LONGEST_SWEEP: Duration = Duration::from_secs(4);

/// The edge in front of sprites: wakes them, holds requests meanwhile, and keeps them awake while used.
///
/// Needs a running agent (see `vmm-agent --help`). Every key of the configuration, with its default and
/// its reason, is in config/gateway.example.toml. SIGTERM and SIGINT drain and end it.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE", env = "SPRITES_GATEWAY_CONFIG")]
    config: PathBuf,
    /// Check the configuration and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = match config::load(&args.config) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("gateway: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let logging = match telemetry::init_in_background(settings.log.format, &settings.log.filter) {
        Ok(logging) => logging,
        Err(reason) => {
            eprintln!("gateway: log.filter: {reason}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let tls = match settings.listen.tls.as_ref().map(listen::acceptor).transpose() {
        Ok(tls) => tls,
        Err(error) => {
            eprintln!("gateway: tls: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if args.check {
        println!("{} is a good configuration", args.config.display());
        return ExitCode::SUCCESS;
    }
    raise_descriptor_limit();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("gateway")
        .build()
        .context("could not start the runtime")
        .and_then(|runtime| runtime.block_on(run(settings, tls)));
    // What was said last is seen before how it ended.
    drop(logging);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings, tls: Option<TlsAcceptor>) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("could not catch signals")?;
    let listeners = bind(&settings, tls)?;
    let admin = TcpListener::bind(settings.listen.admin)
        .await
        .with_context(|| format!("could not listen on {} (listen.admin)", settings.listen.admin))?;
    for listener in &listeners {
        info!(address = %listener.address()?, "Listening");
    }
    info!(address = %admin.local_addr()?, "Listening for the operator");

    let (draining, watch_draining) = watch::channel(false);
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::new().context("could not set the metrics up")?);
    let ledger = Ledger::new(clock);
    let agent = AgentClient::new(settings.agent_socket.clone());
    let holder: HolderId = format!("gateway-{:016x}", rand::rng().random::<u64>()).parse()?;
    let (leases, outbox) = Leases::new(&settings, clock, holder, ledger.clone(), metrics.clone());
    let routes = Arc::new(RouteTable::new(ledger.clone()));
    let edge = Arc::new(Edge {
        settings,
        routes: routes.clone(),
        leases: leases.clone(),
        ledger: ledger.clone(),
        agent: agent.clone(),
        metrics,
        draining: watch_draining.clone(),
    });

    // Dropped, and so ended, when we leave.
    let mut tasks = JoinSet::new();
    tasks.spawn(feed::run(agent.clone(), routes));
    tasks.spawn(leases::run_channel(agent, leases.clone(), outbox));
    tasks.spawn(leases.clone().run_timers());
    tasks.spawn(report(leases.clone()));
    tasks.spawn(sweep(leases, edge.settings.timing.upstream_idle));
    tasks.spawn(admin::serve(admin, edge.clone()));
    tasks.spawn(listen::serve(edge.clone(), listeners, watch_draining));

    let signal = signals.next().await;
    info!(signal, "Asked to end");
    drain::run(&edge, &draining, &mut signals).await;
    tasks.shutdown().await;
    info!("Ended");
    Ok(())
}

/// Each connection is a descriptor or two; the usual soft limit of 1024 is for other programs.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => info!(limit, "Open files are limited"),
        Err(error) => warn!(%error, "The limit of open files stays as it is"),
    }
}

fn bind(settings: &Settings, tls: Option<TlsAcceptor>) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for address in &settings.listen.http {
        listeners.push(Listener::bind(*address, settings, None).context("listen.http")?);
    }
    if let Some(tls) = tls {
        for address in &settings.listen.https {
            listeners.push(Listener::bind(*address, settings, Some(tls.clone())).context("listen.https")?);
        }
    }
    Ok(listeners)
}

async fn report(leases: Arc<Leases>) {
    let mut every = tokio::time::interval(REPORT_EVERY);
    loop {
        every.tick().await;
        leases.report();
    }
}

/// Closes connections into sprites that nobody has used for `most_idle`.
async fn sweep(leases: Arc<Leases>, most_idle: Duration) {
    let mut every = tokio::time::interval(most_idle.clamp(SHORTEST_SWEEP, LONGEST_SWEEP) / 4);
    loop {
        every.tick().await;
        leases.sweep(most_idle);
    }
}
