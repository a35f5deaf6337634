//! The limits, with accounts of several clients.

use std::{future::poll_fn, pin::Pin, task::Poll};

use super::{
    places::{ClientIsFull, Most, Places},
    *,
};

const KIB: usize = 1024;

fn budget(connection_kib: u64, client_kib: u64, total_kib: u64) -> Arc<Budget> {
    let budget = Arc::new(Budget::default());
    let [connection_bytes, client_bytes, total_bytes] = [connection_kib, client_kib, total_kib].map(ByteSize::kib);
    budget.set_limits(Config { connection_bytes, client_bytes, total_bytes, ..Config::default() });
    budget
}

fn account(budget: &Arc<Budget>, peer: &str) -> Account {
    budget.open(peer.parse().unwrap())
}

#[test]
fn a_connection_beyond_its_limit_is_revoked_and_others_are_not() {
    let budget = budget(100, 1000, 1000);
    let (greedy, honest) = (account(&budget, "192.0.2.1"), account(&budget, "192.0.2.1"));
    let _honest = honest.charge(60 * KIB).unwrap();
    let held = greedy.charge(60 * KIB).unwrap();
    assert_eq!(greedy.charge(60 * KIB).unwrap_err(), Exceeded::Connection);
    assert!(greedy.is_revoked() && !honest.is_revoked());
    assert!(greedy.charge(1).is_err(), "nothing more is held for it");
    assert_eq!(budget.held_bytes(), 120 * KIB, "what it holds counts until it is gone");
    drop(held);
    assert_eq!(budget.held_bytes(), 60 * KIB);
    assert_eq!(budget.exceeded(), [1, 0, 0]);
}

#[test]
fn a_client_beyond_its_limit_loses_what_has_waited_longest() {
    let budget = budget(100, 200, 10_000);
    let accounts = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|peer| account(&budget, peer));
    let other = account(&budget, "2001:db8:0:1::1");
    let mut held: Vec<_> = accounts[..2].iter().map(|account| account.charge(90 * KIB).unwrap()).collect();
    let _other = other.charge(90 * KIB).unwrap();
    held.push(accounts[2].charge(50 * KIB).unwrap());
    assert_eq!(accounts.each_ref().map(Account::is_revoked), [true, false, false], "of one /64");
    assert!(!other.is_revoked(), "another /64 loses nothing");
    // The first has not let go yet: the client holds 230 KiB, and may not hold more than 250.
    assert_eq!(accounts[1].charge(10 * KIB).map(drop), Ok(()));
    assert_eq!(accounts[2].charge(30 * KIB).unwrap_err(), Exceeded::Client);
    drop(held);
    assert_eq!(budget.held_bytes(), 90 * KIB);
}

#[test]
fn beyond_the_limit_in_all_the_client_that_holds_most_loses() {
    let budget = budget(100, 300, 400);
    let greedy: Vec<_> = (0..3).map(|_| account(&budget, "192.0.2.1")).collect();
    let modest = account(&budget, "192.0.2.2");
    let modest_data = modest.charge(90 * KIB).unwrap();
    let greedy_data: Vec<_> = greedy.iter().map(|account| account.charge(95 * KIB).unwrap()).collect();
    let late = account(&budget, "192.0.2.3");
    let late_data = late.charge(50 * KIB).unwrap();
    assert_eq!(greedy.iter().map(Account::is_revoked).collect::<Vec<_>>(), [true, false, false]);
    assert!(!modest.is_revoked() && !late.is_revoked());
    assert_eq!(budget.exceeded(), [0, 0, 1]);
    drop((modest_data, greedy_data, late_data));
    assert_eq!(budget.held_bytes(), 0);
    assert!(budget.0.lock().parties.is_empty());
}

#[test]
fn a_server_that_is_asked_is_a_party_of_its_own() {
    let budget = budget(100, 200, 400);
    let (client, hosts) =
        (account(&budget, "192.0.2.1"), [0, 1, 2].map(|_| budget.open_checked("192.0.2.1".parse().unwrap())));
    let _client = client.charge(100 * KIB).unwrap();
    let held = hosts.each_ref().map(|host| host.charge(80 * KIB).unwrap());
    assert_eq!(hosts.each_ref().map(Account::is_revoked), [true, false, false], "a checked host has a client's limits");
    assert!(!client.is_revoked());
    assert_eq!(budget.held_by_kind(), [100 * KIB, 240 * KIB, 0]);
    drop(held);
    // The agent has the limit in all alone, and one response counts as three quarters of that at most.
    let [first, second] = [0, 1].map(|_| budget.open_agent());
    let mut response = first.charge(0).unwrap();
    response.resize_response(250 * KIB).unwrap();
    response.resize_response(5000 * KIB).unwrap();
    assert_eq!(budget.held_by_kind(), [100 * KIB, 0, 300 * KIB]);
    let mut other = second.charge(0).unwrap();
    other.resize_response(50 * KIB).unwrap();
    assert!(first.is_revoked() && !second.is_revoked() && !client.is_revoked(), "it holds most, and so it loses");
    drop(response);
    other.resize_response(0).unwrap();
    let modest = account(&budget, "192.0.2.2");
    let _modest = modest.charge(100 * KIB).unwrap();
    let mut more = budget.open_agent().charge(0).unwrap();
    more.resize_response(150 * KIB).unwrap();
    assert_eq!(more.resize_response(250 * KIB), Err(Exceeded::Total));
    assert!(!client.is_revoked() && !modest.is_revoked(), "others hold less, and lose nothing");
    assert_eq!(budget.exceeded(), [0, 1, 2]);
}

#[test]
fn a_charge_follows_the_size_of_what_it_stands_for() {
    let budget = budget(100, 100, 100);
    let account = account(&budget, "192.0.2.1");
    let mut charge = account.charge(0).unwrap();
    assert_eq!(budget.held_bytes(), 0);
    for (bytes, held) in [(10 * KIB, 10 * KIB), (100 * KIB, 100 * KIB), (5, 5), (0, 0), (7, 7)] {
        charge.resize(bytes).unwrap();
        assert_eq!(budget.held_bytes(), held);
    }
    assert!(charge.resize(101 * KIB).is_err());
    assert_eq!(budget.held_bytes(), 7);
    drop(charge);
    assert_eq!(budget.held_bytes(), 0);
}

#[test]
fn memory_is_given_back_once_after_much_was_held() {
    let budget = budget(10_000, 10_000, 10_000);
    let account = account(&budget, "192.0.2.1");
    let mut charge = account.charge(1 << 19).unwrap();
    charge.resize(0).unwrap();
    assert!(!budget.has_emptied(), "not worth it");
    charge.resize(8 << 20).unwrap();
    assert!(!budget.has_emptied(), "still held");
    charge.resize(1 << 20).unwrap();
    assert!(budget.has_emptied() && !budget.has_emptied());
}

#[test]
fn a_prefix_keeps_the_first_bits() {
    for (address, ipv4_bits, ipv6_bits, expected) in [
        ("192.0.2.77", 32, 64, "192.0.2.77"),
        ("192.0.2.77", 24, 64, "192.0.2.0"),
        ("::ffff:192.0.2.77", 32, 64, "192.0.2.77"),
        ("192.0.2.77", 0, 0, "0.0.0.0"),
        ("2001:db8:1:2:3:4:5:6", 32, 64, "2001:db8:1:2::"),
        ("2001:db8:1:2:3:4:5:6", 32, 48, "2001:db8:1::"),
        ("2001:db8:1:2:3:4:5:6", 32, 128, "2001:db8:1:2:3:4:5:6"),
        ("2001:db8::1", 32, 0, "::"),
    ] {
        let prefix = prefix_of(address.parse().unwrap(), ipv4_bits, ipv6_bits);
        assert_eq!(prefix.to_string(), expected, "{address}");
    }
}

#[test]
fn the_ends_of_a_range_belong_to_it() {
    for (open_files, connection_kib, expected) in [
        (0, 4096, ""),
        (64, 128, ""),
        (1_048_576, 1 << 20, ""),
        (63, 4096, "open_files is 63; choose from 64 to 1048576"),
        (0, 127, "connection_bytes is 127.0 KiB; choose from 128.0 KiB to 1.0 GiB"),
    ] {
        let config = Config { open_files, connection_bytes: ByteSize::kib(connection_kib), ..Config::default() };
        let problems: Vec<String> = config.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.join("\n"), expected);
    }
}

#[tokio::test]
async fn a_place_belongs_to_the_connection_that_has_waited_for_it() {
    let places = Arc::new(Places::default());
    let most = Most { in_all: 2, of_client: 2, then: ClientIsFull::Refuse };
    let enter = |peer: &str| {
        let (places, peer) = (places.clone(), peer.parse().unwrap());
        Box::pin(async move { places.enter(peer, most).await })
    };
    let (first, _) = enter("192.0.2.1").await.ok().unwrap();
    let (_second, _) = enter("198.51.100.1").await.ok().unwrap();
    let mut waiting = enter("203.0.113.1");
    assert!(poll_once(&mut waiting).await.is_pending());
    assert!(first.account().is_revoked());
    drop(first);
    // One that comes before the other has woken up displaces another connection instead.
    let mut newcomer = enter("203.0.113.2");
    assert!(poll_once(&mut newcomer).await.is_pending());
    let Poll::Ready(Ok((_third, has_displaced))) = poll_once(&mut waiting).await else { panic!("it has no place") };
    assert!(has_displaced);
    // Who gives up promises nothing any more.
    drop((newcomer, _third));
    assert!(poll_once(&mut enter("203.0.113.3")).await.is_ready());
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}
