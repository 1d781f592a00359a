//! The `uc` command.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let again = std::env::current_exe().ok().map(Command::new);
    ultracompress_cli::run(std::env::args_os(), again)
}
