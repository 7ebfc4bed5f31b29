//! Sends counts to phones when no message brings them (`PUSH_BADGE_UPDATES=on`).

use std::sync::Arc;

use matrix2acrobits_shared::flow::PushTarget;
use tokio::time::{Instant, sleep};

use super::{Shared, TokenBook};
use crate::notify::{
    badges, cache::Lookup, dedupe::EventKey, notification::Device, pnm::translate, trust::Marked,
};

impl<T: TokenBook> Shared<T> {
    /// Has a phone told its count soon. A homeserver never repeats a badge update, and the next message brings the
    /// count anyway, so whatever is in the way of this one ends it.
    pub(super) async fn update_badge(
        self: &Arc<Self>,
        device: &Device<'_>,
        marked: Marked,
        unread: u64,
    ) {
        let selector = device.selector.as_deref();
        let found = self.tokens.find(&device.app_id, &device.pushkey, selector);
        let Ok(Lookup::Live(target)) = found.await else {
            return;
        };
        let now = Instant::now().into_std();
        if self.rules.trust.take(marked, &target, now).is_err() {
            return;
        }
        let phone = self.phone(&target);
        if !self.badges.note(phone, unread) {
            return;
        }
        let shared = Arc::clone(self);
        self.tracker.spawn(async move {
            tokio::select! {
                () = sleep(badges::PAUSE) => {}
                () = shared.stopping.cancelled() => return,
            }
            if let Some(unread) = shared.badges.take(&phone) {
                let outcome = shared.pnm.send(&translate::badge(&target, unread)).await;
                tracing::debug!(?outcome, "a badge update was sent");
            }
        });
    }

    /// A message is about to bring this phone its count.
    pub(super) fn forget_badge(&self, target: &PushTarget) {
        if self.rules.badge_updates {
            self.badges.take(&self.phone(target));
        }
    }

    fn phone(&self, target: &PushTarget) -> EventKey {
        let (app_id, pushkey) = (target.app_id.as_str(), target.pushkey.as_str());
        self.dedupe
            .key(["", app_id, pushkey, target.selector.as_str()])
    }
}
