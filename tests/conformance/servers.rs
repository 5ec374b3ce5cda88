//! The servers that entries name as `{server:NAME}`: one of each for all entries, started
//! when the first one needs it.

use mecha_testkit::servers::Redis;
use parking_lot::Mutex;

static REDIS: Mutex<Option<Redis>> = Mutex::new(None);

/// What is missing for a server of this name, with what to do about it.
pub(crate) fn missing(name: &str) -> Option<String> {
    match name {
        "redis" => Redis::missing().map(|install| format!("redis-server is not installed ({install})")),
        _ => panic!("conformance/manifest.toml names the unknown server '{name}'"),
    }
}

/// The address of the server of this name.
pub(crate) fn address(name: &str) -> String {
    match name {
        "redis" => {
            let mut redis = REDIS.lock();
            if redis.is_none() {
                *redis = Redis::start();
            }
            redis.as_ref().map(Redis::address).unwrap_or_default()
        }
        _ => panic!("conformance/manifest.toml names the unknown server '{name}'"),
    }
}

/// Ends what was started.
pub(crate) fn stop() {
    drop(REDIS.lock().take());
}
