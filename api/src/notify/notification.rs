//! Reads a push gateway request, taking whatever a homeserver may put into its optional fields.
//!
//! One odd value must not cost a notification: homeservers answer a 400 by holding back everything that
//! follows for that user. So only what makes delivery impossible is refused, and every other field that is
//! null, doubled, too large or of another type is as good as absent. serde's derive cannot do that: it
//! refuses doubled keys and stops at the first value of an unexpected type.

use std::{borrow::Cow, fmt};

mod content;

pub(crate) use self::content::Content;

use serde::de::{DeserializeSeed, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Most devices of a notification. Synapse names one, and no user has a hundred phones.
const MAX_DEVICES: usize = 100;

/// A notification as the homeserver sent it, borrowing from the request body where it can.
#[derive(Debug, PartialEq)]
pub(crate) struct Notification<'a> {
    /// The event, by `event_id` or by the older `id`; absent for a badge update.
    pub(crate) event_id: Option<Cow<'a, str>>,
    /// There is no event, but `event_id` or `id` holds something that is no text: a message is lost by it.
    pub(crate) odd_event_id: bool,
    /// The room that it happened in.
    pub(crate) room_id: Option<Cow<'a, str>>,
    /// Who sent it.
    pub(crate) sender: Option<Cow<'a, str>>,
    /// What the sender is called in the room.
    pub(crate) sender_display_name: Option<Cow<'a, str>>,
    /// What the room is called; homeservers name those that have a name of their own.
    pub(crate) room_name: Option<Cow<'a, str>>,
    /// The event's type.
    pub(crate) kind: Option<Cow<'a, str>>,
    /// The event's content.
    pub(crate) content: Content<'a>,
    /// `counts.unread`; 0 is a value like any other: it clears the badge.
    pub(crate) unread: Option<u64>,
    /// Whom to notify; never empty.
    pub(crate) devices: Vec<Device<'a>>,
}

/// One of the devices to notify.
#[derive(Debug, PartialEq)]
pub(crate) struct Device<'a> {
    /// The app; never empty.
    pub(crate) app_id: Cow<'a, str>,
    /// The push token; never empty.
    pub(crate) pushkey: Cow<'a, str>,
    /// `data.selector`, which we put into the pusher and the homeserver hands back.
    pub(crate) selector: Option<Cow<'a, str>>,
    /// `data.mark`, by which we recognise a pusher of ours.
    pub(crate) mark: Option<Cow<'a, str>>,
    /// `tweaks.sound`.
    pub(crate) sound: Option<Cow<'a, str>>,
    /// The homeserver says what the push rule wants, and it wants no sound: `tweaks` has a `highlight` alone.
    pub(crate) silent: bool,
}

/// Why a request cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    /// The body is not JSON.
    #[error("The body is not JSON.")]
    NotJson,
    /// `notification` is missing or no object.
    #[error("The body has no object \"notification\".")]
    NoNotification,
    /// `devices` is missing, no list or empty.
    #[error("\"devices\" must be a list of at least one device.")]
    NoDevices,
    /// `devices` has more than [`MAX_DEVICES`].
    #[error("\"devices\" must not be longer than 100.")]
    TooManyDevices,
    /// An entry of `devices` does not say whom to notify.
    #[error("Every device must be an object with the non-empty texts \"app_id\" and \"pushkey\".")]
    BadDevice,
}

impl<'a> Notification<'a> {
    /// Reads a request body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        // Checks the syntax of all of it, so that what follows can only meet unexpected types.
        let top: &RawValue = serde_json::from_slice(body).map_err(|_| ParseError::NotJson)?;
        let mut notification = None;
        each_field(top, |key, value| {
            if key == b"notification" {
                notification = Some(value);
            }
        });
        Self::read(notification.ok_or(ParseError::NoNotification)?)
    }

    fn read(raw: &'a RawValue) -> Result<Self, ParseError> {
        let mut it = Self {
            event_id: None,
            odd_event_id: false,
            room_id: None,
            sender: None,
            sender_display_name: None,
            room_name: None,
            kind: None,
            content: Content::default(),
            unread: None,
            devices: Vec::new(),
        };
        let (mut devices, mut event_id, mut id, mut membership) = (None, None, None, None);
        let is_object = each_field(raw, |key, value| match key {
            b"event_id" => event_id = Some(value),
            b"id" => id = Some(value),
            b"room_id" => it.room_id = text(value),
            b"sender" => it.sender = text(value),
            b"sender_display_name" => it.sender_display_name = text(value),
            b"room_name" => it.room_name = text(value),
            b"type" => it.kind = text(value),
            b"content" => it.content = Content::read(value),
            b"membership" => membership = text(value),
            b"counts" => it.unread = field(value, b"unread").and_then(count),
            b"devices" => devices = Some(value),
            _ => {}
        });
        if !is_object {
            return Err(ParseError::NoNotification);
        }
        // Synapse repeats the membership of a member's event beside the content.
        it.content.membership = it.content.membership.or(membership);
        // Operators and older homeservers send `id` alone; Synapse sends both, and leaves both empty for a badge.
        let ids = [event_id, id].into_iter().flatten();
        it.event_id = ids.clone().filter_map(text).find(|id| !id.is_empty());
        it.odd_event_id = it.event_id.is_none() && ids.clone().any(is_odd_id);
        let devices: Vec<&RawValue> = devices
            .and_then(|list| serde_json::from_str(list.get()).ok())
            .ok_or(ParseError::NoDevices)?;
        if devices.len() > MAX_DEVICES {
            return Err(ParseError::TooManyDevices);
        }
        it.devices = devices
            .into_iter()
            .map(Device::read)
            .collect::<Option<_>>()
            .ok_or(ParseError::BadDevice)?;
        if it.devices.is_empty() {
            return Err(ParseError::NoDevices);
        }
        Ok(it)
    }
}

impl Notification<'_> {
    /// Whether somebody is invited to a room.
    pub(crate) fn is_invitation(&self) -> bool {
        self.kind.as_deref() == Some("m.room.member")
            && self.content.membership.as_deref() == Some("invite")
    }

    /// Whether somebody calls.
    pub(crate) fn is_call(&self) -> bool {
        matches!(
            self.kind.as_deref(),
            Some("m.call.invite" | "m.rtc.notification" | "org.matrix.msc4075.rtc.notification")
        )
    }
}

impl<'a> Device<'a> {
    fn read(raw: &'a RawValue) -> Option<Self> {
        let (mut app_id, mut pushkey, mut sound) = (None, None, None);
        let (mut selector, mut mark, mut silent) = (None, None, false);
        each_field(raw, |key, value| match key {
            b"app_id" => app_id = text(value),
            b"pushkey" => pushkey = text(value),
            b"data" => {
                (selector, mark) = (None, None);
                each_field(value, |key, value| match key {
                    b"selector" => selector = text(value),
                    b"mark" => mark = text(value),
                    _ => {}
                });
            }
            b"tweaks" => {
                let (mut said, mut highlight) = (None, false);
                each_field(value, |key, value| match key {
                    b"sound" => said = Some(value),
                    b"highlight" => highlight = matches!(value.get(), "true" | "false"),
                    _ => {}
                });
                sound = said.and_then(text);
                silent = highlight && said.is_none();
            }
            _ => {}
        });
        Some(Self {
            app_id: app_id.filter(|id| !id.is_empty())?,
            pushkey: pushkey.filter(|key| !key.is_empty())?,
            selector,
            mark,
            sound,
            silent,
        })
    }
}

/// The value of a JSON string; anything else is `None`.
fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let quoted = raw.get();
    let inner = quoted.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.as_bytes().contains(&b'\\') {
        return Some(Cow::Borrowed(inner));
    }
    // As bytes, because half of a surrogate pair is allowed there and becomes U+FFFD here: a body that was
    // cut in the middle of an emoji is still worth showing.
    let mut json = serde_json::Deserializer::from_str(quoted);
    let bytes = TextBytes.deserialize(&mut json).ok()?;
    Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Whether this says which event it is, but not as a text.
fn is_odd_id(raw: &RawValue) -> bool {
    raw.get() != "null" && !raw.get().starts_with('"')
}

/// A whole number of at least 0, also when written like `3.0`.
fn count(raw: &RawValue) -> Option<u64> {
    let written = raw.get();
    written
        .parse()
        .ok()
        .or_else(|| whole(written.parse().ok()?))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "only whole numbers from 0 to 2^53 come that far"
)]
fn whole(number: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let fits = number.fract() == 0.0 && (0.0..=EXACT).contains(&number);
    fits.then_some(number as u64)
}

/// The last value of `name` in a JSON object.
fn field<'a>(object: &'a RawValue, name: &[u8]) -> Option<&'a RawValue> {
    let mut found = None;
    each_field(object, |key, value| {
        if key == name {
            found = Some(value);
        }
    });
    found
}

/// Hands each field of a JSON object to `take`, in order; false if it is no object.
fn each_field<'a>(object: &'a RawValue, take: impl FnMut(&[u8], &'a RawValue)) -> bool {
    let mut json = serde_json::Deserializer::from_str(object.get());
    json.deserialize_map(Fields(take)).is_ok()
}

struct Fields<F>(F);

impl<'de, F: FnMut(&[u8], &'de RawValue)> Visitor<'de> for Fields<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(TextBytes)? {
            (self.0)(&key, map.next_value()?);
        }
        Ok(())
    }
}

/// A JSON string as bytes, for it need not be Unicode: `"\ud800"` is a good JSON string.
struct TextBytes;

impl<'de> DeserializeSeed<'de> for TextBytes {
    type Value = Cow<'de, [u8]>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for TextBytes {
    type Value = Cow<'de, [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes.to_owned()))
    }
}

#[cfg(test)]
mod tests;
