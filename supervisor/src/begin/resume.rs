//! `kakehi start --resume`: this program has taken the place of the one before, under the same process id.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
    process::ExitCode,
};

use kakehi_ctl::{order::Response, state::State};
use kakehi_engine::tls::Vault;
use tokio::sync::mpsc::{Sender, channel};

use super::{
    Error, exit_code, runtime,
    takeover::{Left, recorded_state},
};
use crate::{
    certificates::Keeper,
    control::command::{self, CommandSocket},
    estate::Estate,
    fleet::{
        adoption::{Found, Known, Trust},
        roster::Roster,
        socket_record::KnownSockets,
    },
    host::{
        listeners::Sockets,
        signals::{self, Signals},
    },
    supervisor::{
        End, QUEUE, Source, Supervisor,
        door::Door,
        question::{AnswerTo, Question},
        watchers,
    },
};

/// The whole program `kakehi start --resume`: goes on where the supervisor stopped that this process was.
pub(crate) fn resume(number: RawFd, file: &Path) -> ExitCode {
    let complain = |error: &dyn std::fmt::Display| {
        crate::logging::complain(format_args!("cannot go on where the supervisor before stopped: {error}"));
        ExitCode::FAILURE
    };
    let mut estate = match Estate::receive(number) {
        Ok(estate) => estate,
        Err(error) => return complain(&error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    let code = runtime.block_on(async {
        let error = match take_up(&estate, file).await {
            Ok(running) => return exit_code(Box::pin(running.serve(estate)).await),
            Err(error) => error,
        };
        if estate.will.failed.is_none() {
            estate.will.failed = Some(error.to_string());
            let before = format!("/proc/self/fd/{}", estate.before.as_raw_fd());
            let left = serde_json::to_vec(&estate.will).map_err(std::io::Error::from);
            let Err(failed) = left.and_then(|will| estate.leave_to(&will, Path::new(&before), file));
            complain(&format_args!("{failed} (the program before cannot be run again)"));
        }
        complain(&error)
    });
    // A thread that waits for a disk is not waited for.
    runtime.shutdown_background();
    code
}

/// A supervisor that has taken the place of the one before.
struct Running {
    supervisor: Supervisor,
    /// Where whoever has asked for all that waits.
    answer: AnswerTo,
}

/// Goes on where the supervisor stopped that left `estate`, which was this very process.
///
/// # Errors
/// See [`Error`]; the workers that were taken over go on without a supervisor.
async fn take_up(estate: &Estate, file: &Path) -> Result<Running, Error> {
    let will = &estate.will;
    crate::logging::open_for_supervisor(&will.state.settings.log_level);
    let signals = Signals::new().map_err(Error::Runtime)?;
    signals::let_in().map_err(Error::Runtime)?;
    let (questions, asked) = channel(QUEUE);
    let roster = Roster::default();
    let command_socket = &will.state.settings.command_socket;
    let source = Source {
        file: Some(file.to_owned()),
        settings: will.settings.clone(),
        is_unscaled: false,
        program: will.program.clone(),
    };
    let mut supervisor = Supervisor::new(will.state.settings.clone(), source, signals, asked, roster.clone())
        .map_err(Error::Runtime)?;
    // Before anybody is let in: it says who is a worker.
    let known = known(estate, &roster)?;
    for ending in &will.ending {
        supervisor.dismissed.go_on(ending.clone(), &roster);
    }
    let copy = estate.command_socket.try_clone().map_err(Error::Runtime)?;
    let (guests, mode) =
        (&will.state.settings.command_allowed_uids, will.state.settings.command_socket_bits());
    let socket = CommandSocket::inherit(copy, command_socket, guests, mode)?;
    supervisor.door = Some(socket.serve(questions.clone(), roster));
    let answer = Running::attend_to_asker(&mut supervisor, &questions, estate);
    match take_up_workers(&mut supervisor, estate, known).await {
        Ok(()) => Ok(Running { supervisor, answer }),
        Err(error) => {
            // It is the way to the program that takes this one's place.
            supervisor.door.take().into_iter().for_each(Door::leave);
            supervisor.admin.leave();
            Err(error)
        }
    }
}

/// What is known of the workers of the program before, which this very process was. What it knew of them itself holds.
fn known(estate: &Estate, roster: &Roster) -> Result<Known, Error> {
    let sockets = estate.sockets.iter().map(|(_, which, socket)| (*which, socket));
    let sockets = KnownSockets::of(sockets).map_err(Error::Runtime)?;
    let (trust, entered) = match &estate.will.processes {
        Some(processes) => (Trust::Recorded, processes.iter().map(|pid| roster.enter(*pid)).collect()),
        // It did not say which they are: for the time being, all that this process has started.
        None => (Trust::Children, vec![roster.enter(std::process::id())]),
    };
    let records = estate.will.records.iter().map(|(name, record)| (name.into(), record.clone()));
    let ending =
        estate.will.ending.iter().filter_map(|it| Some(it.adoption.as_ref()?.file_name()?.to_owned()));
    Ok(Known {
        trust,
        sockets: Some(sockets),
        roster: roster.clone(),
        records: records.collect(),
        ending: ending.collect(),
        _entered: entered,
    })
}

/// Takes the workers over, and starts what is missing of them.
async fn take_up_workers(supervisor: &mut Supervisor, estate: &Estate, known: Known) -> Result<(), Error> {
    let will = &estate.will;
    let Found { mut orphans, refused } = supervisor.find_orphans(known).await;
    let mut unfound: BTreeSet<u32> = will.processes.iter().flatten().copied().collect();
    for pid in orphans.iter().map(|it| it.launched.pid).chain(refused.iter().filter_map(|it| it.pid())) {
        unfound.remove(&pid);
    }
    let mut left = Left::with(&mut orphans);
    let vault = match &estate.vault {
        Some(vault) => {
            Some(Vault::take_over(vault.try_clone().map_err(Error::Runtime)?).map_err(Error::Vault)?)
        }
        None => left.vault()?,
    };
    let (mut state, failed) = (will.state.clone(), will.failed.is_some());
    let recall = move || {
        let mut keeper = Keeper::new(vault).map_err(Error::Runtime)?;
        if !failed {
            kakehi_engine::worker::check(&state)?;
        } else if let Some(running) = recorded_state(&state, &left) {
            // The program that failed may have misunderstood what it was left.
            state = State { settings: state.settings, ..running };
        }
        keeper.adopt(&state);
        Ok::<_, Error>((state, keeper))
    };
    let Ok(recalled) = supervisor.serve_beside(recall).await else {
        supervisor.stop_found(Found { orphans, refused })?;
        supervisor.dismiss_children(unfound);
        return Ok(());
    };
    let (state, keeper) = recalled?;
    supervisor.inherit_verdicts(&will.verdicts);
    supervisor.names.inherit(&will.names);
    supervisor.settle(state, keeper);
    let mut kept: BTreeMap<u32, Sockets> = BTreeMap::new();
    for (id, which, socket) in &estate.sockets {
        let copy = socket.try_clone().map_err(Error::Runtime)?;
        kept.entry(*id).or_default().push((*which, copy));
    }
    for orphan in orphans.iter_mut().filter(|orphan| !orphan.about.leaving) {
        // Also those that a worker has kept to itself: it is about to be replaced.
        let copy = |(which, socket): &(_, OwnedFd)| Ok((*which, socket.try_clone().map_err(Error::Runtime)?));
        let own = kept.get(&orphan.about.id).into_iter().flatten();
        orphan.sockets = own.map(copy).collect::<Result<_, Error>>()?;
    }
    supervisor.take_over(orphans)?;
    let admin = estate.admin.as_ref().map(OwnedFd::try_clone).transpose().map_err(Error::Runtime)?;
    supervisor.inherit_admin(admin).await;
    supervisor.complete(will.workers, kept, Vec::new(), !refused.is_empty()).await?;
    supervisor.start().await?;
    supervisor.dismiss(refused);
    supervisor.dismiss_children(unfound);
    supervisor.write_pid_file().await?;
    if !supervisor.is_stopping() {
        supervisor.tell_ready();
        supervisor.compact().await;
    }
    Ok(())
}

impl Running {
    /// Has whoever asked told what happens, if it watched before, and at last how it went.
    fn attend_to_asker(
        supervisor: &mut Supervisor,
        questions: &Sender<Question>,
        estate: &Estate,
    ) -> AnswerTo {
        let (answer, answered) = AnswerTo::new();
        let watch = estate.will.watch.clone().and_then(|(id, topics)| {
            let (watcher, watch) = watchers::watch(id, topics, false);
            supervisor.watchers.add(watcher).ok().map(|()| watch)
        });
        let told = (watch, estate.will.knows_signs);
        if let Err(error) = command::see_out(
            estate.client.try_clone(),
            estate.will.request,
            told,
            answered,
            questions.clone(),
        ) {
            tracing::warn!("whoever asked for the upgrade cannot be told how it went: {error}");
        }
        answer
    }

    /// Replaces the workers, answers whoever asked for all that, and serves until asked to stop.
    ///
    /// # Errors
    /// See [`Error`].
    async fn serve(mut self, estate: Estate) -> Result<End, Error> {
        let outcome = match &estate.will.failed {
            None => self.supervisor.upgrade(None, "the upgrade").await.map_err(|refused| {
                format!("the supervisor runs the new program, but not every worker: {refused}")
            }),
            Some(reason) => Err(format!("the new program did not come up, the one before goes on: {reason}")),
        };
        let response = outcome.map_or_else(
            |reason| {
                tracing::error!("upgrade: {reason}");
                Response::Refused { reason }
            },
            Response::Outcomes,
        );
        self.answer.send(response);
        // The sockets in it are those of the workers now.
        drop(estate);
        self.supervisor.save_automatically();
        Ok(self.supervisor.run().await?)
    }
}
