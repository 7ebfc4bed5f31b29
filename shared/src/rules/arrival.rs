//! What we know about the pushes to a phone: events since the last write to the database, which phones a receipt is
//! about, and where a phone stands.

use super::pushers::State;

/// A phone is silent when a push has waited this long for its receipt, in seconds.
pub const SILENT_AFTER: i64 = 86_400;
/// A stored time that is further ahead than this was written by a wrong clock, in seconds. It counts as none.
pub const AHEAD: i64 = 60;

/// What happened at a phone since the last write to the database. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// The last push that PNM accepted.
    pub pushed: Option<i64>,
    /// The first push since the last receipt.
    pub waiting: Option<i64>,
    /// The last receipt.
    pub received: Option<i64>,
    /// How many receipts came.
    pub receipts: u32,
}

impl Arrivals {
    /// PNM accepted a push.
    pub fn push(&mut self, now: i64) {
        self.pushed = Some(now);
        self.waiting.get_or_insert(now);
    }

    /// The app confirmed a push.
    pub fn receipt(&mut self, now: i64) {
        self.received = Some(now);
        self.waiting = None;
        self.receipts = self.receipts.saturating_add(1);
    }

    /// These events, followed by `later`.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            pushed: later.pushed.or(self.pushed),
            waiting: match later.received {
                Some(_) => later.waiting,
                None => self.waiting.or(later.waiting),
            },
            received: later.received.or(self.received),
            receipts: self.receipts.saturating_add(later.receipts),
        }
    }
}

/// A row that a receipt may be about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The row's id.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone's name, empty if it reports none.
    pub device: String,
    /// The user who owns the row.
    pub user: Option<String>,
}

/// What a receipt says about its phone. If it names a token, the candidates were found by that token.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// The account on the phone.
    pub selector: Option<&'a str>,
    /// The phone.
    pub device: Option<&'a str>,
    /// Whether the receipt names the token.
    pub token: bool,
    /// The user that a login proved.
    pub owner: Option<&'a str>,
}

/// Which rows a receipt is about. A token belongs to one phone, so the receipt counts for all accounts on that phone.
/// A selector alone may be on several phones, and then the receipt counts for none of them.
pub fn meant(said: Said<'_>, candidates: &[Candidate]) -> Vec<i64> {
    let fits = |row: &&Candidate| {
        said.selector
            .is_none_or(|selector| selector == row.selector)
            && said
                .owner
                .is_none_or(|owner| row.user.as_deref() == Some(owner))
    };
    let fitting: Vec<_> = candidates.iter().filter(fits).collect();
    if said.token {
        return fitting.iter().map(|row| row.id).collect();
    }
    let of_device = |device: &str| fitting.iter().find(|row| row.device == device);
    let named = said
        .device
        .map(|device| of_device(device).or_else(|| of_device("")));
    match (named, &fitting[..]) {
        (Some(found), _) => found.iter().map(|row| row.id).collect(),
        (None, [one]) => vec![one.id],
        (None, _) => Vec::new(),
    }
}

/// What is stored about a phone. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// Whether the phone has reported a token for messages.
    pub token: bool,
    /// Whether PNM called that token gone.
    pub dead: bool,
    /// Whether the phone belongs to a user.
    pub user: bool,
    /// The state of its pusher, if there is one.
    pub pusher: Option<&'a str>,
    /// The last push that PNM accepted.
    pub pushed: Option<i64>,
    /// The first push since the last receipt.
    pub waiting: Option<i64>,
    /// The last receipt.
    pub received: Option<i64>,
}

/// Where a phone stands. The first variant that applies counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The phone has no token for messages.
    NoToken,
    /// PNM called the token gone.
    Gone,
    /// The phone confirmed pushes earlier, but none for a day.
    Silent,
    /// The phone belongs to no user.
    Nobodys,
    /// The phone has no pusher.
    NoPusher,
    /// The homeserver refused its pusher.
    PusherFailed,
    /// Its pusher is not set yet.
    PusherPending,
    /// The phone confirms its pushes.
    Confirms,
    /// The phone confirmed pushes earlier. The last one still waits for its receipt.
    Waits,
    /// Pushes are sent, but the app has never sent a receipt.
    Unknown,
    /// Nothing has been pushed yet.
    Unused,
}

impl Standing {
    /// Where the phone stands at this time.
    pub fn of(facts: &Facts<'_>, now: i64) -> Self {
        let waits_for_long = facts
            .waiting
            .is_some_and(|since| since <= now - SILENT_AFTER);
        if !facts.token {
            return Self::NoToken;
        }
        if facts.dead {
            return Self::Gone;
        }
        if facts.received.is_some() && waits_for_long {
            return Self::Silent;
        }
        if !facts.user {
            return Self::Nobodys;
        }
        match facts.pusher.and_then(State::parse) {
            None | Some(State::Removed) => return Self::NoPusher,
            Some(State::Failed) => return Self::PusherFailed,
            Some(State::Pending) => return Self::PusherPending,
            Some(State::Registered) => {}
        }
        match (facts.pushed, facts.received, facts.waiting) {
            (_, Some(_), None) => Self::Confirms,
            (_, Some(_), Some(_)) => Self::Waits,
            (Some(_), None, _) => Self::Unknown,
            (None, None, _) => Self::Unused,
        }
    }

    /// The text for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoToken => "has reported no token for messages",
            Self::Gone => "PNM called its token gone: start the app, so that it reports again",
            Self::Silent => "silent: it has confirmed no push for a day, and did before",
            Self::Nobodys => "belongs to nobody: map its selector to a user",
            Self::NoPusher => "has no pusher: see doctor --user",
            Self::PusherFailed => "the homeserver refused its pusher: see the dead letters",
            Self::PusherPending => "its pusher is not set yet",
            Self::Confirms => "confirms its pushes",
            Self::Waits => "the last push waits for its receipt",
            Self::Unknown => {
                "pushes are sent; its app sends no receipts, so nobody knows whether they arrive"
            }
            Self::Unused => "ready; nothing was pushed yet",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_adds_up() {
        let of = |events: &[(char, i64)]| {
            let mut all = Arrivals::default();
            for (kind, at) in events {
                match kind {
                    'p' => all.push(*at),
                    _ => all.receipt(*at),
                }
            }
            all
        };
        let cases = [
            (&[('p', 1), ('p', 2)][..], Some(1), 0),
            (&[('p', 1), ('r', 2)], None, 1),
            (&[('p', 1), ('r', 2), ('p', 3), ('p', 4)], Some(3), 1),
            (&[('r', 1), ('r', 2)], None, 2),
        ];
        for (events, waiting, receipts) in cases {
            let whole = of(events);
            assert_eq!(
                (whole.waiting, whole.receipts),
                (waiting, receipts),
                "{events:?}"
            );
            for at in 0..=events.len() {
                let (before, after) = events.split_at(at);
                assert_eq!(of(before).then(of(after)), whole, "{before:?} {after:?}");
            }
        }
    }

    #[test]
    fn which_phones_a_receipt_is_about() {
        let row = |id, selector: &str, device: &str, user: &str| Candidate {
            id,
            selector: selector.into(),
            device: device.into(),
            user: Some(user.into()),
        };
        let (one, other, plain) = (
            row(1, "s", "d1", "u"),
            row(2, "s", "d2", "u"),
            row(3, "s", "", "u"),
        );
        let account = row(4, "t", "d1", "v");
        let said = |selector, device, token, owner| Said {
            selector,
            device,
            token,
            owner,
        };
        let s = Some("s");
        let cases = [
            (said(s, None, false, None), vec![&one], vec![1]),
            (said(s, None, false, None), vec![&one, &other], vec![]),
            (
                said(s, Some("d2"), false, None),
                vec![&one, &other],
                vec![2],
            ),
            (
                said(s, Some("d3"), false, None),
                vec![&one, &plain],
                vec![3],
            ),
            (said(s, Some("d3"), false, None), vec![&one, &other], vec![]),
            (
                said(None, None, true, None),
                vec![&one, &account],
                vec![1, 4],
            ),
            (said(s, None, true, None), vec![&one, &account], vec![1]),
            (said(s, None, false, Some("v")), vec![&one], vec![]),
            (
                said(None, None, true, Some("v")),
                vec![&one, &account],
                vec![4],
            ),
            (said(s, None, false, None), vec![], vec![]),
        ];
        for (said, rows, expected) in cases {
            let rows: Vec<_> = rows.into_iter().cloned().collect();
            assert_eq!(meant(said, &rows), expected, "{said:?} {rows:?}");
        }
    }

    #[test]
    fn where_a_phone_stands() {
        let well = Facts {
            token: true,
            user: true,
            pusher: Some("registered"),
            ..Facts::default()
        };
        let now = 1_000_000;
        let day_ago = Some(now - SILENT_AFTER);
        let cases = [
            (Facts::default(), Standing::NoToken),
            (Facts { dead: true, ..well }, Standing::Gone),
            (
                Facts {
                    waiting: day_ago,
                    received: Some(1),
                    ..well
                },
                Standing::Silent,
            ),
            (
                Facts {
                    waiting: day_ago,
                    pushed: day_ago,
                    ..well
                },
                Standing::Unknown,
            ),
            (
                Facts {
                    user: false,
                    ..well
                },
                Standing::Nobodys,
            ),
            (
                Facts {
                    pusher: None,
                    ..well
                },
                Standing::NoPusher,
            ),
            (
                Facts {
                    pusher: Some("removed"),
                    ..well
                },
                Standing::NoPusher,
            ),
            (
                Facts {
                    pusher: Some("failed"),
                    ..well
                },
                Standing::PusherFailed,
            ),
            (
                Facts {
                    pusher: Some("pending"),
                    ..well
                },
                Standing::PusherPending,
            ),
            (
                Facts {
                    received: Some(1),
                    pushed: Some(1),
                    ..well
                },
                Standing::Confirms,
            ),
            (
                Facts {
                    received: Some(1),
                    waiting: Some(now - SILENT_AFTER + 1),
                    ..well
                },
                Standing::Waits,
            ),
            (well, Standing::Unused),
        ];
        for (facts, expected) in cases {
            assert_eq!(Standing::of(&facts, now), expected, "{facts:?}");
        }
    }
}
