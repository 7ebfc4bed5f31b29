//! Tests all parsers of outside data with hostile input: notifications, reports, PNM's responses. The tests mutate
//! bodies that a real Synapse sent, and responses of PNM. Every run has the same mutations, and PROPTEST_CASES=100000
//! tries that many others.

use std::collections::HashMap;

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, RngSeed},
};
use serde_json::{Value, json, value::RawValue};

use crate::{
    notify::{
        notification::Notification,
        pnm::outcome::{Outcome, classify},
    },
    reports::fields::Fields,
};

const SEEDS: [&[u8]; 16] = [
    include_bytes!("../../tests/fixtures/captures/event_id_only_badge_after_read_dm.json"),
    include_bytes!("../../tests/fixtures/captures/event_id_only_dm_encrypted.json"),
    include_bytes!("../../tests/fixtures/captures/event_id_only_dm_text.json"),
    include_bytes!("../../tests/fixtures/captures/full_badge_after_read_dm.json"),
    include_bytes!("../../tests/fixtures/captures/full_dm_encrypted.json"),
    include_bytes!("../../tests/fixtures/captures/full_dm_image.json"),
    include_bytes!("../../tests/fixtures/captures/full_dm_text_clean.json"),
    include_bytes!("../../tests/fixtures/captures/full_group_text.json"),
    br#"{"selector":"s","token_msgs":"t","app_id_msgs":"a","username":"u@x","password":"p"}"#,
    b"selector=s&pushTokenOther=t+%2B&pushappid_other=a&pushTokenIncomingCall=%25x%25",
    br#"{"code":200,"response":"OK"}"#,
    br#"{"code":404,"response":"no such token"}"#,
    br#"{"status":"404","response":null}"#,
    br#"{"response":"404","code":400.0}"#,
    br"<html><body>404 Not Found</body></html>",
    br#"["\ud83d",{"a":[[[[1e999,-0]]]]}]"#,
];

/// Pieces that mean something to a parser. Fuzzers call this a dictionary.
const PIECES: [&[u8]; 20] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b"null",
    b"404",
    b"-1",
    b"1e400",
    b"\"devices\":",
    b"\"code\":404",
    b"\\ud800",
    b"%",
    b"&",
    b"=",
    b"\xff",
    b"\0",
];

#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Insert(Index, usize),
    Cut(Index, Index),
    Repeat(Index, Index),
    Splice(Index, usize, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Flip(at, byte)),
        (at(), 0..PIECES.len()).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        (at(), at()).prop_map(|(from, to)| Edit::Cut(from, to)),
        (at(), at()).prop_map(|(from, to)| Edit::Repeat(from, to)),
        (at(), 0..SEEDS.len(), at()).prop_map(|(at, seed, from)| Edit::Splice(at, seed, from)),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec(edit(), 0..8);
    (0..SEEDS.len(), edits)
        .prop_map(|(seed, edits)| edits.iter().fold(SEEDS[seed].to_vec(), edited))
}

fn edited(mut body: Vec<u8>, edit: &Edit) -> Vec<u8> {
    let place = |at: &Index, body: &[u8]| at.index(body.len() + 1);
    let range = |one: &Index, other: &Index, body: &[u8]| {
        let (one, other) = (place(one, body), place(other, body));
        one.min(other)..one.max(other)
    };
    match edit {
        Edit::Flip(at, byte) => {
            let at = place(at, &body);
            if let Some(old) = body.get_mut(at) {
                *old = *byte;
            }
        }
        Edit::Insert(at, piece) => {
            let at = place(at, &body);
            body.splice(at..at, PIECES[*piece].iter().copied());
        }
        Edit::Cut(from, to) => drop(body.drain(range(from, to, &body))),
        Edit::Repeat(from, to) => {
            let range = range(from, to, &body);
            let copy = body[range.clone()].to_vec();
            body.splice(range.end..range.end, copy);
        }
        Edit::Splice(at, seed, from) => {
            let tail = &SEEDS[*seed][from.index(SEEDS[*seed].len())..];
            body.truncate(place(at, &body));
            body.extend_from_slice(tail);
        }
    }
    body
}

fn text(letters: impl Strategy<Value = char>, most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(letters, 0..=most).prop_map(String::from_iter)
}

/// A text similar to a media type.
fn kind() -> impl Strategy<Value = String> {
    let letters = prop_oneof![20 => prop::char::range('a', 'z'), 1 => Just('/'), 1 => Just('-')];
    let end = prop::sample::select(vec!["", "json", "form"]);
    (text(letters, 20), end).prop_map(|(begin, end)| begin + end)
}

/// Any JSON that a homeserver could put anywhere.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text(any::<char>(), 12).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(text(prop::char::range('a', 'z'), 8), inner, 0..4)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

fn config() -> Config {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => Config {
            cases: 5_000,
            rng_seed: RngSeed::Fixed(1),
            ..config
        },
    }
}

/// Whether PNM may mean that the token is gone, by the plainest reading of its response.
fn may_be_gone(http: u16, body: &[u8]) -> bool {
    // The text may be in any encoding. Raw values are used because a text may contain half a surrogate pair.
    let body = String::from_utf8_lossy(body);
    let Ok(answer) = serde_json::from_str::<HashMap<String, &RawValue>>(&body) else {
        return false;
    };
    let says_gone = |name| {
        answer
            .get(name)
            .is_some_and(|code| ["404", "410"].contains(&code.get()))
    };
    let has_text = answer
        .get("response")
        .is_some_and(|text| text.get().starts_with('"'));
    says_gone("code") || has_text && (says_gone("status") || http == 404 || http == 410)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_panics_and_nothing_live_is_called_gone(
        body in body(),
        query in prop::option::of(text(any::<char>(), 40)),
        kind in prop::option::of(kind()),
        http in prop_oneof![4 => Just(200_u16), 2 => Just(404_u16), 1 => 100..600_u16],
    ) {
        if let Ok(notification) = Notification::parse(&body) {
            prop_assert!(!notification.devices.is_empty());
            for device in &notification.devices {
                prop_assert!(!device.app_id.is_empty() && !device.pushkey.is_empty());
            }
        }
        if let Ok(fields) = Fields::read(query.as_deref(), kind.as_deref(), &body) {
            prop_assert!((1..=256).contains(&fields.selector.as_str().len()));
        }
        if classify(http, &body) == Outcome::TokenGone {
            prop_assert!(may_be_gone(http, &body), "{http} {}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn whatever_stands_in_optional_fields_the_devices_are_found(
        optional in prop::collection::hash_map(
            prop::sample::select(vec![
                "event_id", "room_id", "sender", "sender_display_name", "content", "counts", "type", "prio",
                "room_name", "user_is_target", "unheard_of",
            ]),
            any_json(),
            0..11,
        ),
        of_device in prop::collection::hash_map(
            prop::sample::select(vec!["data", "tweaks", "pushkey_ts", "unheard_of"]),
            any_json(),
            0..4,
        ),
    ) {
        let mut device = json!({"app_id": "app", "pushkey": "key"});
        let mut notification = json!({});
        for (name, value) in of_device {
            device[name] = value;
        }
        for (name, value) in optional {
            notification[name] = value;
        }
        notification["devices"] = json!([device]);
        let body = json!({"notification": notification}).to_string();
        let read = Notification::parse(body.as_bytes());
        prop_assert!(read.is_ok_and(|read| read.devices[0].pushkey == "key"), "{body}");
    }
}
