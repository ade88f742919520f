//! Many sprites, all at once, for a long time.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt, stream};
use test_support::{Answer, Driver, Options, Raw, World};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_sprites_wake_at_once_and_a_hot_one_does_not_notice() -> anyhow::Result<()> {
    const SPRITES: usize = 200;
    let world = World::start(Options { idle: Duration::from_secs(600), ..Options::default() }).await?;
    let hot = world.create_with_backend("hot", "public").await?;
    let mut sprites = Vec::new();
    for n in 0..SPRITES {
        sprites.push(world.create_with_backend(&format!("s{n}"), "public").await?);
    }
    for sprite in &sprites {
        world.sleep(&sprite.name, "warm").await?;
    }
    let median = async |until: Instant| -> anyhow::Result<Duration> {
        let mut client = Raw::connect(world.http).await?;
        let mut samples = Vec::new();
        while Instant::now() < until {
            let began = Instant::now();
            client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", hot.host)).await?;
            client.answer(PATIENCE).await?;
            samples.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        samples.sort_unstable();
        Ok(samples[samples.len() / 2])
    };
    let quiet = median(Instant::now() + Duration::from_secs(1)).await?;
    let storm = stream::iter(&sprites)
        .map(|sprite| async { anyhow::Ok(world.get(sprite, "/").await?.status) })
        .buffer_unordered(SPRITES)
        .collect::<Vec<_>>();
    let (stormy, woken) = tokio::join!(median(Instant::now() + Duration::from_secs(1)), storm);
    for status in woken {
        assert_eq!(status?, 200);
    }
    let stormy = stormy?;
    eprintln!("hot sprite: {quiet:?} quiet, {stormy:?} in the storm");
    // Two cores share clients, edge and all the sprites, so this is no figure; it catches a lock.
    ensure!(stormy < quiet * 10 + Duration::from_millis(20), "{quiet:?} became {stormy:?}");
    world.stop().await
}

/// Sprites that fall asleep and are woken at random, with timers so short that some seconds hold as many
/// transitions as hours of use. Not one request may fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_however_sleep_and_wake_fall() -> anyhow::Result<()> {
    const SPRITES: usize = 8;
    const CLIENTS: usize = 24;
    const TIME: Duration = Duration::from_secs(20);
    let options = Options {
        idle: Duration::from_millis(120),
        cold_after: Duration::from_millis(400),
        gateway: "[timing]\nlinger_ms = 5\n".into(),
        ..Options::default()
    };
    let world = World::start(options).await?;
    let mut sprites = Vec::new();
    for n in 0..SPRITES {
        sprites.push(world.create_with_backend(&format!("r{n}"), "public").await?);
    }
    let until = Instant::now() + TIME;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let sprite = &sprites[client % SPRITES];
        let (get, post) =
            (world.request("GET", sprite, "/"), world.request("POST", sprite, "/upload").body("x"));
        clients.push(tokio::spawn(async move {
            let mut served = 0u64;
            while Instant::now() < until {
                let request = if served.is_multiple_of(3) { &post } else { &get };
                let request = request.try_clone().expect("its body can be sent again");
                let answer = Answer::read(request.send().await?).await?;
                ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
                served += 1;
                // Around the two timeouts, where transitions meet requests.
                let pause = match rand::random_range(0..4) {
                    0 => rand::random_range(0..20),
                    1 => rand::random_range(100..150),
                    2 => rand::random_range(500..600),
                    _ => rand::random_range(0..700),
                };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Ok(served)
        }));
    }
    let mut served = 0;
    for client in clients {
        served += client.await??;
    }
    let wakes = world.metric("gateway_wake_duration_seconds_count", "").await?;
    eprintln!("{served} requests served over {wakes} wakes");
    ensure!(wakes > 100.0, "only {wakes} wakes: this proves nothing");
    world.stop().await
}

/// Under load there is always somebody in line for the next lease: they must not keep the revoked one from ending.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_sleep_under_load_waits_for_nobody_in_line() -> anyhow::Result<()> {
    const CLIENTS: usize = 8;
    /// Far below the agent's grace for requests under way, which it waited for.
    const LONGEST: Duration = Duration::from_millis(2_500);
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("busy", "public").await?;
    world.get(&sprite, "/").await?;
    let until = Instant::now() + Duration::from_secs(6);
    let client = || async {
        let mut longest = Duration::ZERO;
        while Instant::now() < until {
            let began = Instant::now();
            let answer = world.get(&sprite, "/slow?ms=40").await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
            longest = longest.max(began.elapsed());
        }
        anyhow::Ok(longest)
    };
    let clients = futures_util::future::join_all((0..CLIENTS).map(|_| client()));
    let orders = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let body = serde_json::json!({ "depth": "warm" });
            let (status, answer) = world.call("POST", "/v1/sprites/busy/sleep", Some(body)).await?;
            ensure!(status == 200, "{status} {answer}");
        }
        anyhow::Ok(())
    };
    let (longest, ordered) = tokio::join!(clients, orders);
    ordered?;
    for longest in longest {
        let longest = longest?;
        ensure!(longest < LONGEST, "a request waited for {longest:?}");
    }
    world.stop().await
}

/// A host wakes so many at once and no more, but nobody may wait for a sprite that does not go on when it is let.
#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_that_goes_on_in_vain_keeps_no_other_waiting() -> anyhow::Result<()> {
    let agent = "[wakes]\nmax_at_once = 1\nlongest_turn_ms = 60000\n".to_owned();
    let world = World::start(Options { agent, ..Options::default() }).await?;
    if world.driver() != Driver::Process {
        // A stopped machine monitor is no stopped runtime: it can't be told to go on.
        return world.stop().await;
    }
    let stopped = world.create_with_backend("stopped", "public").await?;
    let other = world.create_with_backend("other", "public").await?;
    world.get(&stopped, "/").await?;
    world.sleep("stopped", "warm").await?;
    world.sleep("other", "warm").await?;
    let record = world.state_dir().join("sprites").join(world.id("stopped").await?).join("run/process.json");
    let process: serde_json::Value = serde_json::from_slice(&std::fs::read(record)?)?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(process["pid"].as_i64().unwrap_or_default())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;

    let waiting = tokio::spawn(world.request("GET", &stopped, "/").send());
    world.until("stopped", "running", PATIENCE).await?;
    let began = Instant::now();
    assert_eq!(world.get(&other, "/").await?.status, 200);
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(5), "the other waited {took:?} for its turn");
    ensure!(!waiting.is_finished(), "it was not stopped: this proves nothing");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT)?;
    assert_eq!(waiting.await??.status(), 200);
    world.stop().await
}
