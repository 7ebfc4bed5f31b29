//! Remembers good logins for a while, and lets equal logins at the same time share one request to the login service.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use matrix2acrobits_shared::{ids::UserId, secret::Secret};
use tokio::sync::watch;

use super::AuthError;
use crate::keyed_hash::{Hashed, KeyedHash};

/// The most good logins that are remembered. About 4 MiB when full.
const CAPACITY: u64 = 10_000;

/// The result of a login.
pub(super) type Verdict = Result<UserId, AuthError>;

/// Stands for one user name with one password. A wrong password never finds the entry of the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LoginKey(Hashed);

/// The memory. It contains neither names nor passwords.
#[derive(Debug)]
pub(super) struct Logins {
    hash: KeyedHash,
    /// None if nothing is to be remembered.
    good: Option<moka::sync::Cache<LoginKey, UserId>>,
    under_way: Mutex<HashMap<LoginKey, Pending>>,
}

/// A login under way. Equal logins can wait for its verdict.
#[derive(Debug, Clone)]
pub(super) struct Pending(watch::Receiver<Option<Verdict>>);

/// The duty to report the verdict. Dropping it gives the duty up.
#[derive(Debug)]
pub(super) struct Lead {
    logins: Arc<Logins>,
    key: LoginKey,
    tell: watch::Sender<Option<Verdict>>,
}

impl Logins {
    /// An empty memory that keeps a good login for `ttl`. Zero keeps none.
    pub(super) fn new(ttl: Duration) -> Self {
        let cache = || {
            moka::sync::Cache::builder()
                .max_capacity(CAPACITY)
                .time_to_live(ttl)
                .build()
        };
        Self {
            hash: KeyedHash::random(),
            good: (!ttl.is_zero()).then(cache),
            under_way: Mutex::default(),
        }
    }

    /// The key of a login.
    pub(super) fn key(&self, name: &str, password: &Secret) -> LoginKey {
        LoginKey(
            self.hash
                .of([name.as_bytes(), password.expose().as_bytes()]),
        )
    }

    /// The user, if exactly this login was good recently.
    pub(super) fn good(&self, key: LoginKey) -> Option<UserId> {
        self.good.as_ref()?.get(&key)
    }

    /// The equal login that is under way, if there is one.
    pub(super) fn under_way(&self, key: LoginKey) -> Option<Pending> {
        self.lock().get(&key).cloned()
    }

    /// Begins a login. If an equal one is under way, returns that one instead.
    pub(super) fn begin(self: &Arc<Self>, key: LoginKey) -> Result<(Lead, Pending), Pending> {
        match self.lock().entry(key) {
            Entry::Occupied(entry) => Err(entry.get().clone()),
            Entry::Vacant(entry) => {
                let (tell, pending) = watch::channel(None);
                let pending = entry.insert(Pending(pending)).clone();
                let logins = self.clone();
                Ok((Lead { logins, key, tell }, pending))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LoginKey, Pending>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Waits for the verdict.
    pub(super) async fn verdict(mut self) -> Verdict {
        let told = self.0.wait_for(Option::is_some).await;
        told.ok()
            .and_then(|verdict| verdict.clone())
            // The login ended without a verdict, by a panic. That is not the phone's fault.
            .unwrap_or(Err(AuthError::Down))
    }
}

impl Lead {
    /// Reports the verdict to all that wait, and remembers it if the login was good.
    pub(super) fn finish(self, verdict: Verdict) {
        if let (Ok(user), Some(good)) = (&verdict, &self.logins.good) {
            good.insert(self.key, user.clone());
        }
        // Remove the entry before reporting, so that later logins do not get an old verdict.
        self.logins.lock().remove(&self.key);
        self.tell.send_replace(Some(verdict));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // After a verdict, an equal login may have begun, and its entry must stay.
        if self.tell.borrow().is_none() {
            self.logins.lock().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> UserId {
        UserId::parse("@bob:example.org").unwrap()
    }

    fn finish(logins: &Arc<Logins>, key: LoginKey, verdict: Verdict) {
        logins.begin(key).unwrap().0.finish(verdict);
    }

    #[test]
    fn only_the_very_same_login_is_remembered() {
        let logins = Arc::new(Logins::new(Duration::from_mins(5)));
        let key = |name, password| logins.key(name, &Secret::new(password));
        finish(&logins, key("bob", "right"), Ok(user()));
        finish(&logins, key("bob", "wrong"), Err(AuthError::Refused));
        assert_eq!(logins.good(key("bob", "right")), Some(user()));
        for (name, password) in [
            ("bob", "wrong"),
            ("bob", ""),
            ("bob", "righ"),
            ("bobr", "ight"),
            ("", "bobright"),
            ("alice", "right"),
        ] {
            assert_eq!(logins.good(key(name, password)), None, "{name} {password}");
        }
        let other = Logins::new(Duration::from_mins(5));
        assert_ne!(other.key("bob", &Secret::new("right")), key("bob", "right"));
    }

    #[test]
    fn nothing_is_remembered_for_no_time() {
        let logins = Arc::new(Logins::new(Duration::ZERO));
        let key = logins.key("bob", &Secret::new("right"));
        finish(&logins, key, Ok(user()));
        assert_eq!(logins.good(key), None);
    }

    #[tokio::test]
    async fn equal_logins_share_a_verdict() {
        let logins = Arc::new(Logins::new(Duration::ZERO));
        let key = logins.key("bob", &Secret::new("x"));
        let (lead, first) = logins.begin(key).unwrap();
        let second = logins.begin(key).unwrap_err();
        let third = logins.under_way(key).unwrap();
        lead.finish(Err(AuthError::Refused));
        for pending in [first, second, third] {
            assert_eq!(pending.verdict().await, Err(AuthError::Refused));
        }
        assert!(logins.under_way(key).is_none());
    }

    #[tokio::test]
    async fn a_login_that_breaks_off_leaves_nobody_waiting() {
        let logins = Arc::new(Logins::new(Duration::ZERO));
        let key = logins.key("bob", &Secret::new("x"));
        let (lead, pending) = logins.begin(key).unwrap();
        drop(lead);
        assert_eq!(pending.verdict().await, Err(AuthError::Down));
        assert!(logins.begin(key).is_ok());
    }
}
