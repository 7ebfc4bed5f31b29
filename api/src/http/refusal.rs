//! Responses as bytes, for connections whose request never reaches the router.

use serde_json::json;

use crate::http::errors::Matter;

/// An error in the form that all have, after which the connection ends.
pub(super) fn refusal(matter: Matter, error: &str) -> Vec<u8> {
    let (status, errcode) = matter.code();
    let body = json!({ "errcode": errcode, "error": error }).to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
