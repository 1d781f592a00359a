//! Folders: of a test's own, and those of the repository that tests read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of the test's own, which is gone when the test ends.
pub struct Desk(tempfile::TempDir);

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("can write"))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// Makes a folder in this one.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("can write");
        path
    }

    pub fn read(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("can write");
    }

    /// Changes bits of one byte of a file.
    pub fn flip(&self, name: &str, at: usize, bits: u8) {
        let mut bytes = self.read(name);
        bytes[at] ^= bits;
        self.write(name, bytes);
    }

    /// Names in the folder in order, temporary ones included.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).expect("a folder");
        let name = |e: std::io::Result<fs::DirEntry>| {
            e.expect("readable").file_name().into_string().expect("UTF-8")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

/// All files below a folder, temporary ones included, with their bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below it").to_owned();
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

/// Copies some files of a folder to a new one.
pub fn copy_files(from: &Path, names: &[&str], to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for name in names {
        fs::copy(from.join(name), to.join(name)).expect("can copy");
    }
}

/// The repository, from the tests of each package.
pub fn repository() -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|f| f.join("spec/vectors").is_dir()).expect("spec/vectors is there").to_owned()
}

/// A small language model with its tokenizer.
pub fn tiny_llama() -> PathBuf {
    repository().join("examples/data/tiny-llama")
}

/// A model of each architecture, smaller still, with what transformers computes.
pub fn models() -> PathBuf {
    repository().join("tests/models")
}
