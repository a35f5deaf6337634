//! A network namespace with its own `/etc/resolv.conf`: the daemon on port 53 and clients that know nothing of tests.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{require, run};

/// A namespace joined to the test's own by a pair of interfaces; it is removed when this is dropped. Needs root.
pub struct Netns {
    name: String,
    host: Ipv4Addr,
    guest: Ipv4Addr,
    files: PathBuf,
}

impl Netns {
    /// A namespace whose `resolv.conf` has this text; `None` where the test is to be skipped.
    pub fn new(resolv_conf: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !require::root() {
            return None;
        }
        require::program("ip")?;
        // As many as there are /30s in the block for tests between networks (RFC 2544), which is neither private nor in use
        // anywhere: two processes that run at a time have the same only if their numbers are 4096 apart.
        let number = std::process::id() % 4096 * 8 + NEXT.fetch_add(1, Ordering::Relaxed) % 8;
        let base = 0xc612_0000 + number * 4;
        let name = format!("watershed{number}");
        let netns = Self {
            files: Path::new("/etc/netns").join(&name),
            host: Ipv4Addr::from(base + 1),
            guest: Ipv4Addr::from(base + 2),
            name,
        };
        netns.remove(); // what a killed run may have left
        fs::create_dir_all(&netns.files).unwrap();
        fs::write(netns.files.join("resolv.conf"), resolv_conf).unwrap();
        fs::write(netns.files.join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        fs::write(netns.files.join("hosts"), "127.0.0.1 localhost\n").unwrap();
        let (name, outside) = (&netns.name, netns.interface());
        for command in [
            format!("netns add {name}"),
            format!("link add {outside} type veth peer name inside netns {name}"),
            format!("addr add {}/30 dev {outside}", netns.host),
            format!("link set {outside} up"),
            format!("-n {name} addr add {}/30 dev inside", netns.guest),
            // Needs no detection of duplicates: it is there at once.
            format!("-n {name} addr add 2001:db8::2/64 dev inside nodad"),
            format!("-n {name} addr add 2001:db8::3/64 dev inside nodad"),
            format!("-n {name} link set inside up"),
            format!("-n {name} link set lo up"),
        ] {
            run(Command::new("ip").args(command.split(' ')));
        }
        Some(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The test's own end: an upstream here is reached from inside.
    pub fn host(&self) -> IpAddr {
        self.host.into()
    }

    /// The end inside.
    pub fn guest(&self) -> IpAddr {
        self.guest.into()
    }

    /// Writes the `resolv.conf` anew; processes that are started from now on see it.
    pub fn set_resolv_conf(&self, text: &str) {
        fs::write(self.files.join("resolv.conf"), text).unwrap();
    }

    /// Writes the `hosts` file anew, in place: running processes see it, too.
    pub fn set_hosts(&self, text: &str) {
        fs::write(self.files.join("hosts"), text).unwrap();
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// The name of the test's own end.
    pub fn interface(&self) -> String {
        format!("ws{}", &self.name["watershed".len()..])
    }

    fn remove(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
        let _ = Command::new("ip").args(["link", "del", &self.interface()]).output();
        let _ = fs::remove_dir_all(&self.files);
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.remove();
    }
}
