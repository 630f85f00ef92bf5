//! A non-blocking socket for whoever has nothing else to do than to wait for it: before there is a ring, and after it.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

/// A connected socket that is read from and written to within a deadline. Never blocks beyond it, even where the socket
/// itself would.
pub struct Patient<'a, S> {
    socket: &'a S,
    deadline: Instant,
}

impl<'a, S: AsFd> Patient<'a, S> {
    /// All that is done has to be done within `patience` from now.
    pub fn new(socket: &'a S, patience: Duration) -> Patient<'a, S> {
        Patient { socket, deadline: Instant::now() + patience }
    }

    /// Waits until the socket is readable, or at its end.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; those of `recv(2)`.
    pub fn readable(&self) -> io::Result<()> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.until(PollFlags::IN, || recv(self, &mut [0], flags)).map(drop)
    }

    /// `attempt`, again and again when the socket is ready for it.
    ///
    /// # Errors
    /// Those of `attempt`; `TimedOut` at the deadline.
    pub fn until<T>(&self, ready: PollFlags, mut attempt: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
        loop {
            match attempt() {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = self.deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let mut watched = [PollFd::new(self.socket, ready)];
                    // More than the kernel can count to is as good as for ever. What it says, the next attempt finds out.
                    let left = Timespec::try_from(left).ok();
                    let _ = poll(&mut watched, left.as_ref());
                }
                outcome => return Ok(outcome?),
            }
        }
    }
}

impl<S: AsFd> AsFd for Patient<'_, S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S: AsFd> Read for Patient<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.until(PollFlags::IN, || recv(self.socket, &mut *bytes, RecvFlags::DONTWAIT))
            .map(|(count, _)| count)
    }
}

impl<S: AsFd> Write for Patient<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.until(PollFlags::OUT, || send(self.socket, bytes, flags))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn what_comes_late_is_waited_for_and_what_never_comes_is_not() {
        for nonblocking in [true, false] {
            let (here, mut there) = UnixStream::pair().unwrap();
            here.set_nonblocking(nonblocking).unwrap();
            let mut bytes = [0; 4];
            let silent = Patient::new(&here, SHORT).read(&mut bytes).unwrap_err();
            assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
            let late = std::thread::spawn(move || there.write_all(b"late").map(|()| there));
            Patient::new(&here, Duration::from_secs(10)).read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"late");
            // Nobody reads it.
            let _there = late.join().unwrap().unwrap();
            let full = Patient::new(&here, SHORT).write_all(&vec![0; 8 << 20]).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        }
    }
}
