//! What a reload swaps as one value: who answers which name.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use siphasher::sip::SipHasher13;

use super::Client;
use crate::{
    cache::{Epoch, Marks, MarksView, Origin, Policy, RuleId},
    catalog::{self, Live, Verdict},
    clock::{Moment, unix_seconds},
    forward::{self, Group},
    router::Router,
    wire::{Answer, Name, Question, ReplySize},
    zone::{
        self, Overlays, Ruling, Zone,
        builtin::{self, Builtin},
    },
};

/// Who answers which name. Immutable; a change makes new ones.
pub struct Tables {
    epoch: Epoch,
    overlays: Overlays,
    router: Router<Authority>,
    routes: Vec<Arc<Route>>,
    catalog: Option<Catalog>,
    prefetch: bool,
}

/// The discovery catalog as it is now: it changes without new tables, unless its domains do.
pub type Catalog = Arc<Live>;

/// What tables are made of. At the same suffix a zone precedes the catalog, that a forward rule, and that a refusal; and
/// the forward rule there is asked when the catalog's source is lost.
#[derive(Default)]
pub struct Rules {
    /// Overlays and hosts files, in their order.
    pub overlays: Overlays,
    /// Whole zones.
    pub zones: Vec<Arc<Zone>>,
    /// The apexes of zones that cannot be served: their names are not for others to answer.
    pub failed_zones: Vec<Name>,
    /// Forward rules, each with the suffixes it speaks for.
    pub forwards: Vec<(Vec<Name>, Route)>,
    /// Suffixes that are refused.
    pub refused: Vec<Name>,
    /// The catalog, if there is one.
    pub catalog: Option<Catalog>,
    /// Whether cached answers that end soon and are asked for often are renewed.
    pub prefetch: bool,
}

/// A rule that forwards.
pub struct Route {
    /// Changes with everything that the rule's answers depend on.
    pub id: RuleId,
    /// Whom to ask.
    pub group: Arc<Group>,
    /// How long its answers live.
    pub lifetimes: Policy,
    /// Whether ANY is asked of the upstreams; other rules answer it as RFC 8482 says.
    pub relays_any: bool,
    /// Whether names that this rule speaks for may not lead to addresses within a site: all but those at or below these.
    guarded_but: Option<Vec<Name>>,
}

/// Who speaks for a suffix.
enum Authority {
    Zone(Arc<Zone>),
    /// A zone that cannot be served.
    FailedZone,
    Builtin(&'static Builtin),
    /// A special name that would be forwarded if the rule did not block it; the text says why.
    Blocked(&'static Builtin, Box<str>),
    Catalog {
        catalog: Catalog,
        fallback: Option<Arc<Route>>,
    },
    Forward(Arc<Route>),
    Refuse,
}

/// Who answers a question, or what.
pub(super) enum Decision<'t> {
    Local {
        answer: Answer,
        rule: RuleId,
    },
    /// A special name that a forward rule blocks.
    Blocked {
        answer: Answer,
        rule: RuleId,
        why: &'t str,
    },
    Catalog {
        said: catalog::Said,
        catalog: &'t Catalog,
        /// Whom to ask when the source of the catalog is lost.
        fallback: Option<&'t Arc<Route>>,
    },
    Forward(&'t Arc<Route>),
    Refuse,
    /// The name belongs to a zone that cannot be served.
    FailedZone,
    /// No rule claims the name.
    Nothing,
    Drop,
    UseTcp,
}

impl Decision<'_> {
    fn of_zone(zone: &Zone, question: &Question) -> Self {
        Self::Local { answer: zone.answer(question), rule: RuleId(zone.generation()) }
    }
}

/// Whether overlays still have a say over the names of a CNAME chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// They rule on the name.
    Overlays,
    /// One of them has ruled on a name before: what it leads to is answered by what lies beneath them. Response policies are
    /// not applied to what they have rewritten or passed, or a rule could lead to itself.
    Beneath,
}

/// With whom an answer may be shared by way of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sharing {
    All,
    /// Clients on this host: it may name addresses that mean something else elsewhere.
    Loopback,
    Nobody,
}

impl Tables {
    /// Tables of these rules and of the special names that are built in. Each later set of tables has another `epoch`.
    pub fn new(rules: Rules, epoch: Epoch) -> Self {
        let mut router = Router::new();
        // What is inserted later takes the place of what was there, so the weakest comes first.
        for zone in builtin::always() {
            router.insert(zone.apex().clone(), Authority::Builtin(zone));
        }
        for suffix in rules.refused {
            router.insert(suffix, Authority::Refuse);
        }
        let mut routes = Vec::new();
        for (suffixes, route) in rules.forwards {
            let route = Arc::new(route);
            for suffix in suffixes {
                router.insert(suffix, Authority::Forward(route.clone()));
            }
            routes.push(route);
        }
        if let Some(catalog) = &rules.catalog {
            for domain in catalog.load().settings().domains() {
                let fallback = match router.exact(domain) {
                    Some(Authority::Forward(route)) => Some(route.clone()),
                    _ => None,
                };
                router.insert(domain.clone(), Authority::Catalog { catalog: catalog.clone(), fallback });
            }
        }
        for zone in rules.zones {
            router.insert(zone.apex().clone(), Authority::Zone(zone));
        }
        for apex in rules.failed_zones {
            router.insert(apex, Authority::FailedZone);
        }
        for zone in builtin::private() {
            let apex = zone.apex();
            let authority = match router.route(apex) {
                _ if router.exact(apex).is_some() => continue,
                Some(Authority::Forward(route)) if route.group.blocks_special() => {
                    Authority::Blocked(zone, route.group.why_special_is_blocked(apex).into())
                }
                Some(_) => continue,
                None => Authority::Builtin(zone),
            };
            router.insert(apex.clone(), authority);
        }
        Self { epoch, overlays: rules.overlays, router, routes, catalog: rules.catalog, prefetch: rules.prefetch }
    }

    /// Tells these tables from others.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The forward rules.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// The catalog, if there is one.
    pub fn catalog(&self) -> Option<&Catalog> {
        self.catalog.as_ref()
    }

    /// Whether cached answers that end soon and are asked for often are renewed.
    pub(super) fn prefetches(&self) -> bool {
        self.prefetch
    }

    /// Who answers a question, or what. `marks` is told what of the catalog that depends on, and `reach` whether an overlay
    /// has ruled.
    pub(super) fn decide(
        &self,
        question: &Question,
        client: Client,
        chance: Chance,
        reach: &mut Reach,
        marks: &mut Marks,
    ) -> Decision<'_> {
        let asker = if client.is_loopback { zone::Client::Loopback } else { zone::Client::Remote };
        let ruling = match *reach {
            Reach::Overlays => self.overlays.answer(question, asker),
            Reach::Beneath => self.overlays.answer_from_hosts(question, asker),
        };
        if ruling.is_some() {
            *reach = Reach::Beneath;
        }
        match ruling {
            Some(Ruling::Answer { answer, generation }) => {
                return Decision::Local { answer, rule: RuleId(generation) };
            }
            Some(Ruling::Drop) => return Decision::Drop,
            Some(Ruling::TcpOnly) if client.size != ReplySize::Stream => return Decision::UseTcp,
            Some(Ruling::TcpOnly | Ruling::PassThrough) | None => {}
        }
        let mut ask = |catalog: &Catalog| {
            let snapshot = catalog.load();
            let said = snapshot.answer(question, unix_seconds() as u32, chance.random, chance.now);
            marks.add(snapshot.version(), said.slots.iter().map(|slot| slot.index() as u16));
            said
        };
        // Of an address that it does not know, the catalog says nothing, and others have their say.
        if let Some(catalog) = self.catalog.as_ref().filter(|_| is_reverse(&question.qname)) {
            let said = ask(catalog);
            if said.verdict != Verdict::Pass {
                return Decision::Catalog { said, catalog, fallback: None };
            }
        }
        match self.authority(question) {
            Some(Authority::Catalog { catalog, fallback }) => {
                Decision::Catalog { said: ask(catalog), catalog, fallback: fallback.as_ref() }
            }
            Some(Authority::Zone(zone)) => Decision::of_zone(zone, question),
            Some(Authority::Builtin(builtin)) => Decision::of_zone(builtin.zone(), question),
            Some(Authority::Blocked(builtin, why)) => {
                let zone = builtin.zone();
                Decision::Blocked { answer: zone.answer(question), rule: RuleId(zone.generation()), why }
            }
            Some(Authority::Forward(route)) => Decision::Forward(route),
            Some(Authority::FailedZone) => Decision::FailedZone,
            Some(Authority::Refuse) => Decision::Refuse,
            None => Decision::Nothing,
        }
    }

    /// Whether all that an answer was made of is as it was. Those of other epochs are to be [upheld](Self::uphold) first.
    pub(super) fn hold(&self, marks: MarksView<'_>) -> bool {
        let is_as_it_was = |place: u16| {
            self.catalog.as_ref().is_some_and(|catalog| catalog.last_change(place.into()) <= marks.version)
        };
        marks.places().all(is_as_it_was)
    }

    /// Who may share the answer to a question that this client was given.
    pub(super) fn sharing(&self, question: &Question, client: Client) -> Sharing {
        if self.overlays.is_client_dependent(&question.qname) {
            if client.is_loopback { Sharing::Loopback } else { Sharing::Nobody }
        } else if client.size == ReplySize::Stream
            && matches!(self.overlays.answer(question, zone::Client::Remote), Some(Ruling::TcpOnly))
        {
            Sharing::Nobody
        } else {
            Sharing::All
        }
    }

    /// Whether a hosts file has addresses for the name, though others are asked of it for other types.
    pub(super) fn exists_beside(&self, qname: &Name, client: Client) -> bool {
        let asker = if client.is_loopback { zone::Client::Loopback } else { zone::Client::Remote };
        self.overlays.falls_through(qname, asker)
    }

    /// Whether these tables would have a cached answer come from where it came from.
    pub(super) fn uphold(&self, question: &Question, origin: Origin, now: Moment) -> bool {
        // Each name of a chain may have found another rule, so chains are not upheld.
        !origin.chained && self.rule_of(question, LOCAL_CLIENT, Reach::Overlays, now) == Some(origin.rule)
    }

    /// The rule that answers, if it is one whose answers are cached.
    pub(super) fn rule_of(&self, question: &Question, client: Client, mut reach: Reach, now: Moment) -> Option<RuleId> {
        match self.decide(question, client, Chance { random: 0, now }, &mut reach, &mut Marks::default()) {
            Decision::Local { rule, .. } | Decision::Blocked { rule, .. } => Some(rule),
            Decision::Catalog { catalog, .. } => Some(catalog_rule(catalog)),
            Decision::Forward(route) => Some(route.id),
            _ => None,
        }
    }

    /// DS is asked of the same rule as all else, though it belongs to the parent: no suffix is betrayed to its parent's upstreams.
    fn authority(&self, question: &Question) -> Option<&Authority> {
        self.router.route(&question.qname)
    }
}

impl Route {
    /// The route of a rule. Its identity says whom it asks and how long answers live, not where it stands in the file.
    pub fn new(rule: &forward::Rule, group: Arc<Group>, lifetimes: Policy) -> Self {
        // Snapshots of the cache hold it, so it is the same in every process and in every build.
        let mut identity = SipHasher13::new();
        for upstream in &rule.upstreams {
            upstream.to_string().hash(&mut identity);
        }
        (rule.trust_ad, lifetimes).hash(&mut identity);
        if let Some(exempt) = &rule.guarded_but {
            exempt.hash(&mut identity);
        }
        let id = RuleId(identity.finish() | ROUTE_RULE);
        let relays_any = rule.upstreams.iter().all(|upstream| upstream.is_loopback());
        Self { id, group, lifetimes, relays_any, guarded_but: rule.guarded_but.clone() }
    }

    /// Whether this name may not lead to addresses within a site.
    pub(super) fn guards(&self, qname: &Name) -> bool {
        self.guarded_but.as_ref().is_some_and(|exempt| !exempt.iter().any(|suffix| qname.is_at_or_below(suffix)))
    }
}

/// What an answer that is made now depends on besides the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance {
    /// Chooses where one of several must be chosen.
    pub random: u32,
    pub now: Moment,
}

/// The identity of a catalog as the rule that answers its names.
pub(super) fn catalog_rule(catalog: &Live) -> RuleId {
    RuleId(catalog.id() | CATALOG_RULE)
}

/// Whether this is the identity of a catalog.
pub(super) fn is_catalog_rule(rule: RuleId) -> bool {
    rule.0 & (CATALOG_RULE | ROUTE_RULE) == CATALOG_RULE
}

/// Whether a name is one that stands for an address.
fn is_reverse(qname: &Name) -> bool {
    qname.labels().last().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"))
}

/// Generations of local data count up from zero; what else has an identity has one of these bits.
const ROUTE_RULE: u64 = 1 << 63;
const CATALOG_RULE: u64 = 1 << 62;
/// For whom every rule is in force: loopback addresses of hosts files, and `rpz-tcp-only.`.
const LOCAL_CLIENT: Client =
    Client { is_loopback: true, size: ReplySize::Datagram { ceiling_bytes: 512 }, sees_cache: true };
