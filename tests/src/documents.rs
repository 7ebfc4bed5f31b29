//! The documents as an operator follows them: their sections and commands.

use std::fs;

use crate::compose::root;

/// A document of the repository.
pub fn document(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What is under a heading, such as `## Check`, up to the next one of the same rank or a higher one.
pub fn section<'t>(document: &'t str, heading: &str) -> &'t str {
    let start = format!("\n{heading}\n");
    let (_, text) = document
        .split_once(&start)
        .unwrap_or_else(|| panic!("no section {heading:?}"));
    let rank = heading.find(' ').expect("a heading");
    let (mut end, mut block) = (0, false);
    for line in text.split_inclusive('\n') {
        // A comment in a block of commands is no heading.
        block ^= line.trim_start().starts_with("```");
        let hashes = line.bytes().take_while(|&byte| byte == b'#').count();
        if !block && (1..=rank).contains(&hashes) {
            break;
        }
        end += line.len();
    }
    &text[..end]
}

/// The blocks of shell commands in a text, in their order.
pub fn blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() == "```sh" {
            let indent = line.len() - line.trim_start().len();
            let block = lines.by_ref().take_while(|line| line.trim() != "```");
            let block = block.map(|line| line.get(indent..).unwrap_or_default());
            blocks.push(block.collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The command that stands between backticks in a text and begins so.
pub fn inline(text: &str, beginning: &str) -> String {
    let found = text.split('`').skip(1).step_by(2);
    let mut found = found.filter(|code| code.starts_with(beginning));
    let command = found
        .next()
        .unwrap_or_else(|| panic!("no command {beginning:?} in {text}"));
    // It may be broken over two lines.
    command.split_whitespace().collect::<Vec<_>>().join(" ")
}
