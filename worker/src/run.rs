//! Starts the worker's tasks, hands taken jobs to apalis' runner, and ends them all together.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use apalis::prelude::{BoxDynError, ParallelizeExt, WorkerBuilder};
use futures::{StreamExt, stream};
use matrix2acrobits_shared::{flow::Held, process::shutdown::Stopping, rules::jobs::DEAD_AFTER};
use matrix2acrobits_store::{Store, StoreError};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{beat::Beat, feeder, gate::Gate, heartbeat, job::Jobs, marks, prober, upkeep};

/// Jobs taken from the queue ahead of those that run, so that fetching shares transactions with finishing.
const AHEAD: usize = 8;
/// How often to look whether a process has written to the database.
pub(crate) const WATCH: Duration = Duration::from_millis(20);
/// Pause after the database has failed.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// What the tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) name: Arc<str>,
    /// Its place in the order in which workers started.
    pub(crate) started: i64,
    pub(crate) settings: String,
    /// Whether users may share a pushkey.
    pub(crate) append: bool,
    /// Whether a worker with newer settings lives. Heartbeats find out.
    pub(crate) outdated: watch::Sender<bool>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) wake: Notify,
    /// The pushers of the jobs that this worker holds.
    held: Mutex<Vec<i64>>,
    pub(crate) suspects: AtomicUsize,
    pub(crate) most: usize,
    /// No job in backoff waits longer, in seconds.
    pub(crate) longest_wait: i64,
    pub(crate) stop: CancellationToken,
    pub(crate) beat: Beat,
}

impl Shared {
    /// The pushers of the jobs that this worker holds.
    pub(crate) fn held(&self) -> MutexGuard<'_, Vec<i64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a worker with newer settings lives.
    pub(crate) fn is_outdated(&self) -> bool {
        *self.outdated.borrow()
    }
}

/// Why the worker ended without having been asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The database does not take what must be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// One of the tasks that go on for ever has ended or panicked.
    #[error("a task of the worker ended: {0}")]
    Task(String),
    /// A vital task has panicked: one of the store's, or the admin listener.
    #[error("a task ended by a panic")]
    Died,
    /// apalis.
    #[error("the job runner ended: {0}")]
    Runner(String),
}

impl RunError {
    /// Whether the log named it when it happened.
    pub(crate) fn is_logged(&self) -> bool {
        matches!(self, Self::Task(_) | Self::Died)
    }
}

/// Works until `jobs.stopping`, then finishes what runs and gives the rest back.
pub(crate) async fn run(jobs: Jobs, name: &str, beat: Beat) -> Result<(), RunError> {
    let stopping = jobs.stopping.clone();
    let stop = stopping.stop.clone();
    let (name, settings): (Arc<str>, _) = (name.into(), jobs.pusher.name());
    let register = || jobs.store.register_worker(name.clone(), settings.clone());
    let Some(started) = patiently(&stop, register).await? else {
        return Ok(());
    };
    let shared = Arc::new(Shared {
        store: jobs.store.clone(),
        name,
        started,
        settings,
        append: jobs.pusher.append,
        outdated: watch::Sender::new(false),
        gate: jobs.gate.clone(),
        wake: Notify::new(),
        held: Mutex::default(),
        suspects: AtomicUsize::new(0),
        most: jobs.settings.concurrency * AHEAD,
        longest_wait: i64::try_from(jobs.settings.retry.longest().as_secs() + 1)
            .unwrap_or(i64::MAX),
        stop: stop.clone(),
        beat,
    });
    patiently(&stop, || shared.gate.start()).await?;
    let (sender, receiver) = mpsc::channel(shared.most);
    let mut tasks = JoinSet::new();
    tasks.spawn(until(stop.clone(), feeder::watch(shared.clone())));
    tasks.spawn(until(
        stop.clone(),
        prober::probe(shared.clone(), jobs.homeserver.clone()),
    ));
    tasks.spawn(until(stop.clone(), upkeep::upkeep(shared.clone())));
    tasks.spawn(until(
        stop.clone(),
        marks::renew(shared.clone(), jobs.pusher.clone(), jobs.key.clone()),
    ));
    tasks.spawn(feeder::feed(shared.clone(), sender));
    // Beats until the last job has ended: others must not take over what still runs here.
    let ended = CancellationToken::new();
    tasks.spawn(until(ended.clone(), heartbeat::heartbeat(shared.clone())));

    let (jobs, counter) = (Arc::new(jobs), shared.clone());
    let source = stream::unfold(receiver, async |mut jobs| {
        let held = jobs.recv().await?;
        Some((Ok::<Held, Infallible>(held), jobs))
    });
    let worker = WorkerBuilder::new(shared.name.as_ref())
        .backend(source.boxed())
        .parallelize(tokio::spawn)
        .build(move |held: Held| {
            let (jobs, slot) = (jobs.clone(), Slot::new(counter.clone(), &held));
            async move {
                // Boxed, because apalis and tokio move the future a dozen times.
                Box::pin(jobs.run(held)).await;
                drop(slot);
                Ok::<(), BoxDynError>(())
            }
        });
    let asked = stop.clone();
    let signal = async move {
        asked.cancelled().await;
        Ok::<(), std::io::Error>(())
    };
    let worker = async {
        let ended = worker.run_until(signal).await;
        ended.map_err(|error| RunError::Runner(error.to_string()))
    };
    let result = supervise(&mut tasks, &stopping, shared.store.died(), worker).await;
    stop.cancel();
    ended.cancel();
    while tasks.join_next().await.is_some() {}
    match shared.store.release_worker(shared.name.clone()).await {
        Ok(0) => {}
        Ok(released) => {
            tracing::info!(released, "jobs that had not ended went back to the queue");
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "the database does not take this worker's jobs back: others take them over {DEAD_AFTER} s after its last \
                 sign of life"
            );
        }
    }
    result
}

/// Waits for `work` to end as it was asked to. A task that ends before that is an error, whatever it says:
/// a supervisor restarts the process, and half a worker would look like a whole one.
async fn supervise(
    tasks: &mut JoinSet<()>,
    stopping: &Stopping,
    died: impl Future<Output = ()>,
    work: impl Future<Output = Result<(), RunError>>,
) -> Result<(), RunError> {
    let stop = &stopping.stop;
    let mut result = Ok(());
    let (mut died, mut work) = (std::pin::pin!(died), std::pin::pin!(work));
    loop {
        tokio::select! {
            worked = &mut work => {
                let asked = stop.is_cancelled() || worked.is_err();
                let worked = if asked { worked } else { Err(RunError::Runner("by itself".into())) };
                return result.and(worked);
            }
            () = &mut died, if result.is_ok() => {
                result = Err(RunError::Died);
                stop.cancel();
                stopping.abandon.cancel();
            }
            Some(task) = tasks.join_next() => {
                let error = match task {
                    Err(error) => error.to_string(),
                    Ok(()) if stop.is_cancelled() => continue,
                    Ok(()) => "it should go on for ever".into(),
                };
                tracing::error!(error, "a task of the worker ended: stopping");
                result = Err(RunError::Task(error));
                stop.cancel();
                stopping.abandon.cancel();
            }
        }
    }
}

/// Repeats what the worker begins with until the database, which may be away at this moment as at any other, has done
/// it. None when the worker stops first.
pub(crate) async fn patiently<T, F>(
    stop: &CancellationToken,
    operation: impl Fn() -> F,
) -> Result<Option<T>, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    loop {
        match operation().await {
            Err(error) if error.is_environment() && !matches!(error, StoreError::Stopped) => {
                tracing::debug!(%error, "the database does not answer; trying again");
            }
            done => return done.map(Some),
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Repeats what a job needs of the database until the database has done it, even if the database refuses it, because a
/// job whose outcome is not recorded would be held forever. The first refusal is logged. None when the worker stops first.
pub(crate) async fn insist<T, F>(
    stop: &CancellationToken,
    job: &str,
    operation: impl Fn() -> F,
) -> Option<T>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut told = false;
    loop {
        match patiently(stop, &operation).await {
            Ok(done) => return done,
            // The store logs why it has stopped.
            Err(StoreError::Stopped) => {}
            Err(error) if told => tracing::debug!(job, %error, "refused again; trying again"),
            Err(error) => {
                tracing::warn!(job, %error, "the database refuses a job's statement; trying again");
                told = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return None,
        }
    }
}

/// A job that this worker holds. When it ends, however it ends, it is struck off and the feeder wakes.
struct Slot {
    shared: Arc<Shared>,
    pusher_id: i64,
    suspect: bool,
}

impl Slot {
    fn new(shared: Arc<Shared>, held: &Held) -> Self {
        Self {
            shared,
            pusher_id: held.pusher_id,
            suspect: held.suspect,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.shared.held();
        if let Some(at) = held.iter().position(|id| *id == self.pusher_id) {
            held.swap_remove(at);
        }
        drop(held);
        if self.suspect {
            self.shared.suspects.fetch_sub(1, Ordering::SeqCst);
        }
        self.shared.wake.notify_one();
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use super::*;

    async fn supervised(task: impl Future<Output = ()> + Send + 'static) -> Result<(), RunError> {
        let (stopping, mut tasks) = (Stopping::default(), JoinSet::new());
        tasks.spawn(task);
        let asked = stopping.stop.clone();
        let work = async move {
            asked.cancelled().await;
            Ok(())
        };
        supervise(&mut tasks, &stopping, pending(), work).await
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_stops_the_worker_with_an_error() {
        let panicked = supervised(async { panic!("on purpose") }).await;
        assert!(matches!(panicked, Err(RunError::Task(_))), "{panicked:?}");
        let ended = supervised(async {}).await;
        assert!(matches!(ended, Err(RunError::Task(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_runner_that_ends_by_itself_is_an_error_and_one_that_was_asked_is_none() {
        let (stopping, mut tasks) = (Stopping::default(), JoinSet::new());
        let ended = supervise(&mut tasks, &stopping, pending(), async { Ok(()) }).await;
        assert!(matches!(ended, Err(RunError::Runner(_))), "{ended:?}");
        stopping.stop.cancel();
        let ended = supervise(&mut tasks, &stopping, pending(), async { Ok(()) }).await;
        assert!(ended.is_ok(), "{ended:?}");
    }

    #[tokio::test]
    async fn a_vital_task_that_panics_stops_the_worker_with_an_error() {
        let (stopping, mut tasks) = (Stopping::default(), JoinSet::new());
        let asked = stopping.stop.clone();
        let work = async move {
            asked.cancelled().await;
            Ok(())
        };
        let ended = supervise(&mut tasks, &stopping, async {}, work).await;
        assert!(matches!(ended, Err(RunError::Died)), "{ended:?}");
        assert!(stopping.abandon.is_cancelled());
    }

    #[tokio::test]
    async fn a_refusal_ends_what_the_worker_begins_with_but_no_job() {
        let (stop, tries) = (CancellationToken::new(), Cell::new(0));
        let refused_once = || async {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => Err(StoreError::Refused(Arc::new(std::fmt::Error))),
                tries => Ok(tries),
            }
        };
        assert_eq!(insist(&stop, "job", refused_once).await, Some(2));
        tries.set(0);
        let begun = patiently(&stop, refused_once).await;
        assert!(matches!(begun, Err(StoreError::Refused(_))), "{begun:?}");
        stop.cancel();
        let never = || async { Err::<(), _>(StoreError::Stopped) };
        assert_eq!(insist(&stop, "job", never).await, None);
    }
}
