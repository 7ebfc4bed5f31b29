//! The pushers that the stand-in holds: setting, deleting and listing them.

use axum::response::Response;
use serde_json::{Value, json};
use url::Url;

use super::fault::matrix_error;
use super::{Inner, Pusher};
use crate::server::{self, Request};

const REQUIRED: [&str; 7] = [
    "kind",
    "app_id",
    "app_display_name",
    "device_display_name",
    "pushkey",
    "lang",
    "data",
];

/// `POST /pushers/set`, as measured on Synapse 1.163, or as the profile has it.
pub(super) fn set(inner: &mut Inner, user: &str, request: &Request) -> Response {
    let profile = inner.profile;
    if let Some(refusal) = profile.refuses_device(inner, user, request) {
        return refusal;
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
        return matrix_error(400, "M_NOT_JSON", "Content not JSON.");
    };
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let (app_id, pushkey) = (text("app_id"), text("pushkey"));
    let missing = |keys: &[&str]| {
        let mut absent = keys.to_vec();
        absent.retain(|key| body.get(key).is_none());
        (!absent.is_empty()).then(|| format!("Missing params: {absent:?}"))
    };
    if body.get("kind").is_some_and(Value::is_null) {
        if let Some(error) = missing(&["app_id", "pushkey"]) {
            return matrix_error(400, "M_MISSING_PARAM", &error);
        }
        inner
            .pushers
            .retain(|held| !profile.is_deleted(held, user, &body));
        return server::json(200, &json!({}));
    }
    if let Some(error) = missing(&REQUIRED) {
        return matrix_error(400, "M_MISSING_PARAM", &error);
    }
    if body["app_display_name"].is_null() || body["device_display_name"].is_null() {
        return matrix_error(500, "M_UNKNOWN", "Internal server error");
    }
    let path = Url::parse(body["data"]["url"].as_str().unwrap_or_default());
    if !path.is_ok_and(|url| url.path() == "/_matrix/push/v1/notify") {
        let error = "Config Error: 'url' must have a path of '/_matrix/push/v1/notify'";
        return matrix_error(400, "M_MISSING_PARAM", error);
    }
    let url = body["data"]["url"].as_str().unwrap_or_default();
    if !profile.takes_url(url) {
        return matrix_error(400, "M_INVALID_PARAM", "The pusher's URL is not allowed");
    }
    inner
        .pushers
        .retain(|held| !profile.is_displaced(held, user, &body));
    inner.pushers.push(Pusher {
        user_id: user.to_owned(),
        app_id,
        pushkey,
        body,
    });
    server::json(200, &json!({}))
}

/// A pusher as the list shows it.
pub(super) fn listed(pusher: &Pusher) -> Value {
    let mut entry = pusher.body.clone();
    if let Some(entry) = entry.as_object_mut() {
        entry.remove("append");
    }
    entry
}
