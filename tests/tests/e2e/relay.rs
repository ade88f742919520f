//! Bytes pass the edge as they stand: both ends are the test's own and say exactly what they mean.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use test_support::{Options, Raw, World, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);
const SPRITE: &str = "script";

/// A world with one sprite, whose server is the test.
struct Ends {
    world: World,
    host: String,
    server: TcpListener,
}

impl Ends {
    async fn start(gateway: &str) -> anyhow::Result<Self> {
        Self::with(Options { gateway: gateway.to_owned(), ..Options::default() }).await
    }

    async fn with(options: Options) -> anyhow::Result<Self> {
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let agent = format!(
            "[[command]]\norganization = \"acme\"\nname = \"{SPRITE}\"\nweb = \"{}\"\nstart = [\"/bin/true\"]\n\
             stop = [\"/bin/true\"]\n",
            server.local_addr()?
        );
        let world = World::start(Options { agent, ..options }).await?;
        let public = json!({ "url_settings": { "auth": "public" } });
        let (status, sprite) = world.call("PUT", &format!("/v1/sprites/{SPRITE}"), Some(public)).await?;
        ensure!(status == 200, "{status} {sprite}");
        let authority = sprite["url"].as_str().unwrap_or_default().trim_start_matches("http://");
        let host = authority.split(':').next().unwrap_or_default().to_owned();
        Ok(Self { world, host, server })
    }

    async fn client(&self) -> anyhow::Result<Raw> {
        let client = Raw::connect(self.world.http).await?;
        client.stream.set_nodelay(true)?;
        Ok(client)
    }

    /// The next connection that the edge opens.
    async fn accept(&self) -> anyhow::Result<Server> {
        let (stream, _) = timeout(SOON, self.server.accept()).await.context("no connection came")??;
        stream.set_nodelay(true)?;
        Ok(Server { stream, read: Vec::new() })
    }

    /// The edge opens no other connection for a while that is long for it.
    async fn no_other(&self) -> bool {
        timeout(Duration::from_millis(300), self.server.accept()).await.is_err()
    }

    fn head(&self, method: &str, lines: &str) -> String {
        format!("{method} /path HTTP/1.1\r\nHost: {}\r\n{lines}\r\n", self.host)
    }

    async fn gone(&self, gauge: &str) -> anyhow::Result<()> {
        let zero = || async { Ok(self.world.metric(gauge, "").await? == 0.0) };
        eventually(SOON, zero).await.with_context(|| format!("{gauge} is not zero"))
    }
}

/// The sprite's end of a connection.
struct Server {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Server {
    async fn until(&mut self, mark: &[u8]) -> anyhow::Result<Vec<u8>> {
        let reading = async {
            loop {
                if let Some(at) = self.read.windows(mark.len()).position(|part| part == mark) {
                    let rest = self.read.split_off(at + mark.len());
                    return Ok(std::mem::replace(&mut self.read, rest));
                }
                let length = self.stream.read_buf(&mut self.read).await?;
                ensure!(length > 0, "closed after {:?}", String::from_utf8_lossy(&self.read));
            }
        };
        timeout(SOON, reading).await.with_context(|| format!("no {:?}", String::from_utf8_lossy(mark)))?
    }

    /// A request's head.
    async fn head(&mut self) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.until(b"\r\n\r\n").await?)?)
    }

    async fn say(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes.as_ref()).await?)
    }

    /// The edge closes, or resets; what came before.
    async fn closed(mut self) -> anyhow::Result<Vec<u8>> {
        let reading =
            async { while self.stream.read_buf(&mut self.read).await.is_ok_and(|length| length > 0) {} };
        timeout(SOON, reading).await.context("still open")?;
        Ok(self.read)
    }
}

/// Sends in two parts that arrive apart.
async fn in_two(stream: &mut TcpStream, bytes: &[u8], at: usize) -> anyhow::Result<()> {
    stream.write_all(&bytes[..at]).await?;
    tokio::time::sleep(Duration::from_millis(1)).await;
    Ok(stream.write_all(&bytes[at..]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_makes_no_difference_where_a_request_or_an_answer_is_split() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let body = "3\r\nabc\r\n1;x=y\r\n\n\r\n0\r\n\r\n";
    let request = ends.head("POST", "Transfer-Encoding: chunked\r\n") + body;
    let answer_body = "2\r\nhi\r\n0\r\nX-End: 1\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{answer_body}");
    // All over one connection on each side.
    let mut client = ends.client().await?;
    client.send(&request).await?;
    let mut server = ends.accept().await?;
    for at in 0..request.len() + answer.len() {
        let head = server.head().await?;
        ensure!(
            head.starts_with("POST /path HTTP/1.1\r\n") && head.contains("x-request-id: "),
            "{at}: {head}"
        );
        ensure!(server.until(b"0\r\n\r\n").await? == body.as_bytes(), "{at}: not the body as it stood");
        in_two(&mut server.stream, answer.as_bytes(), at.saturating_sub(request.len())).await?;
        let head = client.until("\r\n\r\n", SOON).await?;
        ensure!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-request-id: "), "{at}: {head}");
        ensure!(
            client.until("X-End: 1\r\n\r\n", SOON).await? == answer_body,
            "{at}: not the answer as it stood"
        );
        in_two(&mut client.stream, request.as_bytes(), at.min(request.len())).await?;
    }
    ensure!(ends.no_other().await, "one connection is enough");
    drop((client, server));
    ends.gone("gateway_upstream_connections").await?;
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_reach_the_sprite_one_by_one_in_their_order() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let mut client = ends.client().await?;
    let post = |n: usize| ends.head("POST", &format!("X-N: {n}\r\nContent-Length: 2\r\n")) + &format!("b{n}");
    // A line end too many is nobody's.
    client.send(format!("{}\r\n{}{}", post(0), post(1), post(2))).await?;
    let mut server = ends.accept().await?;
    for n in 0..3 {
        let head = server.head().await?;
        ensure!(head.contains(&format!("X-N: {n}\r\n")), "{n}: {head}");
        server.until(format!("b{n}").as_bytes()).await?;
        ensure!(server.read.is_empty(), "the next one came before its turn");
        server.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}")).await?;
        let (_, body) = client.answer(SOON).await?;
        ensure!(body == n.to_string());
    }
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_larger_than_every_buffer_pass_both_ways_at_once() -> anyhow::Result<()> {
    const SIZE: usize = 24 << 20;
    let ends = Ends::start("").await?;
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n * 7 / 3) as u8).collect();
    let mut client = ends.client().await?;
    client.send(ends.head("POST", &format!("Content-Length: {SIZE}\r\n"))).await?;
    let mut server = ends.accept().await?;
    server.head().await?;
    server.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await?;
    client.until("\r\n\r\n", SOON).await?;
    let echo = tokio::spawn(async move {
        let (mut from, mut to) = server.stream.split();
        to.write_all(&server.read).await?;
        tokio::io::copy(&mut from, &mut to).await
    });
    let (mut from, mut to) = client.stream.split();
    let mut seen = vec![0; SIZE];
    let (sent, received) = tokio::join!(to.write_all(&bytes), timeout(SOON * 3, from.read_exact(&mut seen)));
    sent?;
    received.context("the echo stalled")??;
    ensure!(seen == bytes, "other bytes came back");
    drop(client);
    timeout(SOON, echo).await.context("the sprite's end stays open")???;
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_come_before_the_requests_end() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno";
    // A small rest is read away, and the connection goes on with the next request (T25).
    let mut client = ends.client().await?;
    client.send(ends.head("POST", "Content-Length: 10\r\n") + "12345").await?;
    let mut server = ends.accept().await?;
    server.until(b"12345").await?;
    server.say(refusal).await?;
    let (head, body) = client.answer(SOON).await?;
    ensure!(head.contains(" 413 ") && body == "no", "{head}");
    client.send("67890".to_owned() + &ends.head("GET", "")).await?;
    let mut second = ends.accept().await?;
    ensure!(second.head().await?.starts_with("GET /path "), "what was left of the body is no request");
    second.say("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await?;
    client.until("\r\n\r\n", SOON).await?;
    second.closed().await?;
    // A large one is not: the client gets its answer, and the connection ends.
    let mut client = ends.client().await?;
    client.send(ends.head("POST", "Content-Length: 100000000\r\n")).await?;
    let mut third = ends.accept().await?;
    third.head().await?;
    third.say(refusal).await?;
    let (head, body) = client.answer(SOON).await?;
    ensure!(head.contains(" 413 ") && body == "no", "{head}");
    let flood = vec![b'x'; 1 << 20];
    let until = Instant::now() + SOON;
    while client.stream.write_all(&flood).await.is_ok() {
        ensure!(Instant::now() < until, "the edge takes a body that nobody wants");
    }
    // Whoever waits for leave to send its body is told, and not listened to any more.
    let mut client = ends.client().await?;
    client.send(ends.head("POST", "Content-Length: 5\r\nExpect: 100-continue\r\n")).await?;
    let mut fourth = ends.accept().await?;
    ensure!(fourth.head().await?.contains("Expect: 100-continue\r\n"));
    fourth.say(refusal).await?;
    let (head, _) = client.answer(SOON).await?;
    ensure!(head.contains("connection: close\r\n"), "{head}");
    client.closed(SOON).await?;
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_answer_ends_where_it_should_and_the_connection_goes_on() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let mut client = ends.client().await?;
    let mut server = None;
    for (method, answer, passed) in [
        ("GET", "200 OK\r\nContent-Length: 2\r\n\r\nok", "\r\n\r\nok"),
        ("HEAD", "200 OK\r\nContent-Length: 2\r\n\r\n", "\r\n\r\n"),
        ("GET", "204 No Content\r\n\r\n", "\r\n\r\n"),
        ("GET", "304 Not Modified\r\nContent-Length: 2\r\n\r\n", "\r\n\r\n"),
        (
            "GET",
            "103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "\r\n\r\nok",
        ),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
            "\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
        ),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n0\r\nX-T: 1\r\n\r\n",
            "\r\n\r\n0\r\nX-T: 1\r\n\r\n",
        ),
    ] {
        client.send(ends.head(method, "")).await?;
        let mut connection = match server.take() {
            Some(connection) => connection,
            None => ends.accept().await?,
        };
        connection.head().await?;
        connection.say(format!("HTTP/1.1 {answer}")).await?;
        let mut seen = client.until("x-request-id: ", SOON).await?;
        seen += &client.until(passed, SOON).await?;
        ensure!(
            !answer.starts_with("103") || seen.contains("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
            "{seen}"
        );
        server = Some(connection);
    }
    // One that ends by closing ends both.
    client.send(ends.head("GET", "")).await?;
    let mut connection = server.context("a connection")?;
    connection.head().await?;
    connection.say("HTTP/1.1 200 OK\r\n\r\nuntil the end").await?;
    drop(connection);
    let seen = client.closed(SOON).await?;
    ensure!(seen.contains("connection: close\r\n") && seen.ends_with("\r\n\r\nuntil the end"), "{seen}");
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_never_looks_whole() -> anyhow::Result<()> {
    let ends = Ends::start("[timing]\nrevoke_grace_ms = 300\n").await?;
    for head in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut client = ends.client().await?;
        client.send(ends.head("GET", "")).await?;
        let mut server = ends.accept().await?;
        server.head().await?;
        server.say(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\nab")).await?;
        client.until("\r\n\r\n", SOON).await?;
        drop(server);
        ensure!(client.closed(SOON).await? == "4\r\nab", "a short body, and the end");
    }
    // What ends by closing looks whole if it is only closed: it is reset, because the sleep cut it.
    let mut client = ends.client().await?;
    client.send(ends.head("GET", "")).await?;
    let mut server = ends.accept().await?;
    server.head().await?;
    server.say("HTTP/1.1 200 OK\r\n\r\nhalf").await?;
    client.until("half", SOON).await?;
    ends.world.sleep(SPRITE, "cold").await?;
    let read = timeout(SOON, client.stream.read(&mut [0; 16])).await.context("still open")?;
    ensure!(read.is_err(), "it ended like a whole answer");
    // Before an answer there is one of ours.
    for (bytes, status) in [
        ("", "502"),
        ("HTTP/1.1 200 O", "502"),
        ("SSH-2.0-x\r\n", "502"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "502"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "502"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "502"),
    ] {
        let mut client = ends.client().await?;
        client.send(ends.head("POST", "Content-Length: 0\r\n")).await?;
        let mut server = ends.accept().await?;
        server.head().await?;
        server.say(bytes).await?;
        drop(server);
        let (head, body) = client.answer(SOON).await?;
        ensure!(
            head.contains(&format!(" {status} ")) && body.contains("upstream_broken"),
            "{bytes:?}: {head}"
        );
    }
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_again_only_if_the_sprite_saw_nothing_of_it() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut client = ends.client().await?;
    // A kept connection that is closed by the sprite is not used.
    client.send(ends.head("GET", "")).await?;
    let mut server = ends.accept().await?;
    server.head().await?;
    server.say(ok).await?;
    client.answer(SOON).await?;
    drop(server);
    client.send(ends.head("POST", "Content-Length: 4\r\n") + "once").await?;
    let mut server = ends.accept().await?;
    server.until(b"once").await?;
    server.say(ok).await?;
    client.answer(SOON).await?;
    // One that is closed in answer to a request: what only reads goes again, over a new connection.
    client.send(ends.head("GET", "")).await?;
    server.head().await?;
    drop(server);
    let mut server = ends.accept().await?;
    server.head().await?;
    server.say(ok).await?;
    client.answer(SOON).await?;
    // What may change something does not.
    client.send(ends.head("POST", "Content-Length: 4\r\n") + "once").await?;
    server.until(b"once").await?;
    drop(server);
    let (head, _) = client.answer(SOON).await?;
    ensure!(head.contains(" 502 "), "{head}");
    ensure!(ends.no_other().await, "it was sent twice");
    // A new connection that breaks is no kept one, whatever the method.
    let mut client = ends.client().await?;
    client.send(ends.head("GET", "")).await?;
    let mut server = ends.accept().await?;
    server.head().await?;
    drop(server);
    let (head, _) = client.answer(SOON).await?;
    ensure!(head.contains(" 502 "), "{head}");
    ensure!(ends.no_other().await, "it was sent twice");
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_two_parsers_might_count_differently_go_no_further() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    for body in [
        "5\nhello\n0\n\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "0\r\nX-Sprite-Org: victim\r\n\r\n",
        "0\r\n\nGET / HTTP/1.1\r\n",
        "11111111111111111\r\n",
    ] {
        let mut client = ends.client().await?;
        client.send(ends.head("POST", "Transfer-Encoding: chunked\r\n") + body).await?;
        let (head, _) = client.answer(SOON).await.with_context(|| body.to_owned())?;
        ensure!(head.contains(" 400 "), "{body:?}: {head}");
        client.closed(SOON).await?;
        let seen = ends.accept().await?.closed().await?;
        ensure!(!seen.windows(4).any(|part| part == b"hell"), "{body:?}: it reached the sprite");
    }
    ends.world.stop().await
}

/// Leaves with a reset.
fn reset(client: Raw) -> anyhow::Result<()> {
    let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&client.stream, nix::sys::socket::sockopt::Linger, &at_once)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_any_phase_leaves_nothing_behind() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    for by_reset in [false, true] {
        let leave = |client: Raw| match by_reset {
            true => reset(client),
            false => {
                drop(client);
                anyhow::Ok(())
            }
        };
        // In the middle of the head.
        let mut client = ends.client().await?;
        client.send("GET / HTTP/1.1\r\nHo").await?;
        leave(client)?;
        // In the middle of the body.
        let mut client = ends.client().await?;
        client.send(ends.head("POST", "Content-Length: 100\r\n") + "some").await?;
        let mut server = ends.accept().await?;
        server.until(b"some").await?;
        leave(client)?;
        server.closed().await.context("in the middle of the body")?;
        // While it waits for the answer, with and without a next request behind it.
        for more in [String::new(), ends.head("GET", "")] {
            let mut client = ends.client().await?;
            client.send(ends.head("GET", "") + &more).await?;
            let mut server = ends.accept().await?;
            server.head().await?;
            leave(client)?;
            server.closed().await.context("while it waits for the answer")?;
        }
        // In the middle of the answer.
        let mut client = ends.client().await?;
        client.send(ends.head("GET", "")).await?;
        let mut server = ends.accept().await?;
        server.head().await?;
        server.say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome").await?;
        client.until("some", SOON).await?;
        leave(client)?;
        server.closed().await.context("in the middle of the answer")?;
        // While the sprite reads nothing, and everything on the way is full.
        let mut client = ends.client().await?;
        client.send(ends.head("POST", "Content-Length: 1000000000\r\n")).await?;
        let server = ends.accept().await?;
        let flood = vec![b'x'; 1 << 20];
        while timeout(Duration::from_millis(300), client.stream.write_all(&flood)).await.is_ok() {}
        if by_reset {
            reset(client)?;
            server.closed().await.context("while the sprite reads nothing")?;
        } else {
            // A FIN waits behind what could not be sent: the client is there until the sprite has read.
            drop(client);
            drop(server);
        }
        // While it reads nothing, and the sprite goes on.
        let mut client = ends.client().await?;
        client.send(ends.head("GET", "")).await?;
        let mut server = ends.accept().await?;
        server.head().await?;
        server.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await?;
        while timeout(Duration::from_millis(300), server.stream.write_all(&flood)).await.is_ok() {}
        leave(client)?;
        server.closed().await.context("while it reads nothing")?;
    }
    for gauge in
        ["gateway_upstream_connections", "gateway_held_requests", "gateway_leases", "gateway_connections"]
    {
        // One connection is the one of the API that this world keeps.
        let least = if gauge == "gateway_connections" { 1.0 } else { 0.0 };
        let settled = || async { Ok(ends.world.metric(gauge, "").await? <= least) };
        eventually(SOON, settled).await.with_context(|| gauge.to_owned())?;
    }
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_an_answer_and_a_granted_one_carries_every_byte() -> anyhow::Result<()> {
    let ends = Ends::start("").await?;
    let upgrade = ends.head("GET", "Connection: Upgrade\r\nUpgrade: anything\r\n");
    let mut client = ends.client().await?;
    client.send(&upgrade).await?;
    let mut server = ends.accept().await?;
    let head = server.head().await?;
    ensure!(head.contains("Upgrade: anything\r\n") && head.contains("connection: Upgrade\r\n"), "{head}");
    server.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await?;
    client.answer(SOON).await?;
    // Over the same connections: bytes that come early wait for the 101, those that come with it are passed on.
    client.send(format!("{upgrade}early")).await?;
    server.head().await?;
    ensure!(timeout(Duration::from_millis(100), server.until(b"e")).await.is_err(), "before the 101");
    server
        .say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: anything\r\n\r\nwelcome")
        .await?;
    client.until("welcome", SOON).await?;
    server.until(b"early").await?;
    // Half-closed, it still carries the other half.
    client.send("last").await?;
    client.stream.shutdown().await?;
    ensure!(server.read.is_empty());
    server.say("echo").await?;
    let mut rest = Vec::new();
    timeout(SOON, server.stream.read_to_end(&mut rest)).await.context("the half close")??;
    ensure!(rest == b"last", "{rest:?}");
    drop(server);
    ensure!(client.closed(SOON).await? == "echo");
    ends.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_load_balancer_the_sprite_hears_of_the_client_and_only_from_those_who_may_say()
-> anyhow::Result<()> {
    let options = Options {
        also_listen: Some("127.0.0.2".into()),
        listen: "proxied = [\"127.0.0.2:HTTP\"]\nproxies = [\"127.0.0.1\"]\n".into(),
        ..Options::default()
    };
    let ends = Ends::with(options).await?;
    let header = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
    let connect = async |from: &str| -> anyhow::Result<Raw> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{from}:0").parse()?)?;
        Ok(Raw::over(socket.connect(format!("127.0.0.2:{}", ends.world.http).parse()?).await?))
    };
    let mut client = connect("127.0.0.1").await?;
    client.send(header.to_owned() + &ends.head("GET", "")).await?;
    let head = ends.accept().await?.head().await?;
    ensure!(
        head.contains("x-forwarded-for: 192.0.2.7\r\n") && head.contains("x-forwarded-port: 443\r\n"),
        "{head}"
    );
    let mut client = connect("127.0.0.3").await?;
    // It may be closed before it has sent anything.
    let _sent = client.send(header.to_owned() + &ends.head("GET", "")).await;
    ensure!(client.closed(SOON).await?.is_empty(), "anybody may say for whom it connects");
    // Without a header there is no answer; nor to a header where none is expected.
    let mut client = connect("127.0.0.1").await?;
    client.send(ends.head("GET", "")).await?;
    ensure!(client.closed(SOON).await?.is_empty());
    let mut client = ends.client().await?;
    client.send(header.to_owned() + &ends.head("GET", "")).await?;
    ensure!(client.until("\r\n", SOON).await?.contains(" 505 "), "it is no request line");
    ends.world.stop().await
}
