//! The date for templates that ask for it (`strftime_now`), in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From the day of the epoch on.
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// Time since the epoch; a clock before it counts as the epoch.
pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Formats a time as `strftime` does; `None` for a directive that is not known.
pub(super) fn format(since_epoch: Duration, pattern: &str) -> Option<String> {
    let seconds = since_epoch.as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let (year, month, day, of_year) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let hour_12 = (hour + 11) % 12 + 1;

    let mut out = String::with_capacity(pattern.len() * 2);
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'Y' => out += &year.to_string(),
            'y' => out += &format!("{:02}", year % 100),
            'm' => out += &format!("{month:02}"),
            'd' => out += &format!("{day:02}"),
            'e' => out += &format!("{day:2}"),
            'j' => out += &format!("{of_year:03}"),
            'H' => out += &format!("{hour:02}"),
            'I' => out += &format!("{hour_12:02}"),
            'M' => out += &format!("{minute:02}"),
            'S' => out += &format!("{second:02}"),
            'p' => out += if hour < 12 { "AM" } else { "PM" },
            'B' => out += month_name,
            'b' => out += &month_name[..3],
            'A' => out += day_name,
            'a' => out += &day_name[..3],
            'Z' => out += "UTC",
            '%' => out.push('%'),
            _ => return None,
        }
    }
    Some(out)
}

/// Year, month, day and day of the year of a day since the epoch, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    // The calendar repeats after 400 years of 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = days + 1;
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from `date -u -d @N +FORMAT`.
    #[test]
    fn date_of_known_seconds_is_that_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu Thursday 001 Jan"),
            (951_827_696, "2000-02-29 12:34:56 Tue Tuesday 060 Feb"),
            (1_709_251_199, "2024-02-29 23:59:59 Thu Thursday 060 Feb"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday 366 Dec"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon Monday 060 Mar"),
            (13_574_563_200, "2400-02-29 00:00:00 Tue Tuesday 060 Feb"),
        ] {
            let got = format(
                Duration::from_secs(seconds),
                "%Y-%m-%d %H:%M:%S %a %A %j %b",
            );
            assert_eq!(got.as_deref(), Some(expected));
        }
    }

    #[test]
    fn date_directives_beyond_the_list_are_refused() {
        let t = Duration::from_secs(951_827_696);
        let shown = format(t, "%d %B %Y, %e.%y %I %p 100%%");
        assert_eq!(shown.as_deref(), Some("29 February 2000, 29.00 12 PM 100%"));
        assert_eq!(format(t, "%Q"), None);
        assert_eq!(format(t, "%"), None);
    }
}
