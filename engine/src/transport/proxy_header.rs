//! The header of the PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`): who the client is, info by the
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
    let Some(addresses) = input.get(FIXED..length) else { return Ok(None) };
    let ends = match family {
        // TCP over IPv4, IPv6.
        0x11 => Some(ends_v4(addresses)?),
        0x21 => Some(ends_v6(addresses)?),
        // Unspecified; over a unix socket, which has no address that anybody could use.
        0x00 | 0x31 => None,
        // Whoever says LOCAL may say anything there.
        _ if local => None,
        _ => return Err(Malformed),
    };
    Ok(Some(Header { ends: ends.filter(|_| !local), length }))
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

/// Appends a header of version 2. AddressPair of different families are both written as IPv6.
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
