//! A sprite's files over the API: whole, of any size, and safe against tricks with paths.

use anyhow::{Context, ensure};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use reqwest::{Body, Response, StatusCode};
use serde_json::{Value, json};
use test_support::{Driver, Options, World};

const NAME: &str = "files";

/// Calls below `/fs`.
struct Files<'a>(&'a World);

impl Files<'_> {
    async fn call(&self, method: &str, what: &str, body: impl Into<Body>) -> anyhow::Result<Response> {
        let url = format!("{}/v1/sprites/{NAME}/fs/{what}", self.0.api());
        let request = self.0.client().request(method.parse()?, url).bearer_auth(&self.0.token);
        Ok(request.body(body).send().await?)
    }

    async fn write(&self, path: &str, content: &[u8]) -> anyhow::Result<Value> {
        let answer =
            self.call("PUT", &format!("write?path={path}&mkdirParents=true"), content.to_vec()).await?;
        ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
        Ok(answer.json().await?)
    }

    async fn read(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let answer = self.call("GET", &format!("read?path={path}"), "").await?;
        ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
        Ok(answer.bytes().await?.to_vec())
    }

    async fn post(&self, what: &str, body: Value) -> anyhow::Result<Value> {
        let answer = self.call("POST", what, body.to_string()).await?;
        ensure!(answer.status() == 200, "{what} {body}: {}", answer.text().await?);
        Ok(answer.json().await?)
    }

    async fn names(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let list: Value = self.call("GET", &format!("list?{query}"), "").await?.json().await?;
        let entries = list["entries"].as_array().with_context(|| list.to_string())?;
        ensure!(list["count"] == entries.len(), "{list}");
        Ok(entries.iter().filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect())
    }

    /// The status and code of a refusal.
    async fn refusal(&self, method: &str, what: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let answer = self.call(method, what, body.to_owned()).await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        ensure!(body["error"].as_str().is_some_and(|text| text.len() > 5), "{body}");
        Ok((status.as_u16(), body["code"].as_str().unwrap_or_default().to_owned()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_and_survives_every_sleep() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create(NAME, "public").await?;
    let files = Files(&world);
    // The first call wakes the sprite from cold.
    let written = files.write("notes/a.txt", b"hello").await?;
    ensure!(written == json!({ "path": "/home/sprite/notes/a.txt", "size": 5, "mode": "0644" }), "{written}");
    for depth in ["warm", "cold"] {
        world.sleep(NAME, depth).await?;
        assert_eq!(files.read("notes/a.txt").await?, b"hello", "from {depth}");
    }
    let range = world.client().get(format!("{}/v1/sprites/{NAME}/fs/read?path=notes/a.txt", world.api()));
    let part = range.bearer_auth(&world.token).header("Range", "bytes=1-3").send().await?;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 1-3/5");
    assert_eq!(part.text().await?, "ell");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_are_listed_moved_copied_and_removed() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create(NAME, "public").await?;
    let files = Files(&world);
    files.write("/work/a/one", b"1").await?;
    files.write("/work/a/b/two", b"22").await?;
    assert_eq!(files.names("path=/work/a").await?, ["b", "one"]);
    assert_eq!(files.names("path=a&workingDir=/work&recursive=true").await?, ["b", "two", "one"]);
    assert_eq!(
        files.names("path=/work/a/one").await?,
        ["one"],
        "a file lists itself: clients call that stat"
    );
    files.post("rename", json!({ "source": "a", "dest": "c", "workingDir": "/work" })).await?;
    let copied =
        files.post("copy", json!({ "source": "/work/c", "dest": "/work/d", "recursive": true })).await?;
    ensure!(copied["count"] == 4 && copied["totalBytes"] == 3, "{copied}");
    let changed =
        files.post("chmod", json!({ "path": "/work/d", "mode": "0700", "recursive": true })).await?;
    ensure!(changed["count"] == 4, "{changed}");
    let owned = files.post("chown", json!({ "path": "/work/d/one", "uid": "root", "gid": 0 })).await?;
    ensure!(owned["affected"] == json!(["/work/d/one"]), "{owned}");
    let list: Value = files.call("GET", "list?path=/work/d/one", "").await?.json().await?;
    let entry = &list["entries"][0];
    ensure!(entry["mode"] == "0700" && entry["type"] == "file" && entry["isDir"] == false, "{entry}");
    ensure!(entry["modTime"].as_str().is_some_and(|time| time.contains('T')), "{entry}");
    let refused = files.refusal("DELETE", "delete?path=/work/d", "").await?;
    assert_eq!(refused, (409, "ENOTEMPTY".into()));
    let gone = files.call("DELETE", "delete?path=/work/d&recursive=true", "").await?;
    assert_eq!(gone.status(), 200);
    assert_eq!(files.names("path=/work").await?, ["c"]);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tricks_with_paths_get_an_error_that_clients_understand() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    world.create(NAME, "public").await?;
    let files = Files(&world);
    files.write("/work/file", b"x").await?;
    for (method, what, body, status, code) in [
        ("GET", "read?path=/no/such", "", 404, "ENOENT"),
        ("GET", "read?path=/work", "", 409, "EISDIR"),
        ("GET", "read?path=/dev/zero", "", 400, "EINVAL"),
        ("GET", "read", "", 400, "EINVAL"),
        ("GET", "read?path=", "", 400, "EINVAL"),
        ("GET", "read?path=a%00b", "", 400, "EINVAL"),
        ("GET", "read?path=/work/file/below", "", 409, "ENOTDIR"),
        ("GET", "list?path=/no", "", 404, "ENOENT"),
        ("PUT", "write?path=/no/parents", "x", 404, "ENOENT"),
        ("PUT", "write?path=/work", "x", 409, "EISDIR"),
        ("PUT", "write?path=/work/x&mode=rw", "x", 400, "EINVAL"),
        ("DELETE", "delete?path=/&recursive=true", "", 403, "EACCES"),
        ("DELETE", "delete?path=/../..&recursive=true", "", 403, "EACCES"),
        ("POST", "rename", r#"{"source": "/work/file"}"#, 400, "EINVAL"),
        ("POST", "rename", "{", 400, "EINVAL"),
        ("POST", "chmod", r#"{"path": "/work/file"}"#, 400, "EINVAL"),
        ("POST", "chown", r#"{"path": "/work/file", "uid": "nobody-here"}"#, 400, "EINVAL"),
    ] {
        let refused = files.refusal(method, what, body).await.with_context(|| what.to_owned())?;
        assert_eq!(refused, (status, code.into()), "{method} {what} {body}");
    }
    if world.driver() == Driver::Process {
        // There it is the host's.
        let refused = files.refusal("PUT", "write?path=/usr/bin/evil", "x").await?;
        assert_eq!(refused, (403, "EROFS".into()));
    }
    // Above the sprite's root there is nothing, whatever a path says.
    assert_eq!(files.read("../../../../../../work/file").await?, b"x");
    let passwd = files.read("/work/../../../etc/passwd").await?;
    ensure!(
        !passwd.is_empty() && passwd != std::fs::read("/etc/passwd")?,
        "the sprite's own, not the host's"
    );
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_pass_unchanged_and_one_that_breaks_off_changes_nothing() -> anyhow::Result<()> {
    const SIZE: usize = 96 << 20;
    let world = World::start(Options::default()).await?;
    world.create(NAME, "public").await?;
    let files = Files(&world);
    let mut content = vec![0; SIZE];
    StdRng::seed_from_u64(7).fill_bytes(&mut content);
    let written = files.write("store/big", &content).await?;
    ensure!(written["size"] == SIZE, "{written}");
    ensure!(files.read("store/big").await? == content, "what is read is what was written");

    let parts = vec![Ok("half of "), Err(std::io::Error::other("the client is gone"))];
    let broken = Body::wrap_stream(futures_util::stream::iter(parts));
    ensure!(files.call("PUT", "write?path=store/big", broken).await.is_err());
    ensure!(files.read("store/big").await?.len() == SIZE, "the old file is there");
    test_support::eventually(std::time::Duration::from_secs(10), || async {
        Ok(files.names("path=store").await? == ["big"])
    })
    .await
    .context("nothing unfinished is left")?;
    world.stop().await
}
