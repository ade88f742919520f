//! `sprite-env`: what a program or a person in a sprite asks of it. The runtime under another name.

mod args;
mod call;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use serde_json::{Value, json};

use self::{
    args::{Arguments, Checkpoints, Command, Services},
    call::Socket,
};

/// The command's name.
pub(crate) const NAME: &str = "sprite-env";

/// Runs the command line. Exit codes: 0 done, 1 refused or failed, 2 bad usage.
pub(crate) async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let socket = Socket::at(&arguments.socket);
    match run(&socket, arguments.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(socket: &Socket, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Info => print(&socket.json("GET", "/v1/info", None).await?),
        Command::Services { command } => services(socket, command).await,
        Command::Checkpoints { command } => checkpoints(socket, command).await,
        Command::Curl { method, data, path } => {
            let method = method.unwrap_or_else(|| if data.is_some() { "POST" } else { "GET" }.to_owned());
            socket.stream(&method, &path, data).await
        }
    }
}

async fn checkpoints(socket: &Socket, command: Checkpoints) -> anyhow::Result<()> {
    let path = |id: &str, rest: &str| format!("/v1/checkpoints/{}{rest}", call::segment(id));
    match command {
        Checkpoints::Create { comment } => {
            let body = json!({ "comment": comment }).to_string();
            socket.stream("POST", "/v1/checkpoint", Some(body)).await
        }
        Checkpoints::List { include_auto } => {
            print(&socket.json("GET", &format!("/v1/checkpoints?includeAuto={include_auto}"), None).await?)
        }
        Checkpoints::Get { id } => print(&socket.json("GET", &path(&id, ""), None).await?),
        Checkpoints::Restore { id } => socket.stream("POST", &path(&id, "/restore"), None).await,
        Checkpoints::Delete { id } => socket.stream("DELETE", &path(&id, ""), None).await,
    }
}

async fn services(socket: &Socket, command: Services) -> anyhow::Result<()> {
    let path = |name: &str, rest: &str| format!("/v1/services/{}{rest}", call::segment(name));
    match command {
        Services::List => print(&socket.json("GET", "/v1/services", None).await?),
        Services::Get { name } => print(&socket.json("GET", &path(&name, ""), None).await?),
        Services::Create(create) => {
            let body = json!({
                "cmd": create.cmd,
                "args": create.args,
                "env": create.env.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
                "dir": create.dir,
                "needs": create.needs,
                "http_port": create.http_port,
            });
            let duration = if create.no_stream { "0s" } else { &create.duration };
            let path = path(&create.name, &format!("?duration={duration}"));
            socket.stream("PUT", &path, Some(body.to_string())).await
        }
        Services::Start { name, duration } => {
            socket.stream("POST", &path(&name, &format!("/start?duration={duration}")), None).await
        }
        Services::Stop { name, timeout } => {
            socket.stream("POST", &path(&name, &format!("/stop?timeout={timeout}")), None).await
        }
        Services::Restart { name, duration } => {
            socket.stream("POST", &path(&name, &format!("/restart?duration={duration}")), None).await
        }
        Services::Logs { name, lines } => {
            socket.stream("GET", &path(&name, &format!("/logs?lines={lines}")), None).await
        }
        Services::Signal { name, signal } => {
            let body = json!({ "name": name, "signal": signal }).to_string();
            socket.stream("POST", "/v1/services/signal", Some(body)).await
        }
        Services::Delete { name } => socket.stream("DELETE", &path(&name, ""), None).await,
    }
}

fn print(value: &Value) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{value:#}")?)
}
