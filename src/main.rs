//! Passes the arguments on, and returns the exit code.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    watershed::cli::main(env::args_os())
}
