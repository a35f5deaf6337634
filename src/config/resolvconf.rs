//! The upstreams of a host that was told of none: those that the system already uses.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
};

use crate::{endpoint::Endpoint, files};

/// What the system says of itself.
#[derive(Debug, Clone)]
pub struct System {
    /// Files in the format of resolv.conf(5), the first with an upstream for us is taken. Once the first names
    /// ourselves alone, the upstreams stand where whoever used to own that file keeps them.
    pub resolv_confs: Vec<PathBuf>,
    /// Whether an address is one of this host; the port does not matter.
    pub is_local: fn(SocketAddr) -> bool,
}

/// The name servers of a file in the format of resolv.conf(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServers {
    /// Those that queries can be forwarded to; at least one.
    pub servers: Vec<Endpoint>,
    /// Those that lead to ourselves.
    pub ourselves: Vec<Endpoint>,
    /// The file.
    pub file: PathBuf,
}

impl System {
    /// The name servers to forward to. An address that leads to ourselves is passed over.
    pub fn upstreams(&self, listen: &[Endpoint]) -> Option<NameServers> {
        self.resolv_confs.iter().find_map(|file| {
            let (text, _) = files::read(file, files::SMALL).ok()?;
            let servers = name_servers(&String::from_utf8_lossy(&text));
            // libc takes an unspecified address for the server on this host.
            let is_us = |server: &Endpoint| {
                server.ip().to_canonical().is_unspecified() || self.is_us(*server, listen).is_some()
            };
            let (ourselves, servers): (Vec<_>, Vec<_>) = servers.into_iter().partition(is_us);
            (!servers.is_empty()).then(|| NameServers { servers, ourselves, file: file.clone() })
        })
    }

    /// The address of ours that a query to `server` would reach, if there is one.
    pub fn is_us(&self, server: Endpoint, listen: &[Endpoint]) -> Option<Endpoint> {
        let ip = server.ip().to_canonical();
        let is_local = || match (ip, server.resolve()) {
            (IpAddr::V4(_), _) => (self.is_local)(SocketAddr::new(ip, server.port())),
            // No query can be sent there as long as there is no such interface.
            (IpAddr::V6(_), address) => address.is_ok_and(self.is_local),
        };
        listen.iter().copied().find(|own| {
            let reaches = || match own.ip().to_canonical() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4() && is_local(),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => ip.is_ipv6() && is_local(),
                // A link-local address is another host on another link.
                own_ip => own_ip == ip && own.is_on_same_link(&server),
            };
            own.port() == server.port() && reaches()
        })
    }
}

impl Default for System {
    fn default() -> Self {
        Self {
            resolv_confs: [
                "/etc/resolv.conf",
                "/run/systemd/resolve/resolv.conf",
                "/run/NetworkManager/no-stub-resolv.conf",
            ]
            .map(Into::into)
            .to_vec(),
            is_local: is_address_of_this_host,
        }
    }
}

/// The addresses of the `nameserver` lines, each once (resolv.conf(5)). Other lines, and words that are not an address, are
/// passed over, as libc does. A link-local address has its interface behind a `%`, by name or by number.
fn name_servers(text: &str) -> Vec<Endpoint> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next());
        // Brackets and ports are not libc's.
        let address = address.filter(|address| !address.starts_with('['));
        let server = address.and_then(|address| Endpoint::read(address, DNS_PORT).ok());
        if let Some(server) = server.filter(|server| server.port() == DNS_PORT && !servers.contains(server)) {
            servers.push(server);
        }
    }
    servers
}

/// To one of its own addresses a host sends from that very address. Connecting a datagram socket sends nothing.
fn is_address_of_this_host(address: SocketAddr) -> bool {
    let route = || -> io::Result<IpAddr> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok(socket.local_addr()?.ip())
    };
    address.ip().is_loopback() || route().is_ok_and(|source| source == address.ip())
}

const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<Endpoint> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn name_server_lines_are_read_as_libc_reads_them() {
        for (text, expected) in [
            ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", &["192.0.2.53:53", "[2001:db8::53]:53"][..]),
            ("domain example.\n  nameserver\t192.0.2.53  # ours\n", &["192.0.2.53:53"]),
            ("nameserver 192.0.2.53\nnameserver 192.0.2.53", &["192.0.2.53:53"]),
            ("#nameserver 192.0.2.53\n; nameserver 192.0.2.53\nnameserver\nnameserver dns.example\n", &[]),
            ("nameserver fe80::53%2", &["[fe80::53%2]:53"]),
            // It may come later.
            ("nameserver fe80::53%nosuchinterface", &["[fe80::53%nosuchinterface]:53"]),
            ("nameserver fe80::53\nnameserver 2001:db8::1%lo\n", &[]),
            ("nameserver [2001:db8::1]\nnameserver 192.0.2.53:5353\n", &[]),
            ("options nameserver 192.0.2.53", &[]),
        ] {
            assert_eq!(name_servers(text), addresses(expected), "{text:?}");
        }
    }

    #[test]
    fn the_first_file_with_a_server_other_than_ourselves_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let ours = file("ours", "nameserver 127.0.0.1\nnameserver ::1\nnameserver 192.0.2.1\n");
        let mixed = file("mixed", "nameserver 127.0.0.1\nnameserver 127.0.0.53\n");
        let other = file("other", "nameserver 192.0.2.53\n");
        let absent = folder.path().join("absent");
        let is_local = |address: SocketAddr| address.ip().is_loopback() || address.ip() == IpAddr::from([192, 0, 2, 1]);
        let loopback = &["127.0.0.1:53", "[::1]:53", "192.0.2.1:53"][..];
        for (files, listen, expected) in [
            (vec![&ours, &other], loopback, Some((&other, &["192.0.2.53:53"][..]))),
            (vec![&mixed, &other], loopback, Some((&mixed, &["127.0.0.53:53"][..]))),
            (vec![&absent, &other], loopback, Some((&other, &["192.0.2.53:53"][..]))),
            (vec![&ours], loopback, None),
            (vec![&ours], &["0.0.0.0:53", "[::]:53"][..], None),
            (vec![&mixed, &other], &["0.0.0.0:53"][..], Some((&other, &["192.0.2.53:53"][..]))),
            // On another port we are not the ones who are named.
            (vec![&mixed], &["127.0.0.1:5300"][..], Some((&mixed, &["127.0.0.1:53", "127.0.0.53:53"][..]))),
        ] {
            let system = System { resolv_confs: files.iter().map(|&path| path.clone()).collect(), is_local };
            let found = system.upstreams(&addresses(listen)).map(|found| (found.servers, found.file));
            let expected = expected.map(|(file, servers)| (addresses(servers), file.clone()));
            assert_eq!(found, expected, "{files:?} {listen:?}");
        }
    }

    #[test]
    fn unspecified_addresses_are_ourselves_on_any_port() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "nameserver 0.0.0.0\nnameserver ::\nnameserver ::ffff:0.0.0.0\nnameserver 127.0.0.1\n";
        let is_local = |address: SocketAddr| address.ip().is_loopback();
        let system = System { resolv_confs: vec![file.path().into()], is_local };
        let upstreams = |text: &str, listen| {
            fs::write(file.path(), text).unwrap();
            system.upstreams(&addresses(listen))
        };
        let listen = &["127.0.0.1:5300"];
        let found = upstreams(text, listen).unwrap();
        assert_eq!(found.servers, addresses(&["127.0.0.1:53"]));
        assert_eq!(found.ourselves, addresses(&["0.0.0.0:53", "[::]:53", "[::ffff:0.0.0.0]:53"]));
        assert_eq!(upstreams(text, &["[::ffff:127.0.0.1]:53"]), None);
        assert_eq!(upstreams("nameserver 0.0.0.0\n", listen), None);
    }

    #[test]
    fn a_link_local_address_is_ours_on_our_link_alone() {
        let system = System { resolv_confs: Vec::new(), is_local: |address| address.ip() == IpAddr::from(LINK_LOCAL) };
        let lo = fs::read_to_string("/sys/class/net/lo/ifindex").unwrap();
        let numbered = format!("[fe80::1%{}]:53", lo.trim());
        for (server, listen, expected) in [
            ("[fe80::1%lo]:53", "[fe80::1%lo]:53", true),
            (&numbered, "[fe80::1%lo]:53", true),
            ("[fe80::1%eth9]:53", "[fe80::1%lo]:53", false),
            ("[fe80::1%eth9]:53", "[fe80::1%eth9]:53", true),
            ("[fe80::1%lo]:53", "[::]:53", true),
            ("[fe80::2%lo]:53", "[::]:53", false),
            ("[fe80::1%eth9]:53", "[::]:53", false),
        ] {
            let found = system.is_us(server.parse().unwrap(), &addresses(&[listen]));
            assert_eq!(found.is_some(), expected, "{server} {listen}");
        }
    }

    const LINK_LOCAL: [u16; 8] = [0xfe80, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn loopback_is_local_and_a_documentation_address_is_not() {
        assert!(is_address_of_this_host(([127, 0, 0, 53], 53).into()));
        assert!(!is_address_of_this_host(([192, 0, 2, 53], 53).into()));
    }
}
