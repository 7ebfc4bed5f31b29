//! Something that a test does at the very moment when a request arrives, or has been carried out.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::server::Request;

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The request is there, and nothing has been done.
    Arrived,
    /// It has been carried out, and the answer has not been sent.
    Done,
}

type Act = Arc<dyn Fn(Moment, &Request) -> bool + Send + Sync>;

/// What is done. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hook(Arc<Mutex<Option<Act>>>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

impl Hook {
    /// From now on `act` sees every request; where it says false, the connection is cut.
    pub fn set(&self, act: impl Fn(Moment, &Request) -> bool + Send + Sync + 'static) {
        *self.0.lock().unwrap() = Some(Arc::new(act));
    }

    /// Nothing is done any more.
    pub fn clear(&self) {
        *self.0.lock().unwrap() = None;
    }

    /// Whether the request goes on.
    pub(crate) fn goes_on(&self, moment: Moment, request: &Request) -> bool {
        let act = self.0.lock().unwrap().clone();
        act.is_none_or(|act| act(moment, request))
    }
}
