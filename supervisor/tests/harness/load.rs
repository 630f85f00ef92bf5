//! Clients that ask all the time, while something happens to the proxy; each demands that every request is answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{Caller, Client, GET, ask, wait};

/// Eight clients: some connect anew for each request, some send it in pieces, some send two at once, some keep one
/// connection. They expect `ok` for an answer.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts them.
    pub(crate) fn on(address: SocketAddr) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..8)
            .map(|n| {
                let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    while !stop.load(Ordering::SeqCst) {
                        match n % 4 {
                            0 => client = Client::connect(address),
                            1 => {
                                client.send(&GET[..7]);
                                client.send(&GET[7..]);
                                client.response().expect(200, "ok");
                            }
                            2 => {
                                client.send(GET.repeat(2));
                                client.response().expect(200, "ok");
                                client.response().expect(200, "ok");
                            }
                            _ => {}
                        }
                        ask(&mut client);
                        served.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Load { stop, served, clients }
    }

    /// Clients over TLS. They connect anew when they are told to; what they asked for is answered all the same.
    pub(crate) fn on_tls(caller: Caller, address: SocketAddr) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..4)
            .map(|_| {
                let (stop, served, caller) = (Arc::clone(&stop), Arc::clone(&served), caller.clone());
                thread::spawn(move || {
                    let mut client = caller.connect(address);
                    while !stop.load(Ordering::SeqCst) {
                        client.send(GET);
                        let answer = client.response();
                        answer.expect(200, "ok");
                        served.fetch_add(1, Ordering::SeqCst);
                        if answer.field("Connection") == Some("close") {
                            client = caller.connect(address);
                        }
                    }
                })
            })
            .collect();
        Load { stop, served, clients }
    }

    /// Waits until some more requests have been answered.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let before = self.served.load(Ordering::SeqCst);
        wait::until("requests go on", || self.served.load(Ordering::SeqCst) > before + 16);
    }

    /// Ends them; fails when one of them had not been answered.
    #[track_caller]
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().expect("every request was answered");
        }
    }
}
