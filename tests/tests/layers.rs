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

/// What a file names: each path of its `use` statements in full, and its other lines as they are. Without comments.
fn names(text: &str) -> Vec<String> {
    let code: Vec<_> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let (mut names, mut import) = (Vec::new(), None::<String>);
    for line in code {
        let line = line.trim();
        let mut open = match import.take() {
            Some(open) => open,
            None => match line.split_once("use ") {
                Some(("" | "pub " | "pub(crate) " | "pub(super) ", _)) => String::new(),
                _ if line.is_empty() => continue,
                _ => {
                    names.push(line.to_owned());
                    continue;
                }
            },
        };
        open.push_str(line);
        match open.strip_suffix(';') {
            Some(whole) => {
                let paths = whole.split_once("use ").unwrap().1;
                flatten("", paths, &mut names);
            }
            None => import = Some(open),
        }
    }
    names
}

/// Writes the paths of a `use` tree in full: `a::{b, c::{d}}` names `a::b` and `a::c::d`.
fn flatten(before: &str, tree: &str, names: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    for (at, sign) in tree.char_indices().chain([(tree.len(), ',')]) {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let path = tree[start..at].trim();
                start = at + 1;
                match path.split_once('{') {
                    Some((head, rest)) => {
                        let inner = rest.strip_suffix('}').unwrap();
                        flatten(&format!("{before}{head}"), inner, names);
                    }
                    None if path.is_empty() => {}
                    None => names.push(format!("{before}{path}")),
                }
            }
            _ => {}
        }
    }
}

/// Whether a line of [`names`] names something in `module`.
fn is_in(module: &str, line: &str) -> bool {
    line == module || line.contains(&format!("{module}::"))
}

#[test]
fn nested_imports_are_seen() {
    let text = "use std::fmt;\n// crate::flow::a\npub use crate::{\n    flow::{self, look::{A, B}},\n    ids,\n};\n\
                fn f() { crate::rules::f() }";
    assert_eq!(
        names(text),
        [
            "std::fmt",
            "crate::flow::self",
            "crate::flow::look::A",
            "crate::flow::look::B",
            "crate::ids",
            "fn f() { crate::rules::f() }",
        ]
    );
    assert!(is_in("crate::ids", "crate::ids"));
    assert!(is_in("crate::flow", "crate::flow::look::A"));
    assert!(!is_in("crate::flow", "crate::flows::A"));
}

#[test]
fn imports_point_one_way() {
    const SQL: &[&str] = &["sqlx", "matrix2acrobits_sqlite", "matrix2acrobits_postgres"];
    const STORE: &str = "matrix2acrobits_store";
    let [values, process, rules, flow, matrix] = [
        &[
            "crate::process",
            "crate::rules",
            "crate::flow",
            "crate::matrix",
        ][..],
        &["crate::rules", "crate::flow", "crate::matrix"],
        &["tokio", "crate::process", "crate::flow", "crate::matrix"],
        &["crate::matrix", "crate::process::settings::SharedArgs"],
        &["crate::flow"],
    ];
    for (place, forbidden) in [
        ("shared/src/ids.rs", &[values][..]),
        ("shared/src/secret.rs", &[values]),
        ("shared/src/clock.rs", &[values]),
        ("shared/src/mark.rs", &[values]),
        ("shared/src/process/", &[process]),
        ("shared/src/rules/", &[rules]),
        ("shared/src/flow/", &[flow]),
        ("shared/src/matrix/", &[matrix]),
        ("shared/src/", &[SQL, &["axum", STORE]]),
        (
            "shared/sqlite/src/",
            &[&["axum", STORE, "matrix2acrobits_postgres"]],
        ),
        (
            "shared/postgres/src/",
            &[&["axum", STORE, "matrix2acrobits_sqlite"]],
        ),
        ("shared/store/src/", &[&["axum", "sqlx"]]),
        ("api/src/", &[SQL, &["matrix2acrobits_worker"]]),
        ("api/src/http/", &[API]),
        ("api/src/arrivals/", &[API]),
        ("api/src/identity/", &[&API[1..]]),
        ("api/src/notify/", &[&API[2..]]),
        ("api/src/reports/", &[&["crate::notify", "crate::operator"]]),
        ("worker/src/", &[SQL, &["matrix2acrobits_api"]]),
    ] {
        let found = sources(place.split_inclusive("src/").next().unwrap());
        let found: Vec<_> = found
            .iter()
            .filter(|(path, _)| path.to_str().unwrap().contains(place))
            .collect();
        assert!(!found.is_empty(), "{place}");
        for (path, text) in found {
            for line in names(text) {
                let upward = forbidden
                    .concat()
                    .into_iter()
                    .find(|name| is_in(name, &line));
                assert_eq!(upward, None, "{}: {line}", path.display());
            }
        }
    }
}

/// The folders of the api from the bottom up, without http and arrivals, which import none of them.
const API: &[&str] = &[
    "crate::identity",
    "crate::notify",
    "crate::reports",
    "crate::operator",
];

/// A task that nobody watches may end by a panic, and the process would work on without it.
#[test]
fn every_task_is_watched() {
    for (path, text) in [sources("api/src"), sources("worker/src")].concat() {
        if path.ends_with("tests.rs") || path.parent().unwrap().ends_with("tests") {
            continue;
        }
        let product = text.split("#[cfg(test)]").next().unwrap();
        for line in product
            .lines()
            .filter(|line| line.contains("tokio::spawn("))
        {
            // The task that watches the others, and one whose work the process can do without.
            let known = line.contains("end_with(") || line.contains("warm_up()");
            assert!(known, "{}: {}", path.display(), line.trim());
        }
    }
}

#[test]
fn sql_on_our_tables_stands_in_the_statement_folder_alone() {
    let both = [sources("shared/sqlite/src"), sources("shared/postgres/src")];
    for (path, text) in both.concat() {
        let inside = path.components().any(|it| it.as_os_str() == "statements");
        // Opening and watching a file, and reading another program's, need statements that name no table of ours.
        let checked = ["query!(", "query_as!(", "query_scalar!("];
        let checked = checked.iter().any(|name| text.contains(name));
        assert!(inside || !checked, "{} holds statements", path.display());
    }
}
