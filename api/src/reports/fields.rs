//! The fields of a token report as Acrobits' templates spell them: JSON, form or query string, whichever
//! the operator wrote. Pure: no I/O.

use std::{borrow::Cow, collections::HashMap};

use matrix2acrobits_shared::{
    ids::{AppId, Device, IdError, Pushkey, Selector},
    secret::Secret,
};
use matrix2acrobits_sqlite::store::tokens::Field;

/// Longest user name and password, in bytes.
const MAX_LOGIN_BYTES: usize = 512;

const SELECTOR: &[&str] = &["selector"];
const TOKEN_MSGS: &[&str] = &["token_msgs", "pushTokenOther", "pushToken"];
const APP_ID_MSGS: &[&str] = &[
    "app_id_msgs",
    "appid_msgs",
    "appId_msgs",
    "pushappid_other",
    "pushappid",
];
const TOKEN_CALLS: &[&str] = &["token_calls", "pushTokenIncomingCall"];
const APP_ID_CALLS: &[&str] = &[
    "app_id_calls",
    "appid_calls",
    "appId_calls",
    "pushappid_incoming_call",
];
const DEVICE: &[&str] = &["device", "installid", "install_id"];
const USERNAME: &[&str] = &["username"];
const PASSWORD: &[&str] = &["password"];
const KNOWN: &[&[&str]] = &[
    SELECTOR,
    TOKEN_MSGS,
    APP_ID_MSGS,
    TOKEN_CALLS,
    APP_ID_CALLS,
    DEVICE,
    USERNAME,
    PASSWORD,
];

/// Why a report cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FieldError {
    /// The body is neither JSON nor a form.
    NotJson,
    /// The JSON is not an object.
    NotAnObject,
    /// A field is not text.
    NotText(&'static str),
    /// The selector is not there.
    NoSelector,
    /// A field has a value that it cannot have.
    Invalid(&'static str, IdError),
}

/// What a report or removal says, each value checked.
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
}

impl Fields {
    /// Reads the query string and the body; a field in the body outranks the query's.
    pub(crate) fn read(
        query: Option<&str>,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Self, FieldError> {
        let mut values = Values::default();
        values.add_body(content_type, body)?;
        values.add_form(query.unwrap_or_default().as_bytes());
        let selector = match values.field(SELECTOR, Selector::parse)? {
            Field::Set(selector) => selector,
            Field::Absent | Field::Clear => return Err(FieldError::NoSelector),
        };
        Ok(Self {
            selector,
            device: values.given(DEVICE, Device::parse)?,
            token_msgs: values.field(TOKEN_MSGS, Pushkey::parse)?,
            app_id_msgs: values.field(APP_ID_MSGS, AppId::parse)?,
            token_calls: values.field(TOKEN_CALLS, Pushkey::parse)?,
            app_id_calls: values.field(APP_ID_CALLS, AppId::parse)?,
            username: values.given(USERNAME, login)?,
            password: values.given(PASSWORD, login)?.map(Secret::new),
        })
    }
}

/// The values by their names as sent.
#[derive(Default)]
struct Values<'a>(HashMap<Cow<'a, str>, Cow<'a, str>>);

impl<'a> Values<'a> {
    /// Looks at the body rather than its declared type: templates and `curl -d` often declare the wrong one.
    fn add_body(&mut self, content_type: Option<&str>, body: &'a [u8]) -> Result<(), FieldError> {
        let body = body.trim_ascii();
        if body.is_empty() {
            return Ok(());
        }
        let declared_json =
            content_type.is_some_and(|text| text.to_ascii_lowercase().contains("json"));
        if body[0] == b'{' || declared_json {
            self.add_json(body)
        } else {
            self.add_form(body);
            Ok(())
        }
    }

    fn add_json(&mut self, body: &[u8]) -> Result<(), FieldError> {
        let value: serde_json::Value =
            serde_json::from_slice(body).map_err(|_| FieldError::NotJson)?;
        let serde_json::Value::Object(object) = value else {
            return Err(FieldError::NotAnObject);
        };
        for (name, value) in object {
            match value {
                serde_json::Value::String(text) => {
                    self.0.insert(name.into(), text.into());
                }
                serde_json::Value::Null => {}
                // Only what we read has to be text.
                _ => {
                    if let Some(names) = KNOWN.iter().find(|names| names.contains(&name.as_str())) {
                        return Err(FieldError::NotText(names[0]));
                    }
                }
            }
        }
        Ok(())
    }

    fn add_form(&mut self, form: &'a [u8]) {
        for (name, value) in form_urlencoded::parse(form) {
            self.0.entry(name).or_insert(value);
        }
    }

    /// The first spelling that has a value; else, if one is empty, an empty one; else nothing.
    fn get(&self, names: &[&str]) -> Option<&str> {
        let mut given = names.iter().filter_map(|name| {
            let value = self.0.get(*name)?.trim();
            (!is_placeholder(value)).then_some(value)
        });
        let first = given.next()?;
        if first.is_empty() {
            return Some(given.find(|value| !value.is_empty()).unwrap_or(first));
        }
        Some(first)
    }

    fn field<T>(
        &self,
        names: &[&'static str],
        parse: impl Fn(&str) -> Result<T, IdError>,
    ) -> Result<Field<T>, FieldError> {
        match self.get(names) {
            None => Ok(Field::Absent),
            Some("") => Ok(Field::Clear),
            Some(value) => parse(value)
                .map(Field::Set)
                .map_err(|error| FieldError::Invalid(names[0], error)),
        }
    }

    /// A field that is as good as absent when it is empty.
    fn given<T>(
        &self,
        names: &[&'static str],
        parse: impl Fn(&str) -> Result<T, IdError>,
    ) -> Result<Option<T>, FieldError> {
        Ok(match self.field(names, parse)? {
            Field::Set(value) => Some(value),
            Field::Absent | Field::Clear => None,
        })
    }
}

/// A user name or password, which may hold any character.
fn login(value: &str) -> Result<String, IdError> {
    if value.len() > MAX_LOGIN_BYTES {
        return Err(IdError::TooLong("512 bytes"));
    }
    Ok(value.to_owned())
}

/// Whether the app has left the template's placeholder as it was, such as `%pushTokenOther%`.
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
    }
}
