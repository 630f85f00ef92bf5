//! What a worker that is made to run a stranger's code cannot do: the sandbox of the real program.

use std::fs;

use crate::harness::{Backend, Client, Config, GET, OK, Process, Proxy, send_signal, wait};
use nix::sys::signal::Signal;

fn ask(client: &mut Client) {
    client.send(GET);
    assert_eq!(client.response().status(), 200);
}

fn threads(process: Process) -> Vec<Process> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", process.0)) else { return Vec::new() };
    threads.flatten().map(|thread| Process(thread.file_name().to_str().unwrap().parse().unwrap())).collect()
}

/// Whether each thread of each worker has a filter, and each worker one ring, its own.
fn is_closed(proxy: &Proxy) -> bool {
    // Linux 5.9 began to say how many; those that the test itself runs under are inherited.
    let filters =
        |process: Process| process.status("Seccomp_filters").map(|count| count.parse::<u32>().unwrap());
    let inherited = filters(proxy.supervisor());
    proxy.workers().into_iter().all(|worker| {
        let is_filtered = |thread: Process| {
            thread.status("Seccomp").as_deref() == Some("2")
                && thread.status("NoNewPrivs").as_deref() == Some("1")
                && filters(thread) == inherited.map(|count| count + 1)
        };
        let descriptors = worker.descriptors();
        let rings = descriptors.iter().filter(|link| *link == "anon_inode:[io_uring]").count();
        threads(worker).into_iter().all(is_filtered) && rings == 1
    })
}

#[test]
fn each_thread_of_each_worker_is_filtered_also_after_an_upgrade_and_a_death() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    // Another worker may still begin when one serves.
    let workers_are = |closed: &str| wait::until(closed, || proxy.workers().len() == 2 && is_closed(&proxy));
    workers_are("closed");
    ask(&mut proxy.client());
    assert!(proxy.ctl(&["upgrade"]).status.success(), "{}", proxy.log());
    workers_are("closed after an upgrade");
    ask(&mut proxy.client());
    let before = proxy.workers();
    send_signal(before[0], Signal::SIGKILL);
    wait::until("the end of one", || !proxy.workers().contains(&before[0]));
    workers_are("closed after a death");
    ask(&mut proxy.client());
    assert!(
        !proxy.log().contains("no seccomp filter") && !proxy.log().contains("stay open"),
        "{}",
        proxy.log()
    );
}

/// System calls are injected as this machine has them.
#[cfg(target_arch = "x86_64")]
#[test]
fn code_in_a_worker_cannot_execute_open_trace_signal_or_make_a_ring() {
    use crate::harness::traced::Traced;
    use libc::c_int;

    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    let mut client = proxy.client();
    ask(&mut client);
    let (worker, supervisor) = (proxy.worker(), i64::from(proxy.supervisor().0));
    let calls = |worker: &Traced| {
        let long = |number: c_int| i64::from(number);
        let executable = long(libc::PROT_READ | libc::PROT_EXEC);
        let private = long(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let calls = [
            ("execve", libc::SYS_execve, [0; 6]),
            ("openat", libc::SYS_openat, [long(libc::AT_FDCWD), 0, 0, 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [long(libc::PTRACE_SEIZE as c_int), supervisor, 0, 0, 0, 0]),
            ("process_vm_readv", libc::SYS_process_vm_readv, [supervisor, 0, 0, 0, 0, 0]),
            ("kill", libc::SYS_kill, [supervisor, 0, 0, 0, 0, 0]),
            ("tgkill", libc::SYS_tgkill, [supervisor, supervisor, 0, 0, 0, 0]),
            ("pidfd_open", libc::SYS_pidfd_open, [supervisor, 0, 0, 0, 0, 0]),
            ("clone", libc::SYS_clone, [long(libc::SIGCHLD), 0, 0, 0, 0, 0]),
            ("netlink", libc::SYS_socket, [long(libc::AF_NETLINK), long(libc::SOCK_RAW), 0, 0, 0, 0]),
            ("seqpacket", libc::SYS_socket, [long(libc::AF_UNIX), long(libc::SOCK_SEQPACKET), 0, 0, 0, 0]),
            ("datagram", libc::SYS_socket, [long(libc::AF_UNIX), long(libc::SOCK_DGRAM), 0, 0, 0, 0]),
            ("mmap", libc::SYS_mmap, [0, 4096, executable, private, -1, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ];
        calls.map(|(name, number, arguments)| (name, worker.call(number, arguments)))
    };
    {
        let worker = Traced::stop(worker);
        for (name, outcome) in calls(&worker) {
            assert_eq!(outcome, Err(nix::Error::EPERM), "{name}");
        }
        // What it may do is done, so that the errors are those of the calls.
        assert_eq!(worker.call(libc::SYS_getpid, [0; 6]), Ok(u64::from(proxy.worker().0)));
    }
    ask(&mut client);
    assert_eq!(proxy.worker(), worker, "it was replaced");
}

/// Code in a worker connects to a unix socket by its path, and sends it something; how the first of these went.
#[cfg(target_arch = "x86_64")]
fn connected(worker: Process, path: &std::path::Path, text: &[u8]) -> Result<u64, nix::Error> {
    use crate::harness::traced::Traced;
    use libc::c_int;

    let long = |number: c_int| i64::from(number);
    let worker = Traced::stop(worker);
    let kind = [long(libc::AF_UNIX), long(libc::SOCK_STREAM), 0, 0, 0, 0];
    let socket = worker.call(libc::SYS_socket, kind).expect("a socket").cast_signed();
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(path.as_os_str().as_encoded_bytes());
    address.push(0);
    let length = address.len() as i64;
    let connected = worker.call(libc::SYS_connect, [socket, worker.put(&address), length, 0, 0, 0]);
    if connected.is_ok() {
        // It may be refused by then.
        let _ = worker.call(libc::SYS_write, [socket, worker.put(text), text.len() as i64, 0, 0, 0]);
    }
    connected
}

#[cfg(target_arch = "x86_64")]
#[test]
fn code_in_a_worker_can_ask_nothing_over_the_command_socket_whoever_it_runs_as() {
    use crate::harness::{Need, machine};
    use kakehi_ctl::{
        limits,
        order::{Envelope, Request},
        wire,
    };

    let backend = Backend::respond(OK);
    let stop =
        wire::encode(&Envelope::new(1, Request::Stop { now: true }), limits::MAX_REQUEST_FRAME).unwrap();
    // As the supervisor's own user.
    let proxy = Config::to(&backend).start();
    let path = proxy.folder().join("kakehi.sock");
    let worker = proxy.worker();
    // Where workers wait for another supervisor, they cannot connect at all: that takes a socket of a kind that they cannot make.
    let adoption = proxy.folder().join("kakehi.sock.w0.0");
    assert_eq!(connected(worker, &adoption, &[]), Err(nix::Error::EPROTOTYPE));
    assert_eq!(connected(worker, &path, &stop), Ok(0));
    wait::until("the alarm", || proxy.log().contains(&format!("pid {}, which is a worker", worker.0)));
    assert!(proxy.ctl(&["status"]).status.success(), "{}", proxy.log());
    ask(&mut proxy.client());
    assert_eq!(proxy.worker(), worker);
    // Only root may trace one that is no child, and can make it another user.
    if machine::has(Need::Root) {
        // One that was taken over is known as well.
        let mut proxy = proxy;
        proxy.kill_supervisor();
        proxy.start_again();
        let alarms = || proxy.log().matches("ALARM").count();
        let before = alarms();
        assert_eq!(connected(worker, &path, &stop), Ok(0));
        wait::until("the alarm", || alarms() > before);
        assert!(proxy.ctl(&["status"]).status.success(), "{}", proxy.log());
        // As another, it cannot even connect.
        let proxy = Config::to(&backend).root(r#"user = "nobody""#).start();
        let path = proxy.folder().join("kakehi.sock");
        assert_eq!(connected(proxy.worker(), &path, &stop), Err(nix::Error::EACCES));
        ask(&mut proxy.client());
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn code_in_a_worker_can_ask_nothing_either_while_a_start_waits_for_other_workers() {
    use crate::{
        harness::{Need, kakehictl, machine},
        hostile_worker::until_answered,
    };
    use kakehi_ctl::{
        limits,
        order::{Envelope, Request},
        wire,
    };

    // It is no child of this process then.
    if !machine::has(Need::Root) {
        return;
    }
    let backend = Backend::respond(OK);
    let stop =
        wire::encode(&Envelope::new(1, Request::Stop { now: true }), limits::MAX_REQUEST_FRAME).unwrap();
    let mut proxy = Config::to(&backend).root("worker_count = 2").root("graceful_timeout = 1").start();
    let path = proxy.folder().join("kakehi.sock");
    let [waits, asks] = proxy.workers()[..] else { panic!("not two workers") };
    proxy.kill_supervisor();
    send_signal(waits, Signal::SIGSTOP);
    proxy.launch_again();
    let phase = || {
        let asked = kakehictl().arg("-s").arg(&path).args(["status", "--json"]).output().unwrap();
        let status = serde_json::from_slice::<serde_json::Value>(&asked.stdout).ok()?;
        Some(status["phase"].as_str()?.to_owned())
    };
    wait::until("an answer", || phase().as_deref() == Some("starting"));
    let alarms = || proxy.log().matches("ALARM").count();
    let before = alarms();
    assert_eq!(connected(asks, &path, &stop), Ok(0));
    wait::until("the alarm", || alarms() > before);
    assert_eq!(phase().as_deref(), Some("starting"), "{}", proxy.log());
    // A worker that does not answer is asked for 5 s.
    wait::within(4 * wait::SOON, "the end of the start", || {
        (phase().as_deref() == Some("running")).then_some(())
    });
    wait::until("the end of the worker that stands still", || !waits.runs());
    until_answered(&proxy);
}

#[test]
fn where_the_host_has_no_sandbox_it_is_said_once_and_requests_are_served() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).root("worker_count = 2").without_sandbox().start();
    wait::until("both to be ready", || proxy.log().contains("ready: 2 workers"));
    ask(&mut proxy.client());
    for what in ["no seccomp filter is in force", "landlock"] {
        assert_eq!(proxy.log().matches(what).count(), 1, "{}", proxy.log());
    }
    assert!(!proxy.log().contains("stay open"), "{}", proxy.log());
}
