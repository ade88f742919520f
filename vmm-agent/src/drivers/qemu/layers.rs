//! Which files make up a sprite's disk.
//!
//! ```text
//!   image ◄── 1 ◄── 2 ◄── 4 (active)        v0 is layer 1, v1 is layer 2
//!                   ▲
//!                   └──── 3                 what a restore of v1 replaced
//! ```
//!
//! A disk is a chain of layers, each a qcow2 file that holds what it changes of the one below. Only the active one is ever
//! written: a checkpoint is a new layer on top, after which the one below never changes. So it takes no copy, and a fork
//! shares the files by hard links, for each names the one below it by its name alone.
//!
//! [`Layers`] says which layers there are; it is one file, replaced whole, so that a cut between any two steps
//! leaves the old disk or the new one. What it does not name is garbage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
};

use ids::CheckpointId;
use serde::{Deserialize, Serialize};

use super::layout::Files;
use crate::drivers::files::write_durably;

/// Names a layer among those of its sprite, and of all that were forked from it or it from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Layer(u32);

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Layers {
    /// What the sprite writes.
    active: Layer,
    /// The layer below each; one without is a difference to the image.
    below: BTreeMap<Layer, Option<Layer>>,
    checkpoints: BTreeMap<CheckpointId, Layer>,
}

impl Layer {
    pub(super) const fn number(self) -> u32 {
        self.0
    }

    /// The file's name, in the directory of layers.
    pub(super) fn file(self) -> String {
        format!("{}.qcow2", self.0)
    }
}

impl Layers {
    /// A new disk: one layer over the image.
    pub(super) fn new() -> Self {
        let first = Layer(1);
        Self { active: first, below: BTreeMap::from([(first, None)]), checkpoints: BTreeMap::new() }
    }

    pub(super) const fn active(&self) -> Layer {
        self.active
    }

    pub(super) fn checkpoint(&self, id: &CheckpointId) -> Option<Layer> {
        self.checkpoints.get(id).copied()
    }

    /// The layer that would be made next.
    fn next(&self) -> Layer {
        Layer(self.below.keys().map(|layer| layer.0).max().unwrap_or_default() + 1)
    }

    /// With a new active layer over `below`.
    fn on(&self, below: Layer) -> Self {
        let mut layers = self.clone();
        layers.active = self.next();
        layers.below.insert(layers.active, Some(below));
        layers
    }

    /// After a checkpoint: what was active is kept under `id`.
    pub(super) fn cut(&self, id: &CheckpointId) -> Self {
        let mut layers = self.on(self.active);
        layers.checkpoints.insert(*id, self.active);
        layers
    }

    /// After a restore of what `of` is: what was active is kept under `replaced`.
    pub(super) fn back_to(&self, of: Layer, replaced: &CheckpointId) -> Self {
        let mut layers = self.on(of);
        layers.checkpoints.insert(*replaced, self.active);
        layers
    }

    /// Forgets a name, and nothing else.
    pub(super) fn forget(&mut self, id: &CheckpointId) {
        self.checkpoints.remove(id);
    }

    /// Without a checkpoint, and without layers that nothing stands on any more.
    pub(super) fn without(&self, id: &CheckpointId) -> Self {
        let mut layers = self.clone();
        layers.checkpoints.remove(id);
        let mut wanted = BTreeSet::new();
        for top in layers.checkpoints.values().chain([&layers.active]) {
            wanted.extend(self.chain(*top));
        }
        layers.below.retain(|layer, _| wanted.contains(layer));
        layers
    }

    /// A new sprite's, from what `of` is here.
    pub(super) fn fork(&self, of: Layer) -> Self {
        let chain = self.chain(of);
        let below = self.below.iter().filter(|(layer, _)| chain.contains(layer));
        let shared =
            Self { active: of, below: below.map(|(a, b)| (*a, *b)).collect(), checkpoints: BTreeMap::new() };
        shared.on(of)
    }

    /// A layer and all below it.
    pub(super) fn chain(&self, top: Layer) -> Vec<Layer> {
        let mut chain = vec![top];
        let mut at = top;
        while let Some(Some(below)) = self.below.get(&at) {
            chain.push(*below);
            at = *below;
        }
        chain
    }

    pub(super) fn read(files: &Files) -> io::Result<Option<Self>> {
        match fs::read(files.layers_record()) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes these the sprite's: it is the old ones or these, whatever happens.
    pub(super) fn commit(&self, files: &Files) -> io::Result<()> {
        write_durably(&files.layers_record(), &serde_json::to_vec(self)?)
    }

    pub(super) fn path(files: &Files, layer: Layer) -> PathBuf {
        files.layers().join(layer.file())
    }

    /// Removes files that belong to no layer.
    pub(super) fn sweep(&self, files: &Files) -> io::Result<()> {
        let wanted: BTreeSet<String> = self.below.keys().map(|layer| layer.file()).collect();
        for entry in fs::read_dir(files.layers())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".qcow2") && !wanted.contains(&name) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> CheckpointId {
        text.parse().unwrap()
    }

    #[test]
    fn a_checkpoint_keeps_what_was_written_and_a_restore_stands_on_it() {
        let new = Layers::new();
        let first = new.cut(&id("v0"));
        assert_eq!(first.checkpoint(&id("v0")), Some(new.active()));
        assert_eq!(first.chain(first.active()), [first.active(), new.active()]);
        let second = first.cut(&id("v1"));
        let restored = second.back_to(second.checkpoint(&id("v0")).unwrap(), &id("auto-1"));
        assert_eq!(restored.chain(restored.active()), [restored.active(), new.active()]);
        assert_eq!(restored.checkpoint(&id("auto-1")), Some(second.active()), "what was replaced is kept");
        assert!(restored.active() > second.active(), "no layer's name is used twice");
    }

    #[test]
    fn what_nothing_stands_on_goes_with_its_checkpoint_and_nothing_else_does() {
        let layers = Layers::new().cut(&id("v0")).cut(&id("v1"));
        let without = layers.without(&id("v0"));
        assert_eq!(without.below, layers.below, "v1 and the disk stand on it");
        let restored = layers.back_to(layers.checkpoint(&id("v0")).unwrap(), &id("auto-1"));
        let replaced = layers.active();
        let gone = restored.without(&id("auto-1"));
        assert!(!gone.below.contains_key(&replaced));
        assert!(gone.below.contains_key(&restored.checkpoint(&id("v1")).unwrap()));
    }

    #[test]
    fn a_fork_shares_what_is_below_and_none_of_the_rest() {
        let source = Layers::new().cut(&id("v0")).cut(&id("v1"));
        let of = source.checkpoint(&id("v0")).unwrap();
        let fork = source.fork(of);
        assert_eq!(fork.chain(fork.active()), [fork.active(), of]);
        assert_eq!(fork.checkpoints.len(), 0);
    }
}
