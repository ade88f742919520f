//! The API: exact where the contract is, clear where the caller is wrong.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use test_support::{Answer, Options, Raw, World, eventually};

const SOON: Duration = Duration::from_secs(10);

async fn send(world: &World, method: &str, path: &str, body: &str) -> anyhow::Result<Answer> {
    let request = world.client().request(method.parse()?, format!("{}{path}", world.api()));
    let request = request.bearer_auth(&world.token).header("Content-Type", "application/json");
    Answer::read(request.body(body.to_owned()).send().await?).await
}

/// An error that a person can act on.
fn is_clear(answer: &Answer, status: u16) -> anyhow::Result<Value> {
    let body = answer.json()?;
    ensure!(answer.status == status, "{} instead of {status}: {}", answer.status, answer.body);
    ensure!(body["error"].as_str().is_some_and(|code| !code.is_empty()), "{body}");
    ensure!(body["message"].as_str().is_some_and(|message| message.len() > 10), "{body}");
    ensure!(!answer.header("sprite-version").is_empty(), "every API answer has a version");
    Ok(body)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_error_and_nothing_is_lost() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("taken", "public").await?;
    for (status, method, path, body) in [
        (400, "POST", "/v1/sprites", "{"),
        (400, "POST", "/v1/sprites", "[]"),
        (400, "POST", "/v1/sprites", "{}"),
        (400, "POST", "/v1/sprites", r#"{"name": "No Such Name"}"#),
        (400, "POST", "/v1/sprites", r#"{"name": "3000--web"}"#),
        (400, "POST", "/v1/sprites", r#"{"name": "../../etc"}"#),
        (400, "POST", "/v1/sprites", r#"{"name": "good", "url_settings": {"auth": "everybody"}}"#),
        (409, "POST", "/v1/sprites", r#"{"name": "taken"}"#),
        (404, "GET", "/v1/sprites/absent", ""),
        (404, "PUT", "/v1/sprites/absent", "{}"),
        (404, "DELETE", "/v1/sprites/absent", ""),
        (404, "GET", "/v1/sprites/absent/services", ""),
        (400, "PUT", "/v1/sprites/taken", "nonsense"),
        (404, "GET", "/v1/sprites/taken/no-such-thing", ""),
        (404, "GET", "/v2/sprites", ""),
    ] {
        let answer = send(&world, method, path, body).await?;
        is_clear(&answer, status).with_context(|| format!("{method} {path} {body}"))?;
    }
    let long = format!(r#"{{"name": "{}"}}"#, "x".repeat(58));
    is_clear(&send(&world, "POST", "/v1/sprites", &long).await?, 400)?;
    let huge = format!(r#"{{"name": "big", "labels": ["{}"]}}"#, "x".repeat(3 << 20));
    is_clear(&send(&world, "POST", "/v1/sprites", &huge).await?, 413)?;
    assert_eq!(world.status("taken").await?, "cold", "errors wake nothing");
    let (_, list) = world.call("GET", "/v1/sprites", None).await?;
    assert_eq!(list["sprites"].as_array().map(Vec::len), Some(1));
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sprite_object_has_what_every_client_reads() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let ask = json!({ "name": "whole", "labels": ["l"], "config": { "ram_mb": 512, "cpus": 1 },
                      "environment": { "KEY": "value" }, "wait_for_capacity": true });
    let (status, sprite) = world.call("POST", "/v1/sprites", Some(ask)).await?;
    assert_eq!(status, 201);
    for key in ["id", "name", "organization", "org_slug", "url", "status", "created_at", "updated_at"] {
        ensure!(sprite[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {sprite}");
    }
    assert_eq!(sprite["status"], "cold");
    assert_eq!(sprite["url_settings"]["auth"], "sprite", "private unless told otherwise");
    assert_eq!(sprite["config"]["ram_mb"], 512);
    for never_empty in ["last_running_at", "last_warming_at", "last_started_at", "last_active_at"] {
        ensure!(sprite[never_empty] != json!(""), "an empty time breaks Go clients");
    }
    let (status, read) = world.call("GET", "/v1/sprites/whole", None).await?;
    assert_eq!((status, &read["id"]), (200, &sprite["id"]));
    assert_eq!(world.call("DELETE", "/v1/sprites/whole", None).await?.0, 204);
    assert_eq!(world.call("GET", "/v1/sprites/whole", None).await?.0, 404, "gone at once");
    assert_eq!(
        world.call("POST", "/v1/sprites", Some(json!({ "name": "whole" }))).await?.0,
        201,
        "the name is free"
    );
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_clamped() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    for n in 0..55 {
        world.create(&format!("p{n:02}"), "public").await?;
    }
    world.create("other", "public").await?;
    let (status, page) = world.call("GET", "/v1/sprites?prefix=p&max_results=100", None).await?;
    assert_eq!(
        (status, page["sprites"].as_array().map(Vec::len)),
        (200, Some(50)),
        "100 is clamped, not refused"
    );
    assert_eq!(page["has_more"], true);
    let next = page["next_continuation_token"].as_str().context("a token")?;
    let (_, rest) =
        world.call("GET", &format!("/v1/sprites?prefix=p&continuation_token={next}"), None).await?;
    assert_eq!((rest["sprites"].as_array().map(Vec::len), &rest["has_more"]), (Some(5), &json!(false)));
    assert_eq!((&page["cold"], &page["org"]["cold"]), (&json!(56), &json!(56)), "counted in both places");
    let (_, none) = world.call("GET", "/v1/sprites?prefix=zzz", None).await?;
    assert_eq!(none["sprites"], json!([]), "empty is [], never null");
    let (status, _) = world.call("GET", "/v1/sprites?max_results=many", None).await?;
    ensure!(status == 400 || status == 200, "{status}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_organization_sees_nothing() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("ours", "public").await?;
    let stranger = world.mint("strangers").await?;
    let get = |path: &str, token: &str| {
        world.client().get(format!("{}{path}", world.api())).bearer_auth(token).send()
    };
    assert_eq!(get("/v1/sprites/ours", &stranger).await?.status(), 404);
    let list: Value = get("/v1/sprites", &stranger).await?.json().await?;
    assert_eq!(list["sprites"], json!([]));
    for token in ["", "nonsense", "acme/aaaaa/bbbb/spr_cccc"] {
        let answer = get("/v1/sprites/ours", token).await?;
        assert_eq!(answer.status(), 401, "{token:?}");
        assert!(answer.headers().contains_key("www-authenticate"));
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_tells_every_change() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("seen", "public").await?;
    world.sleep("seen", "warm").await?;
    let request = world.client().get(format!("{}/v1/sprites", world.api())).bearer_auth(&world.token);
    let mut stream = request.header("Accept", "application/x-ndjson").send().await?;
    assert!(stream.headers()["content-type"].to_str()?.starts_with("application/x-ndjson"));
    let mut text = String::new();
    let mut seen = async |mark: &str| -> anyhow::Result<()> {
        let read = async {
            while !text.contains(mark) {
                let chunk = stream.chunk().await?.context("the watch ended")?;
                text.push_str(&String::from_utf8_lossy(&chunk));
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(SOON, read).await.with_context(|| format!("no {mark}"))??;
        text.clear();
        Ok(())
    };
    seen("\"status\":\"warm\"").await?;
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    seen("\"status\":\"running\"").await?;
    seen("\"status\":\"warm\"").await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn control_is_404_and_what_is_not_there_yet_is_501() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create("later", "public").await?;
    is_clear(&send(&world, "GET", "/v1/sprites/later/control", "").await?, 404)?;
    for (method, path) in [("POST", "policy/network"), ("GET", "policy/network"), ("GET", "tasks")] {
        is_clear(&send(&world, method, &format!("/v1/sprites/later/{path}"), "").await?, 501)?;
    }
    assert_eq!(world.status("later").await?, "cold");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_names_no_sprite_of_ours_is_refused_before_any_wake() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("host", "public").await?;
    world.sleep("host", "warm").await?;
    let (label, domain) = sprite.host.split_once('.').context("a label")?;
    let bad = [
        format!("0--{label}.{domain}"),
        format!("65536--{label}.{domain}"),
        format!("03000--{label}.{domain}"),
        format!("xn--{label}.{domain}"),
        format!("a.{label}.{domain}"),
        format!("{label}.{domain}.."),
        format!("{label}.{domain}:99999"),
        format!("user@{label}.{domain}"),
        format!("{}.{domain}", "x".repeat(300)),
        format!("{label}%2e{domain}"),
        "example.com".to_owned(),
        String::new(),
    ];
    for host in &bad {
        let mut client = Raw::connect(world.http).await?;
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await?;
        let line = client.until("\r\n", SOON).await?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        ensure!(["400", "401", "404", "421"].contains(&status.as_str()), "{host:?} answered {line}");
    }
    assert_eq!(world.status("host").await?, "warm");
    for good in
        [sprite.host.to_uppercase(), format!("{}.", sprite.host), format!("{}:{}", sprite.host, world.http)]
    {
        let mut client = Raw::connect(world.http).await?;
        client.send(format!("GET / HTTP/1.1\r\nHost: {good}\r\nConnection: close\r\n\r\n")).await?;
        ensure!(client.until("\r\n", SOON).await?.contains("200"), "{good:?}");
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_survived() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small disk");
        return Ok(());
    }
    let mut world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("early", "public").await?;
    world.until("early", "warm", SOON).await?;
    // The same system on a disk of its own that can be filled.
    let disk = tempfile::Builder::new().prefix("full").tempdir()?;
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).arg(disk.path()).status();
    ensure!(mount(&["-t", "tmpfs", "-o", "size=64m", "tmpfs"])?.success(), "could not mount");
    let filled = async {
        let ballast = world.state_dir().join("ballast");
        world.agent()?.stop(Duration::from_secs(20))?;
        ensure!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(world.state_dir())
                .arg(disk.path())
                .status()?
                .success()
        );
        std::fs::rename(world.state_dir(), world.path().join("state.before"))?;
        std::os::unix::fs::symlink(disk.path().join("state"), world.state_dir())?;
        world.start_agent().await?;
        eventually(SOON, || async { Ok(world.get(&sprite, "/").await?.status == 200) }).await?;
        // Fill it to the last block.
        let _ = std::fs::write(&ballast, vec![0u8; 80 << 20]);
        let (status, answer) = world.call("POST", "/v1/sprites", Some(json!({ "name": "late" }))).await?;
        ensure!(status == 507 || status == 503, "{status} {answer}");
        ensure!(answer["message"].as_str().is_some_and(|message| message.contains("disk")), "{answer}");
        ensure!(world.get(&sprite, "/").await?.status == 200, "what runs goes on");
        std::fs::remove_file(&ballast)?;
        let (status, answer) = world.call("POST", "/v1/sprites", Some(json!({ "name": "late" }))).await?;
        ensure!(status == 201, "{status} {answer}");
        anyhow::Ok(())
    }
    .await;
    let stopped = world.stop().await;
    ensure!(std::process::Command::new("umount").arg(disk.path()).status()?.success());
    filled.and(stopped)
}
