//! The mark: how we recognise notifications that come from one of our pushers.
//!
//! The push gateway API has no login. So the worker puts a mark into the data of every pusher, and homeservers return
//! the mark with every notification. Nobody can make a mark without the key, which the database keeps.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Serialize, Serializer};
use subtle::ConstantTimeEq as _;

/// Length of a key, in bytes.
pub const KEY_BYTES: usize = 32;
/// How much of the HMAC a mark carries, in bytes.
const MARK_BYTES: usize = 16;
/// Length of a mark, in base64url characters.
const MARK_CHARS: usize = 22;
/// A key's name is the mark of this text. No pushkey contains a NUL.
const NAME: &str = "\0name";

/// The key that marks are made with.
#[derive(Clone)]
pub struct MarkKey {
    key: hmac::Key,
    /// Distinguishes keys without revealing them.
    name: String,
}

/// The mark in the data of our pushers: 22 base64url characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark([u8; MARK_CHARS]);

/// The key for new marks, and the previous key for as long as its marks count.
#[derive(Debug, Clone)]
pub struct MarkKeys {
    /// Makes the marks of new pushers.
    pub current: MarkKey,
    /// The previous key, and the time until which its marks count, in seconds since 1970.
    pub previous: Option<(MarkKey, i64)>,
}

impl MarkKey {
    /// The key made of these bytes.
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let name = Mark::of(&key, NAME).as_str().chars().take(8).collect();
        Self { key, name }
    }

    /// From the bytes that the database keeps. None if they are no key.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    /// The mark of a pushkey.
    pub fn mark(&self, pushkey: &str) -> Mark {
        Mark::of(&self.key, pushkey)
    }

    /// Whether `given` is the mark of a pushkey. Takes the same time wherever the two differ.
    fn is_mark(&self, pushkey: &str, given: &str) -> bool {
        self.mark(pushkey).0.ct_eq(given.as_bytes()).into()
    }

    /// A name that distinguishes keys without revealing them.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl MarkKeys {
    /// From the values that the database keeps, each under its name. None if the key is missing or not readable.
    pub fn read<'a>(value: impl Fn(&str) -> Option<&'a [u8]>) -> Option<Self> {
        let key = |name| MarkKey::read(value(name)?);
        let until = || {
            let bytes = value("mark_key_until")?.try_into().ok()?;
            Some(i64::from_be_bytes(bytes))
        };
        Some(Self {
            current: key("mark_key")?,
            previous: key("mark_key_before").zip(until()),
        })
    }

    /// Whether `given` is the mark of a pushkey, made with a key that counts at `now`, in seconds since 1970.
    pub fn accept(&self, pushkey: &str, given: &str, now: impl FnOnce() -> i64) -> bool {
        self.current.is_mark(pushkey, given)
            || self
                .previous
                .as_ref()
                .is_some_and(|(key, until)| key.is_mark(pushkey, given) && now() < *until)
    }
}

impl Mark {
    fn of(key: &hmac::Key, text: &str) -> Self {
        let tag = hmac::sign(key, text.as_bytes());
        let mut mark = [0; MARK_CHARS];
        // Both lengths are constants that fit.
        let _ = URL_SAFE_NO_PAD.encode_slice(&tag.as_ref()[..MARK_BYTES], &mut mark);
        Self(mark)
    }

    /// The mark as text.
    pub fn as_str(&self) -> &str {
        // Base64 is ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mark")
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MarkKey({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> MarkKey {
        MarkKey::new(&[byte; KEY_BYTES])
    }

    #[test]
    fn a_mark_is_the_first_half_of_an_hmac() {
        // printf 'APA91b' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0707…07 -binary | head -c 16 | basenc --base64url
        assert_eq!(key(7).mark("APA91b").as_str(), "ChOOUlcqpgzqwQDjanzjKQ");
        assert_eq!(
            serde_json::to_value(key(7).mark("k"))
                .unwrap()
                .as_str()
                .unwrap()
                .len(),
            22
        );
    }

    #[test]
    fn only_the_mark_of_this_pushkey_counts() {
        let keys = MarkKeys {
            current: key(2),
            previous: Some((key(1), 100)),
        };
        let (new, old, other) = (key(2).mark("k"), key(1).mark("k"), key(3).mark("k"));
        let cases = [
            (new.as_str(), "k", 99, true),
            (new.as_str(), "k", 100, true),
            (new.as_str(), "K", 99, false),
            (old.as_str(), "k", 99, true),
            (old.as_str(), "k", 100, false),
            (other.as_str(), "k", 99, false),
            ("", "k", 99, false),
            (&new.as_str()[..21], "k", 99, false),
        ];
        for (given, pushkey, now, accepted) in cases {
            assert_eq!(
                keys.accept(pushkey, given, || now),
                accepted,
                "{given} {pushkey} {now}"
            );
        }
    }

    #[test]
    fn keys_and_marks_are_not_shown() {
        let mark = key(1).mark("k");
        assert_eq!(format!("{mark:?}"), "Mark");
        assert!(format!("{:?}", key(1)).len() < 20);
        assert_ne!(key(1).name(), key(2).name());
    }
}
