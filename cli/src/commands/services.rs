//! `sprite services`

use std::io::Write;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::exec::pairs;
use crate::{
    context::Context,
    error::{Error, FAILED},
    net::{Api, segment},
    output::{self, fields, table, text},
    term::progress,
};

const LIST_EXAMPLES: &str = "\
Examples:
  sprite services list
  sprite services list --json | jq -r '.[].state.status'";
const GET_EXAMPLES: &str = "\
Examples:
  sprite services get web";
const CREATE_EXAMPLES: &str = "\
Examples:
  sprite services create web --cmd python3 --args -m,http.server,8000 --http-port 8000
  sprite services create worker --needs db --env QUEUE=jobs -- ./worker --threads 4
  sprite services create db --cmd postgres --dir /home/sprite/db --no-stream

A service is started at once, at every boot, and again when it crashes. The one with an HTTP port
is what the sprite's URL leads to. Its first seconds of output are shown.";
const START_EXAMPLES: &str = "\
Examples:
  sprite services start web
  sprite services start web --duration 30s    show its output for half a minute";
const STOP_EXAMPLES: &str = "\
Examples:
  sprite services stop web                    it stays stopped until it is started
  sprite services stop web --timeout 60s      give it a minute before it is killed";
const RESTART_EXAMPLES: &str = "\
Examples:
  sprite services restart web";
const SIGNAL_EXAMPLES: &str = "\
Examples:
  sprite services signal web HUP";
const LOGS_EXAMPLES: &str = "\
Examples:
  sprite services logs web
  sprite services logs web --lines 1000
  sprite services logs web --follow           until Ctrl-C";
const DELETE_EXAMPLES: &str = "\
Examples:
  sprite services delete web                  its log stays in the sprite";

/// How long `--follow` follows: longer than anybody looks, and the most that servers take.
const FOLLOW: &str = "24h";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Services {
    /// List services
    #[command(visible_alias = "ls", after_help = LIST_EXAMPLES)]
    List,
    /// Show one service
    #[command(after_help = GET_EXAMPLES)]
    Get(Name),
    /// Define a service, or define it anew, and start it
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Create),
    /// Start a service
    #[command(after_help = START_EXAMPLES)]
    Start(Watched),
    /// Stop a service
    #[command(after_help = STOP_EXAMPLES)]
    Stop(Stop),
    /// Stop and start a service
    #[command(after_help = RESTART_EXAMPLES)]
    Restart(Watched),
    /// Send a service a signal
    #[command(after_help = SIGNAL_EXAMPLES)]
    Signal {
        /// The service
        name: String,
        /// The signal: TERM, SIGHUP, 10, ...
        signal: String,
    },
    /// Show what a service wrote
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(Logs),
    /// Stop a service and forget it
    #[command(visible_alias = "rm", after_help = DELETE_EXAMPLES)]
    Delete(Name),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Name {
    /// The service
    name: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// What it is to be called
    name: String,
    /// The program to run
    #[arg(long, required_unless_present = "command", conflicts_with = "command")]
    cmd: Option<String>,
    /// Its arguments, divided by commas; may be repeated
    #[arg(long, value_name = "A,B", allow_hyphen_values = true, requires = "cmd")]
    args: Vec<String>,
    /// Variables for it, divided by commas; may be repeated
    #[arg(short, long, value_name = "K=V,K2=V2")]
    env: Vec<String>,
    /// The directory it runs in
    #[arg(long)]
    dir: Option<String>,
    /// Services that must run first, divided by commas
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    needs: Vec<String>,
    /// The port that the sprite's URL leads to
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// How long its output is shown
    #[arg(long, value_name = "TIME", default_value = "5s")]
    duration: String,
    /// Return at once
    #[arg(long)]
    no_stream: bool,
    /// Program and arguments, instead of --cmd and --args
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Watched {
    /// The service
    name: String,
    /// How long its output is shown
    #[arg(long, value_name = "TIME", default_value = "5s")]
    duration: String,
    /// Return at once
    #[arg(long)]
    no_stream: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    /// The service
    name: String,
    /// How long it may take before it is killed
    #[arg(long, value_name = "TIME", default_value = "10s")]
    timeout: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// The service
    name: String,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: u32,
    /// How long new lines are shown
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    duration: Option<String>,
    /// Go on showing new lines
    #[arg(short, long)]
    follow: bool,
}

/// The services of one sprite.
struct Target<'a> {
    context: &'a Context,
    api: Api,
    sprite: String,
}

impl Target<'_> {
    fn url(&self, rest: &str) -> String {
        self.api.inside(&self.sprite, &format!("/services{rest}"))
    }

    async fn call(&self, method: Method, rest: &str, body: Option<Value>) -> Result<Value, Error> {
        let call = self.api.call(method, self.url(rest), body);
        progress::while_working(&format!("asking {}, which may be waking", self.sprite), call).await
    }

    /// Shows a stream of events: output where it belongs, what happens on stderr.
    async fn stream(&self, method: Method, rest: &str, body: Option<Value>) -> Result<(), Error> {
        let mut failed = false;
        let streaming = self.api.events(method, self.url(rest), body.into(), None, |event| {
            failed |= event["type"] == "error";
            self.show(&event)
        });
        tokio::select! {
            ended = streaming => ended?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        if failed { Err(Error::Exit(FAILED)) } else { Ok(()) }
    }

    fn show(&self, event: &Value) -> Result<(), Error> {
        if self.context.output.json {
            return output::line(&event.to_string());
        }
        let data = event["data"].as_str().unwrap_or_default();
        match event["type"].as_str().unwrap_or_default() {
            "stdout" => output::raw(ended(data).as_bytes())?,
            "stderr" => std::io::stderr().lock().write_all(ended(data).as_bytes())?,
            "started" => output::note("started"),
            "stopping" => output::note("stopping"),
            "stopped" => output::note("stopped"),
            "exit" => output::note(&format!("exited with {}", event["exit_code"])),
            "error" => output::note(&format!("sprite: {data}")),
            // `complete`, and what newer servers say.
            _ => {}
        }
        Ok(())
    }
}

/// Output comes in lines, with or without their end.
fn ended(data: &str) -> String {
    if data.ends_with('\n') { data.to_owned() } else { format!("{data}\n") }
}

pub(crate) async fn run(context: &Context, args: Services) -> Result<(), Error> {
    let target = Target { context, sprite: context.sprite(None)?, api: context.api()? };
    match args {
        Services::List => context.output.show(&target.call(Method::GET, "", None).await?, human_list),
        Services::Get(Name { name }) => {
            let service = target.call(Method::GET, &format!("/{}", segment(&name)), None).await?;
            context.output.show(&service, human)
        }
        Services::Create(args) => {
            let duration = if args.no_stream { "0s" } else { &args.duration };
            let rest = format!("/{}?duration={}", segment(&args.name), segment(duration));
            target.stream(Method::PUT, &rest, Some(definition(&args)?)).await
        }
        Services::Start(args) => watched(&target, &args, "start").await,
        Services::Restart(args) => watched(&target, &args, "restart").await,
        Services::Stop(Stop { name, timeout }) => {
            let rest = format!("/{}/stop?timeout={}", segment(&name), segment(&timeout));
            target.stream(Method::POST, &rest, None).await
        }
        Services::Signal { name, signal } => {
            let body = json!({ "name": name, "signal": signal });
            target.call(Method::POST, "/signal", Some(body)).await.map(drop)
        }
        Services::Logs(Logs { name, lines, duration, follow }) => {
            let duration = if follow { FOLLOW } else { duration.as_deref().unwrap_or("0s") };
            let rest = format!("/{}/logs?lines={lines}&duration={}", segment(&name), segment(duration));
            target.stream(Method::GET, &rest, None).await
        }
        Services::Delete(Name { name }) => {
            target.call(Method::DELETE, &format!("/{}", segment(&name)), None).await?;
            output::note(&format!("Deleted the service {name}"));
            Ok(())
        }
    }
}

async fn watched(target: &Target<'_>, args: &Watched, verb: &str) -> Result<(), Error> {
    let duration = if args.no_stream { "0s" } else { &args.duration };
    let rest = format!("/{}/{verb}?duration={}", segment(&args.name), segment(duration));
    target.stream(Method::POST, &rest, None).await
}

fn definition(create: &Create) -> Result<Value, Error> {
    let (cmd, args) = match (&create.cmd, create.command.split_first()) {
        (Some(cmd), _) => {
            let args = create.args.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
            (cmd.clone(), args)
        }
        (None, Some((cmd, args))) => (cmd.clone(), args.to_vec()),
        (None, None) => return Err(Error::said("which program is the service to run? --cmd PROGRAM")),
    };
    let env: Map<String, Value> =
        pairs(&create.env)?.into_iter().map(|(key, value)| (key, json!(value))).collect();
    let mut body = json!({ "cmd": cmd, "args": args, "env": env, "needs": create.needs });
    if let Some(dir) = &create.dir {
        body["dir"] = json!(dir);
    }
    if let Some(port) = create.http_port {
        body["http_port"] = json!(port);
    }
    Ok(body)
}

fn line(service: &Value) -> String {
    let mut words = vec![text(service, "cmd")];
    words.extend(service["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
    words.join(" ")
}

fn human_list(services: &Value) -> String {
    let rows = services.as_array().into_iter().flatten().map(|service| {
        let port = service["http_port"].as_u64().map_or_else(|| "-".to_owned(), |port| port.to_string());
        let state = &service["state"];
        vec![text(service, "name").to_owned(), text(state, "status").to_owned(), port, line(service)]
    });
    table(&["NAME", "STATUS", "HTTP", "COMMAND"], &rows.collect::<Vec<_>>())
}

fn human(service: &Value) -> String {
    let state = &service["state"];
    let mut shown = vec![
        ("name", text(service, "name").to_owned()),
        ("status", text(state, "status").to_owned()),
        ("command", line(service)),
    ];
    for (label, value) in [
        ("http port", &service["http_port"]),
        ("dir", &service["dir"]),
        ("pid", &state["pid"]),
        ("started", &state["started_at"]),
        ("restarts", &state["restart_count"]),
        ("next restart", &state["next_restart_at"]),
        ("error", &state["error"]),
    ] {
        if !value.is_null() {
            shown.push((label, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    let list = |key: &str| {
        service[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>()
    };
    if !list("needs").is_empty() {
        shown.push(("needs", list("needs").join(", ")));
    }
    for (key, value) in service["env"].as_object().into_iter().flatten() {
        shown.push(("env", format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    fields(&shown)
}
