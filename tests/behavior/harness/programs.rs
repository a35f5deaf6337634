//! The programs of others: servers that hold a real zone, and a real Consul; each on an address of its own.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Message, exchange_udp, free_address, free_port, freeze, http, netns::Netns, query, require, run, thaw, wait_until,
};

/// A program that runs until this is dropped, in a folder of its own.
pub struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    /// Starts it with its outputs in a file of the folder.
    pub fn start(command: &mut Command, folder: TempDir) -> Self {
        Self { child: logged(command, folder.path()), folder }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a farewell.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts another in the place of one that was killed.
    pub fn restart(&mut self, command: &mut Command) {
        self.child = logged(command, self.folder.path());
    }

    #[track_caller]
    pub fn demand_running(&mut self) {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "it ended: {status:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            eprintln!("--- log of a program\n{log}\n---");
        }
    }
}

/// A server that holds zones.
pub struct Program {
    name: String,
    address: SocketAddr,
    process: Process,
}

impl Program {
    /// BIND 9 with these zones, apex and text of each, below an almost empty root zone.
    pub fn bind(zones: &[(&str, &str)]) -> Option<Self> {
        let named = require::program("named")?;
        // It binds only addresses that an interface has, which 127.0.0.2 and up are not for it.
        let address = free_port();
        let folder = folder_with(zones);
        let at = folder.path().display();
        let mut config = format!(
            "options {{ directory \"{at}\"; listen-on port {} {{ {}; }}; listen-on-v6 {{ none; }};\n\
             pid-file none; session-keyfile none; recursion no; allow-query {{ any; }}; notify no;\n\
             dnssec-validation no; minimal-responses no;\n\
             check-names primary ignore; check-integrity no; }};\ncontrols {{ }};\n",
            address.port(),
            address.ip(),
        );
        fs::write(folder.path().join("..zone"), ROOT_ZONE).unwrap();
        for apex in zones.iter().map(|(apex, _)| *apex).chain(["."]) {
            config.push_str(&format!("zone \"{apex}\" {{ type primary; file \"{at}/{apex}.zone\"; }};\n"));
        }
        Some(Self::start_named(named, &config, address, folder, (&format!("{} SOA", zones[0].0), "NOERROR")))
    }

    /// BIND 9 as a forwarder: the names below each suffix go to these servers and to no others. It serves what is stale if
    /// they fail.
    pub fn bind_forwarding(rules: &[(String, Vec<SocketAddr>)]) -> Option<Self> {
        let options = "qname-minimization off; resolver-query-timeout 4000; stale-answer-enable yes;\n\
                       stale-cache-enable yes; stale-answer-client-timeout off;";
        Self::bind_forwarder(rules, options, DENIED)
    }

    /// BIND 9 as a forwarder of all names, with these further options.
    pub fn bind_forwarding_all(upstream: SocketAddr, options: &str) -> Option<Self> {
        let options = format!("version none; server-id none; empty-zones-enable no; {options}");
        Self::bind_forwarder(&[(".".to_owned(), vec![upstream])], &options, ANSWERED)
    }

    /// BIND 9 as a forwarder of all names, with response policy zones, name and text of each, in this order.
    pub fn bind_with_policies(upstream: SocketAddr, policies: &[(&str, &str)]) -> Option<Self> {
        let folder = folder_with(policies);
        let listed: String = policies.iter().map(|(name, _)| format!("zone \"{name}\"; ")).collect();
        let options = format!("response-policy {{ {listed}}}; empty-zones-enable no;");
        let at = folder.path().display();
        let zone = |(name, _): &(&str, &str)| {
            format!("zone \"{name}\" {{ type primary; check-names ignore; file \"{at}/{name}.zone\"; }};\n")
        };
        let zones: String = policies.iter().map(zone).collect();
        let rules = [(".".to_owned(), vec![upstream])];
        Self::bind_forwarder_in(folder, &rules, &options, &zones, ANSWERED)
    }

    fn bind_forwarder(rules: &[(String, Vec<SocketAddr>)], options: &str, probe: (&str, &str)) -> Option<Self> {
        Self::bind_forwarder_in(folder_with(&[]), rules, options, "", probe)
    }

    fn bind_forwarder_in(
        folder: TempDir,
        rules: &[(String, Vec<SocketAddr>)],
        options: &str,
        zones: &str,
        probe: (&str, &str),
    ) -> Option<Self> {
        let named = require::program("named")?;
        let address = free_port();
        let mut config = format!(
            "options {{ directory \"{}\"; listen-on port {} {{ {}; }}; listen-on-v6 {{ none; }};\n\
             pid-file none; session-keyfile none; recursion yes; allow-query {{ any; }}; dnssec-validation no;\n\
             {options} }};\ncontrols {{ }};\n{zones}",
            folder.path().display(),
            address.port(),
            address.ip(),
        );
        for (suffix, servers) in rules {
            let servers: String =
                servers.iter().map(|server| format!("{} port {}; ", server.ip(), server.port())).collect();
            config.push_str(&format!(
                "zone \"{suffix}\" {{ type forward; forward only; forwarders {{ {servers}}}; }};\n"
            ));
        }
        Some(Self::start_named(named, &config, address, folder, probe))
    }

    fn start_named(named: PathBuf, config: &str, address: SocketAddr, folder: TempDir, probe: (&str, &str)) -> Self {
        fs::write(folder.path().join("named.conf"), config).unwrap();
        let mut command = Command::new(named);
        command.args(["-g", "-n", "1", "-c"]).arg(folder.path().join("named.conf"));
        Self::start_until(command, address, folder, probe)
    }

    /// Knot DNS with these zones.
    pub fn knot(zones: &[(&str, &str)]) -> Option<Self> {
        let knotd = require::program("knotd")?;
        let address = free_address();
        let folder = folder_with(zones);
        let at = folder.path().display();
        let mut config = format!(
            "server:\n    listen: {}@{}\n    rundir: {at}\n    udp-workers: 1\n    tcp-workers: 2\n\
             \x20   background-workers: 1\ndatabase:\n    storage: {at}\n\
             log:\n  - target: stderr\n    any: info\nzone:\n",
            address.ip(),
            address.port(),
        );
        for (apex, _) in zones {
            config.push_str(&format!("  - domain: {apex}\n    file: {at}/{apex}.zone\n    zonefile-sync: -1\n"));
        }
        fs::write(folder.path().join("knot.conf"), config).unwrap();
        let mut command = Command::new(knotd);
        command.arg("-c").arg(folder.path().join("knot.conf"));
        Some(Self::start(command, address, folder, &format!("{} SOA", zones[0].0)))
    }

    /// Unbound with these zones.
    pub fn unbound(zones: &[(&str, &str)]) -> Option<Self> {
        let unbound = require::program("unbound")?;
        let address = free_address();
        let folder = folder_with(zones);
        let at = folder.path().display();
        let mut config = unbound_config(address, folder.path());
        for (apex, _) in zones {
            config.push_str(&format!(
                "auth-zone:\n  name: \"{apex}\"\n  zonefile: \"{at}/{apex}.zone\"\n  for-downstream: yes\n\
                 \x20 for-upstream: no\n  fallback-enabled: no\n",
            ));
        }
        Some(Self::start_unbound(unbound, &config, address, folder, (&format!("{} SOA", zones[0].0), "NOERROR")))
    }

    /// Unbound as a forwarder, likewise. It mixes letters and serves what is stale if the upstreams fail.
    pub fn unbound_forwarding(rules: &[(String, Vec<SocketAddr>)]) -> Option<Self> {
        let options = "  use-caps-for-id: yes\n  qname-minimisation: no\n  serve-expired: yes\n\
                       \x20 serve-expired-client-timeout: 1800\n";
        Self::unbound_forwarder(rules, options, DENIED)
    }

    /// Unbound as a forwarder of all names.
    pub fn unbound_forwarding_all(upstream: SocketAddr) -> Option<Self> {
        let options = "  hide-version: yes\n  hide-identity: yes\n";
        Self::unbound_forwarder(&[(".".to_owned(), vec![upstream])], options, ANSWERED)
    }

    /// Unbound as a forwarder of all names that leaves out the addresses of these networks.
    pub fn unbound_guarded(upstream: SocketAddr, private: &[&str]) -> Option<Self> {
        let options: String = private.iter().map(|network| format!("  private-address: {network}\n")).collect();
        Self::unbound_forwarder(&[(".".to_owned(), vec![upstream])], &options, ANSWERED)
    }

    fn unbound_forwarder(rules: &[(String, Vec<SocketAddr>)], options: &str, probe: (&str, &str)) -> Option<Self> {
        let unbound = require::program("unbound")?;
        let (address, folder) = (free_address(), folder_with(&[]));
        let mut config = format!("{}server:\n{options}", unbound_config(address, folder.path()));
        for (suffix, servers) in rules {
            let servers: String =
                (servers.iter()).map(|server| format!("  forward-addr: {}@{}\n", server.ip(), server.port())).collect();
            config.push_str(&format!("forward-zone:\n  name: \"{suffix}\"\n{servers}"));
        }
        Some(Self::start_unbound(unbound, &config, address, folder, probe))
    }

    fn start_unbound(
        unbound: PathBuf,
        config: &str,
        address: SocketAddr,
        folder: TempDir,
        probe: (&str, &str),
    ) -> Self {
        fs::write(folder.path().join("unbound.conf"), config).unwrap();
        let mut command = Command::new(unbound);
        command.args(["-d", "-c"]).arg(folder.path().join("unbound.conf"));
        Self::start_until(command, address, folder, probe)
    }

    fn start(command: Command, address: SocketAddr, folder: TempDir, probe: &str) -> Self {
        Self::start_until(command, address, folder, (probe, "NOERROR"))
    }

    /// Waits until it answers this question with this code.
    fn start_until(
        mut command: Command,
        address: SocketAddr,
        folder: TempDir,
        (probe, expected): (&str, &str),
    ) -> Self {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut program = Self { name, address, process: Process::start(&mut command, folder) };
        let probe = query(probe);
        wait_until("a server that answers", START_LIMIT, || {
            program.process.demand_running();
            let reply = exchange_udp(address, &probe.to_wire(), Duration::from_millis(200))?;
            (Message::from_wire(&reply).ok()?.rcode_name() == expected).then_some(())
        });
        program
    }

    /// What the program is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A Consul agent that is its own only server, on the usual ports of an address of its own.
pub struct Consul {
    ip: IpAddr,
    arguments: Vec<String>,
    process: Process,
}

/// What an agent finds of its past when it starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Nothing.
    None,
    /// Its state, in a folder.
    Kept,
}

impl Consul {
    /// An agent with this configuration, in JSON; inside a namespace it lies on 127.0.0.1.
    pub fn start(config: &str, netns: Option<&Netns>) -> Option<Self> {
        Self::start_with(config, None, netns)
    }

    /// The same with the definition files of a folder.
    pub fn start_with(config: &str, definitions: Option<&Path>, netns: Option<&Netns>) -> Option<Self> {
        Some(Self::launch(config, definitions, Memory::None, netns)?.await_leader(netns))
    }

    /// As `start`, with a state that it finds again when it is restarted.
    pub fn with_memory(config: &str) -> Option<Self> {
        Some(Self::launch(config, None, Memory::Kept, None)?.await_leader(None))
    }

    fn launch(config: &str, definitions: Option<&Path>, memory: Memory, netns: Option<&Netns>) -> Option<Self> {
        let consul = require::program("consul")?;
        let ip = if netns.is_some() { Ipv4Addr::LOCALHOST.into() } else { free_address().ip() };
        let folder = folder_with(&[]);
        // Consul finds a node by the beginning of its id, too: no name of a test may happen to be one.
        let base = r#"{"node_name": "monitor", "datacenter": "dc1",
            "node_id": "f00f00f0-0f00-4f00-8f00-f00f00f00f00"}"#;
        fs::write(folder.path().join("base.json"), base).unwrap();
        fs::write(folder.path().join("agent.json"), config).unwrap();
        let mut command = match netns {
            Some(netns) => netns.command(&consul.display().to_string()),
            None => Command::new(&consul),
        };
        let mut arguments = vec!["agent".to_owned()];
        match memory {
            Memory::None => arguments.push("-dev".to_owned()),
            Memory::Kept => arguments.extend([
                "-server".to_owned(),
                "-bootstrap-expect=1".to_owned(),
                format!("-data-dir={}", folder.path().join("data").display()),
                // What `-dev` says of it.
                "-hcl=performance { raft_multiplier = 1 }".to_owned(),
            ]),
        }
        arguments.extend([format!("-bind={ip}"), format!("-client={ip}"), "-serf-wan-port=-1".to_owned()]);
        // Of two that say something the later has the word.
        arguments.push(format!("-config-file={}", folder.path().join("base.json").display()));
        arguments.extend(definitions.map(|folder| format!("-config-dir={}", folder.display())));
        arguments.push(format!("-config-file={}", folder.path().join("agent.json").display()));
        command.args(&arguments);
        Some(Self { ip, arguments, process: Process::start(&mut command, folder) })
    }

    fn await_leader(mut self, netns: Option<&Netns>) -> Self {
        wait_until("a Consul with a leader", START_LIMIT, || {
            self.process.demand_running();
            let leader = match netns {
                Some(netns) => {
                    let url = "http://127.0.0.1:8500/v1/status/leader";
                    let output = netns.command("curl").args(["-s", url]).output().unwrap();
                    String::from_utf8_lossy(&output.stdout).into_owned()
                }
                None => http::request(self.http(), "GET", "/v1/status/leader", "").ok()?.1,
            };
            leader.contains(':').then_some(())
        });
        self
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Its DNS interface.
    pub fn dns(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8600)
    }

    /// Its HTTP API.
    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 8500)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Registers a node, service or check in the catalog, as agents on other hosts do.
    #[track_caller]
    pub fn register(&self, body: &str) {
        self.put("/v1/catalog/register", body);
    }

    /// GET on its HTTP API, of what it says in JSON.
    #[track_caller]
    pub fn get(&self, path: &str) -> serde_json::Value {
        let (status, text) = http::get(self.http(), path);
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// PUT on its HTTP API.
    #[track_caller]
    pub fn put(&self, path: &str, body: &str) {
        self.request("PUT", path, body);
    }

    /// Creates a prepared query, and gives its id.
    #[track_caller]
    pub fn create_query(&self, body: &str) -> String {
        let text = self.request("POST", "/v1/query", body);
        text.split('"').nth(3).unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    #[track_caller]
    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let (status, text) = http::request(self.http(), method, path, body).unwrap();
        assert_eq!(status, 200, "{method} {path}: {text}");
        text
    }

    /// Ends it without a farewell.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after `kill`, and does not wait for anything.
    pub fn restart(&mut self) {
        let consul = require::program("consul").expect("it has been started before");
        self.process.restart(Command::new(consul).args(&self.arguments));
    }

    /// The process is there and does nothing.
    pub fn freeze(&self) {
        freeze(self.pid());
    }

    pub fn thaw(&self) {
        thaw(self.pid());
    }
}

/// What both of them deny by themselves.
const DENIED: (&str, &str) = ("1.0.0.10.in-addr.arpa PTR", "NXDOMAIN");
/// What a scripted upstream has.
const ANSWERED: (&str, &str) = ("www.example A", "NOERROR");

/// What Unbound is told whatever it serves.
fn unbound_config(address: SocketAddr, folder: &Path) -> String {
    format!(
        "server:\n  interface: {}@{}\n  directory: \"{}\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n\
         \x20 use-syslog: no\n  num-threads: 1\n  do-ip6: no\n  module-config: iterator\n\
         \x20 do-not-query-localhost: no\nremote-control:\n  control-enable: no\n",
        address.ip(),
        address.port(),
        folder.display(),
    )
}

/// Starts it with its outputs in a file of the folder.
fn logged(command: &mut Command, folder: &Path) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    let spawned = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
    spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// A folder of which all may read and write, with a file for each zone.
pub fn folder_with(zones: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::Builder::new().prefix("watershed-").tempdir().unwrap();
    // Some of them give up root before they read their files.
    run(Command::new("chmod").arg("777").arg(folder.path()));
    for (apex, text) in zones {
        fs::write(folder.path().join(format!("{apex}.zone")), text).unwrap();
    }
    folder
}

/// With it BIND asks no root server for anything.
const ROOT_ZONE: &str =
    "$TTL 60\n@ SOA ns.test. host.test. 1 7200 900 1209600 60\n@ NS ns.test.\nns.test. A 192.0.2.53\n";
/// How long a program may take to come up on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
