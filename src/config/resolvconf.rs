//! The upstreams of a host that was told of none: those that the system already uses.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

/// What the system says of itself.
#[derive(Debug, Clone)]
pub struct System {
    /// Files in the format of resolv.conf(5), the first with an upstream for us is taken. Once the first names
    /// ourselves alone, the upstreams stand where whoever used to own that file keeps them.
    pub resolv_confs: Vec<PathBuf>,
    /// Whether an address is one of this host.
    pub is_local: fn(IpAddr) -> bool,
}

impl System {
    /// The name servers to forward to and the file that names them.
    pub fn upstreams(&self, listen: &[SocketAddr]) -> Option<(Vec<SocketAddr>, &Path)> {
        self.resolv_confs.iter().find_map(|file| {
            let text = fs::read(file).ok()?;
            let mut servers = name_servers(&String::from_utf8_lossy(&text));
            servers.retain(|server| self.is_us(*server, listen).is_none());
            (!servers.is_empty()).then_some((servers, file.as_path()))
        })
    }

    /// The address of ours that a query to `server` would reach, if there is one.
    pub fn is_us(&self, server: SocketAddr, listen: &[SocketAddr]) -> Option<SocketAddr> {
        let server_address = server.ip().to_canonical();
        listen.iter().copied().find(|own| {
            let reaches = match own.ip().to_canonical() {
                IpAddr::V4(own) if own.is_unspecified() => server_address.is_ipv4() && (self.is_local)(server_address),
                IpAddr::V6(own) if own.is_unspecified() => server_address.is_ipv6() && (self.is_local)(server_address),
                own => own == server_address,
            };
            own.port() == server.port() && reaches
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

/// The addresses of the `nameserver` lines, each once (resolv.conf(5)); other lines, and what is no address, are
/// passed over, as libc does.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next()) else {
            continue;
        };
        let server = match address.split_once('%') {
            None => address.parse().ok().map(|address| SocketAddr::new(address, DNS_PORT)),
            Some((address, scope)) => {
                scope_id(scope).and_then(|id| format!("[{address}%{id}]:{DNS_PORT}").parse().ok())
            }
        };
        if let Some(server) = server.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
    }
    servers
}

/// The number of an interface, given by number or by name.
fn scope_id(scope: &str) -> Option<u32> {
    let by_name = || fs::read_to_string(Path::new("/sys/class/net").join(scope).join("ifindex"));
    scope.parse().ok().or_else(|| by_name().ok()?.trim().parse().ok())
}

/// To one of its own addresses a host sends from that very address. Connecting a datagram socket sends nothing.
fn is_address_of_this_host(address: IpAddr) -> bool {
    let route = || -> io::Result<IpAddr> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect((address, DNS_PORT))?;
        Ok(socket.local_addr()?.ip())
    };
    address.is_loopback() || route().is_ok_and(|source| source == address)
}

const DNS_PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
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
            ("nameserver fe80::53%nosuchinterface", &[]),
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
        let is_local = |address: IpAddr| address.is_loopback() || address == IpAddr::from([192, 0, 2, 1]);
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
            let found = system.upstreams(&addresses(listen));
            let expected = expected.map(|(file, servers)| (addresses(servers), file.as_path()));
            assert_eq!(found, expected, "{files:?} {listen:?}");
        }
    }

    #[test]
    fn loopback_is_local_and_a_documentation_address_is_not() {
        assert!(is_address_of_this_host([127, 0, 0, 53].into()));
        assert!(!is_address_of_this_host([192, 0, 2, 53].into()));
    }
}
