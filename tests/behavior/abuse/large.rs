//! What makes responses large.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::harness::{
    catalog::services,
    client::{framed, read_framed},
    message::Message,
};

/// Services with tags: their list takes 600 KB, which is more than the kernel takes in for a connection.
pub fn definitions() -> String {
    let tag = "x".repeat(1000);
    let service = |number: usize| {
        let tags: Vec<String> = (0..10).map(|at| format!("\"{at}{tag}\"")).collect();
        format!(r#"{{"name": "service{number}", "port": 80, "tags": [{}]}}"#, tags.join(", "))
    };
    services(&(0..60).map(service).collect::<Vec<_>>())
}

/// An upstream that answers by TCP, with some 60 KB of text.
pub fn long_winded() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) -> Option<()> {
    let text = format!("\"{}\" ", "x".repeat(250)).repeat(240);
    while let Some(wire) = read_framed(&mut stream) {
        let question = Message::from_wire(&wire).ok()?;
        let answer = format!("{} 60 TXT {text}", question.qname());
        stream.write_all(&framed(&question.respond().answer(&answer).to_wire())).ok()?;
    }
    Some(())
}
