//! Against real sockets on loopback.

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    clock::Clock,
    ledger::{Accepted, Ledger},
};

async fn pair() -> (TcpStream, Tracked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).await.expect("connected");
    let (tcp, peer) = listener.accept().await.expect("accepted");
    let ledger = Ledger::new(Clock::start());
    let fd = tcp.as_raw_fd();
    let conn = ledger.enter(Accepted { peer, local: peer, fd, tls: false, tls_name: None });
    (client, Tracked::new(Transport::Plain(tcp), conn))
}

async fn pending(tracked: &mut Tracked) -> bool {
    let mut byte = [0];
    tokio::time::timeout(Duration::from_millis(20), tracked.read(&mut byte)).await.is_err()
}

#[tokio::test]
async fn a_reader_never_gets_a_byte_of_the_next_request() {
    const NEXT: &[u8] = b"GET /next HTTP/1.1\r\n";
    let chunked = b"HEAD3\r\nabc\r\n0\r\n\r\n";
    for (request, framing) in [(&b"HEADbody"[..], Framing::Length(4)), (&chunked[..], Framing::Chunked)] {
        // However much of it was read ahead, the head at least, when the reader came.
        for ahead in 4..=request.len() + NEXT.len() {
            let (mut client, mut tracked) = pair().await;
            let all = [request, NEXT].concat();
            client.write_all(&all[..ahead]).await.expect("sent");
            while tracked.ahead().len() < ahead {
                tracked.fill().await.expect("read");
            }
            client.write_all(&all[ahead..]).await.expect("sent");
            tracked.admit_request(4, framing);
            let mut seen = vec![0; request.len()];
            tracked.read_exact(&mut seen).await.expect("the whole request");
            assert_eq!(seen, request, "{ahead} bytes ahead");
            assert!(pending(&mut tracked).await, "{ahead} bytes ahead");
            assert_eq!(tracked.ahead(), NEXT, "{ahead} bytes ahead");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_answered_is_noticed() {
    let (client, mut tracked) = pair().await;
    tracked.admit_request(0, Framing::Length(0));
    assert!(pending(&mut tracked).await);
    drop(client);
    let mut byte = [0];
    assert_eq!(tracked.read(&mut byte).await.expect("an end"), 0);
}

#[tokio::test]
async fn whoever_reads_ahead_is_stopped_at_a_bound() {
    let (mut client, mut tracked) = pair().await;
    tracked.admit_request(0, Framing::Length(0));
    let flood = tokio::spawn(async move { client.write_all(&vec![b'x'; 64 << 20]).await });
    assert!(pending(&mut tracked).await);
    assert!(tracked.ahead().len() < READ_AHEAD_BYTES + 1024);
    drop(tracked);
    assert!(flood.await.expect("no panic").is_err(), "the rest was never taken");
}

#[tokio::test]
async fn head_and_body_of_a_small_answer_leave_together_and_a_flush_lets_the_head_go() {
    let (mut client, mut tracked) = pair().await;
    for flushed in [false, true] {
        tracked.admit_request(0, Framing::Length(0));
        tracked.write_all(b"head").await.expect("written");
        let mut seen = [0; 64];
        let early = tokio::time::timeout(Duration::from_millis(30), client.read(&mut seen)).await;
        assert!(early.is_err(), "the head has left alone");
        let expected: &[u8] = if flushed {
            tracked.flush().await.expect("flushed");
            b"head"
        } else {
            tracked.write_all(b"body").await.expect("written");
            b"headbody"
        };
        let length = client.read(&mut seen).await.expect("read");
        assert_eq!(&seen[..length], expected);
    }
}

#[tokio::test]
async fn a_large_answer_arrives_whole_behind_its_head() {
    let (mut client, mut tracked) = pair().await;
    let body: Vec<u8> = (0..8 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let expected = [b"head", &body[..]].concat();
    tracked.admit_request(0, Framing::Length(0));
    let writing = tokio::spawn(async move {
        tracked.write_all(b"head").await?;
        tracked.write_all(&body).await?;
        AsyncWriteExt::shutdown(&mut tracked).await
    });
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).await.expect("read");
    writing.await.expect("no panic").expect("written");
    assert!(seen == expected, "{} bytes instead of {}", seen.len(), expected.len());
}

#[tokio::test]
async fn a_kill_wakes_whoever_reads() {
    let (_client, mut tracked) = pair().await;
    let conn = tracked.conn().clone();
    let reading = tokio::spawn(async move {
        let mut byte = [0];
        tracked.read(&mut byte).await
    });
    tokio::task::yield_now().await;
    conn.close();
    let ended = tokio::time::timeout(Duration::from_secs(5), reading).await.expect("at once");
    assert_eq!(ended.expect("no panic").expect("an end"), 0);
}
