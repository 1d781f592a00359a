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

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use ultracompress::{DEFAULT_MAX_RAM, Error, ErrorKind, MIN_MAX_RAM};

use crate::args::{Args, Command, Memory};
use crate::console::Console;

type Outcome = Result<u8, Error>;

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

/// Both binary and decimal size: `6.15 MiB (6.45 MB)`.
fn size(bytes: u64) -> String {
    format!("{} ({})", indicatif::BinaryBytes(bytes), indicatif::DecimalBytes(bytes))
}

fn rate(bpw: Option<f64>) -> String {
    bpw.map_or("none".into(), |b| format!("{b:.4}"))
}

/// Fails early when `needed` bytes don't fit where `output` will be: in it, where it is a folder that
/// exists.
fn check_free_disk(output: &Path, needed: u64) -> Result<(), Error> {
    let folder = output
        .ancestors()
        .map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
        .find(|p| p.is_dir());
    // Where the platform can't tell, the write itself will.
    let free = folder.and_then(|f| fs4::available_space(f).ok());
    match free {
        Some(free) if free < needed => Err(Error::new(
            ErrorKind::Io,
            format!("not enough free disk: about {} needed, {} free", size(needed), size(free)),
        )
        .in_file(output.display().to_string())),
        _ => Ok(()),
    }
}

/// The memory that the machine, or the container that the process runs in, has; nothing where the platform can't
/// tell.
fn memory_of_machine() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |c| c.total_memory);
    Some(system.total_memory().min(limit)).filter(|bytes| *bytes > 0)
}

/// The memory to stay within: as asked for, or a quarter of what there is.
fn max_ram(args: &Memory) -> u64 {
    let quarter = || memory_of_machine().map(|all| (all / 4).max(MIN_MAX_RAM));
    args.max_ram.or_else(quarter).unwrap_or(DEFAULT_MAX_RAM)
}

/// The files of a result, as JSON.
fn files_json(files: &[(PathBuf, u64)]) -> Vec<serde_json::Value> {
    let file = |(path, bytes): &(PathBuf, u64)| serde_json::json!({ "path": path.display().to_string(), "bytes": bytes });
    files.iter().map(file).collect()
}

/// What names the pack that was written: its file, or its index file, which is the last.
fn output_name(files: &[(PathBuf, u64)]) -> String {
    files.last().map_or(String::new(), |(path, _)| path.display().to_string())
}

/// The bytes of a small file, such as a text.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| {
        Error::new(ErrorKind::Io, format!("can't read: {e}")).in_file(path.display().to_string())
    })
}

/// Refuses to write over a file of a folder that is read.
fn check_outside(folder: &Path, output: &Path) -> Result<(), Error> {
    let inside = match (folder.canonicalize(), output.canonicalize()) {
        (Ok(folder), Ok(output)) => folder.is_dir() && output.starts_with(folder),
        _ => false,
    };
    if inside {
        let e = Error::new(ErrorKind::Io, "would replace a file of the source");
        return Err(e.in_file(output.display().to_string()));
    }
    Ok(())
}

/// Refuses to write over an input.
fn check_distinct(input: &Path, output: &Path) -> Result<(), Error> {
    let same = match (input.canonicalize(), output.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same {
        return Err(
            Error::new(ErrorKind::Io, "output is the input").in_file(output.display().to_string())
        );
    }
    Ok(())
}
