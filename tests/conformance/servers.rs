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

/// Writes a configuration item the way users of this server do.
pub(crate) fn put_setting(server: &str, key: &str, value: &str, version: &str) -> Result<(), String> {
    match server {
        "redis" => redis_says(&["SET", key, &format!("{value}||{version}")], "OK"),
        _ => Err(format!("nobody knows how to write configuration to '{server}'")),
    }
}

/// Removes a configuration item.
pub(crate) fn remove_setting(server: &str, key: &str) -> Result<(), String> {
    match server {
        "redis" => redis_says(&["DEL", key], "1"),
        _ => Err(format!("nobody knows how to remove configuration from '{server}'")),
    }
}

fn redis_says(command: &[&str], wanted: &str) -> Result<(), String> {
    let redis = REDIS.lock();
    let redis = redis.as_ref().ok_or("the server was not started")?;
    let said = redis.command(command);
    if said == wanted { Ok(()) } else { Err(format!("{command:?}: '{said}'")) }
}

/// Ends what was started.
pub(crate) fn stop() {
    drop(REDIS.lock().take());
}
