//! Messages, progress and Ctrl-C. Results go to stdout, everything else to stderr.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ultracompress::{Error, ErrorKind, Progress};

/// Seconds between progress lines when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What a command says and shows.
pub struct Console {
    quiet: bool,
    pub json: bool,
    bar: ProgressBar,
    /// What the bar counts, when it isn't bytes.
    unit: Option<&'static str>,
    started: Instant,
    last_line: AtomicU64,
    stop: Arc<AtomicBool>,
}

impl Console {
    pub fn new(quiet: bool, json: bool) -> Self {
        Self {
            quiet,
            json,
            bar: ProgressBar::hidden(),
            unit: None,
            started: Instant::now(),
            last_line: AtomicU64::new(0),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Starts a bar over `total` bytes. From here on Ctrl-C asks the work to end and to remove its
    /// temporary files; commands that never start one end at once, as by default.
    pub fn start(&mut self, what: &'static str, total: u64) {
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
        self.start_bar(what, total, style);
    }

    /// As [`Console::start`], over `total` tokens.
    pub fn start_tokens(&mut self, what: &'static str, total: u64) {
        self.unit = Some("tokens");
        self.start_bar(what, total, "{msg} {wide_bar} {pos}/{len} tokens {per_sec} ETA {eta}");
    }

    /// As [`Console::start`], over `total` steps of training.
    pub fn start_steps(&mut self, what: &'static str, total: u64) {
        self.unit = Some("steps");
        self.start_bar(what, total, "{msg} {wide_bar} {pos}/{len} steps ETA {eta}");
    }

    fn start_bar(&mut self, what: &'static str, total: u64, style: &str) {
        let flag = self.stop.clone();
        if let Err(e) = ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)) {
            self.say(format!("warning: Ctrl-C won't clean up: {e}"));
        }
        self.started = Instant::now();
        self.last_line.store(0, Ordering::Relaxed);
        self.bar = ProgressBar::new(total).with_message(what);
        self.bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
        // A bar of its own on terminals only; lines otherwise, from `advance`.
        if self.quiet || !std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// A message for a person.
    pub fn say(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.bar.suspend(|| complain(text.as_ref()));
        }
    }

    /// A line of the result; a closed pipe is no error.
    pub fn print(&self, text: impl AsRef<str>) -> Result<(), Error> {
        self.write(format!("{}\n", text.as_ref()).as_bytes())
    }

    /// A result that is bytes.
    pub fn print_bytes(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write(bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        match std::io::stdout().lock().write_all(bytes) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Error::new(ErrorKind::Io, format!("can't write to stdout: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// The JSON object of the result.
    pub fn print_json(&self, value: &serde_json::Value) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::new(ErrorKind::Io, format!("can't write JSON: {e}")))?;
        text.push(b'\n');
        self.write(&text)
    }
}

/// Writes a line to stderr; unlike `eprintln!` it doesn't panic when nobody listens any more.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

impl Progress for Console {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.quiet || std::io::stderr().is_terminal() {
            return;
        }
        let now = self.started.elapsed().as_secs();
        let last = self.last_line.load(Ordering::Relaxed);
        let due = now >= last + LINE_EVERY.as_secs();
        if due
            && self
                .last_line
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let rate = done / now.max(1);
            // Steps take seconds.
            let left = u128::from(all.saturating_sub(done)) * u128::from(now);
            let eta = left / u128::from(done.max(1));
            let show = |n: u64| match self.unit {
                Some(unit) => format!("{n} {unit}"),
                None => indicatif::HumanBytes(n).to_string(),
            };
            let (what, done, all) = (self.bar.message(), show(done), show(all));
            let speed = if rate > 0 { format!(", {}/s", show(rate)) } else { String::new() };
            complain(&format!("{what} {done} of {all}{speed}, ETA {eta} s"));
        }
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
