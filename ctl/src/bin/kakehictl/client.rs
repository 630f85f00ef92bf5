//! One question to the supervisor, and one answer; with progress meanwhile, where that is wanted. Or events, for as long as they
//! come. What changes something is waited for while the supervisor gives signs of life, everything else until a deadline.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use kakehi_ctl::{
    event::{Event, Topic},
    limits,
    order::{Ending, Envelope, Hello, Request, Response, WATCH, WORKING},
    wire::{self, Decoder, WireError},
};

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// kakehi said no.
    #[error("kakehi refuses: {0}")]
    Refused(String),
    /// It speaks another version.
    #[error("{0}")]
    OtherVersion(WireError),
    /// The command line is not enough, or wrong.
    #[error("{0}")]
    Usage(String),
    /// Nothing has the name of the socket.
    #[error(
        "there is no socket {}: is kakehi running? Start it with `kakehi start -c FILE`, or name the socket with -s",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// A socket that a dead process left.
    #[error(
        "nobody answers at {}: kakehi has stopped, or this is another program's socket; start it with `kakehi start -c FILE`, or name the socket with -s",
        .0.display()
    )]
    NobodyThere(PathBuf),
    /// The socket belongs to another user.
    #[error(
        "permission to use {} is denied: run kakehictl as the user that kakehi runs as, or as root",
        .0.display()
    )]
    Denied(PathBuf),
    /// The deadline passed.
    #[error(
        "no answer from {} within {} ms: kakehi may be busy; try a longer --timeout, and look at its log",
        .0.display(), .1.as_millis()
    )]
    TooSlow(PathBuf, Duration),
    /// It has stopped giving signs of life.
    #[error(
        "no sign of life from {} for {} ms: kakehi stands still; look at its log",
        .0.display(), .1.as_millis()
    )]
    Silent(PathBuf, Duration),
    /// The connection ended before the answer.
    #[error("{} was closed without an answer: look at kakehi's log", .0.display())]
    Closed(PathBuf),
    /// The connection failed otherwise.
    #[error("{}: {error}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: WireError,
    },
    /// A change was asked for, and what became of it is not known.
    #[error("outcome unknown, what was asked for may have been done or be done later: {0}")]
    Unknown(Box<Failure>),
}

impl Failure {
    /// 1 refused, 2 usage, 3 not reachable, 4 outcome unknown.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(_) | Failure::OtherVersion(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unknown(_) => 4,
            _ => 3,
        }
    }

    /// Of a request for a change, when it was on its way already.
    fn of_a_change(self) -> Failure {
        match self {
            Failure::TooSlow(..) | Failure::Silent(..) | Failure::Closed(_) | Failure::Broken { .. } => {
                Failure::Unknown(Box::new(self))
            }
            failure => failure,
        }
    }

    /// Of a read that had so long.
    fn of_silence(self, socket: &Path, patience: Option<Duration>) -> Failure {
        match (self, patience) {
            (Failure::Broken { error: WireError::Io(error), .. }, Some(patience))
                if error.kind() == io::ErrorKind::WouldBlock =>
            {
                Failure::TooSlow(socket.to_owned(), patience)
            }
            (failure, _) => failure,
        }
    }

    fn from_wire(socket: &Path, error: WireError) -> Self {
        let socket = socket.to_owned();
        match error {
            WireError::Version { .. } => Failure::OtherVersion(error),
            WireError::Truncated { .. } => Failure::Closed(socket),
            WireError::Io(error) => match error.kind() {
                io::ErrorKind::NotFound => Failure::NoSocket(socket),
                io::ErrorKind::ConnectionRefused => Failure::NobodyThere(socket),
                io::ErrorKind::PermissionDenied => Failure::Denied(socket),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::Closed(socket),
                io::ErrorKind::InvalidInput => Failure::Usage(format!("{}: {error}", socket.display())),
                _ => Failure::Broken { socket, error: WireError::Io(error) },
            },
            error => Failure::Broken { socket, error },
        }
    }
}

/// How long the supervisor may take.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// However long it is.
    ForEver,
    /// For connecting, asking and the answer together.
    Total(Duration),
    /// As long as it gives signs of life.
    WhileAlive {
        /// How long without one.
        silence: Duration,
        /// In place of that for one of an earlier program, which gives none.
        without_signs: Duration,
    },
}

impl Patience {
    /// With what changes something. There is a sign every [`limits::WORKING_INTERVAL_MS`].
    pub(crate) const WITH_CHANGES: Patience = Patience::WhileAlive {
        silence: Duration::from_millis(limits::CLIENT_SILENCE_MS),
        without_signs: Duration::from_secs(120),
    };
}

/// What the thread that asks tells the one that waits.
enum Told {
    /// The supervisor has been greeted; whether it gives signs of life.
    Greeted(bool),
    /// A sign of life.
    Alive,
    Outcome(Box<Result<Response, Failure>>),
}

/// Asks the supervisor behind `socket`, and waits for the answer as long as `patience` says.
/// Steps of it are passed to `show` until then, if the supervisor tells them.
pub(crate) fn ask(
    socket: &Path,
    request: Request,
    patience: Patience,
    show: Option<Show>,
) -> Result<Response, Failure> {
    let is_change = request.is_change();
    let sent = Arc::new(AtomicBool::new(false));
    let (told, heard) = mpsc::channel();
    let talk = Talk {
        socket: socket.to_owned(),
        greets: show.is_some() || matches!(patience, Patience::WhileAlive { .. }),
        show,
        sent: Arc::clone(&sent),
        told,
    };
    // Connecting to a unix socket has no deadline of its own: a thread waits for it, and ends with the process.
    thread::spawn(move || {
        let outcome = talk.converse(request);
        talk.tell(Told::Outcome(Box::new(outcome)));
    });
    wait(socket, &heard, patience).map_err(|failure| match is_change && sent.load(Ordering::Relaxed) {
        true => failure.of_a_change(),
        false => failure,
    })
}

/// Waits for the outcome.
fn wait(socket: &Path, heard: &mpsc::Receiver<Told>, patience: Patience) -> Result<Response, Failure> {
    let too_slow = |limit| Failure::TooSlow(socket.to_owned(), limit);
    let silent = |limit| Failure::Silent(socket.to_owned(), limit);
    let mut limit = match patience {
        Patience::ForEver => None,
        Patience::Total(limit) => Some((limit, too_slow(limit))),
        Patience::WhileAlive { silence, .. } => Some((silence, too_slow(silence))),
    };
    let mut gives_signs = true;
    let mut since = Instant::now();
    loop {
        let told = match &limit {
            None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some((limit, _)) => heard.recv_timeout(limit.saturating_sub(since.elapsed())),
        };
        match (told, patience) {
            (Ok(Told::Outcome(outcome)), _) => return *outcome,
            (Ok(Told::Greeted(false)), Patience::WhileAlive { without_signs, .. }) => {
                gives_signs = false;
                (limit, since) = (Some((without_signs, too_slow(without_signs))), Instant::now());
            }
            (Ok(_), Patience::WhileAlive { silence, .. }) if gives_signs => {
                (limit, since) = (Some((silence, silent(silence))), Instant::now());
            }
            (Ok(_), _) => {}
            (Err(RecvTimeoutError::Timeout), _) if let Some((_, failure)) = limit => return Err(failure),
            (Err(_), _) => return Err(Failure::Closed(socket.to_owned())),
        }
    }
}

/// Within this time a supervisor takes a connection, and says that it has begun to stop: it does both at any moment. What has no
/// deadline of its own has this one until then.
const AT_ANY_MOMENT: Duration = Duration::from_secs(5);

/// How often the program that comes is looked for, after the one that was watched has gone.
const TRIES: u32 = 5;

/// What is done with an event.
pub(crate) type Show = fn(&Event);

/// Of the request that is wanted.
const ID: u64 = 1;
/// Of what is asked before it.
const HELLO: u64 = 2;
/// Of the events.
const EVENTS: u64 = 3;

/// A connection to the supervisor.
struct Connection<'a> {
    socket: &'a Path,
    stream: UnixStream,
    decoder: Decoder,
}

impl<'a> Connection<'a> {
    fn new(socket: &'a Path) -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::channel();
        let path = socket.to_owned();
        // Connecting to a unix socket has no deadline of its own, and waits where nobody accepts: a thread waits for it, and ends
        // with the process.
        thread::spawn(move || drop(sender.send(UnixStream::connect(path))));
        let connected = receiver
            .recv_timeout(AT_ANY_MOMENT)
            .map_err(|_| Failure::TooSlow(socket.to_owned(), AT_ANY_MOMENT))?;
        let stream = connected.map_err(|error| Failure::from_wire(socket, error.into()))?;
        Ok(Connection { socket, stream, decoder: Decoder::new(limits::MAX_FRAME) })
    }

    /// What comes may take that long, each.
    fn wait_for_at_most(&self, patience: Option<Duration>) -> Result<(), Failure> {
        self.stream.set_read_timeout(patience).map_err(|error| Failure::from_wire(self.socket, error.into()))
    }

    fn send(&mut self, id: u64, request: Request) -> Result<(), WireError> {
        wire::write_message(&mut self.stream, &Envelope::new(id, request), limits::MAX_REQUEST_FRAME)
    }

    /// The next message; `None` at the end.
    fn next(&mut self) -> Result<Option<Envelope<Response>>, Failure> {
        wire::read_message(&mut self.stream, &mut self.decoder)
            .map_err(|error| Failure::from_wire(self.socket, error))
    }

    /// Says what this program understands, and hears what the supervisor is.
    ///
    /// # Errors
    /// See [`Failure`]; a supervisor of an earlier program says no, and ends the connection.
    fn greet(&mut self) -> Result<Hello, Failure> {
        match self.answer_to(HELLO, Request::Hello(Hello::new(&[WORKING])))? {
            Response::Hello(hello) => Ok(hello),
            _ => Err(Failure::Closed(self.socket.to_owned())),
        }
    }

    /// Begins to watch. What the supervisor is, where it cannot be watched.
    ///
    /// # Errors
    /// As [`Connection::greet`]; and when too many watch.
    fn watch(&mut self, topics: Vec<Topic>) -> Result<Result<(), Hello>, Failure> {
        let hello = self.greet()?;
        if !hello.can(WATCH) {
            return Ok(Err(hello));
        }
        self.answer_to(EVENTS, Request::Watch { topics }).map(|_| Ok(()))
    }

    fn answer_to(&mut self, id: u64, request: Request) -> Result<Response, Failure> {
        self.send(id, request).map_err(|error| Failure::from_wire(self.socket, error))?;
        loop {
            match self.next()? {
                Some(Envelope { body: Response::Refused { reason }, .. }) => {
                    return Err(Failure::Refused(reason));
                }
                Some(Envelope { body: Response::Working, .. }) => {}
                Some(Envelope { body, .. }) => return Ok(body),
                None => return Err(Failure::Closed(self.socket.to_owned())),
            }
        }
    }
}

/// A question on its way, and who waits for its answer.
struct Talk {
    socket: PathBuf,
    /// It begins with a greeting.
    greets: bool,
    show: Option<Show>,
    /// Becomes true when the request may have arrived.
    sent: Arc<AtomicBool>,
    told: mpsc::Sender<Told>,
}

impl Talk {
    fn tell(&self, told: Told) {
        // After the deadline nobody waits for it any more.
        let _ = self.told.send(told);
    }

    /// A connection on which the question can be asked, and whether signs of life come on it.
    fn begin(&self) -> Result<(Connection<'_>, bool), Failure> {
        let mut connection = Connection::new(&self.socket)?;
        if !self.greets {
            return Ok((connection, false));
        }
        let Ok(hello) = connection.greet() else {
            // An earlier program has ended the connection.
            return Ok((Connection::new(&self.socket)?, false));
        };
        if self.show.is_some() && hello.can(WATCH) {
            let topics = vec![Topic::Operations];
            match connection.answer_to(EVENTS, Request::Watch { topics }) {
                // That too many watch is no obstacle.
                Ok(_) | Err(Failure::Refused(_)) => {}
                Err(_) => return Ok((Connection::new(&self.socket)?, false)),
            }
        }
        Ok((connection, hello.can(WORKING)))
    }

    /// Asks and waits.
    fn converse(&self, request: Request) -> Result<Response, Failure> {
        let socket = &self.socket;
        let (mut connection, gives_signs) = self.begin()?;
        self.tell(Told::Greeted(gives_signs));
        // That may take as long as it takes, but not that it has begun.
        let patience = matches!(request, Request::Stop { .. }).then_some(AT_ANY_MOMENT);
        connection.wait_for_at_most(patience)?;
        self.sent.store(true, Ordering::Relaxed);
        if let Err(error) = connection.send(ID, request) {
            // Whoever is refused at the door is told so before the question.
            return match connection.next() {
                Ok(Some(Envelope { body: Response::Refused { reason }, .. })) => {
                    Err(Failure::Refused(reason))
                }
                _ => Err(Failure::from_wire(socket, error)),
            };
        }
        while let Some(answer) = connection.next().map_err(|failure| failure.of_silence(socket, patience))? {
            self.tell(Told::Alive);
            match answer.body {
                // What could not be understood has no number: a refusal without one is for this question too.
                Response::Refused { reason } if answer.id == ID || answer.id == 0 => {
                    return Err(Failure::Refused(reason));
                }
                Response::Stopping if answer.id == ID => {
                    // It has stopped when it closes the connection, in whatever way.
                    connection.wait_for_at_most(None)?;
                    while let Ok(Some(_)) = connection.next() {}
                    return Ok(Response::Stopping);
                }
                Response::Misused { reason } if answer.id == ID => return Err(Failure::Usage(reason)),
                Response::Event(event) if answer.id == EVENTS => {
                    if let Some(show) = self.show {
                        show(&event);
                    }
                }
                Response::Working => {}
                body if answer.id == ID => return Ok(body),
                _ => {}
            }
        }
        Err(Failure::Closed(socket.to_owned()))
    }
}

/// Passes what happens to `show`, until kakehi stops or nobody wants to see any more. Until events come it may take `timeout`.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn watch(
    socket: &Path,
    topics: &[Topic],
    timeout: Option<Duration>,
    show: &mut dyn FnMut(&Event) -> bool,
) -> Result<(), Failure> {
    let mut goes_on = 0;
    loop {
        let mut connection = Connection::new(socket)?;
        connection.wait_for_at_most(timeout)?;
        match connection.watch(topics.to_vec()) {
            Ok(Ok(())) => {}
            Ok(Err(hello)) => {
                let reason = format!("this kakehi ({}) tells no events", hello.program);
                return Err(Failure::Refused(reason));
            }
            // The program that goes has taken the connection, and closes it as it goes.
            Err(Failure::Closed(_) | Failure::Refused(_)) if goes_on > 0 => {
                goes_on -= 1;
                continue;
            }
            Err(failure) => return Err(failure.of_silence(socket, timeout)),
        }
        connection.wait_for_at_most(None)?;
        loop {
            match connection.next()?.map(|message| message.body) {
                Some(Response::Event(event)) if !show(&event) => return Ok(()),
                Some(Response::Ended { reason: Ending::Stopped, .. }) => return Ok(()),
                // The program that comes tells more.
                Some(Response::Ended { reason: Ending::Replaced, .. }) => {
                    goes_on = TRIES;
                    break;
                }
                Some(_) => {}
                None => return Err(Failure::Closed(socket.to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const SHORT: Duration = Duration::from_secs(1);
    const PATIENCE: Patience =
        Patience::WhileAlive { silence: SHORT, without_signs: Duration::from_secs(60) };

    /// Lets time pass: it is what is tested.
    #[expect(clippy::disallowed_methods, reason = "the one place where a test thread sleeps")]
    fn pace(time: Duration) {
        thread::sleep(time);
    }

    /// Asks for a change of a supervisor that, once it was asked, does what `then` says.
    fn ask_one_that(can: &'static [&'static str], then: fn(&mut UnixStream)) -> Result<Response, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("ctl.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut decoder = Decoder::new(limits::MAX_REQUEST_FRAME);
            let greeting = wire::read_message::<Request>(&mut stream, &mut decoder).unwrap().unwrap();
            assert!(matches!(&greeting.body, Request::Hello(hello) if hello.can(WORKING)));
            answer(&mut stream, greeting.id, Response::Hello(Hello::new(can)));
            let asked = wire::read_message::<Request>(&mut stream, &mut decoder).unwrap().unwrap();
            assert_eq!(asked.body, Request::Rebalance);
            then(&mut stream);
            let _ = wire::read_message::<Request>(&mut stream, &mut decoder);
        });
        ask(&socket, Request::Rebalance, PATIENCE, None)
    }

    fn answer(stream: &mut UnixStream, id: u64, response: Response) {
        wire::write_message(stream, &Envelope::new(id, response), limits::MAX_FRAME).unwrap();
    }

    #[test]
    fn a_change_may_take_any_time_while_there_are_signs_of_life() {
        let outcome = ask_one_that(&[WORKING], |stream| {
            for _ in 0..6 {
                pace(SHORT / 4);
                answer(stream, ID, Response::Working);
            }
            answer(stream, ID, Response::Outcomes(Vec::new()));
        });
        assert_eq!(outcome.unwrap(), Response::Outcomes(Vec::new()));
    }

    #[test]
    fn without_signs_of_life_the_outcome_of_a_change_is_unknown() {
        let begun = Instant::now();
        let outcome = ask_one_that(&[WORKING], |stream| answer(stream, ID, Response::Working));
        let failure = outcome.unwrap_err();
        assert_eq!(failure.exit_code(), 4, "{failure}");
        assert!(
            failure.to_string().contains("outcome unknown")
                && failure.to_string().contains("no sign of life")
        );
        assert!(begun.elapsed() >= SHORT);
    }

    #[test]
    fn an_earlier_supervisor_need_give_no_signs() {
        let outcome = ask_one_that(&[], |stream| {
            pace(2 * SHORT);
            answer(stream, ID, Response::Outcomes(Vec::new()));
        });
        assert_eq!(outcome.unwrap(), Response::Outcomes(Vec::new()));
    }
}
