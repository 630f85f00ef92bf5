//! What the sandbox closes, and what goes on in it: each tried in a process of its own, which is this program once more.

use std::{
    env,
    fs::{self, File},
    io,
    net::TcpListener,
    os::{
        fd::AsRawFd as _,
        unix::{net::UnixStream, process::CommandExt as _, process::ExitStatusExt as _},
    },
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use libc::c_long;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rustix::process::{Resource, Rlimit, geteuid, getpid, getrlimit, setrlimit};

use super::{Sandbox, domain, filter, rings, sys};
use crate::ring::{Level, Recv, Ring, Role, Settings, Stream, Timer};

/// Says to a process that it is the one that tries.
const VARIABLE: &str = "KAKEHI_TEST_SANDBOX";
/// How it ends when all holds: otherwise than a harness that found no such test.
const TRIED: i32 = 42;

/// Runs `body` in a process of its own. To be called by the test of that name.
fn apart(test: &str, body: impl FnOnce()) -> Option<Output> {
    if env::var_os(VARIABLE).is_some() {
        body();
        // Whatever the harness would do next is not of the test.
        std::process::exit(TRIED);
    }
    let name = format!("worker::sandbox::tests::{test}");
    let mut program = Command::new(env::current_exe().unwrap());
    program.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(VARIABLE, "1");
    Some(program.output().unwrap())
}

/// As [`apart`]; all that `body` asserts must hold.
fn holds(test: &str, body: impl FnOnce()) {
    let Some(output) = apart(test, body) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(TRIED), "{said}");
}

/// Calls that do no harm where they are allowed, and fail there with other errors than `EPERM`.
fn forbidden() -> Vec<(&'static str, c_long, [c_long; 6])> {
    let parent = c_long::from(std::os::unix::process::parent_id());
    let own = c_long::from(std::process::id());
    let executable = c_long::from(libc::PROT_READ | libc::PROT_EXEC);
    let private = c_long::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let stream = c_long::from(libc::SOCK_STREAM);
    vec![
        ("execve", libc::SYS_execve, [0; 6]),
        ("execveat", libc::SYS_execveat, [-1, 0, 0, 0, 0, 0]),
        ("clone", libc::SYS_clone, [libc::CLONE_SIGHAND.into(), 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0; 6]),
        ("unshare", libc::SYS_unshare, [0; 6]),
        ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [0xffff, 0, 0, 0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [parent, 0, 0, 0, 0, 1]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [parent, 0, 0, 0, 0, 1]),
        ("pidfd_open of another", libc::SYS_pidfd_open, [parent, 0, 0, 0, 0, 0]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0, 0]),
        ("pidfd_send_signal", libc::SYS_pidfd_send_signal, [-1, 0, 0, 0, 0, 0]),
        ("kill", libc::SYS_kill, [parent, 0, 0, 0, 0, 0]),
        ("kill of itself", libc::SYS_kill, [own, 0, 0, 0, 0, 0]),
        ("tgkill of another", libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]),
        ("openat", libc::SYS_openat, [-1, 0, 0, 0, 0, 0]),
        ("openat2", libc::SYS_openat2, [-1, 0, 0, 0, 0, 0]),
        ("statx", libc::SYS_statx, [-1, 0, 0, 0, 0, 0]),
        ("readlinkat", libc::SYS_readlinkat, [-1, 0, 0, 0, 0, 0]),
        ("unlinkat", libc::SYS_unlinkat, [-1, 0, 0, 0, 0, 0]),
        ("lseek", libc::SYS_lseek, [-1, 0, 0, 0, 0, 0]),
        ("ftruncate", libc::SYS_ftruncate, [-1, 0, 0, 0, 0, 0]),
        ("dup3", libc::SYS_dup3, [-1, -1, 0, 0, 0, 0]),
        ("mmap of code", libc::SYS_mmap, [0, 4096, executable, private, -1, 0]),
        ("mprotect to code", libc::SYS_mprotect, [0, 0, executable, 0, 0, 0]),
        ("pkey_mprotect", libc::SYS_pkey_mprotect, [0, 0, 1, -1, 0, 0]),
        ("socket of netlink", libc::SYS_socket, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0]),
        (
            "socket of datagrams",
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_DGRAM.into(), 0, 0, 0, 0],
        ),
        ("socketpair", libc::SYS_socketpair, [libc::AF_UNIX.into(), stream, 0, 0, 0, 0]),
        ("bind", libc::SYS_bind, [-1, 0, 0, 0, 0, 0]),
        ("listen", libc::SYS_listen, [-1, 0, 0, 0, 0, 0]),
        ("setsockopt of a filter", libc::SYS_setsockopt, [-1, 1, libc::SO_ATTACH_FILTER.into(), 0, 0, 0]),
        ("ioctl of a terminal", libc::SYS_ioctl, [-1, libc::TIOCSTI as c_long, 0, 0, 0, 0]),
        ("fcntl that gives an owner", libc::SYS_fcntl, [-1, libc::F_SETOWN.into(), 0, 0, 0, 0]),
        ("prlimit that sets", libc::SYS_prlimit64, [0, libc::RLIMIT_NPROC as c_long, 1, 0, 0, 0]),
        ("prctl", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into(), 0, 0, 0, 0, 0]),
        ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
        ("seccomp", libc::SYS_seccomp, [0xffff, 0, 0, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
        ("io_uring_register", libc::SYS_io_uring_register, [-1, 0, 0, 0, 0, 0]),
        ("add_key", libc::SYS_add_key, [0; 6]),
        ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0, 0, 0]),
    ]
}

#[test]
fn what_serving_does_not_need_fails_with_eperm_in_every_thread() {
    holds("what_serving_does_not_need_fails_with_eperm_in_every_thread", || {
        let all =
            || forbidden().into_iter().map(|(name, number, arguments)| (name, sys::call(number, arguments)));
        for (name, error) in all() {
            assert_ne!(error, libc::EPERM, "without the filter: {name}");
        }
        let (go, wait) = mpsc::channel::<()>();
        let another = thread::spawn(move || wait.recv().map(|()| all().collect::<Vec<_>>()));
        nix::sys::prctl::set_no_new_privs().unwrap();
        filter::install().unwrap();
        go.send(()).unwrap();
        for (name, error) in all().chain(another.join().unwrap().unwrap()) {
            assert_eq!(error, libc::EPERM, "{name}");
        }
        assert_eq!(Command::new("/bin/true").exec().raw_os_error(), Some(libc::EPERM));
        assert_eq!(File::open("/dev/null").unwrap_err().raw_os_error(), Some(libc::EPERM));
        let families = [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Unix];
        for family in families {
            let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            assert_ne!(made.err(), Some(nix::Error::EPERM), "{family:?}");
        }
    });
}

#[test]
fn calls_that_never_fail_elsewhere_do_not_fail_behind_the_filter_either() {
    holds("calls_that_never_fail_elsewhere_do_not_fail_behind_the_filter_either", || {
        let (user, process) = (geteuid(), getpid());
        let limit = getrlimit(Resource::Nofile);
        nix::sys::prctl::set_no_new_privs().unwrap();
        filter::install().unwrap();
        // rustix ends the process, or answers with nonsense, where these fail.
        assert_eq!((geteuid(), getpid()), (user, process));
        assert_eq!(getrlimit(Resource::Nofile), limit);
    });
}

#[test]
fn a_broken_invariant_still_ends_a_worker_with_sigabrt() {
    let output = apart("a_broken_invariant_still_ends_a_worker_with_sigabrt", || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        filter::install().unwrap();
        std::process::abort();
    });
    if let Some(output) = output {
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }
}

#[test]
fn landlock_alone_closes_files_and_listening_also_for_later_threads() {
    holds("landlock_alone_closes_files_and_listening_also_for_later_threads", || {
        let extent = domain::enter(false).unwrap();
        if extent == domain::Extent::None {
            assert!(env::var_os("CI").is_none(), "this kernel has no landlock");
            return eprintln!("NOT TESTED: this kernel has no landlock");
        }
        let refused = |outcome: io::Result<()>| outcome.map_err(|error| error.kind());
        let tried = move || {
            let denied = Err(io::ErrorKind::PermissionDenied);
            assert_eq!(refused(File::open("/dev/null").map(drop)), denied);
            assert_eq!(refused(File::create("/tmp/kakehi-sandbox-test").map(drop)), denied);
            assert_eq!(refused(Err(Command::new("/bin/true").exec())), denied);
            if extent == domain::Extent::Whole {
                assert_eq!(refused(TcpListener::bind("127.0.0.1:0").map(drop)), denied);
                let parent = c_long::from(std::os::unix::process::parent_id());
                assert_eq!(sys::call(libc::SYS_kill, [parent, 0, 0, 0, 0, 0]), libc::EPERM);
            }
        };
        tried();
        thread::spawn(tried).join().unwrap();
    });
}

#[test]
fn without_its_rings_the_scheduler_goes_on_and_the_ring_of_the_worker_serves() {
    holds("without_its_rings_the_scheduler_goes_on_and_the_ring_of_the_worker_serves", || {
        // glommio asks for 512 KiB, which earlier kernels do not give without being asked.
        let memory = Rlimit { current: Some(8 << 20), maximum: Some(8 << 20) };
        let _ = setrlimit(Resource::Memlock, memory);
        let settings =
            Settings { level: Level::HIGHEST, buffer_count: 16, buffer_size: 4096, body_memory: 1 << 20 };
        let ring = Ring::new(&settings).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        nix::sys::prctl::set_no_new_privs().unwrap();
        let sandbox = Sandbox::enter(0, false);
        let executor =
            glommio::LocalExecutorBuilder::default().preempt_timer(rings::PREEMPT_NEVER).make().unwrap();
        executor.run(async move {
            let (own, others) = (ring.descriptor(), sandbox.descriptors.as_ref().map(drop));
            others.unwrap();
            sandbox.close(&ring);
            // A ring takes this call, whatever the rest of it is; other descriptors are refused for what they are.
            let enter = |number: i32| sys::call(libc::SYS_io_uring_enter, [number.into(), 0, 0, 0, 0, 0]);
            assert_eq!(enter(own), 0);
            for number in (0..64).filter(|number| *number != own) {
                assert!(matches!(enter(number), libc::EBADF | libc::EOPNOTSUPP), "{number} is a ring");
            }
            let here = Stream::adopt(&ring, here.into(), Role::Control).unwrap();
            let there = Stream::adopt(&ring, there.into(), Role::Control).unwrap();
            let done = std::rc::Rc::new(std::cell::Cell::new(false));
            ring.spawn({
                let (ring, done) = (ring.clone(), done.clone());
                async move {
                    // Longer than the scheduler's own interval, both awake and asleep.
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_millis(300) {
                        ring.yield_turn().await;
                    }
                    let timer = Timer::new(&ring);
                    timer.set(300);
                    timer.elapsed().await;
                    there.send(b"served".to_vec().into()).await.unwrap();
                    let Recv::Data(data) =
                        std::future::poll_fn(|context| here.poll_receive(context)).await.unwrap()
                    else {
                        panic!("the end of the stream")
                    };
                    assert_eq!(&data[..], b"served");
                    done.set(true);
                }
            });
            ring.drive(|| done.get()).await.unwrap();
        });
    });
}

#[test]
fn a_descriptor_of_a_ring_is_known_by_its_link() {
    let ring = io_uring::IoUring::new(2).unwrap();
    let link = fs::read_link(format!("/proc/self/fd/{}", ring.as_raw_fd())).unwrap();
    assert_eq!(link.as_os_str(), rings::RING);
}

/// What only x86-64 has of the list: `poll`, which other machines never had a call for.
const ONLY_ON_X86: usize = 1;

#[test]
fn the_threat_model_counts_what_is_allowed() {
    let page = include_str!("../../../../docs/threat-model.md");
    let (free, conditional) = (filter::ALLOWED.len(), filter::conditional(0).unwrap().len());
    // The page has the numbers of both, whichever this is.
    let (on_x86, elsewhere) =
        if cfg!(target_arch = "x86_64") { (free, free - ONLY_ON_X86) } else { (free + ONLY_ON_X86, free) };
    for text in [
        format!("| system calls, whatever their arguments | {on_x86} ({elsewhere} on aarch64): "),
        format!("| system calls with certain arguments | {conditional}: "),
        format!(
            "in one of the {} calls ({} on aarch64) or 8 operations",
            on_x86 + conditional,
            elsewhere + conditional
        ),
    ] {
        assert!(page.contains(&text), "docs/threat-model.md does not say `{text}`");
    }
}
