//! The workers' steps with the queue, through their own store.

use futures::future::join_all;
use matrix2acrobits_shared::{
    flow::{Claim, Finished, GateReport, Heartbeat, Held},
    rules::pushers::{FinishSettings, Goal, Loaded, Outcome, PusherTask},
};
use matrix2acrobits_store::Role;

use crate::{
    steps::{Answer, WORKERS},
    world::{World, open},
};

pub(crate) const SETTINGS: &str = "event_id_only https://push.example.org";
/// The longest backoff, in seconds.
const LONGEST_WAIT: i64 = 20;

/// What a pusher is registered as: see `PusherSettings::fingerprint`.
pub(crate) fn fingerprint(key: &str) -> String {
    format!("{SETTINGS} {key}")
}

/// A job in a worker's hands.
#[derive(Debug)]
pub(crate) struct Run {
    held: Held,
    stage: Stage,
    /// The name of the key that the job makes its mark with.
    key: String,
}

#[derive(Debug)]
enum Stage {
    Taken,
    Loaded(PusherTask),
    /// The homeserver responded that it does not hold the pusher.
    Missing(PusherTask),
    Acted(PusherTask, Outcome),
}

impl World {
    pub(crate) async fn fetch(&mut self, worker: u8, limit: u8, suspect: bool, answered: bool) {
        let name = self.workers[usize::from(worker)].0.clone();
        let known = |doubtful: bool| {
            let held = self.runs.iter().map(|run| &run.held);
            let ours = held.filter(|held| held.worker == name);
            doubtful.then(|| ours.map(|held| held.pusher_id).collect())
        };
        let claim = Claim {
            worker: name.clone(),
            settings: SETTINGS.into(),
            limit: limit.into(),
            suspect,
            knows: known(self.doubtful.contains(&name)),
        };
        let claimed = self.other.claim(claim).await.unwrap();
        if !answered {
            self.doubtful.insert(name);
            return;
        }
        self.doubtful.remove(&name);
        for held in claimed.jobs {
            if held.suspect {
                self.other.begin(held.clone()).await.unwrap();
            }
            self.runs.push(Run {
                held,
                stage: Stage::Taken,
                key: self.key.clone(),
            });
        }
    }

    /// Takes the worker's next step with a job (`worker::job`). None when the job is done.
    pub(crate) async fn advance(&mut self, run: Run, answer: Answer) -> Option<Run> {
        if matches!(run.stage, Stage::Acted(..)) {
            self.finish(&run).await;
            return None;
        }
        let Run {
            held,
            stage,
            mut key,
        } = run;
        let stage = match stage {
            Stage::Taken => {
                key.clone_from(&self.key);
                self.load(&held).await?
            }
            Stage::Loaded(row) => match (row.goal, answer) {
                (Goal::Check, Answer::Ok) if self.homeserver.has(&row, &key) => {
                    Stage::Acted(row, Outcome::Registered)
                }
                (Goal::Check, Answer::Ok) => Stage::Missing(row),
                (Goal::Check, answer) => {
                    // Looking changes nothing.
                    let outcome = self.outcome(answer, Outcome::Registered, false);
                    Stage::Acted(row, outcome)
                }
                _ => self.act(row, &key, answer),
            },
            Stage::Missing(row) => self.act(row, &key, answer),
            Stage::Acted(..) => return None,
        };
        Some(Run { held, stage, key })
    }

    async fn load(&self, held: &Held) -> Option<Stage> {
        let row = match self.other.task(held, self.append).await.unwrap() {
            Loaded::Task(row) => row,
            Loaded::Taken => return None,
            Loaded::Gone => {
                self.other.drop_job(held.clone()).await.unwrap();
                return None;
            }
            Loaded::Unreadable => {
                let error = "cannot be read".into();
                self.other.kill_job(held.clone(), error).await.unwrap();
                return None;
            }
        };
        Some(match row.goal {
            Goal::Set | Goal::Check | Goal::Delete => Stage::Loaded(row),
            Goal::Outdone => Stage::Acted(row, Outcome::Outdone),
            Goal::Nothing | Goal::Yield => Stage::Acted(row, Outcome::Nothing),
        })
    }

    fn act(&mut self, row: PusherTask, key: &str, answer: Answer) -> Stage {
        if matches!(answer, Answer::Ok | Answer::LostAfter) {
            self.land(&row, key);
        }
        let done = match row.goal {
            Goal::Delete => Outcome::Removed,
            _ => Outcome::Registered,
        };
        let outcome = self.outcome(answer, done, true);
        Stage::Acted(row, outcome)
    }

    fn land(&mut self, row: &PusherTask, key: &str) {
        match row.goal {
            Goal::Delete => self.homeserver.delete(row),
            _ => self.homeserver.set(row, key, self.append),
        }
    }

    fn outcome(&self, answer: Answer, done: Outcome, changes: bool) -> Outcome {
        let retry = |maybe_done, limited: bool| Outcome::Retry {
            run_at: self.now + if limited { 40 } else { LONGEST_WAIT },
            not_before: limited.then_some(self.now + 10),
            error: "no".into(),
            maybe_done,
        };
        match answer {
            Answer::Ok => done,
            Answer::LostAfter | Answer::LostBefore => retry(changes, false),
            Answer::Failed => retry(false, false),
            Answer::Limited => retry(false, true),
            Answer::Refused => Outcome::Dead { error: "no".into() },
        }
    }

    /// Takes the jobs with a response.
    pub(crate) fn take_answered(&mut self) -> Vec<Run> {
        let (answered, rest) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| matches!(run.stage, Stage::Acted(..)));
        self.runs = rest;
        answered
    }

    pub(crate) async fn finish_all(&mut self) {
        let answered = self.take_answered();
        join_all(answered.iter().map(|run| self.finish(run))).await;
    }

    /// Records the outcome of a job.
    pub(crate) async fn finish(&self, run: &Run) {
        let Stage::Acted(row, outcome) = &run.stage else {
            return;
        };
        let settings = FinishSettings {
            fingerprint: fingerprint(&run.key),
            settings: SETTINGS.into(),
            mark_key: run.key.clone(),
            one_per_pushkey: false,
            append: self.append,
            refresh_after: 86_400,
        };
        let finished = self.other.finish(Finished {
            held: run.held.clone(),
            task: row.clone(),
            outcome: outcome.clone(),
            settings,
        });
        finished.await.unwrap();
    }

    pub(crate) async fn kill(&mut self, worker: u8, land: u8) {
        let (name, _) = self.workers[usize::from(worker)].clone();
        let (of_worker, others) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| run.held.worker == name);
        self.runs = others;
        for (index, run) in Vec::<Run>::into_iter(of_worker).enumerate() {
            // A request under way may still arrive, unless other workers already assume that this one is dead.
            let lands = land >> (index % 8) & 1 == 1 && self.holds(&run.held).await;
            match &run.stage {
                Stage::Missing(row) if lands => self.land(row, &run.key),
                Stage::Loaded(row) if lands && row.goal != Goal::Check => self.land(row, &run.key),
                _ => {}
            }
        }
        if land % 4 == 3 {
            // The process is gone without closing its connections.
            let clock = self.other.clock().clone();
            self.other = open(&self.behind, Role::Behind, clock).await;
        }
        self.workers[usize::from(worker)] = self.new_worker().await;
    }

    async fn holds(&self, held: &Held) -> bool {
        self.behind.holder(held).await.as_deref() == Some(held.worker.as_ref())
    }

    pub(crate) async fn stop(&mut self, worker: u8) {
        let (name, _) = self.workers[usize::from(worker)].clone();
        let (of_worker, others) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| run.held.worker == name);
        self.runs = others;
        for run in Vec::<Run>::into_iter(of_worker) {
            if !matches!(run.stage, Stage::Taken) {
                self.run_to_its_end(run).await;
            }
        }
        self.other.release_worker(name).await.unwrap();
        self.workers[usize::from(worker)] = self.new_worker().await;
    }

    async fn run_to_its_end(&mut self, run: Run) {
        let mut next = Some(run);
        while let Some(run) = next {
            next = self.advance(run, Answer::Ok).await;
        }
    }

    pub(crate) async fn beat(&self, worker: u8) {
        let (name, started) = self.workers[usize::from(worker)].clone();
        let heartbeat = Heartbeat {
            worker: name,
            started,
            settings: SETTINGS.into(),
            gate: GateReport::default(),
            recovers: true,
        };
        self.other.heartbeat(heartbeat).await.unwrap();
    }

    /// What a worker does once it has noticed a new key (`worker::marks`).
    pub(crate) async fn notice_key(&mut self) {
        let current = self.store.mark_keys().await.unwrap().current;
        if self.key == current.name() {
            return;
        }
        current.name().clone_into(&mut self.key);
        let (fingerprint, mut after) = (fingerprint(&self.key), 0);
        while let Some((last, _)) = self
            .other
            .renew_outdated(SETTINGS, &fingerprint, after)
            .await
            .unwrap()
        {
            after = last;
        }
    }

    /// Everything works from now on, until nothing is left to do.
    pub(crate) async fn settle(&mut self) {
        self.notice_key().await;
        for run in std::mem::take(&mut self.runs) {
            self.run_to_its_end(run).await;
        }
        // This is longer in total than a homeserver may ask us to wait.
        for round in 0..80 {
            for worker in 0..WORKERS {
                self.beat(worker).await;
            }
            self.other.correct_waits(LONGEST_WAIT).await.unwrap();
            for worker in 0..WORKERS {
                self.fetch(worker, 64, true, true).await;
            }
            for run in std::mem::take(&mut self.runs) {
                self.run_to_its_end(run).await;
            }
            if self.jobs().await.iter().all(|state| state == "Killed") {
                return;
            }
            self.pass(if round < 15 { 5 } else { 60 });
        }
        panic!(
            "a job is stuck: {:?}",
            self.store.list_jobs(None, "", 9).await
        );
    }
}
