//! A login at NethCTI: the password, the right to chat, and whose extension it is.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use matrix2acrobits_shared::{
    ids::{ServerName, UserId},
    process::net::Outgoing,
    secret::Secret,
};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{
    AuthError,
    upstream::{Answer, Upstream},
};

/// A login's answer is a JWT and little else.
const MAX_LOGIN_BYTES: usize = 256 * 1024;
/// The list names every user of the switchboard.
const MAX_USERS_BYTES: usize = 1024 * 1024;
/// The capability, and the claim of the JWT that says whether the user has it.
const CHAT: &str = "nethvoice_cti.chat";

/// NethCTI's login service (its middleware).
#[derive(Debug)]
pub(super) struct NethCti {
    upstream: Upstream,
    server_name: ServerName,
}

/// The answer to a login; it has no Debug, for the token's sake.
#[derive(Deserialize)]
struct LoggedIn {
    token: String,
}

#[derive(Deserialize)]
struct Users {
    /// Absent when NethCTI could not read them, which is not the same as empty.
    users: Vec<Value>,
}

impl NethCti {
    pub(super) fn new(
        base: &Url,
        server_name: ServerName,
        timeout: Duration,
        outgoing: &Outgoing,
    ) -> Result<Self, reqwest::Error> {
        let upstream = Upstream::new(base, timeout, outgoing)?;
        Ok(Self {
            upstream,
            server_name,
        })
    }

    /// The Matrix user of who logs in under this name, which is a user name or an extension.
    pub(super) async fn login(&self, name: &str, password: &Secret) -> Result<UserId, AuthError> {
        let token = self.token(name, password).await?;
        match may_chat(token.expose()) {
            Some(true) => {}
            Some(false) => return Err(AuthError::NoChat),
            None => return Err(unreadable("the token is no JWT")),
        }
        let users = self.users(&token).await?;
        match find(&users, name) {
            Ok(Some(user_name)) => user_id(user_name, &self.server_name)
                .ok_or_else(|| unreadable("a user name that no Matrix user can have")),
            Ok(None) => Err(AuthError::NoChat),
            Err(Ambiguous) => Err(unreadable("several users have this name or extension")),
        }
    }

    async fn token(&self, name: &str, password: &Secret) -> Result<Secret, AuthError> {
        let body = json!({"username": name, "password": password.expose()});
        let request = self.upstream.post("/api/login").json(&body);
        let answer = Answer::to(request, MAX_LOGIN_BYTES).await?;
        match answer.status {
            200..300 => {
                let logged_in: Option<LoggedIn> = answer.json();
                let token = logged_in.map(|logged_in| Secret::new(logged_in.token));
                token.ok_or_else(|| unreadable("the answer to a login has no token"))
            }
            401 | 403 => Err(AuthError::Refused),
            _ => Err(answer.trouble("NethCTI's /api/login", None)),
        }
    }

    async fn users(&self, token: &Secret) -> Result<Vec<Value>, AuthError> {
        let request = self.upstream.get("/api/chat?users=1");
        let answer = Answer::to(request.bearer_auth(token.expose()), MAX_USERS_BYTES).await?;
        match answer.status {
            200..300 => {
                let users: Option<Users> = answer.json();
                users
                    .map(|users| users.users)
                    .ok_or_else(|| unreadable("the answer has no list of users"))
            }
            // Such as to users with a second factor, whose password alone opens nothing.
            401 | 403 => Err(AuthError::NoChat),
            _ => Err(answer.trouble("NethCTI's /api/chat", None)),
        }
    }
}

fn unreadable(reason: &'static str) -> AuthError {
    tracing::warn!(reason, "NethCTI's answer cannot be understood");
    AuthError::Unreadable
}

/// The name without its `@domain`, as NethCTI knows it.
pub(super) fn without_domain(username: &str) -> &str {
    match username.split_once('@') {
        Some((name, _)) if !name.is_empty() => name,
        _ => username,
    }
}

/// The Matrix user of this name; none if there can be no such user.
fn user_id(user_name: &str, server_name: &ServerName) -> Option<UserId> {
    let user_name = user_name.to_lowercase();
    // A colon would move the border between name and server.
    let valid = !user_name.contains(':');
    let user_id = || UserId::parse(&format!("@{user_name}:{server_name}")).ok();
    valid.then(user_id).flatten()
}

/// Whether the JWT grants chat; none if it is no JWT. Its signature is not looked at: it comes from the
/// login service itself.
fn may_chat(jwt: &str) -> Option<bool> {
    let mut parts = jwt.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let claims = claims.as_object()?;
    let nested = || {
        let (group, name) = CHAT.split_once('.')?;
        claims.get(group)?.get(name)
    };
    Some(match claims.get(CHAT).or_else(nested) {
        Some(Value::Bool(granted)) => *granted,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    })
}

/// Two users share what should name one.
#[derive(Debug, PartialEq)]
struct Ambiguous;

/// The `user_name` of the entry that has this name: as its user name, else as its main extension, else among
/// its sub extensions.
fn find<'a>(users: &'a [Value], name: &str) -> Result<Option<&'a str>, Ambiguous> {
    let same = |text: &str| text.to_lowercase() == name.to_lowercase();
    for field in ["user_name", "main_extension", "sub_extensions"] {
        let mut found: Option<&str> = None;
        let has_name = |user: &&Value| texts(&user[field]).iter().any(|text| same(text));
        for user in users.iter().filter(has_name) {
            let Some(user_name) = user["user_name"].as_str().map(str::trim) else {
                continue;
            };
            let other = |found: &str| found.to_lowercase() != user_name.to_lowercase();
            if found.is_some_and(other) {
                return Err(Ambiguous);
            }
            if !user_name.is_empty() {
                found = Some(user_name);
            }
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// A name or number, or a list of them, in whichever form it is written.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => text
            .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'))
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect(),
        Value::Number(number) => vec![number.to_string()],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE;

    use super::*;

    fn jwt(payload: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn the_claim() {
        let cases = [
            (r#"{"nethvoice_cti.chat":true}"#, Some(true)),
            (r#"{"nethvoice_cti.chat":"true"}"#, Some(true)),
            (r#"{"nethvoice_cti.chat":"True"}"#, Some(true)),
            (r#"{"nethvoice_cti":{"chat":true}}"#, Some(true)),
            (r#"{"nethvoice_cti":{"chat":"true"}}"#, Some(true)),
            (
                r#"{"id":"bob","nethvoice_cti.chat":true,"exp":1}"#,
                Some(true),
            ),
            (r#"{"nethvoice_cti.chat":false}"#, Some(false)),
            (r#"{"nethvoice_cti.chat":"false"}"#, Some(false)),
            (r#"{"nethvoice_cti.chat":1}"#, Some(false)),
            (r#"{"nethvoice_cti.chat":null}"#, Some(false)),
            (r#"{"nethvoice_cti.chat":[true]}"#, Some(false)),
            (
                r#"{"nethvoice_cti.chat":false,"nethvoice_cti":{"chat":true}}"#,
                Some(false),
            ),
            (r#"{"nethvoice_cti":true}"#, Some(false)),
            (r#"{"nethvoice_cti.chats":true}"#, Some(false)),
            ("{}", Some(false)),
            ("[]", None),
            ("true", None),
            ("{", None),
            ("", None),
        ];
        for (payload, expected) in cases {
            assert_eq!(may_chat(&jwt(payload)), expected, "{payload}");
        }
    }

    #[test]
    fn the_form_of_a_jwt() {
        let payload = r#"{"nethvoice_cti.chat":true,"n":"???>>>~~~"}"#;
        let padded = format!("e30.{}.c2ln", URL_SAFE.encode(payload));
        assert!(padded.contains('='), "{padded}");
        assert_eq!(may_chat(&padded), Some(true));
        assert_eq!(may_chat(&jwt(payload)), Some(true));
        for text in ["", "x", "a.b", "...", "e30.%%.x", "e30.e30.e30.e30"] {
            assert_eq!(may_chat(text), None, "{text}");
        }
    }

    #[test]
    fn whose_name_or_extension() {
        let users = json!([
            {"user_name": "Bob", "main_extension": "201", "sub_extensions": ["91201", " 92201 "]},
            {"user_name": "alice", "main_extension": 202, "sub_extensions": "91202,92202 93202; 94202"},
            {"user_name": "carol", "main_extension": "203", "sub_extensions": [91203, 92203]},
            {"user_name": "dave", "main_extension": "", "sub_extensions": null},
            {"user_name": "201", "main_extension": "204"},
            {"user_name": "", "main_extension": "205"},
            {"user_name": null, "main_extension": "206"},
            {"main_extension": "207", "sub_extensions": ["208"]},
            "oddity", 5, null, [],
            {"user_name": "eve", "main_extension": "300", "sub_extensions": ["202"]},
            {"user_name": "frank", "main_extension": "301", "sub_extensions": ["999"]},
            {"user_name": "grace", "main_extension": "301", "sub_extensions": ["999"]},
            {"user_name": "BOB", "main_extension": "201"},
        ]);
        let cases = [
            ("Bob", Ok(Some("bob"))),
            ("bob", Ok(Some("bob"))),
            ("91201", Ok(Some("bob"))),
            ("92201", Ok(Some("bob"))),
            ("alice", Ok(Some("alice"))),
            ("202", Ok(Some("alice"))),
            ("91202", Ok(Some("alice"))),
            ("92202", Ok(Some("alice"))),
            ("93202", Ok(Some("alice"))),
            ("94202", Ok(Some("alice"))),
            ("91203", Ok(Some("carol"))),
            ("dave", Ok(Some("dave"))),
            // A user name outranks an extension, a main extension a sub extension.
            ("201", Ok(Some("201"))),
            ("300", Ok(Some("eve"))),
            ("204", Ok(Some("201"))),
            ("205", Ok(None)),
            ("206", Ok(None)),
            ("208", Ok(None)),
            ("", Ok(None)),
            ("91", Ok(None)),
            ("2", Ok(None)),
            ("91202,92202", Ok(None)),
            ("301", Err(Ambiguous)),
            ("999", Err(Ambiguous)),
        ];
        let users = users.as_array().unwrap();
        for (name, expected) in cases {
            let found = find(users, name).map(|found| found.map(str::to_lowercase));
            assert_eq!(
                found,
                expected.map(|name| name.map(str::to_owned)),
                "{name}"
            );
        }
    }

    #[test]
    fn domains() {
        for (username, expected) in [
            ("bob", "bob"),
            ("bob@example.org", "bob"),
            ("bob@a@b", "bob"),
            ("@bob", "@bob"),
            ("@", "@"),
            ("", ""),
        ] {
            assert_eq!(without_domain(username), expected);
        }
    }

    #[test]
    fn user_ids_are_lower_case_and_of_our_server() {
        let server_name = ServerName::parse("example.org").unwrap();
        let id = |name: &str| user_id(name, &server_name);
        assert_eq!(id("Bob"), UserId::parse("@bob:example.org").ok());
        for bad in ["", "bob:evil.org", "b b", "b\nb", &"x".repeat(256)] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
