//! What a job asks of the homeserver: the requests that make its pusher what the row says.

use matrix2acrobits_shared::{
    matrix::{
        mark::MarkKey,
        pushers::{DeletePusher, SetPusher},
    },
    rules::{
        outcome::{Meaning, Request, meaning},
        pushers::{Goal, PusherTask},
    },
};

use super::Jobs;
use crate::gate::Pass;

impl Jobs {
    /// Makes the homeserver's pusher what the row says. None when the gate shut between two requests.
    pub(super) async fn act(
        &self,
        row: &PusherTask,
        key: &MarkKey,
        pass: &Pass<'_>,
    ) -> Option<Meaning> {
        let set = SetPusher::new(&row.app_id, &row.pushkey, &row.selector, &self.pusher, key);
        Some(match row.goal {
            Goal::Delete => {
                let pusher = DeletePusher::new(&row.app_id, &row.pushkey);
                let reply = self.homeserver.delete(&row.user_id, &pusher).await;
                meaning(&reply, Request::Delete)
            }
            Goal::Check => return self.check(row, set, pass).await,
            Goal::Set | Goal::Nothing | Goal::Outdone | Goal::Yield => self.set(row, &set).await,
        })
    }

    async fn set(&self, row: &PusherTask, pusher: &SetPusher<'_>) -> Meaning {
        let reply = self.homeserver.set(&row.user_id, pusher).await;
        meaning(&reply, Request::Set)
    }

    /// Sets the pusher unless the homeserver holds it as it should be.
    async fn check(
        &self,
        row: &PusherTask,
        wanted: SetPusher<'_>,
        pass: &Pass<'_>,
    ) -> Option<Meaning> {
        let (reply, held) = self.homeserver.pushers(&row.user_id).await;
        Some(match (meaning(&reply, Request::Look), held) {
            (Meaning::Done, Some(held)) if held.iter().any(|held| wanted.matches(held)) => {
                Meaning::Done
            }
            (Meaning::Done, Some(_)) if !self.gate.again(pass).await => return None,
            (Meaning::Done, Some(held)) => self.set(row, &wanted.keeping(&held)).await,
            (Meaning::Done, None) => Meaning::Outage {
                reason: "the list of pushers cannot be read".into(),
                maybe_done: false,
                asked: None,
            },
            (meaning, _) => meaning,
        })
    }
}
