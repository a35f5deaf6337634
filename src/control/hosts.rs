//! The names by which requests may address this host.
//!
//! A browser sends the name that led it here. An attacker can point a name of their own at this host (DNS rebinding), and a
//! page of theirs could then read what is served. So a request is served only if its `Host` is one that no stranger can own:
//! an address, `localhost`, the name of this host, a name in the catalog's domain, or a name of `control.hosts`.
//!
//! The fully qualified name of this host is taken only from what root sets: the kernel's host and domain name, and the lines
//! of `/etc/hosts` with the host's name. The search list of `/etc/resolv.conf` is not used: DHCP fills it, so a hostile
//! network could choose a domain whose names it owns.

use std::{
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::uri::Authority;
use parking_lot::Mutex;

use super::consul::Feed;
use crate::{catalog::host_name, files, wire::Name};

/// The names of this host, shared by all listeners.
#[derive(Clone)]
pub struct OwnHosts {
    names: Arc<Mutex<Names>>,
    catalog: Feed,
}

struct Names {
    /// Of `control.hosts`.
    configured: Vec<String>,
    of_system: Vec<String>,
    read_at: Instant,
}

impl OwnHosts {
    /// The names that the system, the configuration and the catalog give this host.
    pub fn new(configured: &[String], catalog: Feed) -> Self {
        let names = Names { configured: configured.to_vec(), of_system: system_names(), read_at: Instant::now() };
        Self { names: Arc::new(names.into()), catalog }
    }

    /// Takes over another `control.hosts`, and reads the system's names again.
    pub fn set(&self, configured: &[String]) {
        let mut names = self.names.lock();
        names.configured = configured.to_vec();
        names.read();
    }

    /// True if an authority (`HOST` or `HOST:PORT`) addresses this host.
    pub fn include(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // A name with a final dot is the same name.
        let name = host.strip_suffix('.').unwrap_or(host);
        address.parse::<IpAddr>().is_ok() || self.has(name) || self.is_in_catalog(name)
    }

    fn has(&self, name: &str) -> bool {
        let mut names = self.names.lock();
        if names.has(name) {
            return true;
        }
        // The host may have got its name after we started.
        let is_old = names.read_at.elapsed() >= READ_AGAIN_AFTER;
        if is_old {
            names.read();
        }
        is_old && names.has(name)
    }

    /// True for the domains of the catalog and the names in them, and for the name of our own node.
    fn is_in_catalog(&self, name: &str) -> bool {
        let Some(served) = self.catalog.borrow().clone() else { return false };
        let snapshot = served.live().load();
        let settings = snapshot.settings();
        let is_below = |name: Name| settings.domains().iter().any(|domain| name.is_at_or_below(domain));
        settings.own_node().name().eq_ignore_ascii_case(name) || name.parse().is_ok_and(is_below)
    }
}

impl Names {
    fn read(&mut self) {
        (self.of_system, self.read_at) = (system_names(), Instant::now());
    }

    fn has(&self, name: &str) -> bool {
        let known = self.of_system.iter().chain(&self.configured).map(|known| known.strip_suffix('.').unwrap_or(known));
        ["localhost"].into_iter().chain(known).any(|known| !known.is_empty() && known.eq_ignore_ascii_case(name))
    }
}

/// The names of this host, according to the kernel and `/etc/hosts`.
fn system_names() -> Vec<String> {
    let domain = rustix::system::uname().domainname().to_string_lossy().into_owned();
    // Not UTF-8 in a comment is no reason to know nothing.
    let hosts = files::read(Path::new("/etc/hosts"), files::SMALL).map(|(hosts, _)| hosts).unwrap_or_default();
    names_of_host(&host_name(), &domain, &String::from_utf8_lossy(&hosts))
}

fn names_of_host(host_name: &str, domain: &str, hosts: &str) -> Vec<String> {
    if host_name.is_empty() {
        return Vec::new();
    }
    let short = host_name.split('.').next().unwrap_or_default();
    let mut names = vec![host_name.to_owned(), short.to_owned()];
    if !domain.is_empty() && domain != "(none)" {
        names.push(format!("{short}.{domain}"));
    }
    for line in hosts.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let on_line = || line.split_whitespace().skip(1);
        if on_line().any(|name| name.eq_ignore_ascii_case(host_name) || name.eq_ignore_ascii_case(short)) {
            names.extend(on_line().map(str::to_owned));
        }
    }
    names
}

/// How often a request under an unknown name may make us read the system's names again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn own(host_name: &str, domain: &str, hosts: &str, configured: &[&str]) -> OwnHosts {
        let (_, catalog) = tokio::sync::watch::channel(None);
        let configured = configured.iter().map(|name| (*name).to_owned()).collect();
        let of_system = names_of_host(host_name, domain, hosts);
        let names = Names { configured, of_system, read_at: Instant::now() };
        OwnHosts { names: Arc::new(names.into()), catalog }
    }

    #[test]
    fn only_names_that_no_stranger_owns_are_ours() {
        let hosts = "127.0.0.1 localhost\n192.0.2.7 mon1.corp.example mon1 metrics.corp.example # x.example\n\
                     0.0.0.0 attacker.example\n192.0.2.8 other.example mon10\n";
        let full = own("mon1.example", "lab.example", hosts, &["Prometheus.corp.example", "dotted.example."]);
        for (host, expected) in [
            ("127.0.0.1:8653", true),
            ("192.0.2.1", true),
            ("[::1]:8653", true),
            ("LOCALHOST:8653", true),
            ("mon1.example:8653", true),
            ("mon1.example.:8653", true), // fully qualified
            ("mon1", true),
            ("mon1.lab.example", true),        // the kernel's domain
            ("mon1.corp.example:8653", true),  // /etc/hosts
            ("metrics.corp.example", true),    // on the same line
            ("prometheus.corp.example", true), // control.hosts
            ("dotted.example", true),
            ("other.example", false),
            ("mon10", false),
            ("x.example", false),
            ("attacker.example", false), // in /etc/hosts, but not with our name
            ("mon1.attacker.example", false),
            ("corp.example", false),
            ("localhost.attacker.example", false),
            ("127.0.0.1.attacker.example:8653", false),
            ("user@mon1.attacker.example", false),
            ("", false),
            (".", false),
            ("a b", false),
        ] {
            assert_eq!(full.include(host), expected, "{host}");
        }
        let nameless = own("", "(none)", "127.0.0.1 localhost\n", &[]);
        assert!(!nameless.include("") && !nameless.include("."), "a host without a name");
        assert!(nameless.include("localhost"));
    }
}
