//! Answers many questions to the database by one query: who asks while a query runs shares the next one.
//!
//! sqlx runs SQLite in a thread of its own, and going there and back costs several times what an indexed
//! read costs. Under load that is shared; alone, a question is asked at once.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::store::StoreError;

/// Most questions in one query.
const MOST: usize = 128;
/// Most questions that wait for the next one; who comes on top waits for room.
const WAITING: usize = 1024;

type Asked<Q, A> = (Q, oneshot::Sender<Result<A, StoreError>>);

/// Where questions of one kind are asked. Cheap to clone; the task behind it ends with the last clone.
#[derive(Debug)]
pub(crate) struct Batch<Q, A> {
    questions: mpsc::Sender<Asked<Q, A>>,
}

impl<Q, A> Clone for Batch<Q, A> {
    fn clone(&self) -> Self {
        Self {
            questions: self.questions.clone(),
        }
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Batch<Q, A> {
    /// Starts the task that has `answer` answer questions; it returns one answer for each, in order.
    pub(crate) fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Arc<[Q]>) -> R + Send + 'static,
        R: Future<Output = Result<Vec<A>, StoreError>> + Send + 'static,
    {
        let (questions, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(waiting, answer));
        Self { questions }
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask(&self, question: Q) -> Result<A, StoreError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.questions.send((question, reply)).await;
        sent.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Takes what waits, `most` at the most; false when nothing will come any more.
pub(crate) async fn take<T>(
    waiting: &mut mpsc::Receiver<T>,
    into: &mut Vec<T>,
    most: usize,
) -> bool {
    let Some(first) = waiting.recv().await else {
        return false;
    };
    into.push(first);
    // Who is about to come goes first: on a busy core there would be one or two in each batch.
    tokio::task::yield_now().await;
    take_more(waiting, into, most);
    true
}

/// Takes what waits now until there are `most`.
pub(crate) fn take_more<T>(waiting: &mut mpsc::Receiver<T>, into: &mut Vec<T>, most: usize) {
    while into.len() < most
        && let Ok(next) = waiting.try_recv()
    {
        into.push(next);
    }
}

async fn run<Q, A, F, R>(mut waiting: mpsc::Receiver<Asked<Q, A>>, answer: F)
where
    F: Fn(Arc<[Q]>) -> R,
    R: Future<Output = Result<Vec<A>, StoreError>>,
{
    let mut asked = Vec::with_capacity(MOST);
    while take(&mut waiting, &mut asked, MOST).await {
        let (questions, replies): (Vec<Q>, Vec<_>) = asked.drain(..).unzip();
        match answer(questions.into()).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // Who no longer waits needs no answer.
                    let _ = reply.send(Ok(answer));
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::Semaphore;

    use super::*;

    /// Doubles numbers, notes how many each query took, and answers one query for each permit.
    fn doubling(permits: Arc<Semaphore>, sizes: Arc<Mutex<Vec<usize>>>) -> Batch<u64, u64> {
        Batch::start(move |numbers: Arc<[u64]>| {
            let (permits, sizes) = (permits.clone(), sizes.clone());
            async move {
                sizes.lock().unwrap().push(numbers.len());
                permits.acquire().await.unwrap().forget();
                if numbers.contains(&1300) {
                    return Err(StoreError::Overloaded);
                }
                Ok(numbers.iter().map(|number| number * 2).collect())
            }
        })
    }

    #[tokio::test]
    async fn who_asks_while_a_query_runs_shares_the_next_one() {
        let (permits, sizes) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Vec<_>>>::default());
        let batch = doubling(permits.clone(), sizes.clone());
        let ask = |number| {
            let batch = batch.clone();
            async move { batch.ask(number).await.unwrap() }
        };
        let first = tokio::spawn(ask(1));
        while sizes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let rest = futures::future::join_all((2..300).map(ask));
        let release = async {
            while batch.questions.capacity() > WAITING - 298 {
                tokio::task::yield_now().await;
            }
            permits.add_permits(100);
        };
        let (answers, ()) = tokio::join!(rest, release);
        assert_eq!(first.await.unwrap(), 2);
        assert_eq!(answers, (2..300).map(|n| n * 2).collect::<Vec<_>>());
        let sizes = sizes.lock().unwrap();
        let few = sizes.len() < 10 && sizes.iter().all(|size| *size <= MOST);
        assert!(few && sizes[0] == 1, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_query_that_fails_fails_for_all_and_the_next_one_works() {
        let batch = doubling(Arc::new(Semaphore::new(9)), Arc::default());
        assert!(matches!(batch.ask(1300).await, Err(StoreError::Overloaded)));
        assert_eq!(batch.ask(4).await.unwrap(), 8);
    }
}
