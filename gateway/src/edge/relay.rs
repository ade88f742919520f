//! Moves bytes both ways between a client and its sprite until both are done, without keeping a buffer
//! while nothing moves: an idle WebSocket costs a task and two sockets.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What is read at once, on the stack.
const CHUNK_BYTES: usize = 16 * 1024;
/// When one side has ended, how long the other may be silent until it counts as ended too: long enough
/// for a last echo or a close, short enough not to hold a sprite for a client that is gone (T28).
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// How many bytes went which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Moved {
    pub(super) to_sprite: u64,
    pub(super) to_client: u64,
}

/// Relays until both directions have ended, one has failed, or one has ended and the other is silent.
pub(super) async fn relay<C, S>(client: &mut C, sprite: &mut S, moved: &mut Moved) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    let mut silence: Option<Pin<Box<Sleep>>> = None;
    let ended = poll_fn(|cx| {
        let before = *moved;
        let up_done = up.poll(cx, client, sprite, &mut moved.to_sprite)?.is_ready();
        let down_done = down.poll(cx, sprite, client, &mut moved.to_client)?.is_ready();
        if up_done && down_done {
            return Poll::Ready(Ok(()));
        }
        if !up_done && !down_done {
            return Poll::Pending;
        }
        let silence = silence.get_or_insert_with(|| Box::pin(sleep(LAST_WORDS)));
        if before != *moved {
            silence.as_mut().reset(Instant::now() + LAST_WORDS);
        }
        silence.as_mut().poll(cx).map(Ok)
    });
    ended.await
}

/// One way.
#[derive(Default)]
struct Direction {
    /// Read, and not yet taken by the other side.
    kept: BytesMut,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Moving,
    /// The source has ended; the destination is to be told.
    Ending,
    Done,
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while !self.kept.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.kept))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => {
                        self.kept.advance(written);
                        *moved += written as u64;
                    }
                }
            }
            // Gives its memory back.
            self.kept = BytesMut::new();
            match self.stage {
                Stage::Moving => {}
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Done;
                }
                Stage::Done => return Poll::Ready(Ok(())),
            }
            let mut chunk = [MaybeUninit::uninit(); CHUNK_BYTES];
            let mut chunk = ReadBuf::uninit(&mut chunk);
            if self.stage == Stage::Moving {
                match Pin::new(&mut *from).poll_read(cx, &mut chunk)? {
                    Poll::Ready(()) if chunk.filled().is_empty() => self.stage = Stage::Ending,
                    Poll::Ready(()) => self.pass_on(cx, chunk.filled(), to, moved)?,
                    Poll::Pending => {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// Writes what it can at once, and keeps only the rest.
    fn pass_on<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut W,
        moved: &mut u64,
    ) -> io::Result<()> {
        let written = match Pin::new(to).poll_write(cx, bytes)? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(written) => written,
            Poll::Pending => 0,
        };
        *moved += written as u64;
        self.kept.extend_from_slice(&bytes[written..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    type Ended = tokio::task::JoinHandle<(io::Result<()>, Moved)>;

    fn tunnel(buffer: usize) -> (DuplexStream, DuplexStream, Ended) {
        let (client, mut client_side) = duplex(buffer);
        let (sprite, mut sprite_side) = duplex(buffer);
        let ended = tokio::spawn(async move {
            let mut moved = Moved::default();
            let ended = relay(&mut client_side, &mut sprite_side, &mut moved).await;
            (ended, moved)
        });
        (client, sprite, ended)
    }

    #[tokio::test]
    async fn every_byte_arrives_both_ways_whatever_the_buffers() {
        for buffer in [1, 7, 4096] {
            let (client, sprite, ended) = tunnel(buffer);
            let bytes: Vec<u8> = (0..50_000u32).map(|n| n.to_le_bytes()[0]).collect();
            let exchange = |end: DuplexStream, bytes: Vec<u8>| {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(end);
                    let sent = bytes.clone();
                    let writing = tokio::spawn(async move {
                        writer.write_all(&sent).await?;
                        writer.shutdown().await
                    });
                    let mut seen = Vec::new();
                    reader.read_to_end(&mut seen).await.expect("read");
                    writing.await.expect("no panic").expect("written");
                    assert!(seen == bytes);
                })
            };
            let both = (exchange(client, bytes.clone()), exchange(sprite, bytes.clone()));
            both.0.await.expect("the client's bytes");
            both.1.await.expect("the sprite's bytes");
            let (ended, moved) = ended.await.expect("no panic");
            ended.expect("a clean end");
            let length = bytes.len() as u64;
            assert_eq!(moved, Moved { to_sprite: length, to_client: length });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn t28_a_side_that_does_not_answer_an_end_does_not_hold_the_tunnel() {
        let (client, _silent_sprite, ended) = tunnel(64);
        let began = Instant::now();
        drop(client);
        // A write to a client that is gone fails; silence has to be noticed.
        let (_, moved) = ended.await.expect("no panic");
        assert!(began.elapsed() <= LAST_WORDS, "{:?}", began.elapsed());
        assert_eq!(moved, Moved::default());
    }

    #[tokio::test(start_paused = true)]
    async fn t28_a_half_close_is_passed_on_and_the_rest_of_the_answer_arrives() {
        let (mut client, mut sprite, ended) = tunnel(64);
        client.write_all(b"question").await.expect("written");
        client.shutdown().await.expect("half closed");
        let mut question = String::new();
        sprite.read_to_string(&mut question).await.expect("to the half close");
        assert_eq!(question, "question");
        for _ in 0..5 {
            // Slow, but not silent.
            tokio::time::sleep(LAST_WORDS / 2).await;
            sprite.write_all(b"word ").await.expect("written");
        }
        drop(sprite);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("to the end");
        assert_eq!(answer, "word word word word word ");
        ended.await.expect("no panic").0.expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_stays_open() {
        let (mut client, mut sprite, ended) = tunnel(64);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        client.write_all(b"x").await.expect("still open");
        let mut byte = [0];
        sprite.read_exact(&mut byte).await.expect("still open");
        assert!(!ended.is_finished());
    }
}
