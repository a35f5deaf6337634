//! The keys of Consul's definition files, from version 0.7 up to 1.22, and what is said about the others.
//!
//! Keys are compared as Consul compares them, without regard to case, and also without underscores: files and API spell
//! some of them differently.

use std::borrow::Cow;

/// What Consul has at a place of a definition file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Consul 1.8 has the key.
    Yes,
    /// A later version has it, 1.22 at the latest. It means nothing here.
    Later,
    /// No version has it.
    No,
}

/// The keys of one kind of table.
pub struct Keys {
    /// How error messages call the table.
    pub what: &'static str,
    /// Keys of Consul 1.8, with the keys of what they hold.
    known: &'static [(&'static str, Holds)],
    /// Keys of later versions.
    later: &'static [&'static str],
}

/// What stands at a key.
#[derive(Clone, Copy)]
pub enum Holds {
    /// Something that has no keys, or whose keys are free.
    Anything,
    /// A table, or a list of tables.
    Table(&'static Keys),
    /// Tables by free keys.
    Tables(&'static Keys),
}

impl Keys {
    /// Whether Consul has this key here, and what it holds.
    pub fn find(&self, key: &str) -> (Known, Holds) {
        match self.known.iter().find(|(known, _)| is_same(known, key)) {
            Some((_, holds)) => (Known::Yes, *holds),
            None if self.later.iter().any(|later| is_same(later, key)) => (Known::Later, Holds::Anything),
            None => (Known::No, Holds::Anything),
        }
    }

    /// The known key that is meant by an unknown one, if one is close enough.
    pub fn closest(&self, key: &str) -> Option<&'static str> {
        closest(key, self.known.iter().map(|(known, _)| *known).chain(self.later.iter().copied()))
    }
}

/// A key as it is compared.
pub fn plain(key: &str) -> Cow<'_, str> {
    match key.bytes().all(|octet| octet.is_ascii_lowercase()) {
        true => key.into(),
        false => key.replace('_', "").to_ascii_lowercase().into(),
    }
}

fn is_same(left: &str, right: &str) -> bool {
    left.len().abs_diff(right.len()) <= MOST_UNDERSCORES && letters(left).eq(letters(right))
}

fn letters(key: &str) -> impl Iterator<Item = u8> {
    key.bytes().filter(|octet| *octet != b'_').map(|octet| octet.to_ascii_lowercase())
}

/// What to do about an unknown key, for the end of a message.
pub fn remedy(closest: Option<&str>) -> String {
    match closest {
        Some(closest) => format!("did you mean `{closest}`?"),
        None => "correct or remove it".to_owned(),
    }
}

/// The word that is meant by a misspelt one: the closest, if at most a third of the letters differ.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A longer word is not a spelling error of any key.
    let word = Some(plain(word)).filter(|word| word.len() <= LONGEST_WORD)?;
    let most = (word.chars().count() / 3).clamp(1, 3);
    let distances = known.into_iter().map(|known| (distance(&word, &plain(known)), known));
    distances.filter(|(distance, _)| *distance <= most).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// How many letters have to be changed, added, removed, or exchanged with their neighbor.
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<usize>>()];
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let changed = rows[i][j] + usize::from(a != b);
            let mut least = changed.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

use Holds::{Anything, Table, Tables};

/// A definition file: definitions, and the keys of an agent's own configuration.
pub static FILE: Keys = Keys {
    what: "a definition file",
    known: &[
        ("acl", Anything),
        ("acl_agent_master_token", Anything),
        ("acl_agent_token", Anything),
        ("acl_datacenter", Anything),
        ("acl_default_policy", Anything),
        ("acl_disabled_ttl", Anything),
        ("acl_down_policy", Anything),
        ("acl_enable_key_list_policy", Anything),
        ("acl_enforce_version_8", Anything),
        ("acl_master_token", Anything),
        ("acl_replication_token", Anything),
        ("acl_token", Anything),
        ("acl_ttl", Anything),
        ("addresses", Anything),
        ("advertise_addr", Anything),
        ("advertise_addr_ipv4", Anything),
        ("advertise_addr_ipv6", Anything),
        ("advertise_addr_wan", Anything),
        ("advertise_addr_wan_ipv4", Anything),
        ("advertise_addr_wan_ipv6", Anything),
        ("advertise_addrs", Anything),
        ("advertise_reconnect_timeout", Anything),
        ("ae_interval", Anything),
        ("alt_domain", Anything),
        ("atlas_acl_token", Anything),
        ("atlas_endpoint", Anything),
        ("atlas_infrastructure", Anything),
        ("atlas_join", Anything),
        ("atlas_token", Anything),
        ("audit", Anything),
        ("auto_config", Anything),
        ("auto_encrypt", Anything),
        ("auto_reload_config", Anything),
        ("autopilot", Anything),
        ("bind_addr", Anything),
        ("bootstrap", Anything),
        ("bootstrap_expect", Anything),
        ("build_date", Anything),
        ("ca_file", Anything),
        ("ca_path", Anything),
        ("cache", Anything),
        ("cert_file", Anything),
        ("check", Anything),
        ("check_deregister_interval_min", Anything),
        ("check_output_max_size", Anything),
        ("check_reap_interval", Anything),
        ("check_update_interval", Anything),
        ("checks", Anything),
        ("client_addr", Anything),
        ("cloud", Anything),
        ("config_entries", Anything),
        ("connect", Anything),
        ("consul", Anything),
        ("data_dir", Anything),
        ("datacenter", Anything),
        ("default_intention_policy", Anything),
        ("default_query_time", Anything),
        ("disable_anonymous_signature", Anything),
        ("disable_coordinates", Anything),
        ("disable_host_node_id", Anything),
        ("disable_http_unprintable_char_filter", Anything),
        ("disable_keyring_file", Anything),
        ("disable_remote_exec", Anything),
        ("disable_update_check", Anything),
        ("discard_check_output", Anything),
        ("discovery_max_stale", Anything),
        ("dns_config", Anything),
        ("dogstatsd_addr", Anything),
        ("dogstatsd_tags", Anything),
        ("domain", Anything),
        ("enable_acl_replication", Anything),
        ("enable_agent_tls_for_checks", Anything),
        ("enable_central_service_config", Anything),
        ("enable_debug", Anything),
        ("enable_local_script_checks", Anything),
        ("enable_script_checks", Anything),
        ("enable_syslog", Anything),
        ("enable_xds_load_balancing", Anything),
        ("encrypt", Anything),
        ("encrypt_verify_incoming", Anything),
        ("encrypt_verify_outgoing", Anything),
        ("experiments", Anything),
        ("gossip_lan", Anything),
        ("gossip_wan", Anything),
        ("http_api_response_headers", Anything),
        ("http_config", Anything),
        ("key_file", Anything),
        ("leave_on_terminate", Anything),
        ("license_path", Anything),
        ("license_poll_base_time", Anything),
        ("license_poll_max_time", Anything),
        ("license_update_base_time", Anything),
        ("license_update_max_time", Anything),
        ("limits", Anything),
        ("locality", Anything),
        ("log_file", Anything),
        ("log_json", Anything),
        ("log_level", Anything),
        ("log_rotate_bytes", Anything),
        ("log_rotate_duration", Anything),
        ("log_rotate_max_files", Anything),
        ("log_sublevels", Anything),
        ("max_query_time", Anything),
        ("node_id", Anything),
        ("node_meta", Anything),
        ("node_name", Anything),
        ("non_voting_server", Anything),
        ("partition", Anything),
        ("peering", Anything),
        ("performance", Anything),
        ("pid_file", Anything),
        ("ports", Anything),
        ("primary_datacenter", Anything),
        ("primary_gateways", Anything),
        ("primary_gateways_interval", Anything),
        ("protocol", Anything),
        ("raft_boltdb", Anything),
        ("raft_logstore", Anything),
        ("raft_prevote_disabled", Anything),
        ("raft_protocol", Anything),
        ("raft_snapshot_interval", Anything),
        ("raft_snapshot_threshold", Anything),
        ("raft_trailing_logs", Anything),
        ("read_replica", Anything),
        ("reconnect_timeout", Anything),
        ("reconnect_timeout_wan", Anything),
        ("recursor", Anything),
        ("recursors", Anything),
        ("rejoin_after_leave", Anything),
        ("reporting", Anything),
        ("retry_interval", Anything),
        ("retry_interval_wan", Anything),
        ("retry_join", Anything),
        ("retry_join_azure", Anything),
        ("retry_join_ec2", Anything),
        ("retry_join_gce", Anything),
        ("retry_join_wan", Anything),
        ("retry_max", Anything),
        ("retry_max_wan", Anything),
        ("revision", Anything),
        ("rpc", Anything),
        ("segment", Anything),
        ("segment_limit", Anything),
        ("segment_name_limit", Anything),
        ("segments", Anything),
        ("serf_lan", Anything),
        ("serf_lan_allowed_cidrs", Anything),
        ("serf_lan_bind", Anything),
        ("serf_wan", Anything),
        ("serf_wan_allowed_cidrs", Anything),
        ("serf_wan_bind", Anything),
        ("server", Anything),
        ("server_name", Anything),
        ("server_rejoin_age_max", Anything),
        ("service", Anything),
        ("services", Anything),
        ("session_ttl_min", Anything),
        ("skip_leave_on_interrupt", Anything),
        ("snapshot_agent", Anything),
        ("start_join", Anything),
        ("start_join_wan", Anything),
        ("statsd_addr", Anything),
        ("statsite_addr", Anything),
        ("statsite_prefix", Anything),
        ("sync_coordinate_interval_min", Anything),
        ("sync_coordinate_rate_target", Anything),
        ("syslog_facility", Anything),
        ("tagged_addresses", Anything),
        ("telemetry", Anything),
        ("tls", Anything),
        ("tls_cipher_suites", Anything),
        ("tls_min_version", Anything),
        ("tls_prefer_server_cipher_suites", Anything),
        ("translate_wan_addrs", Anything),
        ("ui", Anything),
        ("ui_config", Anything),
        ("ui_content_path", Anything),
        ("ui_dir", Anything),
        ("unix_sockets", Anything),
        ("use_streaming_backend", Anything),
        ("verify_incoming", Anything),
        ("verify_incoming_https", Anything),
        ("verify_incoming_rpc", Anything),
        ("verify_outgoing", Anything),
        ("verify_server_hostname", Anything),
        ("version", Anything),
        ("version_metadata", Anything),
        ("version_prerelease", Anything),
        ("watches", Anything),
        ("xds", Anything),
    ],
    later: &[],
};

/// A service. Its checks are read by [`crate::catalog::check::Declaration`], which knows their keys.
pub static SERVICE: Keys = Keys {
    what: "a service",
    known: &[
        ("address", Anything),
        ("check", Anything),
        ("checks", Anything),
        ("connect", Table(&CONNECT)),
        ("create_index", Anything),
        ("enable_tag_override", Anything),
        ("id", Anything),
        ("kind", Anything),
        ("meta", Anything),
        ("modify_index", Anything),
        ("name", Anything),
        ("namespace", Anything),
        ("port", Anything),
        ("proxy", Table(&PROXY)),
        ("tagged_addresses", Tables(&ADDRESS)),
        ("tags", Anything),
        ("token", Anything),
        ("weights", Table(&WEIGHTS)),
    ],
    later: &["locality", "partition", "ports", "socket_path"],
};

static CONNECT: Keys =
    Keys { what: "connect", known: &[("native", Anything), ("sidecar_service", Table(&SERVICE))], later: &[] };

static PROXY: Keys = Keys {
    what: "proxy",
    known: &[
        ("config", Anything),
        ("destination_service", Anything),
        ("destination_service_id", Anything),
        ("destination_service_name", Anything),
        ("expose", Table(&EXPOSE)),
        ("local_service_address", Anything),
        ("local_service_port", Anything),
        ("mesh_gateway", Table(&MESH_GATEWAY)),
        ("upstreams", Table(&UPSTREAM)),
    ],
    later: &[
        "access_logs",
        "envoy_extensions",
        "local_service_socket_path",
        "mode",
        "mutual_tls_mode",
        "transparent_proxy",
    ],
};

static UPSTREAM: Keys = Keys {
    what: "an upstream",
    known: &[
        ("config", Anything),
        ("datacenter", Anything),
        ("destination_name", Anything),
        ("destination_namespace", Anything),
        ("destination_type", Anything),
        ("local_bind_address", Anything),
        ("local_bind_port", Anything),
        ("mesh_gateway", Table(&MESH_GATEWAY)),
    ],
    later: &[
        "destination_partition",
        "destination_peer",
        "destination_port",
        "local_bind_socket_mode",
        "local_bind_socket_path",
    ],
};

static MESH_GATEWAY: Keys = Keys { what: "mesh_gateway", known: &[("mode", Anything)], later: &[] };

static EXPOSE: Keys =
    Keys { what: "expose", known: &[("checks", Anything), ("paths", Table(&PATH)), ("port", Anything)], later: &[] };

static PATH: Keys = Keys {
    what: "an exposed path",
    known: &[("listener_port", Anything), ("local_path_port", Anything), ("path", Anything), ("protocol", Anything)],
    later: &["parsed_from_check"],
};

static ADDRESS: Keys =
    Keys { what: "a tagged address", known: &[("address", Anything), ("port", Anything)], later: &[] };

static WEIGHTS: Keys = Keys { what: "weights", known: &[("passing", Anything), ("warning", Anything)], later: &[] };

/// The keys of a check.
pub static CHECK: [&str; 37] = [
    "alias_node",
    "alias_service",
    "args",
    "body",
    "check_id",
    "deregister_critical_service_after",
    "disable_redirects",
    "docker_container_id",
    "failures_before_critical",
    "failures_before_warning",
    "grpc",
    "grpc_use_tls",
    "h2ping",
    "h2ping_use_tls",
    "header",
    "http",
    "id",
    "interval",
    "method",
    "name",
    "namespace",
    "notes",
    "os_service",
    "output_max_size",
    "partition",
    "script",
    "service_id",
    "shell",
    "status",
    "success_before_passing",
    "tcp",
    "tcp_use_tls",
    "timeout",
    "tls_server_name",
    "tls_skip_verify",
    "ttl",
    "udp",
];

/// No key differs in length from another spelling of it by more.
const MOST_UNDERSCORES: usize = 8;
/// Keys are shorter.
const LONGEST_WORD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_known_for_what_it_is_meant_to_be() {
        for (written, meant) in [
            ("servcie", Some("service")),
            ("Servces", Some("services")),
            ("datacentre", Some("datacenter")),
            ("retryjion", Some("retry_join")),
            ("Name", None),
            ("_comment", None),
            ("//", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(FILE.closest(written), meant, "{written}");
        }
        assert_eq!(SERVICE.closest("prot"), Some("port"));
        assert_eq!(SERVICE.closest("adress"), Some("address"));
        assert_eq!(PROXY.closest("DestinatonServiceName"), Some("destination_service_name"));
        assert_eq!(closest("intervall", CHECK), Some("interval"));
        assert_eq!(closest(&"a".repeat(1 << 20), CHECK), None);
    }

    #[test]
    fn keys_are_told_apart_by_the_version_that_brought_them() {
        for (keys, key, expected) in [
            (&FILE, "Datacenter", Known::Yes),
            (&FILE, "NodeName", Known::Yes),
            (&FILE, "ui_config", Known::Yes),
            (&FILE, "name", Known::No),
            (&SERVICE, "Locality", Known::Later),
            (&SERVICE, "Ports", Known::Later),
            (&SERVICE, "SocketPath", Known::Later),
            (&SERVICE, "prot", Known::No),
            (&CONNECT, "Native", Known::Yes),
            (&CONNECT, "Nativ", Known::No),
            (&PROXY, "Mode", Known::Later),
        ] {
            assert_eq!(keys.find(key).0, expected, "{} {key}", keys.what);
        }
    }
}
