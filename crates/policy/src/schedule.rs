//! Times by the clock, as cron and CronJobs write them.

use cronexpr::{Crontab, MakeTimestamp, parse_crontab};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Time zone where none is named.
pub const TIME_ZONE: &str = "Etc/UTC";

/// An expression of five fields in a time zone. Where both the day of the month and the day of the week are restricted, either of them
/// is enough, as in cron; a time that a change of the clocks leaves out does not come.
#[derive(Clone, Debug)]
pub struct Schedule {
    crontab: Crontab,
}

impl Schedule {
    /// Reads it.
    ///
    /// # Errors
    /// For people: what is wrong and what to write.
    pub fn parse(expression: &str, time_zone: &str) -> Result<Self, String> {
        if TimeZone::get(time_zone).is_err() {
            return Err(format!(
                "retrain.timeZone: {time_zone} is no time zone of the IANA database; write one such as Europe/Berlin, or leave it out \
                 for {TIME_ZONE}"
            ));
        }
        // The library tells by several lines with the place underlined; the first says what is wrong.
        let crontab = parse_crontab(&format!("{expression} {time_zone}")).map_err(|error| {
            let told = error.to_string();
            let first = told.lines().next().unwrap_or_default().trim_end_matches(':');
            format!(
                "retrain.schedule: {expression} cannot be read ({first}); write minute, hour, day of the month, month and day of the \
                 week, such as 0 3 * * 1 for three o'clock on Mondays"
            )
        })?;
        Ok(Self { crontab })
    }

    /// The first time after this one, to the minute; none where there is none within four years.
    #[must_use]
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let found = self.crontab.find_next(MakeTimestamp(time)).ok()?;
        Some(found.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_zone() {
        let table = [
            (
                "0 3 * * 1",
                "Etc/UTC",
                "2026-11-27T12:00:00Z",
                Some("2026-11-30T03:00:00Z"),
            ),
            // The time itself has come already.
            (
                "0 3 * * 1",
                "Etc/UTC",
                "2026-11-30T03:00:00Z",
                Some("2026-12-07T03:00:00Z"),
            ),
            (
                "0 3 * * MON",
                "Europe/Berlin",
                "2026-11-27T12:00:00Z",
                Some("2026-11-30T02:00:00Z"),
            ),
            (
                "0 3 * * MON",
                "Europe/Berlin",
                "2026-07-03T12:00:00Z",
                Some("2026-07-06T01:00:00Z"),
            ),
            (
                "*/15 * * * *",
                "Asia/Kolkata",
                "2026-11-27T12:01:00Z",
                Some("2026-11-27T12:15:00Z"),
            ),
            // Half past two is left out on that day.
            (
                "30 2 * * *",
                "Europe/Berlin",
                "2026-03-28T12:00:00Z",
                Some("2026-03-30T00:30:00Z"),
            ),
            // On the first, and on Mondays.
            (
                "0 0 1 * 1",
                "Etc/UTC",
                "2026-11-27T12:00:00Z",
                Some("2026-11-30T00:00:00Z"),
            ),
            (
                "0 0 1 * 1",
                "Etc/UTC",
                "2026-11-30T12:00:00Z",
                Some("2026-12-01T00:00:00Z"),
            ),
            (
                "0 0 29 2 *",
                "Etc/UTC",
                "2026-11-27T12:00:00Z",
                Some("2028-02-29T00:00:00Z"),
            ),
            ("0 0 30 2 *", "Etc/UTC", "2026-11-27T12:00:00Z", None),
        ];
        for (expression, zone, now, next) in table {
            let schedule = Schedule::parse(expression, zone).unwrap();
            let found = schedule.after(now.parse().unwrap());
            assert_eq!(
                found,
                next.map(|next| next.parse().unwrap()),
                "{expression} {zone} {now}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_to_write() {
        for (expression, zone, words) in [
            ("61 3 * * 1", "Etc/UTC", "61 3 * * 1 cannot be read"),
            ("0 3 * *", "Etc/UTC", "write minute, hour, day of the month"),
            ("0 3 * * 1 2", "Etc/UTC", "cannot be read"),
            ("0 3 * * FUN", "Etc/UTC", "cannot be read"),
            ("0 3 * * 1", "Europe/Nowhere", "Europe/Nowhere is no time zone"),
        ] {
            let error = Schedule::parse(expression, zone).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }
}
