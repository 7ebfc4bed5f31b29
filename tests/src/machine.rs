//! The machine of an operator: a small Debian with systemd and Podman, in a container of a real engine. The repository is
//! on it, and the programs built here take the place of those that its commands would build.

use std::process::Output;

use tokio::process::Command;

use crate::compose::{self, Lab, docker, finished, output, root};

/// Where the repository is on the machine, and its shell begins.
const CLONE: &str = "/root/matrix2acrobits";

/// A machine that runs; removed with its lab.
#[derive(Debug)]
pub struct Machine {
    name: String,
}

impl Machine {
    /// Starts a machine with a clone of the repository and what a build would give.
    pub async fn boot(lab: &Lab) -> Self {
        let image = compose::prepare(&["operations"]).await;
        let machine = Self {
            name: format!("{}-machine", lab.name()),
        };
        let label = format!("matrix2acrobits.test={}", lab.name());
        machine.start(&[&image, &machine.name, &label]).await;
        let built = format!("{}/.", lab.built().display());
        docker(&["cp", &built, &machine.place("/")]).await;
        let pack = "tar --create --exclude=./.git --exclude=./target . | docker cp - \"$0\"";
        let mut clone = Command::new("sh");
        clone.args(["-c", pack, &machine.place(CLONE)]);
        output(clone.current_dir(root()), "copy the repository").await;
        machine
    }

    async fn start(&self, args: &[&str]) {
        let mut boot = Command::new(root().join("tests/operations/boot"));
        output(boot.args(args), "tests/operations/boot").await;
    }

    fn place(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }

    /// Shuts the machine down and starts it again.
    pub async fn reboot(&self) {
        docker(&["stop", "--time", "60", &self.name]).await;
        self.start(&[&self.name]).await;
    }

    /// Loads an image of the engine into the machine's Podman, under this name.
    pub async fn load_image(&self, image: &str, name: &str) {
        let tag = "podman tag \"$(podman load --quiet | sed 's/^Loaded image: *//')\" \"$0\"";
        let load = "docker save \"$1\" | docker exec --interactive \"$0\" sh -c \"$2\" \"$3\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", load, &self.name, image, tag, name]);
        output(&mut shell, "podman load").await;
    }

    /// Runs commands in a shell of root, in the clone of the repository. The first that fails ends it.
    pub async fn try_run(&self, commands: &str) -> Output {
        let mut shell = Command::new("docker");
        shell.args(["exec", "--workdir", CLONE, &self.name, "bash"]);
        shell.args(["-euo", "pipefail", "-c", commands]);
        finished(&mut shell, commands).await
    }

    /// The same where the commands have to end well; gives what they print.
    pub async fn run(&self, commands: &str) -> String {
        let output = self.try_run(commands).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}: {commands}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }
}
