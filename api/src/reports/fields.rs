//! Reads the fields of a token report as Acrobits' templates spell them, from JSON, a form or the query string. Pure:
//! no I/O.

use std::{borrow::Cow, collections::HashMap};

use matrix2acrobits_shared::{
    flow::NamedPhone,
    ids::{AppId, Device, IdError, Pushkey, Selector},
    rules::report::Field,
    secret::Secret,
};

/// Longest user name and password, in bytes.
const MAX_LOGIN_BYTES: usize = 512;

/// Longest id of a push, in bytes. The ids that we send are not longer.
const MAX_ID_BYTES: usize = 255;

/// The most field names that are remembered of a report without a token, and the most characters of each.
const MAX_NAMES: usize = 20;
const MAX_NAME_CHARS: usize = 40;

/// The spellings of one field, in order of precedence.
type Names = &'static [&'static str];

const SELECTOR: Names = &["selector"];
const TOKEN_MSGS: Names = &["token_msgs", "pushTokenOther", "pushToken", "token"];
const APP_ID_MSGS: Names = &[
    "app_id_msgs",
    "appid_msgs",
    "appId_msgs",
    "pushappid_other",
    "pushappid",
    "appid",
];
const TOKEN_CALLS: Names = &["token_calls", "pushTokenIncomingCall"];
const APP_ID_CALLS: Names = &[
    "app_id_calls",
    "appid_calls",
    "appId_calls",
    "pushappid_incoming_call",
];
const DEVICE: Names = &["device", "installid", "install_id"];
/// The id of a push, as the app's template may name it.
const ID: Names = &["id", "pushId", "push_id", "messageId", "event_id"];
const USERNAME: Names = &["username"];
const PASSWORD: Names = &["password"];
const KNOWN: [Names; 8] = [
    SELECTOR,
    TOKEN_MSGS,
    APP_ID_MSGS,
    TOKEN_CALLS,
    APP_ID_CALLS,
    DEVICE,
    USERNAME,
    PASSWORD,
];
const KNOWN_OF_RECEIPTS: [Names; 6] = [SELECTOR, TOKEN_MSGS, DEVICE, ID, USERNAME, PASSWORD];

/// Why a report cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FieldError {
    /// The body is neither JSON nor a form.
    NotJson,
    /// The JSON is not an object.
    NotAnObject,
    /// A field is not text.
    NotText(&'static str),
    /// A field has bytes that are not UTF-8.
    NotUtf8(&'static str),
    /// The selector is missing.
    NoSelector,
    /// Both selector and token are missing.
    NoPhone,
    /// A field has an invalid value.
    Invalid(&'static str, IdError),
}

/// The checked fields of a report or removal.
#[derive(Debug)]
pub(crate) struct Fields {
    pub(crate) selector: Selector,
    pub(crate) device: Option<Device>,
    pub(crate) token_msgs: Field<Pushkey>,
    pub(crate) app_id_msgs: Field<AppId>,
    pub(crate) token_calls: Field<Pushkey>,
    pub(crate) app_id_calls: Field<AppId>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    /// The names of all fields without values, for an operator who looks for a typo.
    pub(crate) names: Vec<String>,
}

impl Fields {
    /// Reads the query string and the body. A field in the body takes precedence over the query's, however each of them
    /// spells it. A placeholder that the app did not fill gives way to a value anywhere else.
    pub(crate) fn read(
        query: Option<&str>,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, FieldError> {
        let values = Values::read(&KNOWN, query, content_type, body)?;
        let selector = match values.field(SELECTOR, Selector::parse)? {
            Field::Set(selector) => selector,
            Field::Absent | Field::Clear => return Err(FieldError::NoSelector),
        };
        Ok(Self {
            selector,
            device: values.given(DEVICE, Device::parse)?,
            token_msgs: values.field(TOKEN_MSGS, token)?,
            app_id_msgs: values.field(APP_ID_MSGS, AppId::parse)?,
            token_calls: values.field(TOKEN_CALLS, token)?,
            app_id_calls: values.field(APP_ID_CALLS, AppId::parse)?,
            username: values.given(USERNAME, login)?,
            password: values.password()?,
            names: values.names,
        })
    }

    /// Whether this report mentions no token at all, which is a mistake in the operator's template.
    pub(crate) fn lack_tokens(&self) -> bool {
        self.token_msgs == Field::Absent && self.token_calls == Field::Absent
    }
}

/// The checked fields of a receipt.
#[derive(Debug)]
pub(crate) struct ReceiptFields {
    pub(crate) phone: NamedPhone,
    /// The id of the push, if the template has it.
    pub(crate) id: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
}

impl ReceiptFields {
    /// Reads the query string and the body, as [`Fields::read`] does. The selector or the token is required.
    pub(crate) fn read(
        query: Option<&str>,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, FieldError> {
        let values = Values::read(&KNOWN_OF_RECEIPTS, query, content_type, body)?;
        let phone = NamedPhone {
            selector: values.given(SELECTOR, Selector::parse)?,
            device: values.given(DEVICE, Device::parse)?,
            token: values.given(TOKEN_MSGS, token)?,
        };
        if phone.selector.is_none() && phone.token.is_none() {
            return Err(FieldError::NoPhone);
        }
        Ok(Self {
            phone,
            // Our own ids are not longer.
            id: values
                .get(ID)
                .filter(|id| id.len() <= MAX_ID_BYTES)
                .map(str::to_owned),
            username: values.given(USERNAME, login)?,
            password: values.password()?,
        })
    }
}

/// The values of the fields that we know, by the spellings above.
type Known<'a> = HashMap<&'static str, Cow<'a, str>>;

/// What the body and the query string hold, and the names of all fields.
struct Values<'a> {
    fields: &'static [Names],
    body: Known<'a>,
    query: Known<'a>,
    names: Vec<String>,
}

impl<'a> Values<'a> {
    fn read(
        fields: &'static [Names],
        query: Option<&'a str>,
        content_type: Option<&str>,
        body: &'a [u8],
    ) -> Result<Self, FieldError> {
        let mut values = Self {
            fields,
            body: Known::new(),
            query: Known::new(),
            names: Vec::new(),
        };
        values.body = values.read_body(content_type, body)?;
        values.query = values.read_form(query.unwrap_or_default().as_bytes());
        Ok(values)
    }

    /// Decides by the body and not by its declared type, because templates and `curl -d` often declare the wrong one.
    fn read_body(
        &mut self,
        content_type: Option<&str>,
        body: &'a [u8],
    ) -> Result<Known<'a>, FieldError> {
        let declared_json =
            content_type.is_some_and(|text| text.to_ascii_lowercase().contains("json"));
        match body.trim_ascii() {
            b"" => Ok(Known::new()),
            json if json[0] == b'{' || declared_json => self.read_json(json),
            _ => {
                // Line ends come from files. A space at the end may belong to a password.
                let ends = |byte: &u8| !matches!(byte, b'\r' | b'\n');
                let end = body.iter().rposition(ends).map_or(0, |last| last + 1);
                Ok(self.read_form(body[..end].trim_ascii_start()))
            }
        }
    }

    fn read_json(&mut self, body: &[u8]) -> Result<Known<'a>, FieldError> {
        let value: serde_json::Value =
            serde_json::from_slice(body).map_err(|_| FieldError::NotJson)?;
        let serde_json::Value::Object(object) = value else {
            return Err(FieldError::NotAnObject);
        };
        let mut found = Known::new();
        for (name, value) in object {
            self.note(&name);
            let known = spelling(self.fields, &name);
            match value {
                serde_json::Value::String(text) => {
                    if let Some(known) = known {
                        keep(&mut found, known, text.into());
                    }
                }
                serde_json::Value::Null => {}
                // Only fields that we read have to be text. An id that is not text is not one of ours.
                _ => {
                    if let Some((names, _)) = known
                        && names != ID
                    {
                        return Err(FieldError::NotText(names[0]));
                    }
                }
            }
        }
        Ok(found)
    }

    fn read_form(&mut self, form: &'a [u8]) -> Known<'a> {
        let mut found = Known::new();
        for pair in form.split(|byte| *byte == b'&') {
            for (name, value) in form_urlencoded::parse(pair) {
                let value = unfilled(pair).map_or(value, Cow::Borrowed);
                let name = without_entity(&name);
                let known = spelling(self.fields, name);
                // A name without a value may be part of a password that contains an `&`.
                if known.is_some() || !value.is_empty() {
                    self.note(name);
                }
                if let Some(known) = known {
                    keep(&mut found, known, value);
                }
            }
        }
        found
    }

    fn note(&mut self, name: &str) {
        if self.names.len() < MAX_NAMES {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.[]".contains(c);
            let shown = if name.chars().all(plain) { name } else { "?" };
            self.names
                .push(shown.chars().take(MAX_NAME_CHARS).collect());
        }
    }

    /// The value in the body, or else in the query string.
    fn get(&self, names: Names) -> Option<&str> {
        value(&self.body, names).or_else(|| value(&self.query, names))
    }

    /// The password as typed, because spaces and percent signs may belong to it.
    fn password(&self) -> Result<Option<Secret>, FieldError> {
        let [name] = PASSWORD else { return Ok(None) };
        let typed = self.body.get(name).or_else(|| self.query.get(name));
        let typed = typed.filter(|typed| !typed.is_empty());
        if typed.is_some_and(|typed| is_broken(typed)) {
            return Err(FieldError::NotUtf8(name));
        }
        let checked = typed.map(|typed| login(typed).map(Secret::new)).transpose();
        checked.map_err(|error| FieldError::Invalid(name, error))
    }

    fn field<T>(
        &self,
        names: Names,
        parse: impl Fn(&str) -> Result<T, IdError>,
    ) -> Result<Field<T>, FieldError> {
        match self.get(names) {
            None => Ok(Field::Absent),
            Some("") => Ok(Field::Clear),
            Some(value) => checked(names, value, parse).map(Field::Set),
        }
    }

    /// A field for which empty means the same as absent.
    fn given<T>(
        &self,
        names: Names,
        parse: impl Fn(&str) -> Result<T, IdError>,
    ) -> Result<Option<T>, FieldError> {
        let values = [&self.body, &self.query].map(|known| value(known, names));
        let given = values.into_iter().flatten().find(|value| !value.is_empty());
        given.map(|value| checked(names, value, parse)).transpose()
    }
}

/// Keeps the first value of a spelling. A placeholder that the app did not fill is no value, except in a password.
fn keep<'a>(found: &mut Known<'a>, (names, known): (Names, &'static str), value: Cow<'a, str>) {
    if names == PASSWORD || !is_placeholder(value.trim()) {
        found.entry(known).or_insert(value);
    }
}

/// The value of the first spelling that has one. Otherwise an empty value if there is one, or none.
fn value<'a>(known: &'a Known<'_>, names: Names) -> Option<&'a str> {
    let mut given = names
        .iter()
        .filter_map(|name| Some(known.get(name)?.trim()));
    let first = given.next()?;
    if first.is_empty() {
        return Some(given.find(|value| !value.is_empty()).unwrap_or(first));
    }
    Some(first)
}

fn checked<T>(
    names: Names,
    value: &str,
    parse: impl Fn(&str) -> Result<T, IdError>,
) -> Result<T, FieldError> {
    if is_broken(value) {
        return Err(FieldError::NotUtf8(names[0]));
    }
    parse(value).map_err(|error| FieldError::Invalid(names[0], error))
}

/// The field that a name means, and the known spelling. Some templates differ only in upper and lower case.
fn spelling(fields: &[Names], name: &str) -> Option<(Names, &'static str)> {
    let find = |same: &dyn Fn(&str) -> bool| {
        fields.iter().find_map(|names| {
            let known = names.iter().find(|known| same(known))?;
            Some((*names, *known))
        })
    };
    find(&|known| known == name).or_else(|| find(&|known| known.eq_ignore_ascii_case(name)))
}

/// A name without the rest of an `&amp;` between two fields, because templates are written in XML.
fn without_entity(mut name: &str) -> &str {
    while let Some(rest) = ["amp;", "#38;"]
        .iter()
        .find_map(|entity| name.strip_prefix(entity))
    {
        name = rest;
    }
    name.trim()
}

/// The placeholder in a field of a form, where the app did not fill and so did not escape it: `%de` of `%device%` would
/// be read as a byte.
fn unfilled(pair: &[u8]) -> Option<&str> {
    let (_, value) = str::from_utf8(pair).ok()?.split_once('=')?;
    is_placeholder(value).then_some(value)
}

/// A token. Tokens have no spaces, so a space inside one is a `+` that was not escaped.
pub(crate) fn token(value: &str) -> Result<Pushkey, IdError> {
    Pushkey::parse(&value.replace(' ', "+"))
}

/// Whether bytes of a form were not UTF-8. Reading them replaces each by the same character, so two selectors could become
/// one.
fn is_broken(value: &str) -> bool {
    value.contains(char::REPLACEMENT_CHARACTER)
}

/// A user name or password, which may contain any character.
fn login(value: &str) -> Result<String, IdError> {
    if value.len() > MAX_LOGIN_BYTES {
        return Err(IdError::TooLong("512 bytes"));
    }
    Ok(value.to_owned())
}

/// Whether the app left a placeholder of the template unfilled, such as `%pushTokenOther%`.
pub(crate) fn is_placeholder(value: &str) -> bool {
    value
        .strip_prefix('%')
        .and_then(|rest| rest.strip_suffix('%'))
        .is_some_and(|name| !name.is_empty() && !name.contains(['%', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &str) -> Result<Fields, FieldError> {
        Fields::read(None, Some("application/json"), body.as_bytes())
    }

    fn form(body: &str) -> Result<Fields, FieldError> {
        Fields::read(
            None,
            Some("application/x-www-form-urlencoded"),
            body.as_bytes(),
        )
    }

    fn key(text: &str) -> Field<Pushkey> {
        Field::Set(Pushkey::parse(text).unwrap())
    }

    #[test]
    fn every_spelling_in_every_form() {
        for name in TOKEN_MSGS {
            assert_eq!(
                json(&format!(r#"{{"selector":"s","{name}":" t "}}"#))
                    .unwrap()
                    .token_msgs,
                key("t")
            );
            assert_eq!(
                form(&format!("selector=s&{name}=+t+")).unwrap().token_msgs,
                key("t")
            );
            let query = format!("selector=s&{name}=t");
            assert_eq!(
                Fields::read(Some(&query), None, b"").unwrap().token_msgs,
                key("t")
            );
        }
        for name in APP_ID_MSGS {
            let app = Field::Set(AppId::parse("a.b").unwrap());
            assert_eq!(
                form(&format!("selector=s&{name}=a.b")).unwrap().app_id_msgs,
                app
            );
        }
        for name in TOKEN_CALLS {
            assert_eq!(
                form(&format!("selector=s&{name}=c")).unwrap().token_calls,
                key("c")
            );
        }
        for name in APP_ID_CALLS {
            assert!(matches!(
                form(&format!("selector=s&{name}=c")).unwrap().app_id_calls,
                Field::Set(_)
            ));
        }
        for name in DEVICE {
            assert_eq!(
                form(&format!("selector=s&{name}=d"))
                    .unwrap()
                    .device
                    .unwrap()
                    .as_str(),
                "d"
            );
        }
    }

    #[test]
    fn absent_empty_and_placeholder() {
        assert_eq!(form("selector=s").unwrap().token_msgs, Field::Absent);
        assert_eq!(
            form("selector=s&token_msgs=").unwrap().token_msgs,
            Field::Clear
        );
        assert_eq!(
            form("selector=s&token_msgs=+").unwrap().token_msgs,
            Field::Clear
        );
        assert_eq!(
            form("selector=s&token_msgs=%25pushTokenOther%25")
                .unwrap()
                .token_msgs,
            Field::Absent
        );
        assert_eq!(
            json(r#"{"selector":"s","token_msgs":null}"#)
                .unwrap()
                .token_msgs,
            Field::Absent
        );
        assert_eq!(
            json(r#"{"selector":"s","token_msgs":"%pushTokenOther%","pushToken":"t"}"#)
                .unwrap()
                .token_msgs,
            key("t")
        );
        assert_eq!(
            form("selector=s&token_msgs=&pushToken=t")
                .unwrap()
                .token_msgs,
            key("t")
        );
        assert_eq!(
            form("selector=%25selector%25").unwrap_err(),
            FieldError::NoSelector
        );
        for name in ["%device%", "%account[cloud_username]%", "%pushTokenOther%"] {
            let form = form(&format!("selector=s&token_msgs={name}&device={name}")).unwrap();
            assert_eq!(
                (form.token_msgs, form.device),
                (Field::Absent, None),
                "{name}"
            );
        }
        for value in ["%", "%%", "100%", "%a", "a%b%", "%a b%"] {
            assert!(!is_placeholder(value), "{value}");
        }
        assert!(is_placeholder("%account[cloud_username]%"));
    }

    #[test]
    fn body_outranks_query_and_is_known_by_its_looks() {
        let both = Fields::read(Some("selector=q&token_msgs=q"), None, b"selector=b").unwrap();
        assert_eq!(both.selector.as_str(), "b");
        assert_eq!(both.token_msgs, key("q"));
        assert_eq!(form(r#" {"selector":"s"}"#).unwrap().selector.as_str(), "s");
        // In any spelling.
        let other = Fields::read(
            Some("token_msgs=old&appid_calls=old"),
            None,
            b"selector=s&pushTokenOther=new&app_id_calls=",
        )
        .unwrap();
        assert_eq!(other.token_msgs, key("new"));
        assert_eq!(other.app_id_calls, Field::Clear);
        // For a phone's name, empty means absent.
        let named = Fields::read(Some("device=d1"), None, b"selector=s&installid=").unwrap();
        assert_eq!(named.device.unwrap().as_str(), "d1");
    }

    #[test]
    fn an_unfilled_placeholder_hides_no_value() {
        let read = |query, body: &str| Fields::read(Some(query), None, body.as_bytes()).unwrap();
        for (query, body) in [
            ("token_msgs=q", "selector=s&token_msgs=%pushTokenOther%"),
            ("token_msgs=q", "selector=s&pushToken=%25pushTokenOther%25"),
            ("token_msgs=q", r#"{"selector":"s","token_msgs":"%x%"}"#),
            ("", "selector=s&token_msgs=%pushTokenOther%&token_msgs=q"),
            ("token_msgs=%x%&token_msgs=q", "selector=s"),
        ] {
            assert_eq!(read(query, body).token_msgs, key("q"), "{query} {body}");
        }
        let removal = read("device=d1", "selector=s&device=%installid%");
        assert_eq!(removal.device.unwrap().as_str(), "d1");
        let login = read(
            "username=bob&password=query",
            "selector=s&username=%account[cloud_username]%&password=%typed%",
        );
        assert_eq!(login.username.as_deref(), Some("bob"));
        assert_eq!(login.password.unwrap().expose(), "%typed%");
    }

    /// Field case 9.
    #[test]
    fn a_space_inside_a_token_is_a_plus() {
        let expected = key("uYk+a9Zx+Q/==");
        for body in [
            "selector=s&pushTokenOther=uYk+a9Zx+Q/==",
            "selector=s&pushTokenOther=uYk%2Ba9Zx%2BQ%2F%3D%3D",
            "selector=s&pushTokenOther=+uYk%20a9Zx+Q/==%20",
            "pushTokenOther=uYk+a9Zx+Q/==\r\n&selector=s",
        ] {
            assert_eq!(form(body).unwrap().token_msgs, expected, "{body}");
            let query = Fields::read(Some(body), None, b"").unwrap();
            assert_eq!(query.token_msgs, expected, "{body}");
        }
        let calls = form("selector=s&token_calls=a+b").unwrap().token_calls;
        assert_eq!(calls, key("a+b"));
        let spaced = json(r#"{"selector":"s","token_msgs":"a b+c"}"#).unwrap();
        assert_eq!(spaced.token_msgs, key("a+b+c"));
        let other = form("selector=a+b&app_id_msgs=com.x+y").unwrap();
        assert_eq!(other.selector.as_str(), "a b");
    }

    /// Field case 10.
    #[test]
    fn acrobits_own_example_and_templates_with_entities() {
        let app = Field::Set(AppId::parse("com.x").unwrap());
        for body in [
            "selector=S&token=tok1&appid=com.x",
            "selector=S&amp;token_msgs=tok1&amp;app_id_msgs=com.x",
            "selector=S&amp;amp;token=tok1&#38;appid=com.x",
            "Selector=S&pushtokenother=tok1&pushAppId_Other=com.x",
        ] {
            let fields = form(body).unwrap();
            assert_eq!(fields.token_msgs, key("tok1"), "{body}");
            assert_eq!(fields.app_id_msgs, app, "{body}");
            assert!(!fields.lack_tokens());
            let query = Fields::read(Some(body), Some("text/plain"), b"").unwrap();
            assert_eq!(query.token_msgs, key("tok1"), "{body}");
        }
        let both = form("selector=s&token=t&pushToken=p&pushTokenOther=o").unwrap();
        assert_eq!(both.token_msgs, key("o"));
    }

    /// Field case 21.
    #[test]
    fn a_password_is_taken_as_typed() {
        let typed = |fields: Fields| fields.password.map(|password| password.expose().to_owned());
        let cases = [
            (
                "selector=s&username=bob&password=winter 2026 ",
                "winter 2026 ",
            ),
            (
                "selector=s&password=winter+2026+&username=bob",
                "winter 2026 ",
            ),
            ("selector=s&password=winter%202026%20\r\n", "winter 2026 "),
            ("selector=s&password=%25winter2026%25", "%winter2026%"),
            ("selector=s&password=%winter2026%", "%winter2026%"),
            ("selector=s&password=+", " "),
        ];
        for (body, expected) in cases {
            let got = form(body).map(typed).unwrap();
            assert_eq!(got.as_deref(), Some(expected), "{body}");
        }
        for expected in ["winter 2026 ", "%winter2026%", " a\tb"] {
            let body = serde_json::json!({"selector": "s", "password": expected}).to_string();
            let got = json(&body).map(typed).unwrap();
            assert_eq!(got.as_deref(), Some(expected));
        }
        assert_eq!(form("selector=s&password=").map(typed).unwrap(), None);
        let long = format!("selector=s&password={}", "x".repeat(513));
        assert_eq!(
            form(&long).unwrap_err(),
            FieldError::Invalid("password", IdError::TooLong("512 bytes"))
        );
    }

    #[test]
    fn a_report_without_a_token_names_its_fields_and_no_values() {
        for (body, names) in [
            (
                "selector=s&pushtoken_msgs=t",
                &["selector", "pushtoken_msgs"][..],
            ),
            (
                "selector=s&amp;Token_Messages=t",
                &["selector", "Token_Messages"],
            ),
            (
                r#"{"selector":"s","tokens":["t"]}"#,
                &["selector", "tokens"],
            ),
            ("selector=s&token_msgs=%25x%25", &["selector", "token_msgs"]),
            (
                "selector=s&password=a&b&c d=e",
                &["selector", "password", "?"],
            ),
        ] {
            let fields = form(body).unwrap();
            assert!(fields.lack_tokens(), "{body}");
            assert_eq!(fields.names, names, "{body}");
        }
        assert!(!form("selector=s&token_msgs=").unwrap().lack_tokens());
        assert!(!form("selector=s&token_calls=t").unwrap().lack_tokens());
        let many: Vec<_> = (0..50)
            .map(|n| format!("{}{n}=1", "n".repeat(90)))
            .collect();
        let names = form(&format!("{}&selector=s", many.join("&")))
            .unwrap()
            .names;
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.iter().all(|name| name.len() == MAX_NAME_CHARS));
    }

    #[test]
    fn bad_input_names_the_field() {
        assert_eq!(json("{").unwrap_err(), FieldError::NotJson);
        assert_eq!(json("[]").unwrap_err(), FieldError::NotAnObject);
        assert_eq!(json(r#""x""#).unwrap_err(), FieldError::NotAnObject);
        assert_eq!(json("{}").unwrap_err(), FieldError::NoSelector);
        assert_eq!(
            json(r#"{"selector":1}"#).unwrap_err(),
            FieldError::NotText("selector")
        );
        assert_eq!(
            json(r#"{"selector":"s","pushToken":{}}"#).unwrap_err(),
            FieldError::NotText("token_msgs")
        );
        assert!(json(r#"{"selector":"s","other":{}}"#).is_ok());
        let long = format!("selector=s&pushToken={}", "x".repeat(513));
        assert_eq!(
            form(&long).unwrap_err(),
            FieldError::Invalid("token_msgs", IdError::TooLong("512 bytes"))
        );
        assert_eq!(
            form("selector=s&device=a%00b").unwrap_err(),
            FieldError::Invalid("device", IdError::Control)
        );
        for (body, name) in [
            ("selector=m%FCller", "selector"),
            ("selector=s&username=m%FCller", "username"),
            ("selector=s&password=gr%FC%DFe", "password"),
            ("selector=s&device=%ff", "device"),
        ] {
            assert_eq!(form(body).unwrap_err(), FieldError::NotUtf8(name), "{body}");
        }
        assert!(form("selector=m%C3%BCller&other=%FC").is_ok());
    }
}
