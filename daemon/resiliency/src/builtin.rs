//! Policies that apply where no document says otherwise, by the names that documents may redefine.

use std::time::Duration;

use crate::backoff::{Backoff, Retry};

const SECOND: Duration = Duration::from_secs(1);

/// Calls between sidecars.
pub const SERVICE_RETRIES: &str = "DaprBuiltInServiceRetries";
/// Calls to actors on other hosts.
pub const ACTOR_RETRIES: &str = "DaprBuiltInActorRetries";
/// Reminders of actors.
pub const ACTOR_REMINDER_RETRIES: &str = "DaprBuiltInActorReminderRetries";
/// Initialisation of the runtime.
pub const INITIALIZATION_RETRIES: &str = "DaprBuiltInInitializationRetries";
/// Actors whose host is not known yet; documents cannot redefine it.
pub const ACTOR_NOT_FOUND_RETRIES: &str = "DaprBuiltInActorNotFoundRetries";

/// The built-in retry policy of that name.
#[must_use]
pub fn built_in(name: &str) -> Option<Retry> {
    Some(match name {
        SERVICE_RETRIES | ACTOR_RETRIES => Retry::constant(SECOND, 3),
        ACTOR_NOT_FOUND_RETRIES => Retry::constant(SECOND, 5),
        ACTOR_REMINDER_RETRIES => Retry { backoff: Backoff::exponential(Duration::from_secs(60)), ..Retry::default() },
        INITIALIZATION_RETRIES => Retry {
            backoff: Backoff::Exponential {
                initial: Duration::from_millis(500),
                multiplier: 1.5,
                randomization: 0.5,
                max_interval: SECOND,
                max_elapsed: Some(Duration::from_secs(10)),
            },
            max_retries: Some(3),
            ..Retry::default()
        },
        _ => return None,
    })
}
