use std::{cell::RefCell, collections::HashSet};

use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// Remembers the tokens it was given.
#[derive(Default)]
struct Tokens(RefCell<Vec<u64>>);

impl Registry for Tokens {
    fn add(&self, _: &UdpSocket, token: u64) -> io::Result<()> {
        self.0.borrow_mut().push(token);
        Ok(())
    }
}

const WAITING: Waiting = Waiting { exchange: 0, attempt: 0 };

fn at(millis: u64) -> Moment {
    Moment::from_millis(1_000_000 + millis)
}

/// Claims a socket for each id in turn, as one that is not on loopback: only the address decides that.
fn claim(sockets: &mut Sockets, ids: std::ops::Range<u16>, is_loopback: bool, now: Moment) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(u64::from(ids.start));
    let peer = if is_loopback { "127.0.0.1:9" } else { "192.0.2.1:9" }.parse().unwrap();
    let tokens = Tokens::default();
    ids.map(|id| sockets.claim(peer, id, WAITING, now, &mut rng, &tokens).unwrap()).collect()
}

#[test]
fn a_query_to_another_host_has_a_socket_of_its_own() {
    let mut sockets = Sockets::new(100, 500);
    let keys = claim(&mut sockets, 0..400, false, at(0));
    let distinct: HashSet<usize> = keys.iter().copied().collect();
    assert_eq!((distinct.len(), sockets.count()), (400, 400));
    for (id, key) in (0..).zip(keys) {
        sockets.release(key, id);
    }
    assert!(sockets.waiting.is_empty());
    assert_eq!(sockets.count(), MAX_IDLE, "no more are kept");
    let ports = |sockets: &Sockets| -> Vec<u16> {
        sockets.open.iter().map(|(_, socket)| socket.socket.local_addr().unwrap().port()).collect()
    };
    assert!(ports(&sockets).iter().all(|port| *port == 0), "each port is given up with the last of its replies");
    let again = claim(&mut sockets, 0..200, false, at(1000));
    assert_eq!(sockets.count(), MAX_IDLE);
    let distinct: HashSet<u16> = ports(&sockets).into_iter().filter(|port| *port != 0).collect();
    assert!(distinct.len() == again.len(), "{} ports", distinct.len());
    sockets.sweep(at(10_000));
    assert_eq!(sockets.count(), 200, "those that are used");
}

#[test]
fn beyond_the_bound_queries_share_sockets_at_random() {
    let mut sockets = Sockets::new(0, 20);
    let keys = claim(&mut sockets, 0..2000, false, at(0));
    assert_eq!(sockets.count(), 20);
    let shares: Vec<usize> = (0..20).map(|key| keys.iter().filter(|of| **of == key).count()).collect();
    assert!(shares.iter().all(|share| (50..200).contains(share)), "{shares:?}");
    let other = "192.0.2.2:9".parse().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let error = sockets.claim(other, 0, WAITING, at(0), &mut rng, &Tokens::default()).unwrap_err();
    assert_eq!(error.to_string(), "too many sockets are open", "none of those leads there");
    for (id, key) in (0..).zip(keys) {
        sockets.release(key, id);
    }
    assert!(sockets.claim(other, 0, WAITING, at(0), &mut rng, &Tokens::default()).is_ok());
    assert_eq!(sockets.count(), 20);
}

#[test]
fn a_number_that_is_used_again_is_told_from_the_one_before() {
    let mut sockets = Sockets::new(0, 20);
    let key = claim(&mut sockets, 1..2, false, at(0))[0];
    let serial = sockets.serial(key);
    sockets.release(key, 1);
    assert_eq!(sockets.serial(key), None);
    assert_eq!(claim(&mut sockets, 2..3, false, at(0)), [key]);
    assert_ne!(sockets.serial(key), serial);
}

#[test]
fn loopback_sockets_are_kept() {
    let mut sockets = Sockets::new(100, 10_000);
    let keys = claim(&mut sockets, 0..4000, true, at(0));
    assert_eq!(sockets.count(), LOOPBACK_SLOTS);
    for (id, key) in (0..).zip(keys) {
        sockets.release(key, id);
    }
    sockets.sweep(at(59_000));
    assert_eq!(sockets.count(), LOOPBACK_SLOTS);
    sockets.sweep(at(60_000));
    assert_eq!(sockets.count(), 0, "a minute without use");
}

#[test]
fn an_id_is_never_used_twice_on_a_socket() {
    let mut sockets = Sockets::new(0, 1);
    let key = claim(&mut sockets, 7..8, false, at(0))[0];
    let mut again = || {
        let peer = "192.0.2.1:9".parse().unwrap();
        sockets.claim(peer, 7, WAITING, at(0), &mut StdRng::seed_from_u64(1), &Tokens::default())
    };
    assert!(again().is_err(), "the only socket there may be has a query with this id");
    assert_eq!(again().unwrap_err().to_string(), "too many queries are under way");
    assert!(matches!(sockets.recipient(key, 8), Recipient::Anyone));
    let (peer, rng) = ("192.0.2.1:9".parse().unwrap(), &mut StdRng::seed_from_u64(1));
    sockets.claim(peer, 9, WAITING, at(0), rng, &Tokens::default()).unwrap();
    sockets.release(key, 7);
    assert!(matches!(sockets.recipient(key, 7), Recipient::Nobody), "a late reply");
}

#[test]
fn a_socket_whose_port_is_known_to_a_forger_is_not_shared() {
    for is_loopback in [false, true] {
        let mut sockets = Sockets::new(0, 1);
        let key = claim(&mut sockets, 7..8, is_loopback, at(0))[0];
        for id in 100..103 {
            assert!(matches!(sockets.recipient(key, 7), Recipient::One(_)), "not counted");
            assert_eq!(matches!(sockets.recipient(key, id), Recipient::Anyone), !is_loopback, "{id}");
        }
        let peer = if is_loopback { "127.0.0.1:9" } else { "192.0.2.1:9" }.parse().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let shared = sockets.claim(peer, 8, WAITING, at(0), &mut rng, &Tokens::default());
        assert_eq!(shared.is_ok(), is_loopback, "nobody forges there");
        sockets.release(key, 7);
        assert_eq!(sockets.count(), usize::from(is_loopback));
    }
}

#[test]
fn tokens_lead_to_sockets() {
    let mut sockets = Sockets::new(100, 20);
    let tokens = Tokens::default();
    let peer = "127.0.0.1:9".parse().unwrap();
    let key = sockets.claim(peer, 5, WAITING, at(0), &mut StdRng::seed_from_u64(1), &tokens).unwrap();
    let token = tokens.0.borrow()[0];
    assert_eq!(sockets.by_token(token), Some(key));
    assert!(matches!(sockets.recipient(key, 5), Recipient::One(WAITING)));
    for token in [0, 99, token + 1, u64::MAX] {
        assert_eq!(sockets.by_token(token), None, "{token}");
    }
}
