// SPDX-License-Identifier: Apache-2.0
//! The query of `/logs/<container>`: `since until follow text timestamps bare tail ansi`.

/// Lines given when `tail` is absent.
pub const TAIL_DEFAULT: u64 = 1000;

/// How many lines from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// `tail=all`.
    All,
    /// `tail=<n>`.
    Last(u64),
}

/// What a reader asks for. Times are nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Nothing older than this.
    pub since: Option<u64>,
    /// Nothing newer than this.
    pub until: Option<u64>,
    /// Go on with new lines as they arrive.
    pub follow: bool,
    /// Lines as (lossy) UTF-8 instead of base64.
    pub text: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// No JSON around the lines.
    pub bare: bool,
    /// With `bare` and `text`: leave terminal escape sequences in.
    pub ansi: bool,
    /// How many lines from the end.
    pub tail: Tail,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            since: None,
            until: None,
            follow: false,
            text: false,
            timestamps: false,
            bare: false,
            ansi: false,
            tail: Tail::Last(TAIL_DEFAULT),
        }
    }
}

/// A parameter that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The query is not `key=value` pairs.
    #[error("the query is not valid: use key=value pairs joined by '&'")]
    Encoding,
    /// A flag with an odd value.
    #[error("{0} must be true or false, or have no value")]
    Flag(&'static str),
    /// A time with an odd value.
    #[error("{0} must be Unix seconds, or a time ago such as 90s, 15m, 2h or 1d")]
    Time(&'static str),
    /// A tail with an odd value.
    #[error("tail must be a number of lines or \"all\"")]
    Tail,
}

impl Query {
    /// Parses a raw query; `now` is nanoseconds since 1970. Unknown parameters are ignored.
    ///
    /// # Errors
    /// [`QueryError`] names the parameter and what it may be.
    pub fn parse(raw: &str, now: u64) -> Result<Self, QueryError> {
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(raw).map_err(|_| QueryError::Encoding)?;
        let mut query = Self::default();
        for (key, value) in &pairs {
            query.set(key, value, now)?;
        }
        Ok(query)
    }

    /// Sets one parameter, as [`Self::parse`] does.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn set(&mut self, key: &str, value: &str, now: u64) -> Result<(), QueryError> {
        match key {
            "since" => self.since = time("since", value, now)?,
            "until" => self.until = time("until", value, now)?,
            "follow" => self.follow = flag("follow", value)?,
            "text" => self.text = flag("text", value)?,
            "timestamps" => self.timestamps = flag("timestamps", value)?,
            "bare" => self.bare = flag("bare", value)?,
            "ansi" => self.ansi = flag("ansi", value)?,
            "tail" => self.tail = tail(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Whether a time lies in the range asked for.
    #[must_use]
    pub fn wants(&self, nanos: u64) -> bool {
        self.since.is_none_or(|since| nanos >= since) && self.until.is_none_or(|until| nanos <= until)
    }
}

fn flag(name: &'static str, value: &str) -> Result<bool, QueryError> {
    match value {
        "" | "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err(QueryError::Flag(name)),
    }
}

/// Digits are Unix seconds, `<n>s|m|h|d` is that long ago; 0 and nothing mean no bound.
fn time(name: &'static str, value: &str, now: u64) -> Result<Option<u64>, QueryError> {
    const SECOND: u64 = 1_000_000_000;
    let (digits, unit) = match value.char_indices().last() {
        None => return Ok(None),
        Some((_, last)) if last.is_ascii_digit() => (value, None),
        Some((at, last)) => (value.get(..at).unwrap_or_default(), Some(last)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QueryError::Time(name));
    }
    let number: u64 = digits.parse().map_err(|_| QueryError::Time(name))?;
    let seconds = match unit {
        None if number == 0 => return Ok(None),
        None => return Ok(Some(number.saturating_mul(SECOND))),
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86400,
        Some(_) => return Err(QueryError::Time(name)),
    };
    Ok(Some(now.saturating_sub(number.saturating_mul(seconds).saturating_mul(SECOND))))
}

fn tail(value: &str) -> Result<Tail, QueryError> {
    match value {
        "" => Ok(Tail::Last(TAIL_DEFAULT)),
        "all" => Ok(Tail::All),
        _ => value.parse().map(Tail::Last).map_err(|_| QueryError::Tail),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const NOW: u64 = 1_000_000 * S;

    #[test]
    fn times() {
        let cases = [
            ("", None),
            ("0", None),
            ("1727579145", Some(1_727_579_145 * S)),
            ("90s", Some(NOW - 90 * S)),
            ("15m", Some(NOW - 900 * S)),
            ("2h", Some(NOW - 7200 * S)),
            ("1d", Some(NOW - 86400 * S)),
            ("0s", Some(NOW)),
            ("99999999d", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
        ];
        for (text, expected) in cases {
            assert_eq!(time("since", text, NOW).unwrap(), expected, "{text}");
        }
        for text in ["-1", "x", "s", "1w", "1.5", "1ü", "18446744073709551616", "+1", "1 s"] {
            assert!(time("until", text, NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn the_tutorials_query() {
        let raw = "since=0&until=0&follow=true&text=true&timestamps=true&bare=true";
        let expected = Query { follow: true, text: true, timestamps: true, bare: true, ..Query::default() };
        assert_eq!(Query::parse(raw, NOW).unwrap(), expected);
        let raw = "text&bare&timestamps&follow&tail=20&other=1";
        assert_eq!(Query::parse(raw, NOW).unwrap(), Query { tail: Tail::Last(20), ..expected });
        assert_eq!(Query::parse("", NOW).unwrap(), Query::default());
        assert_eq!(Query::parse("tail=all&text=false", NOW).unwrap().tail, Tail::All);
    }

    #[test]
    fn odd_values_are_named() {
        for (raw, error) in [
            ("follow=maybe", QueryError::Flag("follow")),
            ("until=tomorrow", QueryError::Time("until")),
            ("tail=-1", QueryError::Tail),
            ("tail=many", QueryError::Tail),
        ] {
            assert_eq!(Query::parse(raw, NOW).unwrap_err(), error, "{raw}");
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        let query = Query { since: Some(5), until: Some(7), ..Query::default() };
        assert_eq!([4, 5, 7, 8].map(|t| query.wants(t)), [false, true, true, false]);
    }
}
