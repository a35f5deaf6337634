//! A scripted Consul agent in the test process: the part of the HTTP API that is followed, as well or badly as a test says.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{PATIENCE, free_address};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As Consul does.
    Well,
    /// Each response has status 500.
    Status500,
    /// Each response is of status 200, with an index, and says nothing of sense.
    Garbage,
    /// Each response ends before its length.
    Truncated,
    /// Each response is no HTTP.
    NoHttp,
    /// Each connection is closed at its request.
    Closing,
    /// Each response takes this long.
    Slow(Duration),
    /// Requests are read, and not answered.
    Silent,
    /// As Consul does, but without an index.
    Unindexed,
    /// The list of a service's instances has so many entries, each with a check whose output has 100 KB; with its length in the
    /// header, or in chunks.
    Huge { entries: usize, is_chunked: bool },
    /// The list of all services has so many names.
    Names { count: usize },
    /// The list of a service's instances is as for `Huge`, but it ends in the middle, and the connection stays.
    Stalled { entries: usize },
}

/// An agent on an address of its own; it ends when this is dropped.
pub struct Agent {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    ended: AtomicBool,
}

struct State {
    manner: Manner,
    index: u64,
    /// Addresses by service.
    services: BTreeMap<String, Vec<String>>,
    requests: Vec<String>,
}

impl Agent {
    pub fn new(services: &[(&str, &[&str])]) -> Self {
        let address = free_address();
        let listener = TcpListener::bind(address).unwrap();
        let state = State { manner: Manner::Well, index: 10, services: BTreeMap::new(), requests: Vec::new() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), ended: AtomicBool::new(false) });
        let agent = Self { address, shared: shared.clone() };
        services.iter().for_each(|(name, addresses)| agent.set(name, addresses));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || shared.answer_all(stream));
            }
        });
        agent
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how it answers; whoever waits for a change is answered so at once.
    pub fn behave(&self, manner: Manner) {
        self.change(|state| state.manner = manner);
    }

    /// Gives a service these addresses; without any it is gone.
    pub fn set(&self, service: &str, addresses: &[&str]) {
        self.change(|state| {
            state.index += 1;
            match addresses {
                [] => drop(state.services.remove(service)),
                _ => drop(
                    state.services.insert(service.to_owned(), addresses.iter().map(|&text| text.to_owned()).collect()),
                ),
            }
        });
    }

    /// It has lost its state, and counts from the start.
    pub fn forget_all(&self) {
        self.change(|state| {
            state.services.clear();
            state.index = 1;
        });
    }

    /// The paths asked for so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn answer_all(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(request) = lines.next().transpose()? {
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
            self.state.lock().unwrap().requests.push(path.clone());
            let (manner, index, body) = self.respond(&path);
            let length = body.len();
            let head = |status: &str, length: usize| {
                let indexed =
                    if manner == Manner::Unindexed { String::new() } else { format!("X-Consul-Index: {index}\r\n") };
                format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{indexed}Content-Length: {length}\r\n\r\n"
                )
            };
            let response = match manner {
                Manner::Huge { entries, is_chunked } if path.contains("/v1/health/service/") => {
                    write_entries(&mut stream, index, entries, entries, is_chunked)?;
                    continue;
                }
                Manner::Stalled { entries } if path.contains("/v1/health/service/") => {
                    // A part of a list of so many.
                    let _ = write_entries(&mut stream, index, 2 * entries, entries, true);
                    let state = self.state.lock().unwrap();
                    let is_stalled = |state: &mut State| state.manner == manner && !self.ended.load(Ordering::Relaxed);
                    drop(self.changed.wait_while(state, is_stalled).unwrap());
                    return Ok(());
                }
                Manner::Well
                | Manner::Unindexed
                | Manner::Huge { .. }
                | Manner::Stalled { .. }
                | Manner::Names { .. } => head("200 OK", length) + &body,
                Manner::Slow(span) => {
                    thread::sleep(span);
                    head("200 OK", length) + &body
                }
                Manner::Status500 => head("500 Internal Server Error", 9) + "no leader",
                Manner::Garbage => head("200 OK", 9) + "{\"a\": [1,",
                Manner::Truncated => {
                    stream.write_all((head("200 OK", length) + &body[..length / 2]).as_bytes())?;
                    return Ok(());
                }
                Manner::NoHttp => "SSH-2.0-OpenSSH\r\n".repeat(20),
                Manner::Closing => return Ok(()),
                Manner::Silent => {
                    let state = self.state.lock().unwrap();
                    let is_silent =
                        |state: &mut State| state.manner == Manner::Silent && !self.ended.load(Ordering::Relaxed);
                    drop(self.changed.wait_while(state, is_silent).unwrap());
                    return Ok(());
                }
            };
            stream.write_all(response.as_bytes())?;
        }
        Ok(())
    }

    /// What it says by now; if the path says so, it waits for a change first.
    fn respond(&self, path: &str) -> (Manner, u64, String) {
        let (path, parameters) = path.split_once('?').unwrap_or((path, ""));
        let after = parameters.split('&').find_map(|text| text.strip_prefix("index=")?.parse::<u64>().ok());
        let mut state = self.state.lock().unwrap();
        let manner = state.manner;
        if let Some(after) = after {
            // Longer than any test waits for anything.
            let ends = Instant::now() + 6 * PATIENCE;
            while state.index == after
                && state.manner == manner
                && Instant::now() < ends
                && !self.ended.load(Ordering::Relaxed)
            {
                state = self.changed.wait_timeout(state, ends.saturating_duration_since(Instant::now())).unwrap().0;
            }
        }
        let body = match path {
            "/v1/agent/self" => r#"{"Config": {"Datacenter": "dc1", "NodeName": "n"}}"#.to_owned(),
            "/v1/status/leader" => r#""192.0.2.1:8300""#.to_owned(),
            "/v1/catalog/datacenters" => r#"["dc1"]"#.to_owned(),
            "/v1/catalog/nodes" => format!("[{NODE}]"),
            "/v1/catalog/services" => {
                let more = if let Manner::Names { count } = state.manner { count } else { 0 };
                let known = state.services.keys().map(|name| format!("\"{name}\": []"));
                let names: Vec<String> = known.chain((0..more).map(|number| format!("\"{number:x}\":[]"))).collect();
                format!("{{{}}}", names.join(", "))
            }
            _ => {
                let name = path.strip_prefix("/v1/health/service/").unwrap_or_default();
                let addresses = state.services.get(name).into_iter().flatten();
                let entries = addresses.map(|address| {
                    format!(
                        r#"{{"Node": {NODE}, "Checks": [], "Service":
                            {{"ID": "{name}-{address}", "Service": "{name}", "Address": "{address}", "Port": 80}}}}"#
                    )
                });
                format!("[{}]", entries.collect::<Vec<_>>().join(", "))
            }
        };
        (state.manner, state.index, body)
    }
}

/// A list of instances of one service, at 192.0.2.200, or the beginning of one.
fn write_entries(
    stream: &mut TcpStream,
    index: u64,
    entries: usize,
    written: usize,
    is_chunked: bool,
) -> std::io::Result<()> {
    let output = "x".repeat(100_000);
    let entry = |number: usize| {
        let separator = if number == 0 { "[" } else { "," };
        let end = if number + 1 == entries { "]" } else { "" };
        format!(
            r#"{separator}{{"Node": {NODE}, "Service": {{"ID": "{number:06}", "Service": "web", "Address": "192.0.2.200"}},
                "Checks": [{{"CheckID": "c", "Name": "c", "Status": "passing", "ServiceID": "{number:06}",
                "Output": "{output}"}}]}}{end}"#
        )
    };
    let length: usize = if is_chunked { 0 } else { (0..entries).map(|number| entry(number).len()).sum() };
    let framing =
        if is_chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {length}") };
    stream.write_all(format!("HTTP/1.1 200 OK\r\nX-Consul-Index: {index}\r\n{framing}\r\n\r\n").as_bytes())?;
    for text in (0..written).map(entry) {
        let chunk = if is_chunked { format!("{:x}\r\n{text}\r\n", text.len()) } else { text };
        stream.write_all(chunk.as_bytes())?;
    }
    if is_chunked && written == entries { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
}

const NODE: &str = r#"{"Node": "n", "Address": "192.0.2.1", "Datacenter": "dc1", "ModifyIndex": 5}"#;
