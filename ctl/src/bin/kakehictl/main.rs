//! `kakehictl`: the command line of a running kakehi.
//!
//! [`cli`] says which words there are, [`routing`], [`settings`] and [`certificate`] what those about the configuration ask for,
//! [`client`] asks the supervisor, [`mod@print`] shows the answer.
//! Exit codes: 0 done, 1 refused, 2 usage, 3 not reachable, 4 outcome unknown.

mod certificate;
mod cli;
mod client;
mod configuration;
mod explain;
mod print;
mod routing;
mod settings;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use kakehi_ctl::{event::Event, order::Request};

use crate::{
    cli::{Arguments, Verb},
    client::Failure,
    routing::Shown,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let text = match run(&arguments) {
        Ok(text) => text,
        Err(failure) => {
            // Whoever closed stderr does not want to know.
            let text: Vec<String> = failure.to_string().lines().map(print::printable).collect();
            let _ = writeln!(io::stderr(), "kakehictl: {}", text.join("\n"));
            return ExitCode::from(failure.exit_code());
        }
    };
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        // `kakehictl workers | head -1`: the reader has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "kakehictl: the answer cannot be written: {error}");
            ExitCode::from(1)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Whoever closed stderr does not want to see it.
fn show_step(event: &Event) {
    let _ = writeln!(io::stderr(), "{}", event.what);
}

/// Asks, and gives back what is to be printed.
fn run(arguments: &Arguments) -> Result<String, Failure> {
    let socket = arguments.socket()?;
    if let Verb::Events { topics } = &arguments.verb {
        let timeout = arguments.watch_timeout();
        let mut show = |event: &Event| {
            let line = if arguments.json { print::line(event) } else { print::human_event(event) };
            let mut out = io::stdout().lock();
            // The reader may have seen enough.
            out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_ok()
        };
        return client::watch(&socket, topics, timeout, &mut show).map(|()| String::new());
    }
    let ask = |request: Request| {
        let patience = arguments.patience(&request);
        let request = match request {
            Request::Edit { edits, folder, .. } => {
                Request::Edit { edits, folder, if_generation: arguments.if_generation }
            }
            request if arguments.if_generation.is_some() && request.is_change() => {
                let text =
                    "`--if-generation` is for listeners, clusters, frontends, backends and settings only";
                return Err(Failure::Usage(text.to_owned()));
            }
            request => request,
        };
        let show = arguments.shows_steps(&request).then_some(show_step as client::Show);
        client::ask(&socket, request, patience, show)
    };
    let shown = arguments.verb.run(&ask)?;
    Ok(match (shown, arguments.json) {
        (Shown::Response(response), true) => print::json(&response),
        (Shown::Response(response), false) => print::human(&response),
        (Shown::Made { json, .. }, true) => print::pretty(&json),
        (Shown::Made { text, .. }, false) => text,
    })
}
