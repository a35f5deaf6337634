//! What a name below the domain means, as Consul reads it.
//!
//! It is read from the right: the first label that is `service`, `connect`, `ingress`, `virtual`, `node`, `query` or `addr`
//! says of what kind it is; what is left of it is the payload, right of it the datacenter. A label that begins with `_`
//! and is met first means `service` too (RFC 2782).

use std::net::IpAddr;

use super::{model::Kind, records::read_address_label};

/// What a name below the domain means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Apex,
    Service {
        kind: Kind,
        name: String,
        tag: Option<String>,
        datacenter: Option<String>,
        /// The name exists for the sake of its SRV records.
        srv_only: bool,
    },
    Virtual {
        name: String,
        datacenter: Option<String>,
    },
    Node {
        name: String,
        datacenter: Option<String>,
    },
    /// A prepared query.
    Query {
        name: String,
        datacenter: Option<String>,
    },
    Address(IpAddr),
    Nothing,
}

impl Subject {
    /// Reads the labels in front of the domain, which are in lower case.
    pub fn read(labels: &[&[u8]]) -> Self {
        Self::try_read(labels).unwrap_or(Self::Nothing)
    }

    fn try_read(labels: &[&[u8]]) -> Option<Self> {
        if labels.is_empty() {
            return Some(Self::Apex);
        }
        let is_kind = |label: &&[u8]| KINDS.contains(label) || label.starts_with(b"_");
        let place = labels.iter().rposition(is_kind)?;
        let srv_only = !KINDS.contains(&labels[place]);
        let payload = &labels[..if srv_only { place + 1 } else { place }];
        let suffix = &labels[place + 1..];
        let (last, others) = payload.split_last()?;
        if !srv_only && labels[place] == b"addr" {
            // Whatever stands behind it is never looked at.
            let label = Some(last).filter(|_| others.is_empty())?;
            return read_address_label(std::str::from_utf8(label).ok()?).map(Self::Address);
        }
        let datacenter = match suffix {
            [] => None,
            [datacenter] | [datacenter, b"dc"] => Some(text(&[datacenter])?),
            _ => return None,
        };
        let kind = match labels[place] {
            b"connect" => Kind::Connect,
            b"ingress" => Kind::Ingress,
            b"virtual" => return Some(Self::Virtual { name: text(&[last])?, datacenter }),
            b"node" => return Some(Self::Node { name: text(payload)?, datacenter }),
            b"query" => {
                // `_name._tcp` is for the sake of RFC 2782; every other name may hold dots.
                let name = match payload {
                    [name, protocol] if name.starts_with(b"_") && protocol.starts_with(b"_") => text(&[&name[1..]])?,
                    _ => text(payload)?,
                };
                return Some(Self::Query { name, datacenter });
            }
            _ => Kind::Service,
        };
        let (name, tag) = match (kind, payload) {
            (Kind::Service, [name, tag]) if name.starts_with(b"_") && tag.starts_with(b"_") => {
                (&name[1..], Some(&tag[1..]).filter(|tag| !matches!(*tag, b"" | b"tcp")).map(|tag| text(&[tag])))
            }
            (Kind::Service, _) if !others.is_empty() => (*last, Some(text(others))),
            _ => (*last, None),
        };
        let tag = match tag {
            Some(tag) => Some(tag?),
            None => None,
        };
        Some(Self::Service { kind, name: text(&[name])?, tag, datacenter, srv_only })
    }
}

/// The labels joined by dots, as names are kept; nothing if they hold an octet that a name in text has escaped, for then
/// Consul compares the escape.
fn text(labels: &[&[u8]]) -> Option<String> {
    let is_plain = |octet: &u8| octet.is_ascii_graphic() && !br#".();@"\"#.contains(octet);
    let mut joined = String::new();
    for label in labels {
        if !label.iter().all(is_plain) {
            return None;
        }
        if !joined.is_empty() {
            joined.push('.');
        }
        joined.push_str(std::str::from_utf8(label).ok()?);
    }
    Some(joined)
}

/// The labels that say of what kind a name is.
const KINDS: [&[u8]; 7] = [b"service", b"connect", b"ingress", b"virtual", b"node", b"query", b"addr"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Subject {
        let labels: Vec<&[u8]> = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect();
        Subject::read(&labels)
    }

    fn service(tag: Option<&str>, name: &str, datacenter: Option<&str>) -> Subject {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (tag, datacenter) = (owned(tag), owned(datacenter));
        Subject::Service { kind: Kind::Service, name: name.into(), tag, datacenter, srv_only: false }
    }

    #[test]
    fn the_last_kind_counts_and_what_is_left_of_it_is_payload() {
        // CONSUL-DNS.md §1: parsing; §2: the RFC forms
        for (text, expected) in [
            ("web.service", service(None, "web", None)),
            ("v1.web.service.dc1", service(Some("v1"), "web", Some("dc1"))),
            ("a.b.web.service", service(Some("a.b"), "web", None)), // a tag may hold dots
            ("service.service", service(None, "service", None)),
            ("node.addr.service", service(Some("node"), "addr", None)),
            ("_web._tcp.service", service(None, "web", None)),
            ("_web._.service", service(None, "web", None)),
            ("_web._udp.service", service(Some("udp"), "web", None)),
            ("_web.tcp.service", service(Some("_web"), "tcp", None)),
            ("x._web._tcp.service", service(Some("x._web"), "_tcp", None)),
            ("a.b.query", Subject::Query { name: "a.b".into(), datacenter: None }),
            ("_web._tcp.query.dc1", Subject::Query { name: "web".into(), datacenter: Some("dc1".into()) }),
            ("query", Subject::Nothing),
            ("web.service.a.b", Subject::Nothing),
            ("b\u{fc}cher.service", Subject::Nothing), // what text would escape
            ("a b.service", Subject::Nothing),
            ("a@b.node", Subject::Nothing),
            ("service", Subject::Nothing),
            ("web", Subject::Nothing),
            ("", Subject::Apex),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_labels_mean_something_or_nothing(
            labels in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(&["service", "node", "addr", "connect", "query", "virtual", "_", "_tcp", "dc"][..])
                        .prop_map(|label| label.as_bytes().to_vec()),
                    prop::collection::vec(any::<u8>(), 1..40),
                ],
                0..6,
            ),
        ) {
            let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
            let _ = Subject::read(&labels);
        }
    }
}
