//! A network namespace of its own for a whole benchmark: it has loopback, and an address that is not on loopback.

use std::{
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

/// An address that is on no network, and so not on loopback either.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// Starts this program anew inside a namespace, where it returns true. False where there can be none: that takes root, and
/// the programs `unshare` and `ip`.
pub fn enter() -> anyhow::Result<bool> {
    if std::env::args().any(|arg| arg == INSIDE) {
        for command in ["link set lo up", &format!("addr add {ADDRESS}/32 dev lo")] {
            ensure!(Command::new("ip").args(command.split(' ')).status()?.success(), "ip {command} has failed");
        }
        return Ok(true);
    }
    let mut try_it = Command::new("unshare");
    try_it.args(["--net", "--", "ip", "link", "set", "lo", "up"]).stderr(Stdio::null());
    if !try_it.status().is_ok_and(|status| status.success()) {
        return Ok(false);
    }
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--"]).arg(std::env::current_exe()?).args(std::env::args().skip(1)).arg(INSIDE);
    // Comes back if it has failed alone.
    Err(inside.exec()).context("unshare")
}

/// What the program is told inside.
pub const INSIDE: &str = "--inside";
