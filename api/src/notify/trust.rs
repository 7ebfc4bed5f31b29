//! Whose notification it is: one with our pusher's mark, or one that anybody could have sent. Without the mark
//! a notification is pushed within a small budget, or not at all (NOTIFY_AUTH).

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    clock::Clock,
    flow::{PushTarget, feed::Changed},
    mark::MarkKeys,
};
use matrix2acrobits_store::Store;
use tokio::sync::Notify;

use crate::limiter::{Limit, Limiter, Rate};

/// For one token.
const PER_TOKEN: Rate = Rate {
    at_once: 10,
    one_per: Duration::from_secs(3),
};
/// For all tokens of nobody together.
const OF_NOBODY: Rate = Rate {
    at_once: 30,
    one_per: Duration::from_secs(1),
};

/// What becomes of notifications without our pusher's mark (NOTIFY_AUTH).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotifyAuth {
    /// They are pushed within a budget.
    Prefer,
    /// They are refused.
    Require,
    /// They are pushed like any other.
    Off,
}

impl NotifyAuth {
    /// Reads the setting.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "off" => Ok(Self::Off),
            _ => Err(format!("must be prefer, require or off, not {text:?}")),
        }
    }
}

/// What a device of a notification brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked {
    Right,
    Wrong,
    Missing,
}

impl Marked {
    pub(crate) const ALL: [Self; 3] = [Self::Right, Self::Wrong, Self::Missing];

    /// The word for metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Missing => "missing",
        }
    }
}

/// Pause before the keys are read again from a database that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes the keys of the marks anew when another process may have changed them. Runs forever.
pub(crate) async fn follow_keys(trust: Arc<Trust>, store: Store) {
    let stale = Arc::new(Notify::new());
    let told = stale.clone();
    store.listen(move |changed| {
        if changed == Changed::Everything {
            told.notify_one();
        }
    });
    loop {
        stale.notified().await;
        match store.mark_keys().await {
            Ok(keys) => trust.set_keys(keys),
            Err(error) => {
                tracing::debug!(%error, "the keys of the marks cannot be read");
                tokio::time::sleep(PAUSE).await;
                stale.notify_one();
            }
        }
    }
}

/// Knows the marks, and keeps the budgets of what comes without.
#[derive(Debug)]
pub(crate) struct Trust {
    auth: NotifyAuth,
    keys: RwLock<MarkKeys>,
    clock: Clock,
    budgets: Limiter,
}

impl Trust {
    pub(crate) fn new(auth: NotifyAuth, keys: MarkKeys, clock: Clock) -> Self {
        Self {
            auth,
            keys: RwLock::new(keys),
            clock,
            budgets: Limiter::new(),
        }
    }

    /// From now on these keys count.
    pub(crate) fn set_keys(&self, keys: MarkKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Looks at the mark that came with a pushkey.
    pub(crate) fn look(&self, pushkey: &str, mark: Option<&str>) -> Marked {
        let Some(mark) = mark else {
            return Marked::Missing;
        };
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        if keys.accept(pushkey, mark, || self.clock.unix()) {
            Marked::Right
        } else {
            Marked::Wrong
        }
    }

    /// Whether a notification with such a device is refused unread.
    pub(crate) fn refuses(&self, marked: Marked) -> bool {
        self.auth == NotifyAuth::Require && marked != Marked::Right
    }

    /// Whether anybody may have sent this. With NOTIFY_AUTH=off only the homeserver can.
    pub(crate) fn doubts(&self, marked: Marked) -> bool {
        self.auth != NotifyAuth::Off && marked != Marked::Right
    }

    /// Whether this is a stranger's push: anybody may have sent it, and the token belongs to nobody.
    pub(crate) fn is_strangers(&self, marked: Marked, target: &PushTarget) -> bool {
        self.doubts(marked) && !target.owned
    }

    /// Takes one push to `target` from the budgets. `Err` says how long they are used up.
    pub(crate) fn take(
        &self,
        marked: Marked,
        target: &PushTarget,
        now: Instant,
    ) -> Result<(), Duration> {
        if !self.doubts(marked) {
            return Ok(());
        }
        let token = [target.app_id.as_str(), target.pushkey.as_str()].map(str::as_bytes);
        let token = Limit {
            key: self.budgets.key(token),
            rate: PER_TOKEN,
        };
        let shared = Limit {
            key: self.budgets.key([b"of nobody"]),
            rate: OF_NOBODY,
        };
        let limits = [token, shared];
        // The shared one is for tokens of nobody alone.
        let limits = if target.owned { &limits[..1] } else { &limits };
        self.budgets.take(limits, now)
    }
}

#[cfg(test)]
mod tests {
    use matrix2acrobits_shared::{
        ids::{AppId, Pushkey, Selector},
        mark::{KEY_BYTES, MarkKey},
    };

    use super::*;

    fn target(pushkey: &str, owned: bool) -> PushTarget {
        PushTarget {
            row_id: 1,
            report: 1,
            selector: Selector::parse("s").unwrap(),
            app_id: AppId::parse("a").unwrap(),
            pushkey: Pushkey::parse(pushkey).unwrap(),
            dead: false,
            owned,
        }
    }

    fn trust(auth: NotifyAuth) -> Trust {
        let keys = MarkKeys {
            current: MarkKey::new(&[1; KEY_BYTES]),
            previous: None,
        };
        Trust::new(auth, keys, Clock::system())
    }

    #[test]
    fn marks_are_told_apart_and_follow_the_key() {
        let it = trust(NotifyAuth::Prefer);
        let [old, new] = [1, 2].map(|byte| MarkKey::new(&[byte; KEY_BYTES]));
        let [old_mark, new_mark] = [&old, &new].map(|key| key.mark("k"));
        assert_eq!(it.look("k", None), Marked::Missing);
        assert_eq!(it.look("k", Some(old_mark.as_str())), Marked::Right);
        assert_eq!(it.look("l", Some(old_mark.as_str())), Marked::Wrong);
        assert_eq!(it.look("k", Some(new_mark.as_str())), Marked::Wrong);
        it.set_keys(MarkKeys {
            current: new,
            previous: Some((old, i64::MAX)),
        });
        assert_eq!(it.look("k", Some(old_mark.as_str())), Marked::Right);
        assert_eq!(it.look("k", Some(new_mark.as_str())), Marked::Right);
    }

    #[test]
    fn only_require_refuses_and_only_what_has_no_right_mark() {
        for (auth, wrong, right) in [
            (NotifyAuth::Prefer, false, false),
            (NotifyAuth::Require, true, false),
            (NotifyAuth::Off, false, false),
        ] {
            let it = trust(auth);
            assert_eq!(it.refuses(Marked::Missing), wrong);
            assert_eq!(it.refuses(Marked::Wrong), wrong);
            assert_eq!(it.refuses(Marked::Right), right);
        }
    }

    #[test]
    fn a_token_has_ten_at_once_and_one_more_every_three_seconds() {
        let now = Instant::now();
        let it = trust(NotifyAuth::Prefer);
        let (mine, yours) = (target("mine", true), target("yours", true));
        for _ in 0..10 {
            assert_eq!(it.take(Marked::Missing, &mine, now), Ok(()));
        }
        let three = Duration::from_secs(3);
        assert_eq!(it.take(Marked::Wrong, &mine, now), Err(three));
        assert_eq!(it.take(Marked::Missing, &yours, now), Ok(()));
        assert_eq!(it.take(Marked::Right, &mine, now), Ok(()));
        assert_eq!(it.take(Marked::Missing, &mine, now + three), Ok(()));
        assert_eq!(it.take(Marked::Missing, &mine, now + three), Err(three));
    }

    #[test]
    fn tokens_of_nobody_share_thirty_and_one_a_second() {
        let now = Instant::now();
        let it = trust(NotifyAuth::Prefer);
        let second = Duration::from_secs(1);
        let nobodys = |n: u32| target(&format!("n{n}"), false);
        for n in 0..30 {
            assert_eq!(it.take(Marked::Missing, &nobodys(n), now), Ok(()));
        }
        assert_eq!(it.take(Marked::Missing, &nobodys(30), now), Err(second));
        assert_eq!(it.take(Marked::Missing, &target("o", true), now), Ok(()));
        assert_eq!(it.take(Marked::Right, &nobodys(30), now), Ok(()));
        let later = now + second;
        assert_eq!(it.take(Marked::Missing, &nobodys(31), later), Ok(()));
        assert_eq!(it.take(Marked::Missing, &nobodys(32), later), Err(second));
    }

    #[test]
    fn without_the_check_there_is_no_budget() {
        let now = Instant::now();
        let it = trust(NotifyAuth::Off);
        assert!(!it.is_strangers(Marked::Missing, &target("n", false)));
        for _ in 0..100 {
            assert_eq!(it.take(Marked::Missing, &target("n", false), now), Ok(()));
        }
    }
}
