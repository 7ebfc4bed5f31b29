//! How far a connection is, and by when it has to get further. Pure: it is told what happens and when.

use std::time::{Duration, Instant};

/// From accepting a connection, or from the first byte of a later request, to the end of the request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Between two requests: longer than the 60 s of common reverse proxies, so that they close first.
const IDLE: Duration = Duration::from_secs(75);
/// Without a byte of a request's body, or of an answer that the client takes.
const STALL: Duration = Duration::from_secs(30);
/// A request in all. Handlers have deadlines of their own; this one ends a body that trickles, and is shorter
/// than the 60 s that Synapse waits.
const REQUEST: Duration = Duration::from_secs(50);
/// As [`REQUEST`], from the moment when the process is told to stop: long enough for a push that waits for PNM as long as
/// it may by default, or nearly so.
const LAST_REQUEST: Duration = Duration::from_secs(9);
/// As [`STALL`], for answers that are still to be written when the process stops.
const LAST_ANSWER: Duration = Duration::from_secs(3);

/// How far a connection is.
#[derive(Debug)]
pub(super) struct Progress {
    phase: Phase,
    /// Since when the client has taken nothing of what is written to it.
    stalled: Option<Instant>,
    /// Since when the process stops.
    stopping: Option<Instant>,
    unread: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// No byte of the next request is there.
    Silent {
        until: Instant,
    },
    Head {
        until: Instant,
    },
    /// The body is not complete.
    Body {
        since: Instant,
        moved: Instant,
    },
    /// The request is complete.
    Working {
        since: Instant,
    },
    /// The answer's head is there.
    Answering,
    /// The answer is complete, and perhaps not yet written.
    Answered,
}

/// What becomes of a connection that is late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The client has sent nothing, so it is told nothing.
    Close,
    /// The client has not sent all of its request.
    Timeout,
    /// We have not answered.
    Unanswered,
    /// The client takes no answer.
    Cut,
}

impl Progress {
    /// A connection that has just been accepted.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Silent { until: now + HEAD },
            stalled: None,
            stopping: None,
            unread: false,
        }
    }

    /// Bytes came.
    pub(super) fn read(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Silent { until } => {
                self.phase = Phase::Head {
                    until: (now + HEAD).min(*until),
                };
            }
            Phase::Body { moved, .. } => *moved = now,
            _ => {}
        }
    }

    /// A request's head is complete, and perhaps all of it.
    pub(super) fn head(&mut self, now: Instant, complete: bool) {
        self.phase = if complete {
            Phase::Working { since: now }
        } else {
            Phase::Body {
                since: now,
                moved: now,
            }
        };
    }

    /// The request's body is complete.
    pub(super) fn body_ended(&mut self) {
        if let Phase::Body { since, .. } = self.phase {
            self.phase = Phase::Working { since };
        }
    }

    /// Nobody reads the request's body to its end.
    pub(super) fn body_left(&mut self) {
        self.unread = true;
    }

    /// The handler has answered.
    pub(super) fn answering(&mut self) {
        self.phase = Phase::Answering;
    }

    /// The whole answer is there.
    pub(super) fn answered(&mut self) {
        if matches!(self.phase, Phase::Answering) {
            self.phase = Phase::Answered;
        }
    }

    /// The client took some of what is written to it.
    pub(super) fn wrote(&mut self) {
        self.stalled = None;
    }

    /// The client takes no more for now.
    pub(super) fn full(&mut self, now: Instant) {
        self.stalled.get_or_insert(now);
    }

    /// Everything so far is written.
    pub(super) fn flushed(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Answered) {
            self.phase = Phase::Silent { until: now + IDLE };
        }
    }

    /// The process stops.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = Some(now);
    }

    /// Whether a request is at most on its way: what is written now is no answer of a handler.
    pub(super) fn is_before_request(&self) -> bool {
        matches!(self.phase, Phase::Silent { .. } | Phase::Head { .. })
    }

    /// Whether the client may still be sending what nobody reads.
    pub(super) fn is_unread(&self) -> bool {
        self.unread
    }

    /// By when the connection has to get further; none: it may take its time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Silent { until } | Phase::Head { until } => Some(until),
            Phase::Body { since, moved } => Some((since + REQUEST).min(moved + STALL)),
            Phase::Working { since } => {
                let until = since + REQUEST;
                let stop = self.stopping.map(|since| since + LAST_REQUEST);
                Some(stop.map_or(until, |stop| until.min(stop)))
            }
            Phase::Answering | Phase::Answered => None,
        };
        let stall = self.stopping.map_or(STALL, |_| LAST_ANSWER);
        let stalled = self.stalled.map(|since| since + stall);
        match (phase, stalled) {
            (Some(phase), Some(stalled)) => Some(phase.min(stalled)),
            (one, other) => one.or(other),
        }
    }

    /// Whether nothing is lost for anybody if the connection ends now.
    pub(super) fn is_incomplete(&self) -> bool {
        matches!(
            self.phase,
            Phase::Silent { .. } | Phase::Head { .. } | Phase::Body { .. }
        )
    }

    /// What to do now that the deadline has passed.
    pub(super) fn late(&self) -> Late {
        match self.phase {
            // Half of another answer may stand before ours.
            _ if self.stalled.is_some() => Late::Cut,
            Phase::Silent { .. } => Late::Close,
            Phase::Head { .. } | Phase::Body { .. } => Late::Timeout,
            Phase::Working { .. } => Late::Unanswered,
            Phase::Answering | Phase::Answered => Late::Cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection, and how many seconds it has from its start.
    struct Bench {
        start: Instant,
        progress: Progress,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now();
            let progress = Progress::new(start);
            Self { start, progress }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn does(mut self, second: u64, step: impl FnOnce(&mut Progress, Instant)) -> Self {
            let now = self.at(second);
            step(&mut self.progress, now);
            self
        }

        fn answered(self, second: u64) -> Self {
            self.does(second, |it, now| {
                it.read(now);
                it.head(now, true);
                it.answering();
                it.answered();
                it.flushed(now);
            })
        }

        #[track_caller]
        fn has_until(self, second: u64, late: Late) -> Self {
            assert_eq!(self.progress.deadline(), Some(self.at(second)));
            assert_eq!(self.progress.late(), late);
            self
        }
    }

    #[test]
    fn the_first_head_has_ten_seconds_from_the_start() {
        Bench::new()
            .has_until(10, Late::Close)
            .does(4, Progress::read)
            .has_until(10, Late::Timeout)
            .does(9, Progress::read)
            .has_until(10, Late::Timeout);
    }

    #[test]
    fn later_requests_may_wait_but_not_trickle() {
        Bench::new()
            .answered(1)
            .has_until(76, Late::Close)
            .does(50, Progress::read)
            .has_until(60, Late::Timeout)
            .does(59, Progress::read)
            .has_until(60, Late::Timeout);
    }

    #[test]
    fn a_body_has_to_move_and_to_end() {
        Bench::new()
            .does(2, |it, now| it.head(now, false))
            .has_until(32, Late::Timeout)
            .does(20, Progress::read)
            .has_until(50, Late::Timeout)
            .does(40, Progress::read)
            .has_until(52, Late::Timeout)
            .does(41, |it, _| it.body_ended())
            .has_until(52, Late::Unanswered);
    }

    #[test]
    fn an_answer_has_to_be_taken() {
        let bench = Bench::new().does(0, |it, now| {
            it.head(now, true);
            it.answering();
        });
        assert_eq!(bench.progress.deadline(), None);
        let bench = bench
            .does(1, Progress::full)
            .has_until(31, Late::Cut)
            .does(20, Progress::full)
            .has_until(31, Late::Cut)
            .does(21, |it, now| {
                it.wrote();
                it.full(now);
            })
            .has_until(51, Late::Cut)
            .does(22, |it, _| it.answered())
            .has_until(51, Late::Cut);
        bench
            .does(23, |it, now| {
                it.wrote();
                it.flushed(now);
            })
            .has_until(98, Late::Close);
    }

    #[test]
    fn a_stop_gives_a_request_less_time() {
        let asked = || Bench::new().does(2, |it, now| it.head(now, true));
        asked()
            .does(3, Progress::stop)
            .has_until(12, Late::Unanswered);
        asked()
            .does(45, Progress::stop)
            .has_until(52, Late::Unanswered);
    }

    #[test]
    fn a_stop_waits_for_complete_requests_alone() {
        let bench = Bench::new();
        assert!(bench.progress.is_incomplete());
        let bench = bench.does(0, Progress::read);
        assert!(bench.progress.is_incomplete());
        let bench = bench.does(0, |it, now| it.head(now, false));
        assert!(bench.progress.is_incomplete());
        let bench = bench.does(0, |it, _| it.body_ended());
        assert!(!bench.progress.is_incomplete());
        let bench = bench.does(0, |it, now| {
            it.answering();
            it.full(now);
            it.stop(now);
        });
        assert!(!bench.progress.is_incomplete());
        bench.has_until(3, Late::Cut);
        assert!(Bench::new().answered(1).progress.is_incomplete());
    }
}
