//! A homeserver in memory, with Synapse's rules for pushers as measured (docs/synapse.md).

use matrix2acrobits_shared::rules::pushers::PusherTask;

/// A pusher that the homeserver holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    pub(crate) user: String,
    pub(crate) app: String,
    pub(crate) key: String,
    pub(crate) selector: String,
    /// The name of the key that its mark was made with.
    pub(crate) mark: String,
}

impl Held {
    fn of(row: &PusherTask, mark: &str) -> Self {
        Self {
            user: row.user_id.as_str().into(),
            app: row.app_id.as_str().into(),
            key: row.pushkey.as_str().into(),
            selector: row.selector.as_str().into(),
            mark: mark.into(),
        }
    }

    fn same_pair(&self, other: &Self) -> bool {
        self.app == other.app && self.key == other.key
    }
}

#[derive(Debug, Default)]
pub(crate) struct Homeserver {
    pub(crate) pushers: Vec<Held>,
    pub(crate) requests: usize,
}

impl Homeserver {
    /// `POST /pushers/set`: replaces the user's own, and without `append` everybody else's of the pair.
    pub(crate) fn set(&mut self, row: &PusherTask, mark: &str, append: bool) {
        self.requests += 1;
        let new = Held::of(row, mark);
        self.pushers
            .retain(|old| !old.same_pair(&new) || (append && old.user != new.user));
        self.pushers.push(new);
    }

    /// The same with `kind: null`: deletes the user's own.
    pub(crate) fn delete(&mut self, row: &PusherTask) {
        self.requests += 1;
        let gone = Held::of(row, "");
        self.pushers
            .retain(|old| !old.same_pair(&gone) || old.user != gone.user);
    }

    /// `GET /pushers`: whether the pusher is there as it should be.
    pub(crate) fn has(&mut self, row: &PusherTask, mark: &str) -> bool {
        self.requests += 1;
        self.pushers.contains(&Held::of(row, mark))
    }
}
