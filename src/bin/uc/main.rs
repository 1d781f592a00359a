//! The `uc` command: parses arguments, calls the library, prints.

mod args;
mod commands;
mod console;
mod restart;

use std::process::ExitCode;

use clap::Parser;
use ultracompress::ErrorKind;

/// Exit code for malformed input and I/O errors.
const FAILED: u8 = 1;
/// Exit code for wrong usage.
const USAGE: u8 = 2;
/// Exit code for a checksum, digest or comparison that did not match.
const MISMATCH: u8 = 3;
/// Exit code after Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = args::Args::parse();
    if let args::Command::Eval(_) | args::Command::Calibrate(_) | args::Command::Train(_) =
        args.command
        && let Some(code) = restart::on_one_thread_each(args.common.threads)
    {
        return code;
    }
    let mut console = console::Console::new(args.common.quiet, args.common.json);
    if let Some(threads) = args.common.threads.or_else(restart::threads)
        && let Err(e) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
    {
        console::complain(&format!("error: can't start {threads} threads: {e}"));
        return ExitCode::from(FAILED);
    }
    // Before any work: a kernel that doesn't exist is wrong usage of every command.
    if let Err(e) = ultracompress::Kernel::selected() {
        console::complain(&format!("error: {e}"));
        return ExitCode::from(USAGE);
    }
    match commands::run(args, &mut console) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            console.finish();
            console::complain(&format!("error: {e}"));
            ExitCode::from(exit_code(&e))
        }
    }
}

fn exit_code(e: &ultracompress::Error) -> u8 {
    match e.kind() {
        ErrorKind::Integrity => MISMATCH,
        ErrorKind::InvalidArgument => USAGE,
        ErrorKind::Cancelled => INTERRUPTED,
        _ => FAILED,
    }
}
