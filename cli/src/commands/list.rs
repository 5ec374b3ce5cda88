//! `mecha list`.

use crate::args::ListArgs;
use crate::error::{OK, Result};
use crate::home::Home;
use crate::output::{self, Table};
use crate::registry::{self, Record};
use jiff::{SpanRound, Timestamp, Unit};

pub(crate) fn run(args: &ListArgs) -> Result<u8> {
    let records = registry::list(&Home::locate()?)?;
    output::print(args.output, &records, || match records.is_empty() {
        true => "nothing runs here\n".to_owned(),
        false => table(&records, Timestamp::now()),
    })?;
    Ok(OK)
}

fn table(records: &[Record], now: Timestamp) -> String {
    let mut table = Table::new([
        "APP ID",
        "HTTP PORT",
        "GRPC PORT",
        "APP PORT",
        "AGE",
        "CREATED",
        "SIDECAR PID",
        "APP PID",
        "CLI PID",
        "COMMAND",
    ]);
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    for record in records {
        table.row(vec![
            record.app_id.clone(),
            number(record.http_port.map(i64::from)),
            number(record.grpc_port.map(i64::from)),
            number(record.app_port.map(i64::from)),
            age(&record.started, now),
            record.started.clone(),
            record.sidecar_pid.to_string(),
            number(record.app_pid.map(i64::from)),
            record.cli_pid.to_string(),
            record.command.join(" "),
        ]);
    }
    table.render()
}

/// Time since `started`, in its largest unit.
fn age(started: &str, now: Timestamp) -> String {
    let Ok(started) = started.parse::<Timestamp>() else { return String::new() };
    let Ok(span) = now.since(started).and_then(|span| span.round(SpanRound::new().largest(Unit::Hour))) else {
        return String::new();
    };
    let (hours, minutes, seconds) = (i64::from(span.get_hours()), span.get_minutes(), span.get_seconds());
    match (hours / 24, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_shows_its_largest_unit() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        for (started, shown) in [
            ("2026-03-02T11:59:58Z", "2s"),
            ("2026-03-02T11:57:00Z", "3m"),
            ("2026-03-02T08:00:00Z", "4h"),
            ("2026-02-25T12:00:00Z", "5d"),
            ("yesterday", ""),
        ] {
            assert_eq!(age(started, now), shown, "{started}");
        }
    }

    #[test]
    fn a_row_tells_where_the_app_is() {
        let record = Record {
            app_id: "orders".into(),
            http_port: Some(3500),
            command: vec!["python3".into(), "app.py".into()],
            ..Record::default()
        };
        let text = table(&[record], Timestamp::now());
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("orders") && row.contains("3500") && row.ends_with("python3 app.py"), "{text}");
    }
}
