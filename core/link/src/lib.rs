//! The wire of a virtual machine's serial port, beneath the streams that share it.
//!
//! A serial port of a virtual machine is a pipe that outlives both ends of it: the host's program may be killed in
//! the middle of a frame, and the machine may sleep for a month between two bytes. So every connection of
//! the host begins with a reset, after which both sides start from nothing:
//!
//! ```text
//! host                                            guest
//!   filler, RESET{nonce} ────────────────────────►  forgets all streams
//!   drops whatever comes ◄────────────── ACK{nonce}
//!   DATA… ◄────────────────────────────────────► DATA…
//! ```
//!
//! - The filler is as long as the longest frame. A guest that was left in the middle of one takes filler for the
//!   rest of it, finds that its end is not where it must be, and drops it whole: nothing that was cut is delivered.
//! - The nonce is the host's, new each time. What the guest had sent before can't contain it, so the host can't
//!   take old bytes for new ones.
//!
//! Frames are `kind`, body, [`END`]; numbers are big-endian. There is no checksum: the pipe is memory.

/// Nothing; skipped between frames.
const FILLER: u8 = 0x00;
const RESET: u8 = 0x01;
const ACK: u8 = 0x02;
const DATA: u8 = 0x03;
/// The last byte of every frame, which filler is not.
const END: u8 = 0x5a;

/// Keeps a guest that has lost its place from taking anything else for a reset.
const MAGIC: &[u8; 8] = b"sprite\x1b1";
const NONCE_BYTES: usize = 16;
const RESET_BYTES: usize = 1 + MAGIC.len() + NONCE_BYTES + 1;
const ACK_BYTES: usize = 1 + NONCE_BYTES + 1;
/// What a data frame has besides its payload.
const DATA_OVERHEAD: usize = 1 + 2 + 1;

/// The longest frame, in bytes: one buffer of the guest's. Longer ones would save little, and make the filler longer, which
/// every wake waits for.
pub const MAX_FRAME_BYTES: usize = 4 * 1024;
/// The longest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES - DATA_OVERHEAD;

/// Names one connection of the host: random, and new for each.
pub type Nonce = [u8; NONCE_BYTES];

/// How a connection of the host begins: filler and the reset.
#[must_use]
pub fn encode_reset(nonce: &Nonce) -> Vec<u8> {
    let mut bytes = vec![FILLER; MAX_FRAME_BYTES];
    bytes.push(RESET);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(nonce);
    bytes.push(END);
    bytes
}

fn decode_reset(frame: &[u8; RESET_BYTES]) -> Option<Nonce> {
    let (magic, rest) = frame[1..].split_first_chunk::<8>()?;
    let (nonce, end) = rest.split_first_chunk()?;
    (magic == MAGIC && end == [END]).then_some(*nonce)
}

/// The guest's answer to a reset.
#[must_use]
pub fn encode_ack(nonce: &Nonce) -> [u8; ACK_BYTES] {
    let mut frame = [END; ACK_BYTES];
    frame[0] = ACK;
    frame[1..=NONCE_BYTES].copy_from_slice(nonce);
    frame
}

/// Appends a data frame with as much of `bytes` as fits into one, and says how much that was.
pub fn encode_data(bytes: &[u8], into: &mut Vec<u8>) -> usize {
    let payload = &bytes[..bytes.len().min(MAX_PAYLOAD_BYTES)];
    // At most 4 KiB, which two bytes can say.
    let [.., high, low] = payload.len().to_be_bytes();
    into.reserve(payload.len() + DATA_OVERHEAD);
    into.extend_from_slice(&[DATA, high, low]);
    into.extend_from_slice(payload);
    into.push(END);
    payload.len()
}

/// What has arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// At the guest: everything starts anew, and this is to be answered.
    Reset(Nonce),
    /// At the host: the guest has started anew, and what follows is meant for us.
    Acknowledged,
    /// Bytes.
    Data(Vec<u8>),
}

/// What the guest sent was not what it must send. The connection is of no use any more; a new one begins
/// with a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what came from the sprite was no frame")]
pub struct Broken;

/// Which end of the pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Guest,
    /// Until the guest has answered with this, nothing counts.
    HostWaits(Nonce),
    Host,
}

/// Takes bytes as they come, and makes [`Heard`] of them.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    /// The guest has lost its place, or never had one: only a reset counts.
    lost: bool,
    /// What came and was not used up, from `start` on.
    buffer: Vec<u8>,
    start: usize,
}

/// What is at the front of the buffer.
enum Front {
    /// Not enough to tell.
    Short,
    /// This many bytes that say nothing.
    Skip(usize),
    /// A frame of this many bytes.
    Frame(usize, Heard),
    /// No frame.
    Bad,
}

impl Decoder {
    /// The guest's end, before the first reset.
    #[must_use]
    pub const fn guest() -> Self {
        Self { side: Side::Guest, lost: true, buffer: Vec::new(), start: 0 }
    }

    /// The host's end of a connection that began with `nonce`.
    #[must_use]
    pub const fn host(nonce: Nonce) -> Self {
        Self { side: Side::HostWaits(nonce), lost: false, buffer: Vec::new(), start: 0 }
    }

    /// Takes what has come. Holds at most one frame more than it was given at once.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next thing in what has come; `None` if there is no more whole one.
    ///
    /// # Errors
    /// At the host only: [`Broken`]. A guest drops what it does not understand and waits for a reset.
    pub fn hear(&mut self) -> Result<Option<Heard>, Broken> {
        loop {
            let ahead = &self.buffer[self.start..];
            let front = match self.side {
                Side::HostWaits(nonce) => acknowledged(ahead, &nonce),
                Side::Guest if self.lost => reset(ahead),
                Side::Guest | Side::Host => frame(ahead),
            };
            match front {
                Front::Short => return Ok(None),
                Front::Skip(bytes) => self.start += bytes,
                Front::Bad if self.side == Side::Host => return Err(Broken),
                Front::Bad => self.lost = true,
                Front::Frame(bytes, heard) => {
                    self.start += bytes;
                    match (self.side, &heard) {
                        (Side::HostWaits(_), _) => self.side = Side::Host,
                        (Side::Guest, Heard::Reset(_)) => self.lost = false,
                        (Side::Guest, Heard::Acknowledged) => {
                            self.lost = true;
                            continue;
                        }
                        (Side::Guest | Side::Host, Heard::Data(_)) => {}
                        (Side::Host, Heard::Reset(_) | Heard::Acknowledged) => return Err(Broken),
                    }
                    return Ok(Some(heard));
                }
            }
        }
    }
}

/// Looks for the answer to our reset among bytes that were meant for somebody else.
fn acknowledged(ahead: &[u8], nonce: &Nonce) -> Front {
    let wanted = encode_ack(nonce);
    match memchr::memmem::find(ahead, &wanted) {
        Some(at) => Front::Frame(at + wanted.len(), Heard::Acknowledged),
        // Its beginning may have come.
        None if ahead.len() >= wanted.len() => Front::Skip(ahead.len() - (wanted.len() - 1)),
        None => Front::Short,
    }
}

/// Looks for a reset at the front, whatever else is there.
fn reset(ahead: &[u8]) -> Front {
    match ahead.first() {
        None => Front::Short,
        Some(&RESET) => match ahead.first_chunk::<RESET_BYTES>() {
            None => Front::Short,
            Some(whole) => match decode_reset(whole) {
                Some(nonce) => Front::Frame(RESET_BYTES, Heard::Reset(nonce)),
                None => Front::Skip(1),
            },
        },
        Some(_) => Front::Skip(ahead.iter().position(|byte| *byte == RESET).unwrap_or(ahead.len())),
    }
}

fn frame(ahead: &[u8]) -> Front {
    match ahead {
        [] => Front::Short,
        [FILLER, ..] => Front::Skip(ahead.iter().position(|byte| *byte != FILLER).unwrap_or(ahead.len())),
        [RESET, ..] => match ahead.first_chunk::<RESET_BYTES>() {
            None => Front::Short,
            Some(whole) => {
                decode_reset(whole).map_or(Front::Bad, |nonce| Front::Frame(RESET_BYTES, Heard::Reset(nonce)))
            }
        },
        [ACK, ..] => match ahead.first_chunk::<ACK_BYTES>() {
            None => Front::Short,
            Some([.., END]) => Front::Frame(ACK_BYTES, Heard::Acknowledged),
            Some(_) => Front::Bad,
        },
        [DATA, high, low, rest @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            match rest.get(..=length) {
                _ if length == 0 || length > MAX_PAYLOAD_BYTES => Front::Bad,
                None => Front::Short,
                Some([payload @ .., END]) => {
                    Front::Frame(length + DATA_OVERHEAD, Heard::Data(payload.to_vec()))
                }
                Some(_) => Front::Bad,
            }
        }
        [DATA, ..] => Front::Short,
        [_, ..] => Front::Bad,
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ONE: Nonce = [1; NONCE_BYTES];
    const TWO: Nonce = [2; NONCE_BYTES];

    fn data(bytes: &[u8]) -> Vec<u8> {
        let (mut frames, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            at += encode_data(&bytes[at..], &mut frames);
        }
        frames
    }

    /// Everything that a decoder makes of `wire`, given in pieces of at most `piece` bytes.
    fn hear(decoder: &mut Decoder, wire: &[u8], piece: usize) -> Result<Vec<Heard>, Broken> {
        let mut heard = Vec::new();
        for bytes in wire.chunks(piece) {
            decoder.push(bytes);
            while let Some(one) = decoder.hear()? {
                heard.push(one);
            }
        }
        Ok(heard)
    }

    fn joined(heard: &[Heard]) -> Vec<u8> {
        let payload = |one: &Heard| match one {
            Heard::Data(bytes) => bytes.clone(),
            Heard::Reset(_) | Heard::Acknowledged => Vec::new(),
        };
        heard.iter().flat_map(payload).collect()
    }

    proptest! {
        #[test]
        fn bytes_arrive_as_they_were_sent(bytes in vec(any::<u8>(), 0..100_000), piece in 1usize..70_000) {
            let mut wire = encode_reset(&ONE);
            wire.extend(data(&bytes));
            let heard = hear(&mut Decoder::guest(), &wire, piece).unwrap();
            prop_assert_eq!(&heard[0], &Heard::Reset(ONE));
            prop_assert_eq!(joined(&heard), bytes);
        }

        /// A host that is killed in the middle of a frame leaves the guest in the middle of it.
        #[test]
        fn nothing_of_a_frame_that_was_cut_is_delivered(
            bytes in vec(any::<u8>(), 1..MAX_PAYLOAD_BYTES), cut in any::<prop::sample::Index>(), piece in 1usize..50_000,
        ) {
            let frames = data(&bytes);
            let cut = cut.index(frames.len());
            let mut wire = encode_reset(&ONE);
            wire.extend(&frames[..cut]);
            wire.extend(encode_reset(&TWO));
            wire.extend(data(b"after"));
            let heard = hear(&mut Decoder::guest(), &wire, piece).unwrap();
            prop_assert_eq!(heard, vec![
                Heard::Reset(ONE), Heard::Reset(TWO), Heard::Data(b"after".to_vec()),
            ]);
        }

        /// A machine that slept sends the rest of what it had begun to say, then answers.
        #[test]
        fn nothing_that_was_meant_for_an_earlier_host_is_heard(
            old in vec(any::<u8>(), 0..80_000), piece in 1usize..50_000,
        ) {
            let mut wire = old;
            wire.extend(encode_ack(&TWO));
            wire.extend(data(b"new"));
            let heard = hear(&mut Decoder::host(TWO), &wire, piece).unwrap();
            prop_assert_eq!(heard, vec![Heard::Acknowledged, Heard::Data(b"new".to_vec())]);
        }

        #[test]
        fn no_bytes_of_a_guest_hurt(bytes in vec(any::<u8>(), 0..5_000), piece in 1usize..5_000) {
            let mut host = Decoder::host(ONE);
            hear(&mut host, &encode_ack(&ONE), 1).unwrap();
            let _either = hear(&mut host, &bytes, piece);
            hear(&mut Decoder::guest(), &bytes, piece).unwrap();
        }
    }

    #[test]
    fn a_guest_that_speaks_out_of_turn_is_broken() {
        for bad in [encode_reset(&ONE), vec![0xff], vec![DATA, 0, 0, END]] {
            let mut host = Decoder::host(ONE);
            hear(&mut host, &encode_ack(&ONE), 99).unwrap();
            assert_eq!(hear(&mut host, &bad, 99), Err(Broken), "{:?}", &bad[bad.len().saturating_sub(9)..]);
        }
    }

    #[test]
    fn a_guest_that_lost_its_place_hears_only_a_reset() {
        let mut guest = Decoder::guest();
        let mut wire = data(b"nobody listens yet");
        wire.extend(encode_reset(&ONE));
        wire.push(0xee);
        wire.extend(data(b"lost"));
        wire.extend(encode_reset(&TWO));
        let heard = hear(&mut guest, &wire, 1).unwrap();
        assert_eq!(heard, [Heard::Reset(ONE), Heard::Reset(TWO)]);
    }
}
