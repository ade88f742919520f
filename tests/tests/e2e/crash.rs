//! Programs die; sprites and requests do not.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use test_support::{Answer, Driver, Options, World, eventually};

const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_adopts_its_living_sprites() -> anyhow::Result<()> {
    let mut world = World::start(Options { idle: Duration::from_secs(60), ..Options::default() }).await?;
    let running = world.create_with_backend("alive", "public").await?;
    let paused = world.create_with_backend("frozen", "public").await?;
    let before = world.get(&running, "/nonce").await?.json()?;
    let frozen_before = world.get(&paused, "/nonce").await?.json()?;
    world.sleep("frozen", "warm").await?;

    world.kill_agent()?;
    if world.driver() == Driver::Process {
        // What the gateway holds goes on without an agent. Into a machine, the agent is on the way.
        assert_eq!(world.get(&running, "/").await?.status, 200);
    }
    world.start_agent().await?;
    eventually(SOON, || async { Ok(world.get(&running, "/").await?.status == 200) }).await?;
    assert_eq!(world.status("alive").await?, "running");
    assert_eq!(world.status("frozen").await?, "warm");
    assert_eq!(world.get(&running, "/nonce").await?.json()?["nonce"], before["nonce"]);
    assert_eq!(world.get(&paused, "/nonce").await?.json()?["nonce"], frozen_before["nonce"]);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_a_sleeping_sprite_is_a_503_with_a_reason_and_then_it_wakes() -> anyhow::Result<()> {
    let budget = Duration::from_millis(1500) + Options::default().driver.boot_limit();
    let gateway = format!("[timing]\nhold_budget_ms = {}\n", budget.as_millis());
    let options = Options { gateway, ..Options::default() };
    let mut world = World::start(options).await?;
    let sprite = world.create_with_backend("orphan", "public").await?;
    world.sleep("orphan", "warm").await?;
    world.kill_agent()?;
    let answer = world.get(&sprite, "/").await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(!answer.header("retry-after").is_empty());
    assert!(answer.json()?["message"].is_string());
    world.start_agent().await?;
    eventually(SOON, || async { Ok(world.get(&sprite, "/").await?.status == 200) }).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_keeps_nothing_awake() -> anyhow::Result<()> {
    let options = Options { holder_ttl: Duration::from_secs(1), ..Options::default() };
    let mut world = World::start(options).await?;
    let sprite = world.create_with_backend("held", "public").await?;
    let mut events = world.request("GET", &sprite, "/sse?ms=50").send().await?;
    ensure!(events.chunk().await?.is_some());
    world.kill_gateway()?;
    world.start_gateway().await?;
    world.until("held", "warm", SOON).await?;
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_whose_first_process_dies_comes_back() -> anyhow::Result<()> {
    let world = World::start(Options { idle: Duration::from_secs(60), ..Options::default() }).await?;
    let sprite = world.create_with_backend("phoenix", "public").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    let (_, record) = world.call("GET", "/v1/sprites/phoenix", None).await?;
    let id = record["id"].as_str().unwrap_or_default();
    let process = std::fs::read(world.state_dir().join("sprites").join(id).join("run/process.json"))?;
    let process: serde_json::Value = serde_json::from_slice(&process)?;
    let pid = i32::try_from(process["pid"].as_i64().unwrap_or_default())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    eventually(SOON, || async {
        let answer = world.get(&sprite, "/nonce").await?;
        Ok(answer.status == 200 && answer.json()?["nonce"] != before["nonce"])
    })
    .await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_directory_is_refused() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let output = tokio::process::Command::new(test_support::program(test_support::Program::Agent)?)
        .args(["serve", "--config"])
        .arg(world.path().join("agent.toml"))
        .output()
        .await?;
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("another agent uses the state directory"), "{stderr}");
    world.stop().await
}

/// Gateway and agent are killed at random moments under load. Every request is answered, or refused
/// with an error that says when to retry, or its connection ends with the gateway's; afterwards no
/// sprite is lost and none is left awake.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_kills_under_load_lose_no_sprite() -> anyhow::Result<()> {
    const SPRITES: usize = 6;
    const KILLS: usize = 8;
    let options = Options {
        idle: Duration::from_millis(300),
        holder_ttl: Duration::from_secs(1),
        gateway: "[timing]\nhold_budget_ms = 8000\n".into(),
        ..Options::default()
    };
    let mut world = World::start(options).await?;
    let mut sprites = Vec::new();
    for n in 0..SPRITES {
        sprites.push(world.create_with_backend(&format!("s{n}"), "public").await?);
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = Vec::new();
    for client in 0..SPRITES * 2 {
        let request = world.request("GET", &sprites[client % SPRITES], "/");
        let stopped = stopped.clone();
        clients.push(tokio::spawn(async move {
            let (mut served, mut refused, mut cut) = (0u32, 0u32, 0u32);
            while !*stopped.borrow() {
                match request.try_clone().expect("it has no body").send().await {
                    Ok(answer) if answer.status() == 200 => served += 1,
                    Ok(answer) => {
                        let answer = Answer::read(answer).await?;
                        ensure!(
                            answer.status == 503 && !answer.header("retry-after").is_empty()
                                || answer.status == 502,
                            "{} {}",
                            answer.status,
                            answer.body
                        );
                        refused += 1;
                    }
                    Err(_) => cut += 1,
                }
                // So that sprites fall asleep in between.
                let pause = rand::random_range(0..700);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Ok((served, refused, cut))
        }));
    }
    for kill in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1200))).await;
        if kill % 2 == 0 {
            world.kill_agent()?;
            world.start_agent().await?;
        } else {
            world.kill_gateway()?;
            world.start_gateway().await?;
        }
    }
    stop.send(true)?;
    let mut total = (0, 0, 0);
    for client in clients {
        let (served, refused, cut) = client.await??;
        total = (total.0 + served, total.1 + refused, total.2 + cut);
    }
    eprintln!("served {}, refused {}, cut {}", total.0, total.1, total.2);
    ensure!(total.0 > 50, "hardly anything was served: {total:?}");
    for sprite in &sprites {
        eventually(SOON, || async { Ok(world.get(sprite, "/").await?.status == 200) }).await?;
    }
    for sprite in &sprites {
        world.until(&sprite.name, "warm", SOON).await?;
        let why = world.why(&sprite.name).await?;
        ensure!(why["holders"] == json!([]), "{why}");
    }
    world.stop().await
}
