//! Measures a real system on this machine: wakes, holds and storms, and the gateway beside its peers.
//! Results are Markdown (or JSON with `--json`) on stdout; they belong into docs/performance.md together
//! with the command that made them.

mod abort;
mod bench;
mod hold;
mod machines;
mod reach;
mod report;
mod storm;
mod wake;

use clap::{Parser, Subcommand};

/// Measures wakes, holds and storms of a real gateway, agent and sprites on this machine.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time from a request to a sleeping sprite to the first byte of its answer
    Wake {
        /// How often, for paused and for cold
        #[arg(short, default_value_t = 200)]
        n: usize,
    },
    /// POSTs with bodies that all arrive while the sprite sleeps
    Hold {
        /// How many
        #[arg(short, default_value_t = 2000)]
        n: usize,
    },
    /// Many sleeping sprites hit within one second while a hot one serves
    Storm {
        /// How many sleep
        #[arg(short, default_value_t = 200)]
        n: usize,
    },
    /// What commands, tunnels and files in a sprite cost, beside a plain TCP relay
    Reach {
        /// How often a command is timed, awake and paused
        #[arg(short, default_value_t = 300)]
        n: usize,
    },
    /// Virtual machines: how fast they sleep and wake, and what is left of them meanwhile
    Machines {
        /// How often one sleeps and wakes, for each depth
        #[arg(short, default_value_t = 50)]
        n: usize,
        /// How many are asleep in the end
        #[arg(long, default_value_t = 50)]
        sprites: usize,
        /// How many of those are woken at once
        #[arg(long, default_value_t = 20)]
        woken: usize,
    },
    /// Clients that leave in any phase (HTTP/1, HTTP/2, WebSockets); fails unless nothing of them is left
    Abort {
        /// How many
        #[arg(short, default_value_t = 1_000_000)]
        n: usize,
    },
    /// Wakes, holds and storms with their defaults
    All,
    /// The gateway beside nginx, HAProxy, Caddy, Traefik, bare hyper and bare Pingora, in one run
    ///
    /// Writes a Markdown table, JSON and a plot into target/bench/.
    Bench(bench::Arguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Command::Bench(_) = arguments.command {
        bench::limit_threads()?;
    }
    tokio::runtime::Runtime::new()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let rows = match arguments.command {
        Command::Bench(arguments) => return bench::run(arguments).await,
        Command::Reach { n } => {
            let measured = reach::measure(n).await?;
            report::print(&measured.times, arguments.json)?;
            return report::print_rates(&measured.rates, arguments.json);
        }
        Command::Machines { n, sprites, woken } => {
            let measured = machines::measure(n, sprites, woken).await?;
            report::print(&measured.times, arguments.json)?;
            return report::print_rates(&measured.rates, arguments.json);
        }
        Command::Wake { n } => wake::measure(n).await?,
        Command::Hold { n } => hold::measure(n).await?,
        Command::Storm { n } => storm::measure(n).await?,
        Command::Abort { n } => abort::measure(n).await?,
        Command::All => {
            let mut rows = wake::measure(200).await?;
            rows.extend(hold::measure(2000).await?);
            rows.extend(storm::measure(200).await?);
            rows
        }
    };
    report::print(&rows, arguments.json)
}
