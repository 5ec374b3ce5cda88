use proptest::prelude::*;

use super::*;

fn cron(text: &str) -> Cron {
    match Schedule::parse(text).unwrap() {
        Schedule::Cron(cron) => *cron,
        Schedule::Every(_) => panic!("{text} is no cron schedule"),
    }
}

/// The next `n` firings after `after` in `zone`, as local time with offset.
fn firings(text: &str, after: &str, zone: &str, n: usize) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap();
    let (cron, mut at) = (cron(text), after.parse().unwrap());
    (0..n)
        .map(|_| {
            at = cron.next(at, &zone).unwrap();
            at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        })
        .collect()
}

fn utc(text: &str, after: &str) -> String {
    firings(text, after, "UTC", 1).remove(0).trim_end_matches("+00:00").to_owned()
}

#[test]
fn fields_names_lists_ranges_and_steps() {
    let after = "2026-03-04T05:06:07Z"; // a Wednesday
    for (text, want) in [
        ("* * * * *", "2026-03-04T05:07:00"),
        ("* * * * * *", "2026-03-04T05:06:08"),
        ("15 * * * * *", "2026-03-04T05:06:15"),
        ("*/20 * * * * ?", "2026-03-04T05:06:20"),
        ("0 30 * * * *", "2026-03-04T05:30:00"),
        ("5/15 * * * *", "2026-03-04T05:20:00"),
        ("0 9-17/4 * * MON-FRI", "2026-03-04T09:00:00"),
        ("0 0 1,15 * *", "2026-03-15T00:00:00"),
        ("0 0 * jan,Feb *", "2027-01-01T00:00:00"),
        ("0 0 13 * fri", "2026-03-06T00:00:00"),
        ("0 0 */2 * mon", "2026-03-05T00:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
        ("@hourly", "2026-03-04T06:00:00"),
        ("@daily", "2026-03-05T00:00:00"),
        ("@midnight", "2026-03-05T00:00:00"),
        ("@weekly", "2026-03-08T00:00:00"),
        ("@monthly", "2026-04-01T00:00:00"),
        ("@yearly", "2027-01-01T00:00:00"),
        ("TZ=Asia/Tokyo 0 9 * * *", "2026-03-05T00:00:00"),
        ("  CRON_TZ=Asia/Tokyo   @daily ", "2026-03-04T15:00:00"),
    ] {
        assert_eq!(utc(text, after), want, "{text}");
    }
}

#[test]
fn every_takes_a_go_duration() {
    let every = |text| match Schedule::parse(text) {
        Ok(Schedule::Every(d)) => Some(d),
        _ => None,
    };
    assert_eq!(every("@every 1s"), Some(Duration::from_secs(1)));
    assert_eq!(every("@every 1h30m"), Some(Duration::from_secs(5400)));
    assert_eq!(every("@every 1500us"), Some(Duration::from_millis(1)));
    assert_eq!(every("@every 0s"), Some(Duration::from_millis(1)));
    for bad in ["@every", "@every ", "@every 5", "@every -1s", "@every soon"] {
        assert!(Schedule::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn mistakes_are_told_in_words() {
    for (text, want) in [
        ("* * * *", "5 or 6 fields, found 4"),
        ("60 * * * *", "minute '60' must lie within 0 to 59"),
        ("* * * * 7", "day of week '7' must lie within 0 to 6"),
        ("* * 0 * *", "day of month '0'"),
        ("9-5 * * * *", "minute '9-5'"),
        ("*/0 * * * *", "must be above zero"),
        ("a * * * *", "minute 'a'"),
        ("-1 * * * *", "minute"),
        (", * * * *", "is empty"),
        ("0 0 30 2 *", "no date ever matches"),
        ("@sometimes", "expected @every"),
        ("TZ=Mars/Olympus * * * * *", "Mars/Olympus"),
        ("TZ=UTC", "must be followed"),
        ("", "found 0"),
    ] {
        let e = Schedule::parse(text).unwrap_err();
        assert!(e.contains(want), "{text}: {e}");
    }
}

#[test]
fn a_skipped_time_of_day_fires_at_the_end_of_the_gap() {
    let got = firings("30 2 * * *", "2012-03-10T12:00:00Z", "America/New_York", 2);
    assert_eq!(got, ["2012-03-11T03:00:00-04:00", "2012-03-12T02:30:00-04:00"]);
    // Several in one gap are one.
    let got = firings("0,30 2 * * *", "2012-03-10T12:00:00Z", "America/New_York", 2);
    assert_eq!(got, ["2012-03-11T03:00:00-04:00", "2012-03-12T02:00:00-04:00"]);
}

#[test]
fn a_time_of_day_that_comes_twice_fires_once() {
    let got = firings("30 1 * * *", "2012-11-03T12:00:00Z", "America/New_York", 2);
    assert_eq!(got, ["2012-11-04T01:30:00-04:00", "2012-11-05T01:30:00-05:00"]);
}

#[test]
fn an_hourly_schedule_runs_in_real_time_through_both_changes() {
    let got = firings("@hourly", "2012-11-04T04:30:00Z", "America/New_York", 3);
    assert_eq!(got, ["2012-11-04T01:00:00-04:00", "2012-11-04T01:00:00-05:00", "2012-11-04T02:00:00-05:00"]);
    let got = firings("*/30 * * * *", "2012-03-11T06:45:00Z", "America/New_York", 2);
    assert_eq!(got, ["2012-03-11T03:00:00-04:00", "2012-03-11T03:30:00-04:00"]);
}

#[test]
fn midnight_that_does_not_exist_still_fires() {
    let got = firings("@daily", "2018-11-03T12:00:00Z", "America/Sao_Paulo", 2);
    assert_eq!(got, ["2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"]);
}

fn any_field(low: u8, high: u8) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("*".to_owned()),
        2 => (low..=high).prop_map(|v| v.to_string()),
        1 => (low..=high, 1..20u8).prop_map(|(v, s)| format!("{v}/{s}")),
        1 => (1..30u8).prop_map(|s| format!("*/{s}")),
        1 => (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
    ]
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[@a-z0-9*?/,= -]{0,24}") {
        let _ = Schedule::parse(&text);
    }

    /// The next firing matches, lies ahead, and nothing between was left out.
    #[test]
    fn next_is_the_first_match(
        s in any_field(0, 59), m in any_field(0, 59), h in any_field(0, 23), w in any_field(0, 6),
        start in 0i64..4_000_000_000,
    ) {
        let cron = cron(&format!("{s} {m} {h} * * {w}"));
        let after = Timestamp::from_second(start).unwrap();
        let next = cron.next(after, &TimeZone::UTC).unwrap();
        prop_assert!(next > after);
        let matches = |at: Timestamp| {
            let at = TimeZone::UTC.to_datetime(at);
            cron.matches(at.date()) && cron.hour.has(at.hour()) && cron.minute.has(at.minute()) && cron.second.has(at.second())
        };
        prop_assert!(matches(next));
        for second in 1..(next.as_second() - start).min(7200) {
            prop_assert!(!matches(Timestamp::from_second(start + second).unwrap()));
        }
    }

    /// With changing clocks, too, time only goes forward.
    #[test]
    fn firings_go_forward_in_any_zone(h in any_field(0, 23), m in any_field(0, 59), start in 0i64..2_000_000_000) {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let cron = cron(&format!("{m} {h} * * *"));
        let mut at = Timestamp::from_second(start).unwrap();
        for _ in 0..20 {
            let next = cron.next(at, &zone).unwrap();
            prop_assert!(next > at);
            at = next;
        }
    }
}
