//! A network between a program and PostgreSQL that a test can cut: then nothing gets through, and nobody is told.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What does not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All gets through.
    Nothing,
    /// The connections of change feeds are silent: those that have sent LISTEN.
    Feed,
    /// All connections are silent, new ones, too.
    Everything,
}

/// The network; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<watch::Sender<Cut>>,
    accepts: AbortHandle,
}

/// A connection.
struct Line {
    feed: AtomicBool,
    state: watch::Receiver<Cut>,
}

impl Proxy {
    /// Starts one in front of this port at 127.0.0.1.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(Cut::Nothing));
        let accepts = tokio::spawn(accept(listener, to, Arc::downgrade(&state)));
        Self {
            port,
            state,
            accepts: accepts.abort_handle(),
        }
    }

    /// The port at 127.0.0.1 where programs find the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts from now on, and lets go on what is not cut.
    pub fn cut(&self, cut: Cut) {
        self.state.send_replace(cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn accept(listener: TcpListener, to: u16, state: std::sync::Weak<watch::Sender<Cut>>) {
    while let Ok((program, _)) = listener.accept().await {
        let Some(state) = state.upgrade() else {
            return;
        };
        let line = Line {
            feed: AtomicBool::new(false),
            state: state.subscribe(),
        };
        tokio::spawn(connect(program, to, line));
    }
}

async fn connect(program: TcpStream, to: u16, line: Line) {
    if !line.gets_through().await {
        return;
    }
    // Who is refused by the server finds its connection closed.
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return;
    };
    for end in [&program, &server] {
        end.set_nodelay(true).unwrap();
    }
    let line = Arc::new(line);
    let (from_program, to_program) = program.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::spawn(forward(from_server, to_program, line.clone()));
    forward(from_program, to_server, line).await;
}

/// Forwards one direction until its end, which does not get through a cut network either.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Arc<Line>) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or(0);
        if bytes[..count].windows(6).any(|it| it == b"LISTEN") {
            line.feed.store(true, Ordering::SeqCst);
        }
        if !line.gets_through().await || count == 0 {
            return;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

impl Line {
    /// Waits until this connection is not cut; false when the network is gone.
    async fn gets_through(&self) -> bool {
        let mut state = self.state.clone();
        let through = state.wait_for(|cut| match cut {
            Cut::Nothing => true,
            Cut::Feed => !self.feed.load(Ordering::SeqCst),
            Cut::Everything => false,
        });
        through.await.is_ok()
    }
}
