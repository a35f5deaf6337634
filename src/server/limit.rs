//! How many replies a network is sent by UDP, for its addresses may be forged: then it is the victim of what we send.
//!
//! A bucket for each network, /24 and /56 unless told otherwise: it holds the replies of one second, and fills as fast as it
//! may be emptied. Who finds it empty gets nothing, but every so often a reply that is only truncated: it is no longer
//! than the query, but for the 16 octets of a cookie that it may tell, and brings a true client back by TCP, whose address
//! nobody can forge. Replies that wait for an upstream are counted once more as they [leave](super::departure). The buckets
//! lie in a table of one size, found by a hash that nobody else can compute; networks that share one share what it holds.
//! There is no lock: a bucket is one word, and a look at it one exchange.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};

use super::Acl;
use crate::clock::Moment;

/// How many replies a network is sent by UDP, section `[server.rate_limit]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Replies by UDP to one network in a second, and as many at once after a while of silence; from 1 to 1000000, or 0 for no
    /// limit. Default 0. Applies at reload.
    pub responses_per_second: u32,
    /// Of the replies beyond, every so manieth is sent truncated, the others are dropped: 1 sends all so, 0 none; at most 10.
    /// Default 2. Applies at reload.
    pub slip: u8,
    /// How many bits of an IPv4 address make a network, from 8 to 32.
    /// Default 24. Applies at reload.
    pub ipv4_prefix: u8,
    /// The same for IPv6, from 16 to 128.
    /// Default 56. Applies at reload.
    pub ipv6_prefix: u8,
    /// The clients to which none of this applies, listed as in `server.allow`.
    /// Default `["loopback"]`. Applies at reload.
    pub exempt: Acl,
}

impl Default for Config {
    fn default() -> Self {
        Self { responses_per_second: 0, slip: 2, ipv4_prefix: 24, ipv6_prefix: 56, exempt: Acl::loopback() }
    }
}

impl Config {
    /// Whether there is a limit at all.
    pub fn is_on(&self) -> bool {
        self.responses_per_second > 0
    }

    /// The address of a client's network.
    pub(super) fn network(&self, client: IpAddr) -> IpAddr {
        match client.to_canonical() {
            IpAddr::V4(v4) => {
                let host_bits = 32 - u32::from(self.ipv4_prefix);
                Ipv4Addr::from_bits(v4.to_bits().checked_shr(host_bits).unwrap_or(0)).into()
            }
            IpAddr::V6(v6) => {
                let host_bits = 128 - u32::from(self.ipv6_prefix);
                Ipv6Addr::from_bits(v6.to_bits().checked_shr(host_bits).unwrap_or(0)).into()
            }
        }
    }
}

/// What a client may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowance {
    /// Its reply.
    Reply,
    /// That it should come by TCP.
    Truncated,
    /// Nothing.
    Nothing,
}

/// The buckets of all networks.
#[derive(Debug)]
pub(super) struct Limiter {
    /// When the bucket will be full again, in microseconds, above [`HELD_BITS`] bits that count what was held back since the
    /// last truncated reply.
    buckets: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Limiter {
    pub fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::new() }
    }

    /// Takes a reply to this client out of its network's bucket, if there is any.
    pub fn take(&self, client: IpAddr, config: &Config, now: Moment) -> Allowance {
        if !config.is_on() || config.exempt.allows(client) {
            return Allowance::Reply;
        }
        let bucket = &self.buckets[self.hasher.hash_one(config.network(client)) as usize % BUCKETS];
        let now = now.as_millis() * 1000;
        let step = (SECOND / u64::from(config.responses_per_second)).max(1);
        let mut allowance = Allowance::Reply;
        let take = |word: u64| {
            let full_at = (word >> HELD_BITS).max(now) + step;
            if full_at <= now + SECOND {
                allowance = Allowance::Reply;
                return Some(full_at << HELD_BITS);
            }
            let held = (word & HELD_MASK) + 1;
            let is_truncated = held == u64::from(config.slip);
            allowance = if is_truncated { Allowance::Truncated } else { Allowance::Nothing };
            // Where nothing is to be truncated, nothing has to be counted.
            let held = if is_truncated || config.slip == 0 { 0 } else { held };
            Some(word & !HELD_MASK | held)
        };
        // It never refuses to take.
        let _ = bucket.fetch_update(Relaxed, Relaxed, take);
        allowance
    }
}

/// In 512 KiB: more networks than are seen at a time, unless their addresses are forged.
const BUCKETS: usize = 1 << 16;
const HELD_BITS: u32 = 8;
const HELD_MASK: u64 = (1 << HELD_BITS) - 1;
/// In microseconds.
const SECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Moment = Moment::from_millis(1_000_000);

    fn config(responses_per_second: u32, slip: u8) -> Config {
        Config { responses_per_second, slip, exempt: Acl::default(), ..Config::default() }
    }

    /// How many of so many queries get a reply, and how many a truncated one.
    fn ask(limiter: &Limiter, config: &Config, client: &str, queries: usize, now: Moment) -> (usize, usize) {
        let taken: Vec<_> = (0..queries).map(|_| limiter.take(client.parse().unwrap(), config, now)).collect();
        let count = |wanted| taken.iter().filter(|allowance| **allowance == wanted).count();
        (count(Allowance::Reply), count(Allowance::Truncated))
    }

    #[test]
    fn a_network_gets_a_second_at_once_and_then_what_flows_in() {
        let (limiter, config) = (Limiter::new(), config(10, 2));
        assert_eq!(ask(&limiter, &config, "192.0.2.1", 30, NOW), (10, 10), "every second one of the 20 beyond");
        assert_eq!(ask(&limiter, &config, "192.0.2.1", 1, NOW + Duration::from_millis(99)).0, 0);
        assert_eq!(ask(&limiter, &config, "192.0.2.1", 5, NOW + Duration::from_millis(300)).0, 3);
        assert_eq!(
            ask(&limiter, &config, "192.0.2.1", 30, NOW + Duration::from_secs(60)).0,
            10,
            "and no more saved up"
        );
    }

    #[test]
    fn every_so_manieth_reply_beyond_is_truncated() {
        for (slip, truncated) in [(0, 0), (1, 60), (2, 30), (3, 20), (10, 6)] {
            assert_eq!(ask(&Limiter::new(), &config(1, slip), "192.0.2.1", 61, NOW), (1, truncated), "slip {slip}");
        }
    }

    #[test]
    fn a_bucket_is_a_networks() {
        let (limiter, config) = (Limiter::new(), config(1, 0));
        for (client, replies) in [
            ("192.0.2.1", 1),
            ("192.0.2.200", 0),
            ("::ffff:192.0.2.9", 0),
            ("192.0.3.1", 1),
            ("2001:db8:0:1::1", 1),
            ("2001:db8:0:ff::2", 0), // of the same /56
            ("2001:db8:0:100::1", 1),
            ("127.0.0.1", 9), // exempt
            ("10.0.0.1", 9),
        ] {
            assert_eq!(ask(&limiter, &config, client, 9, NOW).0, replies, "{client}");
        }
        let every = Config { ipv4_prefix: 32, ipv6_prefix: 128, ..config.clone() };
        for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
            assert_eq!(ask(&Limiter::new(), &every, client, 9, NOW).0, 1, "{client}");
        }
    }

    #[test]
    fn without_a_limit_all_is_replied_to() {
        assert_eq!(ask(&Limiter::new(), &config(0, 2), "192.0.2.1", 1000, NOW), (1000, 0));
        assert_eq!(ask(&Limiter::new(), &config(1_000_000, 2), "192.0.2.1", 1000, NOW), (1000, 0));
    }
}
