//! Text as sequences of tokens: the same protocol for calibration and evaluation (spec/receipt.md).

use std::ops::Range;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::config::Config;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::source::Model;

/// The text as sequences.
pub(super) struct Cut {
    pub sequences: Vec<Vec<u32>>,
    /// The tokens of a sequence that count.
    pub inner: Range<usize>,
    pub text_tokens: u64,
}

/// Encodes a text and cuts it into sequences of `seq_len` tokens, the first `max_tokens` of the
/// text only.
///
/// # Errors
/// `Source` for a text that is too short or not UTF-8, and tokens beyond the vocabulary.
pub(super) fn cut(
    config: &Config,
    tokenizer: &Tokenizer,
    text: &[u8],
    seq_len: usize,
    max_tokens: Option<usize>,
) -> Result<Cut> {
    let text = std::str::from_utf8(text)
        .map_err(|e| Error::source_file(format!("the text is not UTF-8: {e}")))?;
    let encoding = guarded(|| tokenizer.encode_fast(text, false))?;
    let ids = encoding.get_ids();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab()) {
        return Err(Error::source_file(format!(
            "the tokenizer gives token {id}, the model has a vocabulary of {}",
            config.vocab()
        )));
    }
    let used = &ids[..ids.len().min(max_tokens.unwrap_or(usize::MAX))];
    let encoder = matches!(config, Config::Bert(_));
    let (width, inner) =
        if encoder { (seq_len.saturating_sub(2), 1..seq_len - 1) } else { (seq_len, 1..seq_len) };
    if width == 0 || used.len() < width {
        return Err(Error::source_file(format!(
            "the text is too short: {} tokens, a sequence takes {width}",
            used.len()
        )));
    }
    // What the tokenizer puts around a text, such as [CLS] and [SEP].
    let ends = if encoder {
        let empty = guarded(|| tokenizer.encode_fast("", true))?;
        match *empty.get_ids() {
            [cls, sep] if (cls.max(sep) as usize) < config.vocab() => Some((cls, sep)),
            _ => {
                let text = "tokenizer.json doesn't put one token before a text and one behind";
                return Err(Error::source_file(text));
            }
        }
    } else {
        None
    };
    let sequence = |tokens: &[u32]| match ends {
        None => tokens.to_vec(),
        Some((cls, sep)) => [&[cls][..], tokens, &[sep]].concat(),
    };
    let sequences = used.chunks_exact(width).map(sequence).collect();
    Ok(Cut { sequences, inner, text_tokens: ids.len() as u64 })
}

/// The tokenizer of the reference and its digest. One that the model brings must be the same.
pub(super) fn tokenizer_of(model: &Model, reference: &Model) -> Result<(Tokenizer, Digest)> {
    const FILE: &str = "tokenizer.json";
    let json = reference.file(FILE).map_err(|e| e.in_file("the source"))?;
    let json = json.ok_or_else(|| Error::source_file("there is no tokenizer.json"))?;
    if model.file(FILE)?.is_some_and(|own| own != json) {
        return Err(Error::source_file("the model's tokenizer.json is not the reference's"));
    }
    check_charsmaps(&json)?;
    let tokenizer = guarded(|| {
        let mut tokenizer = Tokenizer::from_bytes(&json)?;
        // What a pipeline may want; the text is taken whole.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    })?;
    Ok((tokenizer, Digest::of(&json)))
}

/// Runs a function of the tokenizer library, which panics on some damaged files.
fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let bad = |text: String| Error::source_file(format!("tokenizer.json: {}", text.escape_debug()));
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| bad(e.to_string())),
        Err(_) => Err(bad("the tokenizer library can't take it".into())),
    }
}

/// Refuses a normalizer whose table claims more bytes than it has: the library reserves what is
/// claimed.
fn check_charsmaps(json: &[u8]) -> Result<()> {
    fn check(value: &Value) -> bool {
        match value {
            Value::Object(members) => members.iter().all(|(name, value)| match value {
                Value::String(map) if name == "precompiled_charsmap" => {
                    // The first four bytes, little-endian, of base64.
                    let digit = |c: u8| match c {
                        b'A'..=b'Z' => Some(c - b'A'),
                        b'a'..=b'z' => Some(c - b'a' + 26),
                        b'0'..=b'9' => Some(c - b'0' + 52),
                        b'+' => Some(62),
                        b'/' => Some(63),
                        _ => None,
                    };
                    let first = map.bytes().take(6).map(digit).collect::<Option<Vec<u8>>>();
                    let bits = first
                        .filter(|f| f.len() == 6)
                        .map(|f| f.iter().fold(0u64, |bits, d| bits << 6 | u64::from(*d)) >> 4);
                    let claimed = bits.and_then(|b| u32::try_from(b).ok()).map(u32::swap_bytes);
                    claimed.is_some_and(|n| n >= 4 && u64::from(n) <= map.len() as u64)
                }
                other => check(other),
            }),
            Value::Array(values) => values.iter().all(check),
            _ => true,
        }
    }
    let bad = |e: String| Error::source_file(format!("tokenizer.json: {}", e.escape_debug()));
    let value: Value = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
    if check(&value) { Ok(()) } else { Err(bad("a precompiled_charsmap is damaged".into())) }
}
