//! The memory that cached names take: as little as promised, and as much as the metric says.
//!
//! A binary of its own, for it reads what the whole process takes.

use std::{fs, time::Duration};

use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, Variant},
    clock::Moment,
    wire::{Answer, Class, Name, Question, Record, Rtype},
};

#[test]
fn cached_names_take_what_the_cache_says() {
    // What is dropped need not be given back to the system, and would be taken again.
    let mut caches = Vec::new();
    // With so many names the tables of the 256 shards are nearly as empty as they get, then nearly as full.
    for (names, rtype, rdata_bytes, most_bytes) in
        [(125_000, Rtype::A, 4, 137), (100_000, Rtype::A, 4, 125), (25_000, Rtype::TXT, 300, 540)]
    {
        let cache = Cache::new(64 << 20);
        let before = resident_bytes();
        for number in 0..names {
            insert(&cache, &format!("host-{number:08}.example.com"), rtype, vec![7; rdata_bytes]);
        }
        let taken = resident_bytes() - before;
        let usage = cache.usage();
        let case = format!("{names} of {rdata_bytes} octets take {} each; {usage:?}", taken / names);
        assert_eq!((usage.entries, usage.evictions), (names, 0), "{case}");
        assert!(taken < names * most_bytes, "{case}");
        assert!(taken.abs_diff(usage.bytes) < taken / 7, "{case}");
        caches.push(cache);
    }
}

fn insert(cache: &Cache, qname: &str, rtype: Rtype, rdata: Vec<u8>) {
    let qname: Name = qname.parse().unwrap();
    let key = Key::new(qname.wire(), rtype, Class::IN, Variant::default());
    let answer = Answer { answer: vec![Record::new(qname.clone(), rtype, 300, rdata)], ..Answer::default() };
    let response = answer.encode(&Question { qname, qtype: rtype, qclass: Class::IN });
    let life = Life::Timed { fresh: Duration::from_secs(300), stale: Duration::from_secs(86_400) };
    let origin = Origin { rule: RuleId(1), epoch: Epoch(1), chained: false, loopback_only: false };
    cache.insert(&key, &response, life, &origin.into(), Moment::from_millis(1_000_000));
}

/// The memory of this process that lies in RAM.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
