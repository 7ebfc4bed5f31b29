//! Makes the wanted pushers of pairs follow the rows that hold them, and writes what has changed: where every
//! transaction that touches a token or a pusher ends.

use std::collections::HashMap;

use super::{Pair, PairFacts, Result, Transaction};
use crate::rules::{
    jobs::Job,
    pushers::{self, Change, Holder, Planned, Pusher},
};

/// The pushers of some pairs, as they were read and as they are to be.
#[derive(Debug)]
pub(super) struct Pairs {
    all: Vec<PairState>,
    places: HashMap<(String, String), usize>,
}

/// One pair.
#[derive(Debug)]
pub(super) struct PairState {
    pub(super) holders: Vec<Holder>,
    /// In the order of `marks`.
    pub(super) pushers: Vec<Pusher>,
    marks: Vec<Mark>,
}

/// What of a pusher has to be written.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    pusher: bool,
    job: bool,
    new_job: Option<i64>,
    job_gone: Option<i64>,
}

impl Pairs {
    /// Locks pairs and reads what there is of them.
    pub(super) async fn load(tx: &mut dyn Transaction, pairs: &[Pair<'_>]) -> Result<Self> {
        let mut wanted = pairs.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(Self {
                all: Vec::new(),
                places: HashMap::new(),
            });
        }
        tx.lock_pairs(&wanted).await?;
        let all = tx.pairs(&wanted).await?.into_iter().map(PairState::from);
        let key = |pair: &Pair<'_>| (pair.app_id.to_owned(), pair.pushkey.to_owned());
        Ok(Self {
            all: all.collect(),
            places: wanted.iter().map(key).zip(0..).collect(),
        })
    }

    /// Those of the pairs that these pushers have.
    pub(super) async fn load_of(tx: &mut dyn Transaction, ids: &[i64]) -> Result<Self> {
        let pairs = tx.pairs_of(ids).await?;
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(a, p)| Pair::from((a.as_str(), p.as_str())))
            .collect();
        Self::load(tx, &pairs).await
    }

    /// What is known of a pair that was asked for.
    pub(super) fn get(&mut self, pair: Pair<'_>) -> Option<&mut PairState> {
        let place = self
            .places
            .get(&(pair.app_id.to_owned(), pair.pushkey.to_owned()))?;
        self.all.get_mut(*place)
    }

    /// The pair with this pusher, and the pusher's place in it.
    pub(super) fn find(&mut self, id: i64) -> Option<(&mut PairState, usize)> {
        self.all.iter_mut().find_map(|pair| {
            let at = pair.pushers.iter().position(|it| it.id == id)?;
            Some((pair, at))
        })
    }

    /// Writes what has changed.
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
    /// Has the pushers follow the rows; `touched` is the row whose phone reports, or whose mapping changes, at
    /// this moment.
    pub(super) fn settle(&mut self, pair: Pair<'_>, touched: Option<i64>, now: i64) {
        for planned in pushers::plan(&self.holders, &self.pushers, touched, now) {
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

    /// Changes the pusher at this place, and has its job run where the change needs it.
    pub(super) fn change(&mut self, at: usize, change: &Change, now: i64) {
        self.pushers[at].apply(change, now);
        self.marks[at].pusher = true;
        if change.runs_job() {
            self.run(at, now);
        } else if matches!(change, Change::Dropped) {
            // Nobody wants any more what a dead letter could not do.
            self.discard_dead_letter(at);
        }
    }

    /// Has its job run.
    pub(super) fn run(&mut self, at: usize, now: i64) {
        let (pusher, mark) = (&mut self.pushers[at], &mut self.marks[at]);
        match &mut pusher.job {
            Some(job) if mark.job_gone.is_none() => {
                job.wake(now);
                mark.job = true;
            }
            _ => mark.new_job = (pusher.id != 0).then_some(now),
        }
    }

    /// If it gets a job in this transaction, that one waits until then.
    pub(super) fn delay(&mut self, at: usize, until: i64) {
        let new_job = &mut self.marks[at].new_job;
        *new_job = new_job.map(|run_at| run_at.max(until));
    }

    /// Changes its job in another way.
    pub(super) fn change_job(&mut self, at: usize, change: impl FnOnce(&mut Job)) {
        if let Some(job) = &mut self.pushers[at].job {
            change(job);
            self.marks[at].job = true;
        }
    }

    /// Its job is done.
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
    /// The row whose phone reports, or whose mapping changes, at this moment.
    pub(super) row: Option<i64>,
    /// The user whose phone reports.
    pub(super) reporter: Option<&'a str>,
}

impl<'a> Touched<'a> {
    /// One that a row has left.
    pub(super) fn left(pair: Pair<'a>) -> Self {
        Self {
            pair,
            row: None,
            reporter: None,
        }
    }
}

/// Settles all these, one after the other.
pub(super) async fn settle(tx: &mut dyn Transaction, touched: &[Touched<'_>]) -> Result<()> {
    let now = tx.now();
    let pairs: Vec<_> = touched.iter().map(|it| it.pair).collect();
    let mut pairs = Pairs::load(tx, &pairs).await?;
    for it in touched {
        if let Some(state) = pairs.get(it.pair) {
            let holders = &state.holders;
            let held = it.row.filter(|row| holders.iter().any(|h| h.row == *row));
            // A later report of the same transaction may have taken the token out of that row again.
            let by_user = || {
                holders
                    .iter()
                    .rfind(|h| Some(h.user_id.as_str()) == it.reporter)
            };
            let row = held.or_else(|| by_user().map(|h| h.row));
            state.settle(it.pair, row, now);
        }
    }
    let overtaken = pairs.overtaken(touched);
    pairs.save(tx).await?;
    if !overtaken.is_empty() {
        tx.touch_phones(&overtaken).await?;
    }
    Ok(())
}

impl Pairs {
    /// Rows that were reported, but are not the last of their user's with that token: they are now. Returns their
    /// new times. (Times are whole seconds, so the next one has to do.)
    fn overtaken(&mut self, touched: &[Touched<'_>]) -> Vec<(i64, i64)> {
        let mut overtaken = Vec::new();
        for it in touched.iter().filter(|it| it.reporter.is_some()) {
            let Some((state, row)) = self.get(it.pair).zip(it.row) else {
                continue;
            };
            let Some(at) = state.holders.iter().position(|it| it.row == row) else {
                continue;
            };
            let user = state.holders[at].user_id.clone();
            let Some(last) = state.holders.iter().rfind(|it| it.user_id == user) else {
                continue;
            };
            if last.row != row {
                let updated_at = last.updated_at + 1;
                let mut holder = state.holders.remove(at);
                holder.updated_at = updated_at;
                overtaken.push((row, updated_at));
                state.holders.push(holder);
            }
        }
        overtaken
    }
}
