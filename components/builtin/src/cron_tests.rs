use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::*;

/// A wall clock that follows tokio's test clock and can be set.
#[derive(Debug)]
struct Wall {
    start: Instant,
    base: Mutex<SystemTime>,
}

impl Wall {
    fn at(text: &str) -> Arc<Self> {
        let at: Timestamp = text.parse().unwrap();
        Arc::new(Self { start: Instant::now(), base: Mutex::new(at.into()) })
    }

    fn set_by(&self, seconds: i64) {
        let mut base = self.base.lock();
        let by = Duration::from_secs(seconds.unsigned_abs());
        *base = if seconds < 0 { *base - by } else { *base + by };
    }
}

impl Clock for Wall {
    fn now(&self) -> SystemTime {
        *self.base.lock() + self.start.elapsed()
    }
}

struct App {
    calls: mpsc::UnboundedSender<BindingEvent>,
    gate: Option<Arc<Semaphore>>,
    clock: Arc<Wall>,
}

#[async_trait]
impl OnBindingEvent for App {
    async fn event(&self, event: BindingEvent) -> Result<Option<Bytes>> {
        let _ = self.calls.send(event);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        Err(mecha_components_api::Error::internal("an app that always fails"))
    }
}

struct Running {
    clock: Arc<Wall>,
    calls: mpsc::UnboundedReceiver<BindingEvent>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn start(schedule: &str, at: &str, gate: Option<Arc<Semaphore>>) -> Running {
    let clock = Wall::at(at);
    let md: Metadata = [("schedule", schedule)].into_iter().collect();
    let cx = BuildCx { clock: clock.clone(), ..BuildCx::for_app("app", "tick", "/nowhere") };
    let binding = prepare(&md, "v1").unwrap().build(&cx).await.unwrap();
    let (tx, calls) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let (app, token) = (Arc::new(App { calls: tx, gate, clock: clock.clone() }), stop.clone());
    let task = tokio::spawn(async move {
        let _keep = &app.clock;
        binding.read(app.clone(), token).await
    });
    Running { clock, calls, stop, task }
}

impl Running {
    async fn tick(&mut self) -> String {
        let event = tokio::time::timeout(Duration::from_secs(1_000_000), self.calls.recv()).await.unwrap().unwrap();
        assert!(event.data.is_empty());
        assert_eq!(event.metadata.get("timeZone"), Some("Local"));
        event.metadata.get("readTimeUTC").unwrap().to_owned()
    }
}

#[tokio::test(start_paused = true)]
async fn fires_on_the_second_with_the_time_in_its_metadata() {
    let mut run = start("TZ=UTC */10 * * * * *", "2026-01-01T00:00:03.5Z", None).await;
    for want in ["2026-01-01 00:00:10", "2026-01-01 00:00:20", "2026-01-01 00:00:30"] {
        let got = run.tick().await;
        assert!(got.starts_with(want) && got.ends_with(" +0000 UTC"), "{got}");
    }
    run.stop.cancel();
    run.task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_counts_from_the_start_and_not_by_the_wall_clock() {
    let mut run = start("@every 1h", "2026-01-01T00:00:00Z", None).await;
    let begin = Instant::now();
    run.clock.set_by(86_400);
    run.tick().await;
    run.tick().await;
    assert_eq!(begin.elapsed().as_secs(), 7200);
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_fires_once_and_one_set_back_does_not_stall() {
    let mut run = start("TZ=UTC 0 * * * * *", "2026-01-01T00:00:30Z", None).await;
    run.clock.set_by(600);
    assert!(run.tick().await.starts_with("2026-01-01 00:1"));
    let begin = Instant::now();
    run.clock.set_by(-3600);
    run.tick().await;
    assert!(begin.elapsed() <= Duration::from_secs(91), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_does_not_hold_ticks_up_and_calls_are_bounded() {
    let gate = Arc::new(Semaphore::new(0));
    let mut run = start("@every 1s", "2026-01-01T00:00:00Z", Some(gate.clone())).await;
    for _ in 0..MAX_CALLS {
        run.tick().await;
    }
    let more = tokio::time::timeout(Duration::from_secs(10), run.calls.recv()).await;
    assert!(more.is_err(), "a tick past the bound was not skipped");
    gate.add_permits(1);
    run.tick().await;

    run.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!run.task.is_finished(), "did not wait for the calls in flight");
    gate.add_permits(MAX_CALLS);
    tokio::time::timeout(Duration::from_secs(1), run.task).await.unwrap().unwrap().unwrap();
}

#[test]
fn a_bad_schedule_is_refused_with_its_key() {
    for (text, want) in [("", "required"), ("nonsense", "invalid schedule format 'nonsense'")] {
        let md: Metadata = [("schedule", text)].into_iter().collect();
        let e = prepare(&md, "v1").err().unwrap();
        assert_eq!(e.list()[0].field, "schedule");
        assert!(e.to_string().contains(want), "{e}");
    }
}
