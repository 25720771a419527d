//! What every program says on its terminal and hears from it: log lines, why it failed, and the wish to stop.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::EnvFilter;

/// The exit code of a run that was interrupted and can go on.
pub const INTERRUPTED: u8 = 130;

/// Sends log lines to standard error, in colour on a terminal only. `RUST_LOG` says which; `default` where it is unset.
///
/// # Panics
/// If it is called twice.
pub fn start_log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
}

/// Runs a program to its exit code. A panic is a failure like any other and exits with 1: tch panics where torch refuses,
/// for example for want of memory, and the panic's message is on standard error by then.
pub fn exit_code_of(program: impl FnOnce() -> ExitCode) -> ExitCode {
    // Nothing that a panic has left half done is looked at: the process ends.
    catch_unwind(AssertUnwindSafe(program)).unwrap_or(ExitCode::FAILURE)
}

/// Runs `program` to its exit code as [`exit_code_of`] does, and says in one line why it failed.
pub fn run<E: Display>(
    program: &str,
    run: impl FnOnce() -> Result<(), E>,
    exit_code: impl FnOnce(&E) -> u8,
) -> ExitCode {
    exit_code_of(|| match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::from(exit_code(&error))
        }
    })
}

/// Says in one line why `program` failed. Its library's own errors, `E`, name their cause themselves and have exit codes
/// of their own; any other is told with its causes and exits with 1.
pub fn failure<E: Error + Send + Sync + 'static>(
    program: &str,
    error: anyhow::Error,
    exit_code: impl FnOnce(&E) -> u8,
) -> ExitCode {
    match error.downcast::<E>() {
        Ok(error) => {
            eprintln!("{program}: {error}");
            ExitCode::from(exit_code(&error))
        }
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that the first SIGINT or SIGTERM raises, for the program to save and leave; the second ends it at once, which
/// everything that is written here bears.
///
/// # Errors
/// Where the system takes no handler.
pub fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag lowered and only raises it.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_and_a_code_is_passed_on() {
        let said = |code: ExitCode| format!("{code:?}");
        assert_eq!(said(exit_code_of(|| panic!("torch refuses"))), said(ExitCode::FAILURE));
        assert_eq!(said(exit_code_of(|| ExitCode::from(INTERRUPTED))), said(ExitCode::from(INTERRUPTED)));
    }
}
