//! The task that serves the admin address: who connects, who goes for whom, and who gets which text.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kakehi_ctl::{limits, state::AdminAddress};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{
        mpsc::{Receiver, Sender, channel},
        watch,
    },
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

use super::{
    Ask,
    activity::{Activity, Patience},
    bodies::{Bodies, Order},
    connection::{Departure, attend},
    figures::Figures,
    respond::Responder,
    rules::Rules,
};
use crate::{host::listeners, timer::sleep_until};

/// Pause after a failed accept (no descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines of the log that say the same.
const LOG_PAUSE: Duration = Duration::from_millis(limits::LOG_INTERVAL_MS);

/// Whether clients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are.
    Serve,
    /// They wait in the kernel; those that are there leave after their response.
    Pause,
    /// Those that wait are the last.
    Close,
}

/// A listening socket.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A client that has connected.
enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// The next client, with its address if it has one.
    async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Some(peer.ip())))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }

    /// Closes it; those who had connected.
    fn last(self) -> Vec<(Stream, Option<IpAddr>)> {
        let most = usize::from(limits::ADMIN_QUEUE);
        match self {
            Listener::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let listener = OwnedFd::from(listener);
                // Who comes now finds the socket that takes its place, if that overlaps, a second later. Not every kernel lets everybody.
                let _ = listeners::turn_away(&listener);
                let listener = std::net::TcpListener::from(listener);
                let accept = || {
                    let (stream, peer) = listener.accept().ok()?;
                    stream.set_nonblocking(true).ok()?;
                    Some((Stream::Tcp(tokio::net::TcpStream::from_std(stream).ok()?), Some(peer.ip())))
                };
                std::iter::from_fn(accept).take(most).collect()
            }
            Listener::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let accept = || {
                    let (stream, _) = listener.accept().ok()?;
                    stream.set_nonblocking(true).ok()?;
                    Some((Stream::Unix(tokio::net::UnixStream::from_std(stream).ok()?), None))
                };
                std::iter::from_fn(accept).take(most).collect()
            }
        }
    }
}

/// A client that is served.
struct Client {
    peer: Option<IpAddr>,
    activity: Arc<Activity>,
}

/// The task, before it runs.
pub(super) struct Server {
    /// `None`: it is closed.
    listener: Option<Listener>,
    rules: watch::Receiver<Arc<Rules>>,
    mode: watch::Receiver<Mode>,
    counted: watch::Sender<usize>,
    /// Those that have a place.
    clients: HashMap<Id, Client>,
    /// Those that have not ended.
    tasks: JoinSet<Departure>,
    bodies: Bodies,
    orders: Receiver<Order>,
    responder: Responder,
    figures: Arc<Figures>,
    pub(super) patience: Patience,
    /// No client is taken before.
    accept_at: Option<Instant>,
    /// When the log was told last that somebody was refused.
    told: Option<Instant>,
}

impl Server {
    /// One that accepts on `socket`.
    ///
    /// # Errors
    /// When the descriptor cannot be used.
    pub(super) fn new(
        socket: OwnedFd,
        address: &AdminAddress,
        (rules, mode, counted): (watch::Receiver<Arc<Rules>>, watch::Receiver<Mode>, watch::Sender<usize>),
        asks: Sender<Ask>,
        figures: Arc<Figures>,
    ) -> io::Result<Server> {
        let listener = match address {
            AdminAddress::Ip(_) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            AdminAddress::Unix(_) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Listener::Unix(UnixListener::from_std(listener)?)
            }
        };
        // A client has one request at a time.
        let (order, orders) = channel(limits::ADMIN_CLIENTS);
        let responder = Responder {
            rules: rules.clone(),
            asks: asks.clone(),
            orders: order,
            figures: Arc::clone(&figures),
        };
        Ok(Server {
            listener: Some(listener),
            rules,
            mode,
            counted,
            clients: HashMap::new(),
            tasks: JoinSet::new(),
            bodies: Bodies::new(asks),
            orders,
            responder,
            figures,
            patience: Patience::default(),
            accept_at: None,
            told: None,
        })
    }

    /// Serves until it is aborted, with all its clients.
    pub(super) async fn serve(mut self) {
        loop {
            let mode = *self.mode.borrow_and_update();
            if mode == Mode::Close {
                self.take_last();
            }
            let stale = self.bodies.due();
            let listener = self.listener.as_ref().filter(|_| mode == Mode::Serve);
            tokio::select! {
                accepted = accept(listener, self.accept_at) => self.on_accepted(accepted),
                Some(ended) = self.tasks.join_next_with_id() => self.on_ended(ended),
                Some(order) = self.orders.recv() => self.on_order(order),
                () = self.bodies.go_on() => {}
                () = sleep_until(stale) => self.bodies.forget_stale(),
                Ok(()) = self.rules.changed() => self.on_rules(),
                changed = self.mode.changed() => if changed.is_err() {
                    // Nobody has the other end.
                    return;
                },
            }
        }
    }

    /// Takes those that are in the queue of the kernel, and closes it.
    fn take_last(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        for accepted in listener.last() {
            self.on_accepted(Ok(accepted));
        }
    }

    fn on_accepted(&mut self, accepted: io::Result<(Stream, Option<IpAddr>)>) {
        self.accept_at = None;
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                return self.complain(|| format!("the admin address cannot accept: {error}"));
            }
        };
        if !self.rules.borrow().admit(peer) {
            self.figures.refused.count();
            let who = peer.map(|peer| peer.to_string()).unwrap_or_default();
            return self.complain(|| format!("{who} may not connect to the admin address (`admin.allow`)"));
        }
        if self.clients.len() >= limits::ADMIN_CLIENTS && !self.make_room() {
            self.figures.crowded.count();
            return self
                .complain(|| format!("the admin address has {} clients already", limits::ADMIN_CLIENTS));
        }
        match stream {
            Stream::Tcp(stream) => self.admit(stream, peer),
            Stream::Unix(stream) => {
                // Those of TCP have it from their listener.
                let _ = sockopt::set_socket_send_buffer_size(&stream, limits::ADMIN_SEND_BUFFER);
                self.admit(stream, peer);
            }
        }
    }

    fn admit<S>(&mut self, stream: S, peer: Option<IpAddr>)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::new(self.patience));
        let attended = attend(stream, self.responder.clone(), Arc::clone(&activity), self.mode.clone());
        let id = self.tasks.spawn(attended).id();
        self.clients.insert(id, Client { peer, activity });
        self.count();
    }

    /// Has the client go that has done nothing for longest; whether there was one.
    fn make_room(&mut self) -> bool {
        let now = Instant::now();
        let since = self.clients.iter().filter_map(|(id, it)| Some((it.activity.may_go_since(now)?, *id)));
        let Some((_, id)) = since.min_by_key(|(since, _)| *since) else { return false };
        self.figures.evicted.count();
        self.send_away(id);
        true
    }

    fn send_away(&mut self, id: Id) {
        if let Some(client) = self.clients.remove(&id) {
            client.activity.leave.notify_one();
        }
    }

    fn on_ended(&mut self, ended: Result<(Id, Departure), JoinError>) {
        let id = match ended {
            Ok((id, departure)) => {
                if departure == Departure::Late {
                    self.figures.late.count();
                }
                id
            }
            Err(error) => error.id(),
        };
        self.clients.remove(&id);
        self.count();
        if self.tasks.is_empty() {
            self.bodies.forget();
        }
    }

    fn count(&self) {
        self.figures.clients.set(self.tasks.len() as u64);
        self.counted.send_replace(self.tasks.len());
    }

    fn on_order(&mut self, order: Order) {
        if !self.bodies.order(order) {
            return;
        }
        // Those who have the oldest text have had it for longest.
        let with_text =
            |client: &Client| Some(client.activity.text.load(Ordering::Relaxed)).filter(|it| *it > 0);
        let oldest = self.clients.values().filter_map(with_text).min();
        let slow: Vec<Id> = self
            .clients
            .iter()
            .filter(|(_, it)| with_text(it) == oldest && oldest.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in slow {
            self.figures.late.count();
            self.send_away(id);
        }
    }

    /// Those who may not connect any more have to go.
    fn on_rules(&mut self) {
        let rules = Arc::clone(&self.rules.borrow_and_update());
        let refused = self.clients.iter().filter(|(_, client)| !rules.admit(client.peer));
        let refused: Vec<Id> = refused.map(|(id, _)| *id).collect();
        for id in refused {
            self.figures.refused.count();
            self.send_away(id);
        }
    }

    /// Tells the log, if it was not told just now.
    fn complain(&mut self, text: impl FnOnce() -> String) {
        if self.told.is_none_or(|told| told.elapsed() >= LOG_PAUSE) {
            self.told = Some(Instant::now());
            tracing::warn!("{}", text());
        }
    }
}

/// The next client; for ever where none is taken.
async fn accept(listener: Option<&Listener>, at: Option<Instant>) -> io::Result<(Stream, Option<IpAddr>)> {
    let Some(listener) = listener else { return std::future::pending().await };
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
    listener.accept().await
}
