//! Bodies in chunks: what is read, and what is sent on.

use kakehi_engine::{
    h1::{ChunkedBody, Emit},
    http::Reason,
};

use crate::pieces::Input;

/// Trailer fields that are put up with.
const MAX_FIELDS: u16 = 8;

/// What became of a body.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// What is sent on.
    sent: Vec<u8>,
    /// Where the body ended; `None` while it is not complete.
    end: Option<usize>,
    /// Bytes of data.
    data: usize,
}

pub(crate) fn check(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let framed = read(Emit::Chunked, [input.bytes]);
    assert_eq!(framed, read(Emit::Chunked, input.pieces()), "in pieces");
    let plain = read(Emit::Data, [input.bytes]);
    assert_eq!(plain, read(Emit::Data, input.pieces()), "data in pieces");
    let (framed, plain) = match (framed, plain) {
        (Ok(framed), Ok(plain)) => (framed, plain),
        (Err(one), Err(two)) => return assert_eq!(one, two),
        (one, two) => panic!("framed {one:?}, but plain {two:?}"),
    };
    assert_eq!((framed.end, framed.data), (plain.end, plain.data));
    assert_eq!(plain.sent.len(), plain.data);
    // What is sent on, complete or not, means the same to whoever reads it, and is already as we write it.
    let again =
        read(Emit::Chunked, [&framed.sent[..]]).unwrap_or_else(|reason| panic!("refused: {reason:?}"));
    assert_eq!(again.sent.escape_ascii().to_string(), framed.sent.escape_ascii().to_string());
    assert_eq!((again.end, again.data), (framed.end.map(|_| framed.sent.len()), framed.data));
    let data = read(Emit::Data, [&framed.sent[..]]).unwrap_or_else(|reason| panic!("refused: {reason:?}"));
    assert_eq!(data.sent, plain.sent);
}

/// Reads `pieces`, which arrive one after the other.
fn read<'a>(emit: Emit, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Outcome, Reason> {
    let mut body = ChunkedBody::new(emit, MAX_FIELDS);
    let mut outcome = Outcome { sent: Vec::new(), end: None, data: 0 };
    let (mut tail, mut consumed) = (Vec::new(), 0);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let step = body.advance(&mut piece, &mut tail)?;
        assert!(step.kept <= step.consumed && step.consumed <= piece.len());
        consumed += step.consumed;
        outcome.data += step.data;
        outcome.sent.extend_from_slice(&piece[..step.kept]);
        if step.done {
            outcome.sent.append(&mut tail);
            outcome.end = Some(consumed);
            break;
        }
        assert!(step.consumed == piece.len() && tail.is_empty());
    }
    Ok(outcome)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "5\r\nhello\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        "0005\r\nhello\r\n000\r\n\r\n",
        "5 \t; a=\"b;c\" ;d\r\nhello\r\n0;x\r\n\r\n",
        "2;\r\n\r\n\r\n0\r\nA: b\r\nContent-Length: 5\r\nX-Sum: 1\r\n\r\n",
        "ffffffffffffffff\r\nx",
        "10000000000000000\r\nx",
        "3\r\nabcX\r\n",
        "0\r\n folded\r\n\r\n",
    ]
    .map(|text| Input::seed(0, text.as_bytes()))
    .to_vec()
}
