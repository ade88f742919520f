//! What is sent arrives, once, whatever the sprite was doing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::{SinkExt, StreamExt, stream};
use serde_json::json;
use test_support::{Answer, Options, Raw, World, eventually};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn posts_that_meet_a_sleeping_sprite_are_each_answered_once() -> anyhow::Result<()> {
    const POSTS: u64 = 2_000;
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("inbox", "public").await?;
    for depth in ["warm", "cold"] {
        world.sleep("inbox", depth).await?;
        let answers = stream::iter(0..POSTS).map(|n| {
            let id = if depth == "warm" { n } else { POSTS + n };
            let request = world.request("POST", &sprite, &format!("/once?id={id}")).body("x".repeat(100));
            async move { anyhow::Ok(Answer::read(request.send().await?).await?) }
        });
        let answers: Vec<_> = answers.buffer_unordered(2_000).collect().await;
        for answer in answers {
            let answer = answer?;
            ensure!(answer.status == 200 && answer.body == "1", "{depth}: {} {}", answer.status, answer.body);
        }
        // A cold start begins with an empty memory; a paused one goes on.
        let seen = world.get(&sprite, "/seen").await?.json()?;
        assert_eq!(seen, json!({ "ids": POSTS, "repeated": 0 }), "{depth}");
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_wakes_a_sprite_and_keeps_it_awake() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("chat", "public").await?;
    world.sleep("chat", "warm").await?;
    let mut request = format!("ws://127.0.0.1:{}/ws", world.http).into_client_request()?;
    request.headers_mut().insert("Host", sprite.host.parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    for n in 0..5 {
        // Four idle timeouts of silence in all.
        tokio::time::sleep(Duration::from_millis(400)).await;
        socket.send(Message::text(n.to_string())).await?;
        assert_eq!(socket.next().await.context("an echo")??, Message::text(n.to_string()));
        assert_eq!(world.status("chat").await?, "running");
    }
    socket.close(None).await?;
    world.until("chat", "warm", SOON).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_wakes_a_sprite_over_tls() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("two", "public").await?;
    let ca = reqwest::Certificate::from_pem(&std::fs::read(world.ca())?)?;
    let address = ([127, 0, 0, 1], world.https).into();
    let client =
        reqwest::Client::builder().add_root_certificate(ca).resolve(&sprite.host, address).build()?;
    let base = format!("https://{}:{}", sprite.host, world.https);
    for depth in ["warm", "cold"] {
        world.sleep("two", depth).await?;
        let answers: Vec<_> = (0..20)
            .map(|n| client.get(format!("{base}/once?id={n}")).send())
            .collect::<stream::FuturesUnordered<_>>()
            .collect()
            .await;
        for answer in answers {
            let answer = answer?;
            assert_eq!(answer.version(), reqwest::Version::HTTP_2);
            assert_eq!(answer.status(), 200);
        }
    }
    let echo: serde_json::Value = client.get(format!("{base}/echo")).send().await?.json().await?;
    let proto =
        echo["headers"].as_array().context("headers")?.iter().find(|pair| pair[0] == "x-forwarded-proto");
    assert_eq!(proto.context("a proto")?[1], "https");
    drop(client);
    world.until("two", "warm", SOON).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_upload_that_meets_a_sleeping_sprite_arrives_whole() -> anyhow::Result<()> {
    const SIZE: usize = 64 << 20;
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("big", "public").await?;
    world.sleep("big", "cold").await?;
    let chunk = vec![7u8; 1 << 20];
    let chunks = stream::iter((0..SIZE >> 20).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let request = world.request("POST", &sprite, "/upload").body(reqwest::Body::wrap_stream(chunks));
    let uploaded = Answer::read(request.send().await?).await?.json()?;
    assert_eq!(uploaded["length"], SIZE);
    let answer = world.request("GET", &sprite, &format!("/download?bytes={SIZE}")).send().await?;
    assert_eq!(answer.bytes().await?.len(), SIZE);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_continue_is_told_when_the_sprite_is_ready() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("polite", "public").await?;
    world.sleep("polite", "warm").await?;
    let mut client = Raw::connect(world.http).await?;
    let head = "Content-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n";
    client.send(format!("POST /upload HTTP/1.1\r\nHost: {}\r\n{head}\r\n", sprite.host)).await?;
    assert!(client.until("\r\n\r\n", SOON).await?.starts_with("HTTP/1.1 100"));
    client.send("hello").await?;
    assert!(client.until("\r\n", SOON).await?.contains("200"));
    client.until("\"length\":5", SOON).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_that_never_opens_its_port_is_a_504_that_says_what_listens_instead() -> anyhow::Result<()> {
    let options = Options { gateway: "[timing]\nport_wait_ms = 1500\n".into(), ..Options::default() };
    let world = World::start(options).await?;
    let sprite = world.create("closed", "public").await?;
    world.install_backend("closed").await?;
    world.service("closed", "other", json!({ "cmd": "/opt/backend", "args": ["9999"] })).await?;
    let other = format!("9999--{}", sprite.host);
    let other = test_support::SpriteUrl { host: other, name: "closed".into() };
    eventually(SOON, || async { Ok(world.get(&other, "/").await?.status == 200) }).await?;
    let wrong = format!("4000--{}", sprite.host);
    let wrong = test_support::SpriteUrl { host: wrong, name: "closed".into() };
    let began = Instant::now();
    let answer = world.get(&wrong, "/").await?;
    assert_eq!(answer.status, 504, "{}", answer.body);
    assert!(answer.body.contains("4000") && answer.body.contains("9999"), "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_can_not_start_is_named_with_its_error() -> anyhow::Result<()> {
    let options = Options { gateway: "[timing]\nport_wait_ms = 1500\n".into(), ..Options::default() };
    let world = World::start(options).await?;
    let sprite = world.create("broken", "public").await?;
    let definition = json!({ "cmd": "/no/such/program", "http_port": 8080 });
    // The definition is taken; whether it starts is what its stream of events tells.
    world.service("broken", "web", definition).await?;
    let answer = world.get(&sprite, "/").await?;
    assert!(matches!(answer.status, 503 | 504), "{} {}", answer.status, answer.body);
    assert!(answer.body.contains("/no/such/program") || answer.body.contains("web"), "{}", answer.body);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_app_is_not_retried_behind_the_clients_back() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("rude", "public").await?;
    let answer = Answer::read(world.request("POST", &sprite, "/reset").body("once").send().await?).await?;
    assert_eq!(answer.status, 502, "{}", answer.body);
    assert!(answer.json()?["message"].is_string());
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_an_http_2_client() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("grpc", "public").await?;
    // Each on a connection of its own, where the end of the stream races with the trailers.
    for n in 0..100 {
        let output = tokio::process::Command::new("curl")
            .args([
                "-sS",
                "--http2-prior-knowledge",
                "-D",
                "-",
                "-H",
                "Content-Type: application/grpc",
                "-H",
                "TE: trailers",
            ])
            .args(["--resolve", &format!("{}:{}:127.0.0.1", sprite.host, world.http)])
            .arg(format!("http://{}:{}/trailers", sprite.host, world.http))
            .args(["--data-binary", "x"])
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains("body") && text.contains("grpc-status: 0"),
            "{n}: {text} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    world.stop().await
}
