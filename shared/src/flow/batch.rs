//! Batches questions to the database: questions that arrive while a query runs share the next query.
//!
//! A round trip to the database costs several times what an indexed read costs. Under load, questions share that cost.
//! A question alone is asked at once.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{StoreError, feed::Vital};

/// Most questions in one query.
const MOST: usize = 128;
/// Most questions that wait for the next query. Further callers wait for room.
const WAITING: usize = 1024;

type Asked<Q, A> = (Q, oneshot::Sender<Result<A, StoreError>>);

/// Takes questions of one kind. Cheap to clone. The task behind it ends with the last clone.
#[derive(Debug)]
pub struct Batch<Q, A> {
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
    /// Starts the task. `answer` returns one answer for each question, in order.
    ///
    /// A question that the database refuses must not make the others fail. So each is then asked alone.
    pub fn start<F, R>(vital: &Vital, answer: F) -> Self
    where
        Q: Clone,
        F: Fn(Arc<[Q]>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Vec<A>, StoreError>> + Send + 'static,
    {
        let (questions, waiting) = mpsc::channel(WAITING);
        vital.spawn("reads", run(waiting, answer));
        Self { questions }
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, question: Q) -> Result<A, StoreError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.questions.send((question, reply)).await;
        sent.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }
}

/// Waits for items and takes up to `most`. False when the channel is closed.
pub async fn take<T>(waiting: &mut mpsc::Receiver<T>, into: &mut Vec<T>, most: usize) -> bool {
    let Some(first) = waiting.recv().await else {
        return false;
    };
    into.push(first);
    // Let callers that are about to send go first. Otherwise a batch on a busy core would hold only one or two.
    tokio::task::yield_now().await;
    take_more(waiting, into, most);
    true
}

/// Takes the items that wait now, until there are `most`.
pub fn take_more<T>(waiting: &mut mpsc::Receiver<T>, into: &mut Vec<T>, most: usize) {
    while into.len() < most
        && let Ok(next) = waiting.try_recv()
    {
        into.push(next);
    }
}

async fn run<Q, A, F, R>(mut waiting: mpsc::Receiver<Asked<Q, A>>, answer: F)
where
    Q: Clone,
    F: Fn(Arc<[Q]>) -> R,
    R: Future<Output = Result<Vec<A>, StoreError>>,
{
    let mut asked = Vec::with_capacity(MOST);
    while take(&mut waiting, &mut asked, MOST).await {
        let (questions, replies): (Vec<Q>, Vec<_>) = asked.drain(..).unzip();
        let questions: Arc<[Q]> = questions.into();
        match answer(questions.clone()).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // The caller may have gone away.
                    let _ = reply.send(Ok(answer));
                }
            }
            // A lookup waits for no row, so a lock that it waits for is a table's.
            Err(error) if error.is_environment() || error.is_busy() || replies.len() == 1 => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
            Err(_) => {
                for (question, reply) in questions.iter().zip(replies) {
                    let alone = answer(Arc::new([question.clone()])).await;
                    let _ = reply.send(alone.and_then(|mut answers| {
                        // One answer for each question.
                        answers.pop().ok_or(StoreError::Stopped)
                    }));
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
        Batch::start(&Vital::default(), move |numbers: Arc<[u64]>| {
            let (permits, sizes) = (permits.clone(), sizes.clone());
            async move {
                sizes.lock().unwrap().push(numbers.len());
                permits.acquire().await.unwrap().forget();
                if numbers.contains(&1300) {
                    return Err(StoreError::Overloaded);
                }
                if numbers.contains(&1013) {
                    return Err(StoreError::Refused(Arc::new(std::fmt::Error)));
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
    async fn a_question_that_is_refused_fails_alone() {
        let (permits, sizes) = (Arc::new(Semaphore::new(0)), Arc::<Mutex<Vec<_>>>::default());
        let batch = doubling(permits.clone(), sizes.clone());
        let first = tokio::spawn({
            let batch = batch.clone();
            async move { batch.ask(1).await }
        });
        while sizes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let rest = futures::future::join_all((1012..1015).map(|number| batch.ask(number)));
        let release = async {
            while batch.questions.capacity() > WAITING - 3 {
                tokio::task::yield_now().await;
            }
            permits.add_permits(100);
        };
        let (answers, ()) = tokio::join!(rest, release);
        assert_eq!(first.await.unwrap().unwrap(), 2);
        let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
        assert_eq!(answers, [Some(2024), None, Some(2028)]);
    }

    #[tokio::test]
    async fn a_query_that_fails_fails_for_all_and_the_next_one_works() {
        let batch = doubling(Arc::new(Semaphore::new(9)), Arc::default());
        assert!(matches!(batch.ask(1300).await, Err(StoreError::Overloaded)));
        assert_eq!(batch.ask(4).await.unwrap(), 8);
    }
}
