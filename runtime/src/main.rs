//! The runtime: PID 1 of a sprite.
//!
//! It starts and keeps the sprite's services, connects the host to the programs inside, reports what
//! they listen on, collects the dead, and ends it all in good order. Beyond its transport it can't tell what
//! kind of sandbox it is in.
//!
//! In a virtual machine it is also what the kernel starts first ([`boot`]).
//!
//! It runs on one thread: while nothing happens it costs nothing, and when the sprite is frozen there is
//! nothing of it to wait for.

mod activities;
mod api;
mod boot;
mod control;
mod dial;
mod env;
mod exec;
mod files;
mod hello;
mod host;
mod hosts;
mod limits;
mod local;
mod ports;
mod reap;
mod serve;
mod services;
mod sessions;
mod shims;
mod shutdown;
mod state;
mod text;
mod transport;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context as _, bail};
use telemetry::Format;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::{
    activities::Activities, boot::Channel, reap::Reaper, services::Actor, sessions::Sessions,
    shutdown::Shutdown, state::Runtime, transport::Listener,
};

/// Where definitions and logs of services are, unless told otherwise.
const HOME: &str = "/.sprite";

const USAGE: &str = "usage: runtime --listen-fd FD [--home DIRECTORY], or runtime hello PORT";

/// The name under which the kernel of a virtual machine starts it.
const INIT: &str = "init";

/// Threads for what blocks, such as reading files: few enough for a sprite whose processes are counted.
const MAX_BLOCKING: usize = 32;

fn main() -> ExitCode {
    if called_as(env::NAME) {
        return match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(tokio) => tokio.block_on(env::main()),
            Err(error) => {
                eprintln!("{}: {error}", env::NAME);
                ExitCode::FAILURE
            }
        };
    }
    // Before there are threads: the root is about to change.
    let is_machine = std::process::id() == 1 && called_as(INIT);
    let arguments = match is_machine {
        true => boot::boot().map(Arguments::Machine).map_err(Into::into),
        false => Arguments::parse(std::env::args().skip(1)),
    };
    let started = arguments.and_then(|arguments| {
        telemetry::init(Format::Text, "info").map_err(anyhow::Error::msg)?;
        limits::raise_descriptors().context("could not raise the limit of descriptors")?;
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_BLOCKING)
            .build()?;
        match arguments {
            Arguments::Run { listen_fd, home } => tokio.block_on(async {
                let listener =
                    transport::inherited_listener(listen_fd).context("could not use the listening socket")?;
                run(Listener::Socket(listener), home, false).await
            }),
            Arguments::Machine(channel) => tokio.block_on(async {
                let listener = match channel {
                    Channel::Serial(port) => Listener::serial(&port),
                    Channel::Vsock => Listener::vsock(),
                };
                run(listener.context("could not open the channel to the host")?, HOME.into(), true).await
            }),
            Arguments::Hello { port } => Ok(tokio.block_on(hello::serve(port))?),
        }
    });
    let code = match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not have begun.
            eprintln!("runtime: {error:#}");
            ExitCode::FAILURE
        }
    };
    if is_machine {
        // The end of the first process is the end of the machine, in good order or not.
        eprintln!("runtime: could not power off: {}", boot::power_off());
    }
    code
}

/// Whether this program was started under `name`.
fn called_as(name: &str) -> bool {
    let called = std::env::args_os().next().map(PathBuf::from);
    called.is_some_and(|path| path.file_name() == Some(name.as_ref()))
}

enum Arguments {
    /// Be PID 1 of a pid namespace.
    Run { listen_fd: i32, home: PathBuf },
    /// Be PID 1 of a virtual machine.
    Machine(Channel),
    /// Be the demo sprite's web server.
    Hello { port: u16 },
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut listen_fd, mut home) = (None, PathBuf::from(HOME));
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value; {USAGE}"))?;
            match name.as_str() {
                "--listen-fd" => {
                    let number: i32 = value.parse().context("--listen-fd is no number")?;
                    if number <= 2 {
                        bail!("--listen-fd must be 3 or more");
                    }
                    listen_fd = Some(number);
                }
                "--home" => home = value.into(),
                "hello" => return Ok(Self::Hello { port: value.parse().context("PORT is no port")? }),
                other => bail!("unknown argument {other:?}; {USAGE}"),
            }
        }
        Ok(Self::Run { listen_fd: listen_fd.context(USAGE)?, home })
    }
}

async fn run(listener: Listener, home: PathBuf, is_machine: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;
    let reaper = Reaper::default();
    let (actor, services) = Actor::new(
        home.join("services.json"),
        home.join("logs/services"),
        state::base_environment(),
        reaper.clone(),
    );
    let activities = Activities::default();
    let first = first_session().context("could not read random bytes")?;
    let sessions = Sessions::new(reaper.clone(), activities.clone(), state::base_environment(), first);
    let runtime = Arc::new(Runtime::new(services, sessions, activities, is_machine));
    // Without it the sprite works, but for what programs inside ask of it.
    let local = local::bind(&home).inspect_err(|error| warn!(%error, "There is no management socket"));
    shims::make(&home.join("bin"), &state::base_environment());
    let shutdown = Arc::new(Shutdown::default());
    let is_first = std::process::id() == 1;
    info!(version = env!("CARGO_PKG_VERSION"), is_first, "Runtime is up");

    // These run as long as the sprite; when one can't go on, neither can the sprite.
    let serving = tokio::spawn(serve::run(listener, Arc::clone(&runtime), Arc::clone(&shutdown)));
    let supervising = tokio::spawn(actor.run());
    let reaping = tokio::spawn(reaper.clone().run());
    if let Ok(listener) = local {
        tokio::spawn(local::run(listener, Arc::clone(&runtime)));
    }
    let looking = tokio::spawn({
        let runtime = Arc::clone(&runtime);
        async move { runtime.ports.look().await }
    });
    let grace = tokio::select! {
        grace = shutdown.asked() => grace,
        _ = terminate.recv() => services::DEFAULT_GRACE,
        _ = interrupt.recv() => services::DEFAULT_GRACE,
        lost = serving => { error!(?lost, "The host can't be served any more"); services::DEFAULT_GRACE }
        lost = looking => { error!(?lost, "Ports can't be watched any more"); services::DEFAULT_GRACE }
        lost = supervising => { error!(?lost, "Services can't be supervised any more"); services::DEFAULT_GRACE }
        lost = reaping => { error!(?lost, "Processes can't be collected any more"); services::DEFAULT_GRACE }
    };
    shutdown::end(&runtime, &reaper, grace, is_first).await;
    info!("Runtime ends");
    Ok(())
}

/// The number of this boot's first session: chosen at random, so that an id of an earlier boot hardly ever
/// names a session of this one.
fn first_session() -> std::io::Result<u32> {
    use std::io::Read as _;
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
