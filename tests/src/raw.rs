//! Connections without an HTTP client: what a client may not send, and at its own pace.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::app::App;

/// A connection to the public listener.
#[derive(Debug)]
pub struct Raw(pub TcpStream);

/// Everything until the connection ended.
#[derive(Debug)]
pub struct Rest {
    /// What was read.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

impl Raw {
    /// Connects from 127.0.0.1.
    pub async fn connect(app: &App) -> Self {
        Self::from(app, "127.0.0.1").await
    }

    /// Connects from another address of this machine.
    pub async fn from(app: &App, address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Little room, so that a client that does not read is noticed soon.
        socket.set_recv_buffer_size(4096).unwrap();
        let from = SocketAddr::new(address.parse().unwrap(), 0);
        socket.bind(from).unwrap();
        let url = app.api().public_url();
        let listener = url.trim_start_matches("http://").parse().unwrap();
        Self(socket.connect(listener).await.unwrap())
    }

    /// Sends; the listener may have closed the connection already.
    pub async fn send(&mut self, bytes: &str) {
        let _ = self.0.write_all(bytes.as_bytes()).await;
    }

    /// Asks for something small.
    pub async fn ask(&mut self) -> Option<u16> {
        self.send("GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        self.status().await
    }

    /// The status of the next answer, its body read if it has a length; none if the connection ends before.
    pub async fn status(&mut self) -> Option<u16> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap_or("0");
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        self.0.read_exact(&mut vec![0; length]).await.ok()?;
        head[9..12].parse().ok()
    }

    /// Reads until the connection ends, a reset included, and panics if that takes longer than `deadline`.
    pub async fn rest(&mut self, deadline: Duration) -> Rest {
        let started = Instant::now();
        let mut bytes = Vec::new();
        let end = tokio::time::timeout(deadline, self.0.read_to_end(&mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(end.is_ok(), "still open after {deadline:?}: {text:?}");
        Rest {
            text,
            took: started.elapsed(),
        }
    }
}

impl Rest {
    /// Panics if this is not one error of ours, after which the connection ended.
    #[track_caller]
    pub fn expect_error(&self, status: u16, errcode: &str) {
        let (head, body) = self.text.split_once("\r\n\r\n").unwrap_or_default();
        let head = head.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{self:?}");
        for header in ["content-type: application/json", "connection: close"] {
            assert!(head.contains(header), "{header}: {self:?}");
        }
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        assert_eq!(body["errcode"], errcode, "{self:?}");
        assert!(
            body["error"]
                .as_str()
                .is_some_and(|words| !words.is_empty())
        );
    }

    /// Panics if the connection did not end in this time, in seconds.
    #[track_caller]
    pub fn expect_time(&self, least: u64, most: u64) {
        // A timer may be early by the time that our first bytes took.
        let least = Duration::from_secs(least).saturating_sub(Duration::from_millis(500));
        let most = Duration::from_secs(most);
        assert!((least..most).contains(&self.took), "{self:?}");
    }
}
