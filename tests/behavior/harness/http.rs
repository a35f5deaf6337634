//! The least of an HTTP client: one GET, the connection closed after it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use super::PATIENCE;

/// The status and the body.
#[track_caller]
pub fn get(server: SocketAddr, path: &str) -> (u16, String) {
    request(server, "GET", path, "").unwrap_or_else(|error| panic!("GET {path}: {error}"))
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
