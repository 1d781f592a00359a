//! Output that appears whole or not at all: a temporary sibling, synced, then renamed.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, ErrorKind, Result};

/// A file that gets its final name only when it is complete; dropped, it vanishes.
#[derive(Debug)]
pub(crate) struct NewFile {
    temp: NamedTempFile,
    target: PathBuf,
    force: bool,
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How a file that another run may find is started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partial {
    /// What the name ends with.
    pub stage: &'static str,
    /// Stay when this run fails.
    pub keep: bool,
    /// Go on with the bytes that are there; else they are made anew, if there are any.
    pub again: bool,
}

/// Where a file is until it is complete, if another run is to find it.
pub(crate) fn partial_path(target: &Path, stage: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(stage);
    target.with_file_name(name)
}

/// Cuts a partial file.
///
/// # Errors
/// `Io`.
pub(crate) fn partial_set_len(file: &File, len: u64) -> Result<()> {
    file.set_len(len).map_err(|e| Error::io("can't write", e))
}

/// Removes what an earlier run left, if it did.
pub(crate) fn remove_stale(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn temp_beside(target: &Path) -> Result<NamedTempFile> {
    let folder = parent(target);
    tempfile::Builder::new()
        .prefix(".uc-")
        .suffix(".tmp")
        .tempfile_in(folder)
        .map_err(|e| Error::io("can't write here", e).in_file(folder.display().to_string()))
}

pub(crate) fn exists_error(path: &Path) -> Error {
    Error::new(ErrorKind::Io, "already exists; --force overwrites it")
        .in_file(path.display().to_string())
}

impl NewFile {
    /// Whether there may be a new file called `target`.
    ///
    /// # Errors
    /// `Io` when it exists (unless `force`) or is a folder.
    pub(crate) fn check(target: &Path, force: bool) -> Result<()> {
        if target.is_dir() {
            return Err(
                Error::new(ErrorKind::Io, "is a folder").in_file(target.display().to_string())
            );
        }
        if !force && target.symlink_metadata().is_ok() {
            return Err(exists_error(target));
        }
        Ok(())
    }

    /// Starts the file that will be called `target`.
    ///
    /// # Errors
    /// `Io` when it exists (unless `force`), is a folder, or its folder can't be written.
    pub(crate) fn create(target: &Path, force: bool) -> Result<Self> {
        Self::check(target, force)?;
        Ok(Self { temp: temp_beside(target)?, target: target.to_owned(), force })
    }

    /// Starts the file that will be called `target` under a name that another run finds: if this
    /// run is killed, what it wrote lies there.
    ///
    /// # Errors
    /// As [`NewFile::create`].
    pub(crate) fn partial(target: &Path, force: bool, partial: Partial) -> Result<Self> {
        Self::check(target, force)?;
        let path = partial_path(target, partial.stage);
        let io = |e| Error::io("can't write here", e).in_file(path.display().to_string());
        let mut options = std::fs::OpenOptions::new();
        options.write(true);
        if partial.again {
            // A link would lead elsewhere.
            if !path.symlink_metadata().map_err(io)?.is_file() {
                return Err(Error::new(ErrorKind::Io, "is no file of an earlier run")
                    .in_file(path.display().to_string()));
            }
        } else {
            // The state of this run, or of an interrupted one, lists it: it is nobody else's.
            remove_stale(&path).map_err(io)?;
            options.create_new(true);
        }
        let file = options.open(&path).map_err(io)?;
        let mut temp = NamedTempFile::from_parts(file, TempPath::try_from_path(&path).map_err(io)?);
        temp.disable_cleanup(partial.keep);
        Ok(Self { temp, target: target.to_owned(), force })
    }

    /// Whether files can be made in the folder of `target`.
    ///
    /// # Errors
    /// `Io` when they can't.
    pub(crate) fn probe(target: &Path) -> Result<()> {
        // Without a name, where the system has such files: nothing is left when the process is
        // killed.
        let folder = parent(target);
        tempfile::tempfile_in(folder)
            .map(drop)
            .map_err(|e| Error::io("can't write here", e).in_file(folder.display().to_string()))
    }

    /// Ends the file: syncs it and lets go of it. It still has no name.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn close(self) -> Result<ClosedFile> {
        let io = |e| Error::io("can't write", e).in_file(self.target.display().to_string());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private; the result has the permissions of any new file.
            let mode = std::fs::Permissions::from_mode(0o666 & !umask());
            self.temp.as_file().set_permissions(mode).map_err(io)?;
        }
        self.temp.as_file().sync_all().map_err(io)?;
        Ok(ClosedFile { temp: self.temp.into_temp_path(), target: self.target, force: self.force })
    }
}

/// A complete file that waits for its name; dropped, it vanishes.
#[derive(Debug)]
pub(crate) struct ClosedFile {
    temp: TempPath,
    target: PathBuf,
    force: bool,
}

impl ClosedFile {
    /// Where it is until it gets its name.
    pub(crate) fn path(&self) -> &Path {
        &self.temp
    }

    /// Makes renames in the folder of `path` durable, where the platform can.
    pub(crate) fn sync_parent(path: &Path) {
        sync_folder(parent(path));
    }

    /// Gives all files their names, in order. When one fails, those before it are removed again,
    /// unless they may have replaced others.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn commit(files: Vec<Self>) -> Result<()> {
        let mut done: Vec<PathBuf> = vec![];
        for file in files {
            let Self { temp, target, force } = file;
            let renamed =
                if force { temp.persist(&target) } else { temp.persist_noclobber(&target) };
            if let Err(e) = renamed {
                if !force {
                    done.iter().for_each(|path| drop(std::fs::remove_file(path)));
                }
                return Err(
                    Error::io("can't rename", e.error).in_file(target.display().to_string())
                );
            }
            done.push(target);
        }
        done.last().into_iter().for_each(|path| sync_folder(parent(path)));
        Ok(())
    }
}

/// Writes a small file whole or not at all. Without bytes only finds out whether it could be
/// written.
///
/// # Errors
/// `Io` when it exists (unless `force`), is a folder, or can't be written.
pub fn write_new(target: &Path, force: bool, bytes: Option<&[u8]>) -> Result<()> {
    let mut file = NewFile::create(target, force)?;
    let Some(bytes) = bytes else { return Ok(()) };
    let io = |e| Error::io("can't write", e).in_file(target.display().to_string());
    file.write_all(bytes).map_err(io)?;
    ClosedFile::commit(vec![file.close()?])
}

impl Write for NewFile {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.temp.write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.temp.flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, pos: std::io::SeekFrom) -> std::io::Result<u64> {
        self.temp.seek(pos)
    }
}

/// Makes the rename durable where the platform can; some file systems refuse, which loses nothing.
fn sync_folder(folder: &Path) {
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all();
    }
}

/// The process's file creation mask, learnt from a file made with it: reading the mask itself means
/// setting it, which other threads would see.
#[cfg(unix)]
fn umask() -> u32 {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::OnceLock;
    static MASK: OnceLock<u32> = OnceLock::new();
    *MASK.get_or_init(|| {
        let probe = tempfile::tempdir().ok().and_then(|dir| {
            let file = File::create(dir.path().join("probe")).ok()?;
            Some(file.metadata().ok()?.permissions().mode())
        });
        probe.map_or(0o022, |mode| 0o666 & !mode)
    })
}

/// A folder that gets its final name only when it is complete.
#[derive(Debug)]
pub(crate) struct NewFolder {
    temp: tempfile::TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Starts the folder that will be called `target`.
    ///
    /// # Errors
    /// `Io` when `target` exists and isn't an empty folder (unless `force`), or can't be written.
    pub(crate) fn create(target: &Path, force: bool) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            let empty = std::fs::read_dir(target).is_ok_and(|mut d| d.next().is_none());
            if !target.is_dir() {
                return Err(Error::new(ErrorKind::Io, "exists and is no folder")
                    .in_file(target.display().to_string()));
            }
            if !empty && !force {
                return Err(exists_error(target));
            }
        }
        // Inside an existing folder, so that the final renames stay on one file system.
        let home = if target.is_dir() { target } else { parent(target) };
        let temp =
            tempfile::Builder::new().prefix(".uc-").suffix(".tmp").tempdir_in(home).map_err(
                |e| Error::io("can't write here", e).in_file(home.display().to_string()),
            )?;
        Ok(Self { temp, target: target.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Moves the content to its place. Files of the same name are replaced, others stay.
    pub(crate) fn commit(self) -> Result<()> {
        let io = |e| Error::io("can't rename", e).in_file(self.target.display().to_string());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::Permissions::from_mode(0o777 & !umask());
            std::fs::set_permissions(self.temp.path(), mode).map_err(io)?;
        }
        if self.target.is_dir() {
            move_into(self.temp.path(), &self.target).map_err(io)?;
        } else {
            std::fs::rename(self.temp.path(), &self.target).map_err(io)?;
        }
        sync_folder(parent(&self.target));
        Ok(())
    }
}

fn move_into(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            move_into(&entry.path(), &target)?;
        } else {
            std::fs::rename(entry.path(), target)?;
        }
    }
    Ok(())
}
