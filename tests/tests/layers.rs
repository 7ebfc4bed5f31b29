//! Which folder may import which (docs/architecture.md); the crates' own dependencies say the rest.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

/// All Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(folder);
    let (mut folders, mut files) = (vec![root], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    assert!(!files.is_empty(), "{folder}");
    files
}

#[test]
fn imports_point_one_way() {
    for (folder, forbidden) in [
        (
            "shared/src/rules",
            &[
                "tokio",
                "sqlx",
                "crate::flow",
                "crate::matrix",
                "crate::process",
            ][..],
        ),
        ("shared/src/flow", &["sqlx", "crate::process::settings"]),
        (
            "shared/src",
            &[
                "sqlx",
                "axum",
                "matrix2acrobits_sqlite",
                "matrix2acrobits_postgres",
                "matrix2acrobits_store",
            ],
        ),
        (
            "shared/sqlite/src",
            &["axum", "matrix2acrobits_store", "matrix2acrobits_postgres"],
        ),
        (
            "shared/postgres/src",
            &["axum", "matrix2acrobits_store", "matrix2acrobits_sqlite"],
        ),
        ("shared/store/src", &["sqlx", "axum"]),
        (
            "api/src",
            &[
                "sqlx",
                "matrix2acrobits_sqlite",
                "matrix2acrobits_postgres",
                "matrix2acrobits_worker",
            ],
        ),
        (
            "worker/src",
            &[
                "sqlx",
                "matrix2acrobits_sqlite",
                "matrix2acrobits_postgres",
                "matrix2acrobits_api",
            ],
        ),
    ] {
        for (path, text) in sources(folder) {
            for name in forbidden {
                let found = text.lines().find(|line| {
                    let line = line.trim_start();
                    !line.starts_with("//") && line.contains(&format!("{name}::"))
                });
                assert_eq!(found, None, "{} imports {name}", path.display());
            }
        }
    }
}

#[test]
fn sql_stands_in_the_statement_folder_alone() {
    let both = [sources("shared/sqlite/src"), sources("shared/postgres/src")];
    for (path, text) in both.concat() {
        let inside = path.components().any(|it| it.as_os_str() == "statements");
        // Opening and watching a file, and reading another program's, need statements that name no table of ours.
        let checked = text.contains("query!(") || text.contains("query_scalar!(");
        assert!(inside || !checked, "{} holds statements", path.display());
    }
}
