//! Tests of bodies in chunks.

use super::super::mutation::Mutation;
use super::*;

/// What is sent on, and where the body ended; `None` while it is not complete.
type Outcome = Result<(Vec<u8>, Option<usize>, usize), Reason>;

/// Reads `pieces`, which arrive one after the other.
fn read<'a>(emit: Emit, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut body = ChunkedBody::new(emit, 8);
    let (mut sent, mut tail, mut consumed, mut data) = (Vec::new(), Vec::new(), 0, 0);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let step = body.advance(&mut piece, &mut tail)?;
        consumed += step.consumed;
        data += step.data;
        sent.extend_from_slice(&piece[..step.kept]);
        if step.done {
            sent.append(&mut tail);
            return Ok((sent, Some(consumed), data));
        }
        assert_eq!(step.consumed, piece.len());
        assert!(tail.is_empty());
    }
    Ok((sent, None, data))
}

/// Reads `input` whole, at every split, and byte by byte; all must agree.
fn read_every_way(emit: Emit, input: &[u8]) -> Outcome {
    let whole = read(emit, [input]);
    for split in 0..=input.len() {
        let (one, two) = input.split_at(split);
        assert_eq!(read(emit, [one, two]), whole, "split at {split}: {}", input.escape_ascii());
    }
    assert_eq!(read(emit, input.chunks(1)), whole, "byte by byte: {}", input.escape_ascii());
    whole
}

#[test]
fn canonical_framing_is_passed_on_untouched_and_the_next_message_is_left() {
    let body = b"5\r\nhello\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n";
    let input = [body.as_slice(), b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(read_every_way(Emit::Chunked, &input), Ok((body.to_vec(), Some(body.len()), 31)));
    let data = b"helloabcdefghijklmnopqrstuvwxyz".to_vec();
    assert_eq!(read_every_way(Emit::Data, &input), Ok((data, Some(body.len()), 31)));
}

#[test]
fn leading_zeros_and_extensions_are_cut_out() {
    for (input, expected) in [
        ("0005\r\nhello\r\n000\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5;a=b\r\nhello\r\n0;x\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("5 \t; a=\"b;c\" ;d\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("2;\r\n\r\n\r\n0\r\n\r\n", "2\r\n\r\n\r\n0\r\n\r\n"),
        ("0\r\n\r\n", "0\r\n\r\n"),
    ] {
        let (sent, end, _) = read_every_way(Emit::Chunked, input.as_bytes()).unwrap();
        assert_eq!(
            (sent.escape_ascii().to_string(), end),
            (expected.as_bytes().escape_ascii().to_string(), Some(input.len()))
        );
    }
}

#[test]
fn any_defect_of_the_framing_is_refused() {
    for input in [
        "\r\n",
        "g\r\n",
        "+5\r\nhello\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n",
        " 5\r\nhello\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello",
        "5 \r\nhello\r\n",
        "5 x\r\nhello\r\n",
        "5_0\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\r0",
        "5;a\nb\r\nhello\r\n",
        "5;a\rb\r\nhello\r\n",
        "5;a=\"\r\n\"\rxxxy",
        "5;\0\r\n",
        "5;\x7f\r\n",
        ";a\r\nhello",
        "00000000000000005\r\nhello\r\n",
        "10000000000000000\r\n",
        "5,5\r\nhello\r\n",
        "\u{665}\r\n",
    ] {
        assert_eq!(read_every_way(Emit::Chunked, input.as_bytes()), Err(Reason::BadChunk), "{input:?}");
        assert_eq!(read_every_way(Emit::Data, input.as_bytes()), Err(Reason::BadChunk), "{input:?}");
    }
}

#[test]
fn the_largest_size_is_taken_and_the_rest_of_the_chunk_is_known() {
    let mut body = ChunkedBody::new(Emit::Chunked, 8);
    let mut input = b"ffffffffffffffff\r\nabc".to_vec();
    let step = body.advance(&mut input, &mut Vec::new()).unwrap();
    assert_eq!(step, Advance { consumed: 21, kept: 21, data: 3, done: false });
    assert_eq!(body.remaining_in_chunk(), u64::MAX - 3);
}

#[test]
fn a_size_line_has_an_end() {
    let extension = |len| format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(len));
    assert!(read(Emit::Chunked, [extension(limits::MAX_CHUNK_LINE - 1).as_bytes()]).is_ok());
    for spoilt in
        [extension(limits::MAX_CHUNK_LINE), format!("5{};\r\n", " ".repeat(limits::MAX_CHUNK_LINE + 1))]
    {
        assert_eq!(read(Emit::Chunked, [spoilt.as_bytes()]), Err(Reason::BadChunk));
        assert_eq!(read(Emit::Chunked, spoilt.as_bytes().chunks(1)), Err(Reason::BadChunk));
    }
}

#[test]
fn trailers_are_passed_on_without_those_that_change_the_message() {
    let input = "1\r\nx\r\n0\r\nDigest: a=b\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nhost: evil\r\n\
                 X-Forwarded-For: 1.1.1.1\r\nx_forwarded_for: 1.1.1.1\r\nX-Forwarded-Prefix: /\r\n\
                 Grpc-Status:0 \r\n\r\n";
    let (sent, end, data) = read_every_way(Emit::Chunked, input.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(sent).unwrap(), "1\r\nx\r\n0\r\nDigest: a=b\r\nGrpc-Status:0 \r\n\r\n");
    assert_eq!((end, data), (Some(input.len()), 1));
    assert_eq!(read_every_way(Emit::Data, input.as_bytes()).unwrap().0, b"x");
    for name in ["Authorization", "Set-Cookie", "Connection", "TE", "Trailer", "Via", "Content-Type"] {
        let input = format!("0\r\n{name}: x\r\n\r\n");
        assert_eq!(read_every_way(Emit::Chunked, input.as_bytes()).unwrap().0, b"0\r\n\r\n", "{name}");
    }
}

#[test]
fn a_trailer_section_that_is_broken_or_too_large_is_refused() {
    let long = format!("X: {}\r\n\r\n", "y".repeat(limits::MAX_TRAILER_SIZE));
    let many = "X: y\r\n".repeat(9);
    for trailer in [
        "X: y\n\r\n",
        "\n",
        "X y\r\n\r\n",
        ": y\r\n\r\n",
        "X : y\r\n\r\n",
        "X: y\r\n z\r\n\r\n",
        "X: a\rb\r\n\r\n",
        "X: a\0\r\n\r\n",
        "\r\r\n",
        "\rx\r\n",
        "Content-Length : 5\r\n\r\n",
        &many,
    ] {
        let input = format!("0\r\n{trailer}");
        assert_eq!(read_every_way(Emit::Chunked, input.as_bytes()), Err(Reason::BadTrailer), "{trailer:?}");
    }
    let input = format!("0\r\n{long}");
    assert_eq!(read(Emit::Chunked, [input.as_bytes()]), Err(Reason::BadTrailer));
    assert_eq!(read(Emit::Chunked, input.as_bytes().chunks(1)), Err(Reason::BadTrailer));
}

#[test]
fn a_truncated_body_is_never_complete() {
    let input = b"5\r\nhello\r\n0\r\nX: y\r\n\r\n";
    for len in 0..input.len() {
        assert_eq!(read(Emit::Chunked, [&input[..len]]).unwrap().1, None, "{len}");
    }
}

#[test]
fn our_own_chunk_lines_are_read_back() {
    for length in [1, 9, 10, 15, 16, 255, 16_384, u64::from(u32::MAX), u64::MAX] {
        let line = chunk_prefix(length);
        assert_eq!(&*line, format!("{length:x}\r\n").as_bytes());
    }
    let body = [&*chunk_prefix(5), b"hello", CHUNK_SUFFIX, LAST_CHUNK].concat();
    assert_eq!(read_every_way(Emit::Data, &body).unwrap(), (b"hello".to_vec(), Some(body.len()), 5));
}

#[test]
fn whatever_is_accepted_is_read_alike_in_any_pieces_and_once_more_after_forwarding() {
    const SEEDS: [&str; 3] = [
        "5\r\nhello\r\n0a;x=y\r\n0123456789\r\n0\r\n\r\n",
        "1\r\n\r\r\n2\r\n\r\n\r\n0;a\r\nX: y\r\nHost: a\r\nZ: z\r\n\r\n",
        "0000\r\n\r\nGET / HTTP/1.1\r\n",
    ];
    let mut mutation = Mutation::new();
    let mut complete = 0;
    for round in 0..6_000 {
        let input = mutation.spoil(SEEDS[round % SEEDS.len()]);
        let outcome = read_every_way(Emit::Chunked, &input);
        let data = read_every_way(Emit::Data, &input);
        assert_eq!(outcome.is_ok(), data.is_ok(), "{}", input.escape_ascii());
        let Ok((sent, Some(_), len)) = outcome else { continue };
        complete += 1;
        assert_eq!(read(Emit::Chunked, [&*sent]), Ok((sent.clone(), Some(sent.len()), len)));
        assert_eq!(read(Emit::Data, [&*sent]).unwrap().0, data.unwrap().0);
    }
    assert!(complete > 500, "{complete} complete");
}

#[test]
fn trailers_with_underscores_are_dropped_where_fields_are() {
    let input = b"0\r\nA_B: 1\r\nA-B: 2\r\n_: 3\r\n\r\n";
    for (body, expected) in [
        (ChunkedBody::new(Emit::Chunked, 8), &b"0\r\nA_B: 1\r\nA-B: 2\r\n_: 3\r\n\r\n"[..]),
        (ChunkedBody::new(Emit::Chunked, 8).without_underscores(), b"0\r\nA-B: 2\r\n\r\n"),
    ] {
        let (mut body, mut input, mut tail) = (body, input.to_vec(), Vec::new());
        let step = body.advance(&mut input, &mut tail).unwrap();
        assert!(step.done);
        assert_eq!([&input[..step.kept], &tail].concat(), expected);
    }
}
