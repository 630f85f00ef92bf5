//! Descriptors from process to process, a few per message, over a `SOCK_SEQPACKET` pair; nothing here waits.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

use super::sys;

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
    let rights: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&rights)];
    let text = [IoSlice::new(text.as_bytes())];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(channel.as_fd().as_raw_fd(), &text, &rights, flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            // The process or the user has as many descriptors on their way as it may: the receiver takes some off.
            Err(Errno::ETOOMANYREFS) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives what [`send_descriptors`] sent; `None` when the other side has ended and everything was received.
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` for what is no such message; others of `recvmsg(2)`.
pub fn receive_descriptors(channel: &impl AsFd) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
    let mut text = [0; TEXT_SIZE];
    let mut control = nix::cmsg_space!([RawFd; MOST]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let (length, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = loop {
            match recvmsg::<()>(channel.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut descriptors = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                descriptors.extend(numbers.into_iter().map(sys::owned));
            }
        }
        (message.bytes, descriptors)
    };
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    match std::str::from_utf8(&text[..length]) {
        Ok(text) if !descriptors.is_empty() => Ok(Some((text.to_owned(), descriptors))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn messages_arrive_one_by_one_with_their_descriptors_until_the_end() {
        let (here, there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
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
    fn a_channel_that_is_full_and_a_message_that_is_none_say_so() {
        let (here, _there) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
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
