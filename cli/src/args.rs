//! The command line's shape: names, flags and help.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ultracompress::lm::TrainOptions;
use ultracompress::pack::Bpw;
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
    /// Memory to stay within, such as 512M or 2GiB; at least 128M [default: a quarter of the
    /// machine's]. Results never depend on it.
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
    /// Check everything that can be checked of a pack and write a receipt; with its source, make it
    /// again and compare.
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(Audit),
    /// Sign a pack, in minisign's format; `uc verify --key` compares.
    #[command(after_help = SIGN_EXAMPLES)]
    Sign(Sign),
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
    /// Add overlays to a pack, list them, take them out.
    #[command(subcommand, after_help = OVERLAY_EXAMPLES)]
    Overlay(Overlay),
    /// Measure the error of each tensor of B against A.
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(Pair),
    /// Gather statistics of real activations, for `uc pack --calibration`.
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate(Calibrate),
    /// Train an overlay against the source, and keep it if it earns its bits.
    #[command(after_help = TRAIN_EXAMPLES)]
    Train(Train),
    /// Compare a model with its source on text: perplexity and KL divergence, or cosines for
    /// encoders.
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
  uc pack ./big-model -o big.uc --resume                go on after an interruption, or start
  uc pack ./model-v2 -o v2.uc --reuse v1.uc             copy the tensors that didn't change
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
    /// Statistics of real activations of this checkpoint (`uc calibrate`): rounding makes up for
    /// its own errors.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Bits a weight that the linear layers take at most, all side bytes included: planes of each
    /// row, and groups, are chosen under it. Needs --calibration.
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
    /// Numbers of planes, 3 to 7, that some readers will stop at: level tables are fitted for
    /// them, and what the pack decodes to at each is recorded.
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(3..=7), conflicts_with_all = ["exact_only", "raw_all", "onto"])]
    pub rungs: Vec<u8>,
    /// Add the exact rung to this pack of the same source, whose planes stay as they are.
    #[arg(long, value_name = "PACK", conflicts_with_all = ["exact", "exact_only", "raw_all", "bits", "bpw", "calibration", "recipe", "tensor", "shard_size", "dry_run"])]
    pub onto: Option<PathBuf>,
    /// Cut the pack into files OUT-00001-of-0000N.uc of at most this many bytes of tensors each
    /// (1M or more; K, M, G are powers of 1024, KB, MB, GB of 1000), with an index file
    /// OUT.uc.index.json.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub shard_size: Option<u64>,
    /// Go on where an interrupted run of the same source and recipe ended, and leave what is done
    /// (OUT.uc.partial, OUT.uc.pack-state) when this one is interrupted. The pack is the same
    /// as without.
    #[arg(long, conflicts_with_all = ["onto", "dry_run"])]
    pub resume: bool,
    /// An older pack made by this program: tensors that would be encoded to what they are there
    /// are copied.
    #[arg(long, value_name = "OLD.uc", conflicts_with_all = ["onto", "dry_run"])]
    pub reuse: Option<PathBuf>,
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
  uc verify model.uc --key publisher.pub         compare with model.uc.minisig: uc sign, or minisign

A file's digests of itself show that it is whole, not who made it: without --root, --against or --key the
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
    /// The source checkpoint: compares raw tensors bit for bit, the source digest that each
    /// quantized tensor claims, and every file.
    #[arg(long, value_name = "DIR")]
    pub against: Option<PathBuf>,
    #[command(flatten)]
    pub signature: Signature,
    #[command(flatten)]
    pub memory: Memory,
}

/// A signature to compare with.
#[derive(Debug, ClapArgs)]
pub struct Signature {
    /// A public key of minisign: its file, or its second line. The signature of the pack's file
    /// (of its index file, for shards) is compared.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Where the signature is [default: FILE.minisig].
    #[arg(long, value_name = "FILE.minisig", requires = "key")]
    pub signature: Option<PathBuf>,
}

const AUDIT_EXAMPLES: &str = "\
Examples:
  uc audit model.uc -o model.audit.json
  uc audit model.uc --source ./model -o model.audit.json     make it again, compare byte by byte
  uc audit model.uc --source ./model --calibration model.cal
  uc audit model.uc --root 1f0c... --format in-toto -o model.intoto.json

The receipt is canonical JSON: equal packs, audited alike by one version, have equal receipts on any machine. It is
written for packs that fail too.";

#[derive(Debug, ClapArgs)]
pub struct Audit {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The receipt to write [default: standard output].
    #[arg(short, long, value_name = "RECEIPT")]
    pub output: Option<PathBuf>,
    /// The form of the receipt.
    #[arg(long, value_enum, default_value_t = AuditFormat::Json)]
    pub format: AuditFormat,
    /// A published stored, decoded or effective root to compare with.
    #[arg(long, value_name = "HEX", value_parser = parse_root)]
    pub root: Option<Digest>,
    /// The source checkpoint: tensors and files are compared with it, and the pack is made again
    /// from it by its recipe and compared byte by byte. Overlays count as inputs.
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The calibration that the pack was made with, if it was made with one.
    #[arg(long, value_name = "FILE", requires = "source")]
    pub calibration: Option<PathBuf>,
    /// Folder for what is made again, with room for two packs [default: the system's for temporary
    /// files].
    #[arg(long, value_name = "DIR", requires = "source")]
    pub work_dir: Option<PathBuf>,
    #[command(flatten)]
    pub signature: Signature,
    #[command(flatten)]
    pub memory: Memory,
    /// Replace an existing file.
    #[arg(long, requires = "output")]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    /// The receipt itself.
    Json,
    /// An in-toto Statement with the receipt as its predicate.
    InToto,
}

const SIGN_EXAMPLES: &str = "\
Examples:
  UC_SIGN_PASSWORD=... uc sign --new-key publisher     publisher.pub and publisher.key
  uc sign model.uc --secret-key publisher.key         writes model.uc.minisig
  uc sign big.uc.index.json --secret-key publisher.key     shards: the index has the root of each
  uc verify model.uc --key publisher.pub
  minisign -Vm model.uc -p publisher.pub              the same with the minisign tool

The roots of the pack are in the signed comment. A pack is verified before it is signed.

Environment:
  UC_SIGN_PASSWORD   the password of the secret key. For a key that is there it is asked for when this
                     is not set; a new one needs it, or --no-password";

#[derive(Debug, ClapArgs)]
pub struct Sign {
    /// The pack: a .uc file, or the .uc.index.json of shards.
    #[arg(value_name = "FILE", required_unless_present = "new_key")]
    pub file: Option<PathBuf>,
    /// The secret key, as minisign writes it.
    #[arg(long, value_name = "KEY", required_unless_present = "new_key")]
    pub secret_key: Option<PathBuf>,
    /// The signature to write [default: FILE.minisig].
    #[arg(short, long, value_name = "FILE.minisig")]
    pub output: Option<PathBuf>,
    /// Make a pair of keys instead: NAME.pub and NAME.key.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "secret_key", "output"])]
    pub new_key: Option<PathBuf>,
    /// Don't encrypt the new secret key.
    #[arg(long, requires = "new_key")]
    pub no_password: bool,
    #[command(flatten)]
    pub memory: Memory,
    /// Replace an existing file.
    #[arg(long)]
    pub force: bool,
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
    /// The source's own bits instead of the values of the planes; weights files are recreated byte
    /// for byte. Needs a pack made with --exact, --exact-only or --onto.
    #[arg(long, conflicts_with_all = ["rung", "dtype"])]
    pub exact: bool,
    /// The base without the overlays that the pack has. Rungs and exact values are without them
    /// anyway.
    #[arg(long)]
    pub no_overlays: bool,
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
    /// Take out the exact rung: residuals, and what recreates the source's files. This is the
    /// default.
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

Every tensor of both is decoded and hashed, without overlays. Exit code 3 when they differ.";

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
    /// Consecutive outputs whose gradients are correlated with each other, a multiple of 64. The
    /// file and the encoder's memory grow with it.
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
    /// The base without the overlays that the pack has. Rungs are without them anyway.
    #[arg(long)]
    pub no_overlays: bool,
    /// Write a record with a row of figures for each sequence (canonical JSON, spec/receipt.md).
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Replace an existing record.
    #[arg(long)]
    pub force: bool,
}

const OVERLAY_EXAMPLES: &str = "\
Examples:
  uc overlay add model.uc --lora ./my-lora -o tuned.uc   a PEFT adapter beside an untouched base
  uc overlay list tuned.uc
  uc overlay export tuned.uc my-lora -o my-lora.uc       a file of its own, bound to its base
  uc overlay add model.uc my-lora.uc -o tuned.uc
  uc overlay remove tuned.uc my-lora -o model.uc         the base again, byte for byte

The decoded root stays that of the base; each overlay has an effective root.";

#[derive(Debug, Subcommand)]
pub enum Overlay {
    /// Write a pack with more overlays, on top of those that it has.
    Add {
        /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
        #[arg(value_name = "PACK")]
        pack: PathBuf,
        /// A file of overlays for this base, as `uc overlay export` writes it.
        #[arg(
            value_name = "OVERLAY.uc",
            required_unless_present = "lora",
            conflicts_with = "lora"
        )]
        overlay: Option<PathBuf>,
        /// A folder with a LoRA adapter as PEFT saves it.
        #[arg(long, value_name = "DIR")]
        lora: Option<PathBuf>,
        /// What to call the overlay [default: its own name, or that of the folder].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The file to write, or the name that shards are called after.
        #[arg(short, long, value_name = "OUT.uc")]
        output: PathBuf,
        /// Replace existing files.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        memory: Memory,
    },
    /// Show the overlays of a pack, in the order in which they are applied.
    List {
        /// The pack, or a file of overlays.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write a pack without one of its overlays.
    Remove {
        /// The pack.
        #[arg(value_name = "PACK")]
        pack: PathBuf,
        /// The overlay's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The file to write, or the name that shards are called after.
        #[arg(short, long, value_name = "OUT.uc")]
        output: PathBuf,
        /// Replace existing files.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        memory: Memory,
    },
    /// Write one overlay as a file of its own, for packs with the same decoded root.
    Export {
        /// The pack.
        #[arg(value_name = "PACK")]
        pack: PathBuf,
        /// The overlay's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The file to write.
        #[arg(short, long, value_name = "OUT.uc")]
        output: PathBuf,
        /// Replace an existing file.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        memory: Memory,
    },
}

const TRAIN_EXAMPLES: &str = "\
Examples:
  uc train model.uc --model ./model --text calib.txt --frozen-base --bpw 5.7 -o model+o.uc
  uc train model.uc --model ./model --text calib.txt --held-out heldout.txt --bpw 5.5 -o out.uc

Without --frozen-base the source is packed again, calibrated, at the bits that the overlay would have. The overlay
is left out where that is better, which it usually is: OUT.uc is then FILE as it was. With --frozen-base it is
compared with the base alone.";

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Method {
    /// Singular vectors of the error: a baseline to beat.
    Svd,
    /// Singular vectors of the error as inputs and gradients weigh it.
    Whitened,
    /// Those, trained further.
    Gradient,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Objective {
    /// Squared differences of hidden states, block by block: one block in memory at a time.
    Hidden,
    /// KL divergence of the predictions.
    Kl,
    /// Both.
    Hybrid,
}

#[derive(Debug, ClapArgs)]
pub struct Train {
    /// The pack: a .uc file, a .uc.index.json of shards, or the address of one.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The source checkpoint.
    #[arg(long, value_name = "MODEL_DIR")]
    pub model: PathBuf,
    /// The text to train on, UTF-8. Its last eighth is only looked at: the probe set.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// The file to write, or the name that shards are called after.
    #[arg(short, long, value_name = "OUT.uc")]
    pub output: PathBuf,
    /// Bits of body and overlay together, over the weights of the body [default: 0.5 more than the
    /// pack has].
    #[arg(long, value_name = "X")]
    pub bpw: Option<f64>,
    /// The base may not change: compare with the base alone.
    #[arg(long)]
    pub frozen_base: bool,
    /// Text for the last comparison, which nothing was tuned on [default: the probe set].
    #[arg(long, value_name = "FILE")]
    pub held_out: Option<PathBuf>,
    /// Keep the overlay whatever the comparison says.
    #[arg(long)]
    pub keep: bool,
    /// What to call the overlay.
    #[arg(long, value_name = "NAME", default_value = "trained")]
    pub name: String,
    /// Where factors come from.
    #[arg(long, value_enum, default_value_t = Method::Gradient)]
    pub method: Method,
    /// What training makes small.
    #[arg(long, value_enum, default_value_t = Objective::Kl)]
    pub objective: Objective,
    /// Optimizer steps; of each block, with the objective hidden.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().steps)]
    pub steps: usize,
    /// Steps between two looks at the probe set, behind which what made it worse is undone.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().round)]
    pub round: usize,
    /// Sequences of a step.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().batch)]
    pub batch: usize,
    /// Step size, relative to the size of factors.
    #[arg(long, value_name = "X", default_value_t = TrainOptions::default().learning_rate)]
    pub learning_rate: f64,
    /// Rounds that may be undone before training stops.
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().max_rescues)]
    pub max_rescues: usize,
    /// Training stops when a round gains less than this part of the loss on the probe set.
    #[arg(long, value_name = "X", default_value_t = TrainOptions::default().min_gain)]
    pub min_gain: f64,
    /// With the objective hidden: the states that blocks get.
    #[arg(long, value_enum, default_value_t = BlockStates::Refreshed)]
    pub states: BlockStates,
    /// Seed of the order of sequences.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub seq_len: usize,
    /// Use at most so many tokens of the text [default: all].
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// A calibration file of the source [default: made from the text].
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Go on from OUT.uc.train-state, which an interrupted run left behind.
    #[arg(long)]
    pub resume: bool,
    /// Replace existing files.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub memory: Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BlockStates {
    /// Those that the trained blocks before them give.
    Refreshed,
    /// Those of the source.
    Cached,
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
    /// Recompute the headline of each receipt from its rows, and compare the roots it cites with
    /// the pack's.
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
  uc diff ./model model.uc               what packing cost, tensor by tensor

Of packs the base is measured, without overlays.";

#[derive(Debug, ClapArgs)]
pub struct Pair {
    /// A .uc file, a .safetensors file, an index file of either, a folder, or the address of a
    /// pack.
    pub a: PathBuf,
    /// Another one.
    pub b: PathBuf,
}
