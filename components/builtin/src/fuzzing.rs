//! Doors for the fuzz targets. No API; nothing else may call it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::schedule::Schedule;
use crate::secrets_file;

/// The next two times of a schedule after a second of the epoch; `Err` when it is none.
///
/// # Errors
/// What is wrong with the schedule, or with the second.
pub fn schedule(text: &str, after: i64) -> Result<Vec<i64>, String> {
    let schedule = Schedule::parse(text)?;
    let start = Timestamp::from_second(after).map_err(|e| e.to_string())?;
    let Schedule::Cron(cron) = schedule else { return Ok(Vec::new()) };
    let first = cron.next(start, &TimeZone::UTC);
    let second = first.and_then(|first| cron.next(first, &TimeZone::UTC));
    Ok([first, second].into_iter().flatten().map(Timestamp::as_second).collect())
}

/// The secrets of a JSON text.
///
/// # Errors
/// Where the text is wrong.
pub fn secrets(bytes: &[u8], multi_valued: bool) -> Result<BTreeMap<String, BTreeMap<String, String>>, String> {
    let all = secrets_file::parse(bytes, ":", multi_valued)?;
    let exposed = |(name, map): (String, mecha_components_api::SecretMap)| {
        (name, map.into_iter().map(|(k, v)| (k, v.expose().to_owned())).collect())
    };
    Ok(all.into_iter().map(exposed).collect())
}
