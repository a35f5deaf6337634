//! The servers to compare: where their programs are, and how each is started as a forwarder with a cache, without
//! validation and without a log.

use std::{
    fmt::Write,
    fs,
    io::{self, BufWriter, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{changes, traffic};

/// What a server is to be set up for.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub upstream: SocketAddr,
    /// How many names its cache has to hold.
    pub names: u32,
    /// Rules beside the one for all names; each of them forwards its suffix to the same upstream.
    pub rules: u32,
    pub threads: u32,
    pub own: Own,
}

/// What a server knows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Nothing,
    /// That so many names do not exist.
    Blocked(u32),
    /// So many services.
    Services(u32),
}

/// Where it is set up.
pub struct Place<'a> {
    pub setup: &'a Setup,
    /// A folder of its own.
    pub dir: &'a Path,
    pub port: u16,
}

/// A server.
pub struct Peer {
    pub name: &'static str,
    program: &'static str,
    version_arg: &'static str,
    /// The text of its file of this name.
    file: &'static str,
    config: fn(&Place) -> String,
    args: fn(&Place) -> Vec<String>,
    threads: Threads,
    blocklist: Blocklist,
}

/// How many threads a server can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    Many,
}

/// How a server is told of names that do not exist: a file of them.
struct Blocklist {
    head: &'static str,
    /// For each `OWNER`.
    line: &'static str,
    /// What then follows in the configuration.
    config: &'static str,
    /// A further file, if that names one, and its text.
    beside: (&'static str, &'static str),
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

    /// Whether it can have so many threads, and know such things by itself.
    pub fn can(&self, threads: u32, own: Own) -> bool {
        match &self.kind {
            Kind::Limit(_) => own == Own::Nothing,
            Kind::Peer(peer, _) => {
                (threads == 1 || peer.threads == Threads::Many)
                    && (peer.name == WATERSHED || !matches!(own, Own::Services(_)))
            }
        }
    }

    /// Writes its files; how it is then started.
    pub fn prepare(&self, place: &Place) -> io::Result<(PathBuf, Vec<String>)> {
        match &self.kind {
            Kind::Peer(peer, path) => {
                fs::write(place.dir.join(peer.file), (peer.config)(place) + &peer.prepare_own(place)?)?;
                Ok((path.clone(), (peer.args)(place)))
            }
            Kind::Limit(part) => {
                let own = format!("127.0.0.1:{}", place.port);
                let more = match *part {
                    ANSWER => place.setup.threads.to_string(),
                    _ => place.setup.upstream.to_string(),
                };
                Ok((std::env::current_exe()?, vec![(*part).into(), own, more]))
            }
        }
    }
}

impl Peer {
    /// Writes the files of what it knows by itself; what it takes in the configuration.
    fn prepare_own(&self, place: &Place) -> io::Result<String> {
        let list = &self.blocklist;
        match place.setup.own {
            Own::Nothing => Ok(String::new()),
            Own::Blocked(count) => {
                let mut file = BufWriter::new(fs::File::create(place.dir.join("blocked"))?);
                file.write_all(list.head.as_bytes())?;
                for number in traffic::BLOCKED..traffic::BLOCKED + count {
                    file.write_all(list.line.replace("OWNER", &traffic::qname(number, 0)).as_bytes())?;
                }
                file.flush()?;
                if !list.beside.0.is_empty() {
                    fs::write(place.dir.join(list.beside.0), place.fill(list.beside.1))?;
                }
                Ok(place.fill(list.config))
            }
            Own::Services(count) => {
                let services = place.dir.join("services");
                fs::create_dir(&services)?;
                for service in 0..count {
                    let text = changes::definitions(service, traffic::INSTANCES.into(), 1);
                    fs::write(services.join(format!("s{service}.json")), text)?;
                }
                let config = "[catalog]\nnode_name = \"bench\"\naddress = \"192.0.2.1\"\n\
                              [catalog.files]\ndirectory = \"DIR/services\"\n";
                Ok(place.fill(config))
            }
        }
    }
}

impl Place<'_> {
    /// `text` with what is known of the place filled in.
    fn fill(&self, text: &str) -> String {
        self.fill_rules(text, "")
    }

    /// `text` for each rule, with its suffix in place of `SUFFIX`, and what is known of the setup filled in.
    fn fill_rules(&self, text: &str, rule: &str) -> String {
        let Setup { upstream, names, rules, threads, .. } = *self.setup;
        let mut filled = text.to_owned();
        for number in 0..rules {
            let _ = write!(filled, "{}", rule.replace("SUFFIX", &traffic::rule(number)));
        }
        let cache_bytes = (u64::from(names) * 2048).max(64 << 20);
        for (word, value) in [
            ("DIR", self.dir.display().to_string()),
            ("UPSTREAM_IP", upstream.ip().to_string()),
            ("UPSTREAM_PORT", upstream.port().to_string()),
            ("PORT", self.port.to_string()),
            ("CACHE_MB", (cache_bytes >> 20).to_string()),
            ("CACHE_NAMES", (names + names / 4).max(1000).to_string()),
            ("THREADS", threads.to_string()),
            ("SHARDS", if threads == 1 { "1".into() } else { "16".into() }),
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

const RPZ_HEAD: &str = "$TTL 3600\n@ SOA localhost. root.localhost. 1 3600 600 86400 3600\n@ NS localhost.\n";
/// The part of this program that answers.
pub const ANSWER: &str = "answer";
/// The part of this program that forwards.
pub const FORWARD: &str = "forward";
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
        config: |place| {
            let text = r#"
[server]
listen = ["127.0.0.1:PORT"]
workers = THREADS
[cache]
size = "CACHE_MBMiB"
[control]
listen = "127.0.0.1:0"
[[forward]]
suffixes = ["."]
upstreams = ["UPSTREAM_IP:UPSTREAM_PORT"]
"#;
            place.fill_rules(text, "[[forward]]\nsuffixes = ['SUFFIX']\nupstreams = ['UPSTREAM_IP:UPSTREAM_PORT']\n")
        },
        args: |place| args(["run", "--config", &place.path("watershed.toml")]),
        threads: Threads::Many,
        blocklist: Blocklist {
            head: "$TTL 60\n",
            line: "OWNER. CNAME .\n",
            config: "[[zone]]\napex = \".\"\nfile = \"DIR/blocked\"\nmode = \"overlay\"\n",
            beside: ("", ""),
        },
    },
    Peer {
        name: "dnsdist",
        program: "dnsdist",
        version_arg: "--version",
        file: "dnsdist.conf",
        config: |place| {
            let text = "
setLocal('127.0.0.1:PORT', { reusePort = true, maxInFlight = 1000 })
for _ = 2, THREADS do addLocal('127.0.0.1:PORT', { reusePort = true }) end
setACL('127.0.0.0/8')
setUDPMultipleMessagesVectorSize(64)
setMaxUDPOutstanding(65535)
setSecurityPollSuffix('')
setMaxTCPClientThreads(THREADS)
newServer({ address = 'UPSTREAM_IP:UPSTREAM_PORT', healthCheckMode = 'up' }):setUp()
getPool(''):setCache(newPacketCache(CACHE_NAMES, { maxTTL = 86400, numberOfShards = SHARDS, deferrableInsertLock = false }))
";
            place.fill_rules(text, "addAction('SUFFIX.', PoolAction(''))\n")
        },
        args: |place| args(["--supervised", "--disable-syslog", "-C", &place.path("dnsdist.conf")]),
        threads: Threads::Many,
        blocklist: Blocklist {
            head: "",
            line: "OWNER\n",
            config: "blocked = newSuffixMatchNode()\nfor name in io.lines('DIR/blocked') do blocked:add(newDNSName(name)) end\n\
                     addAction(SuffixMatchNodeRule(blocked), RCodeAction(DNSRCode.NXDOMAIN))\n",
            beside: ("", ""),
        },
    },
    Peer {
        name: "Unbound",
        program: "unbound",
        version_arg: "-V",
        file: "unbound.conf",
        config: |place| {
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
  num-threads: THREADS
  so-rcvbuf: 4m
  so-sndbuf: 4m
  module-config: "iterator"
  minimal-responses: yes
  msg-cache-size: CACHE_MBm
  rrset-cache-size: CACHE_MBm
  msg-cache-slabs: SHARDS
  rrset-cache-slabs: SHARDS
  infra-cache-slabs: SHARDS
  key-cache-slabs: SHARDS
  outgoing-range: 8192
  num-queries-per-thread: 4096
  incoming-num-tcp: 1024
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: UPSTREAM_IP@UPSTREAM_PORT
"#;
            place.fill_rules(text, "forward-zone:\n  name: \"SUFFIX\"\n  forward-addr: UPSTREAM_IP@UPSTREAM_PORT\n")
        },
        args: |place| args(["-d", "-c", &place.path("unbound.conf")]),
        threads: Threads::Many,
        blocklist: Blocklist {
            head: "server:\n",
            line: "local-zone: \"OWNER\" always_nxdomain\n",
            config: "include: \"DIR/blocked\"\n",
            beside: ("", ""),
        },
    },
    Peer {
        name: "PowerDNS Recursor",
        program: "pdns_recursor",
        version_arg: "--version",
        file: "recursor.conf",
        config: |place| {
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
threads=THREADS
pdns-distributes-queries=no
reuseport=yes
max-tcp-clients=1024
daemon=no
quiet=yes
loglevel=2
disable-syslog=yes
statistics-interval=0
max-mthreads=8192
max-cache-entries=CACHE_NAMES
max-packetcache-entries=CACHE_NAMES
security-poll-suffix=
forward-zones-recurse=.=UPSTREAM_IP:UPSTREAM_PORT";
            place.fill_rules(text, ",SUFFIX=UPSTREAM_IP:UPSTREAM_PORT") + "\n"
        },
        args: |place| vec![format!("--config-dir={}", place.dir.display())],
        threads: Threads::Many,
        blocklist: Blocklist {
            head: RPZ_HEAD,
            line: "OWNER CNAME .\n",
            config: "lua-config-file=DIR/rpz.lua\n",
            beside: ("rpz.lua", "rpzFile('DIR/blocked', { policyName = 'blocked' })\n"),
        },
    },
    Peer {
        name: "Knot Resolver",
        program: "kresd",
        version_arg: "--version",
        file: "kresd.conf",
        config: |place| {
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
            let rule =
                "policy.add(policy.suffix(policy.FORWARD({'UPSTREAM_IP@UPSTREAM_PORT'}), {todname('SUFFIX')}))\n";
            // The first policy that fits counts.
            let block = match place.setup.own {
                Own::Blocked(_) => "policy.add(policy.rpz(policy.DENY, 'DIR/blocked', false))\n",
                _ => "",
            };
            place.fill_rules(&(text.to_owned() + block), rule)
                + &place.fill("policy.add(policy.all(policy.FORWARD({'UPSTREAM_IP@UPSTREAM_PORT'})))\n")
        },
        args: |place| args(["-n", "-c", &place.path("kresd.conf"), &place.dir.display().to_string()]),
        threads: Threads::One,
        blocklist: Blocklist { head: RPZ_HEAD, line: "OWNER CNAME .\n", config: "", beside: ("", "") },
    },
    Peer {
        name: "BIND 9",
        program: "named",
        version_arg: "-v",
        file: "named.conf",
        config: |place| {
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
  forwarders { UPSTREAM_IP port UPSTREAM_PORT; };
  dnssec-validation no;
  qname-minimization off;
  minimal-responses yes;
  empty-zones-enable no;
  querylog no;
  max-cache-size CACHE_MBm;
  recursive-clients 20000;
  fetches-per-server 0;
  clients-per-query 0;
  max-clients-per-query 0;
  udp-receive-buffer 4194304;
  udp-send-buffer 4194304;
  tcp-clients 1000;
  tcp-listen-queue 1000;
  RESPONSE_POLICY
};
logging { category default { null; }; };
controls { };
"#;
            let rule =
                "zone \"SUFFIX\" { type forward; forward only; forwarders { UPSTREAM_IP port UPSTREAM_PORT; }; };\n";
            let policy = match place.setup.own {
                Own::Blocked(_) => "response-policy { zone \"blocked\"; } qname-wait-recurse no;",
                _ => "",
            };
            place.fill_rules(&text.replace("RESPONSE_POLICY", policy), rule)
        },
        args: |place| args(["-f", "-n", &place.setup.threads.to_string(), "-c", &place.path("named.conf")]),
        threads: Threads::Many,
        blocklist: Blocklist {
            head: RPZ_HEAD,
            line: "OWNER CNAME .\n",
            config: "zone \"blocked\" { type primary; file \"DIR/blocked\"; };\n",
            beside: ("", ""),
        },
    },
    Peer {
        name: "dnsmasq",
        program: "dnsmasq",
        version_arg: "--version",
        file: "dnsmasq.conf",
        config: |place| {
            let text = "
port=PORT
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
no-poll
server=UPSTREAM_IP#UPSTREAM_PORT
cache-size=CACHE_NAMES
dns-forward-max=20000
max-tcp-connections=200
user=root
pid-file=DIR/pid
log-facility=/dev/null
";
            place.fill_rules(text, "server=/SUFFIX/UPSTREAM_IP#UPSTREAM_PORT\n")
        },
        args: |place| args(["-k", "-C", &place.path("dnsmasq.conf")]),
        threads: Threads::One,
        blocklist: Blocklist {
            head: "",
            line: "address=/OWNER/\n",
            config: "conf-file=DIR/blocked\n",
            beside: ("", ""),
        },
    },
];
