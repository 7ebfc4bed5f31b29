//! Reads a push gateway request, taking whatever a homeserver may put into its optional fields.
//!
//! One odd value must not cost a notification: homeservers answer a 400 by holding back everything that
//! follows for that user. So only what makes delivery impossible is refused, and every other field that is
//! null, doubled, too large or of another type is as good as absent. serde's derive cannot do that: it
//! refuses doubled keys and stops at the first value of an unexpected type.

use std::{borrow::Cow, fmt, marker::PhantomData};

mod content;

pub(crate) use self::content::Content;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
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
    /// Where an object or list belongs there is a text that is no Unicode, or a number that is too large.
    #[error("A part of the notification is of the wrong type.")]
    BadPart,
    /// An entry of `devices` does not say whom to notify.
    #[error("Every device must be an object with the non-empty texts \"app_id\" and \"pushkey\".")]
    BadDevice,
}

impl<'a> Notification<'a> {
    /// Reads a request body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let body = str::from_utf8(body).map_err(|_| ParseError::NotJson)?;
        let mut json = serde_json::Deserializer::from_str(body);
        let top = PartOf::<Top<'a>>::new().deserialize(&mut json);
        let top = top.and_then(|top| json.end().map(|()| top));
        let top = top.map_err(|_| match serde_json::from_str::<&RawValue>(body) {
            Ok(_) => ParseError::BadPart,
            Err(_) => ParseError::NotJson,
        })?;
        let fields = top.and_then(|top| top.notification);
        fields.ok_or(ParseError::NoNotification)?.check()
    }
}

/// The body's only field that counts.
#[derive(Default)]
struct Top<'a> {
    notification: Option<NotificationFields<'a>>,
}

impl<'a> Part<'a> for Top<'a> {
    fn object<A: MapAccess<'a>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut top = Self::default();
        while let Some(key) = map.next_key_seed(TextBytes)? {
            if *key == *b"notification" {
                top.notification = map.next_value_seed(PartOf::new())?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Some(top))
    }
}

/// The notification as it stands in the body.
#[derive(Default)]
struct NotificationFields<'a> {
    event_id: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    room_id: Option<Cow<'a, str>>,
    sender: Option<Cow<'a, str>>,
    sender_display_name: Option<Cow<'a, str>>,
    room_name: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    content: Content<'a>,
    membership: Option<Cow<'a, str>>,
    unread: Option<u64>,
    devices: Option<Devices<'a>>,
}

impl<'a> Part<'a> for NotificationFields<'a> {
    fn object<A: MapAccess<'a>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut fields = Self::default();
        while let Some(key) = map.next_key_seed(TextBytes)? {
            if *key == *b"devices" {
                fields.devices = map.next_value_seed(PartOf::new())?;
                continue;
            }
            let value: &RawValue = map.next_value()?;
            match &*key {
                b"event_id" => fields.event_id = Some(value),
                b"id" => fields.id = Some(value),
                b"room_id" => fields.room_id = text(value),
                b"sender" => fields.sender = text(value),
                b"sender_display_name" => fields.sender_display_name = text(value),
                b"room_name" => fields.room_name = text(value),
                b"type" => fields.kind = text(value),
                b"content" => fields.content = Content::read(value),
                b"membership" => fields.membership = text(value),
                b"counts" => fields.unread = field(value, b"unread").and_then(count),
                _ => {}
            }
        }
        Ok(Some(fields))
    }
}

impl<'a> NotificationFields<'a> {
    fn check(mut self) -> Result<Notification<'a>, ParseError> {
        // Synapse repeats the membership of a member's event beside the content.
        self.content.membership = self.content.membership.or(self.membership);
        // Operators and older homeservers send `id` alone; Synapse sends both, and leaves both empty for a badge.
        let ids = [self.event_id, self.id].into_iter().flatten();
        let event_id = ids.clone().filter_map(text).find(|id| !id.is_empty());
        let odd_event_id = event_id.is_none() && ids.clone().any(is_odd_id);
        let Devices(devices) = self.devices.ok_or(ParseError::NoDevices)?;
        if devices.len() > MAX_DEVICES {
            return Err(ParseError::TooManyDevices);
        }
        let devices: Option<Vec<_>> = devices.into_iter().collect();
        let devices = devices.ok_or(ParseError::BadDevice)?;
        if devices.is_empty() {
            return Err(ParseError::NoDevices);
        }
        Ok(Notification {
            event_id,
            odd_event_id,
            room_id: self.room_id,
            sender: self.sender,
            sender_display_name: self.sender_display_name,
            room_name: self.room_name,
            kind: self.kind,
            content: self.content,
            unread: self.unread,
            devices,
        })
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

/// A device as it stands in the body.
#[derive(Default)]
struct DeviceFields<'a> {
    app_id: Option<Cow<'a, str>>,
    pushkey: Option<Cow<'a, str>>,
    selector: Option<Cow<'a, str>>,
    mark: Option<Cow<'a, str>>,
    sound: Option<Cow<'a, str>>,
    silent: bool,
}

impl<'a> Part<'a> for DeviceFields<'a> {
    fn object<A: MapAccess<'a>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut fields = Self::default();
        while let Some(key) = map.next_key_seed(TextBytes)? {
            let value: &RawValue = map.next_value()?;
            match &*key {
                b"app_id" => fields.app_id = text(value),
                b"pushkey" => fields.pushkey = text(value),
                b"data" => {
                    (fields.selector, fields.mark) = (None, None);
                    each_field(value, |key, value| match key {
                        b"selector" => fields.selector = text(value),
                        b"mark" => fields.mark = text(value),
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
                    fields.sound = said.and_then(text);
                    fields.silent = highlight && said.is_none();
                }
                _ => {}
            }
        }
        Ok(Some(fields))
    }
}

impl<'a> DeviceFields<'a> {
    fn check(self) -> Option<Device<'a>> {
        Some(Device {
            app_id: self.app_id.filter(|id| !id.is_empty())?,
            pushkey: self.pushkey.filter(|key| !key.is_empty())?,
            selector: self.selector,
            mark: self.mark,
            sound: self.sound,
            silent: self.silent,
        })
    }
}

/// The list of devices; a `None` in it does not say whom to notify.
struct Devices<'a>(Vec<Option<Device<'a>>>);

impl<'a> Part<'a> for Devices<'a> {
    fn list<A: SeqAccess<'a>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut devices = Vec::new();
        while let Some(fields) = list.next_element_seed(PartOf::<DeviceFields<'a>>::new())? {
            // One more shows that there are too many.
            if devices.len() <= MAX_DEVICES {
                devices.push(fields.and_then(DeviceFields::check));
            }
        }
        Ok(Some(Self(devices)))
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

/// Hands each field of a small JSON object to `take`, in order; nothing where it is no object.
fn each_field<'a>(object: &'a RawValue, take: impl FnMut(&[u8], &'a RawValue)) {
    struct Each<F>(F);

    impl<'de, F: FnMut(&[u8], &'de RawValue)> Visitor<'de> for Each<F> {
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

    let mut json = serde_json::Deserializer::from_str(object.get());
    // Its syntax was checked with the body's; what is no object has no fields.
    let _ = json.deserialize_map(Each(take));
}

/// A large object or list, which is read as it comes: what is in it would be gone over once more for each level above.
trait Part<'de>: Sized {
    /// Reads it from an object.
    fn object<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_key_seed(TextBytes)?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    /// Reads it from a list.
    fn list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Reads a part; `None` where the value is of another type.
struct PartOf<T>(PhantomData<T>);

impl<T> PartOf<T> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Part<'de>> DeserializeSeed<'de> for PartOf<T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<T>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de, T: Part<'de>> Visitor<'de> for PartOf<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
        T::object(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Option<T>, A::Error> {
        T::list(list)
    }

    fn visit_unit<E>(self) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<T>, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Option<T>, E> {
        Ok(None)
    }
}

/// A JSON string as bytes, for it need not be Unicode: `"\ud800"` is a good JSON string.
struct TextBytes;

impl<'de> DeserializeSeed<'de> for TextBytes {
    type Value = Cow<'de, [u8]>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for TextBytes {
    type Value = Cow<'de, [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        // serde_json checks that for texts alone.
        if bytes.iter().any(|byte| *byte < 0x20) {
            return Err(E::custom("a control character"));
        }
        Ok(Cow::Borrowed(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes.to_owned()))
    }
}

#[cfg(test)]
mod tests;
