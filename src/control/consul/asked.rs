//! What a request asks for besides its path.

use std::time::Duration;

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};

use super::Refusal;
use crate::catalog::check::GoDuration;

/// Tells a request from all others with another response: the path, and what shapes what is there.
pub(super) type Identity = (String, Vec<(String, String)>);

/// The parameters of a request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// What it asks for.
    pub identity: Identity,
    /// The datacenter, if not ours.
    pub datacenter: Option<String>,
    /// What instances must have, all of it.
    pub tags: Vec<String>,
    /// What nodes must have, all of it.
    pub node_meta: Vec<(String, String)>,
    /// What is known already.
    pub index: Option<u64>,
    /// How long to wait for something else.
    pub wait: Duration,
    /// The same for what has no index.
    pub hash: Option<String>,
    /// Whether it is for people to read.
    is_pretty: bool,
    pairs: Vec<(String, String)>,
}

impl Asked {
    fn read(path: &str, pairs: Vec<(String, String)>) -> Result<Self, Refusal> {
        let first = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
        let all = |name: &'static str| pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value);
        let text = |name: &str| first(name).filter(|text| !text.is_empty());
        if first("stale").is_some() && first("consistent").is_some() {
            return Err(Refusal::bad("Cannot specify ?stale with ?consistent, conflicting semantics."));
        }
        for (name, what) in [("ns", "Namespaces are"), ("partition", "Partitions are")] {
            // That of everybody is what there is.
            if text(name).is_some_and(|value| value != "default") {
                let text =
                    format!("Bad request: Invalid query parameter: {name:?} - {what} a Consul Enterprise feature");
                return Err(Refusal::bad(text));
            }
        }
        // Giving all instead would be giving what nobody has asked for.
        if text("filter").is_some() {
            return Err(Refusal::bad("filter expressions are not supported; use tag, node-meta or passing"));
        }
        let index = text("index").map(|text| text.parse().map_err(|_| Refusal::bad("Invalid index"))).transpose()?;
        let wait = text("wait").map(|text| GoDuration::parse(text).ok_or_else(|| Refusal::bad("Invalid wait time")));
        let wait = wait.transpose()?.map(|GoDuration(wait)| wait).filter(|wait| !wait.is_zero());
        let shaping = pairs.iter().filter(|(key, _)| !["index", "wait", "hash", "token"].contains(&&**key)).cloned();
        let pair = |text: &String| {
            let (key, value) = text.split_once(':').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        };
        Ok(Self {
            identity: (path.to_owned(), shaping.collect()),
            datacenter: text("dc").map(str::to_lowercase),
            tags: all("tag").map(|tag| tag.to_lowercase()).filter(|tag| !tag.is_empty()).collect(),
            node_meta: all("node-meta").map(pair).collect(),
            index: index.filter(|&index| index > 0),
            wait: wait.unwrap_or(DEFAULT_WAIT).min(MOST_WAIT),
            hash: text("hash").map(str::to_owned),
            is_pretty: first("pretty").is_some(),
            pairs,
        })
    }

    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// Whether only instances are wanted all of whose checks pass.
    pub fn is_passing(&self) -> Result<bool, Refusal> {
        match self.get("passing") {
            None => Ok(false),
            Some("") => Ok(true),
            Some(word) => read_flag(word).ok_or_else(|| Refusal::bad("Invalid value for ?passing")),
        }
    }

    /// JSON, as it is wanted.
    pub fn render(&self, value: &impl Serialize) -> Vec<u8> {
        let mut body = Vec::new();
        let written = if self.is_pretty {
            let formatter = PrettyFormatter::with_indent(b"    ");
            value.serialize(&mut Serializer::with_formatter(&mut body, formatter))
        } else {
            value.serialize(&mut Serializer::new(&mut body))
        };
        written.expect("what is shown has keys of text, and memory takes it all");
        if self.is_pretty {
            body.push(b'\n');
        }
        body
    }
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| Refusal::bad(error.to_string()))?;
        Self::read(parts.uri.path(), pairs)
    }
}

/// What Go takes for true and false.
pub(super) fn read_flag(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MOST_WAIT: Duration = Duration::from_secs(600);
