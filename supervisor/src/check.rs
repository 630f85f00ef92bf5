//! The command `check`: would this file be accepted? With `--here`: and would it work on this host ([`here`])?

mod here;

use std::{
    io::{self, Write as _},
    os::fd::RawFd,
    path::Path,
    process::ExitCode,
};

use command_fds::inherited::take_fd_ownership;
use kakehi_ctl::{
    config,
    state::{State, WantedCertificate},
};

use crate::{
    certificates::{self, Depth, Keeper},
    worker_main,
};

/// Prints the verdict on `file`, rules and expressions included; listens on no socket. With `on_this_host` also on the host.
pub(crate) fn run(file: &Path, on_this_host: bool) -> ExitCode {
    // Where something is wrong, all of it is looked for, which takes longer and more memory.
    let all = || config::load_judged(file, &kakehi_engine::config::faults).err();
    let mut loaded = match config::load(file) {
        Ok(loaded) => loaded,
        Err(errors) => {
            crate::logging::complain_of_file(file, all().as_ref().unwrap_or(&errors));
            return ExitCode::FAILURE;
        }
    };
    for warning in &loaded.warnings {
        crate::logging::complain(format_args!("warning: {warning}"));
    }
    if let Err(error) = kakehi_engine::worker::check(&loaded.state) {
        match all() {
            Some(errors) => crate::logging::complain_of_file(file, &errors),
            None => crate::logging::complain(format_args!("{}: {error}", file.display())),
        }
        return ExitCode::FAILURE;
    }
    let wanted = std::mem::take(&mut loaded.certificates);
    match read_certificates(&mut loaded.state, wanted) {
        Ok(warnings) => {
            warnings.iter().for_each(|it| crate::logging::complain(format_args!("warning: {it}")));
        }
        Err(error) => {
            crate::logging::complain(format_args!("{}: {error}", file.display()));
            return ExitCode::FAILURE;
        }
    }
    if on_this_host {
        let here::Findings { errors, warnings } = here::look(&loaded.state);
        warnings.iter().for_each(|it| crate::logging::complain(format_args!("warning: {it}")));
        errors.iter().for_each(|it| crate::logging::complain(format_args!("{}: {it}", file.display())));
        if !errors.is_empty() {
            return ExitCode::FAILURE;
        }
    }
    print_verdict(format_args!("{}: ok ({})", file.display(), summary(&loaded.state)))
}

/// A verdict that nobody can read, as the disk is full that it is written to, is none.
fn print_verdict(verdict: std::fmt::Arguments<'_>) -> ExitCode {
    let mut out = io::stdout().lock();
    match writeln!(out, "{verdict}").and_then(|()| out.flush()) {
        // Whoever reads it has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            crate::logging::complain(format_args!("the verdict cannot be written: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Reads everything that the file names, and looks at all of it, keys too.
fn read_certificates(
    state: &mut State,
    wanted: Vec<WantedCertificate>,
) -> Result<Vec<String>, certificates::Error> {
    let mut keeper = Keeper::new(None).map_err(certificates::Error::Vault)?;
    keeper.furnish(state, wanted, Depth::All)
}

/// Says whether this program can go on with the running state that is in the descriptor.
pub(crate) fn run_on_state(descriptor: RawFd) -> ExitCode {
    let state = take_fd_ownership(descriptor).map_err(|error| error.to_string()).and_then(|memory| {
        let state = worker_main::read_state(memory).map_err(|error| error.to_string())?;
        kakehi_engine::worker::check(&state).map_err(|error| error.to_string())?;
        Ok(state)
    });
    match state {
        Ok(state) => {
            // For a supervisor, to which the exit code says it.
            print_verdict(format_args!("the running state: ok ({})", summary(&state)));
            ExitCode::SUCCESS
        }
        Err(error) => {
            crate::logging::complain(error);
            ExitCode::FAILURE
        }
    }
}

fn summary(state: &State) -> String {
    let clusters = state.clusters.values();
    let frontends = clusters.clone().map(|cluster| cluster.frontends.len()).sum();
    let backends = clusters.map(|cluster| cluster.backends.len()).sum();
    let certificates: usize = state.certificates.values().map(|certificates| certificates.len()).sum();
    let mut counts = vec![
        count(state.listeners.len(), "listener"),
        count(state.clusters.len(), "cluster"),
        count(frontends, "frontend"),
        count(backends, "backend"),
    ];
    counts.extend((certificates > 0).then(|| count(certificates, "certificate")));
    counts.join(", ")
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state::{Cluster, Listener};

    use super::*;

    #[test]
    fn the_verdict_counts_what_the_file_configures() {
        let mut state = State::default();
        let address = "127.0.0.1:80".parse().unwrap();
        state.listeners.insert(address, Listener::http(address));
        state.clusters.insert("a".to_owned(), Cluster::default());
        state.clusters.insert("b".to_owned(), Cluster::default());
        assert_eq!(summary(&state), "1 listener, 2 clusters, 0 frontends, 0 backends");
    }
}
