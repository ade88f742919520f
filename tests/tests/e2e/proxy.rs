//! `sprite proxy`.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use test_support::{Cli, Options, World, eventually};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr},
};

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Port 7001 echoes; 7002 sends as many MiB as it is told in a line, each different, then ends; 7003 reads
/// to the end and answers with the SHA-256 of what came.
const SERVER: &str = r#"
import hashlib, socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536): self.request.sendall(data)
class Send(socketserver.StreamRequestHandler):
    def handle(self):
        block = bytes(range(256)) * 4095
        for n in range(int(self.rfile.readline())):
            self.request.sendall(n.to_bytes(8, "big") * 32 + block)
class Sum(socketserver.BaseRequestHandler):
    def handle(self):
        digest = hashlib.sha256()
        while data := self.request.recv(1 << 20): digest.update(data)
        self.request.sendall(digest.hexdigest().encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
socketserver.ThreadingTCPServer.request_queue_size = 1024
for port, handler in ((7001, Echo), (7002, Send), (7003, Sum)):
    threading.Thread(target=socketserver.ThreadingTCPServer(("127.0.0.1", port), handler).serve_forever).start()
"#;

/// One MiB of what 7002 sends.
fn block(n: u64) -> Vec<u8> {
    let mut block = n.to_be_bytes().repeat(32);
    block.extend((0..=255u8).cycle().take(256 * 4095));
    block
}

struct Proxy {
    child: Child,
    says: Lines<BufReader<ChildStderr>>,
    ports: Vec<u16>,
}

impl Proxy {
    /// Starts it for the three ports, on ports of the system's choice.
    async fn start(cli: &Cli) -> anyhow::Result<Self> {
        let mut command = cli.command(&["proxy", "0:7001", "0:7002", "0:7003", "-s", "web"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut says = BufReader::new(child.stderr.take().context("piped")?).lines();
        let mut ports = Vec::new();
        while ports.len() < 3 {
            let line = says.next_line().await?.context("it ended")?;
            let address = line.strip_prefix("Listening on 127.0.0.1:").with_context(|| line.clone())?;
            ports.push(address.split(',').next().context("a port")?.parse()?);
        }
        Ok(Self { child, says, ports })
    }

    async fn connect(&self, which: u16) -> anyhow::Result<TcpStream> {
        Ok(TcpStream::connect(("127.0.0.1", self.ports[usize::from(which - 7001)])).await?)
    }

    async fn until(&mut self, mark: &str) -> anyhow::Result<String> {
        let work = async {
            while let Some(line) = self.says.next_line().await? {
                if line.contains(mark) {
                    return Ok(line);
                }
            }
            anyhow::bail!("it ended")
        };
        tokio::time::timeout(SOON, work).await.with_context(|| format!("it never said {mark:?}"))?
    }

    async fn echoes(&self, text: &str) -> anyhow::Result<bool> {
        let mut stream = self.connect(7001).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = vec![0; text.len()];
        Ok(stream.read_exact(&mut answer).await.is_ok() && answer == text.as_bytes())
    }
}

async fn world() -> anyhow::Result<(World, Cli, Proxy)> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", "web", "--skip-console"]).await?.good()?;
    std::fs::write(cli.home().join("server.py"), SERVER)?;
    cli.run(&["exec", "--file", "server.py:/home/sprite/server.py", "true"]).await?.good()?;
    world.service("web", "server", json!({ "cmd": "python3", "args": ["/home/sprite/server.py"] })).await?;
    let proxy = Proxy::start(&cli).await?;
    eventually(SOON, async || proxy.echoes("up?").await).await.context("the servers are not up")?;
    Ok((world, cli, proxy))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_arrives_whole_and_so_do_five_hundred_at_once() -> anyhow::Result<()> {
    let (world, _cli, proxy) = world().await?;
    let mut down = proxy.connect(7002).await?;
    down.write_all(b"1024\n").await?;
    let (mut found, mut expected) = (Sha256::new(), Sha256::new());
    let mut buffer = vec![0; MIB];
    for n in 0..1024 {
        down.read_exact(&mut buffer).await.with_context(|| format!("it ended after {n} MiB"))?;
        found.update(&buffer);
        expected.update(block(n));
    }
    ensure!(down.read(&mut buffer).await? == 0, "more came than was sent");
    ensure!(found.finalize() == expected.finalize(), "the bytes are not those that were sent");

    // The other way, with an answer after our end: half-close.
    let mut up = proxy.connect(7003).await?;
    let mut sent = Sha256::new();
    for n in 0..256 {
        let block = block(n);
        sent.update(&block);
        up.write_all(&block).await?;
    }
    up.shutdown().await?;
    let mut answer = String::new();
    up.read_to_string(&mut answer).await?;
    ensure!(answer == format!("{:x}", sent.finalize()), "the answer to a half-closed upload: {answer:?}");

    let mut open = Vec::new();
    for n in 0..500 {
        let mut stream = proxy.connect(7001).await?;
        stream.write_all(format!("connection {n:05}").as_bytes()).await?;
        open.push((n, stream));
    }
    for (n, stream) in &mut open {
        let mut answer = [0; 16];
        tokio::time::timeout(SOON, stream.read_exact(&mut answer))
            .await
            .with_context(|| format!("number {n}"))??;
        ensure!(answer[..] == *format!("connection {n:05}").as_bytes(), "number {n} got another's answer");
    }
    drop(open);
    drop(proxy);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_survives_sleep_and_a_gateway_that_is_killed() -> anyhow::Result<()> {
    let (mut world, cli, mut proxy) = world().await?;
    for depth in ["warm", "cold"] {
        world.sleep("web", depth).await?;
        eventually(SOON, async || proxy.echoes("awake?").await)
            .await
            .with_context(|| format!("from {depth}"))?;
        proxy.until(&format!("web was {depth} and woke in")).await?;
    }
    ensure!(world.status("web").await? == "running");

    let mut down = proxy.connect(7002).await?;
    down.write_all(b"100000\n").await?;
    down.read_exact(&mut vec![0; MIB]).await?;
    world.kill_gateway()?;
    let broken = async {
        let mut buffer = vec![0; MIB];
        loop {
            match down.read(&mut buffer).await {
                Ok(0) => return "an ordinary end".to_owned(),
                Ok(_) => {}
                Err(error) => return format!("{:?}", error.kind()),
            }
        }
    };
    let end = tokio::time::timeout(SOON, broken).await.context("the client is left hanging")?;
    ensure!(end == "ConnectionReset", "a part looks like the whole: {end}");
    proxy.until("connection lost").await?;

    // Whoever comes while the gateway is away is kept waiting, and served when it is back.
    let mut early = proxy.connect(7001).await?;
    early.write_all(b"early").await?;
    proxy.until("could not reach").await?;
    world.start_gateway().await?;
    let mut answer = [0; 5];
    tokio::time::timeout(SOON, early.read_exact(&mut answer))
        .await
        .context("the early one is not served")??;
    ensure!(&answer == b"early" && proxy.echoes("again").await?);

    let taken = proxy.ports[0].to_string();
    let said = cli.run(&["proxy", &format!("{taken}:7001"), "-s", "web"]).await?.bad(1)?;
    ensure!(said.contains("Choose another local port"), "{said}");
    let nobody = cli.run_with(b"x", &["proxy", "-s", "web", "-W", ":9"]).await?.bad(1)?;
    ensure!(nobody.contains("can't be reached") || nobody.contains("refused"), "{nobody}");
    let joined =
        cli.run_with(b"through stdin", &["proxy", "-s", "web", "--stdio", "localhost:7003"]).await?.good()?;
    ensure!(joined == format!("{:x}", Sha256::digest(b"through stdin")), "{joined}");
    proxy.child.kill().await?;
    world.stop().await
}
