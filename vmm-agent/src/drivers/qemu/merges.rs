//! Which layers of a disk are merged: pure.
//!
//! ```text
//!   1 (v0) ◄── 2 ◄── 3 (v2) ◄── 4 (active)          v1, which was layer 2, was deleted
//!   1 (v0) ◄──── 5 (v2) ◄────── 4                   5 holds what 2 and 3 held
//! ```
//!
//! A layer that no checkpoint is named by, and that one other layer stands on, is there only for that one: the two can
//! be one. What a merge gives back is at most the smaller of them, and it costs writing both; so it pays if they are
//! about as large, or small. Those that wait for that are a bounded part of a disk, and a layer grows by a factor before
//! it is written again. A layer that is shared with a fork gives nothing back. When a disk has too many layers
//! all of that counts no more: then the cheapest merge is made.

use std::collections::BTreeMap;

use super::layers::{Layer, Layers};

/// A merge pays if the larger layer is at most so many times the smaller.
const MOST_UNEQUAL: u64 = 4;
/// Or if it writes no more than this, which takes a moment.
const SMALL_BYTES: u64 = 64 << 20;

/// Two layers that are to become one: the upper stands on the lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Merge {
    pub(super) lower: Layer,
    pub(super) upper: Layer,
}

/// What a layer takes on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Measure {
    pub(super) bytes: u64,
    /// Another sprite has it, too: it takes its room whatever is done here.
    pub(super) shared: bool,
}

impl Merge {
    /// How much it writes at most.
    pub(super) fn cost(self, measures: &BTreeMap<Layer, Measure>) -> u64 {
        let of = |layer| measures.get(&layer).map_or(0, |measure| measure.bytes);
        of(self.lower).saturating_add(of(self.upper))
    }

    fn pays(self, measures: &BTreeMap<Layer, Measure>) -> bool {
        let (Some(lower), Some(upper)) = (measures.get(&self.lower), measures.get(&self.upper)) else {
            return false;
        };
        let (smaller, larger) = (lower.bytes.min(upper.bytes), lower.bytes.max(upper.bytes));
        let is_small = self.cost(measures) <= SMALL_BYTES;
        !lower.shared && !upper.shared && (is_small || larger <= smaller.saturating_mul(MOST_UNEQUAL))
    }
}

/// The merge that is to be made next, if one is. Layers that a machine may write take no part. A disk with more than
/// half of `most` layers has too many.
pub(super) fn next(layers: &Layers, measures: &BTreeMap<Layer, Measure>, most: usize) -> Option<Merge> {
    let written = layers.written();
    let possible = layers.all().filter_map(|lower| Some(Merge { lower, upper: layers.only_upper(lower)? }));
    let possible =
        possible.filter(|merge| !written.contains(&merge.lower) && !written.contains(&merge.upper));
    let possible: Vec<Merge> = possible.collect();
    let cheapest =
        |among: &mut dyn Iterator<Item = &Merge>| among.min_by_key(|merge| merge.cost(measures)).copied();
    cheapest(&mut possible.iter().filter(|merge| merge.pays(measures))).or_else(|| {
        let chain = layers.chain(layers.active());
        let is_long = chain.len() > most / 2;
        cheapest(&mut possible.iter().filter(|merge| is_long && chain.contains(&merge.lower)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ids::CheckpointId;
    use proptest::prelude::*;

    use super::*;

    /// What is done with a disk. Numbers choose among what there is.
    #[derive(Clone, Debug)]
    enum Step {
        Write(u8),
        Checkpoint,
        /// Whose agent is killed before the checkpoint has a name; whether the machine had changed over.
        Interrupted(bool),
        Restart,
        Restore(usize),
        Forget(usize),
        Fork(usize),
        Merge,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(Step::Write),
            4 => Just(Step::Checkpoint),
            1 => any::<bool>().prop_map(Step::Interrupted),
            1 => Just(Step::Restart),
            2 => any::<usize>().prop_map(Step::Restore),
            3 => any::<usize>().prop_map(Step::Forget),
            1 => any::<usize>().prop_map(Step::Fork),
            3 => Just(Step::Merge),
        ];
        prop::collection::vec(step, 1..80)
    }

    type Blocks = BTreeMap<u8, u32>;

    /// A disk, what is in its files, and what ought to be seen through them.
    struct Disk {
        layers: Layers,
        files: BTreeMap<Layer, Blocks>,
        shared: BTreeSet<Layer>,
        /// What the machine writes.
        machine: Layer,
        now: Blocks,
        kept: BTreeMap<CheckpointId, Blocks>,
        count: u32,
    }

    impl Disk {
        fn new() -> Self {
            let layers = Layers::new();
            Self {
                files: BTreeMap::from([(layers.active(), Blocks::new())]),
                machine: layers.active(),
                layers,
                shared: BTreeSet::new(),
                now: Blocks::new(),
                kept: BTreeMap::new(),
                count: 0,
            }
        }

        fn seen(&self, top: Layer) -> Blocks {
            let mut seen = Blocks::new();
            for layer in self.layers.chain(top).iter().rev() {
                seen.extend(&self.files[layer]);
            }
            seen
        }

        fn new_id(&mut self) -> CheckpointId {
            self.count += 1;
            CheckpointId::Numbered(self.count)
        }

        fn chosen(&self, number: usize) -> Option<CheckpointId> {
            self.kept.keys().nth(number % self.kept.len().max(1)).copied()
        }

        fn has_room_over(&self, below: Layer, most: usize) -> bool {
            self.layers.depth(below) < most
        }

        fn put_on(&mut self, layers: Layers) {
            assert!(!self.files.contains_key(&layers.active()), "a name is given twice");
            self.files.insert(layers.active(), Blocks::new());
            self.layers = layers;
        }

        fn measures(&self) -> BTreeMap<Layer, Measure> {
            let of = |layer| {
                let bytes = (self.files[&layer].len() as u64 + 1) * SMALL_BYTES;
                (layer, Measure { bytes, shared: self.shared.contains(&layer) })
            };
            self.layers.all().map(of).collect()
        }

        fn merge(&mut self, most: usize) -> bool {
            let Some(merge) = next(&self.layers, &self.measures(), most) else { return false };
            assert!(merge.lower != self.machine && merge.upper != self.machine, "it is being written");
            let new = self.layers.next();
            let mut content = self.files[&merge.lower].clone();
            content.extend(&self.files[&merge.upper]);
            assert!(self.files.insert(new, content).is_none(), "a name is given twice");
            self.layers = self.layers.merged(merge);
            true
        }

        fn make(&mut self, step: &Step, most: usize) {
            match step {
                Step::Write(block) => {
                    self.count += 1;
                    self.now.insert(*block, self.count);
                    self.files.get_mut(&self.machine).unwrap().insert(*block, self.count);
                }
                Step::Checkpoint if self.has_room_over(self.layers.active(), most) => {
                    let id = self.new_id();
                    self.kept.insert(id, self.now.clone());
                    self.put_on(self.layers.cut(&id));
                    self.machine = self.layers.active();
                }
                Step::Interrupted(changed_over) if self.has_room_over(self.layers.active(), most) => {
                    self.put_on(self.layers.cutting());
                    if *changed_over {
                        self.machine = self.layers.active();
                    }
                }
                Step::Checkpoint | Step::Interrupted(_) => {}
                Step::Restart => {
                    if let Some(settled) = self.layers.settled() {
                        self.layers = settled;
                    }
                    self.machine = self.layers.active();
                }
                Step::Restore(number) => {
                    let Some(of) = self.chosen(*number) else { return };
                    let layer = self.layers.checkpoint(&of).unwrap();
                    if !self.has_room_over(layer, most) {
                        return;
                    }
                    let replaced = self.new_id();
                    let before = self.seen(self.layers.active());
                    self.put_on(self.layers.back_to(layer, &replaced));
                    self.machine = self.layers.active();
                    self.now = self.kept[&of].clone();
                    self.kept.insert(replaced, before);
                }
                Step::Forget(number) => {
                    let Some(id) = self.chosen(*number) else { return };
                    self.kept.remove(&id);
                    self.layers = self.layers.without(&id);
                }
                Step::Fork(number) => {
                    let Some(id) = self.chosen(*number) else { return };
                    self.shared.extend(self.layers.chain(self.layers.checkpoint(&id).unwrap()));
                }
                Step::Merge => while self.merge(most) {},
            }
        }

        fn check(&self, most: usize) {
            assert_eq!(self.seen(self.layers.active()), self.now);
            for (id, kept) in &self.kept {
                assert_eq!(self.seen(self.layers.checkpoint(id).unwrap()), *kept, "{id}");
            }
            assert!(self.layers.depth(self.layers.active()) <= most);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_merged_every_checkpoint_and_the_disk_are_what_they_were(steps in steps()) {
            const MOST: usize = 12;
            let mut disk = Disk::new();
            for step in &steps {
                disk.make(step, MOST);
                disk.check(MOST);
            }
        }

        #[test]
        fn a_disk_that_is_at_rest_has_no_more_layers_than_checkpoints_or_than_half_of_the_most(steps in steps()) {
            const MOST: usize = 12;
            let mut disk = Disk::new();
            for step in &steps {
                disk.make(step, MOST);
            }
            disk.make(&Step::Restart, MOST);
            disk.make(&Step::Merge, MOST);
            // One that is left over by an interrupted checkpoint is below the active one, and has none to be merged with.
            let needed = disk.kept.len() + 2;
            prop_assert!(disk.layers.depth(disk.layers.active()) <= needed.max(MOST / 2), "{:?}", disk.layers);
        }
    }

    fn id(text: &str) -> CheckpointId {
        text.parse().unwrap()
    }

    /// Three layers of these sizes below the active one, the middle one without a name.
    fn disk(bytes: [u64; 3], shared: bool) -> (Layers, BTreeMap<Layer, Measure>) {
        let layers = Layers::new().cut(&id("v0")).cut(&id("v1")).cut(&id("v2")).without(&id("v1"));
        let sizes = bytes.into_iter().chain([1 << 40]);
        let measures = layers.all().zip(sizes).map(|(layer, bytes)| (layer, Measure { bytes, shared }));
        let measures = measures.collect();
        (layers, measures)
    }

    #[test]
    fn a_merge_is_made_if_it_pays_or_if_there_are_too_many_layers() {
        const GIB: u64 = 1 << 30;
        let next = |bytes, shared, most| {
            let (layers, measures) = disk(bytes, shared);
            let merge = next(&layers, &measures, most)?;
            let all: Vec<Layer> = layers.all().collect();
            assert_eq!(merge, Merge { lower: all[1], upper: all[2] });
            Some(())
        };
        assert!(next([GIB, GIB, GIB], false, 64).is_some());
        assert!(next([GIB, 1 << 20, 1 << 20], false, 64).is_some(), "they are small");
        assert!(next([GIB, GIB, 20 * GIB], false, 64).is_none(), "20 GiB would be written for one");
        assert!(next([GIB, 20 * GIB, GIB], false, 64).is_none());
        assert!(next([GIB, GIB, GIB], true, 64).is_none(), "a fork keeps them");
        assert!(next([GIB, 20 * GIB, GIB], true, 6).is_some(), "there are too many");
    }

    #[test]
    fn what_a_checkpoint_is_named_by_and_what_is_written_are_left_alone() {
        let measures = |layers: &Layers| -> BTreeMap<Layer, Measure> {
            layers.all().map(|layer| (layer, Measure { bytes: 1, shared: false })).collect()
        };
        let named = Layers::new().cut(&id("v0")).cut(&id("v1"));
        assert_eq!(next(&named, &measures(&named), 4), None);
        // The lower has no name; the upper is written.
        let one = Layers::new().cut(&id("v0")).without(&id("v0"));
        assert_eq!(next(&one, &measures(&one), 2), None);
        let unsettled = Layers::new().cut(&id("v0")).without(&id("v0")).cutting().cutting();
        assert_eq!(next(&unsettled, &measures(&unsettled), 2), None);
        assert!(next(&unsettled.settled().unwrap(), &measures(&unsettled), 2).is_some());
    }
}
