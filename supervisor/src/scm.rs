//! Listening sockets and other descriptors on their way from one process to another, each with a label, over
//! `SCM_RIGHTS`.
//!
//! Relies on a connected unix socket that keeps message boundaries (`SOCK_SEQPACKET`). Any number of descriptors
//! passes: the kernel takes at most 253 descriptors a message, so they go in several, each of which says how many
//! are still to come. What is received is close-on-exec, and nothing leaks when a message is refused half-way.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use kakehi_engine::worker::{DescriptorKind, Patient};
use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
        socketpair,
    },
};
use serde::{Deserialize, Serialize};

/// Descriptors per message; the kernel refuses more than 253 (`SCM_MAX_FD`).
const BATCH: usize = 200;
/// Room for the text of one message: a label takes at most 120 bytes of JSON, so this is twice what `BATCH` needs.
const TEXT_SIZE: usize = 32 << 10;

/// Of all channels between processes.
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Why sockets did not arrive, or not leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The socket failed.
    #[error("passing descriptors failed: {0}")]
    Io(#[from] io::Error),
    /// The other side ended before it had sent everything.
    #[error("the other side ended before all descriptors were passed")]
    Ended,
    /// What came is not what [`send`] writes.
    #[error("the message that should carry descriptors is not understood: {0}")]
    Malformed(&'static str),
}

/// The text of one message.
#[derive(Serialize, Deserialize)]
struct Batch {
    /// Descriptors that later messages bring.
    remaining: usize,
    /// One per descriptor of this message.
    labels: Vec<DescriptorKind>,
}

/// A pair of sockets for [`send`] and [`receive`], both close-on-exec and not blocking.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS)?)
}

/// A pair of connected streams, both close-on-exec and not blocking.
pub(crate) fn streams() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = socketpair(AddressFamily::Unix, SockType::Stream, None, FLAGS)?;
    Ok((one.into(), other.into()))
}

/// Sends duplicates of `descriptors`; none at all is one message too.
///
/// # Errors
/// [`Error::Io`] when the other side is gone, or does not read within `patience`.
pub(crate) fn send<F: AsFd>(
    channel: &impl AsFd,
    descriptors: &[(DescriptorKind, F)],
    patience: Duration,
) -> Result<(), Error> {
    match send_some(channel, descriptors, patience)? {
        sent if sent == descriptors.len() => Ok(()),
        _ => Err(Error::Io(io::ErrorKind::TimedOut.into())),
    }
}

/// As [`send`], as many as the other side makes room for within `patience`: how many. The rest is to be sent next, and by
/// itself: both are received as one.
///
/// # Errors
/// [`Error::Io`] when the other side is gone.
pub(crate) fn send_some<F: AsFd>(
    channel: &impl AsFd,
    descriptors: &[(DescriptorKind, F)],
    patience: Duration,
) -> Result<usize, Error> {
    let channel = Patient::new(channel, patience);
    let mut remaining = descriptors;
    loop {
        let (batch, rest) = remaining.split_at(remaining.len().min(BATCH));
        match send_batch(&channel, batch, rest.len()) {
            Ok(()) => remaining = rest,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::TimedOut && !descriptors.is_empty() => {
                break;
            }
            Err(error) => return Err(error),
        }
        if remaining.is_empty() {
            break;
        }
    }
    Ok(descriptors.len() - remaining.len())
}

fn send_batch<S: AsFd, F: AsFd>(
    channel: &Patient<'_, S>,
    batch: &[(DescriptorKind, F)],
    remaining: usize,
) -> Result<(), Error> {
    let text = Batch { remaining, labels: batch.iter().map(|(label, _)| *label).collect() };
    let text = serde_json::to_vec(&text).map_err(io::Error::from)?;
    let descriptors: Vec<RawFd> =
        batch.iter().map(|(_, descriptor)| descriptor.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let fd = channel.as_fd().as_raw_fd();
    channel.until(PollFlags::POLLOUT, || sendmsg::<()>(fd, &[IoSlice::new(&text)], rights, flags, None))?;
    Ok(())
}

/// Receives everything that one call of [`send`] sends, within `patience`.
///
/// # Errors
/// See [`Error`]; what had arrived is closed.
pub(crate) fn receive(
    channel: &impl AsFd,
    patience: Duration,
) -> Result<Vec<(DescriptorKind, OwnedFd)>, Error> {
    let channel = Patient::new(channel, patience);
    let mut received = Vec::new();
    loop {
        let (text, descriptors) = receive_message(&channel)?;
        let batch: Batch =
            serde_json::from_slice(&text).map_err(|_| Error::Malformed("it is not the text expected"))?;
        if batch.labels.len() != descriptors.len() {
            return Err(Error::Malformed("it has not one descriptor per label"));
        }
        received.extend(batch.labels.into_iter().zip(descriptors));
        if batch.remaining == 0 {
            return Ok(received);
        }
    }
}

fn receive_message<S: AsFd>(channel: &Patient<'_, S>) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    let mut text = vec![0; TEXT_SIZE];
    let mut control = nix::cmsg_space!([RawFd; BATCH]);
    let mut descriptors = Vec::new();
    let (length, flags) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        channel.readable()?;
        let fd = channel.as_fd().as_raw_fd();
        let message = loop {
            match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(io::Error::from)?,
            }
        };
        for part in message.cmsgs().map_err(io::Error::from)? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                descriptors.extend(crate::sys::own_received(&numbers));
            }
        }
        (message.bytes, message.flags)
    };
    if length == 0 {
        return Err(Error::Ended);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Error::Malformed(
            "it was cut; raise the limit of open files (`ulimit -n`, `LimitNOFILE=`) if that is low",
        ));
    }
    text.truncate(length);
    Ok((text, descriptors))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, net::SocketAddr};

    use kakehi_ctl::order::ListenerSocket;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn what_does_not_come_is_waited_for_until_the_deadline_only() {
        let (_here, there) = pair().unwrap();
        let error = receive(&there, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(&error, Error::Io(it) if it.kind() == io::ErrorKind::TimedOut), "{error}");
    }

    fn numbered(n: u16) -> DescriptorKind {
        DescriptorKind::Listener(ListenerSocket { address: SocketAddr::from(([127, 0, 0, 1], n)), rank: 0 })
    }

    /// `count` pipes' read ends; pipe `n` holds the number `n`.
    fn numbered_pipes(count: u16) -> Vec<(DescriptorKind, OwnedFd)> {
        (0..count)
            .map(|n| {
                let (read, write) = nix::unistd::pipe().unwrap();
                nix::unistd::write(&write, &n.to_le_bytes()).unwrap();
                (numbered(n), read)
            })
            .collect()
    }

    #[test]
    fn five_hundred_descriptors_arrive_in_order_with_their_addresses_and_close_on_exec() {
        let (here, there) = pair().unwrap();
        let sent = numbered_pipes(500);
        send(&here, &sent, PATIENCE).unwrap();
        drop(sent);
        let received = receive(&there, PATIENCE).unwrap();
        assert_eq!(received.len(), 500);
        for (n, (label, descriptor)) in received.into_iter().enumerate() {
            assert_eq!(label, numbered(n as u16));
            let flags = FdFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
            let mut number = [0; 2];
            File::from(descriptor).read_exact(&mut number).unwrap();
            assert_eq!(u16::from_le_bytes(number) as usize, n);
        }
    }

    #[test]
    fn what_finds_no_room_is_sent_later_and_received_as_one() {
        let (here, there) = pair().unwrap();
        // Room for a message or two.
        socket2::SockRef::from(&here).set_send_buffer_size(32 << 10).unwrap();
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let all: Vec<_> = (0..900).map(|n| (numbered(n), reader.as_fd())).collect();
        let receiver = std::thread::spawn(move || receive(&there, PATIENCE).map(|received| received.len()));
        let mut unsent = &all[..];
        while !unsent.is_empty() {
            let sent = send_some(&here, unsent, Duration::ZERO).unwrap();
            unsent = &unsent[sent..];
        }
        assert_eq!(receiver.join().unwrap().unwrap(), all.len());
    }

    #[test]
    fn no_descriptor_at_all_is_a_message_too() {
        let (here, there) = pair().unwrap();
        send::<OwnedFd>(&here, &[], PATIENCE).unwrap();
        assert!(receive(&there, PATIENCE).unwrap().is_empty());
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        let (here, there) = pair().unwrap();
        send_batch(&Patient::new(&here, PATIENCE), &numbered_pipes(1), 1).unwrap();
        drop(here);
        assert!(matches!(receive(&there, PATIENCE), Err(Error::Ended)));
    }

    #[test]
    fn garbage_is_an_error() {
        let (here, there) = pair().unwrap();
        nix::unistd::write(&here, b"{}").unwrap();
        assert!(matches!(receive(&there, PATIENCE), Err(Error::Malformed(_))));
    }

    #[test]
    fn the_text_of_a_full_message_fits() {
        let widest = ListenerSocket {
            address: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap(),
            rank: u32::MAX,
        };
        let text = serde_json::to_vec(&Batch {
            remaining: usize::MAX,
            labels: vec![DescriptorKind::Listener(widest); BATCH],
        })
        .unwrap();
        assert!(text.len() <= TEXT_SIZE, "{}", text.len());
    }
}
