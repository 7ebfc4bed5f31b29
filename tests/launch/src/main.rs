//! Behind `cargo demo` and `cargo bench-all`: builds all programs of the workspace together, so that no dependency is
//! compiled twice, shows that the build goes on, and starts one of the programs.
//!
//! It has no dependencies, so that its first line is there at once.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to the person at the terminal"
)]

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader, IsTerminal as _, stderr},
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// The longest silence.
const SILENCE: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).peekable();
    let release = arguments.next_if(|argument| argument == "--release");
    let Some(program) = arguments.next() else {
        eprintln!("usage: matrix2acrobits-launch [--release] PROGRAM [ARGUMENT]...");
        return ExitCode::from(2);
    };
    match launch(release.is_some(), &program, arguments) {
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            ExitCode::from(code.unwrap_or(1))
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn launch(
    release: bool,
    program: &OsString,
    arguments: impl Iterator<Item = OsString>,
) -> Result<ExitStatus, String> {
    println!("Building all programs: some minutes in a fresh clone, seconds after that.");
    build(release)?;
    let path = programs(release)?.join(program);
    let started = Command::new(&path).args(arguments).status();
    started.map_err(|error| format!("{} does not start: {error}", path.display()))
}

/// The folder where Cargo puts the programs of a profile; this one lies in that of `debug`.
fn programs(release: bool) -> Result<PathBuf, String> {
    let this = env::current_exe().map_err(|error| format!("no path of this program: {error}"))?;
    let target = this.ancestors().nth(2).ok_or("no target folder")?;
    Ok(target.join(if release { "release" } else { "debug" }))
}

fn build(release: bool) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--workspace", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    // `cargo run` describes the running package to it. A build script that looks at such variables (ring's does)
    // would run again, and half of the dependencies with it, here and in the next build.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    // On a terminal Cargo draws a bar; elsewhere a large dependency can take half a minute without a word.
    let quiet = !stderr().is_terminal();
    if quiet {
        cargo.stderr(Stdio::piped());
    }
    let running = cargo.spawn();
    let mut running = running.map_err(|error| format!("cargo does not start: {error}"))?;
    if quiet {
        show_progress(&mut running);
    }
    match running.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the programs do not build".into()),
        Err(error) => Err(format!("cargo: {error}")),
    }
}

/// Passes Cargo's lines on, and says that it is still at work where it says nothing.
fn show_progress(cargo: &mut Child) {
    let Some(output) = cargo.stderr.take() else {
        return;
    };
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => eprintln!("{line}"),
            Err(RecvTimeoutError::Timeout) => {
                eprintln!(
                    "    still building, after {} s",
                    started.elapsed().as_secs()
                );
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
