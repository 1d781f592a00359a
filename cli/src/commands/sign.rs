//! `uc sign`, and the comparison with a signature.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use ultracompress::output::write_new;
use ultracompress::sign::{Signed, generate, key_id, sign, verify_signature};
use ultracompress::{Error, ErrorKind, Limits, Pack, VerifyOptions};

use crate::args::{Sign, Signature};
use crate::console::Console;
use crate::exit::{FAILED, MISMATCH};
use crate::support::{Outcome, max_ram};

/// Longest text of a key or a signature.
const MOST_BYTES: u64 = 64 << 10;

pub fn run(args: &Sign, console: &mut Console) -> Outcome {
    if let Some(name) = &args.new_key {
        return new_key(name, args, console);
    }
    let (Some(file), Some(key)) = (&args.file, &args.secret_key) else {
        return Err(Error::new(ErrorKind::InvalidArgument, "name a pack and a secret key"));
    };
    let output = args.output.clone().unwrap_or_else(|| with_ending(file, ".minisig"));
    write_new(&output, args.force, None)?;
    let secret = small_text(key)?;
    let max_ram = max_ram(&args.memory);
    let pack = Pack::open_with(file, |_| true, Limits::within(max_ram))?;
    console.start("verifying", pack.bytes());
    // Nobody should put their name to a damaged file.
    let report = VerifyOptions::new().with_max_ram(max_ram).verify_pack_with(&pack, console)?;
    console.finish();
    if let Some(failure) = report.failures.first() {
        let name =
            failure.file.as_deref().map_or_else(|| file.display().to_string(), str::to_owned);
        console.say(format!("{name}: {}\nnot signed", failure.reason));
        let damaged = report.failures.iter().any(|f| f.kind == ErrorKind::Integrity);
        return Ok(if damaged { MISMATCH } else { FAILED });
    }
    let (stored, decoded) = (report.stored_root, report.decoded_root);
    let comment = format!("ultracompress stored_root {stored} decoded_root {decoded}");
    let signature = sign(open(file)?, &secret, password(), &comment)?;
    write_new(&output, args.force, Some(signature.as_bytes()))?;
    if console.json {
        console.print_json(&json!({
            "output": output.display().to_string(),
            "comment": comment,
            "stored_root": stored.to_string(),
            "decoded_root": decoded.to_string(),
        }))?;
    } else {
        console.print(format!("{}: {comment}", output.display()))?;
    }
    Ok(0)
}

fn new_key(name: &Path, args: &Sign, console: &Console) -> Outcome {
    let (public, secret) = (with_ending(name, ".pub"), with_ending(name, ".key"));
    write_new(&public, args.force, None)?;
    write_new(&secret, args.force, None)?;
    let password = match (args.no_password, password()) {
        (true, _) => None,
        (false, Some(password)) => Some(password),
        (false, None) => {
            let text = "set UC_SIGN_PASSWORD to the password of the new key, or give --no-password";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
    };
    let (public_text, secret_text) = generate(password)?;
    write_private(&secret, args.force, &secret_text)?;
    write_new(&public, args.force, Some(public_text.as_bytes()))?;
    if console.json {
        console.print_json(&json!({
            "public_key": public.display().to_string(),
            "secret_key": secret.display().to_string(),
        }))?;
    } else {
        console.print(format!("{} and {}", public.display(), secret.display()))?;
    }
    Ok(0)
}

/// What comparing a signature came to: what it says, or the number of the key and what is wrong.
pub type Compared = Result<Signed, (String, Error)>;

/// Compares the signature of a pack's file, if that was asked for; an error when there is nothing
/// to compare.
pub fn compare(file: &Path, args: &Signature) -> Result<Option<Compared>, Error> {
    let Some(key) = &args.key else { return Ok(None) };
    // A key's own line has no ending, and is longer than most names.
    let text = match Path::new(key).is_file() {
        true => small_text(Path::new(key))?,
        false => key.clone(),
    };
    let path = args.signature.clone().unwrap_or_else(|| with_ending(file, ".minisig"));
    // What isn't text isn't a signature, which is for the comparison to say.
    let signature = small_file(&path)?;
    let key_id = key_id(&text)?;
    let name = file.display().to_string();
    match verify_signature(open(file)?, &text, &String::from_utf8_lossy(&signature)) {
        Err(e) if *e.kind() == ErrorKind::Integrity => Ok(Some(Err((key_id, e.in_file(name))))),
        Err(e) => Err(e),
        Ok(signed) => Ok(Some(Ok(signed))),
    }
}

/// A regular file: a pipe might never answer.
fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let refused =
        |text: String| Error::new(ErrorKind::Io, text).in_file(path.display().to_string());
    let meta = path.metadata().map_err(|e| refused(format!("can't read: {e}")))?;
    if !meta.is_file() {
        return Err(refused("is no file".into()));
    }
    let file = File::open(path).map_err(|e| refused(format!("can't read: {e}")))?;
    Ok(BufReader::with_capacity(1 << 20, file))
}

fn small_file(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![];
    let read = open(path)?.take(MOST_BYTES).read_to_end(&mut bytes);
    read.map_err(|e| {
        Error::new(ErrorKind::Io, format!("can't read: {e}")).in_file(path.display().to_string())
    })?;
    Ok(bytes)
}

fn small_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(small_file(path)?).map_err(|_| {
        let e = Error::new(ErrorKind::InvalidArgument, "is no key of minisign");
        e.in_file(path.display().to_string())
    })
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn password() -> Option<String> {
    std::env::var("UC_SIGN_PASSWORD").ok()
}

/// Nobody else reads a secret key, at any moment.
fn write_private(path: &Path, force: bool, text: &str) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let write = || {
        if force && path.symlink_metadata().is_ok() {
            std::fs::remove_file(path)?;
        }
        let mut file = options.open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| {
        let e = Error::new(ErrorKind::Io, format!("can't write: {e}"));
        e.in_file(path.display().to_string())
    })
}
