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
//!
//! The same holds for servers that this daemon asks (see [`Party`]): hosts that are checked, and the Consul agent.

mod party;
mod places;
mod shared;

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

pub use party::Party;
pub use places::{ClientIsFull, Most, NoPlace, Place, Places};
pub use shared::{Share, Shared};

/// How many bytes may wait for remote parties, section `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes that may wait for one connection, from 128 KiB to 1 GiB. Default "4MiB". Applies at reload.
    pub connection_bytes: ByteSize,
    /// Bytes that may wait for one client (an IPv4 address, an IPv6 /64), or for one host that is checked, from 128 KiB to
    /// 1 GiB. Default "16MiB". Applies at reload.
    pub client_bytes: ByteSize,
    /// Bytes that may wait for all clients, checked hosts and the Consul agent together, from 1 MiB to 16 GiB. Default
    /// "96MiB". Applies at reload.
    pub total_bytes: ByteSize,
    /// Descriptors that the process may open, from 64 to 1048576, or 0 for as many as the system allows (`LimitNOFILE=`).
    /// Connections of clients, upstream sockets and everything else have a share each. Default 0. Applies at restart.
    pub open_files: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connection_bytes: ByteSize::mib(4),
            client_bytes: ByteSize::mib(16),
            total_bytes: ByteSize::mib(96),
            open_files: 0,
        }
    }
}

/// A value that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}; choose from {least} to {most}")]
pub struct OutOfRange {
    /// The key.
    pub key: &'static str,
    value: String,
    least: String,
    most: String,
}

impl OutOfRange {
    /// A fault if the value is not within these limits.
    pub fn of<T: PartialOrd + ToString>(key: &'static str, value: T, least: T, most: T) -> Option<Self> {
        let is_within = least <= value && value <= most;
        let [value, least, most] = [value, least, most].map(|value| value.to_string());
        (!is_within).then_some(Self { key, value, least, most })
    }
}

impl Config {
    /// Every value that is out of range.
    pub fn problems(&self) -> Vec<OutOfRange> {
        let sizes = [
            ("connection_bytes", self.connection_bytes, ByteSize::kib(128), ByteSize::gib(1)),
            ("client_bytes", self.client_bytes, ByteSize::kib(128), ByteSize::gib(1)),
            ("total_bytes", self.total_bytes, ByteSize::mib(1), ByteSize::gib(16)),
        ];
        let sizes = sizes.into_iter().filter_map(|(key, value, least, most)| OutOfRange::of(key, value, least, most));
        let files = (self.open_files != 0).then(|| OutOfRange::of("open_files", self.open_files, 64, 1_048_576));
        sizes.chain(files.flatten()).collect()
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
    /// Bytes held for parties of each [kind](Party::kind).
    held_by_kind: [usize; Party::KINDS.len()],
    parties: HashMap<Party, Accounts>,
    /// Numbers accounts in the order in which they began to hold data.
    next: u64,
    /// How often each limit was met, in the order of [`Exceeded`].
    exceeded: [u64; 3],
}

/// The accounts of one party that hold data, the one that began first at the front.
#[derive(Debug, Default)]
struct Accounts {
    held: Held,
    open: BTreeMap<u64, Holding>,
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

    /// Bytes held for all parties.
    pub fn held_bytes(&self) -> usize {
        self.0.lock().held.bytes
    }

    /// The same by kinds of parties, in the order of [`Party::KINDS`].
    pub fn held_by_kind(&self) -> [usize; Party::KINDS.len()] {
        self.0.lock().held_by_kind
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

    /// An account for a connection of a client with this address.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Account {
        self.open_for(Party::Client(client_of(peer)))
    }

    /// An account for a connection to a host that is checked.
    pub fn open_checked(self: &Arc<Self>, peer: IpAddr) -> Account {
        self.open_for(Party::Checked(client_of(peer)))
    }

    /// An account for a response of the Consul agent.
    pub fn open_agent(self: &Arc<Self>) -> Account {
        self.open_for(Party::Agent)
    }

    fn open_for(self: &Arc<Self>, party: Party) -> Account {
        Account(Arc::new(Owner {
            budget: self.clone(),
            party,
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
    party: Party,
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

    /// The same for the one response that a connection of HTTP/1.1 may wait with: the limit of a connection does not apply,
    /// and a response that is larger than three quarters of what a client may have counts as these, for else it could never
    /// be sent.
    ///
    /// Other data of the client may have to go first, and takes a moment. So an error does not mean that this connection has
    /// to be closed: the caller may try again.
    pub fn try_charge_response(&self, bytes: usize) -> Result<Charge, Exceeded> {
        let of_client = self.0.budget.0.lock().limits.client_bytes.as_u64() as usize;
        let bytes = bytes.min(of_client / 4 * 3);
        self.add_to(bytes, usize::MAX)?;
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
            self.0.budget.0.lock().revoke(self.0.party, own);
        }
        self.0.revoked.cancel();
    }

    /// True if this connection has to be closed at once.
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.is_cancelled()
    }

    fn add(&self, bytes: usize) -> Result<(), Exceeded> {
        let of_connection = self.0.budget.0.lock().limits.connection_bytes.as_u64() as usize;
        let added = self.add_to(bytes, of_connection);
        if let Err(exceeded) = added
            && !self.is_revoked()
        {
            self.0.budget.0.lock().exceeded[exceeded as usize] += 1;
            self.revoke();
        }
        added
    }

    /// The same with another limit for the connection, and without the consequences.
    fn add_to(&self, bytes: usize, of_connection: usize) -> Result<(), Exceeded> {
        let mut number = self.0.number.lock();
        let mut state = self.0.budget.0.lock();
        let own = number.unwrap_or(state.next);
        if self.is_revoked() {
            return Err(Exceeded::Connection);
        }
        state.make_room(self.0.party, own, bytes, of_connection)?;
        if bytes > 0 {
            if number.replace(own).is_none() {
                state.next += 1;
            }
            let revoked = &self.0.revoked;
            state.add(self.0.party, own, bytes, revoked);
        }
        Ok(())
    }

    fn remove(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut number = self.0.number.lock();
        if let Some(own) = *number
            && self.0.budget.0.lock().remove(self.0.party, own, bytes)
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

    /// The same for a response of the agent. It counts as three quarters of the limit in all at most: its own key may allow
    /// it to be larger than that limit, and then it could never be received.
    pub fn resize_response(&mut self, bytes: usize) -> Result<(), Exceeded> {
        let of_all = self.account.0.budget.0.lock().limits.total_bytes.as_u64() as usize;
        self.resize(bytes.min(of_all / 4 * 3))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.remove(self.bytes);
    }
}

impl State {
    /// Revokes what is oldest until so many more bytes fit in for an account.
    fn make_room(&mut self, party: Party, own: u64, bytes: usize, of_connection: usize) -> Result<(), Exceeded> {
        let [of_client, of_all] =
            [self.limits.client_bytes, self.limits.total_bytes].map(|limit| limit.as_u64() as usize);
        let (of_connection, of_client) =
            if party == Party::Agent { (usize::MAX, of_all) } else { (of_connection, of_client) };
        let holding = self.parties.get(&party).and_then(|accounts| accounts.open.get(&own));
        if holding.map_or(0, |holding| holding.bytes).saturating_add(bytes) > of_connection {
            return Err(Exceeded::Connection);
        }
        while self.held_by(party).lasting() + bytes > of_client {
            self.revoke_oldest(party, own, Exceeded::Client)?;
        }
        if self.held_by(party).bytes + bytes > of_client + of_client / 4 {
            return Err(Exceeded::Client);
        }
        while self.held.lasting() + bytes > of_all {
            let largest = self.parties.iter().max_by_key(|(_, accounts)| accounts.held.lasting());
            let largest = largest.map_or(party, |(&largest, _)| largest);
            self.revoke_oldest(largest, own, Exceeded::Total)?;
        }
        if self.held.bytes + bytes > of_all + of_all / 4 {
            return Err(Exceeded::Total);
        }
        Ok(())
    }

    /// Revokes the account of a party that has held data longest. An error if that is `own`, or if there is none.
    fn revoke_oldest(&mut self, party: Party, own: u64, exceeded: Exceeded) -> Result<(), Exceeded> {
        let accounts = self.parties.get(&party).map(|accounts| &accounts.open);
        let oldest = accounts.and_then(|accounts| accounts.iter().find(|(_, holding)| !holding.is_revoked));
        let oldest = oldest.map(|(&number, _)| number).filter(|&number| number != own).ok_or(exceeded)?;
        self.exceeded[exceeded as usize] += 1;
        self.revoke(party, oldest);
        Ok(())
    }

    fn revoke(&mut self, party: Party, number: u64) {
        let Some(accounts) = self.parties.get_mut(&party) else { return };
        let Some(holding) = accounts.open.get_mut(&number).filter(|holding| !holding.is_revoked) else { return };
        holding.is_revoked = true;
        holding.revoked.cancel();
        accounts.held.revoked += holding.bytes;
        self.held.revoked += holding.bytes;
    }

    fn held_by(&self, party: Party) -> Held {
        self.parties.get(&party).map(|accounts| accounts.held).unwrap_or_default()
    }

    fn add(&mut self, party: Party, number: u64, bytes: usize, revoked: &CancellationToken) {
        let accounts = self.parties.entry(party).or_default();
        let holding = accounts.open.entry(number).or_insert_with(|| Holding {
            bytes: 0,
            is_revoked: false,
            revoked: revoked.clone(),
        });
        holding.bytes += bytes;
        accounts.held.add(bytes, holding.is_revoked);
        self.held.add(bytes, holding.is_revoked);
        self.held_by_kind[party.kind()] += bytes;
        self.peak = self.peak.max(self.held.bytes);
    }

    /// Returns true if the account holds nothing any more.
    fn remove(&mut self, party: Party, number: u64, bytes: usize) -> bool {
        let Some(accounts) = self.parties.get_mut(&party) else { return true };
        let Some(holding) = accounts.open.get_mut(&number) else { return true };
        holding.bytes -= bytes;
        let (is_empty, is_revoked) = (holding.bytes == 0, holding.is_revoked);
        accounts.held.remove(bytes, is_revoked);
        self.held.remove(bytes, is_revoked);
        self.held_by_kind[party.kind()] -= bytes;
        if is_empty {
            accounts.open.remove(&number);
            if accounts.open.is_empty() {
                self.parties.remove(&party);
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
mod tests;
