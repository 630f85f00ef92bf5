//! Listening sockets and other descriptors on their way from one process to another, each with a label, over
//! `SCM_RIGHTS`.
//!
//! Relies on a connected unix socket that keeps message boundaries (`SOCK_SEQPACKET`). Any number of descriptors
//! passes: the kernel takes at most 253 descriptors a message, so they go in several, each of which says how many
//! are still to come. What is received is close-on-exec, and nothing leaks when a message is refused half-way.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use kakehi_engine::worker::{DescriptorKind, Patient};
use rustix::{
    cmsg_space,
    event::PollFlags,
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
        socketpair,
    },
};
use serde::{Deserialize, Serialize};

/// Descriptors per message; the kernel refuses more than 253 (`SCM_MAX_FD`).
const BATCH: usize = 200;
/// Room for the text of one message: a label takes at most 170 bytes of JSON.
const TEXT_SIZE: usize = 48 << 10;

/// Of all channels between processes.
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

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
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// A pair of connected streams, both close-on-exec and not blocking.
pub(crate) fn streams() -> io::Result<(UnixStream, UnixStream)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
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
    let descriptors: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    channel.until(PollFlags::OUT, || sendmsg(channel, &[IoSlice::new(&text)], &mut rights, flags))?;
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
        if batch.remaining > 0 && descriptors.is_empty() {
            return Err(Error::Malformed("it brings nothing, and says that there is more"));
        }
        received.extend(batch.labels.into_iter().zip(descriptors));
        if batch.remaining == 0 {
            return Ok(received);
        }
    }
}

fn receive_message<S: AsFd>(channel: &Patient<'_, S>) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    let mut text = vec![0; TEXT_SIZE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    // Owns what arrives, and closes what nobody takes out of it.
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    channel.readable()?;
    let message = retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut text)];
        recvmsg(channel, &mut parts, &mut rights, flags)
    });
    let message = message.map_err(io::Error::from)?;
    let descriptors = rights.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if message.bytes == 0 {
        return Err(Error::Ended);
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Error::Malformed(
            "it was cut; raise the limit of open files (`ulimit -n`, `LimitNOFILE=`) if that is low",
        ));
    }
    text.truncate(message.bytes);
    Ok((text, descriptors))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Read as _,
        net::SocketAddr,
        os::fd::AsRawFd as _,
        path::Path,
    };

    use kakehi_ctl::order::ListenerSocket;
    use rustix::{
        io::{FdFlags, fcntl_getfd},
        pipe::pipe,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);
    /// `SCM_MAX_FD`.
    const MOST_OF_KERNEL: usize = 253;

    #[test]
    fn what_does_not_come_is_waited_for_until_the_deadline_only() {
        let (_here, there) = pair().unwrap();
        let error = receive(&there, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(&error, Error::Io(it) if it.kind() == io::ErrorKind::TimedOut), "{error}");
    }

    fn numbered(n: u16) -> DescriptorKind {
        DescriptorKind::Listener(ListenerSocket::new(SocketAddr::from(([127, 0, 0, 1], n)).into(), 0))
    }

    /// `count` pipes' read ends; pipe `n` holds the number `n`.
    fn numbered_pipes(count: u16) -> Vec<(DescriptorKind, OwnedFd)> {
        (0..count)
            .map(|n| {
                let (read, write) = pipe().unwrap();
                rustix::io::write(&write, &n.to_le_bytes()).unwrap();
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
            assert!(fcntl_getfd(&descriptor).unwrap().contains(FdFlags::CLOEXEC));
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
        let (reader, _writer) = pipe().unwrap();
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
    fn who_sends_for_ever_without_sending_anything_is_not_listened_to() {
        let (here, there) = pair().unwrap();
        rustix::io::write(&here, br#"{"remaining":1,"labels":[]}"#).unwrap();
        assert!(matches!(receive(&there, PATIENCE), Err(Error::Malformed(_))));
    }

    #[test]
    fn garbage_is_an_error() {
        let (here, there) = pair().unwrap();
        rustix::io::write(&here, b"{}").unwrap();
        assert!(matches!(receive(&there, PATIENCE), Err(Error::Malformed(_))));
    }

    #[test]
    fn a_message_with_more_descriptors_than_there_is_room_for_is_refused_and_leaves_none_open() {
        let (here, there) = pair().unwrap();
        let (sent, _) = pipe().unwrap();
        let descriptors = vec![sent.as_fd(); MOST_OF_KERNEL];
        let text = serde_json::to_vec(&Batch { remaining: 0, labels: vec![DescriptorKind::Counters; BATCH] });
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_OF_KERNEL))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&here, &[IoSlice::new(&text.unwrap())], &mut rights, SendFlags::empty()).unwrap();
        let received = receive(&there, PATIENCE).map(drop);
        assert_eq!(open_descriptors_of(&sent), 1);
        let error = received.unwrap_err();
        assert!(matches!(&error, Error::Malformed(reason) if reason.contains("cut")), "{error}");
    }

    /// Descriptors of this process for what `descriptor` is one for.
    fn open_descriptors_of(descriptor: &OwnedFd) -> usize {
        let target = |number: &Path| fs::read_link(Path::new("/proc/self/fd").join(number)).ok();
        let wanted = target(Path::new(&descriptor.as_raw_fd().to_string())).unwrap();
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|entry| target(&entry.as_ref().unwrap().path()).as_ref() == Some(&wanted)).count()
    }

    #[test]
    fn the_text_of_a_full_message_fits() {
        let widest = ListenerSocket {
            address: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap(),
            rank: u32::MAX,
            interface: "\"".repeat(15).parse().ok(),
        };
        assert!(widest.interface.is_some());
        let text = serde_json::to_vec(&Batch {
            remaining: usize::MAX,
            labels: vec![DescriptorKind::Listener(widest); BATCH],
        })
        .unwrap();
        assert!(text.len() <= TEXT_SIZE, "{}", text.len());
    }
}
