//! One question to the supervisor, one answer, one deadline for both; with progress meanwhile, where that is wanted. Or events,
//! for as long as they come.

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
    time::Duration,
};

use kakehi_ctl::{
    event::{Event, Topic},
    limits,
    order::{Ending, Envelope, Hello, Request, Response, WATCH},
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
            Failure::TooSlow(..) | Failure::Closed(_) | Failure::Broken { .. } => {
                Failure::Unknown(Box::new(self))
            }
            failure => failure,
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

/// Asks the supervisor behind `socket`; connecting, asking and the answer must be over within `timeout`.
/// Steps of it are passed to `show` until then, if the supervisor tells them.
pub(crate) fn ask(
    socket: &Path,
    request: Request,
    timeout: Option<Duration>,
    show: Option<Show>,
) -> Result<Response, Failure> {
    let is_change = request.is_change();
    let sent = Arc::new(AtomicBool::new(false));
    let answer = match timeout {
        None => converse(socket, request, &sent, show),
        Some(timeout) => {
            let (sender, receiver) = mpsc::channel();
            let (path, sent) = (socket.to_owned(), Arc::clone(&sent));
            // Connecting to a unix socket has no deadline of its own: a thread waits for it, and ends with the process.
            thread::spawn(move || {
                // After the deadline nobody waits for it any more.
                let _ = sender.send(converse(&path, request, &sent, show));
            });
            receiver.recv_timeout(timeout).unwrap_or_else(|error| {
                Err(match error {
                    RecvTimeoutError::Timeout => Failure::TooSlow(socket.to_owned(), timeout),
                    RecvTimeoutError::Disconnected => Failure::Closed(socket.to_owned()),
                })
            })
        }
    };
    answer.map_err(|failure| match is_change && sent.load(Ordering::Relaxed) {
        true => failure.of_a_change(),
        false => failure,
    })
}

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
        let stream = UnixStream::connect(socket).map_err(|error| Failure::from_wire(socket, error.into()))?;
        Ok(Connection { socket, stream, decoder: Decoder::new(limits::MAX_FRAME) })
    }

    fn send(&mut self, id: u64, request: Request) -> Result<(), WireError> {
        wire::write_message(&mut self.stream, &Envelope::new(id, request), limits::MAX_REQUEST_FRAME)
    }

    /// The next message; `None` at the end.
    fn next(&mut self) -> Result<Option<Envelope<Response>>, Failure> {
        wire::read_message(&mut self.stream, &mut self.decoder)
            .map_err(|error| Failure::from_wire(self.socket, error))
    }

    /// Begins to watch. What the supervisor is, where it cannot be watched.
    ///
    /// # Errors
    /// See [`Failure`]; a supervisor of an earlier program says no, and ends the connection.
    fn watch(&mut self, topics: Vec<Topic>) -> Result<Result<(), Hello>, Failure> {
        match self.answer_to(HELLO, Request::Hello(Hello::new(&[])))? {
            Response::Hello(hello) if hello.can(WATCH) => {}
            Response::Hello(hello) => return Ok(Err(hello)),
            _ => return Err(Failure::Closed(self.socket.to_owned())),
        }
        self.answer_to(EVENTS, Request::Watch { topics }).map(|_| Ok(()))
    }

    fn answer_to(&mut self, id: u64, request: Request) -> Result<Response, Failure> {
        self.send(id, request).map_err(|error| Failure::from_wire(self.socket, error))?;
        match self.next()? {
            Some(Envelope { body: Response::Refused { reason }, .. }) => Err(Failure::Refused(reason)),
            Some(Envelope { body, .. }) => Ok(body),
            None => Err(Failure::Closed(self.socket.to_owned())),
        }
    }
}

/// Asks and waits; `sent` becomes true when the request may have arrived.
fn converse(
    socket: &Path,
    request: Request,
    sent: &AtomicBool,
    show: Option<Show>,
) -> Result<Response, Failure> {
    let mut connection = Connection::new(socket)?;
    if show.is_some() && !matches!(connection.watch(vec![Topic::Operations]), Ok(Ok(()))) {
        // It tells no steps, or has too many watchers.
        connection = Connection::new(socket)?;
    }
    sent.store(true, Ordering::Relaxed);
    if let Err(error) = connection.send(ID, request) {
        // Whoever is refused at the door is told so before the question.
        return match connection.next() {
            Ok(Some(Envelope { body: Response::Refused { reason }, .. })) => Err(Failure::Refused(reason)),
            _ => Err(Failure::from_wire(socket, error)),
        };
    }
    while let Some(answer) = connection.next()? {
        match answer.body {
            // What could not be understood has no number: a refusal without one is for this question too.
            Response::Refused { reason } if answer.id == ID || answer.id == 0 => {
                return Err(Failure::Refused(reason));
            }
            Response::Stopping if answer.id == ID => {
                // It has stopped when it closes the connection, in whatever way.
                while let Ok(Some(_)) = connection.next() {}
                return Ok(Response::Stopping);
            }
            Response::Misused { reason } if answer.id == ID => return Err(Failure::Usage(reason)),
            Response::Event(event) if answer.id == EVENTS => {
                if let Some(show) = show {
                    show(&event);
                }
            }
            body if answer.id == ID => return Ok(body),
            _ => {}
        }
    }
    Err(Failure::Closed(socket.to_owned()))
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
    let slow = |failure| match (failure, timeout) {
        (Failure::Broken { error: WireError::Io(error), .. }, Some(timeout))
            if error.kind() == io::ErrorKind::WouldBlock =>
        {
            Failure::TooSlow(socket.to_owned(), timeout)
        }
        (failure, _) => failure,
    };
    let mut goes_on = 0;
    loop {
        let mut connection = Connection::new(socket)?;
        let broken = |error: io::Error| Failure::from_wire(socket, error.into());
        connection.stream.set_read_timeout(timeout).map_err(broken)?;
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
            Err(failure) => return Err(slow(failure)),
        }
        connection.stream.set_read_timeout(None).map_err(broken)?;
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
