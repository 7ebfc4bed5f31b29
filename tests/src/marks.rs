//! The marks of pushers, made from the description and not by the code under test: base64url of the first 16 bytes of
//! HMAC-SHA256 over the pushkey.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac::{HMAC_SHA256, Key, sign};

/// A key of marks.
#[derive(Debug, Clone)]
pub struct MarkKey(Key);

impl MarkKey {
    /// The key of these bytes, as the database keeps them.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Key::new(HMAC_SHA256, bytes))
    }

    /// The mark of a pushkey.
    pub fn mark(&self, pushkey: &str) -> String {
        URL_SAFE_NO_PAD.encode(&sign(&self.0, pushkey.as_bytes()).as_ref()[..16])
    }
}
