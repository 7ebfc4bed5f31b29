//! When the gate shuts, opens and tries: the rules one by one, then any interleaving of several workers.

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use super::*;

const LONG: Duration = Duration::from_mins(5);
const START: i64 = 1_000_000;

/// One worker and the row.
impl Gate {
    /// Whether nothing passes.
    fn is_shut(&self) -> bool {
        !self.is_open() && self.trial.is_none()
    }
}

struct Alone {
    gate: Gate,
    row: SharedGate,
    now: i64,
}

impl Alone {
    fn new() -> Self {
        Self {
            gate: Gate::new("w", 16, LONG),
            row: SharedGate::new(),
            now: START,
        }
    }

    fn apply(&mut self, event: &Event) -> Option<News> {
        let row = self.row.after(event, self.now)?;
        self.row = row.clone();
        self.gate.follow(row, 1, self.now)
    }

    /// A job that ends at once with this sign.
    fn job(&mut self, sign: &Sign) -> Option<News> {
        let ticket = self.enter();
        self.end(ticket, sign)
    }

    fn enter(&mut self) -> Ticket {
        loop {
            match self.gate.admit(self.now) {
                Admission::Enter(ticket) => return ticket,
                Admission::Until(at) => self.now = at,
                other => panic!("{other:?} in {:?}", self.gate),
            }
        }
    }

    fn end(&mut self, ticket: Ticket, sign: &Sign) -> Option<News> {
        let news = self.gate.record(ticket, sign, self.now).and_then(|event| {
            let news = self.apply(&event);
            self.gate.recorded(&event);
            news
        });
        self.gate.leave(ticket, self.now);
        news
    }

    /// Gets the turn and, if it must probe, finds that the probe succeeds.
    fn turn(&mut self) {
        self.now = self.now.max(self.row.next_try_ms);
        self.apply(&Event::Claim("w".into()));
        let back = !self.gate.must_probe() || self.gate.is_gone();
        self.apply(&Event::Answered("w".into()));
        self.gate.try_one(back, self.now);
        assert!(self.gate.is_trying(), "{:?}", self.gate);
    }

    fn shut_down(&mut self) -> Option<News> {
        self.now += FLAKY_MS;
        (0..FAILURES_TO_SHUT).find_map(|_| self.job(&unwell()))
    }
}

fn unwell() -> Sign {
    Sign::Unwell("HTTP 502".into())
}

fn refused() -> Sign {
    Sign::Misconfigured("no".into())
}

#[test]
fn nothing_known_means_slots_and_a_success_vouches_for_a_moment() {
    let mut alone = Alone::new();
    let slots = (0..100).take_while(|_| matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert_eq!(slots.count(), 5);
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let free = (0..100).take_while(|_| matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert_eq!(free.count(), 16, "as many as are configured");
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    alone.now += LATELY_MS;
    let slots = (0..100).take_while(|_| matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert!(slots.count() <= 5);
}

#[test]
fn who_succeeds_one_by_one_does_not_wait_and_few_follow_the_last_success() {
    const PAUSE: i64 = 2 * LATELY_MS;
    let mut alone = Alone::new();
    for _ in 0..100 {
        alone.job(&Sign::Well);
        alone.now += PAUSE;
    }
    assert_eq!(alone.now, START + 100 * PAUSE, "no job waited");
    let credit =
        (0..100).take_while(|_| matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert_eq!(credit.count(), CREDIT);
    alone.now += SLOT_MS;
    assert!(matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert!(matches!(alone.gate.admit(alone.now), Admission::Until(_)));
}

#[test]
fn failures_in_a_row_shut_it_and_one_success_between_does_not() {
    let mut alone = Alone::new();
    for _ in 0..20 {
        for _ in 1..FAILURES_TO_SHUT {
            assert_eq!(alone.job(&unwell()), None);
        }
        assert_eq!(alone.job(&Sign::Well), None);
        assert!(alone.gate.is_open());
    }
    for _ in 0..FAILURES_TO_SHUT {
        assert_eq!(alone.job(&unwell()), None, "it has worked just now");
    }
    alone.now += FLAKY_MS;
    assert_eq!(alone.job(&unwell()), Some(News::Down("HTTP 502".into())));
    assert!(alone.gate.is_shut());
    assert_eq!(alone.gate.admit(alone.now), Admission::Wait);
    assert_eq!(alone.gate.reason(), Some("HTTP 502"));
}

#[test]
fn a_failure_among_many_requests_stops_sending_for_a_second_until_one_works() {
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let (failing, working) = (alone.enter(), alone.enter());
    alone.end(failing, &unwell());
    let spare = (0..100).take_while(|_| matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
    assert_eq!(spare.count(), SPARE);
    assert_eq!(
        alone.gate.admit(alone.now),
        Admission::Until(alone.now + HOLD_MS)
    );
    alone.end(working, &Sign::Well);
    assert!(matches!(alone.gate.admit(alone.now), Admission::Enter(_)));
}

#[test]
fn a_failed_trial_is_no_news_and_the_outage_is_measured_from_its_beginning() {
    let mut alone = Alone::new();
    alone.shut_down();
    let start = alone.now;
    alone.turn();
    for _ in 0..TRIES {
        assert!(!alone.gate.is_shut(), "one failure says little");
        assert_eq!(alone.job(&unwell()), None);
    }
    assert!(alone.gate.is_shut());
    alone.now = start + 60_000;
    alone.turn();
    let up = News::Up(Duration::from_mins(1));
    assert_eq!(alone.job(&Sign::Well), Some(up));
    assert!(alone.gate.is_open());
}

#[test]
fn a_wrong_token_waits_long_says_so_once_and_is_named_after_an_outage_or_a_limit() {
    let mut alone = Alone::new();
    let said = Some(News::Misconfigured("no".into()));
    assert_eq!(alone.job(&refused()), said);
    let at = alone.now + millis(LONG);
    assert_eq!(alone.gate.next_step(alone.now), Some((at, Step::Claim)));
    alone.turn();
    assert_eq!(alone.job(&refused()), None);
    alone.turn();
    alone.job(&Sign::Well);
    alone.job(&Sign::Limited(Duration::from_secs(2)));
    alone.turn();
    assert_eq!(alone.job(&refused()), said);
    let mut alone = Alone::new();
    alone.shut_down();
    alone.turn();
    assert_eq!(alone.job(&refused()), said);
}

#[test]
fn who_starts_tries_at_once_what_somebody_may_have_mended() {
    let mut alone = Alone::new();
    alone.job(&refused());
    alone.apply(&Event::Started);
    assert_eq!(
        alone.gate.next_step(alone.now),
        Some((alone.now, Step::Claim))
    );
    let mut alone = Alone::new();
    alone.job(&Sign::Limited(LONG));
    let started = alone.row.after(&Event::Started, alone.now).unwrap();
    assert_eq!(started.next_try_ms, alone.row.next_try_ms);
}

#[test]
fn who_starts_has_no_slots_to_spare() {
    let now = START;
    let row = SharedGate::new().after(&Event::Started, now).unwrap();
    assert_eq!(row.slot(now), Err(now + SLOT_MS));
    let row = row.after(&Event::Started, now + SLOT_MS - 1).unwrap();
    assert!(row.slot(now + 2 * SLOT_MS).is_ok());
}

#[test]
fn a_limit_holds_whatever_older_answers_say() {
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let [limited, well, down, limited_more] = [(); 4].map(|()| alone.enter());
    alone.end(limited, &Sign::Limited(Duration::from_secs(2)));
    alone.end(well, &Sign::Well);
    alone.end(down, &unwell());
    assert!(alone.gate.is_shut());
    assert_eq!(alone.row.next_try_ms, alone.now + 2000);
    alone.end(limited_more, &Sign::Limited(Duration::from_secs(8)));
    assert_eq!(alone.row.next_try_ms, alone.now + 8000);
    alone.turn();
    assert!(alone.job(&Sign::Well).is_some());
    assert!(alone.gate.is_open());
}

#[test]
fn a_limit_is_told_when_it_begins_and_when_it_ends() {
    let mut alone = Alone::new();
    let start = alone.now;
    let asked = Duration::from_mins(10);
    let limited = Sign::Limited(asked);
    assert_eq!(alone.job(&limited), Some(News::Limited(asked)));
    alone.now += millis(asked);
    alone.turn();
    assert_eq!(alone.job(&limited), None, "nothing new");
    alone.now = start + 2 * millis(asked);
    alone.turn();
    assert_eq!(alone.job(&Sign::Well), Some(News::Up(2 * asked)));
}

#[test]
fn a_limit_without_a_time_is_a_second_and_none_is_longer_than_an_hour() {
    for (asked, waits) in [(0, 1000), (1500, 1500), (i64::MAX as u64 / 8, LONGEST_MS)] {
        let mut alone = Alone::new();
        alone.job(&Sign::Limited(Duration::from_millis(asked)));
        assert_eq!(alone.row.next_try_ms, alone.now + waits);
    }
}

#[test]
fn an_old_answer_neither_opens_nor_shuts() {
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let [well, unwell_too, wrong] = [(); 3].map(|()| alone.enter());
    alone.shut_down();
    alone.end(well, &Sign::Well);
    assert!(alone.gate.is_shut());
    alone.turn();
    alone.job(&Sign::Well);
    alone.end(unwell_too, &unwell());
    alone.end(wrong, &refused());
    assert!(alone.gate.is_open());
    assert_eq!(alone.gate.failures, 0);
}

#[test]
fn a_job_that_is_inside_sends_nothing_more_after_a_shut() {
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let ticket = alone.enter();
    assert!(matches!(
        alone.gate.again(ticket, alone.now),
        Some(Admission::Enter(_))
    ));
    alone.job(&Sign::Limited(LONG));
    assert_eq!(alone.gate.again(ticket, alone.now), None);
}

#[test]
fn a_homeserver_that_only_answers_probes_leaves_jobs_in_backoff() {
    let mut alone = Alone::new();
    alone.shut_down();
    alone.turn();
    let pass_on = Some((alone.now + TRIAL_MS, Step::PassOn));
    assert_eq!(alone.gate.next_step(alone.now), pass_on);
    // The homeserver has been gone, so a job in backoff may try.
    alone.apply(&Event::NotAnswered("w".into()));
    alone.turn();
    assert_eq!(
        alone.gate.next_step(alone.now),
        Some((alone.now, Step::BringForward))
    );
    alone.gate.brought_forward(alone.now);
    assert_eq!(
        alone.gate.next_step(alone.now).map(|step| step.1),
        Some(Step::PassOn)
    );
    alone.now += QUIET_MS;
    alone.apply(&Event::PassOn("w".into()));
    alone.turn();
    let step = alone.gate.next_step(alone.now).map(|step| step.1);
    assert_eq!(step, Some(Step::BringForward));
}

#[test]
fn one_worker_has_the_turn_and_who_dies_with_it_is_followed_by_another() {
    let mut row = SharedGate::new();
    let mut apply = |event: &Event, now| {
        let new = row.after(event, now);
        row = new.clone().unwrap_or_else(|| row.clone());
        new.is_some()
    };
    let claim = |name: &str| Event::Claim(name.into());
    assert!(!apply(&claim("a"), START), "the gate is open");
    assert!(apply(&Event::Down(0, "x".into()), START));
    assert!(apply(&claim("a"), START));
    assert!(!apply(&claim("b"), START + LEASE_MS - 1));
    assert!(!apply(&Event::Renew("b".into()), START + LEASE_MS - 1));
    assert!(apply(&Event::Renew("a".into()), START + LEASE_MS - 1));
    assert!(!apply(&claim("b"), START + LEASE_MS));
    assert!(apply(&claim("b"), START + 2 * LEASE_MS));
    assert!(apply(&Event::NotAnswered("b".into()), START + 2 * LEASE_MS));
    assert!(!apply(&claim("a"), START + 2 * LEASE_MS + TRY_MS - 1));
    assert!(apply(&claim("a"), START + 2 * LEASE_MS + TRY_MS));
}

#[test]
fn what_hangs_holds_nobody_up_and_is_lost_once_a_later_request_succeeds() {
    let mut alone = Alone::new();
    let began = alone.now;
    let hanging: Vec<_> = (0..16).map(|_| alone.enter()).collect();
    let next = Admission::Until(began + OVERDUE_MS);
    assert_eq!(alone.gate.admit(alone.now), next);
    let sent = alone.now;
    alone.now += OVERDUE_MS;
    let later = alone.enter();
    alone.now = sent + LOST_MS;
    assert!(!alone.gate.is_lost(sent, alone.now), "nobody got an answer");
    alone.end(later, &Sign::Well);
    assert!(alone.gate.is_lost(sent, alone.now));
    assert!(!alone.gate.is_lost(sent + 1, alone.now), "not so long yet");
    drop(hanging);
    // There is an end of it.
    while alone.gate.inside.len() < 32 {
        alone.enter();
    }
    assert_eq!(alone.gate.admit(alone.now), Admission::Wait);
}

#[test]
fn a_clock_that_was_set_back_holds_nobody_up() {
    let mut alone = Alone::new();
    alone.now += 86_400_000;
    alone.shut_down();
    alone.now -= 86_400_000;
    let row = SharedGate {
        version: alone.row.version + 1,
        ..alone.row.clone()
    };
    alone.gate.follow(row, 1, alone.now);
    let (at, _) = alone.gate.next_step(alone.now).unwrap();
    assert!(at <= alone.now + TRY_MS);
    assert!(alone.row.slot(alone.now).is_ok());
}

#[test]
fn a_clock_that_is_set_back_while_the_gate_is_shut_keeps_nobody_from_the_turn() {
    for state in [
        Condition::Down,
        Condition::Limited,
        Condition::Misconfigured,
    ] {
        for holder in [None, Some("v".to_owned())] {
            let mut alone = Alone::new();
            alone.now += 86_400_000;
            let row = SharedGate {
                version: 1,
                epoch: 1,
                condition: state,
                next_try_ms: alone.now + TRY_MS,
                holder: holder.clone(),
                ..SharedGate::new()
            };
            alone.gate.follow(row.clone(), 1, alone.now);
            alone.gate.passed_on(alone.now);
            alone.now -= 86_400_000;
            // The row is still the same.
            alone.gate.follow(row.clone(), 1, alone.now);
            let (at, step) = alone.gate.next_step(alone.now).unwrap();
            assert_eq!(step, Step::Claim, "{state:?}, {holder:?}");
            assert!(at <= alone.now + TRY_MS + SLOT_MS, "{state:?}, {holder:?}");
            let claim = Event::Claim("w".into());
            assert!(
                row.after(&claim, alone.now).is_some(),
                "{state:?}, {holder:?}"
            );
        }
    }
}

#[test]
fn a_database_that_goes_back_takes_the_gate_along() {
    let mut alone = Alone::new();
    alone.job(&Sign::Well);
    let earlier = alone.row.clone();
    alone.shut_down();
    let shut = alone.row.clone();
    let taken = alone.gate.row.slot_ms;
    // A backup from before the outage.
    alone.row = earlier.clone();
    let news = alone.gate.follow(earlier, 1, alone.now);
    assert!(matches!(news, Some(News::Up(_))), "{news:?}");
    assert!(alone.gate.is_open());
    assert_eq!(alone.gate.row.slot_ms, taken, "what was sent was sent");
    assert_eq!(alone.shut_down(), Some(News::Down("HTTP 502".into())));
    alone.turn();
    alone.job(&Sign::Well);
    assert!(alone.gate.is_open());
    // A backup from the outage.
    alone.row = shut.clone();
    let news = alone.gate.follow(shut, 1, alone.now);
    assert_eq!(news, Some(News::Down("HTTP 502".into())));
    let (at, step) = alone.gate.next_step(alone.now).unwrap();
    assert_eq!(step, Step::Claim);
    assert!(at <= alone.now + TRY_MS);
    alone.turn();
    alone.job(&Sign::Well);
    assert!(alone.gate.is_open());
}

#[test]
fn a_wrong_configuration_is_tried_again_within_an_hour() {
    let mut gate = Gate::new("w", 16, Duration::from_hours(5));
    let Admission::Enter(ticket) = gate.admit(START) else {
        panic!("the gate is open");
    };
    let Some(event) = gate.record(ticket, &refused(), START) else {
        panic!("nothing to tell");
    };
    let row = SharedGate::new().after(&event, START).unwrap();
    let due = START + LONGEST_MS;
    assert_eq!(row.next_try_ms, due);
    assert!(row.after(&Event::Claim("w".into()), due).is_some());
}

/// What the homeserver does during a part of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    Fine,
    Failing,
    Hanging,
    Limiting,
    Refusing,
}

/// A request on its way.
struct Flight {
    ticket: Ticket,
    sent: i64,
    answer: i64,
    weather: Weather,
}

struct Simulated {
    gate: Gate,
    flights: Vec<Flight>,
    /// When the probe ends, and whether it succeeds.
    probe: Option<(i64, bool)>,
    /// How late this worker sees the row, and when it looks next.
    lag: i64,
    look: i64,
    /// This worker has no due job before this time.
    idle_until: i64,
}

/// Workers, the row, and a homeserver whose weather changes. Time passes in steps.
struct World {
    row: SharedGate,
    workers: Vec<Simulated>,
    weather: Vec<(i64, Weather)>,
    now: i64,
    /// When requests were sent, and into which weather.
    sent: Vec<(i64, Weather)>,
    /// When the gate last shut.
    shut: i64,
    rng: u64,
}

const STEP: i64 = 5;
/// Requests under way when the weather changes do not count, because no worker can know of the change yet.
const NOTICE: i64 = 150;
const HANG: i64 = 3000;

impl World {
    fn new(workers: usize, weather: Vec<(i64, Weather)>, seed: u64) -> Self {
        let worker = |number: usize| Simulated {
            gate: Gate::new(&format!("w{number}"), 16, Duration::from_secs(4)),
            flights: Vec::new(),
            probe: None,
            lag: 20,
            look: START,
            idle_until: 0,
        };
        let mut world = Self {
            row: SharedGate::new(),
            workers: (0..workers).map(worker).collect(),
            weather,
            now: START,
            sent: Vec::new(),
            shut: 0,
            rng: seed,
        };
        for number in 0..workers {
            world.workers[number].lag = 20 + world.pick(980);
            world.workers[number].gate.workers = workers;
        }
        world
    }

    fn pick(&mut self, below: i64) -> i64 {
        self.rng = self
            .rng
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        i64::try_from(self.rng >> 40).unwrap() % below
    }

    fn weather(&self) -> Weather {
        let passed = self.weather.iter().rev();
        passed
            .into_iter()
            .find(|(from, _)| *from <= self.now)
            .map_or(Weather::Fine, |part| part.1)
    }

    /// Applies an event to the row as it is now, as a worker does, and lets the worker follow.
    fn apply(&mut self, number: usize, event: &Event) -> bool {
        // The workers' clocks differ a little, which matters where each counts from its own.
        let behind = match event {
            Event::Slot => 3 * i64::try_from(number).unwrap(),
            _ => 0,
        };
        let Some(row) = self.row.after(event, self.now - behind) else {
            let row = self.row.clone();
            self.follow(number, row);
            return false;
        };
        assert_eq!(row.version, self.row.version + 1);
        if row.condition == Condition::Open && self.row.condition != Condition::Open {
            assert!(matches!(event, Event::Well(epoch) if *epoch == self.row.epoch));
        }
        if row.epoch != self.row.epoch {
            self.shut = self.now;
        }
        self.row = row.clone();
        self.follow(number, row);
        true
    }

    fn follow(&mut self, number: usize, row: SharedGate) {
        let (workers, now) = (self.workers.len(), self.now);
        self.workers[number].gate.follow(row, workers, now);
    }

    fn step(&mut self) {
        for number in 0..self.workers.len() {
            if self.now >= self.workers[number].look {
                self.workers[number].look = self.now + self.workers[number].lag;
                let row = self.row.clone();
                self.follow(number, row);
            }
            self.land(number);
            self.probe(number);
            for _ in 0..20 {
                if !self.send(number) {
                    break;
                }
            }
        }
        self.now += STEP;
    }

    fn land(&mut self, number: usize) {
        let now = self.now;
        let (landed, flying) = std::mem::take(&mut self.workers[number].flights)
            .into_iter()
            .partition(|flight| flight.answer <= now);
        self.workers[number].flights = flying;
        let landed: Vec<Flight> = landed;
        for Flight {
            ticket,
            sent,
            weather,
            ..
        } in landed
        {
            let sign = match weather {
                Weather::Fine => Sign::Well,
                Weather::Failing | Weather::Hanging => unwell(),
                Weather::Limiting => Sign::Limited(Duration::from_millis(1500)),
                Weather::Refusing => refused(),
            };
            let event = self.workers[number].gate.record(ticket, &sign, now);
            if let Some(event) = event {
                let was_open = self.row.condition == Condition::Open;
                self.apply(number, &event);
                if !was_open && self.row.condition == Condition::Open {
                    assert!(
                        sent >= self.shut,
                        "an answer from before the shut opened it"
                    );
                }
                self.workers[number].gate.recorded(&event);
            }
            self.workers[number].gate.leave(ticket, now);
        }
    }

    fn probe(&mut self, number: usize) {
        let (now, me) = (self.now, format!("w{number}"));
        if let Some((at, answered)) = self.workers[number].probe {
            if at > now {
                return;
            }
            self.workers[number].probe = None;
            let back = self.workers[number].gate.is_gone();
            if answered {
                self.apply(number, &Event::Answered(me));
                self.workers[number].gate.try_one(back, now);
            } else {
                self.apply(number, &Event::NotAnswered(me));
            }
            return;
        }
        match self.workers[number].gate.next_step(now) {
            Some((at, step)) if at <= now => match step {
                Step::Claim => {
                    if !self.apply(number, &Event::Claim(me)) {
                        return;
                    }
                    if !self.workers[number].gate.must_probe() {
                        self.workers[number].gate.try_one(true, now);
                        return;
                    }
                    let weather = self.weather();
                    self.sent.push((now, weather));
                    let hangs = weather == Weather::Hanging;
                    let answered = !hangs && weather != Weather::Failing;
                    let took = if hangs { HANG } else { 5 + self.pick(30) };
                    self.workers[number].probe = Some((now + took, answered));
                }
                Step::BringForward => {
                    self.workers[number].gate.brought_forward(now);
                    self.workers[number].idle_until = 0;
                }
                Step::Renew => drop(self.apply(number, &Event::Renew(me))),
                Step::PassOn => {
                    self.workers[number].gate.passed_on(now);
                    self.apply(number, &Event::PassOn(me));
                }
            },
            _ => {}
        }
    }

    /// Sends a job's request, if the worker has a job and the gate lets it through.
    fn send(&mut self, number: usize) -> bool {
        let now = self.now;
        if self.workers[number].idle_until > now {
            return false;
        }
        // Now and then there is nothing to do for a while.
        if self.pick(2000) == 0 {
            self.workers[number].idle_until = now + self.pick(3000);
            return false;
        }
        let ticket = match self.workers[number].gate.admit(now) {
            Admission::Enter(ticket) => Some(ticket),
            Admission::Slot if self.apply(number, &Event::Slot) => {
                self.workers[number].gate.enter_with_slot(now)
            }
            Admission::Slot | Admission::Until(_) | Admission::Wait => None,
        };
        let Some(ticket) = ticket else {
            return false;
        };
        let gate = &self.workers[number].gate;
        if gate.row.condition == Condition::Limited {
            assert!(
                gate.row.holder.is_some() && now >= self.shut + 1000,
                "too early"
            );
        }
        // A worker that has not yet seen the limit sees it within a second.
        if self.row.condition == Condition::Limited && self.row.holder.is_none() {
            assert!(now <= self.shut + 1000 + STEP, "a limit was not kept");
        }
        let weather = self.weather();
        self.sent.push((now, weather));
        let took = match weather {
            Weather::Hanging => HANG,
            _ => 3 + self.pick(60),
        };
        self.workers[number].flights.push(Flight {
            ticket,
            sent: now,
            answer: now + took,
            weather,
        });
        true
    }

    /// The most requests in any second, among requests into bad weather that all workers could know of.
    fn busiest_bad_second(&self) -> usize {
        let known_since = |at: i64| {
            let since = self.weather.iter().rev().find(|(from, _)| *from <= at);
            since.is_some_and(|(from, _)| at >= from + NOTICE)
        };
        let bad: Vec<i64> = self
            .sent
            .iter()
            .filter(|(at, weather)| *weather != Weather::Fine && known_since(*at))
            .map(|(at, _)| *at)
            .collect();
        let count = |start: usize| bad.partition_point(|&at| at < bad[start] + 1000) - start;
        (0..bad.len()).map(count).max().unwrap_or_default()
    }
}

fn config() -> Config {
    let config = Config::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return config;
    }
    Config {
        cases: 64,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..config
    }
}

fn bad_weather() -> impl Strategy<Value = Weather> {
    prop_oneof![
        4 => Just(Weather::Failing),
        2 => Just(Weather::Hanging),
        2 => Just(Weather::Limiting),
        1 => Just(Weather::Refusing),
    ]
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_the_workers_see_and_when(
        workers in 1..5_usize,
        parts in prop::collection::vec((200..3000_i64, bad_weather(), 200..9000_i64), 1..5),
        seed in any::<u64>(),
    ) {
        let (mut weather, mut at) = (Vec::new(), START);
        for (fine, bad, long) in parts {
            weather.push((at + fine, bad));
            weather.push((at + fine + long, Weather::Fine));
            at += fine + long;
        }
        let mut world = World::new(workers, weather, seed);
        while world.now < at {
            world.step();
        }
        let busiest = world.busiest_bad_second();
        prop_assert!(busiest <= 10, "{busiest} requests in a second");
        // The homeserver works now: all gates open, and a backlog of 2,000 is done within 30 s.
        let before = world.sent.len();
        while world.now < at + 30_000 {
            world.step();
        }
        for worker in &world.workers {
            prop_assert!(worker.gate.is_open(), "{:?}", worker.gate);
        }
        prop_assert!(world.sent.len() - before >= 2000, "{}", world.sent.len() - before);
    }
}
