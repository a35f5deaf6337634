//! The least of an HTTP client: one request, the connection closed after it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::PATIENCE;

/// The status and the body.
#[track_caller]
pub fn get(server: SocketAddr, path: &str) -> (u16, String) {
    request(server, "GET", path, "").unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

/// A response with its header.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub body: String,
    header: String,
}

impl Response {
    /// The value of a field of the header.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.header.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// Sends a request with these fields beside the usual ones, and waits up to `limit` for its response.
pub fn send(
    server: SocketAddr,
    request: &str,
    fields: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(limit))?;
    let mut text = format!("{request} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
    if !fields.iter().any(|(name, _)| *name == "Host") {
        text.push_str(&format!("Host: {server}\r\n"));
    }
    fields.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    // In one piece, so that nobody can answer and close the connection before all has come.
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (header, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    Ok(Response { status, body: body.to_owned(), header: header.to_owned() })
}

/// As `get`, with any method and body; an error where nobody answers.
pub fn request(server: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    // HTTP/1.0: the server neither chunks the body nor keeps the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, response.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
}
