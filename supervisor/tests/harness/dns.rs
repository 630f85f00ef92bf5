//! Servers of the DNS: the real dnsmasq, and one that says whatever a test wants.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Need, Process, free_port, machine, send_signal, wait};

/// A dnsmasq that knows `*.test` only, each record for a second.
pub(crate) struct Dnsmasq {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Dnsmasq {
    /// One that is not running yet; `None` where this machine has none.
    pub(crate) fn prepared() -> Option<Dnsmasq> {
        if !machine::has(Need::Program("dnsmasq")) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("kakehi-dns-").tempdir().expect("a folder");
        fs::write(folder.path().join("hosts"), "").expect("hosts");
        fs::write(folder.path().join("conf"), "").expect("conf");
        Some(Dnsmasq { folder, port: free_port(), child: None })
    }

    /// One that knows these hosts: `127.0.0.2 app.test`, a line each.
    pub(crate) fn with_hosts(hosts: &[&str]) -> Option<Dnsmasq> {
        let mut server = Dnsmasq::prepared()?;
        server.write_hosts(hosts);
        server.start();
        Some(server)
    }

    /// The line at the root that has it asked.
    pub(crate) fn resolvers(&self) -> String {
        format!("resolvers = [\"127.0.0.1:{}\"]", self.port)
    }

    fn write_hosts(&self, hosts: &[&str]) {
        let text: String = hosts.iter().map(|host| format!("{host}\n")).collect();
        fs::write(self.path("hosts"), text).expect("hosts");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// It knows these hosts from now on.
    #[track_caller]
    pub(crate) fn set_hosts(&mut self, hosts: &[&str]) {
        self.write_hosts(hosts);
        if let Some(child) = &self.child {
            send_signal(Process(child.id()), Signal::SIGHUP);
        }
    }

    /// It knows these records besides from its next start on: lines of its configuration.
    pub(crate) fn set_records(&mut self, lines: &[&str]) {
        fs::write(self.path("conf"), lines.join("\n") + "\n").expect("conf");
    }

    /// Starts it, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        let argument = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let log = fs::File::create(self.path("log")).expect("the log");
        let child = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--no-daemon", "--bind-interfaces"])
            .args([
                "--listen-address=127.0.0.1",
                "--local=/test/",
                "--local-ttl=1",
                "--user=root",
                "--pid-file",
            ])
            .arg(format!("--port={}", self.port))
            .arg(argument("conf-file", &self.path("conf")))
            .arg(argument("addn-hosts", &self.path("hosts")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dnsmasq");
        self.child = Some(child);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        wait::until("an answer of dnsmasq", || std::net::TcpStream::connect(at).is_ok());
    }

    /// Kills it.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- dnsmasq ---\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kinds of records.
pub(crate) const A: u16 = 1;

/// What a [`Nameserver`] says.
pub(crate) enum Say {
    /// These addresses, for so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// These bytes.
    Bytes(Vec<u8>),
    /// An error of this code.
    Code(u8),
    /// Nothing.
    Nothing,
}

/// A server of the DNS that says what `answer` makes of the kind of record that it is asked for, over UDP as far as that has room, and over TCP.
pub(crate) struct Nameserver {
    port: u16,
    asked: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

/// Largest answer over UDP.
const MOST_OVER_UDP: usize = 512;

impl Nameserver {
    pub(crate) fn new(answer: impl Fn(u16) -> Say + Send + Sync + 'static) -> Nameserver {
        let (udp, tcp) = loop {
            let port = free_port();
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
            if let (Ok(udp), Ok(tcp)) = (udp, TcpListener::bind((Ipv4Addr::LOCALHOST, port))) {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().expect("its address").port();
        let (asked, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let answer = Arc::new(answer);
        let server = Nameserver { port, asked: Arc::clone(&asked), gone: Arc::clone(&gone) };
        let (over_udp, ended) = (Arc::clone(&answer), Arc::clone(&gone));
        thread::spawn(move || {
            let mut query = [0; 1024];
            while let Ok((length, from)) = udp.recv_from(&mut query) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let Some(reply) = reply(&query[..length], &*over_udp) else { continue };
                let reply = match reply.len() {
                    0..=MOST_OVER_UDP => reply,
                    _ => cut(&query[..length]),
                };
                let _ = udp.send_to(&reply, from);
            }
        });
        thread::spawn(move || {
            while let Ok((mut stream, _)) = tcp.accept() {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        if stream.read_exact(&mut query).is_err() {
                            return;
                        }
                        let Some(reply) = reply(&query, &*answer) else { continue };
                        let Ok(length) = u16::try_from(reply.len()) else { return };
                        let _ = stream.write_all(&[&length.to_be_bytes()[..], &reply].concat());
                    }
                });
            }
        });
        server
    }

    /// The line at the root that has it asked.
    pub(crate) fn resolvers(&self) -> String {
        format!("resolvers = [\"127.0.0.1:{}\"]", self.port)
    }

    /// Questions over UDP so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Nameserver {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let _ = std::net::TcpStream::connect(at);
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _ = socket.send_to(b"", at);
        }
    }
}

/// Where the question of a query ends, and the kind of record that it is about.
fn question(query: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    while *query.get(at)? != 0 {
        at += 1 + usize::from(query[at]);
    }
    let kind = u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]);
    Some((at + 5, kind))
}

fn head(query: &[u8], flags: [u8; 2], answers: u16) -> Option<Vec<u8>> {
    let (end, _) = question(query)?;
    let mut reply = query.get(..2)?.to_vec();
    reply.extend_from_slice(&flags);
    reply.extend_from_slice(&[0, 1]);
    reply.extend_from_slice(&answers.to_be_bytes());
    reply.extend_from_slice(&[0; 4]);
    reply.extend_from_slice(query.get(12..end)?);
    Some(reply)
}

fn reply(query: &[u8], answer: &(impl Fn(u16) -> Say + ?Sized)) -> Option<Vec<u8>> {
    let (_, kind) = question(query)?;
    match answer(kind) {
        Say::Nothing => None,
        Say::Bytes(bytes) => Some([&query[..2], &bytes[..]].concat()),
        Say::Code(code) => head(query, [0x81, 0x80 | code], 0),
        Say::Addresses(addresses, ttl) => {
            let addresses = if kind == A { addresses } else { Vec::new() };
            let mut reply = head(query, [0x81, 0x80], u16::try_from(addresses.len()).ok()?)?;
            for address in addresses {
                reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
                reply.extend_from_slice(&ttl.to_be_bytes());
                reply.extend_from_slice(&[0, 4]);
                reply.extend_from_slice(&address.octets());
            }
            Some(reply)
        }
    }
}

/// An answer that says that there is more.
fn cut(query: &[u8]) -> Vec<u8> {
    head(query, [0x83, 0x80], 0).unwrap_or_default()
}
