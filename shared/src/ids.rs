//! The identifiers that come from outside, each checked once where it enters.

use std::{
    fmt,
    hash::Hasher,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// Longest selector that we keep, in bytes.
const MAX_SELECTOR_BYTES: usize = 256;
/// Longest name of a phone that we keep, in bytes.
const MAX_DEVICE_BYTES: usize = 256;
/// Longest Matrix pushkey, in bytes (Matrix client-server API, `POST /pushers/set`).
const MAX_PUSHKEY_BYTES: usize = 512;
/// Longest Matrix app id, in characters (the same section).
const MAX_APP_ID_CHARS: usize = 64;
/// Longest Matrix user ID, in bytes (Matrix appendices, user identifiers).
const MAX_USER_ID_BYTES: usize = 255;

/// Why a value is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The value is empty.
    #[error("must not be empty")]
    Empty,
    /// The value is longer than the limit.
    #[error("must not be longer than {0}")]
    TooLong(&'static str),
    /// The value contains control characters.
    #[error("must not contain control characters")]
    Control,
    /// Not of the form `@localpart:server`.
    #[error("must look like @localpart:server.name")]
    NotAUserId,
    /// Not a server name.
    #[error("must be a server name such as example.org")]
    NotAServerName,
}

fn check(value: &str, fits: bool, limit: &'static str) -> Result<(), IdError> {
    if value.is_empty() {
        Err(IdError::Empty)
    } else if !fits {
        Err(IdError::TooLong(limit))
    } else if has_control(value) {
        Err(IdError::Control)
    } else {
        Ok(())
    }
}

/// Whether there is a control character. Nearly all values are ASCII, and each push has three: so all bytes are looked at
/// side by side, not one character after another.
fn has_control(value: &str) -> bool {
    let ascii = |found, byte: u8| found | byte.is_ascii_control();
    if value.is_ascii() {
        value.bytes().fold(false, ascii)
    } else {
        value.chars().any(char::is_control)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                Self::parse(&value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }
    };
}

text_id! {
    /// The app's name for one account on one phone. Anybody who knows the selector and the token can ring the phone.
    Selector
}
text_id! {
    /// The id of an Acrobits app, which is also the Matrix `app_id`.
    AppId
}
text_id! {
    /// A phone's push token, which is the Matrix `pushkey`.
    Pushkey
}
text_id! {
    /// The phone that an account is on, by the name that the app reports.
    Device
}
text_id! {
    /// A Matrix user ID such as `@bob:example.org`.
    UserId
}
text_id! {
    /// The part of a user ID after its first colon.
    ServerName
}

impl Selector {
    /// Takes a trimmed value of 1 to `MAX_SELECTOR_BYTES` bytes.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        check(value, value.len() <= MAX_SELECTOR_BYTES, "256 bytes")?;
        Ok(Self(value.into()))
    }
}

impl AppId {
    /// Takes a trimmed value of 1 to `MAX_APP_ID_CHARS` characters.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        check(
            value,
            value.chars().count() <= MAX_APP_ID_CHARS,
            "64 characters",
        )?;
        Ok(Self(value.into()))
    }
}

impl Pushkey {
    /// Takes a trimmed value of 1 to `MAX_PUSHKEY_BYTES` bytes.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        check(value, value.len() <= MAX_PUSHKEY_BYTES, "512 bytes")?;
        Ok(Self(value.into()))
    }

    /// A short keyed hash that stands for the pushkey in logs.
    pub fn log_id(&self) -> LogId {
        log_id(self.as_str())
    }
}

impl Device {
    /// Takes a trimmed value of 1 to `MAX_DEVICE_BYTES` bytes.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        check(value, value.len() <= MAX_DEVICE_BYTES, "256 bytes")?;
        Ok(Self(value.into()))
    }
}

impl UserId {
    /// Takes a full user ID: `@`, a localpart, `:`, a server name.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        check(value, value.len() <= MAX_USER_ID_BYTES, "255 bytes")?;
        let (localpart, server) = value
            .strip_prefix('@')
            .and_then(|rest| rest.split_once(':'))
            .ok_or(IdError::NotAUserId)?;
        let spaced = value.chars().any(char::is_whitespace);
        if localpart.is_empty() || spaced || ServerName::parse(server).is_err() {
            return Err(IdError::NotAUserId);
        }
        Ok(Self(value.into()))
    }

    /// The part after the first colon.
    pub fn server_name(&self) -> ServerName {
        // `parse` checked the server name.
        let server = self.0.split_once(':').map_or("", |(_, server)| server);
        ServerName(server.into())
    }
}

impl ServerName {
    /// Takes a host name or address, with or without a port.
    pub fn parse(value: &str) -> Result<Self, IdError> {
        let ok = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        if value.is_empty() || value.len() > 230 || !value.chars().all(ok) {
            return Err(IdError::NotAServerName);
        }
        Ok(Self(value.into()))
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", log_id(self.as_str()))
    }
}

impl fmt::Debug for Pushkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pushkey({})", self.log_id())
    }
}

macro_rules! plain_text {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
plain_text!(AppId, Device, UserId, ServerName);

/// Replaces a secret identifier in logs: 32 bits of a keyed hash, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogId(u32);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

static LOG_KEY: OnceLock<[u8; 16]> = OnceLock::new();

/// Sets the key of [`log_id`], once per process. The store keeps the key, so that a pushkey has the same hash in both
/// processes and after every restart.
pub fn set_log_key(key: [u8; 16]) {
    let _ = LOG_KEY.set(key);
}

/// A short keyed hash of `value` for logs.
pub fn log_id(value: &str) -> LogId {
    let mut hasher = SipHasher13::new_with_key(LOG_KEY.get().unwrap_or(&[0; 16]));
    hasher.write(value.as_bytes());
    let bytes = hasher.finish().to_be_bytes();
    LogId(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_found_wherever_they_stand() {
        for text in ["\n", "a\0", "\u{7f}a", "ü\u{85}", "üa\t"] {
            assert_eq!(Selector::parse(text), Err(IdError::Control), "{text:?}");
        }
        for text in ["a b", "~", "ü", "\u{a0}"] {
            assert!(Selector::parse(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn user_ids() {
        for good in [
            "@bob:example.org",
            "@bob:localhost:8448",
            "@b=c:[::1]",
            "@a/b.c-d_e:x",
        ] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "bob",
            "@bob",
            "@:example.org",
            "@bob:",
            "bob:example.org",
            "@b b:x",
            "@b:x y",
        ] {
            assert!(UserId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_in_the_units_of_the_specification() {
        assert!(AppId::parse(&"ä".repeat(64)).is_ok());
        assert!(AppId::parse(&"ä".repeat(65)).is_err());
        assert!(Pushkey::parse(&"x".repeat(512)).is_ok());
        assert!(Pushkey::parse(&"ä".repeat(257)).is_err());
        assert!(Selector::parse(&"x".repeat(257)).is_err());
        assert!(Pushkey::parse("a\nb").is_err());
    }

    #[test]
    fn debug_of_secrets_does_not_show_them() {
        let key = Pushkey::parse("APA91b-secret").unwrap();
        let selector = Selector::parse("secret-selector").unwrap();
        assert!(!format!("{key:?} {selector:?}").contains("secret"));
    }
}
