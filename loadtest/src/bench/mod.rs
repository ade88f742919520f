//! The gateway beside its peers: one run, one backend, interleaved rounds in random order.
//!
//! Other work on the machine moves all absolute numbers. So peers are compared within a round, CPU is
//! counted per request, and medians are taken of ratios.

mod cells;
mod closed;
mod configs;
mod held;
mod http1;
mod http2;
mod idle;
mod open;
mod peers;
mod plot;
mod process;
mod results;
mod spread;
mod table;
mod target;
mod verdict;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::seq::SliceRandom;
use serde_json::json;
use test_support::{Program, program};

use self::{
    cells::{Cell, Size},
    peers::{Assignment, Backend, Kind, Peer, free_address},
    results::{Record, Results},
    target::Tls,
};

/// What tokio's runtimes take the number of their threads from: the gateway's, like its peers', is one.
const WORKERS: &str = "TOKIO_WORKER_THREADS";
const FULL: Size = Size {
    rounds: 5,
    memory_rounds: 2,
    window: Duration::from_millis(1500),
    latency_window: Duration::from_secs(4),
    idle: 2000,
    held: 2000,
};
const QUICK: Size = Size {
    rounds: 2,
    memory_rounds: 1,
    window: Duration::from_millis(600),
    latency_window: Duration::from_millis(1200),
    idle: 2000,
    held: 2000,
};

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Fewer and shorter rounds: under five minutes
    #[arg(long)]
    quick: bool,
    /// How many rounds
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these cells
    #[arg(long, value_name = "CELL")]
    only: Vec<Cell>,
    /// Only these peers
    #[arg(long, value_name = "PEER")]
    peer: Vec<Kind>,
    /// How many idle connections
    #[arg(long)]
    idle: Option<usize>,
    /// How many held POSTs
    #[arg(long)]
    held: Option<usize>,
    /// Where the plot goes; always also into target/bench/
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Runs itself again with one worker thread for each child that uses tokio, unless it already does.
pub(crate) fn limit_threads() -> anyhow::Result<()> {
    if std::env::var_os(WORKERS).is_some_and(|workers| workers == "1") {
        return Ok(());
    }
    let mut again = Command::new(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).env(WORKERS, "1").exec()).context("could not start again")
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // Dropped, all peers end.
    tokio::select! {
        done = measure(arguments) => done,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}

async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let size = if arguments.quick { QUICK } else { FULL };
    let rounds = arguments.rounds.unwrap_or(size.rounds);
    let size = Size {
        rounds,
        memory_rounds: size.memory_rounds.min(rounds),
        idle: arguments.idle.unwrap_or(size.idle),
        held: arguments.held.unwrap_or(size.held),
        ..size
    };
    let cells = match arguments.only.is_empty() {
        true => {
            let all = Cell::value_variants().iter().copied();
            all.filter(|cell| !arguments.quick || cell.is_quick()).collect()
        }
        false => arguments.only.clone(),
    };
    // Each idle WebSocket is two descriptors of its proxy; of the held not all are released at once.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let needed = (2 * size.idle).max(size.held * 3 / 2) + 200;
    ensure!(hard > needed as u64, "{hard} open files are too few for {needed}; raise the limit (ulimit -n)");

    let began = Instant::now();
    let output = program(Program::Gateway)?.with_file_name("").join("../bench");
    fs::create_dir_all(&output)?;
    let mut results = Results::default();
    let mut installed = Vec::new();
    let asked = |kind: &Kind| arguments.peer.is_empty() || arguments.peer.contains(kind);
    for kind in Kind::ALL.into_iter().filter(asked) {
        if kind.installed()? {
            installed.push(kind);
        } else {
            let note = format!("{} is not installed (scripts/deps.sh bench installs it)", kind.name());
            results.failures.push(note);
        }
    }
    let dir = tempfile::Builder::new().prefix("sprites-bench").tempdir()?;
    mint(dir.path())?;
    rounds_of(&cells, size, &installed, dir.path(), &mut results).await?;

    let versions: serde_json::Map<_, _> = installed
        .iter()
        .map(|kind| Ok((kind.name().to_owned(), json!(kind.version()?))))
        .collect::<anyhow::Result<_>>()?;
    let about = json!({ "rounds": size.rounds, "window_ms": size.window.as_millis(), "idle": size.idle,
        "held": size.held, "cpus": std::thread::available_parallelism()?.get(), "versions": versions,
        "seconds": began.elapsed().as_secs() });
    let name = if arguments.quick { "quick" } else { "full" };
    let markdown = format!("{}\n{}", table::render(&results, &about), verdict::render(&results));
    fs::write(output.join(format!("{name}.md")), &markdown)?;
    fs::write(output.join(format!("{name}.json")), serde_json::to_string_pretty(&results.to_json(&about))?)?;
    let svg = plot::render(&results);
    fs::write(output.join(format!("{name}.svg")), &svg)?;
    if let Some(path) = arguments.plot {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, svg)?;
    }
    println!("{markdown}");
    Ok(())
}

/// All rounds of all cells. What can't be measured is noted and left out.
async fn rounds_of(
    cells: &[Cell],
    size: Size,
    installed: &[Kind],
    dir: &Path,
    results: &mut Results,
) -> anyhow::Result<()> {
    let tls = Tls::new()?;
    let backend = Backend::start(free_address()?, dir).await?;
    let work = Assignment { backend: backend.address, dir, late: None };
    let (fresh, traffic): (Vec<Cell>, Vec<Cell>) = cells.iter().partition(|cell| cell.starts_peers());
    let mut peers = Vec::new();
    if !traffic.is_empty() {
        for &kind in installed {
            peers.push(match kind {
                Kind::Direct => Peer::direct(&backend, tls.clone()),
                Kind::Nginx
                | Kind::Haproxy
                | Kind::Caddy
                | Kind::Traefik
                | Kind::Hyper
                | Kind::Pingora
                | Kind::Gateway => Peer::start(kind, tls.clone(), work).await?,
            });
        }
    }
    for round in 0..size.rounds {
        for cell in shuffled(&traffic) {
            eprintln!("round {} of {}: {cell:?}", round + 1, size.rounds);
            peers.shuffle(&mut rand::rng());
            for peer in peers.iter_mut().filter(|peer| cell.applies(peer.kind)) {
                let kind = peer.kind;
                let measured = cell.traffic(peer, size).await;
                note(results, round, cell, kind, measured);
            }
        }
    }
    for peer in peers {
        peer.stop().await?;
    }
    for round in 0..size.memory_rounds {
        for cell in shuffled(&fresh).into_iter().filter(|cell| round == 0 || !cell.is_once()) {
            eprintln!("round {} of {}: {cell:?}", round + 1, size.memory_rounds);
            for kind in shuffled(installed).into_iter().filter(|kind| cell.applies(*kind)) {
                let measured = cell.memory(kind, tls.clone(), work, size).await;
                note(results, round, cell, kind, measured);
            }
        }
    }
    Ok(())
}

fn note(
    results: &mut Results,
    round: usize,
    cell: Cell,
    kind: Kind,
    measured: anyhow::Result<Vec<(results::Figure, f64)>>,
) {
    match measured {
        Ok(figures) => {
            let record = |(figure, value)| Record { round, kind, figure, value };
            results.records.extend(figures.into_iter().map(record));
        }
        Err(error) => {
            let failure = format!("{cell:?} of {} in round {}: {error:#}", kind.name(), round + 1);
            eprintln!("{failure}");
            results.failures.push(failure);
        }
    }
}

fn shuffled<T: Copy>(of: &[T]) -> Vec<T> {
    let mut order = of.to_vec();
    order.shuffle(&mut rand::rng());
    order
}

/// A certificate for the peers; the gateway's world has its own, of the same kind.
fn mint(dir: &Path) -> anyhow::Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../certs/mint.sh");
    let output = Command::new(script).arg(dir.join("certs")).output()?;
    ensure!(output.status.success(), "certs/mint.sh: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
