//! Moments in RFC 3339, whole seconds, UTC.
//!
//! A seal's times are compared, never shown in a time zone, so the one form `YYYY-MM-DDThh:mm:ssZ` is read and
//! written. `jiff` and `time` were looked at: both weigh more than the rest of this crate, for offsets, fractions
//! and calendars that a signed statement is better without.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind};

const FORM: &str = "a time of the form YYYY-MM-DDThh:mm:ssZ from 1970 to 9999";
const DAY: u64 = 86_400;
/// 9999-12-31T23:59:59Z, the last moment RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

/// A moment: seconds since 1970-01-01T00:00:00Z, leap seconds not counted, at most the end of year 9999.
///
/// Source: RFC 3339 §5.6, restricted to UTC and whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From seconds since the epoch; later than year 9999 becomes its last second.
    #[must_use]
    pub fn from_unix_seconds(seconds: u64) -> Self {
        Self(seconds.min(LAST))
    }

    /// Seconds since the epoch.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.0
    }

    /// This moment and `later`, never past the end of year 9999.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self::from_unix_seconds(self.0.saturating_add(later.as_secs()))
    }
}

/// A clock before 1970 is read as 1970: everything is then "not yet valid", which refuses.
impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self::from_unix_seconds(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of_day(self.0.div_euclid(DAY));
        let second = self.0.rem_euclid(DAY);
        let (hour, minute) = (second.div_euclid(3600), second.div_euclid(60).rem_euclid(60));
        let second = second.rem_euclid(60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        seconds_of(text.as_bytes())
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "time", format_args!("{text:?}"), FORM))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn seconds_of(text: &[u8]) -> Option<u64> {
    let [
        y0,
        y1,
        y2,
        y3,
        b'-',
        m0,
        m1,
        b'-',
        d0,
        d1,
        b'T',
        h0,
        h1,
        b':',
        n0,
        n1,
        b':',
        s0,
        s1,
        b'Z',
    ] = text
    else {
        return None;
    };
    let year = number(&[*y0, *y1, *y2, *y3])?;
    let (month, day) = (number(&[*m0, *m1])?, number(&[*d0, *d1])?);
    let (hour, minute, second) = (number(&[*h0, *h1])?, number(&[*n0, *n1])?, number(&[*s0, *s1])?);
    if year < 1970 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = day_of_date(year, month, day)?;
    let in_day = hour.checked_mul(3600)?.checked_add(minute.checked_mul(60)?)?;
    days.checked_mul(DAY)?.checked_add(in_day)?.checked_add(second)
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit & 0x0f))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn days_in_month(year: u64, month: u64) -> Option<u64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    Some(match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    })
}

/// Days before 1 January of `year`, counted from the year 0 of the proleptic Gregorian calendar.
fn days_before_year(year: u64) -> u64 {
    let past = year.saturating_sub(1);
    year.saturating_mul(365)
        .saturating_add(past.div_euclid(4))
        .saturating_sub(past.div_euclid(100))
        .saturating_add(past.div_euclid(400))
}

/// Days since 1970-01-01, `None` where the calendar has no such day.
fn day_of_date(year: u64, month: u64, day: u64) -> Option<u64> {
    if day == 0 || day > days_in_month(year, month)? {
        return None;
    }
    let months =
        (1..month).try_fold(0u64, |days, month| days.checked_add(days_in_month(year, month)?))?;
    days_before_year(year)
        .checked_sub(days_before_year(1970))?
        .checked_add(months)?
        .checked_add(day.checked_sub(1)?)
}

fn date_of_day(days: u64) -> (u64, u64, u64) {
    let absolute = days.saturating_add(days_before_year(1970));
    // No year is longer than 366 days, so the guess is never late; by year 9999 it is 21 years early.
    let mut year = absolute.div_euclid(366);
    while days_before_year(year.saturating_add(1)) <= absolute {
        year = year.saturating_add(1);
    }
    let mut left = absolute.saturating_sub(days_before_year(year));
    let mut month = 1;
    while let Some(length) = days_in_month(year, month).filter(|length| left >= *length) {
        left = left.saturating_sub(length);
        month = month.saturating_add(1);
    }
    (year, month, left.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `date -u -d TEXT +%s`
    #[test]
    fn moments_agree_with_gnu_date() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1972-02-29T12:00:00Z", 68_212_800),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-24T21:40:01Z", 1_795_556_401),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", LAST),
        ] {
            let parsed: Timestamp = text.parse().unwrap();
            assert_eq!(parsed.unix_seconds(), seconds, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn every_other_form_is_refused() {
        for text in [
            "",
            "2026-11-24",
            "2026-11-24T00:00:00",
            "2026-11-24T00:00:00z",
            "2026-11-24 00:00:00Z",
            "2026-11-24T00:00:00.0Z",
            "2026-11-24T00:00:00+00:00",
            "2026-11-24T24:00:00Z",
            "2026-11-24T23:59:60Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "+026-11-24T00:00:00Z",
            "2026-11-24T00:00:00Z\n",
            "２026-11-24T00:00:0Z",
        ] {
            let error = text.parse::<Timestamp>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0..=LAST) {
            let time = Timestamp::from_unix_seconds(seconds);
            proptest::prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }
}
