//! A login at NethCTI: checks the password or token and the right to chat, and finds the user of an extension.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use matrix2acrobits_shared::{
    ids::{ServerName, UserId},
    process::net::Outgoing,
    secret::Secret,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use super::{
    AuthError,
    extensions::{self, Extensions},
    upstream::{Answer, Upstream},
};

/// The response to a login is little more than a JWT.
const MAX_LOGIN_BYTES: usize = 256 * 1024;
/// The list names every user of the switchboard.
const MAX_USERS_BYTES: usize = 1024 * 1024;
/// The capability, and the claim of the JWT that says whether the user has it.
const CHAT: &str = "nethvoice_cti.chat";
/// Ends the user name of an app that was set up by QR code, and has a token for a password.
const QR_CODE: &str = "@qrcode";
/// The most good logins whose user is remembered, for the day when the user loses the chat. Then the extension is no
/// longer on the list, so the list cannot tell whose it was.
const REMEMBERED: u64 = 10_000;

/// NethCTI's login service (its middleware).
#[derive(Debug)]
pub(super) struct NethCti {
    upstream: Upstream,
    server_name: ServerName,
    /// The users of good logins by the names that they used, in lower case.
    former: moka::sync::Cache<String, UserId>,
    extensions: Option<Extensions>,
    /// The token that last read the list, if we are to read it again.
    reader: Mutex<Option<Secret>>,
}

/// The response to a login. It has no Debug, to protect the token.
#[derive(Deserialize)]
struct LoggedIn {
    token: String,
}

/// The part of the response to `GET /user/me` that names the user.
#[derive(Deserialize)]
struct Me {
    #[serde(alias = "user_name")]
    username: String,
}

/// A name, and the token that proves it.
struct Proof {
    name: String,
    token: Secret,
}

#[derive(Deserialize)]
struct Users {
    /// Absent if NethCTI could not read the users, which is not the same as empty.
    users: Vec<Value>,
}

impl NethCti {
    pub(super) fn new(
        base: &Url,
        server_name: ServerName,
        timeout: Duration,
        outgoing: &Outgoing,
        extensions: Option<Extensions>,
    ) -> Result<Self, reqwest::Error> {
        let upstream = Upstream::new(base, timeout, outgoing)?;
        Ok(Self {
            upstream,
            server_name,
            former: moka::sync::Cache::new(REMEMBERED),
            extensions,
            reader: Mutex::default(),
        })
    }

    /// Logs in with a user name or an extension, and returns the Matrix user. The password may also be one of NethCTI's
    /// tokens.
    pub(super) async fn login(&self, name: &str, password: &Secret) -> Result<UserId, AuthError> {
        let proof = self.prove(name, password).await?;
        let claims = claims(proof.token.expose());
        let found = if may_chat(&claims) == Some(false) {
            None
        } else {
            // Newer NethVoice puts no such claim into its tokens. There, the list says who may chat.
            let users = self.users(&proof.token).await?;
            let found = find(&users, &proof.name)
                .map_err(|Ambiguous| unreadable("several users have this name or extension"))?;
            found.map(str::to_owned)
        };
        let Some(user_name) = found else {
            let users = self.former_users(&proof.name, &claims);
            return Err(AuthError::NoChat { users });
        };
        let user = user_id(&user_name, &self.server_name)
            .ok_or_else(|| unreadable("a user name that no Matrix user can have"))?;
        self.former.insert(proof.name.to_lowercase(), user.clone());
        Ok(user)
    }

    /// Keeps the list of extensions fresh while nobody logs in. Runs forever.
    pub(super) async fn refresh_extensions(&self) {
        loop {
            tokio::time::sleep(extensions::REFRESH).await;
            let reader = self.reader().clone();
            let Some(token) = reader else {
                continue;
            };
            if let Err(error) = self.users(&token).await {
                tracing::debug!(?error, "the list of extensions was not read again");
                if matches!(error, AuthError::NoChat { .. }) {
                    // The token has expired. The next login brings another one.
                    self.reader()
                        .take_if(|reader| reader.expose() == token.expose());
                }
            }
        }
    }

    fn reader(&self) -> MutexGuard<'_, Option<Secret>> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The users that this login may have stood for while it could chat: the remembered user, and users with the
    /// login's own names.
    fn former_users(&self, name: &str, claims: &Map<String, Value>) -> Vec<UserId> {
        let id = claims.get("id").and_then(Value::as_str);
        let names = [id, Some(name)].into_iter().flatten();
        let mut users: Vec<_> = self.former.get(&name.to_lowercase()).into_iter().collect();
        users.extend(names.filter_map(|name| user_id(name, &self.server_name)));
        users.dedup();
        users
    }

    async fn prove(&self, name: &str, password: &Secret) -> Result<Proof, AuthError> {
        match (name.ends_with(QR_CODE), kind_of(password.expose())) {
            (true, _) | (false, Kind::Jwt) => self.me(password).await,
            // Either a token in another format, or a password that contains two dots.
            (false, Kind::Dotted) => match self.me(password).await {
                Ok(proof) => Ok(proof),
                Err(_) => self.token(name, password).await,
            },
            (false, Kind::Password) => self.token(name, password).await,
        }
    }

    /// The user with this token.
    async fn me(&self, token: &Secret) -> Result<Proof, AuthError> {
        let request = self.upstream.get("/user/me").bearer_auth(token.expose());
        let answer = Answer::to(request, MAX_LOGIN_BYTES).await?;
        match answer.status {
            200..300 => {
                let me: Option<Me> = answer.json();
                let name = me.map(|me| me.username.trim().to_owned());
                let name = name.filter(|name| !name.is_empty());
                name.map(|name| Proof {
                    name,
                    token: token.clone(),
                })
                .ok_or_else(|| unreadable("the answer to /user/me has no username"))
            }
            _ if answer.is_refusal() => Err(AuthError::Refused),
            _ => Err(answer.trouble("NethCTI's /user/me", None)),
        }
    }

    async fn token(&self, name: &str, password: &Secret) -> Result<Proof, AuthError> {
        let body = json!({"username": name, "password": password.expose()});
        let request = self.upstream.post("/api/login").json(&body);
        let answer = Answer::to(request, MAX_LOGIN_BYTES).await?;
        match answer.status {
            200..300 => {
                let logged_in: Option<LoggedIn> = answer.json();
                let token = logged_in
                    .map(|logged_in| Secret::new(logged_in.token))
                    .ok_or_else(|| unreadable("the answer to a login has no token"))?;
                if kind_of(token.expose()) != Kind::Jwt {
                    return Err(unreadable("the token is no JWT"));
                }
                let name = name.to_owned();
                Ok(Proof { name, token })
            }
            _ if answer.is_refusal() => Err(AuthError::Refused),
            _ => Err(answer.trouble("NethCTI's /api/login", None)),
        }
    }

    async fn users(&self, token: &Secret) -> Result<Vec<Value>, AuthError> {
        let request = self.upstream.get("/api/chat?users=1");
        let answer = Answer::to(request.bearer_auth(token.expose()), MAX_USERS_BYTES).await?;
        match answer.status {
            200..300 => {
                let users: Option<Users> = answer.json();
                let users = users.map(|users| users.users);
                let users = users.ok_or_else(|| unreadable("the answer has no list of users"))?;
                if let Some(extensions) = &self.extensions {
                    extensions.replace(&users, &self.server_name);
                    *self.reader() = Some(token.clone());
                }
                Ok(users)
            }
            // NethCTI responds so to users with a second factor, among others, whose password alone is not enough. The
            // response does not concern the right to chat, so no pusher goes.
            _ if answer.is_refusal() => Err(AuthError::NoChat { users: Vec::new() }),
            _ => Err(answer.trouble("NethCTI's /api/chat", None)),
        }
    }
}

fn unreadable(reason: &'static str) -> AuthError {
    tracing::warn!(reason, "NethCTI's answer cannot be understood");
    AuthError::Unreadable
}

/// The name without its `@domain`, as NethCTI knows it. The ending that marks a QR code stays.
pub(super) fn without_domain(username: &str) -> &str {
    match username.split_once('@') {
        Some((name, _)) if !name.is_empty() && !username.ends_with(QR_CODE) => name,
        _ => username,
    }
}

/// The Matrix user with this name. None if no such user can exist.
pub(super) fn user_id(user_name: &str, server_name: &ServerName) -> Option<UserId> {
    let user_name = user_name.to_lowercase();
    // A colon would move the border between name and server.
    let valid = !user_name.contains(':');
    let user_id = || UserId::parse(&format!("@{user_name}:{server_name}")).ok();
    valid.then(user_id).flatten()
}

/// What a phone sent as the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A JWT.
    Jwt,
    /// Three parts in base64url, like a token. Few passwords look like this.
    Dotted,
    Password,
}

fn kind_of(password: &str) -> Kind {
    let part = |part: &str| {
        let text = part.trim_end_matches('=');
        !text.is_empty()
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    if payload(password).is_some() {
        Kind::Jwt
    } else if password.split('.').count() == 3 && password.split('.').all(part) {
        Kind::Dotted
    } else {
        Kind::Password
    }
}

/// The claims of a JWT. None if it is not a JWT. We do not check the signature, because the token comes from NethCTI or
/// NethCTI checks it.
fn payload(jwt: &str) -> Option<Map<String, Value>> {
    let mut parts = jwt.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&payload).ok()
}

fn claims(token: &str) -> Map<String, Value> {
    payload(token).unwrap_or_default()
}

/// Whether the claims grant chat. None if they do not say, also by a value that we do not know: a refusal costs the
/// user's pushers, and the list of chat users knows better.
fn may_chat(claims: &Map<String, Value>) -> Option<bool> {
    let nested = || {
        let (group, name) = CHAT.split_once('.')?;
        claims.get(group)?.get(name)
    };
    match claims.get(CHAT).or_else(nested)? {
        Value::Bool(granted) => Some(*granted),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Two users share a name that should identify one.
#[derive(Debug, PartialEq)]
struct Ambiguous;

/// The `user_name` of the entry with this name. The user name takes precedence over the main extension, and that over
/// the other extensions, which newer NethVoice lists under another name.
fn find<'a>(users: &'a [Value], name: &str) -> Result<Option<&'a str>, Ambiguous> {
    let same = |text: &str| text.to_lowercase() == name.to_lowercase();
    let ranks: [&[&str]; 3] = [
        &["user_name"],
        &["main_extension"],
        &["sub_extensions", "extensions"],
    ];
    for fields in ranks {
        let mut found: Option<&str> = None;
        let has_name = |user: &&Value| {
            let mut values = fields.iter().flat_map(|field| texts(&user[field]));
            values.any(|text| same(&text))
        };
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

/// The main extension of an entry, if it has one.
pub(super) fn main_extension(user: &Value) -> Option<String> {
    texts(&user["main_extension"]).into_iter().next()
}

/// The names or numbers in a value, whether one or a list, in any of the forms that NethCTI uses.
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
            (r#"{"nethvoice_cti.chat":"False"}"#, Some(false)),
            (r#"{"nethvoice_cti.chat":null}"#, None),
            (r#"{"nethvoice_cti.chat":1}"#, None),
            (r#"{"nethvoice_cti.chat":0}"#, None),
            (r#"{"nethvoice_cti.chat":"1"}"#, None),
            (r#"{"nethvoice_cti.chat":"yes"}"#, None),
            (r#"{"nethvoice_cti.chat":""}"#, None),
            (r#"{"nethvoice_cti.chat":[true]}"#, None),
            (r#"{"nethvoice_cti.chat":{"read":true}}"#, None),
            (r#"{"nethvoice_cti":{"chat":"enabled"}}"#, None),
            (
                r#"{"nethvoice_cti.chat":false,"nethvoice_cti":{"chat":true}}"#,
                Some(false),
            ),
            // Field case 16: the list decides.
            (
                r#"{"id":"bob","2fa":false,"otp_verified":false,"profile_id":"1","iat":1}"#,
                None,
            ),
            (r#"{"nethvoice_cti":true}"#, None),
            (r#"{"nethvoice_cti.chats":true}"#, None),
            ("{}", None),
        ];
        for (payload, expected) in cases {
            assert_eq!(may_chat(&claims(&jwt(payload))), expected, "{payload}");
        }
        for payload in ["[]", "true", "{", ""] {
            assert_ne!(kind_of(&jwt(payload)), Kind::Jwt, "{payload}");
        }
    }

    #[test]
    fn the_form_of_a_jwt() {
        let payload = r#"{"nethvoice_cti.chat":true,"n":"???>>>~~~"}"#;
        let padded = format!("e30.{}.c2ln", URL_SAFE.encode(payload));
        assert!(padded.contains('='), "{padded}");
        assert_eq!(may_chat(&claims(&padded)), Some(true));
        assert_eq!(may_chat(&claims(&jwt(payload))), Some(true));
        let cases = [
            (&*padded, Kind::Jwt),
            ("e30.e30.c2ln", Kind::Jwt),
            ("a.b.c", Kind::Dotted),
            ("e30.%%.x", Kind::Password),
            ("e30.e30.e30.e30", Kind::Password),
            ("winter 2026.a.b", Kind::Password),
            ("a.b", Kind::Password),
            ("...", Kind::Password),
            ("..", Kind::Password),
            ("x", Kind::Password),
            ("", Kind::Password),
        ];
        for (text, expected) in cases {
            assert_eq!(kind_of(text), expected, "{text}");
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
            {"user_name": "heidi", "main_extension": "400", "extensions": ["91400", 92400]},
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
            ("91400", Ok(Some("heidi"))),
            ("92400", Ok(Some("heidi"))),
            // A user name takes precedence over an extension, and a main extension over a sub extension.
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
            ("bob@example.org@qrcode", "bob@example.org@qrcode"),
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
