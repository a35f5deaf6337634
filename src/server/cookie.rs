//! Server cookies: what lets a client show that it receives what is sent to its address (RFC 7873).
//!
//! They have the one form that servers of every make understand (RFC 9018 §4): version, time, and a hash of these, the
//! client's part and its address under a secret. So servers behind one address, of whatever make, accept each
//! other's if they share a secret. Nothing is remembered for a client.
//!
//! A query with a cookie is answered like any other, whatever the cookie is worth, and told a good one (RFC 7873 §5.2.3 and
//! §5.2.4 leave that to us). To answer BADCOOKIE in its stead would only bother the honest: who forges addresses leaves the
//! option out, and most resolvers of operating systems know nothing of it. What a good cookie earns is
//! exemption from what bounds the use of forged addresses: see [`Asker::is_proven`](crate::wire::Asker::is_proven).

use std::{fmt, net::IpAddr};

use data_encoding::HEXLOWER_PERMISSIVE;
use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use siphasher::sip::SipHasher24;
use subtle::ConstantTimeEq;

use crate::wire::{COOKIE_BYTES, Cookie};

/// What cookies are made with and known by.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// One that nobody can guess, if `rng` is such.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut octets = [0; SECRET_BYTES];
        rng.fill_bytes(&mut octets);
        Self(octets)
    }

    /// The hash in a cookie, over all that is before it, and the client's address (RFC 9018 §4.4).
    fn hash(&self, before: &[u8; HASH_AT], client: IpAddr) -> [u8; COOKIE_BYTES - HASH_AT] {
        let mut input = [0; HASH_AT + 16];
        input[..HASH_AT].copy_from_slice(before);
        let length = HASH_AT
            + match client {
                IpAddr::V4(v4) => copy(&v4.octets(), &mut input[HASH_AT..]),
                IpAddr::V6(v6) => copy(&v6.octets(), &mut input[HASH_AT..]),
            };
        SipHasher24::new_with_key(&self.0).hash(&input[..length]).to_le_bytes()
    }
}

fn copy(octets: &[u8], out: &mut [u8]) -> usize {
    out[..octets.len()].copy_from_slice(octets);
    octets.len()
}

/// What a client is told that has sent this COOKIE option, and whether its own is good. `now` is the wall clock's second,
/// which wraps as the RFC has it.
///
/// Cookies are made with the first of the secrets, and known by any of them, so that one can take the place of
/// another without a client noticing (RFC 9018 §5). `shown` holds 8 octets at least, as every option that is well-formed.
pub fn renew(secrets: &[Secret], shown: &[u8], client: IpAddr, now: u32) -> Option<Cookie> {
    let client = client.to_canonical();
    let own = secrets.first()?;
    if let Ok(data) = <[u8; COOKIE_BYTES]>::try_from(shown)
        && let Some((before, hash)) = data.split_first_chunk::<HASH_AT>()
        && let Some(&hash) = hash.first_chunk()
        && before[VERSION_AT] == VERSION
    {
        let &[.., t0, t1, t2, t3] = before;
        // Serial numbers (RFC 1982): older ones have a positive age, those of a clock that is ahead a negative one.
        let age = now.wrapping_sub(u32::from_be_bytes([t0, t1, t2, t3])).cast_signed();
        // In constant time: how long it takes reveals nothing of the hash.
        let is_of = |secret: &Secret| -> bool {
            u64::from_ne_bytes(secret.hash(before, client)).ct_eq(&u64::from_ne_bytes(hash)).into()
        };
        if (-MOST_AHEAD_SECS..=MOST_AGE_SECS).contains(&age) && secrets.iter().any(is_of) {
            let is_lasting = age <= RENEWED_AGE_SECS && is_of(own);
            let data = if is_lasting { data } else { fresh(own, &data, client, now)? };
            return Some(Cookie { data, is_proof: true });
        }
    }
    Some(Cookie { data: fresh(own, shown, client, now)?, is_proof: false })
}

fn fresh(secret: &Secret, shown: &[u8], client: IpAddr, now: u32) -> Option<[u8; COOKIE_BYTES]> {
    let mut before = [0; HASH_AT];
    before[..VERSION_AT].copy_from_slice(shown.get(..VERSION_AT)?);
    before[VERSION_AT] = VERSION;
    before[TIME_AT..].copy_from_slice(&now.to_be_bytes());
    let mut data = [0; COOKIE_BYTES];
    data[..HASH_AT].copy_from_slice(&before);
    data[HASH_AT..].copy_from_slice(&secret.hash(&before, client));
    Some(data)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"...\"")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(SecretVisitor)
    }
}

/// Fails inside the visit, where the file's reader still knows the line. What is wrong is not shown: it may be right
/// but for a letter.
struct SecretVisitor;

impl de::Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        let octets = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|octets| octets.try_into().ok());
        octets
            .map(Secret)
            .ok_or_else(|| E::custom("a cookie secret is 32 hexadecimal digits; `openssl rand -hex 16` makes one"))
    }
}

const SECRET_BYTES: usize = 16;
/// The parts of a cookie: 8 octets of the client's, version, three that are reserved, time, hash (RFC 9018 §4).
const VERSION_AT: usize = 8;
const TIME_AT: usize = 12;
const HASH_AT: usize = 16;
const VERSION: u8 = 1;
/// How old a cookie may be, and by how much the clock of the server that made it may be ahead (RFC 9018 §4.3).
const MOST_AGE_SECS: i32 = 3600;
const MOST_AHEAD_SECS: i32 = 300;
/// At what age a client is given another, though its own is good yet (RFC 9018 §4.3).
const RENEWED_AGE_SECS: i32 = 1800;

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(hex: &str) -> Vec<u8> {
        HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap()
    }

    fn secret(hex: &str) -> Secret {
        Secret(octets(hex).try_into().unwrap())
    }

    const FIRST: &str = "e5e973e5a6b2a43f48e7dc849e37bfcf";
    const SECOND: &str = "445536bcd2513298075a5d379663c962";

    /// Appendix A of RFC 9018.
    #[test]
    fn cookies_are_those_of_the_rfc() {
        for (case, secrets, client, now, shown, expected, is_proof) in [
            (
                "A.1, learning a new one",
                &[FIRST][..],
                "198.51.100.100",
                1_559_731_985,
                "2464c4abcf10c957",
                "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
                false,
            ),
            (
                "A.2, the same client 40 minutes later",
                &[FIRST],
                "198.51.100.100",
                1_559_734_385,
                "2464c4abcf10c957010000005cf79f111f8130c3eee29480",
                "2464c4abcf10c957010000005cf7a871d4a564a1442aca77",
                true,
            ),
            (
                "A.3, reserved octets that another server has set",
                &[FIRST],
                "203.0.113.203",
                1_559_734_700,
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e",
                false, // older than an hour, whatever the example makes of that
            ),
            (
                "A.3 in its time",
                &[FIRST],
                "203.0.113.203",
                1_559_727_985 + 60,
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5",
                true,
            ),
            (
                "A.4, IPv6 and another secret",
                &[SECOND, "dd3bdf9344b678b185a6f5cb60fca715"],
                "2001:db8:220:1:59de:d0f4:8769:82b8",
                1_559_741_961,
                "22681ab97d52c298010000005cf7c57926556bd0934c72f8",
                "22681ab97d52c298010000005cf7c609a6bb79d16625507a",
                true,
            ),
        ] {
            let secrets: Vec<Secret> = secrets.iter().map(|hex| secret(hex)).collect();
            let cookie = renew(&secrets, &octets(shown), client.parse().unwrap(), now).unwrap();
            assert_eq!(HEXLOWER_PERMISSIVE.encode(&cookie.data), expected, "{case}");
            assert_eq!(cookie.is_proof, is_proof, "{case}");
        }
    }

    #[test]
    fn a_cookie_is_good_for_its_client_and_its_time() {
        let [own, other] = [secret(FIRST), secret(SECOND)];
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let made_at = 10u32.wrapping_sub(20); // the clock wraps
        let cookie = renew(std::slice::from_ref(&own), &[7; 8], client, made_at).unwrap().data;
        let changed = |at: usize| {
            let mut cookie = cookie;
            cookie[at] ^= 1;
            cookie.to_vec()
        };
        let later = |seconds: i32| made_at.wrapping_add_signed(seconds);
        // Whoever asks at the second in which it was made gets the same again.
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        for (case, secrets, shown, client, now, is_proof, is_same) in [
            ("as it was made", vec![&own], cookie.to_vec(), client, made_at, true, true),
            ("by IPv6 that is IPv4", vec![&own], cookie.to_vec(), mapped, made_at, true, true),
            ("half an hour later", vec![&own], cookie.to_vec(), client, later(1800), true, true),
            ("still later", vec![&own], cookie.to_vec(), client, later(1801), true, false),
            ("an hour later", vec![&own], cookie.to_vec(), client, later(3600), true, false),
            ("too late", vec![&own], cookie.to_vec(), client, later(3601), false, false),
            ("by a clock that is ahead", vec![&own], cookie.to_vec(), client, later(-300), true, true),
            ("by one too far ahead", vec![&own], cookie.to_vec(), client, later(-301), false, false),
            ("of another client", vec![&own], cookie.to_vec(), "192.0.2.2".parse().unwrap(), made_at, false, false),
            ("with another client's part", vec![&own], changed(0), client, made_at, false, false),
            ("of another version", vec![&own], changed(8), client, made_at, false, true),
            ("with another time", vec![&own], changed(15), client, made_at, false, true),
            ("with another hash", vec![&own], changed(23), client, made_at, false, true),
            ("longer", vec![&own], [&cookie[..], &[0]].concat(), client, made_at, false, true),
            ("the client's part alone", vec![&own], cookie[..8].to_vec(), client, made_at, false, true),
            ("by the secret before", vec![&other, &own], cookie.to_vec(), client, made_at, true, false),
            ("by a secret that is gone", vec![&other], cookie.to_vec(), client, made_at, false, false),
        ] {
            let secrets: Vec<Secret> = secrets.into_iter().cloned().collect();
            let renewed = renew(&secrets, &shown, client, now).unwrap();
            assert_eq!((renewed.is_proof, renewed.data == cookie), (is_proof, is_same), "{case}");
            assert!(renew(&secrets, &renewed.data, client, now).unwrap().is_proof, "{case}: what is given is good");
        }
    }

    #[test]
    fn a_secret_is_32_digits_that_no_log_shows() {
        #[derive(Debug, Deserialize)]
        struct Holder {
            secret: Secret,
        }
        let read = |text: &str| toml::from_str::<Holder>(&format!("secret = {text:?}"));
        let holder = read(&FIRST.to_uppercase()).unwrap();
        assert_eq!(holder.secret, secret(FIRST));
        assert!(!format!("{holder:?}").contains("e5"), "{holder:?}");
        for text in ["", &FIRST[1..], &format!("{FIRST}00"), "x5e973e5a6b2a43f48e7dc849e37bfcf"] {
            let error = read(text).unwrap_err().message().to_owned();
            assert!(error.contains("openssl rand -hex 16"), "{error}");
        }
    }
}
