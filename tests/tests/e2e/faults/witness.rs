//! What becomes of one sprite, as its database tells it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use test_support::{SpriteUrl, World, eventually};

use super::SOON;

/// See the module.
pub(super) struct Witness {
    pub(super) url: SpriteUrl,
    /// The last row that was acknowledged.
    written: u64,
    /// The last row of a checkpoint whose restore was begun, and not seen to end.
    restoring: Option<u64>,
    /// The last row when a checkpoint was asked for last.
    cut: u64,
    /// The last row of each checkpoint.
    kept: BTreeMap<String, u64>,
    pub(super) nonce: String,
    calls: u64,
}

impl Witness {
    pub(super) async fn new(world: &World, name: &str) -> anyhow::Result<Self> {
        let url = world.create_with_backend(name, "public").await?;
        Ok(Self {
            url,
            written: 0,
            restoring: None,
            cut: 0,
            kept: BTreeMap::new(),
            nonce: String::new(),
            calls: 0,
        })
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/sprites/{}{rest}", self.url.name)
    }

    /// Writes a row; whether it was acknowledged or not, it must not hurt.
    pub(super) async fn write(&mut self, world: &World) {
        let next = self.written + 1;
        if let Ok(answer) = world.get(&self.url, &format!("/insert?id={next}")).await
            && answer.status == 200
        {
            self.written = next;
        }
    }

    /// Orders it to sleep. The agent may be killed before it answers.
    pub(super) async fn sleep(&self, world: &World, depth: &str) {
        let _answer = world.call("POST", &self.path("/sleep"), Some(json!({ "depth": depth }))).await;
    }

    /// Takes a checkpoint; whether it is there is asked for later.
    pub(super) async fn checkpoint(&mut self, world: &World) {
        self.cut = self.written;
        let _answer = world.call("POST", &self.path("/checkpoint"), Some(json!({}))).await;
    }

    /// Removes the last checkpoint but one. It is gone when the layers that it leaves are merged.
    pub(super) async fn forget_checkpoint(&mut self, world: &World) -> anyhow::Result<()> {
        self.note_checkpoints(world).await?;
        let number = |id: &String| id.trim_start_matches('v').parse::<u64>().ok();
        let mut ids: Vec<String> = self.kept.keys().cloned().collect();
        ids.sort_by_key(number);
        let id = ids.iter().rev().nth(1).context("two checkpoints")?;
        self.kept.remove(id);
        let _answer = world.call("DELETE", &self.path(&format!("/checkpoints/{id}")), None).await;
        Ok(())
    }

    /// Has a sprite made from it and its memory; what became of that is asked for later.
    pub(super) async fn fork(&mut self, world: &World) -> anyhow::Result<()> {
        world.sleep(&self.url.name, "suspended").await?;
        self.cut = self.written;
        let fork = json!({ "sprite": self.url.name, "memory": true });
        let ask = json!({ "name": self.fork_name(), "fork": fork });
        let _answer = world.call("POST", "/v1/sprites", Some(ask)).await;
        Ok(())
    }

    /// Of a fork that was cut short nothing is there, and nothing is left.
    pub(super) async fn check_fork(&self, world: &World) -> anyhow::Result<()> {
        let (status, _) = world.call("GET", &format!("/v1/sprites/{}", self.fork_name()), None).await?;
        ensure!(status == 404, "half a sprite was left");
        let sprites = world.state_dir().join("sprites");
        let kept = sprites.join(world.id(&self.url.name).await?).join("kept");
        ensure!(!kept.exists(), "a copy of its memory was left");
        Ok(())
    }

    fn fork_name(&self) -> String {
        format!("{}-fork", self.url.name)
    }

    /// Restores one of its checkpoints, the `choice`th as it were.
    pub(super) async fn restore(&mut self, world: &World, choice: usize) {
        let Some((id, row)) = self.kept.iter().nth(choice % self.kept.len().max(1)) else { return };
        let path = self.path(&format!("/checkpoints/{id}/restore"));
        self.restoring = Some(*row);
        let answer = world.call("POST", &path, None).await;
        if answer.is_ok_and(|(_, end)| end["type"] == "complete") {
            // The row that the old disk had is nothing that may be seen again.
            self.written = *row;
            self.restoring = None;
        }
    }

    /// Notes which checkpoints there are. One that is new is what was asked for last.
    pub(super) async fn note_checkpoints(&mut self, world: &World) -> anyhow::Result<()> {
        let (status, list) = world.call("GET", &self.path("/checkpoints"), None).await?;
        ensure!(status == 200, "{status} {list}");
        let ids = list.as_array().context("a list")?.iter().filter_map(|one| one["id"].as_str());
        let there: Vec<&str> = ids.collect();
        if let Some(lost) = self.kept.keys().find(|id| !there.contains(&id.as_str())) {
            anyhow::bail!("checkpoint {lost} is gone: {list}");
        }
        for id in there {
            self.kept.entry(id.to_owned()).or_insert(self.cut);
        }
        Ok(())
    }

    /// Everything acknowledged is there, and the memory is the one from before, or a new one.
    pub(super) async fn check(&mut self, world: &World) -> anyhow::Result<()> {
        let name = self.url.name.clone();
        eventually(SOON, || async { Ok(world.get(&self.url, "/").await?.status == 200) })
            .await
            .with_context(|| format!("{name} does not come back"))?;
        let rows = world.get(&self.url, "/rows").await?.json()?;
        ensure!(rows["integrity"] == "ok", "{name}: {rows}");
        let last = rows["last"].as_u64().unwrap_or_default();
        let (written, restoring) = (self.written, self.restoring);
        let is_there = last == written || last == written + 1;
        ensure!(
            is_there || restoring == Some(last),
            "{name}: {written} written, {restoring:?} restored, {rows}"
        );
        if restoring == Some(last) {
            self.restoring = None;
        }
        self.written = last;
        let told: Value = world.get(&self.url, "/nonce").await?.json()?;
        let (nonce, calls) = (told["nonce"].to_string(), told["calls"].as_u64().context("a count")?);
        // The same memory counts on; one that was used twice would count from an earlier number.
        let expected = if nonce == self.nonce { self.calls + 1 } else { 1 };
        ensure!(calls == expected, "{name}: {calls} calls, not {expected}; its memory was used twice");
        (self.nonce, self.calls) = (nonce, calls);
        self.note_checkpoints(world).await
    }

    /// Every checkpoint can be restored, and is what it was.
    pub(super) async fn check_checkpoints(&mut self, world: &World) -> anyhow::Result<()> {
        let Some((id, row)) = self.kept.pop_last() else { return Ok(()) };
        let path = self.path(&format!("/checkpoints/{id}/restore"));
        let (status, end) = world.call("POST", &path, None).await?;
        ensure!(status == 200 && end["type"] == "complete", "{id}: {status} {end}");
        let rows = world.get(&self.url, "/rows").await?.json()?;
        let last = rows["last"].as_u64().unwrap_or_default();
        ensure!(rows["integrity"] == "ok" && last == row, "{id}: {rows}, not {row}");
        Ok(())
    }
}
