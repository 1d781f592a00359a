//! Shared by the commands: sizes as they are shown, checks before work starts, results as JSON.

use std::path::{Path, PathBuf};

use ultracompress::{DEFAULT_MAX_RAM, Error, ErrorKind, MIN_MAX_RAM};

use crate::args::Memory;

/// What a command ends with: an exit code, or an error.
pub type Outcome = Result<u8, Error>;

/// Both binary and decimal size: `6.15 MiB (6.45 MB)`.
pub fn size(bytes: u64) -> String {
    format!("{} ({})", indicatif::BinaryBytes(bytes), indicatif::DecimalBytes(bytes))
}

pub fn rate(bpw: Option<f64>) -> String {
    bpw.map_or("none".into(), |b| format!("{b:.4}"))
}

/// Fails early when `needed` bytes don't fit where `output` will be: in it, where it is a folder
/// that exists.
pub fn check_free_disk(output: &Path, needed: u64) -> Result<(), Error> {
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

/// The memory that the machine, or the container that the process runs in, has; nothing where the
/// platform can't tell.
pub fn memory_of_machine() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let limit = system.cgroup_limits().map_or(u64::MAX, |c| c.total_memory);
    Some(system.total_memory().min(limit)).filter(|bytes| *bytes > 0)
}

/// The memory to stay within: as asked for, or a quarter of what there is.
pub fn max_ram(args: &Memory) -> u64 {
    let quarter = || memory_of_machine().map(|all| (all / 4).max(MIN_MAX_RAM));
    args.max_ram.or_else(quarter).unwrap_or(DEFAULT_MAX_RAM)
}

/// The files of a result, as JSON.
pub fn files_json(files: &[(PathBuf, u64)]) -> Vec<serde_json::Value> {
    let file = |(path, bytes): &(PathBuf, u64)| serde_json::json!({ "path": path.display().to_string(), "bytes": bytes });
    files.iter().map(file).collect()
}

/// What names the pack that was written: its file, or its index file, which is the last.
pub fn output_name(files: &[(PathBuf, u64)]) -> String {
    files.last().map_or(String::new(), |(path, _)| path.display().to_string())
}

/// The bytes of a small file, such as a text.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| {
        Error::new(ErrorKind::Io, format!("can't read: {e}")).in_file(path.display().to_string())
    })
}

/// Refuses to write over a file of a folder that is read.
pub fn check_outside(folder: &Path, output: &Path) -> Result<(), Error> {
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
pub fn check_distinct(input: &Path, output: &Path) -> Result<(), Error> {
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
