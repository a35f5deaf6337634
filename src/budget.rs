//! Bytes that wait for remote parties, bounded per connection, per client and in all.
//!
//! A reply that a client does not read, a request that it sends only in part: such data stays in memory for as long as the
//! other side likes. Each connection has an [`Account`], and whatever keeps data for it charges the account first. A client
//! is one IPv4 address or one IPv6 /64, since a host has a whole /64 to connect from.
//!
//! A client that exceeds its limit loses its own data, the data that has waited longest first; other clients lose nothing.
//! When all clients together exceed the limit in all, the client that holds most loses its oldest data. To lose data means
//! that the connection is closed: its task sees [`Account::revoked`] and ends, which drops the data. The bytes of a revoked
//! account count until then, so that the limits hold in memory and not only on paper; for this short time a client, or all
//! of them, may exceed a limit by a quarter.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use bytesize::ByteSize;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many bytes may wait for remote parties, section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes that may wait for one connection, from 128 KiB to 1 GiB. Default "4MiB". Applies at reload.
    pub connection_bytes: ByteSize,
    /// Bytes that may wait for one client (an IPv4 address, an IPv6 /64), from 128 KiB to 1 GiB. Default "16MiB". Applies at
    /// reload.
    pub client_bytes: ByteSize,
    /// Bytes that may wait for all clients together, from 1 MiB to 16 GiB. Default "96MiB". Applies at reload.
    pub total_bytes: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { connection_bytes: ByteSize::mib(4), client_bytes: ByteSize::mib(16), total_bytes: ByteSize::mib(96) }
    }
}

/// A value of the section `[limits]` that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}; choose from {least} to {most}")]
pub struct OutOfRange {
    /// The key.
    pub key: &'static str,
    value: ByteSize,
    least: ByteSize,
    most: ByteSize,
}

impl Config {
    /// Every value that is out of range.
    pub fn problems(&self) -> Vec<OutOfRange> {
        [
            ("connection_bytes", self.connection_bytes, ByteSize::kib(128), ByteSize::gib(1)),
            ("client_bytes", self.client_bytes, ByteSize::kib(128), ByteSize::gib(1)),
            ("total_bytes", self.total_bytes, ByteSize::mib(1), ByteSize::gib(16)),
        ]
        .into_iter()
        .filter(|(_, value, least, most)| value < least || value > most)
        .map(|(key, value, least, most)| OutOfRange { key, value, least, most })
        .collect()
    }
}

/// The limit that a charge would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// That of one connection.
    Connection,
    /// That of one client.
    Client,
    /// That of all clients together.
    Total,
}

/// What waits for remote parties.
#[derive(Debug, Default)]
pub struct Budget(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    limits: Config,
    held: Held,
    /// The most that was held since the memory was last given back.
    peak: usize,
    clients: HashMap<IpAddr, Client>,
    /// Numbers accounts in the order in which they began to hold data.
    next: u64,
    /// How often each limit was met, in the order of [`Exceeded`].
    exceeded: [u64; 3],
}

/// The accounts of one client that hold data, the one that began first at the front.
#[derive(Debug, Default)]
struct Client {
    held: Held,
    accounts: BTreeMap<u64, Holding>,
}

#[derive(Debug)]
struct Holding {
    bytes: usize,
    is_revoked: bool,
    revoked: CancellationToken,
}

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    bytes: usize,
    /// Of these, the bytes of revoked accounts, which are about to go.
    revoked: usize,
}

impl Held {
    fn add(&mut self, bytes: usize, is_revoked: bool) {
        self.bytes += bytes;
        self.revoked += if is_revoked { bytes } else { 0 };
    }

    fn remove(&mut self, bytes: usize, is_revoked: bool) {
        self.bytes -= bytes;
        self.revoked -= if is_revoked { bytes } else { 0 };
    }

    fn lasting(self) -> usize {
        self.bytes - self.revoked
    }
}

impl Budget {
    /// Puts limits in force. What is held beyond them goes with the next charge.
    pub fn set_limits(&self, limits: Config) {
        self.0.lock().limits = limits;
    }

    /// Bytes held for all clients.
    pub fn held_bytes(&self) -> usize {
        self.0.lock().held.bytes
    }

    /// True once after much was held and most of it is gone: the allocator may have memory to give back.
    pub fn has_emptied(&self) -> bool {
        let mut state = self.0.lock();
        let has_emptied = state.peak >= WORTH_RELEASING && state.held.bytes <= state.peak / 4;
        if has_emptied {
            state.peak = state.held.bytes;
        }
        has_emptied
    }

    /// How often the limits of a connection, of a client and of all clients were met.
    pub fn exceeded(&self) -> [u64; 3] {
        self.0.lock().exceeded
    }

    /// An account for a connection of this peer.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Account {
        Account(Arc::new(Owner {
            budget: self.clone(),
            client: client_of(peer),
            number: Mutex::new(None),
            revoked: CancellationToken::new(),
        }))
    }
}

/// The account of one connection. Clones are the same account.
#[derive(Debug, Clone)]
pub struct Account(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    budget: Arc<Budget>,
    client: IpAddr,
    /// Its number among the accounts that hold data, while it holds some. Locked before the budget's state.
    number: Mutex<Option<u64>>,
    revoked: CancellationToken,
}

/// Bytes that are held for a connection; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Account {
    /// Charges the account for data that waits for its peer. An error says that the data has to be dropped; the connection is
    /// then [revoked](Self::revoked).
    pub fn charge(&self, bytes: usize) -> Result<Charge, Exceeded> {
        self.add(bytes)?;
        Ok(Charge { account: self.clone(), bytes })
    }

    /// Returns when this connection has to be closed at once, because its client has exceeded a limit.
    pub async fn revoked(&self) {
        self.0.revoked.cancelled().await;
    }

    /// Has this connection closed at once, for a reason of the caller's own.
    pub fn revoke(&self) {
        let number = self.0.number.lock();
        if let Some(own) = *number {
            self.0.budget.0.lock().revoke(self.0.client, own);
        }
        self.0.revoked.cancel();
    }

    /// True if this connection has to be closed at once.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.is_cancelled()
    }

    fn add(&self, bytes: usize) -> Result<(), Exceeded> {
        let mut number = self.0.number.lock();
        let mut state = self.0.budget.0.lock();
        let own = number.unwrap_or(state.next);
        if self.is_revoked() {
            return Err(Exceeded::Connection);
        }
        if let Err(exceeded) = state.make_room(self.0.client, own, bytes) {
            state.exceeded[exceeded as usize] += 1;
            state.revoke(self.0.client, own);
            self.0.revoked.cancel();
            return Err(exceeded);
        }
        if bytes > 0 {
            if number.replace(own).is_none() {
                state.next += 1;
            }
            let revoked = &self.0.revoked;
            state.add(self.0.client, own, bytes, revoked);
        }
        Ok(())
    }

    fn remove(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut number = self.0.number.lock();
        if let Some(own) = *number
            && self.0.budget.0.lock().remove(self.0.client, own, bytes)
        {
            *number = None;
        }
    }
}

/// Data for a connection, together with the charge for it.
#[derive(Debug)]
pub struct Charged {
    /// The data.
    pub data: Vec<u8>,
    /// Dropped after the data, it gives the bytes back.
    pub charge: Charge,
}

impl Charged {
    /// Charges the account for this data. An error says that the data has to be dropped.
    pub fn new(data: Vec<u8>, account: &Account) -> Result<Self, Exceeded> {
        account.charge(data.capacity()).map(|charge| Self { data, charge })
    }
}

/// Sends data to the task of a connection and charges its account.
#[derive(Debug, Clone)]
pub struct Sender {
    queue: mpsc::Sender<Charged>,
    account: Account,
}

impl Sender {
    /// Sends data. Returns false, and drops it, if the connection is gone, its queue is full or a limit is exceeded.
    pub fn try_send(&self, data: Vec<u8>) -> bool {
        Charged::new(data, &self.account).is_ok_and(|charged| self.queue.try_send(charged).is_ok())
    }
}

/// A queue of data for a connection with this account.
pub fn channel(account: &Account, capacity: usize) -> (Sender, mpsc::Receiver<Charged>) {
    let (queue, receiver) = mpsc::channel(capacity);
    (Sender { queue, account: account.clone() }, receiver)
}

impl Charge {
    /// How many bytes are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it another number of bytes. If that is too many the charge stays as it is, and the data has to be dropped.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Exceeded> {
        if bytes > self.bytes {
            self.account.add(bytes - self.bytes)?;
        } else {
            self.account.remove(self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.remove(self.bytes);
    }
}

impl State {
    /// Revokes what is oldest until so many more bytes fit in for an account.
    fn make_room(&mut self, client: IpAddr, own: u64, bytes: usize) -> Result<(), Exceeded> {
        let [of_connection, of_client, of_all] =
            [self.limits.connection_bytes, self.limits.client_bytes, self.limits.total_bytes]
                .map(|limit| limit.as_u64() as usize);
        let holding = self.clients.get(&client).and_then(|client| client.accounts.get(&own));
        if holding.map_or(0, |holding| holding.bytes) + bytes > of_connection {
            return Err(Exceeded::Connection);
        }
        while self.held_by(client).lasting() + bytes > of_client {
            self.revoke_oldest(client, own, Exceeded::Client)?;
        }
        if self.held_by(client).bytes + bytes > of_client + of_client / 4 {
            return Err(Exceeded::Client);
        }
        while self.held.lasting() + bytes > of_all {
            let largest = self.clients.iter().max_by_key(|(_, client)| client.held.lasting());
            let largest = largest.map_or(client, |(&largest, _)| largest);
            self.revoke_oldest(largest, own, Exceeded::Total)?;
        }
        if self.held.bytes + bytes > of_all + of_all / 4 {
            return Err(Exceeded::Total);
        }
        Ok(())
    }

    /// Revokes the account of a client that has held data longest. An error if that is `own`, or if there is none.
    fn revoke_oldest(&mut self, client: IpAddr, own: u64, exceeded: Exceeded) -> Result<(), Exceeded> {
        let accounts = self.clients.get(&client).map(|client| &client.accounts);
        let oldest = accounts.and_then(|accounts| accounts.iter().find(|(_, holding)| !holding.is_revoked));
        let oldest = oldest.map(|(&number, _)| number).filter(|&number| number != own).ok_or(exceeded)?;
        self.exceeded[exceeded as usize] += 1;
        self.revoke(client, oldest);
        Ok(())
    }

    fn revoke(&mut self, client: IpAddr, number: u64) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        let Some(holding) = client.accounts.get_mut(&number).filter(|holding| !holding.is_revoked) else { return };
        holding.is_revoked = true;
        holding.revoked.cancel();
        client.held.revoked += holding.bytes;
        self.held.revoked += holding.bytes;
    }

    fn held_by(&self, client: IpAddr) -> Held {
        self.clients.get(&client).map(|client| client.held).unwrap_or_default()
    }

    fn add(&mut self, client: IpAddr, number: u64, bytes: usize, revoked: &CancellationToken) {
        let client = self.clients.entry(client).or_default();
        let holding = client.accounts.entry(number).or_insert_with(|| Holding {
            bytes: 0,
            is_revoked: false,
            revoked: revoked.clone(),
        });
        holding.bytes += bytes;
        client.held.add(bytes, holding.is_revoked);
        self.held.add(bytes, holding.is_revoked);
        self.peak = self.peak.max(self.held.bytes);
    }

    /// Returns true if the account holds nothing any more.
    fn remove(&mut self, address: IpAddr, number: u64, bytes: usize) -> bool {
        let Some(client) = self.clients.get_mut(&address) else { return true };
        let Some(holding) = client.accounts.get_mut(&number) else { return true };
        holding.bytes -= bytes;
        let (is_empty, is_revoked) = (holding.bytes == 0, holding.is_revoked);
        client.held.remove(bytes, is_revoked);
        self.held.remove(bytes, is_revoked);
        if is_empty {
            client.accounts.remove(&number);
            if client.accounts.is_empty() {
                self.clients.remove(&address);
            }
        }
        is_empty
    }
}

/// The client that an address belongs to: the IPv4 address, or the first 64 bits of an IPv6 address.
pub fn client_of(address: IpAddr) -> IpAddr {
    prefix_of(address, 32, 64)
}

/// The network of an address by the length of its prefix, which is `ipv4_bits` or `ipv6_bits`.
pub fn prefix_of(address: IpAddr, ipv4_bits: u32, ipv6_bits: u32) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => (v4.to_bits() & u32::MAX.checked_shl(32 - ipv4_bits).unwrap_or(0)).to_be_bytes().into(),
        IpAddr::V6(v6) => {
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - ipv6_bits).unwrap_or(0)).into()
        }
    }
}

/// Less than this the allocator may keep.
const WORTH_RELEASING: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    fn budget(connection_kib: u64, client_kib: u64, total_kib: u64) -> Arc<Budget> {
        let budget = Arc::new(Budget::default());
        let [connection_bytes, client_bytes, total_bytes] = [connection_kib, client_kib, total_kib].map(ByteSize::kib);
        budget.set_limits(Config { connection_bytes, client_bytes, total_bytes });
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
        assert!(budget.0.lock().clients.is_empty());
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
}
