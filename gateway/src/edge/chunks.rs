//! Finds the end of a chunked body without decoding it (RFC 9112 §7.1), and passes nothing that two parsers
//! might count differently.
//!
//! Bodies are relayed as they stand, so the edge and whoever reads behind it must find the same chunks in
//! the same bytes: lines end with CR LF, sizes are plain hexadecimal digits, extensions are short and have
//! no control characters. A client's body has no trailers; a server's may. Pure: bytes in, a verdict out.
//!
//! ```text
//! Size ─hex…─▶ (Extension) ─CR─▶ SizeEnd ─LF─▶ Data(n) ─n bytes─▶ DataCr ─▶ DataLf ─▶ Size
//!                                   └── size 0 ──▶ Trailers ─(lines, of a server)─▶ Trailers ─CR─▶ End ─LF─▶ Done
//! ```

/// A size has as many digits as 64 bits need.
const MAX_DIGITS: u8 = 16;
/// Nobody uses chunk extensions; a few bytes are let through.
const MAX_EXTENSION_BYTES: u16 = 256;
/// As much as a head has usually.
const MAX_TRAILER_BYTES: u16 = 16 * 1024;

/// Whose body it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sender {
    /// Without trailers: nothing that a sprite believes comes behind what was judged.
    Client,
    Server,
}

/// Where in the body the next byte belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// In a chunk's size; `digits` seen so far.
    Size {
        size: u64,
        digits: u8,
    },
    /// After the size, up to the line's end; so many bytes of it were seen.
    Extension {
        size: u64,
        length: u16,
    },
    /// Before the line feed of a size's line.
    SizeEnd {
        size: u64,
    },
    /// In a chunk's data.
    Data {
        left: u64,
    },
    /// Before the line end after a chunk's data.
    DataCr,
    DataLf,
    /// At the beginning of a line of trailers, or of the last line; so many bytes of trailers were seen.
    Trailers {
        length: u16,
    },
    TrailerLine {
        length: u16,
    },
    TrailerEnd {
        length: u16,
    },
    /// Before the very last line feed.
    End,
    /// Behind the last byte.
    Done,
}

/// A chunked body that is not one, or that not everybody would read alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// Follows a chunked body from its first byte.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    at: At,
    sender: Sender,
}

impl Chunks {
    pub(crate) const fn new(sender: Sender) -> Self {
        Self { at: At::Size { size: 0, digits: 0 }, sender }
    }

    /// Whether the last byte has been seen.
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    /// Takes the next bytes and tells how many of them belong to the body: all, unless it ends in them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let At::Data { left } = self.at {
                let here = left.min((bytes.len() - at) as u64);
                // Fits: `here` is at most a slice's length.
                at += here as usize;
                self.at = if here == left { At::DataCr } else { At::Data { left: left - here } };
                continue;
            }
            self.at = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// The place after one byte that is not chunk data.
    fn step(&self, byte: u8) -> Result<At, Malformed> {
        Ok(match (self.at, byte) {
            (At::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(Malformed);
                }
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                At::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (At::Size { digits: 0, .. }, _) => return Err(Malformed),
            (At::Size { size, .. } | At::Extension { size, .. }, b'\r') => At::SizeEnd { size },
            (At::Size { size, .. }, b';') => At::Extension { size, length: 1 },
            // Old servers pad their sizes with blanks.
            (At::Size { size, .. }, b' ') if self.sender == Sender::Server => {
                At::Extension { size, length: 1 }
            }
            (At::Extension { size, length }, _) if length < MAX_EXTENSION_BYTES && is_text(byte) => {
                At::Extension { size, length: length + 1 }
            }
            (At::SizeEnd { size: 0 }, b'\n') => At::Trailers { length: 0 },
            (At::SizeEnd { size }, b'\n') => At::Data { left: size },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { size: 0, digits: 0 },
            (At::Trailers { .. }, b'\r') => At::End,
            (At::Trailers { length }, _)
                if self.sender == Sender::Server
                    && length < MAX_TRAILER_BYTES
                    && is_text(byte)
                    && byte != b' '
                    && byte != b'\t' =>
            {
                At::TrailerLine { length: length + 1 }
            }
            (At::TrailerLine { length }, b'\r') => At::TrailerEnd { length },
            (At::TrailerLine { length }, _) if length < MAX_TRAILER_BYTES && is_text(byte) => {
                At::TrailerLine { length: length + 1 }
            }
            (At::TrailerEnd { length }, b'\n') => At::Trailers { length },
            (At::End, b'\n') => At::Done,
            (
                At::Size { .. }
                | At::Extension { .. }
                | At::SizeEnd { .. }
                | At::DataCr
                | At::DataLf
                | At::Trailers { .. }
                | At::TrailerLine { .. }
                | At::TrailerEnd { .. }
                | At::End,
                _,
            ) => return Err(Malformed),
            (At::Data { .. } | At::Done, _) => self.at,
        })
    }
}

const fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(sender: Sender, body: &str) -> Result<Option<usize>, Malformed> {
        let mut chunks = Chunks::new(sender);
        let taken = chunks.take(body.as_bytes())?;
        Ok(chunks.is_done().then_some(taken))
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_not_touched() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A;name=value\r\n0123456789\r\n00\r\n\r\n",
            "1\r\n\n\r\n0000000000000000\r\n\r\n",
        ] {
            for sender in [Sender::Client, Sender::Server] {
                assert_eq!(end(sender, &format!("{body}GET / HTTP/1.1")), Ok(Some(body.len())), "{body:?}");
            }
        }
        let trailers = "1 \r\nx\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n";
        assert_eq!(end(Sender::Server, &format!("{trailers}HTTP/1.1")), Ok(Some(trailers.len())));
        assert_eq!(end(Sender::Client, trailers), Err(Malformed));
    }

    #[test]
    fn it_makes_no_difference_how_the_bytes_arrive() {
        let body = b"5\r\nhello\r\nff;x=y\r\n";
        let mut text = body.to_vec();
        text.extend([b'\n'; 255]);
        text.extend(b"\r\n0\r\nA: b\r\n\r\nNEXT");
        for step in 1..text.len() {
            let mut chunks = Chunks::new(Sender::Server);
            let taken: usize = text.chunks(step).map(|part| chunks.take(part).expect("well formed")).sum();
            assert_eq!(taken, text.len() - 4, "in steps of {step}");
            assert!(chunks.is_done());
        }
    }

    /// Each of these was read in two ways by two parsers at some time.
    #[test]
    fn what_not_everybody_reads_alike_is_malformed() {
        for body in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n",
            "0x5\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5\t\r\nhello\r\n",
            "5\nhello\n0\n\n",
            "5\r\nhello\n",
            "5\r\nhello\r0\r\n",
            "5\r\rhello",
            "5;a\nb\r\nhello",
            "5;a\rb\r\nhello",
            "5;a\0b\r\nhello",
            "11111111111111111\r\n",
            "1\r\nab\r\n",
            "0\r\n\n",
            "0\r\n\r\r",
            "0\r\n folded\r\n\r\n",
            "0\r\nA: b\nC: d\r\n\r\n",
        ] {
            for sender in [Sender::Client, Sender::Server] {
                assert_eq!(end(sender, body), Err(Malformed), "{body:?}");
            }
        }
        assert_eq!(end(Sender::Client, "5 \r\nhello\r\n"), Err(Malformed));
        let long = format!("5;{}\r\n", "a".repeat(usize::from(MAX_EXTENSION_BYTES)));
        assert_eq!(end(Sender::Server, &long), Err(Malformed));
        for line in ["a".repeat(usize::from(MAX_TRAILER_BYTES) + 1), "a\r\n".repeat(40_000)] {
            assert_eq!(end(Sender::Server, &format!("0\r\n{line}\r\n\r\n")), Err(Malformed));
        }
        assert_eq!(end(Sender::Client, "5\r\nhel"), Ok(None));
    }
}
