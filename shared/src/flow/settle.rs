//! Makes the wanted pushers of pairs follow the rows that hold the pairs, and writes the changes. Every transaction
//! that touches a token or a pusher ends here.

use std::collections::BTreeMap;

use super::{OwnedPair, Pair, PairFacts, Result, Transaction};
use crate::rules::{
    jobs::Job,
    pushers::{self, Change, Holder, Planned, Pusher},
};

/// The pushers of some pairs, with all changes so far.
#[derive(Debug)]
pub(super) struct Pairs {
    /// Sorted.
    keys: Vec<OwnedPair>,
    /// In the same order as `keys`.
    all: Vec<PairState>,
}

/// One pair.
#[derive(Debug)]
pub(super) struct PairState {
    pub(super) holders: Vec<Holder>,
    /// In the same order as `marks`.
    pub(super) pushers: Vec<Pusher>,
    marks: Vec<Mark>,
}

/// Which parts of a pusher have to be written.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    pusher: bool,
    job: bool,
    new_job: Option<i64>,
    job_gone: Option<i64>,
}

impl Pairs {
    /// Locks and reads pairs.
    pub(super) async fn load(tx: &mut dyn Transaction, pairs: &[Pair<'_>]) -> Result<Self> {
        let mut wanted = pairs.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(Self {
                keys: Vec::new(),
                all: Vec::new(),
            });
        }
        tx.lock_pairs(&wanted).await?;
        let all = tx.pairs(&wanted).await?.into_iter().map(PairState::from);
        let key = |pair: &Pair<'_>| (pair.app_id.to_owned(), pair.pushkey.to_owned());
        Ok(Self {
            keys: wanted.iter().map(key).collect(),
            all: all.collect(),
        })
    }

    /// Locks and reads the pairs of these pushers.
    pub(super) async fn load_of(tx: &mut dyn Transaction, ids: &[i64]) -> Result<Self> {
        let pairs = tx.pairs_of(ids).await?;
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(a, p)| Pair::from((a.as_str(), p.as_str())))
            .collect();
        Self::load(tx, &pairs).await
    }

    /// The state of a pair that was loaded.
    pub(super) fn get(&mut self, pair: Pair<'_>) -> Option<&mut PairState> {
        let by_pair = |(app_id, pushkey): &OwnedPair| Pair { app_id, pushkey }.cmp(&pair);
        let place = self.keys.binary_search_by(by_pair).ok()?;
        self.all.get_mut(place)
    }

    /// The pair with this pusher, and the pusher's place in it.
    pub(super) fn find(&mut self, id: i64) -> Option<(&mut PairState, usize)> {
        self.all.iter_mut().find_map(|pair| {
            let at = pair.pushers.iter().position(|pusher| pusher.id == id)?;
            Some((pair, at))
        })
    }

    /// Writes the changes.
    pub(super) async fn save(self, tx: &mut dyn Transaction) -> Result<()> {
        let now = tx.now();
        let (mut new, mut old, mut jobs, mut gone, mut fresh) =
            (vec![], vec![], vec![], vec![], vec![]);
        for pair in &self.all {
            for (pusher, mark) in pair.pushers.iter().zip(&pair.marks) {
                if pusher.id == 0 {
                    new.push(pusher);
                    continue;
                }
                if mark.pusher {
                    old.push(pusher);
                }
                fresh.extend(mark.new_job.map(|run_at| (pusher.id, run_at)));
                jobs.extend(pusher.job.as_ref().filter(|_| mark.job));
                gone.extend(mark.job_gone);
            }
        }
        if !gone.is_empty() {
            tx.delete_jobs(&gone).await?;
        }
        if !old.is_empty() {
            tx.update_pushers(&old).await?;
        }
        if !new.is_empty() {
            let ids = tx.insert_pushers(&new).await?;
            fresh.extend(ids.into_iter().map(|id| (id, now)));
        }
        if !jobs.is_empty() {
            tx.update_jobs(&jobs).await?;
        }
        if !fresh.is_empty() {
            tx.insert_jobs(&fresh).await?;
        }
        Ok(())
    }
}

impl From<PairFacts> for PairState {
    fn from(facts: PairFacts) -> Self {
        Self {
            marks: vec![Mark::default(); facts.pushers.len()],
            holders: facts.holders,
            pushers: facts.pushers,
        }
    }
}

impl PairState {
    /// Makes the pushers follow the rows. `touched` is the row whose phone reports, or whose mapping changes, in this
    /// transaction.
    pub(super) fn settle(
        &mut self,
        pair: Pair<'_>,
        touched: Option<i64>,
        gives_way: bool,
        now: i64,
    ) {
        let mut plan = pushers::plan(&self.holders, &self.pushers, touched, now);
        if gives_way && self.holders.last().map(|holder| holder.row) != touched {
            pushers::give_way(&mut plan, &self.pushers);
        }
        for planned in plan {
            match planned {
                Planned::Change(at, change) => self.change(at, &change, now),
                Planned::Again(at) => self.run(at, now),
                Planned::Insert { holder, claim } => {
                    let holder = &self.holders[holder];
                    let pusher = Pusher::new(holder, pair.app_id, pair.pushkey, claim, now);
                    self.pushers.push(pusher);
                    self.marks.push(Mark::default());
                }
            }
        }
    }

    /// Changes the pusher at this place, and makes its job run if the change needs that.
    pub(super) fn change(&mut self, at: usize, change: &Change, now: i64) {
        self.pushers[at].apply(change, now);
        self.marks[at].pusher = true;
        if change.runs_job() {
            self.run(at, now);
        } else if matches!(change, Change::Dropped) {
            // The work of a dead letter is no longer wanted.
            self.discard_dead_letter(at);
        }
    }

    /// Makes the worker compare this user's pusher with the homeserver's, if it is wanted.
    pub(super) fn check_users(&mut self, user_id: &str, now: i64) {
        let wanted = |pusher: &Pusher| pusher.user_id == user_id && pusher.is_present();
        if let Some(at) = self.pushers.iter().position(wanted) {
            self.change(at, &Change::Check, now);
        }
    }

    /// Makes the pusher's job run.
    pub(super) fn run(&mut self, at: usize, now: i64) {
        // A new job takes the place of a dead letter, because a job's name tells since when its pusher waits.
        self.discard_dead_letter(at);
        let (pusher, mark) = (&mut self.pushers[at], &mut self.marks[at]);
        match &mut pusher.job {
            Some(job) if mark.job_gone.is_none() => {
                // A phone that reports again during an outage writes nothing.
                mark.job |= job.wake(now);
            }
            _ => mark.new_job = (pusher.id != 0).then_some(now),
        }
    }

    /// If the pusher gets a new job in this transaction, that job is not due before this time.
    pub(super) fn delay(&mut self, at: usize, until: i64) {
        let new_job = &mut self.marks[at].new_job;
        *new_job = new_job.map(|run_at| run_at.max(until));
    }

    /// Changes the pusher's job.
    pub(super) fn change_job(&mut self, at: usize, change: impl FnOnce(&mut Job)) {
        if let Some(job) = &mut self.pushers[at].job {
            change(job);
            self.marks[at].job = true;
        }
    }

    /// Deletes the pusher's job, which is done.
    pub(super) fn delete_job(&mut self, at: usize) {
        if let Some(job) = self.pushers[at].job.take() {
            self.marks[at].job_gone = Some(job.key);
            self.marks[at].job = false;
        }
    }

    fn discard_dead_letter(&mut self, at: usize) {
        if self.pushers[at]
            .job
            .as_ref()
            .is_some_and(|job| !job.is_live())
        {
            self.delete_job(at);
        }
    }
}

/// A pair whose pushers have to follow the rows that hold it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touched<'a> {
    pub(super) pair: Pair<'a>,
    /// The row whose phone reports, or whose mapping changes, in this transaction.
    pub(super) row: Option<i64>,
    /// The user whose phone reports.
    pub(super) reporter: Option<&'a str>,
    /// Nobody reports now: the operator says whose the row is, or brings it from another program. Unless it is the latest
    /// row with the token, its user gives way to those who have a pusher already.
    pub(super) gives_way: bool,
}

impl<'a> Touched<'a> {
    /// A pair that a row no longer holds.
    pub(super) fn left(pair: Pair<'a>) -> Self {
        Self {
            pair,
            row: None,
            reporter: None,
            gives_way: false,
        }
    }
}

/// Settles all these pairs, one after the other.
pub(super) async fn settle(tx: &mut dyn Transaction, touched: &[Touched<'_>]) -> Result<()> {
    let now = tx.now();
    let pairs: Vec<_> = touched.iter().map(|place| place.pair).collect();
    let mut pairs = Pairs::load(tx, &pairs).await?;
    for place in touched {
        if let Some(state) = pairs.get(place.pair) {
            let holders = &state.holders;
            let held = place
                .row
                .filter(|row| holders.iter().any(|h| h.row == *row));
            // A later report in the same transaction may have removed the token from that row again.
            let by_user = || {
                holders
                    .iter()
                    .rfind(|h| Some(h.user_id.as_str()) == place.reporter)
            };
            let row = held.or_else(|| by_user().map(|h| h.row));
            state.settle(place.pair, row, place.gives_way, now);
        }
    }
    let (overtaken, reordered) = pairs.overtaken(touched, now);
    for pushkey in reordered {
        // Caches remember which row is the latest.
        tx.changed(pushkey);
    }
    pairs.save(tx).await?;
    if !overtaken.is_empty() {
        tx.touch_phones(&overtaken).await?;
    }
    Ok(())
}

impl Pairs {
    /// Makes each reported row the latest of those with the same token. Returns the rows with their new times, and the
    /// tokens of which another row is the latest now. Times are whole seconds, so a row gets the second after the one
    /// that was latest.
    fn overtaken<'t>(
        &mut self,
        touched: &[Touched<'t>],
        now: i64,
    ) -> (Vec<(i64, i64)>, Vec<&'t str>) {
        let (mut overtaken, mut reordered) = (BTreeMap::new(), Vec::new());
        for place in touched.iter().filter(|place| !place.gives_way) {
            let Some((state, row)) = self.get(place.pair).zip(place.row) else {
                continue;
            };
            let Some(last) = state.holders.last() else {
                continue;
            };
            if last.row == row {
                // Its time may have been written just now.
                if last.updated_at == now && state.holders.len() > 1 {
                    reordered.push(place.pair.pushkey);
                }
                continue;
            }
            let updated_at = last.updated_at + 1;
            // A row of nobody holds nothing, nor does one from which a later report has taken the token again.
            let Some(at) = state.holders.iter().position(|holder| holder.row == row) else {
                continue;
            };
            overtaken.insert(row, updated_at);
            reordered.push(place.pair.pushkey);
            let mut holder = state.holders.remove(at);
            holder.updated_at = updated_at;
            state.holders.push(holder);
        }
        (overtaken.into_iter().collect(), reordered)
    }
}
