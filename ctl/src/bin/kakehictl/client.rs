//! One question to the supervisor, one answer, one deadline for both.

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
    limits,
    order::{Envelope, Request, Response},
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
pub(crate) fn ask(socket: &Path, request: Request, timeout: Option<Duration>) -> Result<Response, Failure> {
    let is_change = request.is_change();
    let sent = Arc::new(AtomicBool::new(false));
    let answer = match timeout {
        None => converse(socket, request, &sent),
        Some(timeout) => {
            let (sender, receiver) = mpsc::channel();
            let (path, sent) = (socket.to_owned(), Arc::clone(&sent));
            // Connecting to a unix socket has no deadline of its own: a thread waits for it, and ends with the process.
            thread::spawn(move || {
                // After the deadline nobody waits for it any more.
                let _ = sender.send(converse(&path, request, &sent));
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

/// Asks and waits; `sent` becomes true when the request may have arrived.
fn converse(socket: &Path, request: Request, sent: &AtomicBool) -> Result<Response, Failure> {
    /// Of the only question that this process asks.
    const ID: u64 = 1;

    let failure = |error| Failure::from_wire(socket, error);
    let mut stream = UnixStream::connect(socket).map_err(|error| failure(error.into()))?;
    sent.store(true, Ordering::Relaxed);
    let written = wire::write_message(&mut stream, &Envelope::new(ID, request), limits::MAX_REQUEST_FRAME);
    if let Err(error) = written {
        // Whoever is refused at the door is told so before the question.
        return match wire::read_message::<Response>(&mut stream, &mut Decoder::new(limits::MAX_FRAME)) {
            Ok(Some(Envelope { body: Response::Refused { reason }, .. })) => Err(Failure::Refused(reason)),
            _ => Err(failure(error)),
        };
    }
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    while let Some(answer) = wire::read_message(&mut stream, &mut decoder).map_err(failure)? {
        match answer.body {
            // What could not be understood has no number: a refusal without one is for this question too.
            Response::Refused { reason } if answer.id == ID || answer.id == 0 => {
                return Err(Failure::Refused(reason));
            }
            Response::Stopping if answer.id == ID => {
                // It has stopped when it closes the connection, in whatever way.
                while let Ok(Some(_)) = wire::read_message::<Response>(&mut stream, &mut decoder) {}
                return Ok(Response::Stopping);
            }
            Response::Misused { reason } if answer.id == ID => return Err(Failure::Usage(reason)),
            body if answer.id == ID => return Ok(body),
            _ => {}
        }
    }
    Err(Failure::Closed(socket.to_owned()))
}
