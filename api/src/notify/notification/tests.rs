//! What the parser takes, and what it refuses.

use serde_json::{Value, json};

use super::*;

const DEVICES: &str = r#""devices":[{"app_id":"a","pushkey":"k"}]"#;

/// The body of a recorded request of Synapse 1.163.2.
fn body_of(capture: &str) -> Vec<u8> {
    let capture: Value = serde_json::from_str(capture).unwrap();
    capture["body"].to_string().into_bytes()
}

fn parse(inner: &str) -> Result<String, ParseError> {
    let body = format!(r#"{{"notification":{{{inner}}}}}"#);
    Notification::parse(body.as_bytes()).map(|it| format!("{it:?}"))
}

#[test]
fn reads_a_full_notification() {
    let body = body_of(include_str!(
        "../../../../tests/fixtures/captures/full_dm_text_clean.json"
    ));
    let it = Notification::parse(&body).unwrap();
    assert_eq!(
        it.event_id.as_deref(),
        Some("$z_hs10GsHeO9SJyogO-Rm6Q8hVEs9PDKKZh6Wz51UXo")
    );
    assert_eq!(
        it.room_id.as_deref(),
        Some("!eSweBRNPQ5akKj1Xcp70EtGkJHIheHKs2guXhxpKrag")
    );
    assert_eq!(it.sender.as_deref(), Some("@alice:localhost"));
    assert_eq!(it.sender_display_name.as_deref(), Some("Alice A"));
    assert_eq!(it.content.body.as_deref(), Some("hello there"));
    assert_eq!(it.unread, Some(7));
    let device = Device {
        app_id: "com.example.app".into(),
        pushkey: "pushkey-1".into(),
        selector: Some("sel-123".into()),
        mark: None,
        sound: Some("default".into()),
        silent: false,
    };
    assert_eq!(it.devices, [device]);
    assert!(
        matches!(it.content.body, Some(Cow::Borrowed(_))),
        "plain text is not copied"
    );
}

#[test]
fn reads_every_other_capture() {
    let events = [
        include_str!("../../../../tests/fixtures/captures/event_id_only_dm_encrypted.json"),
        include_str!("../../../../tests/fixtures/captures/event_id_only_dm_text.json"),
        include_str!("../../../../tests/fixtures/captures/event_id_only_dm_text_unread2.json"),
        include_str!("../../../../tests/fixtures/captures/full_dm_encrypted.json"),
        include_str!("../../../../tests/fixtures/captures/full_dm_image.json"),
        include_str!("../../../../tests/fixtures/captures/full_dm_text_unread2.json"),
        include_str!("../../../../tests/fixtures/captures/full_group_text.json"),
    ];
    for capture in events {
        let body = body_of(capture);
        let it = Notification::parse(&body).unwrap();
        assert!(
            it.event_id.is_some_and(|id| id.starts_with('$')),
            "{capture}"
        );
        assert_eq!(
            it.devices[0].selector.as_deref(),
            Some("sel-123"),
            "{capture}"
        );
    }
    let badges = [
        include_str!("../../../../tests/fixtures/captures/event_id_only_badge_after_read_dm.json"),
        include_str!("../../../../tests/fixtures/captures/full_badge_after_read_dm.json"),
    ];
    for capture in badges {
        let body = body_of(capture);
        let it = Notification::parse(&body).unwrap();
        assert_eq!((it.event_id, it.unread), (None, Some(2)), "{capture}");
    }
}

#[test]
fn refuses_only_what_cannot_be_delivered() {
    let cases: &[(&str, ParseError)] = &[
        ("", ParseError::NotJson),
        ("{", ParseError::NotJson),
        ("notification=1", ParseError::NotJson),
        ("{\"a\nb\":1,\"notification\":{}}", ParseError::NotJson),
        (r#"{"notification":{}} x"#, ParseError::NotJson),
        (
            r#"{"notification":{"devices":[{"app_id":"a","pushkey":"k"}],}}"#,
            ParseError::NotJson,
        ),
        ("null", ParseError::NoNotification),
        ("[]", ParseError::NoNotification),
        (r#""notification""#, ParseError::NoNotification),
        ("{}", ParseError::NoNotification),
        (r#"{"notification":null}"#, ParseError::NoNotification),
        (r#"{"notification":[]}"#, ParseError::NoNotification),
        (r#"{"notification":"\ud800"}"#, ParseError::BadPart),
        (r#"{"notification":1e999}"#, ParseError::BadPart),
        (
            r#"{"notification":{"devices":["\ud800"]}}"#,
            ParseError::BadPart,
        ),
        (r#"{"notification":{}}"#, ParseError::NoDevices),
        (
            r#"{"notification":{"devices":null}}"#,
            ParseError::NoDevices,
        ),
        (r#"{"notification":{"devices":{}}}"#, ParseError::NoDevices),
        (r#"{"notification":{"devices":"x"}}"#, ParseError::NoDevices),
        (r#"{"notification":{"devices":[]}}"#, ParseError::NoDevices),
        (
            r#"{"notification":{"devices":[null]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[["a","k"]]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{}]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{"app_id":"a"}]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{"app_id":1,"pushkey":"k"}]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{"app_id":"a","pushkey":null}]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{"app_id":"a","pushkey":""}]}}"#,
            ParseError::BadDevice,
        ),
        (
            r#"{"notification":{"devices":[{"app_id":"","pushkey":"k"}]}}"#,
            ParseError::BadDevice,
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(
            Notification::parse(body.as_bytes()),
            Err(*expected),
            "{body}"
        );
    }
    let not_utf8 = b"{\"notification\":{\"devices\":[{\"app_id\":\"a\",\"pushkey\":\"\xff\"}]}}";
    assert_eq!(Notification::parse(not_utf8), Err(ParseError::NotJson));
}

#[test]
fn an_odd_optional_field_is_as_good_as_absent() {
    let plain = parse(DEVICES).unwrap();
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let long = "9".repeat(5_000);
    let values = [
        "null",
        "true",
        "-1",
        "1.5",
        "1e400",
        "99999999999999999999",
        "{}",
        "[]",
        "[1]",
        r#"{"x":"\ud800"}"#,
        r#"{"\ud800":1}"#,
        &deep,
        &long,
    ];
    let fields = [
        "type",
        "prio",
        "room_id",
        "room_name",
        "room_alias",
        "sender",
        "sender_display_name",
        "user_is_target",
        "content",
        "counts",
        "unheard_of",
        r"\udead",
    ];
    for value in values {
        for field in fields {
            let odd = parse(&format!(r#""{field}":{value},{DEVICES}"#)).unwrap();
            assert_eq!(odd, plain, "{field}: {value:.40}");
        }
        for field in [
            "content\":{\"body",
            "counts\":{\"unread",
            "counts\":{\"missed_calls",
            "content\":{\"filename",
            "content\":{\"m.relates_to",
            "content\":{\"m.new_content",
            "content\":{\"m.poll",
        ] {
            let odd = parse(&format!(r#""{field}":{value}}},{DEVICES}"#)).unwrap();
            assert_eq!(odd, plain, "{field}: {value:.40}");
        }
        for field in ["data", "tweaks", "pushkey_ts", "x"] {
            let odd = parse(&format!(
                r#""devices":[{{"{field}":{value},"app_id":"a","pushkey":"k"}}]"#
            ));
            assert_eq!(odd.unwrap(), plain, "{field}: {value:.40}");
        }
        for field in [
            "data\":{\"selector",
            "tweaks\":{\"sound",
            "tweaks\":{\"highlight",
        ] {
            if field.ends_with("highlight") && value == "true" {
                // That is what it should be.
                continue;
            }
            let odd = parse(&format!(
                r#""devices":[{{"{field}":{value}}},"app_id":"a","pushkey":"k"}}]"#
            ));
            assert_eq!(odd.unwrap(), plain, "{field}: {value:.40}");
        }
    }
}

#[test]
fn the_last_of_doubled_keys_counts() {
    let once = parse(&format!(
        r#""event_id":"$b","counts":{{"unread":2}},{DEVICES}"#
    ));
    let twice = parse(&format!(
        r#""event_id":"$a","event_id":"$b","counts":{{"unread":1}},"counts":{{"unread":9,"unread":2}},
        "devices":[],{DEVICES}"#
    ));
    assert_eq!(twice, once);
    let body = format!(r#"{{"notification":null,"notification":{{{DEVICES}}}}}"#);
    assert!(Notification::parse(body.as_bytes()).is_ok());
}

#[test]
fn counts_are_whole_numbers_of_any_size() {
    let cases = [
        ("0", Some(0)),
        ("-0", Some(0)),
        ("7", Some(7)),
        ("70000", Some(70_000)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("3.0", Some(3)),
        ("1e3", Some(1000)),
        ("0.5", None),
        ("-2", None),
        (r#""3""#, None),
    ];
    for (written, expected) in cases {
        let body = json!({"notification": {"counts": {"unread": "?"},
            "devices": [{"app_id": "a", "pushkey": "k"}]}});
        let body = body.to_string().replace(r#""?""#, written);
        let it = Notification::parse(body.as_bytes()).unwrap();
        assert_eq!(it.unread, expected, "{written}");
    }
}

#[test]
fn escapes_are_resolved_and_half_pairs_replaced() {
    let body =
        br#"{"notification":{"\u0065vent_id":"$\u00e4\n","content":{"body":"a\ud83d\ude00b\ud83d"},
        "sender":"","devices":[{"app_id":"a","pushkey":"k\/1"}]}}"#;
    let it = Notification::parse(body).unwrap();
    assert_eq!(it.event_id.as_deref(), Some("$ä\n"));
    assert!(
        it.content
            .body
            .is_some_and(|body| body.starts_with("a😀b\u{fffd}"))
    );
    assert_eq!(it.devices[0].pushkey, "k/1");
}

/// Field case 3, and its kin.
#[test]
fn the_event_is_named_by_event_id_or_by_id() {
    let cases = [
        (r#""id":"$x""#, Some("$x"), false),
        (r#""event_id":null,"id":"$x""#, Some("$x"), false),
        (r#""event_id":"","id":"$x""#, Some("$x"), false),
        (r#""event_id":5,"id":"$x""#, Some("$x"), false),
        (r#""event_id":"$e","id":"$x""#, Some("$e"), false),
        (r#""id":"$x","event_id":"$e""#, Some("$e"), false),
        (r#""event_id":"$e","id":5"#, Some("$e"), false),
        (r#""event_id":"","id":"""#, None, false),
        (r#""event_id":null,"id":null"#, None, false),
        (r#""type":"m.room.message""#, None, false),
        (r#""event_id":5"#, None, true),
        (r#""event_id":{}"#, None, true),
        (r#""id":["$x"]"#, None, true),
        (r#""event_id":false,"id":"""#, None, true),
        (r#""event_id":"","id":0"#, None, true),
    ];
    for (fields, expected, odd) in cases {
        let body = format!(r#"{{"notification":{{{fields},{DEVICES}}}}}"#);
        let it = Notification::parse(body.as_bytes()).unwrap();
        assert_eq!(
            (it.event_id.as_deref(), it.odd_event_id),
            (expected, odd),
            "{fields}"
        );
    }
}

#[test]
fn a_hundred_devices_are_enough() {
    let devices = |count| {
        let list = vec![r#"{"app_id":"a","pushkey":"k"}"#; count].join(",");
        parse(&format!(r#""event_id":"$e","devices":[{list}]"#)).map(|_| ())
    };
    assert_eq!(devices(100), Ok(()));
    assert_eq!(devices(101), Err(ParseError::TooManyDevices));
}

#[test]
fn the_mark_is_read_from_the_data() {
    let mark = |data: &str| {
        let body = format!(
            r#"{{"notification":{{"devices":[{{"app_id":"a","pushkey":"k","data":{data}}}]}}}}"#
        );
        let it = Notification::parse(body.as_bytes()).unwrap();
        it.devices[0].mark.as_deref().map(str::to_owned)
    };
    assert_eq!(mark(r#"{"selector":"s","mark":"m"}"#).as_deref(), Some("m"));
    for data in ["null", "5", r#"{"mark":5}"#, r#"{"selector":"m"}"#] {
        assert_eq!(mark(data), None, "{data}");
    }
}
