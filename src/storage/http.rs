//! Reading a file on a web server by ranges.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::read_at::ReadAt;
use crate::error::{Error, ErrorKind, Result};
use crate::format::PREAMBLE_BYTES;

/// Most bytes of one request: what is asked again when a connection breaks.
const REQUEST_BYTES: usize = 32 << 20;
/// How often a request is sent, and how long to wait in between.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// A server that sends less than this many bytes a second is given up.
const SLOWEST: u64 = 32 << 10;

/// A file behind an `http:` or `https:` address, read by range requests (RFC 9110, section 14).
///
/// The server must answer ranges with 206. Length and entity tag are taken from the first answer;
/// an answer that disagrees with them is an error, so that bytes of two versions of a file don't
/// mix (of a server that gives neither an entity tag nor a date, only the length can be compared).
/// Broken connections and answers of 429 or 5xx are tried three times.
#[derive(Debug)]
pub struct HttpFile {
    url: String,
    len: u64,
    version: Option<String>,
    /// The first bytes, which came with the length; given away once.
    head: Mutex<Vec<u8>>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// Shared by all files, so that the shards of a pack share connections.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(20)))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(30)))
        .user_agent(concat!("ultracompress/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
});

/// What went wrong, and whether asking again may help.
enum Failure {
    Passing(String),
    Lasting(String),
}

use Failure::{Lasting, Passing};

impl HttpFile {
    /// Asks for the first 256 bytes, which tells the length.
    ///
    /// # Errors
    /// `Io` when the server can't be reached, answers with an error, or doesn't know ranges.
    pub fn open(url: &str) -> Result<Self> {
        let mut file = Self {
            url: url.to_owned(),
            len: 0,
            version: None,
            head: Mutex::default(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let open = || {
            let mut head = vec![0; PREAMBLE_BYTES];
            let (len, version, n) = file.first(&mut head)?;
            head.truncate(n);
            Ok((len, version, head))
        };
        let (len, version, head) = persist(open).map_err(|e| e.in_file(url))?;
        (file.len, file.version) = (len, version);
        file.head = Mutex::new(head);
        Ok(file)
    }

    /// The address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of the file received so far.
    pub fn bytes_read(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn send(&self, from: u64, len: usize) -> std::result::Result<Response<Body>, Failure> {
        let last = from + len as u64 - 1;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let patience = Duration::from_secs(60 + len as u64 / SLOWEST);
        let answer = AGENT
            .get(&self.url)
            .header("Range", format!("bytes={from}-{last}"))
            .header("Accept-Encoding", "identity")
            .config()
            .timeout_recv_body(Some(patience))
            .build()
            .call()
            .map_err(failure)?;
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Passing(format!("the server answered {status}")));
        }
        // Error pages may be compressed as they like.
        let coding = header(&answer, "content-encoding").filter(|c| *c != "identity");
        if let (StatusCode::PARTIAL_CONTENT, Some(coding)) = (status, coding) {
            return Err(Lasting(format!("the server sent bytes encoded as {coding}")));
        }
        Ok(answer)
    }

    /// Length and version of the file, and how many bytes of `head` it has.
    fn first(&self, head: &mut [u8]) -> std::result::Result<(u64, Option<String>, usize), Failure> {
        let answer = self.send(0, head.len())?;
        let version = version(&answer);
        let range = header(&answer, "content-range").and_then(ContentRange::parse);
        match (answer.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some(ContentRange { range: Some((0, last)), total })) => {
                let n = (head.len() as u64).min(total);
                if last.checked_add(1) != Some(n) {
                    return Err(Lasting(format!(
                        "asked for bytes 0-{} of {total}, got 0-{last}",
                        head.len() - 1
                    )));
                }
                let n = usize::try_from(n).expect("at most 256");
                self.receive(answer, &mut head[..n])?;
                Ok((total, version, n))
            }
            // No range can be had of an empty file.
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { total: 0, .. })) => {
                Ok((0, version, 0))
            }
            (status, _) => Err(unexpected(status)),
        }
    }

    fn range(&self, from: u64, buf: &mut [u8]) -> std::result::Result<(), Failure> {
        let answer = self.send(from, buf.len())?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(unexpected(answer.status()));
        }
        if version(&answer) != self.version {
            return Err(Lasting("the file changed on the server while it was read".into()));
        }
        let last = from + buf.len() as u64 - 1;
        let found = header(&answer, "content-range").unwrap_or("none");
        let expected = ContentRange { range: Some((from, last)), total: self.len };
        if ContentRange::parse(found) != Some(expected) {
            return Err(Lasting(format!(
                "the server answered with content-range {found:?}, asked was for bytes {from}-{last}/{}",
                self.len
            )));
        }
        self.receive(answer, buf)
    }

    fn receive(&self, answer: Response<Body>, buf: &mut [u8]) -> std::result::Result<(), Failure> {
        let body = answer.into_body();
        // Told at once, as more bytes may never come.
        if let Some(len) = body.content_length().filter(|&len| len != buf.len() as u64) {
            return Err(Lasting(format!(
                "the server announces {len} bytes, asked was for {}",
                buf.len()
            )));
        }
        let mut body = body.into_reader();
        let mut filled = 0;
        while filled < buf.len() {
            match body.read(&mut buf[filled..]) {
                Ok(0) => {
                    return Err(Passing(format!(
                        "the answer ends after {filled} of {} bytes",
                        buf.len()
                    )));
                }
                Ok(n) => filled += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Passing(format!(
                        "the answer broke off after {filled} of {} bytes: {e}",
                        buf.len()
                    )));
                }
            }
        }
        self.bytes.fetch_add(filled as u64, Ordering::Relaxed);
        // Reading to the end also frees the connection for the next request.
        match body.read(&mut [0]) {
            Ok(0) | Err(_) => Ok(()),
            Ok(_) => {
                Err(Lasting(format!("the server sent more than the {filled} bytes asked for")))
            }
        }
    }
}

impl ReadAt for HttpFile {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.len);
        if end.is_none() {
            return Err(super::read_at::truncated(offset..offset.saturating_add(buf.len() as u64)));
        }
        if offset == 0 {
            let mut head = self.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !head.is_empty() && head.len() == buf.len() {
                buf.copy_from_slice(&std::mem::take(&mut *head));
                return Ok(());
            }
        }
        for piece in buf.chunks_mut(REQUEST_BYTES) {
            persist(|| self.range(offset, piece)).map_err(|e| e.in_file(&self.url).at(offset))?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

/// Tries again what may pass.
fn persist<T>(mut once: impl FnMut() -> std::result::Result<T, Failure>) -> Result<T> {
    let mut pauses = PAUSES.iter();
    loop {
        match once() {
            Ok(done) => return Ok(done),
            Err(Lasting(text)) => return Err(Error::new(ErrorKind::Io, text)),
            Err(Passing(text)) => match pauses.next() {
                Some(pause) => std::thread::sleep(*pause),
                None => {
                    let times = PAUSES.len() + 1;
                    return Err(Error::new(ErrorKind::Io, format!("{text} (tried {times} times)")));
                }
            },
        }
    }
}

/// Only what the network did may pass.
fn failure(e: ureq::Error) -> Failure {
    use ureq::Error::{BadUri, ConnectionFailed, HostNotFound, Http, Io, Protocol, Timeout};
    match e {
        Io(_) | Timeout(_) | HostNotFound | ConnectionFailed => Passing(e.to_string()),
        Http(_) | BadUri(_) => Lasting(format!("not a usable address: {e}")),
        Protocol(_) => Lasting(format!("the answer is not proper HTTP: {e}")),
        _ => Lasting(e.to_string()),
    }
}

fn unexpected(status: StatusCode) -> Failure {
    Lasting(match status {
        StatusCode::OK => {
            "the server ignores range requests (it answered 200, not 206): download the file first"
                .into()
        }
        StatusCode::PARTIAL_CONTENT => "the server's answer has no usable content-range".into(),
        status => format!("the server answered {status}"),
    })
}

fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// What changes when the file does.
fn version(answer: &Response<Body>) -> Option<String> {
    header(answer, "etag").or_else(|| header(answer, "last-modified")).map(str::to_owned)
}

/// A `Content-Range` of bytes: `bytes 0-255/1000` or `bytes */1000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    /// First and last byte.
    range: Option<(u64, u64)>,
    total: u64,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let total = number(total)?;
        if range == "*" {
            return Some(Self { range: None, total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && last < total).then_some(Self { range: Some((first, last)), total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |first, last, total| Some(ContentRange { range: Some((first, last)), total });
        assert_eq!(ContentRange::parse("bytes 0-255/1000"), range(0, 255, 1000));
        assert_eq!(ContentRange::parse("bytes 7-7/8"), range(7, 7, 8));
        let empty = Some(ContentRange { range: None, total: 0 });
        assert_eq!(ContentRange::parse("bytes */0"), empty);
        for bad in [
            "",
            "bytes",
            "bytes 0-255",
            "bytes 0-255/*",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "items 0-1/2",
            "bytes -1-1/2",
            "bytes +0-1/2",
            "bytes 0-1/99999999999999999999",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad:?}");
        }
    }
}
