//! The servers to compare: where their programs are, and how each is started as a forwarder with a cache on one thread,
//! without validation and without a log.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::traffic;

/// What a server is to be set up for.
#[derive(Debug, Clone)]
pub struct Setup {
    /// A folder of its own.
    pub dir: PathBuf,
    pub port: u16,
    pub upstream_port: u16,
    /// How many names its cache has to hold.
    pub names: u32,
    /// Rules beside the one for all names; each of them forwards its suffix to the same upstream.
    pub rules: u32,
}

/// A server.
pub struct Peer {
    pub name: &'static str,
    program: &'static str,
    version_arg: &'static str,
    /// The text of its file of this name.
    file: &'static str,
    config: fn(&Setup) -> String,
    args: fn(&Setup) -> Vec<String>,
}

/// A server whose program is here.
pub struct Installed {
    pub name: &'static str,
    pub version: String,
    kind: Kind,
}

enum Kind {
    Peer(&'static Peer, PathBuf),
    /// A part of this program.
    Limit(&'static str),
}

impl Installed {
    /// Those that are here, watershed first; it is the program at `watershed`.
    pub fn find(watershed: &Path) -> Vec<Self> {
        PEERS.iter().filter_map(|peer| Self::peer(peer, watershed)).collect()
    }

    /// The limit for hits, or for misses.
    pub fn limit(part: &'static str) -> Self {
        Self { name: LIMIT, version: "a part of this program".into(), kind: Kind::Limit(part) }
    }

    fn peer(peer: &'static Peer, watershed: &Path) -> Option<Self> {
        let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        let places = folders.iter().map(|folder| Path::new(folder).join(peer.program));
        let path = if peer.name == WATERSHED {
            watershed.to_owned()
        } else {
            places.into_iter().find(|path| path.is_file())?
        };
        let said = Command::new(&path).arg(peer.version_arg).output().ok()?;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let is_version =
            |word: &&str| word.contains('.') && word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
        let version = said.split_whitespace().find(is_version).unwrap_or("?").trim_start_matches('v');
        Some(Self { name: peer.name, version: version.to_owned(), kind: Kind::Peer(peer, path) })
    }

    pub fn is_limit(&self) -> bool {
        matches!(self.kind, Kind::Limit(_))
    }

    /// Writes its files; how it is then started.
    pub fn prepare(&self, setup: &Setup) -> std::io::Result<(PathBuf, Vec<String>)> {
        match &self.kind {
            Kind::Peer(peer, path) => {
                std::fs::write(setup.dir.join(peer.file), (peer.config)(setup))?;
                Ok((path.clone(), (peer.args)(setup)))
            }
            Kind::Limit(part) => {
                let [own, upstream] = [setup.port, setup.upstream_port].map(|port| format!("127.0.0.1:{port}"));
                Ok((std::env::current_exe()?, vec![(*part).into(), own, upstream]))
            }
        }
    }
}

impl Setup {
    /// `text` for each rule, with its suffix in place of `SUFFIX`, and what is known of the setup filled in.
    fn fill(&self, text: &str, rule: &str) -> String {
        let mut filled = text.to_owned();
        for number in 0..self.rules {
            let _ = write!(filled, "{}", rule.replace("SUFFIX", &traffic::rule(number)));
        }
        let cache_bytes = (u64::from(self.names) * 2048).max(64 << 20);
        for (word, value) in [
            ("DIR", self.dir.display().to_string()),
            ("UPSTREAM_PORT", self.upstream_port.to_string()),
            ("PORT", self.port.to_string()),
            ("CACHE_MB", (cache_bytes >> 20).to_string()),
            ("CACHE_NAMES", (self.names + self.names / 4).max(100_000).to_string()),
        ] {
            filled = filled.replace(word, &value);
        }
        filled
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }
}

fn args<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).into()
}

/// The name of the least that is possible.
pub const LIMIT: &str = "limit";
/// Our own name.
pub const WATERSHED: &str = "watershed";

static PEERS: [Peer; 7] = [
    Peer {
        name: WATERSHED,
        program: "watershed",
        version_arg: "--version",
        file: "watershed.toml",
        config: |setup| {
            let text = r#"
[server]
listen = ["127.0.0.1:PORT"]
workers = 1
[cache]
size = "CACHE_MBMiB"
[control]
listen = "127.0.0.1:0"
[[forward]]
suffixes = ["."]
upstreams = ["127.0.0.1:UPSTREAM_PORT"]
"#;
            setup.fill(text, "[[forward]]\nsuffixes = ['SUFFIX']\nupstreams = ['127.0.0.1:UPSTREAM_PORT']\n")
        },
        args: |setup| args(["run", "--config", &setup.path("watershed.toml")]),
    },
    Peer {
        name: "dnsdist",
        program: "dnsdist",
        version_arg: "--version",
        file: "dnsdist.conf",
        config: |setup| {
            let text = "
setLocal('127.0.0.1:PORT', { reusePort = true })
setACL('127.0.0.0/8')
setUDPMultipleMessagesVectorSize(64)
setMaxUDPOutstanding(65535)
setSecurityPollSuffix('')
newServer({ address = '127.0.0.1:UPSTREAM_PORT', healthCheckMode = 'up' }):setUp()
getPool(''):setCache(newPacketCache(CACHE_NAMES, { maxTTL = 86400, numberOfShards = 1, deferrableInsertLock = false }))
";
            setup.fill(text, "addAction('SUFFIX.', PoolAction(''))\n")
        },
        args: |setup| args(["--supervised", "--disable-syslog", "-C", &setup.path("dnsdist.conf")]),
    },
    Peer {
        name: "Unbound",
        program: "unbound",
        version_arg: "-V",
        file: "unbound.conf",
        config: |setup| {
            let text = r#"
server:
  directory: "DIR"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  verbosity: 0
  do-daemonize: no
  interface: 127.0.0.1
  port: PORT
  do-ip6: no
  do-not-query-localhost: no
  num-threads: 1
  so-rcvbuf: 4m
  so-sndbuf: 4m
  module-config: "iterator"
  minimal-responses: yes
  msg-cache-size: CACHE_MBm
  rrset-cache-size: CACHE_MBm
  msg-cache-slabs: 1
  rrset-cache-slabs: 1
  infra-cache-slabs: 1
  key-cache-slabs: 1
  outgoing-range: 8192
  num-queries-per-thread: 4096
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@UPSTREAM_PORT
"#;
            setup.fill(text, "forward-zone:\n  name: \"SUFFIX\"\n  forward-addr: 127.0.0.1@UPSTREAM_PORT\n")
        },
        args: |setup| args(["-d", "-c", &setup.path("unbound.conf")]),
    },
    Peer {
        name: "PowerDNS Recursor",
        program: "pdns_recursor",
        version_arg: "--version",
        file: "recursor.conf",
        config: |setup| {
            let text = "
local-address=127.0.0.1
local-port=PORT
socket-dir=DIR
dont-query=
allow-from=127.0.0.0/8
dnssec=off
hint-file=no
qname-minimization=no
export-etc-hosts=off
threads=1
pdns-distributes-queries=no
daemon=no
quiet=yes
loglevel=2
disable-syslog=yes
statistics-interval=0
max-mthreads=8192
max-cache-entries=CACHE_NAMES
max-packetcache-entries=CACHE_NAMES
security-poll-suffix=
forward-zones-recurse=.=127.0.0.1:UPSTREAM_PORT";
            setup.fill(text, ",SUFFIX=127.0.0.1:UPSTREAM_PORT") + "\n"
        },
        args: |setup| vec![format!("--config-dir={}", setup.dir.display())],
    },
    Peer {
        name: "Knot Resolver",
        program: "kresd",
        version_arg: "--version",
        file: "kresd.conf",
        config: |setup| {
            let text = "
net.ipv6 = false
log_level('crit')
net.listen('127.0.0.1', PORT, { kind = 'dns' })
cache.open(CACHE_MB * MB, 'lmdb://DIR/cache')
for _, m in ipairs({'ta_update', 'ta_signal_query', 'priming', 'detect_time_skew', 'detect_time_jump'}) do
  pcall(modules.unload, m)
end
trust_anchors.remove('.')
option('NO_MINIMIZE', true)
option('NO_0X20', true)
";
            let rule = "policy.add(policy.suffix(policy.FORWARD({'127.0.0.1@UPSTREAM_PORT'}), {todname('SUFFIX')}))\n";
            setup.fill(text, rule)
                + &setup.fill("policy.add(policy.all(policy.FORWARD({'127.0.0.1@UPSTREAM_PORT'})))\n", "")
        },
        args: |setup| args(["-n", "-c", &setup.path("kresd.conf"), &setup.dir.display().to_string()]),
    },
    Peer {
        name: "BIND 9",
        program: "named",
        version_arg: "-v",
        file: "named.conf",
        config: |setup| {
            let text = r#"
options {
  directory "DIR";
  pid-file none;
  session-keyfile none;
  listen-on port PORT { 127.0.0.1; };
  listen-on-v6 { none; };
  allow-query { 127.0.0.0/8; };
  allow-recursion { 127.0.0.0/8; };
  recursion yes;
  forward only;
  forwarders { 127.0.0.1 port UPSTREAM_PORT; };
  dnssec-validation no;
  qname-minimization off;
  minimal-responses yes;
  empty-zones-enable no;
  querylog no;
  max-cache-size CACHE_MBm;
  recursive-clients 20000;
  fetches-per-server 0;
  udp-receive-buffer 4194304;
  udp-send-buffer 4194304;
};
logging { category default { null; }; };
controls { };
"#;
            let rule =
                "zone \"SUFFIX\" { type forward; forward only; forwarders { 127.0.0.1 port UPSTREAM_PORT; }; };\n";
            setup.fill(text, rule)
        },
        args: |setup| args(["-f", "-n", "1", "-c", &setup.path("named.conf")]),
    },
    Peer {
        name: "dnsmasq",
        program: "dnsmasq",
        version_arg: "--version",
        file: "dnsmasq.conf",
        config: |setup| {
            let text = "
port=PORT
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
no-poll
server=127.0.0.1#UPSTREAM_PORT
cache-size=CACHE_NAMES
dns-forward-max=20000
user=root
pid-file=DIR/pid
log-facility=/dev/null
";
            setup.fill(text, "server=/SUFFIX/127.0.0.1#UPSTREAM_PORT\n")
        },
        args: |setup| args(["-k", "-C", &setup.path("dnsmasq.conf")]),
    },
];
