//! Detached signatures of files in minisign's format: Ed25519 over BLAKE2b-512, with a key's number
//! and a comment that is signed too. The `minisign` tool verifies signatures made here, and the
//! other way round.

use std::io::{Read, Seek};

use ct_codecs::{Base64, Decoder};
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox, SignatureBox};

use crate::error::{Error, Result};

/// Characters of a global signature: 64 bytes in base64.
const GLOBAL_SIGNATURE_CHARS: usize = 88;

/// What a valid signature says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The number of the key, in 16 hexadecimal digits as minisign prints it.
    pub key_id: String,
    /// The comment that is signed with the file.
    pub comment: String,
}

/// A new pair of keys, as the texts of minisign's files: public and secret. With a password the
/// secret key is encrypted by it.
///
/// # Errors
/// `Io` without a source of random numbers.
pub fn generate(password: Option<String>) -> Result<(String, String)> {
    let make = || {
        let pair = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
            None => KeyPair::generate_unencrypted_keypair(),
        }?;
        Ok((pair.pk.to_box()?.into_string(), pair.sk.to_box(None)?.into_string()))
    };
    make().map_err(|e: minisign::PError| Error::argument(format!("can't make keys: {e}")))
}

/// Signs the bytes of `file` with a secret key, given as the text of minisign's file. The signature
/// is the text of a `.minisig` file, and other each time: Ed25519 is hedged with random bits here.
///
/// `password` opens an encrypted key; without one it is asked for on the terminal.
///
/// # Errors
/// `InvalidArgument` for what is no secret key, a wrong password, or a comment of several lines;
/// `Io`.
pub fn sign(
    file: impl Read,
    secret_key: &str,
    password: Option<String>,
    comment: &str,
) -> Result<String> {
    if comment.contains(['\n', '\r']) {
        return Err(Error::argument("a comment has one line"));
    }
    let key = match without_checksum(secret_key) {
        Some(key) => key,
        None => open(secret_key, password)?,
    };
    let own = PublicKey::from_secret_key(&key)
        .map_err(|e| Error::argument(format!("the secret key can't be used: {e}")))?;
    let untrusted = "signature from uc, see minisign(1)";
    minisign::sign(Some(&own), &key, file, Some(comment), Some(untrusted))
        .map(SignatureBox::into_string)
        .map_err(|e| Error::argument(format!("can't sign: {e}")))
}

fn open(secret_key: &str, password: Option<String>) -> Result<SecretKey> {
    let boxed = || {
        SecretKeyBox::from_string(secret_key)
            .map_err(|e| Error::argument(format!("no secret key of minisign: {e}")))
    };
    match boxed()?.into_unencrypted_secret_key() {
        Ok(key) => Ok(key),
        Err(_) => boxed()?
            .into_secret_key(password)
            .map_err(|e| Error::argument(format!("the secret key can't be used: {e}"))),
    }
}

/// The key that `minisign -G -W` writes: not encrypted, and zeros where the library expects a
/// checksum. That the two halves of the key belong together shows when what it signs is verified.
fn without_checksum(text: &str) -> Option<SecretKey> {
    const CHECKSUM_BYTES: usize = 32;
    let bytes = Base64::decode_to_vec(text.lines().nth(1)?.trim(), None).ok()?;
    let (rest, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    let plain = rest.get(2..4)? == [0, 0];
    if !plain || checksum.iter().any(|b| *b != 0) {
        return None;
    }
    SecretKey::from_bytes(&bytes).ok()
}

/// Compares a signature, the text of a `.minisig` file, with the bytes of `file` and a public key:
/// the text of minisign's file, or its second line alone.
///
/// # Errors
/// `InvalidArgument` for what is no public key; `Integrity` for a signature that isn't one of this
/// file by this key; `Io`.
pub fn verify_signature(
    file: impl Read + Seek,
    public_key: &str,
    signature: &str,
) -> Result<Signed> {
    let key = public(public_key)?;
    let wrong = |e: minisign::PError| Error::integrity(format!("signature: {e}"));
    let signature = checked(signature)?;
    minisign::verify(&key, &signature, file, true, false, false).map_err(wrong)?;
    Ok(Signed {
        key_id: number(signature.keynum()),
        comment: signature.trusted_comment().map_err(wrong)?,
    })
}

/// The number of a public key, in 16 hexadecimal digits.
///
/// # Errors
/// `InvalidArgument` for what is no public key.
pub fn key_id(public_key: &str) -> Result<String> {
    Ok(number(public(public_key)?.keynum()))
}

fn number(bytes: &[u8]) -> String {
    let bytes: [u8; 8] = bytes.try_into().unwrap_or_default();
    format!("{:016X}", u64::from_le_bytes(bytes))
}

fn public(text: &str) -> Result<PublicKey> {
    let text = text.trim().lines().last().unwrap_or_default();
    PublicKey::from_base64(text.trim())
        .map_err(|e| Error::argument(format!("no public key of minisign: {e}")))
}

fn checked(text: &str) -> Result<SignatureBox> {
    let wrong = |text: &str| Error::integrity(format!("signature: {text}"));
    // The library takes slices of what it is given.
    let lines: Vec<&str> = text.lines().collect();
    let [_, _, comment, global, ..] = lines[..] else {
        return Err(wrong("a .minisig file has four lines"));
    };
    if !comment.starts_with("trusted comment: ") || global.trim().len() != GLOBAL_SIGNATURE_CHARS {
        return Err(wrong("not in minisign's format"));
    }
    SignatureBox::from_string(text).map_err(|e| wrong(&e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn every_changed_byte_is_noticed() {
        let (public, secret) = generate(None).expect("keys");
        let (_, other_secret) = generate(None).expect("keys");
        let file = b"weights".to_vec();
        let signature = sign(&file[..], &secret, None, "decoded_root 12").expect("signs");
        let verify =
            |file: &[u8], key: &str, text: &str| verify_signature(Cursor::new(file), key, text);
        let signed = verify(&file, &public, &signature).expect("valid");
        assert_eq!(signed.comment, "decoded_root 12");
        assert!(public.contains(&signed.key_id), "{public}");
        let second_line = public.lines().nth(1).expect("a key");
        assert_eq!(verify(&file, second_line, &signature).expect("valid"), signed);
        for i in 0..file.len() {
            let mut bad = file.clone();
            bad[i] ^= 1;
            assert!(verify(&bad, &public, &signature).is_err(), "byte {i}");
        }
        let lines: Vec<&str> = signature.lines().collect();
        let start = lines[0].len() + 1;
        for i in start..signature.trim_end().len() {
            let mut bad = signature.clone().into_bytes();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).expect("ASCII");
            // Bits of base64 that no byte needs, and line ends, may change nothing.
            if let Ok(found) = verify(&file, &public, &bad) {
                assert_eq!(found, signed, "byte {i}");
                assert!(lines[1].ends_with('=') || lines[3].ends_with('='), "byte {i}");
            }
        }
        for n in 0..signature.trim_end().len() {
            assert!(verify(&file, &public, &signature[..n]).is_err(), "{n} bytes");
        }
        // As the tool writes it.
        let lines: Vec<&str> = secret.lines().collect();
        let mut bytes = Base64::decode_to_vec(lines[1], None).expect("base64");
        let end = bytes.len() - 32;
        bytes[end..].fill(0);
        let text = |bytes: &[u8]| {
            use ct_codecs::Encoder;
            format!("{}\n{}\n", lines[0], Base64::encode_to_string(bytes).expect("small"))
        };
        let tools = sign(&file[..], &text(&bytes), None, "").expect("signs");
        verify(&file, &public, &tools).expect("valid");
        // Halves of two keys.
        bytes[end - 40] ^= 1;
        assert!(sign(&file[..], &text(&bytes), None, "").is_err());
        let other = sign(&file[..], &other_secret, None, "").expect("signs");
        assert!(verify(&file, &public, &other).is_err());
        assert!(verify(&file, "RWQ", &signature).is_err());
        assert!(sign(&file[..], &public, None, "").is_err());
        assert!(sign(&file[..], &secret, None, "two\nlines").is_err());
    }
}
