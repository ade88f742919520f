//! Files of one sprite become those of another one.

use super::super::identity::IDS_PER_SPRITE;

/// Whose the copy is: ids of one range become those of another one.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Shift {
    from: u32,
    to: u32,
}

impl Shift {
    /// From the range that begins with one id to that which begins with another one.
    pub(in super::super) const fn new(from: u32, to: u32) -> Self {
        Self { from, to }
    }

    pub(super) const fn id(self, id: u32) -> u32 {
        match id.checked_sub(self.from) {
            Some(inside) if inside < IDS_PER_SPRITE => self.to + inside,
            Some(_) | None => id,
        }
    }

    /// The ids in a POSIX access list: a header of four bytes, then tag, permissions and id of each entry.
    pub(super) fn access_list(self, list: &mut [u8]) {
        const NAMED_USER: u16 = 0x02;
        const NAMED_GROUP: u16 = 0x08;
        for entry in list.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            let (tag, rest) = entry.split_at_mut(2);
            if matches!(u16::from_le_bytes([tag[0], tag[1]]), NAMED_USER | NAMED_GROUP) {
                let id = u32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]);
                rest[2..].copy_from_slice(&self.id(id).to_le_bytes());
            }
        }
    }
}
