//! What a push says: the event's own text, or words for what has none.

use std::{borrow::Cow, time::Duration};

use super::translate::{MAX_ID_BYTES, cut, id, present};
use crate::notify::{
    notification::{Content, Notification},
    texts::Texts,
};

/// The longest that a call may ring, in milliseconds; MSC4075 lets clients ignore a longer lifetime.
const LONGEST_CALL: u64 = 120_000;
/// By how much the caller's clock may differ from ours, in milliseconds; MSC4075 takes a `sender_ts` that differs by up to
/// 20 s from the homeserver's time.
const CLOCKS_DIFFER: u64 = 20_000;

/// The text of a push; none where there is nothing to say.
pub(crate) fn say<'a>(
    notification: &'a Notification<'_>,
    texts: &'a Texts,
) -> Option<Cow<'a, str>> {
    filled(what(notification, texts)).or_else(|| filled(texts.message.as_str().into()))
}

/// Who says it: the sender by name, and the room where it has a name of its own.
pub(crate) fn who<'a>(notification: &'a Notification<'_>, texts: &Texts) -> Option<Cow<'a, str>> {
    let sender = present(notification.sender_display_name.as_deref())
        .or(id(notification.sender.as_deref()))?;
    let sender = cut(sender, MAX_ID_BYTES);
    Some(
        match room(notification).filter(|_| !notification.is_invitation()) {
            Some(room) => {
                let named = [("sender", sender), ("room", room)];
                texts.sender_in_room.fill(&named).into()
            }
            None => sender.into(),
        },
    )
}

fn room<'a>(notification: &'a Notification<'_>) -> Option<&'a str> {
    present(notification.room_name.as_deref()).map(|name| cut(name, MAX_ID_BYTES))
}

/// How long ago a call began, if the event is one that rings no more at `now`, in milliseconds since 1970.
pub(crate) fn over(notification: &Notification<'_>, now: u64) -> Option<Duration> {
    let begun = notification
        .content
        .sender_ts
        .filter(|_| notification.is_call())?;
    let rings = notification
        .content
        .lifetime
        .unwrap_or(LONGEST_CALL)
        .min(LONGEST_CALL);
    let age = now.saturating_sub(begun);
    (age > rings + CLOCKS_DIFFER).then(|| Duration::from_millis(age))
}

fn what<'a>(notification: &'a Notification<'_>, texts: &'a Texts) -> Cow<'a, str> {
    let content = &notification.content;
    let word = match notification.kind.as_deref().unwrap_or_default() {
        _ if notification.is_call() => return texts.call.as_str().into(),
        _ if notification.is_invitation() => {
            return match room(notification) {
                Some(room) => texts.invitation_to_room.fill(&[("room", room)]).into(),
                None => texts.invitation.as_str().into(),
            };
        }
        "m.room.encrypted" => return texts.encrypted.as_deref().unwrap_or_default().into(),
        "m.sticker" => return texts.sticker.as_str().into(),
        "m.poll.start" | "org.matrix.msc3381.poll.start" => {
            return with_words(&texts.poll, content.question.as_deref(), texts);
        }
        _ => match content.msgtype.as_deref().unwrap_or_default() {
            "m.location" => return texts.location.as_str().into(),
            "m.image" => &texts.photo,
            "m.video" => &texts.video,
            "m.audio" if content.voice => &texts.voice,
            "m.audio" => &texts.audio,
            "m.file" => &texts.file,
            _ => return own_text(content).into(),
        },
    };
    with_words(word, caption(content), texts)
}

fn with_words<'a>(word: &'a str, words: Option<&str>, texts: &Texts) -> Cow<'a, str> {
    match words {
        Some(words) => texts
            .with_words
            .fill(&[("what", word), ("text", words)])
            .into(),
        None => word.into(),
    }
}

/// The words that were written below a file. The body of a file without them is its name.
fn caption<'a>(content: &'a Content<'_>) -> Option<&'a str> {
    let filename = present(content.filename.as_deref())?;
    let body = present(Some(own_text(content)))?;
    (body != filename).then_some(body)
}

/// The body without what older clients quote in a reply: lines that begin with `> `, and the empty line behind them. The
/// first of them names who is quoted (Matrix 1.12, "Fallbacks for rich replies"). Other quotes are the sender's own words.
fn own_text<'a>(content: &'a Content<'_>) -> &'a str {
    let body = content.body.as_deref().unwrap_or_default();
    let quotes = ["> <@", "> * <@"];
    if !content.reply || !quotes.iter().any(|quote| body.starts_with(quote)) {
        return body;
    }
    let mut rest = body;
    while rest.starts_with("> ") || rest == ">" || rest.starts_with(">\n") {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
    }
    rest.trim_start_matches(['\n', '\r'])
}

fn filled(text: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn said(extra: &Value, texts: &Texts) -> Option<String> {
        let mut notification =
            json!({"event_id": "$e", "devices": [{"app_id": "a", "pushkey": "k"}]});
        let fields = notification.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        let body = json!({"notification": notification}).to_string();
        let it = Notification::parse(body.as_bytes()).unwrap();
        say(&it, texts).map(Cow::into_owned)
    }

    fn message(content: &Value) -> Value {
        json!({"type": "m.room.message", "content": content})
    }

    #[test]
    fn every_kind_of_message_has_words() {
        let texts = Texts::english();
        let reply = json!({"m.in_reply_to": {"event_id": "$o"}});
        let thread = json!({"rel_type": "m.thread", "event_id": "$r", "is_falling_back": true,
            "m.in_reply_to": {"event_id": "$o"}});
        let file = |kind: &str| message(&json!({"msgtype": kind, "body": "IMG_1.jpg"}));
        let voice = json!({"msgtype": "m.audio", "body": "v.ogg", "org.matrix.msc3245.voice": {}});
        let caption = json!({"msgtype": "m.image", "body": "Our cat", "filename": "IMG_1.jpg"});
        let same = json!({"msgtype": "m.image", "body": "IMG_1.jpg", "filename": "IMG_1.jpg"});
        let edit = json!({"msgtype": "m.text", "body": "* new", "m.new_content": {"body": "new"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$o"}});
        let cases = [
            (message(&json!({"msgtype": "m.text", "body": "hi"})), "hi"),
            (
                message(&json!({"msgtype": "m.emote", "body": "waves"})),
                "waves",
            ),
            (
                message(
                    &json!({"msgtype": "m.text", "body": "> <@a:x> old\n> more\n\nnew", "m.relates_to": reply}),
                ),
                "new",
            ),
            (
                message(&json!({"msgtype": "m.text", "body": "> a quote of mine\n\nnew"})),
                "> a quote of mine\n\nnew",
            ),
            (
                message(&json!({"msgtype": "m.text", "body": "plain", "m.relates_to": reply})),
                "plain",
            ),
            (
                message(
                    &json!({"msgtype": "m.text", "body": "> * <@a:x> waves\n\nnew", "m.relates_to": reply}),
                ),
                "new",
            ),
            // A quote of the sender's own in a reply or a thread.
            (
                message(
                    &json!({"msgtype": "m.text", "body": "> my own quote only", "m.relates_to": reply}),
                ),
                "> my own quote only",
            ),
            (
                message(
                    &json!({"msgtype": "m.text", "body": "> by hand\n\nI agree", "m.relates_to": thread}),
                ),
                "> by hand\n\nI agree",
            ),
            (
                message(
                    &json!({"msgtype": "m.text", "body": "> <@a:x> old", "m.relates_to": reply}),
                ),
                "New message",
            ),
            (message(&edit), "new"),
            (file("m.image"), "Photo"),
            (file("m.video"), "Video"),
            (file("m.audio"), "Audio"),
            (file("m.file"), "File"),
            (message(&voice), "Voice message"),
            (message(&caption), "Photo: Our cat"),
            (message(&same), "Photo"),
            (
                message(&json!({"msgtype": "m.location", "body": "geo:1,2"})),
                "Location",
            ),
            (
                message(&json!({"msgtype": "m.other", "body": "text"})),
                "text",
            ),
        ];
        for (extra, expected) in cases {
            assert_eq!(said(&extra, &texts).as_deref(), Some(expected), "{extra}");
        }
    }

    #[test]
    fn every_other_kind_of_event_has_words() {
        let texts = Texts::english();
        let poll = json!({"org.matrix.msc3381.poll.start": {"question": {"org.matrix.msc1767.text": "Lunch?"}}});
        let stable_poll = json!({"m.poll": {"question": {"m.text": [{"body": "Lunch?"}]}}});
        let cases = [
            (
                json!({"type": "m.sticker", "content": {"body": "cat.png"}}),
                "Sticker",
            ),
            (
                json!({"type": "org.matrix.msc3381.poll.start", "content": poll}),
                "Poll: Lunch?",
            ),
            (
                json!({"type": "m.poll.start", "content": stable_poll}),
                "Poll: Lunch?",
            ),
            (json!({"type": "m.poll.start", "content": {}}), "Poll"),
            (
                json!({"type": "m.room.encrypted", "content": {"ciphertext": "x"}}),
                "New message",
            ),
            (
                json!({"type": "m.call.invite", "content": {"lifetime": 1}}),
                "Incoming call",
            ),
            (
                json!({"type": "m.rtc.notification", "content": {}}),
                "Incoming call",
            ),
            (
                json!({"type": "org.matrix.msc4075.rtc.notification", "content": {}}),
                "Incoming call",
            ),
            (
                json!({"type": "m.room.member", "content": {"membership": "invite"}}),
                "Invitation to a chat",
            ),
            (
                json!({"type": "m.room.member", "membership": "invite"}),
                "Invitation to a chat",
            ),
            (
                json!({"type": "m.room.member", "content": {"membership": "invite"}, "room_name": "Team"}),
                "Invitation to Team",
            ),
            (
                json!({"type": "m.room.member", "content": {"membership": "join"}}),
                "New message",
            ),
            (json!({}), "New message"),
            (json!({"content": {"body": "no type"}}), "no type"),
        ];
        for (extra, expected) in cases {
            assert_eq!(said(&extra, &texts).as_deref(), Some(expected), "{extra}");
        }
    }

    #[test]
    fn a_room_with_a_name_is_named_beside_the_sender() {
        let texts = Texts::english();
        let named = |extra: Value| {
            let mut notification =
                json!({"event_id": "$e", "devices": [{"app_id": "a", "pushkey": "k"}]});
            let fields = notification.as_object_mut().unwrap();
            fields.extend(extra.as_object().unwrap().clone());
            let body = json!({"notification": notification}).to_string();
            let it = Notification::parse(body.as_bytes()).unwrap();
            who(&it, &texts).map(Cow::into_owned)
        };
        let alice =
            json!({"sender": "@a:b", "sender_display_name": "Alice", "room_name": "Team {sender}"});
        assert_eq!(named(alice).as_deref(), Some("Alice (Team {sender})"));
        let direct = json!({"sender": "@a:b", "room_name": ""});
        assert_eq!(named(direct).as_deref(), Some("@a:b"));
        assert_eq!(named(json!({"room_name": "Team"})), None);
        let invited = json!({"sender": "@a:b", "room_name": "Team", "type": "m.room.member",
            "content": {"membership": "invite"}});
        assert_eq!(named(invited).as_deref(), Some("@a:b"));
    }

    #[test]
    fn no_text_at_all_is_possible() {
        let mut texts = Texts::english();
        texts.message.clear();
        assert_eq!(said(&json!({}), &texts), None);
        texts.encrypted = Some("Secret".to_owned());
        let encrypted = json!({"type": "m.room.encrypted"});
        assert_eq!(said(&encrypted, &texts).as_deref(), Some("Secret"));
    }

    #[test]
    fn a_call_is_over_when_its_lifetime_is() {
        let over = |kind: &str, content: Value, now| {
            let body = json!({"notification": {"event_id": "$e", "type": kind, "content": content,
                "devices": [{"app_id": "a", "pushkey": "k"}]}});
            let body = body.to_string();
            over(&Notification::parse(body.as_bytes()).unwrap(), now)
        };
        let age = |ms| Some(Duration::from_millis(ms));
        let rings = json!({"sender_ts": 1_000_000, "lifetime": 30_000});
        let rtc = "m.rtc.notification";
        assert_eq!(over(rtc, rings.clone(), 1_030_000), None);
        // The caller's clock may be late by 20 s.
        assert_eq!(over(rtc, rings.clone(), 1_050_000), None);
        assert_eq!(over(rtc, rings.clone(), 1_050_001), age(50_001));
        let unstable = "org.matrix.msc4075.rtc.notification";
        assert_eq!(over(unstable, rings.clone(), 1_050_001), age(50_001));
        // A clock that is ahead, no time, no lifetime, and one that is longer than any call rings.
        assert_eq!(over(rtc, rings.clone(), 900_000), None);
        assert_eq!(over(rtc, json!({"lifetime": 30_000}), u64::MAX), None);
        assert_eq!(over(rtc, json!({"sender_ts": 1}), 140_001), None);
        assert_eq!(over(rtc, json!({"sender_ts": 1}), 140_002), age(140_001));
        let forever = json!({"sender_ts": 1, "lifetime": u64::MAX});
        assert_eq!(over(rtc, forever, 140_002), age(140_001));
        assert_eq!(over("m.room.message", rings, u64::MAX), None);
    }
}
