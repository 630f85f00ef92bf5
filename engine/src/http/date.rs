//! `Date` (RFC 9110 section 6.6.1), written once a second.
//!
//! Relies on the caller for both clocks: the one that orders events, and the wall's. Promises that a response costs a copy
//! of 37 bytes, no system call and no formatting, and that a change of the wall clock shows within a second.

use std::{cell::Cell, time::Duration};

/// `Date: Sun, 06 Nov 1994 08:49:37 GMT` and a line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateLine([u8; 37]);

impl DateLine {
    /// The line for a time in seconds since 1970 (RFC 9110 section 5.6.7: IMF-fixdate). Years end with 9999.
    pub fn at(unix_seconds: u64) -> DateLine {
        const DAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed";
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        let unix_seconds = unix_seconds.min(253_402_300_799);
        let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
        let (year, month, day) = civil(days);
        let mut line = *b"Date: Thu, 00 Jan 0000 00:00:00 GMT\r\n";
        let weekday = (days % 7) as usize * 3;
        line[6..9].copy_from_slice(&DAYS[weekday..weekday + 3]);
        two_digits(&mut line, 11, day);
        let month = month as usize * 3;
        line[14..17].copy_from_slice(&MONTHS[month..month + 3]);
        two_digits(&mut line, 18, year / 100);
        two_digits(&mut line, 20, year % 100);
        two_digits(&mut line, 23, second / 3_600);
        two_digits(&mut line, 26, second / 60 % 60);
        two_digits(&mut line, 29, second % 60);
        DateLine(line)
    }

    /// The line, with its line end.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn two_digits(line: &mut [u8; 37], at: usize, number: u64) {
    line[at] = b'0' + (number / 10) as u8;
    line[at + 1] = b'0' + (number % 10) as u8;
}

/// Year, month (0..=11) and day (1..=31) of a day since 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, so that the leap day is the last of a year; eras of 400 years are all alike.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    (era * 400 + year_of_era + u64::from(month < 2), month, day)
}

/// The line of the present second.
#[derive(Debug)]
pub struct DateCache {
    line: Cell<DateLine>,
    /// When the second ends, on the clock of the caller (ms).
    valid_until: Cell<u64>,
}

impl DateCache {
    /// A cache that holds no line yet.
    pub fn new() -> DateCache {
        DateCache { line: Cell::new(DateLine::at(0)), valid_until: Cell::new(0) }
    }

    /// The line at `now` (ms on a clock that only goes forward); `wall` is asked for the time since 1970 once a second.
    #[inline]
    pub fn line(&self, now: u64, wall: impl FnOnce() -> Duration) -> DateLine {
        if now >= self.valid_until.get() {
            self.renew(now, wall());
        }
        self.line.get()
    }

    #[cold]
    fn renew(&self, now: u64, wall: Duration) {
        self.line.set(DateLine::at(wall.as_secs()));
        self.valid_until.set(now + 1_000 - u64::from(wall.subsec_millis()));
    }
}

impl Default for DateCache {
    fn default() -> Self {
        DateCache::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_the_rfc_has_it() {
        for (seconds, date) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let line = DateLine::at(seconds);
            assert_eq!(line.as_bytes(), format!("Date: {date}\r\n").as_bytes(), "{seconds}");
        }
    }

    #[test]
    fn the_wall_clock_is_asked_once_a_second_and_its_jumps_show() {
        let cache = DateCache::new();
        let never = || -> Duration { panic!("the second has not ended") };
        assert_eq!(cache.line(5, || Duration::from_millis(10_400)), DateLine::at(10));
        assert_eq!(cache.line(604, never), DateLine::at(10));
        assert_eq!(cache.line(605, || Duration::from_millis(11_000)), DateLine::at(11));
        assert_eq!(cache.line(1_604, never), DateLine::at(11));
        assert_eq!(cache.line(1_605, || Duration::from_millis(3_999)), DateLine::at(3));
        assert_eq!(cache.line(1_606, || Duration::from_millis(4_000)), DateLine::at(4));
    }
}
