//! A PostgreSQL server for tests, from the programs that Debian's package installs.
//!
//! All test processes share one server, which the first of them starts; each test has a database of its own in it. A test
//! that stops or kills the server has one of its own. A janitor, a shell that outlives us, stops a server and deletes its
//! data when nobody uses it any more, however the tests ended.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and says what it left out"
)]

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The oldest release that is supported.
const OLDEST: u32 = 14;

/// What a test says that found no server.
pub const NOT_TESTED: &str = "NOT TESTED: PostgreSQL (install Debian's package `postgresql`)";

/// A running server.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    fsync: &'static str,
    /// Held as long as the server is used; the janitor waits for it.
    _used: File,
}

/// A database in it; dropped with this.
#[derive(Debug)]
pub struct Database {
    programs: PathBuf,
    port: u16,
    name: String,
}

impl Server {
    /// The server that all tests share; none where no server can be had, and then a line says so.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        let server = SHARED.get_or_init(|| {
            let user = rights().unwrap_or("self");
            let folder = std::env::temp_dir().join(format!("matrix2acrobits-postgres-{user}"));
            Self::at(folder, "off")
        });
        if server.is_none() {
            eprintln!("{NOT_TESTED}");
        }
        server.as_ref()
    }

    /// A server of the test's own, to be stopped, killed and started.
    pub fn own() -> Option<Self> {
        Self::own_with("off")
    }

    /// The same, as an operator runs it: what is committed is on the disk. For the benchmarks.
    pub fn durable() -> Option<Self> {
        Self::own_with("on")
    }

    fn own_with(fsync: &'static str) -> Option<Self> {
        let folder = std::env::temp_dir().join(unique("matrix2acrobits-postgres-own"));
        let server = Self::at(folder, fsync);
        if server.is_none() {
            eprintln!("{NOT_TESTED}");
        }
        server
    }

    /// The server with its data in this folder, started if it does not run.
    fn at(folder: PathBuf, fsync: &'static str) -> Option<Self> {
        let programs = programs()?;
        loop {
            fs::create_dir_all(&folder).unwrap();
            let lock = folder.join("lock");
            let used = File::options()
                .create(true)
                .append(true)
                .open(&lock)
                .unwrap();
            // Shared, or a test would wait for all others to end.
            used.lock_shared().unwrap();
            if let Some(port) = noted_port(&folder)
                && is_at(&used, &lock)
                && answers(&programs, port)
            {
                return Some(Self {
                    programs,
                    folder,
                    port,
                    fsync,
                    _used: used,
                });
            }
            // By a lock of its own: the one above alone would only be had when all other tests have ended.
            let Ok(making) = File::create(folder.join("making")) else {
                continue;
            };
            making.lock().unwrap();
            // The janitor may have been quicker, or another test, and this is the lock of a folder that is gone.
            if !is_at(&used, &lock) {
                continue;
            }
            if !folder.join("data").exists() {
                let port = set_up(&programs, &folder, fsync);
                fs::write(folder.join("port"), port.to_string()).unwrap();
            } else if noted_port(&folder).is_none_or(|port| !answers(&programs, port)) {
                // Of tests that were killed, or of a machine that was switched off with its janitor.
                let gone = folder.with_extension(format!("gone.{}", std::process::id()));
                fs::rename(&folder, &gone).unwrap();
                fs::remove_dir_all(&gone).unwrap();
            }
        }
    }

    /// The port at 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a database.
    pub fn database(&self) -> Database {
        self.create(&[])
    }

    /// Makes a database with what is in another one, to which nobody may be connected. What that writes is on disk when
    /// it returns: the next measurement must not pay for it.
    pub fn copy_of(&self, database: &Database) -> Database {
        let copy = self.create(&["-T", &database.name]);
        copy.client("psql", &["-qc", "CHECKPOINT", &copy.name]);
        copy
    }

    fn create(&self, options: &[&str]) -> Database {
        let database = Database {
            programs: self.programs.clone(),
            port: self.port,
            name: unique("test").replace('-', "_"),
        };
        database.client("createdb", &[options, &[&database.name]].concat());
        database
    }

    /// Starts it again after [`Server::stop`] or [`Server::kill`].
    pub fn start(&self) {
        let started = try_start(&self.programs, &self.folder, self.port, self.fsync);
        succeeded("pg_ctl start", &started);
    }

    /// Stops it; `mode` is smart, fast or immediate.
    pub fn stop(&self, mode: &str) {
        let data = self.data();
        let stop = as_owner(&self.programs.join("pg_ctl"), |it| {
            it.args(["stop", "-w", "-m", mode, "-D"]).arg(&data)
        });
        succeeded("pg_ctl stop", &stop);
    }

    /// Takes this certificate and its key, in PEM, and lets nobody in without TLS.
    pub fn require_tls(&self, certificate: &str, key: &str) {
        let data = self.data();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.folder.join(name);
            fs::write(&file, text).unwrap();
            let owned = as_owner(Path::new("install"), |it| {
                it.args(["-m", "600"]).arg(&file).arg(data.join(name))
            });
            succeeded("install", &owned);
        }
        let access = "hostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust\n";
        fs::write(data.join("pg_hba.conf"), access).unwrap();
        let mut settings = File::options()
            .append(true)
            .open(data.join("postgresql.auto.conf"))
            .unwrap();
        settings.write_all(b"ssl = on\n").unwrap();
        self.stop("fast");
        self.start();
    }

    /// Copies its data as they are now, for [`Server::start_standby`].
    pub fn back_up(&self) {
        let copy = self.folder.join("copy");
        let port = self.port.to_string();
        let copied = as_owner(&self.programs.join("pg_basebackup"), |it| {
            it.args(["-h", "127.0.0.1", "-U", "postgres", "-c", "fast", "-p"])
                .args([&port, "-D"])
                .arg(&copy)
        });
        succeeded("pg_basebackup", &copied);
    }

    /// Starts what [`Server::back_up`] copied, in place of the server, which has to be stopped: a standby that is behind,
    /// since nobody tells it what came later.
    pub fn start_standby(&self) {
        let data = self.data();
        fs::rename(&data, self.folder.join("before")).unwrap();
        fs::rename(self.folder.join("copy"), &data).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        self.start();
    }

    /// Kills all of its processes without a word.
    pub fn kill(&self) {
        self.signal("KILL");
        let gone = || !Path::new(&format!("/proc/{}", self.postmaster())).exists();
        while !gone() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Sends a signal to all of its processes: STOP freezes it, CONT lets it go on.
    pub fn signal(&self, signal: &str) {
        let signal = format!("-{signal}");
        for pid in self.pids() {
            let pid = pid.to_string();
            let _ = Command::new("kill").args([&signal, &pid]).output();
        }
    }

    /// Its processes, the main one first: it would put things right when another is killed.
    pub fn pids(&self) -> Vec<u32> {
        let postmaster = self.postmaster();
        let children = Command::new("ps")
            .args(["-o", "pid=", "--ppid", &postmaster.to_string()])
            .output()
            .unwrap();
        let children = String::from_utf8(children.stdout).unwrap();
        let children = children.split_whitespace().filter_map(|it| it.parse().ok());
        std::iter::once(postmaster).chain(children).collect()
    }

    /// Its main process.
    fn postmaster(&self) -> u32 {
        let noted = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        noted.lines().next().unwrap().trim().parse().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

impl Database {
    /// Where programs find it.
    pub fn url(&self) -> String {
        format!(
            "postgres://postgres:no-secret-here@127.0.0.1:{}/{}",
            self.port, self.name
        )
    }

    /// The same through another port, such as that of a proxy.
    pub fn url_at(&self, port: u16) -> String {
        format!(
            "postgres://postgres:no-secret-here@127.0.0.1:{port}/{}",
            self.name
        )
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn client(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(self.programs.join(program))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = Command::new(self.programs.join("dropdb"))
                .args(["-h", "127.0.0.1", "-U", "postgres", "--force", "-p"])
                .arg(self.port.to_string())
                .arg(&self.name)
                .output();
        }
    }
}

/// The folder of the newest server's programs.
fn programs() -> Option<PathBuf> {
    let releases = fs::read_dir("/usr/lib/postgresql").ok()?;
    let releases = releases.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let newest = releases
        .filter_map(|it| it.parse::<u32>().ok())
        .filter(|release| *release >= OLDEST)
        .filter(|it| Path::new(&format!("/usr/lib/postgresql/{it}/bin/postgres")).exists())
        .max()?;
    Some(format!("/usr/lib/postgresql/{newest}/bin").into())
}

/// The user to become: the server refuses to run as root.
fn rights() -> Option<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let root = status
        .lines()
        .any(|line| line.split_whitespace().take(2).eq(["Uid:", "0"]));
    root.then_some("postgres")
}

/// The port of the server with its data in this folder, once it has been started.
fn noted_port(folder: &Path) -> Option<u16> {
    let noted = fs::read_to_string(folder.join("port")).ok()?;
    noted.trim().parse().ok()
}

/// Whether a server is there, even one that has no time for us.
fn answers(programs: &Path, port: u16) -> bool {
    let asked = Command::new(programs.join("pg_isready"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .status();
    matches!(asked.unwrap().code(), Some(0 | 1))
}

/// Whether the open file is the one of this name, and not one that was moved away with its folder.
fn is_at(file: &File, path: &Path) -> bool {
    let open = file.metadata().unwrap();
    fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()))
}

/// Runs a program of the server's as the user to whom the data belong.
fn as_owner(program: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let mut command = match rights() {
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    // What the server inherits it keeps open, and whoever reads our output would wait for it.
    let folder = tempfile_path();
    let (out, error) = (
        File::create(&folder).unwrap(),
        File::options().append(true).open(&folder).unwrap(),
    );
    let status = arguments(&mut command)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(error)
        .status()
        .unwrap();
    let text = fs::read(&folder).unwrap();
    let _ = fs::remove_file(&folder);
    Output {
        status,
        stdout: text,
        stderr: Vec::new(),
    }
}

fn tempfile_path() -> PathBuf {
    std::env::temp_dir().join(unique("matrix2acrobits-output"))
}

fn succeeded(what: &str, output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{what}: {text}");
}

/// Makes the data, starts the server and its janitor; returns the port.
fn set_up(programs: &Path, folder: &Path, fsync: &str) -> u16 {
    let data = folder.join("data");
    fs::create_dir_all(&data).unwrap();
    if let Some(user) = rights() {
        let owned = Command::new("chown")
            .arg(user)
            .arg(folder)
            .arg(&data)
            .output();
        assert!(owned.unwrap().status.success());
    }
    janitor(programs, folder);
    let made = as_owner(&programs.join("initdb"), |it| {
        it.args([
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
            "-D",
        ])
        .arg(&data)
    });
    succeeded("initdb", &made);
    for _ in 0..10 {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        if try_start(programs, folder, port, fsync).status.success() {
            return port;
        }
    }
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    panic!("the server does not start: {log}");
}

/// Without `fsync` a crash of the machine loses data, which is of no interest to tests; a crash of the server does not.
fn try_start(programs: &Path, folder: &Path, port: u16, fsync: &str) -> Output {
    let buffers = if fsync == "on" { "1GB" } else { "64MB" };
    let options = format!(
        "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync={fsync} \
         -c max_connections=400 -c shared_buffers={buffers} -c log_min_messages=warning",
        folder.display()
    );
    as_owner(&programs.join("pg_ctl"), |it| {
        it.args(["start", "-w", "-t", "60", "-D"])
            .arg(folder.join("data"))
            .arg("-l")
            .arg(folder.join("log"))
            .args(["-o", &options])
    })
}

/// Starts the shell that stops the server and deletes its data when nobody has used it for a while.
fn janitor(programs: &Path, folder: &Path) {
    let runuser = rights().map_or(String::new(), |user| format!("runuser -u {user} --"));
    // The lock is taken by whoever uses the server; tests in a row leave it for a moment. A folder that is another one has
    // a janitor of its own.
    let script = format!(
        r#"exec 9>>"$0/lock"
        idle=0
        while [ $idle -lt 4 ]; do
            sleep 3
            [ "$0/lock" -ef /dev/fd/9 ] || exit
            if flock -n -x 9; then flock -u 9; idle=$((idle + 1)); else idle=0; fi
        done
        flock -x 9
        [ "$0/lock" -ef /dev/fd/9 ] || exit
        {runuser} "$1/pg_ctl" stop -m immediate -D "$0/data"
        mv "$0" "$0.gone.$$"
        rm -rf "$0.gone.$$""#
    );
    let mut shell = Command::new("setsid");
    shell
        .args(["sh", "-c", &script])
        .arg(folder)
        .arg(programs)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // It outlives us.
    drop(shell.spawn().unwrap());
}

/// A name that nobody else takes.
fn unique(word: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::SeqCst);
    format!("{word}-{}-{count}", std::process::id())
}
