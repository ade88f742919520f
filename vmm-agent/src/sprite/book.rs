//! The record of a sprite's checkpoints: pure, stored whole, and always written before the driver acts on it.
//!
//! ```text
//!   begin ──▶ Making ──made──▶ Ready ──forget──▶ Forgetting ──forgotten──▶ gone
//!               └─────────────────────────undo────────────────────────────▶ gone
//! ```
//!
//! An agent that finds something that is neither ready nor gone ends it: what was being made or forgotten is
//! removed, and a restore is finished.

use std::collections::BTreeMap;

use agent_api::Checkpoint;
use ids::CheckpointId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Ancestors that a checkpoint knows of: more than anybody follows back.
const LONGEST_HISTORY: usize = 100;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Book {
    next_numbered: u32,
    next_automatic: u32,
    /// What the disk was last made into, or made from.
    current: Option<CheckpointId>,
    restoring: Option<Restoring>,
    entries: BTreeMap<CheckpointId, Entry>,
}

/// A restore that is past the point where it could be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Restoring {
    pub(crate) checkpoint: CheckpointId,
    /// What the present disk becomes.
    pub(crate) replaced: CheckpointId,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    state: State,
    checkpoint: Checkpoint,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Making,
    Ready,
    Forgetting,
}

impl Book {
    /// The checkpoints that are there, oldest first.
    pub(crate) fn list(&self) -> Vec<Checkpoint> {
        let ready = self.entries.values().filter(|entry| entry.state == State::Ready);
        let mut list: Vec<Checkpoint> = ready.map(|entry| entry.checkpoint.clone()).collect();
        list.sort_by_key(|checkpoint| (checkpoint.create_time, checkpoint.id));
        list
    }

    /// Whether there is such a checkpoint.
    pub(crate) fn has(&self, id: CheckpointId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.state == State::Ready)
    }

    /// What the disk was last made into, or made from.
    pub(crate) const fn current(&self) -> Option<CheckpointId> {
        self.current
    }

    /// A restore that is to be finished.
    pub(crate) const fn restoring(&self) -> Option<Restoring> {
        self.restoring
    }

    /// How many were asked for and are there.
    pub(crate) fn numbered(&self) -> usize {
        self.entries.keys().filter(|id| !id.is_automatic()).count()
    }

    /// Notes that a checkpoint is about to be made.
    pub(crate) fn begin(&mut self, automatic: bool, comment: String, now: Timestamp) -> CheckpointId {
        let next = if automatic { &mut self.next_automatic } else { &mut self.next_numbered };
        let number = *next;
        *next = number.saturating_add(1);
        let id = match automatic {
            true => CheckpointId::Automatic(number),
            false => CheckpointId::Numbered(number),
        };
        let checkpoint =
            Checkpoint { id, create_time: now, source_id: self.current, comment, history: self.history() };
        self.entries.insert(id, Entry { state: State::Making, checkpoint });
        id
    }

    /// The ancestors of the disk as it is.
    fn history(&self) -> Vec<CheckpointId> {
        let Some(current) = self.current else { return Vec::new() };
        let before = self.entries.get(&current).map(|entry| entry.checkpoint.history.clone());
        let mut history = before.unwrap_or_default();
        history.push(current);
        let surplus = history.len().saturating_sub(LONGEST_HISTORY);
        history.drain(..surplus);
        history
    }

    /// The checkpoint is there.
    pub(crate) fn made(&mut self, id: CheckpointId) {
        self.set(id, State::Ready);
        // Automatic ones come and go unseen; nothing descends from them unless one is restored.
        if !id.is_automatic() {
            self.current = Some(id);
        }
    }

    /// It is about to be removed.
    pub(crate) fn forget(&mut self, id: CheckpointId) {
        self.set(id, State::Forgetting);
    }

    /// Nothing of it is there.
    pub(crate) fn gone(&mut self, id: CheckpointId) {
        self.entries.remove(&id);
    }

    fn set(&mut self, id: CheckpointId, state: State) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.state = state;
        }
    }

    /// Notes that a restore is about to be made, and what the present disk becomes.
    pub(crate) fn begin_restore(&mut self, checkpoint: CheckpointId, now: Timestamp) -> Restoring {
        let replaced = self.begin(true, format!("before {checkpoint} was restored"), now);
        let restoring = Restoring { checkpoint, replaced };
        self.restoring = Some(restoring);
        restoring
    }

    /// The disk is the checkpoint's.
    pub(crate) fn restored(&mut self) {
        if let Some(Restoring { checkpoint, replaced }) = self.restoring.take() {
            self.set(replaced, State::Ready);
            self.current = Some(checkpoint);
        }
    }

    /// The disk is the old one.
    pub(crate) fn not_restored(&mut self) {
        if let Some(Restoring { replaced, .. }) = self.restoring.take() {
            self.gone(replaced);
        }
    }

    /// The oldest of those that were made by themselves, if there are more than `most`.
    pub(crate) fn surplus(&self, most: usize) -> Vec<CheckpointId> {
        let automatic: Vec<CheckpointId> =
            self.entries.keys().copied().filter(|id| id.is_automatic() && self.has(*id)).collect();
        let surplus = automatic.len().saturating_sub(most);
        automatic.into_iter().take(surplus).collect()
    }

    /// What is neither there nor gone, and no restore needs.
    pub(crate) fn unfinished(&self) -> Vec<CheckpointId> {
        let needed = self.restoring.map(|restoring| restoring.replaced);
        let left =
            self.entries.iter().filter(|(id, entry)| entry.state != State::Ready && needed != Some(**id));
        left.map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn made(book: &mut Book, automatic: bool) -> CheckpointId {
        let id = book.begin(automatic, String::new(), NOW);
        book.made(id);
        id
    }

    #[test]
    fn no_number_is_given_twice_and_automatic_ones_take_none() {
        let mut book = Book::default();
        assert_eq!(made(&mut book, false), CheckpointId::Numbered(0));
        assert_eq!(made(&mut book, true), CheckpointId::Automatic(0));
        let second = made(&mut book, false);
        assert_eq!(second, CheckpointId::Numbered(1));
        book.forget(second);
        book.gone(second);
        assert_eq!(made(&mut book, false), CheckpointId::Numbered(2));
    }

    #[test]
    fn history_follows_restores() {
        let mut book = Book::default();
        let (first, second) = (made(&mut book, false), made(&mut book, false));
        book.begin_restore(first, NOW);
        book.restored();
        let third = made(&mut book, false);
        let list = book.list();
        let of = |id| list.iter().find(|checkpoint| checkpoint.id == id).unwrap();
        assert_eq!((of(second).source_id, &*of(second).history), (Some(first), &[first][..]));
        assert_eq!((of(third).source_id, &*of(third).history), (Some(first), &[first][..]));
        assert_eq!(of(CheckpointId::Automatic(0)).source_id, Some(second));
    }

    #[test]
    fn an_interrupted_book_says_what_is_left_to_do() {
        let mut book = Book::default();
        let ready = made(&mut book, false);
        let making = book.begin(false, String::new(), NOW);
        let forgetting = made(&mut book, true);
        book.forget(forgetting);
        let restoring = book.begin_restore(ready, NOW);
        let text = serde_json::to_string(&book).unwrap();
        let mut book: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(book.unfinished(), [forgetting, making]);
        assert_eq!(book.restoring(), Some(restoring));
        assert_eq!(book.list().len(), 1);
        book.not_restored();
        assert_eq!((book.restoring(), book.current()), (None, Some(ready)));
        assert!(!book.has(restoring.replaced));
    }

    #[test]
    fn only_the_oldest_automatic_ones_are_surplus() {
        let mut book = Book::default();
        let all: Vec<_> = (0..4).map(|n| made(&mut book, n != 2)).collect();
        assert_eq!(book.surplus(2), [all[0]]);
        assert!(book.surplus(3).is_empty());
    }
}
