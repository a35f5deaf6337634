//! A whole override zone, and what it says to a question (RFC 1034 §4.3.2).
//!
//! The zone alone speaks below its apex, and denies what it does not have. A name below a delegation is referred to
//! the servers named there; data of the zone that lies below is glue and nothing else. Wildcards follow RFC 4592, DNAME
//! records RFC 6672. A CNAME chain is followed as long as it stays in the zone: where it leads out, or below a
//! delegation, the answer ends and whoever asked goes on from its last target.

use std::path::Path;

use super::{
    DEFAULT_FILE_BYTES, Error, Mode, Problem, Rrset,
    contents::{Contents, Entry, Origin},
    denial_soa, file,
    names::{Names, is_wildcard, wildcard_below},
    next_generation,
    rdata::are_equal,
    synthesize_soa,
};
use crate::wire::{Answer, Name, Question, Rcode, Record, Rtype};

/// A zone that is ours to answer.
pub struct Zone {
    apex: Name,
    generation: u64,
    warnings: Vec<Error>,
    names: Names,
    /// By the numbers of `names`. An empty non-terminal has no RRsets.
    nodes: Vec<Box<[Rrset]>>,
    /// As negative answers carry it: with a TTL no longer than the SOA minimum (RFC 2308 §3).
    soa: Record,
}

/// What stands at a name.
enum Place<'a> {
    /// The RRsets of the name, or of the wildcard that stands for it.
    Node(&'a [Rrset]),
    /// A delegation at this name, which is that of the question or above it.
    Cut(Name, &'a Rrset),
    /// A DNAME record above the name.
    Dname(Record),
    Nothing,
}

impl Zone {
    /// Reads a zone from its master file. An error holds every fault that was found.
    pub fn load(file: &Path, apex: &Name) -> Result<Self, Vec<Error>> {
        Self::build(file::read(file, apex, Mode::Zone, Origin::Disk, DEFAULT_FILE_BYTES))
    }

    /// Reads a zone from a text; `file` is what messages call it, and where `$INCLUDE` looks for files.
    pub fn parse(file: &Path, text: &str, apex: &Name) -> Result<Self, Vec<Error>> {
        Self::build(file::parse(file, text, apex, Mode::Zone))
    }

    pub(super) fn build(mut contents: Contents) -> Result<Self, Vec<Error>> {
        let apex = contents.apex.clone();
        let records = std::mem::take(&mut contents.records);
        let owners: Vec<Name> = contents.names.iter().map(name_of).collect();
        let mut nodes: Vec<Box<[Rrset]>> = owners.iter().map(|_| Box::default()).collect();
        for entries in records.chunk_by(|a, b| a.owner == b.owner) {
            let number = entries[0].owner as usize;
            nodes[number] = contents.rrsets(&owners[number], entries);
        }
        // The names between an owner and the apex exist too, though they have nothing (RFC 4592 §2.2.2).
        for owner in &owners {
            let between = owner.suffixes().take_while(|suffix| suffix.len() >= apex.wire().len());
            for suffix in between.skip(1) {
                if contents.names.find(&suffix.to_ascii_lowercase()).is_none() {
                    match contents.names.insert(suffix) {
                        Some(_) => nodes.push(Box::default()),
                        None => contents.blame_file(Problem::TooLarge),
                    }
                }
            }
        }
        contents.names.shrink();

        let at_apex = contents.names.find(apex.to_lower().wire()).map(|number| &nodes[number as usize]);
        let soa = at_apex.and_then(|rrsets| denial_soa(find(rrsets, Rtype::SOA)?, &apex));
        let mut zone = Self {
            // Without an SOA record the zone is refused, but its other faults are looked for all the same.
            soa: soa.clone().unwrap_or_else(|| synthesize_soa(&apex)),
            names: std::mem::take(&mut contents.names),
            generation: next_generation(),
            warnings: Vec::new(),
            apex,
            nodes,
        };
        for entries in records.chunk_by(|a, b| a.owner == b.owner) {
            zone.check(&owners[entries[0].owner as usize], entries, &mut contents);
        }
        if soa.is_none() && !contents.mentions_soa {
            contents.blame_file(Problem::NoSoa { apex: zone.apex.clone() });
        }
        zone.warnings = contents.findings.refuse_faults()?;
        Ok(zone)
    }

    /// The name above which others answer.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// All records, occluded ones and glue included, in no particular order.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        // Both go by number; the names in between come after the owners.
        let owners = self.names.iter().map(name_of).zip(&self.nodes);
        owners.flat_map(|(owner, rrsets)| {
            let records = rrsets.iter().flat_map(|rrset| rrset.records(&owner)).collect::<Vec<_>>();
            records.into_iter()
        })
    }

    /// Under which answers of this zone are cached: a zone read anew has another one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What is odd about the file, though it can be served.
    pub fn warnings(&self) -> &[Error] {
        &self.warnings
    }

    /// What the zone says to a question of class IN whose name is at or below the apex.
    pub fn answer(&self, question: &Question) -> Answer {
        let qtype = question.qtype;
        let mut answer = Answer::default();
        let mut qname = question.qname.clone();
        for _ in 0..=MAX_STEPS {
            let target = match self.place(&qname, qtype) {
                Place::Node(rrsets) => {
                    let wanted = |rrset: &&Rrset| rrset.rtype == qtype || qtype == Rtype::ANY;
                    let before = answer.answer.len();
                    answer.answer.extend(rrsets.iter().filter(wanted).flat_map(|rrset| rrset.records(&qname)));
                    if answer.answer.len() > before {
                        answer.additional = self.addresses_for(&answer.answer[before..]);
                        return answer;
                    }
                    match find(rrsets, Rtype::CNAME).and_then(|rrset| rrset.records(&qname).next()) {
                        Some(cname) => {
                            let target = cname.target();
                            answer.answer.push(cname);
                            target
                        }
                        None => return self.deny(Rcode::NOERROR, answer),
                    }
                }
                Place::Nothing => return self.deny(Rcode::NXDOMAIN, answer),
                Place::Cut(owner, servers) => {
                    // AA speaks of the first owner in the answer (RFC 1035 §4.1.1), if there is one.
                    answer.authoritative = !answer.answer.is_empty();
                    answer.authority = servers.records(&owner).collect();
                    answer.additional = self.glue_for(&answer.authority);
                    return answer;
                }
                Place::Dname(dname) => {
                    let ttl = dname.ttl;
                    let target = dname.target().and_then(|to| qname.replace_suffix(&dname.owner, &to));
                    answer.answer.push(dname);
                    let Some(Ok(target)) = target else {
                        // The name that the DNAME record asks for is too long (RFC 6672 §2.2).
                        answer.rcode = Rcode::YXDOMAIN;
                        return answer;
                    };
                    answer.answer.push(Record::new(qname.clone(), Rtype::CNAME, ttl, target.wire()));
                    if matches!(qtype, Rtype::CNAME | Rtype::ANY) {
                        return answer;
                    }
                    Some(target)
                }
            };
            match target.filter(|target| target.is_at_or_below(&self.apex)) {
                Some(target) => qname = target.to_lower(),
                None => return answer,
            }
        }
        // The chain is a loop, or as good as one.
        Answer { rcode: Rcode::SERVFAIL, authoritative: false, ..Answer::default() }
    }

    fn deny(&self, rcode: Rcode, answer: Answer) -> Answer {
        Answer { rcode, authority: vec![self.soa.clone()], ..answer }
    }

    /// Goes down from the apex to the name, for what stands above decides about what lies below.
    fn place(&self, qname: &Name, qtype: Rtype) -> Place<'_> {
        let above = qname.suffixes().take_while(|suffix| suffix.len() >= self.apex.wire().len());
        let mut encloser: &[u8] = &[];
        for suffix in above.collect::<Vec<_>>().into_iter().rev() {
            let Some(number) = self.names.find(suffix) else {
                // The wildcard stands right below the last name that exists: the closest encloser (RFC 4592 §3.3.1).
                let wildcard = self.names.find(&wildcard_below(encloser));
                return wildcard.map_or(Place::Nothing, |number| Place::Node(self.node(number)));
            };
            let rrsets = self.node(number);
            let is_qname = suffix.len() == qname.wire().len();
            let is_apex = suffix.len() == self.apex.wire().len();
            // The parent answers for DS at the delegation itself (RFC 4035 §3.1.4.1).
            if let Some(servers) = find(rrsets, Rtype::NS).filter(|_| !is_apex && (!is_qname || qtype != Rtype::DS)) {
                return Place::Cut(name_of(suffix), servers);
            }
            let dname = find(rrsets, Rtype::DNAME).filter(|_| !is_qname);
            if let Some(dname) = dname.and_then(|rrset| rrset.records(&name_of(suffix)).next()) {
                return Place::Dname(dname);
            }
            if is_qname {
                return Place::Node(rrsets);
            }
            encloser = suffix;
        }
        Place::Nothing
    }

    fn node(&self, number: u32) -> &[Rrset] {
        self.nodes.get(number as usize).map_or(&[], |rrsets| rrsets)
    }

    /// Addresses of the targets of NS, MX and SRV records, where this zone has authority over them.
    fn addresses_for(&self, records: &[Record]) -> Vec<Record> {
        self.collect_addresses(records, |target| match self.place(target, Rtype::A) {
            Place::Node(rrsets) => rrsets,
            _ => &[],
        })
    }

    /// Addresses of name servers, those included that stand here only for the delegation's sake.
    fn glue_for(&self, records: &[Record]) -> Vec<Record> {
        self.collect_addresses(records, |target| self.names.find(target.wire()).map_or(&[], |number| self.node(number)))
    }

    fn collect_addresses<'a>(&'a self, records: &[Record], rrsets_at: impl Fn(&Name) -> &'a [Rrset]) -> Vec<Record> {
        let mut additional: Vec<Record> = Vec::new();
        for target in records.iter().filter_map(|record| target_of(record.rtype, &record.rdata)) {
            if additional.iter().any(|known| known.owner == target) {
                continue;
            }
            let addresses = rrsets_at(&target.to_lower());
            let addresses = addresses.iter().filter(|rrset| matches!(rrset.rtype, Rtype::A | Rtype::AAAA));
            additional.extend(addresses.flat_map(|rrset| rrset.records(&target)));
        }
        additional
    }

    /// Checks the records of one owner against the rest of the zone.
    fn check(&self, owner: &Name, entries: &[Entry], contents: &mut Contents) {
        if owner == &self.apex {
            // An equal one ends the output of `dig axfr`.
            let mut soas = entries.iter().filter(|entry| entry.rtype == Rtype::SOA);
            if let Some(first) = soas.next()
                && let Some(second) =
                    soas.find(|entry| !are_equal(Rtype::SOA, contents.rdata(entry), contents.rdata(first)))
            {
                contents.blame(second, Problem::SecondSoa);
            }
        } else if let Some(soa) = entries.iter().find(|entry| entry.rtype == Rtype::SOA) {
            contents.blame(soa, Problem::SoaBelowApex { owner: owner.clone() });
        }
        for entry in entries.iter().filter(|_| is_wildcard(owner.wire())) {
            match entry.rtype {
                Rtype::NS => contents.blame(entry, Problem::WildcardNs),
                Rtype::DNAME => contents.blame(entry, Problem::WildcardDname),
                _ => {}
            }
        }
        match self.place(&owner.to_lower(), Rtype::A) {
            Place::Dname(dname) => {
                contents.blame(&entries[0], Problem::BelowDname { owner: owner.clone(), dname: dname.owner });
            }
            Place::Cut(cut, _) => {
                let served = |rtype| match rtype {
                    Rtype::A | Rtype::AAAA => true,
                    Rtype::NS | Rtype::DS | Rtype::NSEC | Rtype::RRSIG => *owner == cut,
                    _ => false,
                };
                for entry in entries.iter().filter(|entry| !served(entry.rtype)) {
                    let (owner, cut) = (owner.clone(), cut.clone());
                    contents.blame(entry, Problem::Occluded { owner, rtype: entry.rtype, cut });
                }
            }
            _ => {}
        }
        for entry in entries {
            let Some(target) = target_of(entry.rtype, contents.rdata(entry)) else { continue };
            let is_alias = match self.place(&target.to_lower(), Rtype::A) {
                Place::Node(rrsets) => find(rrsets, Rtype::CNAME).is_some(),
                _ => false,
            };
            if is_alias && target.is_at_or_below(&self.apex) {
                contents.blame(entry, Problem::TargetIsAlias { rtype: entry.rtype, target });
            }
        }
    }
}

/// The host to which an NS, MX or SRV record leads, which wants an address and may be no alias (RFC 2181 §10.3).
fn target_of(rtype: Rtype, rdata: &[u8]) -> Option<Name> {
    let start = match rtype {
        Rtype::NS => 0,
        Rtype::MX => 2,
        Rtype::SRV => 6,
        _ => return None,
    };
    Name::from_wire(rdata.get(start..)?).ok()
}

fn find(rrsets: &[Rrset], rtype: Rtype) -> Option<&Rrset> {
    rrsets.iter().find(|rrset| rrset.rtype == rtype)
}

fn name_of(suffix: &[u8]) -> Name {
    Name::from_wire(suffix).expect("the suffix of a name is a name")
}

/// Longest chain of CNAME and DNAME records that is followed.
const MAX_STEPS: usize = 8;

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
