//! Running `uc` on a desk, and what came of it.

use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::folder::{Desk, tiny_llama};

/// A run that has ended.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(out: Output) -> Self {
        Self {
            code: out.status.code(),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The one JSON object on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e} in stdout: {}", self.stdout));
        assert!(value.is_object(), "{value}");
        value
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "{text:?} is not in stderr: {}", self.stderr);
        self
    }

    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "{text:?} is not in stdout: {}", self.stdout);
        self
    }
}

impl Desk {
    /// With the pack of the small model in it as `model.uc`.
    pub fn with_pack() -> Self {
        let desk = Self::new();
        desk.write("model.uc", tiny_pack());
        desk
    }

    /// `uc` in this folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
        command.args(args);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command.current_dir(self.root()).env("NO_COLOR", "1").stdin(Stdio::null());
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("the binary starts").into()
    }

    /// Runs `uc` in a shell that said `limits` before.
    #[cfg(target_os = "linux")]
    pub fn run_within(&self, limits: &str, args: &[&str]) -> Ran {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{limits} && exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_uc")).args(args);
        // Address space that the allocator sets aside for each thread isn't memory in use.
        command.env("MALLOC_ARENA_MAX", "1");
        self.prepare(&mut command);
        command.output().expect("the shell starts").into()
    }
}

/// The folder of the small model, for a command line.
pub fn source() -> String {
    tiny_llama().to_str().expect("UTF-8").to_owned()
}

/// What `uc pack` makes of the small model: planes, raw tensors, an alias, files.
pub fn tiny_pack() -> &'static [u8] {
    static PACK: OnceLock<Vec<u8>> = OnceLock::new();
    PACK.get_or_init(|| {
        let desk = Desk::new();
        desk.run(&["pack", &source(), "-o", "model.uc", "-q"]).expect(0);
        desk.read("model.uc")
    })
}
