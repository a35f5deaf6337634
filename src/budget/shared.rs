//! Data that waits for several connections at a time, such as the one body of a response that all of them are sent.
//!
//! It takes memory once, so it is charged once: to one of the connections that hold it. When that connection lets go and
//! others still hold the data, the charge moves to one of them. So the data counts as long as it is there, and always
//! against a client that has not taken it yet.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::{Account, Charge, Exceeded};

/// The data.
#[derive(Debug)]
pub struct Shared {
    data: Vec<u8>,
    holders: Mutex<Holders>,
}

/// The connections that hold the data.
#[derive(Debug, Default)]
struct Holders {
    accounts: BTreeMap<u64, Account>,
    next: u64,
    /// The charge, and the number of the account that is charged.
    charge: Option<(u64, Charge)>,
}

/// A connection's hold of the data.
#[derive(Debug)]
pub struct Share {
    shared: Arc<Shared>,
    number: u64,
}

impl Shared {
    /// Data that no connection holds yet.
    pub fn new(data: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { data, holders: Mutex::default() })
    }

    /// The data.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Notes that a connection holds the data. An error says that it must not, or not yet, as with
    /// [`Account::try_charge_response`].
    pub fn try_hold(self: &Arc<Self>, account: &Account) -> Result<Share, Exceeded> {
        let mut holders = self.holders.lock();
        let number = holders.next;
        if holders.charge.is_none() {
            holders.charge = Some((number, account.try_charge_response(self.data.capacity())?));
        }
        holders.next += 1;
        holders.accounts.insert(number, account.clone());
        Ok(Share { shared: self.clone(), number })
    }
}

impl AsRef<[u8]> for Share {
    fn as_ref(&self) -> &[u8] {
        &self.shared.data
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut holders = self.shared.holders.lock();
        holders.accounts.remove(&self.number);
        if holders.charge.as_ref().is_some_and(|(charged, _)| *charged != self.number) {
            return;
        }
        holders.charge = None;
        let bytes = self.shared.data.capacity();
        // If none of these can be charged now, the next connection is that takes the data or lets go of it.
        let charge = holders
            .accounts
            .iter()
            .take(MOST_TRIES)
            .find_map(|(&number, account)| account.try_charge_response(bytes).ok().map(|charge| (number, charge)));
        holders.charge = charge;
    }
}

/// How many holders are tried in turn when the charge has to move.
const MOST_TRIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::{Budget, Config};
    use super::*;

    #[test]
    fn shared_data_counts_once_and_against_a_client_that_still_holds_it() {
        let budget = Arc::new(Budget::default());
        budget.set_limits(Config::default());
        let accounts = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|peer| budget.open(peer.parse().unwrap()));
        let shared = Shared::new(vec![7; 5 << 20]);
        assert_eq!(budget.held_bytes(), 0);
        // More than the limit of a connection, which has one response at a time.
        let mut shares: Vec<_> = accounts.iter().map(|account| shared.try_hold(account).unwrap()).collect();
        assert_eq!(budget.held_bytes(), 5 << 20);
        drop(shares.remove(0));
        assert_eq!(budget.held_bytes(), 5 << 20);
        // The first is free again, and may take on as much as before.
        assert!(accounts[0].try_charge_response(11 << 20).is_ok());
        assert_eq!(shares[0].as_ref()[0], 7);
        drop(shares);
        assert_eq!(budget.held_bytes(), 0);
        assert!(shared.holders.lock().accounts.is_empty());
    }

    #[test]
    fn a_connection_that_may_hold_no_more_is_passed_over_and_the_next_is_charged() {
        let budget = Arc::new(Budget::default());
        budget.set_limits(Config::default());
        let [first, second, third] =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|peer| budget.open(peer.parse().unwrap()));
        let shared = Shared::new(vec![7; 12 << 20]);
        let (share, others) =
            (shared.try_hold(&first).unwrap(), [&second, &third].map(|a| shared.try_hold(a).unwrap()));
        let _full = second.try_charge_response(11 << 20).unwrap();
        drop(share);
        assert!(!second.is_revoked() && !third.is_revoked());
        assert_eq!(budget.held_bytes(), (11 + 12) << 20);
        drop(others);
        assert_eq!(budget.held_bytes(), 11 << 20);
    }
}
