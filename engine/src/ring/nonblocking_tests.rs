//! What the ring relies on and no kernel documents: an operation on a socket in non-blocking mode waits in the ring as on
//! any other, and is not over with `EAGAIN` at once, unless it asks for that; and what a poll is told. Measured on 5.10, 6.1,
//! 6.12 and 6.18.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use super::{
    Level,
    buffers::{BufferRing, Part},
    features::{Features, builder},
};

/// How long a completion that must not come has to show itself. A correct ring is not checked less strictly if that is
/// too short.
const TIME_TO_FAIL: Duration = Duration::from_millis(20);
/// How long something has that need not come.
const TIME_TO_BE_TOLD: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(20);

/// Carries `check` out with the plainest ring, and with the best that this kernel has.
fn with_each_ring(check: impl Fn(&Features, &mut IoUring)) {
    for level in [Level::LOWEST, Level::HIGHEST] {
        let features = Features::probe(level).unwrap();
        check(&features, &mut builder(&features).build(8).unwrap());
    }
}

/// Result and flags of the next completion, if it comes within `limit`.
fn completion(uring: &mut IoUring, limit: Duration) -> Option<(i32, u32)> {
    const GET_EVENTS: u32 = 1;
    let deadline = Instant::now() + limit;
    loop {
        // SAFETY: nothing is submitted, and no argument is passed.
        unsafe { uring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) }.unwrap();
        if let Some(completion) = uring.completion().next() {
            return Some((completion.result(), completion.flags()));
        }
        if Instant::now() > deadline {
            return None;
        }
        // Deferred work shows only when the ring is entered: look again soon.
        let ring = super::sys::borrow(uring.as_raw_fd());
        let millisecond = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = poll(&mut [PollFd::from_borrowed_fd(ring, PollFlags::IN)], Some(&millisecond));
    }
}

/// Submits `entry`, which cannot do anything yet and must wait; its outcome when `make_ready` has changed that.
///
/// # Safety
/// What the entry points to must stay valid until its last completion, also if the test fails.
unsafe fn outcome(uring: &mut IoUring, entry: &squeue::Entry, make_ready: impl FnOnce()) -> (i32, u32) {
    // SAFETY: the caller's promise.
    unsafe { uring.submission().push(entry) }.unwrap();
    uring.submit().unwrap();
    assert_eq!(completion(uring, TIME_TO_FAIL), None, "it does not wait");
    make_ready();
    completion(uring, DEADLINE).expect("it does not wake up")
}

/// Two ends of a connection; the first is in non-blocking mode.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    (near, listener.accept().unwrap().0)
}

fn fd(socket: &impl AsRawFd) -> types::Fd {
    types::Fd(socket.as_raw_fd())
}

/// A connection whose send buffer is full: not even one byte more goes. The first end is in non-blocking mode. A unix
/// socket, as what TCP has sent moves on by itself, and makes room.
fn full_pair() -> (UnixStream, UnixStream) {
    let (mut near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    for length in [4_096, 1] {
        while near.write(&[1; 4_096][..length]).is_ok() {}
    }
    (near, far)
}

/// Reads in the background until the end.
fn drain(mut stream: UnixStream) {
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
}

#[test]
fn a_connect_waits_on_a_non_blocking_socket() {
    with_each_ring(|_, uring| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        // Whoever accepts does not do so for ever.
        listener.set_read_timeout(Some(DEADLINE)).unwrap();
        let address = &*Box::leak(Box::new(listener.local_addr().unwrap()));
        let socket = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        // More than its queue holds: the next one is not answered.
        let others: Vec<_> = std::iter::repeat_with(socket).take(4).collect();
        for other in &others {
            let _ = other.connect(address);
        }
        let last = socket();
        let entry = opcode::Connect::new(fd(&last), address.as_ptr().cast(), address.len()).build();
        let accept_all = || {
            thread::spawn(move || while listener.accept().is_ok() {});
        };
        // SAFETY: the address is there for ever.
        assert_eq!(unsafe { outcome(uring, &entry, accept_all) }.0, 0);
    });
}

#[test]
fn a_receive_waits_on_a_non_blocking_socket() {
    with_each_ring(|features, uring| {
        let (near, mut far) = pair();
        let mut give = || far.write_all(b"12345678").unwrap();
        let space = vec![0; 64].leak();
        let entry = opcode::Recv::new(fd(&near), space.as_mut_ptr(), 64).build();
        // SAFETY: the buffer is there for ever.
        assert_eq!(unsafe { outcome(uring, &entry, &mut give) }.0, 8);
        assert_eq!(&space[..8], b"12345678");
        if features.provided_buffers {
            let mut buffers = BufferRing::register(uring, 4, 64).unwrap();
            buffers.refill();
            let entry = opcode::Recv::new(fd(&near), std::ptr::null_mut(), 0)
                .buf_group(Part::Downstream as u16)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT);
            // SAFETY: the entry points to no memory but the registered buffers.
            let (length, flags) = unsafe { outcome(uring, &entry, &mut give) };
            assert!(length == 8 && cqueue::buffer_select(flags).is_some());
            if features.multishot_recv {
                let entry = opcode::RecvMulti::new(fd(&near), Part::Downstream as u16).build();
                // SAFETY: as above.
                let (length, flags) = unsafe { outcome(uring, &entry, &mut give) };
                assert!(length == 8 && cqueue::more(flags));
            }
            // The multishot receive goes before the buffers do.
            near.shutdown(Shutdown::Both).unwrap();
            if features.multishot_recv {
                completion(uring, DEADLINE).unwrap();
            }
        }
    });
}

#[test]
fn a_send_that_may_not_wait_sends_what_there_is_room_for() {
    with_each_ring(|_, uring| {
        let data = vec![1; 8 << 20].leak();
        let entry = |fd| {
            opcode::Send::new(fd, data.as_ptr(), data.len() as u32)
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                .build()
        };
        let send = |uring: &mut IoUring, entry| {
            // SAFETY: the data is there for ever.
            unsafe { uring.submission().push(&entry) }.unwrap();
            uring.submit().unwrap();
            completion(uring, DEADLINE).expect("it waits").0
        };
        let (near, _far) = pair();
        let sent = send(uring, entry(fd(&near)));
        assert!(sent > 0 && (sent as usize) < data.len(), "{sent}");
        let (near, _far) = full_pair();
        assert_eq!(send(uring, entry(fd(&near))), -libc::EAGAIN);
    });
}

#[test]
fn a_poll_that_tells_of_the_end_of_what_the_peer_sends_tells_it_once_where_it_is_multishot_and_then_of_room()
{
    with_each_ring(|features, uring| {
        let (near, far) = full_pair();
        let entry = |multi| opcode::PollAdd::new(fd(&near), libc::POLLOUT as u32).multi(multi).build();
        // SAFETY: the entry points to no memory.
        unsafe { uring.submission().push(&entry(false)) }.unwrap();
        uring.submit().unwrap();
        assert_eq!(completion(uring, TIME_TO_FAIL), None, "it does not wait");
        far.shutdown(Shutdown::Write).unwrap();
        let Some((events, _)) = completion(uring, TIME_TO_BE_TOLD) else {
            // Linux 6.12 does not tell that of a unix socket; of room it must.
            drain(far);
            let (events, _) = completion(uring, DEADLINE).expect("it does not tell of room");
            assert_eq!(events & i32::from(libc::POLLOUT), i32::from(libc::POLLOUT));
            return;
        };
        assert_eq!(events, i32::from(libc::POLLRDHUP));
        if features.multishot_poll {
            // SAFETY: as above.
            unsafe { uring.submission().push(&entry(true)) }.unwrap();
            uring.submit().unwrap();
            let (events, flags) = completion(uring, DEADLINE).unwrap();
            assert!(events == i32::from(libc::POLLRDHUP) && cqueue::more(flags));
            assert_eq!(completion(uring, TIME_TO_FAIL), None, "it tells that again and again");
            drain(far);
            let (events, _) = completion(uring, DEADLINE).expect("it does not tell of room");
            assert_eq!(events & i32::from(libc::POLLOUT), i32::from(libc::POLLOUT));
        }
    });
}

#[test]
fn a_poll_waits_on_a_non_blocking_socket() {
    with_each_ring(|_, uring| {
        let (near, mut far) = pair();
        let entry = opcode::PollAdd::new(fd(&near), libc::POLLIN as u32 | libc::POLLRDHUP as u32).build();
        // SAFETY: the entry points to no memory.
        let (events, _) = unsafe { outcome(uring, &entry, || far.write_all(b"x").unwrap()) };
        assert_eq!(events, i32::from(libc::POLLIN));
        let (near, far) = full_pair();
        let entry = opcode::PollAdd::new(fd(&near), libc::POLLOUT as u32).build();
        // SAFETY: the entry points to no memory.
        let (events, _) = unsafe { outcome(uring, &entry, || drain(far)) };
        assert_eq!(events, i32::from(libc::POLLOUT));
    });
}

#[test]
fn what_waits_on_a_non_blocking_socket_can_be_cancelled() {
    with_each_ring(|_, uring| {
        let (near, _far) = pair();
        let space = vec![0; 64].leak();
        let entry = opcode::Recv::new(fd(&near), space.as_mut_ptr(), 64).build().user_data(1);
        let cancel = opcode::AsyncCancel::new(1).build();
        // SAFETY: the buffer is there for ever; the cancellation points to no memory.
        unsafe {
            uring.submission().push_multiple(&[entry, cancel]).unwrap();
        }
        uring.submit().unwrap();
        let mut results = [(); 2].map(|()| completion(uring, DEADLINE).unwrap().0);
        results.sort_unstable();
        assert_eq!(results, [-libc::ECANCELED, 0]);
    });
}
