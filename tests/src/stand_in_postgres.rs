//! A stand-in for PostgreSQL servers that cannot be had here: it takes logins and answers the few questions that our
//! programs ask before anything else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The types bool, int4 and text.
const BOOL: i32 = 16;
const INT: i32 = 23;
const TEXT: i32 = 25;

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// It is a pooler: one process of the server's serves everybody.
    Pooler,
    /// It is older than what is supported.
    Old,
    /// It refuses the password.
    WrongPassword,
}

/// Starts it; returns `DATABASE_URL`.
pub async fn start(oddity: Oddity) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let processes = Arc::new(AtomicI32::new(7));
        while let Ok((stream, _)) = listener.accept().await {
            let process = match oddity {
                Oddity::Pooler => 7,
                _ => processes.fetch_add(1, Ordering::SeqCst),
            };
            // A client that hangs up needs no answer.
            tokio::spawn(async move { serve(stream, oddity, process).await.ok() });
        }
    });
    format!("postgres://bridge:s3cr3t@127.0.0.1:{port}/bridge?sslmode=disable")
}

async fn serve(mut stream: TcpStream, oddity: Oddity, process: i32) -> std::io::Result<()> {
    body(&mut stream).await?;
    let mut answer = BytesMut::new();
    if oddity == Oddity::WrongPassword {
        let fields =
            b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"bridge\"\0\0";
        message(&mut answer, b'E', fields);
        return stream.write_all(&answer).await;
    }
    message(&mut answer, b'R', &[0; 4]);
    message(&mut answer, b'Z', b"I");
    stream.write_all(&answer).await?;
    loop {
        let kind = stream.read_u8().await?;
        let sql = body(&mut stream).await?;
        let sql = String::from_utf8_lossy(&sql);
        let mut answer = BytesMut::new();
        if kind == b'X' {
            return Ok(());
        } else if sql.contains("pg_backend_pid") {
            row(&mut answer, &[(INT, &process.to_string())]);
        } else if sql.contains("server_version") {
            row(&mut answer, &[(INT, "130014"), (TEXT, "13.14")]);
        } else if sql.contains("pg_is_in_recovery") {
            row(&mut answer, &[(BOOL, "f"), (TEXT, "on")]);
        } else {
            let fields = b"SERROR\0VERROR\0C0A000\0Ma stand-in knows no such statement\0\0";
            message(&mut answer, b'E', fields);
        }
        message(&mut answer, b'C', b"SELECT 1\0");
        message(&mut answer, b'Z', b"I");
        stream.write_all(&answer).await?;
    }
}

/// A message after its kind.
async fn body(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_i32().await?;
    let mut body = vec![0; usize::try_from(length - 4).unwrap_or_default()];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

fn message(out: &mut BytesMut, kind: u8, body: &[u8]) {
    out.put_u8(kind);
    out.put_u32(u32::try_from(body.len() + 4).unwrap());
    out.put_slice(body);
}

fn row(out: &mut BytesMut, values: &[(i32, &str)]) {
    let count = i16::try_from(values.len()).unwrap();
    let (mut names, mut data) = (BytesMut::new(), BytesMut::new());
    names.put_i16(count);
    data.put_i16(count);
    for &(kind, value) in values {
        names.put_slice(b"it\0");
        names.put_i32(0);
        names.put_i16(0);
        names.put_i32(kind);
        names.put_i16(-1);
        names.put_i32(-1);
        names.put_i16(0);
        data.put_u32(u32::try_from(value.len()).unwrap());
        data.put_slice(value.as_bytes());
    }
    message(out, b'T', &names);
    message(out, b'D', &data);
}
