//! Reads the response to an HTTP check as Go's `net/http` does, whose Consul runs such checks.
//!
//! Many servers that are healthy bend HTTP's grammar, and hyper refuses what they send: spaces before a colon, folded lines,
//! names and values of any octets, more fields than it has room for. Only four fields matter here, so all others are read
//! over. What Go refuses is refused: no colon, a status that is not three digits, a Content-Length that is no number.
//! The measure is Go 1.14, of which Consul 1.8.7 is built: `readResponse`, `ReadMIMEHeader` and `readTransfer`.

use http::Method;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};

use super::{connect::Error, held::Held};

/// A response whose body has not been read.
pub(super) struct Response<R> {
    /// The three digits.
    pub status: u16,
    /// As the server wrote it: `200 OK`.
    pub status_line: String,
    /// Where it redirects to.
    pub location: Option<String>,
    framing: Framing,
    stream: BufReader<R>,
    held: Held,
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

/// The fields that matter.
#[derive(Default)]
struct Fields {
    location: Option<String>,
    lengths: Vec<String>,
    encodings: Vec<String>,
}

impl<R: AsyncRead + Unpin> Response<R> {
    /// Reads the header of the response to a request with this method; what is kept of it is `held`.
    pub async fn receive(stream: R, method: &Method, mut held: Held) -> Result<Self, Error> {
        let mut stream = BufReader::new(stream);
        for _ in 0..=MAX_INFORMATIONAL {
            let mut left = MAX_HEADER_BYTES;
            held.fixed = 0;
            let line = read_line(&mut stream, &mut left, &mut held).await?;
            let (version, status, status_line) = read_status(&line)?;
            held.fixed = line.len() + status_line.len();
            drop(line);
            let fields = Fields::receive(&mut stream, &mut left, &mut held).await?;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let framing = fields.framing(status, version >= (1, 1), method)?;
            return Ok(Self { status, status_line, location: fields.location, framing, stream, held });
        }
        Err(malformed("too many 1xx informational responses"))
    }

    /// The first `limit` bytes of the body. At most `most` are read, so that a usual server can write all of it. A body that
    /// breaks off changes nothing: the status has arrived.
    pub async fn body(mut self, limit: usize, most: u64) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut left = most;
        match self.framing {
            Framing::Length(length) => drop(copy(&mut self.stream, length.min(most), limit, &mut kept).await),
            Framing::UntilClosed => drop(copy(&mut self.stream, most, limit, &mut kept).await),
            Framing::Chunked => {
                while let Some(size) =
                    read_chunk_size(&mut self.stream, &mut self.held).await.filter(|size| (1..=left).contains(size))
                {
                    left -= size;
                    let mut line_left = MAX_CHUNK_LINE_BYTES;
                    if copy(&mut self.stream, size, limit, &mut kept).await != Some(size)
                        || read_line(&mut self.stream, &mut line_left, &mut self.held).await.is_err()
                    {
                        break;
                    }
                }
            }
        }
        kept
    }
}

impl Fields {
    async fn receive(stream: &mut (impl AsyncBufRead + Unpin), left: &mut u64, held: &mut Held) -> Result<Self, Error> {
        let mut fields = Self::default();
        let mut field: Option<Vec<u8>> = None;
        let others = held.fixed;
        loop {
            held.fixed = others + fields.bytes() + field.as_ref().map_or(0, Vec::capacity);
            let line = read_line(stream, left, held).await?;
            let is_folded = matches!(line.first(), Some(b' ' | b'\t'));
            match &mut field {
                None if is_folded => return Err(malformed(format!("initial line {}", quoted(&line)))),
                Some(field) if is_folded => {
                    held.fixed = others + fields.bytes() + line.capacity();
                    held.reserve(field, line.len() + 1)?;
                    field.push(b' ');
                    field.extend_from_slice(line.trim_ascii());
                    continue;
                }
                _ => {}
            }
            if let Some(field) = field.take() {
                fields.add(&field);
            }
            if line.is_empty() {
                return Ok(fields);
            }
            if !line.contains(&b':') {
                return Err(malformed(format!("missing colon in {}", quoted(&line))));
            }
            field = Some(line);
        }
    }

    /// What they take in memory.
    fn bytes(&self) -> usize {
        self.lengths.iter().chain(&self.encodings).chain(&self.location).map(String::len).sum()
    }

    /// A name counts only as it is: with a space before its colon it is another.
    fn add(&mut self, field: &[u8]) {
        let colon = field.iter().position(|&octet| octet == b':').unwrap_or(field.len());
        let (name, rest) = field.split_at(colon);
        let value = || String::from_utf8_lossy(rest.get(1..).unwrap_or_default().trim_ascii()).into_owned();
        if name.eq_ignore_ascii_case(b"location") {
            self.location.get_or_insert_with(value);
        } else if name.eq_ignore_ascii_case(b"content-length") {
            // One that differs from the first is enough for a fault.
            let length = value();
            if self.lengths.len() < 2 && self.lengths.first() != Some(&length) {
                self.lengths.push(length);
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") && self.encodings.len() < 2 {
            self.encodings.push(value());
        }
    }

    fn framing(&self, status: u16, knows_chunks: bool, method: &Method) -> Result<Framing, Error> {
        let is_chunked = knows_chunks && !self.encodings.is_empty();
        if is_chunked && !matches!(&self.encodings[..], [only] if only.eq_ignore_ascii_case("chunked")) {
            return Err(malformed(format!("unsupported transfer encoding {:?}", self.encodings)));
        }
        if !is_chunked && self.lengths.len() > 1 {
            return Err(malformed(format!("multiple Content-Length {:?}", self.lengths)));
        }
        if *method == Method::HEAD || status < 200 || matches!(status, 204 | 304) {
            return Ok(Framing::Length(0));
        }
        match self.lengths.first().filter(|length| !length.is_empty()) {
            _ if is_chunked => Ok(Framing::Chunked),
            None => Ok(Framing::UntilClosed),
            Some(text) if text.bytes().all(|octet| octet.is_ascii_digit()) && text.parse::<i64>().is_ok() => {
                Ok(Framing::Length(text.parse().unwrap_or(0)))
            }
            Some(text) => Err(malformed(format!("bad Content-Length {text:?}"))),
        }
    }
}

/// The version, the status, and the text that begins with it.
fn read_status(line: &[u8]) -> Result<((u32, u32), u16, String), Error> {
    let text = String::from_utf8_lossy(line);
    let wrong = || malformed(format!("HTTP response {}", quoted(line)));
    let (version, rest) = text.split_once(' ').ok_or_else(wrong)?;
    let (major, minor) = version.strip_prefix("HTTP/").and_then(|numbers| numbers.split_once('.')).ok_or_else(wrong)?;
    let version = major.parse().ok().zip(minor.parse().ok()).ok_or_else(wrong)?;
    let rest = rest.trim_start_matches(' ');
    let code = rest.split(' ').next().unwrap_or_default();
    let is_code = code.len() == 3 && code.bytes().all(|octet| octet.is_ascii_digit());
    let status = code.parse().ok().filter(|_| is_code).ok_or_else(wrong)?;
    Ok((version, status, rest.to_owned()))
}

/// A line without its end.
async fn read_line(
    stream: &mut (impl AsyncBufRead + Unpin),
    left: &mut u64,
    held: &mut Held,
) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    loop {
        let data = stream.fill_buf().await?;
        let data = &data[..data.len().min(usize::try_from(*left).unwrap_or(usize::MAX))];
        let end = data.iter().position(|&octet| octet == b'\n');
        let taken = end.map_or(data.len(), |end| end + 1);
        if taken == 0 {
            return Err(match *left {
                0 => malformed(format!("header is longer than {MAX_HEADER_BYTES} bytes")),
                _ => malformed("connection closed before the end of the header"),
            });
        }
        held.reserve(&mut line, taken)?;
        line.extend_from_slice(&data[..end.unwrap_or(taken)]);
        stream.consume(taken);
        *left -= taken as u64;
        if end.is_some() {
            line.pop_if(|end| *end == b'\r');
            line.shrink_to_fit();
            return Ok(line);
        }
    }
}

async fn read_chunk_size(stream: &mut (impl AsyncBufRead + Unpin), held: &mut Held) -> Option<u64> {
    let mut left = MAX_CHUNK_LINE_BYTES;
    let line = read_line(stream, &mut left, held).await.ok()?;
    let digits = line.split(|&octet| octet == b';').next()?.trim_ascii();
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Reads so many bytes, and keeps them up to the limit in all. How many there were, unless the connection failed.
async fn copy(stream: &mut (impl AsyncBufRead + Unpin), size: u64, limit: usize, kept: &mut Vec<u8>) -> Option<u64> {
    let mut left = size;
    while left > 0 {
        let data = stream.fill_buf().await.ok()?;
        let taken = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if taken == 0 {
            break;
        }
        kept.extend_from_slice(&data[..taken.min(limit - kept.len())]);
        stream.consume(taken);
        left -= taken as u64;
    }
    Some(size - left)
}

fn malformed(what: impl Into<String>) -> Error {
    Error::Response(format!("malformed HTTP response: {}", what.into()))
}

/// The beginning of a line, as it can be shown.
fn quoted(line: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(MAX_QUOTED_BYTES)]))
}

/// Of `http.Transport`: `MaxResponseHeaderBytes`.
const MAX_HEADER_BYTES: u64 = 10 << 20;
/// Of `http.Transport`: `max1xxResponses`.
const MAX_INFORMATIONAL: usize = 5;
/// Of `net/http/internal`: `maxLineLength`.
const MAX_CHUNK_LINE_BYTES: u64 = 4096;
const MAX_QUOTED_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use bytesize::ByteSize;

    use super::*;
    use crate::budget::{self, Budget};

    async fn read(response: &[u8], method: &Method) -> Result<(String, String), String> {
        let held = Held::new(&Arc::<Budget>::default().open_checked(Ipv4Addr::LOCALHOST.into())).unwrap();
        let response = Response::receive(response, method, held).await.map_err(|error| error.to_string())?;
        let status = response.status_line.clone();
        Ok((status, String::from_utf8_lossy(&response.body(1000, 5000).await).into_owned()))
    }

    /// What a Consul 1.8.7 takes for healthy, and what not, put to both in `tests/behavior`.
    #[tokio::test]
    async fn what_go_reads_is_read_and_what_it_refuses_is_not() {
        for (response, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 200\r\n\r\nall", Ok(("200", "all"))),
            ("HTTP/1.2   404 No such\r\n\r\n", Ok(("404 No such", ""))),
            ("HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nok", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n 1\r\n\r\nok", Ok(("200 OK", "o"))),
            ("HTTP/1.1 200 OK\r\n: x\r\nA (b): c\r\nd\u{1}: \0\r\n\r\nok", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 204 No\r\n\r\nok", Ok(("204 No", ""))),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1;x=y\r\no\r\n1\r\nk\r\n0\r\n\r\n",
                Ok(("200 OK", "ok")),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", Ok(("200 OK", "ok"))),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nok", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", Ok(("200 OK", "ok"))),
            ("HTTP/1.1 200 OK\r\n X: y\r\n\r\n", Err("initial line \" X: y\"")),
            ("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", Err("missing colon in \"nonsense\"")),
            ("HTTP/1.1 200 OK\r\nX: y\r\n", Err("closed before the end")),
            ("", Err("closed before the end")),
            ("HTTP/1.1 200OK\r\n\r\n", Err("HTTP response")),
            ("HTTP/1.1 +20 X\r\n\r\n", Err("HTTP response")),
            ("HTTP/1 200 OK\r\n\r\n", Err("HTTP response")),
            ("ICY 200 OK\r\n\r\n", Err("HTTP response")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", Err("multiple Content-Length")),
            ("HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", Err("bad Content-Length")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok", Err("bad Content-Length")),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nok", Err("unsupported transfer encoding")),
        ] {
            let found = read(response.as_bytes(), &Method::GET).await;
            match (&found, expected) {
                (Ok((status, body)), Ok(expected)) => assert_eq!((&**status, &**body), expected, "{response:?}"),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{response:?}: {error}"),
                _ => panic!("{response:?}: {found:?}, not {expected:?}"),
            }
        }
        let head = read(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", &Method::HEAD).await;
        assert_eq!(head, Ok(("200 OK".to_owned(), String::new())));
        let early = "HTTP/1.1 103 Early\r\n\r\n".repeat(6);
        assert!(read(early.as_bytes(), &Method::GET).await.is_err_and(|error| error.contains("too many 1xx")));
    }

    #[tokio::test]
    async fn what_is_kept_of_a_header_counts_against_the_limits() {
        let budget = Arc::<Budget>::default();
        let limits = budget::Config { connection_bytes: ByteSize::kib(128), ..budget::Config::default() };
        budget.set_limits(limits);
        let read = async |header: String| {
            let account = budget.open_checked(Ipv4Addr::LOCALHOST.into());
            let response = format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\nok");
            Response::receive(response.as_bytes(), &Method::GET, Held::new(&account).unwrap()).await.map(|_| ())
        };
        let folded = format!("X: y\r\n{}", format!(" {}\r\n", "a".repeat(5000)).repeat(200));
        let value = "a".repeat(60_000);
        let kept = format!("Location: {value}\r\nTransfer-Encoding: {value}\r\nContent-Length: {value}\r\nX: y");
        for (case, header, is_read) in [
            ("usual", "X: y".to_owned(), true),
            ("many short fields", "X: y\r\n".repeat(100_000) + "X: y", true),
            ("many lengths", "Content-Length: 2\r\n".repeat(100_000) + "X: y", true),
            ("a long field", format!("X: {}", "a".repeat(60_000)), true),
            ("longer", format!("X: {}", "a".repeat(200_000)), false),
            ("folded", folded + "X: y", false),
            ("values that are kept", kept, false),
        ] {
            let found = read(header).await;
            assert_eq!(found.is_ok(), is_read, "{case}: {found:?}");
            assert!(is_read || matches!(found, Err(Error::NoRoom)), "{case}");
            assert_eq!(budget.held_bytes(), 0, "{case}");
        }
        assert_eq!(budget.exceeded(), [3, 0, 0]);
    }

    #[tokio::test]
    async fn a_long_header_is_read_up_to_a_bound() {
        for (count, size, is_read) in
            [(150, 10, true), (40_000, 10, true), (1, 600_000, true), (9, 1 << 20, true), (11, 1 << 20, false)]
        {
            let fields = format!("X: {}\r\n", "a".repeat(size)).repeat(count);
            let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\nok");
            let found = read(response.as_bytes(), &Method::GET).await;
            assert_eq!(found.is_ok(), is_read, "{count} of {size}");
            assert!(is_read || found.is_err_and(|error| error.contains("longer than 10485760 bytes")));
        }
    }
}
