//! Texts for people.

use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

/// A count and a noun, which gets an "s" in the plural.
#[derive(Debug, Clone, Copy)]
pub struct Counted<'a, T>(pub T, pub &'a str);

impl<T: fmt::Display + PartialEq + From<u8>> fmt::Display for Counted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == T::from(1) { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

/// A time in seconds since 1970, as RFC 3339 writes it.
pub fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let texts = [0, 1, 2].map(|count: usize| Counted(count, "dead letter").to_string());
        assert_eq!(texts, ["0 dead letters", "1 dead letter", "2 dead letters"]);
    }
}
