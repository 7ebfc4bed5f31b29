//! apalis' backend: hands the jobs that the feeder took from the queue to the worker.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    task::{Task, builder::TaskBuilder, task_id::TaskId},
    worker::context::WorkerContext,
};
use matrix2acrobits_sqlite::queue::Held;
use tokio::sync::mpsc;
use tower::layer::util::Identity;

/// The receiving end of the feeder. When the feeder stops, the worker finishes what runs and ends.
#[derive(Debug)]
pub(crate) struct Feed(mpsc::Receiver<Held>);

impl Feed {
    pub(crate) fn new(jobs: mpsc::Receiver<Held>) -> Self {
        Self(jobs)
    }
}

impl Backend for Feed {
    type Task = Task<Held>;
    type Error = Infallible;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Task<Held>, Infallible>>> {
        self.0.poll_recv(cx).map(|held| {
            let Some(held) = held else {
                // Without this apalis would wait for a stop after the last job. It only fails before the start.
                let _ = worker.stop();
                return None;
            };
            let task = match held.job_id.parse::<ulid::Ulid>() {
                Ok(id) => TaskBuilder::new(held).task_id(TaskId::from_ulid(id)),
                Err(_) => TaskBuilder::new(held),
            };
            Some(Ok(task.build()))
        })
    }

    fn poll_close(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Feed {
    type Args = Held;
    type Id = ulid::Ulid;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
