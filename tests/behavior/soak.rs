//! Hours of mixed load with every fault at random: every query has an answer, the answers are right, nothing leaks.
//!
//! `WATERSHED_SOAK` is its length in seconds (default 15), `WATERSHED_SOAK_SEED` repeats the faults of a run whose seed was
//! printed. In the first half of the run processes come and go; in the second one stays, so that it shows whether it grows.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tempfile::TempDir;

use crate::harness::{client::socket_for, message::TC, *};

/// What the upstreams do at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mood {
    Well,
    Slow,
    Lossy,
    Failing,
    Garbled,
    Silent,
}

const MOODS: [Mood; 6] = [Mood::Well, Mood::Slow, Mood::Lossy, Mood::Failing, Mood::Garbled, Mood::Silent];

/// What everybody in this test knows.
struct Scene {
    folder: TempDir,
    address: SocketAddr,
    control: SocketAddr,
    mood: AtomicU8,
    /// When the upstreams were last anything but well, in milliseconds since the start.
    ill_at: AtomicUsize,
    /// When the daemon was last killed, likewise.
    killed_at: AtomicUsize,
    start: Instant,
    is_over: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
    slowest: Mutex<(Duration, String)>,
    fault: Mutex<Option<String>>,
}

/// Whoever drops it ends the run, were it by a panic.
struct Over<'a>(&'a Scene);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Relaxed);
    }
}

/// Repeatable randomness (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// The one right address of a name.
fn address_of(qname: &str) -> Ipv4Addr {
    let hash = qname
        .to_lowercase()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    Ipv4Addr::from(0x0a00_0000 | hash >> 8)
}

impl Scene {
    fn mood(&self) -> Mood {
        MOODS[usize::from(self.mood.load(Relaxed))]
    }

    fn set_mood(&self, mood: Mood) {
        self.note_illness();
        self.mood.store(mood as u8, Relaxed);
    }

    fn now_ms(&self) -> usize {
        self.start.elapsed().as_millis() as usize
    }

    fn note_illness(&self) {
        self.ill_at.store(self.now_ms() + 1, Relaxed);
    }

    /// Whether a failure may be blamed on the upstreams: they are ill, or were when it was cached.
    fn is_excused(&self) -> bool {
        let ill_at = self.ill_at.load(Relaxed);
        self.mood() != Mood::Well || (ill_at > 0 && self.now_ms() < ill_at + 15_000)
    }

    /// Whether the daemon was killed, and forgot what it had been asked, after that moment.
    fn is_killed_since(&self, sent_ms: usize) -> bool {
        self.killed_at.load(Relaxed) > sent_ms
    }

    fn goes_on(&self) -> bool {
        !self.is_over.load(Relaxed)
    }

    fn note_time(&self, time: Duration, steps: String) {
        let mut slowest = self.slowest.lock().unwrap();
        if time > slowest.0 {
            *slowest = (time, steps);
        }
    }

    fn blame(&self, what: String) {
        self.fault.lock().unwrap().get_or_insert(format!("after {:?}: {what}", self.start.elapsed()));
        self.is_over.store(true, Relaxed);
    }

    /// The upstream's response to a query, and how long it takes; none if it is lost.
    fn respond(&self, query: &[u8], over_tcp: bool, dice: &mut Dice) -> Option<(Vec<u8>, Duration)> {
        let query = Message::from_wire(query).ok()?;
        let mut reply = query.respond();
        let qname = query.qname().to_lowercase();
        let mut pause = Duration::ZERO;
        match self.mood() {
            Mood::Well => {}
            Mood::Slow => pause = Duration::from_millis(200),
            Mood::Lossy if dice.roll(3) == 0 => return None,
            Mood::Lossy => {}
            Mood::Failing => return Some((reply.rcode("SERVFAIL").to_wire(), pause)),
            Mood::Garbled => {
                let mut wire = reply.answer(&format!("{qname} 5 A {}", address_of(&qname))).to_wire();
                let at = 12 + dice.roll(wire.len() as u64 - 12) as usize;
                wire.truncate(at);
                return Some((wire, pause));
            }
            Mood::Silent => return None,
        }
        if qname.contains(".tc.") && !over_tcp {
            reply = reply.set(TC);
        } else if query.qtype() == 1 {
            reply = reply.answer(&format!("{qname} 5 A {}", address_of(&qname)));
        }
        Some((reply.to_wire(), pause))
    }
}

/// An upstream that forgets what it was asked, and so can be asked for hours.
fn upstream(scene: &Arc<Scene>, seed: u64) -> SocketAddr {
    let tcp = TcpListener::bind(free_address()).unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    thread::spawn({
        let scene = scene.clone();
        let mut dice = Dice(seed);
        move || {
            let mut query = [0; 2048];
            let mut due: Vec<(Instant, Vec<u8>, SocketAddr)> = Vec::new();
            while scene.goes_on() {
                if let Ok((length, from)) = udp.recv_from(&mut query)
                    && let Some((reply, pause)) = scene.respond(&query[..length], false, &mut dice)
                {
                    due.push((Instant::now() + pause, reply, from));
                }
                due.retain(|(at, reply, to)| {
                    let is_due = Instant::now() >= *at;
                    if is_due {
                        let _ = udp.send_to(reply, to);
                    }
                    !is_due
                });
            }
        }
    });
    thread::spawn({
        let scene = scene.clone();
        move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                if !scene.goes_on() {
                    return;
                }
                let scene = scene.clone();
                thread::spawn(move || serve_stream(&scene, stream));
            }
        }
    });
    address
}

fn serve_stream(scene: &Scene, mut stream: TcpStream) {
    let mut dice = Dice(7);
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        if let Some((reply, pause)) = scene.respond(&query, true, &mut dice) {
            thread::sleep(pause);
            let _ = stream.write_all(&client::framed(&reply));
        }
    }
}

/// Asks until the end, by datagrams or connections.
fn ask(scene: &Scene, number: usize, over_tcp: bool) {
    let socket = socket_for(scene.address);
    let mut asked = 0_u64;
    while scene.goes_on() {
        asked += 1;
        let qname = match asked % 8 {
            0 | 1 => format!("h{}.hit.soak.example.", asked % 200),
            2 => format!("m{asked}.client{number}.soak.example."),
            3 if asked % 16 == 3 => format!("t{asked}.tc.client{number}.soak.example."),
            4 => "web.service.consul.".to_owned(),
            5 => "blocked.soak.example.".to_owned(),
            6 => "www.site.example.".to_owned(),
            _ => format!("h{}.hit.soak.example.", asked % 7),
        };
        let question = query(&format!("{qname} A")).edns(1232);
        let sent = Instant::now();
        let mut steps = format!("{qname} while {:?}:", scene.mood());
        let mut reply = match over_tcp {
            true => by_connection(scene, &question, &mut steps),
            false => by_datagram(scene, &socket, &question, &mut steps),
        };
        if reply.as_ref().is_some_and(|reply| reply.has(TC)) {
            reply = by_connection(scene, &question, &mut steps);
        }
        scene.note_time(sent.elapsed(), steps);
        let Some(reply) = reply else { return scene.blame(format!("no answer to {qname} over tcp={over_tcp}")) };
        let given = reply.data();
        let is_right = match qname.as_str() {
            "web.service.consul." => !given.is_empty() && given.iter().all(|a| a == "192.0.2.11" || a == "192.0.2.12"),
            "blocked.soak.example." => matches!(given.as_slice(), [a] if a == "192.0.2.66" || a == "192.0.2.67"),
            "www.site.example." => given == ["192.0.2.1"],
            _ => given == [address_of(&qname).to_string()],
        };
        let is_forwarded = qname.ends_with("soak.example.") && !qname.starts_with("blocked");
        if is_forwarded && reply.rcode_name() == "SERVFAIL" && scene.is_excused() {
            scene.failed.fetch_add(1, Relaxed);
        } else if !is_right {
            return scene.blame(format!(
                "{qname} over tcp={over_tcp}: {} {:x} {given:?}",
                reply.rcode_name(),
                reply.flags
            ));
        }
        scene.answered.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a daemon that was killed has not replied to is asked again, after as long as libc waits.
fn by_datagram(scene: &Scene, socket: &UdpSocket, question: &Message, steps: &mut String) -> Option<Message> {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 2048];
    loop {
        let (sent, sent_ms) = (Instant::now(), scene.now_ms());
        socket.send(&question.to_wire()).ok()?;
        let reply = loop {
            let Ok(length) = socket.recv(&mut buffer) else { break None };
            let reply = Message::from_wire(&buffer[..length]).ok()?;
            if reply.id == question.id {
                break Some(reply);
            }
        };
        *steps += &format!(" a datagram {:?}", sent.elapsed());
        if reply.is_some() || !scene.is_killed_since(sent_ms) {
            return reply;
        }
    }
}

/// A connection that is closed unanswered is opened again, as clients must (RFC 7766 §6.2.4).
fn by_connection(scene: &Scene, question: &Message, steps: &mut String) -> Option<Message> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        *steps += &format!(" a connection {:?},", start.elapsed());
        let Ok(stream) = TcpStream::connect_timeout(&scene.address, PATIENCE) else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut connection = Tcp { stream };
        let sent = connection.stream.write_all(&client::framed(&question.to_wire()));
        if let Some(wire) = sent.ok().and_then(|()| connection.receive_wire()) {
            return Message::from_wire(&wire).ok();
        }
    }
    None
}

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";

/// No start of the zone that is shorter has a SOA record.
const WITHIN_SOA: u64 = 28;

fn write(scene: &Scene, name: &str, text: &str) {
    let path = scene.folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path.with_extension("draft"), text).unwrap();
    fs::rename(path.with_extension("draft"), path).unwrap();
}

fn write_overlay(scene: &Scene, host: u64) {
    write(scene, "zones/soak.example.overlay", &format!("$TTL 60\nblocked A 192.0.2.{host}\n"));
}

fn write_services(scene: &Scene, count: u64) {
    let service = |n| format!(r#"{{"id": "web{n}", "name": "web", "address": "192.0.2.1{n}", "port": 80}}"#);
    let services: Vec<String> = (1..=count).map(service).collect();
    write(scene, "services/web.json", &format!(r#"{{"services": [{}]}}"#, services.join(",")));
}

/// Does something to the daemon, and says what.
fn strike(
    scene: &Scene,
    manager: &Manager,
    setup: &dyn Fn() -> Setup,
    daemon: &mut Option<Daemon>,
    dice: &mut Dice,
    may_end: bool,
) -> String {
    let running = daemon.as_mut().expect("a daemon");
    match dice.roll(if may_end { 15 } else { 12 }) {
        0..=2 => {
            let mood = MOODS[dice.roll(MOODS.len() as u64) as usize];
            scene.set_mood(mood);
            format!("{mood:?} upstreams")
        }
        3 => {
            running.reload();
            "reload".into()
        }
        4 => {
            let good = fs::read_to_string(running.folder().join("watershed.toml")).unwrap();
            running.write("watershed.toml", &format!("{good}\n[cache]\nsize = \"many\"\n"));
            assert!(running.reload().contains("reload failed"));
            running.write("watershed.toml", &good);
            "a faulty configuration".into()
        }
        5 => {
            write_services(scene, 1 + dice.roll(2));
            "definitions".into()
        }
        6 => {
            write_overlay(scene, 66 + dice.roll(2));
            "an overlay".into()
        }
        7 => {
            let (zones, away) = (scene.folder.path().join("zones"), scene.folder.path().join("away"));
            fs::rename(&zones, &away).unwrap();
            thread::sleep(Duration::from_millis(300));
            fs::rename(&away, &zones).unwrap();
            "the zones away".into()
        }
        8 => {
            let path = scene.folder.path().join("zones/site.example.zone");
            // Cut where it shows: behind a whole record nobody could tell it from what was meant.
            fs::write(&path, &ZONE[..dice.roll(WITHIN_SOA) as usize]).unwrap();
            thread::sleep(Duration::from_millis(300));
            write(scene, "zones/site.example.zone", ZONE);
            "half a zone".into()
        }
        9 => {
            let idle: Vec<_> = (0..150).map(|_| TcpStream::connect(scene.address)).collect();
            thread::sleep(Duration::from_millis(100));
            drop(idle);
            "idle connections".into()
        }
        10 => {
            let socket = socket_for(scene.address);
            for _ in 0..100 {
                let garbage: Vec<u8> = (0..dice.roll(100)).map(|_| dice.roll(256) as u8).collect();
                let _ = socket.send(&garbage);
            }
            "garbage".into()
        }
        11 => {
            // What is to be forwarded fails if there is no socket for it.
            scene.note_illness();
            let held = measure(running).0 as u64;
            let limit = |files| {
                let limit = Rlimit { current: Some(files), ..getrlimit(Resource::Nofile) };
                prlimit(Pid::from_raw(running.pid() as i32), Resource::Nofile, limit).unwrap().current.unwrap()
            };
            let before = limit(held);
            thread::sleep(Duration::from_millis(500));
            limit(before);
            scene.note_illness();
            "no more descriptors".into()
        }
        12 => {
            running.hand_over();
            "a hand-over".into()
        }
        13 => {
            scene.killed_at.store(scene.now_ms() + 1, Relaxed);
            signal(running.pid(), "KILL");
            drop(daemon.take());
            *daemon = Some(manager.start(setup()));
            scene.killed_at.store(scene.now_ms() + 1, Relaxed);
            "a kill".into()
        }
        _ => {
            // In the old one's hands is what it must answer before it ends.
            daemon.take().expect("a daemon").stop();
            *daemon = Some(manager.start(setup()));
            "a restart".into()
        }
    }
}

/// Descriptors, threads and resident KiB of a process.
fn measure(daemon: &Daemon) -> (usize, usize, u64) {
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", daemon.pid())).unwrap().count();
    (count("fd"), count("task"), daemon.resident_kib())
}

#[test]
fn whatever_happens_every_query_is_answered_rightly_and_nothing_leaks() {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let length = Duration::from_secs(number("WATERSHED_SOAK").unwrap_or(15));
    let from_clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed = number("WATERSHED_SOAK_SEED").unwrap_or_else(from_clock).max(1);
    eprintln!("WATERSHED_SOAK_SEED={seed}");
    let mut dice = Dice(seed);
    let scene = Arc::new(Scene {
        folder: tempfile::tempdir().unwrap(),
        address: free_address(),
        control: free_address(),
        mood: AtomicU8::new(0),
        ill_at: AtomicUsize::new(0),
        start: Instant::now(),
        is_over: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        killed_at: AtomicUsize::new(0),
        slowest: Mutex::default(),
        fault: Mutex::default(),
    });
    let upstreams = [upstream(&scene, 11), upstream(&scene, 13)];
    write_overlay(&scene, 66);
    write_services(&scene, 2);
    write(&scene, "zones/site.example.zone", ZONE);
    fs::create_dir(scene.folder.path().join("state")).unwrap();
    let manager = Manager::new(scene.folder.path());
    let setup = || {
        let folder = scene.folder.path().display();
        let config = format!(
            "{}[server]\nlisten = [\"{}\"]\nworkers = 2\ntcp_connections = 100\nstate_directory = \"{folder}/state\"\n\
             [cache]\nsize = \"2MiB\"\n[control]\nlisten = \"{}\"\n[zones]\nhosts = []\ndirectory = \"{folder}/zones\"\n\
             [catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.5\"\n[catalog.files]\ndirectory = \"{folder}/services\"\n",
            daemon::forward(".", &upstreams),
            scene.address,
            scene.control,
        );
        Setup::new(&config)
    };
    let mut daemon = Some(manager.start(setup()));
    manager.wait_for_stored(4);
    let at_rest = measure(daemon.as_ref().unwrap());
    let mut warm = at_rest;
    let mut struck = 0;
    thread::scope(|scope| {
        let _over = Over(&scene);
        for client in 0..6 {
            let scene = &scene;
            scope.spawn(move || ask(scene, client, client >= 4));
        }
        let mut is_warm = false;
        while scene.goes_on() && scene.start.elapsed() < length {
            let elapsed = scene.start.elapsed();
            if !is_warm && elapsed > length * 3 / 4 {
                is_warm = true;
                warm = measure(daemon.as_ref().unwrap());
                eprintln!("{elapsed:?}: warm, (descriptors, threads, KiB) {warm:?}");
            }
            let what = strike(&scene, &manager, &setup, &mut daemon, &mut dice, elapsed < length / 2);
            struck += 1;
            let (answered, failed) = (scene.answered.load(Relaxed), scene.failed.load(Relaxed));
            let resident = daemon.as_ref().unwrap().resident_kib();
            eprintln!("{elapsed:?}: {what}; {answered} answered, {failed} of them SERVFAIL; {resident} KiB");
            thread::sleep(Duration::from_millis(200 + dice.roll(800)));
            if scene.mood() != Mood::Well {
                scene.note_illness();
            }
        }
        scene.set_mood(Mood::Well);
        // The end is not in the midst of a fault.
        let answered = scene.answered.load(Relaxed);
        while scene.goes_on() && scene.answered.load(Relaxed) < answered + 100 {
            thread::sleep(Duration::from_millis(20));
        }
    });
    if let Some(fault) = scene.fault.lock().unwrap().take() {
        panic!("seed {seed}: {fault}");
    }
    let daemon = daemon.unwrap();
    let is_idle = |name: &str| daemon.metric(name, &[]) == 0.0;
    wait_until("nobody to wait any more", PATIENCE, || {
        let gauges = ["resolve_waiting", "resolve_in_flight", "resolve_queue_depth", "server_tcp_connections"];
        gauges.iter().all(|gauge| is_idle(&format!("watershed_{gauge}"))).then_some(())
    });
    for counter in ["daemon_panics_total", "server_worker_failures_total"] {
        assert!(is_idle(&format!("watershed_{counter}")), "{counter}");
    }
    // Kept open towards upstreams: some sockets of each worker, and connections.
    wait_until("descriptors and threads to be given back", Duration::from_secs(40), || {
        let now = measure(&daemon);
        (now.0 <= at_rest.0 + 24 && now.1 <= at_rest.1 + 2).then_some(())
    });
    let end = measure(&daemon);
    eprintln!(
        "{struck} faults, {} answers, {} of them SERVFAIL, the slowest {:?}; (descriptors, threads, KiB) at rest {at_rest:?}, \
         warm {warm:?}, at the end {end:?}",
        scene.answered.load(Relaxed),
        scene.failed.load(Relaxed),
        scene.slowest.lock().unwrap(),
    );
    assert!(end.2 < warm.2 + 4096, "seed {seed}: it grew from {} to {} KiB", warm.2, end.2);
    assert!(daemon.stop().text.lines().last().unwrap().contains("stopped"));
    let _ = upstreams.map(TcpStream::connect);
}
