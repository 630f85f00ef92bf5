//! From a configuration, or from what another supervisor left, to a supervisor that serves.
//!
//! Workers that are still there are taken over with their connections, listening sockets and counters; only what is
//! missing is started. They go on with the state that they have: changes that were made while kakehi ran are not lost
//! with the supervisor. Only when the file has changed meanwhile is it applied, as by a reload.
//!
//! | file | what it is for |
//! |---|---|
//! | [`leftovers`] | what a supervisor was writing when it was killed |
//! | [`recall`](self::recall::recall) | what is to be served |
//! | [`takeover`] | workers that another supervisor left, and what they serve |
//! | [`workers`] | what is missing of the workers is added and launched |
//! | [`resume`](self::resume()) | this program has taken the place of the one before |

mod error;
mod leftovers;
mod recall;
mod resume;
mod takeover;
mod workers;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use kakehi_ctl::{
    config::{self, ConfigErrors, Loaded, Places},
    state::Settings,
};
use nix::sys::signal::SigSet;
use tokio::{runtime::Runtime, sync::mpsc::channel};

use crate::{
    control::command::CommandSocket,
    estate::record::{Recorded, StateRecord},
    fleet::{
        adoption::{self, Found, Known, Refused},
        roster::Roster,
    },
    host::{init_system, resources, signals::Signals},
    placement::scale,
    supervisor::{End, QUEUE, Source, Supervisor, turn::Stopped},
    upgrade::program,
};

pub(crate) use self::resume::resume;
use self::{
    error::Error,
    recall::{Recalled, recall},
    takeover::Left,
};

/// Runs kakehi on `loaded`, which was read from `file`, until it is stopped; the whole program `kakehi start`.
pub(crate) fn run(loaded: Loaded, file: &Path) -> ExitCode {
    match run_to_end(serve(loaded, Some(file.to_owned()), || {})) {
        // What is wrong with the rules shows when they are compiled, before anything is touched.
        Err(Error::State(error)) => match config::load_judged(file, &kakehi_engine::config::faults) {
            Err(errors) => refuse(&errors, file),
            Ok(_) => {
                go_on_without(error.to_string(), file).unwrap_or_else(|| exit_code(Err(Error::State(error))))
            }
        },
        ended => exit_code(ended),
    }
}

/// Runs a supervisor on this thread and turns its end into an exit code; errors go to standard error.
pub(crate) fn block_on(supervisor: impl Future<Output = Result<End, Error>>) -> ExitCode {
    exit_code(run_to_end(supervisor))
}

/// What the program does where the file is wrong; the whole program `kakehi start`.
pub(crate) fn refuse(errors: &ConfigErrors, file: &Path) -> ExitCode {
    // All of them, with those that show when it is compiled.
    let judged = config::load_judged(file, &kakehi_engine::config::faults).err();
    let errors = judged.as_ref().unwrap_or(errors);
    let lines = errors.lines().collect::<Vec<_>>().join("\n");
    go_on_without(lines, file).unwrap_or_else(|| {
        crate::logging::complain_of_file(file, errors);
        ExitCode::FAILURE
    })
}

fn run_to_end(supervisor: impl Future<Output = Result<End, Error>>) -> Result<End, Error> {
    let runtime = runtime().map_err(Error::Runtime)?;
    let ended = runtime.block_on(supervisor);
    // A thread that waits for a disk is not waited for.
    runtime.shutdown_background();
    ended
}

/// The same where the file is wrong and workers run that another supervisor left: they go on with what they have, until the
/// file is mended and read again. `None` where there are none. The error may have several lines.
pub(crate) fn go_on_without(error: String, file: &Path) -> Option<ExitCode> {
    let command_socket = config::command_socket(file).ok()?;
    if !adoption::is_anybody_there(&command_socket) {
        return None;
    }
    let Recorded { state, in_file } = StateRecord::load(&command_socket).ok()??;
    let complaint = error + "\nthe workers that run go on with what they have: mend the file, then reload";
    crate::logging::complain(&complaint);
    let places = Places::default();
    let loaded = Loaded { state, certificates: Vec::new(), places, warnings: Vec::new() };
    let instead = Instead { complaint, in_file };
    Some(block_on(serve_instead(loaded, Some(file.to_owned()), Some(instead), || {})))
}

/// What a supervisor runs on: this thread, and others for what waits for a disk, which get no signals. When this thread keeps
/// signals back for a program that comes, nobody else takes them.
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_all()
        .on_thread_start(|| {
            // Where that fails, they have a handler all the same.
            let _ = SigSet::all().thread_block();
        })
        .build()
}

/// What the program ends with; errors go to standard error.
pub(crate) fn exit_code(ended: Result<End, Error>) -> ExitCode {
    init_system::flush();
    crate::logging::flush();
    match ended {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(End::Cut | End::Unsaved) => ExitCode::from(crate::worker_main::EXIT_CUT),
        Err(error) => {
            crate::logging::complain(error);
            ExitCode::FAILURE
        }
    }
}

/// Starts everything, calls `when_ready`, and serves until asked to stop. A reload reads `file` again.
///
/// # Errors
/// See [`Error`]; no worker that was started here is left running then.
pub(crate) async fn serve(
    loaded: Loaded,
    file: Option<PathBuf>,
    when_ready: impl FnOnce(),
) -> Result<End, Error> {
    Box::pin(serve_instead(loaded, file, None, when_ready)).await
}

/// Why something else is served than what the file says.
struct Instead {
    complaint: String,
    /// The settings that the file had when it was last read.
    in_file: Option<Settings>,
}

/// As [`serve`]; `instead`: `loaded` is not what the file says.
async fn serve_instead(
    loaded: Loaded,
    file: Option<PathBuf>,
    instead: Option<Instead>,
    when_ready: impl FnOnce(),
) -> Result<End, Error> {
    let Loaded { state, certificates, places, warnings } = loaded;
    let (complaint, in_file) = instead.map(|it| (it.complaint, it.in_file)).unzip();
    // What of it is by hand is not the file's.
    let settings = in_file.flatten().unwrap_or_else(|| state.settings.clone());
    let source = Source { file, settings, is_unscaled: false, program: program::program_file() };
    crate::logging::open_for_supervisor(&state.settings.log_level);
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if let Some(complaint) = &complaint {
        complaint.lines().for_each(|line| tracing::error!("{line}"));
    }
    if state.settings.user.is_none() && rustix::process::geteuid().is_root() {
        tracing::warn!(
            "the workers run as root, without capabilities: set `user` to one that owns nothing (`user = \"root\"` if that is wanted)"
        );
    }
    // Where others have left nothing, the first worker finds what is wrong with the rules: of very many they are compiled once
    // less before anybody is served.
    if adoption::is_anybody_there(&state.settings.command_socket) {
        kakehi_engine::worker::check(&state)?;
    }
    // What reading and checking of very many clusters took.
    crate::sys::give_memory_back();
    resources::check_environment()?;
    resources::check_ring()?;

    // Before there is anything to clean up: a signal from now on is answered by an orderly end.
    let signals = Signals::new().map_err(Error::Runtime)?;
    let (questions, asked) = channel(QUEUE);
    let roster = Roster::default();
    let (guests, mode) = (&state.settings.command_allowed_uids, state.settings.command_socket_bits());
    let socket = CommandSocket::open(&state.settings.command_socket, guests, mode)?;
    let mut supervisor = Supervisor::new(state.settings.clone(), source, signals, asked, roster.clone())
        .map_err(Error::Runtime)?;
    let known = match supervisor.read_known().await {
        Ok(known) => {
            // Not before it is known who is a worker. Until then, whoever connects waits.
            supervisor.door = Some(socket.serve(questions, roster));
            known
        }
        Err(Stopped) => Known::nothing(roster),
    };
    let mut found = supervisor.find_orphans(known).await;
    let left = Left::with(&mut found.orphans);
    let recalled =
        supervisor.serve_beside(move || recall((state, places), certificates, left, complaint)).await;
    let Ok(recalled) = recalled else {
        supervisor.stop_found(found)?;
        return Ok(supervisor.run().await?);
    };
    let Recalled { state, keeper, in_file, to_be_read, recorded, names } = recalled?;
    let Found { orphans, refused } = found;
    let count = scale::worker_count(&state.settings);
    resources::raise_limits(count, state.settings.max_connections, state.listeners.len())?;
    // By hand it may be another than in the file.
    let admin = supervisor.open_admin(&state.settings).await.unwrap_or(Ok(None))?;
    supervisor.names.inherit(&names);
    supervisor.settle(state, keeper);
    // They may have been changed by hand.
    supervisor.admit_guests();
    let taken_over = !orphans.is_empty();
    supervisor.take_over(orphans)?;
    // What workers have counted before is known.
    supervisor.take_admin(admin)?;
    if !recorded {
        // What they serve is not known: by its number it may look like the state.
        supervisor.unlike_state.extend(supervisor.workers.iter().map(|it| it.id()).collect::<Vec<_>>());
    }
    supervisor.complete(count, BTreeMap::new(), init_system::activated(), !refused.is_empty()).await?;
    // Those that live and were not taken over may be by the next start, if this one fails.
    let before = match !taken_over && refused.iter().any(Refused::lives) {
        true => supervisor.read_before().await.ok(),
        false => None,
    };
    let started = supervisor.start().await;
    if !taken_over && started.is_err() {
        // No worker of this one is left.
        supervisor.replace_records(before).await;
    }
    match started {
        Err(failed @ Error::FirstStart { .. }) => {
            let state = Arc::clone(&supervisor.state);
            if let Ok(checked) = supervisor.serve_beside(move || kakehi_engine::worker::check(&state)).await {
                checked?;
            }
            return Err(failed);
        }
        started => started?,
    }
    supervisor.dismiss(refused);
    supervisor.write_pid_file().await?;
    if !supervisor.is_stopping() {
        supervisor.tell_ready();
        when_ready();
        supervisor.catch_up(in_file, to_be_read, count).await;
        supervisor.compact().await;
        if taken_over {
            // What the supervisor before did not come to save.
            supervisor.save_automatically();
        }
    }
    Ok(supervisor.run().await?)
}
