//! Turns a notification into PNM's message.

use std::borrow::Cow;

use serde::Serialize;

use matrix2acrobits_shared::flow::PushTarget;

use super::words;
use crate::notify::{
    notification::{Device, Notification},
    texts::Texts,
};

/// Most bytes of `Message` as JSON. Apple's push service carries 4 KiB in all, and the other fields come to
/// at most 1.5 KiB (three identifiers, a name and a room of [`MAX_ID_BYTES`] each, and their keys).
pub(crate) const MAX_MESSAGE_BYTES: usize = 2560;

/// Longest identifier in Matrix, in bytes. What is longer is none, and would crowd out the message.
pub(crate) const MAX_ID_BYTES: usize = 255;

/// The request body that PNM takes. What is absent stays absent: its parser is not ours to trust with null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NotifyTextMessage<'a> {
    #[serde(rename = "verb")]
    verb: &'static str,
    app_id: &'a str,
    device_token: &'a str,
    selector: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_display_name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Cow<'a, str>>,
    content_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<&'a str>,
}

/// The message for one device. `extension` is the sender's, where apps key their threads by extensions.
pub(crate) fn translate<'a>(
    target: &'a PushTarget,
    notification: &'a Notification<'_>,
    device: &'a Device<'_>,
    texts: &'a Texts,
    extension: Option<&'a str>,
) -> NotifyTextMessage<'a> {
    let sender = id(notification.sender.as_deref());
    let sound = id(device.sound.as_deref());
    NotifyTextMessage {
        verb: "NotifyTextMessage",
        app_id: target.app_id.as_str(),
        device_token: target.pushkey.as_str(),
        selector: target.selector.as_str(),
        badge: notification.unread,
        // A push rule without a sound stays silent, where the homeserver sends what the rule says (`full`).
        sound: sound.or((!device.silent).then_some("default")),
        user_name: id(extension).or(sender),
        user_display_name: words::who(notification, texts),
        message: words::say(notification, texts).map(|text| cut_cow(text, MAX_MESSAGE_BYTES)),
        content_type: "text/plain",
        id: id(notification.event_id.as_deref()),
        thread_id: id(notification.room_id.as_deref()),
    }
}

/// A count alone, with neither text nor sound. Acrobits' documents do not say what an app makes of it.
pub(crate) fn badge(target: &PushTarget, unread: u64) -> NotifyTextMessage<'_> {
    NotifyTextMessage {
        verb: "NotifyTextMessage",
        app_id: target.app_id.as_str(),
        device_token: target.pushkey.as_str(),
        selector: target.selector.as_str(),
        badge: Some(unread),
        sound: None,
        user_name: None,
        user_display_name: None,
        message: None,
        content_type: "text/plain",
        id: None,
        thread_id: None,
    }
}

fn cut_cow(text: Cow<'_, str>, limit: usize) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => cut(text, limit).into(),
        Cow::Owned(mut text) => {
            text.truncate(cut(&text, limit).len());
            text.into()
        }
    }
}

pub(super) fn present(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

pub(super) fn id(text: Option<&str>) -> Option<&str> {
    present(text).filter(|text| text.len() <= MAX_ID_BYTES)
}

/// As much of `text` as takes at most `limit` bytes in JSON, ending between two characters.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    const LONGEST_ESCAPE: usize = 6;
    if text.len() * LONGEST_ESCAPE <= limit {
        return text;
    }
    let mut bytes = 0;
    for (at, character) in text.char_indices() {
        bytes += match character {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            '\0'..='\u{1f}' => LONGEST_ESCAPE,
            _ => character.len_utf8(),
        };
        if bytes > limit {
            return &text[..at];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use matrix2acrobits_shared::ids::{AppId, Pushkey, Selector};
    use serde_json::{Value, json};

    use super::*;

    fn target() -> PushTarget {
        PushTarget {
            row_id: 1,
            report: 1,
            selector: Selector::parse("sel-123").unwrap(),
            app_id: AppId::parse("com.acrobits.softphone").unwrap(),
            pushkey: Pushkey::parse("APA91b").unwrap(),
            dead: false,
            owned: true,
        }
    }

    fn message(body: &Value, fallback: &str) -> Value {
        let mut texts = Texts::english();
        fallback.clone_into(&mut texts.message);
        let body = body.to_string();
        let it = Notification::parse(body.as_bytes()).unwrap();
        let target = target();
        serde_json::to_value(translate(&target, &it, &it.devices[0], &texts, None)).unwrap()
    }

    fn notification(extra: &Value) -> Value {
        let mut it = json!({"event_id": "$e", "devices": [{"app_id": "a", "pushkey": "k"}]});
        let it_fields = it.as_object_mut().unwrap();
        it_fields.extend(extra.as_object().unwrap().clone());
        json!({"notification": it})
    }

    #[test]
    fn a_full_notification() {
        let capture = include_str!("../../../../tests/fixtures/captures/full_dm_text_clean.json");
        let capture: Value = serde_json::from_str(capture).unwrap();
        let expected = json!({
            "verb": "NotifyTextMessage",
            "AppId": "com.acrobits.softphone",
            "DeviceToken": "APA91b",
            "Selector": "sel-123",
            "Badge": 7,
            "Sound": "default",
            "UserName": "@alice:localhost",
            "UserDisplayName": "Alice A",
            "Message": "hello there",
            "ContentType": "text/plain",
            "Id": "$z_hs10GsHeO9SJyogO-Rm6Q8hVEs9PDKKZh6Wz51UXo",
            "ThreadId": "!eSweBRNPQ5akKj1Xcp70EtGkJHIheHKs2guXhxpKrag",
        });
        assert_eq!(message(&capture["body"], "New message"), expected);
    }

    #[test]
    fn an_event_id_only_notification() {
        let capture =
            include_str!("../../../../tests/fixtures/captures/event_id_only_dm_text.json");
        let capture: Value = serde_json::from_str(capture).unwrap();
        let expected = json!({
            "verb": "NotifyTextMessage",
            "AppId": "com.acrobits.softphone",
            "DeviceToken": "APA91b",
            "Selector": "sel-123",
            "Badge": 2,
            "Sound": "default",
            "Message": "New message",
            "ContentType": "text/plain",
            "Id": "$da2Wd4TAKXw2rvvJtQUa_SS5Nhc7SNt7Kl6VfmW-SWo",
            "ThreadId": "!IaZKy7HV3BbBltwUTv6PaFNAhT-QNqNF5Rj0SHhOEoc",
        });
        assert_eq!(message(&capture["body"], "New message"), expected);
    }

    #[test]
    fn an_encrypted_message_and_an_image() {
        let encrypted = include_str!("../../../../tests/fixtures/captures/full_dm_encrypted.json");
        let encrypted: Value = serde_json::from_str(encrypted).unwrap();
        let message_of =
            |capture: &Value| message(&capture["body"], "New message")["Message"].clone();
        assert_eq!(message_of(&encrypted), "New message");
        let image = include_str!("../../../../tests/fixtures/captures/full_dm_image.json");
        let image: Value = serde_json::from_str(image).unwrap();
        assert_eq!(message_of(&image), "Photo");
    }

    #[test]
    fn a_push_rule_without_a_sound_stays_silent() {
        let group = include_str!("../../../../tests/fixtures/captures/full_group_text.json");
        let group: Value = serde_json::from_str(group).unwrap();
        let it = message(&group["body"], "New message");
        assert_eq!(it.get("Sound"), None);
        assert_eq!(it["Message"], "hello team");
        assert_eq!(it["UserDisplayName"], "Alice A (Team Room)");
        for (tweaks, sound) in [
            (json!({"highlight": true}), None),
            (json!({"highlight": true, "sound": "bing"}), Some("bing")),
            (json!({"highlight": true, "sound": null}), Some("default")),
            (json!({}), Some("default")),
            (Value::Null, Some("default")),
        ] {
            let devices = json!([{"app_id": "a", "pushkey": "k", "tweaks": tweaks}]);
            let it = message(&notification(&json!({"devices": devices})), "x");
            assert_eq!(it.get("Sound").and_then(Value::as_str), sound, "{tweaks}");
        }
    }

    #[test]
    fn fields_one_by_one() {
        let long = "x".repeat(300);
        let with_sound = |sound: &str| json!({"devices": [{"app_id": "a", "pushkey": "k", "tweaks": {"sound": sound}}]});
        let cases = [
            (json!({"counts": {"unread": 0}}), "Badge", json!(0)),
            (json!({"counts": {}}), "Badge", Value::Null),
            (with_sound("bing"), "Sound", json!("bing")),
            (with_sound(""), "Sound", json!("default")),
            (with_sound(&long), "Sound", json!("default")),
            (json!({"sender": "@a:b"}), "UserName", json!("@a:b")),
            (json!({"sender": "@a:b"}), "UserDisplayName", json!("@a:b")),
            (
                json!({"sender": "@a:b", "sender_display_name": ""}),
                "UserDisplayName",
                json!("@a:b"),
            ),
            (json!({"sender": ""}), "UserName", Value::Null),
            (json!({"sender": ""}), "UserDisplayName", Value::Null),
            (
                json!({"sender_display_name": "Al"}),
                "UserDisplayName",
                json!("Al"),
            ),
            (
                json!({"sender_display_name": "Al"}),
                "UserName",
                Value::Null,
            ),
            (
                json!({"sender_display_name": long}),
                "UserDisplayName",
                json!(long[..255]),
            ),
            (json!({"sender": long}), "UserName", Value::Null),
            (json!({"room_id": ""}), "ThreadId", Value::Null),
            (json!({"room_id": long}), "ThreadId", Value::Null),
            (
                json!({"content": {"body": ""}}),
                "Message",
                json!("fallback"),
            ),
            (
                json!({"content": {"body": "a\"b"}}),
                "Message",
                json!("a\"b"),
            ),
            (json!({"content": null}), "Message", json!("fallback")),
        ];
        for (extra, field, expected) in cases {
            let message = message(&notification(&extra), "fallback");
            assert_eq!(
                message.get(field).cloned().unwrap_or_default(),
                expected,
                "{extra} {field}"
            );
            assert!(
                message
                    .as_object()
                    .unwrap()
                    .values()
                    .all(|value| !value.is_null())
            );
        }
    }

    #[test]
    fn an_empty_fallback_means_no_message() {
        let it = message(&notification(&json!({})), "");
        assert!(it.get("Message").is_none(), "{it}");
    }

    #[test]
    fn a_push_fits_into_apples_four_kib() {
        for unit in ["x", "ä", "€", "😀", "\"", "\\", "\n", "\u{1}", "a😀\"\u{0}"] {
            let body = unit.repeat(100_000 / unit.len());
            let it = message(
                &notification(&json!({
                    "content": {"body": body}, "sender": "s".repeat(255), "room_id": "r".repeat(255),
                    "event_id": "e".repeat(255), "sender_display_name": unit.repeat(5_000),
                    "counts": {"unread": u64::MAX},
                })),
                "",
            );
            let text = it["Message"].as_str().unwrap();
            assert!(body.starts_with(text), "{unit:?}");
            let json = it["Message"].to_string().len() - 2;
            assert!(
                json <= MAX_MESSAGE_BYTES && json > MAX_MESSAGE_BYTES - 6,
                "{unit:?} {json}"
            );
            assert!(
                it.to_string().len() < 4096 - 256,
                "room for the token and a long selector"
            );
        }
    }

    #[test]
    fn cutting_keeps_characters_whole() {
        let cases = [
            ("abc", 3, "abc"),
            ("abc", 2, "ab"),
            ("aäb", 2, "a"),
            ("aäb", 3, "aä"),
            ("😀😀", 7, "😀"),
            ("\"\"", 3, "\""),
            ("a\u{1}b", 6, "a"),
            ("x", 0, ""),
            ("", 0, ""),
        ];
        for (text, limit, expected) in cases {
            assert_eq!(cut(text, limit), expected, "{text:?} {limit}");
        }
    }
}
