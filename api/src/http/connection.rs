//! One connection: its requests go to the router, and its deadlines are kept, whatever the client does.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    http::{Request, Response, StatusCode},
};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::http::{
    errors::Matter,
    observe::Observe,
    progress::{Late, Progress},
    refusal::refusal,
};

/// Most of a request's head, in bytes, give or take what one read brings; more is answered 431. Reports by GET
/// have their fields there.
const MAX_HEAD: usize = 32 * 1024;
/// How long bytes may be in transit that were sent before the process was told to stop.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// How long a client whose request was not read to its end has to read the answer: with unread bytes the kernel
/// would answer a close with a reset, which can overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
/// Most that is read and thrown away meanwhile.
const MAX_LINGER: usize = 512 * 1024;

/// Serves the requests of a connection until the client or a deadline ends it; after `stop` those alone that are
/// complete.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Observe,
    stop: CancellationToken,
) {
    let progress = Shared::new();
    let service = {
        let progress = progress.clone();
        service_fn(move |request: Request<Incoming>| {
            progress
                .lock()
                .head(Instant::now(), request.body().is_end_stream());
            let progress = progress.clone();
            let mut request = request.map(|body| Body::new(Asked::new(body, progress.clone())));
            let info = ConnectInfo::<SocketAddr>(peer);
            request.extensions_mut().insert(info);
            let response = router.call(request);
            async move {
                let response: Response<Body> = response.await?;
                progress.lock().answering();
                Ok::<_, Infallible>(response.map(|body| Answer { body, progress }))
            }
        })
    };
    let io = Io {
        stream,
        progress: progress.clone(),
        refused: None,
    };
    let mut connection = http1::Builder::new()
        // The deadlines are ours: hyper's deadline for heads includes the idle time, and it has none for writing.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), service);

    let end = {
        let mut late = pin!(progress.late());
        let mut stopped = pin!(async {
            stop.cancelled().await;
            sleep(ON_ITS_WAY).await;
        });
        let mut stopping = false;
        loop {
            tokio::select! {
                biased;
                result = Pin::new(&mut connection) => break End::Of(result),
                late = &mut late => break End::Late(late),
                () = &mut stopped, if !stopping => {
                    stopping = true;
                    if progress.lock().is_incomplete() {
                        break End::Stop;
                    }
                    progress.lock().stop(Instant::now());
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    };
    let io = connection.into_parts().io.into_inner();
    io.finish(end).await;
}

/// How a connection came to its end.
#[derive(Debug)]
enum End {
    Of(hyper::Result<()>),
    Late(Late),
    Stop,
}

/// The progress of a connection, told by its stream, its requests and its answers, all in one task.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Progress>>);

impl Shared {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Progress::new(Instant::now()))))
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes true when the deadline has passed. Poll it whenever the connection was polled: only then the deadline
    /// moves. The timer is set anew only for an earlier one, which a quick request never brings about.
    async fn late(&self) -> Late {
        let start = self.lock().deadline().unwrap_or_else(Instant::now);
        let mut timer: Pin<&mut Sleep> = pin!(sleep_until(start.into()));
        std::future::poll_fn(|cx| {
            loop {
                let Some(deadline) = self.lock().deadline() else {
                    return Poll::Pending;
                };
                if deadline < timer.deadline().into_std() {
                    timer.as_mut().reset(deadline.into());
                }
                ready!(timer.as_mut().poll(cx));
                if deadline <= Instant::now() {
                    return Poll::Ready(self.lock().late());
                }
                timer.as_mut().reset(deadline.into());
            }
        })
        .await
    }
}

/// The stream, watched.
#[derive(Debug)]
struct Io {
    stream: TcpStream,
    progress: Shared,
    /// What hyper answers by itself to a head that it cannot read: a status without a body, which is not written;
    /// ours goes in its place.
    refused: Option<StatusCode>,
}

impl Io {
    /// Tells the client why, where there is something to tell, and ends the connection.
    async fn finish(mut self, end: End) {
        let answer = match (&end, self.refused) {
            (_, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG)) => {
                let words = "The head of the request is too large.";
                Some((Matter::HeadTooLarge, words))
            }
            (_, Some(_)) => Some((Matter::NotHttp, "This is not an HTTP request.")),
            (End::Of(Err(error)), None) if error.is_parse() => {
                Some((Matter::NotHttp, "This is not an HTTP/1 request."))
            }
            (End::Late(Late::Timeout), _) => {
                Some((Matter::TooSlow, "The request took too long to arrive."))
            }
            (End::Late(Late::Unanswered), _) => {
                let words = "The answer took too long; try again.";
                Some((Matter::Unavailable, words))
            }
            _ => None,
        };
        tracing::debug!(
            ?end,
            status = answer.map(|(matter, _)| matter.code().0.as_u16()),
            "a connection ended"
        );
        if matches!(end, End::Late(Late::Cut)) {
            // With a reset: otherwise the kernel would go on offering what is not taken.
            let _ = self.stream.set_zero_linger();
            return;
        }
        let unread = self.progress.lock().is_unread() && matches!(end, End::Of(_));
        if answer.is_none() && !unread {
            return;
        }
        let _ = timeout(LINGER, self.farewell(answer)).await;
    }

    async fn farewell(&mut self, answer: Option<(Matter, &str)>) -> io::Result<()> {
        if let Some((matter, words)) = answer {
            self.stream.write_all(&refusal(matter, words)).await?;
        }
        self.stream.shutdown().await?;
        let mut buffer = [0; 4096];
        let mut rest = MAX_LINGER;
        while rest > 0 {
            match self.stream.read(&mut buffer).await? {
                0 => break,
                read => rest = rest.saturating_sub(read),
            }
        }
        Ok(())
    }

    /// Takes hyper's own answer out; the bytes count as written.
    fn take_refusal(&mut self, bytes: &[u8]) -> bool {
        if self.refused.is_none() && self.progress.lock().is_before_request() {
            let status = bytes.get(9..12).map(StatusCode::from_bytes);
            self.refused = status.and_then(Result::ok);
        }
        self.refused.is_some()
    }

    fn note(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(_)) => self.progress.lock().wrote(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.progress.lock().full(Instant::now()),
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.progress.lock().read(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.take_refusal(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.take_refusal(buffers.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(buffers.iter().map(|buffer| buffer.len()).sum()));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.note(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.progress.lock().flushed(Instant::now());
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            // Our answer is still to come.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request's body, whose end is told.
#[derive(Debug)]
struct Asked {
    body: Incoming,
    progress: Shared,
    ended: bool,
}

impl Asked {
    fn new(body: Incoming, progress: Shared) -> Self {
        let ended = body.is_end_stream();
        Self {
            body,
            progress,
            ended,
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.ended {
            self.progress.lock().body_left();
        }
    }
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.ended = true;
            self.progress.lock().body_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// An answer's body, whose end is told.
    struct Answer {
        #[pin]
        body: Body,
        progress: Shared,
    }

    impl PinnedDrop for Answer {
        fn drop(this: Pin<&mut Self>) {
            this.progress.lock().answered();
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
