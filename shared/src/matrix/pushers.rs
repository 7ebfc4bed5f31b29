//! The bodies that we exchange with a Matrix homeserver about pushers
//! (client-server API, `GET /pushers` and `POST /pushers/set`).

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use url::Url;

use crate::ids::{AppId, Pushkey, Selector};
use crate::mark::{Mark, MarkKey};

/// The `device_display_name` of all our pushers.
const DEVICE_DISPLAY_NAME: &str = "Acrobits Softphone";
/// The language of all our pushers.
const LANG: &str = "en";
/// The fields that MSC3881 adds to a pusher, under their stable and unstable names.
const KEPT: [&str; 4] = [
    "enabled",
    "device_id",
    "org.matrix.msc3881.enabled",
    "org.matrix.msc3881.device_id",
];
/// A field of `data` that asks the homeserver not to send counts without a message.
const NO_BADGE_COUNTS: &str = "org.matrix.msc4076.disable_badge_count";
/// The only path that Synapse accepts in a pusher's URL.
pub const NOTIFY_PATH: &str = "/_matrix/push/v1/notify";

/// What a notification carries: ids alone, or the message as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushFormat {
    /// Event id, room id and counts. The app fetches the rest.
    EventIdOnly,
    /// Everything that the homeserver has.
    Full,
}

/// The worker's settings that every pusher carries.
#[derive(Debug, Clone)]
pub struct PusherSettings {
    /// Where the homeserver posts notifications.
    pub notify_url: Url,
    /// What the homeserver puts into notifications.
    pub format: PushFormat,
    /// Whether users may share an app id and pushkey.
    pub append: bool,
    /// Whether to ask the homeserver not to send counts without a message (MSC4076).
    pub no_badge_counts: bool,
}

impl PusherSettings {
    /// One line for these settings and the key of the marks. If it differs from an earlier line, pushers that were set
    /// then differ from those set now.
    pub fn fingerprint(&self, key: &MarkKey) -> String {
        format!("{} {}", self.name(), key.name())
    }

    /// One line that identifies these settings.
    pub fn name(&self) -> String {
        let format = match self.format {
            PushFormat::EventIdOnly => "event_id_only",
            PushFormat::Full => "full",
        };
        let badges = if self.no_badge_counts {
            " no_badge_counts"
        } else {
            ""
        };
        // The homeserver's pushers do not show it. But without it, users who shared a phone have to be parted.
        let append = if self.append { " append" } else { "" };
        format!("{format} {}{badges}{append}", self.notify_url)
    }
}

/// The body of `POST /pushers/set` that sets a pusher.
#[derive(Debug, Serialize)]
pub struct SetPusher<'a> {
    app_display_name: &'a str,
    app_id: &'a str,
    append: bool,
    device_display_name: &'a str,
    kind: &'a str,
    lang: &'a str,
    pushkey: &'a str,
    data: PusherData<'a>,
    #[serde(flatten)]
    kept: Map<String, Value>,
}

/// `data` of a pusher. A missing `format` means full. Homeservers return unknown keys such as `selector` and `mark`
/// with every notification.
#[derive(Debug, Serialize)]
struct PusherData<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<PushFormat>,
    url: &'a str,
    selector: &'a str,
    mark: Mark,
    #[serde(
        rename = "org.matrix.msc4076.disable_badge_count",
        skip_serializing_if = "std::ops::Not::not"
    )]
    no_badge_counts: bool,
}

impl<'a> SetPusher<'a> {
    /// The pusher for this app, pushkey and selector under these settings, marked by this key.
    pub fn new(
        app_id: &'a AppId,
        pushkey: &'a Pushkey,
        selector: &'a Selector,
        settings: &'a PusherSettings,
        key: &MarkKey,
    ) -> Self {
        Self {
            app_display_name: app_id.as_str(),
            app_id: app_id.as_str(),
            append: settings.append,
            device_display_name: DEVICE_DISPLAY_NAME,
            kind: "http",
            lang: LANG,
            pushkey: pushkey.as_str(),
            data: PusherData {
                // The specification names only event_id_only. A pusher without a format gets everything.
                format: (settings.format == PushFormat::EventIdOnly).then_some(settings.format),
                url: settings.notify_url.as_str(),
                selector: selector.as_str(),
                mark: key.mark(pushkey.as_str()),
                no_badge_counts: settings.no_badge_counts,
            },
            kept: Map::new(),
        }
    }

    /// The same pusher, with the fields that a set would otherwise remove from the homeserver's pusher: the user's
    /// pause.
    #[must_use]
    pub fn keeping(mut self, held: &[HeldPusher]) -> Self {
        let same = |held: &&HeldPusher| held.app_id == self.app_id && held.pushkey == self.pushkey;
        if let Some(held) = held.iter().find(same) {
            let kept = KEPT.iter().filter_map(|&key| {
                let value = held.rest.get(key).filter(|value| !value.is_null())?;
                Some((key.to_owned(), value.clone()))
            });
            self.kept = kept.collect();
        }
        self
    }

    /// Whether the homeserver's pusher does what this one would, and carries the same mark.
    pub fn matches(&self, held: &HeldPusher) -> bool {
        self.matches_but_mark(held) && held.text("mark") == Some(self.data.mark.as_str())
    }

    /// Whether the homeserver's pusher does what this one would, whatever mark it carries.
    pub fn matches_but_mark(&self, held: &HeldPusher) -> bool {
        let format = self.data.format.map(|_| "event_id_only");
        held.kind.as_deref() == Some(self.kind)
            && held.app_id == self.app_id
            && held.pushkey == self.pushkey
            && held.text("url") == Some(self.data.url)
            && held.text("selector") == Some(self.data.selector)
            && held.text("format") == format
            && held.is_set(NO_BADGE_COUNTS) == self.data.no_badge_counts
    }
}

/// The body of `POST /pushers/set` that deletes a pusher.
#[derive(Debug, Serialize)]
pub struct DeletePusher<'a> {
    app_id: &'a str,
    pushkey: &'a str,
    /// Always null, which means "delete".
    kind: Option<&'a str>,
    /// Without `append`, Dendrite also deletes the pushers of other users.
    append: bool,
}

impl<'a> DeletePusher<'a> {
    /// Deletes the user's pusher of this app and pushkey.
    pub fn new(app_id: &'a AppId, pushkey: &'a Pushkey) -> Self {
        Self {
            app_id: app_id.as_str(),
            pushkey: pushkey.as_str(),
            kind: None,
            append: true,
        }
    }
}

/// A pusher as `GET /pushers` lists it. We read only the fields that we compare or have to keep.
#[derive(Debug, Deserialize)]
pub struct HeldPusher {
    /// The app id.
    pub app_id: String,
    /// The pushkey.
    pub pushkey: String,
    /// `http` for a push gateway.
    #[serde(default)]
    pub kind: Option<String>,
    /// URL, format, and our selector. Dendrite sends null for no data.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub data: Map<String, Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl HeldPusher {
    /// A text in its data.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.data.get(name)?.as_str()
    }

    fn is_set(&self, name: &str) -> bool {
        self.data.get(name).and_then(Value::as_bool) == Some(true)
    }
}

/// The response to `GET /pushers`.
#[derive(Debug, Deserialize)]
pub struct HeldPushers {
    /// The user's pushers that can be read. A pusher that cannot be read is not one of ours.
    #[serde(deserialize_with = "readable")]
    pub pushers: Vec<HeldPusher>,
}

fn null_is_empty<'de, D: Deserializer<'de>>(field: D) -> Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

fn readable<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<HeldPusher>, D::Error> {
    let list = Vec::<Value>::deserialize(list)?;
    let read = list.into_iter().map(HeldPusher::deserialize);
    Ok(read.filter_map(Result::ok).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark;
    use serde_json::json;

    fn key(byte: u8) -> MarkKey {
        MarkKey::new(&[byte; mark::KEY_BYTES])
    }

    fn settings(format: PushFormat) -> PusherSettings {
        PusherSettings {
            notify_url: "https://push.example.org/_matrix/push/v1/notify"
                .parse()
                .unwrap(),
            format,
            append: false,
            no_badge_counts: false,
        }
    }

    #[test]
    fn counts_without_a_message_can_be_declined() {
        let app_id = AppId::parse("a").unwrap();
        let pushkey = Pushkey::parse("k").unwrap();
        let selector = Selector::parse("s").unwrap();
        let mut settings = settings(PushFormat::Full);
        let plain = SetPusher::new(&app_id, &pushkey, &selector, &settings, &key(1));
        let plain = serde_json::to_value(&plain).unwrap();
        assert!(plain["data"].get(NO_BADGE_COUNTS).is_none());
        let before = settings.name();
        settings.no_badge_counts = true;
        assert_ne!(settings.name(), before, "pushers are set anew");
        let declined = SetPusher::new(&app_id, &pushkey, &selector, &settings, &key(1));
        let held = serde_json::to_value(&declined).unwrap();
        assert_eq!(held["data"][NO_BADGE_COUNTS], true);
        assert!(declined.matches(&serde_json::from_value(held).unwrap()));
        assert!(!declined.matches(&serde_json::from_value(plain).unwrap()));
    }

    #[test]
    fn set_body_and_comparison() {
        let app_id = AppId::parse("com.acrobits.softphone").unwrap();
        let pushkey = Pushkey::parse("APA91b").unwrap();
        let selector = Selector::parse("sel").unwrap();
        let settings_ids = settings(PushFormat::EventIdOnly);
        let body = SetPusher::new(&app_id, &pushkey, &selector, &settings_ids, &key(7));
        assert_eq!(
            serde_json::to_value(&body).unwrap(),
            json!({"app_display_name": "com.acrobits.softphone", "app_id": "com.acrobits.softphone",
                "append": false, "device_display_name": "Acrobits Softphone", "kind": "http",
                "lang": "en", "pushkey": "APA91b", "data": {"format": "event_id_only",
                "url": "https://push.example.org/_matrix/push/v1/notify", "selector": "sel",
                "mark": "ChOOUlcqpgzqwQDjanzjKQ"}})
        );
        let held: HeldPusher =
            serde_json::from_value(serde_json::to_value(&body).unwrap()).unwrap();
        assert!(body.matches(&held));
        let renewed = SetPusher::new(&app_id, &pushkey, &selector, &settings_ids, &key(8));
        assert!(renewed.matches_but_mark(&held) && !renewed.matches(&held));
        assert_ne!(
            settings_ids.fingerprint(&key(7)),
            settings_ids.fingerprint(&key(8))
        );
        let settings_full = settings(PushFormat::Full);
        let full = SetPusher::new(&app_id, &pushkey, &selector, &settings_full, &key(7));
        assert!(!full.matches(&held));
        assert_eq!(
            serde_json::to_value(&full).unwrap()["data"].get("format"),
            None
        );
    }

    #[test]
    fn delete_body_has_a_null_kind_and_spares_other_users() {
        let app_id = AppId::parse("a").unwrap();
        let pushkey = Pushkey::parse("p").unwrap();
        assert_eq!(
            serde_json::to_value(DeletePusher::new(&app_id, &pushkey)).unwrap(),
            json!({"app_id": "a", "pushkey": "p", "kind": null, "append": true})
        );
    }

    fn list(pushers: &Value) -> Vec<HeldPusher> {
        let list: HeldPushers = serde_json::from_value(json!({ "pushers": pushers })).unwrap();
        list.pushers
    }

    #[test]
    fn a_list_is_read_whatever_foreign_pushers_hold() {
        let read = list(&json!([
            {"app_id": "a", "pushkey": "p", "kind": "http", "data": null},
            {"app_id": "b", "pushkey": "p", "kind": "email"},
            {"app_id": "c", "pushkey": "p", "kind": null, "data": {"brand": 1}},
            {"app_id": "d", "pushkey": null},
            {"app_id": "e", "pushkey": "p", "kind": 7, "data": "text"},
            "nonsense",
            {"app_id": "f", "pushkey": "p", "data": {}},
        ]));
        let ids: Vec<_> = read.iter().map(|held| held.app_id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "c", "f"]);
    }

    #[test]
    fn a_set_keeps_the_users_pause() {
        let app_id = AppId::parse("a").unwrap();
        let pushkey = Pushkey::parse("p").unwrap();
        let selector = Selector::parse("s").unwrap();
        let settings = settings(PushFormat::Full);
        let set = || SetPusher::new(&app_id, &pushkey, &selector, &settings, &key(7));
        let held = list(&json!([
            {"app_id": "a", "pushkey": "other", "enabled": true},
            {"app_id": "a", "pushkey": "p", "enabled": false, "device_id": null,
             "org.matrix.msc3881.enabled": false, "profile_tag": "x"},
        ]));
        let body = serde_json::to_value(set().keeping(&held)).unwrap();
        assert_eq!(body["enabled"], json!(false));
        assert_eq!(body["org.matrix.msc3881.enabled"], json!(false));
        assert_eq!(
            (body.get("device_id"), body.get("profile_tag")),
            (None, None)
        );
        let body = serde_json::to_value(set().keeping(&[])).unwrap();
        assert_eq!(body.get("enabled"), None);
    }
}
