//! The `uc` tool: parses arguments, calls the library, prints.
//!
//! The binary is a thin shell around [`run`], so that a package for another language carries the
//! same tool.

mod args;
mod commands;
mod console;
mod exit;
mod restart;
mod support;

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use clap::Parser;

/// Runs the tool with `args`, the first of which is its name, as [`std::env::args_os`] gives them.
///
/// `again` starts this program another time, without its arguments: the commands that run models
/// set variables for a new process, since candle reads how many threads it may start from the
/// environment only. Without it they take more time.
///
/// Ends the process itself where arguments are wrong or ask for help.
pub fn run(args: impl IntoIterator<Item = OsString>, again: Option<Command>) -> ExitCode {
    let all: Vec<OsString> = args.into_iter().collect();
    let args = args::Args::parse_from(&all);
    if let args::Command::Eval(_) | args::Command::Calibrate(_) | args::Command::Train(_) =
        args.command
        && let Some(mut again) = again
    {
        again.args(all.iter().skip(1));
        if let Some(code) = restart::on_one_thread_each(again, args.common.threads) {
            return code;
        }
    }
    let mut console = console::Console::new(args.common.quiet, args.common.json);
    if let Some(threads) = args.common.threads.or_else(restart::threads)
        && let Err(e) = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()
    {
        console::complain(&format!("error: can't start {threads} threads: {e}"));
        return ExitCode::from(exit::FAILED);
    }
    // Before any work: a kernel that doesn't exist is wrong usage of every command.
    if let Err(e) = ultracompress::Kernel::selected() {
        console::complain(&format!("error: {e}"));
        return ExitCode::from(exit::USAGE);
    }
    match commands::run(args, &mut console) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            console.finish();
            console::complain(&format!("error: {e}"));
            ExitCode::from(exit::code_of(&e))
        }
    }
}
