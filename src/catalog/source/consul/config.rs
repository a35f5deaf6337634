//! The section `[catalog.consul]`: where the agents are, and how they are asked.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};
use url::Url;

use super::client::{FileError, resolve};
use crate::files::read_text;

/// A Consul agent that is followed over its HTTP API, section `[catalog.consul]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The URL of the agent, or a list of several: if one fails, the next is asked. A host is an address, or a name that
    /// stands in /etc/hosts. Default "http://127.0.0.1:8500". Applies at reload.
    pub address: Addresses,
    /// The token of the ACL. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The file in which the token stands; it outranks `token`, and is read for each request. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The file of the authorities, in PEM format, that the agent's certificate may come from. Default: those that the
    /// system trusts. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The name in the agent's certificate, such as "server.dc1.consul". Default: the host of the URL. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The file of our own certificate, in PEM format, where the agent demands one. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// The file of its key. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The namespace (Consul Enterprise). Default: the token's. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The admin partition (Consul Enterprise). Default: the agent's. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Whether any server of Consul's may answer, and not its leader alone: then it works without a leader, too. Default
    /// true. Applies at reload.
    pub stale: bool,
    /// How long a request waits for a change before it is made anew. Default "5m", from "1s" to "10m". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
    /// The most bytes of a response, from 1 MiB to 1 GiB. A larger one is not believed, and what the agent said before stays.
    /// It counts against `limits.total_bytes` until it has been read, with three quarters of that at most.
    /// Default "64MiB". Applies at reload.
    pub max_response_bytes: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Addresses(vec![Url::parse("http://127.0.0.1:8500").expect("a constant that is a URL")]),
            token: None,
            token_file: None,
            ca_file: None,
            server_name: None,
            cert_file: None,
            key_file: None,
            namespace: None,
            partition: None,
            stale: true,
            wait: Duration::from_secs(300),
            max_response_bytes: ByteSize::mib(64),
        }
    }
}

impl Config {
    /// The keys whose values do not serve, each with its value and what would.
    pub fn problems(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut problems = Vec::new();
        if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(&self.wait) {
            problems.push(("wait", format!("{:?}", self.wait), "from \"1s\" to \"10m\""));
        }
        if !(ByteSize::mib(1)..=ByteSize::gib(1)).contains(&self.max_response_bytes) {
            problems.push(("max_response_bytes", self.max_response_bytes.to_string(), "from 1 MiB to 1 GiB"));
        }
        for url in self.address.urls().iter().filter(|url| resolve(host_of(url)).is_empty()) {
            problems.push(("address", url.to_string(), "a host that is an address, or has a line in /etc/hosts"));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            problems.push(("cert_file", "there without key_file, or the other way round".to_owned(), "both or none"));
        }
        problems
    }

    /// The addresses of the hosts of all agents, as far as they are known.
    pub fn hosts(&self) -> Vec<IpAddr> {
        let mut hosts = Vec::new();
        for ip in self.address.urls().iter().filter_map(|url| resolve(host_of(url)).first().copied()) {
            if !hosts.contains(&ip) {
                hosts.push(ip);
            }
        }
        hosts
    }

    /// The paths in it.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.token_file, &mut self.ca_file, &mut self.cert_file, &mut self.key_file].into_iter().flatten()
    }

    /// The token, if there is one.
    pub(super) fn read_token(&self) -> Result<Option<String>, FileError> {
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        let text = read_text(file).map_err(|cause| FileError::Token { file: file.clone(), cause })?;
        Ok(Some(text.trim().to_owned()))
    }
}

/// One URL or several; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<Url>);

impl Addresses {
    /// All of them.
    pub fn urls(&self) -> &[Url] {
        &self.0
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0.iter().map(Url::as_str).collect::<Vec<_>>().join(", "))
    }
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => serializer.serialize_str(text(one)),
            several => serializer.collect_seq(several.iter().map(text)),
        }
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a URL such as \"http://127.0.0.1:8500\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Addresses, E> {
                read(text).map(|url| Addresses(vec![url]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Addresses, A::Error> {
                let mut urls = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    urls.push(read(&text)?);
                }
                if urls.is_empty() { Err(de::Error::invalid_length(0, &self)) } else { Ok(Addresses(urls)) }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

fn read<E: de::Error>(text: &str) -> Result<Url, E> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| E::custom(format!("{text:?} is no URL; write one such as \"http://127.0.0.1:8500\"")))
}

/// The host of a URL, an IPv6 address without its brackets.
pub(super) fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_matches(['[', ']'])
}

/// Without the slash that stands for no path.
fn text(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_or_several() {
        for (text, expected) in [
            ("address = \"http://192.0.2.1:8500\"", Some(1)),
            ("address = [\"http://192.0.2.1:8500\", \"https://[2001:db8::1]:8501/consul\"]", Some(2)),
            ("", Some(1)),
            ("address = []", None),
            ("address = \"192.0.2.1:8500\"", None),
            ("address = \"unix:///run/consul.sock\"", None),
            ("address = 8500", None),
        ] {
            let read = toml::from_str::<Config>(text).ok();
            assert_eq!(read.as_ref().map(|config| config.address.urls().len()), expected, "{text}");
            if let Some(config) = read {
                assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config, "{text}");
            }
        }
    }

    #[test]
    fn every_value_that_does_not_serve_is_reported() {
        let config: Config = toml::from_str("wait = '11m'\nmax_response_bytes = '1kB'\nkey_file = 'c'").unwrap();
        let keys: Vec<_> = config.problems().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(keys, ["wait", "max_response_bytes", "cert_file"]);
        assert_eq!(Config::default().problems(), []);
    }
}
