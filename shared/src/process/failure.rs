//! Why a command ends without success: a line for standard error and an exit code.

use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    net::SocketAddr,
};

use super::{
    logs::Chain,
    settings::{self, SettingError},
};

/// The end of a command, or of a process at its start.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: i32,
}

impl Failure {
    /// Exit code 1, with these words.
    pub fn other(error: impl fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            code: 1,
        }
    }

    /// The exit code of a wrong setting, with these words.
    pub fn bad_setting(error: impl fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            code: settings::EXIT_BAD_SETTING,
        }
    }

    /// Exit code 1, with an error and what caused it.
    pub fn of(error: impl Error) -> Self {
        Self::other(Chain(&error))
    }

    /// The listener of this setting cannot be had. Another process may leave the port, and an address may come with its
    /// network, so a supervisor should try again.
    pub fn cannot_listen(setting: &'static str, addr: SocketAddr, error: &io::Error) -> Self {
        let error_kind = error.kind();
        let error = SettingError::new(setting, format!("cannot listen on {addr}: {error}"));
        match error_kind {
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable => Self::other(error),
            _ => error.into(),
        }
    }

    /// Ends the process.
    pub fn exit(self) -> ! {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{}", self.message);
        std::process::exit(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self::bad_setting(error)
    }
}
