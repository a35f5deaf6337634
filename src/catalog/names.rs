//! From a question to its records, as Consul's DNS answers it.
//!
//! Where Consul breaks the DNS, this does not: a name that does not exist does so for every type, and a name without
//! records of a type is NODATA with its SOA (RFC 2308 §2). So NS and SOA records, which Consul gives under any name, are
//! given under those that exist; and the apex, which has them, exists.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::Range,
};

use super::{
    health::Status,
    model::{Host, Kind, Node, NodeKey, ServiceKey},
    policy::Rules,
    records::{address_label, address_record, meta_records, prefer, read_reverse_name, srv_record, wants},
    remote::Grasp,
    snapshot::{Awaited, Given, Holder, Knowledge, Slot, Snapshot},
    subject::Subject,
};
use crate::{
    clock::Moment,
    wire::{Answer, Name, Question, Rcode, Record, Rtype, Shape, Soa},
};

/// What the catalog says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What is said.
    pub verdict: Verdict,
    /// What it was made of, each once. Also of a name that does not exist, which may come into being.
    pub slots: Vec<Slot>,
    /// How replies may differ from the answer.
    pub shape: Shape,
    /// Another answer is as good: this one is not to be kept, so that each has its turn.
    pub volatile: bool,
    /// Until when it holds, even if none of the slots changes; nothing if it does.
    pub until: Option<Moment>,
    /// What is to be [mentioned](super::Live::mention) when this is said.
    pub followed: Option<ServiceKey>,
}

/// What the catalog says, or who else is to say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This. A CNAME record at its end whose target is outside the domains is for others to follow.
    Answer(Answer),
    /// The name is not below a domain of the catalog, nor that of an address it knows: others have their say.
    Pass,
    /// A source has to be asked for this first; then the question is to be put again.
    Wait(ServiceKey),
    /// Checks have no result yet that matters to the answer. When they have, or it is time, the question is to be put again.
    Await(Awaited),
    /// Nothing is known of the instances of the name yet, and it is not to be waited for any longer.
    NotReady,
    /// The source is lost: whoever else answers names of the domain is to be asked.
    Forward,
    /// The source is lost, and nobody else may answer for the name; this is why.
    Fail(&'static str),
}

impl Said {
    /// The answer, if the catalog itself gives one.
    pub fn answer(self) -> Option<Answer> {
        match self.verdict {
            Verdict::Answer(answer) => Some(answer),
            _ => None,
        }
    }
}

impl Snapshot {
    /// Answers a question, of whatever class.
    ///
    /// `serial` is the serial of SOA records, which with Consul is the time. `random` chooses where one of several must
    /// be chosen here.
    pub fn answer(&self, question: &Question, serial: u32, random: u32, now: Moment) -> Said {
        let mut lookup = Lookup {
            snapshot: self,
            question,
            domain: self.settings.domain_of(&question.qname),
            serial,
            random,
            now,
            depth: 0,
            slots: Vec::new(),
            shape: Shape { admits_cuts: self.settings.admits_cuts, ..Shape::default() },
            volatile: false,
            until: None,
            followed: None,
            instead: None,
        };
        let verdict = lookup.answer().map_or(Verdict::Pass, Verdict::Answer);
        let Lookup { mut slots, shape, volatile, until, followed, instead, .. } = lookup;
        if slots.is_empty() && self.settings.domain_of(&question.qname).is_some() {
            // It is made of the settings alone.
            slots.push(Slot::of_settings());
        }
        slots.sort_unstable();
        slots.dedup();
        Said { verdict: instead.unwrap_or(verdict), slots, shape, volatile, until, followed }
    }
}

/// Where an instance is reached, and under which name.
enum Place {
    /// At its node.
    Node(IpAddr),
    /// At an address of its own.
    Address(IpAddr),
    /// Where a name leads.
    Host(Name),
}

/// One question on its way.
struct Lookup<'a> {
    snapshot: &'a Snapshot,
    question: &'a Question,
    domain: Option<&'a Name>,
    serial: u32,
    random: u32,
    now: Moment,
    /// How many names led here.
    depth: usize,
    slots: Vec<Slot>,
    shape: Shape,
    volatile: bool,
    until: Option<Moment>,
    /// What an agent elsewhere has told of, and is to know that it is asked for.
    followed: Option<ServiceKey>,
    /// What is to be said in place of an answer, for something is not held.
    instead: Option<Verdict>,
}

impl Lookup<'_> {
    fn answer(&mut self) -> Option<Answer> {
        let Some(domain) = self.domain else { return self.reverse() };
        let qname = &self.question.qname;
        let count = qname.label_count() - domain.label_count();
        let labels: Vec<&[u8]> = qname.labels().take(count).collect();
        let is_apex = labels.is_empty();
        let answer = match Subject::read(&labels) {
            Subject::Apex => Some(Answer::default()),
            Subject::Nothing => None,
            Subject::Service { kind, name, tag, datacenter, srv_only } => {
                let key = ServiceKey::new(kind, self.datacenter(&datacenter), &name);
                self.service(&key, tag.as_deref(), srv_only)
            }
            Subject::Virtual { name, datacenter } => {
                self.virtual_address(&ServiceKey::new(Kind::Service, self.datacenter(&datacenter), &name))
            }
            Subject::Node { name, datacenter } => {
                self.node(&ServiceKey::new(Kind::Node, self.datacenter(&datacenter), &name))
            }
            Subject::Query { name, datacenter } => {
                self.query(&ServiceKey::new(Kind::Query, self.datacenter(&datacenter), &name))
            }
            Subject::Address(address) => Some(self.address(address)),
        };
        Some(match answer {
            None => self.denial(Rcode::NXDOMAIN),
            Some(_) if self.question.qtype == Rtype::NS => self.name_servers(),
            Some(_) if self.question.qtype == Rtype::SOA || is_apex && self.question.qtype == Rtype::ANY => {
                let Answer { answer: authority, additional, .. } = self.name_servers();
                Answer { answer: vec![self.soa()], authority, additional, ..Answer::default() }
            }
            Some(answer) if self.is_complete(&answer) => answer,
            Some(answer) => Answer { authority: vec![self.soa()], ..answer },
        })
    }

    /// The answer for a service; without a record if there is none of the type, `None` if there is no such name.
    fn service(&mut self, key: &ServiceKey, tag: Option<&str>, srv_only: bool) -> Option<Answer> {
        if !self.holds(key) {
            return None;
        }
        let snapshot = self.snapshot;
        let service = snapshot.services.get(key)?;
        let given = snapshot.given(service, tag);
        match snapshot.knowledge(service, tag, &given, self.now) {
            Knowledge::Enough if given.is_empty() => return None,
            Knowledge::Enough => {}
            Knowledge::Awaited(until) => {
                let awaited = Awaited { service: key.clone(), tag: tag.map(str::to_owned), until };
                self.instead.get_or_insert(Verdict::Await(awaited));
                return None;
            }
            Knowledge::Nothing => {
                self.instead.get_or_insert(Verdict::NotReady);
                return None;
            }
        }
        let ttl = snapshot.settings.service_ttl(key.name());
        Some(match self.question.qtype {
            _ if srv_only && self.question.qtype != Rtype::SRV => Answer::default(),
            _ => self.instances(&given, ttl),
        })
    }

    /// The answer for a prepared query, which an agent has executed: its order is kept, for the nearest come first, and
    /// its choice is its own.
    fn query(&mut self, key: &ServiceKey) -> Option<Answer> {
        if !self.holds(key) {
            return None;
        }
        let snapshot = self.snapshot;
        let found = snapshot.remote.as_ref()?.found(key)?;
        let given: Vec<Given> = found
            .instances
            .iter()
            .map(|(node, instance)| Given { instance, node: Some(node), status: node.status().max(instance.status()) })
            .collect();
        if given.is_empty() {
            return None;
        }
        let ttl = found.ttl.unwrap_or_else(|| snapshot.settings.service_ttl(&found.service.to_lowercase()));
        let mut answer = self.instances(&given, ttl);
        // Records that may not rotate may be cut from the end, which is where the farthest are.
        if let Some(most) = self.shape.most.filter(|_| answer.answer.iter().all(|record| record.rtype != Rtype::CNAME))
        {
            answer.answer.truncate(most.into());
        }
        self.shape.rotating = 0..0;
        self.shape.glue.clear();
        Some(answer)
    }

    /// The records of instances, of the type that is asked for.
    fn instances(&mut self, given: &[Given], ttl: u32) -> Answer {
        self.demand_address(given);
        match self.question.qtype {
            Rtype::NS | Rtype::SOA => Answer::default(),
            Rtype::SRV => self.service_srv(given, ttl),
            _ => self.service_addresses(given, ttl),
        }
    }

    /// Whether an answer can be made of what the catalog holds of this. If it cannot, it is noted what is to be said
    /// instead.
    fn holds(&mut self, key: &ServiceKey) -> bool {
        self.slots.push(Slot::of(key));
        let snapshot = self.snapshot;
        let Some(remote) = &snapshot.remote else { return true };
        let instead = match remote.grasp(key, self.now) {
            Grasp::Known(until) => {
                self.until = self.until.into_iter().chain(until).min();
                if until.is_some() {
                    self.followed.get_or_insert_with(|| key.clone());
                }
                return true;
            }
            // What another source holds is all there is.
            Grasp::Lost if snapshot.knows(key) => return true,
            Grasp::Lost if snapshot.is_ruled(key) => Verdict::Fail(LOST),
            Grasp::Lost => Verdict::Forward,
            Grasp::Unasked => Verdict::Wait(key.clone()),
        };
        self.instead.get_or_insert(instead);
        false
    }

    /// An address of each instance; the name of one if there is no instance with an address.
    fn service_addresses(&mut self, given: &[Given], ttl: u32) -> Answer {
        let mut addresses = Vec::new();
        let mut known = HashSet::new();
        let mut hosts: Vec<Name> = Vec::new();
        for instance in given {
            match self.place(instance) {
                Some(Place::Node(address) | Place::Address(address)) => {
                    addresses.extend(known.insert(address).then_some(address));
                }
                Some(Place::Host(name)) if !hosts.contains(&name) => hosts.push(name),
                _ => {}
            }
        }
        if addresses.is_empty() && !hosts.is_empty() {
            self.volatile = hosts.len() > 1;
            let host = hosts.swap_remove(self.random as usize % hosts.len());
            return self.alias(&host, ttl, Some(ttl));
        }
        let (owner, qtype) = (&self.question.qname, self.question.qtype);
        let wanted = addresses.into_iter().filter(|address| wants(qtype, *address));
        let answer: Vec<_> = wanted.map(|address| address_record(owner.clone(), address, ttl)).collect();
        self.shape.rotating = 0..answer.len();
        self.shape.most = self.snapshot.settings.a_record_limit;
        self.shape.most_small = self.snapshot.settings.udp_answer_limit;
        Answer { answer, ..Answer::default() }
    }

    /// An SRV record of each instance; beside them the address of each target, then the meta of each node.
    fn service_srv(&mut self, given: &[Given], ttl: u32) -> Answer {
        let (mut answer, mut additional, mut meta) = (Vec::new(), Vec::new(), Vec::new());
        let (mut known, mut nodes) = (HashSet::new(), HashSet::new());
        let mut targets = HashMap::<Name, Option<usize>>::new();
        for instance in given {
            let Some(place) = self.place(instance) else { continue };
            let registration = &instance.instance.registration;
            let own_name = instance.node.and_then(|node| self.node_name(node));
            let (target, address) = match place {
                Place::Node(address) => (own_name.clone(), Some(address)),
                Place::Address(address) => (self.address_name(address, registration.node.datacenter()), Some(address)),
                Place::Host(name) => (Some(name), None),
            };
            let Some(target) = target else { continue };
            if !known.insert((registration.node.clone(), target.clone(), registration.port)) {
                continue;
            }
            answer.push(srv_record(self.question.qname.clone(), instance.weight(), registration.port, &target, ttl));
            let glue = targets.entry(target).or_insert_with_key(|target| {
                let place = additional.len();
                match address {
                    Some(address) => additional.push(address_record(target.clone(), address, ttl)),
                    None => {
                        let followed = self.follow(target, Rtype::ANY).into_iter().filter(is_address_or_alias);
                        additional.extend(followed.map(|record| Record { ttl, ..record }));
                    }
                }
                (place < additional.len()).then_some(place)
            });
            self.shape.glue.push(*glue);
            if let (Some(name), Some(node), true) = (own_name, instance.node, self.snapshot.settings.node_meta_txt)
                && nodes.insert(registration.node.clone())
            {
                meta.extend(meta_records(&name, node, ttl));
            }
        }
        additional.append(&mut meta);
        self.shape.rotating = 0..answer.len();
        self.shape.most_small = self.snapshot.settings.udp_answer_limit;
        Answer { answer, additional, ..Answer::default() }
    }

    /// The address by which the mesh knows a service.
    fn virtual_address(&mut self, key: &ServiceKey) -> Option<Answer> {
        if !self.holds(key) {
            return None;
        }
        let mut instances = self.snapshot.services.get(key)?.instances.iter();
        let tagged = instances.find_map(|instance| instance.registration.tagged.get("consul-virtual"))?;
        let address = tagged.address.ip()?;
        let is_wanted = wants(self.question.qtype, address) && self.question.qtype != Rtype::TXT;
        let record = || address_record(self.question.qname.clone(), address, self.snapshot.settings.node_ttl);
        Some(Answer { answer: is_wanted.then(record).into_iter().collect(), ..Answer::default() })
    }

    /// The address of a node and its meta. Its health does not matter.
    fn node(&mut self, key: &ServiceKey) -> Option<Answer> {
        let node_key = NodeKey::new(key.datacenter(), key.name());
        self.slots.push(Slot::of(&node_key));
        if !self.holds(key) {
            return None;
        }
        let node = self.snapshot.nodes.get(&node_key)?;
        let (qtype, ttl) = (self.question.qtype, self.snapshot.settings.node_ttl);
        let mut answer = match prefer(qtype, Some(&node.address), &node.tagged) {
            _ if !matches!(qtype, Rtype::A | Rtype::AAAA | Rtype::ANY | Rtype::CNAME) => Answer::default(),
            Some(Host::Name(name)) => self.alias(&name.clone(), ttl, None),
            Some(Host::Ip(address)) if address.is_unspecified() => {
                self.instead.get_or_insert(Verdict::Fail(NO_ADDRESS));
                Answer::default()
            }
            Some(Host::Ip(address)) if wants(qtype, *address) => {
                let record = address_record(self.question.qname.clone(), *address, ttl);
                Answer { answer: vec![record], ..Answer::default() }
            }
            _ => Answer::default(),
        };
        let meta = meta_records(&self.question.qname, node, ttl);
        match qtype {
            Rtype::TXT | Rtype::ANY => answer.answer.extend(meta),
            Rtype::A | Rtype::AAAA if self.snapshot.settings.node_meta_txt => answer.additional.extend(meta),
            _ => {}
        }
        Some(answer)
    }

    /// The record of the address that the name spells; beside the answer if it is not the type asked for.
    fn address(&self, address: IpAddr) -> Answer {
        let qtype = self.question.qtype;
        let record = vec![address_record(self.question.qname.clone(), address, self.snapshot.settings.node_ttl)];
        if wants(qtype, address) && matches!(qtype, Rtype::A | Rtype::AAAA | Rtype::ANY) {
            Answer { answer: record, ..Answer::default() }
        } else {
            Answer { additional: record, ..Answer::default() }
        }
    }

    /// The names of an address of our own datacenter: that of its node, else of a service there. Others may know it if we
    /// do not.
    fn reverse(&mut self) -> Option<Answer> {
        let address = read_reverse_name(&self.question.qname)?;
        self.slots.push(Slot::of(&address));
        let domain = self.snapshot.settings.domains.first()?;
        let name = match self.snapshot.holder(address)? {
            Holder::Node(key) => {
                // For its letters.
                self.slots.push(Slot::of(key));
                let node = self.snapshot.nodes.get(key)?;
                name_in(&[&*node.name, "node", &*node.datacenter], domain)
            }
            Holder::Service(_, service, instance) => {
                name_in(&[&**service, "service", &**instance.node.datacenter()], domain)
            }
        }?;
        if !matches!(self.question.qtype, Rtype::PTR | Rtype::ANY) {
            let soa = self.soa_of(domain, self.question.qname.clone());
            return Some(Answer::negative(Rcode::NOERROR, soa));
        }
        let record = Record::new(self.question.qname.clone(), Rtype::PTR, 0, name.wire());
        Some(Answer { answer: vec![record], ..Answer::default() })
    }

    /// Up to three name servers: servers of Consul that the catalog holds, else our own node.
    fn name_servers(&mut self) -> Answer {
        let settings = &self.snapshot.settings;
        let key = ServiceKey::new(Kind::Service, &settings.datacenter, "consul");
        let own = NodeKey::new(&settings.datacenter, &settings.node_name);
        self.slots.extend([Slot::of(&key), Slot::of(&own)]);
        let service = self.snapshot.services.get(&key);
        let given = service.map(|service| self.snapshot.given(service, None)).unwrap_or_default();
        let mut nodes: Vec<&Node> = given.iter().filter_map(|given| given.node).collect();
        if nodes.is_empty() {
            nodes.extend(self.snapshot.nodes.get(&own).map(|node| &**node));
        } else {
            let first = self.random as usize % nodes.len();
            nodes.rotate_left(first);
            self.volatile = nodes.len() > 1;
        }
        let mut servers = Answer::default();
        let Some(domain) = self.domain else { return servers };
        let is_host = |node: &&Node| node.name.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
        for node in nodes.into_iter().filter(is_host).take(3) {
            let Some(name) = self.node_name(node).map(|name| name.to_lower()) else { continue };
            servers.answer.push(Record::new(domain.clone(), Rtype::NS, settings.node_ttl, name.wire()));
            if let Some(Host::Ip(address)) = prefer(Rtype::ANY, Some(&node.address), &node.tagged)
                && !address.is_unspecified()
            {
                servers.additional.push(address_record(name, *address, settings.node_ttl));
            }
        }
        if servers.answer.is_empty() {
            servers.authority.push(self.soa());
        }
        servers
    }

    /// A CNAME record, and what it leads to if that is ours to say. `ttl_of_all` is put in place of the TTLs there.
    fn alias(&mut self, target: &Name, ttl: u32, ttl_of_all: Option<u32>) -> Answer {
        let qtype = self.question.qtype;
        let mut answer = vec![Record::new(self.question.qname.clone(), Rtype::CNAME, ttl, target.wire())];
        if qtype != Rtype::CNAME {
            let inner = if matches!(qtype, Rtype::A | Rtype::AAAA) { qtype } else { Rtype::ANY };
            let followed = self.follow(target, inner).into_iter();
            // Nothing but addresses is looked for behind the name of a service's host; behind a node's, its meta as well.
            let is_wanted = |record: &Record| match (qtype, record.rtype) {
                (_, Rtype::CNAME) => true,
                (Rtype::A | Rtype::AAAA | Rtype::ANY | Rtype::TXT, Rtype::A | Rtype::AAAA) => true,
                _ => ttl_of_all.is_none() && record.rtype == Rtype::TXT,
            };
            let with_ttl = |record: Record| Record { ttl: ttl_of_all.unwrap_or(record.ttl), ..record };
            for record in followed.filter(is_wanted).map(with_ttl) {
                // Where names lead round in a circle, once is enough.
                if record.rtype != Rtype::CNAME || !answer.contains(&record) {
                    answer.push(record);
                }
            }
            let Range { start, end } = self.shape.rotating;
            self.shape.rotating = (start + 1).min(answer.len())..(end + 1).min(answer.len());
        }
        Answer { answer, ..Answer::default() }
    }

    /// The answer section for a name that our own data led to; empty if it is not ours, or too far.
    fn follow(&mut self, target: &Name, qtype: Rtype) -> Vec<Record> {
        if !self.is_ours(target) || self.depth == MAX_DEPTH {
            return Vec::new();
        }
        let question = Question { qname: target.to_lower(), qtype, qclass: self.question.qclass };
        let mut lookup = Lookup {
            question: &question,
            domain: self.snapshot.settings.domain_of(target),
            depth: self.depth + 1,
            slots: Vec::new(),
            shape: Shape { glue: Vec::new(), ..self.shape.clone() },
            followed: None,
            instead: None,
            ..*self
        };
        let answer = lookup.answer();
        self.slots.append(&mut lookup.slots);
        self.volatile |= lookup.volatile;
        self.until = lookup.until;
        // An SRV record stands without the address of its target.
        let is_needed = |instead: &Verdict| *instead != Verdict::NotReady || self.question.qtype != Rtype::SRV;
        self.instead = self.instead.take().or(lookup.instead.filter(is_needed));
        self.followed = self.followed.take().or(lookup.followed);
        if self.question.qtype != Rtype::SRV {
            self.shape = lookup.shape;
        }
        let mut records = answer.map(|answer| answer.answer).unwrap_or_default();
        // In the letters by which they are led to: who looks for the target's records may compare them.
        records.iter_mut().filter(|record| record.owner == *target).for_each(|record| record.owner = target.clone());
        records
    }

    /// Where an instance is reached; nothing if it has no address.
    fn place(&self, given: &Given) -> Option<Place> {
        self.place_of(given).filter(|place| !matches!(place, Place::Node(address) if address.is_unspecified()))
    }

    /// Notes that there is no answer if none of the instances has an address yet: they are on our own node, and the address of
    /// that is not known.
    fn demand_address(&mut self, given: &[Given]) {
        if given.iter().all(|given| self.place(given).is_none())
            && given.iter().any(|given| self.place_of(given).is_some())
        {
            self.instead.get_or_insert(Verdict::Fail(NO_ADDRESS));
        }
    }

    /// At its own address, else at that of its node.
    fn place_of(&self, given: &Given) -> Option<Place> {
        let registration = &given.instance.registration;
        let qtype = self.question.qtype;
        let of_node = given.node.and_then(|node| Some((node, prefer(qtype, Some(&node.address), &node.tagged)?)));
        match (prefer(qtype, registration.address.as_ref(), &registration.tagged), of_node) {
            (Some(Host::Ip(address)), _) => Some(Place::Address(*address)),
            // A name that leads to itself means the node.
            (Some(Host::Name(name)), Some((_, Host::Ip(address)))) if *name == self.question.qname => {
                Some(Place::Node(*address))
            }
            (Some(Host::Name(name)), _) => Some(Place::Host(name.clone())),
            (None, Some((node, Host::Ip(address)))) if node.address.ip() == Some(*address) => {
                Some(Place::Node(*address))
            }
            (None, Some((_, Host::Ip(address)))) => Some(Place::Address(*address)),
            (None, Some((_, Host::Name(name)))) => Some(Place::Host(name.clone())),
            (None, None) => None,
        }
    }

    /// The name of a node, as registered, in the domain asked.
    fn node_name(&self, node: &Node) -> Option<Name> {
        name_in(&[&*node.name, "node", &*node.datacenter], self.domain?)
    }

    /// The name that spells an address, in the domain asked.
    fn address_name(&self, address: IpAddr, datacenter: &str) -> Option<Name> {
        name_in(&[&*address_label(address), "addr", datacenter], self.domain?)
    }

    fn datacenter<'b>(&'b self, named: &'b Option<String>) -> &'b str {
        named.as_deref().unwrap_or(&self.snapshot.settings.datacenter)
    }

    /// Whether a name is in one of our domains.
    fn is_ours(&self, name: &Name) -> bool {
        self.snapshot.settings.domain_of(name).is_some()
    }

    /// Whether there is nothing more to be said: a record of what was asked, or a name that others have to follow.
    fn is_complete(&self, answer: &Answer) -> bool {
        match answer.answer.last() {
            Some(last) if last.rtype == Rtype::CNAME && self.question.qtype != Rtype::CNAME => {
                !last.target().is_some_and(|target| self.is_ours(&target))
            }
            last => last.is_some(),
        }
    }

    fn denial(&self, rcode: Rcode) -> Answer {
        Answer::negative(rcode, self.soa())
    }

    /// The SOA record of the domain asked.
    fn soa(&self) -> Record {
        let domain = self.domain.unwrap_or(&self.question.qname);
        self.soa_of(domain, domain.clone())
    }

    fn soa_of(&self, domain: &Name, owner: Name) -> Record {
        let numbers = &self.snapshot.settings.soa;
        let within = |label: &[u8]| domain.child(label).unwrap_or_else(|_| domain.clone());
        Soa {
            mname: within(b"ns"),
            rname: within(b"hostmaster"),
            serial: self.serial,
            refresh: numbers.refresh,
            retry: numbers.retry,
            expire: numbers.expire,
            minimum: numbers.min_ttl,
        }
        .record(owner)
    }
}

impl Snapshot {
    /// Whether there is anything of this, from whichever source.
    fn knows(&self, key: &ServiceKey) -> bool {
        match key.kind() {
            Kind::Node => self.nodes.contains_key(&NodeKey::new(key.datacenter(), key.name())),
            _ => self.services.contains_key(key),
        }
    }

    /// Whether a policy or a guard decides, or has decided, what is given of this.
    fn is_ruled(&self, key: &ServiceKey) -> bool {
        let is_written = || self.settings.rules.get(key.name()).is_some_and(Rules::rules_anything);
        let is_remembered = || self.remote.as_ref().is_some_and(|remote| remote.was_ruled(key));
        key.kind() == Kind::Service && (is_written() || is_remembered())
    }
}

impl Given<'_> {
    fn weight(&self) -> u16 {
        let weights = self.instance.registration.weights;
        if self.status == Status::Passing { weights.passing } else { weights.warning }
    }
}

fn is_address_or_alias(record: &Record) -> bool {
    matches!(record.rtype, Rtype::A | Rtype::AAAA | Rtype::CNAME)
}

/// These names in front of a domain; the first may hold dots. Nothing if they do not fit.
fn name_in(parts: &[&str], domain: &Name) -> Option<Name> {
    let labels = parts.iter().flat_map(|part| part.split('.')).collect::<Vec<_>>();
    labels.into_iter().rev().try_fold(domain.clone(), |name, label| name.child(label.as_bytes()).ok())
}

/// Why there is no answer for a service under a policy or a guard while its source is lost.
const LOST: &str = "the catalog's source is lost, and nobody else applies the policy of this service";
/// Why there is no answer for what is on our own node while that has no address.
const NO_ADDRESS: &str = "the address of this host's node is not known yet";
/// How many names in a row are followed here.
const MAX_DEPTH: usize = 3;

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
