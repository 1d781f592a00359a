//! One module for each subcommand.

mod audit;
mod bench;
mod calibrate;
mod compare;
mod eval;
mod info;
mod overlay;
mod pack;
mod receipt;
mod reshard;
mod sign;
mod strip;
mod train;
mod unpack;
mod verify;

use clap::CommandFactory;

use crate::args::{Args, Command};
use crate::console::Console;
use crate::support::Outcome;

/// Runs the command; the exit code when it ends without an error of its own.
pub fn run(args: Args, console: &mut Console) -> Outcome {
    match args.command {
        Command::Pack(a) => pack::run(&a, console),
        Command::Info(a) => info::run(&a, console),
        Command::Verify(a) => verify::run(&a, console),
        Command::Audit(a) => audit::run(&a, console),
        Command::Sign(a) => sign::run(&a, console),
        Command::Unpack(a) => unpack::run(&a, console),
        Command::Same(a) => compare::same(&a, console),
        Command::Reshard(a) => reshard::run(&a, console),
        Command::Strip(a) => strip::run(&a, console),
        Command::Overlay(a) => overlay::run(&a, console),
        Command::Diff(a) => compare::diff(&a, console),
        Command::Calibrate(a) => calibrate::run(&a, console),
        Command::Train(a) => train::run(&a, console),
        Command::Eval(a) => eval::run(&a, console),
        Command::Receipt(a) => receipt::run(&a, console),
        Command::Bench(a) => bench::run(&a, console),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "uc", &mut script);
            console.print(String::from_utf8_lossy(&script).trim_end())?;
            Ok(0)
        }
    }
}
