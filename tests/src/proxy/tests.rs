use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{FaultProxy, Network, Side};
use crate::wait::{DEADLINE, wait_until};

/// How long silence must last to count as such.
const SILENCE: Duration = Duration::from_millis(150);

/// Sends back whatever it gets.
struct Echo {
    port: u16,
    server: JoinHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        Self { port, server }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn setup() -> (Echo, FaultProxy) {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(echo.port).await;
    (echo, proxy)
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn says_back(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(DEADLINE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, text);
}

async fn is_silent(stream: &mut TcpStream) {
    let read = timeout(SILENCE, stream.read_u8()).await;
    assert!(read.is_err(), "not silent: {read:?}");
}

async fn is_reset(stream: &mut TcpStream) {
    let error = timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_fine_passes_both_ways() {
    let (_echo, proxy) = setup().await;
    let mut stream = connect(&proxy).await;
    let large = vec![7; 300_000];
    let (mut reader, mut writer) = stream.split();
    let mut back = vec![0; large.len()];
    let (sent, got) = tokio::join!(writer.write_all(&large), reader.read_exact(&mut back));
    sent.unwrap();
    got.unwrap();
    assert_eq!(back, large);
    assert_eq!((proxy.passed(Side::Client), proxy.passed(Side::Server)), (300_000, 300_000));
    assert_eq!((proxy.accepted(), proxy.standing()), (1, 1));
    // An orderly end passes, too.
    writer.shutdown().await.unwrap();
    assert_eq!(reader.read(&mut back).await.unwrap(), 0);
    wait_until(DEADLINE, "the connection to end", || async { proxy.standing() == 0 }).await;
}

#[tokio::test]
async fn refused_is_refused_until_it_is_not() {
    let (_echo, proxy) = setup().await;
    let mut standing = connect(&proxy).await;
    says_back(&mut standing, b"a").await;
    for _ in 0..5 {
        proxy.set(Network::Refuse).await;
        let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set(Network::Fine).await;
        says_back(&mut connect(&proxy).await, b"b").await;
    }
    is_reset(&mut standing).await;
}

#[tokio::test]
async fn a_hang_moves_nothing_and_loses_nothing() {
    let (_echo, proxy) = setup().await;
    let mut standing = connect(&proxy).await;
    says_back(&mut standing, b"a").await;
    proxy.set(Network::Hang).await;
    standing.write_all(b"bc").await.unwrap();
    let mut fresh = connect(&proxy).await;
    fresh.write_all(b"de").await.unwrap();
    is_silent(&mut standing).await;
    is_silent(&mut fresh).await;
    proxy.set(Network::Fine).await;
    for (stream, expected) in [(&mut standing, b"bc"), (&mut fresh, b"de")] {
        let mut back = [0; 2];
        timeout(DEADLINE, stream.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(&back, expected);
    }
}

#[tokio::test]
async fn one_way_loses_one_direction_and_the_gap_is_never_healed() {
    for side in [Side::Client, Side::Server] {
        let (_echo, proxy) = setup().await;
        let mut stream = connect(&proxy).await;
        says_back(&mut stream, b"a").await;
        proxy.set(Network::Lose(side)).await;
        stream.write_all(b"lost").await.unwrap();
        is_silent(&mut stream).await;
        // Requests reach the server when only its answers vanish.
        let (up, down) = (proxy.passed(Side::Client), proxy.passed(Side::Server));
        assert_eq!((up, down), if side == Side::Client { (1, 1) } else { (5, 1) });
        proxy.set(Network::Fine).await;
        is_reset(&mut stream).await;
        says_back(&mut connect(&proxy).await, b"b").await;
    }
}

#[tokio::test]
async fn a_reset_meets_standing_and_new_connections() {
    let (_echo, proxy) = setup().await;
    let mut standing = connect(&proxy).await;
    says_back(&mut standing, b"a").await;
    proxy.set(Network::Reset).await;
    is_reset(&mut standing).await;
    is_reset(&mut connect(&proxy).await).await;
    proxy.set(Network::Fine).await;
    says_back(&mut connect(&proxy).await, b"b").await;
}

#[tokio::test]
async fn slow_means_no_faster_than_asked() {
    let (_echo, proxy) = setup().await;
    proxy.set(Network::Slow(1000)).await;
    let mut stream = connect(&proxy).await;
    let began = Instant::now();
    says_back(&mut stream, &[1; 300]).await;
    assert!(began.elapsed() >= Duration::from_millis(280), "{:?}", began.elapsed());
    // What is on its way meets the change, too.
    stream.write_all(&[2; 100_000]).await.unwrap();
    proxy.set(Network::Fine).await;
    let mut back = vec![0; 100_000];
    timeout(DEADLINE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, [2; 100_000]);
}

#[tokio::test]
async fn latency_delays_each_direction() {
    let (_echo, proxy) = setup().await;
    proxy.set(Network::Latency(Duration::from_millis(60))).await;
    let mut stream = connect(&proxy).await;
    let began = Instant::now();
    says_back(&mut stream, b"there and back").await;
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_stranded_client_is_told_nothing_while_new_ones_work() {
    let (_echo, proxy) = setup().await;
    let mut old = connect(&proxy).await;
    says_back(&mut old, b"a").await;
    proxy.strand().await;
    old.write_all(b"anybody there?").await.unwrap();
    is_silent(&mut old).await;
    says_back(&mut connect(&proxy).await, b"b").await;
    // No change of the network brings it back.
    proxy.set(Network::Hang).await;
    proxy.set(Network::Fine).await;
    old.write_all(b"hello?").await.unwrap();
    is_silent(&mut old).await;
    drop(old);
    wait_until(DEADLINE, "the connection to end", || async { proxy.standing() == 0 }).await;
}

#[tokio::test]
async fn without_a_server_the_client_is_reset() {
    let (echo, proxy) = setup().await;
    echo.server.abort();
    wait_until(DEADLINE, "the server to be gone", || async { echo.server.is_finished() }).await;
    is_reset(&mut connect(&proxy).await).await;
}

#[tokio::test]
async fn it_can_be_aimed_at_another_server() {
    let (echo, proxy) = setup().await;
    let other = FaultProxy::start(0).await;
    is_reset(&mut connect(&other).await).await;
    other.aim(echo.port).await;
    says_back(&mut connect(&other).await, b"a").await;
    drop(proxy);
}

#[tokio::test]
async fn its_connections_end_with_it() {
    let (_echo, proxy) = setup().await;
    let mut stream = connect(&proxy).await;
    says_back(&mut stream, b"a").await;
    let port = proxy.port();
    drop(proxy);
    assert!(timeout(DEADLINE, stream.read_u8()).await.unwrap().is_err());
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_cut_lets_exactly_so_many_bytes_pass(limit in 0_u64..40_000, chunks in prop::collection::vec(1_usize..9_000, 1..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_echo, proxy) = setup().await;
            proxy.set(Network::CutAfter(Side::Server, limit)).await;
            let stream = connect(&proxy).await;
            let (mut reader, mut writer) = stream.into_split();
            let total: usize = chunks.iter().sum();
            let sender = tokio::spawn(async move {
                for chunk in chunks {
                    if writer.write_all(&vec![5; chunk]).await.is_err() {
                        break;
                    }
                }
                writer
            });
            let expected = usize::try_from(limit).unwrap().min(total);
            let mut back = vec![0; expected];
            timeout(DEADLINE, reader.read_exact(&mut back)).await.unwrap().unwrap();
            if expected < total || limit == 0 {
                // Nothing follows but the end, of whatever kind.
                let more = timeout(DEADLINE, reader.read_u8()).await.unwrap();
                assert!(more.is_err(), "{more:?}");
            }
            assert_eq!(proxy.passed(Side::Server), expected as u64);
            drop(sender.await);
        });
    }
}
