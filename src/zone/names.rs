//! A set of names, each with a number: the index behind every kind of local data.
//!
//! The names lie one after the other in a single allocation, and an open-addressing table points there, at most three of
//! four places taken: 16 bytes a name besides the name itself. Blocklists of a million names are what it is for.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

/// Names in lower-cased wire form, numbered from 0 in the order in which they came.
#[derive(Default)]
pub(super) struct Names {
    arena: Vec<u8>,
    slots: Vec<Slot>,
    count: u32,
    seed: RandomState,
}

#[derive(Clone, Copy)]
struct Slot {
    /// Where the name lies, or `VACANT`.
    name_at: u32,
    /// Half of the name's hash: it orders the table, and spares a look at most names that are not meant.
    tag: u32,
    number: u32,
}

impl Names {
    /// How many names.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// The number of a name given in lower-cased wire form.
    pub fn find(&self, name: &[u8]) -> Option<u32> {
        match self.probe(self.tag(name), name) {
            Ok(at) => self.slots.get(at).map(|slot| slot.number),
            Err(_) => None,
        }
    }

    /// The number of a name given in wire form, whatever its case; a new name gets the next one.
    ///
    /// `None` if the names fill 4 GiB: no more can be told apart.
    pub fn insert(&mut self, name: &[u8]) -> Option<u32> {
        if (self.len() + 1) * 4 > self.slots.len() * 3 {
            self.resize((self.slots.len() * 2).max(16));
        }
        let start = self.arena.len();
        self.arena.extend(name.iter().map(u8::to_ascii_lowercase));
        let name = &self.arena[start..];
        let tag = self.tag(name);
        let found = self.probe(tag, name);
        match found {
            Ok(at) => {
                self.arena.truncate(start);
                Some(self.slots[at].number)
            }
            Err(at) => {
                let name_at = u32::try_from(start).ok().filter(|&start| start != VACANT)?;
                let number = self.count;
                self.slots[at] = Slot { name_at, tag, number };
                self.count += 1;
                Some(number)
            }
        }
    }

    /// The names in the order of the numbers they were given at first.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.arena;
        std::iter::from_fn(move || {
            let (name, tail) = rest.split_at(name_length(rest)?);
            rest = tail;
            Some(name)
        })
    }

    /// The names at or below `origin`, a name in lower-cased wire form, without it; and their new numbers by the old ones.
    pub fn relative_to(&self, origin: &[u8]) -> (Self, Vec<Option<u32>>) {
        let mut relative = Self::default();
        let mut buffer = Vec::new();
        let numbers = self.iter().map(|name| {
            let labels = name.strip_suffix(origin).filter(|labels| is_whole(name, labels.len()))?;
            buffer.clear();
            buffer.extend_from_slice(labels);
            buffer.push(0);
            relative.insert(&buffer)
        });
        let numbers = numbers.collect();
        (relative, numbers)
    }

    /// Gives back the memory that growing has taken in advance.
    pub fn shrink(&mut self) {
        self.arena.shrink_to_fit();
        self.resize(self.len() * 4 / 3 + 1);
    }

    /// Changes the number of every name.
    pub fn renumber(&mut self, new: impl Fn(u32) -> u32) {
        for slot in self.slots.iter_mut().filter(|slot| slot.name_at != VACANT) {
            slot.number = new(slot.number);
        }
    }

    fn tag(&self, name: &[u8]) -> u32 {
        (self.seed.hash_one(name) >> 32) as u32
    }

    /// Where the name's slot is, or else the vacant one it would take.
    fn probe(&self, tag: u32, name: &[u8]) -> Result<usize, usize> {
        let mut at = home(tag, self.slots.len());
        // There is always a vacant slot, and an empty table ends the search as well.
        while let Some(slot) = self.slots.get(at).filter(|slot| slot.name_at != VACANT) {
            let start = slot.name_at as usize;
            // A name ends with its root label, so none is the beginning of another.
            if slot.tag == tag && self.arena.get(start..start + name.len()) == Some(name) {
                return Ok(at);
            }
            at = next(at, self.slots.len());
        }
        Err(at)
    }

    fn resize(&mut self, length: usize) {
        let old = std::mem::replace(&mut self.slots, vec![Slot { name_at: VACANT, tag: 0, number: 0 }; length]);
        for slot in old.into_iter().filter(|slot| slot.name_at != VACANT) {
            let mut at = home(slot.tag, length);
            while self.slots[at].name_at != VACANT {
                at = next(at, length);
            }
            self.slots[at] = slot;
        }
    }
}

/// The wire form of `*` below a name given in wire form; it may be too long to be a name, and then is none's.
pub(super) fn wildcard_below(name: &[u8]) -> Vec<u8> {
    [b"\x01*", name].concat()
}

/// Whether the leftmost label of a name given in wire form is `*`.
pub(super) fn is_wildcard(name: &[u8]) -> bool {
    name.starts_with(b"\x01*")
}

/// Whether a label of a name given in wire form begins at `place`.
fn is_whole(name: &[u8], place: usize) -> bool {
    let mut at = 0;
    while at < place {
        match name.get(at) {
            Some(&length) => at += 1 + usize::from(length),
            None => return false,
        }
    }
    at == place
}

/// Where the search for a tag begins: tags are spread evenly, so their order is a hash of its own.
fn home(tag: u32, length: usize) -> usize {
    ((u64::from(tag) * length as u64) >> 32) as usize
}

fn next(at: usize, length: usize) -> usize {
    if at + 1 == length { 0 } else { at + 1 }
}

/// The length of the name that `wire` begins with.
fn name_length(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *wire.get(at)? {
            0 => return Some(at + 1),
            length => at += 1 + usize::from(length),
        }
    }
}

const VACANT: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Name;

    #[test]
    fn names_keep_their_numbers_while_the_table_grows_and_shrinks() {
        let name = |i: u32| format!("Host{i}.Example.").parse::<Name>().unwrap();
        let mut names = Names::default();
        assert_eq!(names.find(name(0).wire()), None);
        for i in 0..1000 {
            assert_eq!(names.insert(name(i).wire()), Some(i));
            assert_eq!(names.insert(name(i).to_lower().wire()), Some(i), "case makes no difference");
        }
        names.shrink();
        for i in 0..1000 {
            assert_eq!(names.find(name(i).to_lower().wire()), Some(i));
        }
        assert_eq!(names.find(name(1000).to_lower().wire()), None);
        assert_eq!(names.iter().nth(7), Some(name(7).to_lower().wire()));
        assert_eq!((names.iter().count(), names.len()), (1000, 1000));
    }
}
