//! One upstream asked: the query as it is sent, and what has come of it so far.

use rand::Rng;

use super::{
    Options, UpstreamUrl,
    upstream::{Cookie, Habits},
    verdict::{Asked, Doubt, Over, Verdict},
};
use crate::{
    clock::Moment,
    wire::{MAX_NAME_BYTES, Name, Question, UpstreamEdns, UpstreamQuery},
};

/// An upstream that has been asked. However often that is repeated, id and letters stay the same.
#[derive(Debug)]
pub(super) struct Attempt {
    /// The place of the upstream in its group.
    pub place: usize,
    pub state: State,
    pub id: u16,
    /// With its letters as sent.
    pub qname: Name,
    pub edns: bool,
    /// EDNS was left out because of a reply to a query with it.
    pub edns_dropped: bool,
    pub cookie: Cookie,
    pub cookie_refused: bool,
    pub sent_at: Moment,
    pub is_overdue: bool,
    pub wrong_replies: u32,
    /// Why it was taken from UDP to a stream, if for something that can be learned.
    pub doubt: Option<Doubt>,
    /// Its letters are mixed.
    pub is_mixed: bool,
    /// The same upstream was asked in plain letters since.
    pub is_replaced: bool,
    /// The first reply without the question.
    pub doubtful: Option<Doubtful>,
}

/// A reply that is believed if no better one comes.
#[derive(Debug)]
pub(super) struct Doubtful {
    /// For so long a better one is waited for.
    pub until: Moment,
    /// What it is worth then.
    pub verdict: Box<Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting(Over),
    Failed(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Network,
    /// It never left this host, for want of descriptors or memory. That says nothing of the upstream.
    Unsent,
    Silence,
    Reply,
}

impl Attempt {
    pub fn new(place: usize, over: Over, id: u16, qname: Name, habits: Habits, now: Moment) -> Self {
        Self {
            place,
            state: State::Waiting(over),
            id,
            qname,
            edns: habits.edns,
            edns_dropped: false,
            cookie: habits.cookie,
            cookie_refused: false,
            sent_at: now,
            is_overdue: false,
            wrong_replies: 0,
            doubt: None,
            is_mixed: false,
            is_replaced: false,
            doubtful: None,
        }
    }

    /// Whether it waits and is worth asking again: nothing is sent twice over a stream, but perhaps with other letters.
    pub fn is_silent(&self) -> bool {
        let may_be_repeated = match self.state {
            State::Waiting(Over::Udp) => true,
            State::Waiting(Over::Stream) => self.is_mixed,
            State::Failed(_) => false,
        };
        may_be_repeated && !self.is_replaced
    }

    /// The query to send.
    pub fn query(&self, question: &Question, options: Options, url: &UpstreamUrl) -> UpstreamQuery<'_> {
        UpstreamQuery {
            id: self.id,
            qname: &self.qname,
            qtype: question.qtype,
            qclass: question.qclass,
            checking_disabled: options.checking_disabled,
            edns: self.edns.then_some(UpstreamEdns {
                udp_size: if url.is_loopback() { LOOPBACK_UDP_BYTES } else { UDP_BYTES },
                dnssec_ok: options.dnssec_ok,
                cookie: if url.is_encrypted() { &[] } else { self.cookie.octets() },
            }),
        }
    }

    /// What a reply is held against.
    pub fn asked(&self, question: &Question, over: Over) -> Asked<'_> {
        Asked {
            id: self.id,
            qname: &self.qname,
            qtype: question.qtype,
            qclass: question.qclass,
            over,
            edns: self.edns,
            cookie: &self.cookie,
        }
    }
}

/// The name with each letter in upper or lower case at random: bits that a forger has to guess.
pub(super) fn mix_letters(qname: &Name, rng: &mut impl Rng) -> Name {
    let mut random = [0; MAX_NAME_BYTES];
    rng.fill_bytes(&mut random[..qname.wire().len()]);
    qname.with_letters_flipped(&random)
}

/// What is offered to most upstreams: it survives almost every path (DNS flag day 2020).
const UDP_BYTES: u16 = 1232;
/// What is offered on loopback, where nothing is lost by fragments; Consul cuts in silence what exceeds the offer.
const LOOPBACK_UDP_BYTES: u16 = 16_384;
