//! How the demo speaks: titles, rounded durations, shortened ids, colours on a terminal only.

use std::{io::IsTerminal as _, time::Duration};

use serde_json::Value;

/// Longer texts are shortened where they are shown; the whole of a token or selector says nothing to a reader.
const LONGEST: usize = 48;

/// A step of the story.
pub(crate) fn title(number: u8, text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{number}. {text}\x1b[0m");
    } else {
        println!("\n{number}. {text}");
    }
}

/// A JSON body, one line for each of its fields.
pub(crate) fn show(body: &Value) {
    let text = format!("{:#}", shortened(body));
    for line in text.lines() {
        println!("  {line}");
    }
}

/// What an HTTP call came to.
pub(crate) fn answered(status: u16, text: &str, took: Duration) {
    println!("  -> {status} {text} after {}", rounded(took));
}

/// A duration as people say it.
pub(crate) fn rounded(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "less than 1 ms".into(),
        millis @ 1..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// The beginning of a long text.
pub(crate) fn short(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let beginning: String = text.chars().take(20).collect();
    format!("{beginning}…")
}

fn shortened(value: &Value) -> Value {
    match value {
        Value::String(text) => short(text).into(),
        Value::Array(values) => values.iter().map(shortened).collect(),
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .map(|(name, value)| (name.clone(), shortened(value)))
                .collect()
        }
        other => other.clone(),
    }
}
