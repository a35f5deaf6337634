//! Answers whose records come in another order in each reply, and as many of them as fit.
//!
//! Whoever asks for the instances of a service takes the first, so each shall come first equally often, in replies
//! that hold all of them and in those that do not. A shaped response is a message like any other, its records in the
//! order that they were given. Beside it stands a plan: where each rotating record begins, and which record of the
//! additional section has the address of its target. A reply copies them from a random one on in random steps, and writes
//! those pointers anew that lead into records that have moved. Nothing is allocated, and nothing is decoded.

use std::{collections::HashMap, ops::Range};

use super::{
    Answer, HEADER_BYTES, MAX_MESSAGE_BYTES, Question, Response, Rtype, View,
    answer::{Names, RESERVED_FOR_OPT_BYTES, head, write_body, write_record},
    flag, put_u16, read_u16,
};

/// How replies may differ from an answer that all of them are made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// The places in the answer section whose records may come in any order, and shall.
    pub rotating: Range<usize>,
    /// For each of them the place in the additional section of the address of its target. A reply that lacks some of the
    /// rotating records holds these of the others, and nothing else there.
    pub glue: Vec<Option<usize>>,
    /// The most rotating records in any reply; nothing for as many as fit. The others are not missed.
    pub most: Option<u16>,
    /// The most in a reply to a client that takes no more than 512 octets.
    pub most_small: Option<u16>,
    /// Whether a reply that lacks some says so (TC).
    pub admits_cuts: bool,
}

impl Answer {
    /// The message for replies of this shape. `None` if there is nothing to rotate, or no way to: records behind those that
    /// rotate, an authority section, or more than a message holds.
    pub fn encode_rotating(&self, question: &Question, shape: &Shape) -> Option<Response> {
        encode(question, self, shape)
    }
}

fn encode(question: &Question, answer: &Answer, shape: &Shape) -> Option<Response> {
    let (fixed, rotating) = answer.answer.split_at_checked(shape.rotating.start)?;
    let is_limited = shape.most.is_some() || shape.most_small.is_some();
    if shape.rotating.end != answer.answer.len() || !answer.authority.is_empty() || rotating.len() < 2 && !is_limited {
        return None;
    }
    let head = head(question, answer);
    let from_head = |at: usize| at - head.len();
    let mut message = head.clone();
    let mut names = Names::new();
    names.note(&message, HEADER_BYTES);
    for record in fixed {
        write_record(record, &mut message, &mut names);
    }
    // From here on a record may be copied elsewhere, so its names point to what stays where it is, and are not pointed at.
    let rotating_at = message.len();
    let mut steps = Vec::with_capacity(rotating.len());
    let mut places = HashMap::new();
    for (place, record) in rotating.iter().enumerate() {
        let start = message.len();
        names.write_known(record.owner.wire(), &mut message);
        write_body(record, &mut message);
        let mut step = Step { start: from_head(start), end: from_head(message.len()), glue: 0..0, target: 0 };
        if record.rtype == Rtype::SRV
            && let Some(target) = record.rdata.get(SRV_TARGET_AT..)
        {
            step.target = message.len() - target.len() - start;
            places.entry(target.to_ascii_lowercase()).or_insert(place);
        }
        steps.push(step);
    }
    let can_point = message.len() <= FARTHEST;
    let (mut additional, mut fixups) = (Vec::new(), Vec::new());
    for record in &answer.additional {
        let start = message.len();
        let place = places.get(&record.owner.wire().to_ascii_lowercase()).filter(|_| can_point);
        match place.and_then(|&place| Some((place, steps.get(place)?))) {
            Some((place, step)) => {
                fixups.push((place, from_head(start)));
                message.extend(pointer(head.len() + step.start + step.target).to_be_bytes());
            }
            None => names.write_known(record.owner.wire(), &mut message),
        }
        write_body(record, &mut message);
        additional.push(from_head(start)..from_head(message.len()));
    }
    if message.len() > MAX_MESSAGE_BYTES - RESERVED_FOR_OPT_BYTES {
        return None;
    }
    for (count_at, records) in [(6, &answer.answer), (10, &answer.additional)] {
        put_u16(&mut message, count_at, u16::try_from(records.len()).ok()?);
    }
    for ((step, record), glue) in steps.iter_mut().zip(rotating).zip(&shape.glue) {
        let target = record.rdata.get(SRV_TARGET_AT..).filter(|_| step.target > 0).unwrap_or_default();
        let is_its = |place: &usize| answer.additional[*place].owner.wire().eq_ignore_ascii_case(target);
        let place = glue.filter(|place| *place < additional.len()).filter(is_its);
        step.glue = place.map_or(0..0, |place| additional[place].clone());
        if !can_point {
            step.target = 0;
        }
    }
    fixups.sort_unstable();
    let plan = write_plan(shape, from_head(rotating_at), &steps, &fixups);
    Some(Response::from_parts(message, head.len(), answer.rcode).rotating(plan))
}

/// Writes down what replies need: numbers of fixed widths, which are found without reading what stands before them.
fn write_plan(shape: &Shape, rotating_at: usize, steps: &[Step], fixups: &[(usize, usize)]) -> Vec<u8> {
    let mut shared: Vec<_> = shape.glue.iter().flatten().collect();
    shared.sort_unstable();
    let is_shared = shared.windows(2).any(|pair| pair[0] == pair[1]);
    let flags = if shape.admits_cuts { ADMITS_CUTS } else { 0 } | if is_shared { SHARED_GLUE } else { 0 };
    let limit = |most: Option<u16>| most.unwrap_or(u16::MAX).into();
    let mut plan = Vec::with_capacity(PLAN_BYTES + steps.len() * STEP_BYTES + fixups.len() * FIXUP_BYTES);
    // No message is longer than 16 bits can tell.
    let mut words = |words: &[usize]| words.iter().for_each(|&word| plan.extend((word as u16).to_be_bytes()));
    words(&[shape.rotating.start, steps.len(), limit(shape.most), limit(shape.most_small), flags.into(), rotating_at]);
    for (place, step) in steps.iter().enumerate() {
        let first_fixup = fixups.partition_point(|fixup| fixup.0 < place);
        words(&[step.start, step.end, step.glue.start, step.glue.end, step.target, first_fixup]);
    }
    fixups.iter().for_each(|&(_, at)| words(&[at]));
    plan
}

/// How the records of a response may be rotated, borrowed from wherever it is kept.
pub(super) struct Rotation<'a> {
    plan: &'a [u8],
    records: &'a [u8],
    count: usize,
}

/// A rotating record. Places count from the first record of the message.
struct Step {
    start: usize,
    end: usize,
    /// The address of its target, empty if there is none.
    glue: Range<usize>,
    /// How far behind its start its target stands, to which pointers lead; 0 if none do.
    target: usize,
}

impl<'a> Rotation<'a> {
    /// That of a response; nothing if its records stay where they are.
    pub fn of(view: &View<'a>) -> Option<Self> {
        let count = read_u16(view.plan, 2)?.into();
        Some(Self { plan: view.plan, records: view.records, count })
    }

    /// Writes the records behind header and question, as many as fit into `room`, and what the header says of them.
    pub fn write(&self, room: usize, is_small: bool, random: u64, out: &mut Vec<u8>) {
        let records_at = out.len();
        let most = if is_small { self.most().min(self.word(6)) } else { self.most() };
        let order = Order::new(self.count, random);
        let is_whole = most >= self.count && records_at + self.records.len() <= room;
        let written = if is_whole { self.write_all(order, out) } else { self.write_some(most, room, order, out) };
        debug_assert!(written.is_some(), "a plan fits its records");
    }

    fn write_all(&self, order: Order, out: &mut Vec<u8>) -> Option<()> {
        let records_at = out.len();
        out.extend_from_slice(self.records);
        // Whatever their order, together they are as long.
        let mut at = records_at + self.word(10);
        for place in order {
            let step = self.step(place);
            let record = self.records.get(step.start..step.end)?;
            out.get_mut(at..at + record.len())?.copy_from_slice(record);
            for fixup_at in self.fixups(place) {
                put_u16(out, records_at + fixup_at, pointer(at + step.target));
            }
            at += record.len();
        }
        Some(())
    }

    fn write_some(&self, most: usize, room: usize, order: Order, out: &mut Vec<u8>) -> Option<()> {
        let mut fixed = self.records.get(..self.word(10))?;
        if out.len() + fixed.len() > room {
            fixed = &[];
        }
        out.extend_from_slice(fixed);
        let rotating_at = out.len();
        let (mut given, mut glue_bytes) = (0, 0);
        for place in order.clone().take(if fixed.len() < self.word(10) { 0 } else { most }) {
            let step = self.step(place);
            let record = self.records.get(step.start..step.end)?;
            let more = if self.is_said(&step, order.clone().take(given)) { 0 } else { step.glue.len() };
            // Better one whose address has to be asked for than none.
            let glue_room = if given == 0 { 0 } else { glue_bytes + more };
            if out.len() + record.len() + glue_room > room {
                break;
            }
            out.extend_from_slice(record);
            (given, glue_bytes) = (given + 1, glue_bytes + more);
        }
        let (mut at, mut additional) = (rotating_at, 0);
        for (turn, place) in order.clone().take(given).enumerate() {
            let step = self.step(place);
            let glue = self.records.get(step.glue.clone())?;
            let is_missing = !glue.is_empty() && !self.is_said(&step, order.clone().take(turn));
            if is_missing && out.len() + glue.len() <= room {
                let glue_at = out.len();
                out.extend_from_slice(glue);
                if step.target > 0 {
                    put_u16(out, glue_at, pointer(at + step.target));
                }
                additional += 1;
            }
            at += step.end - step.start;
        }
        // What nobody is given is not lacking: who came by TCP for it would not get it either.
        if given < self.most() && (self.word(8) as u16 & ADMITS_CUTS != 0 || given == 0) {
            let flags = read_u16(out, 2).unwrap_or(0) | flag::TC;
            put_u16(out, 2, flags);
        }
        let fixed_count = if fixed.is_empty() { 0 } else { self.word(0) };
        put_u16(out, 6, (fixed_count + given) as u16);
        put_u16(out, 10, additional);
        Some(())
    }

    /// The most records that anybody is given.
    fn most(&self) -> usize {
        self.word(4).min(self.count)
    }

    /// Whether one of those before has the same address in the additional section.
    fn is_said(&self, step: &Step, mut before: impl Iterator<Item = usize>) -> bool {
        let is_shared = self.word(8) as u16 & SHARED_GLUE != 0;
        is_shared && !step.glue.is_empty() && before.any(|place| self.step(place).glue == step.glue)
    }

    fn step(&self, place: usize) -> Step {
        let word = |index: usize| self.word(PLAN_BYTES + place * STEP_BYTES + index * 2);
        Step { start: word(0), end: word(1), glue: word(2)..word(3), target: word(4) }
    }

    /// Where the pointers to the target of a rotating record stand.
    fn fixups(&self, place: usize) -> impl Iterator<Item = usize> {
        let all_at = PLAN_BYTES + self.count * STEP_BYTES;
        let first = |place: usize| all_at + self.word(PLAN_BYTES + place * STEP_BYTES + 10) * FIXUP_BYTES;
        let end = if place + 1 < self.count { first(place + 1) } else { self.plan.len() };
        (first(place)..end).step_by(FIXUP_BYTES).map(|at| self.word(at))
    }

    fn word(&self, at: usize) -> usize {
        read_u16(self.plan, at).unwrap_or(0).into()
    }
}

/// The places below a number, from a random one on in random steps; each is first equally often.
#[derive(Debug, Clone)]
struct Order {
    count: u64,
    step: u64,
    next: u64,
    left: u64,
}

impl Order {
    fn new(count: usize, random: u64) -> Self {
        let count = count as u64;
        let (next, random) = (random.checked_rem(count).unwrap_or(0), random.checked_div(count).unwrap_or(0));
        let mut step = 1 + random.checked_rem(count.saturating_sub(1)).unwrap_or(0);
        // A step that shares no divisor with their number passes all of them; 1 is one.
        while gcd(step, count) > 1 {
            step -= 1;
        }
        Self { count, step, next, left: count }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let place = self.next;
        self.next = (place + self.step) % self.count;
        Some(place as usize)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn pointer(at: usize) -> u16 {
    0xc000 | at as u16
}

/// Where the target stands in the RDATA of an SRV record.
const SRV_TARGET_AT: usize = 6;
/// What a pointer reaches: it has 14 bits (RFC 1035 §4.1.4).
const FARTHEST: usize = 0x3fff;
const ADMITS_CUTS: u16 = 1;
/// More than one record has the same address in the additional section.
const SHARED_GLUE: u16 = 2;
/// The plan: the number of fixed and of rotating records, the two limits, flags, where the first rotating record is.
const PLAN_BYTES: usize = 12;
/// For each rotating record its start and end, those of its glue, its target, and its first fixup.
const STEP_BYTES: usize = 12;
/// A place where a pointer stands.
const FIXUP_BYTES: usize = 2;

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
