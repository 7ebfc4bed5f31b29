//! Standard output of the commands.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
};

use super::failure::Failure;

/// Tells the operator how the work goes. The work goes on where nobody can be told.
pub fn print(line: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The same for a command whose lines are also what it was asked for. The work goes on, and its end says that lines are
/// missing.
#[derive(Debug, Default)]
pub struct Lines(Option<Failure>);

impl Lines {
    /// Prints a line.
    pub fn print(&mut self, line: impl fmt::Display) {
        if let Err(failure) = write(line) {
            self.0.get_or_insert(failure);
        }
    }

    /// An error if lines are missing.
    pub fn complete(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Writes a line of what the command was asked for. False when the reader has gone away (`| head`), which is not an
/// error. `Err` when part of it is missing: on a full disk for example.
pub fn write(line: impl fmt::Display) -> Result<bool, Failure> {
    written(writeln!(io::stdout(), "{line}"))
}

/// The same for a result of writing.
pub fn written(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::other(format!(
            "the output is not complete: {error}"
        ))),
    }
}
