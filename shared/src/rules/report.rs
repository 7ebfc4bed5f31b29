//! What a report makes of a phone's row.

use serde::Deserialize;

use crate::ids::{AppId, Device, Pushkey, Selector, UserId};

/// An unchanged report only renews `updated_at` when that is older than this, in seconds: a phone that
/// reports at every start costs no write.
const TOUCH_AFTER: i64 = 3600;

/// A row that nobody stands for (no mapping, no login, not imported) goes when it was last reported so long ago, in
/// seconds.
pub const STRANGERS_STAY: i64 = 30 * 86_400;

/// Most of these rows, some 40 MB; beyond that those go that were reported longest ago.
pub const MOST_STRANGERS: i64 = 100_000;

/// A field of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Field<T> {
    /// The report does not have it: what is stored stays.
    #[default]
    Absent,
    /// It is empty: what is stored goes.
    Clear,
    /// The new value.
    Set(T),
}

impl<T> Field<T> {
    fn over(&self, stored: Option<&str>, text: impl Fn(&T) -> &str) -> Option<String> {
        match self {
            Self::Absent => stored.map(str::to_owned),
            Self::Clear => None,
            Self::Set(value) => Some(text(value).to_owned()),
        }
    }

    /// Whether the report brings a value.
    pub fn is_set(&self) -> bool {
        matches!(self, Self::Set(_))
    }
}

/// Which phone a request is about, and who sent it.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// The account on the phone.
    pub selector: Selector,
    /// The phone, where it says so.
    pub device: Option<Device>,
    /// The user that a login proved; none where nobody logs in.
    pub owner: Option<UserId>,
    /// Whether a row may be made that neither a login nor a mapping stands for.
    pub strangers: bool,
}

impl Reporter {
    /// The phone's name as it is stored.
    pub fn device(&self) -> &str {
        self.device.as_ref().map_or("", Device::as_str)
    }
}

/// What a phone reports.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who and which phone.
    pub from: Reporter,
    /// Token for messages: the Matrix pushkey.
    pub token_msgs: Field<Pushkey>,
    /// App id for messages: the Matrix app id.
    pub app_id_msgs: Field<AppId>,
    /// Token for calls; stored only.
    pub token_calls: Field<Pushkey>,
    /// App id for calls; stored only.
    pub app_id_calls: Field<AppId>,
}

/// What became of a report or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// It is in the database.
    Done {
        /// Whether that changed anything.
        changed: bool,
        /// The user whose pusher this is; none until the operator maps the selector.
        user: Option<UserId>,
        /// A row was made that neither a login nor a mapping stands for.
        stranger: bool,
    },
    /// It needs such a row, and [`Reporter::strangers`] says no.
    Strange,
    /// The token has no app id, neither in the report nor stored.
    NeedsAppId,
    /// The selector belongs to another user.
    NotYours,
}

impl Saved {
    /// For what there was nothing to do.
    pub const NOTHING: Self = Self::Done {
        changed: false,
        user: None,
        stranger: false,
    };
}

/// What a report sets in a row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Contents {
    /// The user that a login proved.
    pub owner: Option<String>,
    /// Token for messages.
    pub token_msgs: Option<String>,
    /// App id for messages.
    pub app_id_msgs: Option<String>,
    /// Token for calls.
    pub token_calls: Option<String>,
    /// App id for calls.
    pub app_id_calls: Option<String>,
}

impl Contents {
    /// What the row holds after `report`, and now holds `stored`.
    fn after(report: &Report, stored: Option<&Self>) -> Self {
        let none = Self::default();
        let stored = stored.unwrap_or(&none);
        let owner = report.from.owner.as_ref().map(UserId::as_str);
        Self {
            owner: owner.or(stored.owner.as_deref()).map(str::to_owned),
            token_msgs: report
                .token_msgs
                .over(stored.token_msgs.as_deref(), Pushkey::as_str),
            app_id_msgs: report
                .app_id_msgs
                .over(stored.app_id_msgs.as_deref(), AppId::as_str),
            token_calls: report
                .token_calls
                .over(stored.token_calls.as_deref(), Pushkey::as_str),
            app_id_calls: report
                .app_id_calls
                .over(stored.app_id_calls.as_deref(), AppId::as_str),
        }
    }

    /// The app id and pushkey for messages, where the row has both.
    pub fn pair(&self) -> Option<(&str, &str)> {
        self.app_id_msgs.as_deref().zip(self.token_msgs.as_deref())
    }
}

/// A phone's row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Phone {
    /// Its id; not above 0 before it is stored.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone's name; empty where it has none.
    pub device: String,
    /// What was reported.
    pub contents: Contents,
    /// Whether the operator brought it in.
    pub imported: bool,
    /// Counts the reports that changed it or revived it.
    pub report: i64,
    /// When PNM called the token gone, in seconds since 1970; until the next report.
    pub dead_at: Option<i64>,
    /// When it was last reported, as far as that was noted, in seconds since 1970.
    pub updated_at: i64,
}

/// What the database holds about the account that a report names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Whose the selector is by the operator's word.
    pub mapped: Option<String>,
    /// Whose it is by a login.
    pub owner: Option<String>,
    /// The rows of the phone that reports, and the one without a phone's name.
    pub phones: Vec<Phone>,
}

/// What a report does to the rows of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The row as it is from now on; with id 0 it is a new one.
    pub phone: Phone,
    /// What has to be written.
    pub write: Write,
    /// The row without a phone's name that this one takes over and that goes.
    pub absorbed: Option<i64>,
    /// The app id and pushkey that the row held and holds no more.
    pub left: Option<(String, String)>,
    /// The user whose pusher this is.
    pub user: Option<UserId>,
    /// A row was made that neither a login nor a mapping stands for.
    pub stranger: bool,
}

/// How much of a row has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// All of it.
    Row,
    /// Only the time.
    Time,
    /// Nothing: it is as it was.
    Nothing,
}

/// Decides what `report` does, or what it is answered where it does nothing.
pub fn decide(
    report: &Report,
    account: &Account,
    imported: bool,
    now: i64,
) -> Result<Change, Saved> {
    let owner = report.from.owner.as_ref().map(UserId::as_str);
    if let (Some(owner), Some(claimed)) = (owner, account.owner.as_deref())
        && owner != claimed
    {
        return Err(Saved::NotYours);
    }
    let device = report.from.device();
    let named = account.phones.iter().find(|it| it.device == device);
    // A phone that has learnt to say its name is still the phone that it was.
    let nameless = account.phones.iter().find(|it| {
        let Field::Set(token) = &report.token_msgs else {
            return false;
        };
        !device.is_empty()
            && it.device.is_empty()
            && it.contents.token_msgs.as_deref() == Some(token.as_str())
    });
    let stored = named.or(nameless);
    let contents = Contents::after(report, stored.map(|it| &it.contents));
    if report.token_msgs.is_set() && contents.app_id_msgs.is_none() {
        return Err(Saved::NeedsAppId);
    }
    let stranger = stored.is_none() && contents.owner.is_none() && account.mapped.is_none();
    let user = account.mapped.as_deref().or(contents.owner.as_deref());
    let user = user.filter(|_| contents.pair().is_some());
    let user = user.and_then(|user| UserId::parse(user).ok());
    let Some(stored) = stored else {
        if contents.token_msgs.is_none() && contents.token_calls.is_none() {
            // Nothing to remember, and a row without a token would hide a lost volume.
            return Err(Saved::NOTHING);
        }
        if stranger && !report.from.strangers {
            return Err(Saved::Strange);
        }
        return Ok(Change {
            phone: Phone {
                id: 0,
                selector: report.from.selector.as_str().to_owned(),
                device: device.to_owned(),
                contents,
                imported,
                report: 1,
                dead_at: None,
                updated_at: now,
            },
            write: Write::Row,
            absorbed: None,
            left: None,
            user,
            stranger,
        });
    };
    let absorbed = nameless.map(|it| it.id).filter(|id| *id != stored.id);
    let changed = stored.contents != contents
        || stored.dead_at.is_some()
        || stored.device != device
        || (imported && !stored.imported);
    let write = if changed || absorbed.is_some() {
        Write::Row
    } else if (now - stored.updated_at).abs() >= TOUCH_AFTER {
        Write::Time
    } else {
        Write::Nothing
    };
    let left = stored
        .contents
        .pair()
        .filter(|old| contents.pair() != Some(*old))
        .map(|(app_id, pushkey)| (app_id.to_owned(), pushkey.to_owned()));
    Ok(Change {
        phone: Phone {
            id: stored.id,
            selector: stored.selector.clone(),
            device: device.to_owned(),
            contents,
            imported: stored.imported || imported,
            report: stored.report + i64::from(write == Write::Row),
            dead_at: None,
            updated_at: if write == Write::Nothing {
                stored.updated_at
            } else {
                now
            },
        },
        write,
        absorbed,
        left,
        user,
        stranger,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn report(device: &str, token: Field<&str>, app: Option<&str>) -> Report {
        Report {
            from: Reporter {
                selector: Selector::parse("s").unwrap(),
                device: (!device.is_empty()).then(|| Device::parse(device).unwrap()),
                owner: None,
                strangers: true,
            },
            token_msgs: match token {
                Field::Absent => Field::Absent,
                Field::Clear => Field::Clear,
                Field::Set(token) => Field::Set(Pushkey::parse(token).unwrap()),
            },
            app_id_msgs: app.map_or(Field::Absent, |app| Field::Set(AppId::parse(app).unwrap())),
            token_calls: Field::Absent,
            app_id_calls: Field::Absent,
        }
    }

    fn phone(id: i64, device: &str, token: &str) -> Phone {
        Phone {
            id,
            selector: "s".into(),
            device: device.into(),
            contents: Contents {
                token_msgs: Some(token.into()),
                app_id_msgs: Some("app".into()),
                ..Contents::default()
            },
            imported: false,
            report: 3,
            dead_at: None,
            updated_at: NOW - 10,
        }
    }

    fn account(phones: &[Phone]) -> Account {
        Account {
            phones: phones.to_vec(),
            ..Account::default()
        }
    }

    #[test]
    fn what_is_written_and_what_is_left() {
        let same = report("", Field::Set("t"), Some("app"));
        let pair = |token: &str| Some(("app".to_owned(), token.to_owned()));
        for (what, report, change_stored, write, left) in [
            ("unchanged", &same, None, Write::Nothing, None),
            ("an hour later", &same, Some(NOW - 3600), Write::Time, None),
            (
                "a clock that was wrong",
                &same,
                Some(NOW + 3600),
                Write::Time,
                None,
            ),
            (
                "another token",
                &report("", Field::Set("u"), None),
                None,
                Write::Row,
                pair("t"),
            ),
            (
                "no token",
                &report("", Field::Clear, None),
                None,
                Write::Row,
                pair("t"),
            ),
        ] {
            let mut stored = phone(7, "", "t");
            stored.updated_at = change_stored.unwrap_or(stored.updated_at);
            let change = decide(report, &account(&[stored]), false, NOW).unwrap();
            assert_eq!((change.write, change.left), (write, left), "{what}");
            assert_eq!(change.phone.id, 7, "{what}");
        }
        let dead = Phone {
            dead_at: Some(1),
            ..phone(7, "", "t")
        };
        let change = decide(&same, &account(&[dead]), false, NOW).unwrap();
        assert_eq!(
            (change.write, change.phone.dead_at, change.phone.report),
            (Write::Row, None, 4)
        );
    }

    #[test]
    fn a_phone_that_learns_to_say_its_name_takes_its_row_over() {
        let named = report("d", Field::Set("t"), Some("app"));
        let change = decide(&named, &account(&[phone(7, "", "t")]), false, NOW).unwrap();
        assert_eq!((change.phone.id, change.phone.device.as_str()), (7, "d"));
        assert_eq!(
            (change.write, change.absorbed, change.left),
            (Write::Row, None, None)
        );
        // Another token is another phone.
        let change = decide(&named, &account(&[phone(7, "", "u")]), false, NOW).unwrap();
        assert_eq!((change.phone.id, change.absorbed), (0, None));
        // It has a row by its name already.
        let both = account(&[phone(7, "", "t"), phone(8, "d", "u")]);
        let change = decide(&named, &both, false, NOW).unwrap();
        assert_eq!((change.phone.id, change.absorbed), (8, Some(7)));
        let without_name = report("", Field::Set("t"), Some("app"));
        let change = decide(&without_name, &account(&[phone(8, "d", "t")]), false, NOW).unwrap();
        assert_eq!((change.phone.id, change.absorbed), (0, None));
    }

    #[test]
    fn refusals() {
        let nobody = Account::default();
        let token = report("", Field::Set("t"), None);
        assert_eq!(decide(&token, &nobody, false, NOW), Err(Saved::NeedsAppId));
        let nothing = report("", Field::Absent, Some("app"));
        assert_eq!(decide(&nothing, &nobody, false, NOW), Err(Saved::NOTHING));
        let mut strange = report("", Field::Set("t"), Some("app"));
        strange.from.strangers = false;
        assert_eq!(decide(&strange, &nobody, false, NOW), Err(Saved::Strange));
        let mapped = Account {
            mapped: Some("@a:x".into()),
            ..Account::default()
        };
        let change = decide(&strange, &mapped, false, NOW).unwrap();
        assert_eq!(change.user.unwrap().as_str(), "@a:x");
        let claimed = Account {
            owner: Some("@b:x".into()),
            ..Account::default()
        };
        strange.from.owner = Some(UserId::parse("@a:x").unwrap());
        assert_eq!(decide(&strange, &claimed, false, NOW), Err(Saved::NotYours));
        strange.from.owner = Some(UserId::parse("@b:x").unwrap());
        assert!(decide(&strange, &claimed, false, NOW).is_ok());
    }
}
