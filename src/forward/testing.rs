//! Upstream messages made to order, for the tests of this room.

use std::sync::Arc;

use super::{Config, Group, Rule};
use crate::{
    metrics::Metrics,
    wire::{Rcode, flag, put_u16, read_u16},
};

/// A reply to a query, changed bit by bit until it is what a test needs.
pub(super) struct Reply {
    flags: u16,
    question: Option<Vec<u8>>,
    id: u16,
    sections: [Vec<&'static [u8]>; 3],
    edns: Option<(u8, Vec<u8>)>,
}

impl Reply {
    /// NOERROR without records, with an OPT record without options.
    pub fn to(query: &[u8]) -> Self {
        let name_end = 12 + query[12..].iter().position(|&octet| octet == 0).unwrap() + 1;
        Self {
            flags: flag::QR | flag::RD | flag::RA,
            question: Some(query[12..name_end + 4].to_vec()),
            id: read_u16(query, 0).unwrap(),
            sections: [vec![], vec![], vec![]],
            edns: Some((0, vec![])),
        }
    }

    /// NOERROR with an A record.
    pub fn answering(query: &[u8]) -> Self {
        Self::to(query).record(0, A)
    }

    pub fn rcode(mut self, rcode: Rcode) -> Self {
        self.flags |= rcode.0 & 0x0f;
        if rcode.0 > 0x0f {
            self.edns.as_mut().unwrap().0 = (rcode.0 >> 4) as u8;
        }
        self
    }

    pub fn flag(mut self, flag: u16) -> Self {
        self.flags |= flag;
        self
    }

    pub fn without_flag(mut self, flag: u16) -> Self {
        self.flags &= !flag;
        self
    }

    pub fn id(mut self, change: impl FnOnce(u16) -> u16) -> Self {
        self.id = change(self.id);
        self
    }

    pub fn question(mut self, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        self.question.as_mut().map(change);
        self
    }

    pub fn without_question(mut self) -> Self {
        self.question = None;
        self
    }

    pub fn record(mut self, section: usize, record: &'static [u8]) -> Self {
        self.sections[section].push(record);
        self
    }

    pub fn without_edns(mut self) -> Self {
        self.edns = None;
        self
    }

    pub fn option(mut self, code: u16, data: &[u8]) -> Self {
        let options = &mut self.edns.as_mut().unwrap().1;
        options.extend(code.to_be_bytes());
        options.extend((data.len() as u16).to_be_bytes());
        options.extend(data);
        self
    }

    pub fn cookie(self, data: &[u8]) -> Self {
        self.option(10, data)
    }

    pub fn wire(self) -> Vec<u8> {
        let mut wire = vec![0; 12];
        put_u16(&mut wire, 0, self.id);
        put_u16(&mut wire, 2, self.flags);
        put_u16(&mut wire, 4, u16::from(self.question.is_some()));
        wire.extend(self.question.unwrap_or_default());
        for (place, records) in [6, 8, 10].into_iter().zip(&self.sections) {
            put_u16(&mut wire, place, records.len() as u16);
            records.iter().for_each(|record| wire.extend(*record));
        }
        if let Some((rcode, options)) = self.edns {
            let arcount = read_u16(&wire, 10).unwrap() + 1;
            put_u16(&mut wire, 10, arcount);
            wire.extend([0, 0, 41, 4, 208, rcode, 0, 0, 0]);
            wire.extend((options.len() as u16).to_be_bytes());
            wire.extend(options);
        }
        wire
    }
}

/// The client's part of the cookie in a query that ends with its OPT record and has nothing else in it.
pub(super) fn cookie_in(query: &[u8]) -> &[u8] {
    let length = [40, 32, 24, 16, 8]
        .into_iter()
        .find(|&length| query.len() > length + 4 && query[query.len() - length - 4..][..4] == [0, 10, 0, length as u8]);
    &query[query.len() - length.unwrap_or(0)..]
}

/// The group of a rule for all names.
pub(super) fn group(rule: &str) -> Arc<Group> {
    let rule: Rule = toml::from_str::<Config>(&format!("suffixes = ['.']\n{rule}")).unwrap().rule().unwrap();
    Group::build_all(&[rule], &[], &Metrics::new()).unwrap().remove(0)
}

/// A record whose owner is the qname: 192.0.2.1.
pub(super) const A: &[u8] = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01";
/// The same of `x`.
pub(super) const OTHER_A: &[u8] = b"\x01x\x00\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01";
/// An NS record of the root.
pub(super) const NS: &[u8] = b"\x00\x00\x02\x00\x01\x00\x00\x00\x3c\x00\x04\x02ns\x00";
/// An SOA record of the root.
pub(super) const SOA: &[u8] = b"\x00\x00\x06\x00\x01\x00\x00\x00\x3c\x00\x16\x00\x00\
    \x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x3c";
