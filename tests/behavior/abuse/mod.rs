//! Attacks on memory and connections: what waits for a client is bounded in bytes, and an honest client is answered all the
//! while.

mod control;
mod pulses;
mod quic;
mod streams;
