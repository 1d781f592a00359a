//! The command line's shape: names, flags and help.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ultracompress::import::Bpw;
use ultracompress::{Digest, Dtype};

/// Packs transformer weights to about 5 bits with every decoded bit defined, hashed and
/// reproducible on any CPU.
#[derive(Debug, Parser)]
#[command(name = "uc", version, arg_required_else_help = true, after_help = MAIN_EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const MAIN_EXAMPLES: &str = "\
Examples:
  uc pack ./SmolLM-135M -o smollm.uc     pack a Hugging Face folder to 5 bits
  uc info smollm.uc                      what it is and holds
  uc verify smollm.uc                    prove the file intact and its decoded weights right
  uc unpack smollm.uc -o ./smollm-5bit   a folder that engines load
  uc eval smollm.uc --against ./SmolLM-135M --text heldout.txt     what packing cost
  uc bench                               how fast this machine is at it

Environment:
  UC_KERNEL   scalar, avx2, avx512 or neon: the kernel to use instead of the fastest. It changes speed,
              never a bit of the output.

Exit codes: 0 done; 1 malformed input or I/O error; 2 usage; 3 a checksum, digest or comparison
did not match.";

/// Flags of every command.
#[derive(Debug, ClapArgs)]
pub struct Common {
    /// Print one JSON object on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no messages.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Worker threads (default: all cores). Results never depend on it.
    #[arg(short = 'j', long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("expected 1 to 1024".into()),
    }
}

/// Parses a number of bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000u64,
        _ => return Err("expected a number of bytes such as 512M, 2GiB or 5GB".into()),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes.ok_or_else(|| "expected a number of bytes such as 512M, 2GiB or 5GB".into())
}

#[derive(Debug, ClapArgs)]
pub struct Memory {
    /// Memory to stay within, such as 512M or 2GiB; at least 128M [default: a quarter of the machine's].
    /// Results never depend on it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_ram: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pack a checkpoint into a .uc file.
    #[command(after_help = PACK_EXAMPLES)]
    Pack(Pack),
    /// Show what a .uc file is and holds.
    #[command(after_help = INFO_EXAMPLES)]
    Info(Info),
    /// Check a .uc file: structure, checksums, roots, every decoded tensor.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(Verify),
    /// Write the decoded model as safetensors with its carried files.
    #[command(after_help = UNPACK_EXAMPLES)]
    Unpack(Unpack),
    /// Tell whether two models decode to the same tensors.
    #[command(after_help = SAME_EXAMPLES)]
    Same(Pair),
    /// Cut a pack into shards, or join them, without touching what is stored.
    #[command(after_help = RESHARD_EXAMPLES)]
    Reshard(Reshard),
    /// Take the exact rung out of a pack: what is left has the same values.
    #[command(after_help = STRIP_EXAMPLES)]
    Strip(Strip),
    /// Measure the error of each tensor of B against A.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(Pair),
    /// Gather statistics of real activations, for `uc pack --calibration`.
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate(Calibrate),
    /// Compare a model with its source on text: perplexity and KL divergence, or cosines for encoders.
    #[command(after_help = EVAL_EXAMPLES)]
    Eval(Eval),
    /// Attach records of evaluations to a pack, and check those that are there.
    #[command(subcommand, after_help = RECEIPT_EXAMPLES)]
    Receipt(Receipt),
    /// Measure decoding, encoding, products and verification on this machine.
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Bench),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  uc completions bash > ~/.local/share/bash-completion/completions/uc"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

const PACK_EXAMPLES: &str = "\
Examples:
  uc pack ./model -o model.uc
  uc pack ./model -o model.uc --dry-run                 what becomes of each tensor, and why
  uc pack ./model --calibration model.cal --bpw 5.0 -o model.uc       the best quality: see uc calibrate
  uc pack ./model -o model.uc --bits 6 --tensor 'v_proj=8' --tensor 'layers\\.0\\.=raw'
  uc pack model.safetensors.index.json -o model.uc --recipe recipe.toml
  uc pack ./big-model -o big.uc --max-ram 512M --shard-size 5GB
  uc pack ./model -o model.uc --exact                   5-bit model and source in one file, see uc unpack --exact
  uc pack ./model -o exact.uc --onto model.uc           the same file, from a pack that is there

A recipe file holds the same settings, for example:
  bits = 5                  # linear layers
  embedding_bits = 8
  head_bits = 8
  group = 32                # columns that share a step
  zstd_level = 3            # for raw tensors and carried files; 0 stores them plain
  [calibrated]              # with --calibration only
  bpw = 5.25
  [[tensor]]
  match = 'v_proj'          # a regular expression; the last entry that matches wins
  bits = 8                  # 3 to 8, or \"raw\"";

#[derive(Debug, ClapArgs)]
pub struct Pack {
    /// Hugging Face folder, .safetensors file, or .safetensors.index.json.
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.uc", required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// Bits (planes) of the linear layers, 3 to 8 [default: 5].
    #[arg(long, value_name = "N")]
    pub bits: Option<u8>,
    /// Statistics of real activations of this checkpoint (`uc calibrate`): rounding makes up for its own errors.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Bits a weight that the linear layers take at most, all side bytes included: planes of each row, and groups,
    /// are chosen under it. Needs --calibration.
    #[arg(long, value_name = "X", requires = "calibration", conflicts_with = "bits")]
    pub bpw: Option<Bpw>,
    /// Override for tensors whose name matches; may be repeated, the last match wins, the last `=`
    /// splits.
    #[arg(long, value_name = "REGEX=BITS|raw")]
    pub tensor: Vec<String>,
    /// Settings from a file; flags override it.
    #[arg(long, value_name = "FILE.toml")]
    pub recipe: Option<PathBuf>,
    /// Keep every tensor as it is.
    #[arg(long)]
    pub raw_all: bool,
    /// Add what leads from the planes back to the source, bit for bit: `uc unpack --exact`.
    #[arg(long, conflicts_with = "raw_all")]
    pub exact: bool,
    /// No planes: the source's own bits, compressed.
    #[arg(long, conflicts_with_all = ["exact", "raw_all", "bits", "bpw", "calibration"])]
    pub exact_only: bool,
    /// Numbers of planes, 3 to 7, that some readers will stop at: level tables are fitted for them, and what the pack decodes to at each
    /// is recorded.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(3..=7), conflicts_with_all = ["exact_only", "raw_all", "onto"])]
    pub rungs: Vec<u8>,
    /// Add the exact rung to this pack of the same source, whose planes stay as they are.
    #[arg(long, value_name = "PACK", conflicts_with_all = ["exact", "exact_only", "raw_all", "bits", "bpw", "calibration", "recipe", "tensor", "shard_size", "dry_run"])]
    pub onto: Option<PathBuf>,
    /// Cut the pack into files OUT-00001-of-0000N.uc of at most this many bytes of tensors each (1M or
    /// more; K, M, G are powers of 1024, KB, MB, GB of 1000), with an index file OUT.uc.index.json.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shard_size: Option<u64>,
    #[command(flatten)]
    pub memory: Memory,
    /// Show what becomes of each tensor and why; write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing file.
    #[arg(long)]
    pub force: bool,
}

const INFO_EXAMPLES: &str = "\
Examples:
  uc info model.uc
  uc info https://example.org/model.uc               reads header, index and manifest only
  uc info model.uc --json | jq '.tensors[] | select(.encoding == \"raw\") | .name'";

#[derive(Debug, ClapArgs)]
pub struct Info {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  uc verify model.uc
  uc verify model.uc --fast                      stored bytes only, nothing is decoded
  uc verify model.uc --root 1f0c...              compare with a root that was published
  uc verify model.uc --against ./source-folder   compare with the checkpoint it was made from

A file's digests of itself show that it is whole, not who made it: without --root or --against the
answer is \"consistent, not authenticated\".";

#[derive(Debug, ClapArgs)]
pub struct Verify {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Stop before decoding.
    #[arg(long)]
    pub fast: bool,
    /// A published stored or decoded root to compare with.
    #[arg(long, value_name = "HEX", value_parser = parse_root)]
    pub root: Option<Digest>,
    /// The source checkpoint: compares raw tensors bit for bit, the source digest that each quantized
    /// tensor claims, and every file.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub memory: Memory,
}

fn parse_root(text: &str) -> Result<Digest, String> {
    Digest::from_hex(text).ok_or_else(|| "expected 64 hexadecimal digits".into())
}

const UNPACK_EXAMPLES: &str = "\
Examples:
  uc unpack model.uc -o ./model-5bit
  uc unpack model.uc -o ./model-f32 --dtype f32
  uc unpack model.uc -o ./coarse --rung 4             read four planes of each row
  uc unpack model.uc -o ./source --exact              the source's own files, byte for byte
  uc unpack model.uc -o ./head --tensor 'lm_head'     some tensors only, no carried files
  uc unpack https://example.org/model.uc -o ./head --tensor 'lm_head'     fetches these tensors only";

#[derive(Debug, ClapArgs)]
pub struct Unpack {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The folder to write.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Type of float tensors.
    #[arg(long, value_enum, default_value_t = TargetDtype::Source)]
    pub dtype: TargetDtype,
    /// Read at most this many planes of each row, 3 to 8.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=8))]
    pub rung: Option<u8>,
    /// The source's own bits instead of the values of the planes; weights files are recreated byte for byte. Needs a pack made
    /// with --exact, --exact-only or --onto.
    #[arg(long, conflicts_with_all = ["rung", "dtype"])]
    pub exact: bool,
    /// Only tensors whose name matches.
    #[arg(long, value_name = "REGEX")]
    pub tensor: Option<String>,
    /// Write into a folder that isn't empty, replacing files of the same name.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub memory: Memory,
}

const RESHARD_EXAMPLES: &str = "\
Examples:
  uc reshard big.uc -o parts/big.uc --shard-size 5GB     parts/big-00001-of-00004.uc ... and an index file
  uc reshard parts/big.uc.index.json -o big.uc           one file again

The decoded root stays the same. The files are those that `uc pack` with this --shard-size makes.";

#[derive(Debug, ClapArgs)]
pub struct Reshard {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The file to write, or the name that shards are called after.
    #[arg(short, long, value_name = "OUT.uc")]
    pub output: PathBuf,
    /// Most bytes of tensors in a file, 1M or more [default: one file].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shard_size: Option<u64>,
    /// Replace existing files.
    #[arg(long)]
    pub force: bool,
}

const STRIP_EXAMPLES: &str = "\
Examples:
  uc strip exact.uc -o model.uc
  uc pack ./source --onto model.uc -o exact.uc           and back

The decoded root stays the same.";

#[derive(Debug, ClapArgs)]
pub struct Strip {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The file to write, or the name that shards are called after.
    #[arg(short, long, value_name = "OUT.uc")]
    pub output: PathBuf,
    /// Take out the exact rung: residuals, and what recreates the source's files. This is the default.
    #[arg(long)]
    pub exact: bool,
    /// Replace existing files.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TargetDtype {
    /// As in the source.
    Source,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl TargetDtype {
    pub fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Source => None,
            Self::Bf16 => Some(Dtype::Bf16),
            Self::F16 => Some(Dtype::F16),
            Self::F32 => Some(Dtype::F32),
        }
    }
}

const SAME_EXAMPLES: &str = "\
Examples:
  uc same model.uc ./model-5bit          a pack and what was unpacked from it
  uc same a.uc b.safetensors

Every tensor of both is decoded and hashed. Exit code 3 when they differ.";

const CALIBRATE_EXAMPLES: &str = "\
Examples:
  uc calibrate ./model --text calib.txt -o model.cal
  uc pack ./model --calibration model.cal --bpw 5.0 -o model.uc
  uc calibrate ./model --text calib.txt --max-tokens 20000 --seq-len 512 -o model.cal

The text is cut into sequences as `uc eval` does. For each linear layer of the blocks the file holds
the second moments of its inputs, and of the gradients at its outputs; labels are sampled from the
model itself. It runs block by block: one block's weights and moments are in memory at a time, states
go to a temporary file beside the output. Never calibrate on the text that you evaluate on.";

#[derive(Debug, ClapArgs)]
pub struct Calibrate {
    /// The source checkpoint.
    #[arg(value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// The text, UTF-8.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "STATS")]
    pub output: PathBuf,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub seq_len: usize,
    /// Use at most so many tokens of the text [default: all].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Seed of the sampled labels.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Consecutive outputs whose gradients are correlated with each other, a multiple of 64. The file and the
    /// encoder's memory grow with it.
    #[arg(long, value_name = "ROWS", default_value_t = 2048)]
    pub output_block: usize,
    /// Replace an existing file.
    #[arg(long)]
    pub force: bool,
}

const EVAL_EXAMPLES: &str = "\
Examples:
  uc eval model.uc --against ./model --text heldout.txt
  uc eval model.uc --against ./model --text heldout.txt --baseline q8_0,q6k,q5k,q5_0
  uc eval model.uc --against ./model --text heldout.txt --rung 4 --record rung4.json
  uc eval ./model-5bit --against ./model --text heldout.txt

The text is encoded whole, without special tokens, and cut into sequences of --seq-len
tokens; what is left over is dropped. Each is run by itself, in binary32; tokens from the
second on are scored. Standard errors are over sequences. Source, model and baselines are
held in memory, 4 bytes a weight each.

Architectures: Llama, Mistral, Qwen2, Qwen3, Mixtral, Qwen3-MoE, Mamba; BERT by cosines of
mean pooled embeddings and of hidden states.
Baselines: q4_0, q4_1, q5_0, q5_1, q8_0, q2k, q3k, q4k, q5k, q6k; embeddings and heads are
q8_0 in all of them.";

#[derive(Debug, ClapArgs)]
pub struct Eval {
    /// The pack (a .uc file, a .uc.index.json of shards, or the address of one), or a folder.
    #[arg(value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// The source checkpoint to compare with.
    #[arg(long, value_name = "MODEL_DIR")]
    pub against: PathBuf,
    /// The text, UTF-8.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub seq_len: usize,
    /// Use at most so many tokens of the text [default: all].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Quantizers to compare with, in the same run: the same tensors at their own rates.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub baseline: Vec<String>,
    /// Read at most this many planes of each row, 3 to 8.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(3..=8))]
    pub rung: Option<u8>,
    /// Write a record with a row of figures for each sequence (canonical JSON, spec/receipt.md).
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Replace an existing record.
    #[arg(long)]
    pub force: bool,
}

const RECEIPT_EXAMPLES: &str = "\
Examples:
  uc eval model.uc --against ./model --text heldout.txt --record eval.json
  uc receipt add model.uc eval.json -o model-with-receipt.uc
  uc receipt check model-with-receipt.uc

A receipt lies behind the roots: adding one changes neither.";

#[derive(Debug, Subcommand)]
pub enum Receipt {
    /// Write a pack with one receipt more.
    Add {
        /// The pack.
        #[arg(value_name = "PACK")]
        pack: PathBuf,
        /// A record of `uc eval --record`.
        #[arg(value_name = "FILE")]
        record: PathBuf,
        /// The file to write.
        #[arg(short, long, value_name = "OUT.uc")]
        output: PathBuf,
        /// Replace an existing file.
        #[arg(long)]
        force: bool,
    },
    /// Recompute the headline of each receipt from its rows, and compare the roots it cites with the pack's.
    Check {
        /// The pack.
        #[arg(value_name = "PACK")]
        pack: PathBuf,
    },
}

const BENCH_EXAMPLES: &str = "\
Examples:
  uc bench
  UC_KERNEL=avx2 uc bench --json

One thread, medians; jobs that are compared take turns. `cache` fits a core's own cache,
`memory` doesn't; buffers are reused. GB/s counts decoded bytes (decode), source bytes
(encode), stored bytes (mat-vec, verify).";

#[derive(Debug, ClapArgs)]
pub struct Bench {
    /// The small size only.
    #[arg(long)]
    pub quick: bool,
}

const DIFF_EXAMPLES: &str = "\
Example:
  uc diff ./model model.uc               what packing cost, tensor by tensor";

#[derive(Debug, ClapArgs)]
pub struct Pair {
    /// A .uc file, a .safetensors file, an index file of either, a folder, or the address of a pack.
    pub a: PathBuf,
    /// Another one.
    pub b: PathBuf,
}
