//! Python programs that tests run: where tests/python/install has put them.

use std::path::PathBuf;

/// The Python of a program's environment: NAME_PYTHON, or what lies in NAME_HOME or the target folder.
pub fn python(name: &str) -> PathBuf {
    let variable = |suffix| std::env::var_os(format!("{}_{suffix}", name.to_uppercase()));
    if let Some(python) = variable("PYTHON") {
        return python.into();
    }
    let home = variable("HOME").map(PathBuf::from);
    let own = std::env::current_exe().expect("the path of this program");
    let target = own.ancestors().map(|folder| folder.join(name));
    let found = home.into_iter().chain(target);
    let mut found = found.map(|home| home.join("venv/bin/python"));
    found.find(|python| python.exists()).unwrap_or_else(|| {
        panic!(
            "{name} is not installed: run tests/python/install {name}, or use tests/run, which does"
        )
    })
}
