//! Whether what is sent to an upstream comes back to us.
//!
//! Where two resolvers forward to each other nothing is ever settled: the question that comes back waits for itself, and
//! fails when its time is up. That costs little, but all that is seen of it is an upstream that does not answer. So such a
//! one is asked for a name that nobody else can ask for. If that is asked of us, it is a loop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Exchange, Group, Options, Upstream, task::run};
use crate::{
    clock::Moment,
    wire::{Class, Question, Rtype},
};

/// The names that are asked for at present.
#[derive(Debug, Default)]
pub struct LoopWatch {
    /// Spares queries the lock while there are none.
    open: AtomicUsize,
    asked: Mutex<Vec<(String, Arc<Upstream>)>>,
}

/// A name that is asked for until this is dropped.
struct Asked<'a> {
    watch: &'a LoopWatch,
    label: String,
}

impl LoopWatch {
    /// Asks an upstream for such a name below a suffix that it is responsible for, and waits whether it comes back.
    pub async fn check(&self, upstream: Arc<Upstream>, suffix: &str) {
        let label = format!("{:016x}", rand::random::<u64>());
        let below = if suffix == "." { "" } else { suffix };
        // A suffix that leaves no room for it is not checked.
        let Ok(qname) = format!("{label}.{SIGN}.{below}").parse() else { return };
        let _asked = self.ask(label, upstream.clone());
        let question = Question { qname, qtype: Rtype::TXT, qclass: Class::IN };
        let options = Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout: TIMEOUT };
        let group = Arc::new(Group::of_one(upstream));
        let exchange = Exchange::new(group, &question, options, Moment::now(), &mut rand::rng());
        run(exchange, || ()).await;
    }

    fn ask(&self, label: String, upstream: Arc<Upstream>) -> Asked<'_> {
        self.asked.lock().push((label.clone(), upstream));
        self.open.fetch_add(1, Relaxed);
        Asked { watch: self, label }
    }

    /// Whether a query is one of ours that has come back. It deserves no answer: that would only make the upstream look well.
    #[inline]
    pub fn is_returned(&self, qname: &[u8]) -> bool {
        self.open.load(Relaxed) > 0 && self.recognize(qname)
    }

    #[cold]
    fn recognize(&self, qname: &[u8]) -> bool {
        let Some((&length, rest)) = qname.split_first() else { return false };
        let Some(first) = rest.get(..usize::from(length)) else { return false };
        let asked = self.asked.lock();
        let ours = asked.iter().find(|(label, _)| label.as_bytes().eq_ignore_ascii_case(first));
        if let Some((_, upstream)) = ours {
            upstream.note_loop();
        }
        ours.is_some()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.watch.asked.lock().retain(|(label, _)| *label != self.label);
        self.watch.open.fetch_sub(1, Relaxed);
    }
}

/// Tells whoever sees such a name what it is.
const SIGN: &str = "loop-check.watershed";
/// What has not come back by then does not.
const TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{forward::Config, metrics::Metrics, wire::Name};

    #[test]
    fn a_name_is_known_while_it_is_asked_for_whatever_its_letters() {
        let config: Config = toml::from_str("suffixes = ['.']\nupstreams = ['192.0.2.53']").unwrap();
        let metrics = Metrics::new();
        let group = Group::build_all(&[config.rule().unwrap()], &[], &metrics).unwrap().remove(0);
        let watch = LoopWatch::default();
        let wire = |name: &str| name.parse::<Name>().unwrap().wire().to_vec();
        let asked = watch.ask("00c0ffee00c0ffee".into(), group.upstreams()[0].clone());
        for (qname, expected) in [
            ("00c0ffee00c0ffee.loop-check.watershed", true),
            ("00C0ffee00c0FFEE.loop-check.watershed", true), // a forwarder may mix letters, too
            ("00c0ffee00c0ffef.loop-check.watershed", false),
            ("loop-check.watershed", false),
            (".", false),
        ] {
            assert_eq!(watch.is_returned(&wire(qname)), expected, "{qname}");
        }
        assert!(metrics.render().contains("watershed_forward_loops_total{upstream=\"192.0.2.53:53\"} 2"));
        drop(asked);
        assert!(!watch.is_returned(&wire("00c0ffee00c0ffee.loop-check.watershed")));
    }
}
