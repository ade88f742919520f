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
//! shares the files by hard links.
//!
//! [`Layers`] says which layers there are, and which stands on which; it is one file, replaced whole, so that a cut
//! between any two steps leaves the old disk or the new one. What it does not name is garbage. What the files
//! themselves say they stand on is looked at only for the image: two layers that were [merged](super::merges) are a new
//! file, and nobody tells those above.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
};

use ids::CheckpointId;
use serde::{Deserialize, Serialize};

use super::{layout::Files, merges::Merge};
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
    /// The highest number that was ever given out. (Records of before there were merges have none: with them it is
    /// the active layer's.)
    #[serde(default)]
    highest: u32,
    /// A checkpoint was begun with this layer, and not seen to end: a machine may still write it, or any above it.
    #[serde(default)]
    unsettled: Option<Layer>,
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
        Self {
            active: first,
            below: BTreeMap::from([(first, None)]),
            checkpoints: BTreeMap::new(),
            highest: first.0,
            unsettled: None,
        }
    }

    pub(super) const fn active(&self) -> Layer {
        self.active
    }

    pub(super) fn checkpoint(&self, id: &CheckpointId) -> Option<Layer> {
        self.checkpoints.get(id).copied()
    }

    /// The layer below; `None` if that is the image.
    pub(super) fn below(&self, layer: Layer) -> Option<Layer> {
        self.below.get(&layer).copied().flatten()
    }

    /// Each layer.
    pub(super) fn all(&self) -> impl Iterator<Item = Layer> {
        self.below.keys().copied()
    }

    /// How many layers there are on each other up to `top`; up to the active one, it is the depth of the sprite's disk.
    pub(super) fn depth(&self, top: Layer) -> usize {
        self.chain(top).len()
    }

    /// The layer that would be made next. No name is given twice, or a machine could find another file under it.
    pub(super) fn next(&self) -> Layer {
        let known = self.below.keys().map(|layer| layer.0).max().unwrap_or_default();
        Layer(known.max(self.highest) + 1)
    }

    /// With a new active layer over `below`.
    fn on(&self, below: Layer) -> Self {
        let mut layers = self.clone();
        layers.active = self.next();
        layers.highest = layers.active.0;
        layers.below.insert(layers.active, Some(below));
        layers.unsettled = None;
        layers
    }

    /// While a checkpoint is being made of a machine's disk: it has no name yet, and what was active may still be written.
    pub(super) fn cutting(&self) -> Self {
        let mut layers = self.on(self.active);
        layers.unsettled = self.unsettled.or(Some(self.active));
        layers
    }

    /// When no machine is there: one that is started writes the active layer and no other. `None`: nothing changes.
    pub(super) fn settled(&self) -> Option<Self> {
        self.unsettled.is_some().then(|| Self { unsettled: None, ..self.clone() })
    }

    /// The layers that a machine may write.
    pub(super) fn written(&self) -> BTreeSet<Layer> {
        let lowest = self.unsettled.unwrap_or(self.active);
        let mut chain = self.chain(self.active);
        let end = chain.iter().position(|layer| *layer == lowest).map_or(chain.len(), |at| at + 1);
        chain.truncate(end);
        chain.into_iter().collect()
    }

    /// The one layer that stands on this one, if that is all that needs it: no checkpoint is named so, and no other
    /// layer stands on it.
    pub(super) fn only_upper(&self, layer: Layer) -> Option<Layer> {
        if layer == self.active || self.checkpoints.values().any(|named| *named == layer) {
            return None;
        }
        let mut uppers =
            self.below.iter().filter(|(_, below)| **below == Some(layer)).map(|(upper, _)| *upper);
        uppers.next().filter(|_| uppers.next().is_none())
    }

    /// With one layer in the place of two.
    pub(super) fn merged(&self, Merge { lower, upper }: Merge) -> Self {
        let mut layers = self.clone();
        let new = self.next();
        layers.highest = new.0;
        layers.below.remove(&upper);
        let below = layers.below.remove(&lower).flatten();
        let stood_on_it = layers.below.values_mut().filter(|below| **below == Some(upper));
        stood_on_it.for_each(|below| *below = Some(new));
        layers.below.insert(new, below);
        layers.checkpoints.values_mut().filter(|named| **named == upper).for_each(|named| *named = new);
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
        let shared = Self {
            active: of,
            below: below.map(|(a, b)| (*a, *b)).collect(),
            checkpoints: BTreeMap::new(),
            highest: self.highest,
            unsettled: None,
        };
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
    fn what_a_machine_may_write_is_told_until_the_checkpoint_has_its_name() {
        let new = Layers::new();
        assert_eq!(new.written(), [new.active()].into());
        let cutting = new.cutting();
        assert_eq!(cutting.written(), [new.active(), cutting.active()].into());
        // The agent was killed, and the machine is asked for another checkpoint.
        let again = cutting.cutting();
        assert_eq!(again.written().len(), 3);
        assert_eq!(again.cut(&id("v0")).written().len(), 1, "the machine has changed over");
        let settled = cutting.settled().unwrap();
        assert_eq!(settled.written(), [cutting.active()].into(), "its machine is gone");
        assert_eq!(settled.settled(), None);
    }

    #[test]
    fn a_record_of_before_there_were_merges_is_read() {
        let text = r#"{"active":3,"below":{"1":null,"2":1,"3":2},"checkpoints":{"v0":1}}"#;
        let layers: Layers = serde_json::from_str(text).unwrap();
        assert_eq!(layers.next(), Layer(4));
        assert_eq!(layers.written(), [Layer(3)].into());
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
