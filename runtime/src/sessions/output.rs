//! What a session has written, for all who read it: one bounded buffer, and a place in it for each reader.
//!
//! A reader that attaches begins at the oldest byte that is kept, so replay goes over into live output
//! without a gap or a repetition. Readers own no queues: a thousand of them cost no more than one.
//!
//! When the buffer is full of what somebody has not read yet, the writer waits, and so does the process that
//! writes. How long it waits for one that reads nothing depends on who else would wait with it: see
//! [`Patience`]. One that falls out of the buffer has lost bytes, and is told.
//!
//! Pure: no clock, no I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use frames::Stream;
use ids::Moment;

/// What a chunk costs besides its bytes.
const CHUNK_OVERHEAD: usize = 64;

/// How long a process waits for a reader that reads nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patience {
    /// If it is the only one. `None` is for as long as it stays: its output is what the command is for.
    pub(crate) alone: Option<Duration>,
    /// If others read the same session.
    pub(crate) among_others: Duration,
}

/// A piece of output: the stream's byte, then what was written there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chunk(Bytes);

impl Chunk {
    /// `frame` begins with a stream's byte.
    pub(crate) fn new(frame: Bytes) -> Self {
        debug_assert!(!frame.is_empty(), "a chunk begins with its stream");
        Self(frame)
    }

    /// As a frame of a command without a terminal.
    pub(crate) fn frame(&self) -> &Bytes {
        &self.0
    }

    /// As the bytes of a terminal.
    pub(crate) fn payload(&self) -> Bytes {
        self.0.slice(1..)
    }

    fn stream(&self) -> u8 {
        self.0[0]
    }

    fn cost(&self) -> usize {
        self.0.len() + CHUNK_OVERHEAD
    }
}

/// Names a reader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ReaderId(u64);

#[derive(Debug)]
struct Reader {
    /// The chunk that it reads next, counted from the session's first.
    next: u64,
    /// Since when the writer waits for it.
    awaited_since: Option<Moment>,
    /// The writer has waited long enough.
    given_up: bool,
}

/// Whether there is room for more output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// There is.
    Now,
    /// Not before somebody has read, or this moment has come.
    Later(Option<Moment>),
}

/// What a reader finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Output. It stays unread until [`Output::advance`].
    Chunk(Chunk),
    /// Nothing yet.
    Nothing,
    /// Nothing, and there will be no more.
    End,
    /// What it should have read next is no longer there.
    Lost,
}

/// The buffer.
#[derive(Debug)]
pub(crate) struct Output {
    chunks: VecDeque<Chunk>,
    /// The number of the first of them.
    first: u64,
    cost: usize,
    capacity: usize,
    patience: Patience,
    readers: BTreeMap<ReaderId, Reader>,
    readers_made: u64,
    ended: bool,
}

impl Output {
    /// Keeps up to `capacity` bytes.
    pub(crate) fn new(capacity: usize, patience: Patience) -> Self {
        Self {
            chunks: VecDeque::new(),
            first: 0,
            cost: 0,
            capacity,
            patience,
            readers: BTreeMap::new(),
            readers_made: 0,
            ended: false,
        }
    }

    /// Whether a chunk of `length` bytes may be [pushed](Self::push) now.
    pub(crate) fn room(&mut self, length: usize, now: Moment) -> Room {
        let needed = (self.cost + length + CHUNK_OVERHEAD).saturating_sub(self.capacity);
        let mut freed = 0;
        let dropped = self.chunks.iter().take_while(|chunk| {
            let more = freed < needed;
            freed += chunk.cost();
            more
        });
        // Chunks before this one would have to go.
        let end = self.first + dropped.count() as u64;
        let alone = self.readers.len() == 1;
        let mut wait: Option<Option<Moment>> = None;
        for reader in self.readers.values_mut().filter(|reader| !reader.given_up && reader.next < end) {
            let since = *reader.awaited_since.get_or_insert(now);
            let patience = if alone { self.patience.alone } else { Some(self.patience.among_others) };
            match patience.map(|patience| since + patience) {
                Some(until) if now >= until => reader.given_up = true,
                until => {
                    wait = Some(match wait {
                        None | Some(None) => until,
                        Some(Some(other)) => Some(until.map_or(other, |until| until.min(other))),
                    });
                }
            }
        }
        wait.map_or(Room::Now, Room::Later)
    }

    /// Takes output, and drops the oldest that doesn't fit any more.
    pub(crate) fn push(&mut self, chunk: Chunk) {
        self.cost += chunk.cost();
        self.chunks.push_back(chunk);
        while self.cost > self.capacity && self.chunks.len() > 1 {
            if let Some(oldest) = self.chunks.pop_front() {
                self.cost -= oldest.cost();
                self.first += 1;
            }
        }
    }

    /// There will be no more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// A new reader, at the oldest byte that is kept.
    pub(crate) fn attach(&mut self) -> ReaderId {
        self.readers_made += 1;
        let id = ReaderId(self.readers_made);
        self.readers.insert(id, Reader { next: self.first, awaited_since: None, given_up: false });
        id
    }

    /// A reader leaves.
    pub(crate) fn detach(&mut self, id: ReaderId) {
        self.readers.remove(&id);
    }

    /// What a reader finds at its place.
    pub(crate) fn peek(&self, id: ReaderId) -> Found {
        let Some(reader) = self.readers.get(&id) else { return Found::Lost };
        let Some(index) = reader.next.checked_sub(self.first) else { return Found::Lost };
        match usize::try_from(index).ok().and_then(|index| self.chunks.get(index)) {
            Some(chunk) => Found::Chunk(chunk.clone()),
            None if self.ended => Found::End,
            None => Found::Nothing,
        }
    }

    /// Like [`peek`](Self::peek), but small chunks of one stream that follow each other come as one of up to
    /// `limit` bytes; also says how many there were.
    pub(crate) fn peek_joined(&self, id: ReaderId, limit: usize) -> (Found, u64) {
        let first = match self.peek(id) {
            Found::Chunk(first) => first,
            other => return (other, 0),
        };
        let index = self.readers.get(&id).map_or(0, |reader| reader.next - self.first);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let mut length = first.0.len();
        let more = self.chunks.iter().skip(index + 1).take_while(|chunk| {
            length += chunk.0.len() - 1;
            chunk.stream() == first.stream() && length <= limit
        });
        let count = 1 + more.count();
        if count == 1 {
            return (Found::Chunk(first), 1);
        }
        let mut joined = Vec::with_capacity(limit.min(length));
        joined.push(first.stream());
        for chunk in self.chunks.iter().skip(index).take(count) {
            joined.extend_from_slice(&chunk.0[1..]);
        }
        (Found::Chunk(Chunk(joined.into())), count as u64)
    }

    /// A reader has read `count` chunks.
    pub(crate) fn advance(&mut self, id: ReaderId, count: u64) {
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.next += count;
            reader.awaited_since = None;
            reader.given_up = false;
        }
    }
}

/// The stream's byte that output of a terminal is kept with.
pub(crate) const TERMINAL: Stream = Stream::Stdout;

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { alone: None, among_others: Duration::from_secs(1) };
    const CAPACITY: usize = 4 * (10 + CHUNK_OVERHEAD);

    fn at(millis: u64) -> Moment {
        Moment::from_origin(Duration::from_millis(millis))
    }

    fn chunk(text: &str) -> Chunk {
        Chunk::new(Bytes::from(format!("\u{1}{text:9}")))
    }

    fn text(found: &Found) -> String {
        let Found::Chunk(chunk) = found else { panic!("{found:?}") };
        String::from_utf8(chunk.payload().to_vec()).unwrap().trim().to_owned()
    }

    fn read(output: &mut Output, id: ReaderId) -> String {
        let found = output.peek(id);
        output.advance(id, 1);
        text(&found)
    }

    #[test]
    fn without_readers_the_newest_is_kept() {
        let mut output = Output::new(CAPACITY, PATIENCE);
        for number in 0..10 {
            assert_eq!(output.room(10, at(0)), Room::Now);
            output.push(chunk(&number.to_string()));
        }
        let id = output.attach();
        for expected in ["6", "7", "8", "9"] {
            assert_eq!(read(&mut output, id), expected);
        }
        assert_eq!(output.peek(id), Found::Nothing);
        output.end();
        assert_eq!(output.peek(id), Found::End);
    }

    #[test]
    fn the_writer_waits_for_its_only_reader_as_long_as_that_takes() {
        let mut output = Output::new(CAPACITY, PATIENCE);
        let id = output.attach();
        for _ in 0..4 {
            assert_eq!(output.room(10, at(0)), Room::Now);
            output.push(chunk("x"));
        }
        assert_eq!(output.room(10, at(0)), Room::Later(None));
        assert_eq!(output.room(10, at(1_000_000_000)), Room::Later(None));
        assert_eq!(read(&mut output, id), "x");
        assert_eq!(output.room(10, at(1_000_000_000)), Room::Now);
        output.detach(id);
    }

    #[test]
    fn one_that_reads_nothing_does_not_stall_others() {
        let mut output = Output::new(CAPACITY, PATIENCE);
        let (stalled, lively) = (output.attach(), output.attach());
        for number in 0..4 {
            output.push(chunk(&number.to_string()));
            read(&mut output, lively);
        }
        assert_eq!(output.room(10, at(5)), Room::Later(Some(at(1005))));
        assert_eq!(output.room(10, at(1004)), Room::Later(Some(at(1005))));
        assert_eq!(output.room(10, at(1005)), Room::Now, "it has waited long enough");
        output.push(chunk("4"));
        assert_eq!(output.room(10, at(1006)), Room::Now, "and does not wait again");
        assert_eq!(read(&mut output, lively), "4");
        assert_eq!(output.peek(stalled), Found::Lost);
    }

    #[test]
    fn one_that_reads_slowly_is_waited_for() {
        let mut output = Output::new(CAPACITY, PATIENCE);
        let (slow, quick) = (output.attach(), output.attach());
        for number in 0..100u64 {
            let mut now = at(number * 900);
            while output.room(10, now) != Room::Now {
                now = now + Duration::from_millis(900);
                read(&mut output, slow);
            }
            output.push(chunk("x"));
            read(&mut output, quick);
        }
        assert!(matches!(output.peek(slow), Found::Chunk(_)));
    }

    #[test]
    fn small_chunks_of_one_stream_come_as_one() {
        let mut output = Output::new(1 << 20, PATIENCE);
        let id = output.attach();
        for frame in [&b"\x01ab"[..], b"\x01cd", b"\x02ef", b"\x01gh"] {
            output.push(Chunk::new(Bytes::from_static(frame)));
        }
        for (frame, count) in [(&b"\x01abcd"[..], 2), (b"\x02ef", 1), (b"\x01gh", 1)] {
            let (found, joined) = output.peek_joined(id, 100);
            assert_eq!((found, joined), (Found::Chunk(Chunk::new(Bytes::from_static(frame))), count));
            output.advance(id, joined);
        }
        assert_eq!(output.peek_joined(id, 100), (Found::Nothing, 0));
        output.push(chunk("123456789"));
        output.push(chunk("123456789"));
        assert_eq!(output.peek_joined(id, 15).1, 1, "within the limit");
    }

    /// Whatever happens: what is kept is bounded, and a reader sees the output from its beginning without gap
    /// or repetition, or learns that it has lost some.
    #[test]
    fn no_sequence_of_events_leaves_a_gap() {
        let mut state = 7u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..500 {
            let alone = if random(2) == 0 { None } else { Some(Duration::from_secs(3)) };
            let mut output = Output::new(CAPACITY, Patience { alone, ..PATIENCE });
            let mut readers: Vec<(ReaderId, Option<u64>)> = Vec::new();
            let (mut now, mut written) = (at(0), 0u64);
            for _ in 0..300 {
                now = now + Duration::from_millis(random(400));
                match random(8) {
                    0 if readers.len() < 4 => readers.push((output.attach(), None)),
                    1 if !readers.is_empty() => {
                        let index = random(readers.len() as u64) as usize;
                        let (id, _) = readers.swap_remove(index);
                        output.detach(id);
                    }
                    2..=4 if !readers.is_empty() => {
                        let index = random(readers.len() as u64) as usize;
                        let (id, last) = &mut readers[index];
                        match output.peek(*id) {
                            Found::Lost | Found::Nothing => {}
                            found => {
                                let number: u64 = text(&found).parse().unwrap();
                                assert!(last.is_none_or(|last| last + 1 == number), "{last:?} {number}");
                                *last = Some(number);
                                output.advance(*id, 1);
                            }
                        }
                    }
                    _ => {
                        if output.room(10, now) == Room::Now {
                            output.push(chunk(&written.to_string()));
                            written += 1;
                        }
                    }
                }
                assert!(output.cost <= CAPACITY);
            }
        }
    }
}
