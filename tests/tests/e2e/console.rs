//! `sprite exec`, `console`, `sessions` and `attach`: with pipes, and in a real terminal (tmux).

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use test_support::{Cli, Options, World, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const SOON: Duration = Duration::from_secs(30);

async fn world_with(name: &str) -> anyhow::Result<(World, Cli)> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", name, "--skip-console"]).await?.good()?;
    Ok((world, cli))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_forms_that_users_learned_work_as_written() -> anyhow::Result<()> {
    let (world, cli) = world_with("web").await?;
    let out = async |arguments: &[&str]| cli.run(arguments).await?.good();
    ensure!(out(&["exec", "python3", "-c", "print('hello')"]).await? == "hello\n");
    let lines = out(&["exec", "for i in {1..3}; do date +%T; sleep 0.1; done"]).await?;
    ensure!(lines.lines().count() == 3, "{lines}");
    ensure!(out(&["exec", "--", "ls", "-la", "/"]).await?.contains("home"));
    ensure!(out(&["x", "ls", "-la", "/"]).await?.contains("home"), "the command's own options were eaten");
    ensure!(out(&["exec", "pwd"]).await?.contains("/home"));
    ensure!(
        out(&["exec", "-dir", "/tmp", "-env", "A=1,2,B=x y", "sh", "-c", "echo $A $B; pwd"]).await?
            == "1,2 x y\n/tmp\n"
    );
    ensure!(out(&["exec", "-s", "web", "echo", "-s", "other", "--json"]).await? == "-s other --json\n");
    ensure!(out(&["exec", "printf", "%s|", "a b", "", "*"]).await? == "a b||*|");
    ensure!(
        out(&["exec", "--http-post", "--env", "A=b", "sh", "-c", "echo $A; echo err >&2"]).await? == "b\n"
    );

    for (arguments, code) in [
        (&["exec", "exit 7"][..], 7),
        (&["exec", "no-such-program"], 127),
        (&["exec", "/etc/passwd"], 126),
        (&["exec", "kill -TERM $$"], 143),
        (&["exec", "--http-post", "exit 9"], 9),
    ] {
        let run = cli.run(arguments).await?;
        ensure!(run.code == code && run.stdout.is_empty(), "{arguments:?}: {run:?}");
    }
    let both = cli.run(&["exec", "echo out; echo err >&2"]).await?;
    ensure!((both.stdout.as_str(), both.stderr.as_str()) == ("out\n", "err\n"), "{both:?}");
    ensure!(cli.run(&["exec", "-s", "none", "true"]).await?.bad(1)?.contains("no sprite"));
    ensure!(cli.run(&["exec", "-id", "none"]).await?.bad(1)?.contains("none"));

    // stdin: passed on, ended, and not waited for.
    let body = "a line of some length\n".repeat(100_000);
    let counted = cli.run_with(body.as_bytes(), &["exec", "wc", "-c"]).await?.good()?;
    ensure!(counted.trim() == body.len().to_string(), "{counted}");
    ensure!(cli.run_with(body.as_bytes(), &["exec", "cat"]).await?.good()? == body);
    ensure!(cli.run_with(body.as_bytes(), &["exec", "true"]).await?.code == 0, "waits for stdin to be taken");
    ensure!(cli.run_with(b"given", &["exec", "--http-post", "cat"]).await?.good()? == "given");
    ensure!(cli.run(&["exec", "--no-stdin", "cat"]).await?.good()?.is_empty());
    let large = out(&["exec", "head", "-c", "20000000", "/dev/zero"]).await?;
    ensure!(large.len() == 20_000_000, "{} bytes of output", large.len());
    ensure!(cli.run(&["exec", "true"]).await?.stderr.is_empty(), "we say something of our own");

    // Files go along, with their modes.
    std::fs::write(cli.home().join("run.sh"), "#!/bin/sh\necho from a file\n")?;
    Command::new("chmod").args(["750"]).arg(cli.home().join("run.sh")).status()?;
    let ran = out(&["exec", "--file", "run.sh:/tmp/new/run.sh", "/tmp/new/run.sh"]).await?;
    ensure!(ran == "from a file\n", "{ran}");
    ensure!(out(&["exec", "stat", "-c", "%a", "/tmp/new/run.sh"]).await? == "750\n");
    eventually(SOON, async || Ok(cli.run(&["exec", "--json"]).await?.json()? == serde_json::json!([])))
        .await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_command_and_a_broken_pipe_ends_quietly() -> anyhow::Result<()> {
    let (world, cli) = world_with("web").await?;
    let started = async |line: &str| {
        let mut child = cli.command(&["exec", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        ensure!(lines.next_line().await?.as_deref() == Some("up"));
        Ok((child, lines))
    };
    let send = |child: &tokio::process::Child, signal| -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(child.id().context("it runs")?)?), signal)?)
    };
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let (mut child, mut lines) =
            started(&format!("trap 'echo got {name}; exit 5' {name}; echo up; while :; do sleep 0.05; done"))
                .await?;
        send(&child, signal)?;
        let said = tokio::time::timeout(SOON, lines.next_line())
            .await
            .with_context(|| format!("{name} did not arrive"))??;
        ensure!(said == Some(format!("got {name}")), "{said:?}");
        ensure!(child.wait().await?.code() == Some(5));
    }
    // One that does not listen is left by the second.
    let (mut child, _lines) = started("trap '' INT; echo up; while :; do sleep 0.05; done").await?;
    send(&child, Signal::SIGINT)?;
    ensure!(
        tokio::time::timeout(Duration::from_millis(300), child.wait()).await.is_err(),
        "it left at the first"
    );
    send(&child, Signal::SIGINT)?;
    ensure!(tokio::time::timeout(SOON, child.wait()).await??.code() == Some(130));
    // One that does not read its stdin is reached all the same.
    let (mut child, _lines) = started("echo up; exec sleep 1000").await?;
    let mut stdin = child.stdin.take().context("piped")?;
    let flood = tokio::spawn(async move { while stdin.write_all(&[0; 65536]).await.is_ok() {} });
    tokio::time::sleep(Duration::from_millis(500)).await;
    send(&child, Signal::SIGTERM)?;
    ensure!(
        tokio::time::timeout(SOON, child.wait()).await.context("a full stdin keeps signals back")??.code()
            == Some(143)
    );
    flood.abort();

    let mut child = cli.command(&["exec", "yes"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().context("piped")?;
    stdout.read_exact(&mut [0; 1000]).await?;
    drop(stdout);
    let output = tokio::time::timeout(SOON, child.wait_with_output())
        .await
        .context("yes goes on without a reader")??;
    ensure!(output.status.code() == Some(141) && output.stderr.is_empty(), "{output:?}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_attached_to_and_killed() -> anyhow::Result<()> {
    let (world, cli) = world_with("web").await?;
    ensure!(cli.run(&["exec"]).await?.good()?.contains("nothing runs"));
    ensure!(cli.run(&["attach"]).await?.bad(1)?.contains("nothing runs"));
    let mut first = cli
        .command(&["exec", "-detachable", "echo begun; while read line; do echo heard $line; done; exit 6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(first.stdout.take().context("piped")?).lines();
    ensure!(lines.next_line().await?.as_deref() == Some("begun"));
    let sessions = cli.run(&["sessions", "list", "--json"]).await?.json()?;
    let id = sessions[0]["id"].as_str().context("a session has an id")?.to_owned();
    let table = cli.run(&["exec"]).await?.good()?;
    ensure!(table.contains(&id) && table.contains("  echo begun; while"), "{table}");

    // Whoever started it goes without a word; it stays, with what it said.
    first.kill().await?;
    let attached = cli.run_with(b"you\n", &["exec", "-id", &id]).await?;
    ensure!(attached.code == 6 && attached.stdout == "begun\nheard you\n", "{attached:?}");
    ensure!(cli.run(&["attach", &id]).await?.bad(1)?.contains(&id), "it has ended");

    let sleeper = cli.command(&["exec", "-detachable", "sleep 1000"]).stdout(Stdio::null()).spawn()?;
    eventually(SOON, async || Ok(cli.run(&["exec"]).await?.good()?.contains("sleep 1000"))).await?;
    let sessions = cli.run(&["s", "ls", "--json"]).await?.json()?;
    let id = sessions[0]["id"].as_str().context("a session has an id")?.to_owned();
    let killed = cli.run(&["sessions", "kill", &id, "--signal", "INT", "--timeout", "5s"]).await?;
    ensure!(killed.code == 0 && killed.stdout.is_empty() && killed.stderr.contains("SIGINT"), "{killed:?}");
    let output = tokio::time::timeout(SOON, sleeper.wait_with_output()).await??;
    ensure!(output.status.code() == Some(130), "{output:?}");
    ensure!(cli.run(&["sessions", "kill", &id]).await?.code == 1, "killed twice");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_a_command_opens_are_reachable_here() -> anyhow::Result<()> {
    let (world, cli) = world_with("web").await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let line = format!("exec python3 -u -m http.server --bind 127.0.0.1 {port}");
    let mut serving = cli.command(&["exec", &line]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let url = format!("http://127.0.0.1:{port}/");
    eventually(SOON, async || {
        Ok(world.client().get(&url).send().await.is_ok_and(|answer| answer.status() == 200))
    })
    .await
    .context("the port is not forwarded")?;
    kill(Pid::from_raw(i32::try_from(serving.id().context("it runs")?)?), Signal::SIGTERM)?;
    ensure!(serving.wait().await?.code() == Some(143));
    let mut serving = cli
        .command(&["exec", "--no-port-forward", &line])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut said = BufReader::new(serving.stdout.take().context("piped")?).lines();
    said.next_line().await?;
    ensure!(
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(),
        "forwarded although it was not to be"
    );
    serving.kill().await?;
    world.stop().await
}

/// A terminal with a shell of this machine in it.
struct Terminal {
    socket: String,
}

impl Terminal {
    async fn start(cli: &Cli) -> anyhow::Result<Self> {
        let socket = format!(
            "spr-{}-{}",
            std::process::id(),
            cli.home().file_name().context("named")?.to_string_lossy()
        );
        let terminal = Self { socket };
        let programs = cli.program().parent().context("the program is in a folder")?;
        let mut command = terminal.tmux();
        command.args([
            "new-session",
            "-d",
            "-x",
            "100",
            "-y",
            "30",
            "--",
            "env",
            "-i",
            "PS1=local> ",
            "TERM=screen-256color",
        ]);
        for (name, value) in cli.environment() {
            match name.as_str() {
                "PATH" => command.arg(format!("PATH={}:{value}", programs.display())),
                "LANG" => command.arg("LANG=C.UTF-8"),
                _ => command.arg(format!("{name}={value}")),
            };
        }
        let started = command.args(["LC_ALL=C.UTF-8", "sh", "-i"]).current_dir(cli.home()).output()?;
        ensure!(started.status.success(), "tmux: {}", String::from_utf8_lossy(&started.stderr));
        terminal.say(&["set", "-g", "status", "off"])?;
        terminal.until("local>").await?;
        Ok(terminal)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command
            .args(["-L", &self.socket, "-f", "/dev/null", "-u"])
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX");
        command
    }

    fn say(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = self.tmux().args(arguments).output()?;
        ensure!(output.status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Types a line.
    fn line(&self, text: &str) -> anyhow::Result<()> {
        self.say(&["send-keys", "-l", text])?;
        self.key("Enter")
    }

    fn key(&self, key: &str) -> anyhow::Result<()> {
        self.say(&["send-keys", key]).map(drop)
    }

    fn screen(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.say(&["capture-pane", "-p", "-J"])?.stdout).into_owned())
    }

    /// Waits until a line of the screen is or contains this.
    async fn until(&self, mark: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + SOON;
        loop {
            let screen = self.screen()?;
            if screen.contains(mark) {
                return Ok(screen);
            }
            if Instant::now() > deadline {
                bail!("the screen never had {mark:?}:\n{screen}");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until this is nowhere on the screen.
    async fn gone(&self, mark: &str) -> anyhow::Result<()> {
        eventually(SOON, async || Ok(!self.screen()?.contains(mark)))
            .await
            .with_context(|| format!("{mark:?} is still on the screen"))
    }

    /// Runs a line in whatever shell is there and waits for its result; the mark is made there, so that
    /// the line as it is typed does not have it.
    async fn answers(&self, line: &str, mark: &str) -> anyhow::Result<String> {
        self.line(line)?;
        self.until(mark).await
    }

    /// The `sprite` that runs in it.
    fn sprite(&self) -> anyhow::Result<Pid> {
        let shell = String::from_utf8(self.say(&["display-message", "-p", "#{pane_pid}"])?.stdout)?;
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim()))?;
        let child = children.split_whitespace().next().context("nothing runs in the terminal")?;
        Ok(Pid::from_raw(child.parse()?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.tmux().arg("kill-server").output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_is_a_terminal() -> anyhow::Result<()> {
    let (world, cli) = world_with("web").await?;
    let terminal = Terminal::start(&cli).await?;
    terminal.line("sprite console web")?;
    terminal.answers("PS1='there> '; echo in$((1))side; tty", "/dev/pts/").await?;
    terminal.until("in1side").await?;
    terminal.answers("stty size; echo $TERM", "screen-256color").await?;
    terminal.until("30 100").await?;
    terminal.say(&["resize-window", "-x", "120", "-y", "40"])?;
    eventually(SOON, async || Ok(terminal.answers("clear; stty size", "40 120").await.is_ok())).await?;

    terminal.line("clear; vi /tmp/note")?;
    terminal.until("~").await?;
    terminal.key("i")?;
    terminal.say(&["send-keys", "-l", "first line"])?;
    terminal.key("Enter")?;
    terminal.say(&["send-keys", "-l", "héllo ✓"])?;
    terminal.until("héllo ✓").await?;
    terminal.key("Escape")?;
    terminal.line(":wq")?;
    // What is typed while a program gives the terminal back may be thrown away.
    terminal.until("there>").await?;
    terminal.answers("clear; wc -l /tmp/note; cat /tmp/note", "2 /tmp/note").await?;
    terminal.until("héllo ✓").await?;

    terminal.line("clear; sleep 1000; echo code=$?")?;
    eventually(SOON, async || Ok(cli.run(&["exec", "pgrep -x sleep"]).await?.code == 0)).await?;
    terminal.key("C-c")?;
    terminal.until("there>").await?;
    terminal.answers("echo code=$?", "code=130").await?;
    terminal.line("clear; sleep 1000")?;
    eventually(SOON, async || Ok(cli.run(&["exec", "pgrep -x sleep"]).await?.code == 0)).await?;
    terminal.key("C-z")?;
    terminal.until("Stopped").await?;
    terminal.answers("jobs", "sleep 1000").await?;
    terminal.line("clear; fg")?;
    let goes_on = "[ \"$(ps -o stat= -C sleep | cut -c1)\" = S ]";
    eventually(SOON, async || Ok(cli.run(&["exec", goes_on]).await?.code == 0)).await.context("fg")?;
    terminal.key("C-c")?;
    terminal.until("there>").await?;
    terminal.answers("echo on$((1+1))", "on2").await?;

    // A character that arrives in pieces.
    let split = r#"clear; python3 -c "import sys,time
for b in 'sp\u00e4t \u2713 \U0001f980!'.encode(): sys.stdout.buffer.write(bytes([b])); sys.stdout.flush(); time.sleep(0.03)""#;
    for line in split.lines() {
        terminal.line(line)?;
    }
    terminal.until("spät ✓ 🦀!").await?;

    // A paste of a mebibyte arrives whole.
    let paste: String = (0..1 << 14).map(|n| format!("{n:063}\n")).collect();
    std::fs::write(cli.home().join("paste"), &paste)?;
    let expected = Command::new("sha256sum").arg(cli.home().join("paste")).output()?;
    let expected = String::from_utf8(expected.stdout)?.split_whitespace().next().context("a sum")?.to_owned();
    terminal
        .answers("clear; stty raw -echo; echo paste$((3)); head -c 1048576 | sha256sum; stty sane", "paste3")
        .await?;
    terminal.say(&["load-buffer", "-b", "big", &cli.home().join("paste").to_string_lossy()])?;
    terminal.say(&["paste-buffer", "-r", "-b", "big"])?;
    terminal.until(&expected).await?;
    terminal.until("there>").await?;
    terminal.answers("echo sa$((1))ne", "sa1ne").await?;
    terminal.line("exit 3")?;
    terminal.until("local>").await?;
    terminal.answers("echo code=$?; stty -a", "code=3").await?;
    let modes = terminal.until("icanon").await?;
    ensure!(!modes.contains("-icanon") && !modes.contains("-echo "), "the terminal is still raw:\n{modes}");
    drop(terminal);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminals_session_outlives_its_client() -> anyhow::Result<()> {
    let (mut world, cli) = world_with("web").await?;
    let terminal = Terminal::start(&cli).await?;
    terminal.line("sprite exec -tty bash")?;
    // What only this shell's memory knows.
    terminal.answers("X=$$; echo is$((4))here", "is4here").await?;
    terminal.key("C-\\")?;
    let left = terminal.until("Detached").await?;
    ensure!(left.contains("sprite attach"), "{left}");
    terminal.answers("echo code=$?", "code=0").await?;
    terminal.line("clear; sprite attach")?;
    terminal.until("is4here").await.context("what was on the screen is not replayed")?;
    terminal.answers("[ $X = $$ ] && echo sa$((1))me", "sa1me").await?;

    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        kill(terminal.sprite()?, signal)?;
        terminal.until("local>").await?;
        terminal.answers("echo code=$?; stty -a", &format!("code={}", 128 + signal as i32)).await?;
        let modes = terminal.until("icanon").await?;
        ensure!(!modes.contains("-icanon"), "the terminal is still raw after {signal}:\n{modes}");
        terminal.line("clear; sprite attach")?;
        terminal.answers("[ $X = $$ ] && echo sti$((1))ll", "sti1ll").await?;
    }

    world.kill_gateway()?;
    terminal.until("connection lost").await?;
    world.start_gateway().await?;
    // The screen is cleared and shown again; what is typed before that goes nowhere.
    terminal.gone("connection lost").await?;
    terminal
        .answers("clear; [ $X = $$ ] && echo aga$((1))in", "aga1in")
        .await
        .context("after the gateway's return")?;

    cli.run(&["sleep", "web"]).await?.good()?;
    terminal.until("press a key").await?;
    ensure!(world.status("web").await? == "warm", "coming back by itself undid the sleep");
    terminal.key("Space")?;
    terminal.gone("press a key").await?;
    terminal.answers("clear; [ $X = $$ ] && echo awa$((1))ke", "awa1ke").await.context("after the sleep")?;

    cli.run(&["sleep", "web", "--cold"]).await?.good()?;
    terminal.until(" ended").await?;
    terminal.answers("echo code=$?; stty -a", "code=1").await?;
    ensure!(!terminal.until("icanon").await?.contains("-icanon"));
    drop(terminal);
    world.stop().await
}
