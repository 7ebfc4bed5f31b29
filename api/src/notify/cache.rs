//! The tokens that pushes go to: a bounded cache of what was found, with the database behind it.
//!
//! A request says nearly all that is known of a token: its pushkey, app id and, by `data.selector`, its account. So the
//! cache does not store rows. It stores the fact that a row already matches the request, in 80 bytes a token.
//!
//! After a possible gap in the change feed, entries are not dropped but marked as outdated. The database is asked again, and
//! only if it does not respond does an outdated entry still ring its phone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use matrix2acrobits_shared::{
    flow::{
        PushTarget, TargetRow,
        feed::{Changed, Freshness},
    },
    ids::{AppId, Pushkey, Selector},
};
use matrix2acrobits_store::{Store, StoreError};
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::{
    keyed_hash::{GROUPS, Hashed, KeyedHash},
    repeats::Repeats,
};

/// What the cache may weigh, in bytes: about 800,000 tokens.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// What a token weighs in it, with the cache's own bookkeeping (a test measures it).
const ENTRY_BYTES: u64 = 80;
/// What a row weighs beside its texts where it has to be kept whole.
const ROW_BYTES: usize = 200;
/// How many tokens are read at a time at start.
const PAGE: u32 = 500;

/// What a pushkey stands for.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// A token to push to.
    Live(PushTarget),
    /// PNM called it gone, and its phone has not reported since.
    Dead,
    /// No phone reported it, or the account was removed.
    Unknown,
    /// This database has never held any token: it may be a lost volume.
    NeverHeldAny,
}

/// What became of the word that a token is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkedDead {
    /// It counts as dead until its phone reports.
    Marked,
    /// Its phone has reported since PNM was asked.
    ReportedSince,
}

/// What was found for a pushkey when it was last looked up; only what can be pushed to.
#[derive(Debug, Clone)]
struct Found {
    /// Stands for the app id and selector of that request.
    asked: u32,
    /// The age in which it was read.
    age: u32,
    target: Target,
}

#[derive(Debug, Clone)]
enum Target {
    /// A row with that pushkey, app id and selector.
    AsAsked {
        row_id: i64,
        report: i64,
        owned: bool,
    },
    /// Another one: the request had no selector, or stale data.
    Other(Arc<PushTarget>),
}

#[derive(Debug, Clone)]
struct Weigh;

impl Weighter<Hashed, Found> for Weigh {
    fn weight(&self, _: &Hashed, found: &Found) -> u64 {
        ENTRY_BYTES
            + match &found.target {
                Target::AsAsked { .. } => 0,
                Target::Other(row) => weight(row),
            }
    }
}

type Founds = Cache<Hashed, Found, Weigh, DefaultHashBuilder, DefaultLifecycle<Hashed, Found>>;

/// A cache for at most `bytes`.
fn cache(bytes: u64) -> Founds {
    let mut options = OptionsBuilder::new();
    options
        .estimated_items_capacity(usize::try_from(bytes / ENTRY_BYTES).unwrap_or(usize::MAX))
        .weight_capacity(bytes)
        // What is remembered of entries that are gone takes as much room as an entry.
        .ghost_allocation(0.0);
    match options.build() {
        Ok(options) => {
            let hasher = DefaultHashBuilder::default();
            Cache::with_options(options, Weigh, hasher, DefaultLifecycle::default())
        }
        // Both that it requires are set above.
        Err(_) => Cache::with_weighter(1, bytes, Weigh),
    }
}

/// The tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    repeats: Arc<Repeats>,
    found: Founds,
    hash: KeyedHash,
    /// Counts how often all that was remembered became doubtful.
    age: AtomicU32,
    /// Counts changes, apart for each group of pushkeys: what was found before one must not be cached after it.
    changes: [AtomicU64; GROUPS],
    /// The age in which this database was last found to have held a token. In another age it may be another database.
    held_any: AtomicU64,
}

impl Tokens {
    pub(crate) fn new(store: Store, repeats: Arc<Repeats>) -> Self {
        let inner = Arc::new(Inner {
            store,
            repeats,
            found: cache(CACHE_BYTES),
            hash: KeyedHash::random(),
            age: AtomicU32::new(0),
            changes: [const { AtomicU64::new(0) }; GROUPS],
            held_any: AtomicU64::new(u64::MAX),
        });
        // The store holds the listener, and the cache the store.
        let told = Arc::downgrade(&inner);
        inner.store.listen(move |changed| {
            if let Some(inner) = told.upgrade() {
                inner.forget(changed);
            }
        });
        Self(inner)
    }

    /// Looks a pushkey up. `selector`, which the pusher's data carry, tells two accounts of one phone apart.
    pub(crate) async fn find(
        &self,
        app_id: &str,
        pushkey: &str,
        selector: Option<&str>,
    ) -> Result<Lookup, StoreError> {
        let (key, asked) = (self.key(pushkey), self.asked(app_id, selector));
        let age = self.0.age.load(Ordering::SeqCst);
        let found = self.0.found.get(&key).filter(|entry| entry.asked == asked);
        // While nobody tells us of changes, the database is asked; what is remembered serves where it does not answer.
        let doubtful = match self.0.store.freshness() {
            Freshness::Fresh => found.as_ref().is_some_and(|found| found.age != age),
            Freshness::Unknown => true,
            Freshness::NoDatabase => false,
        };
        let remembered = found.and_then(|entry| entry.target.unpack(app_id, pushkey, selector));
        let remembered = match remembered {
            Some(target) if !doubtful => return Ok(Lookup::Live(target)),
            remembered => remembered,
        };
        let changes = self.0.changes_of(key);
        let rows = match self.0.store.targets(pushkey).await {
            Ok(rows) => rows,
            Err(error) => match remembered.filter(|_| error.is_environment() || error.is_busy()) {
                Some(target) => return Ok(Lookup::Live(target)),
                None => return Err(error),
            },
        };
        if let Some(row) = choose(&rows, app_id, selector) {
            if row.dead {
                self.0.found.remove(&key);
                return Ok(Lookup::Dead);
            }
            let target = Target::pack(row, app_id, selector);
            self.0.found.insert(key, Found { asked, age, target });
            if self.0.changes_of(key) != changes {
                self.0.found.remove(&key);
            }
            return Ok(Lookup::Live(row.clone()));
        }
        self.0.found.remove(&key);
        // Unknown pushkeys are not cached: there is no end of them.
        if !self.0.is_known_to_have_held_any() {
            let age = self.0.age.load(Ordering::SeqCst);
            // Boxed: it needs ten times the room of all the rest, and every push would carry that along.
            if !Box::pin(self.0.store.has_held_a_token()).await? {
                return Ok(Lookup::NeverHeldAny);
            }
            self.0.held_any.store(age.into(), Ordering::SeqCst);
        }
        Ok(Lookup::Unknown)
    }

    fn key(&self, pushkey: &str) -> Hashed {
        self.0.key(pushkey)
    }

    fn asked(&self, app_id: &str, selector: Option<&str>) -> u32 {
        let app_id = app_id.as_bytes();
        let hashed = match selector {
            Some(selector) => self.0.hash.of([app_id, selector.as_bytes()]),
            None => self.0.hash.of([app_id]),
        };
        hashed.quarter()
    }

    /// Remembers that PNM, which was asked at `asked`, called this token gone. `pushed_to` is the selector that the pusher
    /// carries.
    pub(crate) async fn mark_dead(
        &self,
        target: &PushTarget,
        pushed_to: Option<&str>,
        asked: Instant,
    ) -> Result<MarkedDead, StoreError> {
        // The database knows only of reports that changed something.
        if self.0.repeats.reported_since(target.row_id, asked) {
            return Ok(MarkedDead::ReportedSince);
        }
        let marked = self.0.store.mark_dead(target, pushed_to).await?;
        Ok(if marked {
            MarkedDead::Marked
        } else {
            MarkedDead::ReportedSince
        })
    }

    /// Fills the cache with the tokens of the latest phones, at start: what waited for us meanwhile comes now.
    pub(crate) async fn warm_up(self) {
        let cache = &self.0.found;
        let mut before = i64::MAX;
        // Not to the brim, or it throws out what it has just been given.
        while cache.weight() < CACHE_BYTES / 16 * 15 {
            let age = self.0.age.load(Ordering::SeqCst);
            let changes = self.0.changes.each_ref().map(count);
            let Ok(Some((last, page))) = self.0.store.live_targets(before, PAGE).await else {
                return;
            };
            before = last;
            for row in &page {
                let (app_id, selector) = (row.app_id.as_str(), Some(row.selector.as_str()));
                let found = Found {
                    asked: self.asked(app_id, selector),
                    age,
                    target: Target::pack(row, app_id, selector),
                };
                let key = self.key(row.pushkey.as_str());
                cache.insert(key, found);
                if self.0.changes_of(key) != changes[key.group()] {
                    cache.remove(&key);
                }
            }
        }
    }
}

impl Inner {
    fn key(&self, pushkey: &str) -> Hashed {
        self.hash.of([pushkey.as_bytes()])
    }

    fn changes_of(&self, key: Hashed) -> u64 {
        count(&self.changes[key.group()])
    }

    /// Whether this database has held a token, as far as we know without asking. While nobody tells us of changes,
    /// somebody may have made a new database under the old name.
    fn is_known_to_have_held_any(&self) -> bool {
        let age = self.age.load(Ordering::SeqCst);
        self.store.freshness() == Freshness::Fresh
            && self.held_any.load(Ordering::SeqCst) == u64::from(age)
    }

    /// Forgets what a commit made untrue.
    fn forget(&self, changed: Changed<'_>) {
        match changed {
            Changed::Everything => {
                self.age.fetch_add(1, Ordering::SeqCst);
            }
            Changed::Pushkeys(pushkeys) => {
                for pushkey in pushkeys {
                    let key = self.key(pushkey);
                    self.changes[key.group()].fetch_add(1, Ordering::SeqCst);
                    self.found.remove(&key);
                }
            }
        }
    }
}

fn count(changes: &AtomicU64) -> u64 {
    changes.load(Ordering::SeqCst)
}

impl Target {
    fn pack(row: &PushTarget, app_id: &str, selector: Option<&str>) -> Self {
        if row.app_id.as_str() == app_id && Some(row.selector.as_str()) == selector {
            Self::AsAsked {
                row_id: row.row_id,
                report: row.report,
                owned: row.owned,
            }
        } else {
            Self::Other(Arc::new(row.clone()))
        }
    }

    fn unpack(&self, app_id: &str, pushkey: &str, selector: Option<&str>) -> Option<PushTarget> {
        match self {
            Self::AsAsked {
                row_id,
                report,
                owned,
            } => Some(PushTarget {
                row_id: *row_id,
                report: *report,
                owned: *owned,
                selector: Selector::parse(selector?).ok()?,
                app_id: AppId::parse(app_id).ok()?,
                pushkey: Pushkey::parse(pushkey).ok()?,
                dead: false,
            }),
            Self::Other(row) => Some(PushTarget::clone(row)),
        }
    }
}

fn weight(row: &PushTarget) -> u64 {
    let texts =
        row.selector.as_str().len() + row.app_id.as_str().len() + row.pushkey.as_str().len();
    u64::try_from(texts + ROW_BYTES).unwrap_or(u64::MAX)
}

/// The row that a push is for. The homeserver can deliver with stale data, so what it says narrows the
/// choice as far as it fits; among equals a live row goes first, then the latest report. Where the phone was
/// provisioned anew, its user has a later row with that token, whatever the pusher says.
fn choose<'a>(
    rows: &'a [TargetRow],
    app_id: &str,
    selector: Option<&str>,
) -> Option<&'a PushTarget> {
    let best = |fits: &dyn Fn(&TargetRow) -> bool| {
        rows.iter()
            .filter(|row| fits(row))
            .min_by_key(|row| row.target.dead)
    };
    let same_app = |row: &TargetRow| row.target.app_id.as_str() == app_id;
    let exact = best(&|row| same_app(row) && selector == Some(row.target.selector.as_str()));
    let latest_of_user = exact.filter(|row| row.user.is_some()).and_then(|exact| {
        best(&|row| same_app(row) && row.user == exact.user).filter(|row| !row.target.dead)
    });
    latest_of_user
        .or(exact)
        .or_else(|| best(&same_app))
        .or_else(|| best(&|_| true))
        .map(|row| &row.target)
}

#[cfg(test)]
mod tests {
    use matrix2acrobits_shared::ids::UserId;

    use super::*;

    fn row(row_id: i64, app: &str, selector: &str, dead: bool) -> TargetRow {
        TargetRow {
            target: PushTarget {
                row_id,
                report: 1,
                selector: Selector::parse(selector).unwrap(),
                app_id: AppId::parse(app).unwrap(),
                pushkey: Pushkey::parse("k").unwrap(),
                owned: true,
                dead,
            },
            user: None,
        }
    }

    #[test]
    fn what_is_packed_is_what_was_found() {
        let row = row(1, "app", "a", false).target;
        for (app, selector, as_asked) in [
            ("app", Some("a"), true),
            ("app", Some("old"), false),
            ("app", None, false),
            ("old", Some("a"), false),
        ] {
            let target = Target::pack(&row, app, selector);
            assert_eq!(matches!(target, Target::AsAsked { .. }), as_asked);
            assert_eq!(target.unpack(app, "k", selector), Some(row.clone()));
        }
    }

    #[test]
    fn the_cache_takes_no_more_than_it_may() {
        const MAY: u64 = 4 * 1024 * 1024;
        let (cache, hash) = (cache(MAY), KeyedHash::random());
        for number in 0..200_000_u64 {
            let (row_id, report) = (number.cast_signed(), 1);
            let target = Target::AsAsked {
                row_id,
                report,
                owned: true,
            };
            let found = Found {
                asked: 0,
                age: 0,
                target,
            };
            cache.insert(hash.of([&number.to_ne_bytes()]), found);
        }
        let takes = u64::try_from(cache.memory_used().total()).unwrap();
        let tokens = u64::try_from(cache.len()).unwrap();
        assert!(tokens > 40_000, "{tokens}");
        // Its tables double when they are full, so for a while half of them may be empty.
        assert!(takes / tokens <= 2 * ENTRY_BYTES, "{takes} for {tokens}");
    }

    #[test]
    fn data_narrow_the_choice_as_far_as_they_fit() {
        let rows = [
            row(1, "app", "a", false),
            row(2, "app", "b", true),
            row(3, "old", "c", false),
        ];
        for (app, selector, expected) in [
            ("app", Some("a"), 1),
            ("app", Some("b"), 2),
            ("app", Some("gone"), 1),
            ("app", None, 1),
            ("old", Some("a"), 3),
            ("none", Some("b"), 1),
        ] {
            assert_eq!(
                choose(&rows, app, selector).unwrap().row_id,
                expected,
                "{app} {selector:?}"
            );
        }
        assert!(choose(&[], "app", None).is_none());
        let dead_first = [row(1, "app", "a", true), row(2, "app", "b", false)];
        assert_eq!(choose(&dead_first, "app", None).unwrap().row_id, 2);
    }

    #[test]
    fn a_phone_that_was_provisioned_anew_is_pushed_to_by_its_later_row() {
        let of = |row_id, selector, user: &str, dead| TargetRow {
            user: Some(UserId::parse(user).unwrap()),
            ..row(row_id, "app", selector, dead)
        };
        // The latest report comes first.
        let (old, new) = (of(1, "old", "@bob:x", false), of(2, "new", "@bob:x", false));
        let other = of(3, "other", "@ann:x", false);
        for (rows, selector, expected) in [
            (vec![new.clone(), old.clone()], "old", 2),
            (vec![old.clone(), new.clone()], "new", 1),
            (vec![other.clone(), new.clone(), old.clone()], "old", 2),
            (vec![other, old.clone()], "old", 1),
            (vec![of(2, "new", "@bob:x", true), old], "new", 1),
        ] {
            let chosen = choose(&rows, "app", Some(selector)).unwrap();
            assert_eq!(chosen.row_id, expected, "{selector} {rows:?}");
        }
    }
}
