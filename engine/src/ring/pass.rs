//! Descriptors from process to process, a few per message, over a `SOCK_SEQPACKET` pair; nothing here waits.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// Longest text that goes with a descriptor (bytes).
const TEXT_SIZE: usize = 1024;
/// Most descriptors of a message: a tunnel has two sockets, a supervisor that takes a worker over sends three channels.
const MOST: usize = 3;

/// Sends duplicates of one to three descriptors with a text.
///
/// # Errors
/// `WouldBlock` when the channel is full; `InvalidInput` when the text is empty or longer than 1,024 bytes; others of
/// `sendmsg(2)`.
pub fn send_descriptors(channel: &impl AsFd, text: &str, descriptors: &[OwnedFd]) -> io::Result<()> {
    // An empty message would look like the end.
    if text.is_empty() || text.len() > TEXT_SIZE || descriptors.is_empty() || descriptors.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    let text = [IoSlice::new(text.as_bytes())];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match retry_on_intr(|| sendmsg(channel, &text, &mut rights, flags)) {
        Ok(_) => Ok(()),
        // The process or the user has as many descriptors on their way as it may: the receiver takes some off.
        Err(Errno::TOOMANYREFS) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

/// Receives what [`send_descriptors`] sent; `None` when the other side has ended and everything was received.
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` for what is no such message, or was cut; others of `recvmsg(2)`. What had
/// arrived is closed.
pub fn receive_descriptors(channel: &impl AsFd) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; TEXT_SIZE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    // Owns what arrives, and closes what nobody takes out of it.
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut text)];
        recvmsg(channel, &mut parts, &mut rights, flags)
    })?;
    let descriptors = rights.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    // The space is rounded up, so that there may be room for more than are ever sent.
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || descriptors.len() > MOST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message was cut, or brought too many descriptors; raise the limit of open files if that is low",
        ));
    }
    match std::str::from_utf8(&text[..message.bytes]) {
        Ok(text) if !descriptors.is_empty() => Ok(Some((text.to_owned(), descriptors))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        os::fd::AsRawFd,
        path::Path,
    };

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_arrive_one_by_one_with_their_descriptors_until_the_end() {
        let (here, there) = pair();
        assert_eq!(receive_descriptors(&there).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (mut reader, writer) = std::io::pipe().unwrap();
        for (text, count) in [("one", 1), ("two", 2)] {
            let descriptors: Vec<_> = (0..count).map(|_| writer.try_clone().unwrap().into()).collect();
            send_descriptors(&here, text, &descriptors).unwrap();
        }
        drop((here, writer));
        for (text, count) in [("one", 1), ("two", 2)] {
            let (got, descriptors) = receive_descriptors(&there).unwrap().unwrap();
            assert_eq!((got.as_str(), descriptors.len()), (text, count));
            for descriptor in descriptors {
                std::fs::File::from(descriptor).write_all(text.as_bytes()).unwrap();
            }
        }
        assert!(receive_descriptors(&there).unwrap().is_none());
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        assert_eq!(all, "onetwotwo");
    }

    #[test]
    fn a_message_that_has_no_room_is_refused_and_leaves_no_descriptor_open() {
        let (here, there) = pair();
        let (sent, _) = std::io::pipe().unwrap();
        let send = |text: &str, count| {
            let descriptors = vec![sent.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(253))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            assert!(rights.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&here, &[IoSlice::new(text.as_bytes())], &mut rights, SendFlags::empty()).unwrap();
        };
        for (length, count) in [(1, MOST + 1), (1, 253), (TEXT_SIZE + 1, 1)] {
            send(&"x".repeat(length), count);
            let received = receive_descriptors(&there).map(drop);
            assert_eq!(open_descriptors_of(&sent), 1, "{length} bytes with {count}");
            assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        send("x", MOST);
        assert_eq!(receive_descriptors(&there).unwrap().unwrap().1.len(), MOST);
    }

    /// Descriptors of this process for what `descriptor` is one for.
    fn open_descriptors_of(descriptor: &impl AsRawFd) -> usize {
        let target = |number: &Path| fs::read_link(Path::new("/proc/self/fd").join(number)).ok();
        let wanted = target(Path::new(&descriptor.as_raw_fd().to_string())).unwrap();
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|entry| target(&entry.as_ref().unwrap().path()).as_ref() == Some(&wanted)).count()
    }

    #[test]
    fn a_channel_that_is_full_and_a_message_that_is_none_say_so() {
        let (here, _there) = pair();
        let (_, writer) = std::io::pipe().unwrap();
        let writer = [writer.into()];
        let full = (0..100_000).find_map(|_| send_descriptors(&here, "x", &writer).err());
        assert_eq!(full.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        for (text, descriptors) in [("", &writer[..]), ("x", &[]), (&"x".repeat(1_025), &writer)] {
            let error = send_descriptors(&here, text, descriptors).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
