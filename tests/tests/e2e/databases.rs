//! What people reach through `sprite proxy`: databases and SSH, with their own clients.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use test_support::{Cli, Options, World, eventually};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const SOON: Duration = Duration::from_secs(60);

/// A proxy to one port of the sprite, and the port here.
async fn proxy(cli: &Cli, port: u16) -> anyhow::Result<(Child, u16)> {
    let mut child = cli.command(&["proxy", &format!("0:{port}")]).stderr(Stdio::piped()).spawn()?;
    let mut says = BufReader::new(child.stderr.take().context("piped")?).lines();
    let line = says.next_line().await?.context("it ended")?;
    let local = line.split(':').nth(1).and_then(|rest| rest.split(',').next()).context("a port")?.parse()?;
    // What it says later fills no pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = says.next_line().await {} });
    Ok((child, local))
}

async fn output(command: &mut Command) -> anyhow::Result<String> {
    let output =
        tokio::time::timeout(SOON, command.stdin(Stdio::null()).kill_on_drop(true).output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn world() -> anyhow::Result<(World, Cli)> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", "db", "--skip-console"]).await?.good()?;
    Ok((world, cli))
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_works_through_a_proxy_and_survives_sleep() -> anyhow::Result<()> {
    let (world, cli) = world().await?;
    // PostgreSQL refuses to run as root.
    let setup = "set -e; bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); mkdir -p /home/sprite/pg; chown 1000:1000 /home/sprite/pg; \
        as='setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/tmp LC_ALL=C'; \
        cd /tmp; $as $bin/initdb -D /home/sprite/pg/data -U tester -A trust >/dev/null; echo $bin";
    let bin = cli.run(&["exec", "sh", "-c", setup]).await?.good()?;
    let run = format!(
        "cd /tmp; exec setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=/tmp LC_ALL=C {}/postgres -D /home/sprite/pg/data -k /tmp -c listen_addresses=127.0.0.1",
        bin.trim()
    );
    cli.run(&["services", "create", "postgres", "--no-stream", "--", "sh", "-c", &run]).await?.good()?;
    let (_proxy, port) = proxy(&cli, 5432).await?;
    let psql = |sql: &str| {
        let mut command = Command::new("psql");
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "tester",
            "-d",
            "postgres",
            "-XAtqc",
            sql,
        ]);
        command
    };
    eventually(SOON, async || Ok(output(&mut psql("select 1")).await.is_ok()))
        .await
        .context("PostgreSQL is not up")?;
    output(&mut psql("create table t as select n, md5(n::text) as sum from generate_series(1, 200000) as n"))
        .await?;
    let rows = output(&mut psql("select n, sum from t order by n")).await?;
    ensure!(
        rows.lines().count() == 200_000 && rows.lines().last().is_some_and(|row| row.starts_with("200000|"))
    );
    for depth in ["warm", "cold"] {
        world.sleep("db", depth).await?;
        eventually(SOON, async || {
            Ok(output(&mut psql("select count(*) from t")).await.is_ok_and(|count| count == "200000\n"))
        })
        .await
        .with_context(|| format!("after {depth}"))?;
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_works_through_a_proxy() -> anyhow::Result<()> {
    let (world, cli) = world().await?;
    cli.run(&[
        "services",
        "create",
        "redis",
        "--no-stream",
        "--",
        "redis-server",
        "--port",
        "6379",
        "--save",
        "",
        "--dir",
        "/tmp",
    ])
    .await?
    .good()?;
    let (_proxy, port) = proxy(&cli, 6379).await?;
    let redis = |arguments: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
        command
    };
    eventually(SOON, async || Ok(output(&mut redis(&["ping"])).await.is_ok_and(|answer| answer == "PONG\n")))
        .await
        .context("Redis is not up")?;
    output(&mut redis(&["set", "key", "a value with ünicode"])).await?;
    world.sleep("db", "warm").await?;
    ensure!(output(&mut redis(&["get", "key"])).await?.contains("nicode"), "its memory is gone");
    let count = output(&mut redis(&[
        "eval",
        "for n=1,50000 do redis.call('rpush','l',n) end return redis.call('llen','l')",
        "0",
    ]))
    .await?;
    ensure!(count.trim() == "50000", "{count}");
    ensure!(output(&mut redis(&["lrange", "l", "0", "-1"])).await?.lines().count() == 50_000);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_works_with_a_proxy_command() -> anyhow::Result<()> {
    let (world, cli) = world().await?;
    let key = cli.home().join("key");
    output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await?;
    // Without a shadow file, the system invents one in which root is locked.
    let setup = "set -e; mkdir -p /home/sprite/ssh /run/sshd; chmod 700 /home/sprite/ssh; \
        grep -q '^sshd:' /etc/passwd || echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin' >> /etc/passwd; \
        (umask 077; echo 'root:*:19000:0:99999:7:::' > /etc/shadow); \
        ssh-keygen -q -t ed25519 -N '' -f /home/sprite/ssh/host; \
        printf 'Port 22\\nListenAddress 127.0.0.1\\nHostKey /home/sprite/ssh/host\\nAuthorizedKeysFile /home/sprite/ssh/keys\\nStrictModes no\\nUsePAM no\\nPermitRootLogin yes\\nPidFile none\\nSubsystem sftp internal-sftp\\n' > /home/sprite/ssh/config";
    cli.run(&["exec", "sh", "-c", setup]).await?.good()?;
    cli.run(&["exec", "--file", "key.pub:/home/sprite/ssh/keys", "true"]).await?.good()?;
    cli.run(&[
        "services",
        "create",
        "ssh",
        "--no-stream",
        "--",
        "sh",
        "-c",
        "mkdir -p /run/sshd; exec /usr/sbin/sshd -D -e -f /home/sprite/ssh/config",
    ])
    .await?
    .good()?;
    let command = format!("ProxyCommand={} proxy -s db -W :22", cli.program().display());
    let ssh = |arguments: &[&str]| {
        let mut ssh = Command::new("ssh");
        ssh.env_clear().envs(cli.environment().iter().cloned()).args(["-F", "none", "-i"]).arg(&key);
        ssh.args(["-o", &command, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "root@db"]).args(arguments);
        ssh
    };
    let up = eventually(SOON, async || {
        Ok(output(&mut ssh(&["echo", "in"])).await.is_ok_and(|answer| answer == "in\n"))
    })
    .await;
    if up.is_err() {
        let logs = cli.run(&["services", "logs", "ssh"]).await?;
        let last = output(&mut ssh(&["echo", "in"])).await;
        anyhow::bail!("SSH is not up: {last:?}\n{logs:?}");
    }
    ensure!(output(&mut ssh(&["hostname"])).await? == cli.run(&["exec", "hostname"]).await?.good()?);
    let bytes = output(&mut ssh(&["head", "-c", "20000000", "/dev/zero"])).await?;
    ensure!(bytes.len() == 20_000_000, "{} bytes", bytes.len());
    ensure!(!ssh(&["exit", "9"]).stdin(Stdio::null()).status().await?.success());
    world.sleep("db", "warm").await?;
    ensure!(output(&mut ssh(&["echo", "woken"])).await? == "woken\n");
    world.stop().await
}
