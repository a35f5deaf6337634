//! Attacks on memory and connections: what waits for a client is bounded in bytes, and an honest client is answered all the
//! while.

mod agents;
mod checks;
mod clients;
mod control;
mod files;
mod large;
mod origin;
mod pulses;
mod streams;
