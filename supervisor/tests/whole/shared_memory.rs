//! Memory that supervisor and workers share: who has it for reading cannot write it, and nobody gives it another size.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
};

use crate::{
    harness::{Backend, Config, Need, OK, Pki, ask, machine, user},
    hostile_user::{COUNTERS, ENDED, VAULT, descriptor},
};

/// Everything that a descriptor lets its holder do to what is behind it.
fn changes(memory: &OwnedFd) -> Vec<(&'static str, Result<(), rustix::io::Errno>)> {
    use rustix::fs::{self, FallocateFlags, Mode, SealFlags};
    let fd = memory.as_fd();
    vec![
        ("written", rustix::io::pwrite(fd, b"x", 4_096).map(drop)),
        ("made shorter", fs::ftruncate(fd, 0)),
        ("made longer", fs::ftruncate(fd, 1 << 24)),
        ("made longer by fallocate", fs::fallocate(fd, FallocateFlags::empty(), 1 << 20, 4_096)),
        ("emptied", fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4_096)),
        ("sealed", fs::fcntl_add_seals(fd, SealFlags::WRITE)),
        ("opened to everybody", fs::fchmod(fd, Mode::from_bits_truncate(0o666))),
    ]
}

/// Opens it again by its name in `/proc`, for writing.
fn reopened(memory: &OwnedFd) -> std::io::Result<File> {
    use std::os::fd::AsRawFd as _;
    File::options().write(true).open(format!("/proc/self/fd/{}", memory.as_raw_fd()))
}

#[test]
fn a_worker_cannot_write_its_vault_nor_open_it_again_for_that_nor_give_the_counters_another_size() {
    if !machine::has(Need::Root) {
        return;
    }
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let config = Config::https_to(&backend, &pki.issue(&["a"])).root("worker_count = 2");
    let proxy = config.root(r#"user = "nobody""#).start();
    let worker = proxy.workers()[0];
    let [vault, counters, ended] = [VAULT, COUNTERS, ENDED].map(|number| descriptor(worker, number));
    // As root, which has all capabilities, it can: there is something to prevent.
    assert!(reopened(&vault).is_ok());
    let copies = [&vault, &counters, &ended].map(|memory| memory.try_clone().unwrap());
    user::run(user::NOBODY, move || {
        let [vault, counters, ended] = copies;
        let again = reopened(&vault).map(drop).map_err(|error| error.kind());
        assert_eq!(again, Err(std::io::ErrorKind::PermissionDenied), "it is opened for writing");
        for (what, outcome) in changes(&vault) {
            assert!(outcome.is_err(), "the vault can be {what}");
        }
        for (what, outcome) in changes(&counters).into_iter().chain(changes(&ended)) {
            // It writes its figures there.
            assert!(outcome.is_err() || ["written", "emptied"].contains(&what), "counters can be {what}");
        }
    });
    // Not even root: the supervisor has them mapped.
    for memory in [&counters, &ended] {
        for (what, outcome) in changes(memory) {
            let may_be = ["written", "emptied", "opened to everybody"].contains(&what);
            assert!(outcome.is_err() || may_be, "root: counters can be {what}");
        }
    }
    ask(&mut pki.caller().connect(proxy.address()));
    assert!(proxy.ctl_json("status")["requests"].is_u64() && proxy.supervisor().runs());
}

/// Where nobody has set `user` a worker is root's, without capabilities: what is not the memory's mode then is the sandbox.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_worker_of_root_cannot_change_its_vault_either() {
    use crate::harness::traced::Traced;

    if !machine::has(Need::Root) {
        return;
    }
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a"])).root(r#"user = "root""#).start();
    let worker = proxy.worker();
    assert!(worker.status("Uid").unwrap().starts_with("0\t0"));
    ask(&mut pki.caller().connect(proxy.address()));
    {
        let traced = Traced::stop(worker);
        let vault = i64::from(VAULT);
        let shared = i64::from(libc::PROT_READ | libc::PROT_WRITE);
        for (what, number, arguments) in [
            ("openat", libc::SYS_openat, [i64::from(libc::AT_FDCWD), 0, i64::from(libc::O_RDWR), 0, 0, 0]),
            ("ftruncate", libc::SYS_ftruncate, [vault, 0, 0, 0, 0, 0]),
            ("fallocate", libc::SYS_fallocate, [vault, 3, 0, 4_096, 0, 0]),
            ("fchmod", libc::SYS_fchmod, [vault, 0o666, 0, 0, 0, 0]),
            ("pwrite64", libc::SYS_pwrite64, [vault, 0, 0, 0, 0, 0]),
            ("mmap", libc::SYS_mmap, [0, 4_096, shared, i64::from(libc::MAP_SHARED), vault, 0]),
            ("counters", libc::SYS_ftruncate, [i64::from(COUNTERS), 0, 0, 0, 0, 0]),
        ] {
            let outcome = traced.call(number, arguments);
            assert!(matches!(outcome, Err(nix::Error::EPERM | nix::Error::EACCES)), "{what}: {outcome:?}");
        }
        // For reading it may have it: so the error is that of writing.
        let reading = [0, 4_096, i64::from(libc::PROT_READ), i64::from(libc::MAP_SHARED), vault, 0];
        assert!(traced.call(libc::SYS_mmap, reading).is_ok());
    }
    ask(&mut pki.caller().connect(proxy.address()));
    assert_eq!(proxy.worker(), worker);
}
