//! The words that a push shows where the event has none of its own, and the file in which an operator changes them.

use serde::Deserialize;

const ENGLISH: &str = include_str!("../../texts/en.toml");

/// A text with places for other texts, written as `{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Template(String);

impl Template {
    /// The text with `values` at their places.
    pub(crate) fn fill(&self, values: &[(&str, &str)]) -> String {
        let mut filled = String::with_capacity(self.0.len() + 64);
        let mut rest = self.0.as_str();
        // One pass, so that braces in a value stay as they are.
        while let Some((before, name, after)) = next_place(rest) {
            filled.push_str(before);
            let value = values.iter().find(|(known, _)| *known == name);
            filled.push_str(value.map_or("", |(_, value)| value));
            rest = after;
        }
        filled.push_str(rest);
        filled
    }

    /// A place that has none of these names.
    fn unknown_place(&self, names: &[&str]) -> Option<&str> {
        let mut rest = self.0.as_str();
        while let Some((_, name, after)) = next_place(rest) {
            if !names.contains(&name) {
                return Some(name);
            }
            rest = after;
        }
        None
    }
}

/// What stands before the next `{name}`, the name, and what stands behind it.
fn next_place(text: &str) -> Option<(&str, &str, &str)> {
    let (before, behind) = text.split_once('{')?;
    let (name, after) = behind.split_once('}')?;
    Some((before, name, after))
}

macro_rules! texts {
    (plain: $($(#[$plain_doc:meta])* $plain:ident),+; optional: $($(#[$optional_doc:meta])* $optional:ident),+;
     places: $($(#[$place_doc:meta])* $place:ident $names:expr),+;) => {
        /// All texts.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct Texts {
            $($(#[$plain_doc])* pub(crate) $plain: String,)+
            $($(#[$optional_doc])* pub(crate) $optional: Option<String>,)+
            $($(#[$place_doc])* pub(crate) $place: Template,)+
        }

        /// The texts that a file has.
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct InFile {
            $($plain: Option<Template>,)+
            $($optional: Option<Template>,)+
            $($place: Option<Template>,)+
        }

        impl InFile {
            /// Refuses places that nothing is put into.
            fn check(&self) -> Result<(), String> {
                $(unknown_place(stringify!($plain), self.$plain.as_ref(), &[])?;)+
                $(unknown_place(stringify!($optional), self.$optional.as_ref(), &[])?;)+
                $(unknown_place(stringify!($place), self.$place.as_ref(), $names)?;)+
                Ok(())
            }

            /// These texts, and those of `other` for what is missing; none where both miss one.
            fn or(self, other: Self) -> Option<Texts> {
                Some(Texts {
                    $($plain: self.$plain.or(other.$plain)?.0,)+
                    $($optional: self.$optional.or(other.$optional).map(|text| text.0),)+
                    $($place: self.$place.or(other.$place)?,)+
                })
            }
        }
    };
}

texts! {
    plain:
        /// For a notification without a text; empty: none.
        message,
        photo, video, audio, voice, file, sticker, location, poll, call,
        /// To a room without a name.
        invitation;
    optional:
        /// For an encrypted message; where it is missing, `message`.
        encrypted;
    places:
        invitation_to_room &["room"],
        /// The name of a sender in a room that has a name.
        sender_in_room &["sender", "room"],
        /// A photo, file or poll that came with words of its own.
        with_words &["what", "text"];
}

fn unknown_place(key: &str, text: Option<&Template>, names: &[&str]) -> Result<(), String> {
    match text.and_then(|text| text.unknown_place(names)) {
        None => Ok(()),
        Some(place) => {
            let known = if names.is_empty() {
                "it has none".to_owned()
            } else {
                let names: Vec<_> = names.iter().map(|name| format!("{{{name}}}")).collect();
                format!("it can have {}", names.join(" and "))
            };
            Err(format!(
                "{key:?} has the unknown place {{{place}}}; {known}"
            ))
        }
    }
}

impl Texts {
    /// The built-in English texts.
    ///
    /// # Panics
    ///
    /// Never in a released program: a test reads the same file.
    pub(crate) fn english() -> Self {
        #[expect(clippy::expect_used, reason = "a file of this program, read by a test")]
        let texts = parse(ENGLISH, false)
            .ok()
            .and_then(|texts| texts.or(InFile::default()))
            .expect("the built-in texts are complete");
        texts
    }

    /// The texts of a file, JSON or TOML, and the English ones for what is missing there. The error says what is wrong.
    pub(crate) fn parse(file: &str, json: bool) -> Result<Self, String> {
        let english = parse(ENGLISH, false)?;
        let texts = parse(file, json)?;
        texts.check()?;
        texts
            .or(english)
            .ok_or_else(|| "a text is missing".to_owned())
    }
}

fn parse(file: &str, json: bool) -> Result<InFile, String> {
    if json {
        serde_json::from_str(file).map_err(|error| error.to_string())
    } else {
        toml::from_str(file).map_err(|error| {
            let line = error
                .span()
                .map(|span| 1 + file[..span.start].matches('\n').count());
            let line = line
                .map(|line| format!(" in line {line}"))
                .unwrap_or_default();
            format!("{}{line}", error.message())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_are_complete() {
        let english = Texts::english();
        assert_eq!(english.photo, "Photo");
        assert_eq!(english.encrypted, None);
        let italian = include_str!("../../texts/it.toml");
        let alone = parse(italian, false).unwrap();
        alone.check().unwrap();
        let italian = alone.or(InFile::default()).expect("no text is missing");
        assert_eq!(italian.voice, "Messaggio vocale");
        assert!(italian.encrypted.is_some());
    }

    #[test]
    fn what_a_file_lacks_is_english() {
        let texts = Texts::parse(r#"{"photo": "Bild"}"#, true).unwrap();
        assert_eq!(
            (texts.photo.as_str(), texts.video.as_str()),
            ("Bild", "Video")
        );
        assert_eq!(Texts::parse("", false).unwrap(), Texts::english());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (file, json, expected) in [
            ("foto = \"x\"", false, "unknown field `foto`"),
            ("\nphoto = 3", false, "line 2"),
            (
                "photo = \"{room}\"",
                false,
                "\"photo\" has the unknown place {room}; it has none",
            ),
            (
                "sender_in_room = \"{name} in {room}\"",
                false,
                "\"sender_in_room\" has the unknown place {name}; it can have {sender} and {room}",
            ),
            ("{\"photo\": 3}", true, "invalid type"),
            ("photo", false, "line 1"),
        ] {
            let error = Texts::parse(file, json).unwrap_err();
            assert!(error.contains(expected), "{file}: {error}");
        }
    }

    #[test]
    fn values_stay_as_they_are() {
        let template = Template("{room}: {text}!".to_owned());
        let filled = template.fill(&[("room", "{text}"), ("text", "a{b}c")]);
        assert_eq!(filled, "{text}: a{b}c!");
        assert_eq!(Template("a { b".to_owned()).fill(&[]), "a { b");
    }
}
