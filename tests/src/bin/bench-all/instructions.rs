//! How many instructions an operation takes outside the kernel, and in whose code, as `valgrind --tool=callgrind` counts
//! them: the same on a busy machine, where times are not.
//!
//! Each program runs twice, with few operations and with many; the difference is the operations' own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use matrix2acrobits_tests::process::{Env, Process, Program};
use tokio::process::Command;

use crate::bench::{Bench, Error, Helper, float};
use crate::connection::Connection;
use crate::fill::{self, Rows};
use crate::load::Requests;
use crate::report::{Goal, Report, Table, short};
use crate::{bench, docs, notify, reports};

/// Operations of the short and of the long run.
const FEW: u64 = 320;
const MANY: u64 = 2_240;
/// As many at a time as the worker's default, so that reports and jobs share their transactions.
const AT_A_TIME: usize = 16;
/// A growth beyond this is pointed out.
const GROWTH: f64 = 1.05;
const IN_ALL: &str = "in all";

/// Whose code it is, by the first crate that a function's name tells; the first part that fits counts.
const PARTS: [(&str, &[&str]); 10] = [
    ("this project", &["matrix2acrobits_"]),
    ("JSON", &["serde", "ryu", "itoa", "memchr"]),
    (
        "reqwest and URLs",
        &[
            "reqwest",
            "url",
            "idna",
            "tower_http",
            "form_urlencoded",
            "percent_encoding",
        ],
    ),
    ("axum and tower", &["axum", "tower", "matchit"]),
    ("HTTP", &["hyper", "http", "httparse", "bytes"]),
    (
        "tokio and futures",
        &["tokio", "futures", "mio", "parking_lot"],
    ),
    (
        "log and metrics",
        &["tracing", "metrics", "sharded_slab", "quanta"],
    ),
    (
        "hashes and marks",
        &["ring", "siphasher", "foldhash", "quick_cache"],
    ),
    (SQLITE, &["sqlite3", "sqlx"]),
    (
        "allocator and copying",
        &[
            "malloc",
            "free",
            "realloc",
            "calloc",
            "_int_",
            "unlink_chunk",
            "__mem",
            "memcpy",
            "memmove",
            "memset",
            "memcmp",
        ],
    ),
];
const SQLITE: &str = "SQLite and sqlx";
const REST: &str = "standard library and rest";

/// Instructions by part.
type Counts = BTreeMap<&'static str, u64>;

/// What is counted.
#[derive(Debug, Clone, Copy)]
enum Operation {
    PassThrough,
    Push,
    Report,
    Job,
}

impl Operation {
    const ALL: [Self; 4] = [Self::PassThrough, Self::Push, Self::Report, Self::Job];

    fn name(self) -> &'static str {
        match self {
            Self::PassThrough => "pass-through's push",
            Self::Push => "push",
            Self::Report => "new phone's report",
            Self::Job => "job",
        }
    }

    /// Runs a program with so many operations, and tells what all of it took.
    async fn run(self, bench: &Bench, count: u64) -> Result<Counts, Error> {
        let output = bench.folder.path().join("callgrind.out");
        let upstream = bench.stand_in(Duration::ZERO).await?;
        let file = bench.new_file().await?;
        // As many phones in both runs: what the api writes about each is not a push's.
        let rows = if let Self::Push = self { FEW } else { count };
        fill::fill(&file, rows, self.rows()).await?;
        match self {
            Self::PassThrough => {
                let mut gateway = Helper::counted(&output, &upstream.pass_through()).await?;
                send(gateway.target().0, &notify::requests(count), count).await?;
                gateway.end().await?;
            }
            Self::Push | Self::Report => {
                let env = bench::api_env(&*file, Some(&upstream));
                let mut api = counted(Program::Api, &output, &env);
                api.listening().await;
                let addr = api.public_url().trim_start_matches("http://").parse()?;
                let requests = match self {
                    Self::Report => reports::requests(count),
                    _ => notify::requests(FEW),
                };
                send(addr, &requests, count).await?;
                api.terminate().await;
            }
            Self::Job => {
                let env = bench::worker_env(&*file, upstream.addr);
                let mut worker = counted(Program::Worker, &output, &env);
                worker.listening().await;
                let started = Instant::now();
                while upstream.seen().await?.pushers_set < count {
                    if started.elapsed() > Duration::from_mins(2) {
                        return Err("the worker does not come to an end".into());
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                worker.terminate().await;
            }
        }
        Ok(by_part(&std::fs::read_to_string(output)?))
    }

    fn rows(self) -> &'static [Rows] {
        match self {
            Self::PassThrough | Self::Push => &[Rows::Tokens],
            Self::Report => &[Rows::Mappings],
            Self::Job => &[Rows::Tokens, Rows::Mappings, Rows::Due],
        }
    }
}

/// The words that run a program under callgrind.
fn callgrind(output: &Path) -> Vec<String> {
    let output = format!("--callgrind-out-file={}", output.display());
    ["valgrind", "--quiet", "--tool=callgrind", &output]
        .map(str::to_owned)
        .into()
}

fn counted(program: Program, output: &Path, env: &Env) -> Process {
    let script = format!("exec {} \"$0\"", callgrind(output).join(" "));
    Process::start_in_shell(program, &script, env)
}

impl Helper {
    async fn counted(output: &Path, args: &[String]) -> Result<Self, Error> {
        let words = callgrind(output);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(std::env::current_exe()?)
            .args(args);
        Self::listening(Self::spawn_command(&mut command)?).await
    }
}

/// Sends the requests with the first numbers, over connections of which each waits for its response.
async fn send(addr: std::net::SocketAddr, requests: &Requests, count: u64) -> Result<(), Error> {
    let connections = (0..count).take(AT_A_TIME).map(async |first| {
        let mut connection = Connection::open(addr).await?;
        let mut request = Vec::new();
        for number in (first..count).step_by(AT_A_TIME) {
            request.clear();
            requests(number, &mut request);
            let answer = connection.exchange(&request).await?;
            if answer.status != 200 {
                return Err(format!("status {}", answer.status).into());
            }
        }
        Ok::<_, Error>(())
    });
    try_join_all(connections).await?;
    Ok(())
}

/// Adds up a file of callgrind: <https://valgrind.org/docs/manual/cl-format.html>.
fn by_part(profile: &str) -> Counts {
    let mut objects = Names::default();
    let mut functions = Names::default();
    let (mut object, mut called, mut part, mut of_a_call) = ("", None, REST, false);
    let mut counts = Counts::new();
    for line in profile.lines() {
        if let Some(written) = line.strip_prefix("ob=") {
            object = objects.of(written, |path| path);
        } else if let Some(written) = line.strip_prefix("cob=") {
            called = Some(objects.of(written, |path| path));
        } else if let Some(written) = line.strip_prefix("fn=") {
            part = functions.of(written, |name| part_of(name, object));
        } else if let Some(written) = line.strip_prefix("cfn=") {
            let object = called.take().unwrap_or(object);
            functions.of(written, |name| part_of(name, object));
        } else if line.starts_with("calls=") {
            // The next line has what the called function took, which is counted there.
            of_a_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line
                .split(' ')
                .nth(1)
                .and_then(|cost| cost.parse::<u64>().ok());
            if !std::mem::take(&mut of_a_call) {
                *counts.entry(part).or_default() += cost.unwrap_or_default();
            }
        }
    }
    counts
}

/// What names stand for: a number in parentheses, with the name where it is first met.
#[derive(Default)]
struct Names<'a, T>(BTreeMap<&'a str, T>);

impl<'a, T: Copy> Names<'a, T> {
    fn of(&mut self, written: &'a str, meaning: impl FnOnce(&'a str) -> T) -> T {
        let (number, name) = written.split_once(' ').unwrap_or((written, ""));
        *self.0.entry(number).or_insert_with(|| meaning(name))
    }
}

/// Generic code of the standard library counts for the crate that it is made for.
fn part_of(function: &str, object: &str) -> &'static str {
    let words = function.split(|c: char| !c.is_alphanumeric() && c != '_');
    let fits = |word: &str| {
        let found = PARTS
            .iter()
            .find(|(_, starts)| starts.iter().any(|start| word.starts_with(start)));
        found.map(|(part, _)| *part)
    };
    // The only C in our programs.
    let c = object.contains("matrix2acrobits") && !function.contains(['<', ':']);
    let part = words.filter(|word| !word.is_empty()).find_map(fits);
    part.unwrap_or(if c { SQLITE } else { REST })
}

/// Counts all four.
pub(crate) async fn instructions(bench: &Bench) -> Result<Report, Error> {
    let mut report = Report::default();
    if std::process::Command::new("valgrind")
        .arg("--version")
        .output()
        .is_err()
    {
        return Err("valgrind is not installed (Debian: apt-get install valgrind)".into());
    }
    let mut columns = Vec::new();
    for operation in Operation::ALL {
        let few = operation.run(bench, FEW).await?;
        let many = operation.run(bench, MANY).await?;
        let each = |part: &str| {
            let of = |counts: &Counts| float(counts.get(part).copied().unwrap_or_default());
            (of(&many) - of(&few)).max(0.0) / float(MANY - FEW)
        };
        let parts = PARTS.iter().map(|(part, _)| *part).chain([REST]);
        columns.push(parts.map(|part| (part, each(part))).collect::<Vec<_>>());
    }
    let names = Operation::ALL.map(Operation::name);
    let header = [[""].as_slice(), &names].concat();
    let mut table = Table::new("Instructions outside the kernel", &header);
    let totals: Vec<f64> = columns
        .iter()
        .map(|column| column.iter().map(|(_, count)| count).sum())
        .collect();
    for (at, (part, _)) in columns[0].iter().enumerate() {
        let cells = columns.iter().map(|column| short(column[at].1.round()));
        table
            .rows
            .push([(*part).to_owned()].into_iter().chain(cells).collect());
    }
    let cells = totals.iter().map(|count| short(count.round()));
    table
        .rows
        .push([IN_ALL.to_owned()].into_iter().chain(cells).collect());
    report.tables.push(table);
    let committed = docs::row("instructions", IN_ALL);
    for (operation, (count, before)) in Operation::ALL.iter().zip(totals.iter().zip(committed)) {
        let what = format!("{}, of the committed figure", operation.name());
        report
            .goals
            .push(Goal::at_most(what, GROWTH, count / before, " ×"));
    }
    let what = "push, of the pass-through's";
    report
        .goals
        .push(Goal::at_most(what, 1.15, totals[1] / totals[0], " ×"));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_functions_take_themselves_is_added_up() {
        let profile = "events: Ir\nob=(1) /bin/matrix2acrobits-api\nfn=(1) matrix2acrobits_api::notify\n\
                       10 5\n+2 7\ncfn=(2) malloc\ncalls=3 0\n12 900\n\
                       fn=(2)\n0 40\nfn=(3) <alloc::vec::Vec<T> as core::clone::Clone>::clone\n* 3\n\
                       fn=(4) core::ptr::drop_in_place<hyper::body::Body>\n-1 2\nfn=(5) balance_nonroot\n3 6\ntotals: 63\n";
        let expected = [
            ("this project", 12),
            ("allocator and copying", 40),
            (REST, 3),
            (SQLITE, 6),
            ("HTTP", 2),
        ];
        assert_eq!(by_part(profile), expected.into());
    }
}
