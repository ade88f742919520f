//! The command line.

mod image;

use std::{path::PathBuf, process::ExitCode};

use agent_api::{ApiError, MintToken, MintedToken, TokenRecord, client::AgentClient};
use clap::{Args, Parser, Subcommand};
use http::Method;
use ids::{OrgSlug, TokenId};

use crate::{
    api::chain,
    config::{Config, ConfigError, socket_in},
    drivers::qemu::FaultPoint,
    serve,
};

/// Bad configuration or usage (sysexits.h: EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// The agent could not be reached (EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: u8 = 69;
/// Something failed that should not have (EX_SOFTWARE).
const EXIT_FAILURE: u8 = 70;

/// Runs the sprites of one host.
///
/// A sprite is a named sandbox with a persistent disk that sleeps when nothing uses it and wakes when
/// something does. The agent creates, wakes, pauses, stops and destroys them; gateways reach it over a
/// Unix socket in its state directory.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGINT or SIGTERM
    Serve {
        /// The configuration file; config/agent.example.toml explains every key
        #[arg(long, value_name = "FILE", env = "SPRITES_AGENT_CONFIG")]
        config: PathBuf,
    },
    /// Say what the drivers can and cannot do on this host
    Probe {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "SPRITES_AGENT_CONFIG")]
        config: PathBuf,
    },
    /// Mint, list and revoke the tokens with which clients use the API and private URLs
    #[command(subcommand)]
    Token(TokenCommand),
    /// Build, list and check what virtual machines boot
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// List the moments at which SPRITES_FAULT can have something killed
    #[command(hide = true)]
    Faults,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Mint a token and print it; it is shown once and stored as a hash
    Mint {
        #[command(flatten)]
        reach: Reach,
        /// The organization it speaks for; made if there is none of that name
        #[arg(long, value_name = "SLUG")]
        org: OrgSlug,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
        /// Print JSON with the token's id and the organization, too
        #[arg(long)]
        json: bool,
    },
    /// List tokens, without their secrets
    List {
        #[command(flatten)]
        reach: Reach,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token: it is refused from the next request on, and its open connections end
    Revoke {
        #[command(flatten)]
        reach: Reach,
        /// The token's id: the third part of its text
        id: TokenId,
    },
}

#[derive(Debug, Args)]
struct Reach {
    /// The state directory of the running agent
    #[arg(long, value_name = "DIR", env = "SPRITES_STATE_DIR")]
    state_dir: PathBuf,
}

impl Reach {
    fn client(&self) -> AgentClient {
        AgentClient::new(socket_in(&self.state_dir))
    }
}

/// Runs the command and says how it ended.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    match arguments.command {
        Command::Serve { config } => match Config::load(&config) {
            Ok(config) => serve::run(config),
            Err(error) => usage(&error),
        },
        Command::Probe { config } => match Config::load(&config) {
            Ok(config) => serve::probe(&config),
            Err(error) => usage(&error),
        },
        Command::Token(command) => blocking(token(command)),
        Command::Image(command) => image::run(command),
        Command::Faults => {
            for point in FaultPoint::ALL {
                println!("{}", point.name());
            }
            ExitCode::SUCCESS
        }
    }
}

fn usage(error: &ConfigError) -> ExitCode {
    eprintln!("vmm-agent: {error}");
    ExitCode::from(EXIT_USAGE)
}

fn blocking(work: impl Future<Output = Result<(), ApiError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vmm-agent: could not start: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-agent: {}", chain(&error));
            if matches!(error, ApiError::Unreachable(_)) {
                eprintln!("Is it running? `vmm-agent serve --config FILE` starts it.");
                return ExitCode::from(EXIT_UNAVAILABLE);
            }
            ExitCode::FAILURE
        }
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<(), ApiError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| ApiError::Protocol(error.to_string()))?;
    println!("{text}");
    Ok(())
}

async fn token(command: TokenCommand) -> Result<(), ApiError> {
    match command {
        TokenCommand::Mint { reach, org, description, json } => {
            let ask = MintToken { organization: org, description };
            let minted: MintedToken = reach.client().call(Method::POST, "/v1/tokens", Some(&ask)).await?;
            if json {
                return print_json(&minted);
            }
            println!("{}", minted.token);
            eprintln!(
                "Keep it: it is not stored and can't be shown again. Revoke it with: token revoke {}",
                minted.id
            );
        }
        TokenCommand::List { reach, json } => {
            let tokens: Vec<TokenRecord> = reach.client().get("/v1/tokens").await?;
            if json {
                return print_json(&tokens);
            }
            println!("{:<14}{:<20}{:<32}DESCRIPTION", "ID", "ORGANIZATION", "CREATED");
            for token in tokens {
                let (id, org) = (token.id.as_str(), token.organization.as_str());
                println!("{id:<14}{org:<20}{:<32}{}", token.created_at.to_string(), token.description);
            }
        }
        TokenCommand::Revoke { reach, id } => {
            let path = format!("/v1/tokens/{id}");
            reach.client().call::<(), ()>(Method::DELETE, &path, None).await?;
            eprintln!("Revoked {id}");
        }
    }
    Ok(())
}
