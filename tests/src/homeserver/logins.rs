//! Password logins at the stand-in.

use axum::response::Response;
use serde_json::{Value, json};

use super::Inner;
use super::fault::{matrix_error, unknown_token};
use crate::server::{self, Request};

/// `POST /login` with a password; users are those of example.org.
pub(super) fn login(inner: &mut Inner, request: &Request) -> Response {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    if body["type"] != "m.login.password" || body["identifier"]["type"] != "m.id.user" {
        return matrix_error(400, "M_UNKNOWN", "Unknown login type");
    }
    let user = body["identifier"]["user"].as_str().unwrap_or_default();
    let user_id = match user.strip_prefix('@') {
        Some(rest) if rest.contains(':') => user.to_owned(),
        Some(_) => return matrix_error(400, "M_INVALID_PARAM", "Expected UserID string"),
        None => format!("@{}:example.org", user.to_lowercase()),
    };
    let password = inner.passwords.get(&user_id);
    if password.is_none_or(|password| body["password"] != **password) {
        return matrix_error(403, "M_FORBIDDEN", "Invalid username or password");
    }
    inner.logins += 1;
    let token = format!("syt_must_not_be_logged_{}", inner.logins);
    inner.devices.push((token.clone(), user_id.clone()));
    let device = format!("DEVICE{}", inner.logins);
    let body = json!({"user_id": user_id, "access_token": token, "device_id": device});
    server::json(200, &body)
}

/// `POST /logout`.
pub(super) fn logout(inner: &mut Inner, request: &Request) -> Response {
    let before = inner.devices.len();
    let own = |(token, _): &(String, String)| Some(token.as_str()) == request.bearer.as_deref();
    inner.devices.retain(|device| !own(device));
    if inner.devices.len() == before {
        return unknown_token();
    }
    server::json(200, &json!({}))
}
