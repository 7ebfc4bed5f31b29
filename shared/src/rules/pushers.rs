//! Decides which pushers the homeserver should hold, from the rows that hold a pushkey. Transactions change pushers
//! only by a [`Change`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::jobs::Job;
use crate::ids::{AppId, Pushkey, Selector, UserId};

/// A row whose time is further ahead than this was written by a wrong clock, in seconds.
const CLOCK_SLACK: i64 = 60;
/// The longest PUSHER_REFRESH_INTERVAL, in seconds: a year.
const LONGEST_REFRESH: i64 = 366 * 24 * 3600;

/// Whether the homeserver should hold a pusher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// The homeserver should hold the pusher.
    Present,
    /// The homeserver should not hold the pusher.
    Absent,
}

/// What we know about a pusher at the homeserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The pusher is not as wanted, or we do not know. A job takes care of it.
    Pending,
    /// The homeserver holds the pusher.
    Registered,
    /// The homeserver refused the pusher. A dead letter keeps the reason.
    Failed,
    /// The homeserver does not hold the pusher.
    Removed,
}

impl State {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Registered, Self::Failed, Self::Removed];

    /// From the word in the database.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// The word in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Registered => "registered",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }
}

/// A live row that holds a pushkey, with its user.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Holder {
    /// The phone's row.
    pub row: i64,
    /// The user who owns the row.
    pub user_id: String,
    /// The account on the phone.
    pub selector: String,
    /// When the row was last reported, in seconds since 1970.
    pub updated_at: i64,
}

/// A pusher's row and its job.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pusher {
    /// The row's id. 0 until it is stored.
    pub id: i64,
    /// The user whose notifications the pusher carries.
    pub user_id: String,
    /// The app.
    pub app_id: String,
    /// The token.
    pub pushkey: String,
    /// The account on the phone.
    pub selector: String,
    /// Whether the homeserver should hold the pusher.
    pub wanted: Wanted,
    /// What we know about the pusher at the homeserver.
    pub state: State,
    /// Counts the changes of what is wanted.
    pub generation: i64,
    /// This user's place in the order in which users reported the pushkey.
    pub claim: i64,
    /// The homeserver may already hold the pusher, so look before setting it.
    pub ask_first: bool,
    /// Failed attempts since the last success.
    pub attempts: i64,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// The worker's settings that the pusher was registered with.
    pub registered_as: Option<String>,
    /// From this time on, a report makes the worker check the pusher, in seconds since 1970.
    pub refresh_at: Option<i64>,
    /// When the row last changed, in seconds since 1970.
    pub updated_at: i64,
    /// The pusher's job.
    pub job: Option<Job>,
}

/// What a transaction does to a pusher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The pusher is wanted from now on, with this selector.
    Present {
        /// The account on the phone.
        selector: String,
        /// The place in the order of the users of the pushkey.
        claim: i64,
    },
    /// The pusher is no longer wanted.
    Absent,
    /// The pusher is no longer wanted, and the homeserver has dropped it on its own.
    Dropped,
    /// The pusher's user reported the pushkey after the others.
    Claim(i64),
    /// The pusher was refused, and its phone reports again.
    Revive,
    /// The pusher has to be compared with the homeserver's.
    Check,
    /// The pusher carries earlier settings, and has to be set again if it differs.
    Renew,
    /// The homeserver holds the pusher.
    Registered {
        /// The worker's settings that the pusher carries.
        settings: String,
        /// From this time on, a report makes the worker check the pusher.
        refresh_at: i64,
    },
    /// The homeserver does not hold the pusher.
    Removed,
    /// An attempt failed.
    Retried {
        /// Why, for people.
        error: String,
        /// The homeserver may have done it all the same.
        maybe_done: bool,
    },
    /// The homeserver refuses the pusher.
    Refused {
        /// Why, for people.
        error: String,
    },
}

impl Change {
    /// Whether the pusher's job has to run because of this change.
    pub fn runs_job(&self) -> bool {
        match self {
            Self::Present { .. } | Self::Absent | Self::Revive | Self::Check | Self::Renew => true,
            Self::Dropped
            | Self::Claim(_)
            | Self::Registered { .. }
            | Self::Removed
            | Self::Retried { .. }
            | Self::Refused { .. } => false,
        }
    }
}

impl Pusher {
    /// A new pusher.
    pub fn new(holder: &Holder, app_id: &str, pushkey: &str, claim: i64, now: i64) -> Self {
        Self {
            id: 0,
            user_id: holder.user_id.clone(),
            app_id: app_id.to_owned(),
            pushkey: pushkey.to_owned(),
            selector: holder.selector.clone(),
            wanted: Wanted::Present,
            state: State::Pending,
            generation: 1,
            claim,
            ask_first: false,
            attempts: 0,
            last_error: None,
            registered_as: None,
            refresh_at: None,
            updated_at: now,
            job: None,
        }
    }

    /// Whether the homeserver should hold the pusher.
    pub fn is_present(&self) -> bool {
        self.wanted == Wanted::Present
    }

    /// Whether a report makes the worker check the pusher. A time in the future comes from a wrong clock, so such a
    /// pusher is checked as well.
    fn is_due(&self, now: i64) -> bool {
        let due = |at| now >= at || at > now + LONGEST_REFRESH;
        self.refresh_at.is_none_or(due) || self.updated_at > now + CLOCK_SLACK
    }

    fn has_live_job(&self) -> bool {
        self.job.as_ref().is_some_and(Job::is_live)
    }

    /// Applies a change to the row. The caller takes care of the job.
    pub fn apply(&mut self, change: &Change, now: i64) {
        match change {
            Change::Present { selector, claim } => {
                self.wanted = Wanted::Present;
                self.selector.clone_from(selector);
                self.claim = *claim;
                // The homeserver may hold the pusher with the user's pause, which a set must send again.
                self.ask_first |= self.state != State::Removed;
                self.start_over(State::Pending);
            }
            Change::Absent => {
                self.wanted = Wanted::Absent;
                self.start_over(State::Pending);
            }
            Change::Dropped => {
                self.wanted = Wanted::Absent;
                // A job may be about to set the pusher at this moment, and then it still has to be deleted.
                let busy = self.has_live_job();
                self.start_over(if busy { State::Pending } else { State::Removed });
            }
            Change::Claim(claim) => {
                self.claim = *claim;
                // A job that runs at this moment may have found that another user has the pusher, or may have set it.
                self.generation += 1;
                self.ask_first |= self.has_live_job();
                return;
            }
            Change::Revive => {
                self.state = State::Pending;
                self.ask_first |= self.registered_as.is_some();
                self.attempts = 0;
            }
            Change::Check => {
                self.ask_first = true;
                // A job that runs at this moment has looked too early.
                self.generation += 1;
                self.attempts = 0;
                if self.state == State::Failed || !self.is_present() {
                    self.state = State::Pending;
                }
                // `updated_at` stays, so that a replay by time can be repeated.
                return;
            }
            Change::Renew => {
                self.state = State::Pending;
                self.ask_first = true;
            }
            Change::Registered {
                settings,
                refresh_at,
            } => {
                self.registered_as = Some(settings.clone());
                self.refresh_at = Some(*refresh_at);
                self.succeed(State::Registered);
            }
            Change::Removed => self.succeed(State::Removed),
            Change::Retried { error, maybe_done } => {
                self.attempts += 1;
                self.last_error = Some(error.clone());
                self.ask_first |= maybe_done;
            }
            Change::Refused { error } => {
                self.state = State::Failed;
                self.attempts += 1;
                self.last_error = Some(error.clone());
            }
        }
        self.updated_at = now;
    }

    fn start_over(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.attempts = 0;
        self.last_error = None;
    }

    fn succeed(&mut self, state: State) {
        self.state = state;
        self.attempts = 0;
        self.last_error = None;
        self.ask_first = false;
    }
}

/// What [`plan`] decides for the pushers of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// Make a new pusher for this holder.
    Insert {
        /// The holder's place in the list.
        holder: usize,
        /// The place in the order of the users of the pushkey.
        claim: i64,
    },
    /// Apply a change to the pusher at this place in the list.
    Change(usize, Change),
    /// The pusher at this place was reported again unchanged. Its job checks whether there is something to do.
    Again(usize),
}

/// Decides which pushers an app id and pushkey should have, from the rows that hold them. The user of the touched row
/// should have a pusher from now on. A user who was displaced by another (PUSHER_APPEND=false) does not get it back
/// just because a row is still there, or the two would displace each other forever. `holders` are sorted, the latest
/// report last.
pub fn plan(
    holders: &[Holder],
    pushers: &[Pusher],
    touched: Option<i64>,
    now: i64,
) -> Vec<Planned> {
    let present = || pushers.iter().enumerate().filter(|(_, p)| p.is_present());
    let holds = |pusher: &Pusher| {
        let user_id = pusher.user_id.clone();
        holders.iter().filter(move |h| h.user_id == user_id)
    };
    let top = present().map(|(_, p)| p.claim).max().unwrap_or(0);
    let mut planned = Vec::new();

    if let Some(touched) = touched {
        // A report is a reason to try what the homeserver has refused again, and a deletion has no phone of its own.
        let user = holders
            .iter()
            .find(|h| h.row == touched)
            .map(|h| &h.user_id);
        let refused = |p: &Pusher| !p.is_present() && p.state == State::Failed;
        let deletions = pushers.iter().enumerate().filter(|(_, p)| refused(p));
        for (at, _) in deletions.filter(|(_, p)| Some(&p.user_id) != user) {
            planned.push(Planned::Change(at, Change::Check));
        }
    }

    for (at, pusher) in present() {
        if holds(pusher).next().is_none() {
            planned.push(Planned::Change(at, Change::Absent));
        }
    }

    let mut wanted = holders.iter().position(|h| Some(h.row) == touched);
    let leaving = |planned: &&Planned| matches!(planned, Planned::Change(_, Change::Absent));
    if wanted.is_none() && present().count() == planned.iter().filter(leaving).count() {
        // No user with a pusher holds the pushkey any more, so the user who reported it last gets the pusher.
        wanted = holders.len().checked_sub(1);
    }
    for (at, pusher) in present() {
        // The account was renamed on the phone, so data.selector has to follow.
        let renamed = holds(pusher).all(|h| h.selector != pusher.selector);
        if let Some(holder) = holds(pusher).next_back().filter(|_| renamed) {
            let reports = wanted.is_some_and(|at| holders[at].user_id == pusher.user_id);
            let selector = holder.selector.clone();
            // A rename alone takes nothing from another user.
            let claim = if reports { top + 1 } else { pusher.claim };
            planned.push(Planned::Change(at, Change::Present { selector, claim }));
            wanted = wanted.filter(|_| !reports);
        }
    }
    let Some(wanted) = wanted else {
        return planned;
    };
    let holder = &holders[wanted];
    let existing = pushers
        .iter()
        .enumerate()
        .find(|(_, p)| p.user_id == holder.user_id);
    match existing {
        None => planned.push(Planned::Insert {
            holder: wanted,
            claim: top + 1,
        }),
        Some((at, pusher)) if !pusher.is_present() => {
            let (selector, claim) = (holder.selector.clone(), top + 1);
            planned.push(Planned::Change(at, Change::Present { selector, claim }));
        }
        Some((at, pusher)) => {
            if pusher.claim < top {
                // Another user's pusher is about to be set, but the newest report wins. That pusher's job finds that
                // ours is newer and makes a job check ours, so ours needs no job here.
                planned.push(Planned::Change(at, Change::Claim(top + 1)));
            }
            match pusher.state {
                State::Registered if !pusher.is_due(now) => {}
                State::Registered | State::Pending => planned.push(Planned::Again(at)),
                State::Failed | State::Removed => {
                    planned.push(Planned::Change(at, Change::Revive));
                }
            }
        }
    }
    planned
}

/// Makes the user of the touched row give way to those who have a pusher already: that row is not the latest.
pub fn give_way(plan: &mut Vec<Planned>, pushers: &[Pusher]) {
    let claims = || pushers.iter().filter(|p| p.is_present()).map(|p| p.claim);
    let (Some(first), Some(top)) = (claims().min(), claims().max()) else {
        return;
    };
    plan.retain(|planned| !matches!(planned, Planned::Change(_, Change::Claim(_))));
    for planned in plan {
        if let Planned::Insert { claim, .. } | Planned::Change(_, Change::Present { claim, .. }) =
            planned
            && *claim > top
        {
            *claim = first - 1;
        }
    }
}

/// Decides what becomes of the pushers of a pair when a row of `user_id` is marked dead. `holders` are the remaining
/// rows. When the homeserver reads our rejection, it drops the pusher that it pushed to on its own (if our response
/// gets lost, it sends the notification again). Other pushers are deleted. The selector identifies the pusher that was
/// pushed to, unless several pushers carry it.
pub fn reject(
    holders: &[Holder],
    pushers: &[Pusher],
    user_id: Option<&str>,
    pushed_to: Option<&str>,
) -> Vec<(usize, Change)> {
    let carries = |p: &Pusher| p.state != State::Removed && Some(p.selector.as_str()) == pushed_to;
    let alone = pushers.iter().filter(|p| carries(p)).count() == 1;
    let left = |p: &Pusher| {
        let owned_by_user = Some(p.user_id.as_str()) == user_id;
        owned_by_user && !holders.iter().any(|h| h.user_id == p.user_id)
    };
    let pushers = pushers.iter().enumerate();
    pushers
        .filter(|(_, p)| p.is_present() && (carries(p) || left(p)))
        .map(|(at, p)| {
            let dropped = alone && carries(p);
            (
                at,
                if dropped {
                    Change::Dropped
                } else {
                    Change::Absent
                },
            )
        })
        .collect()
}

/// What a job has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Set the pusher.
    Set,
    /// The pusher may already be there: look, and set it only if it is missing or differs. Setting a pusher again makes
    /// Synapse drop notifications that it has not sent yet.
    Check,
    /// Delete the pusher.
    Delete,
    /// Nothing, because the pusher is as it should be.
    Nothing,
    /// Another user reported the same app id and pushkey later and has the pusher. Only one user may have it.
    Outdone,
    /// Another user reported the same app id and pushkey later. Until we know whether the homeserver accepts that
    /// user's pusher, ours stays as it is.
    Yield,
}

/// Decides what the job of the pusher with this id has to do, from all pushers of its pair. `append` says whether users
/// may share a pushkey.
pub fn goal(
    pushers: &[Pusher],
    id: i64,
    job_attempts: i64,
    append: bool,
    now: i64,
) -> Option<Goal> {
    let mine = pushers.iter().find(|p| p.id == id)?;
    let newer = |state: Option<State>| {
        pushers.iter().any(|p| {
            p.user_id != mine.user_id
                && p.is_present()
                && p.claim > mine.claim
                && state.map_or(p.state != State::Failed, |state| p.state == state)
        })
    };
    Some(match (mine.is_present(), mine.state) {
        (true, _) if !append && newer(Some(State::Registered)) => Goal::Outdone,
        (true, _) if !append && newer(None) => Goal::Yield,
        (true, State::Registered) if mine.ask_first || mine.is_due(now) => Goal::Check,
        (true, State::Registered) | (false, State::Removed) => Goal::Nothing,
        // The job had more attempts than were recorded, so a worker died in one, perhaps after the homeserver acted.
        (true, _) if mine.ask_first || job_attempts > mine.attempts => Goal::Check,
        (true, _) => Goal::Set,
        (false, _) => Goal::Delete,
    })
}

/// A pusher as its job finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PusherTask {
    /// The pusher's id.
    pub id: i64,
    /// The user whose notifications the pusher carries.
    pub user_id: UserId,
    /// The app.
    pub app_id: AppId,
    /// The token.
    pub pushkey: Pushkey,
    /// The account on the phone.
    pub selector: Selector,
    /// What the job has to do.
    pub goal: Goal,
    /// The pusher's generation, compared when the job finishes.
    pub generation: i64,
    /// Failed attempts that were recorded.
    pub attempts: i64,
}

/// A job's question about its pusher.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The pusher's id.
    pub id: i64,
    /// The job's attempts that failed or ended with a worker's death.
    pub job_attempts: i64,
    /// The worker that holds the job.
    pub worker: Arc<str>,
}

/// The same, and whether users may share a pushkey.
#[derive(Debug, Clone)]
pub struct TaskOf {
    /// The question.
    pub asked: Asked,
    /// Whether users may share a pushkey.
    pub append: bool,
}

/// What a job finds when it reads its pusher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    /// The pusher and what to do.
    Task(PusherTask),
    /// The pusher does not exist.
    Gone,
    /// The job is no longer in this worker's hands.
    Taken,
    /// The pusher's row cannot be read.
    Unreadable,
}

impl Loaded {
    /// Finds the pusher among all pushers of the pair.
    pub fn read(pushers: &[Pusher], asked: &Asked, append: bool, now: i64) -> Self {
        let id = asked.id;
        let Some(goal) = goal(pushers, id, asked.job_attempts, append, now) else {
            return Self::Gone;
        };
        let Some(pusher) = pushers.iter().find(|p| p.id == id) else {
            return Self::Gone;
        };
        let job = pusher.job.as_ref();
        if !job.is_some_and(|job| job.is_held_by(&asked.worker)) {
            return Self::Taken;
        }
        let task = || {
            Some(PusherTask {
                id,
                user_id: UserId::parse(&pusher.user_id).ok()?,
                app_id: AppId::parse(&pusher.app_id).ok()?,
                pushkey: Pushkey::parse(&pusher.pushkey).ok()?,
                selector: Selector::parse(&pusher.selector).ok()?,
                goal,
                generation: pusher.generation,
                attempts: pusher.attempts,
            })
        };
        task().map_or(Self::Unreadable, Self::Task)
    }
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The homeserver holds the pusher.
    Registered,
    /// The homeserver does not hold the pusher.
    Removed,
    /// There was nothing to do.
    Nothing,
    /// Another user's later report stands.
    Outdone,
    /// Retry.
    Retry {
        /// When to retry, in seconds since 1970.
        run_at: i64,
        /// The homeserver asked to wait until this time, and nothing brings the retry forward to before it.
        not_before: Option<i64>,
        /// Why, for people.
        error: String,
        /// The homeserver may have done it all the same.
        maybe_done: bool,
    },
    /// The homeserver refuses, and would refuse again.
    Dead {
        /// Why, for people.
        error: String,
    },
}

/// The worker's settings that matter when a job finishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishSettings {
    /// The settings that the pusher was set with, including the key of its mark: see `PusherSettings::fingerprint`.
    pub fingerprint: String,
    /// The same without the key: see `PusherSettings::name`.
    pub settings: String,
    /// The name of the key of the mark.
    pub mark_key: String,
    /// Whether users may share an app id and pushkey.
    pub append: bool,
    /// Whether the homeserver keeps one pusher for a user and pushkey, whatever the app id.
    pub one_per_pushkey: bool,
    /// After this many seconds, a report makes the worker check the pusher.
    pub refresh_after: i64,
}

/// What an outcome changes in the pusher itself. None if there was nothing to do.
pub fn record(outcome: &Outcome, settings: &FinishSettings, now: i64) -> Option<Change> {
    match outcome {
        Outcome::Registered => Some(Change::Registered {
            settings: settings.fingerprint.clone(),
            refresh_at: now.saturating_add(settings.refresh_after),
        }),
        Outcome::Removed => Some(Change::Removed),
        Outcome::Nothing => None,
        Outcome::Outdone => Some(Change::Absent),
        Outcome::Retry {
            error, maybe_done, ..
        } => Some(Change::Retried {
            error: error.clone(),
            maybe_done: *maybe_done,
        }),
        Outcome::Dead { error } => Some(Change::Refused {
            error: error.clone(),
        }),
    }
}

/// What the outcome of the pusher at `at` means for other users' pushers of the same app id and pushkey, where only
/// one user may have one (PUSHER_APPEND=false).
pub fn rivals(pushers: &[Pusher], at: usize, outcome: &Outcome) -> Vec<(usize, Change)> {
    let mine = &pushers[at];
    let others = || {
        let others = pushers.iter().enumerate();
        others.filter(|(_, p)| p.user_id != mine.user_id && p.is_present())
    };
    let mut changes: Vec<(usize, Change)> = Vec::new();
    if *outcome == Outcome::Registered && mine.is_present() {
        // Users who reported earlier are no longer wanted. Most homeservers displace their pushers when ours is set.
        // Some keep both, and a check that found ours displaced nothing. So each is deleted by name.
        let older = others().filter(|(_, p)| p.claim < mine.claim);
        changes.extend(older.map(|(at, _)| (at, Change::Absent)));
    }
    if matches!(outcome, Outcome::Dead { .. } | Outcome::Removed) {
        // The homeserver does not hold ours, so users who yielded to it may have their pusher. Their job may be about
        // to yield at this moment, and this makes it run again.
        let yielded = others().filter(|(_, p)| p.state == State::Pending);
        changes.extend(yielded.map(|(at, _)| (at, Change::Check)));
    }
    // Whatever the job did last, an earlier attempt may have set ours and displaced other users' pushers, even after
    // the worker of that attempt died.
    let touched_homeserver = match outcome {
        Outcome::Retry { maybe_done, .. } => *maybe_done,
        _ => true,
    };
    if touched_homeserver {
        let newer = others().filter(|(_, p)| {
            matches!(p.state, State::Registered | State::Pending)
                && (p.claim > mine.claim || !mine.is_present())
        });
        for (at, _) in newer {
            if !changes.iter().any(|(other, _)| *other == at) {
                changes.push((at, Change::Check));
            }
        }
    }
    changes
}

/// Which pushers to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replay {
    /// Pushers with a dead letter.
    Dead,
    /// All pushers.
    All,
    /// Pushers of one user.
    User(UserId),
    /// Pushers that changed at or after this time, in seconds since 1970.
    Since(i64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::jobs::Status;

    fn holder(row: i64, user: &str, selector: &str) -> Holder {
        Holder {
            row,
            user_id: user.into(),
            selector: selector.into(),
            updated_at: 0,
        }
    }

    fn pusher(
        id: i64,
        user: &str,
        selector: &str,
        wanted: Wanted,
        state: State,
        claim: i64,
    ) -> Pusher {
        Pusher {
            id,
            wanted,
            state,
            refresh_at: Some(1000),
            ..Pusher::new(&holder(1, user, selector), "app", "key", claim, 0)
        }
    }

    use State::{Failed, Pending, Registered, Removed};
    use Wanted::{Absent, Present};

    fn present(at: usize, selector: &str, claim: i64) -> Planned {
        let selector = selector.into();
        Planned::Change(at, Change::Present { selector, claim })
    }

    #[test]
    fn a_pusher_is_due_after_its_time_and_when_a_wrong_clock_wrote_it() {
        let year = LONGEST_REFRESH;
        for (refresh_at, updated_at, due) in [
            (Some(101), 0, false),
            (Some(100), 0, true),
            (None, 0, true),
            (Some(100 + year), 0, false),
            (Some(101 + year), 0, true),
            (Some(101), 100 + CLOCK_SLACK, false),
            (Some(101), 101 + CLOCK_SLACK, true),
        ] {
            let pusher = Pusher {
                refresh_at,
                updated_at,
                ..pusher(1, "a", "s", Present, Registered, 1)
            };
            assert_eq!(pusher.is_due(100), due, "{refresh_at:?}, {updated_at}");
        }
    }

    #[test]
    fn who_is_not_the_latest_gives_way() {
        let there = [
            pusher(7, "a", "sa", Present, Registered, 3),
            pusher(8, "b", "sb", Absent, Removed, 2),
        ];
        let insert = |claim| Planned::Insert { holder: 0, claim };
        let claim = |claim| Planned::Change(0, Change::Claim(claim));
        for (mut plan, expected) in [
            (vec![insert(4)], vec![insert(2)]),
            (vec![present(1, "sb", 4)], vec![present(1, "sb", 2)]),
            // A rename alone.
            (vec![present(0, "x", 3)], vec![present(0, "x", 3)]),
            (vec![claim(4), Planned::Again(0)], vec![Planned::Again(0)]),
        ] {
            give_way(&mut plan, &there);
            assert_eq!(plan, expected);
        }
        let mut plan = vec![insert(1)];
        give_way(&mut plan, &[]);
        assert_eq!(plan, [insert(1)], "nobody has one");
    }

    #[test]
    fn one_user() {
        let rows = [holder(1, "a", "s")];
        let insert = Planned::Insert {
            holder: 0,
            claim: 1,
        };
        assert_eq!(plan(&rows, &[], Some(1), 0), [insert]);
        let again = vec![Planned::Again(0)];
        for (state, updated_at, now, expected) in [
            (Registered, 0, 0, vec![]),
            (Registered, 0, 1000, again.clone()),
            (Registered, 500, 100, again.clone()),
            (Pending, 0, 0, again.clone()),
            (Failed, 0, 0, vec![Planned::Change(0, Change::Revive)]),
        ] {
            let mut pusher = pusher(7, "a", "s", Present, state, 1);
            pusher.updated_at = updated_at;
            let planned = plan(&rows, &[pusher], Some(1), now);
            assert_eq!(planned, expected, "{state:?} {updated_at} {now}");
        }
        let removed = [pusher(7, "a", "s", Absent, Removed, 1)];
        assert_eq!(plan(&rows, &removed, Some(1), 0), [present(0, "s", 1)]);
        let left = [pusher(7, "a", "s", Present, Registered, 1)];
        let absent = Planned::Change(0, Change::Absent);
        assert_eq!(plan(&[], &left, None, 0), [absent]);
    }

    #[test]
    fn a_renamed_account_takes_its_pusher_along_and_a_second_one_does_not() {
        let pushers = [pusher(7, "a", "old", Present, Registered, 1)];
        assert_eq!(
            plan(&[holder(1, "a", "new")], &pushers, Some(1), 0),
            [present(0, "new", 2)]
        );
        let both = [holder(1, "a", "old"), holder(2, "a", "new")];
        assert_eq!(plan(&both, &pushers, Some(2), 0), []);
    }

    #[test]
    fn two_users_of_one_phone_do_not_fight() {
        let rows = [holder(1, "a", "sa"), holder(2, "b", "sb")];
        let pushers = [pusher(7, "a", "sa", Present, Registered, 1)];
        let insert = Planned::Insert {
            holder: 1,
            claim: 2,
        };
        assert_eq!(plan(&rows, &pushers, Some(2), 0), [insert]);
        // b has displaced a. Only a's own report changes that.
        let after = [
            pusher(7, "a", "sa", Absent, Removed, 1),
            pusher(8, "b", "sb", Present, Registered, 2),
        ];
        assert_eq!(plan(&rows, &after, None, 0), []);
        assert_eq!(plan(&rows, &after, Some(1), 0), [present(0, "sa", 3)]);
        // b leaves the phone, so a gets the pusher back.
        assert_eq!(
            plan(&rows[..1], &after, None, 0),
            [Planned::Change(1, Change::Absent), present(0, "sa", 3)]
        );
        // a reports while b's pusher waits to be set. a's report is newer.
        let race = [
            pusher(7, "a", "sa", Present, Registered, 1),
            pusher(8, "b", "sb", Present, Pending, 2),
        ];
        assert_eq!(
            plan(&rows, &race, Some(1), 0),
            [Planned::Change(0, Change::Claim(3))]
        );
    }

    #[test]
    fn a_report_tries_refused_deletions_again() {
        let rows = [holder(1, "a", "sa")];
        let pushers = [
            pusher(7, "a", "sa", Present, Registered, 2),
            pusher(8, "b", "sb", Absent, Failed, 1),
            pusher(9, "c", "sc", Absent, Removed, 1),
            pusher(10, "d", "sd", Absent, Pending, 1),
        ];
        let check = Planned::Change(1, Change::Check);
        assert_eq!(plan(&rows, &pushers, Some(1), 0), [check]);
        assert_eq!(plan(&rows, &pushers, None, 0), []);
        // The former user reports, and wants it again.
        let both = [holder(1, "a", "sa"), holder(2, "b", "sb")];
        assert_eq!(plan(&both, &pushers, Some(2), 0), [present(1, "sb", 3)]);
        let mut deletion = pushers[1].clone();
        deletion.apply(&Change::Check, 5);
        assert_eq!(goal(&[deletion], 8, 0, false, 5), Some(Goal::Delete));
    }

    #[test]
    fn a_dead_token_takes_the_pusher_that_was_pushed_to() {
        let pushers = [
            pusher(7, "a", "sa", Present, Registered, 1),
            pusher(8, "b", "sb", Present, Registered, 2),
        ];
        let left = [holder(2, "b", "sb")];
        let rejected = reject(&left, &pushers, Some("a"), Some("sa"));
        assert_eq!(rejected, [(0, Change::Dropped)]);
        // The pusher carries another selector than the row that was pushed to, so it is deleted by name.
        let rejected = reject(&left, &pushers, Some("a"), Some("old"));
        assert_eq!(rejected, [(0, Change::Absent)]);
        // Two pushers carry the same selector.
        let same = [
            pusher(7, "a", "s", Present, Registered, 1),
            pusher(8, "b", "s", Present, Registered, 2),
        ];
        let rejected = reject(&[], &same, Some("a"), Some("s"));
        assert_eq!(rejected, [(0, Change::Absent), (1, Change::Absent)]);
    }

    #[test]
    fn what_the_homeserver_dropped_is_deleted_all_the_same_if_a_job_may_set_it() {
        for (status, state) in [
            (None, Removed),
            (Some(Status::Killed), Removed),
            (Some(Status::Queued), Pending),
        ] {
            let mut dropped = pusher(7, "a", "s", Present, Registered, 1);
            dropped.job = status.map(job);
            dropped.apply(&Change::Dropped, 5);
            assert_eq!(
                (dropped.wanted, dropped.state),
                (Absent, state),
                "{status:?}"
            );
        }
    }

    fn job(status: Status) -> Job {
        Job {
            key: 1,
            status,
            attempts: 0,
            run_at: 0,
            not_before: None,
            lost: None,
            recalled: false,
            lock_by: Some("w".into()),
            error: None,
            done_at: None,
        }
    }

    #[test]
    fn what_a_job_may_have_set_is_asked_for_once_its_user_reports_again() {
        for (status, asks) in [
            (None, false),
            (Some(Status::Killed), false),
            (Some(Status::Queued), true),
        ] {
            let mut reported = pusher(7, "a", "s", Present, Pending, 1);
            reported.job = status.map(job);
            reported.apply(&Change::Claim(3), 5);
            assert_eq!(
                (reported.claim, reported.generation, reported.ask_first),
                (3, 2, asks),
                "{status:?}"
            );
        }
    }

    #[test]
    fn goals() {
        let mine = |state, ask_first| Pusher {
            ask_first,
            attempts: 1,
            ..pusher(7, "a", "s", Present, state, 1)
        };
        let rival = |state| pusher(8, "b", "s", Present, state, 2);
        for (what, pushers, attempts, append, expected) in [
            ("new", vec![mine(Pending, false)], 1, false, Goal::Set),
            (
                "died in it",
                vec![mine(Pending, false)],
                2,
                false,
                Goal::Check,
            ),
            (
                "maybe done",
                vec![mine(Pending, true)],
                1,
                false,
                Goal::Check,
            ),
            (
                "as wanted",
                vec![mine(Registered, false)],
                1,
                false,
                Goal::Nothing,
            ),
            (
                "doubtful",
                vec![mine(Registered, true)],
                1,
                false,
                Goal::Check,
            ),
            (
                "outdone",
                vec![mine(Pending, false), rival(Registered)],
                1,
                false,
                Goal::Outdone,
            ),
            (
                "yields",
                vec![mine(Pending, false), rival(Pending)],
                1,
                false,
                Goal::Yield,
            ),
            (
                "refused rival",
                vec![mine(Pending, false), rival(Failed)],
                1,
                false,
                Goal::Set,
            ),
            (
                "shared",
                vec![mine(Pending, false), rival(Registered)],
                1,
                true,
                Goal::Set,
            ),
        ] {
            assert_eq!(
                goal(&pushers, 7, attempts, append, 0),
                Some(expected),
                "{what}"
            );
        }
        for (state, expected) in [(Pending, Goal::Delete), (Removed, Goal::Nothing)] {
            let absent = [pusher(7, "a", "s", Absent, state, 1)];
            assert_eq!(goal(&absent, 7, 0, false, 0), Some(expected));
        }
        let mut unreadable = [pusher(7, "no user", "s", Present, Pending, 1)];
        unreadable[0].job = Some(Job {
            key: 1,
            status: Status::Queued,
            attempts: 0,
            run_at: 0,
            not_before: None,
            lost: None,
            recalled: false,
            lock_by: Some("w".into()),
            error: None,
            done_at: None,
        });
        let asked = |id, worker: &str| Asked {
            id,
            job_attempts: 0,
            worker: worker.into(),
        };
        let read = |id, worker| Loaded::read(&unreadable, &asked(id, worker), false, 0);
        assert_eq!(read(7, "w"), Loaded::Unreadable);
        assert_eq!(read(7, "another"), Loaded::Taken);
        assert_eq!(read(9, "w"), Loaded::Gone);
    }

    #[test]
    fn outcomes_and_other_users() {
        let two = |a: (Wanted, State), b: (Wanted, State)| {
            [
                pusher(7, "a", "s", a.0, a.1, 1),
                pusher(8, "b", "s", b.0, b.1, 2),
            ]
        };
        let retry = |maybe_done| Outcome::Retry {
            run_at: 0,
            not_before: None,
            error: "no".into(),
            maybe_done,
        };
        let dead = Outcome::Dead { error: "no".into() };
        for (what, pushers, at, outcome, expected) in [
            (
                "the newer one is set: the older one is deleted by name",
                two((Present, Registered), (Present, Registered)),
                1,
                Outcome::Registered,
                vec![(0, Change::Absent)],
            ),
            (
                "the older one is set: it may have displaced the newer one",
                two((Present, Registered), (Present, Pending)),
                0,
                Outcome::Registered,
                vec![(1, Change::Check)],
            ),
            (
                "the newer one is refused: the older one yielded",
                two((Present, Pending), (Present, Failed)),
                1,
                dead,
                vec![(0, Change::Check)],
            ),
            (
                "an attempt that reached nobody",
                two((Present, Pending), (Present, Registered)),
                0,
                retry(false),
                vec![],
            ),
            (
                "an attempt that may have reached the homeserver",
                two((Present, Pending), (Present, Registered)),
                0,
                retry(true),
                vec![(1, Change::Check)],
            ),
            (
                "an absent one may have been set by an attempt before",
                two((Present, Registered), (Absent, Removed)),
                1,
                Outcome::Removed,
                vec![(0, Change::Check)],
            ),
        ] {
            assert_eq!(rivals(&pushers, at, &outcome), expected, "{what}");
        }
    }
}
