//! The header of the PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`): who the client is, told by the
//! proxy in front at the beginning of a connection. No sockets here.
//!
//! Promises: a header is taken whole or not at all; what is not exactly one is refused, and nothing is guessed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// How version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, with its line end.
const MAX_V1: usize = 107;
/// Longest header of version 2 that is read: addresses and far more extensions than anybody sends.
const MAX_V2: usize = 4_096;
/// Signature, command, family and length.
const FIXED: usize = 16;
/// Bytes of addresses in version 2: TCP over IPv4, TCP over IPv6, a stream over a unix socket.
const ADDRESSES_V4: usize = 12;
const ADDRESSES_V6: usize = 36;
const ADDRESSES_UNIX: usize = 216;
/// The extension that holds a checksum of the whole header (`PP2_TYPE_CRC32C`).
const TYPE_CRC32C: u8 = 0x03;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AddressPair {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `None`: the connection speaks for itself (`LOCAL`, `UNKNOWN`), as with health checks.
    pub ends: Option<AddressPair>,
    /// Bytes of the header.
    pub length: usize,
}

/// What came is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with a header of the PROXY protocol")]
pub struct Malformed;

/// Reads the header at the beginning of `input`; `None` = it is not complete.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(input: &[u8]) -> Result<Option<Header>, Malformed> {
    let begins = |with: &[u8]| {
        let common = input.len().min(with.len());
        input[..common] == with[..common]
    };
    match input.first() {
        None => Ok(None),
        Some(b'P') if begins(b"PROXY ") => parse_v1(input),
        Some(b'\r') if begins(SIGNATURE) => parse_v2(input),
        Some(_) => Err(Malformed),
    }
}

fn parse_v1(input: &[u8]) -> Result<Option<Header>, Malformed> {
    let window = &input[..input.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if input.len() >= MAX_V1 { Err(Malformed) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| Malformed)?;
    let length = end + 2;
    let mut words = line.split(' ').skip(1);
    let family = words.next().ok_or(Malformed)?;
    if family == "UNKNOWN" {
        // Whatever follows means nothing.
        return Ok(Some(Header { ends: None, length }));
    }
    let mut word = || words.next().ok_or(Malformed);
    let (source, destination, source_port, destination_port) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(Malformed);
    }
    let ends = match family {
        "TCP4" => AddressPair {
            source: (address::<Ipv4Addr>(source)?, port(source_port)?).into(),
            destination: (address::<Ipv4Addr>(destination)?, port(destination_port)?).into(),
        },
        "TCP6" => AddressPair {
            source: (address::<Ipv6Addr>(source)?, port(source_port)?).into(),
            destination: (address::<Ipv6Addr>(destination)?, port(destination_port)?).into(),
        },
        _ => return Err(Malformed),
    };
    Ok(Some(Header { ends: Some(ends), length }))
}

fn address<A: FromStr>(text: &str) -> Result<A, Malformed> {
    text.parse().map_err(|_| Malformed)
}

/// A port as it must be written: without a sign, without zeros in front.
fn port(text: &str) -> Result<u16, Malformed> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical).ok_or(Malformed)
}

fn parse_v2(input: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(fixed) = input.first_chunk::<FIXED>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED + rest;
    if length > MAX_V2 {
        return Err(Malformed);
    }
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    let Some(header) = input.get(..length) else { return Ok(None) };
    let addresses = &header[FIXED..];
    if local {
        // Section 2.2: of LOCAL nothing counts but the length, whatever the family says. A checksum is looked at where
        // it is beyond doubt where extensions begin.
        let checked = if family == 0x00 { check_extensions(header, FIXED) } else { Ok(()) };
        return match checked {
            Err(Defect::Checksum) => Err(Malformed),
            Err(Defect::Shape) | Ok(()) => Ok(Some(Header { ends: None, length })),
        };
    }
    let (ends, addresses_len) = match family {
        0x11 => (Some(ends_v4(addresses)?), ADDRESSES_V4),
        0x21 => (Some(ends_v6(addresses)?), ADDRESSES_V6),
        // Over a unix socket, which has no address that anybody could use.
        0x31 if addresses.len() >= ADDRESSES_UNIX => (None, ADDRESSES_UNIX),
        // Unspecified: whoever has no addresses may leave them out.
        0x00 | 0x31 => (None, 0),
        _ => return Err(Malformed),
    };
    match check_extensions(header, FIXED + addresses_len) {
        Ok(()) => Ok(Some(Header { ends, length })),
        // Section 2.2: what follows an unspecified family is skipped.
        Err(Defect::Shape) if ends.is_none() => Ok(Some(Header { ends, length })),
        Err(_) => Err(Malformed),
    }
}

/// What is wrong with the extensions of a header.
enum Defect {
    /// They are not type, length and value, one after the other.
    Shape,
    /// The checksum is that of another header.
    Checksum,
}

/// Walks over the extensions (section 2.2.1, "TLV"), which begin at `from`, and verifies the checksum if there is one
/// (section 2.2.3): CRC-32c of the header, with zeros in place of the checksum.
fn check_extensions(header: &[u8], from: usize) -> Result<(), Defect> {
    let mut at = from;
    while at < header.len() {
        let [kind, high, low] = *header[at..].first_chunk::<3>().ok_or(Defect::Shape)?;
        let value_at = at + 3;
        let end = value_at + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(value_at..end).ok_or(Defect::Shape)?;
        if kind == TYPE_CRC32C {
            let said: [u8; 4] = value.try_into().map_err(|_| Defect::Checksum)?;
            let sum = crc32c::crc32c(&header[..value_at]);
            let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), &header[end..]);
            if sum != u32::from_be_bytes(said) {
                return Err(Defect::Checksum);
            }
        }
        at = end;
    }
    Ok(())
}

fn ends_v4(bytes: &[u8]) -> Result<AddressPair, Malformed> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes.first_chunk().ok_or(Malformed)?;
    Ok(AddressPair {
        source: (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([i, j])).into(),
        destination: (Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([k, l])).into(),
    })
}

fn ends_v6(bytes: &[u8]) -> Result<AddressPair, Malformed> {
    let bytes = bytes.first_chunk::<36>().ok_or(Malformed)?;
    let ip = |at: usize| -> Result<Ipv6Addr, Malformed> {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().map_err(|_| Malformed)?;
        Ok(octets.into())
    };
    Ok(AddressPair {
        source: (ip(0)?, u16::from_be_bytes([bytes[32], bytes[33]])).into(),
        destination: (ip(16)?, u16::from_be_bytes([bytes[34], bytes[35]])).into(),
    })
}

/// Appends a header of version 2. Addresses of different families are both written as IPv6.
pub fn write_v2(ends: Option<&AddressPair>, out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE);
    let Some(AddressPair { source, destination }) = ends else {
        // LOCAL: nobody knows whom it is from.
        out.extend_from_slice(&[0x20, 0, 0, 0]);
        return;
    };
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            for ip in [from, to] {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                out.extend_from_slice(&ip.octets());
            }
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> AddressPair {
        AddressPair { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn version_1_says_who_it_is() {
        for (line, expected) in [
            ("PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n", Some(ends("1.2.3.4:1000", "5.6.7.8:80"))),
            ("PROXY TCP6 2001:db8::1 ::1 65535 443\r\n", Some(ends("[2001:db8::1]:65535", "[::1]:443"))),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 whatever\r\n", None),
        ] {
            let header = parse(format!("{line}GET /").as_bytes()).unwrap().unwrap();
            assert_eq!((header.ends, header.length), (expected, line.len()), "{line}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_mixed_families_become_ipv6() {
        for (given, read) in [
            (Some(ends("1.2.3.4:1", "5.6.7.8:2")), Some(ends("1.2.3.4:1", "5.6.7.8:2"))),
            (Some(ends("[::1]:1", "[::2]:2")), Some(ends("[::1]:1", "[::2]:2"))),
            (Some(ends("1.2.3.4:1", "[::2]:2")), Some(ends("[::ffff:1.2.3.4]:1", "[::2]:2"))),
            (None, None),
        ] {
            let mut out = Vec::new();
            write_v2(given.as_ref(), &mut out);
            let length = out.len();
            out.extend_from_slice(b"behind");
            assert_eq!(parse(&out), Ok(Some(Header { ends: read, length })));
            for cut in 0..length {
                assert_eq!(parse(&out[..cut]), Ok(None), "{cut} bytes");
            }
        }
    }

    #[test]
    fn extensions_are_skipped_and_local_connections_speak_for_themselves() {
        let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2];
        let with_more = [&addresses[..], &[4, 0, 1, 9]].concat();
        let header = parse(&v2(0x21, 0x11, &with_more)).unwrap().unwrap();
        assert_eq!((header.ends, header.length), (Some(ends("1.2.3.4:1", "5.6.7.8:2")), 16 + 16));
        for (command, family, rest) in
            [(0x20, 0x11, &addresses[..]), (0x20, 0, &[][..]), (0x21, 0, &[][..]), (0x20, 0x99, &[1, 2][..])]
        {
            assert_eq!(parse(&v2(command, family, rest)).unwrap().unwrap().ends, None);
        }
    }

    #[test]
    fn local_is_accepted_with_any_family_whether_addresses_follow_or_not() {
        for family in [0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32, 0xff] {
            for rest in [&[][..], &[1, 2, 3], &[7; 12], &[7; 36], &[7; 216]] {
                let header = parse(&v2(0x20, family, rest)).unwrap().unwrap();
                assert_eq!((header.ends, header.length), (None, 16 + rest.len()), "{family:#x} {rest:?}");
            }
        }
    }

    /// Extensions with a checksum between two others, the checksum being right for a header that begins so.
    fn checksummed(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header =
            v2(command, family, &[addresses, &[4, 0, 1, 9, 3, 0, 4, 0, 0, 0, 0, 4, 0, 0]].concat());
        let at = header.len() - 7;
        let sum = crc32c::crc32c(&header).to_be_bytes();
        header[at..at + 4].copy_from_slice(&sum);
        header
    }

    #[test]
    fn a_checksum_is_that_of_the_specification() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_header_with_a_wrong_checksum_is_refused_wherever_it_is_wrong() {
        let families: [(u8, u8, &[u8]); 5] = [
            (0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2]),
            (0x21, 0x21, &[1; 36]),
            (0x21, 0x31, &[1; 216]),
            (0x21, 0x00, &[]),
            (0x20, 0x00, &[]),
        ];
        for (command, family, addresses) in families {
            let header = checksummed(command, family, addresses);
            assert_eq!(parse(&header).unwrap().unwrap().length, header.len(), "{command:#x} {family:#x}");
            // Any bit of the addresses, of the checksum, and of the values of other extensions.
            let sum_at = header.len() - 7;
            for at in (FIXED..FIXED + addresses.len())
                .chain([FIXED + addresses.len() + 3])
                .chain(sum_at..sum_at + 4)
            {
                let mut wrong = header.clone();
                wrong[at] ^= 0x10;
                assert_eq!(parse(&wrong), Err(Malformed), "{command:#x} {family:#x}: byte {at}");
            }
        }
        // A checksum of another size is none.
        assert_eq!(parse(&v2(0x21, 0x00, &[3, 0, 3, 0, 0, 0])), Err(Malformed));
    }

    #[test]
    fn extensions_behind_addresses_are_whole_or_the_header_is_refused() {
        let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 0, 2];
        for rest in [&[4][..], &[4, 0], &[4, 0, 2, 9], &[4, 0, 0, 5]] {
            assert_eq!(parse(&v2(0x21, 0x11, &[&addresses[..], rest].concat())), Err(Malformed), "{rest:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for wrong in [
            "GET / HTTP/1.1\r\n",
            "PROXX",
            "PROXY\r\n",
            "\r\n\r\n\0\r\nQUIX",
            "PROXY TCP4\r\n",
            &long,
            "PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1000 80 1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1000 080\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 80\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 80\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
        ] {
            assert_eq!(parse(wrong.as_bytes()), Err(Malformed), "{wrong:?}");
        }
        for wrong in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x11, &[0; 5000])[..16].to_vec(),
        ] {
            assert_eq!(parse(&wrong), Err(Malformed), "{wrong:?}");
        }
    }
}
