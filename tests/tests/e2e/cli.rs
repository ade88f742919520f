//! The `sprite` command against a real system: what concerns accounts and sprites as a whole.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;
use test_support::{Cli, Options, World, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_tried_then_kept_and_never_shown() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::stranger()?;
    let api = world.api();
    let secret = world.token.rsplit('/').next().context("a token has a value")?;

    let wrong = cli.run_with(b"acme/xxxxx/none/spr_none\n", &["login", &api]).await?.bad(1)?;
    ensure!(wrong.contains("token") && !wrong.contains("spr_none"), "{wrong}");
    let file = cli.home().join(".sprites/sprites.json");
    ensure!(!file.exists(), "a wrong token was stored");
    let nobody = cli.run(&["--api", &api, "list"]).await?.bad(1)?;
    ensure!(nobody.contains("sprite login"), "{nobody}");

    let mut said = Vec::new();
    let line = format!("{}\n", world.token);
    said.push(cli.run_with(line.as_bytes(), &["login", &api]).await?);
    ensure!(said[0].code == 0 && said[0].stderr.contains("as acme"), "{said:?}");
    ensure!(std::fs::metadata(&file)?.mode() & 0o777 == 0o600, "others can read the token");
    ensure!(std::fs::metadata(cli.home().join(".sprites"))?.mode() & 0o777 == 0o700);

    // Without anything in the environment from here on.
    said.push(cli.run(&["list", "--debug"]).await?);
    said.push(cli.run(&["org", "list"]).await?);
    said.push(cli.run(&["info", "no-such-sprite", "--debug"]).await?);
    ensure!(said[1].code == 0 && said[1].stderr.contains("/v1/sprites"), "{said:?}");
    ensure!(said[2].stdout.contains("acme") && said[2].stdout.contains("file"), "{said:?}");
    ensure!(said[3].code == 1 && said[3].stderr.contains("no sprite with this name"), "{said:?}");
    for run in &said {
        ensure!(!run.stdout.contains(secret) && !run.stderr.contains(secret), "the token was shown: {run:?}");
    }

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
    ensure!(
        cli.run(&["list"]).await?.stderr.contains("private now"),
        "it is not said that others could read"
    );
    ensure!(std::fs::metadata(&file)?.mode() & 0o777 == 0o600, "the file is still open");

    let organization = world.mint("beta").await?;
    cli.run(&["--api", &api, "auth", "setup", "--token", &organization]).await?.good()?;
    let listed = cli.run(&["org", "list", "--json"]).await?.json()?;
    ensure!(listed.as_array().is_some_and(|orgs| orgs.len() == 2), "{listed}");
    let other = cli.run(&["create", "-o", "acme", "--skip-console", "theirs", "--json"]).await?.json()?;
    ensure!(other["organization"] == "acme", "-o chooses the token: {other}");
    let wrong = cli.run(&["--api", &api, "-o", "acme", "auth", "setup", "--token", &organization]).await?;
    ensure!(wrong.bad(1)?.contains("not of acme"));

    ensure!(cli.run(&["org", "keyring", "enable"]).await?.bad(1)?.contains("no keyring"));
    cli.run(&["org", "keyring", "disable"]).await?.good()?;
    cli.run(&["org", "logout", "-o", "beta"]).await?.good()?;
    cli.run(&["logout"]).await?.good()?;
    ensure!(cli.run(&["--api", &api, "list"]).await?.code == 1, "the token is still there");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprites_life_from_the_command_line() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    ensure!(cli.run(&["info"]).await?.bad(1)?.contains("sprite use NAME"), "it is not said how to choose");

    let made = cli.run(&["create", "web", "--label", "a", "--label", "b=c", "--json"]).await?.json()?;
    ensure!(made["name"] == "web" && made["labels"] == serde_json::json!(["a", "b=c"]), "{made}");
    ensure!(cli.run(&["create", "web", "--skip-console"]).await?.bad(1)?.contains("name"));
    ensure!(cli.run(&["create", "Not_A_Name"]).await?.code == 1);
    // The new sprite is the one that is meant.
    ensure!(cli.run(&["info"]).await?.good()?.contains("default (members"));
    ensure!(cli.run(&["url", "update", "--auth", "public"]).await?.good()?.contains("public"));
    ensure!(cli.run(&["config", "update", "--url-auth", "sprite"]).await?.good()?.contains("members"));
    ensure!(
        cli.run(&["config", "update", "--clear-labels", "--json"]).await?.json()?["labels"]
            == serde_json::json!([])
    );
    ensure!(
        cli.run(&["url", "--json"]).await?.json()?["url"].as_str().is_some_and(|url| url.contains("web-"))
    );

    for n in 0..3 {
        cli.run(&["create", "--skip-console", &format!("other-{n}")]).await?.good()?;
    }
    let listed = cli.run(&["ls", "--prefix", "other-", "--json"]).await?.json()?;
    ensure!(listed.as_array().is_some_and(|all| all.len() == 3), "{listed}");
    let table = cli.run(&["list"]).await?.good()?;
    ensure!(table.lines().count() == 5 && table.starts_with("NAME"), "{table}");

    // `.sprite` counts here and below; flags come first, the remembered one last.
    cli.run(&["use", "other-1"]).await?.good()?;
    ensure!(cli.run(&["use", "nothing"]).await?.code == 1, "a name that is none was taken");
    let below = cli.home().join("a/b");
    std::fs::create_dir_all(&below)?;
    let info = |arguments: &'static [&'static str]| {
        let mut command = cli.command(arguments);
        command.current_dir(&below);
        async move { Ok::<Value, anyhow::Error>(serde_json::from_slice(&command.output().await?.stdout)?) }
    };
    ensure!(info(&["info", "--json"]).await?["name"] == "other-1");
    ensure!(info(&["-sprite", "web", "info", "--json"]).await?["name"] == "web");
    ensure!(info(&["info", "other-0", "--json"]).await?["name"] == "other-0");
    cli.run(&["use", "--unset"]).await?.good()?;
    ensure!(info(&["info", "--json"]).await?["name"] == "other-2", "the last one made is remembered");

    ensure!(cli.run(&["destroy", "web"]).await?.bad(1)?.contains("--force"), "destroyed without being asked");
    ensure!(
        cli.run(&["destroy", "--force"]).await?.bad(1)?.contains("Name it"),
        "destroyed what was only remembered"
    );
    cli.run(&["destroy", "--force", "other-2"]).await?.good()?;
    ensure!(cli.run(&["info", "other-2"]).await?.code == 1);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    ensure!(cli.run(&["creat"]).await?.bad(2)?.contains("'create'"), "no verb is suggested");
    ensure!(cli.run(&["list", "--prefx", "a"]).await?.bad(2)?.contains("--prefix"), "no option is suggested");
    ensure!(cli.run(&["exec", "--nonsense", "ls"]).await?.code == 2);
    let help = cli.run(&["--help"]).await?.good()?;
    ensure!(help.contains("Inside a sprite:") && help.contains("Examples:"), "{help}");
    ensure!(cli.run(&["help", "exec"]).await?.good()?.contains("sprite exec --tty bash"));
    ensure!(cli.run(&["version"]).await?.good()?.starts_with("sprite "));
    ensure!(cli.run(&["upgrade"]).await?.bad(1)?.contains("make build"));

    let gone = cli.run(&["--api", "http://127.0.0.1:1", "list"]).await?.bad(1)?;
    ensure!(
        gone.contains("could not reach http://127.0.0.1:1") && gone.contains("SPRITES_API_URL"),
        "{gone}"
    );
    ensure!(cli.run(&["--api", "ftp://x", "list"]).await?.bad(1)?.contains("neither http"));
    cli.run(&["create", "web", "--skip-console"]).await?.good()?;
    ensure!(cli.run(&["restore", "v1"]).await?.bad(1)?.contains("no checkpoint v1"));
    ensure!(world.status("web").await? == "cold", "what is not there woke the sprite");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_changes_as_they_happen() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", "one", "--skip-console"]).await?.good()?;
    let mut watch = cli.command(&["list", "-w", "--json"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("piped")?).lines();
    let mut until = async |name: &str, status: &str| {
        let work = async {
            while let Some(line) = lines.next_line().await? {
                let line: Value = serde_json::from_str(&line)?;
                if line["name"] == name && line["status"] == status {
                    return Ok::<(), anyhow::Error>(());
                }
            }
            anyhow::bail!("the watch ended")
        };
        tokio::time::timeout(SOON, work).await.with_context(|| format!("{name} was not shown {status}"))?
    };
    until("one", "cold").await?;
    cli.run(&["create", "two", "--skip-console"]).await?.good()?;
    until("two", "cold").await?;
    cli.run(&["wake", "two"]).await?.good()?;
    until("two", "running").await?;
    let why = cli.run(&["why", "two", "--json"]).await?.json()?;
    ensure!(why["state"] == "running" || why["state"] == "warm", "{why}");
    cli.run(&["sleep", "two", "--cold"]).await?.good()?;
    until("two", "cold").await?;
    cli.run(&["destroy", "two", "--force"]).await?.good()?;
    until("two", "deleted").await?;
    drop(watch);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_defined_and_controlled() -> anyhow::Result<()> {
    let world = World::start(Options { idle: Duration::from_secs(60), ..Options::default() }).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", "web", "--skip-console"]).await?.good()?;
    let create = cli
        .run(&[
            "services",
            "create",
            "talker",
            "--env",
            "A=1,2,B=x",
            "--duration",
            "1s",
            "--",
            "/bin/sh",
            "-c",
            "echo $A $B; echo oops >&2; exec sleep 1000",
        ])
        .await?;
    ensure!(create.code == 0 && create.stdout == "1,2 x\n", "{create:?}");
    ensure!(create.stderr.contains("started") && create.stderr.contains("oops"), "{create:?}");
    let service = cli.run(&["services", "get", "talker", "--json"]).await?.json()?;
    ensure!(service["state"]["status"] == "running" && service["env"]["A"] == "1,2", "{service}");
    cli.run(&[
        "services",
        "create",
        "top",
        "--cmd",
        "/bin/sleep",
        "--args",
        "1000",
        "--needs",
        "talker",
        "--http-port",
        "9000",
        "--dir",
        "/tmp",
        "--no-stream",
    ])
    .await?
    .good()?;
    let table = cli.run(&["services", "list"]).await?.good()?;
    ensure!(table.contains("9000") && table.contains("/bin/sleep 1000"), "{table}");
    ensure!(cli.run(&["services", "delete", "talker"]).await?.code == 1, "a needed service was deleted");
    ensure!(cli.run(&["services", "signal", "talker", "nonsense"]).await?.code == 1);
    cli.run(&["services", "stop", "talker", "--timeout", "2s"]).await?.good()?;
    let status = async |name: &str| {
        let service = cli.run(&["services", "get", name, "--json"]).await?.json()?;
        Ok::<_, anyhow::Error>(service["state"]["status"].as_str().unwrap_or_default().to_owned())
    };
    ensure!(status("talker").await? == "stopped");
    cli.run(&["services", "start", "talker", "--no-stream"]).await?.good()?;
    cli.run(&["services", "restart", "talker", "--no-stream"]).await?.good()?;
    eventually(SOON, async || Ok(status("talker").await? == "running")).await?;
    let logs = cli.run(&["services", "logs", "talker", "-n", "50"]).await?;
    ensure!(logs.stdout.contains("1,2 x") && logs.stderr.contains("oops"), "{logs:?}");
    cli.run(&["services", "rm", "top"]).await?.good()?;
    cli.run(&["services", "rm", "talker"]).await?.good()?;
    ensure!(cli.run(&["services", "list", "--json"]).await?.json()? == serde_json::json!([]));
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_the_token_where_no_process_list_shows_it() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let cli = Cli::new(&world)?;
    cli.run(&["create", "web", "--skip-console"]).await?.good()?;
    ensure!(cli.run(&["api", "/v1/sprites/web"]).await?.json()?["name"] == "web");
    let put = cli
        .run_with(br#"{"labels":["x"]}"#, &["api", "/v1/sprites/web", "--", "-X", "PUT", "-d", "@-"])
        .await?;
    ensure!(put.json()?["labels"] == serde_json::json!(["x"]));
    ensure!(cli.run(&["api", "-s", "web", "/why", "-X", "GET"]).await?.json()?["state"] == "cold");
    ensure!(cli.run(&["api", "/v1/sprites/none", "--", "-f"]).await?.code == 22, "curl's own code is kept");

    // A call that stays open, to look at while it runs.
    let arguments = ["api", "/v1/sprites", "--", "-N", "-H", "Accept: application/x-ndjson"];
    let mut open = cli.command(&arguments).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(open.stdout.take().context("piped")?).lines();
    lines.next_line().await?.context("the watch says something")?;
    let id = open.id().context("it runs")?;
    let shown = std::fs::read(format!("/proc/{id}/cmdline"))?;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    ensure!(shown.contains("curl") && shown.contains("/v1/sprites"), "{shown}");
    let secret = world.token.rsplit('/').next().context("a token has a value")?;
    ensure!(!shown.contains(secret), "the token is in the process list");
    drop(open);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_when_it_is_named() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let mut cli = Cli::new(&world)?;
    let api = format!("https://api.sprites.localhost:{}", world.https);
    let ca = world.ca().to_string_lossy().into_owned();
    cli.set("SPRITES_API_URL", &api);
    let untrusted = cli.run(&["list"]).await?.bad(1)?;
    ensure!(untrusted.to_lowercase().contains("certificate") || untrusted.contains("issuer"), "{untrusted}");
    cli.run(&["--cacert", &ca, "list"]).await?.good()?;
    cli.run(&["--cacert", &ca, "create", "web", "--skip-console"]).await?.good()?;
    ensure!(cli.run(&["--cacert", "/etc/hostname", "list"]).await?.bad(1)?.contains("no certificate"));
    cli.set("SSL_CERT_FILE", &ca);
    ensure!(cli.run(&["info", "web", "--json"]).await?.json()?["name"] == "web");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_knows_verbs_and_sprites() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let mut cli = Cli::new(&world)?;
    cli.run(&["create", "web-one", "--skip-console"]).await?.good()?;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        ensure!(cli.run(&["completion", shell]).await?.good()?.contains("sprite"), "{shell}");
    }
    cli.set("COMPLETE", "fish");
    let verbs = cli.run(&["--", "sprite", "ser"]).await?.good()?;
    ensure!(verbs.contains("services"), "{verbs}");
    let names = cli.run(&["--", "sprite", "info", "web"]).await?.good()?;
    ensure!(names.contains("web-one"), "{names}");
    world.stop().await
}
