//! A job's requests to the homeserver, which make its pusher match the row.

use matrix2acrobits_shared::{
    mark::MarkKey,
    matrix::{
        device::{self, DEVICE_ID},
        pushers::{DeletePusher, HeldPusher, SetPusher},
    },
    rules::{
        outcome::{Meaning, Reply, Request, meaning},
        pushers::PusherTask,
    },
};

use super::{Jobs, outcome::Work};
use crate::gate::Pass;

impl Jobs {
    /// Makes the homeserver's pusher match the row. None when the gate shut between two requests. Also returns whether
    /// the homeserver was asked to change something.
    pub(super) async fn act(
        &self,
        row: &PusherTask,
        work: Work,
        key: &MarkKey,
        pass: &Pass<'_>,
    ) -> Option<(Meaning, bool)> {
        let knew = self.homeserver.wants_device();
        let (reply, meaning) = self.act_once(row, work, key, pass).await?;
        let changing = reply.is_some();
        let learned = !knew && reply.is_some_and(|reply| device::is_wanted(&reply));
        if !learned {
            return Some((meaning, changing));
        }
        tracing::info!(
            device = DEVICE_ID,
            "the homeserver lets us set pushers only as a device of the user: a device id is sent from now on"
        );
        if !self.gate.again(pass).await {
            return None;
        }
        let (reply, meaning) = self.act_once(row, work, key, pass).await?;
        Some((meaning, reply.is_some()))
    }

    /// Returns the reply to the request that changes something, if there was one, and what follows for the job.
    async fn act_once(
        &self,
        row: &PusherTask,
        work: Work,
        key: &MarkKey,
        pass: &Pass<'_>,
    ) -> Option<(Option<Reply>, Meaning)> {
        // Some homeservers identify a pusher by user and pushkey alone. To them, the pusher of a former app and that of
        // the new app are the same, so the two jobs must not overlap.
        let _turn = if self.homeserver.wants_device() {
            Some(self.turns.take(&row.user_id, &row.pushkey).await)
        } else {
            None
        };
        let set = SetPusher::new(&row.app_id, &row.pushkey, &row.selector, &self.pusher, key);
        match work {
            Work::Delete => self.delete(row, pass).await,
            Work::Check => self.check(row, set, pass).await,
            Work::Set => self.set(row, &set, pass).await,
        }
    }

    async fn set(
        &self,
        row: &PusherTask,
        pusher: &SetPusher<'_>,
        pass: &Pass<'_>,
    ) -> Option<(Option<Reply>, Meaning)> {
        let set = || self.homeserver.set(&row.user_id, pusher);
        let reply = self.with_device(row, set, pass).await?;
        let meaning = meaning(&reply, Request::Set);
        Some((Some(reply), meaning))
    }

    /// Sends a change. If the user's device has to be made first, makes it and sends the change again. Each of these
    /// requests waits for the gate.
    async fn with_device<F>(
        &self,
        row: &PusherTask,
        change: impl Fn() -> F,
        pass: &Pass<'_>,
    ) -> Option<Reply>
    where
        F: Future<Output = Reply>,
    {
        let reply = pass.during(change()).await;
        if !self.homeserver.lacks_device(&reply) {
            return Some(reply);
        }
        if !self.gate.again(pass).await {
            return None;
        }
        let made = self.homeserver.make_device(&row.user_id);
        let made = pass.during(made).await;
        if !device::is_made(&made) {
            return Some(device::not_made(reply, made));
        }
        if !self.gate.again(pass).await {
            return None;
        }
        Some(pass.during(change()).await)
    }

    async fn delete(&self, row: &PusherTask, pass: &Pass<'_>) -> Option<(Option<Reply>, Meaning)> {
        if self.homeserver.wants_device() {
            // The homeserver deletes by pushkey, so it would delete the pusher of the phone's current app.
            let held = match self.look(row, pass).await {
                Ok(held) => held,
                Err(meaning) => return Some((None, meaning)),
            };
            let ours = |held: &HeldPusher| {
                held.pushkey == row.pushkey.as_str() && held.app_id == row.app_id.as_str()
            };
            if !held.iter().any(ours) {
                return Some((None, Meaning::Done));
            }
            if !self.gate.again(pass).await {
                return None;
            }
        }
        let pusher = DeletePusher::new(&row.app_id, &row.pushkey);
        let delete = || self.homeserver.delete(&row.user_id, &pusher);
        let reply = self.with_device(row, delete, pass).await?;
        let meaning = meaning(&reply, Request::Delete);
        Some((Some(reply), meaning))
    }

    /// Sets the pusher, unless the homeserver holds it as it should be.
    async fn check(
        &self,
        row: &PusherTask,
        wanted: SetPusher<'_>,
        pass: &Pass<'_>,
    ) -> Option<(Option<Reply>, Meaning)> {
        let held = match self.look(row, pass).await {
            Ok(held) => held,
            Err(meaning) => return Some((None, meaning)),
        };
        if held.iter().any(|held| wanted.matches(held)) {
            return Some((None, Meaning::Done));
        }
        if !self.gate.again(pass).await {
            return None;
        }
        self.set(row, &wanted.keeping(&held), pass).await
    }

    /// The user's pushers at the homeserver. If they cannot be read, what that means for the job.
    async fn look(&self, row: &PusherTask, pass: &Pass<'_>) -> Result<Vec<HeldPusher>, Meaning> {
        let look = self.homeserver.pushers(&row.user_id);
        let (reply, held) = pass.during(look).await;
        match (meaning(&reply, Request::Look), held) {
            (Meaning::Done, Some(held)) => Ok(held),
            (Meaning::Done, None) => Err(Meaning::Outage {
                reason: "the list of pushers cannot be read".into(),
                maybe_done: false,
                asked: None,
            }),
            (meaning, _) => Err(meaning),
        }
    }
}
