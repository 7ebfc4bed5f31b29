//! The documents name commands and settings that there are.

#![expect(clippy::unwrap_used, reason = "tests outside of #[test] functions")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::folder;
use matrix2acrobits_tests::process::{Env, Program};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All documents, with their names.
fn documents() -> Vec<(String, String)> {
    let mut folders = vec![root().join("docs")];
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "md") {
                files.push(path);
            }
        }
    }
    let read = |path: PathBuf| {
        (
            path.display().to_string(),
            fs::read_to_string(path).unwrap(),
        )
    };
    files.into_iter().map(read).collect()
}

/// What stands as code in a document: the lines of its blocks, and what is between backticks.
fn code(document: &str) -> Vec<String> {
    let (mut code, mut block) = (Vec::new(), false);
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            block = !block;
        } else if block {
            code.push(line.to_owned());
        } else {
            code.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    code
}

/// The arguments with which a piece of code calls a program; none where it only names it.
fn arguments(code: &str, program: Program) -> Option<Vec<String>> {
    let (_, rest) = code.split_once(&format!("{} ", program.name()))?;
    let end = rest.find(['|', '>', '<', '#', ')', ';', '&', '[']);
    let words = rest[..end.unwrap_or(rest.len())].split_whitespace();
    let words: Vec<_> = words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect();
    let calls = words
        .first()
        .is_some_and(|first| first.starts_with(|it: char| it.is_ascii_lowercase()));
    let names = |word: &String| word.contains("matrix2acrobits-") && !word.contains("://");
    (calls && !words.iter().any(names)).then_some(words)
}

#[tokio::test]
async fn every_command_of_the_documents_is_one() {
    let app = App::start().await;
    let mut commands = BTreeSet::new();
    for (document, text) in documents() {
        for code in code(&text) {
            for program in [Program::Api, Program::Worker] {
                let found = arguments(&code, program);
                commands.extend(found.map(|it| (program.name(), it, document.clone())));
            }
        }
    }
    assert!(commands.len() > 20, "{commands:?}");
    for (name, arguments, document) in commands {
        let (program, env) = match name {
            "matrix2acrobits-api" => (Program::Api, &app.api_env),
            _ => (Program::Worker, &app.worker_env),
        };
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = program.run(&arguments, env).await;
        let error = String::from_utf8_lossy(&output.stderr);
        // What it is about is not here, so it may well fail, but not for its words.
        assert!(
            !error.starts_with("error:"),
            "{document}: {name} {arguments:?}: {error}"
        );
    }
}

/// The names of environment variables in a text, after each of these words.
fn names_after<'t>(text: &'t str, word: &str) -> BTreeSet<&'t str> {
    let name = |rest: &'t str| {
        let end =
            rest.find(|it: char| !it.is_ascii_uppercase() && !it.is_ascii_digit() && it != '_');
        &rest[..end.unwrap_or(rest.len())]
    };
    text.split(word)
        .skip(1)
        .map(name)
        .filter(|it| it.len() > 3)
        .collect()
}

#[tokio::test]
async fn every_setting_has_its_line_and_every_line_its_setting() {
    let page = fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let documented = names_after(&page, "`");
    let mut settings = BTreeSet::new();
    for program in [Program::Api, Program::Worker] {
        let help = program.run(&["--help"], &Env::new()).await.stdout;
        let help = String::from_utf8(help).unwrap();
        settings.extend(names_after(&help, "[env: ").into_iter().map(str::to_owned));
    }
    assert!(settings.len() > 30, "{settings:?}");
    for setting in &settings {
        assert!(
            documented.contains(setting.as_str()),
            "no line for {setting}"
        );
    }
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        let first = row.split('|').nth(1).unwrap();
        for name in names_after(first, "`") {
            assert!(settings.contains(name), "no setting {name}: {row}");
        }
    }
}

/// systemd itself reads the units. Where it is not installed, nothing is tested.
#[test]
fn systemd_understands_the_units() {
    let folder = folder();
    for program in [Program::Api, Program::Worker] {
        let unit = format!("{}.service", program.name());
        let text = fs::read_to_string(root().join("docs/operations/systemd").join(&unit)).unwrap();
        // Nothing is installed here.
        let installed = format!("/usr/local/bin/{}", program.name());
        assert!(text.contains(&installed), "{text}");
        let text = text.replace(&installed, program.path().to_str().unwrap());
        let path = folder.path().join(unit);
        fs::write(&path, text).unwrap();
        let verify = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output();
        let Ok(verify) = verify else {
            println!("systemd is not installed: nothing was tested");
            return;
        };
        let said = String::from_utf8_lossy(&verify.stderr);
        assert!(verify.status.success() && said.is_empty(), "{said}");
    }
}

/// A cause that goes away by itself, such as a full disk, may last longer than five starts in a row.
#[test]
fn no_unit_gives_its_restarts_up() {
    let mut units = 0;
    for folder in ["systemd", "quadlet"] {
        for entry in fs::read_dir(root().join("docs/operations").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.display();
            let text = fs::read_to_string(&path).unwrap();
            if !text.contains("\nRestart=") {
                continue;
            }
            units += 1;
            let section = |name: &str| {
                let rest = text.split_once(&format!("[{name}]\n")).unwrap().1;
                rest.split("\n[").next().unwrap()
            };
            let has = |part: &str, line: &str| section(part).lines().any(|it| it == line);
            assert!(has("Unit", "StartLimitIntervalSec=0"), "{name}");
            assert!(has("Service", "RestartSec=2"), "{name}");
            assert!(has("Service", "RestartPreventExitStatus=2"), "{name}");
        }
    }
    assert_eq!(units, 4);
}

/// GitHub's default shell runs without pipefail.
#[test]
fn a_failure_before_a_pipe_fails_the_workflow() {
    for entry in fs::read_dir(root().join(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let pipes = text.lines().any(|line| line.contains(" | "));
        let safe = text.contains("\ndefaults:\n  run:\n    shell: bash\n");
        assert!(safe || !pipes, "{}", path.display());
    }
}
