//! The check that bytes are canonical JSON (RFC 8785) with safe integers only (UC-MAN-1), byte by
//! byte: nothing is kept of input that is refused.

/// Deepest nesting of arrays and objects below the outermost one.
const MAX_DEPTH: usize = 64;
/// Largest integer that every JSON reader holds exactly.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Says what is wrong, and at which byte.
type Check = Result<(), (usize, String)>;

/// Checks that `bytes` are one value in canonical form.
///
/// # Errors
/// Offset and text of the first thing that is wrong.
pub(super) fn check(bytes: &[u8]) -> Check {
    if let Err(e) = std::str::from_utf8(bytes) {
        return Err((e.valid_up_to(), "not UTF-8".into()));
    }
    let mut scanner = Scanner { bytes, at: 0 };
    scanner.value(0)?;
    if scanner.at < bytes.len() { scanner.fail("bytes behind the value") } else { Ok(()) }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn fail(&self, text: &str) -> Check {
        Err((self.at, text.into()))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, text: &str) -> Check {
        if self.bytes[self.at..].starts_with(text.as_bytes()) {
            self.at += text.len();
            return Ok(());
        }
        match self.peek() {
            None => self.fail(&format!("it ends where `{text}` is expected")),
            Some(b' ' | b'\t' | b'\n' | b'\r') => {
                self.fail("white space, which canonical JSON has not")
            }
            Some(_) => self.fail(&format!("`{text}` is expected")),
        }
    }

    /// `depth`: arrays and objects around the value.
    fn value(&mut self, depth: usize) -> Check {
        match self.peek() {
            Some(b'{' | b'[') if depth > MAX_DEPTH => {
                self.fail(&format!("values are nested more than {MAX_DEPTH} deep"))
            }
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.skip("true"),
            Some(b'f') => self.skip("false"),
            Some(b'n') => self.skip("null"),
            Some(b'-' | b'0'..=b'9') => self.integer(),
            _ => self.skip("a value"),
        }
    }

    fn object(&mut self, depth: usize) -> Check {
        self.skip("{")?;
        if self.peek() == Some(b'}') {
            return self.skip("}");
        }
        let mut last: Option<String> = None;
        loop {
            let start = self.at;
            let key = self.string()?;
            // By UTF-16 code units, as RFC 8785 sorts; equal ones are duplicates.
            if last.as_ref().is_some_and(|last| !last.encode_utf16().lt(key.encode_utf16())) {
                return Err((
                    start,
                    format!("member \"{}\" is out of order or twice", key.escape_debug()),
                ));
            }
            last = Some(key);
            self.skip(":")?;
            self.value(depth + 1)?;
            if self.peek() == Some(b'}') {
                return self.skip("}");
            }
            self.skip(",")?;
        }
    }

    fn array(&mut self, depth: usize) -> Check {
        self.skip("[")?;
        if self.peek() == Some(b']') {
            return self.skip("]");
        }
        loop {
            self.value(depth + 1)?;
            if self.peek() == Some(b']') {
                return self.skip("]");
            }
            self.skip(",")?;
        }
    }

    fn string(&mut self) -> Result<String, (usize, String)> {
        self.skip("\"")?;
        let mut text = String::new();
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
            let Some(n) = plain else {
                self.at = self.bytes.len();
                return Err((self.at, "it ends within a string".into()));
            };
            // Cut at ASCII, so it is whole UTF-8.
            text.push_str(std::str::from_utf8(&rest[..n]).map_err(|_| (self.at, String::new()))?);
            self.at += n;
            match rest[n] {
                b'"' => {
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => text.push(self.escape()?),
                _ => return Err((self.at, "a control character in a string".into())),
            }
        }
    }

    /// Only what can't stand for itself is escaped, in one way.
    fn escape(&mut self) -> Result<char, (usize, String)> {
        let rest = &self.bytes[self.at..];
        let short = match rest.get(1) {
            Some(b'"') => Some('"'),
            Some(b'\\') => Some('\\'),
            Some(b'b') => Some('\u{8}'),
            Some(b'f') => Some('\u{c}'),
            Some(b'n') => Some('\n'),
            Some(b'r') => Some('\r'),
            Some(b't') => Some('\t'),
            _ => None,
        };
        if let Some(c) = short {
            self.at += 2;
            return Ok(c);
        }
        let digit = |b: &u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let code = rest
            .strip_prefix(b"\\u00")
            .and_then(|r| Some(digit(r.first()?)? * 16 + digit(r.get(1)?)?));
        match code {
            Some(c @ 0..0x20) if !matches!(c, 8 | 9 | 10 | 12 | 13) => {
                self.at += 6;
                Ok(char::from(c))
            }
            _ => Err((self.at, "an escape that canonical JSON doesn't use".into())),
        }
    }

    fn integer(&mut self) -> Check {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let digits = self.bytes[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let text = &self.bytes[self.at..self.at + digits];
        let value = std::str::from_utf8(text).ok().and_then(|t| t.parse::<u64>().ok());
        let canonical = match text {
            [b'0'] => start == self.at,
            [b'0', ..] | [] => false,
            _ => true,
        };
        self.at += digits;
        let fraction = matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        if !canonical || fraction || value.is_none_or(|v| v > MAX_SAFE_INTEGER) {
            return Err((start, "a number that is not an integer within 2^53 - 1".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn ok(text: &str) -> bool {
        check(text.as_bytes()).is_ok()
    }

    #[test]
    fn takes_canonical_json_only() {
        for good in [
            "{}",
            "[]",
            "0",
            "-1",
            "9007199254740991",
            "\"\"",
            "null",
            "[true,false]",
            r#"{"":1,"a":{"b":[1,2]},"b":"\"\\\b\f\n\r\t\u0001\u001f/é"}"#,
            "{\"\u{1f600}\":1,\"\u{fb33}\":2}", // UTF-16 order, not that of code points
        ] {
            assert!(ok(good), "{good}: {:?}", check(good.as_bytes()));
        }
        for bad in [
            "",
            " {}",
            "{} ",
            "{ }",
            "[1, 2]",
            "{\"a\": 1}",
            "[1,]",
            "{\"a\":1,}",
            "01",
            "-0",
            "+1",
            "1.0",
            "1e2",
            "9007199254740992",
            "99999999999999999999",
            "\"\\/\"",
            "\"\\u0041\"",
            "\"\\u000a\"",
            "\"\\u001F\"",
            "\"a",
            "\"\n\"",
            "{\"b\":1,\"a\":2}",
            "{\"a\":1,\"a\":1}",
            "tru",
            "[",
            "{\"a\"",
            "{a:1}",
            "nul",
            "{\"\u{fb33}\":2,\"\u{1f600}\":1}",
            "-",
            "\"\\",
            "\"\\u00",
        ] {
            assert!(!ok(bad), "{bad}");
        }
        assert!(check(b"\"\xff\"").is_err());
    }

    #[test]
    fn sixty_four_levels_below_the_outermost_are_the_most() {
        let nested = |n: usize, inner: &str| format!("{}{inner}{}", "[".repeat(n), "]".repeat(n));
        assert!(ok(&nested(65, "")) && ok(&nested(65, "1")));
        assert!(!ok(&nested(66, "")) && !ok(&nested(100_000, "")));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-9_007_199_254_740_991i64..=9_007_199_254_740_991).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_library_that_writes_it(value in json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = serde_json_canonicalizer::to_vec(&value).expect("safe integers");
            prop_assert_eq!(check(&text), Ok(()));
            // Changed in one byte, it is canonical if it is still what the library makes of it.
            let i = at.index(text.len());
            text[i] = byte;
            if check(&text).is_ok() {
                let value: Value = serde_json::from_slice(&text).expect("canonical JSON is JSON");
                prop_assert_eq!(serde_json_canonicalizer::to_vec(&value).expect("it is"), text);
            }
        }
    }
}
