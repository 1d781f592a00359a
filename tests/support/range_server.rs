//! A small HTTP/1.1 server that answers requests for ranges of files, counts them, and misbehaves
//! where it is told to. For tests and examples.
#![allow(dead_code, reason = "tests and examples each use a part of it")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Result, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::{Bound, Range, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is served: a file, or bytes in a [`std::io::Cursor`].
pub trait Content: Read + Seek + Send {}
impl<T: Read + Seek + Send> Content for T {}

/// How a server answers other than it should, or in an unusual way that is right.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers 200 with everything.
    IgnoresRanges,
    /// Says that the file has this many bytes.
    Total(u64),
    /// Sends the range one byte further on.
    OtherRange,
    /// Ends the connection after half of the body.
    CutOff,
    /// Announces and sends so many bytes more.
    SendsMore(usize),
    /// Announces one byte more, which never comes.
    AnnouncesMore,
    /// Sends the body in chunks, with so many bytes more; right with none.
    Chunked(usize),
    /// Has another entity tag.
    Etag(&'static str),
    /// Leaves `Content-Range` out.
    NoContentRange,
    /// Answers with this status, and with an error page that is compressed.
    Status(u16),
    /// Says that the body is compressed.
    Gzip,
    /// Sends the client elsewhere on this server. Right.
    Redirect(&'static str),
    /// Speaks another protocol.
    Garbage,
    /// Ends the connection instead of an answer.
    NoAnswer,
    /// Ends the connection within the head of the answer.
    HalfHead,
    /// Ends the connection after the answer, without saying so. Right.
    ClosesAfter,
}

/// What was asked of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests for it.
    pub requests: u64,
    /// Bytes of answers, without heads.
    pub bytes: u64,
}

/// A server on a free port of this machine. It ends with the value.
pub struct RangeServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<HashMap<String, Served>>,
    ended: AtomicBool,
}

struct Served {
    content: Box<dyn Content>,
    len: u64,
    /// The fault, and the requests from its setting on that meet it.
    fault: Option<(Fault, Range<u64>)>,
    since: u64,
    count: Count,
}

impl RangeServer {
    /// Starts a server without files.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.ended.load(Ordering::SeqCst) {
                    return;
                }
                let own = Arc::clone(&own);
                // A client may leave whenever it likes.
                std::thread::spawn(move || stream.and_then(|s| converse(&own, s)));
            }
        });
        Ok(Self { address, shared })
    }

    /// Serves `content` as `path`, which is what stands in addresses behind the first slash, query
    /// included.
    pub fn serve(&self, path: &str, mut content: impl Content + 'static) -> Result<()> {
        let len = content.seek(SeekFrom::End(0))?;
        let content = Box::new(content);
        let served = Served { content, len, fault: None, since: 0, count: Count::default() };
        self.shared.files().insert(path.to_owned(), served);
        Ok(())
    }

    /// From now on the requests `during`, counted from 0, for `path` meet `fault`.
    pub fn misbehave(&self, path: &str, fault: Fault, during: impl RangeBounds<u64>) {
        let start = match during.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n + 1,
            Bound::Unbounded => 0,
        };
        let end = match during.end_bound() {
            Bound::Included(&n) => n + 1,
            Bound::Excluded(&n) => n,
            Bound::Unbounded => u64::MAX,
        };
        if let Some(served) = self.shared.files().get_mut(path) {
            (served.fault, served.since) = (Some((fault, start..end)), 0);
        }
    }

    /// The address of `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// What was asked of `path` since the last call.
    pub fn take_count(&self, path: &str) -> Count {
        let mut files = self.shared.files();
        files.get_mut(path).map(|served| std::mem::take(&mut served.count)).unwrap_or_default()
    }
}

impl Drop for RangeServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, HashMap<String, Served>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the requests of one connection.
fn converse(shared: &Shared, mut stream: TcpStream) -> Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    while let Some(request) = Request::read(&mut input)? {
        let answer = match shared.files().get_mut(&request.path) {
            Some(served) => served.answer(&request)?,
            None => Answer::page(404),
        };
        stream.write_all(&answer.to_bytes())?;
        if answer.ends {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

/// As much of a request as matters here.
struct Request {
    path: String,
    range: Option<String>,
}

impl Request {
    /// The next request; nothing at the end of the connection.
    fn read(input: &mut impl BufRead) -> Result<Option<Self>> {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let Some(target) = line.split(' ').nth(1) else { return Ok(None) };
        let path = target.trim_start_matches('/').to_owned();
        let mut range = None;
        loop {
            line.clear();
            if input.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                    range = Some(value.trim().to_owned());
                }
                Some(_) => {}
                None => return Ok(Some(Self { path, range })),
            }
        }
    }

    /// The bytes asked for of a file of `len` bytes; nothing where all are.
    fn range(&self, len: u64) -> Option<Range<u64>> {
        let (from, to) = self.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if to.is_empty() { len.saturating_sub(1) } else { to.parse().ok()? };
        match from {
            "" => Some(len.saturating_sub(to.parse().ok()?)..len),
            from => Some(from.parse().ok()?..last.saturating_add(1).min(len)),
        }
    }
}

/// An answer on its way.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What `Content-Length` says.
    announced: usize,
    /// Stands for everything above.
    instead: Option<&'static [u8]>,
    /// Whether the connection ends with it.
    ends: bool,
}

impl Answer {
    fn new(status: u16, body: Vec<u8>) -> Self {
        let announced = body.len();
        Self { status, headers: vec![], body, announced, instead: None, ends: false }
    }

    /// An error page.
    fn page(status: u16) -> Self {
        Self::new(status, b"<html>".to_vec()).with("Content-Encoding", "gzip")
    }

    /// Ends the connection after these bytes.
    fn instead(bytes: &'static [u8]) -> Self {
        Self { instead: Some(bytes), ends: true, ..Self::new(0, vec![]) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn in_chunks(mut self) -> Self {
        let mut body = Vec::new();
        for chunk in self.body.chunks(10_000) {
            body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        self.body = body;
        self.with("Transfer-Encoding", "chunked")
    }

    fn to_bytes(&self) -> Vec<u8> {
        if let Some(bytes) = self.instead {
            return bytes.to_vec();
        }
        let mut head = format!("HTTP/1.1 {} _\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.headers.iter().all(|(name, _)| *name != "Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", self.announced);
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }
}

impl Served {
    /// The fault that the next request meets.
    fn next_fault(&mut self) -> Option<Fault> {
        let n = self.since;
        self.since += 1;
        self.fault.as_ref().filter(|(_, during)| during.contains(&n)).map(|(f, _)| f.clone())
    }

    fn answer(&mut self, request: &Request) -> Result<Answer> {
        let fault = self.next_fault();
        self.count.requests += 1;
        let answer = match fault {
            Some(Fault::Status(status)) => Answer::page(status),
            Some(Fault::Garbage) => Answer::instead(b"220 ready\r\n\r\n"),
            Some(Fault::NoAnswer) => Answer::instead(b""),
            Some(Fault::HalfHead) => Answer::instead(b"HTTP/1.1 206 _\r\nContent-"),
            Some(Fault::Redirect(path)) => {
                Answer::new(302, vec![]).with("Location", format!("/{path}"))
            }
            fault => return self.range_answer(request, fault),
        };
        self.count.bytes += answer.body.len() as u64;
        Ok(answer)
    }

    fn range_answer(&mut self, request: &Request, fault: Option<Fault>) -> Result<Answer> {
        let total = if let Some(Fault::Total(total)) = fault { total } else { self.len };
        let ranges = !matches!(fault, Some(Fault::IgnoresRanges));
        let mut answer = match request.range(total).filter(|_| ranges) {
            None => Answer::new(200, self.read(0..self.len)?),
            Some(range) if range.is_empty() => {
                Answer::new(416, vec![]).with("Content-Range", format!("bytes */{total}"))
            }
            Some(mut range) => {
                if let Some(Fault::OtherRange) = fault {
                    range = range.start + 1..range.end + 1;
                }
                let found = format!("bytes {}-{}/{total}", range.start, range.end - 1);
                let mut answer = Answer::new(206, self.read(range.clone())?);
                answer.announced = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                answer.ends = answer.announced > answer.body.len();
                match fault {
                    Some(Fault::NoContentRange) => answer,
                    _ => answer.with("Content-Range", found),
                }
            }
        };
        let tag = if let Some(Fault::Etag(tag)) = fault { tag } else { "\"first\"" };
        answer = answer.with("Accept-Ranges", "bytes").with("ETag", tag);
        match fault {
            Some(Fault::CutOff) => {
                answer.body.truncate(answer.body.len() / 2);
                answer.ends = true;
            }
            Some(Fault::SendsMore(n)) => {
                answer.body.extend(vec![0; n]);
                answer.announced += n;
            }
            Some(Fault::AnnouncesMore) => answer.announced += 1,
            Some(Fault::Gzip) => answer = answer.with("Content-Encoding", "gzip"),
            Some(Fault::ClosesAfter) => answer.ends = true,
            _ => {}
        }
        // Counted before it is sent, so that a client never sees a count without its answer.
        self.count.bytes += answer.body.len() as u64;
        if let Some(Fault::Chunked(more)) = fault {
            answer.body.extend(vec![0; more]);
            answer = answer.in_chunks();
        }
        Ok(answer)
    }

    /// The bytes `range`, or as many of them as there are.
    fn read(&mut self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content.seek(SeekFrom::Start(range.start))?;
        (&mut self.content).take(range.end - range.start).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
