//! The upstreams of one rule: in which order they are asked, and how often a query may be sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, RngExt};
use smallvec::SmallVec;

use super::{CaFileError, DEFAULT_TIMEOUT, Policy, Rule, Upstream, trust::Trust};
use crate::{clock::Moment, metrics::Metrics, wire::Name};

/// The upstreams of one forward rule.
#[derive(Debug)]
pub struct Group {
    name: String,
    upstreams: Vec<Arc<Upstream>>,
    policy: Policy,
    trust_ad: Option<bool>,
    blocks_special: bool,
    /// Whether the rule says so itself.
    says_block_special: bool,
    mixed_case: bool,
    timeout: Duration,
    turn: AtomicUsize,
    budget: Mutex<Budget>,
}

/// Places in [`Group::upstreams`].
pub(super) type Order = SmallVec<[usize; 4]>;

/// What may be sent again: a twentieth of what is sent, and always a few a second, so that a quiet host, which has
/// saved up little, is not left to its luck.
#[derive(Debug)]
struct Budget {
    /// In shares of a resend, [`SENDS_PER_RESEND`] for each.
    shares: u64,
    refilled: Moment,
}

impl Group {
    /// The groups of all rules, or what is wrong with the files that they name. Upstreams with the same URL and the same
    /// authorities are one, across rules and, through `running`, across reloads.
    pub fn build_all(
        rules: &[Rule],
        running: &[Arc<Self>],
        metrics: &Metrics,
    ) -> Result<Vec<Arc<Self>>, Vec<CaFileError>> {
        let mut faults = Vec::new();
        let read = rules.iter().map(|rule| Trust::read(rule.ca_file.as_deref()));
        let trusted: Vec<Trust> = read.filter_map(|trust| trust.map_err(|fault| faults.push(fault)).ok()).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut known: Vec<Arc<Upstream>> = running.iter().flat_map(|group| group.upstreams.clone()).collect();
        let build = |(rule, trust): (&Rule, &Trust)| {
            let upstreams = rule.upstreams.iter().map(|url| {
                if let Some(upstream) = known.iter().find(|known| known.url() == url && known.trust() == trust) {
                    return Arc::clone(upstream);
                }
                let upstream = Arc::new(Upstream::new(url.clone(), trust.clone(), metrics));
                known.push(Arc::clone(&upstream));
                upstream
            });
            let upstreams = upstreams.collect();
            Arc::new(Self::new(rule, upstreams))
        };
        Ok(rules.iter().zip(&trusted).map(build).collect())
    }

    fn new(rule: &Rule, upstreams: Vec<Arc<Upstream>>) -> Self {
        Self {
            name: rule.suffixes.first().map_or_else(|| ".".into(), |suffix| suffix.get_ref().to_string()),
            upstreams,
            policy: rule.policy,
            trust_ad: rule.trust_ad,
            blocks_special: rule.blocks_special(),
            says_block_special: rule.block_special.is_some(),
            mixed_case: rule.mixed_case,
            timeout: rule.timeout,
            turn: AtomicUsize::new(0),
            budget: Mutex::new(Budget { shares: MAX_SHARES, refilled: Moment::default() }),
        }
    }

    /// A group of one, for a probe. It leaves the letters alone: what shall be known is whether anything answers.
    pub(super) fn of_one(upstream: Arc<Upstream>) -> Self {
        let rule = Rule {
            suffixes: Vec::new(),
            upstreams: Vec::new(),
            ca_file: None,
            policy: Policy::Ordered,
            trust_ad: None,
            block_special: None,
            mixed_case: false,
            timeout: DEFAULT_TIMEOUT,
            guarded_but: None,
        };
        Self::new(&rule, vec![upstream])
    }

    /// Its first suffix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of them, as written.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// Whether names that mean something only within a site are answered here instead of by these upstreams.
    pub fn blocks_special(&self) -> bool {
        self.blocks_special
    }

    /// Why a name is answered here instead of by these upstreams, for the client.
    pub fn why_special_is_blocked(&self, apex: &Name) -> String {
        let rule = &self.name;
        let cause = match self.says_block_special {
            true => format!("block_special is set in the rule for {rule}"),
            false => format!("block_special is on, for all upstreams of the rule for {rule} are public"),
        };
        format!(
            "{apex} is not forwarded: {cause}; set block_special = false, or forward {apex} to servers that know it"
        )
    }

    /// How long a query may take, all its attempts included.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The upstreams to be probed now; each is given out once per turn of its schedule.
    pub fn probes_due(&self, now: Moment) -> Vec<Arc<Upstream>> {
        self.upstreams.iter().filter(|upstream| upstream.take_probe(now)).cloned().collect()
    }

    /// The upstreams of which it is to be found out now whether they forward to us.
    pub fn loop_checks_due(&self, now: Moment) -> Vec<Arc<Upstream>> {
        self.upstreams.iter().filter(|upstream| upstream.take_loop_check(now)).cloned().collect()
    }

    pub(super) fn mixes_letters(&self) -> bool {
        self.mixed_case
    }

    /// Whether this upstream's AD bit is relayed.
    pub(super) fn trusts_ad(&self, upstream: &Upstream) -> bool {
        self.trust_ad.unwrap_or_else(|| upstream.url().is_loopback() || upstream.url().is_encrypted())
    }

    /// Places in [`Self::upstreams`] in the order in which they are to be asked. Down ones come last; none is left out.
    pub(super) fn order(&self, rng: &mut impl Rng) -> Order {
        let count = self.upstreams.len();
        let mut order: Order = (0..count).collect();
        if count < 2 {
            return order;
        }
        match self.policy {
            Policy::Ordered => {}
            Policy::Rotate => order.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % count),
            Policy::Fastest => {
                // One never heard of counts as the fastest, and so becomes known.
                order.sort_by_cached_key(|&place| self.upstreams[place].round_trip().unwrap_or(Duration::ZERO));
                // The others are asked now and then, lest one that was slow once be slow forever.
                if rng.random_ratio(1, QUERIES_PER_EXPLORATION) {
                    let other = rng.random_range(1..count);
                    order[..=other].rotate_right(1);
                }
            }
        }
        order.sort_by_key(|&place| !self.upstreams[place].is_up());
        order
    }

    /// A query is sent to an upstream for the first time. That is never held back, and earns a share of a resend.
    pub(super) fn note_send(&self) {
        let mut budget = self.budget.lock();
        budget.shares = (budget.shares + 1).min(MAX_SHARES);
    }

    /// Whether a query may be sent again now.
    pub(super) fn take_resend(&self, now: Moment) -> bool {
        let mut budget = self.budget.lock();
        let elapsed_ms = now.since(budget.refilled).as_millis() as u64;
        let refill = elapsed_ms.saturating_mul(RESENDS_PER_SECOND * SENDS_PER_RESEND) / 1000;
        if refill > 0 {
            budget.shares = budget.shares.saturating_add(refill).min(MAX_SHARES);
            budget.refilled = now;
        }
        let left = budget.shares.checked_sub(SENDS_PER_RESEND);
        budget.shares = left.unwrap_or(budget.shares);
        left.is_some()
    }
}

/// Resends stay below 5 % of sends.
const SENDS_PER_RESEND: u64 = 20;
/// What a host may send again however little it sends.
const RESENDS_PER_SECOND: u64 = 5;
/// What can be saved up: fifty resends, enough for an outage of seconds on a quiet host.
const MAX_SHARES: u64 = 50 * SENDS_PER_RESEND;
/// How many queries go by the clock before one explores, under `fastest`.
const QUERIES_PER_EXPLORATION: u32 = 50;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{forward::Config, wire::Rcode};

    fn rule(text: &str) -> Rule {
        toml::from_str::<Config>(&format!("suffixes = ['.']\n{text}")).unwrap().rule().unwrap()
    }

    fn group(text: &str) -> Arc<Group> {
        build(&[rule(text)], &[]).remove(0)
    }

    fn build(rules: &[Rule], running: &[Arc<Group>]) -> Vec<Arc<Group>> {
        Group::build_all(rules, running, &Metrics::new()).unwrap()
    }

    fn take_down(upstream: &Upstream) {
        (0..3).for_each(|_| upstream.note_refused(&"port closed", Moment::from_millis(1)));
    }

    const THREE: &str = "upstreams = ['192.0.2.1', '192.0.2.2', '192.0.2.3']";

    #[test]
    fn down_upstreams_are_asked_last_but_asked() {
        let mut rng = StdRng::seed_from_u64(1);
        let group = group(THREE);
        assert_eq!(group.order(&mut rng)[..], [0, 1, 2]);
        take_down(&group.upstreams()[0]);
        assert_eq!(group.order(&mut rng)[..], [1, 2, 0]);
        take_down(&group.upstreams()[1]);
        take_down(&group.upstreams()[2]);
        assert_eq!(group.order(&mut rng)[..], [0, 1, 2], "all down: as if all were up");
    }

    #[test]
    fn rotation_gives_each_its_turn() {
        let mut rng = StdRng::seed_from_u64(1);
        let group = group(&format!("policy = 'rotate'\n{THREE}"));
        let first: Vec<usize> = (0..4).map(|_| group.order(&mut rng)[0]).collect();
        assert_eq!(first, [0, 1, 2, 0]);
    }

    #[test]
    fn the_fastest_is_asked_first_and_the_others_now_and_then() {
        let mut rng = StdRng::seed_from_u64(1);
        let group = group(&format!("policy = 'fastest'\n{THREE}"));
        for (upstream, millis) in group.upstreams().iter().zip([30, 10, 20]) {
            upstream.note_reply(Rcode::NOERROR, Some(Duration::from_millis(millis)));
        }
        let mut first = [0; 3];
        (0..1000).for_each(|_| first[group.order(&mut rng)[0]] += 1);
        assert!(first[1] > 960, "{first:?}");
        assert!(first[0] > 0 && first[2] > 0, "{first:?}");
    }

    #[test]
    fn resends_stay_below_a_twentieth_of_the_sends() {
        let group = group(THREE);
        let now = Moment::from_millis(1_000_000);
        let take_all = |now| std::iter::repeat_with(|| group.take_resend(now)).take_while(|&taken| taken).count();
        assert_eq!(take_all(now), 50, "what is saved up");
        assert_eq!(take_all(now), 0);
        (0..200).for_each(|_| group.note_send());
        assert_eq!(take_all(now), 10, "a twentieth");
        assert_eq!(take_all(now + Duration::from_secs(1)), 5, "and always a few a second");
    }

    #[test]
    fn an_upstream_outlives_a_reload_that_keeps_it() {
        let running = build(&[rule(THREE), rule("upstreams = ['192.0.2.2']")], &[]);
        assert!(Arc::ptr_eq(&running[0].upstreams()[1], &running[1].upstreams()[0]), "one server, one upstream");
        let reloaded = build(&[rule("upstreams = ['192.0.2.2', 'tcp://192.0.2.2']")], &running);
        assert!(Arc::ptr_eq(&running[0].upstreams()[1], &reloaded[0].upstreams()[0]));
        assert!(!Arc::ptr_eq(&running[0].upstreams()[1], &reloaded[0].upstreams()[1]), "by another transport");
    }

    #[test]
    fn defaults_follow_from_the_addresses() {
        for (text, blocks_special, trusts_ad) in [
            ("upstreams = ['192.0.2.1']", true, false),
            ("upstreams = ['192.0.2.1', '10.0.0.1']", false, false), // an internal recursor may know them
            ("upstreams = ['127.0.0.1']", false, true),
            ("upstreams = ['tls://192.0.2.1']", true, true),
            ("upstreams = ['192.0.2.1']\ntrust_ad = true\nblock_special = false", false, true),
        ] {
            let group = group(text);
            assert_eq!(group.blocks_special(), blocks_special, "{text}");
            assert_eq!(group.trusts_ad(&group.upstreams()[0]), trusts_ad, "{text}");
        }
    }
}
