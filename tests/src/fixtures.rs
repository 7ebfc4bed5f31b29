//! Phones, messages and what a real Synapse was seen to send.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Reply;

/// The phones' user, registered at the stand-in.
pub const BOB: &str = "@bob:example.org";
/// Another user, registered too.
pub const ALICE: &str = "@alice:example.org";
/// A user whom the stand-in does not know until a test registers him.
pub const MALLORY: &str = "@mallory:example.org";
/// The app of all phones.
pub const APP_ID: &str = "com.acrobits.softphone";

/// An account on a phone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phone {
    /// Whose.
    pub user: String,
    /// The account, as Acrobits names it.
    pub selector: String,
    /// Push token for messages.
    pub token: String,
    /// The app.
    pub app_id: String,
}

impl Phone {
    /// The phone of the example in the documentation.
    pub fn seed() -> Self {
        Self {
            user: BOB.into(),
            selector: "12869E0E6E553673C54F29105A0647204C416A2A:7C3A0D14".into(),
            token: "APA91bG9aqWvmnxnYBZWG9hxvtkgzTXSopfiufzmc6tP3Kb".into(),
            app_id: APP_ID.into(),
        }
    }

    /// Bob's phone of this name.
    pub fn new(name: &str) -> Self {
        Self {
            user: BOB.into(),
            selector: format!("SELECTOR-{name}"),
            token: format!("APA91b-{name}"),
            app_id: APP_ID.into(),
        }
    }

    /// The same phone, used by somebody else.
    #[must_use]
    pub fn of(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// The same phone with another token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// The same phone with another selector.
    #[must_use]
    pub fn with_selector(mut self, selector: &str) -> Self {
        selector.clone_into(&mut self.selector);
        self
    }

    /// What it reports.
    pub fn report(&self) -> Value {
        json!({
            "selector": self.selector,
            "token_msgs": self.token,
            "app_id_msgs": self.app_id,
            "token_calls": format!("calls-{}", self.token),
            "app_id_calls": format!("{}.voip", self.app_id),
        })
    }

    /// How Synapse names it in a notification.
    pub fn device(&self) -> Value {
        json!({
            "app_id": self.app_id,
            "pushkey": self.token,
            "pushkey_ts": 1_795_331_638,
            "data": {"format": "event_id_only", "selector": self.selector},
        })
    }
}

/// Bob's phones of this name, which is followed by a number.
pub fn phones(name: &str, count: usize) -> Vec<Phone> {
    let phone = |number| Phone::new(&format!("{name}-{number}"));
    (0..count).map(phone).collect()
}

/// A phone's report with a login: Acrobits' template, filled in.
pub fn by(phone: &Phone, username: &str, password: &str) -> Value {
    let mut report = phone.report();
    report["username"] = json!(username);
    report["password"] = json!(password);
    report
}

/// Expects that the login was refused.
#[track_caller]
pub fn refused(reply: Reply) {
    assert_eq!(reply.expect_error(401).errcode(), "M_FORBIDDEN");
}

/// A full notification of an event, to these devices.
pub fn message(event_id: &str, devices: &[Value]) -> Value {
    json!({"notification": {
        "event_id": event_id,
        "room_id": "!room:example.com",
        "type": "m.room.message",
        "sender": "@alice:example.com",
        "sender_display_name": "Alice",
        "content": {"msgtype": "m.text", "body": "Hello!"},
        "counts": {"unread": 1},
        "prio": "high",
        "devices": devices,
    }})
}

/// What PNM gets of [`message`] for a phone.
pub fn pushed(event_id: &str, phone: &Phone) -> Value {
    json!({
        "verb": "NotifyTextMessage",
        "AppId": phone.app_id,
        "DeviceToken": phone.token,
        "Selector": phone.selector,
        "Badge": 1,
        "Sound": "default",
        "UserName": "@alice:example.com",
        "UserDisplayName": "Alice",
        "Message": "Hello!",
        "ContentType": "text/plain",
        "Id": event_id,
        "ThreadId": "!room:example.com",
    })
}

/// The body that Synapse 1.163 sent, from `fixtures/captures/{name}.json`.
pub fn capture(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/captures");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json"))
        .unwrap_or_else(|error| panic!("capture {name}: {error}"));
    let mut capture: Value = serde_json::from_str(&text).unwrap();
    capture["body"].take()
}

/// The same, addressed to a phone.
pub fn capture_for(name: &str, phone: &Phone) -> Value {
    let mut body = capture(name);
    for device in body["notification"]["devices"].as_array_mut().unwrap() {
        device["app_id"] = json!(phone.app_id);
        device["pushkey"] = json!(phone.token);
        device["data"]["selector"] = json!(phone.selector);
    }
    body
}

/// A new folder, removed when dropped.
pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
