//! Programs that live by the catalog: what its checks find ill, they leave alone.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::harness::{
    catalog::{services, with_definitions},
    netns::Netns,
    programs::{Process, folder_with},
    *,
};

/// An instance that says who it is to whoever comes by TCP, until this is dropped.
struct Instance {
    address: SocketAddr,
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Instance {
    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let is_ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_ended = is_ended.clone();
            move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    if is_ended.load(Ordering::Relaxed) {
                        return;
                    }
                    let _ = stream.write_all(address.ip().to_string().as_bytes());
                }
            }
        });
        Self { address, is_ended, thread: Some(thread) }
    }

    fn definition(&self, number: usize) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        format!(
            r#"{{"name": "web", "id": "web{number}", "address": "{ip}", "port": {port},
                "check": {{"tcp": "{ip}:{port}", "interval": "1s", "timeout": "5s"}}}}"#
        )
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn haproxy_serves_by_the_instances_that_are_well() {
    let Some(haproxy) = require::program("haproxy") else { return };
    let mut instances: Vec<_> = (0..3).map(|_| Instance::at(free_address())).collect();
    let definitions: Vec<_> = instances.iter().enumerate().map(|(number, one)| one.definition(number)).collect();
    let daemon = with_definitions("", &[("web.json", &services(&definitions))]).start();

    let folder = folder_with(&[]);
    let (front, socket) = (free_address(), folder.path().join("stats"));
    let config = format!(
        "global\n  stats socket {} mode 666 level admin\n  maxconn 100\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10s\n  timeout server 10s\n  retries 0\n\
         resolvers catalog\n  nameserver watershed {}\n  accepted_payload_size 8192\n  timeout resolve 200ms\n\
         \x20 timeout retry 1s\n  hold valid 200ms\n  hold nx 200ms\n  hold obsolete 200ms\n\
         listen web\n  bind {front}\n  balance roundrobin\n\
         \x20 server-template web 5 _web._tcp.service.consul resolvers catalog init-addr none\n",
        socket.display(),
        daemon.address(),
    );
    fs::write(folder.path().join("haproxy.cfg"), config).unwrap();
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(folder.path().join("haproxy.cfg"));
    let mut process = Process::start(&mut command, folder);
    let mut becomes = |what: &str, expected: &[&Instance]| {
        let mut expected: Vec<_> = expected.iter().map(|instance| instance.address.to_string()).collect();
        expected.sort();
        wait_until(what, 2 * PATIENCE, || {
            process.demand_running();
            (servers(&socket)? == expected).then_some(())
        });
        let mut served: Vec<_> = (0..2 * expected.len()).map(|_| say(front)).collect();
        served.sort();
        served.dedup();
        let ips: Vec<_> = expected.iter().map(|address| address.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(served, ips, "{what}");
    };
    becomes("all are well", &[&instances[0], &instances[1], &instances[2]]);
    let gone = instances.remove(1).address;
    becomes("one is ill", &[&instances[0], &instances[1]]);
    instances.push(Instance::at(gone));
    becomes("it is well again", &[&instances[0], &instances[1], &instances[2]]);
}

/// The addresses of HAProxy's servers that are up, sorted; nothing as long as it does not say.
fn servers(socket: &Path) -> Option<Vec<String>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"show servers state web\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let mut lines = text.lines().skip(1);
    let heads: Vec<&str> = lines.next()?.trim_start_matches("# ").split(' ').collect();
    let column = |name: &str| heads.iter().position(|head| *head == name);
    let (ip, port, state) = (column("srv_addr")?, column("srv_port")?, column("srv_op_state")?);
    let servers = lines.filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        // 2 is running.
        (*fields.get(state)? == "2").then(|| format!("{}:{}", fields[ip], fields[port]))
    });
    let mut servers: Vec<String> = servers.collect();
    servers.sort();
    Some(servers)
}

/// What is said to whoever comes to this address.
fn say(address: SocketAddr) -> String {
    let mut said = String::new();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.read_to_string(&mut said);
    said
}

/// A daemon on port 53 of a namespace, which alone resolves names there.
struct Host {
    daemon: Daemon,
    /// Last, for the others run in it.
    netns: Netns,
}

impl Host {
    fn new(config: &str, files: &[(&str, &str)]) -> Option<Self> {
        let netns = Netns::new("nameserver 127.0.0.1\n")?;
        let setup = with_definitions("[server]\nlisten = [\"127.0.0.1:53\"]\n", files);
        let daemon = setup.configured(|text| text.replace("192.0.2.1", "127.0.0.1") + config).within(&netns).start();
        Some(Self { daemon, netns })
    }
}

#[test]
fn prometheus_scrapes_the_instances_that_are_well() {
    let Some(prometheus) = require::program("prometheus") else { return };
    let Some(_) = require::program("curl") else { return };
    let Some(Host { daemon, netns }) = Host::new("", &[]) else { return };
    // What the checks look for is outside, and the instances are Prometheus itself by two addresses.
    let beat = |port| Instance::at(SocketAddr::new(netns.host(), port));
    let (first, second) = (beat(5401), beat(5402));
    let definition = |number: usize, instance: &Instance| {
        format!(
            r#"{{"name": "metrics", "id": "m{number}", "address": "127.0.0.{number}", "port": 9090,
                "check": {{"tcp": "{}", "interval": "1s", "timeout": "5s"}}}}"#,
            instance.address
        )
    };
    daemon.write("consul.d/metrics.json", &services(&[definition(1, &first), definition(2, &second)]));

    let folder = folder_with(&[]);
    let at = folder.path().display().to_string();
    fs::write(
        folder.path().join("prometheus.yml"),
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n- job_name: catalog\n\
         \x20 dns_sd_configs:\n  - {names: [metrics.service.consul], type: SRV, refresh_interval: 1s}\n",
    )
    .unwrap();
    let mut command = netns.command(&prometheus.display().to_string());
    command.args([
        &format!("--config.file={at}/prometheus.yml"),
        &format!("--storage.tsdb.path={at}/data"),
        "--web.listen-address=0.0.0.0:9090",
    ]);
    let mut process = Process::start(&mut command, folder);
    let mut becomes = |what: &str, expected: &[&str]| {
        wait_until(what, 3 * PATIENCE, || {
            process.demand_running();
            (targets(&netns)? == expected).then_some(())
        });
    };
    let (one, other) = ("7f000001.addr.dc1.consul:9090 up", "7f000002.addr.dc1.consul:9090 up");
    becomes("both are well", &[one, other]);
    let address = second.address;
    drop(second);
    becomes("one is ill", &[one]);
    let _second = Instance::at(address);
    becomes("it is well again", &[one, other]);
}

/// What Prometheus scrapes, with the outcome; nothing as long as it does not say.
fn targets(netns: &Netns) -> Option<Vec<String>> {
    let output = netns.command("curl").args(["-s", "http://127.0.0.1:9090/api/v1/targets"]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let show = |target: &serde_json::Value| {
        format!("{} {}", text(&target["discoveredLabels"]["__address__"]), text(&target["health"]))
    };
    let mut targets: Vec<String> = said["data"]["activeTargets"].as_array()?.iter().map(show).collect();
    targets.sort();
    Some(targets)
}

/// A MariaDB that lets everybody in, on port 3306 of a namespace.
fn mariadb(netns: &Netns) -> Process {
    let program = require::program("mariadbd").expect("asked for before");
    let folder = folder_with(&[]);
    let at = folder.path().display().to_string();
    fs::create_dir(folder.path().join("data")).unwrap();
    let mut command = netns.command(&program.display().to_string());
    command.args(["--no-defaults", "--user=root", "--skip-grant-tables", "--bind-address=127.0.0.1", "--port=3306"]);
    command.args([format!("--datadir={at}/data"), format!("--socket={at}/socket"), format!("--pid-file={at}/pid")]);
    Process::start(&mut command, folder)
}

#[test]
fn the_database_is_found_by_its_name_and_lost_within_a_check_interval() {
    let programs = ["mariadbd", "mariadb"].map(require::program);
    if programs.iter().any(Option::is_none) {
        return;
    }
    let galeradb = r#"{"service": {"name": "galeradb", "tags": ["icinga-galera"], "port": 3306,
      "check": {"id": "mysql", "name": "Check mysql port listening", "tcp": "localhost:3306", "interval": "10s", "timeout": "1s"}}}"#;
    let Some(Host { daemon, netns }) = Host::new("", &[("galeradb.json", galeradb)]) else { return };
    let sum = || {
        let mut command = netns.command("mariadb");
        command.args([
            "--no-defaults",
            "--protocol=tcp",
            "--skip-ssl",
            "--host=galeradb.service.consul",
            "--user=root",
        ]);
        let output = command.args(["--skip-column-names", "--execute=SELECT 40 + 2"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let is_known = || {
        let output = netns.command("getent").args(["ahosts", "galeradb.service.consul"]).output().unwrap();
        output.status.success()
    };
    assert!(!is_known(), "before its check has passed");
    let server = mariadb(&netns);
    // The definition as it stands: ten seconds between two checks.
    wait_until("a client that connects", INTERVAL + 2 * PATIENCE, || (sum() == "42").then_some(()));
    drop(server);
    let stopped = Instant::now();
    wait_until("the end of the name", INTERVAL + PATIENCE, || (!is_known()).then_some(()));
    println!("the name was gone {:.1?} after the database, with an interval of {INTERVAL:?}", stopped.elapsed());

    daemon.write("consul.d/galeradb.json", &galeradb.replace("10s", "1s"));
    let server = mariadb(&netns);
    wait_until("the name is back", 2 * PATIENCE, || (sum() == "42").then_some(()));
    drop(server);
    let stopped = Instant::now();
    wait_until("the end of the name again", PATIENCE, || (!is_known()).then_some(()));
    println!("the name was gone {:.1?} after the database, with an interval of 1s", stopped.elapsed());
}

/// The interval of the definition as it stands.
const INTERVAL: Duration = Duration::from_secs(10);
