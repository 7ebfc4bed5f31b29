//! The real binaries as child processes: found, started, listened to, signalled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;

use crate::SOON;

/// Environment variables of a process; it gets these and PATH, nothing else.
pub type Env = BTreeMap<String, String>;

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// matrix2acrobits-api
    Api,
    /// matrix2acrobits-worker
    Worker,
}

impl Program {
    /// The name of its binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "matrix2acrobits-api",
            Self::Worker => "matrix2acrobits-worker",
        }
    }

    /// Where its binary lies: in the target folder from which this test or demo runs.
    pub fn path(self) -> PathBuf {
        let own = std::env::current_exe().expect("the path of this program");
        // target/debug/deps/report-1234 for a test, target/debug/demo for the demo.
        let folders = own.ancestors().skip(1).take(2);
        let mut candidates = folders.map(|folder| folder.join(self.name()));
        candidates.find(|path| path.is_file()).unwrap_or_else(|| {
            panic!(
                "no {} next to {}: run `cargo build --workspace` first",
                self.name(),
                own.display()
            )
        })
    }

    /// Runs it to its end, with this environment, and without a terminal.
    pub async fn run(self, args: &[&str], env: &Env) -> Output {
        let run = self.command(args, env).output();
        let ended = tokio::time::timeout(Duration::from_secs(20), run).await;
        ended
            .unwrap_or_else(|_| panic!("{} {args:?} does not end with {env:?}", self.name()))
            .unwrap()
    }

    fn command(self, args: &[&str], env: &Env) -> Command {
        let mut command = Command::new(self.path());
        set_up(command.args(args), env);
        command
    }
}

fn set_up<'a>(command: &'a mut Command, env: &Env) -> &'a mut Command {
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
}

/// A running process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Child,
    log: Log,
    readers: [AbortHandle; 2],
}

/// What a child process writes to standard output and error. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Collects from now on what this child writes. Those who do can be aborted; then nobody reads it.
    pub fn follow(&self, child: &mut Child) -> [AbortHandle; 2] {
        let output = tokio::spawn(collect(child.stdout.take().unwrap(), self.0.clone()));
        let errors = tokio::spawn(collect(child.stderr.take().unwrap(), self.0.clone()));
        [output.abort_handle(), errors.abort_handle()]
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }

    /// The lines so far that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        let log = self.0.lock().unwrap();
        let lines = log.iter().filter(|line| line.contains(text));
        lines.cloned().collect()
    }
}

impl Process {
    /// Starts a program without waiting for it to be ready.
    pub fn start(program: Program, args: &[&str], env: &Env) -> Self {
        Self::spawned(program, &mut program.command(args, env))
    }

    /// Starts a program from a shell, whose `script` ends with `exec "$0"`.
    pub fn start_in_shell(program: Program, script: &str, env: &Env) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(program.path());
        Self::spawned(program, set_up(&mut shell, env))
    }

    fn spawned(program: Program, command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Log::default();
        let readers = log.follow(&mut child);
        Self {
            program,
            child,
            log,
            readers,
        }
    }

    /// Waits until it says that it listens, and panics with its log if it does not.
    pub async fn listening(&mut self) {
        let name = self.program.name();
        let started = Instant::now();
        while self.bound("admin_addr").is_none() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{name} ended at its start, {status}:\n{}", self.log());
            }
            assert!(
                started.elapsed() < SOON,
                "{name} does not come up:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The address that it logged as `name=…` when it began to listen.
    fn bound(&self, name: &str) -> Option<SocketAddr> {
        let log = self.log.0.lock().unwrap();
        log.iter().find_map(|line| field(line, name)?.parse().ok())
    }

    /// Base URL of the public listener.
    pub fn public_url(&self) -> String {
        let addr = self.bound("listen_addr").expect("a public listener");
        format!("http://{addr}")
    }

    /// Base URL of the admin listener.
    pub fn admin_url(&self) -> String {
        let addr = self.bound("admin_addr").expect("an admin listener");
        format!("http://{addr}")
    }

    /// Everything that it wrote to standard output and error so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// The lines so far that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log.lines(text)
    }

    /// Hangs up: what it writes from now on cannot be written.
    pub fn stop_reading(&self) {
        self.readers.iter().for_each(AbortHandle::abort);
    }

    /// Its process id; none when it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal by its name, such as TERM.
    pub async fn signal(&self, name: &str) {
        if let Some(pid) = self.child.id() {
            let mut kill = Command::new("kill");
            kill.args([format!("-{name}"), pid.to_string()]);
            let _ = kill.status().await.expect("the kill command");
        }
    }

    /// Waits for its end and gives its exit code; none if a signal ended it.
    pub async fn ended(&mut self, deadline: Duration) -> Option<i32> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| {
            panic!(
                "{} still runs after {deadline:?}:\n{}",
                self.program.name(),
                self.log()
            )
        });
        status.unwrap().code()
    }

    /// SIGTERM, and its exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM").await;
        self.ended(Duration::from_secs(20)).await
    }

    /// SIGKILL, without waiting; from a [`crate::hook::Hook`], where nothing can be awaited.
    pub fn kill_pid(pid: u32) {
        // 0 would be this whole process group.
        assert!(pid > 1, "not the pid of a program");
        let mut kill = std::process::Command::new("kill");
        let kill = kill.args(["-KILL", &pid.to_string()]).status();
        let _ = kill.expect("the kill command");
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }
}

async fn collect(pipe: impl AsyncRead + Unpin, log: Arc<Mutex<Vec<String>>>) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        log.lock().unwrap().push(line);
    }
}

/// The value of `name=value` in a log line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let start = line.find(&format!("{name}="))? + name.len() + 1;
    let value = line[start..].split_whitespace().next()?;
    Some(value.trim_matches(['"', ',']))
}
