//! Makes jobs wait at the outage gate, and writes what they learn into the row that all workers share. The decisions
//! are in `rules::gate`.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use matrix2acrobits_shared::{
    flow::{GateReport, GateState},
    rules::gate::{Admission, Event, Gate as Rules, LOST_MS, News, Sign, Step, Ticket},
};
use matrix2acrobits_store::{Store, StoreError};
use tokio::sync::watch;

/// Pause after the database has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The gate that jobs pass.
#[derive(Debug)]
pub(crate) struct Gate {
    store: Store,
    /// How long jobs wait when the configuration is wrong, for the log.
    long: Duration,
    rules: Mutex<Rules>,
    changed: watch::Sender<u64>,
    /// Held by the job that waits to enter next, so that a change wakes one job and not all.
    next: tokio::sync::Mutex<()>,
    /// Held from reading the row until the rules have followed it. Otherwise this worker could mistake its own writes
    /// for another worker's, and its jobs could get in each other's way.
    row: tokio::sync::Mutex<()>,
}

/// Held by a job while its requests run.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    ticket: Ticket,
    /// When the request was sent that is under way. 0 if there is none.
    sent_ms: AtomicI64,
}

impl<'a> Pass<'a> {
    fn new(gate: &'a Gate, ticket: Ticket) -> Self {
        Self {
            gate,
            ticket,
            sent_ms: AtomicI64::new(0),
        }
    }

    /// Waits for the response to a request.
    pub(crate) async fn during<T>(&self, request: impl Future<Output = T>) -> T {
        self.sent_ms.store(self.gate.now(), Ordering::Relaxed);
        let response = request.await;
        self.sent_ms.store(0, Ordering::Relaxed);
        response
    }

    /// Ends when the homeserver has lost the request that is under way, see [`Rules::is_lost`].
    pub(crate) async fn lost(&self) {
        // Nearly all jobs end before that.
        tokio::time::sleep(span(LOST_MS)).await;
        loop {
            let sent = self.sent_ms.load(Ordering::Relaxed);
            let now = self.gate.now();
            if sent != 0 && self.gate.rules().is_lost(sent, now) {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let now = self.gate.now();
        self.gate.rules().leave(self.ticket, now);
        self.gate.tell();
    }
}

/// Ends the shutting state when dropped, whether or not the event reached the row.
struct Shutting<'a>(&'a Gate, &'a Event);

impl Drop for Shutting<'_> {
    fn drop(&mut self) {
        self.0.rules().recorded(self.1);
        self.0.tell();
    }
}

impl Gate {
    pub(crate) fn new(store: Store, name: &str, concurrency: usize, long: Duration) -> Self {
        Self {
            store,
            long,
            rules: Mutex::new(Rules::new(name, concurrency, long)),
            changed: watch::Sender::new(0),
            next: tokio::sync::Mutex::new(()),
            row: tokio::sync::Mutex::new(()),
        }
    }

    /// Reads the row for the first time. The operator may have corrected the configuration, so the next try comes at
    /// once.
    pub(crate) async fn start(&self) -> Result<(), StoreError> {
        self.apply(&Event::Started).await?;
        self.follow().await
    }

    /// Follows changes of other workers.
    pub(crate) async fn follow(&self) -> Result<(), StoreError> {
        let _alone = self.row.lock().await;
        let view = self.store.read_gate().await?;
        let now = self.now();
        let news = self.rules().follow(view.row, view.workers, now);
        if let Some(news) = news {
            self.log(&news, false);
            self.tell();
        }
        // Changes without news can open or shut the gate as well, and waking jobs for nothing costs little.
        if !self.is_open() {
            self.tell();
        }
        Ok(())
    }

    /// Waits until one more job may run.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        let _next = self.next.lock().await;
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let now = self.now();
            let admission = self.rules().admit(now);
            let until = match admission {
                Admission::Enter(ticket) => return Pass::new(self, ticket),
                Admission::Slot if self.claim_slot().await => {
                    let ticket = self.rules().enter_with_slot(self.now());
                    if let Some(ticket) = ticket {
                        return Pass::new(self, ticket);
                    }
                    continue;
                }
                Admission::Slot => Some(SLOT_PAUSE),
                Admission::Until(at) => Some(span(at - now)),
                Admission::Wait => None,
            };
            wait(&mut changes, until).await;
        }
    }

    /// Waits until a job that is inside may send one more request. False when the gate has shut meanwhile.
    pub(crate) async fn again(&self, pass: &Pass<'_>) -> bool {
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let now = self.now();
            let admission = self.rules().again(pass.ticket, now);
            let until = match admission {
                None => return false,
                Some(Admission::Enter(_)) => return true,
                Some(Admission::Slot) if self.claim_slot().await => {
                    return self.rules().is_current(pass.ticket);
                }
                Some(Admission::Slot) => Some(SLOT_PAUSE),
                Some(Admission::Until(at)) => Some(span(at - now)),
                Some(Admission::Wait) => None,
            };
            wait(&mut changes, until).await;
        }
    }

    /// Takes note of a finished job's requests, and tells the other workers.
    pub(crate) async fn record(&self, pass: &Pass<'_>, sign: &Sign) {
        let now = self.now();
        let event = self.rules().record(pass.ticket, sign, now);
        self.tell();
        let Some(event) = event else {
            return;
        };
        let _shutting = Shutting(self, &event);
        while let Err(error) = self.apply(&event).await {
            tracing::debug!(%error, "the outage gate cannot be told");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks for the turn to find out whether the homeserver is back.
    pub(crate) async fn claim(&self) -> Result<bool, StoreError> {
        let me = self.rules().me().to_owned();
        self.apply(&Event::Claim(me)).await
    }

    /// See [`Rules::must_probe`].
    pub(crate) fn must_probe(&self) -> bool {
        self.rules().must_probe()
    }

    /// Takes note of a probe.
    pub(crate) async fn probed(&self, answered: bool) -> Result<(), StoreError> {
        let me = self.rules().me().to_owned();
        if !answered {
            self.apply(&Event::NotAnswered(me)).await?;
            return Ok(());
        }
        let back = self.rules().is_gone();
        self.apply(&Event::Answered(me)).await?;
        self.try_one(back);
        Ok(())
    }

    /// See [`Rules::try_one`].
    pub(crate) fn try_one(&self, back: bool) {
        let now = self.now();
        self.rules().try_one(back, now);
        self.tell();
    }

    /// Tells the other workers that this one still has the turn.
    pub(crate) async fn renew(&self) -> Result<(), StoreError> {
        let me = self.rules().me().to_owned();
        self.apply(&Event::Renew(me)).await.map(drop)
    }

    /// Lets another worker try.
    pub(crate) async fn pass_on(&self) -> Result<(), StoreError> {
        let now = self.now();
        self.rules().passed_on(now);
        let me = self.rules().me().to_owned();
        self.apply(&Event::PassOn(me)).await.map(drop)
    }

    /// See [`Rules::next_step`]. Returns how long to wait until then.
    pub(crate) fn next_step(&self) -> Option<(Duration, Step)> {
        let now = self.now();
        let (at, step) = self.rules().next_step(now)?;
        Some((span(at - now), step))
    }

    /// See [`Rules::brought_forward`].
    pub(crate) fn brought_forward(&self) {
        let now = self.now();
        self.rules().brought_forward(now);
    }

    /// See [`Rules::is_open`].
    pub(crate) fn is_open(&self) -> bool {
        self.rules().is_open()
    }

    /// See [`Rules::is_trying`].
    pub(crate) fn is_trying(&self) -> bool {
        self.rules().is_trying()
    }

    /// The gate's state for the operator. A try during an outage still counts as an outage.
    pub(crate) fn report(&self) -> GateReport {
        let rules = self.rules();
        let reason = rules.reason().map(str::to_owned);
        let state = match reason {
            Some(_) => GateState::Shut,
            None if rules.is_tried() => GateState::Open,
            None => GateState::Untried,
        };
        GateReport { state, reason }
    }

    /// Wakes whenever the gate may have changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Writes an event into the row. False if it changes nothing there.
    async fn apply(&self, event: &Event) -> Result<bool, StoreError> {
        let _alone = self.row.lock().await;
        loop {
            let view = self.store.read_gate().await?;
            let now = self.now();
            let version = view.row.version;
            let new = view.row.after(event, now);
            // The other worker logs the news of its own changes.
            let news = self.rules().follow(view.row, view.workers, now);
            news.inspect(|news| self.log(news, false));
            let Some(new) = new else {
                // Otherwise a job that waits for a slot would wake at once, over and over.
                if *event != Event::Slot {
                    self.tell();
                }
                return Ok(false);
            };
            if let Some(row) = self.store.swap_gate(version, new).await? {
                let news = self.rules().follow(row, view.workers, now);
                news.inspect(|news| self.log(news, true));
                self.tell();
                return Ok(true);
            }
        }
    }

    async fn claim_slot(&self) -> bool {
        self.apply(&Event::Slot).await.unwrap_or(false)
    }

    /// Only the worker that wrote the change into the row logs an error.
    fn log(&self, news: &News, ours: bool) {
        let wait = humantime::format_duration(self.long);
        match news {
            News::Down(reason) if ours => tracing::error!(
                reason,
                "the homeserver does not answer as it should: jobs wait, and the worker probes it every second"
            ),
            News::Misconfigured(reason) if ours => tracing::error!(
                reason,
                retry_in = %wait,
                "the homeserver refuses us: jobs wait until the configuration is right"
            ),
            News::Limited(asked) if ours => tracing::warn!(
                retry_in = %in_seconds(*asked),
                "HTTP 429: the homeserver asks everybody to wait, so all jobs wait"
            ),
            News::Down(reason) | News::Misconfigured(reason) => {
                tracing::info!(
                    reason,
                    "a worker found the homeserver in trouble: jobs wait"
                );
            }
            News::Limited(asked) => tracing::info!(
                retry_in = %in_seconds(*asked),
                "the homeserver asked a worker to wait: jobs wait"
            ),
            News::Up(down) => tracing::info!(
                after = %in_seconds(*down),
                "the homeserver works again: taking up the waiting jobs"
            ),
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn now(&self) -> i64 {
        i64::try_from(self.store.clock().unix_millis()).unwrap_or(i64::MAX)
    }

    /// A poisoned lock is fine, because a panic elsewhere does not make the rules wrong.
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a job waits before it asks the row for a slot again.
const SLOT_PAUSE: Duration = Duration::from_millis(100);

fn in_seconds(time: Duration) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_secs_f64(time.as_secs_f64().round()))
}

fn span(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Waits until something changes, but at most this long.
async fn wait(changes: &mut watch::Receiver<u64>, longest: Option<Duration>) {
    // The sender outlives all waiting jobs.
    match longest {
        Some(longest) => drop(tokio::time::timeout(longest, changes.changed()).await),
        None => drop(changes.changed().await),
    }
}
