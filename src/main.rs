//! Parses the arguments, does what they ask for, and says how it went.

use std::process::ExitCode;

use clap::Parser;
use watershed::{cli::Cli, config::Refused};

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Refused>() => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("watershed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
