//! Decides what a report does to a phone's row.

use serde::Deserialize;

use crate::ids::{AppId, Device, Pushkey, Selector, UserId};

/// An unchanged report renews `updated_at` only if that is older than this, in seconds. So a phone that reports at
/// every start causes no write.
const TOUCH_AFTER: i64 = 3600;

/// How long a row that nobody stands for (no mapping, no login, not imported) stays after its last report, in seconds.
pub const STRANGERS_STAY: i64 = 30 * 86_400;

/// The most such rows, some 40 MB. Beyond that, the rows that were reported longest ago go.
pub const MOST_STRANGERS: i64 = 100_000;

/// A field of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Field<T> {
    /// The report does not have the field, so the stored value stays.
    #[default]
    Absent,
    /// The field is empty, so the stored value goes.
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
    /// The phone, if it names itself.
    pub device: Option<Device>,
    /// The user that a login proved. None without a login.
    pub owner: Option<UserId>,
    /// Whether a row may be created that neither a login nor a mapping stands for.
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
    /// The phone, and who sent the report.
    pub from: Reporter,
    /// Token for messages: the Matrix pushkey.
    pub token_msgs: Field<Pushkey>,
    /// App id for messages: the Matrix app id.
    pub app_id_msgs: Field<AppId>,
    /// Token for calls. We only store it.
    pub token_calls: Field<Pushkey>,
    /// App id for calls. We only store it.
    pub app_id_calls: Field<AppId>,
}

/// What became of a report or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// The report or removal is in the database.
    Done {
        /// Whether it changed anything.
        changed: bool,
        /// The user whose pusher this is. None until the operator maps the selector.
        user: Option<UserId>,
        /// A row was created that neither a login nor a mapping stands for.
        stranger: bool,
        /// The stored row of a phone whose report leaves it as it was, apart from its time.
        same_row: Option<i64>,
    },
    /// The report needs such a row, and [`Reporter::strangers`] says no.
    Strange,
    /// Neither the report nor the stored row has an app id for the token.
    NeedsAppId,
    /// The selector belongs to another user.
    NotYours,
}

impl Saved {
    /// There was nothing to do.
    pub const NOTHING: Self = Self::Done {
        changed: false,
        user: None,
        stranger: false,
        same_row: None,
    };
}

/// The columns of a row that a report sets.
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
    /// The contents of a row after `report`, if it holds `stored` before.
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

    /// The app id and pushkey for messages, if the row has both.
    pub fn pair(&self) -> Option<(&str, &str)> {
        self.app_id_msgs.as_deref().zip(self.token_msgs.as_deref())
    }
}

/// A phone's row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Phone {
    /// The row's id. Not above 0 until it is stored.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone's name, empty if it reports none.
    pub device: String,
    /// What the phone reported.
    pub contents: Contents,
    /// Whether the operator imported the row.
    pub imported: bool,
    /// Counts the reports that changed or revived the row.
    pub report: i64,
    /// When PNM called the token gone, in seconds since 1970. The next report clears this.
    pub dead_at: Option<i64>,
    /// When the phone last reported, as far as that was noted, in seconds since 1970.
    pub updated_at: i64,
}

/// What the database knows about the account that a report names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// The user who owns the selector by the operator's mapping.
    pub mapped: Option<String>,
    /// The user who owns the selector by a login.
    pub owner: Option<String>,
    /// The rows of the phone that reports, and the one without a phone's name.
    pub phones: Vec<Phone>,
}

/// What a report does to the rows of its account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The row from now on. Id 0 means a new row.
    pub phone: Phone,
    /// What has to be written.
    pub write: Write,
    /// The row without a phone's name that this row replaces.
    pub absorbed: Option<i64>,
    /// What the row, and the one that it replaces, held before and no longer hold: app ids and pushkeys.
    pub left: Vec<(String, String)>,
    /// The user whose pusher this is.
    pub user: Option<UserId>,
    /// A row was created that neither a login nor a mapping stands for.
    pub stranger: bool,
}

/// How much of the row has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The whole row.
    Row,
    /// Only the time.
    Time,
    /// Nothing, because the row is unchanged.
    Nothing,
}

/// Who brings a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The phone, now.
    Phone,
    /// The operator, from another program, to which the phone reported at this time. The operator stands for the row.
    Import {
        /// Seconds since 1970.
        at: i64,
    },
}

/// Decides what `report` changes, or why it changes nothing.
pub fn decide(
    report: &Report,
    account: &Account,
    origin: Origin,
    now: i64,
) -> Result<Change, Saved> {
    let imported = origin != Origin::Phone;
    let owner = report.from.owner.as_ref().map(UserId::as_str);
    if let (Some(owner), Some(claimed)) = (owner, account.owner.as_deref())
        && owner != claimed
    {
        return Err(Saved::NotYours);
    }
    let device = report.from.device();
    let named = account.phones.iter().find(|phone| phone.device == device);
    // A phone that has begun to report its name is still the same phone.
    let nameless = account.phones.iter().find(|phone| {
        let Field::Set(token) = &report.token_msgs else {
            return false;
        };
        !device.is_empty()
            && phone.device.is_empty()
            && phone.contents.token_msgs.as_deref() == Some(token.as_str())
    });
    let stored = named.or(nameless);
    let contents = Contents::after(report, stored.map(|phone| &phone.contents));
    if report.token_msgs.is_set() && contents.app_id_msgs.is_none() {
        return Err(Saved::NeedsAppId);
    }
    let stranger = stored.is_none() && contents.owner.is_none() && account.mapped.is_none();
    let user = account.mapped.as_deref().or(contents.owner.as_deref());
    let user = user.filter(|_| contents.pair().is_some());
    let user = user.and_then(|user| UserId::parse(user).ok());
    let Some(stored) = stored else {
        if contents.token_msgs.is_none() && contents.token_calls.is_none() {
            // There is nothing to remember, and a row without a token would hide a lost volume.
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
                updated_at: match origin {
                    Origin::Phone => now,
                    Origin::Import { at } => at.min(now),
                },
            },
            write: Write::Row,
            absorbed: None,
            left: Vec::new(),
            user,
            stranger,
        });
    };
    let absorbed = nameless.filter(|phone| phone.id != stored.id);
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
    let before = std::iter::once(stored).chain(absorbed);
    let left = before
        .filter_map(|phone| phone.contents.pair())
        .filter(|old| contents.pair() != Some(*old))
        .map(|(app_id, pushkey)| (app_id.to_owned(), pushkey.to_owned()));
    let left = left.collect();
    Ok(Change {
        phone: Phone {
            id: stored.id,
            selector: stored.selector.clone(),
            device: device.to_owned(),
            contents,
            imported: stored.imported || imported,
            report: stored.report + i64::from(write == Write::Row),
            dead_at: None,
            updated_at: match origin {
                _ if write == Write::Nothing => stored.updated_at,
                Origin::Phone => now,
                Origin::Import { at } => stored.updated_at.max(at.min(now)),
            },
        },
        write,
        absorbed: absorbed.map(|phone| phone.id),
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
        let pair = |token: &str| vec![("app".to_owned(), token.to_owned())];
        let none = Vec::new;
        for (what, report, change_stored, write, left) in [
            ("unchanged", &same, None, Write::Nothing, none()),
            (
                "an hour later",
                &same,
                Some(NOW - 3600),
                Write::Time,
                none(),
            ),
            (
                "a clock that was wrong",
                &same,
                Some(NOW + 3600),
                Write::Time,
                none(),
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
            let change = decide(report, &account(&[stored]), Origin::Phone, NOW).unwrap();
            assert_eq!((change.write, change.left), (write, left), "{what}");
            assert_eq!(change.phone.id, 7, "{what}");
        }
        let dead = Phone {
            dead_at: Some(1),
            ..phone(7, "", "t")
        };
        let change = decide(&same, &account(&[dead]), Origin::Phone, NOW).unwrap();
        assert_eq!(
            (change.write, change.phone.dead_at, change.phone.report),
            (Write::Row, None, 4)
        );
    }

    #[test]
    fn a_phone_that_learns_to_say_its_name_takes_its_row_over() {
        let named = report("d", Field::Set("t"), Some("app"));
        let change = decide(&named, &account(&[phone(7, "", "t")]), Origin::Phone, NOW).unwrap();
        assert_eq!((change.phone.id, change.phone.device.as_str()), (7, "d"));
        assert_eq!(
            (change.write, change.absorbed, change.left),
            (Write::Row, None, vec![])
        );
        // Another token is another phone.
        let change = decide(&named, &account(&[phone(7, "", "u")]), Origin::Phone, NOW).unwrap();
        assert_eq!((change.phone.id, change.absorbed), (0, None));
        // The phone already has a row with its name.
        let mut nameless = phone(7, "", "t");
        nameless.contents.app_id_msgs = Some("earlier app".into());
        let both = account(&[nameless, phone(8, "d", "u")]);
        let change = decide(&named, &both, Origin::Phone, NOW).unwrap();
        assert_eq!((change.phone.id, change.absorbed), (8, Some(7)));
        let left = [("app", "u"), ("earlier app", "t")];
        let left = left.map(|(app, token)| (app.to_owned(), token.to_owned()));
        assert_eq!(change.left, left, "its own token, and the other app's");
        let without_name = report("", Field::Set("t"), Some("app"));
        let change = decide(
            &without_name,
            &account(&[phone(8, "d", "t")]),
            Origin::Phone,
            NOW,
        )
        .unwrap();
        assert_eq!((change.phone.id, change.absorbed), (0, None));
    }

    #[test]
    fn an_import_is_as_old_as_its_report() {
        let token = report("", Field::Set("t"), Some("app"));
        for (at, expected) in [(NOW - 500, NOW - 500), (0, 0), (NOW + 500, NOW)] {
            let new = decide(&token, &account(&[]), Origin::Import { at }, NOW).unwrap();
            assert_eq!((new.phone.updated_at, new.phone.imported), (expected, true));
        }
        let stored = account(&[phone(7, "", "u")]);
        for (at, expected) in [(NOW - 5, NOW - 5), (NOW - 500, NOW - 10)] {
            let change = decide(&token, &stored, Origin::Import { at }, NOW).unwrap();
            assert_eq!(change.phone.updated_at, expected, "{at}");
        }
    }

    #[test]
    fn refusals() {
        let nobody = Account::default();
        let token = report("", Field::Set("t"), None);
        assert_eq!(
            decide(&token, &nobody, Origin::Phone, NOW),
            Err(Saved::NeedsAppId)
        );
        let nothing = report("", Field::Absent, Some("app"));
        assert_eq!(
            decide(&nothing, &nobody, Origin::Phone, NOW),
            Err(Saved::NOTHING)
        );
        let mut strange = report("", Field::Set("t"), Some("app"));
        strange.from.strangers = false;
        assert_eq!(
            decide(&strange, &nobody, Origin::Phone, NOW),
            Err(Saved::Strange)
        );
        let mapped = Account {
            mapped: Some("@a:x".into()),
            ..Account::default()
        };
        let change = decide(&strange, &mapped, Origin::Phone, NOW).unwrap();
        assert_eq!(change.user.unwrap().as_str(), "@a:x");
        let claimed = Account {
            owner: Some("@b:x".into()),
            ..Account::default()
        };
        strange.from.owner = Some(UserId::parse("@a:x").unwrap());
        assert_eq!(
            decide(&strange, &claimed, Origin::Phone, NOW),
            Err(Saved::NotYours)
        );
        strange.from.owner = Some(UserId::parse("@b:x").unwrap());
        assert!(decide(&strange, &claimed, Origin::Phone, NOW).is_ok());
    }
}
