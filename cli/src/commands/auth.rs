//! `sprite login`, `sprite logout` and `sprite auth setup`

use std::io::{BufRead, IsTerminal, Write};

use clap::Subcommand;
use reqwest::Method;

use crate::{
    config::Secret,
    context::{Context, normal_url},
    error::Error,
    net::Api,
    output,
    term::{progress, raw},
};

const LOGIN_EXAMPLES: &str = "\
Examples:
  sprite login https://api.sprites.example          asks for the token
  vmm-agent token mint --org acme | sprite login    reads it from stdin
  sprite login --token - < token.txt

The token is tried before it is stored: in the desktop's keyring if there is one, else in
~/.sprites/sprites.json, which only you can read. On the server, `vmm-agent token mint` makes tokens.";

const LOGOUT_EXAMPLES: &str = "\
Examples:
  sprite logout             forget all tokens of the API that is selected
  sprite logout --all       forget all tokens

The tokens stay valid; on the server, `vmm-agent token revoke` ends one.";

const SETUP_EXAMPLES: &str = "\
Examples:
  SPRITES_API_URL=https://api.sprites.example sprite auth setup --token \"$TOKEN\"
  sprite auth setup --token - < token.txt      keeps it out of the list of processes";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = LOGIN_EXAMPLES)]
pub(crate) struct Login {
    /// The API's URL; without it SPRITES_API_URL or the one in use
    pub(crate) api_url: Option<String>,
}

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = LOGOUT_EXAMPLES)]
pub(crate) struct Logout {
    /// Those of every API
    #[arg(long)]
    all: bool,
}

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Store the token given by --token
    #[command(after_help = SETUP_EXAMPLES)]
    Setup {
        /// The API's URL; without it SPRITES_API_URL or the one in use
        api_url: Option<String>,
    },
}

pub(crate) async fn login(context: &Context, args: Login) -> Result<(), Error> {
    let url = url(context, args.api_url)?;
    let token = match context.given_token()? {
        Some(token) => token,
        None => ask(&url)?,
    };
    store(context, &url, token).await
}

pub(crate) async fn run(context: &Context, args: Auth) -> Result<(), Error> {
    let Auth::Setup { api_url } = args;
    let url = url(context, api_url)?;
    let given = context.given_token()?;
    let token =
        given.ok_or_else(|| Error::said("give the token: sprite auth setup --token ORG/…/…/VALUE"))?;
    store(context, &url, token).await
}

fn url(context: &Context, given: Option<String>) -> Result<String, Error> {
    given.map_or_else(|| context.url(), |url| Ok(normal_url(&url)))
}

/// Asks a person, or reads a line of stdin.
fn ask(url: &str) -> Result<Secret, Error> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    if stdin.is_terminal() {
        eprint!("Token for {url} (not shown): ");
        // A prompt that can't be shown is answered by nobody.
        let _ = std::io::stderr().flush();
        let hidden = raw::Hidden::enter()?;
        stdin.lock().read_line(&mut line)?;
        drop(hidden);
        eprintln!();
    } else {
        stdin.lock().read_line(&mut line)?;
    }
    let token = line.trim();
    if token.is_empty() {
        return Err(Error::said(
            "there was no token. On the server, `vmm-agent token mint --org ORG` makes one",
        ));
    }
    Ok(Secret::new(token))
}

/// Tries a token and keeps it.
async fn store(context: &Context, url: &str, token: Secret) -> Result<(), Error> {
    let api = context.api_with(url, token.clone())?;
    let org =
        progress::while_working(&format!("trying the token at {url}"), organization(&api, &token)).await?;
    let wanted = context.global.org.as_deref().map(|org| org.rsplit_once(':').map_or(org, |(_, org)| org));
    if let Some(wanted) = wanted.filter(|wanted| *wanted != org) {
        return Err(Error::said(format!("the token is one of the organization {org}, not of {wanted}")));
    }
    let mut store = context.store()?;
    let in_keyring = store.remember(url, &org, &token)?;
    let place = if in_keyring { "the keyring".to_owned() } else { store.path().display().to_string() };
    output::note(&format!("Logged in to {url} as {org}; the token is in {place}"));
    Ok(())
}

/// The organization that a token speaks for, by the API's own word.
async fn organization(api: &Api, token: &Secret) -> Result<String, Error> {
    match api.call(Method::GET, api.url("/v1/organization"), None).await {
        Ok(answer) => {
            let slug = answer["organization"]["slug"].as_str().or_else(|| token.organization());
            slug.map(str::to_owned).ok_or_else(|| {
                Error::said(format!(
                    "{} accepts the token, but does not say whose it is; is it a Sprites API?",
                    api.base
                ))
            })
        }
        Err(error) if error.is_absence() => {
            // An API without this call: a list is refused as well if the token is wrong.
            api.call(Method::GET, api.url("/v1/sprites?max_results=1"), None).await?;
            let own = token.organization().map(str::to_owned);
            own.ok_or_else(|| Error::said("the token does not say whose it is; add -o ORG"))
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn logout(context: &Context, args: &Logout) -> Result<(), Error> {
    let url = if args.all { None } else { Some(context.url()?) };
    let mut store = context.store()?;
    let forgotten = store.forget(url.as_deref(), context.global.org.as_deref())?;
    if forgotten.is_empty() {
        output::note("There was no token to forget");
    }
    for name in forgotten {
        output::note(&format!("Forgot the token of {name}"));
    }
    if context.environment.token.is_some() || context.environment.fallback_token.is_some() {
        output::note("SPRITES_TOKEN or SPRITE_TOKEN is still set in this shell");
    }
    Ok(())
}
