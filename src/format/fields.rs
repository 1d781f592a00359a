//! Fields of a record, each padded with zeros to a multiple of 8 bytes.

use std::io::Cursor;

use binrw::BinWrite;

use crate::error::{Error, Result};
use crate::rule::Rule;

/// Reads `n` bytes at `*at` and the zero padding up to the next multiple of 8.
pub(super) fn take<'a>(bytes: &'a [u8], at: &mut usize, n: usize) -> Result<&'a [u8]> {
    let end = at.checked_add(n);
    let padded = end.and_then(|e| e.checked_next_multiple_of(8)).filter(|&e| e <= bytes.len());
    let (Some(end), Some(padded)) = (end, padded) else {
        return Err(Error::malformed(Rule::IDX_7, "a field reaches beyond the record"));
    };
    if bytes[end..padded].iter().any(|&b| b != 0) {
        return Err(Error::malformed(Rule::IDX_6, "padding inside the record is not zero"));
    }
    let field = &bytes[*at..end];
    *at = padded;
    Ok(field)
}

/// Appends `bytes` and zeros up to a multiple of 8.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Appends a header of fixed size.
pub(super) fn put_fixed<T>(out: &mut Vec<u8>, value: &T)
where
    T: for<'a> BinWrite<Args<'a> = ()> + binrw::meta::WriteEndian,
{
    let mut cursor = Cursor::new(Vec::new());
    value.write(&mut cursor).expect("writing fixed-size fields to memory can't fail");
    out.extend_from_slice(cursor.get_ref());
}
