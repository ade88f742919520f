//! Anything with a command line and an address can sleep behind the edge.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::ensure;
use serde_json::json;
use test_support::{Options, Program, SpriteUrl, World, eventually, program};

const SOON: Duration = Duration::from_secs(10);

fn script(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, format!("#!/bin/sh\nset -eu\ncd \"$(dirname \"$0\")\"\n{text}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_the_host_is_started_paused_and_stopped_by_commands() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let backend = program(Program::Backend)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    script(
        &dir.path().join("start"),
        &format!("setsid {} {port} >log 2>&1 </dev/null &\necho $! >pid", backend.display()),
    )?;
    script(&dir.path().join("stop"), "[ ! -f pid ] || kill $(cat pid) 2>/dev/null || true\nrm -f pid")?;
    script(&dir.path().join("pause"), "kill -STOP $(cat pid)")?;
    script(&dir.path().join("resume"), "kill -CONT $(cat pid)")?;
    script(&dir.path().join("status"), "[ -f pid ] && kill -0 $(cat pid)")?;
    let at = |name: &str| json!([dir.path().join(name)]).to_string();
    let agent = format!(
        "[[command]]\norganization = \"acme\"\nname = \"wiki\"\nweb = \"127.0.0.1:{port}\"\nstart = {}\nstop = {}\n\
         pause = {}\nresume = {}\nstatus = {}\nstatus_period_ms = 200\ndeadline_ms = 5000\n",
        at("start"),
        at("stop"),
        at("pause"),
        at("resume"),
        at("status"),
    );
    let world =
        World::start(Options { agent, cold_after: Duration::from_millis(1500), ..Options::default() })
            .await?;
    let (status, sprite) =
        world.call("PUT", "/v1/sprites/wiki", Some(json!({ "url_settings": { "auth": "public" } }))).await?;
    ensure!(status == 200, "{status} {sprite}");
    let authority = sprite["url"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned();
    let host = authority.split(':').next().unwrap_or_default().to_owned();
    let wiki = SpriteUrl { host: host.clone(), name: "wiki".into() };

    let first = world.get(&wiki, "/nonce").await?.json()?;
    world.until("wiki", "warm", SOON).await?;
    let again = world.get(&wiki, "/nonce").await?.json()?;
    assert_eq!(first["nonce"], again["nonce"], "paused and resumed");
    world.until("wiki", "cold", SOON).await?;
    let anew = world.get(&wiki, "/nonce").await?.json()?;
    assert_ne!(first["nonce"], anew["nonce"], "stopped and started");
    let by_port = SpriteUrl { host: format!("{port}--{host}"), name: "wiki".into() };
    assert_eq!(world.get(&by_port, "/").await?.status, 200, "a port leads to the same host");

    let (status, answer) = world.call("GET", "/v1/sprites/wiki/services", None).await?;
    ensure!((400..500).contains(&status) || status == 501, "there are no services in it: {status} {answer}");
    let (status, answer) = world.call("DELETE", "/v1/sprites/wiki", None).await?;
    ensure!(status == 409 && answer["message"].is_string(), "{status} {answer}");
    world.stop().await?;
    ensure!(!dir.path().join("pid").exists(), "it was not stopped with the agent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_command_that_fails_is_quoted_to_the_client() -> anyhow::Result<()> {
    let agent = "[[command]]\norganization = \"acme\"\nname = \"dead\"\nweb = \"127.0.0.1:9\"\n\
                 start = [\"/bin/sh\", \"-c\", \"echo the fuse has blown >&2; exit 3\"]\nstop = [\"/bin/true\"]\n";
    let world = World::start(Options { agent: agent.to_owned(), ..Options::default() }).await?;
    let body = json!({ "url_settings": { "auth": "public" } });
    let (_, sprite) = world.call("PUT", "/v1/sprites/dead", Some(body)).await?;
    let authority = sprite["url"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned();
    let host = authority.split(':').next().unwrap_or_default().to_owned();
    let answer = world.get(&SpriteUrl { host, name: "dead".into() }, "/").await?;
    ensure!(
        answer.status == 503 && answer.body.contains("the fuse has blown"),
        "{} {}",
        answer.status,
        answer.body
    );
    ensure!(!answer.header("retry-after").is_empty());
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_takes_long_keeps_no_other_waiting() -> anyhow::Result<()> {
    let agent = "[wakes]\nmax_at_once = 1\nlongest_turn_ms = 300\n\
                 [[command]]\norganization = \"acme\"\nname = \"slow\"\nweb = \"127.0.0.1:9\"\n\
                 start = [\"/bin/sleep\", \"10\"]\nstop = [\"/bin/true\"]\n";
    let world = World::start(Options { agent: agent.to_owned(), ..Options::default() }).await?;
    let other = world.create("other", "public").await?;
    let slow = world.call("POST", "/v1/sprites/slow/wake", None);
    let quick = async {
        eventually(SOON, || async { Ok(world.why("slow").await?["phase"] == "starting") }).await?;
        world.install_backend("other").await?;
        world.service("other", "web", json!({ "cmd": "/opt/backend", "args": ["8080"] })).await?;
        let answer = world.get(&other, "/").await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        ensure!(world.why("slow").await?["phase"] == "starting", "it is up already: this proves nothing");
        anyhow::Ok(())
    };
    tokio::select! {
        done = quick => done?,
        (status, answer) = async { slow.await.unwrap_or_default() } => {
            anyhow::bail!("the slow one was up first: {status} {answer}");
        }
    }
    world.stop().await
}
