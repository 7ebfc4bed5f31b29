//! Reads the content of an event, as far as it says what a push shows.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{count, each_field, field, text};

/// What a push needs of an event's content; odd values are as good as absent.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Content<'a> {
    /// The text; that of the new content where the event replaces another one.
    pub(crate) body: Option<Cow<'a, str>>,
    /// The kind of message.
    pub(crate) msgtype: Option<Cow<'a, str>>,
    /// The name of a file; if there is one, and the body differs, the body is a caption.
    pub(crate) filename: Option<Cow<'a, str>>,
    /// An audio file that was spoken (MSC3245).
    pub(crate) voice: bool,
    /// It answers another event.
    pub(crate) reply: bool,
    /// Of a room member's event.
    pub(crate) membership: Option<Cow<'a, str>>,
    /// What a poll asks.
    pub(crate) question: Option<Cow<'a, str>>,
    /// When a call was begun by its caller's clock, in milliseconds since 1970.
    pub(crate) sender_ts: Option<u64>,
    /// For how long a call rings from then, in milliseconds.
    pub(crate) lifetime: Option<u64>,
}

impl<'a> Content<'a> {
    pub(super) fn read(raw: &'a RawValue) -> Self {
        let mut fields = Self::default();
        let mut new_body = None;
        let mut replaces = false;
        each_field(raw, |key, value| match key {
            b"body" => fields.body = text(value),
            b"msgtype" => fields.msgtype = text(value),
            b"filename" => fields.filename = text(value),
            b"org.matrix.msc3245.voice" | b"m.voice" => fields.voice = true,
            b"membership" => fields.membership = text(value),
            b"sender_ts" => fields.sender_ts = count(value),
            b"lifetime" => fields.lifetime = count(value),
            b"m.poll" | b"m.poll.start" | b"org.matrix.msc3381.poll.start" => {
                fields.question = field(value, b"question").and_then(question);
            }
            b"m.new_content" => new_body = field(value, b"body").and_then(text),
            b"m.relates_to" => {
                fields.reply = field(value, b"m.in_reply_to").is_some();
                let relation = field(value, b"rel_type").and_then(text);
                replaces = relation.as_deref() == Some("m.replace");
            }
            _ => {}
        });
        if replaces && new_body.is_some() {
            fields.body = new_body;
        }
        fields
    }
}

/// The question of a poll, in the forms of the specification and of MSC3381.
fn question(raw: &RawValue) -> Option<Cow<'_, str>> {
    let forms: [&[u8]; 3] = [b"m.text", b"org.matrix.msc1767.text", b"body"];
    forms.iter().find_map(|form| {
        let value = field(raw, form)?;
        // `m.text` is a list of representations, the preferred one first.
        text(value).or_else(|| {
            let list: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
            field(list.first()?, b"body").and_then(text)
        })
    })
}
