use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Counters, Network, Side, Weather};

/// Read at once at most.
const CHUNK: usize = 16 << 10;
/// Steps a second of a slow connection, where it is fast enough for so many.
const STEPS: u32 = 50;

/// One client and its connection to the server.
pub(super) struct Connection {
    number: u64,
    client: TcpStream,
    weather: watch::Receiver<Weather>,
    counters: Arc<Counters>,
}

/// How a connection or one of its directions ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The sender said that it is done; the other direction may go on.
    Done,
    /// Both sides are told with an orderly end.
    Closed,
    /// Both sides are told with a reset.
    Reset,
    /// The client must not find out.
    Stranded,
}

/// What to do with bytes now.
enum Move {
    Pass {
        /// At most this many, then a pause of so much for each.
        most: usize,
        pause: Option<Duration>,
    },
    /// Not before then.
    Later(Instant),
    Hold,
    Lose,
    End(End),
}

/// One direction of a connection.
struct Direction<'a> {
    from: Side,
    number: u64,
    reader: ReadHalf<'a>,
    writer: WriteHalf<'a>,
    weather: watch::Receiver<Weather>,
    counters: &'a Counters,
    passed: u64,
    lost: bool,
}

/// Counts a connection as standing.
struct Standing<'a>(&'a Counters);

impl<'a> Standing<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.standing.fetch_add(1, Ordering::SeqCst);
        Self(counters)
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.standing.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection {
    pub(super) fn new(
        number: u64,
        client: TcpStream,
        weather: watch::Receiver<Weather>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { number, client, weather, counters }
    }

    pub(super) async fn run(mut self) {
        let counters = Arc::clone(&self.counters);
        let _standing = Standing::new(&counters);
        let _ = self.client.set_nodelay(true);
        let (end, server) = match self.reach().await {
            Err(end) => (end, None),
            Ok(mut server) => {
                let _ = server.set_nodelay(true);
                (self.forward(&mut server).await, Some(server))
            }
        };
        match end {
            End::Done | End::Closed => {}
            End::Reset => {
                for stream in [Some(&self.client), server.as_ref()].into_iter().flatten() {
                    let _ = stream.set_zero_linger();
                }
            }
            End::Stranded => {
                drop(server);
                self.swallow().await;
            }
        }
    }

    /// Connects to the server, once the weather allows.
    async fn reach(&mut self) -> Result<TcpStream, End> {
        loop {
            let now = *self.weather.borrow_and_update();
            if self.number < now.stranded {
                return Err(End::Stranded);
            }
            match now.network {
                Network::Refuse | Network::Reset => return Err(End::Reset),
                Network::Hang => {
                    if self.weather.changed().await.is_err() {
                        return Err(End::Closed);
                    }
                }
                // What a client of a server that is gone would see.
                _ => return TcpStream::connect((Ipv4Addr::LOCALHOST, now.server)).await.map_err(|_| End::Reset),
            }
        }
    }

    async fn forward(&mut self, server: &mut TcpStream) -> End {
        let (client_reader, client_writer) = self.client.split();
        let (server_reader, server_writer) = server.split();
        let direction = |from, reader, writer| Direction {
            from,
            number: self.number,
            reader,
            writer,
            weather: self.weather.clone(),
            counters: &self.counters,
            passed: 0,
            lost: false,
        };
        let mut up = std::pin::pin!(direction(Side::Client, client_reader, server_writer).run());
        let mut down = std::pin::pin!(direction(Side::Server, server_reader, client_writer).run());
        let (mut up_done, mut down_done) = (false, false);
        while !(up_done && down_done) {
            tokio::select! {
                end = &mut up, if !up_done => match end {
                    End::Done => up_done = true,
                    other => return other,
                },
                end = &mut down, if !down_done => match end {
                    End::Done => down_done = true,
                    other => return other,
                },
            }
        }
        End::Done
    }

    /// Reads and forgets, until the client gives up.
    async fn swallow(&mut self) {
        let mut buffer = [0; 1024];
        while self.client.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    }
}

impl Direction<'_> {
    /// Moves bytes until the sender is done or the weather ends it.
    async fn run(mut self) -> End {
        let mut buffer = vec![0; CHUNK];
        loop {
            // Bytes that cannot be moved stay with the sender, whose buffers fill up.
            match self.plan(Instant::now()) {
                Move::End(end) => return end,
                Move::Hold => {
                    if self.weather.changed().await.is_err() {
                        return End::Closed;
                    }
                    continue;
                }
                Move::Pass { .. } | Move::Later(_) | Move::Lose => {}
            }
            let read = tokio::select! {
                changed = self.weather.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return End::Closed,
                },
                read = self.reader.read(&mut buffer) => read,
            };
            match read {
                Ok(0) => return self.finish().await,
                Ok(count) => {
                    if let Err(end) = self.write(&buffer[..count]).await {
                        return end;
                    }
                }
                Err(_) => return End::Reset,
            }
        }
    }

    /// The sender is done: so is what the receiver gets, unless it must not know.
    async fn finish(&mut self) -> End {
        loop {
            match self.plan(Instant::now()) {
                Move::End(end) => return end,
                Move::Hold | Move::Lose => {
                    if self.weather.changed().await.is_err() {
                        return End::Closed;
                    }
                }
                Move::Pass { .. } | Move::Later(_) => {
                    let _ = self.writer.shutdown().await;
                    return End::Done;
                }
            }
        }
    }

    /// Writes all of `bytes`, as the weather of each moment allows.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        let arrived = Instant::now();
        while !bytes.is_empty() {
            let (most, pause) = match self.plan(arrived) {
                Move::End(end) => return Err(end),
                Move::Hold => {
                    self.weather.changed().await.map_err(|_| End::Closed)?;
                    continue;
                }
                Move::Lose => {
                    self.lost = true;
                    return Ok(());
                }
                Move::Later(then) => {
                    self.pause(then).await?;
                    continue;
                }
                Move::Pass { most, pause } => (most, pause),
            };
            let most = most.min(bytes.len());
            let written = tokio::select! {
                changed = self.weather.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(End::Closed),
                },
                written = self.writer.write(&bytes[..most]) => written.map_err(|_| End::Reset)?,
            };
            bytes = &bytes[written..];
            self.passed += written as u64;
            self.counters.passed(self.from).fetch_add(written as u64, Ordering::SeqCst);
            if let Some(pause) = pause {
                self.pause(Instant::now() + pause * u32::try_from(written).unwrap_or(u32::MAX)).await?;
            }
        }
        Ok(())
    }

    /// Waits until `then` or until the weather changes.
    async fn pause(&mut self, then: Instant) -> Result<(), End> {
        tokio::select! {
            changed = self.weather.changed() => changed.map_err(|_| End::Closed),
            () = sleep_until(then) => Ok(()),
        }
    }

    /// What to do with bytes that came at `arrived`.
    fn plan(&mut self, arrived: Instant) -> Move {
        let now = *self.weather.borrow_and_update();
        let all = Move::Pass { most: CHUNK, pause: None };
        if self.number < now.stranded {
            return Move::End(End::Stranded);
        }
        if self.lost && now.network != Network::Lose(self.from) {
            return Move::End(End::Reset);
        }
        match now.network {
            Network::Fine => all,
            Network::Refuse | Network::Reset => Move::End(End::Reset),
            Network::Hang => Move::Hold,
            Network::Lose(side) if side == self.from => Move::Lose,
            Network::Lose(_) => all,
            Network::Slow(rate) => {
                let rate = rate.max(1);
                let most = usize::try_from((rate / STEPS).max(1)).unwrap_or(CHUNK).min(CHUNK);
                Move::Pass { most, pause: Some(Duration::from_secs(1) / rate) }
            }
            Network::CutAfter(side, limit) if side == self.from => {
                match usize::try_from(limit.saturating_sub(self.passed)).unwrap_or(CHUNK) {
                    0 => Move::End(End::Closed),
                    left => Move::Pass { most: left.min(CHUNK), pause: None },
                }
            }
            Network::CutAfter(..) => all,
            Network::Latency(delay) if arrived.elapsed() < delay => Move::Later(arrived + delay),
            Network::Latency(_) => all,
        }
    }
}
