//! Where attacks come from: a network namespace in which any address of some networks may be bound.

use std::{
    env,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::harness::{netns::Netns, *};

/// Where the connections of an attack come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    OneIpv4,
    /// Each in a /24 of its own.
    ManyIpv4,
    /// Any number of addresses of one /64.
    OneIpv6Network,
    ManyIpv6Networks,
    /// One that no attack comes from.
    Honest,
}

impl Origin {
    /// The address of its connection with this number.
    pub fn address(self, number: usize) -> IpAddr {
        let ipv6 =
            |network: usize, host: usize| Ipv6Addr::new(0x2001, 0xdb8, 1, network as u16, 0, 0, 0, host as u16 + 1);
        match self {
            Self::OneIpv4 => [203, 0, 113, 1].into(),
            Self::ManyIpv4 => [100, 64, number as u8, 1].into(),
            Self::OneIpv6Network => ipv6(0, number).into(),
            Self::ManyIpv6Networks => ipv6(number, 0).into(),
            Self::Honest => [198, 51, 100, 1].into(),
        }
    }

    /// The address at which it reaches a server that listens at all of them.
    pub fn server(self) -> IpAddr {
        match self {
            Self::OneIpv4 | Self::ManyIpv4 | Self::Honest => [203, 0, 113, 2].into(),
            Self::OneIpv6Network | Self::ManyIpv6Networks => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1).into(),
        }
    }
}

/// A socket at this address, which no interface needs to have.
pub fn bound(from: IpAddr, kind: Type, protocol: Protocol) -> Socket {
    let from = SocketAddr::new(from, 0);
    let socket = Socket::new(Domain::for_address(from), kind, Some(protocol)).unwrap();
    socket.set_nonblocking(true).unwrap();
    if from.is_ipv6() {
        socket.set_freebind_v6(true).unwrap();
    }
    socket.bind(&from.into()).unwrap_or_else(|error| panic!("{from}: {error}"));
    socket
}

/// A TCP connection from this address that takes in as little as possible before it is read.
pub async fn connect(from: IpAddr, server: SocketAddr) -> Option<TcpStream> {
    let socket = bound(from, Type::STREAM, Protocol::TCP);
    socket.set_recv_buffer_size(2048).unwrap();
    timeout(PATIENCE, TcpSocket::from_std_stream(socket.into()).connect(server)).await.ok()?.ok()
}

/// Runs a test again as a process within such a namespace. Returns true there, and false where the test has to end.
pub fn is_within_namespace(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let Some(netns) = Netns::new("") else { return false };
    for words in [
        "addr add 203.0.113.1/24 dev lo",
        "addr add 203.0.113.2/24 dev lo",
        "addr add 198.51.100.1/24 dev lo",
        "addr add 100.64.0.1/16 dev lo",
        "-6 addr add 2001:db8:2::1/64 dev lo nodad",
        "-6 route add local 2001:db8:1::/48 dev lo",
    ] {
        run(Command::new("ip").args(["-n", netns.name()]).args(words.split(' ')));
    }
    // `ip netns exec` would hide the cgroups.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", netns.name())).arg(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "it failed within the namespace");
    false
}

/// How long an attacker tries to send what the daemon does not take in.
pub const SENDING: Duration = Duration::from_millis(200);
/// Set in the process that runs within the namespace.
const INSIDE: &str = "WATERSHED_TEST_INSIDE";
