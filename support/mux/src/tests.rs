use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy, duplex, split},
    net::UnixStream,
    time::timeout,
};

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// A serial port whose host comes and goes: what the host's socket carries, the guest's port does.
fn port() -> (DuplexStream, DuplexStream) {
    duplex(64 * 1024)
}

/// A guest that echoes every stream.
fn echo(port: DuplexStream) -> tokio::task::JoinHandle<std::io::Result<()>> {
    tokio::spawn(Guest::new(port).run(|stream| {
        tokio::spawn(async move {
            let (mut reader, mut writer) = split(stream);
            if copy(&mut reader, &mut writer).await.is_ok() {
                let _reset = writer.shutdown().await;
            }
        });
    }))
}

async fn connected(pipe: UnixStream) -> Opener {
    let (host, opener) = timeout(SOON, Host::connect(pipe)).await.expect("in time").expect("a session");
    tokio::spawn(host.run());
    opener
}

#[tokio::test]
async fn a_stream_carries_bytes_and_both_ends_of_it() {
    let (host, guest) = port();
    let _guest = echo(guest);
    let (session, opener) = Host::connect(host).await.expect("a session");
    let running = tokio::spawn(session.run());
    let mut stream = opener.open().await.expect("a stream");
    stream.write_all(b"hello").await.expect("written");
    stream.shutdown().await.expect("ended");
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
    assert_eq!(answer, "hello");
    drop((stream, opener));
    timeout(SOON, running).await.expect("in time").expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stalls_no_other() {
    let (host, guest) = port();
    let _guest = echo(guest);
    let (session, opener) = Host::connect(host).await.expect("a session");
    let _running = tokio::spawn(session.run());
    let mut stalled = opener.open().await.expect("a stream");
    let writing = tokio::spawn(async move {
        let bytes = vec![1; 1 << 20];
        // Until its window is full, and for ever.
        let mut written = 0;
        loop {
            written += stalled.write(&bytes).await.expect("it is only stalled");
            assert!(written < 4 << 20, "a window is 256 KiB");
        }
    });
    for round in 0..20u8 {
        let mut stream = opener.open().await.expect("a stream");
        let sent = vec![round; 300_000];
        let (mut reader, mut writer) = split(&mut stream);
        let mut heard = Vec::new();
        let both = async {
            tokio::join!(
                async {
                    writer.write_all(&sent).await.expect("written");
                    writer.shutdown().await.expect("ended");
                },
                async { reader.read_to_end(&mut heard).await.expect("read") }
            )
        };
        timeout(SOON, both).await.expect("in time");
        assert!(heard == sent, "round {round}");
    }
    assert!(!writing.is_finished());
    writing.abort();
}

/// A host is killed in the middle of things, and another one comes.
#[tokio::test]
async fn a_new_host_starts_from_nothing() {
    let (host_side, guest) = port();
    let _guest = echo(guest);
    let (mut from_guest, mut to_guest) = split(host_side);
    // The port takes from whichever host there is, as QEMU's socket does.
    let (hosts, mut coming) = tokio::sync::mpsc::channel::<UnixStream>(1);
    tokio::spawn(async move {
        while let Some(host) = coming.recv().await {
            let (mut reader, mut writer) = host.into_split();
            tokio::select! {
                _ = copy(&mut reader, &mut to_guest) => {}
                _ = copy(&mut from_guest, &mut writer) => {}
            }
        }
    });
    for round in 0..10usize {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        hosts.send(theirs).await.expect("the port is there");
        let opener = connected(ours).await;
        let mut stream = opener.open().await.expect("a stream");
        let sent = vec![7; 1000 * (round + 1)];
        stream.write_all(&sent).await.expect("written");
        let mut heard = vec![0; sent.len()];
        timeout(SOON, stream.read_exact(&mut heard)).await.expect("in time").expect("read");
        assert!(heard == sent);
        // Left in the middle of more.
        let mut other = opener.open().await.expect("a stream");
        let _cut = timeout(Duration::from_millis(1), other.write_all(&vec![8; 1 << 20])).await;
    }
}
