//! Replies in which not every instance is: which and how many are in it is for each server to choose, within limits.

use std::collections::BTreeSet;

use crate::harness::{
    Message,
    message::{Record, TC, number_of, type_name},
};

use super::{Case, deviations::everything, lettered, rewrite};

/// The deviations of this file.
pub const ALL: &[&str] = &[MORE, SAID, TOO_LONG, WRITTEN_OUT];

const MORE: &str = "as many records as fit are given, and not fewer";
const SAID: &str = "a reply that lacks what did not fit says so";
const TOO_LONG: &str = "no reply is longer than its client takes, OPT record included";
const WRITTEN_OUT: &str = "the targets of SRV records are not compressed, and so fewer may fit";

/// Compares a reply with Consul's, one of which lacks instances; `None` if neither does.
pub fn compare(case: &Case, ours: &Message, theirs: &Message) -> Option<Result<Vec<&'static str>, String>> {
    let whole = whole(case);
    let lacks = |message: &Message| {
        message.answer.len() < whole.answer.len() || message.additional.len() < whole.additional.len()
    };
    (lacks(ours) || lacks(theirs)).then(|| judge(case, ours, theirs, &whole))
}

fn judge(case: &Case, ours: &Message, theirs: &Message, whole: &Message) -> Result<Vec<&'static str>, String> {
    let demand = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(format!(
            "  {what}\n    ours: {} {} of {} and {} of {} in {} octets\n    theirs: {} {} and {}",
            ours.flag_names(),
            ours.answer.len(),
            whole.answer.len(),
            ours.additional.len(),
            whole.additional.len(),
            ours.length,
            theirs.flag_names(),
            theirs.answer.len(),
            theirs.additional.len(),
        )),
    };
    demand((ours.rcode, ours.flags & !TC) == (theirs.rcode, theirs.flags & !TC), "response code and flags")?;
    demand(ours.question == theirs.question, "question")?;
    demand(ours.authority == theirs.authority && theirs.authority.is_empty(), "authority")?;
    demand(is_part(&ours.answer, &whole.answer), "each record once, and none of our own")?;
    demand(is_part(&theirs.answer, &whole.answer), "the whole is the whole")?;

    let limits = &case.bench.setting.limits;
    let is_small = !case.asking.over_tcp && case.asking.limit_bytes() <= 512;
    let of_addresses = limits.a_record.filter(|_| case.asking.query.qtype() != number_of("SRV"));
    let most = [of_addresses, limits.udp_answer.filter(|_| is_small)].into_iter().flatten().min();
    let aliases = whole.answer.iter().filter(|record| record.rtype == number_of("CNAME")).count();
    let most = most.map_or(whole.answer.len(), |most| most + aliases).min(whole.answer.len());
    let count = ours.answer.len();
    demand(count <= most, "no more than the limits allow")?;
    let is_srv = case.asking.query.qtype() == number_of("SRV");
    // Of aliases within the domain Consul's own limit was taken off.
    let given = if aliases > 0 { theirs.answer.len().min(most) } else { theirs.answer.len() };
    let is_fewer = count < given && !case.asking.over_tcp;
    let is_too_long = theirs.length > case.asking.limit_bytes();
    demand(!is_fewer || is_srv || is_too_long, "as many as Consul gives")?;
    demand(ours.length <= case.asking.limit_bytes(), "it fits")?;
    let is_full = |length: usize| length + longest_bytes(case, whole) > case.asking.limit_bytes();
    demand(count == most || is_full(ours.length), "as many as fit")?;
    additional(ours, whole).map_err(|record| format!("  additional: {record}"))?;

    let is_silent = (limits.a_record.is_some() || limits.udp_answer.is_some()) && !limits.enable_truncate;
    let mut applied = Vec::new();
    if is_fewer {
        applied.push(if is_too_long { TOO_LONG } else { WRITTEN_OUT });
    }
    if count == theirs.answer.len() && ours.additional.len() == theirs.additional.len() && limits.enable_truncate {
        demand(ours.has(TC) == theirs.has(TC), "TC as Consul")?;
    } else {
        let all = of_addresses.map_or(whole.answer.len(), |limit| (limit + aliases).min(whole.answer.len()));
        let is_cut = count < all && !case.asking.over_tcp;
        demand(ours.has(TC) == (is_cut && !is_silent), "TC where something is lacking")?;
    }
    if count > theirs.answer.len() || ours.additional.len() > theirs.additional.len() {
        applied.push(MORE);
    }
    if ours.has(TC) && !theirs.has(TC) {
        applied.push(SAID);
    }
    Ok(applied)
}

/// The addresses of the targets that are given, one of each, and nothing else; all there is if no instance is lacking.
fn additional(ours: &Message, whole: &Message) -> Result<(), String> {
    if ours.answer.len() == whole.answer.len() && ours.additional.len() == whole.additional.len() {
        return if is_part(&ours.additional, &whole.additional) { Ok(()) } else { Err("another record".into()) };
    }
    let is_address = |record: &&Record| [1, 5, 28].contains(&record.rtype);
    let targets: BTreeSet<String> = ours.answer.iter().filter(|record| record.rtype == 33).map(target).collect();
    let mut wanted: Vec<&Record> = Vec::new();
    for target in targets {
        wanted.extend(whole.additional.iter().filter(is_address).find(|record| record.owner == target));
    }
    let mut rest: Vec<&Record> = ours.additional.iter().collect();
    for record in wanted {
        let place = rest.iter().position(|other| *other == record).ok_or(format!("without {}", record.line()))?;
        rest.swap_remove(place);
    }
    rest.first().map_or(Ok(()), |record| Err(format!("with {}", record.line())))
}

fn target(srv: &Record) -> String {
    srv.data().rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The octets of the longest record, its address included: one that did not fit was no longer.
fn longest_bytes(case: &Case, whole: &Message) -> usize {
    let owner = 2;
    let longest = |record: &Record| match record.rtype {
        // Targets are written out, and their addresses point to them.
        33 => owner + 10 + record.rdata.len() + if whole.additional.is_empty() { 0 } else { owner + 10 + 16 },
        _ => owner + 10 + record.rdata.len(),
    };
    let longest = whole.answer.iter().map(longest).max().unwrap_or(0);
    // Estimates may lie on the safe side by what compression saves.
    longest + SLACK_BYTES.min(case.asking.limit_bytes() / 10)
}

fn is_part(some: &[Record], all: &[Record]) -> bool {
    let mut rest: Vec<&Record> = all.iter().collect();
    some.iter().all(|record| {
        let place = rest.iter().position(|other| *other == record);
        place.map(|place| rest.swap_remove(place)).is_some()
    })
}

/// All that there is to say.
fn whole(case: &Case) -> Message {
    let (qname, qtype) = (case.asking.query.qname(), type_name(case.asking.query.qtype()));
    lettered(&rewrite(case, everything(case, &format!("{qname} {qtype}"))).0, case.asking)
}

const SLACK_BYTES: usize = 60;
