//! A worker that strangers have taken over, as what it is: a process of user 65534 that has everything the worker had, and owns
//! nothing. At a takeover it names files that only root can read, and memory of its own to read them from. It gains nothing.

use std::{
    fs::{self, File},
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileExt as _, PermissionsExt as _},
            net::UnixStream,
        },
    },
    path::PathBuf,
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Adopted, Envelope, Order, Report},
    state::Settings,
    wire,
};
use kakehi_engine::{observe::Counters, ring, tls::Vault};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use socket2::Socket;

use crate::{
    harness::{
        Backend, Config, Issued, Need, OK, Pki, Process, ask, contains, machine, send_signal, user, wait,
    },
    hostile_worker::claims_of,
};

/// In which descriptor a worker finds what.
pub(crate) const COUNTERS: i32 = 5;
const ADOPTION: i32 = 9;
pub(crate) const ENDED: i32 = 10;
pub(crate) const VAULT: i32 = 11;

/// Where a worker's vault, counters and so on are its own, or the impostor's.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    Given,
    Made,
}

/// A pair of which only root can read the key, and the bytes by which the key is known, whatever it is packed in.
struct Secret {
    pair: Issued,
    bytes: Vec<u8>,
}

impl Secret {
    fn new(pki: &Pki, name: &str) -> Secret {
        let pair = pki.issue(&[name]);
        fs::set_permissions(&pair.key, fs::Permissions::from_mode(0o600)).unwrap();
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        // Of a key of P-256 in PKCS #8: the number itself.
        let bytes = key.secret_der()[36..68].to_vec();
        Secret { pair, bytes }
    }

    fn is_in(&self, memory: &OwnedFd) -> bool {
        let mut content = Vec::new();
        // By a descriptor of its own, at its own place.
        let memory = File::from(memory.try_clone().unwrap());
        let mut piece = vec![0; 1 << 16];
        while let Ok(count @ 1..) = memory.read_at(&mut piece, content.len() as u64) {
            content.extend_from_slice(&piece[..count]);
        }
        content.windows(self.bytes.len()).any(|window| window == self.bytes)
    }
}

/// A copy of a descriptor of a process, as code in it has it.
pub(crate) fn descriptor(process: Process, number: i32) -> OwnedFd {
    let pid = Pid::from_raw(process.0 as i32).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).unwrap()
}

/// What the impostor says of itself: where there is a place for a file's name, the name of root's.
fn description(pid: u32, secret: &Issued, victim: &std::path::Path) -> serde_json::Value {
    let about = Adopted {
        settings: Settings {
            user: Some("root".to_owned()),
            pid_file_path: Some(victim.to_owned()),
            saved_state: Some(victim.to_owned()),
            automatic_state_save: true,
            ..Settings::default()
        },
        ..claims_of(pid)
    };
    let report = Envelope::new(0, Report::Adopted(Box::new(about)));
    let mut report = serde_json::to_value(&report).unwrap();
    // As workers said it before what they serve was written down.
    let files = serde_json::json!({
        "certificate": secret.certificate, "key": secret.key,
        "files": { "certificate": secret.certificate, "key": secret.key },
    });
    report["body"]["adopted"]["state"] = serde_json::json!({
        "version": 1,
        "settings": { "saved_state": victim, "pid_file_path": victim },
        "listeners": { "127.0.0.1:1": { "address": "127.0.0.1:1", "protocol": "https", "tls": files } },
        "clusters": {},
        "certificates": { "127.0.0.1:1": { "00": files } },
    });
    report
}

/// What user 65534 does with what a worker had.
struct Impostor {
    /// Which memory it handed over as the vault.
    vault: OwnedFd,
    orders: mpsc::Receiver<String>,
    thread: JoinHandle<()>,
}

fn impostor(worker: Process, memory: Memory, secret: &Secret, victim: PathBuf) -> Impostor {
    let adoption = Socket::from(descriptor(worker, ADOPTION));
    let [counters, ended, vault] = match memory {
        Memory::Given => [COUNTERS, ENDED, VAULT].map(|number| descriptor(worker, number)),
        Memory::Made => {
            let [counters, ended] = [(); 2].map(|()| Counters::create(c"impostor").unwrap().1);
            [counters, ended, Vault::create().unwrap().into()]
        }
    };
    let kept = vault.try_clone().unwrap();
    let report = description(worker.0, &secret.pair, &victim);
    let key = secret.pair.key.clone();
    let (sender, orders) = mpsc::channel();
    let thread = user::start(user::NOBODY, move || {
        // It is who it is said to be, and cannot do it by itself.
        let mut status = String::new();
        File::open("/proc/thread-self/status").unwrap().read_to_string(&mut status).unwrap();
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n"), "{status}");
        assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");
        assert!(File::open(&key).is_err() && File::options().append(true).open(&victim).is_err());

        let (connection, _) =
            wait::within(Duration::from_secs(15), "a supervisor", || adoption.accept().ok());
        let connection = OwnedFd::from(connection);
        let request = || ring::receive_descriptors(&connection).ok().flatten();
        let (_, channels) = wait::within(wait::SOON, "its request", request);
        let [orders, descriptors, _successor] = <[OwnedFd; 3]>::try_from(channels).expect("three channels");
        let _ = sender.send("a supervisor".to_owned());
        let first = r#"{"remaining":1,"labels":["counters","ended"]}"#;
        ring::send_descriptors(&descriptors, first, &[counters, ended]).unwrap();
        ring::send_descriptors(&descriptors, r#"{"remaining":0,"labels":["vault"]}"#, &[vault]).unwrap();
        let mut orders = UnixStream::from(orders);
        orders.set_nonblocking(false).unwrap();
        let text = serde_json::to_vec(&report).unwrap();
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        std::io::Write::write_all(&mut orders, &[&length[..], &text].concat()).unwrap();
        let mut decoder = wire::Decoder::new(limits::MAX_FRAME);
        while let Ok(Some(Envelope { body, .. })) = wire::read_message::<Order>(&mut orders, &mut decoder) {
            let _ = sender.send(format!("{body:?}"));
        }
    });
    Impostor { vault: kept, orders, thread }
}

fn gains_nothing(memory: Memory) {
    if !machine::has(Need::Root) {
        return;
    }
    let pki = Pki::new();
    let (own, secret) = (Secret::new(&pki, "a"), Secret::new(&pki, "secret.test"));
    let backend = Backend::respond(OK);
    let config = Config::https_to(&backend, &own.pair).root(r#"user = "nobody""#).root("worker_timeout = 2");
    let mut proxy = config.root("drain_timeout = 1").root("graceful_timeout = 1").start();
    let victim = proxy.folder().join("victim");
    fs::write(&victim, "precious").unwrap();
    let worker = proxy.worker();
    assert!(worker.status("Uid").unwrap().starts_with("65534\t65534"));
    proxy.kill_supervisor();
    // It is there, and somebody else does its work.
    send_signal(worker, Signal::SIGSTOP);
    let impostor = impostor(worker, memory, &secret, victim.clone());
    proxy.start_again();
    let reloaded = proxy.ctl(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}\n{}", proxy.log());
    wait::within(Duration::from_secs(15), "a worker of this supervisor's own", || {
        let workers = proxy.ctl_json("workers");
        (workers[0]["state"] == "running" && workers[0]["pid"] != worker.0).then_some(())
    });
    wait::within(Duration::from_secs(15), "the end of the one before", || (!worker.runs()).then_some(()));
    // As long as that stood still, connections waited in its queues, which are closed with it.
    let caller = pki.caller().to("a");
    wait::until("every connection at the other worker", || {
        (0..10).all(|_| caller.try_connect(proxy.address()).is_ok())
    });
    ask(&mut caller.connect(proxy.address()));
    let own_vault = descriptor(proxy.worker(), VAULT);
    let state = proxy.ctl_json("state").to_string();
    let [users, groups] = ["Uid", "Gid"].map(|name| proxy.worker().status(name).unwrap());
    // Nothing more is said to it then.
    proxy.terminate();
    proxy.wait(Duration::from_secs(10));
    impostor.thread.join().expect("what it is able to do");
    let orders: Vec<String> = impostor.orders.try_iter().collect();
    assert_eq!(
        orders.first().map(String::as_str),
        Some("a supervisor"),
        "it was not asked: nothing was shown"
    );

    assert!(!secret.is_in(&impostor.vault), "the key of root is in memory that it can read");
    assert!(!orders.iter().any(|order| contains(order.as_bytes(), "secret.test")), "{orders:?}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!state.contains("secret.test"));
    assert!(users.starts_with("65534\t65534") && !groups.starts_with("0\t"), "{users} {groups}");
    // What is looked for is found where it is: so it would have been.
    assert!(own.is_in(&own_vault), "the configured key is not found either");
    if memory == Memory::Made {
        assert!(!own.is_in(&impostor.vault), "it got the certificates of others into memory of its own");
        proxy.logged("memory for its");
    }
}

#[test]
fn user_65534_with_a_workers_own_memory_names_a_key_of_root_at_a_takeover_and_does_not_get_it() {
    gains_nothing(Memory::Given);
}

#[test]
fn user_65534_with_memory_of_its_own_names_a_key_of_root_at_a_takeover_and_does_not_get_it() {
    gains_nothing(Memory::Made);
}
