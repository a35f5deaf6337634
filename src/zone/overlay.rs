//! Overlays: names that are answered here, among others that are not.
//!
//! An overlay owns the names in it for all types: a type it lacks is NODATA. Names it does not hold fall through, even
//! those between a name and the apex. A CNAME record may be an action of response policy zones (RPZ,
//! draft-vixie-dnsop-dns-rpz §3): `.` denies the name, `*.` denies all its data, `rpz-passthru.` leaves it to
//! whoever is next, as does the qname itself (the older form), `rpz-drop.` gives no reply, `rpz-tcp-only.` answers over TCP
//! alone, and `*.garden.example.` leads to the qname put in front of `garden.example.`. Other aliases are followed by
//! the caller, who asks no overlay about their targets.
//!
//! Several overlays may hold a name. Files that `zones.order` lists are asked first, in its order, and the first that holds
//! the name decides, as among the response policy zones of BIND. Among the others exact beats wildcard, then the longer apex
//! wins, then the order of the files. Within an overlay exact beats wildcard and the longest wildcard wins, whatever other
//! names exist: that is what blocklists mean, though RFC 4592 does not.
//!
//! An SOA record makes the file a response policy zone: its owner is the name of the zone, and all other owners are relative
//! to it. `bad.test.rpz.example.` in the zone `rpz.example.` is the rule for `bad.test.`. Records at the SOA record's own
//! name are about the file and rule on nothing.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{
    Client, DEFAULT_FILE_BYTES, Error, Hosts, Mode, Problem, Rrset,
    contents::{Contents, Entry, Origin},
    denial_soa, file,
    names::{Names, is_wildcard, wildcard_below},
    next_generation,
    rdata::are_equal,
    synthesize_soa,
};
use crate::wire::{Answer, Class, Name, Question, Rcode, Record, Rtype};

/// All overlays and hosts files in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Overlays {
    /// Asked first, one after the other.
    ordered: Vec<Ordered>,
    overlays: Vec<Arc<Overlay>>,
    hosts: Vec<Arc<Hosts>>,
    /// Whether names in hosts files are left to whoever is next for types other than theirs.
    hosts_fallthrough: bool,
}

/// A file with a place of its own in the order.
#[derive(Clone)]
pub enum Ordered {
    /// An overlay.
    Overlay(Arc<Overlay>),
    /// A hosts file.
    Hosts(Arc<Hosts>),
}

/// What the overlay that holds a name says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// This is the answer. If it ends with a CNAME record, its target is still to be asked for.
    Answer {
        /// Records or a denial.
        answer: Answer,
        /// The generation of the table it comes from.
        generation: u64,
    },
    /// Leave the name alone: whoever is next answers, other overlays excepted.
    PassThrough,
    /// Send no reply.
    Drop,
    /// Over UDP reply with TC alone; over TCP leave the name alone.
    TcpOnly,
}

impl Overlays {
    /// Orders overlays by their apex, the longer first, and otherwise keeps their order; hosts files come last.
    pub fn new(mut overlays: Vec<Arc<Overlay>>, hosts: Vec<Arc<Hosts>>) -> Self {
        overlays.sort_by_key(|overlay| std::cmp::Reverse(overlay.apex.label_count()));
        Self { ordered: Vec::new(), overlays, hosts, hosts_fallthrough: false }
    }

    /// The same, with these asked before all others, in this order: the first of them that holds a name rules on it.
    pub fn with_ordered(self, ordered: Vec<Ordered>) -> Self {
        Self { ordered, ..self }
    }

    /// The same, where names in hosts files may be left to whoever is next for types other than addresses, and the names of
    /// their addresses for types other than PTR.
    pub fn with_hosts_fallthrough(self, hosts_fallthrough: bool) -> Self {
        Self { hosts_fallthrough, ..self }
    }

    /// Whether a hosts file has the name, and leaves it to whoever is next for other types. Then the name exists, whatever
    /// they say.
    pub fn falls_through(&self, qname: &Name, client: Client) -> bool {
        if !self.hosts_fallthrough {
            return false;
        }
        let has = |hosts: &Hosts| hosts.own_types(qname, client).is_some();
        let first = self.ordered.iter().find_map(|file| match file {
            Ordered::Overlay(overlay) => {
                overlay.find_exact(qname).or_else(|| overlay.find_wildcard(qname)).map(|_| false)
            }
            Ordered::Hosts(hosts) => has(hosts).then_some(true),
        });
        let is_overlaid = || self.overlays.iter().any(|overlay| overlay.find_exact(qname).is_some());
        first.unwrap_or_else(|| !is_overlaid() && self.hosts.iter().any(|hosts| has(hosts)))
    }

    /// What a hosts file says to a question that it does not leave to others.
    fn rule_of_hosts(&self, hosts: &Hosts, question: &Question, client: Client) -> Option<Ruling> {
        let is_own = |types: &[Rtype]| question.qtype == Rtype::ANY || types.contains(&question.qtype);
        match self.hosts_fallthrough && !hosts.own_types(&question.qname, client).is_some_and(is_own) {
            true => None,
            false => hosts.rule(question, client),
        }
    }

    /// What is said to a question; `None` if no overlay holds the name.
    ///
    /// Where [`Self::is_client_dependent`], not only the ruling depends on the client, but also whether there is one.
    pub fn answer(&self, question: &Question, client: Client) -> Option<Ruling> {
        if question.qclass != Class::IN {
            return None;
        }
        let qname = &question.qname;
        let first = self.ordered.iter().find_map(|file| match file {
            Ordered::Overlay(overlay) => {
                let action = overlay.find_exact(qname).or_else(|| overlay.find_wildcard(qname))?;
                Some(overlay.rule(action, question))
            }
            Ordered::Hosts(hosts) => self.rule_of_hosts(hosts, question, client),
        });
        let held = |find: fn(&Overlay, &Name) -> Option<u32>| {
            self.overlays.iter().find_map(|overlay| Some(overlay.rule(find(overlay, qname)?, question)))
        };
        first
            .or_else(|| held(Overlay::find_exact))
            .or_else(|| self.hosts.iter().find_map(|hosts| self.rule_of_hosts(hosts, question, client)))
            .or_else(|| held(Overlay::find_wildcard))
    }

    /// What hosts files alone say to a question.
    pub fn answer_from_hosts(&self, question: &Question, client: Client) -> Option<Ruling> {
        if question.qclass != Class::IN {
            return None;
        }
        self.all_hosts().find_map(|hosts| self.rule_of_hosts(hosts, question, client))
    }

    /// Whether loopback clients may be told something else than others: such an answer belongs into no cache.
    pub fn is_client_dependent(&self, qname: &Name) -> bool {
        self.all_hosts().any(|hosts| hosts.is_client_dependent(qname))
    }

    fn all_hosts(&self) -> impl Iterator<Item = &Hosts> {
        let ordered = self.ordered.iter().filter_map(|file| match file {
            Ordered::Hosts(hosts) => Some(hosts),
            Ordered::Overlay(_) => None,
        });
        ordered.chain(&self.hosts).map(|hosts| &**hosts)
    }
}

impl Hosts {
    fn rule(&self, question: &Question, client: Client) -> Option<Ruling> {
        Some(Ruling::Answer { answer: self.answer(question, client)?, generation: self.generation() })
    }
}

/// The names of one file and what is said about each.
pub struct Overlay {
    apex: Name,
    generation: u64,
    warnings: Vec<Error>,
    /// Numbers are places in `actions`.
    names: Names,
    actions: Vec<Action>,
    has_wildcards: bool,
    /// As denials carry it, but for its owner.
    soa: Option<Record>,
}

/// What is done with a name; names of which the same is said share one.
enum Action {
    FallThrough,
    Deny,
    DenyData,
    PassThrough,
    Drop,
    TcpOnly,
    Prepend { suffix: Name, ttl: u32 },
    Data(Box<[Rrset]>),
}

impl Overlay {
    /// Reads an overlay from its master file. An error holds every fault that was found.
    pub fn load(file: &Path, apex: &Name) -> Result<Self, Vec<Error>> {
        Self::build(file::read(file, apex, Mode::Overlay, Origin::Disk, DEFAULT_FILE_BYTES))
    }

    /// Reads an overlay from a text; `file` is what messages call it, and where `$INCLUDE` looks for files.
    pub fn parse(file: &Path, text: &str, apex: &Name) -> Result<Self, Vec<Error>> {
        Self::build(file::parse(file, text, apex, Mode::Overlay))
    }

    pub(super) fn build(mut contents: Contents) -> Result<Self, Vec<Error>> {
        let soa = find_soa(&mut contents);
        if let Some(soa) = &soa {
            make_relative(&mut contents, &soa.owner);
        }
        let mut records = std::mem::take(&mut contents.records);
        let mut overlay = Self {
            apex: contents.apex.clone(),
            generation: next_generation(),
            warnings: Vec::new(),
            names: std::mem::take(&mut contents.names),
            actions: vec![Action::FallThrough],
            has_wildcards: false,
            soa,
        };
        // NS records at the apex are no rule, nor is anything else there in a policy, nor the signatures of a signed one.
        let at_apex = overlay.names.find(overlay.apex.to_lower().wire());
        let is_policy = overlay.soa.is_some();
        records.retain(|entry| {
            let is_at_apex = Some(entry.owner) == at_apex;
            let is_about_file = is_at_apex && (is_policy || entry.rtype == Rtype::NS);
            let is_signature = is_policy && matches!(entry.rtype, Rtype::RRSIG | Rtype::NSEC | Rtype::NSEC3);
            !is_about_file && !is_signature
        });

        // Where aliases lead, and the first record that leads there.
        let mut targets: Vec<(Name, Entry)> = Vec::new();
        let mut of_owner = vec![FALL_THROUGH; overlay.names.len()];
        let mut known: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut fingerprint = Vec::new();
        // Both go by number.
        let mut owners = overlay.names.iter().zip(0..);
        for entries in records.chunk_by(|a, b| a.owner == b.owner) {
            let Some((owner, number)) = owners.find(|&(_, number)| number == entries[0].owner) else { break };
            if !check(owner, entries, &mut contents) {
                continue;
            }
            overlay.has_wildcards |= is_wildcard(owner);
            fingerprint.clear();
            contents.fingerprint(entries, &mut fingerprint);
            of_owner[number as usize] = match known.get(&fingerprint) {
                Some(&action) => action,
                None => {
                    let owner = Name::from_wire(owner).expect("names come from names");
                    let errors = contents.findings.count();
                    overlay.actions.push(Action::new(contents.rrsets(&owner, entries)));
                    let action = overlay.actions.len() as u32 - 1;
                    if let Some(Action::Data(rrsets)) = overlay.actions.last()
                        && let Some(target) = rrsets.iter().find(|rrset| rrset.rtype == Rtype::CNAME)
                    {
                        let target = target.records(&owner).next().and_then(|record| record.target());
                        targets.extend(target.filter(|target| *target != owner).map(|target| (target, entries[0])));
                    }
                    // What has a fault is looked at each time, so that each owner is named.
                    if contents.findings.count() == errors {
                        known.insert(fingerprint.clone(), action);
                    }
                    action
                }
            };
        }
        drop(owners);
        overlay.names.renumber(|number| of_owner[number as usize]);
        overlay.names.shrink();
        overlay.actions.shrink_to_fit();
        for (target, entry) in targets {
            let action = overlay.find_exact(&target.to_lower()).map(|action| &overlay.actions[action as usize]);
            if matches!(action, Some(Action::Data(rrsets)) if !leads_to(rrsets, &target)) {
                contents.blame(&entry, Problem::TargetInOverlay { target });
            }
        }
        overlay.warnings = contents.findings.refuse_faults()?;
        Ok(overlay)
    }

    /// The name above which it holds nothing.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// Under which answers of this overlay are cached: an overlay read anew has another one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is odd about the file, though it can be served.
    pub fn warnings(&self) -> &[Error] {
        &self.warnings
    }

    fn find_exact(&self, qname: &Name) -> Option<u32> {
        self.names.find(qname.wire()).filter(|&action| action != FALL_THROUGH)
    }

    fn find_wildcard(&self, qname: &Name) -> Option<u32> {
        if !self.has_wildcards {
            return None;
        }
        let above = qname.suffixes().skip(1).take_while(|suffix| suffix.len() >= self.apex.wire().len());
        above
            .map(wildcard_below)
            .find_map(|wildcard| self.names.find(&wildcard).filter(|&action| action != FALL_THROUGH))
    }

    fn rule(&self, action: u32, question: &Question) -> Ruling {
        let qname = &question.qname;
        let deny = |rcode| Answer::negative(rcode, self.soa_for(qname));
        let answer = match &self.actions[action as usize] {
            Action::PassThrough | Action::FallThrough => return Ruling::PassThrough,
            Action::Drop => return Ruling::Drop,
            Action::TcpOnly => return Ruling::TcpOnly,
            Action::Deny => deny(Rcode::NXDOMAIN),
            Action::DenyData => deny(Rcode::NOERROR),
            Action::Prepend { suffix, ttl } => match qname.replace_suffix(&Name::root(), suffix) {
                Some(Ok(target)) => {
                    let cname = Record::new(qname.clone(), Rtype::CNAME, *ttl, target.wire());
                    Answer { answer: vec![cname], ..Answer::default() }
                }
                Some(Err(_)) => Answer { rcode: Rcode::YXDOMAIN, ..Answer::default() },
                None => deny(Rcode::NOERROR),
            },
            // The older form of `rpz-passthru.`.
            Action::Data(rrsets) if leads_to(rrsets, qname) => return Ruling::PassThrough,
            Action::Data(rrsets) => {
                let of_type = |rtype| rrsets.iter().filter(move |rrset| rrset.rtype == rtype || rtype == Rtype::ANY);
                let mut answer: Vec<Record> = of_type(question.qtype).flat_map(|rrset| rrset.records(qname)).collect();
                if answer.is_empty() {
                    answer.extend(of_type(Rtype::CNAME).flat_map(|rrset| rrset.records(qname)));
                }
                if answer.is_empty() { deny(Rcode::NOERROR) } else { Answer { answer, ..Answer::default() } }
            }
        };
        Ruling::Answer { answer, generation: self.generation }
    }

    /// The SOA record of a denial. Its owner is the qname, for an overlay has no zone: a resolver that forwards only the zone
    /// of this name to us would not believe the SOA record of any name above.
    fn soa_for(&self, qname: &Name) -> Record {
        match &self.soa {
            Some(soa) => Record { owner: qname.clone(), ..soa.clone() },
            None => synthesize_soa(qname),
        }
    }
}

impl Action {
    fn new(rrsets: Box<[Rrset]>) -> Self {
        let cname = rrsets.iter().find(|rrset| rrset.rtype == Rtype::CNAME);
        let Some((cname, target)) = cname.and_then(|cname| Some((cname, cname.rdatas.first()?))) else {
            return Self::Data(rrsets);
        };
        match &*target.to_ascii_lowercase() {
            b"\0" => Self::Deny,
            b"\x01*\0" => Self::DenyData,
            b"\x0crpz-passthru\0" => Self::PassThrough,
            b"\x08rpz-drop\0" => Self::Drop,
            b"\x0crpz-tcp-only\0" => Self::TcpOnly,
            target => match target.strip_prefix(b"\x01*").map(Name::from_wire) {
                Some(Ok(suffix)) => Self::Prepend { suffix, ttl: cname.ttl },
                _ => Self::Data(rrsets),
            },
        }
    }
}

/// Whether there is a CNAME record with this target.
fn leads_to(rrsets: &[Rrset], target: &Name) -> bool {
    let cname = rrsets.iter().find(|rrset| rrset.rtype == Rtype::CNAME);
    cname.and_then(|cname| cname.rdatas.first()).is_some_and(|rdata| rdata.eq_ignore_ascii_case(target.wire()))
}

/// The SOA record of the file, as denials carry it. More than one are a fault, unless they are equal.
fn find_soa(contents: &mut Contents) -> Option<Record> {
    let soas: Vec<Entry> = contents.records.iter().filter(|entry| entry.rtype == Rtype::SOA).copied().collect();
    let first = soas.iter().min_by_key(|entry| (entry.file, entry.line))?;
    let owner = owner_of(first, contents);
    for other in &soas {
        if other.owner != first.owner {
            let owner = owner_of(other, contents);
            contents.blame(other, Problem::SoaBelowApex { owner });
        } else if !are_equal(Rtype::SOA, contents.rdata(other), contents.rdata(first)) {
            contents.blame(other, Problem::SecondSoa);
        }
    }
    let has_ns = contents.records.iter().any(|entry| (entry.owner, entry.rtype) == (first.owner, Rtype::NS));
    if !has_ns && owner == contents.apex && !owner.is_root() {
        contents.blame(first, Problem::RelativeToSoa { apex: owner.clone() });
    }
    let rrsets = contents.rrsets(&owner, &[*first]);
    denial_soa(rrsets.first()?, &owner)
}

fn owner_of(entry: &Entry, contents: &Contents) -> Name {
    let wire = contents.names.iter().nth(entry.owner as usize).expect("the number of a name");
    Name::from_wire(wire).expect("names come from names")
}

/// Makes all owners relative to `origin`: those elsewhere are left out, and the others are for names anywhere.
fn make_relative(contents: &mut Contents, origin: &Name) {
    if origin.is_root() {
        return;
    }
    let (names, numbers) = contents.names.relative_to(origin.to_lower().wire());
    let mut records = std::mem::take(&mut contents.records);
    let mut outside = Vec::new();
    records.retain_mut(|entry| match numbers[entry.owner as usize] {
        Some(number) => {
            entry.owner = number;
            true
        }
        None => {
            outside.push(*entry);
            false
        }
    });
    if let Some(first) = outside.iter().min_by_key(|entry| (entry.file, entry.line)) {
        let owner = owner_of(first, contents);
        contents.blame_many(first, Problem::OutOfZone { owner, apex: origin.clone() }, outside.len());
    }
    contents.records = records;
    contents.names = names;
    contents.apex = Name::root();
}

/// Whether the records of one owner can be served.
fn check(owner: &[u8], entries: &[Entry], contents: &mut Contents) -> bool {
    // Looked for in the bytes, for the names are many and such labels few.
    if owner
        .windows(5)
        .any(|octets| octets == b"\x06rpz-" || octets == b"\x08rpz-" || octets == b"\x0brpz-" || octets == b"\x0drpz-")
    {
        let owner = Name::from_wire(owner).expect("names come from names");
        let place = owner.label_count().checked_sub(contents.apex.label_count() + 1);
        let below_apex = place.and_then(|place| owner.labels().nth(place));
        if below_apex.is_some_and(|label| FOREIGN.contains(&label)) {
            contents.blame(&entries[0], Problem::ForeignTrigger { owner });
            return false;
        }
    }
    for entry in entries.iter().filter(|entry| entry.rtype == Rtype::DNAME) {
        contents.blame(entry, Problem::DnameInOverlay);
    }
    true
}

/// Triggers of RPZ that look at something else than the qname (draft-vixie-dnsop-dns-rpz §4).
const FOREIGN: [&[u8]; 4] = [b"rpz-ip", b"rpz-client-ip", b"rpz-nsip", b"rpz-nsdname"];
/// The place of [`Action::FallThrough`].
const FALL_THROUGH: u32 = 0;

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
