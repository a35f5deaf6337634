//! When each exchange is to be woken: a wheel of milliseconds.
//!
//! A timer is set and taken back many thousand times a second, and almost none ever comes due. So each is a link in the
//! list of its millisecond: to set it or to take it back costs the same however many there are, and none is left behind
//! to wake anybody for nothing.

use crate::clock::Moment;

/// The timers of the entries of a slab: at most one for each key.
pub(super) struct Wheel {
    /// The first key in the list of each millisecond, counted from the origin and round and round.
    heads: Box<[u32]>,
    /// A bit for each list that is not empty.
    occupied: Box<[u64]>,
    links: Vec<Link>,
    /// All timers lie at most one turn of the wheel ahead of it.
    passed: Moment,
    count: usize,
}

#[derive(Clone, Copy)]
struct Link {
    slot: u32,
    before: u32,
    after: u32,
}

impl Wheel {
    /// Without timers.
    pub fn new() -> Self {
        let heads = vec![NONE; SLOTS].into();
        Self { heads, occupied: vec![0; SLOTS / 64].into(), links: Vec::new(), passed: Moment::default(), count: 0 }
    }

    /// Sets the timer of `key`, in place of the one it has. One that is further away than a turn of the wheel comes early.
    pub fn set(&mut self, key: usize, at: Moment, now: Moment) {
        self.cancel(key);
        if self.count == 0 {
            self.passed = now;
        }
        let latest = self.passed.as_millis() + SLOTS as u64 - 1;
        let slot = (at.max(self.passed).as_millis().min(latest) % SLOTS as u64) as usize;
        if self.links.len() <= key {
            self.links.resize(key + 1, UNSET);
        }
        let after = std::mem::replace(&mut self.heads[slot], key as u32);
        if after != NONE {
            self.links[after as usize].before = key as u32;
        }
        self.links[key] = Link { slot: slot as u32, before: NONE, after };
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.count += 1;
    }

    /// Takes back the timer of `key`, if it has one.
    pub fn cancel(&mut self, key: usize) {
        let Some(link) = self.links.get_mut(key).filter(|link| link.slot != NONE) else { return };
        let Link { slot, before, after } = std::mem::replace(link, UNSET);
        let slot = slot as usize;
        match before {
            NONE => self.heads[slot] = after,
            before => self.links[before as usize].after = after,
        }
        if after != NONE {
            self.links[after as usize].before = before;
        }
        if self.heads[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
        self.count -= 1;
    }

    /// When the first timer comes due.
    pub fn next(&self) -> Option<Moment> {
        if self.count == 0 {
            return None;
        }
        let passed = self.passed.as_millis();
        let start = (passed % SLOTS as u64) as usize;
        // The word of the start is looked at twice: at first for what lies ahead in it, at last for the rest.
        let words = (0..=SLOTS / 64).map(|step| (start / 64 + step) % (SLOTS / 64)).enumerate();
        words.into_iter().find_map(|(step, word)| {
            let bits = self.occupied[word] & if step == 0 { !0 << (start % 64) } else { !0 };
            let slot = word * 64 + (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            Some(Moment::from_millis(passed + ((slot + SLOTS - start) % SLOTS) as u64))
        })
    }

    /// Takes a timer that is due; call it until there is none.
    pub fn take_due(&mut self, now: Moment) -> Option<usize> {
        let Some(next) = self.next().filter(|&next| next <= now) else {
            self.passed = self.passed.max(now);
            return None;
        };
        self.passed = next;
        let key = self.heads[(next.as_millis() % SLOTS as u64) as usize] as usize;
        self.cancel(key);
        Some(key)
    }
}

/// Four seconds and a bit: no exchange of a worker goes on for longer.
const SLOTS: usize = 4096;
/// No key, no slot.
const NONE: u32 = u32::MAX;
const UNSET: Link = Link { slot: NONE, before: NONE, after: NONE };

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(1_000_000 + millis)
    }

    fn take_all(wheel: &mut Wheel, now: Moment) -> Vec<usize> {
        let mut due: Vec<usize> = std::iter::from_fn(|| wheel.take_due(now)).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn timers_come_due_in_order_unless_taken_back() {
        let mut wheel = Wheel::new();
        assert_eq!((wheel.next(), wheel.take_due(at(0))), (None, None));
        for (key, millis) in [(0, 30), (1, 400), (2, 30), (3, 3500), (4, 31), (5, 30)] {
            wheel.set(key, at(millis), at(0));
        }
        wheel.cancel(2);
        wheel.cancel(2);
        wheel.set(5, at(4), at(0));
        assert_eq!(wheel.next(), Some(at(4)));
        assert_eq!(take_all(&mut wheel, at(3)), [] as [usize; 0]);
        assert_eq!(take_all(&mut wheel, at(30)), [0, 5]);
        assert_eq!(wheel.next(), Some(at(31)));
        assert_eq!(take_all(&mut wheel, at(1000)), [1, 4]);
        assert_eq!(take_all(&mut wheel, at(100_000)), [3]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn one_that_is_past_is_due_at_once_and_one_too_far_away_comes_early() {
        let mut wheel = Wheel::new();
        wheel.set(7, at(0), at(10));
        wheel.set(8, at(1_000_000), at(10));
        assert_eq!(take_all(&mut wheel, at(10)), [7]);
        assert_eq!(wheel.next(), Some(at(10 + SLOTS as u64 - 1)));
    }

    #[test]
    fn it_agrees_with_a_sorted_list() {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut wheel, mut list, mut now) = (Wheel::new(), BTreeMap::new(), 0);
        for _ in 0..20_000 {
            let key = rng.random_range(0..200);
            match rng.random_range(0..4) {
                0 => {
                    wheel.cancel(key);
                    list.remove(&key);
                }
                1 => {
                    now += rng.random_range(0..100);
                    let due: Vec<usize> = list.iter().filter(|timer| *timer.1 <= now).map(|timer| *timer.0).collect();
                    list.retain(|_, at| *at > now);
                    assert_eq!(take_all(&mut wheel, at(now)), due);
                }
                _ => {
                    let millis = now + rng.random_range(0..3900);
                    wheel.set(key, at(millis), at(now));
                    list.insert(key, millis);
                }
            }
            assert_eq!(wheel.next(), list.values().min().map(|&millis| at(millis)));
        }
    }
}
