use std::cell::{Cell, RefCell};

use mecha_components_api::Error;

use super::*;
use crate::trip::Trip;

#[derive(Default)]
struct Log(RefCell<Vec<String>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

impl Observe for Log {
    fn applied(&self, kind: PolicyKind, state: Option<State>) {
        self.0.borrow_mut().push(format!("applied {} {}", kind.as_str(), state.map_or("", State::as_str)));
    }
    fn timed_out(&self, after: Duration) {
        self.0.borrow_mut().push(format!("timed out {after:?}"));
    }
    fn retrying(&self, retry: u32, pause: Duration) {
        self.0.borrow_mut().push(format!("retry {retry} {pause:?}"));
    }
    fn recovered(&self, retries: u32) {
        self.0.borrow_mut().push(format!("recovered {retries}"));
    }
    fn breaker_changed(&self, change: Change) {
        self.0.borrow_mut().push(format!("{} -> {}", change.from.as_str(), change.to.as_str()));
    }
}

fn retry(times: u32) -> Option<Retry> {
    Some(Retry::constant(Duration::from_secs(1), times))
}

fn breaker(failures: u32) -> Option<BreakerSpec> {
    Some(BreakerSpec { trip: Trip::MoreInARow(failures), timeout: Duration::from_secs(30), ..BreakerSpec::new("cb") })
}

fn policy(timeout: Option<Duration>, retry: Option<Retry>, breaker: Option<BreakerSpec>) -> Policy {
    Policy::new(PolicySpec { name: "p".into(), timeout, retry, breaker })
}

#[tokio::test(start_paused = true)]
async fn retries_until_it_works_and_says_so() {
    let (policy, log, calls) = (policy(None, retry(5), None), Log::default(), Cell::new(0));
    let began = Instant::now();
    let result = policy
        .run(CallClass::ONCE, &log, |attempt| {
            calls.set(calls.get() + 1);
            async move { if attempt < 2 { Err(Error::unavailable("down")) } else { Ok(attempt) } }
        })
        .await;
    assert_eq!(result.unwrap(), 2);
    assert_eq!(calls.get(), 3);
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(log.lines(), ["applied retry ", "retry 1 1s", "retry 2 1s", "recovered 2"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_comes_back_when_retries_are_used_up() {
    let (policy, calls) = (policy(None, retry(3), None), Cell::new(0));
    let result: Result<(), _> = policy
        .run(CallClass::ONCE, &(), |attempt| {
            calls.set(calls.get() + 1);
            async move { Err(Error::unavailable(format!("try {attempt}"))) }
        })
        .await;
    assert_eq!(result.unwrap_err().to_string(), "try 3");
    assert_eq!(calls.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_cuts_each_attempt_and_is_repeated_only_if_that_is_safe() {
    let limit = Duration::from_millis(100);
    for (class, expected) in [(CallClass::ONCE, 1), (CallClass::IDEMPOTENT, 3)] {
        let (policy, calls) = (policy(Some(limit), retry(2), None), Cell::new(0));
        let result: Result<(), RunError<Error>> = policy
            .run(class, &(), |_| {
                calls.set(calls.get() + 1);
                std::future::pending()
            })
            .await;
        assert!(matches!(result, Err(RunError::TimedOut { after }) if after == limit));
        assert_eq!(calls.get(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_fails_at_once_and_ends_the_retries() {
    let (policy, log, calls) = (policy(None, retry(10), breaker(1)), Log::default(), Cell::new(0));
    let down = |_| {
        calls.set(calls.get() + 1);
        async { Err::<(), _>(Error::unavailable("down")) }
    };
    let result = policy.run(CallClass::ONCE, &log, down).await;
    assert!(matches!(result, Err(RunError::BreakerOpen)));
    assert_eq!(calls.get(), 2);
    assert!(log.lines().contains(&"closed -> open".to_owned()));

    let began = Instant::now();
    let result = policy.run(CallClass::ONCE, &(), down).await;
    assert!(matches!(result, Err(RunError::BreakerOpen)));
    assert_eq!((began.elapsed(), calls.get()), (Duration::ZERO, 2));

    tokio::time::advance(Duration::from_secs(30)).await;
    let log = Log::default();
    let result = policy.run(CallClass::ONCE, &log, |_| async { Ok::<_, Error>(()) }).await;
    assert!(result.is_ok());
    assert_eq!(
        log.lines(),
        ["applied retry ", "applied circuitbreaker half-open", "open -> half-open", "half-open -> closed"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_callers_mistakes_do_not_open_a_breaker() {
    let policy = policy(None, None, breaker(0));
    for _ in 0..10 {
        let result: Result<(), _> =
            policy.run(CallClass::ONCE, &(), |_| async { Err(Error::conflict("stale etag")) }).await;
        assert!(matches!(result, Err(RunError::Failed(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_hold_the_probe() {
    let policy = policy(None, None, breaker(0));
    let _ = policy.run(CallClass::ONCE, &(), |_| async { Err::<(), _>(Error::unavailable("down")) }).await;
    tokio::time::advance(Duration::from_secs(30)).await;
    let stuck = policy.run(CallClass::ONCE, &(), |_| std::future::pending::<Result<(), Error>>());
    assert!(tokio::time::timeout(Duration::from_millis(1), stuck).await.is_err());
    let result = policy.run(CallClass::ONCE, &(), |_| async { Ok::<_, Error>(()) }).await;
    assert!(result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn keys_have_their_own_breakers() {
    let Some(spec) = breaker(0) else { return };
    let group = Arc::new(BreakerGroup::new(spec, BreakerGroup::APP_CAPACITY));
    let policy = Policy::with_guard("app", None, None, Guard::Each(group));
    let down = |_| async { Err::<(), _>(Error::unavailable("down")) };
    let _ = policy.run_keyed("shop:pay", CallClass::ONCE, &(), down).await;
    let again = policy.run_keyed("shop:pay", CallClass::ONCE, &(), down).await;
    assert!(matches!(again, Err(RunError::BreakerOpen)));
    let other = policy.run_keyed("shop:list", CallClass::ONCE, &(), |_| async { Ok::<_, Error>(()) }).await;
    assert!(other.is_ok());
}

#[tokio::test]
async fn an_empty_policy_is_the_bare_call() {
    let result = Policy::none().run(CallClass::ONCE, &(), |n| async move { Ok::<_, Error>(n) }).await;
    assert_eq!(result.unwrap(), 0);
    assert!(Policy::new(PolicySpec { timeout: Some(Duration::ZERO), ..PolicySpec::default() }).is_empty());
}

#[test]
fn the_future_can_move_between_threads() {
    fn assert_send<T: Send>(_: T) {}
    let policy = Policy::none();
    assert_send(policy.run(CallClass::ONCE, &(), |_| async { Ok::<(), Error>(()) }));
}
