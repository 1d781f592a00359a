//! Starting the process again in the environment that candle needs.

use std::num::NonZero;
use std::process::{Command, ExitCode};

/// How many threads an operation of candle may start, besides rayon's own default.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// What tells the other process how many threads to start.
const THREADS: &str = "UC_EVAL_THREADS";

/// The number of threads that the process was started again with.
pub fn threads() -> Option<usize> {
    std::env::var(THREADS).ok()?.parse().ok()
}

/// Replaces the process by `again`, in which each operation of candle stays on the thread that
/// calls it: sequences run on all threads already, and threads of both kinds get in each other's
/// way. candle listens to the environment only, and safe code can't change its own.
///
/// Gives nothing when the environment is right, or when there is no way to start again, which costs
/// time only; otherwise the exit code of the other process.
pub fn on_one_thread_each(mut again: Command, threads: Option<usize>) -> Option<ExitCode> {
    let asked = std::env::var(VARIABLE).ok();
    if asked.as_deref() == Some("1") {
        return None;
    }
    let asked = asked.and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let all = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.or(asked).unwrap_or_else(all);
    again.env(THREADS, threads.to_string()).env(VARIABLE, "1");
    run(again)
}

#[cfg(unix)]
fn run(mut command: Command) -> Option<ExitCode> {
    use std::os::unix::process::CommandExt;
    let _no_way = command.exec();
    None
}

#[cfg(not(unix))]
fn run(mut command: Command) -> Option<ExitCode> {
    let status = command.status().ok()?;
    let code = status.code().and_then(|c| u8::try_from(c).ok());
    Some(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
