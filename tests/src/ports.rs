use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::wait::DEADLINE;

/// Below the range from which systems give ports to outgoing connections, so that no client takes one
/// between its choice and its use.
const FIRST: u32 = 12_000;
const COUNT: u32 = 18_000;

/// A TCP port that nobody listens on, given to one caller only.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two test programs at once start far from one another.
    let start = std::process::id().wrapping_mul(0x9E37_79B1) >> 8;
    for _ in 0..COUNT {
        let port = FIRST + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % COUNT;
        let Ok(port) = u16::try_from(port) else { continue };
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// Pause between two tries to listen.
const AGAIN: Duration = Duration::from_millis(20);

/// Listens on a port that was found free. A test beside this one that is about to start a program has all
/// open sockets twice for a moment, the one that was tried out, too: so it is tried again.
pub(crate) async fn listen(port: u16) -> tokio::net::TcpListener {
    let mut last = None;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while tokio::time::Instant::now() < deadline {
        match tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return listener,
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(AGAIN).await;
    }
    panic!("cannot listen on port {port}: {last:?}");
}
