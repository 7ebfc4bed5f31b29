//! The worker's tasks: the feeder, the watcher that wakes it, the prober, the heartbeat and the upkeep.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use apalis::prelude::{BoxDynError, ParallelizeExt, WorkerBuilder};
use futures::{StreamExt, stream};
use matrix2acrobits_shared::{
    flow::{Claim, Claimed, Heartbeat, Held},
    matrix::client::Homeserver,
    process::shutdown::Stopping,
    rules::{gate::Step, jobs},
};
use matrix2acrobits_store::{Store, StoreError};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{beat::Beat, gate::Gate, marks, metrics, sync_pusher::Jobs};

/// Jobs taken from the queue ahead of those that run, so that fetching shares transactions with finishing.
const AHEAD: usize = 4;
/// How often the database is asked whether another process changed it; one pragma, no lock.
const WATCH: Duration = Duration::from_millis(20);
/// How often the queue is looked at while something waits for its time.
const POLL_WAITING: Duration = Duration::from_millis(500);
/// How often it is looked at whatever the watcher says.
const POLL_IDLE: Duration = Duration::from_secs(15);
/// How often the gate is read even if nothing seems to have changed: workers die without a word.
const FOLLOW: Duration = Duration::from_secs(1);
/// How often pushers without a job are looked for.
const UPKEEP: Duration = Duration::from_mins(2);
/// Pause after the database has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// A difference between the two clocks of this machine that counts as a jump, in seconds.
const JUMP: i64 = 30;

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    store: Store,
    name: Arc<str>,
    /// Its place in the order in which workers started.
    started: i64,
    settings: String,
    /// Whether a worker with newer settings lives.
    outdated: AtomicBool,
    gate: Arc<Gate>,
    wake: Notify,
    held: AtomicUsize,
    suspects: AtomicUsize,
    most: usize,
    /// No job in backoff waits longer, in seconds.
    longest_wait: i64,
    stop: CancellationToken,
    beat: Beat,
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
    /// apalis.
    #[error("the job runner ended: {0}")]
    Runner(String),
}

/// Works until `jobs.stopping`, then finishes what runs and gives the rest back.
pub(crate) async fn run(jobs: Jobs, name: &str, beat: Beat) -> Result<(), RunError> {
    let stopping = jobs.stopping.clone();
    let stop = stopping.stop.clone();
    let (name, settings): (Arc<str>, _) = (name.into(), jobs.pusher.name());
    let started = jobs
        .store
        .register_worker(name.clone(), settings.clone())
        .await?;
    let shared = Arc::new(Shared {
        store: jobs.store.clone(),
        name,
        started,
        settings,
        outdated: AtomicBool::new(false),
        gate: jobs.gate.clone(),
        wake: Notify::new(),
        held: AtomicUsize::new(0),
        suspects: AtomicUsize::new(0),
        most: jobs.settings.concurrency * AHEAD,
        longest_wait: i64::try_from(jobs.settings.retry.longest().as_secs() + 1)
            .unwrap_or(i64::MAX),
        stop: stop.clone(),
        beat,
    });
    shared.gate.start().await?;
    let (sender, receiver) = mpsc::channel(shared.most);
    let mut tasks = JoinSet::new();
    tasks.spawn(until(stop.clone(), watch(shared.clone())));
    tasks.spawn(until(
        stop.clone(),
        probe(shared.clone(), jobs.homeserver.clone()),
    ));
    tasks.spawn(until(stop.clone(), upkeep(shared.clone())));
    tasks.spawn(until(
        stop.clone(),
        marks::renew(jobs.store.clone(), jobs.pusher.clone(), jobs.key.clone()),
    ));
    tasks.spawn(feed(shared.clone(), sender));
    // A task of the store that has panicked ends this one, and so the worker.
    let store = shared.store.clone();
    tasks.spawn(until(stop.clone(), async move { store.died().await }));
    // Beats until the last job has ended: others must not take over what still runs here.
    let ended = CancellationToken::new();
    tasks.spawn(until(ended.clone(), heartbeat(shared.clone())));

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
                jobs.run(held).await;
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
    let result = supervise(&mut tasks, &stopping, worker).await;
    stop.cancel();
    ended.cancel();
    while tasks.join_next().await.is_some() {}
    let released = shared.store.release_worker(shared.name.clone()).await?;
    tracing::info!(released, "jobs that had not ended went back to the queue");
    result
}

/// Waits for `work` to end as it was asked to. A task that ends before that is an error, whatever it says:
/// a supervisor restarts the process, and half a worker would look like a whole one.
async fn supervise(
    tasks: &mut JoinSet<()>,
    stopping: &Stopping,
    work: impl Future<Output = Result<(), RunError>>,
) -> Result<(), RunError> {
    let stop = &stopping.stop;
    let mut result = Ok(());
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            worked = &mut work => {
                let asked = stop.is_cancelled() || worked.is_err();
                let worked = if asked { worked } else { Err(RunError::Runner("by itself".into())) };
                return result.and(worked);
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

/// Counts a job that this worker holds, and wakes the feeder when it ends, however it ends.
struct Slot {
    shared: Arc<Shared>,
    suspect: bool,
}

impl Slot {
    fn new(shared: Arc<Shared>, held: &Held) -> Self {
        Self {
            shared,
            suspect: held.suspect,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(1, Ordering::SeqCst);
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

/// Takes due jobs from the queue as long as the gate lets some through and there is room.
async fn feed(shared: Arc<Shared>, jobs: mpsc::Sender<Held>) {
    let mut gate = shared.gate.watch();
    while !shared.stop.is_cancelled() {
        gate.mark_unchanged();
        let room = shared
            .most
            .saturating_sub(shared.held.load(Ordering::SeqCst));
        let wanted = if shared.gate.is_open() {
            room
        } else {
            // One to try with, if none is at hand.
            usize::from(shared.gate.is_trying() && room == shared.most)
        };
        let pause = match take(&shared, wanted).await {
            Ok(taken) => {
                let enough = !taken.is_empty() && taken.len() >= wanted;
                for held in taken {
                    // The channel has room for all that may be held, and apalis listens until we stop.
                    if jobs.send(held).await.is_err() {
                        break;
                    }
                }
                if enough {
                    continue;
                }
                waiting_pause(&shared).await
            }
            Err(error) => {
                tracing::debug!(%error, "cannot take jobs");
                PAUSE
            }
        };
        tokio::select! {
            () = shared.wake.notified() => {}
            _ = gate.changed() => {}
            () = tokio::time::sleep(pause) => {}
            () = shared.stop.cancelled() => {}
        }
    }
}

async fn take(shared: &Shared, wanted: usize) -> Result<Vec<Held>, StoreError> {
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let limit = i64::try_from(wanted).unwrap_or(i64::MAX);
    let suspect = shared.suspects.load(Ordering::SeqCst) == 0;
    let claim = Claim {
        worker: shared.name.clone(),
        settings: shared.settings.clone(),
        limit,
        suspect,
    };
    let Claimed {
        jobs,
        unreadable,
        outdated,
    } = shared.store.claim(claim).await?;
    if unreadable > 0 {
        tracing::error!(
            unreadable,
            reason = "unreadable",
            "dead letters: these jobs cannot be read"
        );
        metrics::unreadable_jobs(u64::try_from(unreadable).unwrap_or(u64::MAX));
    }
    if outdated != shared.outdated.swap(outdated, Ordering::SeqCst) && outdated {
        tracing::warn!(
            "a worker that started later has another PROXY_URL, PUSH_FORMAT or key: this one takes no jobs while that one lives"
        );
    }
    shared.held.fetch_add(jobs.len(), Ordering::SeqCst);
    let suspects = jobs.iter().filter(|held| held.suspect).count();
    shared.suspects.fetch_add(suspects, Ordering::SeqCst);
    Ok(jobs)
}

async fn waiting_pause(shared: &Shared) -> Duration {
    match shared.store.next_due().await {
        // Whether that other worker still lives has to be looked up.
        _ if shared.outdated.load(Ordering::SeqCst) => jobs::HEARTBEAT,
        Ok(None) => POLL_IDLE,
        Ok(Some(_)) => POLL_WAITING,
        Err(_) => PAUSE,
    }
}

/// Wakes the feeder and has the gate follow when any process has written to the database.
async fn watch(shared: Arc<Shared>) {
    loop {
        let result = async {
            let mut watcher = shared.store.watcher().await?;
            let mut ticks = tokio::time::interval(WATCH);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut followed = Instant::now();
            loop {
                ticks.tick().await;
                let changed = watcher.changed().await?;
                if changed {
                    shared.wake.notify_one();
                }
                if changed || followed.elapsed() >= FOLLOW {
                    shared.gate.follow().await?;
                    followed = Instant::now();
                }
            }
        };
        let result: Result<(), StoreError> = result.await;
        if let Err(error) = result {
            tracing::debug!(%error, "cannot watch the database");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Finds out when the homeserver works again, and takes up the backlog when it does.
async fn probe(shared: Arc<Shared>, homeserver: Homeserver) {
    let mut changes = shared.gate.watch();
    let mut open = false;
    loop {
        changes.mark_unchanged();
        metrics::gate_shut(shared.gate.is_shut());
        let now_open = shared.gate.is_open();
        if now_open && !open {
            take_up(&shared).await;
        }
        open = now_open;
        let Some((wait, step)) = shared.gate.next_step() else {
            let _ = changes.changed().await;
            continue;
        };
        let sleep = tokio::time::sleep(wait);
        if tokio::select! { () = sleep => false, _ = changes.changed() => true } {
            continue;
        }
        if let Err(error) = take_step(&shared, &homeserver, step).await {
            tracing::debug!(%error, "the outage gate cannot be asked");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn take_step(shared: &Shared, homeserver: &Homeserver, step: Step) -> Result<(), StoreError> {
    let gate = &shared.gate;
    match step {
        Step::Claim if !gate.claim().await? => {
            // Another was first, or no slot is free.
            tokio::time::sleep(WATCH).await;
        }
        Step::Claim if gate.must_probe() => gate.probed(homeserver.probe().await).await?,
        Step::Claim => gate.try_one(true),
        Step::BringForward => {
            // All may be in backoff; one must be there to try.
            shared.store.make_due(1).await?;
            gate.brought_forward();
            shared.wake.notify_one();
        }
        Step::Renew => gate.renew().await?,
        Step::PassOn => gate.pass_on().await?,
    }
    Ok(())
}

/// Has everything that waits run now.
async fn take_up(shared: &Shared) {
    loop {
        match shared.store.make_due(jobs::CHUNK).await {
            Ok(0) => return,
            Ok(_) => shared.wake.notify_one(),
            Err(error) => {
                tracing::debug!(%error, "cannot bring waiting jobs forward");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Says that this worker lives, recovers the jobs of those that don't, and notices jumps of the clock.
async fn heartbeat(shared: Arc<Shared>) {
    let (mut wall, mut steady) = (shared.store.clock().unix(), Instant::now());
    let mut ticks = tokio::time::interval(jobs::HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = shared.store.clock().unix();
        let passed = i64::try_from(steady.elapsed().as_secs()).unwrap_or(i64::MAX);
        let jump = now - wall - passed;
        (wall, steady) = (now, Instant::now());
        if jump.abs() >= JUMP {
            tracing::warn!(seconds = jump, "the clock jumped");
            correct_waits(&shared).await;
        }
        match shared
            .store
            .heartbeat(Heartbeat {
                worker: shared.name.clone(),
                started: shared.started,
                settings: shared.settings.clone(),
                gate: shared.gate.report(),
            })
            .await
        {
            Ok((recovered, killed)) => {
                shared.beat.now();
                if recovered > 0 {
                    tracing::warn!(recovered, "took over jobs of a worker that died");
                }
                if killed > 0 {
                    tracing::warn!(
                        reason = "worker_died",
                        killed,
                        "dead letters: these jobs killed their worker again and again"
                    );
                }
            }
            // The writer is gone for good.
            Err(StoreError::Stopped) => return,
            Err(error) => tracing::debug!(%error, "no heartbeat"),
        }
    }
}

async fn correct_waits(shared: &Shared) {
    match shared.store.correct_waits(shared.longest_wait).await {
        Ok(0) => {}
        Ok(corrected) => tracing::warn!(corrected, "jobs waited for a time far ahead: due now"),
        Err(error) => tracing::debug!(%error, "waiting times could not be checked"),
    }
}

/// Makes sure that every pusher which is not as wanted has a job, and throws away what nobody needs.
async fn upkeep(shared: Arc<Shared>) {
    loop {
        correct_waits(&shared).await;
        match shared.store.reconcile().await {
            Ok(0) => {}
            Ok(reconciled) => {
                tracing::warn!(reconciled, "pushers that were not as wanted had no job");
            }
            Err(error) => tracing::debug!(%error, "pushers without a job were not looked for"),
        }
        if let Err(error) = shared.store.housekeep().await {
            tracing::debug!(%error, "old rows were not deleted");
        }
        tokio::time::sleep(UPKEEP).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn supervised(task: impl Future<Output = ()> + Send + 'static) -> Result<(), RunError> {
        let (stopping, mut tasks) = (Stopping::default(), JoinSet::new());
        tasks.spawn(task);
        let asked = stopping.stop.clone();
        let work = async move {
            asked.cancelled().await;
            Ok(())
        };
        supervise(&mut tasks, &stopping, work).await
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
        let ended = supervise(&mut tasks, &stopping, async { Ok(()) }).await;
        assert!(matches!(ended, Err(RunError::Runner(_))), "{ended:?}");
        stopping.stop.cancel();
        let ended = supervise(&mut tasks, &stopping, async { Ok(()) }).await;
        assert!(ended.is_ok(), "{ended:?}");
    }
}
