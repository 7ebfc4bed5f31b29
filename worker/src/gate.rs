//! The outage gate: lets jobs through while the homeserver is well, one at a time to find out whether it
//! is, and none while it is down. [`State`] decides and is pure; [`Gate`] has the jobs wait.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use matrix2acrobits_sqlite::queue::{GateReport, GateState};
use tokio::sync::watch;

/// Failures in a row, not about one user, that shut the gate.
const FAILURES_TO_SHUT: u32 = 5;
/// From the first failure on, and while nothing has worked lately, no more than this many requests are under
/// way: together with the probes that keeps a homeserver that goes down below 10 requests a second.
const CAUTIOUS: usize = 7;
/// A success is evidence for this long.
const LATELY: Duration = Duration::from_millis(50);
/// While the homeserver answers probes and nothing else, a job in backoff is tried no sooner than this long
/// after the last request, so that backoff means something and its return is noticed all the same.
const QUIET: Duration = Duration::from_secs(10);

/// What a finished request says about the homeserver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It works, whatever it said of this one user.
    Well,
    /// It does not.
    Unwell(String),
    /// It asks everybody to wait.
    Limited(Duration),
    /// Our configuration is wrong.
    Misconfigured(String),
}

/// Whether and how many jobs may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As many as are configured.
    Open { failures: u32 },
    /// One at a time, until one shows that the homeserver works.
    Trial,
    /// None.
    Shut {
        since: Instant,
        next_try: Instant,
        probe: bool,
    },
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Down,
    Misconfigured,
}

/// What the prober has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask the homeserver whether it is there, and let one job try if it is.
    Probe,
    /// The wait is over: let one job try.
    Try,
    /// One job may try and none is due: bring one forward.
    BringForward,
}

/// What has changed, for the log and the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The homeserver is down.
    Down(String),
    /// Our configuration is wrong.
    Misconfigured(String),
    /// It works (again): after this long.
    Up(Option<Duration>),
}

/// The pure part.
#[derive(Debug)]
pub(crate) struct State {
    mode: Mode,
    concurrency: usize,
    /// How long everything waits when the configuration is wrong.
    long_interval: Duration,
    /// When the trouble began, and what was said of it last; kept through trials.
    trouble: Option<(Instant, Trouble)>,
    /// Why it last went wrong, for people.
    reason: Option<String>,
    /// When the last request succeeded.
    last_well: Option<Instant>,
    /// When the last request ended, whatever became of it.
    last_end: Option<Instant>,
}

impl State {
    /// Begins with a trial: a homeserver that is down at start must not meet a crowd.
    pub(crate) fn new(concurrency: usize, long_interval: Duration) -> Self {
        Self {
            mode: Mode::Trial,
            concurrency,
            long_interval,
            trouble: None,
            reason: None,
            last_well: None,
            last_end: None,
        }
    }

    /// How many jobs may run at this moment.
    pub(crate) fn permits(&self, now: Instant) -> usize {
        match self.mode {
            Mode::Open { failures: 0 }
                if self.last_well.is_some_and(|well| now < well + LATELY) =>
            {
                self.concurrency
            }
            Mode::Open { failures } => {
                let left = CAUTIOUS.saturating_sub(failures as usize).max(1);
                left.min(self.concurrency)
            }
            Mode::Trial => 1,
            Mode::Shut { .. } => 0,
        }
    }

    /// Whether the homeserver is known to work.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.mode, Mode::Open { .. })
    }

    /// What the operator is told. A trial in the midst of an outage is still the outage.
    pub(crate) fn report(&self) -> GateReport {
        let (state, reason) = match (self.trouble, self.mode) {
            (Some(_), _) => (GateState::Shut, self.reason.clone()),
            (None, Mode::Shut { .. }) => {
                let reason = "HTTP 429: the homeserver asks everybody to wait";
                (GateState::Shut, Some(reason.into()))
            }
            (None, Mode::Trial) => (GateState::Untried, None),
            (None, Mode::Open { .. }) => (GateState::Open, None),
        };
        GateReport { state, reason }
    }

    /// Takes note of a finished request.
    pub(crate) fn record(&mut self, sign: &Sign, now: Instant) -> Option<Change> {
        self.last_end = Some(now);
        match sign {
            Sign::Well => self.last_well = Some(now),
            Sign::Unwell(reason) | Sign::Misconfigured(reason) => {
                self.reason = Some(reason.clone());
            }
            Sign::Limited(_) => {}
        }
        match (sign, self.mode) {
            (Sign::Well, Mode::Open { .. }) => {
                self.mode = Mode::Open { failures: 0 };
                None
            }
            (Sign::Well, _) => {
                self.mode = Mode::Open { failures: 0 };
                Some(Change::Up(
                    self.trouble.take().map(|(since, _)| now - since),
                ))
            }
            (Sign::Unwell(_), Mode::Open { failures }) if failures + 1 < FAILURES_TO_SHUT => {
                self.mode = Mode::Open {
                    failures: failures + 1,
                };
                None
            }
            // A late answer to what was sent before the gate shut.
            (Sign::Unwell(_) | Sign::Limited(_), Mode::Shut { .. }) => None,
            (Sign::Unwell(reason), _) => {
                self.shut(now, Duration::ZERO, true);
                self.news(now, Trouble::Down)
                    .then(|| Change::Down(reason.clone()))
            }
            (Sign::Limited(wait), _) => {
                self.shut(now, *wait, false);
                None
            }
            (Sign::Misconfigured(reason), _) => {
                self.shut(now, self.long_interval, false);
                self.news(now, Trouble::Misconfigured)
                    .then(|| Change::Misconfigured(reason.clone()))
            }
        }
    }

    /// What the prober has to do next, and when; nothing while the gate is open.
    pub(crate) fn next_step(&self, now: Instant) -> Option<(Instant, Step)> {
        match self.mode {
            Mode::Shut {
                next_try, probe, ..
            } => Some((next_try, if probe { Step::Probe } else { Step::Try })),
            Mode::Trial => Some((
                self.last_end.map_or(now, |end| end + QUIET),
                Step::BringForward,
            )),
            Mode::Open { .. } => None,
        }
    }

    /// A job was brought forward; the next one not at once.
    pub(crate) fn brought_forward(&mut self, now: Instant) {
        self.last_end = Some(now);
    }

    /// The homeserver answered a probe, or the wait is over: one job may try.
    pub(crate) fn try_one(&mut self) {
        if matches!(self.mode, Mode::Shut { .. }) {
            self.mode = Mode::Trial;
        }
    }

    fn shut(&mut self, now: Instant, wait: Duration, probe: bool) {
        let since = match self.mode {
            Mode::Shut { since, .. } => since,
            _ => now,
        };
        self.mode = Mode::Shut {
            since,
            next_try: now + wait,
            probe,
        };
    }

    /// Notes the trouble; true if nothing was said of it yet.
    fn news(&mut self, now: Instant, trouble: Trouble) -> bool {
        let (since, known) = self.trouble.unzip();
        self.trouble = Some((since.unwrap_or(now), trouble));
        known != Some(trouble)
    }
}

/// The gate that jobs pass.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    inside: Mutex<usize>,
    changed: watch::Sender<u64>,
}

/// Held by a job while its requests run.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        *lock(&self.0.inside) -= 1;
        self.0.changed.send_modify(|version| *version += 1);
    }
}

/// A panic elsewhere does not make a counter wrong.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    pub(crate) fn new(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            inside: Mutex::new(0),
            changed: watch::Sender::new(0),
        }
    }

    /// Waits until one more job may run.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            // The sender lives in self, so this only ever waits.
            let _ = changes.changed().await;
        }
    }

    fn try_enter(&self) -> Option<Pass<'_>> {
        let permits = lock(&self.state).permits(Instant::now());
        let mut inside = lock(&self.inside);
        (*inside < permits).then(|| {
            *inside += 1;
            Pass(self)
        })
    }

    /// See [`State::permits`].
    pub(crate) fn permits(&self) -> usize {
        lock(&self.state).permits(Instant::now())
    }

    /// See [`State::is_open`].
    pub(crate) fn is_open(&self) -> bool {
        lock(&self.state).is_open()
    }

    /// See [`State::report`].
    pub(crate) fn report(&self) -> GateReport {
        lock(&self.state).report()
    }

    /// See [`State::record`].
    pub(crate) fn record(&self, sign: &Sign) -> Option<Change> {
        let change = lock(&self.state).record(sign, Instant::now());
        self.changed.send_modify(|version| *version += 1);
        change
    }

    /// See [`State::next_step`].
    pub(crate) fn next_step(&self) -> Option<(Instant, Step)> {
        lock(&self.state).next_step(Instant::now())
    }

    /// See [`State::brought_forward`].
    pub(crate) fn brought_forward(&self) {
        lock(&self.state).brought_forward(Instant::now());
    }

    /// See [`State::try_one`].
    pub(crate) fn try_one(&self) {
        lock(&self.state).try_one();
        self.changed.send_modify(|version| *version += 1);
    }

    /// Wakes whenever the gate may have changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests;
