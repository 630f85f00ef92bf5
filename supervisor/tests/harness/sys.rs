//! What has to be asked of the kernel itself: who listens; and, which needs unsafe code, a child that it refuses some calls, and a
//! thread that is another user.

use std::{fs, io, net::SocketAddr, os::unix::process::CommandExt, process::Command};

/// Whether somebody listens on this port of IPv4, found out without a connection.
pub(super) fn listens(address: SocketAddr) -> bool {
    listening_socket(address).is_some()
}

/// The inode of a socket that listens on this port of IPv4.
pub(super) fn listening_socket(address: SocketAddr) -> Option<String> {
    let port = format!(":{:04X}", address.port());
    fs::read_to_string("/proc/net/tcp").ok()?.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = words.get(1)?.ends_with(&port) && *words.get(3)? == "0A";
        if listens { words.get(9).map(|inode| (*inode).to_owned()) } else { None }
    })
}

/// The program will get `EPERM` from these calls, as under a profile of a container that does not have them.
pub(super) fn refuse(command: &mut Command, calls: &'static [libc::c_long]) {
    let filter = filter(calls);
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory but the filter, which is there.
    unsafe {
        command.pre_exec(move || install_filter(&filter));
    }
}

/// This thread, and no other, becomes another user without any privilege; for good.
pub(super) fn become_user(uid: u32) -> io::Result<()> {
    let id = libc::c_long::from(uid);
    // Not by the C library, which does it for all threads of the process.
    for (call, arguments) in
        [(libc::SYS_setgroups, [0, 0, 0]), (libc::SYS_setresgid, [id; 3]), (libc::SYS_setresuid, [id; 3])]
    {
        // SAFETY: plain system calls that take numbers; the list of groups is empty, so that nothing is read from where it lies.
        if unsafe { libc::syscall(call, arguments[0], arguments[1], arguments[2]) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn filter(calls: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    // The number of the system call is the first word of what the filter looks at. Who is found jumps behind the others.
    let mut filter = vec![statement(load, 0)];
    filter.extend(calls.iter().enumerate().map(|(at, number)| {
        let behind = (calls.len() - at) as u8;
        libc::sock_filter { code: equal, jt: behind, jf: 0, k: *number as u32 }
    }));
    filter.push(statement(answer, libc::SECCOMP_RET_ALLOW));
    filter.push(statement(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    filter
}

fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: plain system calls; `program` and the filter that it points to live until both are done.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
