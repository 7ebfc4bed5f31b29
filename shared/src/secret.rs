//! Secrets of the configuration, redacted when printed and compared in constant time, and keys derived from other keys.

use std::fmt;

use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// A token or password that must not reach a log.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Keeps `value` as a secret.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether `given` is this secret. The comparison takes the same time wherever the two differ.
    pub fn matches(&self, given: &str) -> bool {
        self.expose().as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Derives a key for one purpose from another key. Neither key reveals anything about the other.
pub fn derive_key(key: &[u8; 16], purpose: &str) -> [u8; 16] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let tag = hmac::sign(&key, purpose.as_bytes());
    let mut derived = [0; 16];
    derived.copy_from_slice(&tag.as_ref()[..16]);
    derived
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_redacted_and_compares() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert!(secret.matches("hunter2"));
        assert!(!secret.matches("hunter"));
        assert!(!secret.matches(""));
    }

    #[test]
    fn a_derived_key_depends_on_both() {
        let derived = derive_key(&[1; 16], "a");
        assert_eq!(derived, derive_key(&[1; 16], "a"));
        assert_ne!(derived, derive_key(&[1; 16], "b"));
        assert_ne!(derived, derive_key(&[2; 16], "a"));
        assert_ne!(derived, [1; 16]);
    }
}
