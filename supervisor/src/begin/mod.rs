//! From a configuration, or from what another supervisor left, to a supervisor that serves.
//!
//! Workers that are still there are taken over with their connections, listening sockets and counters; only what is
//! missing is started. They go on with the state that they have: changes that were made while kakehi ran are not lost
//! with the supervisor. Only when the file has changed meanwhile is it applied, as by a reload.
//!
//! | file | what it is for |
//! |---|---|
//! | [`leftovers`] | what a supervisor was writing when it was killed |
//! | [`takeover`] | workers that another supervisor left, and what they serve |
//! | [`workers`] | what is missing of the workers is added and launched |
//! | [`resume`](self::resume()) | this program has taken the place of the one before |

mod error;
mod leftovers;
mod resume;
mod takeover;
mod workers;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kakehi_ctl::{
    config::{self, Loaded},
    edit,
    order::KeyPair,
    state::{Fingerprint, Settings, State, WantedCertificate},
};
use nix::sys::signal::SigSet;
use tokio::{runtime::Runtime, sync::mpsc::channel};

use crate::{
    certificates::{Depth, Keeper},
    control::{command::CommandSocket, save},
    estate::record::{Recorded, StateRecord},
    fleet::{
        adoption::{self, Found},
        roster::Roster,
    },
    host::{init_system, resources, signals::Signals},
    placement::scale,
    supervisor::{End, QUEUE, Source, Supervisor},
    upgrade::program,
};

pub(crate) use self::resume::resume;
use self::{
    error::Error,
    takeover::{orphans, recorded_state, vault_of},
};

/// Runs kakehi on `loaded`, which was read from `file`, until it is stopped; the whole program `kakehi start`.
pub(crate) fn run(loaded: Loaded, file: &Path) -> ExitCode {
    match run_to_end(serve(loaded, Some(file.to_owned()), || {})) {
        // What is wrong with the rules shows when they are compiled, before anything is touched.
        Err(Error::State(error)) => {
            go_on_without(error.to_string(), file).unwrap_or_else(|| exit_code(Err(Error::State(error))))
        }
        ended => exit_code(ended),
    }
}

/// Runs a supervisor on this thread and turns its end into an exit code; errors go to standard error.
pub(crate) fn block_on(supervisor: impl Future<Output = Result<End, Error>>) -> ExitCode {
    exit_code(run_to_end(supervisor))
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
    let loaded = Loaded { state, certificates: Vec::new(), warnings: Vec::new() };
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
    serve_instead(loaded, file, None, when_ready).await
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
    let Loaded { mut state, certificates, warnings } = loaded;
    let (complaint, in_file) = instead.map(|it| (it.complaint, it.in_file)).unzip();
    // What of it is by hand is not the file's.
    let settings = in_file.flatten().unwrap_or_else(|| state.settings.clone());
    let source = Source { file, settings, program: program::program_file() };
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
    let door = CommandSocket::open(&state.settings.command_socket, &state.settings.command_allowed_uids)?
        .serve(questions, roster.clone());
    // From here on no other supervisor of this instance writes there.
    leftovers::clear(&state.settings);
    let Found { mut orphans, refused } = orphans(&state.settings.command_socket, &roster);
    let mut keeper = Keeper::new(vault_of(&mut orphans)?).map_err(Error::Runtime)?;
    // What the file says, where another state goes on. There may be much of it.
    let mut in_file = None;
    let mut to_be_read = Some(certificates);
    let running = recorded_state(&state, &orphans);
    let recorded = running.is_some();
    if let Some(running) = running {
        in_file = Some(state.clone());
        state = state.going_on_from(running);
        keeper.adopt(&state);
    } else if let Some(complaint) = complaint {
        return Err(Error::NobodyGoesOn(complaint));
    } else {
        let wanted = to_be_read.take().unwrap_or_default();
        let warnings = match save::load(&state)? {
            Some((mut saved, keys)) if saved.revision.origin == state.revision.origin => {
                let warnings = keeper.restore(&mut saved, &keys, &State::default())?;
                in_file = Some(state.clone());
                state = state.going_on_from(saved);
                kakehi_engine::worker::check(&state)?;
                to_be_read = Some(wanted);
                warnings
            }
            Some((saved, keys)) if !saved.by_hand.is_empty() || !saved.revision.settings.is_empty() => {
                match with_hand_layer(&mut keeper, &state, &wanted, (&saved, &keys)) {
                    Ok((laid, warnings)) => {
                        state = laid;
                        warnings
                    }
                    Err(reason) => {
                        tracing::error!("what is by hand in `saved_state` is dropped: {reason}");
                        keeper.settle(false);
                        keeper.furnish(&mut state, wanted, Depth::Few)?
                    }
                }
            }
            _ => keeper.furnish(&mut state, wanted, Depth::Few)?,
        };
        keeper.settle(true);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
    }
    let count = scale::worker_count(&state.settings);
    resources::raise_limits(count, state.settings.max_connections, state.listeners.len())?;
    let mut supervisor = Supervisor::new(state, source, keeper, signals, asked, roster);
    supervisor.door = Some(door);
    // They may have been changed by hand.
    supervisor.admit_guests();
    let taken_over = !orphans.is_empty();
    supervisor.take_over(orphans)?;
    if !recorded {
        // What they serve is not known: by its number it may look like the state.
        supervisor.unlike_state.extend(supervisor.workers.iter().map(|it| it.id()).collect::<Vec<_>>());
    }
    supervisor.complete(count, BTreeMap::new(), init_system::activated(), !refused.is_empty()).await?;
    supervisor.record.begin(&supervisor.state, &supervisor.source.settings);
    supervisor.note_sockets(&[]);
    let started = supervisor.start().await;
    if !taken_over && !matches!(started, Ok(None)) {
        // No worker is left.
        supervisor.remove_records();
    }
    let started = match started {
        Err(failed @ Error::FirstStart { .. }) => {
            kakehi_engine::worker::check(&supervisor.state)?;
            return Err(failed);
        }
        started => started?,
    };
    supervisor.dismiss(refused);
    if let Some(end) = started {
        return Ok(end);
    }
    supervisor.write_pid_file().await?;
    supervisor.tell_ready();
    when_ready();
    supervisor.catch_up(in_file, to_be_read.unwrap_or_default(), count).await;
    supervisor.compact();
    if taken_over {
        // What the supervisor before did not come to save.
        supervisor.save_automatically();
    }
    Ok(supervisor.run().await?)
}

/// What `in_file` says, under what is by hand in a state that was saved when the file said something else; and of what to be
/// aware.
fn with_hand_layer(
    keeper: &mut Keeper,
    in_file: &State,
    wanted: &[WantedCertificate],
    (saved, keys): (&State, &BTreeMap<Fingerprint, KeyPair>),
) -> Result<(State, Vec<String>), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut hand, mut state) = (saved.hand_layer(), in_file.clone());
    state.revision.settings.clone_from(&saved.revision.settings);
    state.settings = edit::settings_that_fit(&in_file.settings, &mut state.revision.settings);
    let mut warnings = keeper.restore(&mut hand, keys, &State::default()).map_err(|error| text(&error))?;
    warnings.extend(hand.lay_by_hand_over(&mut state).map_err(|error| text(&error))?);
    warnings.extend(keeper.furnish(&mut state, wanted.to_vec(), Depth::Few).map_err(|error| text(&error))?);
    hand.lay_certificates_over(&mut state);
    state.check().map_err(|error| text(&error))?;
    kakehi_engine::worker::check(&state).map_err(|error| text(&error))?;
    Ok((state, warnings))
}
