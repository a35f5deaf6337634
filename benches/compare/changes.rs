//! What a change costs the catalog, by how many instances it has: one of many definition files is written anew.

use std::{
    fmt::Write,
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use watershed::wire::{Class, Name, Response, Rtype, UpstreamQuery};

use super::server::{Process, SERVER_CORE, free_port, wait_for};

/// The CPU time of the daemon for each of so many changes, in microseconds.
pub fn measure(watershed: &Path, instances: u32, changes: u16, upstream: SocketAddr) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let services = dir.path().join("services");
    fs::create_dir(&services)?;
    for service in 0..instances / INSTANCES {
        fs::write(services.join(format!("s{service}.json")), definitions(service, INSTANCES, 1))?;
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let config = format!(
        "[server]\nlisten = [\"{address}\"]\nworkers = 1\n[control]\nlisten = \"127.0.0.1:0\"\n[zones]\nhosts = []\n\
         [[forward]]\nsuffixes = [\".\"]\nupstreams = [\"{upstream}\"]\n\
         [catalog]\nnode_name = \"bench\"\naddress = \"192.0.2.1\"\n[catalog.files]\ndirectory = \"{}\"\n",
        services.display()
    );
    let file = dir.path().join("watershed.toml");
    fs::write(&file, config)?;
    let args = ["run".to_owned(), "--config".to_owned(), file.display().to_string()];
    let process = Process::start(watershed, &args, SERVER_CORE)?;
    wait_for(address)?;
    // What happens but once is over with the first change.
    change(&services, 2)?;
    see(address, 2)?;
    let before = process.cpu_nanos()?;
    for port in 3..3 + changes {
        change(&services, port)?;
        // Longer than what is gathered into one change.
        thread::sleep(Duration::from_millis(250));
    }
    see(address, 2 + changes)?;
    Ok((process.cpu_nanos()? - before) as f64 / 1000.0 / f64::from(changes))
}

/// As editors do it: beside it, then in its place.
fn change(services: &Path, port: u16) -> anyhow::Result<()> {
    let next = services.join("next");
    fs::write(&next, definitions(0, INSTANCES, port))?;
    Ok(fs::rename(next, services.join("s0.json"))?)
}

/// The file of a service: instance after instance, with addresses that count from 192.0.2.1.
pub fn definitions(service: u32, instances: u32, port: u16) -> String {
    let mut text = String::from("{\"services\": [");
    for instance in 1..=instances {
        let comma = if instance > 1 { "," } else { "" };
        let _ = write!(
            text,
            "{comma}\n{{\"name\": \"s{service}\", \"id\": \"s{service}-{instance}\", \"address\": \"192.0.2.{instance}\", \
             \"port\": {port}}}"
        );
    }
    text + "]}"
}

/// Waits until the answers have this port.
fn see(server: SocketAddr, port: u16) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let qname: Name = "s0.service.consul".parse().context("no name")?;
    let (mut query, mut reply) = (Vec::new(), [0; 4096]);
    UpstreamQuery { id: 1, qname: &qname, qtype: Rtype::SRV, qclass: Class::IN, checking_disabled: false, edns: None }
        .write(&mut query);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        socket.send(&query)?;
        let length = socket.recv(&mut reply)?;
        let response = Response::read(&reply[..length])?.response;
        let ports = response.records().filter(|record| record.rtype == Rtype::SRV);
        let mut ports =
            ports.filter_map(|record| response.message().get(record.rdata.start + 4..record.rdata.start + 6));
        if ports.next() == Some(&port.to_be_bytes()[..]) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("the change of the port to {port} is not answered")
}

/// Of each service, and each service has a file.
const INSTANCES: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(30);
