//! The order of authority, for what is not cached: overlay, then the longest suffix; then fill the cache.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use rand::{Rng, RngExt};
use smallvec::SmallVec;
use tokio::{sync::oneshot, time::timeout};

use super::{
    Client, Resolver,
    chase::{Arrival, Said, Walk},
    confine::confine,
    hit::{Asking, Denial, FromCache, Miss, STALE_ANSWER},
    inflight::{Join, Landing, Party, Sister, Verdict as Lands, Waiter, Waiters, Whose},
    rebinding::withhold,
    tables::{Catalog, Chance, Decision, Route, Sharing, Tables, catalog_rule, is_catalog_rule},
};
use crate::{
    cache::{Basis, Epoch, Found, Key, Life, Marks, Origin, RuleId, State, Variant, clamp, is_nodata},
    catalog::{Awaited, ServiceKey, Verdict},
    clock::Moment,
    forward::{DEFAULT_TIMEOUT, Exchange, Options, Outcome, PATIENCE},
    wire::{self, Answer, Asker, Name, Question, Rcode, Record, Response, Rtype, Ttls, View, flag},
};

/// What [`Resolver::begin`] made of a miss.
#[expect(
    clippy::large_enum_variant,
    reason = "moved once, to whoever drives it: a box would cost each miss an allocation"
)]
pub enum Begun {
    /// The reply is written.
    Reply(Rcode, Reason),
    /// Nothing is to be said to this client: an overlay's `rpz-drop.`.
    Drop,
    /// It waits with others who asked the same.
    Joined,
    /// This exchange is to be driven; its outcome goes to [`Resolver::finish`].
    Exchange(Exchange, Box<Job>),
    /// This is to be waited for; then comes [`Resolver::resume`].
    Wait(Pending, Box<Job>),
}

/// Why a miss could be replied to without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Overlay, zone or rule of this host.
    Local,
    /// It came into the cache meanwhile.
    Cached,
    /// Too many wait already.
    Overload,
    /// Too many of this client wait already.
    ClientOverload,
}

/// The question that an exchange serves, and what is known so far.
#[derive(Clone)]
pub struct Job {
    party: Party,
    client: Client,
    began: Moment,
    /// When the client must have had an answer, whatever has to be asked for it: by the longest timeout of the rules that were
    /// asked.
    ends: Moment,
    walk: Walk,
    /// Who is asked at present; nothing for the catalog.
    route: Option<Arc<Route>>,
    /// The rule that answers at present.
    rule: RuleId,
    /// How often a source of the catalog was waited for.
    waits: u8,
    /// A name on the way may not lead to addresses within a site.
    is_guarded: bool,
}

/// A source of the catalog that has been asked for what the catalog does not hold.
pub struct Pending {
    told: Option<oneshot::Receiver<()>>,
    until: Moment,
    patience_ends: Moment,
}

impl Pending {
    /// Waits until the source has answered, or there is no more time. `out_of_patience` is called each time that the
    /// clients have waited long enough for a stale answer.
    pub async fn wait(mut self, mut out_of_patience: impl FnMut()) {
        let Some(mut told) = self.told else { return };
        loop {
            let wake_at = self.until.min(self.patience_ends);
            // A source that drops the wish has said that it cannot have it.
            let is_told = timeout(wake_at.since(Moment::now()), &mut told).await.is_ok();
            let now = Moment::now();
            if is_told || now >= self.until {
                return;
            }
            if now >= self.patience_ends {
                self.patience_ends = now + PATIENCE;
                out_of_patience();
            }
        }
    }
}

/// What follows the end of an exchange.
#[expect(clippy::large_enum_variant, reason = "moved once, to whoever drives it")]
pub enum Next {
    /// These are to be replied to.
    Settled(Outgoing),
    /// This is to be asked next, in the same cause.
    Exchange(Exchange, Box<Job>),
    /// This is to be waited for in the same cause; then comes [`Resolver::resume`].
    Wait(Pending, Box<Job>),
}

/// Almost always one: the question's, and at most its sister's beside it.
pub type Outgoing = SmallVec<[Settled; 1]>;

/// A response, and those who wait for it.
pub struct Settled {
    /// The response.
    pub response: Response,
    /// What its TTLs become.
    pub ttls: Ttls,
    /// Whom to reply to.
    pub waiters: Waiters,
}

/// A NODATA answer held back for its sister's sake.
pub(super) struct Held {
    key: Key,
    response: Response,
    ttls: Ttls,
    keep: Keep,
}

/// What becomes of a held answer in the cache once it is given.
enum Keep {
    /// It takes the place of what is there; `None` for one that may not be kept.
    Insert(Option<(Life, Basis)>),
    /// It comes from there.
    AsIs,
}

/// A kept answer that is given where the upstreams have none.
struct Kept {
    response: Response,
    ttls: Ttls,
}

/// What there is to give to those who wait, should the upstreams have nothing.
enum Fallback {
    /// Nothing.
    None,
    /// This.
    Answer(Kept),
    /// This NODATA, unless its sister fails, which is still open.
    UnlessSisterFails(Kept),
}

/// How far local data and the cache lead.
enum Look {
    /// To the end; the rule is the first that said something.
    End(Arrival, RuleId),
    /// To the upstreams of a rule.
    Ask(Arc<Route>),
    /// To what has to be known before the catalog can answer; the marks are of what it knows so far.
    Wait(Catalog, Wanted, Marks),
    /// To an overlay that wants nothing said.
    Drop,
    /// To an overlay that wants the client to come again by TCP.
    UseTcp,
}

/// What the catalog waits for.
enum Wanted {
    /// The present state of something at a source.
    State(ServiceKey),
    /// First results of checks.
    Results(Awaited),
}

impl Resolver {
    /// Begins to look for the answer to a miss. A reply is written into `out`; `waiter` is called if the client has
    /// to wait.
    pub fn begin(
        &self,
        miss: &Miss<'_>,
        waiter: impl FnOnce(Asker, &[u8]) -> Waiter,
        now: Moment,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> Begun {
        // Taken before anything is decided, so that an answer of old tables cannot pass for one of new tables.
        let tables = self.tables();
        let Miss { query, asker, key, client } = miss;
        let letters = query.question_bytes();
        let chance = Chance { random: rng.random(), now };
        let mut reply = |response: &Response, reason| {
            wire::write_reply(response.view(), asker, letters, Ttls::Aged(0), rng, out);
            Begun::Reply(response.rcode(), reason)
        };
        let mut walk = Walk::new(key.question());
        let look = self.look(&tables, &mut walk, key.variant(), *client, chance);
        match &look {
            Look::End(arrival, rule) if !self.has_sister_to_mind(&tables, key, *client, &arrival.response, now) => {
                let keep = keep(arrival, *rule, tables.epoch(), now);
                self.insert(key, &arrival.response, keep, now);
                return reply(&arrival.response, Reason::Local);
            }
            Look::End(..) | Look::Wait(..) => {}
            Look::Ask(_) if !query.recursion_desired() => {
                // What is known here is said, and nobody is asked.
                let known = match (walk.is_at_start(), client.sees_cache) {
                    (false, _) => walk.so_far(),
                    (true, true) => walk.error(Rcode::REFUSED, 20, "recursion was not desired").response,
                    (true, false) => walk.error(Rcode::REFUSED, 18, CACHE_HIDDEN).response,
                };
                return reply(&known, Reason::Local);
            }
            Look::Ask(_) => {}
            Look::Drop => return Begun::Drop,
            Look::UseTcp => {
                let mut empty = Response::error(&key.question(), Rcode::NOERROR, &[]);
                empty.set_flag(flag::TC, true);
                return reply(&empty, Reason::Local);
            }
        }
        let asking = Asking { key, asker, question: letters, client: *client };
        let start = out.len();
        let look_again = |is_sister_open: &dyn Fn() -> bool| match self.reply_from_cache(asking, now, rng, out) {
            FromCache::Reply(_, _, Denial::OfType) if is_sister_open() => {
                out.truncate(start);
                None
            }
            FromCache::Reply(rcode, ..) => Some(rcode),
            FromCache::Miss => None,
        };
        let party = Party::new(key, *client, tables.epoch());
        match self.inflight.join(&party, now, Some(|| waiter(*asker, letters)), look_again) {
            Join::Joined => Begun::Joined,
            Join::Answered(rcode) => Begun::Reply(rcode, Reason::Cached),
            Join::Full(whose) => {
                if let Fallback::Answer(Kept { response, ttls }) = self.fallback(&party, now) {
                    wire::write_reply(response.view(), asker, letters, ttls, rng, out);
                    return Begun::Reply(response.rcode(), Reason::Cached);
                }
                let (error, reason) = match whose {
                    Whose::All => (OVERLOAD, Reason::Overload),
                    Whose::Client => (CLIENT_OVERLOAD, Reason::ClientOverload),
                };
                wire::write_reply(View::bare(Rcode::SERVFAIL, error), asker, letters, Ttls::Aged(0), rng, out);
                Begun::Reply(Rcode::SERVFAIL, reason)
            }
            Join::First => {
                let mut job = Job::new(party, *client, walk, now);
                match look {
                    Look::Ask(route) => {
                        let exchange = job.ask(route, now, rng);
                        Begun::Exchange(exchange, Box::new(job))
                    }
                    Look::Wait(catalog, wanted, _) => {
                        let pending = job.wait(&catalog, wanted, now);
                        Begun::Wait(pending, Box::new(job))
                    }
                    // It is looked at again beside its sister.
                    _ => {
                        job.walk = Walk::new(job.party.key.question());
                        Begun::Wait(Pending { told: None, until: now, patience_ends: now }, Box::new(job))
                    }
                }
            }
        }
    }

    /// Whether an answer says that a name has no address of one type while the query for the other is open, or has failed.
    fn has_sister_to_mind(&self, tables: &Tables, key: &Key, client: Client, response: &Response, now: Moment) -> bool {
        let epoch = tables.epoch();
        key.has_sister()
            && is_nodata(response)
            && (self.inflight.is_sister_open(&Party::new(key, client, epoch))
                || self.cache.sister_fails(key, response, now, epoch, |marks| tables.hold(marks)))
    }

    /// Begins to renew an entry of the cache that ends soon and is asked for often, if nobody does so already.
    pub fn refresh(&self, key: &Key, client: Client, now: Moment, rng: &mut impl Rng) -> Option<(Exchange, Box<Job>)> {
        let tables = self.tables();
        if !tables.prefetches() {
            return None;
        }
        let mut walk = Walk::new(key.question());
        let chance = Chance { random: rng.random(), now };
        let Look::Ask(route) = self.look(&tables, &mut walk, key.variant(), client, chance) else { return None };
        let party = Party::new(key, client, tables.epoch());
        match self.inflight.join(&party, now, None::<fn() -> Waiter>, |_| None::<()>) {
            Join::First => {
                let mut job = Job::new(party, client, walk, now);
                Some((job.ask(route, now, rng), Box::new(job)))
            }
            _ => None,
        }
    }

    /// Whom to give a stale answer because the upstreams take their time (RFC 8767 §5). The exchange goes on.
    ///
    /// It does not matter who began it: whoever waits by now gets what there is by now.
    pub fn lose_patience(&self, job: &Job, now: Moment) -> Outgoing {
        let Fallback::Answer(Kept { response, ttls }) = self.fallback(&job.party, now) else { return Outgoing::new() };
        // For some seconds, others get the stale answer at once.
        self.cache.fail(&job.party.key, &response, &job.basis(), now);
        self.settle(self.inflight.take_waiters(&job.party), response, ttls, now)
    }

    /// Takes in how an exchange ended.
    pub fn finish(&self, mut job: Box<Job>, outcome: Outcome, now: Moment, rng: &mut impl Rng) -> Next {
        let mut response = match outcome.response {
            Ok(response) => response,
            Err(failure) => return Next::Settled(self.fail(&job, failure.response, now)),
        };
        let Some(route) = job.route.take() else { return Next::Settled(self.abandon(&job, LOST, now)) };
        let tables = self.tables();
        let asked = job.walk.asked();
        let Question { qtype, qclass, .. } = *asked;
        let reach = job.walk.reach();
        let confined = confine(&mut response, asked, |owner| {
            let rule = |qname: &Name, qtype| {
                tables.rule_of(&Question { qname: qname.clone(), qtype, qclass }, job.client, reach, now)
            };
            let rule_of_owner = rule(owner, Rtype::A);
            // A catalog whose source is lost has the name, and another rule asked for it.
            rule_of_owner == Some(route.id) || rule_of_owner == rule(&asked.qname, asked.qtype)
        });
        clamp(&mut response, &route.lifetimes);
        job.is_guarded |= route.guards(&asked.qname);
        let stays = |target: &Name| {
            let target = Question { qname: target.clone(), qtype, qclass };
            tables.rule_of(&target, job.client, reach, now) == Some(route.id)
                && tables.sharing(&target, job.client) == Sharing::All
        };
        let said = self.exist_beside(&tables, &job.walk, job.client, Said::Forwarded(response, route.lifetimes));
        let look = match confined.and_then(|()| job.walk.take_in(said, stays)) {
            Ok(None) => {
                let chance = Chance { random: rng.random(), now };
                self.look(&tables, &mut job.walk, job.party.key.variant(), job.client, chance)
            }
            Ok(Some(arrival)) => Look::End(arrival, job.rule),
            Err(broken) => Look::End(job.walk.broken(broken), job.rule),
        };
        self.go_on(job, look, now, rng)
    }

    /// Goes on after a source of the catalog was waited for.
    pub fn resume(&self, mut job: Box<Job>, now: Moment, rng: &mut impl Rng) -> Next {
        let chance = Chance { random: rng.random(), now };
        let look = self.look(&self.tables(), &mut job.walk, job.party.key.variant(), job.client, chance);
        self.go_on(job, look, now, rng)
    }

    fn go_on(&self, mut job: Box<Job>, look: Look, now: Moment, rng: &mut impl Rng) -> Next {
        match look {
            Look::End(arrival, _) if !is_settled(arrival.response.rcode()) => {
                Next::Settled(self.fail(&job, arrival.response, now))
            }
            Look::End(mut arrival, rule) => {
                if job.is_guarded {
                    match withhold(&mut arrival.response) {
                        Ok(false) => {}
                        Ok(true) => {
                            self.withheld.fetch_add(1, Relaxed);
                            tracing::debug!(qname = %job.party.key.question().qname, "addresses within a site left out");
                        }
                        Err(error) => {
                            let end = job.walk.error(Rcode::SERVFAIL, 0, &error.to_string());
                            return Next::Settled(self.fail(&job, end.response, now));
                        }
                    }
                }
                // Of a chain that began with an upstream, it is the upstream's rule.
                let rule = if job.rule == NO_RULE { rule } else { job.rule };
                Next::Settled(self.keep(&job, arrival, rule, now))
            }
            Look::Ask(route) => Next::Exchange(job.ask(route, now, rng), job),
            Look::Wait(catalog, wanted, _) if job.waits < MOST_WAITS && now < job.ends => {
                Next::Wait(job.wait(&catalog, wanted, now), job)
            }
            Look::Wait(_, _, marks) => {
                job.walk.mark(marks);
                let end = job.walk.error(Rcode::SERVFAIL, 23, "the source of the catalog did not answer in time");
                Next::Settled(self.fail(&job, end.response, now))
            }
            Look::Drop | Look::UseTcp => {
                let end = job.walk.error(Rcode::SERVFAIL, 15, "an overlay drops a name that a CNAME leads to");
                Next::Settled(self.fail(&job, end.response, now))
            }
        }
    }

    /// Follows local data, and what the cache has of names further on, as far as they lead.
    fn look(&self, tables: &Tables, walk: &mut Walk, variant: Variant, client: Client, chance: Chance) -> Look {
        let mut first = None;
        loop {
            let asked = walk.asked();
            let sharing = tables.sharing(asked, client);
            let mut marks = Marks::default();
            let mut reach = walk.reach();
            let decision = tables.decide(asked, client, chance, &mut reach, &mut marks);
            if let Decision::Catalog { said, catalog, .. } = &decision {
                let wanted = match &said.verdict {
                    Verdict::Wait(service) => Some(Wanted::State(service.clone())),
                    Verdict::Await(awaited) => Some(Wanted::Results(awaited.clone())),
                    _ => None,
                };
                if let Some(wanted) = wanted {
                    // The answer will be made of what is known then.
                    return Look::Wait((*catalog).clone(), wanted, marks);
                }
            }
            // Whoever answers, it is their turn because the catalog has nothing to say.
            walk.mark(marks);
            walk.set_reach(reach);
            let asked = walk.asked();
            let (said, id) = match decision {
                Decision::Local { answer, rule } => (Said::Local(first_of_any(asked, answer)), rule),
                Decision::Blocked { answer, rule, why } => {
                    let said = Said::Local(first_of_any(asked, answer));
                    walk.explain(BLOCKED, why);
                    (said, rule)
                }
                Decision::Catalog { said, catalog, fallback } => {
                    let rule = catalog_rule(catalog);
                    if let Some(followed) = said.followed {
                        catalog.mention(followed);
                    }
                    match (said.verdict, fallback) {
                        (Verdict::Answer(mut answer), _) => {
                            let mut shape = said.shape;
                            let is_kept = !said.volatile && shape.rotating.len() <= MOST_ROTATING;
                            if !is_kept {
                                // Perhaps more than a message holds: another part of them each time.
                                let records = answer.answer.get_mut(shape.rotating.clone()).unwrap_or_default();
                                records.rotate_left(chance.random as usize % records.len().max(1));
                                shape.glue.clear();
                                walk.share(Sharing::Nobody);
                            }
                            walk.hold_until(said.until);
                            (Said::Catalog(answer, shape), rule)
                        }
                        (Verdict::Forward, Some(route)) => {
                            walk.share(sharing);
                            return Look::Ask(route.clone());
                        }
                        (Verdict::NotReady, _) => return Look::End(walk.error(Rcode::SERVFAIL, 14, NOT_READY), rule),
                        (Verdict::Forward | Verdict::Pass | Verdict::Wait(_) | Verdict::Await(_), _) => {
                            return Look::End(
                                walk.error(Rcode::SERVFAIL, 22, "the source of the catalog is lost"),
                                rule,
                            );
                        }
                        (Verdict::Fail(why), _) => return Look::End(walk.error(Rcode::SERVFAIL, 22, why), rule),
                    }
                }
                Decision::Forward(route) if asked.qtype == Rtype::ANY && !route.relays_any => {
                    (Said::Local(minimal_any(asked)), route.id)
                }
                Decision::Forward(route) => {
                    let known = || self.known_target(walk, variant, route, tables.epoch(), chance.now);
                    match client.sees_cache.then(known).flatten() {
                        Some(said) => (said, route.id),
                        None => {
                            walk.share(sharing);
                            return Look::Ask(route.clone());
                        }
                    }
                }
                Decision::Refuse => {
                    return Look::End(
                        walk.error(Rcode::REFUSED, 18, "a rule of this resolver refuses the name"),
                        NO_RULE,
                    );
                }
                Decision::FailedZone => {
                    return Look::End(walk.error(Rcode::SERVFAIL, EDE_INVALID_DATA, FAILED_ZONE), NO_RULE);
                }
                Decision::Nothing => {
                    return Look::End(
                        walk.error(Rcode::SERVFAIL, 0, "no upstream is configured for the name"),
                        NO_RULE,
                    );
                }
                Decision::Drop => return Look::Drop,
                Decision::UseTcp => return Look::UseTcp,
            };
            walk.share(sharing);
            let rule = *first.get_or_insert(id);
            let said = self.exist_beside(tables, walk, client, said);
            match walk.take_in(said, |_| true) {
                Ok(None) => {}
                Ok(Some(end)) => return Look::End(end, rule),
                Err(broken) => return Look::End(walk.broken(broken), rule),
            }
        }
    }

    /// The same, but a name to which a hosts file gives addresses exists: whoever denies it for another type only lacks that
    /// type.
    fn exist_beside(&self, tables: &Tables, walk: &Walk, client: Client, said: Said) -> Said {
        match said.denies(walk.asked()) {
            true if tables.exists_beside(&walk.asked().qname, client) => said.without_denial(),
            _ => said,
        }
    }

    /// What the cache has for a name that a CNAME led to.
    fn known_target(&self, walk: &Walk, variant: Variant, route: &Route, epoch: Epoch, now: Moment) -> Option<Said> {
        let asked = walk.asked();
        if walk.is_at_start() {
            return None;
        }
        let key = Key::new(asked.qname.wire(), asked.qtype, asked.qclass, variant);
        let (mut response, ttls) = self.cache.find(&key, now, epoch, |found| {
            // The name itself may be an overlay's to answer, when a chain that has left the overlays leads to it.
            let is_good = matches!(found.state, State::Fresh { .. })
                && found.origin.rule == route.id
                && !found.origin.chained
                && !found.origin.loopback_only
                && found.marks.places().next().is_none()
                && matches!(found.view.rcode, Rcode::NOERROR | Rcode::NXDOMAIN);
            is_good.then(|| (Response::from_view(found.view, asked), found.ttls))
        })??;
        if let Ttls::Aged(age) = ttls {
            response.map_ttls(|record| record.ttl.saturating_sub(age));
        }
        Some(Said::Forwarded(response, route.lifetimes))
    }

    /// Settles a question by its answer.
    fn keep(&self, job: &Job, arrival: Arrival, rule: RuleId, now: Moment) -> Outgoing {
        let keep = keep(&arrival, rule, job.party.epoch, now);
        let response = arrival.response;
        let tables = self.tables.load();
        let is_nodata = job.party.key.has_sister() && is_nodata(&response);
        if is_nodata
            && self.cache.sister_fails(&job.party.key, &response, now, job.party.epoch, |marks| tables.hold(marks))
        {
            let failure = sister_failure(&job.party.key);
            return self.land_failed(job, failure, || self.insert(&job.party.key, &response, keep.clone(), now));
        }
        let verdict = if is_nodata {
            let keep = Keep::Insert(keep.clone());
            let (key, response) = (job.party.key.clone(), response.clone());
            Lands::NoData(Box::new(Held { key, response, ttls: Ttls::Aged(0), keep }))
        } else {
            Lands::Plain
        };
        let landing = self.inflight.land(&job.party, verdict, || self.insert(&job.party.key, &response, keep, now));
        let response = if landing.sister_failed && is_nodata { sister_failure(&job.party.key) } else { response };
        self.settle(landing, response, Ttls::Aged(0), now)
    }

    /// Settles a question that cannot be answered: by a kept answer if there is one, else by the failure.
    fn fail(&self, job: &Job, failure: Response, now: Moment) -> Outgoing {
        self.fall_back(job, failure.clone(), now, || {
            if job.walk.sharing() == Sharing::All {
                self.drop_void(&job.party.key, now);
                self.cache.fail(&job.party.key, &failure, &job.basis(), now);
            }
        })
    }

    /// Gives a kept answer to those who wait, or a failure if there is none. `note` is called once that is settled.
    fn fall_back(&self, job: &Job, failure: Response, now: Moment, note: impl FnOnce()) -> Outgoing {
        let party = &job.party;
        match self.fallback(party, now) {
            Fallback::None => self.land_failed(job, failure, note),
            Fallback::Answer(Kept { response, ttls }) => {
                self.settle(self.inflight.land(party, Lands::Plain, note), response, ttls, now)
            }
            Fallback::UnlessSisterFails(Kept { response, ttls }) => {
                let held = Held { key: party.key.clone(), response: response.clone(), ttls, keep: Keep::AsIs };
                let landing = self.inflight.land(party, Lands::NoData(Box::new(held)), note);
                let response = if landing.sister_failed { sister_failure(&party.key) } else { response };
                self.settle(landing, response, ttls, now)
            }
        }
    }

    /// Gives a failure to those who wait, and to those for whom NODATA was held back.
    fn land_failed(&self, job: &Job, failure: Response, note: impl FnOnce()) -> Outgoing {
        let landing = self.inflight.land(&job.party, Lands::Failed, note);
        let own = landing.waiters.map(|waiters| Settled { response: failure, ttls: Ttls::Aged(0), waiters });
        let sister = landing.sister.map(|(held, waiters)| Settled {
            response: sister_failure(&held.key),
            ttls: Ttls::Aged(0),
            waiters,
        });
        own.into_iter().chain(sister).collect()
    }

    /// Whom to reply what, after a flight has landed with an answer.
    fn settle(&self, landing: Landing<Box<Held>>, response: Response, ttls: Ttls, now: Moment) -> Outgoing {
        let own = landing.waiters.map(|waiters| Settled { response, ttls, waiters });
        let sister = landing.sister.map(|(held, waiters)| {
            let Held { key, response, ttls, keep } = *held;
            if let Keep::Insert(keep) = keep {
                self.insert(&key, &response, keep, now);
            }
            Settled { response, ttls, waiters }
        });
        own.into_iter().chain(sister).collect()
    }

    /// An answer that may not be kept still makes an older one void.
    fn insert(&self, key: &Key, response: &Response, keep: Option<(Life, Basis)>, now: Moment) {
        match keep {
            Some((life, basis)) => self.cache.insert(key, response, life, &basis, now),
            None => {
                self.cache.remove(key);
            }
        }
    }

    /// Drops a kept answer if something that it was made of has changed: nobody is given it, and so no failure is to stand
    /// back behind it.
    fn drop_void(&self, key: &Key, now: Moment) {
        let tables = self.tables.load();
        let is_own = |state| !matches!(state, State::Doubtful | State::SisterFails);
        let is_void = |found: Found<'_>| is_own(found.state) && !tables.hold(found.marks);
        if self.cache.find(key, now, tables.epoch(), is_void) == Some(true) {
            self.cache.remove(key);
        }
    }

    /// What those who wait for a question may be given, should the upstreams have nothing by now.
    ///
    /// RFC 8767 §4 makes no difference between data and its absence, so an expired NXDOMAIN or NODATA is given, too. But an
    /// address type's NODATA is worth no more than its sister: beside a failure, getaddrinfo(3) takes it for "no such
    /// host", for good, where two failures have programs try again. So it is given if the sister is not asked for, or
    /// has an answer to fall back on as well. If the sister fails and has none, the NODATA fails with it.
    fn fallback(&self, party: &Party, now: Moment) -> Fallback {
        let Some(kept) = self.kept(party, now) else { return Fallback::None };
        let sister = party.key.sister().filter(|_| is_nodata(&kept.response));
        let Some(key) = sister else { return Fallback::Answer(kept) };
        let sister = Party { key, ..party.clone() };
        let has_kept = || self.kept(&sister, now).is_some();
        match self.inflight.sister(party) {
            Sister::Idle => Fallback::Answer(kept),
            Sister::Failed => Fallback::None,
            Sister::Open | Sister::OpenLate if has_kept() => Fallback::Answer(kept),
            Sister::Open => Fallback::UnlessSisterFails(kept),
            Sister::OpenLate => Fallback::None,
        }
    }

    /// The answer that the cache has for a question, past its time or not. A reload in the meantime does not void it, if the
    /// same rule would still answer.
    fn kept(&self, party: &Party, now: Moment) -> Option<Kept> {
        let (key, tables) = (&party.key, self.tables());
        let find = || {
            self.cache.find(key, now, tables.epoch(), |found| {
                let is_stale = match found.state {
                    State::Fresh { .. } => false,
                    State::Stale | State::StaleNow => true,
                    State::SisterFails => return Ok(None),
                    State::Doubtful => return Err(found.origin),
                };
                let may_be_told = !found.origin.loopback_only || party.is_loopback;
                if !may_be_told || !is_settled(found.view.rcode) || !tables.hold(found.marks) {
                    return Ok(None);
                }
                let mut response = Response::from_view(found.view, &key.question());
                if is_stale {
                    response.set_flag(flag::AD, false);
                    response.add_encoded_errors(STALE_ANSWER);
                }
                Ok(Some(Kept { response, ttls: found.ttls }))
            })
        };
        let found = match find()? {
            Err(origin) if tables.uphold(&key.question(), origin, now) => {
                self.cache.confirm(key, origin, tables.epoch());
                find()?
            }
            found => found,
        };
        found.ok().flatten()
    }

    /// Settles a question that nobody sees to any longer, by a kept answer or by a failure that says why.
    pub fn abandon(&self, job: &Job, why: &str, now: Moment) -> Outgoing {
        let lost = job.walk.error(Rcode::SERVFAIL, 0, why);
        self.fall_back(job, lost.response, now, || {})
    }

    /// The same for all questions that nobody sees to any more: whoever did has panicked.
    pub fn abandon_lost(&self, now: Moment) -> Outgoing {
        let lost = self.inflight.take_lost(now).into_iter().map(|(party, waiters)| {
            if let Fallback::Answer(Kept { response, ttls }) = self.fallback(&party, now) {
                return Settled { response, ttls, waiters };
            }
            let failure = Walk::new(party.key.question()).error(Rcode::SERVFAIL, 0, "nobody saw to the query any more");
            Settled { response: failure.response, ttls: Ttls::Aged(0), waiters }
        });
        lost.collect()
    }
}

impl Job {
    fn new(party: Party, client: Client, walk: Walk, now: Moment) -> Self {
        Self {
            party,
            client,
            began: now,
            ends: now + DEFAULT_TIMEOUT,
            walk,
            route: None,
            rule: NO_RULE,
            waits: 0,
            is_guarded: false,
        }
    }

    /// The next exchange: with the upstreams of this route.
    fn ask(&mut self, route: Arc<Route>, now: Moment, rng: &mut impl Rng) -> Exchange {
        let Variant { dnssec_ok, checking_disabled, .. } = self.party.key.variant();
        let patience = Some(self.patience_ends(now).since(now));
        let own = route.group.timeout();
        self.ends = match self.rule {
            NO_RULE => self.began + own,
            _ => self.ends.max(self.began + own),
        };
        let timeout = self.ends.since(now).min(own);
        let options = Options { dnssec_ok, checking_disabled, patience, timeout };
        self.rule = route.id;
        let group = self.route.insert(route).group.clone();
        Exchange::new(group, self.walk.asked(), options, now, rng)
    }

    /// When those who wait have next waited long enough for a stale answer. That is counted from the beginning, whatever
    /// was asked since, and comes again and again: so nobody who joins waits for longer than that.
    fn patience_ends(&self, now: Moment) -> Moment {
        let periods = now.since(self.began).as_millis() / PATIENCE.as_millis() + 1;
        self.began + PATIENCE * periods as u32
    }

    /// Has the catalog find out what is wanted.
    fn wait(&mut self, catalog: &Catalog, wanted: Wanted, now: Moment) -> Pending {
        self.waits += 1;
        let (until, patience_ends) = (self.ends, self.patience_ends(now));
        match wanted {
            Wanted::State(service) => Pending { told: catalog.wish(service), until, patience_ends },
            Wanted::Results(awaited) => {
                let until = until.min(awaited.until);
                Pending { told: Some(catalog.await_results(awaited)), until, patience_ends }
            }
        }
    }

    /// Of a failure.
    fn basis(&self) -> Basis {
        let origin = Origin { rule: self.rule, epoch: self.party.epoch, chained: false, loopback_only: false };
        Basis { origin, marks: self.walk.marks().clone() }
    }
}

/// How long an answer is kept, and on what it rests; `None` for not at all.
fn keep(arrival: &Arrival, rule: RuleId, epoch: Epoch, now: Moment) -> Option<(Life, Basis)> {
    let loopback_only = match arrival.sharing {
        Sharing::All => false,
        Sharing::Loopback => true,
        Sharing::Nobody => return None,
    };
    // What the catalog had no say in is no other catalog's to void.
    let depends = !arrival.marks.places.is_empty() && !is_catalog_rule(rule);
    let origin = Origin { rule, epoch, chained: arrival.chained || depends, loopback_only };
    let life = match (arrival.life?, arrival.until) {
        (Life::Timed { fresh, stale }, Some(until)) => Life::Timed { fresh: fresh.min(until.since(now)), stale },
        (life, _) => life,
    };
    Some((life, Basis { origin, marks: arrival.marks.clone() }))
}

/// Whether a response settles its question; any other is a failure, and kept as such.
fn is_settled(rcode: Rcode) -> bool {
    matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN | Rcode::YXDOMAIN)
}

fn sister_failure(key: &Key) -> Response {
    Walk::new(key.question()).error(Rcode::SERVFAIL, 22, "the other address type cannot be had").response
}

/// Of the RRsets that local data has for a name, the first: ANY asks for any of them (RFC 8482 §4.1).
fn first_of_any(asked: &Question, mut answer: Answer) -> Answer {
    if asked.qtype == Rtype::ANY
        && let Some(first) = answer.answer.first().cloned()
    {
        answer.answer.retain(|record| record.owner == first.owner && record.rtype == first.rtype);
    }
    answer
}

/// Says to ANY that it is not served (RFC 8482 §4.2): upstreams are not asked, nor can the answer be used as an amplifier.
fn minimal_any(asked: &Question) -> Answer {
    let hinfo = Record::new(asked.qname.clone(), Rtype::HINFO, MINIMAL_ANY_TTL, *b"\x07RFC8482\x00");
    Answer { authoritative: false, answer: vec![hinfo], ..Answer::default() }
}

/// Extended error 15, Blocked (RFC 8914 §4.16): by a policy of the operator. 18, Prohibited, would blame the client, and 17,
/// Filtered, a wish of its.
const BLOCKED: u16 = 15;
/// Why those who wait are told a failure when whoever saw to their query has panicked.
pub const LOST: &str = "the exchange was lost; the log has more";
/// Why a service has no answer whose checks are slow (extended error 14, *Not Ready*).
const NOT_READY: &str = "checks of this service have no result yet";
const CACHE_HIDDEN: &str = "allow_query_cache does not cover this client, and recursion was not desired";
/// Extended error 0 for those who find no room to wait (RFC 8914 §4.1), encoded.
const OVERLOAD: &[u8] = b"\x00\x0f\x00\x17\x00\x00too many queries wait";
const _: () = assert!(OVERLOAD.len() == 4 + 0x17);
const CLIENT_OVERLOAD: &[u8] = b"\x00\x0f\x00\x26\x00\x00too many queries of this client wait";
const _: () = assert!(CLIENT_OVERLOAD.len() == 4 + 0x26);
/// Who answers when nobody does.
const NO_RULE: RuleId = RuleId(0);
/// Extended error 24, Invalid Data (RFC 8914 §4.25).
const EDE_INVALID_DATA: u16 = 24;
const FAILED_ZONE: &str = "the zone's file has faults and there is no earlier version of it";
/// So often a query waits for the sources of the catalog: for each name of a chain.
const MOST_WAITS: u8 = 16;
/// More instances than this may be more than a message holds.
const MOST_ROTATING: usize = 400;
/// Long, for it will not change.
const MINIMAL_ANY_TTL: u32 = 3600;
