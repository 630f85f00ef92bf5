//! What a worker says of the sockets that it hands over.

use kakehi_engine::downstream::HandoverMessage;

pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read: Vec<_> = (0..4).filter_map(|sockets| HandoverMessage::read(text, sockets).ok()).collect();
    let [message] = &read[..] else {
        return assert!(read.is_empty(), "taken with several numbers of sockets");
    };
    let Ok(written) = message.text() else { panic!("cannot be written: {message:?}") };
    let wanted = if matches!(message, HandoverMessage::Tunnel { .. }) { 2 } else { 1 };
    assert_eq!(HandoverMessage::read(&written, wanted).as_ref(), Ok(message), "{written}");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        r#"{"idle":{"listener":"127.0.0.1:80","age":"new"}}"#,
        r#"{"idle":{"listener":"[::1]:80","age":"used","begun":true,"ends":{"source":"192.0.2.1:5","destination":"[::1]:80"}}}"#,
        r#"{"queue":{"listener":"[fe80::1%2]:80"}}"#,
        r#"{"tunnel":{"listener":"127.0.0.1:80","cluster":"a\u0000\"","backend":"b"}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
