//! Binary frames of a command without a terminal: a stream byte, then payload. One WebSocket message, or
//! one chunk of an HTTP answer, is one frame.
//!
//! With a terminal there are no frames: binary messages are the terminal's bytes as they are.

/// The first byte of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Stream {
    /// Client to server.
    Stdin = 0,
    /// Server to client.
    Stdout = 1,
    /// Server to client.
    Stderr = 2,
    /// Server to client, the last frame: the exit code.
    Exit = 3,
    /// Client to server, without payload: no more stdin will come.
    StdinEof = 4,
}

impl Stream {
    /// The byte that begins its frames.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Exit, Self::StdinEof]
            .into_iter()
            .find(|stream| stream.byte() == byte)
    }
}

/// Why a binary message is no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// It has no stream byte.
    #[error("an empty frame")]
    Empty,
    /// There is no such stream.
    #[error("no stream has the number {0}")]
    UnknownStream(u8),
    /// The stream exists, but this side doesn't send it.
    #[error("frames of {0:?} go the other way")]
    WrongDirection(Stream),
    /// The payload of an exit frame is neither one byte nor four.
    #[error("an exit frame of {0} bytes")]
    BadExit(usize),
}

/// A frame that a client sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromClient<'a> {
    /// Bytes for the command.
    Stdin(&'a [u8]),
    /// There will be no more. A payload is ignored.
    StdinEof,
}

impl<'a> FromClient<'a> {
    /// Reads a frame without copying it.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn decode(frame: &'a [u8]) -> Result<Self, FrameError> {
        match split(frame)? {
            (Stream::Stdin, payload) => Ok(Self::Stdin(payload)),
            (Stream::StdinEof, _) => Ok(Self::StdinEof),
            (stream @ (Stream::Stdout | Stream::Stderr | Stream::Exit), _) => {
                Err(FrameError::WrongDirection(stream))
            }
        }
    }

    /// Writes a frame.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Stdin(payload) => join(Stream::Stdin, payload),
            Self::StdinEof => join(Stream::StdinEof, &[]),
        }
    }
}

/// A frame that a server sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromServer<'a> {
    /// What the command wrote.
    Stdout(&'a [u8]),
    /// What it wrote there.
    Stderr(&'a [u8]),
    /// It ended. Signals are 128 and their number, as in a shell.
    Exit(u8),
}

impl<'a> FromServer<'a> {
    /// Reads a frame without copying it. An exit code of four bytes, as some servers write it, is taken too.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn decode(frame: &'a [u8]) -> Result<Self, FrameError> {
        match split(frame)? {
            (Stream::Stdout, payload) => Ok(Self::Stdout(payload)),
            (Stream::Stderr, payload) => Ok(Self::Stderr(payload)),
            (Stream::Exit, [code] | [_, _, _, code]) => Ok(Self::Exit(*code)),
            (Stream::Exit, payload) => Err(FrameError::BadExit(payload.len())),
            (stream @ (Stream::Stdin | Stream::StdinEof), _) => Err(FrameError::WrongDirection(stream)),
        }
    }

    /// Writes a frame.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Stdout(payload) => join(Stream::Stdout, payload),
            Self::Stderr(payload) => join(Stream::Stderr, payload),
            Self::Exit(code) => join(Stream::Exit, &[code]),
        }
    }
}

fn split(frame: &[u8]) -> Result<(Stream, &[u8]), FrameError> {
    let (byte, payload) = frame.split_first().ok_or(FrameError::Empty)?;
    let stream = Stream::from_byte(*byte).ok_or(FrameError::UnknownStream(*byte))?;
    Ok((stream, payload))
}

fn join(stream: Stream, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 1);
    frame.push(stream.byte());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_as_clients_know_them() {
        assert_eq!(FromServer::Exit(7).encode(), [3, 7]);
        assert_eq!(FromServer::Stdout(b"hi").encode(), b"\x01hi");
        assert_eq!(FromClient::StdinEof.encode(), [4]);
        assert_eq!(FromServer::decode(&[3, 0, 0, 0, 9]), Ok(FromServer::Exit(9)));
        assert_eq!(FromServer::decode(&[3]), Err(FrameError::BadExit(0)));
        assert_eq!(FromClient::decode(&[]), Err(FrameError::Empty));
        assert_eq!(FromClient::decode(&[1, 2]), Err(FrameError::WrongDirection(Stream::Stdout)));
        assert_eq!(FromClient::decode(&[9]), Err(FrameError::UnknownStream(9)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(payload: Vec<u8>, code: u8) {
            for frame in [FromClient::Stdin(&payload), FromClient::StdinEof] {
                let bytes = frame.encode();
                prop_assert_eq!(FromClient::decode(&bytes), Ok(frame));
            }
            for frame in [FromServer::Stdout(&payload), FromServer::Stderr(&payload), FromServer::Exit(code)] {
                let bytes = frame.encode();
                prop_assert_eq!(FromServer::decode(&bytes), Ok(frame));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (FromClient::decode(&bytes), FromServer::decode(&bytes));
        }
    }
}
