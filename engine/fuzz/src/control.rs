//! Control messages: of kakehictl to the supervisor, of the supervisor to a worker, and of a worker, which may have been
//! taken over, to the supervisor.

use std::fmt::Debug;

use kakehi_ctl::order::{Envelope, Message, Order, Report, Request};
use kakehi_ctl::wire::{Decoder, encode};
use serde::{Serialize, de::DeserializeOwned};

use crate::pieces::Input;

/// The largest frame that is accepted (bytes).
const MAX: usize = 4_096;

pub(crate) fn check(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    match input.options % 3 {
        0 => check_type::<Request>(&input),
        1 => check_type::<Order>(&input),
        _ => check_type::<Report>(&input),
    }
}

fn check_type<T: Message + DeserializeOwned + Serialize + PartialEq + Debug>(input: &Input<'_>) {
    let whole = read::<T>([input.bytes]);
    assert_eq!(whole, read::<T>(input.pieces()), "in pieces");
    for message in whole.into_iter().flatten() {
        // What is written of a message may be longer than what came: names that were left out, numbers in other form.
        let Ok(frame) = encode(&message, usize::MAX) else { panic!("cannot be written: {message:?}") };
        let mut decoder = Decoder::new(usize::MAX);
        decoder.extend(&frame);
        match decoder.next::<T>() {
            Ok(Some(again)) => assert_eq!(again, message),
            other => panic!("what is written of {message:?} is read as {other:?}"),
        }
        assert!(decoder.finish().is_ok());
    }
}

/// The messages of `pieces`, which arrive one after the other, and the text of what is wrong with those that are none.
fn read<'a, T: Message + DeserializeOwned>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Result<Envelope<T>, String>> {
    let mut decoder = Decoder::new(MAX);
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.extend(piece);
        loop {
            match decoder.next::<T>() {
                Ok(None) => break,
                Ok(Some(message)) => messages.push(Ok(message)),
                Err(error) => {
                    let lost = matches!(error, kakehi_ctl::wire::WireError::TooLarge { .. });
                    messages.push(Err(error.to_string()));
                    if lost {
                        return messages;
                    }
                }
            }
        }
    }
    messages
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let frame = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    [
        (0, r#"{"version":1,"id":1,"body":"status"}"#),
        (0, r#"{"version":2,"id":1,"body":"status"}"#),
        (1, r#"{"version":1,"id":7,"body":"stop"}"#),
        (2, r#"{"version":1,"id":0,"body":{"ready":{"io_uring_level":4,"io_uring_features":["ext_arg"]}}}"#),
        (2, r#"{"version":1,"id":9,"body":{"refused":{"reason":"no \u0000 \ud83d\ude00"}}}"#),
        (2, r#"{"version":1,"id":9,"body":{"finished":{"drained":true}}}"#),
        (2, "[[[[[[[[[[[["),
    ]
    .map(|(options, text)| Input::seed(options, &[frame(text), frame(text)].concat()))
    .to_vec()
}
