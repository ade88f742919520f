//! Starting and stopping the agent as a process.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info};

use crate::{
    agent::Agent,
    api,
    config::{Config, DriverKind},
    drivers::{
        Driver, DriverSet,
        command::{CommandDriver, configured_id},
        firecracker::FirecrackerDriver,
        process::ProcessDriver,
        qemu::QemuDriver,
    },
    store::Store,
};

/// Serves until told to stop.
pub(crate) fn run(config: Config) -> ExitCode {
    let logging = match telemetry::init_in_background(config.log_format, &config.log_filter) {
        Ok(logging) => logging,
        Err(reason) => {
            eprintln!("vmm-agent: {reason}");
            return ExitCode::from(64);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "Could not start the runtime");
            return ExitCode::from(70);
        }
    };
    let code = match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "The agent can't go on");
            ExitCode::from(70)
        }
    };
    // The last lines, too.
    drop(logging);
    code
}

/// Prints what the driver finds on this host.
pub(crate) fn probe(config: &Config) -> ExitCode {
    match config.driver {
        DriverKind::Process => println!("{}", ProcessDriver::probe(&config.process)),
        DriverKind::Qemu => println!("{}", QemuDriver::probe(&config.qemu)),
        DriverKind::Firecracker => println!("{}", FirecrackerDriver::probe(&config.firecracker)),
    }
    ExitCode::SUCCESS
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let _lock = lock(&config.state_dir)?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for SIGINT")?;

    let (store, stored) = Store::open(&config.state_dir.join("agent.db"))
        .context("could not open the store in the state directory")?;
    let usual = driver(&config).context("could not set up the driver")?;
    let configured = config.commands.iter().map(|settings| (configured_id(settings), settings.clone()));
    let driver = Arc::new(DriverSet::new(usual, CommandDriver::new(configured.collect())));
    let socket = config.socket();
    let agent = Agent::start(config, store, stored, driver).await?;

    let listener = listen(&socket)?;
    info!(socket = %socket.display(), driver = agent.driver.name(), "Agent is ready");
    let server = {
        let shutdown = agent.shutdown.clone();
        let routes = api::router(agent.clone());
        tokio::spawn(async move {
            axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await
        })
    };
    tokio::select! {
        _ = terminate.recv() => info!("Told to stop (SIGTERM)"),
        _ = interrupt.recv() => info!("Told to stop (SIGINT)"),
    }
    agent.stop().await;
    // The socket must not outlive its owner: a client would hang where it should be refused.
    fs::remove_file(&socket).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    server.abort();
    info!("Agent has stopped");
    Ok(())
}

/// The driver that the configuration names.
fn driver(config: &Config) -> io::Result<Arc<dyn Driver>> {
    Ok(match config.driver {
        DriverKind::Process => Arc::new(ProcessDriver::new(&config.state_dir, config.process.clone())?),
        DriverKind::Qemu => Arc::new(QemuDriver::new(&config.state_dir, config.qemu.clone())?),
        DriverKind::Firecracker => {
            Arc::new(FirecrackerDriver::new(&config.state_dir, config.firecracker.clone())?)
        }
    })
}

/// One agent for one state directory: two would fight over its sprites.
fn lock(state_dir: &Path) -> anyhow::Result<Flock<File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("could not make the state directory {}", state_dir.display()))?;
    let path = state_dir.join("agent.lock");
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("could not open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another agent uses the state directory {}; stop it, or give this one a state_dir of its own",
            state_dir.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

/// Binds the API's socket. A stale one is removed: the lock says that nobody serves it.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    match fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("could not remove the stale {}", socket.display()));
        }
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("could not bind {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("could not protect {}", socket.display()))?;
    Ok(listener)
}
