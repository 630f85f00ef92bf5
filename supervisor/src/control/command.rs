//! The command socket: takes requests of `kakehictl` and passes them to the supervisor's loop.
//!
//! A unix stream socket that only its owner may open (0600), or that asks for the user of whoever connects. Workers are refused,
//! whoever they run as: none has business here. Each client has a task of its own, at most [`MAX_CLIENTS`] at a time, each idle for
//! [`IDLE_TIMEOUT`] at most. What is not understood is refused with the reason, and the connection closed. Who watches ([`watchers`]) may be idle, and may ask for other things meanwhile.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::{
    event::Event,
    limits,
    order::{Ending, Envelope, Hello, Request, Response, WORKING},
    wire::{self, Decoder, WireError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    control::{
        admission::{Admission, guest, is_privileged},
        strangers::describe_peer,
    },
    fleet::roster::Roster,
    host::own_socket::{self, SocketFile},
    supervisor::{
        door::Door,
        question::{AnswerTo, Asker, Question, Reply},
        watchers::{self, Told, Watch},
    },
};

/// In errors.
const KEY: &str = "command_socket";
/// Clients served at a time; others are told to come back.
const MAX_CLIENTS: usize = 64;
/// Places that are kept for root and our own user.
const KEPT_PLACES: usize = 8;
/// What stands at the beginning of a request that may be large ([`Request::LoadState`]).
const LOAD_STATE: &str = "\"load_state\"";
/// How long a client may say nothing, or not take its answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a client gets a sign of life while it waits for an answer.
const WORKING_INTERVAL: Duration = Duration::from_millis(limits::WORKING_INTERVAL_MS);
/// More than so much of a request (bytes), and an answer of more lines, is read and written on another thread.
const SMALL: usize = 256 << 10;
/// See [`SMALL`].
const FEW_LINES: usize = 1_000;
/// Pause after a failed accept (no descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no command socket.
#[derive(Debug, thiserror::Error)]
#[error("{}{_0}", if matches!(_0, own_socket::Error::Alive { .. }) { "kakehi already runs there: " } else { "" })]
pub(crate) struct Error(#[from] own_socket::Error);

/// The open command socket; its file is removed when this is dropped.
pub(crate) struct CommandSocket {
    listener: UnixListener,
    file: SocketFile,
    /// Users that may use it besides root and our own; others that can connect are refused then.
    guests: Vec<u32>,
    /// Permissions of the file.
    mode: u32,
}

impl CommandSocket {
    /// Opens the socket at `path` to these users, with a file of these permissions, replacing one that a dead process left.
    ///
    /// # Errors
    /// See [`Error`].
    pub(crate) fn open(path: &Path, guests: &[u32], mode: u32) -> Result<Self, Error> {
        let explain = |error| own_socket::Error::Io { key: KEY, path: path.to_owned(), error };
        let listener = own_socket::open(path, KEY, limits::MAX_SOCKET_PATH)?;
        let listener = UnixListener::from_std(listener).map_err(explain)?;
        let file = SocketFile::at(path);
        file.set_mode(mode).map_err(explain)?;
        Ok(CommandSocket { listener, file, guests: guests.to_vec(), mode })
    }

    /// The open socket that another supervisor left, whose file is at `path` and has these permissions.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn inherit(socket: OwnedFd, path: &Path, guests: &[u32], mode: u32) -> Result<Self, Error> {
        let explain = |error| own_socket::Error::Io { key: KEY, path: path.to_owned(), error };
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(explain)?;
        let listener = UnixListener::from_std(listener).map_err(explain)?;
        let file = SocketFile::at(path);
        Ok(CommandSocket { listener, file, guests: guests.to_vec(), mode })
    }

    /// Accepts clients in the background; what they ask comes to `questions`. The returned value says who may ask, and removes
    /// the file when it is dropped.
    ///
    /// The processes in `workers` have no business here.
    pub(crate) fn serve(self, questions: mpsc::Sender<Question>, workers: Roster) -> Door {
        let (door, guests) = Door::new(self.file, self.guests, self.mode);
        let admission = Admission::new(guests, workers);
        tokio::spawn(accept(self.listener, questions, admission));
        door
    }
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Question>, mut admission: Admission) {
    let Ok(command_socket) = listener.as_fd().try_clone_to_owned() else { return };
    let command_socket = Arc::new(command_socket);
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let kept = Arc::new(Semaphore::new(KEPT_PLACES));
    loop {
        let accepted = listener.accept().await;
        let refused = accepted.as_ref().ok().and_then(|(stream, _)| admission.refuse(stream));
        match accepted {
            Ok((mut stream, _)) if refused.is_some() => {
                let reason = refused.unwrap_or_default();
                let _ = timeout(Duration::ZERO, refuse(&mut stream, 0, reason)).await;
            }
            Ok((mut stream, _)) => match Arc::clone(&places).try_acquire_owned().or_else(|full| {
                if is_privileged(&stream) { Arc::clone(&kept).try_acquire_owned() } else { Err(full) }
            }) {
                Ok(place) => {
                    let (questions, command_socket) = (questions.clone(), Arc::clone(&command_socket));
                    let (peer, shut_out) = (describe_peer(&stream), admission.shut_out(&stream));
                    tokio::spawn(async move {
                        tokio::select! {
                            () = converse(stream, questions, &command_socket) => {}
                            () = shut_out => tracing::warn!("{peer} may not use the command socket any more"),
                        }
                        drop(place);
                    });
                }
                Err(_) => {
                    let reason = format!("{MAX_CLIENTS} clients are connected already; try again");
                    // Without waiting: this task serves all others too.
                    let _ = timeout(Duration::ZERO, refuse(&mut stream, 0, reason)).await;
                }
            },
            Err(error) => {
                tracing::warn!("the command socket cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who asks, and what is asked for it.
#[derive(Clone)]
struct Peer {
    /// User and process.
    name: String,
    guest: Option<u32>,
    privileged: bool,
    questions: mpsc::Sender<Question>,
}

impl Peer {
    fn of(stream: &UnixStream, questions: mpsc::Sender<Question>) -> Peer {
        let (guest, privileged) = (guest(stream), is_privileged(stream));
        Peer { name: describe_peer(stream), guest, privileged, questions }
    }

    fn question(&self, request: Request) -> (Question, oneshot::Receiver<Reply>) {
        let (answer, answered) = AnswerTo::new();
        let Peer { name, guest, privileged, .. } = self.clone();
        let question =
            Question { request, peer: name, guest, privileged, answer, asker: None, watcher: None };
        (question, answered)
    }

    /// Ends when the supervisor's loop has taken a turn at `due` or later: that this task runs says nothing of it.
    async fn sign_of_life(&self, due: Option<Instant>) {
        let Some(due) = due else { return std::future::pending().await };
        sleep_until(due).await;
        let (question, answered) = self.question(Request::Hello(Hello::new(&[])));
        let is_answered = self.questions.send(question).await.is_ok() && answered.await.is_ok();
        if !is_answered {
            std::future::pending().await
        }
    }
}

/// What one client is told: answers, events if it watches, and signs of life if it knows them.
struct Client {
    stream: UnixStream,
    watch: Option<Watch>,
    knows_signs: bool,
}

/// What happens while a client is waited for.
enum News<T> {
    /// What it was waited for.
    Other(T),
    /// An event, or the end of the watch.
    Told(Option<Told>),
}

impl Client {
    /// Waits for `other`, or for something to tell. Events come first, so that those of an operation come before its answer.
    async fn news<T>(watch: &mut Option<Watch>, other: impl Future<Output = T>) -> News<T> {
        let told = async {
            match watch {
                Some(watch) => watch.events.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            told = told => News::Told(told),
            other = other => News::Other(other),
        }
    }

    /// Writes an event, however long that takes: the watch is bounded. Whether the client is there.
    async fn tell(&mut self, told: Option<Told>) -> bool {
        let Some(watch) = &self.watch else { return true };
        let id = watch.id;
        let response = match told {
            Some((lost, event)) => Response::Event(Event { lost, ..(*event).clone() }),
            None => {
                let reason = watch.end.get().copied().unwrap_or(Ending::Stopped);
                self.watch = None;
                Response::Ended { reason, lost: 0 }
            }
        };
        reply(&mut self.stream, id, response).await.is_ok()
    }

    /// Waits for the answer of this number to `peer`, tells what happens meanwhile, and writes it. Whether the client is there. With
    /// the answer that it watches, `begun` is its watch.
    async fn answer(
        &mut self,
        id: u64,
        mut answered: oneshot::Receiver<Reply>,
        begun: Option<Watch>,
        peer: &Peer,
    ) -> bool {
        let next_sign = || Instant::now() + WORKING_INTERVAL;
        let mut sign_due = self.knows_signs.then(next_sign);
        // One that has left keeps its place until what it has asked for is done: what waits is as much as there are places.
        let mut is_there = true;
        let response = loop {
            let waited = async {
                tokio::select! {
                    biased;
                    answered = &mut answered => Some(answered),
                    () = peer.sign_of_life(sign_due) => None,
                }
            };
            match Client::news(&mut self.watch, waited).await {
                News::Told(told) => is_there = self.tell(told).await,
                News::Other(None) => {
                    let told = timeout(IDLE_TIMEOUT, reply(&mut self.stream, id, Response::Working)).await;
                    is_there = matches!(told, Ok(Ok(())));
                    sign_due = Some(next_sign());
                }
                News::Other(Some(Ok(response))) => break response,
                News::Other(Some(Err(_))) => return false,
            }
            if !is_there {
                (self.watch, sign_due) = (None, None);
            }
        };
        if !is_there {
            return false;
        }
        let written = async {
            match response {
                Reply::Response(response) => {
                    if *response == Response::Watching {
                        // One that it had already ends.
                        self.watch = begun;
                    }
                    reply(&mut self.stream, id, *response).await
                }
                Reply::State(text) => reply_state(&mut self.stream, id, &text).await,
            }
        };
        matches!(timeout(IDLE_TIMEOUT, written).await, Ok(Ok(())))
    }
}

/// The next request, if all of it has come.
async fn next_request(mut decoder: Decoder) -> (Decoder, Result<Option<Envelope<Request>>, WireError>) {
    if decoder.complete() <= SMALL {
        let next = decoder.next();
        return (decoder, next);
    }
    let (max, read) = (limits::MAX_SMALL_REQUEST_FRAME, move || {
        let next = decoder.next();
        (decoder, next)
    });
    // It cannot fail but by a panic, which ends the program.
    let lost = |error| (Decoder::new(max), Err(io::Error::other(error).into()));
    tokio::task::spawn_blocking(read).await.unwrap_or_else(lost)
}

/// Answers one client until it leaves, falls silent or talks nonsense.
async fn converse(stream: UnixStream, questions: mpsc::Sender<Question>, command_socket: &OwnedFd) {
    let peer = Peer::of(&stream, questions);
    let mut decoder = Decoder::new(limits::MAX_SMALL_REQUEST_FRAME);
    if peer.privileged {
        decoder = decoder.or_large(limits::MAX_REQUEST_FRAME, LOAD_STATE);
    }
    let mut client = Client { stream, watch: None, knows_signs: false };
    let mut bytes = vec![0; 8192];
    loop {
        let next;
        (decoder, next) = next_request(decoder).await;
        let Envelope { id, body: request, .. } = match next {
            Ok(Some(envelope)) => envelope,
            Ok(None) => {
                let watches = client.watch.is_some();
                let read = async {
                    match watches {
                        true => client.stream.read(&mut bytes).await.ok(),
                        false => timeout(IDLE_TIMEOUT, client.stream.read(&mut bytes)).await.ok()?.ok(),
                    }
                };
                match Client::news(&mut client.watch, read).await {
                    News::Other(Some(length)) if length > 0 => decoder.extend(&bytes[..length]),
                    News::Told(told) => {
                        if !client.tell(told).await {
                            return;
                        }
                    }
                    News::Other(_) => return,
                }
                continue;
            }
            Err(error) => {
                // Who asks for what this program does not know may ask for something else.
                let (id, goes_on) = match error {
                    WireError::Unknown { id, .. } => (id, true),
                    WireError::Version { id, .. } => (id, false),
                    _ => (0, false),
                };
                let told = timeout(IDLE_TIMEOUT, refuse(&mut client.stream, id, error.to_string())).await;
                if goes_on && matches!(told, Ok(Ok(()))) {
                    continue;
                }
                return;
            }
        };
        let asker = match request {
            Request::Upgrade => asker(id, &client, command_socket).ok(),
            _ => None,
        };
        let (watcher, begun) = match &request {
            Request::Watch { topics } => Some(watchers::watch(id, topics.clone(), !peer.privileged)),
            _ => None,
        }
        .unzip();
        let knows_signs = match &request {
            Request::Hello(hello) => hello.can(WORKING),
            _ => client.knows_signs,
        };
        let (question, answered) = peer.question(request);
        let question = Question { asker, watcher, ..question };
        if peer.questions.send(question).await.is_err() || !client.answer(id, answered, begun, &peer).await {
            return;
        }
        client.knows_signs = knows_signs;
    }
}

/// Tells whoever has asked for an upgrade, of the program before, what happens, and at last how it went.
///
/// # Errors
/// When the connection cannot be used.
pub(crate) fn see_out(
    connection: io::Result<OwnedFd>,
    request: u64,
    (watch, knows_signs): (Option<Watch>, bool),
    answered: oneshot::Receiver<Reply>,
    questions: mpsc::Sender<Question>,
) -> io::Result<()> {
    let stream = std::os::unix::net::UnixStream::from(connection?);
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let peer = Peer::of(&stream, questions);
    let mut client = Client { stream, watch, knows_signs };
    tokio::spawn(async move { client.answer(request, answered, None, &peer).await });
    Ok(())
}

fn asker(request: u64, client: &Client, command_socket: &OwnedFd) -> io::Result<Asker> {
    let connection = client.stream.as_fd().try_clone_to_owned()?;
    let watch = client.watch.as_ref().map(|it| (it.id, it.topics.clone(), Arc::clone(&it.end)));
    let knows_signs = client.knows_signs;
    Ok(Asker { request, watch, knows_signs, connection, command_socket: command_socket.try_clone()? })
}

async fn refuse(stream: &mut UnixStream, id: u64, reason: String) -> Result<(), WireError> {
    reply(stream, id, Response::Refused { reason }).await
}

async fn reply(stream: &mut UnixStream, id: u64, response: Response) -> Result<(), WireError> {
    let is_large = match &response {
        Response::State(_) | Response::Certificates(_) => true,
        Response::Changed(changed) => changed.changes.len() > FEW_LINES,
        _ => false,
    };
    let write = move || wire::encode(&Envelope::new(id, response), limits::MAX_FRAME);
    let frame = match is_large {
        true => tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?,
        false => write(),
    }?;
    Ok(stream.write_all(&frame).await?)
}

/// The same with a state whose text many may be told, none of whom gets a copy.
async fn reply_state(stream: &mut UnixStream, id: u64, text: &[u8]) -> Result<(), WireError> {
    let [head, tail] = wire::around_state(id, text.len(), limits::MAX_FRAME)?;
    for part in [&head[..], text, &tail[..]] {
        stream.write_all(part).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    fn path(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("kakehi.sock")
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_goes_with_the_supervisor() {
        let folder = tempfile::tempdir().unwrap();
        let socket = CommandSocket::open(&path(&folder), &[], 0o600).unwrap();
        assert_eq!(fs::metadata(path(&folder)).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path(&folder).exists());
    }

    #[tokio::test]
    async fn with_guests_everybody_may_knock() {
        let folder = tempfile::tempdir().unwrap();
        let _socket = CommandSocket::open(&path(&folder), &[1000], 0o666).unwrap();
        assert_eq!(fs::metadata(path(&folder)).unwrap().permissions().mode() & 0o777, 0o666);
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_process_is_replaced_and_that_of_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(path(&folder)).unwrap());
        assert!(path(&folder).exists());
        let _alive = CommandSocket::open(&path(&folder), &[], 0o600).unwrap();
        let message = CommandSocket::open(&path(&folder), &[], 0o600).err().unwrap().to_string();
        assert!(message.contains(&format!("answered by pid {}", std::process::id())), "{message}");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(path(&folder), "precious").unwrap();
        let refused = CommandSocket::open(&path(&folder), &[], 0o600);
        assert!(matches!(refused, Err(Error(own_socket::Error::NotASocket { .. }))));
        assert_eq!(fs::read_to_string(path(&folder)).unwrap(), "precious");
    }

    async fn answer_to(bytes: &[u8]) -> Response {
        let folder = tempfile::tempdir().unwrap();
        let (questions, mut asked) = mpsc::channel::<Question>(1);
        let _file =
            CommandSocket::open(&path(&folder), &[], 0o600).unwrap().serve(questions, Roster::default());
        let mut client = UnixStream::connect(path(&folder)).await.unwrap();
        client.write_all(bytes).await.unwrap();
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                question.answer.send(Response::Workers(Vec::new()));
            }
        });
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        loop {
            let mut bytes = [0; 512];
            let length = timeout(Duration::from_secs(5), client.read(&mut bytes)).await.unwrap().unwrap();
            assert!(length > 0, "closed without an answer");
            decoder.extend(&bytes[..length]);
            if let Some(envelope) = decoder.next().unwrap() {
                return envelope.body;
            }
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_and_nonsense_refused() {
        let request = wire::encode(&Envelope::new(3, Request::Workers), limits::MAX_REQUEST_FRAME).unwrap();
        assert_eq!(answer_to(&request).await, Response::Workers(Vec::new()));
        assert!(matches!(answer_to(b"\x02\0\0\0{}").await, Response::Refused { .. }));
        assert!(matches!(answer_to(b"\xff\xff\xff\xff").await, Response::Refused { .. }));
    }
}
