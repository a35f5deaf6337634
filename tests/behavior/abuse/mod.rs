//! Attacks on memory and connections: what waits for a client is bounded in bytes, and an honest client is answered all the
//! while.

mod agents;
mod checks;
mod control;
mod files;
mod pulses;
mod quic;
mod streams;
