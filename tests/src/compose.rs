//! A real container engine, with images made of the programs built here, under names of their own; and docker-compose.yml
//! in it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::{Env, Program};
use crate::{eventually, fixtures};

/// How long a command may take while two cores do much else.
const COMMAND: Duration = Duration::from_mins(2);
/// How long containers may need for what takes seconds: a name that does not resolve costs many.
pub const IN_TIME: Duration = Duration::from_mins(1);

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// One test's images and projects; everything of it is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    base: String,
    compose: Vec<String>,
    folder: TempDir,
    _cleaner: Cleaner,
}

impl Lab {
    /// Makes the images on which the Dockerfiles are built, with these programs in the place of cargo's results.
    pub async fn new(programs: &[&Path]) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::SeqCst);
        let name = format!("matrix2acrobits-test-{}-{number}", std::process::id());
        let base = prepare(&[]).await;
        let cleaner = Cleaner::of(&name);
        let mut plugin = Command::new("docker");
        let plugin = plugin.args(["compose", "version"]).output().await.unwrap();
        let compose: &[&str] = if plugin.status.success() {
            &["docker", "compose"]
        } else {
            &["docker-compose"]
        };
        let lab = Self {
            name,
            base,
            compose: compose.iter().map(|&word| word.to_owned()).collect(),
            folder: fixtures::folder(),
            _cleaner: cleaner,
        };
        lab.make_builder(programs).await;
        lab
    }

    /// In the place of Rust's image: its cargo hands out what is built already.
    async fn make_builder(&self, programs: &[&Path]) {
        let context = self.file("builder");
        let root = self.built();
        for folder in ["usr/local/bin", "etc/ssl/certs", "built"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for program in programs {
            let mut strip = Command::new("strip");
            strip.arg("--strip-debug").arg(program).arg("-o");
            strip.arg(root.join("built").join(program.file_name().unwrap()));
            output(&mut strip, "strip").await;
        }
        let cargo = root.join("usr/local/bin/cargo");
        std::fs::copy(self::root().join("tests/compose/cargo"), cargo).unwrap();
        let certificates = "etc/ssl/certs/ca-certificates.crt";
        std::fs::copy(Path::new("/").join(certificates), root.join(certificates)).unwrap();
        // The label goes on to every layer made from here, so that all of them can be found and removed.
        let dockerfile = format!(
            "FROM {} AS base\nLABEL matrix2acrobits.test={}\nFROM base\nCOPY root/ /\n",
            self.base, self.name
        );
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let context = context.display().to_string();
        for (image, more) in [
            (self.image("base"), &["--target", "base"][..]),
            (self.image("builder"), &[]),
        ] {
            let args = ["build", "--quiet", "--tag", &image];
            docker(&[&args, more, &[&context]].concat()).await;
        }
    }

    /// The name of the test, by which all that belongs to it can be found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder with what the builder's image has beyond its base.
    pub fn built(&self) -> PathBuf {
        self.file("builder").join("root")
    }

    /// An image of this test: `base`, or `builder`.
    pub fn image(&self, name: &str) -> String {
        format!("{}:{name}", self.name)
    }

    /// A path in a folder of this test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The image with PostgreSQL, in the place of the official one.
    pub fn postgres(&self) -> String {
        self.base.replace("-base:", "-postgres:")
    }

    /// A project of these compose files, which have `more` services of the product's image.
    pub fn stack(
        &self,
        name: &str,
        compose_files: &[PathBuf],
        more: &[&str],
        env: Env,
    ) -> Stack<'_> {
        let service = |image: &str| {
            let args = json!({"BUILDER": self.image("builder"), "BASE": self.image("base")});
            let labels = json!({"matrix2acrobits.test": self.name});
            json!({"image": self.image(image), "build": {"args": args, "labels": labels}})
        };
        let both = service("product");
        let mut services = json!({"api": both, "worker": both, "stand-ins": service("stand-ins")});
        for &name in more {
            services[name] = json!({"image": self.image("product")});
        }
        // JSON is YAML.
        let own_images = self.file(&format!("images-of-{name}.yml"));
        std::fs::write(&own_images, json!({"services": services}).to_string()).unwrap();
        Stack {
            lab: self,
            project: format!("{}-{name}", self.name),
            files: [compose_files, &[own_images]].concat(),
            env,
        }
    }
}

/// A project: the services of a compose file, with images of this test.
#[derive(Debug)]
pub struct Stack<'a> {
    lab: &'a Lab,
    project: String,
    files: Vec<PathBuf>,
    env: Env,
}

impl Stack<'_> {
    /// Compose's command for this project, without what it is to do.
    fn words(&self) -> Vec<String> {
        let root = root().display().to_string();
        let project = [
            "--project-name",
            &self.project,
            "--project-directory",
            &root,
        ];
        let mut words = self.lab.compose.clone();
        words.extend(project.map(str::to_owned));
        for file in &self.files {
            words.extend(["--file".to_owned(), file.display().to_string()]);
        }
        // Without it, Compose would look into the repository's .env.
        if let Some(settings) = self.env.get("ENV_FILE") {
            words.extend(["--env-file".to_owned(), settings.clone()]);
        }
        words
    }

    fn environment(&self, command: &mut Command) {
        // What the shell has would outrank the settings file.
        for name in [
            "COMPOSE_FILE",
            "COMPOSE_PROFILES",
            "COMPOSE_PROJECT_NAME",
            "ENV_FILE",
            "MATRIX_AS_TOKEN",
            "POSTGRES_PASSWORD",
        ] {
            command.env_remove(name);
        }
        command.envs(&self.env);
    }

    /// Runs Compose with these arguments, and gives what it prints.
    pub async fn compose(&self, args: &[&str]) -> String {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(args).current_dir(root());
        self.environment(&mut command);
        output(&mut command, &format!("compose {args:?}")).await
    }

    /// Runs a document's commands as they stand there, in a shell with a terminal, in this folder. `docker compose` is this
    /// project's. All of them have to end well.
    pub async fn shell(&self, folder: &Path, commands: &str) -> String {
        let output = self.try_shell(folder, commands).await;
        let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{commands}: {said}");
        said
    }

    /// The same where they may fail: the first that does ends it.
    pub async fn try_shell(&self, folder: &Path, commands: &str) -> Output {
        // The images are those of this test, and built.
        let commands = commands.replace(" --build ", " ");
        let script = format!(
            r#"set -euo pipefail
            docker() {{
                if [ "$1" != compose ]; then command docker "$@"; return; fi
                shift
                while [ "$1" = -f ]; do shift 2; done
                command {} "$@"
            }}
            command -v sudo >/dev/null || sudo() {{ "$@"; }}
            {commands}"#,
            self.words().join(" ")
        );
        let file = self.lab.file("commands");
        std::fs::write(&file, script).unwrap();
        let bash = format!("bash {}", file.display());
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--command", &bash, "/dev/null"]);
        self.environment(terminal.current_dir(folder));
        finished(&mut terminal, &commands).await
    }

    /// Whether this Compose can wait until services are healthy.
    pub async fn knows_wait(&self) -> bool {
        self.compose(&["up", "--help"]).await.contains("--wait")
    }

    /// The project's name.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The ids of the project's containers, running or not; of one service, or of all.
    pub async fn containers(&self, service: Option<&str>) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let mut args = vec!["ps", "--all", "--quiet", "--filter", &project];
        let service = service.map(|name| format!("label=com.docker.compose.service={name}"));
        if let Some(service) = &service {
            args.extend(["--filter", service]);
        }
        let ids = docker(&args).await;
        ids.lines().map(str::to_owned).collect()
    }

    /// The id of a service's one container.
    pub async fn container(&self, service: &str) -> String {
        let mut ids = self.containers(Some(service)).await;
        assert_eq!(ids.len(), 1, "containers of {service}");
        ids.remove(0)
    }

    /// What `docker inspect` says of a service's container.
    pub async fn inspect(&self, service: &str, format: &str) -> String {
        let container = self.container(service).await;
        let said = docker(&["inspect", "--format", format, &container]).await;
        said.trim().to_owned()
    }

    /// What a service has written to standard output, and to standard error.
    pub async fn logs(&self, service: &str) -> (String, String) {
        let container = self.container(service).await;
        let mut command = Command::new("docker");
        let logs = command.args(["logs", &container]).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&logs.stdout), text(&logs.stderr))
    }

    /// Waits until a service has written a line that contains `text` to standard output.
    pub async fn logged(&self, service: &str, text: &str) {
        eventually(IN_TIME, &format!("{service} says: {text}"), async || {
            self.logs(service).await.0.contains(text)
        })
        .await;
    }

    /// SIGKILL for the first process in a container. The engine takes its own `docker kill` for an operator's
    /// wish and restarts nothing; so this comes from outside.
    pub async fn kill_9(&self, service: &str) {
        let pid = self.inspect(service, "{{.State.Pid}}").await;
        // 0 is what the engine says of a container that does not run.
        assert!(pid.parse::<u32>().unwrap() > 1, "{service} runs");
        let kill = format!("kill -KILL {pid}");
        docker(&[
            "run",
            "--rm",
            "--pid=host",
            "--network=none",
            &self.lab.base,
            "sh",
            "-c",
            &kill,
        ])
        .await;
        eventually(IN_TIME, &format!("{service} is restarted"), async || {
            let state = "{{.State.Running}} {{.RestartCount}} {{.State.Pid}}";
            let state = self.inspect(service, state).await;
            state.starts_with("true 1 ") && !state.ends_with(&format!(" {pid}"))
        })
        .await;
    }
}

/// Runs docker, and gives what it prints.
pub async fn docker(args: &[&str]) -> String {
    let mut command = Command::new("docker");
    output(command.args(args), &format!("docker {args:?}")).await
}

/// Runs tests/compose/prepare, and gives the name of the image.
pub(crate) async fn prepare(args: &[&str]) -> String {
    let mut command = Command::new(root().join("tests/compose/prepare"));
    let image = output(command.args(args), "tests/compose/prepare").await;
    image.trim().to_owned()
}

/// Runs a command, however it ends.
pub(crate) async fn finished(command: &mut Command, what: &str) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(COMMAND, output).await;
    let output = output.unwrap_or_else(|_| panic!("{what}: not within {COMMAND:?}"));
    output.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Runs a command that has to end well, and gives what it prints.
pub(crate) async fn output(command: &mut Command, what: &str) -> String {
    let output = finished(command, what).await;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout
}

/// A shell that removes everything of a test as soon as the test's process is gone or done, however it ended.
#[derive(Debug)]
struct Cleaner(Child);

impl Cleaner {
    fn of(name: &str) -> Self {
        use std::os::unix::process::CommandExt as _;
        let script = root().join("tests/compose/clean");
        let mut command = std::process::Command::new(script);
        command
            .arg(name)
            // A word on its standard input, or its end, tells it to begin.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A signal for the test and its children is not for it.
            .process_group(0);
        Self(command.spawn().expect("tests/compose/clean"))
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take()
            && !std::thread::panicking()
        {
            let _ = stdin.write_all(b"passed\n");
        }
        let mut left = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = stderr.read_to_string(&mut left);
        }
        let status = self.0.wait();
        // While a test fails, its own words count.
        if !std::thread::panicking() {
            let clean = status.is_ok_and(|status| status.success());
            assert!(clean, "not everything could be removed: {left}");
        }
    }
}

/// The programs that belong into the two images.
pub fn programs(stand_ins: &'static str) -> [PathBuf; 3] {
    [
        Program::Api.path(),
        Program::Worker.path(),
        PathBuf::from(stand_ins),
    ]
}
