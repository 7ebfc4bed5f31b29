//! The tokens that pushes go to: a bounded cache of looked-up rows with the database behind it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use matrix2acrobits_shared::{
    ids::Selector,
    store::{
        PushTarget, Store, StoreError,
        tokens::{Report, Reporter, Saved},
    },
};
use moka::sync::Cache;

/// What the cache may weigh, in bytes: about 40,000 tokens.
const CACHE_BYTES: u64 = 24 * 1024 * 1024;
/// What an entry weighs beside its texts: the cache's own nodes and our headers.
const ENTRY_BYTES: usize = 400;
/// How soon a change that another process made is noticed.
const WATCH: Duration = Duration::from_millis(200);

/// What a pushkey stands for.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// A token to push to.
    Live(Arc<PushTarget>),
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
    /// Its phone has reported since the lookup.
    ReportedSince,
}

type Rows = Arc<[Arc<PushTarget>]>;

/// The tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    store: Store,
    /// By a keyed hash of the pushkey, whose text the rows hold anyway.
    cache: Cache<u64, Rows>,
    hasher: Arc<RandomState>,
    /// Counts invalidations: a row read before one must not be cached after it.
    generation: Arc<AtomicU64>,
    /// Once true it stays so.
    held_any: Arc<AtomicBool>,
}

impl Tokens {
    pub(crate) fn new(store: Store) -> Self {
        let cache = Cache::builder()
            .max_capacity(CACHE_BYTES)
            .weigher(|_, rows: &Rows| rows.iter().map(|row| weight(row)).sum())
            .build();
        Self {
            store,
            cache,
            hasher: Arc::default(),
            generation: Arc::default(),
            held_any: Arc::default(),
        }
    }

    /// Looks a pushkey up. `selector`, which the pusher's data carry, tells two accounts of one phone apart.
    pub(crate) async fn find(
        &self,
        app_id: &str,
        pushkey: &str,
        selector: Option<&str>,
    ) -> Result<Lookup, StoreError> {
        let rows = self.rows(pushkey).await?;
        if let Some(row) = choose(&rows, app_id, selector) {
            return Ok(if row.dead {
                Lookup::Dead
            } else {
                Lookup::Live(row.clone())
            });
        }
        if !self.held_any.load(Ordering::Relaxed) {
            if !self.store.has_held_a_token().await? {
                return Ok(Lookup::NeverHeldAny);
            }
            self.held_any.store(true, Ordering::Relaxed);
        }
        Ok(Lookup::Unknown)
    }

    async fn rows(&self, pushkey: &str) -> Result<Rows, StoreError> {
        let key = self.hasher.hash_one(pushkey);
        if let Some(rows) = self.cache.get(&key)
            && rows.iter().all(|row| row.pushkey.as_str() == pushkey)
        {
            return Ok(rows);
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let rows: Rows = self
            .store
            .targets(pushkey)
            .await?
            .into_iter()
            .map(Arc::new)
            .collect();
        // Unknown pushkeys are not cached: there is no end of them.
        if !rows.is_empty() {
            self.cache.insert(key, rows.clone());
            if self.generation.load(Ordering::SeqCst) != generation {
                self.cache.invalidate(&key);
            }
        }
        Ok(rows)
    }

    /// Remembers that PNM called this token gone.
    pub(crate) async fn mark_dead(&self, target: &PushTarget) -> Result<MarkedDead, StoreError> {
        let marked = self.store.mark_dead(target).await;
        self.invalidate([target.pushkey.as_str()]);
        Ok(if marked? {
            MarkedDead::Marked
        } else {
            MarkedDead::ReportedSince
        })
    }

    /// Saves a report; what it changes is not served from the cache afterwards.
    pub(crate) async fn save_report(&self, report: Report) -> Result<Saved, StoreError> {
        let saved = self.store.save_report(report).await?;
        self.forget(&saved);
        Ok(saved)
    }

    /// Forgets an account's tokens.
    pub(crate) async fn remove_account(&self, from: Reporter) -> Result<Saved, StoreError> {
        let saved = self.store.remove_account(from).await?;
        self.forget(&saved);
        Ok(saved)
    }

    /// Forgets one selector's tokens, or all. Returns how many rows had one.
    pub(crate) async fn remove_tokens(
        &self,
        selector: Option<Selector>,
    ) -> Result<usize, StoreError> {
        let stale = self.store.remove_tokens(selector).await?;
        self.invalidate(stale.iter().map(String::as_str));
        Ok(stale.len())
    }

    fn forget(&self, saved: &Saved) {
        if let Saved::Done { stale, .. } = saved {
            self.invalidate(stale.iter().map(String::as_str));
        }
    }

    fn invalidate<'a>(&self, pushkeys: impl IntoIterator<Item = &'a str>) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        for pushkey in pushkeys {
            self.cache.invalidate(&self.hasher.hash_one(pushkey));
        }
    }

    /// Empties the cache whenever another process has changed tokens. Runs for ever.
    pub(crate) async fn follow_others(self) {
        let mut ticks = tokio::time::interval(WATCH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A database that does not answer may hide a change.
            if self.store.tokens_changed_elsewhere().await.unwrap_or(true) {
                self.generation.fetch_add(1, Ordering::SeqCst);
                self.cache.invalidate_all();
            }
        }
    }
}

fn weight(row: &PushTarget) -> u32 {
    let texts =
        row.selector.as_str().len() + row.app_id.as_str().len() + row.pushkey.as_str().len();
    u32::try_from(texts + ENTRY_BYTES).unwrap_or(u32::MAX)
}

/// The row that a push is for. The homeserver can deliver with stale data, so what it says narrows the
/// choice as far as it fits; among equals a live row goes first, then the latest report.
fn choose<'a>(
    rows: &'a [Arc<PushTarget>],
    app_id: &str,
    selector: Option<&str>,
) -> Option<&'a Arc<PushTarget>> {
    let same_app = |row: &PushTarget| row.app_id.as_str() == app_id;
    let exact = |row: &PushTarget| same_app(row) && selector == Some(row.selector.as_str());
    let best = |fits: &dyn Fn(&PushTarget) -> bool| {
        rows.iter()
            .filter(|row| fits(row))
            .min_by_key(|row| row.dead)
    };
    best(&exact)
        .or_else(|| best(&same_app))
        .or_else(|| best(&|_| true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use matrix2acrobits_shared::ids::{AppId, Pushkey};

    fn row(row_id: i64, app: &str, selector: &str, dead: bool) -> Arc<PushTarget> {
        Arc::new(PushTarget {
            row_id,
            report: 1,
            selector: Selector::parse(selector).unwrap(),
            app_id: AppId::parse(app).unwrap(),
            pushkey: Pushkey::parse("k").unwrap(),
            dead,
        })
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
}
