//! Finds the end of a chunked body without decoding it (RFC 9112 §7.1).
//!
//! Whoever reads from a connection may be given this request's bytes, and not one of the next. A body
//! with a length is easy to cut; for a chunked one its chunks have to be counted. Pure: bytes in, a
//! verdict out.
//!
//! ```text
//! Size ─hex…─▶ Extension ─LF─▶ Data(n) ─n bytes─▶ AfterData ─CRLF─▶ Size
//!   └── size 0 ──LF──▶ Trailer ─(lines)─▶ Trailer ─empty line─▶ Done
//! ```

/// Where in the body the next byte belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// In a chunk's size; `digits` seen so far.
    Size { size: u64, digits: u8 },
    /// After the size, up to the line's end.
    Extension { size: u64 },
    /// In a chunk's data.
    Data { left: u64 },
    /// In the line end after a chunk's data.
    AfterData,
    /// In the trailer section; `line` bytes of the present line seen.
    Trailer { line: u64 },
    /// Behind the last byte.
    Done,
}

/// A chunked body that is not one. The reader behind us will say so to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// Follows a chunked body from its first byte.
#[derive(Clone, Debug)]
pub(crate) struct Chunks(At);

impl Default for Chunks {
    fn default() -> Self {
        Self(At::Size { size: 0, digits: 0 })
    }
}

impl Chunks {
    /// Whether the last byte has been seen.
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.0, At::Done)
    }

    /// Takes the next bytes and tells how many of them belong to the body: all, unless it ends in them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let At::Data { left } = self.0 {
                let here = left.min((bytes.len() - at) as u64);
                // Fits: `here` is at most a slice's length.
                at += here as usize;
                self.0 = if here == left { At::AfterData } else { At::Data { left: left - here } };
                continue;
            }
            self.0 = step(self.0, bytes[at])?;
            at += 1;
        }
        Ok(at)
    }
}

/// The place after one byte that is not chunk data.
fn step(place: At, byte: u8) -> Result<At, Malformed> {
    match (place, byte) {
        (At::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
            let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
            if digits == 16 {
                return Err(Malformed);
            }
            Ok(At::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
        }
        (At::Size { digits: 0, .. }, _) => Err(Malformed),
        (At::Size { size, .. } | At::Extension { size }, b'\n') => {
            Ok(if size == 0 { At::Trailer { line: 0 } } else { At::Data { left: size } })
        }
        (At::Size { size, .. } | At::Extension { size }, _) => Ok(At::Extension { size }),
        (At::AfterData, b'\r') => Ok(At::AfterData),
        (At::AfterData, b'\n') => Ok(At::Size { size: 0, digits: 0 }),
        (At::AfterData, _) => Err(Malformed),
        (At::Trailer { line: 0 }, b'\n') => Ok(At::Done),
        (At::Trailer { .. }, b'\n') => Ok(At::Trailer { line: 0 }),
        (At::Trailer { line }, b'\r') => Ok(At::Trailer { line }),
        (At::Trailer { line }, _) => Ok(At::Trailer { line: line + 1 }),
        (At::Data { .. } | At::Done, _) => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Result<Option<usize>, Malformed> {
        let mut chunks = Chunks::default();
        let taken = chunks.take(text.as_bytes())?;
        Ok(chunks.is_done().then_some(taken))
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_not_touched() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A;name=value\r\n0123456789\r\n00\r\n\r\n",
            "1\r\n\n\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
        ] {
            assert_eq!(end(&format!("{body}GET / HTTP/1.1")), Ok(Some(body.len())), "{body:?}");
        }
    }

    #[test]
    fn it_makes_no_difference_how_the_bytes_arrive() {
        let body = b"5\r\nhello\r\nff\r\n";
        let mut text = body.to_vec();
        text.extend([b'\n'; 255]);
        text.extend(b"\r\n0\r\nA: b\r\n\r\nNEXT");
        for step in 1..text.len() {
            let mut chunks = Chunks::default();
            let taken: usize = text.chunks(step).map(|part| chunks.take(part).expect("well formed")).sum();
            assert_eq!(taken, text.len() - 4, "in steps of {step}");
            assert!(chunks.is_done());
        }
    }

    #[test]
    fn what_is_no_chunk_is_malformed() {
        for body in ["\r\n", "x\r\n", "-1\r\n", "11111111111111111\r\n", "1\r\nab\r\n"] {
            assert_eq!(end(body), Err(Malformed), "{body:?}");
        }
        assert_eq!(end("5\r\nhel"), Ok(None));
    }
}
