//! Keeps the last set of other hosts' instances while we are the ones who are cut off.
//!
//! `catalog::check` says when that is so, by what the probes have seen and by what is known of our own link; this file finds
//! out about the link, and what follows. From the moment at which the first of the hosts was lost, no check of an instance on
//! another host is believed: they are what they were then. When there is contact again, all of them are run at once, and
//! each counts from the first probe that is answered, or that was started some seconds later: what the others said before is
//! about us, not about them. If the outage lasts for longer than `catalog.cut_off_hold`, everything is believed again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    catalog::{
        Host,
        check::{Definition, Id, Kind, Link, Reach, Sighting, cut_off_since},
        health::Status,
    },
    clock::{Moment, Offset},
    files,
};

/// Whose word is not taken, and why.
#[derive(Debug, Default)]
pub(super) struct Guard {
    phase: Phase,
    held: HashSet<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// All are believed.
    #[default]
    Open,
    CutOff {
        since: Moment,
    },
    /// There is contact, and some checks have not been run since.
    Returning {
        since: Moment,
        contact: Moment,
    },
    /// It has lasted for too long.
    Spent,
}

/// What is kept of the guard for the next process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Saved {
    phase: SavedPhase,
    held: Vec<Id>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
enum SavedPhase {
    #[default]
    Open,
    CutOff {
        since: Offset,
    },
    Returning {
        since: Offset,
        contact: Offset,
    },
    Spent,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// We are cut off, since this moment.
    CutOff(Moment),
    /// We are no longer.
    Contact,
    /// We are for longer than the last set is to be kept.
    GiveUp,
}

/// A check of an instance on another host.
#[derive(Debug)]
pub(super) struct Remote {
    /// Where its probe goes, if it leaves this host; in it the address, if that is known.
    way: Option<Option<IpAddr>>,
    /// What it has been since when, the latest last.
    past: VecDeque<(Moment, Status, Arc<str>)>,
}

/// What a check of an instance on another host has been, for the next process.
pub(super) type SavedPast = Vec<(Offset, Status, Arc<str>)>;

impl Guard {
    /// The guard that was saved at `origin`.
    pub fn restore(saved: Saved, origin: Moment) -> Self {
        let phase = match saved.phase {
            SavedPhase::Open => Phase::Open,
            SavedPhase::CutOff { since } => Phase::CutOff { since: origin.at(since) },
            SavedPhase::Returning { since, contact } => {
                Phase::Returning { since: origin.at(since), contact: origin.at(contact) }
            }
            SavedPhase::Spent => Phase::Spent,
        };
        Self { phase, held: saved.held.into_iter().collect() }
    }

    /// What the next process has to know, with times relative to `now`.
    pub fn save(&self, now: Moment) -> Saved {
        let phase = match self.phase {
            Phase::Open => SavedPhase::Open,
            Phase::CutOff { since } => SavedPhase::CutOff { since: since.offset(now) },
            Phase::Returning { since, contact } => {
                SavedPhase::Returning { since: since.offset(now), contact: contact.offset(now) }
            }
            Phase::Spent => SavedPhase::Spent,
        };
        Saved { phase, held: self.held.iter().cloned().collect() }
    }

    /// Takes in since when we are cut off, if we are, and for how long that may count.
    pub fn judge(&mut self, cut_off: Option<Moment>, hold: Duration, now: Moment) -> Option<Verdict> {
        let (phase, verdict) = match (self.phase, cut_off) {
            (Phase::Open, Some(since)) if now.since(since) < hold => {
                (Phase::CutOff { since }, Some(Verdict::CutOff(since)))
            }
            (Phase::CutOff { since } | Phase::Returning { since, .. }, _) if now.since(since) >= hold => {
                (Phase::Spent, Some(Verdict::GiveUp))
            }
            (Phase::CutOff { since }, None) => (Phase::Returning { since, contact: now }, Some(Verdict::Contact)),
            (Phase::Returning { since, .. }, Some(_)) => (Phase::CutOff { since }, None),
            (Phase::Returning { .. }, None) if self.held.is_empty() => (Phase::Open, None),
            (Phase::Spent, None) => (Phase::Open, None),
            (phase, _) => (phase, None),
        };
        self.phase = phase;
        verdict
    }

    /// Whether we are taken to be cut off.
    pub fn is_cut_off(&self) -> bool {
        matches!(self.phase, Phase::CutOff { .. })
    }

    /// Takes the word of these no longer.
    pub fn hold(&mut self, checks: impl IntoIterator<Item = Id>) {
        self.held.extend(checks);
    }

    /// Whether a check is not believed.
    pub fn holds(&self, check: &Id) -> bool {
        self.held.contains(check)
    }

    /// All that are not.
    pub fn held(&self) -> &HashSet<Id> {
        &self.held
    }

    /// Those that are believed again from now on. `is_fresh` says whether a check was run since a moment, `None` for one that
    /// is never run: it follows others, and so comes after them.
    pub fn release(&mut self, is_fresh: impl Fn(&Id, Moment) -> Option<bool>) -> Vec<Id> {
        match self.phase {
            Phase::CutOff { .. } => Vec::new(),
            Phase::Open | Phase::Spent => self.held.drain().collect(),
            Phase::Returning { contact, .. } => {
                // The link is there before neighbors have found each other on it: who is silent then is asked again.
                let settled = contact + SETTLING;
                let mut released: Vec<Id> = self.held.extract_if(|id| is_fresh(id, settled) == Some(true)).collect();
                if self.held.iter().all(|id| is_fresh(id, settled).is_none()) {
                    released.extend(self.held.drain());
                }
                released
            }
        }
    }
}

impl Remote {
    /// A check of an instance with this address, unless that is one of our `own`.
    pub fn new(address: Option<&Host>, definition: &Definition, own: &HashSet<IpAddr>) -> Option<Self> {
        let is_here = |ip: IpAddr| ip.is_loopback() || own.contains(&ip);
        let ip = address?.ip();
        if ip.is_some_and(is_here) {
            return None;
        }
        let probed = match &definition.kind {
            Kind::Probe { probe, .. } => probe.host(),
            _ => None,
        };
        let way = match probed.map(|host| (host, host.parse::<IpAddr>())) {
            Some((_, Ok(probed))) if is_here(probed.to_canonical()) => None,
            Some((_, Ok(probed))) => Some(Some(probed.to_canonical())),
            Some((host, Err(_))) if host.trim_end_matches('.').eq_ignore_ascii_case("localhost") => None,
            Some((_, Err(_))) => Some(ip),
            None => None,
        };
        Some(Self { way, past: VecDeque::new() })
    }

    /// Takes over what another definition of the check has been.
    pub fn follow(mut self, before: Option<Self>) -> Self {
        self.past = before.map(|before| before.past).unwrap_or_default();
        self
    }

    /// Takes over what the check was in an earlier process, which saved it at `origin`.
    pub fn restore(&mut self, past: SavedPast, origin: Moment) {
        self.past = past.into_iter().map(|(at, status, output)| (origin.at(at), status, output)).collect();
    }

    /// What the next process has to know, with times relative to `now`.
    pub fn save(&self, now: Moment) -> SavedPast {
        self.past.iter().map(|(at, status, output)| (at.offset(now), *status, output.clone())).collect()
    }

    /// Whether this is what the check was last.
    pub fn ends_with(&self, at: Moment, status: Status) -> bool {
        self.past.back().is_some_and(|last| (last.0, last.1) == (at, status))
    }

    /// Notes what the check is from now on, as all that is known of it.
    pub fn begin(&mut self, at: Moment, status: Status, output: Arc<str>) {
        self.past.clear();
        self.note(at, status, output);
    }

    /// Notes what the check is from now on.
    pub fn note(&mut self, at: Moment, status: Status, output: Arc<str>) {
        self.past.push_back((at, status, output));
        self.past.drain(..self.past.len().saturating_sub(MOST_PAST));
    }

    /// What it was at a moment.
    pub fn before(&self, since: Moment) -> Option<(Status, &Arc<str>)> {
        let known = self.past.iter().rfind(|(at, ..)| *at < since).or(self.past.front());
        known.map(|(_, status, output)| (*status, output))
    }

    /// Where its probe goes, if it leaves this host.
    pub fn way(&self) -> Option<Option<IpAddr>> {
        self.way
    }
}

/// Since when we are cut off from all other hosts, by what the probes of their checks have seen.
pub(super) fn cut_off(seen: Vec<(Option<IpAddr>, Sighting)>, upstreams: Link) -> Option<Moment> {
    // Whatever is known of the link, these must say so: it is seldom worth a look.
    cut_off_since(seen.iter().map(|(_, sighting)| *sighting), Link::AtFault)?;
    let mut ways = Ways::read();
    let sightings = seen.into_iter().map(|(address, sighting)| match (address, sighting.reach) {
        (Some(address), Reach::Silent) if !ways.lead_to(address) => Sighting { reach: Reach::NoRoute, ..sighting },
        _ => sighting,
    });
    cut_off_since(sightings, upstreams)
}

/// All addresses of this host, but for those of the node that we are.
pub(super) fn own_addresses(ipv4: &[Ipv4Addr]) -> HashSet<IpAddr> {
    let ipv6 = files::read_text(Path::new("/proc/self/net/if_inet6")).unwrap_or_default();
    let ipv6 = ipv6.lines().filter_map(|line| u128::from_str_radix(line.get(..32)?, 16).ok()).map(Ipv6Addr::from);
    ipv4.iter().copied().map(IpAddr::V4).chain(ipv6.map(IpAddr::V6)).collect()
}

/// The ways that lead out of this host.
struct Ways {
    routes: Vec<Route>,
    known: HashMap<IpAddr, bool>,
}

/// A route of the kernel's main table.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    network: IpAddr,
    prefix_bits: u32,
    interface: String,
}

impl Ways {
    fn read() -> Self {
        let read = |path: &str| files::read_text(Path::new(path)).unwrap_or_default();
        let mut routes = read_ipv4_routes(&read("/proc/self/net/route"));
        routes.extend(read_ipv6_routes(&read("/proc/self/net/ipv6_route")));
        Self { routes, known: HashMap::new() }
    }

    /// Whether there is a route to an address, through an interface that has a carrier.
    fn lead_to(&mut self, address: IpAddr) -> bool {
        *self.known.entry(address).or_insert_with(|| {
            // The kernel looks for a route and sends nothing; it knows more tables than those that we read.
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let has_route = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9))).is_ok();
            has_route && interface_to(address, &self.routes).is_none_or(has_carrier)
        })
    }
}

/// The interface of the longest network that holds the address.
fn interface_to(address: IpAddr, routes: &[Route]) -> Option<&str> {
    let leading = routes.iter().filter(|route| route.holds(address));
    leading.max_by_key(|route| route.prefix_bits).map(|route| &*route.interface)
}

/// The system refuses to say of an interface that is not up.
fn has_carrier(interface: &str) -> bool {
    match files::read_text(&Path::new("/sys/class/net").join(interface).join("carrier")) {
        Ok(carrier) => carrier.trim() != "0",
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

impl Route {
    fn holds(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.prefix_bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.prefix_bits
            }
            _ => false,
        }
    }
}

/// Numbers of this table are in the order of the network, printed as if in the host's.
fn read_ipv4_routes(table: &str) -> Vec<Route> {
    let read = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| u32::from_str_radix(fields.get(place)?, 16).ok();
        let address = |place| Some(Ipv4Addr::from(number(place)?.to_ne_bytes()));
        let prefix_bits = address(7)?.to_bits().leading_ones();
        is_in_use(number(3)?).then_some(Route { network: address(1)?.into(), prefix_bits, interface: fields[0].into() })
    };
    table.lines().skip(1).filter_map(read).collect()
}

fn read_ipv6_routes(table: &str) -> Vec<Route> {
    let read = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let network = Ipv6Addr::from(u128::from_str_radix(fields.first()?, 16).ok()?);
        let prefix_bits = u32::from_str_radix(fields.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let interface = fields.get(9)?;
        is_in_use(flags).then(|| Route { network: network.into(), prefix_bits, interface: (*interface).into() })
    };
    table.lines().filter_map(read).collect()
}

/// It is up, and does not refuse what it is asked to carry.
fn is_in_use(flags: u32) -> bool {
    flags & 0x201 == 1
}

/// How long a link may be back before those who do not answer are taken to be down.
const SETTLING: Duration = Duration::from_secs(3);
/// Between an outage and its discovery few checks change more often.
const MOST_PAST: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_millis(second * 1000)
    }

    fn id(check: &str) -> Id {
        Id { node: "own".into(), check: check.into() }
    }

    #[test]
    fn we_are_cut_off_until_contact_and_no_longer_than_the_hold() {
        let hold = Duration::from_secs(100);
        let mut guard = Guard::default();
        for (second, cut_off, expected, held) in [
            (10, None, None, 0),
            (20, Some(15), Some(Verdict::CutOff(at(15))), 2),
            (25, Some(16), None, 2),
            (30, None, Some(Verdict::Contact), 1), // x has been run
            (31, Some(31), None, 1),               // lost again before all were
            (40, None, Some(Verdict::Contact), 1),
            (50, None, None, 1),
            (60, Some(15), None, 1),
            (115, Some(15), Some(Verdict::GiveUp), 0), // 100 s after it began, whatever was between
            (120, Some(15), None, 0),
            (130, None, None, 0),
            (140, Some(135), Some(Verdict::CutOff(at(135))), 2),
            (300, None, Some(Verdict::GiveUp), 0),
            (310, Some(200), None, 0), // it is for longer already
        ] {
            let verdict = guard.judge(cut_off.map(at), hold, at(second));
            assert_eq!(verdict, expected, "at {second}");
            if let Some(Verdict::CutOff(_)) = verdict {
                guard.hold([id("x"), id("y")]);
            }
            guard.release(|check, contact| Some(&*check.check == "x" && contact < at(40)));
            assert_eq!(guard.held().len(), held, "at {second}");
        }
        assert_eq!(Guard::default().judge(Some(at(1)), Duration::ZERO, at(1)), None, "a hold of nothing");
    }

    #[test]
    fn what_is_never_run_follows_the_others() {
        let mut guard = Guard::default();
        guard.judge(Some(at(1)), Duration::from_secs(100), at(2));
        guard.hold(["run", "late", "alias"].map(id));
        assert_eq!(guard.release(|_, _| Some(true)), [], "nothing counts while we are cut off");
        guard.judge(None, Duration::from_secs(100), at(5));
        let fresh = |late: bool| {
            move |check: &Id, settled: Moment| {
                assert_eq!(settled, at(5) + SETTLING);
                match &*check.check {
                    "alias" => None,
                    "late" => Some(late),
                    _ => Some(true),
                }
            }
        };
        assert_eq!(guard.release(fresh(false)), [id("run")]);
        assert!(guard.holds(&id("alias")) && guard.holds(&id("late")));
        assert_eq!(guard.release(fresh(true)).len(), 2);
        assert!(guard.held().is_empty());
    }

    #[test]
    fn a_check_was_what_it_was_before_the_outage() {
        let mut remote = Remote { way: None, past: VecDeque::new() };
        assert_eq!(remote.before(at(9)), None);
        for (second, status) in [(1, Status::Critical), (5, Status::Passing), (20, Status::Critical)] {
            remote.note(at(second), status, "".into());
        }
        for (second, expected) in [
            (0, Status::Critical), // as far as is known
            (5, Status::Critical),
            (6, Status::Passing),
            (20, Status::Passing),
            (21, Status::Critical),
        ] {
            assert_eq!(remote.before(at(second)).map(|(status, _)| status), Some(expected), "{second}");
        }
    }

    #[test]
    fn routes_are_read_and_the_longest_counts() {
        let ipv4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    eth2\t0003000A\t00000000\t0000\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let ipv6 = "20010db8000000000000000000000000 20 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth3\n\
                    00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n";
        let mut routes = read_ipv4_routes(if cfg!(target_endian = "little") { ipv4 } else { "" });
        routes.extend(read_ipv6_routes(ipv6));
        for (address, expected) in [
            ("10.0.2.7", Some("eth1")),
            ("10.0.3.7", Some("eth0")), // that one is down
            ("192.0.2.1", Some("eth0")),
            ("2001:db8::1", Some("eth3")),
            ("2001:db9::1", None),
        ] {
            assert_eq!(interface_to(address.parse().unwrap(), &routes), expected, "{address}");
        }
    }
}
