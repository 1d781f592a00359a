//! The pages for users, `README.md` and `docs/*.md`: every command in them runs, ends with the exit
//! code that the page says, and prints what the page shows.
//!
//! Blocks are told apart by the words behind their fence:
//!
//! - `sh`: commands, one a line, run by the shell in the page's own folder. A command ends with
//!   exit code 0, or with N where `# exit code N` follows it.
//! - `text output`: lines that the commands of the block before print, in this order; `...` stands
//!   for anything.
//! - `text figures`: the same, where numbers may be others: those of measurements.
//! - `toml NAME`, `json NAME`: a file that the reader is asked to write.
//! - `text`: what can't run here; a command of `uc` in it is refused.
//!
//! The page's folder holds `model` and `examples/data/tiny-llama` (the small model of the
//! repository), `big-model` (the same with three large tensors more), `my-lora` (an adapter for it
//! as PEFT saves it), some texts under their names in the repository, and two of them as
//! `calib.txt` and `heldout.txt`. Addresses at `https://example.org/` lead to the folder.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[path = "../../tests/support/range_server.rs"]
mod range_server;

use range_server::RangeServer;

/// Pages with commands, each a test.
macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(#[test]
        fn $test() {
            run_page($page);
        })*
        const WITH_COMMANDS: &[&str] = &[$($page),*];
    };
}

pages! {
    the_readme_runs: "README.md",
    the_map_runs: "docs/README.md",
    packing_and_unpacking_run: "docs/pack-and-unpack.md",
    calibrating_runs: "docs/calibrate.md",
    measuring_runs: "docs/measure.md",
    the_exact_rung_runs: "docs/exact-and-rungs.md",
    overlays_run: "docs/overlays.md",
    proving_and_signing_run: "docs/prove-and-sign.md",
    large_and_remote_models_run: "docs/large-and-remote.md",
    the_commands_for_rust_run: "docs/from-rust.md",
    the_walks_run: "docs/architecture.md",
}

/// Pages without commands, with the reason.
const WITHOUT_COMMANDS: &[&str] = &[
    // Figures: a record beside each has the command.
    "docs/measured.md",
];

/// Programs that a page may use beside `uc`.
const PROGRAMS: &[&str] = &["cmp", "cp", "mkdir", "printf"];

/// Stands for a server with the page's folder.
const EXAMPLE: &str = "https://example.org/";

/// The most columns of a line that isn't of a table.
const COLUMNS: usize = 120;

#[test]
fn each_page_is_run_or_named_with_a_reason() {
    let mut known: Vec<&str> = WITH_COMMANDS.iter().chain(WITHOUT_COMMANDS).copied().collect();
    known.sort_unstable();
    assert_eq!(known, pages());
    for page in WITHOUT_COMMANDS {
        let blocks = blocks(page);
        assert!(blocks.iter().all(|b| b.kind != "sh"), "{page} has commands that nobody runs");
    }
}

#[test]
fn each_command_has_an_example() {
    let help = Command::new(env!("CARGO_BIN_EXE_uc")).arg("--help").output().expect("runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let list = help.split("Commands:").nth(1).expect("a list").split("\n\n").next();
    let names = list.expect("a list").lines().filter_map(|l| l.strip_prefix("  "));
    let names = names.filter_map(|l| l.split(' ').next()).filter(|n| !n.is_empty() && *n != "help");
    let names: Vec<&str> = names.collect();
    assert!(names.contains(&"pack"), "{help}");
    let blocks: Vec<Block> = pages().iter().flat_map(|page| blocks(page)).collect();
    let lines: Vec<&str> =
        blocks.iter().filter(|b| b.kind == "sh").flat_map(|b| &b.lines).map(|l| &**l).collect();
    for name in names {
        let command = format!("uc {name} ");
        let shown = lines.iter().any(|l| format!("{l} ").contains(&command));
        assert!(shown, "no page shows how to use uc {name}");
    }
}

#[test]
fn lines_are_short_and_the_readme_is() {
    for page in pages() {
        for (n, line) in text(&page).lines().enumerate() {
            let columns = line.chars().count();
            let table = line.trim_start().starts_with('|');
            assert!(table || columns <= COLUMNS, "{page}:{}: {columns} columns", n + 1);
        }
    }
    let lines = text("README.md").lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}

#[test]
fn links_lead_somewhere_and_the_map_to_each_page() {
    for page in pages() {
        let here = root().join(&page);
        for link in links(&text(&page)) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            if path.contains("://") {
                continue;
            }
            let target = if path.is_empty() { here.clone() } else { here.with_file_name(path) };
            assert!(target.exists(), "{page}: nothing is at {link}");
            if !anchor.is_empty() && target.extension().is_some_and(|e| e == "md") {
                let text = fs::read_to_string(&target).expect("a page");
                let found = text.lines().filter(|l| l.starts_with('#')).any(|l| slug(l) == anchor);
                assert!(found, "{page}: no heading for {link}");
            }
        }
    }
    let map = links(&text("docs/README.md"));
    for page in pages() {
        let name = page.strip_prefix("docs/").unwrap_or("README.md");
        assert!(name == "README.md" || map.iter().any(|l| l == name), "the map lacks {name}");
    }
}

/// The folder of the repository.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_root = |p: &&Path| p.join("spec/README.md").is_file();
    here.ancestors().find(is_root).expect("within the repository").to_owned()
}

fn text(page: &str) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"))
}

/// All pages, sorted.
fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).expect("pages") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort_unstable();
    pages
}

/// The targets of the links of a page.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1);
    targets.filter_map(|t| Some(t.split_once(')')?.0.to_owned())).collect()
}

/// What a heading is called in an address, as GitHub does it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A fenced block.
struct Block {
    /// The first word behind the fence.
    kind: String,
    /// The second.
    name: String,
    /// The number of its first line.
    line: usize,
    lines: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (n, line) in text(page).lines().enumerate() {
        if let Some(info) = line.strip_prefix("```") {
            if !open {
                let mut words = info.split([' ', ',']).map(str::to_owned);
                let (kind, name) = (words.next().unwrap_or_default(), words.next());
                let name = name.unwrap_or_default();
                blocks.push(Block { kind, name, line: n + 2, lines: vec![] });
            }
            open = !open;
        } else if open {
            blocks.last_mut().expect("an open one").lines.push(line.to_owned());
        }
    }
    assert!(!open, "{page}: a block has no end");
    blocks
}

/// Runs the commands of a page from top to bottom.
fn run_page(page: &str) {
    let blocks = blocks(page);
    assert!(blocks.iter().any(|b| b.kind == "sh"), "{page} has no commands");
    let desk = Desk::new(page);
    // What the last block of commands printed.
    let mut printed = String::new();
    for block in &blocks {
        let place = format!("{page}:{}", block.line);
        match (block.kind.as_str(), block.name.as_str()) {
            ("sh", "") => {
                printed.clear();
                for (i, line) in block.lines.iter().enumerate() {
                    if !line.is_empty() && !line.starts_with('#') {
                        printed += &desk.run(line, &format!("{page}:{}", block.line + i));
                    }
                }
            }
            ("text", "output") => compare(&block.lines, &printed, str::to_owned, &place),
            ("text", "figures") => compare(&block.lines, &printed, without_numbers, &place),
            ("text", "") => {
                let hidden = |l: &String| l.starts_with("uc ") || l.starts_with("cargo run");
                assert!(!block.lines.iter().any(hidden), "{place}: commands belong to `sh`");
            }
            ("toml" | "json", name) if !name.is_empty() => {
                assert!(!name.contains('/'), "{place}: {name}");
                fs::write(desk.folder.join(name), block.lines.join("\n")).expect("writes");
            }
            ("rust", _) => {}
            (kind, name) => panic!("{place}: unknown kind of block: {kind} {name}"),
        }
    }
}

/// Requires that `printed` has the lines that the page shows, in their order.
fn compare(shown: &[String], printed: &str, seen: fn(&str) -> String, place: &str) {
    let mut lines = printed.lines();
    for expected in shown {
        let wanted = seen(expected.trim());
        let found = wanted == "..." || lines.by_ref().any(|l| matches(&wanted, &seen(l.trim())));
        assert!(found, "{place}: nobody printed {expected:?} (any more) in:\n{printed}");
    }
}

/// Whether a line is as the page has it, where `...` stands for anything.
fn matches(shown: &str, line: &str) -> bool {
    let mut pieces = shown.split("...");
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// Each number becomes one sign, and each run of spaces one space.
fn without_numbers(line: &str) -> String {
    let word = |w: &str| {
        let number = w.trim_start_matches(['-', '(']).trim_end_matches([':', ',', ';', '.', ')']);
        match number.parse::<f64>() {
            Ok(_) => w.trim_start_matches('-').replace(number, "N"),
            Err(_) => w.to_owned(),
        }
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// The folder that a page's commands run in. It ends with the value.
struct Desk {
    folder: PathBuf,
    server: RangeServer,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Desk {
    fn new(page: &str) -> Self {
        let name = format!("uc-docs-{}-{}", std::process::id(), page.replace(['/', '.'], "-"));
        let folder = std::env::temp_dir().join(name);
        let source = root().join("examples/data/tiny-llama");
        // A page that says how to make `model` makes it.
        let makes = text(page).contains("cp -r examples/data/tiny-llama model");
        let models: &[&str] = if makes { &[] } else { &["model"] };
        for model in ["examples/data/tiny-llama", "big-model"].iter().chain(models) {
            copy_folder(&source, &folder.join(model));
        }
        enlarge(&folder.join("big-model/model.safetensors"));
        write_adapter(&folder.join("my-lora"));
        fs::create_dir(folder.join("spec")).expect("a folder");
        for (from, to) in [
            ("README.md", "README.md"),
            ("spec/container.md", "spec/container.md"),
            ("spec/container.md", "calib.txt"),
            ("spec/codec.md", "spec/codec.md"),
            ("spec/codec.md", "heldout.txt"),
        ] {
            fs::write(folder.join(to), text(from)).expect("writes");
        }
        Self { folder, server: RangeServer::start().expect("a server") }
    }

    /// Runs a line of a page; what it printed.
    fn run(&self, line: &str, place: &str) -> String {
        // A comment of the shell; no page has a number sign within quotes.
        let (command, comment) = line.split_once(" #").unwrap_or((line, ""));
        let expected = match comment.trim().strip_prefix("exit code ") {
            Some(code) => code.parse().unwrap_or_else(|e| panic!("{place}: {e}: {comment}")),
            None => 0,
        };
        let command = self.prepared(command.trim(), place);
        let binary = Path::new(env!("CARGO_BIN_EXE_uc"));
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let first = [binary.parent().expect("a folder").to_owned()];
        let paths = std::env::join_paths(first.into_iter().chain(std::env::split_paths(&paths)));
        let output = Command::new("sh")
            // In one stream, as a terminal shows it.
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(&self.folder)
            .env("PATH", paths.expect("a path"))
            .env("NO_COLOR", "1")
            .env_remove("UC_SIGN_PASSWORD")
            .stdin(Stdio::null())
            .output()
            .expect("a shell");
        let printed = String::from_utf8_lossy(&output.stdout);
        let printed = printed.replace(&self.server.url(""), EXAMPLE);
        let code = output.status.code();
        assert_eq!(code, Some(expected), "{place}: exit code of {command}\n{printed}");
        printed
    }

    /// The command as it runs here.
    fn prepared(&self, command: &str, place: &str) -> String {
        // The tool that is tested is built already.
        let mut command = command.replacen("cargo run --release -- ", "uc ", 1);
        let mut words = command.split_whitespace().skip_while(|w| w.contains('='));
        let program = words.next().unwrap_or_default();
        let is_uc = program == "uc";
        assert!(is_uc || PROGRAMS.contains(&program), "{place}: unknown command: {command}");
        let verb = words.next().unwrap_or_default().to_owned();
        let has = |command: &str, flag: &str| command.split_whitespace().any(|w| w == flag);
        // To be quick, and because the small model takes sequences of at most 128 tokens.
        let quick: &[&str] = match verb.as_str() {
            "calibrate" | "eval" if is_uc => &["--seq-len 64", "--max-tokens 512"],
            "train" if is_uc => &["--seq-len 64", "--max-tokens 512", "--steps 2"],
            "bench" if is_uc => &["--quick"],
            _ => &[],
        };
        for flag in quick {
            let name = flag.split(' ').next().unwrap_or_default();
            if !has(&command, name) {
                command = format!("{command} {flag}");
            }
        }
        // The smallest shards that there are, so that this model has some.
        command = command.replace("--shard-size 5GB", "--shard-size 1M");
        if command.contains(EXAMPLE) {
            for entry in fs::read_dir(&self.folder).expect("a folder") {
                let entry = entry.expect("an entry");
                if entry.path().is_file() {
                    let file = fs::File::open(entry.path()).expect("opens");
                    let name = entry.file_name().into_string().expect("a name");
                    self.server.serve(&name, file).expect("served");
                }
            }
            command = command.replace(EXAMPLE, &self.server.url(""));
        }
        command
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

/// A safetensors file: the members of its header, and its data.
fn write_safetensors(path: &Path, members: &str, data: &[u8]) {
    let header = format!("{{{members}}}");
    let length = u64::try_from(header.len()).expect("short").to_le_bytes();
    fs::write(path, [&length, header.as_bytes(), data].concat()).expect("writes");
}

/// Adds three integer tensors of 720 KB each, which are stored as they are, so that there are
/// shards.
fn enlarge(path: &Path) {
    let file = fs::read(path).expect("the small model");
    let (length, rest) = file.split_first_chunk().expect("a length");
    let length = usize::try_from(u64::from_le_bytes(*length)).expect("short");
    let (header, data) = rest.split_at(length);
    let header = std::str::from_utf8(header).expect("JSON").trim_end();
    let mut members = header[1..header.len() - 1].to_owned();
    let mut data = data.to_vec();
    let mut state = 1u64;
    for i in 0..3 {
        let start = data.len();
        for _ in 0..180_000 {
            // Noise (xorshift), which zstd can't make smaller.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend(&state.to_le_bytes()[..4]);
        }
        members += &format!(
            r#","buffer.{i}":{{"dtype":"I32","shape":[180000],"data_offsets":[{start},{}]}}"#,
            data.len()
        );
    }
    write_safetensors(path, &members, &data);
}

/// An adapter for one layer of the small model, as PEFT saves it.
fn write_adapter(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}"#;
    fs::write(folder.join("adapter_config.json"), config).expect("writes");
    let layer = "base_model.model.model.layers.0.self_attn.q_proj";
    let members = format!(
        r#""{layer}.lora_A.weight":{{"dtype":"F32","shape":[4,96],"data_offsets":[0,1536]}},"{layer}.lora_B.weight":{{"dtype":"F32","shape":[96,4],"data_offsets":[1536,3072]}}"#
    );
    // Multiples of 2^-10, which binary16 holds.
    let value = |i: u16| f32::from(i * 37 % 41) / 1024.0 - 0.015_625;
    let data: Vec<u8> = (0..768).flat_map(|i| value(i).to_le_bytes()).collect();
    write_safetensors(&folder.join("adapter_model.safetensors"), &members, &data);
}
