//! When replies leave by UDP that have waited for an upstream.
//!
//! Queries with forged addresses can be made to wait for one upstream, and to be answered together: seconds of queries become
//! one pulse of replies, which a victim's network bears less than the same replies spread out (DNSBomb, CVE-2024-33655). A rate
//! limit that counts queries as they come does not see it, though it has to: it bounds the work that queries make. So replies
//! that have waited are counted as they leave as well, in buckets of their own. Each bucket has the whole rate, and counts a
//! reply once: a client that asks less than its limit gets all replies, wherever they come from. To one network go 20 at once, and then 8 in a millisecond: at most 100 within 10 ms. With a rate limit it is a tenth of what the
//! limit allows in a second, and then its rate. Replies beyond wait for their turn, for a second at most, and are dropped then.
//!
//! Clients whose addresses cannot be forged are exempt: those of TCP, those that show a cookie of ours (RFC 7873), and
//! those that `rate_limit.exempt` covers. By default that is loopback, whose addresses the kernel takes from no other interface.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

use super::limit::Config;
use crate::{clock::Moment, sys::Local};

/// What may leave for each network, and what waits to leave.
#[derive(Debug)]
pub(super) struct Departures {
    /// When each bucket may be emptied again, in microseconds. Networks that share a bucket share what it holds.
    buckets: Box<[AtomicU64]>,
    hasher: RandomState,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    networks: HashMap<IpAddr, VecDeque<Reply>>,
    bytes: usize,
    /// True while something calls [`Departures::release`] again and again.
    is_released: bool,
}

/// A reply that waits for its turn.
#[derive(Debug)]
pub(super) struct Reply {
    pub message: Vec<u8>,
    pub rcode: u16,
    /// The number of the listener by which it leaves.
    pub listener: u32,
    pub peer: SocketAddr,
    pub local: Option<Local>,
    /// When it is dropped.
    pub expires: Moment,
}

/// What became of a reply that was to wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It waits, and [`Departures::release`] is being called.
    Waits,
    /// It waits, and the caller has to see to it that [`Departures::release`] is called until nothing waits.
    WaitsFirst,
    /// There is no room.
    Dropped,
}

/// What a call of [`Departures::release`] has brought.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// To be sent now.
    pub due: Vec<Reply>,
    /// How many were dropped because they had waited for too long.
    pub dropped: usize,
    /// True if replies still wait.
    pub has_more: bool,
}

impl Departures {
    pub fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            held: Mutex::default(),
        }
    }

    /// Takes the leave of one reply to this client; false if its network has had enough for now.
    pub fn take(&self, client: IpAddr, config: &Config, now: Moment) -> bool {
        self.take_for(config.network(client), config, now)
    }

    fn take_for(&self, network: IpAddr, config: &Config, now: Moment) -> bool {
        let bucket = &self.buckets[self.hasher.hash_one(network) as usize % BUCKETS];
        let now = now.as_millis() * 1000;
        let (rate, burst) = pace(config);
        let step = (SECOND / rate).max(1);
        let take = |next: u64| {
            // The generic cell rate algorithm: `next` is when the bucket would be full again.
            let next = next.max(now) + step;
            (next <= now + step * burst).then_some(next)
        };
        bucket.fetch_update(Relaxed, Relaxed, take).is_ok()
    }

    /// Keeps a reply until its network may be sent more.
    pub fn hold(&self, reply: Reply, config: &Config) -> Kept {
        let mut held = self.held.lock();
        let (rate, _) = pace(config);
        let bytes = held.bytes + reply.message.len();
        let queue = held.networks.entry(config.network(reply.peer.ip())).or_default();
        // More would not leave in time.
        if bytes > MOST_BYTES || queue.len() as u64 >= rate {
            return Kept::Dropped;
        }
        queue.push_back(reply);
        held.bytes = bytes;
        match std::mem::replace(&mut held.is_released, true) {
            true => Kept::Waits,
            false => Kept::WaitsFirst,
        }
    }

    /// Takes out what may leave now. To be called every [`TURN`].
    pub fn release(&self, config: &Config, now: Moment) -> Released {
        let mut released = Released::default();
        let mut held = self.held.lock();
        held.networks.retain(|&network, queue| {
            while let Some(reply) = queue.front() {
                let is_late = reply.expires <= now;
                if !is_late && !self.take_for(network, config, now) {
                    break;
                }
                match queue.pop_front() {
                    Some(reply) if !is_late => released.due.push(reply),
                    _ => released.dropped += 1,
                }
            }
            !queue.is_empty()
        });
        held.bytes = held.networks.values().flatten().map(|reply| reply.message.len()).sum();
        released.has_more = !held.networks.is_empty();
        held.is_released = released.has_more;
        released
    }
}

/// Replies for one network in a second, and at once.
fn pace(config: &Config) -> (u64, u64) {
    match u64::from(config.responses_per_second) {
        0 => (MOST_IN_A_SECOND, MOST_AT_ONCE),
        rate => (rate.min(MOST_IN_A_SECOND), (rate / 10).clamp(1, MOST_AT_ONCE)),
    }
}

/// How long a reply waits at most. A client that is not there to be flooded asks again after that.
pub(super) const MOST_WAIT: Duration = Duration::from_secs(1);
/// How often replies that wait are looked at.
pub(super) const TURN: Duration = Duration::from_millis(1);
const MOST_IN_A_SECOND: u64 = 8000;
const MOST_AT_ONCE: u64 = 20;
/// Replies of all networks that wait.
const MOST_BYTES: usize = 16 << 20;
/// In 512 KiB.
const BUCKETS: usize = 1 << 16;
/// In microseconds.
const SECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Acl,
            limit::{Allowance, Limiter},
        },
        *,
    };

    const START: u64 = 1_000_000;

    fn at(milliseconds: u64) -> Moment {
        Moment::from_millis(START + milliseconds)
    }

    fn config(responses_per_second: u32) -> Config {
        Config { responses_per_second, ..Config::default() }
    }

    fn reply(peer: &str, expires: u64) -> Reply {
        Reply {
            message: vec![0; 100],
            rcode: 0,
            listener: 0,
            peer: SocketAddr::new(peer.parse().unwrap(), 9),
            local: None,
            expires: at(expires),
        }
    }

    /// In which millisecond each of so many replies leaves that are ready at once.
    fn departures(config: &Config, replies: usize) -> (Vec<u64>, usize) {
        let departures = Departures::new();
        let (mut left, mut dropped) = (Vec::new(), 0);
        for number in 0..replies {
            let peer = format!("192.0.2.{}", number % 256);
            if departures.take(peer.parse().unwrap(), config, at(0)) {
                left.push(0);
            } else if departures.hold(reply(&peer, 1000), config) == Kept::Dropped {
                dropped += 1;
            }
        }
        for now in 1.. {
            let released = departures.release(config, at(now));
            left.extend(released.due.iter().map(|_| now));
            dropped += released.dropped;
            if !released.has_more {
                break;
            }
        }
        (left, dropped)
    }

    fn most_within(left: &[u64], span: u64) -> usize {
        left.iter().map(|&from| left.iter().filter(|at| (from..from + span).contains(at)).count()).max().unwrap_or(0)
    }

    #[test]
    fn a_pulse_of_replies_is_spread() {
        let (left, dropped) = departures(&config(0), 2600);
        assert_eq!((left.len(), dropped), (2600, 0));
        assert!(most_within(&left, 10) <= 100, "{}", most_within(&left, 10));
        assert!(left.last() < Some(&400), "{:?}", left.last());
    }

    #[test]
    fn a_rate_limit_bounds_what_leaves_too() {
        for (rate, at_once, in_all) in [(200, 20, 220), (10, 1, 11), (1, 1, 2), (1_000_000, 20, 2600)] {
            let (left, dropped) = departures(&config(rate), 2600);
            assert_eq!(left.len() + dropped, 2600, "{rate}");
            assert_eq!(left.iter().filter(|at| **at == 0).count(), at_once, "{rate}");
            assert!((at_once..=in_all).contains(&left.len()), "{rate}: {}", left.len());
            assert!(most_within(&left, 100) <= (rate as usize / 10).clamp(1, 800) + at_once, "{rate}");
        }
    }

    /// The attack of DNSBomb: so many replies to one /24 that an upstream answers at the same time.
    #[test]
    fn a_pulse_of_2600_replies_leaves_in_these_numbers() {
        // In all within 10 ms, 100 ms, 1 s and after that; and the most in any 10 ms.
        for (rate, within, most) in [(0, [92, 812, 2600, 2600], 100), (200, [21, 39, 219, 219], 22)] {
            let (left, dropped) = departures(&config(rate), 2600);
            let by = |span: u64| left.iter().filter(|at| **at < span).count();
            assert_eq!([by(10), by(100), by(1000), left.len()], within, "{rate}");
            assert_eq!(left.len() + dropped, 2600, "{rate}");
            assert!(most_within(&left, 10) <= most, "{rate}: {}", most_within(&left, 10));
        }
    }

    /// A query is counted as it comes, against the work that it makes, and its reply as it leaves if it has waited: in two
    /// buckets, each of which has the whole rate. So no reply costs its network twice what one from the cache costs.
    #[test]
    fn a_steady_client_below_its_limit_gets_every_answer_though_all_of_them_wait() {
        let config = Config { exempt: Acl::default(), ..config(200) };
        let peer = "192.0.2.1";
        for (per_second, delay, least) in [(190, 30, 190 * 9), (199, 300, 199 * 9), (400, 30, 200 * 9)] {
            let (limiter, departures) = (Limiter::new(), Departures::new());
            let (mut left, mut dropped) = (0, 0);
            let mut waiting = VecDeque::new();
            for now in 0..10_000_u64 {
                let asked = (now + 1) * per_second / 1000 - now * per_second / 1000;
                for _ in 0..asked {
                    if limiter.take(peer.parse().unwrap(), &config, at(now)) == Allowance::Reply {
                        waiting.push_back(now + delay);
                    }
                }
                let released = departures.release(&config, at(now));
                (left, dropped) = (left + released.due.len(), dropped + released.dropped);
                while waiting.pop_front_if(|ready| *ready <= now).is_some() {
                    if departures.take(peer.parse().unwrap(), &config, at(now)) {
                        left += 1;
                    } else if departures.hold(reply(peer, now + 1000), &config) == Kept::Dropped {
                        dropped += 1;
                    }
                }
            }
            assert!(left as u64 >= least && left <= 2000 + 20, "{per_second} a second: {left} left, {dropped} dropped");
            assert!(per_second > 200 || dropped == 0, "{per_second} a second: {dropped} dropped");
        }
    }

    #[test]
    fn a_late_turn_brings_no_pulse() {
        let (departures, config) = (Departures::new(), config(0));
        while departures.take("192.0.2.1".parse().unwrap(), &config, at(0)) {}
        for _ in 0..1000 {
            departures.hold(reply("192.0.2.1", 1000), &config);
        }
        assert_eq!(departures.release(&config, at(500)).due.len(), 20, "as after any silence");
        assert_eq!(departures.release(&config, at(999)).due.len(), 20);
        let last = departures.release(&config, at(1000));
        assert_eq!((last.due.len(), last.dropped, last.has_more), (0, 960, false));
        assert_eq!(departures.held.lock().bytes, 0);
    }

    #[test]
    fn networks_do_not_wait_for_each_other_and_memory_is_bounded() {
        let (departures, config) = (Departures::new(), config(10));
        assert!(departures.take("192.0.2.1".parse().unwrap(), &config, at(0)));
        assert!(!departures.take("192.0.2.200".parse().unwrap(), &config, at(0)));
        assert!(departures.take("192.0.3.1".parse().unwrap(), &config, at(0)));
        assert_eq!(departures.hold(reply("192.0.2.1", 1000), &config), Kept::WaitsFirst);
        for _ in 1..10 {
            assert_eq!(departures.hold(reply("192.0.2.1", 1000), &config), Kept::Waits);
        }
        assert_eq!(departures.hold(reply("192.0.2.1", 1000), &config), Kept::Dropped, "a second's worth waits");
        let large = Reply { message: vec![0; MOST_BYTES], ..reply("192.0.4.1", 1000) };
        assert_eq!(departures.hold(large, &config), Kept::Dropped);
        // What was dropped leaves nothing behind.
        let released = departures.release(&config, at(1000));
        assert_eq!((released.dropped, released.has_more), (10, false));
        assert_eq!(departures.hold(reply("192.0.2.1", 3000), &config), Kept::WaitsFirst);
    }
}
