//! Writes and reads the messages that processes send each other by NOTIFY.

use std::fmt::Write;

use matrix2acrobits_shared::flow::feed::SentKey;

/// PostgreSQL accepts less than 8,000 bytes (<https://www.postgresql.org/docs/current/sql-notify.html>).
const MOST_BYTES: usize = 7900;
/// The most messages of one commit. If they cannot name all pushkeys, caches forget everything.
const MOST_MESSAGES: usize = 8;
/// The word before the keys of events, each with this many hexadecimal digits. The keys are in the first line, where an
/// older release ignores words that it does not know.
const SENT: &str = "sent=";
const SENT_DIGITS: usize = 32;
const SENT_IN_ONE: usize = 240;

/// The contents of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Pushkeys whose cached data is out of date.
    pub(crate) pushkeys: Vec<String>,
    /// All cached data is out of date.
    pub(crate) everything: bool,
    /// Jobs may be due, or the gate has changed.
    pub(crate) work: bool,
    /// These events have been pushed.
    pub(crate) sent: Vec<SentKey>,
}

impl News {
    /// Writes the messages of the process with this name. None if there is no news.
    pub(crate) fn messages(&self, process: &str) -> Vec<String> {
        let head = |everything: bool| {
            let mut head = process.to_owned();
            head.push_str(if everything { " everything" } else { "" });
            head.push_str(if self.work { " work" } else { "" });
            head
        };
        let mut messages = vec![head(self.everything)];
        if !self.everything {
            for pushkey in &self.pushkeys {
                let last = messages.last_mut();
                match last.filter(|last| last.len() + pushkey.len() < MOST_BYTES) {
                    // Writing to a String cannot fail.
                    Some(last) => drop(write!(last, "\n{pushkey}")),
                    None => messages.push(format!("{process}\n{pushkey}")),
                }
            }
        }
        if messages.len() > MOST_MESSAGES {
            messages = vec![head(true)];
        }
        if messages == [process] {
            messages.clear();
        }
        for sent in self.sent.chunks(SENT_IN_ONE) {
            let mut message = format!("{process} {SENT}");
            for key in sent {
                // Writing to a String cannot fail.
                let _ = write!(message, "{key:0SENT_DIGITS$x}");
            }
            messages.push(message);
        }
        messages
    }

    /// Reads a message: the name of the sender, and the news.
    pub(crate) fn read(message: &str) -> (&str, Self) {
        let (head, pushkeys) = message.split_once('\n').unwrap_or((message, ""));
        let mut words = head.split(' ');
        let process = words.next().unwrap_or_default();
        let mut news = Self {
            pushkeys: pushkeys
                .split('\n')
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect(),
            ..Self::default()
        };
        for word in words {
            match word {
                "work" => news.work = true,
                "everything" => {
                    news.everything = true;
                    // A message that was sent by hand is about the queue as well.
                    news.work |= process == "-";
                }
                // A later release may send other words.
                _ => {
                    if let Some(keys) = word.strip_prefix(SENT) {
                        news.sent.extend(read_keys(keys));
                    }
                }
            }
        }
        (process, news)
    }
}

/// Reads the keys of events, and skips invalid ones.
fn read_keys(digits: &str) -> impl Iterator<Item = SentKey> {
    let keys = digits.as_bytes().chunks_exact(SENT_DIGITS);
    keys.filter_map(|key| SentKey::from_str_radix(str::from_utf8(key).ok()?, 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(pushkeys: &[&str], everything: bool, work: bool) -> News {
        News {
            pushkeys: pushkeys
                .iter()
                .map(|pushkey| (*pushkey).to_owned())
                .collect(),
            everything,
            work,
            sent: Vec::new(),
        }
    }

    #[test]
    fn what_is_told_is_what_is_read() {
        for told in [
            news(&["a"], false, false),
            news(&["a b", "c"], false, true),
            news(&[], false, true),
            news(&[], true, false),
        ] {
            let messages = told.messages("p");
            assert_eq!(messages.len(), 1, "{messages:?}");
            assert_eq!(News::read(&messages[0]), ("p", told));
        }
        assert!(News::default().messages("p").is_empty());
        assert_eq!(News::read("- everything"), ("-", news(&[], true, true)));
    }

    #[test]
    fn much_goes_in_several_messages_and_too_much_is_everything() {
        let many = |count: usize| {
            let pushkeys = (0..count).map(|number| format!("{number:0>160}"));
            News {
                pushkeys: pushkeys.collect(),
                everything: false,
                work: true,
                sent: Vec::new(),
            }
        };
        let told = many(256);
        let messages = told.messages("p");
        assert!(messages.iter().all(|message| message.len() < 8000));
        let read = messages.iter().map(|message| News::read(message).1);
        let read: Vec<_> = read.collect();
        let pushkeys: Vec<_> = read.iter().flat_map(|news| news.pushkeys.clone()).collect();
        assert_eq!(pushkeys, told.pushkeys);
        assert!(read.iter().any(|news| news.work));
        let messages = many(1000).messages("p");
        assert_eq!(messages, ["p everything work"]);
    }

    #[test]
    fn events_are_told_beside_the_rest_and_a_release_without_them_reads_nothing() {
        let sent: Vec<SentKey> = vec![0, 0xab, SentKey::MAX];
        let mut told = news(&[], false, false);
        told.sent.clone_from(&sent);
        let messages = told.messages("p");
        let digits = format!("{:0>32}{:0>32}{}", "", "ab", "f".repeat(32));
        assert_eq!(messages, [format!("p sent={digits}")]);
        assert_eq!(News::read(&messages[0]), ("p", told));
        // An older release knows neither the word nor, without further lines, any pushkey.
        let unknown = messages[0].replace("sent", "later");
        assert_eq!(News::read(&unknown).1, News::default());

        let mut told = news(&["a"], false, true);
        told.sent = (0..1000).collect();
        let messages = told.messages("p");
        assert_eq!(messages[0], "p work\na");
        assert!(messages.iter().all(|message| message.len() < 8000));
        let read = messages
            .iter()
            .flat_map(|message| News::read(message).1.sent);
        assert_eq!(read.collect::<Vec<_>>(), told.sent);
    }

    #[test]
    fn what_is_no_key_of_an_event_is_left_out() {
        for (keys, expected) in [
            ("", &[][..]),
            ("1", &[]),
            (&"g".repeat(32), &[]),
            (&format!("{:0>32}1", "2"), &[2]),
            (&format!("é{}{:0>32}", "0".repeat(30), "3"), &[3]),
        ] {
            assert_eq!(
                News::read(&format!("p sent={keys}")).1.sent,
                expected,
                "{keys}"
            );
        }
    }
}
