//! The promises to the user, a file each, kept by a real daemon between scripted upstreams and real programs.

mod harness;

mod address_pairs;
mod cache;
mod cache_rules;
mod catalog_changes;
mod catalog_clients;
mod catalog_health;
mod clients;
mod consul;
mod consul_api;
mod consul_equality;
mod consul_source;
mod control_api;
mod cut_off;
mod equality;
mod failover;
mod forged;
mod garbage;
mod header;
mod listening;
mod messages;
mod negative_answers;
mod overrides;
mod real_upstreams;
mod rebinding;
mod reload;
mod shuffling;
mod single_writer;
mod special_names;
mod split_horizon;
mod transports;
mod truncation;
mod trust;
mod upstream_faults;
