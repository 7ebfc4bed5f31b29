//! The image is built from what .dockerignore lets through. The test of docker-compose.yml copies programs that were built
//! before, so it does not notice what is missing.

#![expect(clippy::unwrap_used, reason = "tests outside of #[test] functions")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What the lines after the first, which shuts everything out, let through.
fn let_through() -> Vec<String> {
    let text = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"));
    let paths = lines.map(|line| line.strip_prefix('!').unwrap().to_owned());
    paths.collect()
}

#[test]
fn every_member_of_the_workspace_is_let_through() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("members = [").unwrap();
    let (members, _) = rest.split_once(']').unwrap();
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 5, "{members:?}");
    let through = let_through();
    for member in members {
        for part in ["Cargo.toml", "src"] {
            let path = Path::new(member).join(part);
            assert!(
                through.iter().any(|prefix| path.starts_with(prefix)),
                "cargo needs {} in the image",
                path.display()
            );
        }
    }
}

#[test]
fn every_line_lets_something_through() {
    for path in let_through() {
        assert!(root().join(&path).exists(), "there is no {path}");
    }
}
