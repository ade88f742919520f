//! Virtual machines: what only they can do. Everything else about them is in the other files, which run over each
//! driver.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use test_support::{Cli, Driver, Options, SpriteUrl, World, eventually};

const SOON: Duration = Duration::from_secs(30);

fn machines() -> Options {
    Options { driver: Driver::Qemu, idle: Duration::from_secs(600), ..Options::default() }
}

async fn phase(world: &World, name: &str) -> anyhow::Result<String> {
    Ok(world.why(name).await?["phase"].as_str().context("a phase")?.to_owned())
}

/// The processes of a machine on the host.
fn process_of(world: &World, id: &str) -> anyhow::Result<Option<u32>> {
    let record = world.state_dir().join("sprites").join(id).join("run/process.json");
    match std::fs::read(record) {
        Ok(text) => {
            let record: Value = serde_json::from_slice(&text)?;
            Ok(record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_machine_goes_on_where_it_was_and_costs_no_memory_meanwhile() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    let sprite = world.create_with_backend("deep", "public").await?;
    let id = world.id("deep").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    for round in 2..=4 {
        world.sleep("deep", "suspended").await?;
        ensure!(process_of(&world, &id)?.is_none(), "QEMU is gone");
        let after = world.get(&sprite, "/nonce").await?.json()?;
        assert_eq!(after["nonce"], before["nonce"], "its memory is the same");
        assert_eq!(after["calls"], round, "and its counter goes on");
        assert_eq!(phase(&world, "deep").await?, "running");
    }
    world.stop().await
}

/// Every process that is started is work that a wake waits for, or that keeps an idle machine's processor busy.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_starts_no_processes_of_its_own() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    world.create("quiet", "public").await?;
    // Its ports are looked at often while a command runs.
    let script = "started() { while read -r key value; do if [ $key = processes ]; then echo $value; fi; done </proc/stat; }
        started; sleep 4; started";
    let text = world.exec_text("quiet", script).await?;
    let counts = text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [before, after] = counts[..] else { anyhow::bail!("{text}") };
    // One is the sleep of the script; threads of the runtime count as processes.
    ensure!(after - before <= 4, "{} processes were started", after - before);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_machine_that_slept_is_right() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    world.create("clock", "public").await?;
    for depth in ["warm", "suspended"] {
        world.exec_text("clock", "date +%s").await?;
        world.sleep("clock", depth).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let inside: u64 = world.exec_text("clock", "date +%s").await?.trim().parse()?;
        let outside = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        ensure!(inside.abs_diff(outside) <= 1, "{depth}: {inside} inside, {outside} outside");
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_finds_machines_in_every_state() -> anyhow::Result<()> {
    let mut world = World::start(machines()).await?;
    let mut sprites = Vec::new();
    for name in ["running", "paused", "suspended"] {
        let sprite = world.create_with_backend(name, "public").await?;
        let nonce = world.get(&sprite, "/nonce").await?.json()?["nonce"].clone();
        sprites.push((sprite, nonce));
    }
    world.sleep("paused", "warm").await?;
    world.sleep("suspended", "suspended").await?;
    world.kill_agent()?;
    world.start_agent().await?;
    eventually(SOON, || async { Ok(phase(&world, "running").await.is_ok()) }).await?;
    for name in ["running", "paused", "suspended"] {
        assert_eq!(phase(&world, name).await?, name);
    }
    for (sprite, nonce) in &sprites {
        let after = world.get(sprite, "/nonce").await?.json()?;
        assert_eq!(&after["nonce"], nonce, "{}", sprite.name);
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_survives_a_suspend() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    world.create("shell", "public").await?;
    let mut session =
        world.exec("shell", "echo begun; read line; echo got $line", "&detachable=true&stdin=true").await?;
    let told = test_support::next_text(&mut session).await?;
    let session_id = told["session_id"].as_str().context("an id")?.to_owned();
    drop(session);
    world.sleep("shell", "suspended").await?;
    let (status, list) = world.call("GET", "/v1/sprites/shell/exec", None).await?;
    ensure!(status == 200 && list.to_string().contains(&session_id), "{list}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_that_does_not_fit_any_more_is_a_cold_start_with_a_reason() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    let sprite = world.create_with_backend("misfit", "public").await?;
    let id = world.id("misfit").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    world.sleep("misfit", "suspended").await?;
    let state = world.state_dir().join("sprites").join(&id).join("memory/state");
    let whole = std::fs::read(&state)?;
    std::fs::write(&state, &whole[..whole.len() / 2])?;
    let after = world.get(&sprite, "/nonce").await?;
    assert_eq!(after.status, 200, "{}", after.body);
    assert_ne!(after.json()?["nonce"], before["nonce"], "it was started anew");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_outlives_a_wake_for_which_the_host_has_no_process() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (program, broken) = (dir.path().join("qemu"), dir.path().join("broken"));
    let script = format!(
        "#!/bin/sh\nif [ -e {} ]; then echo no process to spare >&2; exit 1; fi\nexec qemu-system-x86_64 \"$@\"\n",
        broken.display()
    );
    std::fs::write(&program, script)?;
    for path in [dir.path(), &program] {
        // The user that a machine runs as executes it.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let world = World::start(Options { agent: format!("program = {program:?}\n"), ..machines() }).await?;
    let sprite = world.create_with_backend("kept", "public").await?;
    let before = world.get(&sprite, "/nonce").await?.json()?;
    world.sleep("kept", "suspended").await?;
    std::fs::write(&broken, "")?;
    for _ in 0..2 {
        let refused = world.get(&sprite, "/nonce").await?;
        assert_eq!(refused.status, 503, "{}", refused.body);
        ensure!(refused.headers.contains_key("retry-after"), "{refused:?}");
        let why = world.why("kept").await?;
        assert_eq!(why["phase"], "suspended", "{why}");
        let trouble = why["trouble"]["message"].as_str().context("a reason")?;
        ensure!(trouble.contains("no process to spare") && trouble.contains("as it was"), "{why}");
        ensure!(why["trouble"]["retry_in_ms"].is_u64(), "{why}");
    }
    std::fs::remove_file(&broken)?;
    eventually(SOON, || async { Ok(world.get(&sprite, "/").await?.status == 200) }).await?;
    let after = world.get(&sprite, "/nonce").await?.json()?;
    assert_eq!(after["nonce"], before["nonce"], "its memory is the same");
    assert_eq!(world.why("kept").await?["trouble"], Value::Null);
    world.stop().await
}

/// Users and groups of a process, as the kernel has them: real, effective, saved and for files.
fn identity(pid: u32) -> anyhow::Result<(Vec<u32>, Vec<u32>, String)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).context("a line");
    let ids = |name: &str| -> anyhow::Result<Vec<u32>> {
        Ok(line(name)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    Ok((ids("Uid:")?, ids("Gid:")?, line("CapEff:")?.trim().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_machine_runs_as_a_user_of_its_own_and_owns_what_it_writes_and_nothing_else()
-> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give machines users of their own");
        return Ok(());
    }
    let world = World::start(machines()).await?;
    let mut users = Vec::new();
    for name in ["one", "two"] {
        let sprite = world.create_with_backend(name, "public").await?;
        let id = world.id(name).await?;
        let dir = world.state_dir().join("sprites").join(&id);
        let mut runs_as = Vec::new();
        // Before and after a checkpoint, and as a machine that was loaded.
        for depth in ["", "suspended"] {
            if !depth.is_empty() {
                let path = format!("/v1/sprites/{name}/checkpoint");
                let (status, answer) = world.call("POST", &path, Some(json!({}))).await?;
                ensure!(status == 200 && answer["type"] == "complete", "{status} {answer}");
                world.sleep(name, depth).await?;
            }
            world.get(&sprite, "/insert?id=1").await?;
            let pid = process_of(&world, &id)?.context("it runs")?;
            let (user, group, capabilities) = identity(pid)?;
            ensure!(user.iter().all(|id| *id == user[0] && *id != 0), "{user:?}");
            ensure!(
                group == user && capabilities.trim_start_matches('0').is_empty(),
                "{group:?} {capabilities}"
            );
            runs_as.push(user[0]);
        }
        assert_eq!(runs_as[0], runs_as[1], "it keeps its user");
        let user = runs_as[0];
        let owned = [("memory/ram", user), ("layers/1.qcow2", 0), ("layers/2.qcow2", user), ("layers", 0)];
        for (file, owner) in owned.into_iter().chain([("run", 0), ("memory", 0), (".", 0)]) {
            let meta = std::fs::metadata(dir.join(file))?;
            assert_eq!(meta.uid(), owner, "{file}");
            let others = if file == "layers/1.qcow2" { 0o4 } else { 0 };
            assert_eq!(meta.mode() & 0o7, others, "{file}");
        }
        users.push(user);
    }
    ensure!(users[0] != users[1], "{users:?}");
    // A fork reads layers that another one wrote.
    let fork = json!({ "name": "fork", "fork": { "sprite": "one", "checkpoint": "v0" } });
    let (status, answer) = world.call("POST", "/v1/sprites", Some(fork)).await?;
    ensure!(status == 201, "{status} {answer}");
    assert_eq!(world.exec_text("fork", "ls /opt/backend").await?.trim(), "/opt/backend");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_machine_leaves_nothing() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    for (name, depth) in [("a", None), ("b", Some("warm")), ("c", Some("suspended"))] {
        world.create_with_backend(name, "public").await?;
        let id = world.id(name).await?;
        if let Some(depth) = depth {
            world.sleep(name, depth).await?;
        }
        let (status, answer) = world.call("DELETE", &format!("/v1/sprites/{name}"), None).await?;
        ensure!(status == 204, "{status} {answer}");
        let files = world.state_dir().join("sprites").join(&id);
        eventually(SOON, || async { Ok(!files.exists()) }).await?;
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_what_was_written_and_costs_neither_a_copy_nor_the_memory() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    let sprite = world.create_with_backend("kept", "public").await?;
    let last = async |sprite: &SpriteUrl| -> anyhow::Result<u64> {
        let rows = world.get(sprite, "/rows").await?.json()?;
        ensure!(rows["integrity"] == "ok", "{rows}");
        rows["last"].as_u64().context("a row")
    };
    let checkpoint = async || -> anyhow::Result<()> {
        let (status, answer) = world.call("POST", "/v1/sprites/kept/checkpoint", Some(json!({}))).await?;
        ensure!(status == 200 && answer["type"] == "complete", "{status} {answer}");
        Ok(())
    };
    let nonce = world.get(&sprite, "/nonce").await?.json()?["nonce"].clone();
    // Awake, paused and suspended: v0, v1 and v2.
    for (row, depth) in [(1, ""), (2, "warm"), (3, "suspended")] {
        world.get(&sprite, &format!("/insert?id={row}")).await?;
        if !depth.is_empty() {
            world.sleep("kept", depth).await?;
        }
        checkpoint().await?;
        if !depth.is_empty() {
            assert_eq!(phase(&world, "kept").await?, if depth == "warm" { "paused" } else { depth });
        }
        assert_eq!(world.get(&sprite, "/nonce").await?.json()?["nonce"], nonce, "{depth:?}");
    }
    world.get(&sprite, "/insert?id=4").await?;
    for (id, row) in [("v1", 2), ("v0", 1), ("v2", 3)] {
        let path = format!("/v1/sprites/kept/checkpoints/{id}/restore");
        let (status, answer) = world.call("POST", &path, None).await?;
        ensure!(status == 200 && answer["type"] == "complete", "{id}: {status} {answer}");
        assert_eq!(last(&sprite).await?, row, "{id}");
    }
    let fork = json!({ "name": "fork", "fork": { "sprite": "kept", "checkpoint": "v1" }, "url_settings": { "auth": "public" } });
    let (status, answer) = world.call("POST", "/v1/sprites", Some(fork)).await?;
    ensure!(status == 201, "{status} {answer}");
    let host = answer["url"].as_str().and_then(|url| url.split(['/', ':']).nth(3)).context("a url")?;
    let fork = SpriteUrl { host: host.to_owned(), name: "fork".to_owned() };
    assert_eq!(last(&fork).await?, 2);
    world.get(&fork, "/insert?id=9").await?;
    assert_eq!(last(&sprite).await?, 3, "neither writes into the other");
    // v2 is what the disk descends from.
    for id in ["v0", "v1"] {
        let (status, answer) =
            world.call("DELETE", &format!("/v1/sprites/kept/checkpoints/{id}"), None).await?;
        ensure!(status == 204, "{id}: {status} {answer}");
    }
    world.sleep("kept", "cold").await?;
    world.sleep("fork", "cold").await?;
    assert_eq!((last(&sprite).await?, last(&fork).await?), (3, 9), "what they stand on stays");
    world.stop().await
}

/// What lies in a sprite's directory of layers: name, inode, and bytes on the host.
fn layers(world: &World, id: &str) -> anyhow::Result<BTreeMap<String, (u64, u64)>> {
    let dir = world.state_dir().join("sprites").join(id).join("layers");
    let one = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        let file = entry.metadata()?;
        Ok((entry.file_name().to_string_lossy().into_owned(), (file.ino(), file.blocks() * 512)))
    };
    std::fs::read_dir(dir)?.map(one).collect()
}

async fn checkpoint(world: &World, name: &str) -> anyhow::Result<Value> {
    let (status, last) =
        world.call("POST", &format!("/v1/sprites/{name}/checkpoint"), Some(json!({}))).await?;
    ensure!(status == 200, "{status} {last}");
    Ok(last)
}

async fn forget(world: &World, name: &str, id: &str) -> anyhow::Result<()> {
    let path = format!("/v1/sprites/{name}/checkpoints/{id}");
    let (status, answer) = world.call("DELETE", &path, None).await?;
    ensure!(status == 204, "{id}: {status} {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_checkpoints_give_their_room_back_and_nothing_else_notices() -> anyhow::Result<()> {
    const MIB: u64 = 1 << 20;
    let world = World::start(machines()).await?;
    let sprite = world.create_with_backend("web", "public").await?;
    let id = world.id("web").await?;
    let nonce = world.get(&sprite, "/nonce").await?.json()?["nonce"].clone();
    // Each holds its own 24 MiB in the same file, and was taken in another state: v0 to v4.
    let mut sums = Vec::new();
    for (row, depth) in [(1, ""), (2, "warm"), (3, "suspended"), (4, ""), (5, "")] {
        world.get(&sprite, &format!("/insert?id={row}")).await?;
        let fill = "dd if=/dev/urandom of=/root/large bs=1M count=24 conv=notrunc 2>/dev/null; sync; sha256sum /root/large";
        sums.push(world.exec_text("web", fill).await?);
        if !depth.is_empty() {
            world.sleep("web", depth).await?;
        }
        ensure!(checkpoint(&world, "web").await?["type"] == "complete");
    }
    let fork = json!({ "name": "fork", "fork": { "sprite": "web", "checkpoint": "v0" }, "url_settings": { "auth": "public" } });
    let (status, answer) = world.call("POST", "/v1/sprites", Some(fork)).await?;
    ensure!(status == 201, "{status} {answer}");
    let fork_id = world.id("fork").await?;
    let (shared, before) = (layers(&world, &fork_id)?, layers(&world, &id)?);
    let taken = |layers: &BTreeMap<String, (u64, u64)>| layers.values().map(|(_, bytes)| bytes).sum::<u64>();
    ensure!(before.len() == 6 && taken(&before) > 120 * MIB, "{before:?}");

    // The machine runs, and reads and writes meanwhile.
    for gone in ["v1", "v2", "v3"] {
        forget(&world, "web", gone).await?;
    }
    eventually(SOON, || async { Ok(layers(&world, &id)?.len() == 3) }).await?;
    let after = layers(&world, &id)?;
    ensure!(taken(&after) < taken(&before) - 60 * MIB, "{before:?}, {after:?}");
    let dir = world.state_dir().join("sprites").join(&id).join("layers");
    let merged = after.keys().find(|name| !before.contains_key(*name)).context("a new layer")?;
    ensure!(dir.join(merged).metadata()?.uid() == dir.metadata()?.uid(), "{merged} is not the agent's");
    assert_eq!(world.get(&sprite, "/nonce").await?.json()?["nonce"], nonce, "it goes on");
    assert_eq!(world.exec_text("web", "sha256sum /root/large").await?, sums[4]);
    // A machine that has files open which have no names any more takes checkpoints as before.
    world.get(&sprite, "/insert?id=6").await?;
    ensure!(checkpoint(&world, "web").await?["type"] == "complete");
    // It goes on with merged layers, whichever way it is started.
    for depth in ["suspended", "cold"] {
        world.sleep("web", depth).await?;
        let rows = world.get(&sprite, "/rows").await?.json()?;
        ensure!(rows["integrity"] == "ok" && rows["last"] == 6, "{depth}: {rows}");
        assert_eq!(world.exec_text("web", "sha256sum /root/large").await?, sums[4], "{depth}");
    }
    // What is left is what it was, and is removed while the sprite sleeps as well.
    for (checkpoint, row, sum) in [("v0", 1, &sums[0]), ("v4", 5, &sums[4])] {
        let path = format!("/v1/sprites/web/checkpoints/{checkpoint}/restore");
        let (status, answer) = world.call("POST", &path, None).await?;
        ensure!(status == 200 && answer["type"] == "complete", "{checkpoint}: {status} {answer}");
        assert_eq!(world.get(&sprite, "/rows").await?.json()?["last"], row, "{checkpoint}");
        assert_eq!(world.exec_text("web", "sha256sum /root/large").await?, *sum, "{checkpoint}");
    }
    let forked = SpriteUrl { host: host(&answer)?, name: "fork".to_owned() };
    assert_eq!(world.get(&forked, "/rows").await?.json()?["last"], 1, "the fork is another's");
    let kept = layers(&world, &fork_id)?;
    ensure!(
        shared.iter().all(|(name, file)| kept.get(name).is_some_and(|kept| kept.0 == file.0)),
        "{kept:?}"
    );
    world.stop().await
}

fn host(sprite: &Value) -> anyhow::Result<String> {
    let host = sprite["url"].as_str().and_then(|url| url.split(['/', ':']).nth(3));
    Ok(host.context("a url")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_has_no_more_layers_than_it_may_and_says_what_to_do() -> anyhow::Result<()> {
    let options = Options { agent: "max_layers = 4\n".into(), ..machines() };
    let world = World::start(options).await?;
    let sprite = world.create_with_backend("web", "public").await?;
    world.get(&sprite, "/insert?id=1").await?;
    world.sleep("web", "suspended").await?;
    for _ in 0..3 {
        ensure!(checkpoint(&world, "web").await?["type"] == "complete");
    }
    // All are needed.
    let refused = checkpoint(&world, "web").await?;
    let reason = refused["error"].as_str().unwrap_or_default();
    ensure!(refused["type"] == "error" && reason.contains("delete checkpoints"), "{refused}");
    // One that is not is merged first, however soon the next is asked for.
    for gone in ["v0", "v1"] {
        forget(&world, "web", gone).await?;
        let made = checkpoint(&world, "web").await?;
        ensure!(made["type"] == "complete", "{made}");
    }
    assert_eq!(world.get(&sprite, "/rows").await?.json()?["last"], 1);
    // A machine that does not sleep keeps open what it has opened.
    let mut last = Value::Null;
    for gone in ["v2", "v4", "v5", "v6", "v7", "v8"] {
        forget(&world, "web", gone).await?;
        last = checkpoint(&world, "web").await?;
        if last["type"] == "error" {
            break;
        }
    }
    let reason = last["error"].as_str().unwrap_or_default();
    ensure!(reason.contains("sleep on disk once"), "{last}");
    world.sleep("web", "suspended").await?;
    assert_eq!(world.get(&sprite, "/rows").await?.json()?["last"], 1);
    ensure!(checkpoint(&world, "web").await?["type"] == "complete");
    world.stop().await
}

/// What a restore replaced is the topmost layer, so a restore of that puts one more on top.
#[tokio::test(flavor = "multi_thread")]
async fn restores_and_forks_keep_to_the_most_layers_too() -> anyhow::Result<()> {
    let options = Options { agent: "max_layers = 4\n".into(), ..machines() };
    let world = World::start(options).await?;
    let sprite = world.create_with_backend("web", "public").await?;
    world.get(&sprite, "/insert?id=1").await?;
    for _ in 0..3 {
        ensure!(checkpoint(&world, "web").await?["type"] == "complete");
    }
    world.get(&sprite, "/insert?id=2").await?;
    let restore = async |id: &str| -> anyhow::Result<Value> {
        Ok(world.call("POST", &format!("/v1/sprites/web/checkpoints/{id}/restore"), None).await?.1)
    };
    let restored = restore("v2").await?;
    ensure!(restored["type"] == "complete", "{restored}");
    let nonce = world.get(&sprite, "/nonce").await?.json()?["nonce"].clone();

    let refused = restore("auto-0").await?;
    let reason = refused["error"].as_str().unwrap_or_default();
    ensure!(refused["type"] == "error" && reason.contains("delete checkpoints"), "{refused}");
    let fork = json!({ "name": "fork", "fork": { "sprite": "web", "checkpoint": "auto-0" } });
    let (status, refused) = world.call("POST", "/v1/sprites", Some(fork)).await?;
    let reason = refused["message"].as_str().unwrap_or_default();
    ensure!(status == 409 && refused["error"] == "too_many_layers", "{status} {refused}");
    ensure!(reason.contains("delete checkpoints"), "{refused}");
    assert_eq!(world.call("GET", "/v1/sprites/fork", None).await?.0, 404);
    // Nobody was disturbed.
    assert_eq!(world.get(&sprite, "/nonce").await?.json()?["nonce"], nonce);
    assert_eq!(world.get(&sprite, "/rows").await?.json()?["last"], 1);

    forget(&world, "web", "v0").await?;
    let restored = restore("auto-0").await?;
    ensure!(restored["type"] == "complete", "{restored}");
    assert_eq!(world.get(&sprite, "/rows").await?.json()?["last"], 2);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_with_memory_goes_on_where_its_source_was() -> anyhow::Result<()> {
    let mut world = World::start(machines()).await?;
    let source = world.create_with_backend("one", "public").await?;
    world.get(&source, "/insert?id=1").await?;
    let nonce = world.get(&source, "/nonce").await?.json()?["nonce"].clone();
    let fork = |name: &str, from: Value| {
        Some(json!({ "name": name, "fork": from, "url_settings": { "auth": "public" } }))
    };
    let with_memory = || json!({ "sprite": "one", "memory": true });

    let (status, refused) = world.call("POST", "/v1/sprites", fork("two", with_memory())).await?;
    ensure!(status == 409 && refused["error"] == "not_suspended", "{status} {refused}");
    let both = json!({ "sprite": "one", "memory": true, "checkpoint": "v0" });
    let (status, refused) = world.call("POST", "/v1/sprites", fork("two", both)).await?;
    ensure!(status == 400 && refused["error"] == "bad_fork", "{status} {refused}");

    world.sleep("one", "suspended").await?;
    let began = std::time::Instant::now();
    let (status, made) = world.call("POST", "/v1/sprites", fork("two", with_memory())).await?;
    eprintln!("forked in {:?}", began.elapsed());
    ensure!(status == 201 && made["status"] == "warm", "{status} {made}");
    let copy = SpriteUrl { host: host(&made)?, name: "two".to_owned() };
    for name in ["one", "two"] {
        assert_eq!(phase(&world, name).await?, "suspended");
    }
    // Both count on, each for itself.
    for calls in 2..=3 {
        for sprite in [&copy, &source] {
            let now = world.get(sprite, "/nonce").await?.json()?;
            ensure!(now["nonce"] == nonce && now["calls"] == calls, "{}: {now}, not {calls}", sprite.name);
        }
    }
    let names = "hostname; cat /etc/hostname; echo $SPRITE_NAME";
    for name in ["one", "two"] {
        assert_eq!(world.exec_text(name, names).await?, format!("{name}\n{name}\n{name}\n"));
    }
    world.get(&copy, "/insert?id=2").await?;
    for (sprite, last) in [(&copy, 2), (&source, 1)] {
        let rows = world.get(sprite, "/rows").await?.json()?;
        ensure!(rows["integrity"] == "ok" && rows["last"] == last, "{}: {rows}", sprite.name);
    }
    // From now on it is a sprite like any other.
    world.sleep("two", "suspended").await?;
    assert_eq!(world.get(&copy, "/nonce").await?.json()?["calls"], 4);
    world.sleep("two", "cold").await?;
    ensure!(
        world.get(&copy, "/nonce").await?.json()?["nonce"] != nonce,
        "a cold boot has a memory of its own"
    );
    assert_eq!(world.get(&copy, "/rows").await?.json()?["last"], 2);

    // One that was never woken outlives its agent, and its source.
    world.sleep("one", "suspended").await?;
    let (status, made) = world.call("POST", "/v1/sprites", fork("three", with_memory())).await?;
    ensure!(status == 201, "{status} {made}");
    let kept = world.state_dir().join("sprites").join(world.id("one").await?).join("kept");
    ensure!(std::fs::read_dir(kept)?.next().is_none(), "a copy of its memory was left");
    world.kill_agent()?;
    world.start_agent().await?;
    let (status, _) = world.call("DELETE", "/v1/sprites/one", None).await?;
    ensure!(status == 204);
    let late = SpriteUrl { host: host(&made)?, name: "three".to_owned() };
    let now = world.get(&late, "/nonce").await?.json()?;
    ensure!(now["nonce"] == nonce && now["calls"] == 4, "{now}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_forks_with_memory_from_a_sprite_that_is_awake() -> anyhow::Result<()> {
    let world = World::start(machines()).await?;
    let cli = Cli::new(&world)?;
    let source = world.create_with_backend("one", "public").await?;
    let nonce = world.get(&source, "/nonce").await?.json()?["nonce"].clone();
    let made =
        cli.run(&["-s", "one", "fork", "two", "--memory", "--auth", "public", "--json"]).await?.good()?;
    let copy = SpriteUrl { host: host(&serde_json::from_str(&made)?)?, name: "two".to_owned() };
    assert_eq!(world.get(&copy, "/nonce").await?.json()?["nonce"], nonce);
    cli.run(&["sleep", "two", "--disk"]).await?.good()?;
    eventually(SOON, || async { Ok(phase(&world, "two").await? == "suspended") }).await?;
    world.sleep("one", "cold").await?;
    let refused = cli.run(&["-s", "one", "fork", "three", "--memory"]).await?;
    ensure!(refused.stderr.contains("is cold and has no memory"), "{refused:?}");
    world.stop().await
}
