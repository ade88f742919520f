//! Checkpoints, restores and forks. Nothing here knows which driver runs the sprites, unless it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use test_support::{Cli, Options, World, eventually};

const SOON: Duration = Duration::from_secs(60);

/// What a tree is, to the last bit of its metadata, in one hash for each of its names.
const MANIFEST: &str = r#"
import hashlib, json, os, stat, sys
def tell(path):
    meta = os.lstat(path)
    what = [stat.S_IFMT(meta.st_mode), stat.S_IMODE(meta.st_mode), meta.st_uid, meta.st_gid, meta.st_nlink]
    if stat.S_ISLNK(meta.st_mode): what.append(os.readlink(path))
    if stat.S_ISREG(meta.st_mode): what += [meta.st_size, hashlib.sha256(open(path, 'rb').read()).hexdigest()]
    if not stat.S_ISDIR(meta.st_mode): what.append(meta.st_mtime_ns)
    if stat.S_ISREG(meta.st_mode) or stat.S_ISDIR(meta.st_mode): what.append(sorted((n, os.getxattr(path, n).hex()) for n in os.listxattr(path) if n.startswith('user.')))
    return what
top, found = sys.argv[1], {}
for at, directories, files in os.walk(top):
    for name in directories + files:
        path = os.path.join(at, name)
        found[ascii(os.path.relpath(path, top))] = ascii(tell(path))
print(json.dumps(found, sort_keys=True))
"#;

/// A tree with everything in it that a copy could lose.
const TREE: &str = r#"set -e; mkdir -p /home/sprite/t/a/b/c /home/sprite/t/empty; cd /home/sprite/t
    echo one > a/one; chmod 4750 a/one; ln a/one a/b/one-too; ln -s ../../outside a/link; ln -s /etc/passwd a/b/c/out
    mkfifo a/fifo; chmod 640 a/fifo; head -c 300000 /dev/urandom > a/random; chmod 555 a/b/c
    truncate -s 1G sparse; printf x | dd of=sparse bs=1 seek=700000000 conv=notrunc 2>/dev/null
    touch -d '2001-02-03 04:05:06.789' a/one
    python3 -c "import os; os.setxattr('a/random', 'user.colour', b'blue'); open(b'not \xff text', 'w').write('x')"
    setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'echo mine > /tmp/mine' && mv /tmp/mine a/mine"#;

struct Sprites {
    world: World,
    cli: Cli,
}

impl Sprites {
    async fn start(agent: &str) -> anyhow::Result<Self> {
        let options = Options { agent: agent.to_owned(), idle: Duration::from_secs(5), ..Options::default() };
        let world = World::start(options).await?;
        Ok(Self { cli: Cli::new(&world)?, world })
    }

    /// What a script prints inside; it must end well.
    async fn run(&self, sprite: &str, script: &str) -> anyhow::Result<String> {
        self.cli.run(&["-s", sprite, "exec", "sh", "-c", script]).await?.good()
    }

    /// The same, as soon as that is possible.
    async fn patiently(&self, sprite: &str, script: &str) -> anyhow::Result<String> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            match self.run(sprite, script).await {
                Err(_) if tokio::time::Instant::now() < deadline => {}
                other => return other,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn manifest(&self, sprite: &str, tree: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let text = self.cli.run(&["-s", sprite, "exec", "python3", "-c", MANIFEST, tree]).await?.good()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Takes a checkpoint and returns its id.
    async fn checkpoint(&self, sprite: &str) -> anyhow::Result<String> {
        let (status, last) =
            self.world.call("POST", &format!("/v1/sprites/{sprite}/checkpoint"), Some(json!({}))).await?;
        ensure!(status == 200 && last["type"] == "complete", "{status} {last}");
        let said = last["data"].as_str().context("it says which")?;
        Ok(said.rsplit(' ').next().context("its id is last")?.to_owned())
    }

    async fn restore(&self, sprite: &str, id: &str) -> anyhow::Result<()> {
        let path = format!("/v1/sprites/{sprite}/checkpoints/{id}/restore");
        let (status, last) = self.world.call("POST", &path, None).await?;
        ensure!(status == 200 && last["type"] == "complete", "{status} {last}");
        Ok(())
    }

    async fn list(&self, sprite: &str, query: &str) -> anyhow::Result<Vec<Value>> {
        let path = format!("/v1/sprites/{sprite}/checkpoints{query}");
        let (status, list) = self.world.call("GET", &path, None).await?;
        ensure!(status == 200, "{status} {list}");
        Ok(list.as_array().context("a list")?.clone())
    }

    async fn ids(&self, sprite: &str, query: &str) -> anyhow::Result<Vec<String>> {
        let ids = self.list(sprite, query).await?;
        Ok(ids.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect())
    }

    async fn status(&self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<(u16, String)> {
        let (status, answer) = self.world.call(method, path, body).await?;
        Ok((status, answer["error"].as_str().unwrap_or_default().to_owned()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_brings_back_exactly_what_was_there() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    let (world, cli) = (&sprites.world, &sprites.cli);
    world.create("web", "public").await?;
    sprites.run("web", TREE).await?;
    cli.run(&["-s", "web", "services", "create", "kept", "--no-stream", "--", "sleep", "1000"])
        .await?
        .good()?;
    let before = sprites.manifest("web", "/home/sprite/t").await?;
    let epoch = world.why("web").await?["epoch"].as_u64().context("an epoch")?;
    ensure!(before.len() > 12, "{before:?}");
    // Nothing inside notices.
    let mut session =
        cli.command(&["-s", "web", "exec", "sh", "-c", "while :; do sleep 0.01; done"]).spawn()?;
    ensure!(sprites.checkpoint("web").await? == "v0");
    ensure!(session.try_wait()?.is_none(), "the session ended");
    let inside = sprites.manifest("web", "/.sprite/checkpoints/v0/home/sprite/t").await?;
    ensure!(inside == before, "inside, the checkpoint differs");
    ensure!(
        cli.run(&["-s", "web", "exec", "touch", "/.sprite/checkpoints/v0/x"]).await?.code != 0,
        "a checkpoint can be written to"
    );

    sprites
        .run("web", "cd /home/sprite/t; rm -rf a/b sparse; echo two > a/one; ln -s x new; mv a/random empty; touch /root/y")
        .await?;
    cli.run(&["-s", "web", "services", "delete", "kept"]).await?.good()?;
    sprites.restore("web", "v0").await?;
    ensure!(world.status("web").await? == "cold", "it runs, though nobody needs it");
    session.wait().await?;
    ensure!(sprites.manifest("web", "/home/sprite/t").await? == before, "it is not as it was");
    ensure!(!cli.run(&["-s", "web", "exec", "ls", "/root/y"]).await?.code.eq(&0), "a new file stayed");
    ensure!(world.why("web").await?["epoch"].as_u64() > Some(epoch), "the epoch is the same");
    let (_, listed) = world.call("GET", "/v1/sprites/web/exec", None).await?;
    ensure!(listed["count"] == 0, "a session is left: {listed}");
    let services = cli.run(&["-s", "web", "services", "list"]).await?.good()?;
    ensure!(services.contains("kept"), "services are not those of the checkpoint: {services}");

    // What was there until then is a checkpoint, too, and can be had back.
    ensure!(sprites.ids("web", "").await? == ["v0"]);
    let all = sprites.list("web", "?includeAuto=true").await?;
    let automatic = all.iter().find(|one| one["is_auto"] == true).context("an automatic one")?;
    let id = automatic["id"].as_str().context("an id")?;
    ensure!(id.starts_with("auto-") && automatic["comment"].as_str().is_some_and(|text| text.contains("v0")));
    sprites.restore("web", id).await?;
    ensure!(sprites.run("web", "cat /home/sprite/t/a/one; ls /root").await? == "two\ny\n");
    sprites.world.stop().await
}

/// Writes rows as fast as it can, each in a transaction of its own.
const WRITER: &str = "import sqlite3, sys
db = sqlite3.connect('/home/sprite/rows.db'); db.execute('pragma journal_mode=' + sys.argv[1]); db.execute('create table if not exists rows (n integer primary key, text)')
while True:
    with db: db.execute('insert into rows (text) values (?)', ('x' * 500,))";
/// Opens a database, or a copy of one in a checkpoint, as after a power cut, and counts its rows.
const CHECK: &str = "import glob, os, shutil, sqlite3, sys
if len(sys.argv) > 1:
    os.makedirs('/tmp/copy')
    for path in glob.glob(sys.argv[1] + '/rows.db*'): shutil.copy(path, '/tmp/copy')
db = sqlite3.connect('/tmp/copy/rows.db' if len(sys.argv) > 1 else '/home/sprite/rows.db')
print(db.execute('pragma integrity_check').fetchone()[0], db.execute('select count(*), max(n) from rows').fetchone())";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_under_load_is_whole_in_every_checkpoint() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    for (name, journal) in [("wal", "wal"), ("journal", "delete")] {
        sprites.world.create(name, "public").await?;
        let define = ["-s", name, "services", "create", "writer", "--no-stream", "--"];
        let writer = ["python3", "-c", WRITER, journal];
        sprites.cli.run(&[&define[..], &writer[..]].concat()).await?.good()?;
        eventually(SOON, async || {
            Ok(sprites.run(name, "stat -c %s /home/sprite/rows.db || echo 0").await?.trim().parse::<u64>()?
                > 100_000)
        })
        .await
        .context("nothing is written")?;
        let check = async |tree: &str| -> anyhow::Result<u64> {
            let script = format!("rm -rf /tmp/copy; exec python3 -c \"$0\" {tree}");
            let said = sprites.cli.run(&["-s", name, "exec", "sh", "-c", &script, CHECK]).await?.good()?;
            let rows = said.strip_prefix("ok (").and_then(|rest| rest.trim_end().strip_suffix(')'));
            let (count, last) = rows.and_then(|rows| rows.split_once(", ")).with_context(|| said.clone())?;
            ensure!(count == last, "{said}");
            Ok(count.parse()?)
        };
        let mut rows = Vec::new();
        for _ in 0..5 {
            let id = sprites.checkpoint(name).await?;
            rows.push(check(&format!("/.sprite/checkpoints/{id}/home/sprite")).await?);
        }
        ensure!(rows.is_sorted_by(|one, next| one < next), "{journal}: {rows:?}");
        sprites.restore(name, "v2").await?;
        // The service starts with the sprite, and goes on writing.
        let after = check("").await?;
        ensure!(after >= rows[2], "{journal}: {after} after {rows:?}");
    }
    sprites.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_five_are_in_sight_and_deleted_ones_are_gone() -> anyhow::Result<()> {
    let sprites = Sprites::start("[checkpoints]\nmax_per_sprite = 7\n").await?;
    sprites.world.create("web", "public").await?;
    let seen = async || sprites.run("web", "ls /.sprite/checkpoints | tr '\\n' ' '").await;
    ensure!(seen().await?.is_empty());
    for n in 0..7 {
        sprites.run("web", &format!("echo {n} > /home/sprite/n")).await?;
        ensure!(sprites.checkpoint("web").await? == format!("v{n}"));
    }
    ensure!(seen().await? == "v2 v3 v4 v5 v6 ", "{}", seen().await?);
    ensure!(sprites.run("web", "cat /.sprite/checkpoints/v4/home/sprite/n").await? == "4\n");
    let one = |id: &str| format!("/v1/sprites/web/checkpoints/{id}");
    let too_many = sprites.status("POST", "/v1/sprites/web/checkpoint", None).await?;
    ensure!(too_many == (409, "too_many_checkpoints".into()), "{too_many:?}");
    ensure!(sprites.status("DELETE", &one("v5"), None).await?.0 == 204);
    ensure!(sprites.status("DELETE", &one("v5"), None).await?.0 == 404);
    let active = sprites.status("DELETE", &one("v6"), None).await?;
    ensure!(active == (409, "checkpoint_active".into()), "{active:?}");
    ensure!(seen().await? == "v1 v2 v3 v4 v6 ", "{}", seen().await?);
    ensure!(sprites.ids("web", "").await? == ["v0", "v1", "v2", "v3", "v4", "v6"]);
    for (method, path) in [
        ("GET", one("v5")),
        ("GET", one("v05")),
        ("GET", one("..%2f..")),
        ("POST", one("v5") + "/restore"),
        ("POST", one("v99") + "/restore"),
        ("GET", "/v1/sprites/none/checkpoints".into()),
        ("POST", "/v1/sprites/none/checkpoint".into()),
    ] {
        ensure!(sprites.status(method, &path, None).await? == (404, "not_found".into()), "{method} {path}");
    }
    // A number is given out once.
    sprites.world.sleep("web", "cold").await?;
    ensure!(sprites.checkpoint("web").await? == "v7");
    ensure!(sprites.world.status("web").await? == "cold", "a checkpoint woke the sprite");
    let (_, v7) = sprites.world.call("GET", &one("v7"), None).await?;
    ensure!(v7["source_id"] == "v6" && v7["history"].as_array().is_some_and(|all| all.len() == 7), "{v7}");
    ensure!(v7["is_auto"] == false && v7["health"] == "" && v7["comment"] == "", "{v7}");
    ensure!(sprites.ids("web", "?history=v4").await? == ["v4", "v6", "v7"]);
    sprites.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn automatic_checkpoints_are_pruned() -> anyhow::Result<()> {
    let sprites = Sprites::start("[checkpoints]\nmax_automatic = 2\n").await?;
    sprites.world.create("web", "public").await?;
    ensure!(sprites.checkpoint("web").await? == "v0");
    for n in 0..4 {
        sprites.run("web", &format!("echo {n} > /home/sprite/n")).await?;
        sprites.restore("web", "v0").await?;
    }
    ensure!(sprites.ids("web", "?includeAuto=true").await? == ["v0", "auto-2", "auto-3"]);
    sprites.restore("web", "auto-2").await?;
    ensure!(sprites.run("web", "cat /home/sprite/n").await? == "2\n");
    // An upgrade keeps the disk as it was.
    let (status, answer) = sprites.world.call("POST", "/v1/sprites/web/upgrade", None).await?;
    ensure!(status == 200, "{answer}");
    let all = sprites.list("web", "?includeAuto=true").await?;
    let comment = all.last().and_then(|last| last["comment"].as_str()).context("a comment")?;
    ensure!(comment.contains("upgrade"), "{all:?}");
    sprites.world.stop().await
}

/// Enough that a copy of it takes a while.
const LARGE: &str = "head -c 400000000 /dev/urandom > /home/sprite/large; sync";

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_and_whoever_leaves_changes_nothing() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    let world = &sprites.world;
    world.create("web", "public").await?;
    sprites.run("web", LARGE).await?;
    let begin = async || -> anyhow::Result<reqwest::Response> {
        let url = format!("{}/v1/sprites/web/checkpoints?comment=in+the+query", world.api());
        let mut answer = world.client().post(url).bearer_auth(&world.token).send().await?;
        ensure!(answer.headers()["content-type"] == "application/x-ndjson");
        let line: Value = serde_json::from_slice(&answer.chunk().await?.context("a line")?)?;
        ensure!(line["type"] == "info" && line["time"].as_str().is_some(), "{line}");
        Ok(answer)
    };
    let told = begin().await?;
    for (method, path, body) in [
        ("POST", "/v1/sprites/web/checkpoint", None),
        ("POST", "/v1/sprites", Some(json!({ "name": "fork", "fork": { "sprite": "web" } }))),
    ] {
        let refused = sprites.status(method, path, body).await?;
        ensure!(refused == (409, "checkpoint_busy".into()), "{method} {path}: {refused:?}");
    }
    // Others go on meanwhile.
    ensure!(sprites.run("web", "echo up").await? == "up\n");
    drop(told);
    eventually(SOON, async || Ok(sprites.ids("web", "").await? == ["v0"])).await?;
    ensure!(sprites.list("web", "").await?[0]["comment"] == "in the query");

    // A sprite that is destroyed takes along what is under way, and nothing of it is left.
    let mut told = begin().await?;
    let (status, _) = world.call("DELETE", "/v1/sprites/web", None).await?;
    ensure!(status == 204);
    while let Some(_line) = told.chunk().await? {}
    let left = || std::fs::read_dir(world.state_dir().join("sprites")).map(Iterator::count);
    eventually(SOON, async || Ok(left()? == 0)).await.context("files are left")?;
    sprites.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_its_source_as_it_was_and_then_itself() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    let (world, cli) = (&sprites.world, &sprites.cli);
    world.create("web", "public").await?;
    sprites.run("web", TREE).await?;
    sprites.run("web", "echo early > /home/sprite/n").await?;
    cli.run(&["-s", "web", "services", "create", "kept", "--no-stream", "--", "sleep", "1000"])
        .await?
        .good()?;
    ensure!(sprites.checkpoint("web").await? == "v0");
    sprites.run("web", "echo late > /home/sprite/n").await?;
    let before = sprites.manifest("web", "/home/sprite/t").await?;

    let forked = cli.run(&["-s", "web", "fork", "early", "--checkpoint", "v0", "--json"]).await?.good()?;
    ensure!(serde_json::from_str::<Value>(&forked)?["name"] == "early", "{forked}");
    cli.run(&["-s", "web", "fork", "late"]).await?.good()?;
    world.sleep("web", "warm").await?;
    cli.run(&["-s", "web", "fork", "from-warm"]).await?.good()?;
    world.sleep("web", "cold").await?;
    cli.run(&["-s", "web", "fork", "from-cold"]).await?.good()?;
    ensure!(world.status("web").await? == "cold", "a fork woke its source");
    for (name, holds) in [("early", "early"), ("late", "late"), ("from-warm", "late"), ("from-cold", "late")]
    {
        ensure!(world.status(name).await? == "cold");
        ensure!(sprites.run(name, "cat /home/sprite/n").await?.trim() == holds, "{name}");
        ensure!(sprites.manifest(name, "/home/sprite/t").await? == before, "{name} differs");
        let names =
            sprites.run(name, "cat /etc/hostname; hostname; getent hosts $(hostname) | cut -c-9").await?;
        ensure!(names.starts_with(&format!("{name}\n{name}\n")), "{names}");
        let services = cli.run(&["-s", name, "services", "list"]).await?.good()?;
        ensure!(services.contains("kept"), "{services}");
        ensure!(sprites.ids(name, "?includeAuto=true").await?.is_empty(), "it has its source's checkpoints");
    }
    // They have nothing in common.
    sprites.run("early", "rm -rf /home/sprite/t; echo own > /home/sprite/n").await?;
    ensure!(sprites.checkpoint("early").await? == "v0");
    let (status, _) = world.call("DELETE", "/v1/sprites/web", None).await?;
    ensure!(status == 204);
    ensure!(sprites.manifest("late", "/home/sprite/t").await? == before);

    let fork = |name: &str, from: Value| Some(json!({ "name": name, "fork": from }));
    for (body, expected) in [
        (fork("x", json!({ "sprite": "web" })), (404, "not_found")),
        (fork("x", json!({ "sprite": "late", "checkpoint": "v9" })), (404, "not_found")),
        (fork("x", json!({ "sprite": "late", "checkpoint": "nine" })), (404, "not_found")),
        (fork("early", json!({ "sprite": "late" })), (409, "name_taken")),
        (fork("x", json!("late")), (400, "bad_request")),
    ] {
        let refused = sprites.status("POST", "/v1/sprites", body.clone()).await?;
        ensure!(refused == (expected.0, expected.1.to_owned()), "{body:?}: {refused:?}");
    }
    ensure!(sprites.status("GET", "/v1/sprites/x", None).await?.0 == 404, "half a sprite was left");
    sprites.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_takes_restores_and_deletes() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    let cli = &sprites.cli;
    sprites.world.create("web", "public").await?;
    sprites.world.create("other", "public").await?;
    cli.run(&["use", "web"]).await?.good()?;
    sprites.run("web", "echo 0 > /home/sprite/n").await?;
    let said = cli.run(&["checkpoint", "create", "--comment", "the first"]).await?.good()?;
    ensure!(said.ends_with("Checkpoint created: v0\n"), "{said}");
    let json = cli.run(&["checkpoint", "create", "--json"]).await?.good()?;
    let last: Value = serde_json::from_str(json.lines().last().context("lines")?)?;
    ensure!(last["type"] == "complete", "{json}");
    let list = cli.run(&["checkpoint", "list"]).await?.good()?;
    ensure!(list.contains("v0") && list.contains("the first") && list.contains("v1"), "{list}");
    ensure!(cli.run(&["checkpoint", "info", "v0"]).await?.good()?.contains("the first"));
    sprites.run("web", "echo 1 > /home/sprite/n").await?;
    ensure!(cli.run(&["restore", "v0"]).await?.good()?.ends_with("Restored v0\n"));
    ensure!(sprites.run("web", "cat /home/sprite/n").await? == "0\n");
    cli.run(&["checkpoint", "delete", "v1"]).await?.good()?;
    ensure!(cli.run(&["checkpoint", "info", "v1"]).await?.bad(1)?.contains("v1"));
    ensure!(cli.run(&["checkpoint", "delete", "v0"]).await?.bad(1)?.contains("another checkpoint"));
    ensure!(cli.run(&["checkpoint", "list", "--include-auto"]).await?.good()?.contains("auto-0"));
    ensure!(cli.run(&["-s", "other", "restore", "v0"]).await?.bad(1)?.contains("no checkpoint v0"));
    sprites.world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_inside_takes_lists_restores_and_deletes() -> anyhow::Result<()> {
    let sprites = Sprites::start("").await?;
    sprites.world.create("web", "public").await?;
    let inside = async |line: &str| sprites.run("web", &format!("/.sprite/bin/sprite-env {line}")).await;
    sprites.run("web", "echo 0 > /home/sprite/n").await?;
    ensure!(inside("checkpoints create --comment from-inside").await?.contains("Checkpoint created: v0"));
    let list: Vec<Value> = serde_json::from_str(&inside("checkpoints list").await?)?;
    ensure!(list.len() == 1 && list[0]["comment"] == "from-inside", "{list:?}");
    ensure!(sprites.list("web", "").await? == list, "outside it looks different");
    ensure!(inside("curl -X POST /v1/checkpoint").await?.contains("v1"));
    inside("checkpoints delete v0").await?;
    ensure!(inside("checkpoints get v1").await?.contains("\"history\""));
    for (line, expected) in
        [("checkpoints delete v1", "another checkpoint"), ("checkpoints restore v0", "v0")]
    {
        let script = format!("/.sprite/bin/sprite-env {line}");
        let refused = sprites.cli.run(&["-s", "web", "exec", "sh", "-c", &script]).await?;
        ensure!(refused.code == 1 && refused.stderr.contains(expected), "{line}: {refused:?}");
    }
    // A service restores: nobody outside waits for it, and its sprite ends under it.
    sprites.run("web", "echo 1 > /home/sprite/n").await?;
    let restore = ["/.sprite/bin/sprite-env", "checkpoints", "restore", "v1"];
    let define = ["-s", "web", "services", "create", "undo", "--no-stream", "--"];
    sprites.cli.run(&[&define[..], &restore[..]].concat()).await?.good()?;
    eventually(SOON, async || Ok(sprites.run("web", "cat /home/sprite/n").await.is_ok_and(|n| n == "0\n")))
        .await?;
    ensure!(sprites.ids("web", "?includeAuto=true").await? == ["v1", "auto-0"]);
    sprites.world.stop().await
}

/// Makes a tree in which every file says the same.
fn generation(n: u32) -> String {
    let letter = letter(n);
    format!(
        "cd /home/sprite && mkdir -p g && for i in $(seq 300); do echo {n} > g/$i; done && \
         head -c 20000000 /dev/zero | tr '\\0' {letter} > g/large && sync"
    )
}

fn letter(n: u32) -> char {
    char::from(b'A' + u8::try_from(n % 26).unwrap_or_default())
}

/// What all files of a whole tree say.
fn whole(n: u32) -> String {
    format!("{n} {}", letter(n))
}

/// What the files of a tree say: more than once, if they differ.
fn says(tree: &str) -> String {
    format!("cd {tree}/g && cat $(seq 300) | sort -u | tr '\\n' ' ' && tr -s \"$(head -c 1 large)\" < large")
}

/// The agent is killed at random moments of checkpoints and restores. Afterwards the disk is the old one or
/// the one that was to be restored, never half; every checkpoint that is listed is whole; and there are no
/// others.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_killed_at_any_moment_leaves_the_old_or_the_new() -> anyhow::Result<()> {
    const KILLS: u32 = 44;
    let mut sprites = Sprites::start("[checkpoints]\nmax_per_sprite = 100\nmax_automatic = 3\n").await?;
    sprites.world.create("web", "public").await?;
    // The generation that each checkpoint is of.
    let mut kept: BTreeMap<String, u32> = BTreeMap::new();
    let mut ends: BTreeMap<&str, u32> = BTreeMap::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for kill in 0..KILLS {
        let present = kill + 1;
        sprites.run("web", &generation(present)).await?;
        if kill % 4 == 3 {
            sprites.world.sleep("web", if kill % 8 == 3 { "warm" } else { "cold" }).await?;
        }
        let target = kept.keys().rfind(|id| !id.starts_with("auto")).cloned();
        let target = target.filter(|_| rand::random_bool(0.6));
        let path = match &target {
            Some(id) => format!("/v1/sprites/web/checkpoints/{id}/restore"),
            None => "/v1/sprites/web/checkpoint".to_owned(),
        };
        let request = sprites.world.client().post(format!("{}{path}", sprites.world.api()));
        let request = request.bearer_auth(&sprites.world.token);
        let asked = tokio::spawn(async move {
            let Ok(answer) = request.send().await else { return String::new() };
            answer.text().await.unwrap_or_default()
        });
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..250))).await;
        sprites.world.kill_agent()?;
        sprites.world.start_agent().await?;
        let told = asked.await?;

        // The first answer of the new agent is after it has put things right.
        eventually(SOON, async || {
            let path = "/v1/sprites/web/checkpoints?includeAuto=true";
            Ok(sprites.world.call("GET", path, None).await?.0 == 200)
        })
        .await?;
        let says_now = sprites.patiently("web", &says("/home/sprite")).await?;
        let (old, new) = (whole(present), target.as_ref().map(|id| whole(kept[id])));
        let end = if says_now == old { "old" } else { "new" };
        ensure!(
            says_now == old || Some(&says_now) == new.as_ref(),
            "kill {kill}, {target:?}: {says_now:?}\n{told}"
        );
        if told.contains("\"complete\"") {
            ensure!(target.is_none() || end == "new", "kill {kill}: told that it was done");
        }
        *ends
            .entry(match (&target, end) {
                (None, _) if told.contains("complete") => "checkpoint done",
                (None, _) => "checkpoint cut short",
                (Some(_), "old") => "restore undone",
                (Some(_), _) => "restore done",
            })
            .or_default() += 1;

        // A restore that was finished by the next agent is listed by now, as waking the sprite waited for it.
        let ids = sprites.ids("web", "?includeAuto=true").await?;
        for id in &ids {
            kept.entry(id.clone()).or_insert(present);
            if !id.starts_with("auto") && known.insert(id.clone()) {
                let tree = format!("/.sprite/checkpoints/{id}/home/sprite");
                let said = sprites.run("web", &says(&tree)).await?;
                ensure!(said == whole(kept[id]), "kill {kill}: {id} says {said:?}");
            }
        }
        kept.retain(|id, _| ids.contains(id));
        // Of the process driver: the trees are those that are listed, and no others.
        for entry in std::fs::read_dir(sprites.world.state_dir().join("sprites"))? {
            let at = entry?.path().join("checkpoints");
            if !at.is_dir() {
                continue;
            }
            let mut trees = BTreeSet::new();
            for place in ["shown", "kept"] {
                for tree in std::fs::read_dir(at.join(place))? {
                    trees.insert(tree?.file_name().to_string_lossy().into_owned());
                }
            }
            ensure!(trees == ids.iter().cloned().collect(), "kill {kill}: {trees:?}, listed are {ids:?}");
        }
    }
    eprintln!("{ends:?}");
    let id = sprites.checkpoint("web").await?;
    sprites.restore("web", &id).await?;
    sprites.world.stop().await
}
