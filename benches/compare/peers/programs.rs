//! The programs, and for each its configuration and its command line.

use super::{Blocklist, Own, Peer, Threads, WATERSHED, args};

pub static PEERS: [Peer; 7] = [
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

/// What a response policy zone begins with.
const RPZ_HEAD: &str = "$TTL 3600\n@ SOA localhost. root.localhost. 1 3600 600 86400 3600\n@ NS localhost.\n";
